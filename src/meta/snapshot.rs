//! Rows of snapshots: what each is, and the segments that only they refer to.

use std::fmt;

use bytes::Bytes;

use super::codec::{DecodeError, Put, Reader};
use super::rows::{SegmentRow, VERSION, version};
use crate::base::ChainValue;

/// The longest name of a snapshot, in bytes.
pub const SNAPSHOT_NAME_MAX: usize = 200;
/// The longest note, in bytes.
pub const SNAPSHOT_NOTE_MAX: usize = 1000;

/// The name of a snapshot: what may name a directory entry, and is no word of the commands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(name: &str) -> Result<SnapshotName, &'static str> {
        if name.is_empty() {
            return Err("it is empty");
        }
        if name.len() > SNAPSHOT_NAME_MAX {
            return Err("it is longer than 200 bytes");
        }
        if name == "now" {
            return Err("\"now\" stands for the volume as it is");
        }
        if name.starts_with(['.', '-']) {
            return Err("it begins with \".\" or \"-\"");
        }
        if name.starts_with(char::is_whitespace) || name.ends_with(char::is_whitespace) {
            return Err("it begins or ends with a space");
        }
        if name.contains(|c: char| c == '/' || c.is_control()) {
            return Err("it has a \"/\" or a control character");
        }
        Ok(SnapshotName(name.to_string()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who asked for a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SnapshotOrigin {
    /// A command.
    #[default]
    ByHand,
    /// The schedule, for its hour.
    Hourly,
    /// The schedule, for its day.
    Daily,
    /// The schedule, for its month.
    Monthly,
}

impl SnapshotOrigin {
    const ALL: [SnapshotOrigin; 4] = [
        SnapshotOrigin::ByHand,
        SnapshotOrigin::Hourly,
        SnapshotOrigin::Daily,
        SnapshotOrigin::Monthly,
    ];
}

/// `n` row: a snapshot, whose name is in the key. 98 bytes and the note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRow {
    /// The checkpoint of the metadata.
    pub checkpoint: [u8; 16],
    /// The number of its manifest.
    pub manifest: u64,
    /// The commit that it is; 0: before the first.
    pub commit: u64,
    /// The chain value of that commit.
    pub chain: ChainValue,
    /// When it was made, Unix seconds.
    pub time_secs: u64,
    /// When it is deleted, Unix seconds; 0: never by itself.
    pub expires_secs: u64,
    /// Who asked for it.
    pub origin: SnapshotOrigin,
    /// Inodes in use.
    pub files: u64,
    /// Bytes in use.
    pub bytes: u64,
    /// What its maker says of it.
    pub note: String,
}

impl SnapshotRow {
    /// Encodes the row.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(98 + self.note.len());
        out.u8(VERSION);
        out.extend_from_slice(&self.checkpoint);
        out.u64(self.manifest);
        out.u64(self.commit);
        out.extend_from_slice(&self.chain.0);
        out.u64(self.time_secs);
        out.u64(self.expires_secs);
        out.u8(self.origin as u8);
        out.u64(self.files);
        out.u64(self.bytes);
        out.extend_from_slice(self.note.as_bytes());
        out.into()
    }

    /// Decodes a row.
    pub fn decode(bytes: &[u8]) -> Result<SnapshotRow, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let (checkpoint, manifest, commit) = (r.array()?, r.u64()?, r.u64()?);
        let chain = ChainValue(r.array()?);
        let (time_secs, expires_secs, origin) = (r.u64()?, r.u64()?, r.u8()?);
        let origin = SnapshotOrigin::ALL.get(usize::from(origin));
        let origin = *origin.ok_or(DecodeError("unknown origin of a snapshot"))?;
        let (files, bytes) = (r.u64()?, r.u64()?);
        let note = std::str::from_utf8(r.rest()).map_err(|_| DecodeError("note of a snapshot"))?;
        if note.len() > SNAPSHOT_NOTE_MAX {
            return Err(DecodeError("note of a snapshot"));
        }
        let note = note.to_string();
        Ok(SnapshotRow {
            checkpoint,
            manifest,
            commit,
            chain,
            time_secs,
            expires_secs,
            origin,
            files,
            bytes,
            note,
        })
    }
}

/// `y` row: a segment that only snapshots refer to. 9 bytes, and its `s` row, whose `live` and
/// `owners` are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptRow {
    /// The first commit that does not refer to it.
    pub death: u64,
    /// What the segment is.
    pub segment: SegmentRow,
}

impl KeptRow {
    /// Encodes the row. `frames`: see [`SegmentRow::encode_with`].
    pub fn encode_with(&self, frames: &[u8]) -> Bytes {
        let segment = SegmentRow { live: 0, owners: 0, ..self.segment }.encode_with(frames);
        let mut out = Vec::with_capacity(9 + segment.len());
        out.u8(VERSION);
        out.u64(self.death);
        out.extend_from_slice(&segment);
        out.into()
    }

    /// Decodes a row and the index of the segment's frames.
    pub fn decode_with(bytes: &[u8]) -> Result<(KeptRow, &[u8]), DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r)?;
        let death = r.u64()?;
        let (segment, frames) = SegmentRow::decode_with(r.rest())?;
        if segment.live != 0 || segment.owners != 0 {
            return Err(DecodeError("a segment that only snapshots refer to has live bytes"));
        }
        Ok((KeptRow { death, segment }, frames))
    }

    /// Whether commit `n` refers to it, as far as birth and death say.
    pub fn is_held_by(&self, n: u64) -> bool {
        (self.segment.birth..self.death).contains(&n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_row_reads_back_and_no_cut_one_is_taken_for_one() {
        // Guards against a snapshot whose checkpoint cannot be found again.
        let row = SnapshotRow {
            checkpoint: [7; 16],
            manifest: 9,
            commit: 11,
            chain: ChainValue([3; 32]),
            time_secs: 1_800_000_000,
            expires_secs: 0,
            origin: SnapshotOrigin::Monthly,
            files: 5,
            bytes: 6,
            note: String::new(),
        };
        let bytes = row.encode();
        assert_eq!(bytes.len(), 98, "documented in FORMAT.md");
        assert_eq!(SnapshotRow::decode(&bytes), Ok(row.clone()));
        for len in 0..bytes.len() {
            assert!(SnapshotRow::decode(&bytes[..len]).is_err(), "{len}");
        }
        let noted = SnapshotRow { note: "vor dem Umzug ✓".into(), ..row };
        assert_eq!(SnapshotRow::decode(&noted.encode()), Ok(noted.clone()));
        let long = SnapshotRow { note: "x".repeat(SNAPSHOT_NOTE_MAX + 1), ..noted };
        assert!(SnapshotRow::decode(&long.encode()).is_err());
    }

    #[test]
    fn a_kept_segment_is_what_it_was_and_is_held_from_birth_to_death() {
        // Guards against a segment that is deleted, or kept, one commit too early or too late.
        let segment = SegmentRow { size: 1, live: 2, birth: 3, epoch: 4, owners: 5, half_since: 6 };
        let kept = KeptRow { death: 6, segment };
        let bytes = kept.encode_with(b"index");
        let (read, frames) = KeptRow::decode_with(&bytes).expect("reads");
        assert_eq!(
            read,
            KeptRow { death: 6, segment: SegmentRow { live: 0, owners: 0, ..segment } }
        );
        assert_eq!(frames, b"index");
        assert!(!read.is_held_by(2) && read.is_held_by(3) && read.is_held_by(5));
        assert!(!read.is_held_by(6));
        for len in (0..bytes.len()).filter(|&len| len != 9 + 41) {
            assert!(KeptRow::decode_with(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn names_that_no_directory_or_command_could_show_are_refused() {
        // Guards against a snapshot that can be made and never be named again.
        for good in ["a", "2026-11-26T21:00Z", "vor dem Umzug", "now2", "é", &"x".repeat(200)] {
            assert!(SnapshotName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".x", "-x", "a/b", "now", "a\n", " a", "a ", &"x".repeat(201)] {
            assert!(SnapshotName::parse(bad).is_err(), "{bad}");
        }
    }
}
