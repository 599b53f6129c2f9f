//! What must hold for any bytes: no panic, no endless loop, nothing accepted that reads back as
//! something else. Used by the fuzz targets, and by `tests/format/fuzz_corpus.rs`, which replays the
//! committed seeds.
#![allow(dead_code)] // each target uses one

use std::fmt::Display;
use std::str::FromStr;
use std::sync::OnceLock;

use sealfs::base::{JournalId, SegmentId};
use sealfs::commit::Batch;
use sealfs::fs::Quota;
use sealfs::journal::format::{FileHeader, Frame, Identity, Prelude, identity_from_bytes};
use sealfs::meta::{
    BesideRow, CommitRow, DeadRow, Dirent, ExtentRow, HistoryRow, Inode, KeptRow, SegmentRow,
    SnapshotName, SnapshotRow, Stats, VolumeRow, keys,
};
use sealfs::s3ec::{self, Envelope, EnvelopePlace, Metadata, Recognised};
use sealfs::seal::{
    self, AgeSlot, HEADER, InputKey, KEY, Keyring, KmsSlot, Opener, RecoveryKey, RootKey, Secret,
    VolumeKeys, offsets,
};
use sealfs::stack::{Change, Schedule, VolumeConfig, age_reads};
use sealfs::store::Compression;
use sealfs::store::s3::StorageClass;
use sealfs::store::segments::{
    FOOTER, Footer, Frames, Layout, decode_summary, encode_summary, has_frames,
};
use sealfs::store::{Location, SegmentStore};

fn volume() -> &'static VolumeKeys {
    static KEYS: OnceLock<VolumeKeys> = OnceLock::new();
    KEYS.get_or_init(|| VolumeKeys::from_root(RootKey::from_bytes(&[7; KEY])))
}

/// Sealed objects: nothing opens that was not sealed; what was sealed and then changed does not
/// open; whole and ranged reading agree.
pub fn sealed(data: &[u8]) {
    let key = InputKey::from_bytes(&[9; KEY]);
    if let Ok(plain) = seal::open(&key, b"context", data) {
        panic!("{} bytes that nobody sealed open to {}", data.len(), plain.len());
    }
    if let Some(header) = data.first_chunk::<HEADER>() {
        assert!(Opener::new(&key, b"context", header).is_err(), "a commitment that nobody made");
    }
    if let Some(plain) = offsets::plain_len(data.len() as u64) {
        assert_eq!(offsets::cipher_len(plain), data.len() as u64, "lengths go both ways");
    }
    // The input as plaintext: sealed, it opens; changed anywhere, it does not.
    let mut message = seal::seal(&key, b"context", data);
    assert_eq!(seal::open(&key, b"context", &message).as_deref(), Ok(data));
    assert!(seal::open(&key, b"other", &message).is_err(), "another context");
    let at = data.first().map_or(0, |b| usize::from(*b) * 131) % message.len();
    message[at] ^= data.get(1).map_or(1, |b| b | 1);
    assert!(seal::open(&key, b"context", &message).is_err(), "changed at {at}");
}

/// Journal: identity, file headers, frames, preludes, record heads.
pub fn journal(data: &[u8]) {
    let id = JournalId([3; 16]);
    match identity_from_bytes(volume(), data) {
        Identity::Ours(_) => panic!("an identity that nobody wrote"),
        Identity::Foreign(_) | Identity::Damaged => {}
    }
    let seq = FileHeader::seq_in_clear(data);
    assert!(FileHeader::from_page(volume(), id, seq.unwrap_or(1), data).is_none());
    if let Some(frame) = Frame::from_bytes(data) {
        let _ = (frame.payload_len(), frame.stride());
    }
    let _ = Frame::find(data, 0, 1);
    let _ = Prelude::from_bytes(data);
    let _ = Batch::head_len(data);
    if let Ok(batch) = Batch::decode_head(data) {
        let mut again = Vec::new();
        batch.encode_head(&mut again);
        assert_eq!(Batch::decode_head(&again).as_ref(), Ok(&batch), "a head reads back");
        let _ = batch.data_len();
    }
}

/// The key file that opens the seeds of the keyring; see `tests/format/fuzz_corpus.rs`.
pub fn keyring_secret() -> Secret {
    Secret::KeyFile(vec![9; 40].into())
}

/// Keyrings that were made, not mutated: the only ones that may open.
const KEYRINGS: [&[u8]; 3] = [
    include_bytes!("seeds/keyring/key-file"),
    include_bytes!("seeds/keyring/rotated"),
    include_bytes!("seeds/keyring/retired"),
];

/// The keyring: parsing is bounded and exact, and no key comes out of bytes that were changed.
pub fn keyring(data: &[u8]) {
    let Ok(keyring) = Keyring::parse(data) else { return };
    assert_eq!(keyring.to_bytes(), data, "a keyring reads back to its bytes");
    let _ = (keyring.slots(), keyring.old_roots(), keyring.check_writable());
    let _ = (keyring.volume_id(), keyring.revision(), keyring.hash());
    if keyring.unlock(&keyring_secret()).is_ok() {
        assert!(KEYRINGS.contains(&data), "a keyring that nobody made opens");
    }
}

/// What slots store for AWS KMS and for age: read back exactly, and an age file only if looking at it
/// costs next to nothing.
pub fn slots(data: &[u8]) {
    if let Ok(slot) = KmsSlot::parse(data) {
        assert_eq!(slot.to_bytes(), data);
        assert!(!slot.ciphertext().is_empty() && !slot.key_arn().is_empty());
    }
    if let Ok(slot) = AgeSlot::parse(data) {
        assert_eq!(slot.to_bytes(), data);
        let file = slot.file();
        let is_scrypt = |w: &[u8]| w.starts_with(b"\n-> scrypt") && !w[10].is_ascii_graphic();
        assert!(!file.windows(11).any(is_scrypt), "work that somebody else chose");
        let stanzas = file.windows(4).filter(|w| w == b"\n-> ").count();
        assert!(stanzas <= 64 && file.len() < 1 << 14);
        let _ = (slot.needs_hardware(), age_reads(file));
    }
}

/// Recovery keys as they are typed: what is taken is one key, however it was typed.
pub fn recovery(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(key) = RecoveryKey::from_text(text) else { return };
    let printed = key.to_text();
    let again = RecoveryKey::from_text(&printed).expect("what is printed can be typed");
    assert_eq!(*again.to_text(), *printed);
    let plain = |text: &str| {
        let kept = text.chars().filter(|c| !c.is_ascii_whitespace() && *c != '-');
        let upper = kept.collect::<String>().to_ascii_uppercase();
        upper.replace(['I', 'L'], "1").replace('O', "0")
    };
    assert_eq!(plain(text), plain(&printed), "it was typed otherwise");
}

/// Metadata rows and keys: what decodes encodes to the same bytes.
pub fn rows(data: &[u8]) {
    if let Ok((inode, extent)) = Inode::decode_with(data) {
        assert_eq!(inode.encode_with(extent.as_ref()), data);
    }
    if let Ok(row) = Dirent::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = ExtentRow::decode(data) {
        assert_eq!(row.encode(), data);
        assert!(row.segment_offset.checked_add(row.len).is_some());
    }
    if let Ok((row, frames)) = SegmentRow::decode_with(data) {
        let again = row.encode_with(frames);
        let of_before = data[0] != again[0]; // a row of an earlier version is written as one of today's
        assert!(of_before || again == data);
    }
    if let Ok(row) = DeadRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = CommitRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = VolumeRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = Stats::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = HistoryRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = BesideRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok(row) = SnapshotRow::decode(data) {
        assert_eq!(row.encode(), data);
    }
    if let Ok((row, frames)) = KeptRow::decode_with(data) {
        let again = row.encode_with(frames);
        let of_before = data[9] != again[9]; // as an `s` row
        assert!(of_before || again == data);
    }
    if let Some((parent, hash, name)) = keys::dirent_of(data) {
        assert_eq!(&*keys::dirent(parent, hash, name), data);
    }
    if let Some((file, end)) = keys::extent_of(data) {
        assert_eq!(&*keys::extent(file, end), data);
    }
    if let Some(ino) = keys::inode_of(data) {
        assert_eq!(&*keys::inode(ino), data);
    }
    if let Some(ino) = keys::orphan_of(data) {
        assert_eq!(&*keys::orphan(ino), data);
    }
    if let Some(file) = keys::reclaim_of(data) {
        assert_eq!(&*keys::reclaim(file), data);
    }
    if let Some(id) = keys::segment_of(data) {
        assert_eq!(&*keys::segment(id), data);
    }
    if let Some((id, file)) = keys::owner_of(data) {
        assert_eq!(&*keys::owner(id, file), data);
    }
    if let Some((since, id)) = keys::dead_segment_of(data) {
        assert_eq!(&*keys::dead_segment(since, id), data);
    }
    if let Some(name) = keys::snapshot_of(data) {
        assert_eq!(&*keys::snapshot(&name), data);
    }
    if let Some(id) = keys::kept_segment_of(data) {
        assert_eq!(&*keys::kept_segment(id), data);
    }
    let _ = keys::xattr_of(data);
}

/// Segments: the end of one, and what rows keep of it. What decodes encodes to the same bytes, and
/// frames never open to another length than their index says.
pub fn segment(data: &[u8]) {
    for id in [SegmentId([0xfe; 16]), SegmentId([0xff; 16])] {
        if let Ok(layout) = Layout::from_row(id, data.len() as u64, data) {
            assert_eq!(layout.to_row(), data);
        }
        let Some(Ok(footer)) = data.last_chunk::<FOOTER>().map(Footer::decode) else { continue };
        assert_eq!(footer.encode(), data[data.len() - FOOTER..]);
        let Some(tail) = data.len().checked_sub(footer.tail_len() as usize) else { continue };
        let (summary, rest) = data[tail..].split_at(footer.summary_len as usize);
        if let Ok(ranges) = decode_summary(summary, footer.ranges, footer.data_len) {
            assert_eq!(encode_summary(&ranges), summary);
        }
        let index = &rest[..footer.index_len as usize];
        let Ok(layout) = footer.layout(id, data.len() as u64, index) else { continue };
        assert_eq!(layout.frames.is_some(), has_frames(id));
        assert_eq!(layout.object_len(), data.len() as u64);
        if let Some(frames) = &layout.frames {
            open_frames(frames, &data[..tail], footer.data_len);
        }
    }
}

fn open_frames(frames: &Frames, stored: &[u8], data_len: u64) {
    for range in [0..data_len, data_len / 2..data_len / 2 + 1, data_len / 3..u64::MAX] {
        let at = frames.touching(&range).1;
        let got = stored[at.start as usize..at.end as usize].to_vec().into();
        if let Ok(opened) = frames.open(&range, &got) {
            assert_eq!(opened.len() as u64, range.end.min(data_len) - range.start.min(data_len));
        }
    }
}

/// What a volume remembers, and each value of it as it is typed: what is taken is shown as text that is
/// taken for the same.
pub fn config(data: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<VolumeConfig>(data) {
        let text = serde_json::to_vec(&config).expect("plain data");
        assert_eq!(serde_json::from_slice::<VolumeConfig>(&text).ok(), Some(config));
    }
    if let Ok(change) = serde_json::from_slice::<Change>(data) {
        let text = serde_json::to_vec(&change).expect("plain data");
        assert_eq!(serde_json::from_slice::<Change>(&text).ok(), Some(change));
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    shown_again::<Schedule>(text);
    shown_again::<Quota>(text);
    shown_again::<Compression>(text);
    shown_again::<StorageClass>(text);
    if let Ok(name) = SnapshotName::parse(text) {
        assert_eq!(name.as_str(), text);
    }
}

fn shown_again<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(it) = text.parse::<T>() {
        let shown = it.to_string();
        assert!(shown.parse::<T>().ok() == Some(it), "{text:?} is shown as {shown:?}");
    }
}

/// STORE arguments: what parses is shown as something that parses to the same; segment names
/// lead back to their ids.
pub fn location(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(location) = text.parse::<Location>() {
        let shown = location.to_string();
        assert_eq!(shown.parse::<Location>().as_ref(), Ok(&location), "{text:?} as {shown:?}");
    }
    if let Some(id) = SegmentStore::id(&text.into()) {
        assert_eq!(SegmentStore::name(id), text.into());
    }
}

/// Envelopes of the Amazon S3 Encryption Client: a JSON object of metadata in the first line, the
/// instruction file behind it. What is taken for one says the same when it is written again, in either
/// place, in ASCII; what has a name of the client's is never taken for clear.
pub fn s3ec(data: &[u8]) {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let (line, file) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let metadata: Metadata = serde_json::from_slice(line).unwrap_or_default();
    if let Ok(envelope) = Envelope::from_instruction_file(&metadata, file) {
        assert_eq!(envelope.place(), EnvelopePlace::InstructionFile);
        read_again(&envelope);
    }
    match s3ec::recognise(&metadata) {
        Ok(Recognised::Sealed(envelope)) => {
            assert_eq!(envelope.place(), EnvelopePlace::Metadata);
            read_again(&envelope);
        }
        Ok(Recognised::Clear) => {
            let notes = ["x-amz-unencrypted-content-md5", "x-amz-crypto-instr-file"];
            let own = |name: &&String| s3ec::is_own_key(name);
            let known = |name: &String| notes.contains(&name.to_ascii_lowercase().as_str());
            assert!(metadata.keys().filter(own).all(known), "{metadata:?} taken for clear");
        }
        Ok(Recognised::Split) | Err(_) => {}
    }
}

fn read_again(envelope: &Envelope) {
    for place in [EnvelopePlace::Metadata, EnvelopePlace::InstructionFile] {
        let (metadata, file) = (envelope.metadata(place), envelope.instruction_file());
        assert!(file.is_ascii() && metadata.values().all(|value| value.is_ascii()));
        let again = match place {
            EnvelopePlace::Metadata => match s3ec::recognise(&metadata) {
                Ok(Recognised::Sealed(again)) => again,
                other => panic!("{other:?} of {metadata:?}"),
            },
            EnvelopePlace::InstructionFile => {
                Envelope::from_instruction_file(&metadata, &file).expect("it was written")
            }
        };
        assert_eq!(
            again.metadata(EnvelopePlace::Metadata),
            envelope.metadata(EnvelopePlace::Metadata)
        );
        assert_eq!(again.context(), envelope.context());
        assert_eq!((again.format(), again.wrap()), (envelope.format(), envelope.wrap()));
    }
}
