//! What every layer may use: identifiers with their units, time, failure points.
//!
//! Owns no state and does no I/O. Imports nothing of this crate.

mod clock;
mod ids;

pub use clock::{Clock, SystemClock, Timestamp};
pub use ids::{Ino, JournalId, JournalPos, SegmentId, VolumeId, hex};
