//! (skeleton)
pub mod error;
pub mod s3;
