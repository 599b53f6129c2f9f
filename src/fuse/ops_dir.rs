//! Listing directories: readdir, and readdirplus, which also counts a lookup of each entry.

use std::sync::Arc;

use crate::fs::{Attr, DirEntry, Fs};

use super::abi::{ENTRY_LEN, Malformed, Out, TtlSecs, dirent_len};
use super::dispatch::{Adapter, Interrupt, Request};

/// How long names are taken to be when a page of entries is asked for: a directory of longer
/// ones costs a little work done twice, one of shorter ones a few more requests.
const NAME_LEN_TYPICAL: usize = 16;

impl Adapter {
    pub(super) fn readdir(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let (after, size) = cursor(&mut rq)?;
        let entries_max = size / dirent_len(NAME_LEN_TYPICAL) + 1;
        let page = self.fs.readdir(rq.ino(), after, entries_max);
        self.run(rq.reply, Interrupt::Allowed, page, move |reply, page| {
            reply.out(&encode_plain(&page, size));
        });
        Ok(())
    }

    pub(super) fn readdirplus(&self, mut rq: Request<'_>) -> Result<(), Malformed> {
        let (after, size) = cursor(&mut rq)?;
        let entries_max = size / (ENTRY_LEN + dirent_len(NAME_LEN_TYPICAL)) + 1;
        let page = self.fs.readdirplus(rq.ino(), after, entries_max);
        let (fs, ttl) = (self.fs.clone(), self.ttl);
        // Not interruptible: the page has counted lookups that must reach the kernel.
        self.run(rq.reply, Interrupt::Never, page, move |reply, page| {
            let (out, fitted) = encode_plus(&page, size, ttl);
            forget(&fs, &page[fitted..]);
            if !reply.out(&out) {
                forget(&fs, &page[..fitted]);
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
fn forget(fs: &Arc<Fs>, page: &[Listed]) {
    for attr in page.iter().filter_map(|(_, attr)| attr.as_ref()) {
        fs.forget(attr.ino, 1);
    }
}

fn encode_plain(page: &[DirEntry], size: usize) -> Out {
    let mut out = Out::with_capacity(size.min(128 * 1024));
    for e in page {
        if out.0.len() + dirent_len(e.name.len()) > size {
            break;
        }
        out.dirent(e.ino, e.cookie, e.kind, &e.name);
    }
    out
}

/// The reply and how many entries of `page` it holds.
fn encode_plus(page: &[Listed], size: usize, ttl: TtlSecs) -> (Out, usize) {
    let mut out = Out::with_capacity(size.min(128 * 1024));
    for (i, (e, attr)) in page.iter().enumerate() {
        if out.0.len() + ENTRY_LEN + dirent_len(e.name.len()) > size {
            return (out, i);
        }
        match attr {
            Some(attr) => out.entry(attr, ttl),
            // Linux then lists the name and looks it up when it is wanted.
            None => out.zeros(ENTRY_LEN),
        };
        out.dirent(e.ino, e.cookie, e.kind, &e.name);
    }
    (out, page.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Ino, Timestamp};
    use crate::fs::Kind;

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
                (DirEntry { ino, cookie: i + 3, kind, name }, Some(attr))
            })
            .collect()
    }

    #[test]
    fn an_entry_without_attributes_is_named_with_inode_zero() {
        // Guards against Linux taking what was left out for an inode: it looks the name up.
        let mut page = page(2);
        page[0].1 = None;
        let (out, fitted) = encode_plus(&page, 4096, TtlSecs(1));
        let each = ENTRY_LEN + dirent_len(11);
        assert_eq!((fitted, out.0.len()), (2, 2 * each));
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
        for size in [0, 170, 171, 1000, 4096, 100_000] {
            let (out, fitted) = encode_plus(&page, size, TtlSecs(1));
            assert!(out.0.len() <= size);
            assert_eq!(out.0.len(), fitted * (ENTRY_LEN + dirent_len(11)), "{size}");
            let plain: Vec<_> =
                page.iter().map(|(e, _)| DirEntry { name: e.name.clone(), ..*e }).collect();
            assert!(encode_plain(&plain, size).0.len() <= size);
        }
    }
}
