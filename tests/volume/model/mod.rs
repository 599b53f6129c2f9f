//! A file system under test beside its model: applies operations to both and compares.

pub mod ops;
pub mod reference;
mod volume;

use std::sync::Arc;

use bytes::Bytes;
use sealfs::base::{Ino, Timestamp};
use sealfs::fs::{
    Attr, Caller, Fs, FsError, Kind, RenameFlags, SetAttr, SetTime, Whence, WriteFlags, XattrMode,
};

use ops::{At, Flag, Op};
use reference::{CAPABILITY, Node};
pub use volume::World;

/// In the group of everything, and of no other right: the process cannot be seen.
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const NAMES: [&[u8]; 5] = [b"a", b"b", b"c", b"d", &[b'e'; 255]];
const XATTRS: [&[u8]; 4] = [b"user.a", b"user.b", b"trusted.c", CAPABILITY];

/// What went wrong, in a sentence.
pub type Checked<T = ()> = Result<T, String>;

/// Compares what was got with what the model says.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Checked {
    if got == want { Ok(()) } else { Err(format!("{what}: got {got:?}, the model says {want:?}")) }
}

fn same_bytes(what: &str, got: &[u8], want: &[u8]) -> Checked {
    same(&format!("{what}: length"), got.len(), want.len())?;
    match got.iter().zip(want).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(format!("{what}: byte {at} is {}, not {}", got[at], want[at])),
    }
}

fn name(n: u8) -> &'static [u8] {
    NAMES[n as usize % NAMES.len()]
}

impl World {
    /// Applies one operation to both sides.
    pub async fn apply(&mut self, op: &Op) -> Checked {
        match op {
            Op::Commit | Op::Freeze | Op::Sync | Op::Remount | Op::Crash | Op::Elsewhere => {
                self.point(op).await?;
            }
            Op::Snapshot => self.snapshot().await?,
            Op::DropSnapshot(n) => self.drop_snapshot(*n).await?,
            Op::Past => self.verify_past().await?,
            _ => self.operate(op).await?,
        }
        self.counts().await
    }

    async fn operate(&mut self, op: &Op) -> Checked {
        let fs = self.fs().clone();
        let node = |w: &World, n: u8| w.model.any(n);
        match *op {
            Op::Create(at) => self.create(at, Kind::File).await?,
            Op::Mkdir(at) => self.create(at, Kind::Dir).await?,
            Op::Symlink(at) => self.create(at, Kind::Symlink).await?,
            Op::Fifo(at) => self.create(at, Kind::Fifo).await?,
            Op::Tmpfile(dir) => {
                let dir = self.model.pick(dir, Kind::Dir).expect("the root");
                let attr = fs.tmpfile(CALLER, dir, 0o600, 0).await.map_err(|e| e.to_string())?;
                let mut node = Node::new(Kind::File, 0o600, Ino(0));
                if self.model.nodes[&dir].perm & 0o2000 != 0 {
                    node.gid = self.model.nodes[&dir].gid;
                }
                (node.nlink, node.known) = (0, 1);
                self.model.nodes.insert(attr.ino, node);
                self.attr(attr.ino, attr)?;
            }
            Op::Link(n, at) => {
                let (ino, (dir, name)) = (node(self, n), self.at(at));
                let got = fs.link(ino, dir, name.to_vec()).await;
                let want = self.model.link(ino, dir, name);
                same("link", got.map(|_| ()), want)?;
            }
            Op::Unlink(at) => {
                let (dir, name) = self.at(at);
                same("unlink", fs.unlink(dir, name.to_vec()).await, self.model.unlink(dir, name))?;
            }
            Op::Rmdir(at) => {
                let (dir, name) = self.at(at);
                same("rmdir", fs.rmdir(dir, name.to_vec()).await, self.model.rmdir(dir, name))?;
            }
            Op::Rename(from, to, flag) => {
                let ((dir, name), (to, new)) = (self.at(from), self.at(to));
                let flags = RenameFlags {
                    no_replace: flag == Flag::NoReplace,
                    exchange: flag == Flag::Exchange,
                };
                let got = fs.rename(dir, name.to_vec(), to, new.to_vec(), flags).await;
                same("rename", got, self.model.rename((dir, name), (to, new), flag))?;
            }
            Op::Lookup(at) => {
                let (dir, name) = self.at(at);
                let got = fs.lookup(dir, name.to_vec()).await;
                let want = self.model.lookup(dir, name);
                same("lookup", got.clone().map(|a| a.ino), want.clone())?;
                if let (Ok(attr), Ok(ino)) = (got, want) {
                    self.attr(ino, attr)?;
                    self.model.node(ino).known += 1;
                }
            }
            Op::Forget(n, all) => {
                let ino = node(self, n);
                let known = self.model.nodes[&ino].known;
                if ino != Ino::ROOT && known > 0 {
                    let n = if all { known } else { 1 };
                    fs.forget(ino, n);
                    self.model.forget(ino, n);
                }
            }
            Op::Chmod(n, perm) => {
                let ino = node(self, n);
                self.setattr(ino, SetAttr { perm: Some(perm), ..SetAttr::default() }, |node| {
                    node.perm = perm;
                })
                .await?;
            }
            Op::Chown(n, uid) => {
                let ino = node(self, n);
                let set = SetAttr { uid: Some(uid), ..SetAttr::default() };
                self.setattr(ino, set, |node| node.chown(uid)).await?;
            }
            Op::Utimes(n, secs) => {
                let ino = node(self, n);
                let at = Some(SetTime::At(Timestamp { secs, nanos: 7 }));
                let set = SetAttr { mtime: at, ..SetAttr::default() };
                self.setattr(ino, set, |node| node.mtime = Some(secs)).await?;
            }
            Op::SetXattr(n, name, len, mode) => {
                let (ino, name) = (node(self, n), XATTRS[name as usize % XATTRS.len()]);
                let (create, replace) = (mode % 3 == 1, mode % 3 == 2);
                let mode = XattrMode { create, replace, ..XattrMode::default() };
                let value = self.fresh_bytes(len);
                let got = fs.setxattr(ino, name.to_vec(), value.clone(), mode).await;
                same("setxattr", got, self.model.node(ino).set_xattr(name, &value, mode))?;
            }
            Op::RemoveXattr(n, name) => {
                let (ino, name) = (node(self, n), XATTRS[name as usize % XATTRS.len()]);
                let got = fs.removexattr(ino, name.to_vec()).await;
                let had = self.model.node(ino).xattrs.remove(name);
                same("removexattr", got, had.map(|_| ()).ok_or(FsError::NoAttr))?;
            }
            Op::List(n, page) => {
                let dir = self.model.pick(n, Kind::Dir).expect("the root");
                self.list(dir, page).await?;
            }
            Op::ListPlus(n, page) => {
                let dir = self.model.pick(n, Kind::Dir).expect("the root");
                self.list_plus(dir, page).await?;
            }
            Op::Look(n) => self.look(node(self, n)).await?,
            _ => self.contents(op).await?,
        }
        Ok(())
    }

    async fn contents(&mut self, op: &Op) -> Checked {
        let fs = self.fs().clone();
        let file = |w: &World, n: u8| w.model.pick(n, Kind::File);
        match *op {
            Op::Write(n, at, len) => {
                let Some(ino) = file(self, n) else { return Ok(()) };
                let bytes = self.fresh_bytes(len as usize);
                self.write(ino, at, bytes).await?;
            }
            Op::Scatter(n) => {
                let Some(ino) = file(self, n) else { return Ok(()) };
                for k in 0..80 {
                    let bytes = self.fresh_bytes(3);
                    self.write(ino, (79 - k) * 10, bytes).await?;
                }
            }
            Op::Resize(n, size) => {
                let Some(ino) = file(self, n) else { return Ok(()) };
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                self.setattr(ino, set, |node| node.resize(size)).await?;
            }
            Op::Fallocate(n, mode, at, len) => {
                let Some(ino) = file(self, n) else { return Ok(()) };
                same("fallocate", fs.fallocate(CALLER, ino, at, len, mode).await, Ok(()))?;
                self.model.node(ino).fallocate(mode, at, len);
            }
            Op::Copy(a, at, b, to, len) => {
                let (Some(a), Some(b)) = (file(self, a), file(self, b)) else { return Ok(()) };
                let got = fs.copy_file_range(CALLER, a, at, b, to, len).await;
                same("copy", got, self.model.copy((a, at), (b, to), len))?;
            }
            Op::Read(n, at, len) => {
                let Some(ino) = file(self, n) else { return Ok(()) };
                let got = fs.read(ino, at, len as u32).await.map_err(|e| e.to_string())?;
                let bytes = &self.model.nodes[&ino].bytes;
                let end = (at + len).min(bytes.len() as u64) as usize;
                same_bytes("read", &got, bytes.get(at as usize..end).unwrap_or_default())?;
            }
            Op::Seek(n, at) => {
                let Some(ino) = file(self, n) else { return Ok(()) };
                let node = &self.model.nodes[&ino];
                same("SEEK_DATA", fs.lseek(ino, at, Whence::Data).await, node.seek(at, true))?;
                same("SEEK_HOLE", fs.lseek(ino, at, Whence::Hole).await, node.seek(at, false))?;
            }
            _ => unreachable!("all other operations are elsewhere"),
        }
        Ok(())
    }

    fn at(&self, At(dir, n): At) -> (Ino, &'static [u8]) {
        (self.model.pick(dir, Kind::Dir).expect("the root"), name(n))
    }

    async fn create(&mut self, at: At, kind: Kind) -> Checked {
        let (dir, name) = self.at(at);
        let (fs, n) = (self.fs().clone(), name.to_vec());
        let mut node = Node::new(kind, 0o644, dir);
        let got = match kind {
            Kind::Dir => {
                node.perm = 0o755;
                fs.mkdir(CALLER, dir, n, 0o777, 0o022).await
            }
            Kind::Symlink => {
                (node.perm, node.target) = (0o777, self.fresh_bytes(20));
                fs.symlink(CALLER, dir, n, node.target.clone()).await
            }
            Kind::Fifo => fs.mknod(CALLER, dir, n, libc::S_IFIFO | 0o666, 0o022, 0).await,
            _ => fs.create(CALLER, dir, n, 0o666, 0o022).await,
        };
        let want = self.model.may_create(dir, name);
        same("create", got.clone().map(|_| ()), want)?;
        if let Ok(attr) = got {
            self.model.create(dir, name, attr.ino, node);
            self.attr(attr.ino, attr)?;
        }
        Ok(())
    }

    async fn write(&mut self, ino: Ino, at: u64, bytes: Vec<u8>) -> Checked {
        let fs = self.fs().clone();
        let data = Bytes::from(bytes.clone());
        let got = fs.write(ino, at, data, WriteFlags::default()).await;
        same("write", got, Ok(bytes.len() as u32))?;
        self.model.node(ino).write(at, &bytes);
        Ok(())
    }

    async fn setattr(&mut self, ino: Ino, set: SetAttr, change: impl Fn(&mut Node)) -> Checked {
        let attr = self.fs().setattr(CALLER, ino, set).await.map_err(|e| e.to_string())?;
        change(self.model.node(ino));
        self.attr(ino, attr)
    }

    /// Compares attributes with the model.
    fn attr(&self, ino: Ino, attr: Attr) -> Checked {
        let node = &self.model.nodes[&ino];
        let size = match node.kind {
            Kind::Dir => attr.size,
            _ => (node.bytes.len() + node.target.len()) as u64,
        };
        let shape = (attr.ino, attr.kind, attr.perm, attr.uid, attr.gid, attr.nlink, attr.size);
        let want = (ino, node.kind, node.perm, node.uid, node.gid, node.nlink, size);
        same("attributes", shape, want)?;
        if let Some(secs) = node.mtime {
            same("mtime", attr.mtime, Timestamp { secs, nanos: 7 })?;
        }
        if node.kind == Kind::File {
            let with_data = node.data.chunks(4096).filter(|block| block.contains(&true)).count();
            same("blocks", attr.blocks, with_data as u64 * 8)?;
        }
        Ok(())
    }

    /// Compares everything about one inode with the model.
    async fn look(&self, ino: Ino) -> Checked {
        let (fs, node) = (self.fs(), &self.model.nodes[&ino]);
        let failed = |e: FsError| format!("looking at inode {ino}: {e}");
        self.attr(ino, fs.getattr(ino).await.map_err(failed)?)?;
        match node.kind {
            Kind::File => self.look_at_contents(fs, ino, node).await?,
            Kind::Symlink => {
                same_bytes("readlink", &fs.readlink(ino).await.map_err(failed)?, &node.target)?
            }
            Kind::Dir => {
                self.list(ino, 3).await?;
                let up = fs.readdir(ino, 1, 1).await.map_err(failed)?;
                same("..", up.first().map(|e| e.ino), Some(node.parent))?;
            }
            _ => {}
        }
        let mut names = fs.listxattr(CALLER, ino).await.map_err(failed)?;
        names.sort();
        let shown = |name: &&Vec<u8>| !name.starts_with(b"trusted."); // CALLER has no right
        same("listxattr", names, node.xattrs.keys().filter(shown).cloned().collect())?;
        for name in XATTRS {
            let got = fs.getxattr(ino, name.to_vec()).await.map(|v| v.to_vec());
            same("getxattr", got, node.xattrs.get(name).cloned().ok_or(FsError::NoAttr))?;
        }
        Ok(())
    }

    async fn look_at_contents(&self, fs: &Arc<Fs>, ino: Ino, node: &Node) -> Checked {
        let len = node.bytes.len() as u32 + 1;
        let got = fs.read(ino, 0, len).await.map_err(|e| e.to_string())?;
        same_bytes(&format!("contents of inode {ino}"), &got, &node.bytes)?;
        let (mut at, mut data) = (0, true);
        loop {
            let whence = if data { Whence::Data } else { Whence::Hole };
            let got = fs.lseek(ino, at, whence).await;
            same(&format!("inode {ino}: {whence:?} from {at}"), got.clone(), node.seek(at, data))?;
            let Ok(next) = got else { return Ok(()) };
            (at, data) = (next, !data);
        }
    }

    async fn list(&self, dir: Ino, page: usize) -> Checked {
        let (mut after, mut names) = (0, Vec::new());
        loop {
            let got = self.fs().readdir(dir, after, page).await.map_err(|e| e.to_string())?;
            let Some(last) = got.last() else { break };
            after = last.cookie;
            names.extend(got.into_iter().map(|e| (e.name, e.ino, e.kind)));
        }
        self.same_names(dir, names)
    }

    fn same_names(&self, dir: Ino, mut names: Vec<(Vec<u8>, Ino, Kind)>) -> Checked {
        let node = &self.model.nodes[&dir];
        let entry =
            |(name, ino): (&Vec<u8>, &Ino)| (name.clone(), *ino, self.model.nodes[ino].kind);
        let mut want: Vec<_> = node.entries.iter().map(entry).collect();
        want.push((b".".to_vec(), dir, Kind::Dir));
        want.push((b"..".to_vec(), node.parent, Kind::Dir));
        names.sort_by(|a, b| a.0.cmp(&b.0));
        want.sort_by(|a, b| a.0.cmp(&b.0));
        same(&format!("names in {dir}"), names, want)
    }

    async fn list_plus(&mut self, dir: Ino, page: usize) -> Checked {
        let (mut after, mut names) = (0, Vec::new());
        loop {
            let fs = self.fs().clone();
            let got = fs.readdirplus(dir, after, page).await.map_err(|e| e.to_string())?;
            let Some((last, _)) = got.last() else { break };
            after = last.cookie;
            for (entry, attr) in got {
                if entry.cookie > 2 {
                    let attr = attr.ok_or_else(|| format!("{} has no attributes", entry.ino))?;
                    self.attr(entry.ino, attr)?;
                    self.model.node(entry.ino).known += 1;
                }
                names.push((entry.name, entry.ino, entry.kind));
            }
        }
        self.same_names(dir, names)
    }
}
