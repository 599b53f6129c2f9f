//! What a caller asks for of the server-side encryption, the volume's own settings left open.

use std::collections::BTreeMap;

use super::sse::{SecretKey32, SseMode};

/// What is asked for. What they leave open, the volume's configuration says.
#[derive(Clone, Debug, Default)]
pub struct SseAsk {
    /// The mode; `None` leaves it to the volume.
    pub mode: Option<SseMode>,
    /// The customer key to write with, should the volume's mode be `customer`.
    pub write_key: Option<SecretKey32>,
    /// Customer keys to read with.
    pub read_keys: Vec<SecretKey32>,
    /// Tags of objects; `None` leaves them to the volume.
    pub tags: Option<BTreeMap<String, String>>,
}

impl SseAsk {
    /// Every customer key given, the writing one first.
    pub fn keys(&self) -> Vec<SecretKey32> {
        self.write_key.iter().chain(&self.read_keys).cloned().collect()
    }
}

impl From<SseMode> for SseAsk {
    fn from(mode: SseMode) -> SseAsk {
        SseAsk { mode: Some(mode), ..SseAsk::default() }
    }
}
