//! What the tests in this directory share.

pub mod s3server;
