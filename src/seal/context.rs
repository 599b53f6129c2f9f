//! What binds a sealed message to its place: the context string (FORMAT.md "Contexts").
//!
//! A context is a list of fields, each preceded by its length as four bytes, big-endian. A
//! message opened under any other context fails at its commitment.

use super::COMMITMENT;
use crate::base::{JournalId, VolumeId};

/// First field of every context.
pub const CONTEXT_MAGIC: &[u8] = b"sealfs";
/// Second field: the version byte of the format this code writes and reads.
pub const FORMAT_VERSION: u8 = 2;

fn fields(kind: &[u8], rest: &[&[u8]]) -> Vec<u8> {
    let head = [CONTEXT_MAGIC, &[FORMAT_VERSION], kind];
    let len = head.iter().chain(rest).map(|field| 4 + field.len()).sum();
    let mut out = Vec::with_capacity(len);
    for field in head.iter().chain(rest) {
        let len = u32::try_from(field.len()).expect("names are far below 4 GiB");
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}

/// Of an object of the bucket: `name` is its full name below the STORE prefix.
pub(super) fn object(volume: VolumeId, epoch: u32, name: &str) -> Vec<u8> {
    fields(b"object", &[&volume.0, &epoch.to_be_bytes(), name.as_bytes()])
}

/// Of an object of the metadata's log, which opens only behind the one before it: `behind` is the
/// commitment of that, zeros for the first.
pub(super) fn log(volume: VolumeId, epoch: u32, name: &str, behind: &[u8; COMMITMENT]) -> Vec<u8> {
    fields(b"log", &[&volume.0, &epoch.to_be_bytes(), name.as_bytes(), behind])
}

/// Of a record of the local journal: `kind` says which sort of record, as `journal/` defines.
pub(super) fn journal(
    volume: VolumeId,
    epoch: u32,
    journal: JournalId,
    kind: u8,
    number: u64,
) -> Vec<u8> {
    let (epoch, number) = (epoch.to_be_bytes(), number.to_be_bytes());
    fields(b"journal", &[&volume.0, &epoch, &journal.0, &[kind], &number])
}

/// Of a file of local state: `file_name` is its name inside the state directory.
pub(super) fn state(volume: VolumeId, epoch: u32, file_name: &str) -> Vec<u8> {
    fields(b"state", &[&volume.0, &epoch.to_be_bytes(), file_name.as_bytes()])
}

/// Of the current root in a slot of the keyring: `slot` is all of the slot before it.
pub(super) fn slot(volume: VolumeId, epoch: u32, slot: &[u8]) -> Vec<u8> {
    fields(b"slot", &[&volume.0, &epoch.to_be_bytes(), slot])
}

/// Of a slot's anchor: `head` is all of the slot before it.
pub(super) fn anchor(volume: VolumeId, head: &[u8]) -> Vec<u8> {
    fields(b"anchor", &[&volume.0, head])
}

/// Of what the keyring of epoch `current` keeps of epoch `old`: `content` says what that is.
pub(super) fn old_epoch(volume: VolumeId, current: u32, old: u32, content: u8) -> Vec<u8> {
    fields(b"epoch", &[&volume.0, &current.to_be_bytes(), &old.to_be_bytes(), &[content]])
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([0xAB; 16]);

    #[test]
    fn the_context_of_an_object_is_as_the_format_page_shows() {
        // Guards against a silent change of bytes at rest: the example of FORMAT.md.
        let mut expected = b"\0\0\0\x06sealfs\0\0\0\x01\x02\0\0\0\x06object\0\0\0\x10".to_vec();
        expected.extend_from_slice(&[0xAB; 16]);
        expected.extend_from_slice(b"\0\0\0\x04\0\0\0\x01\0\0\0\x05seg/a");
        assert_eq!(object(VOLUME, 1, "seg/a"), expected);
    }

    #[test]
    fn no_two_places_share_a_context() {
        // Guards against a message that is valid elsewhere: every field changed in turn, and a
        // byte moved from one field to the next.
        let id = JournalId([1; 16]);
        let all = [
            object(VOLUME, 1, "seg/a"),
            object(VOLUME, 1, "seg/b"),
            object(VOLUME, 2, "seg/a"),
            object(VolumeId([0xAC; 16]), 1, "seg/a"),
            log(VOLUME, 1, "seg/a", &[0; 32]),
            log(VOLUME, 1, "seg/a", &[1; 32]),
            log(VOLUME, 2, "seg/a", &[0; 32]),
            log(VOLUME, 1, "seg/b", &[0; 32]),
            journal(VOLUME, 1, id, 1, 1),
            journal(VOLUME, 2, id, 1, 1),
            journal(VOLUME, 1, id, 2, 1),
            journal(VOLUME, 1, id, 1, 2),
            journal(VOLUME, 1, JournalId([2; 16]), 1, 1),
            state(VOLUME, 1, "seg/a"),
            state(VOLUME, 2, "seg/a"),
            state(VOLUME, 1, ""),
            slot(VOLUME, 1, b"seg/a"),
            slot(VOLUME, 2, b"seg/a"),
            slot(VOLUME, 1, b""),
            anchor(VOLUME, b"seg/a"),
            anchor(VOLUME, b""),
            old_epoch(VOLUME, 3, 1, 1),
            old_epoch(VOLUME, 3, 2, 1),
            old_epoch(VOLUME, 3, 1, 2),
            old_epoch(VOLUME, 4, 1, 1),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b), "{i}");
        }
    }
}
