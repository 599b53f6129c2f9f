//! Names against the inodes they lead to. Names are ordered by directory, inodes by number, so
//! all names are read once for each [`super::INODES_PER_PASS`] inodes.

use super::{Check, Finding};
use crate::base::Ino;
use crate::commit::scan::Cursor;
use crate::commit::view::ViewError;
use crate::meta::{Dirent, Inode, Kind, keys};

/// An inode and the names that lead to it.
struct Named {
    ino: u64,
    kind: Kind,
    nlink: u32,
    names: u32,
    /// What a directory says, and where its last name was found.
    parent: u64,
    found_in: u64,
}

impl Check<'_> {
    pub(super) async fn names(&mut self) -> Result<(), ViewError> {
        let (kv, rows) = (self.kv, self.rows);
        let mut inodes = Cursor::new(kv, b'i').counting(rows);
        let mut from = 0;
        loop {
            let mut table: Vec<Named> = Vec::new();
            while table.len() < self.options.inodes_per_pass {
                let Some((key, value)) = inodes.next().await? else { break };
                // What does not decode has been noted by the walk over inodes.
                let (Some(Ino(ino)), Ok(inode)) = (keys::inode_of(&key), Inode::decode(&value))
                else {
                    continue;
                };
                let (kind, nlink, parent) = (inode.kind, inode.nlink, inode.parent.0);
                table.push(Named { ino, kind, nlink, names: 0, parent, found_in: 0 });
            }
            // Up to the next inode that there is: a name that leads in between dangles.
            let next = inodes.ino().await?;
            let upto = match next {
                None => u64::MAX,
                Some(next) if next > from => next - 1,
                // A key without a number, which has been noted.
                Some(_) => table.last().map_or(from, |named| named.ino),
            };
            self.count_names(&mut table, from, upto).await?;
            table.iter().for_each(|named| self.one_named(named));
            if next.is_none() {
                return Ok(());
            }
            from = upto.saturating_add(1);
        }
    }

    async fn count_names(
        &mut self,
        table: &mut [Named],
        from: u64,
        upto: u64,
    ) -> Result<(), ViewError> {
        let (kv, rows) = (self.kv, self.rows);
        let mut names = Cursor::new(kv, b'd').counting(rows);
        while let Some((key, value)) = names.next().await? {
            let Some((parent, _, name)) = keys::dirent_of(&key) else { continue };
            let Ok(Dirent { ino, kind }) = Dirent::decode(&value) else { continue };
            if !(from..=upto).contains(&ino.0) {
                continue;
            }
            let Ok(at) = table.binary_search_by_key(&ino.0, |named| named.ino) else {
                let name = key.slice_ref(name);
                self.report.note(Finding::DanglingName { parent, name, ino });
                continue;
            };
            let named = &mut table[at];
            named.names = named.names.saturating_add(1);
            named.found_in = parent.0;
            if named.kind != kind {
                let (name, is) = (key.slice_ref(name), named.kind);
                self.report.note(Finding::KindDiffers { parent, name, ino, is });
            }
        }
        Ok(())
    }

    fn one_named(&mut self, named: &Named) {
        let Named { ino, kind, nlink, names, parent, found_in } = *named;
        let ino = Ino(ino);
        let note = &mut |finding| self.report.note(finding);
        match (kind, names) {
            (Kind::Dir, 0) if ino == Ino::ROOT || nlink == 0 => {}
            (_, 0) if nlink > 0 => note(Finding::Unnamed { ino, kind }),
            (Kind::Dir, 1) if ino != Ino::ROOT && parent == found_in => {}
            (Kind::Dir, 1) if ino != Ino::ROOT => {
                let (said, found) = (Ino(parent), Ino(found_in));
                note(Finding::WrongParent { ino, said, found });
            }
            (Kind::Dir, _) => note(Finding::ManyNames { ino, names: names.into() }),
            _ if names != nlink => {
                note(Finding::LinkCount { ino, said: nlink, found: names.into() })
            }
            _ => {}
        }
    }

    /// Directories that lie below themselves. What else is not below the root hangs on an inode
    /// without a name, or on entries without a directory, and is found as that.
    pub(super) fn cycles(&mut self) {
        const DONE: u32 = u32::MAX;
        let directories = &self.directories;
        // The walk that first came by; `DONE` once it has ended somewhere.
        let mut walks = vec![0u32; directories.len()];
        let position = |ino: Ino| directories.binary_search_by_key(&ino, |d| d.ino).ok();
        let mut found = Vec::new();
        for start in 0..directories.len() {
            let walk = (start as u32).saturating_add(1).min(DONE - 1);
            let (mut at, mut path) = (Some(start), Vec::<usize>::new());
            while let Some(here) = at {
                if walks[here] == walk {
                    let around = path.iter().skip_while(|&&p| p != here);
                    let lowest = around.map(|&p| directories[p].ino).min();
                    found.extend(lowest);
                    break;
                }
                if walks[here] == DONE || directories[here].ino == Ino::ROOT {
                    break;
                }
                walks[here] = walk;
                path.push(here);
                at = position(directories[here].parent);
            }
            path.into_iter().for_each(|p| walks[p] = DONE);
        }
        for ino in found {
            self.report.note(Finding::Cycle { ino });
        }
    }
}
