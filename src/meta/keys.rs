//! Keys of the metadata store: one tag byte, then big-endian fields, so that byte order is the
//! order in which things are read together (DESIGN §5).

use siphasher::sip::SipHasher24;
use std::hash::Hasher;

use crate::base::{Ino, SegmentId};

/// An encoded key.
pub type Key = Box<[u8]>;

/// Where a directory listing continues: the keyed 63-bit hash of the last name returned. It
/// depends on the name alone, so it stays valid while other names come and go. Values below
/// [`DirCookie::FIRST`] are reserved for `.` and `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirCookie(pub u64);

impl DirCookie {
    /// The smallest cookie that a name may have.
    pub const FIRST: u64 = 3;

    /// SipHash-2-4 of `name` under the volume's name-hash key, shifted into 63 bits because
    /// `off_t` is signed.
    pub fn of(key: &[u8; 16], name: &[u8]) -> DirCookie {
        let mut h = SipHasher24::new_with_key(key);
        h.write(name);
        DirCookie((h.finish() >> 1).max(Self::FIRST))
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

/// `d` parent, cookie, name: a directory entry.
pub fn dirent(parent: Ino, cookie: DirCookie, name: &[u8]) -> Key {
    tagged(b'd', &[&parent.0.to_be_bytes(), &cookie.0.to_be_bytes(), name])
}

/// The half-open range of keys of the entries of `parent` with a cookie above `after`.
pub fn dirents_after(parent: Ino, after: u64) -> (Key, Key) {
    let parent_end = tagged(b'd', &[&(parent.0 + 1).to_be_bytes()]);
    (tagged(b'd', &[&parent.0.to_be_bytes(), &(after + 1).to_be_bytes()]), parent_end)
}

/// Cookie and name of a directory entry key.
pub fn dirent_of(key: &[u8]) -> Option<(Ino, DirCookie, &[u8])> {
    let rest = key.strip_prefix(b"d")?;
    if rest.len() <= 16 {
        return None;
    }
    let number = |b: &[u8]| u64::from_be_bytes(b.try_into().expect("eight bytes"));
    Some((Ino(number(&rest[..8])), DirCookie(number(&rest[8..16])), &rest[16..]))
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

/// `e` ino, data generation, *end* offset: an extent. Keyed by its end, so that the first key
/// above a position is the first extent that can cover it.
pub fn extent(ino: Ino, generation: u32, end: u64) -> Key {
    tagged(b'e', &[&ino.0.to_be_bytes(), &generation.to_be_bytes(), &end.to_be_bytes()])
}

/// The half-open range of keys of extents of one generation that end above `position`.
pub fn extents_above(ino: Ino, generation: u32, position: u64) -> (Key, Key) {
    let start = extent(ino, generation, position.saturating_add(1));
    (start, after(&extent(ino, generation, u64::MAX)))
}

/// The half-open range of keys of extents of every generation of `ino`.
pub fn extents_all(ino: Ino) -> (Key, Key) {
    (tagged(b'e', &[&ino.0.to_be_bytes()]), tagged(b'e', &[&(ino.0 + 1).to_be_bytes()]))
}

/// Inode, data generation and end offset of an extent key.
pub fn extent_of(key: &[u8]) -> Option<(Ino, u32, u64)> {
    let rest: &[u8; 20] = key.strip_prefix(b"e")?.try_into().ok()?;
    Some((
        Ino(u64::from_be_bytes(rest[..8].try_into().expect("eight bytes"))),
        u32::from_be_bytes(rest[8..12].try_into().expect("four bytes")),
        u64::from_be_bytes(rest[12..].try_into().expect("eight bytes")),
    ))
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

/// `r` ino, data generation: extents (and, for generation [`RECLAIM_INODE`], extended
/// attributes) that nothing refers to any more and that are reclaimed in the background.
pub fn reclaim(ino: Ino, generation: u32) -> Key {
    tagged(b'r', &[&ino.0.to_be_bytes(), &generation.to_be_bytes()])
}

/// The data generation of a [`reclaim`] row that stands for everything the inode had.
pub const RECLAIM_INODE: u32 = u32::MAX;

/// Inode and generation of a reclaim key.
pub fn reclaim_of(key: &[u8]) -> Option<(Ino, u32)> {
    let rest: &[u8; 12] = key.strip_prefix(b"r")?.try_into().ok()?;
    Some((
        Ino(u64::from_be_bytes(rest[..8].try_into().expect("eight bytes"))),
        u32::from_be_bytes(rest[8..].try_into().expect("four bytes")),
    ))
}

/// `s` segment: size and live bytes of a segment.
pub fn segment(id: SegmentId) -> Key {
    tagged(b's', &[&id.0])
}

/// The segment of a segment key.
pub fn segment_of(key: &[u8]) -> Option<SegmentId> {
    Some(SegmentId(key.strip_prefix(b"s")?.try_into().ok()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_scan_from_a_position_meets_the_extent_that_covers_it_first() {
        // Guards against the range start skipping an extent that ends exactly one byte later.
        let (start, end) = extents_above(Ino(7), 2, 4096);
        assert!(extent(Ino(7), 2, 4096) < start, "an extent ending at 4096 does not cover it");
        assert!(extent(Ino(7), 2, 4097) >= start);
        assert!(extent(Ino(7), 2, u64::MAX) < end);
        assert!(extent(Ino(7), 3, 1) >= end && extent(Ino(8), 0, 1) >= end);
    }

    #[test]
    fn directory_ranges_hold_the_directory_and_nothing_else() {
        // Guards against readdir leaking entries of the next directory.
        let (start, end) = dirents_after(Ino(5), 0);
        let cookie = DirCookie::of(&[0; 16], b"x");
        assert!((&start..&end).contains(&&dirent(Ino(5), cookie, b"x")));
        assert!(!(&start..&end).contains(&&dirent(Ino(6), cookie, b"x")));
        let (start, _) = dirents_after(Ino(5), cookie.0);
        assert!(dirent(Ino(5), cookie, &[0xff; 255]) < start, "equal cookies are behind");
    }

    #[test]
    fn keys_parse_back_to_what_they_were_made_of() {
        // Guards against field order or width differing between writing and reading.
        let cookie = DirCookie(77);
        let key = dirent(Ino(9), cookie, b"name");
        assert_eq!(dirent_of(&key), Some((Ino(9), cookie, &b"name"[..])));
        assert_eq!(extent_of(&extent(Ino(9), 3, 88)), Some((Ino(9), 3, 88)));
        assert_eq!(reclaim_of(&reclaim(Ino(9), 3)), Some((Ino(9), 3)));
        let id = SegmentId([4; 16]);
        assert_eq!(segment_of(&segment(id)), Some(id));
        assert_eq!(dead_segment_of(&dead_segment(12, id)), Some((12, id)));
        assert_eq!(inode_of(&inode(Ino(3))), Some(Ino(3)));
        assert_eq!(orphan_of(&orphan(Ino(3))), Some(Ino(3)));
        assert_eq!(xattr_of(&xattr(Ino(3), b"user.a")), Some(&b"user.a"[..]));
        assert_eq!(inode_of(b"i123"), None);
    }
}
