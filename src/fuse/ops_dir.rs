//! Listing directories: readdir, and readdirplus, which also counts a lookup of each entry.

use crate::fs::{Attr, DirEntry, behind_group, ends_group};

use super::abi::{ENTRY_LEN, Malformed, Out, Terms, dirent_len};
use super::dispatch::{Adapter, Common, Interrupt, Request};

/// How long names are taken to be when a page of entries is asked for: a directory of longer
/// ones costs a little work done twice, one of shorter ones a few more requests.
const NAME_LEN_TYPICAL: usize = 16;

impl Adapter {
    pub(super) fn readdir(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let (after, size) = cursor(&mut rq)?;
        let entries_max = size / dirent_len(NAME_LEN_TYPICAL) + 1;
        let page = self.fs.readdir(rq.ino(), after, entries_max);
        self.run(rq.reply, Interrupt::Allowed, page, move |reply, mut page| {
            let fitted = fitting(&page, 0, size);
            page.truncate(fitted);
            go_on(page.last_mut(), after);
            reply.out(&encode_plain(&page));
        });
        Ok(())
    }

    pub(super) fn readdirplus(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let (after, size) = cursor(&mut rq)?;
        let entries_max = size / (ENTRY_LEN + dirent_len(NAME_LEN_TYPICAL)) + 1;
        let page = self.fs.readdirplus(rq.ino(), after, entries_max);
        let common = self.common.clone();
        // Not interruptible: the page has counted lookups that must reach the kernel.
        self.run(rq.reply, Interrupt::Never, page, move |reply, mut page| {
            let fitted = fitting(page.iter().map(|(entry, _)| entry), ENTRY_LEN, size);
            forget(&common, &page[fitted..]);
            go_on(page[..fitted].last_mut().map(|(entry, _)| entry), after);
            let told = |attr: &Attr| (common.node(attr, reply.device()), common.terms_of(attr.ino));
            let out = encode_plus(&page[..fitted], told);
            if !reply.out(&out) {
                forget(&common, &page[..fitted]);
            }
        });
        Ok(())
    }
}

/// Where the listing goes on, and how many bytes the kernel has room for.
fn cursor(rq: &mut Request<'_>) -> Result<(u64, usize), Malformed> {
    rq.body.skip(8)?; // file handle
    Ok((rq.body.u64()?, rq.body.u32()? as usize))
}

/// An entry, and its attributes if a lookup was counted for it.
type Listed = (DirEntry, Option<Attr>);

/// Takes back the lookups counted for entries the kernel does not get.
fn forget(common: &Common, page: &[Listed]) {
    for attr in page.iter().filter_map(|(_, attr)| attr.as_ref()) {
        common.forget(attr.ino, 1);
    }
}

/// How many entries go into `size` bytes, each with its own `more`. Ends with a group, as
/// the page does, so that whoever goes on there misses none; unless all that fits is one group.
fn fitting<'a>(page: impl IntoIterator<Item = &'a DirEntry>, more: usize, size: usize) -> usize {
    let (mut len, mut fitted, mut whole) = (0, 0, 0);
    for entry in page {
        len += more + dirent_len(entry.name.len());
        if len > size {
            break;
        }
        fitted += 1;
        if ends_group(entry.cookie) {
            whole = fitted;
        }
    }
    if whole > 0 { whole } else { fitted }
}

/// Sees to it that a listing goes on: names of one group that have no room together, behind the
/// last place inside it, would come again and again. That takes 13 names of 29 equal bits or more.
fn go_on(last: Option<&mut DirEntry>, after: u64) {
    if let Some(last) = last
        && last.cookie <= after
    {
        log::error!("a directory has more names of one hash than can be listed: some are left out");
        last.cookie = behind_group(last.cookie);
    }
}

fn encode_plain(page: &[DirEntry]) -> Out {
    let mut out = Out::with_capacity(page.iter().map(|e| dirent_len(e.name.len())).sum());
    for e in page {
        out.dirent(e.ino, e.cookie, e.kind, &e.name);
    }
    out
}

/// `told`: the number that the kernel gets for an entry, and on which terms.
fn encode_plus(page: &[Listed], told: impl Fn(&Attr) -> (u64, Terms)) -> Out {
    let len = page.iter().map(|(e, _)| ENTRY_LEN + dirent_len(e.name.len())).sum();
    let mut out = Out::with_capacity(len);
    for (e, attr) in page {
        match attr {
            Some(attr) => {
                let (node, terms) = told(attr);
                out.entry(node, attr, terms)
            }
            // Linux then lists the name and looks it up when it is wanted.
            None => out.zeros(ENTRY_LEN),
        };
        out.dirent(e.ino, e.cookie, e.kind, &e.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::abi::TtlSecs;
    use super::*;
    use crate::base::{Ino, Timestamp};
    use crate::fs::Kind;

    fn told(attr: &Attr) -> (u64, Terms) {
        let terms = Terms { ttl: TtlSecs(1), name_ttl: TtlSecs(1), powerless: false };
        (attr.ino.0, terms)
    }

    fn page(n: u64) -> Vec<Listed> {
        let t = Timestamp::default();
        (0..n)
            .map(|i| {
                let ino = Ino(i + 10);
                let kind = Kind::File;
                let name = format!("file-{i:06}").into_bytes();
                let attr = Attr {
                    ino,
                    kind,
                    perm: 0o644,
                    nlink: 1,
                    uid: 0,
                    gid: 0,
                    rdev: 0,
                    size: 0,
                    blocks: 0,
                    atime: t,
                    mtime: t,
                    ctime: t,
                    btime: t,
                };
                (DirEntry { ino, cookie: i << 2 | 7, kind, name }, Some(attr))
            })
            .collect()
    }

    #[test]
    fn an_entry_without_attributes_is_named_with_inode_zero() {
        // Guards against Linux taking what was left out for an inode: it looks the name up.
        let mut page = page(2);
        page[0].1 = None;
        let out = encode_plus(&page, told);
        let each = ENTRY_LEN + dirent_len(11);
        assert_eq!(out.0.len(), 2 * each);
        assert_eq!(out.0[..ENTRY_LEN], [0; ENTRY_LEN]);
        assert_ne!(out.0[each..each + 8], [0; 8], "the other has one");
        let ends_with_name =
            |entry: &[u8]| entry[ENTRY_LEN..].windows(11).any(|w| w == b"file-000000");
        assert!(ends_with_name(&out.0[..each]));
    }

    #[test]
    fn a_listing_never_exceeds_the_room_the_kernel_gave() {
        // Guards against an overfull reply, which the kernel refuses with EINVAL, and against
        // a fitted count that is off by one, which leaks or loses an inode.
        let page = page(50);
        let names: Vec<_> = page.iter().map(|(entry, _)| entry.clone()).collect();
        for size in [0, 170, 171, 1000, 4096, 100_000] {
            let fitted = fitting(&names, ENTRY_LEN, size);
            assert_eq!(fitted, 50.min(size / (ENTRY_LEN + dirent_len(11))), "{size}");
            assert!(encode_plus(&page[..fitted], told).0.len() <= size);
            let fitted = fitting(&names, 0, size);
            assert_eq!(fitted, 50.min(size / dirent_len(11)), "{size}");
            assert!(encode_plain(&names[..fitted]).0.len() <= size);
        }
    }

    #[test]
    fn a_reply_ends_with_a_group_and_a_group_without_end_is_left() {
        // Guards against names that are lost or shown twice because a reply ended inside their
        // group, and against a listing that never ends because a group has no room.
        let mut names: Vec<_> = page(30).into_iter().map(|(entry, _)| entry).collect();
        let inside = |names: &mut [DirEntry]| names.iter_mut().for_each(|e| e.cookie = 42);
        inside(&mut names[10..20]);
        names[20].cookie = 43;
        let each = dirent_len(11);
        assert_eq!(fitting(&names, 0, 15 * each), 10, "without the group");
        assert_eq!(fitting(&names, 0, 21 * each), 21, "with the whole of it");
        assert_eq!(fitting(&names[10..], 0, 5 * each), 5, "it has no room");
        go_on(Some(&mut names[14]), 41);
        assert_eq!(names[14].cookie, 42, "goes on inside it");
        go_on(Some(&mut names[14]), 42);
        assert_eq!(names[14].cookie, 43, "no further");
        go_on(None, 42);
    }
}
