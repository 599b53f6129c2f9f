//! (skeleton)
pub mod error;
pub mod kv;
mod kv_store;
