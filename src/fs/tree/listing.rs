//! Listings: of the root, with `.snapshots` if that is to be seen, of `.snapshots`, and of
//! directories in snapshots.

use std::sync::Arc;

use futures::future::Either;

use super::spaces::{At, Space};
use super::{SNAPSHOTS, SNAPSHOTS_NAME, SnapDir, Tree};
use crate::base::Ino;
use crate::fs::place::{self, FIRST_PLACE};
use crate::fs::{Attr, DirEntry, FsError, Kind, behind_group};

/// An entry, and its attributes if a lookup was counted for it.
type Listed = (DirEntry, Option<Attr>);

/// The place behind `.snapshots` in a listing of the root: the one between those of `..` and of the
/// first name.
const SNAPSHOTS_PLACE: u64 = place::DOT_DOT + 1;
const _: () = assert!(SNAPSHOTS_PLACE < FIRST_PLACE);

fn entry(ino: Ino, cookie: u64, name: &[u8]) -> DirEntry {
    DirEntry { ino, cookie, kind: Kind::Dir, name: name.to_vec() }
}

/// The place behind a snapshot in a listing of all.
fn behind(space: Space) -> u64 {
    behind_group((space.order() + 1) << 2)
}

impl Tree {
    /// As [`Fs::readdir`](crate::fs::Fs::readdir).
    pub fn readdir(
        self: &Arc<Self>,
        ino: Ino,
        after: u64,
        entries_max: usize,
    ) -> impl Future<Output = Result<Vec<DirEntry>, FsError>> + Send + 'static {
        if At::of(ino) == At::Volume && !self.lists_itself(ino, after) {
            return Either::Left(self.volume.readdir(ino, after, entries_max));
        }
        let tree = self.clone();
        Either::Right(async move {
            match At::of(ino) {
                At::Volume => {
                    let mut page = tree.volume.readdir(ino, after, entries_max).await?;
                    tree.list_itself(&mut page, after, |entry| entry.cookie, |entry| entry).await?;
                    Ok(page)
                }
                At::Directory => tree.list_snapshots(after, entries_max).await,
                At::Snapshot(space, inside) => {
                    let past = tree.past()?;
                    let (slot, fs) = past.open(space).await?;
                    match fs.readdir(inside, after, entries_max).await {
                        Ok(mut page) => {
                            page.iter_mut().try_for_each(|e| show(space, inside, e))?;
                            Ok(page)
                        }
                        Err(e) => Err(past.explained(&slot, e).await),
                    }
                }
            }
        })
    }

    /// As [`Fs::readdirplus`](crate::fs::Fs::readdirplus).
    pub fn readdirplus(
        self: &Arc<Self>,
        ino: Ino,
        after: u64,
        entries_max: usize,
    ) -> impl Future<Output = Result<Vec<Listed>, FsError>> + Send + 'static {
        if At::of(ino) == At::Volume && !self.lists_itself(ino, after) {
            return Either::Left(self.volume.readdirplus(ino, after, entries_max));
        }
        let tree = self.clone();
        Either::Right(async move {
            match At::of(ino) {
                At::Volume => {
                    let mut page = tree.volume.readdirplus(ino, after, entries_max).await?;
                    let listed = |entry| (entry, None);
                    tree.list_itself(&mut page, after, |(entry, _)| entry.cookie, listed).await?;
                    Ok(page)
                }
                // Without attributes: asking for those would open every one of them.
                At::Directory => {
                    let page = tree.list_snapshots(after, entries_max).await?;
                    Ok(page.into_iter().map(|entry| (entry, None)).collect())
                }
                At::Snapshot(space, inside) => {
                    let past = tree.past()?;
                    let (slot, fs) = past.open(space).await?;
                    let page = match fs.readdirplus(inside, after, entries_max).await {
                        Ok(page) => page,
                        Err(e) => return Err(past.explained(&slot, e).await),
                    };
                    let mut shown = Vec::with_capacity(page.len());
                    for (mut entry, attr) in page {
                        if let Some(attr) = attr {
                            fs.forget(attr.ino, 1);
                        }
                        let known = attr.and_then(|attr| {
                            let ino = space.shown(attr.ino).ok()?; // it is looked up when wanted
                            slot.lookups.add(attr.ino);
                            Some(Attr { ino, ..attr })
                        });
                        show(space, inside, &mut entry)?;
                        shown.push((entry, known));
                    }
                    Ok(shown)
                }
            }
        })
    }

    /// Whether a page of the root behind `after` has `.snapshots` in it.
    fn lists_itself(&self, ino: Ino, after: u64) -> bool {
        self.shown == SnapDir::Visible && ino == Ino::ROOT && after < SNAPSHOTS_PLACE
    }

    /// Puts `.snapshots` into the first page of the root, unless the volume has that name.
    async fn list_itself<T>(
        self: &Arc<Self>,
        page: &mut Vec<T>,
        after: u64,
        cookie: impl Fn(&T) -> u64,
        listed: impl Fn(DirEntry) -> T,
    ) -> Result<(), FsError> {
        if self.has_own_name().await? {
            return Ok(());
        }
        let at = page.iter().take_while(|one| cookie(one) < SNAPSHOTS_PLACE).count();
        debug_assert!(after < SNAPSHOTS_PLACE);
        page.insert(at, listed(entry(SNAPSHOTS, SNAPSHOTS_PLACE, SNAPSHOTS_NAME)));
        Ok(())
    }

    async fn list_snapshots(
        self: &Arc<Self>,
        after: u64,
        entries_max: usize,
    ) -> Result<Vec<DirEntry>, FsError> {
        let past = self.past()?;
        let mut page = Vec::new();
        if after < place::DOT {
            page.push(entry(SNAPSHOTS, place::DOT, b"."));
        }
        if after < place::DOT_DOT {
            page.push(entry(Ino::ROOT, place::DOT_DOT, b".."));
        }
        let all = past.source.list().await?;
        let mut all: Vec<_> = all.iter().map(|one| (past.slot_of(one).space, one)).collect();
        all.sort_unstable_by_key(|(space, _)| *space);
        let rest = all.into_iter().filter(|(space, _)| behind(*space) > after);
        for (space, snapshot) in rest.take(entries_max.max(1)) {
            let ino = space.shown(Ino::ROOT)?;
            page.push(entry(ino, behind(space), snapshot.name.as_bytes()));
        }
        Ok(page)
    }
}

/// Gives an entry of directory `dir` of a snapshot the number that the mount shows.
fn show(space: Space, dir: Ino, entry: &mut DirEntry) -> Result<(), FsError> {
    let leaves = dir == Ino::ROOT && entry.cookie == place::DOT_DOT;
    entry.ino = if leaves { SNAPSHOTS } else { space.shown(entry.ino)? };
    Ok(())
}
