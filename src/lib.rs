//! sealfs: mount an S3 bucket as a directory; everything in it is sealed on this machine first.
//!
//! The modules form layers and import downward only (`tests/layers.rs` enforces it):
//! `main → cli → exchange → stack → fuse → fs → commit → {meta, data} → {journal, s3ec} → store → seal → base`.
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

pub mod base;
pub mod cli;
pub mod commit;
pub mod data;
pub mod exchange;
pub mod fs;
pub mod fuse;
pub mod journal;
pub mod meta;
pub mod s3ec;
pub mod seal;
pub mod stack;
pub mod store;
