//! What the tests of the ways into a volume share.

pub mod kms;
