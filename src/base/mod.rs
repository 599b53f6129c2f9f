//! What every layer may use: identifiers with their units, time, words, work that several wait for, and
//! whose process this is.
//!
//! Owns no state but buffers that wait to be used again, and opens no file of its own. Imports nothing
//! of this crate.

mod buffers;
mod clock;
mod files;
#[cfg(test)]
mod garbled;
pub mod histogram;
mod ids;
mod text;
mod underway;
mod user;

pub use buffers::Buffer;
pub use clock::{
    Clock, SystemClock, Timestamp, date_of_day, in_calendar, secs_of, unix_secs, utc_text,
};
pub use files::read_up_to;
#[cfg(test)]
pub(crate) use garbled::{garbled, garbled_text};
pub use histogram::{Histogram, Spread};
pub use ids::{ChainValue, ContentsId, Ino, JournalId, JournalPos, SegmentId, VolumeId, hex};
pub use text::{counted, one_line, plain_json, plural, shell_word};
pub use underway::{Promise, Underway};
pub use user::{is_root, own_uid};
