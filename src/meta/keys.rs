//! Keys of the metadata store: one tag byte, then big-endian fields, so that byte order is the
//! order in which things are read together (docs/FORMAT.md "Metadata rows").

use siphasher::sip::SipHasher24;
use std::hash::Hasher;

use super::snapshot::SnapshotName;
use crate::base::{ContentsId, Ino, SegmentId};

/// An encoded key.
pub type Key = Box<[u8]>;

/// Where a name stands among the names of its directory: 32 bits of a keyed hash. It depends on
/// the name alone, so it stays while other names come and go. Listings go in its order
/// (`fs/place.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameHash(pub u32);

impl NameHash {
    /// The smallest that a name may have: places below it are those of `.` and `..`.
    pub const FIRST: u32 = 8;

    /// The upper half of SipHash-2-4 of `name` under the volume's name-hash key.
    pub fn of(key: &[u8; 16], name: &[u8]) -> NameHash {
        let mut h = SipHasher24::new_with_key(key);
        h.write(name);
        NameHash(((h.finish() >> 32) as u32).max(Self::FIRST))
    }
}

fn tagged(tag: u8, fields: &[&[u8]]) -> Key {
    let len = 1 + fields.iter().map(|f| f.len()).sum::<usize>();
    let mut key = Vec::with_capacity(len);
    key.push(tag);
    fields.iter().for_each(|f| key.extend_from_slice(f));
    key.into_boxed_slice()
}

/// The smallest key above `key`.
pub fn after(key: &[u8]) -> Key {
    [key, &[0]].concat().into()
}

/// `i` ino: the inode.
pub fn inode(ino: Ino) -> Key {
    tagged(b'i', &[&ino.0.to_be_bytes()])
}

/// The inode number of an inode key.
pub fn inode_of(key: &[u8]) -> Option<Ino> {
    let ino: [u8; 8] = key.strip_prefix(b"i")?.try_into().ok()?;
    Some(Ino(u64::from_be_bytes(ino)))
}

/// `d` parent, hash, name: a directory entry.
pub fn dirent(parent: Ino, hash: NameHash, name: &[u8]) -> Key {
    tagged(b'd', &[&parent.0.to_be_bytes(), &hash.0.to_be_bytes(), name])
}

/// The half-open range of keys of the entries of `parent`.
pub fn dirents(parent: Ino) -> (Key, Key) {
    (tagged(b'd', &[&parent.0.to_be_bytes()]), tagged(b'd', &[&(parent.0 + 1).to_be_bytes()]))
}

/// The half-open range of keys of the entries of `parent` whose names have at least this hash.
pub fn dirents_from(parent: Ino, hash: NameHash) -> (Key, Key) {
    (tagged(b'd', &[&parent.0.to_be_bytes(), &hash.0.to_be_bytes()]), dirents(parent).1)
}

/// Directory, hash and name of a directory entry key.
pub fn dirent_of(key: &[u8]) -> Option<(Ino, NameHash, &[u8])> {
    let (parent, rest) = key.strip_prefix(b"d")?.split_first_chunk()?;
    let (hash, name) = rest.split_first_chunk()?;
    let (parent, hash) = (u64::from_be_bytes(*parent), u32::from_be_bytes(*hash));
    (!name.is_empty()).then_some((Ino(parent), NameHash(hash), name))
}

/// `x` ino, name: an extended attribute.
pub fn xattr(ino: Ino, name: &[u8]) -> Key {
    tagged(b'x', &[&ino.0.to_be_bytes(), name])
}

/// The half-open range of keys of all extended attributes of `ino`.
pub fn xattrs(ino: Ino) -> (Key, Key) {
    (tagged(b'x', &[&ino.0.to_be_bytes()]), tagged(b'x', &[&(ino.0 + 1).to_be_bytes()]))
}

/// The attribute name of an extended attribute key.
pub fn xattr_of(key: &[u8]) -> Option<&[u8]> {
    let rest = key.strip_prefix(b"x")?;
    (rest.len() > 8).then(|| &rest[8..])
}

/// `e` ino, data incarnation, *end* offset: an extent. Keyed by its end, so that the first key
/// above a position is the first extent that can cover it.
pub fn extent(file: ContentsId, end: u64) -> Key {
    let ContentsId { ino, incarnation } = file;
    tagged(b'e', &[&ino.0.to_be_bytes(), &incarnation.to_be_bytes(), &end.to_be_bytes()])
}

/// The half-open range of keys of extents of one incarnation that end above `position`.
pub fn extents_above(file: ContentsId, position: u64) -> (Key, Key) {
    let start = extent(file, position.saturating_add(1));
    (start, after(&extent(file, u64::MAX)))
}

/// The half-open range of keys of extents of every incarnation of `ino`.
pub fn extents_all(ino: Ino) -> (Key, Key) {
    (tagged(b'e', &[&ino.0.to_be_bytes()]), tagged(b'e', &[&(ino.0 + 1).to_be_bytes()]))
}

/// File and end offset of an extent key.
pub fn extent_of(key: &[u8]) -> Option<(ContentsId, u64)> {
    let (file, end) = key.strip_prefix(b"e")?.split_first_chunk()?;
    Some((contents_id(file), u64::from_be_bytes(end.try_into().ok()?)))
}

fn contents_id(bytes: &[u8; 12]) -> ContentsId {
    ContentsId {
        ino: Ino(u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))),
        incarnation: u32::from_be_bytes(bytes[8..].try_into().expect("four bytes")),
    }
}

/// `o` ino: an inode without a name that is still open.
pub fn orphan(ino: Ino) -> Key {
    tagged(b'o', &[&ino.0.to_be_bytes()])
}

/// The inode of an orphan key.
pub fn orphan_of(key: &[u8]) -> Option<Ino> {
    let ino: [u8; 8] = key.strip_prefix(b"o")?.try_into().ok()?;
    Some(Ino(u64::from_be_bytes(ino)))
}

/// `r` ino, data incarnation: extents (and, for incarnation [`RECLAIM_INODE`], extended
/// attributes) that nothing refers to any more and that are reclaimed in the background.
pub fn reclaim(file: ContentsId) -> Key {
    tagged(b'r', &[&file.ino.0.to_be_bytes(), &file.incarnation.to_be_bytes()])
}

/// The data incarnation of a [`reclaim`] row that stands for everything the inode had.
pub const RECLAIM_INODE: u32 = u32::MAX;

/// The file of a reclaim key.
pub fn reclaim_of(key: &[u8]) -> Option<ContentsId> {
    Some(contents_id(key.strip_prefix(b"r")?.try_into().ok()?))
}

/// `s` segment: size and live bytes of a segment.
pub fn segment(id: SegmentId) -> Key {
    tagged(b's', &[&id.0])
}

/// The segment of a segment key.
pub fn segment_of(key: &[u8]) -> Option<SegmentId> {
    Some(SegmentId(key.strip_prefix(b"s")?.try_into().ok()?))
}

/// `b` segment, ino, data incarnation: a file that may refer to the segment in other places than
/// the segment itself says, since it shares them.
pub fn owner(id: SegmentId, file: ContentsId) -> Key {
    tagged(b'b', &[&id.0, &file.ino.0.to_be_bytes(), &file.incarnation.to_be_bytes()])
}

/// The half-open range of keys of such files of one segment.
pub fn owners(id: SegmentId) -> (Key, Key) {
    let last = ContentsId { ino: Ino(u64::MAX), incarnation: u32::MAX };
    (tagged(b'b', &[&id.0]), after(&owner(id, last)))
}

/// Segment and file of such a key.
pub fn owner_of(key: &[u8]) -> Option<(SegmentId, ContentsId)> {
    let (id, file) = key.strip_prefix(b"b")?.split_first_chunk()?;
    Some((SegmentId(*id), contents_id(file.try_into().ok()?)))
}

/// `z` time, segment: a segment without live bytes, to be deleted from the bucket once readers
/// have had time to move on. `since_secs` is Unix time.
pub fn dead_segment(since_secs: u64, id: SegmentId) -> Key {
    tagged(b'z', &[&since_secs.to_be_bytes(), &id.0])
}

/// Time and segment of a dead segment key.
pub fn dead_segment_of(key: &[u8]) -> Option<(u64, SegmentId)> {
    let rest: &[u8; 24] = key.strip_prefix(b"z")?.try_into().ok()?;
    let since = u64::from_be_bytes(rest[..8].try_into().expect("eight bytes"));
    Some((since, SegmentId(rest[8..].try_into().expect("sixteen bytes"))))
}

/// `h` commit number: the chain value of that commit.
pub fn history(number: u64) -> Key {
    tagged(b'h', &[&number.to_be_bytes()])
}

/// `n` name: a snapshot.
pub fn snapshot(name: &SnapshotName) -> Key {
    tagged(b'n', &[name.as_str().as_bytes()])
}

/// The name in the key of a snapshot.
pub fn snapshot_of(key: &[u8]) -> Option<SnapshotName> {
    let name = std::str::from_utf8(key.strip_prefix(b"n")?).ok()?;
    SnapshotName::parse(name).ok()
}

/// `y` segment: a segment that only snapshots refer to.
pub fn kept_segment(id: SegmentId) -> Key {
    tagged(b'y', &[&id.0])
}

/// The segment of such a key.
pub fn kept_segment_of(key: &[u8]) -> Option<SegmentId> {
    Some(SegmentId(key.strip_prefix(b"y")?.try_into().ok()?))
}

/// All keys with this tag.
pub fn all_with_tag(tag: u8) -> (Key, Key) {
    (tagged(tag, &[]), tagged(tag + 1, &[]))
}

/// `g volume`: what the volume is.
pub fn volume() -> Key {
    tagged(b'g', &[b"volume"])
}

/// `g commit`: what has been committed.
pub fn commit() -> Key {
    tagged(b'g', &[b"commit"])
}

/// `g beside`: how far what stands beside the metadata had come.
pub fn beside() -> Key {
    tagged(b'g', &[b"beside"])
}

/// `g writer`: which mount made the last commit (sixteen random bytes).
pub fn writer() -> Key {
    tagged(b'g', &[b"writer"])
}

/// `g ino`: the first inode number never handed out (eight bytes, little-endian).
pub fn next_ino() -> Key {
    tagged(b'g', &[b"ino"])
}

/// `g stats`: inodes and bytes in use.
pub fn stats() -> Key {
    tagged(b'g', &[b"stats"])
}

/// A row that never has a value: deleting it puts an object into the log, and changes nothing.
pub fn nothing() -> Key {
    tagged(b'g', &[b"nothing"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(ino: u64, incarnation: u32) -> ContentsId {
        ContentsId { ino: Ino(ino), incarnation }
    }

    #[test]
    fn a_forward_scan_from_a_position_meets_the_extent_that_covers_it_first() {
        // Guards against the range start skipping an extent that ends exactly one byte later.
        let (start, end) = extents_above(file(7, 2), 4096);
        assert!(extent(file(7, 2), 4096) < start, "an extent ending at 4096 does not cover it");
        assert!(extent(file(7, 2), 4097) >= start);
        assert!(extent(file(7, 2), u64::MAX) < end);
        assert!(extent(file(7, 3), 1) >= end && extent(file(8, 0), 1) >= end);
    }

    #[test]
    fn directory_ranges_hold_the_directory_and_nothing_else() {
        // Guards against readdir leaking entries of the next directory.
        let (start, end) = dirents(Ino(5));
        let hash = NameHash::of(&[0; 16], b"x");
        assert!((&start..&end).contains(&&dirent(Ino(5), hash, b"x")));
        assert!((&start..&end).contains(&&dirent(Ino(5), NameHash(u32::MAX), &[0xff; 255])));
        assert!(!(&start..&end).contains(&&dirent(Ino(6), hash, b"x")));
        let (start, same_end) = dirents_from(Ino(5), hash);
        assert!(start <= dirent(Ino(5), hash, &[1]) && same_end == end);
        assert!(dirent(Ino(5), NameHash(hash.0 - 1), &[0xff; 255]) < start);
    }

    #[test]
    fn keys_parse_back_to_what_they_were_made_of() {
        // Guards against field order or width differing between writing and reading.
        let key = dirent(Ino(9), NameHash(77), b"name");
        assert_eq!(dirent_of(&key), Some((Ino(9), NameHash(77), &b"name"[..])));
        assert_eq!(dirent_of(&dirent(Ino(9), NameHash(77), b"")), None);
        assert_eq!(extent_of(&extent(file(9, 3), 88)), Some((file(9, 3), 88)));
        assert_eq!(reclaim_of(&reclaim(file(9, 3))), Some(file(9, 3)));
        let id = SegmentId([4; 16]);
        assert_eq!(segment_of(&segment(id)), Some(id));
        let (from, to) = owners(id);
        let key = owner(id, file(u64::MAX, u32::MAX));
        assert_eq!(owner_of(&key), Some((id, file(u64::MAX, u32::MAX))));
        assert!((&from..&to).contains(&&key) && from < owner(id, file(0, 0)));
        assert_eq!(dead_segment_of(&dead_segment(12, id)), Some((12, id)));
        assert_eq!(kept_segment_of(&kept_segment(id)), Some(id));
        let name = SnapshotName::parse("a").expect("a name");
        assert_eq!(snapshot_of(&snapshot(&name)), Some(name));
        assert_eq!(snapshot_of(b"n"), None);
        assert_eq!(inode_of(&inode(Ino(3))), Some(Ino(3)));
        assert_eq!(orphan_of(&orphan(Ino(3))), Some(Ino(3)));
        assert_eq!(xattr_of(&xattr(Ino(3), b"user.a")), Some(&b"user.a"[..]));
        assert_eq!(inode_of(b"i123"), None);
    }
}
