//! STUB
#![allow(missing_docs, dead_code)]
mod flags;
mod sse;
pub use flags::{SseFlagError, SseFlags, SseKind};
pub use sse::{Applied, SecretKey32, SseMismatch, SseMode};
