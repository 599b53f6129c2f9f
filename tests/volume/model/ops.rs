//! The operations of a script, small enough that a failing one shrinks to a few readable lines.
//! Numbers choose among what is there when the operation runs, so that shrinking keeps meaning.

use proptest::prelude::*;

/// A name in a directory: which of the directories that live, which of the few names.
#[derive(Clone, Copy, Debug)]
pub struct At(pub u8, pub u8);

/// How `renameat2` is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    Plain,
    NoReplace,
    Exchange,
}

/// One step. The first number of most is which of the inodes (or files) that live.
#[derive(Clone, Debug)]
pub enum Op {
    Create(At),
    Mkdir(At),
    Symlink(At),
    Fifo(At),
    Tmpfile(u8),
    Link(u8, At),
    Unlink(At),
    Rmdir(At),
    Rename(At, At, Flag),
    Lookup(At),
    /// Once, or all that the kernel knows.
    Forget(u8, bool),
    /// File, offset, length.
    Write(u8, u64, u64),
    /// Many small extents: more than a commit drops at once.
    Scatter(u8),
    Resize(u8, u64),
    /// File, `FALLOC_FL_*`, offset, length.
    Fallocate(u8, i32, u64, u64),
    /// From file and offset, to file and offset, length.
    Copy(u8, u64, u8, u64, u64),
    Read(u8, u64, u64),
    /// File, offset: data and hole from there.
    Seek(u8, u64),
    Chmod(u8, u16),
    Chown(u8, u32),
    Utimes(u8, i64),
    /// Inode, which name, length of the value, 0 either, 1 create, 2 replace.
    SetXattr(u8, u8, usize, u8),
    RemoveXattr(u8, u8),
    /// Directory, entries a page.
    List(u8, usize),
    ListPlus(u8, usize),
    /// Everything about one inode.
    Look(u8),
    /// Starts a commit and does not wait for it.
    Commit,
    /// Closes the group; what follows goes to the next.
    Freeze,
    /// Waits until the bucket has everything, then checks the rows there.
    Sync,
    /// Unmounts in order and mounts again.
    Remount,
    /// Stops without a drain, whatever the committer is doing, and mounts again.
    Crash,
    /// Unmounts in order and mounts on another machine.
    Elsewhere,
    /// Makes a snapshot.
    Snapshot,
    /// Deletes one of the snapshots.
    DropSnapshot(u8),
    /// Compares every snapshot with the model as it was when that was made.
    Past,
}

fn at() -> impl Strategy<Value = At> {
    (0u8..4, 0u8..5).prop_map(|(dir, name)| At(dir, name))
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0u64..300,
        6 => (0u64..12, 0u64..3).prop_map(|(block, d)| (block * 4096 + d).saturating_sub(1)),
        4 => 0u64..70_000,
        1 => 0u64..2_500_000,
    ]
}

fn len() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 1u64..300, 6 => Just(4096), 10 => 1u64..20_000, 1 => 1_000_000u64..1_100_000]
}

fn mode() -> impl Strategy<Value = i32> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    prop_oneof![
        1 => Just(0),
        1 => Just(KEEP),
        4 => Just(libc::FALLOC_FL_PUNCH_HOLE | KEEP),
        2 => Just(libc::FALLOC_FL_ZERO_RANGE),
        1 => Just(libc::FALLOC_FL_ZERO_RANGE | KEEP),
    ]
}

/// Any operation.
pub fn op() -> impl Strategy<Value = Op> {
    let n = || 0u8..16;
    let flag =
        prop_oneof![3 => Just(Flag::Plain), 1 => Just(Flag::NoReplace), 2 => Just(Flag::Exchange)];
    let names = prop_oneof![
        6 => at().prop_map(Op::Create),
        3 => at().prop_map(Op::Mkdir),
        1 => at().prop_map(Op::Symlink),
        1 => at().prop_map(Op::Fifo),
        1 => n().prop_map(Op::Tmpfile),
        3 => (n(), at()).prop_map(|(n, at)| Op::Link(n, at)),
        4 => at().prop_map(Op::Unlink),
        2 => at().prop_map(Op::Rmdir),
        6 => (at(), at(), flag).prop_map(|(a, b, f)| Op::Rename(a, b, f)),
        1 => at().prop_map(Op::Lookup),
        4 => (n(), any::<bool>()).prop_map(|(n, all)| Op::Forget(n, all)),
    ];
    let contents = prop_oneof![
        10 => (n(), offset(), len()).prop_map(|(n, at, len)| Op::Write(n, at, len)),
        1 => n().prop_map(Op::Scatter),
        5 => (n(), prop_oneof![2 => offset(), 1 => Just(0)]).prop_map(|(n, s)| Op::Resize(n, s)),
        4 => (n(), mode(), offset(), len()).prop_map(|(n, m, at, l)| Op::Fallocate(n, m, at, l)),
        2 => (n(), offset(), n(), offset(), len()).prop_map(|(a, x, b, y, l)| Op::Copy(a, x, b, y, l)),
        2 => (n(), offset(), len()).prop_map(|(n, at, len)| Op::Read(n, at, len)),
        1 => (n(), offset()).prop_map(|(n, at)| Op::Seek(n, at)),
    ];
    let attributes = prop_oneof![
        1 => (n(), 0u16..0o10000).prop_map(|(n, perm)| Op::Chmod(n, perm)),
        1 => (n(), 0u32..3).prop_map(|(n, uid)| Op::Chown(n, uid)),
        1 => (n(), -5i64..5).prop_map(|(n, t)| Op::Utimes(n, t)),
        4 => (n(), 0u8..4, 0usize..40, 0u8..3).prop_map(|(n, a, l, m)| Op::SetXattr(n, a, l, m)),
        2 => (n(), 0u8..4).prop_map(|(n, a)| Op::RemoveXattr(n, a)),
    ];
    let looks = prop_oneof![
        2 => (n(), 1usize..20).prop_map(|(n, page)| Op::List(n, page)),
        1 => (n(), 1usize..20).prop_map(|(n, page)| Op::ListPlus(n, page)),
        3 => n().prop_map(Op::Look),
    ];
    let points = prop_oneof![
        5 => Just(Op::Commit),
        4 => Just(Op::Freeze),
        3 => Just(Op::Sync),
        1 => Just(Op::Remount),
        2 => Just(Op::Crash),
        1 => Just(Op::Elsewhere),
        3 => Just(Op::Snapshot),
        1 => (0u8..4).prop_map(Op::DropSnapshot),
        2 => Just(Op::Past),
    ];
    prop_oneof![8 => names, 8 => contents, 2 => attributes, 2 => looks, 4 => points]
}
