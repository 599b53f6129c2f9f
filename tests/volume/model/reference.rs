//! What a file system is, as simply as it can be said: the model that `fs` is compared with.

use std::collections::BTreeMap;
use std::sync::Arc;

use sealfs::base::Ino;
use sealfs::fs::{FsError, Kind, XattrMode};

use super::ops::Flag;

pub const CAPABILITY: &[u8] = b"security.capability";

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub target: Vec<u8>,
    /// Contents of a file.
    pub bytes: Arc<Vec<u8>>,
    /// For each byte, whether it was ever written since it was last a hole.
    pub data: Arc<Vec<bool>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub entries: BTreeMap<Vec<u8>, Ino>,
    pub parent: Ino,
    /// Seconds of a time that was set and has not changed since.
    pub mtime: Option<i64>,
    /// Lookups that the kernel has not forgotten.
    pub known: u64,
}

impl Node {
    pub fn new(kind: Kind, perm: u16, parent: Ino) -> Node {
        Node {
            kind,
            perm,
            uid: 0,
            gid: 0,
            nlink: if kind == Kind::Dir { 2 } else { 1 },
            target: Vec::new(),
            bytes: Arc::default(),
            data: Arc::default(),
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
            parent,
            mtime: None,
            known: 0,
        }
    }

    fn changed(&mut self) {
        self.mtime = None;
        self.xattrs.remove(CAPABILITY);
    }

    fn contents_changed(&mut self) {
        if self.kind == Kind::File {
            self.clear_set_id();
        }
    }

    fn clear_set_id(&mut self) {
        self.perm &= !0o4000;
        if self.perm & 0o010 != 0 {
            self.perm &= !0o2000;
        }
    }

    pub fn resize(&mut self, size: u64) {
        self.changed();
        Arc::make_mut(&mut self.bytes).resize(size as usize, 0);
        Arc::make_mut(&mut self.data).resize(size as usize, false);
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let (from, to) = (at as usize, at as usize + bytes.len());
        self.resize((to as u64).max(self.bytes.len() as u64));
        Arc::make_mut(&mut self.bytes)[from..to].copy_from_slice(bytes);
        Arc::make_mut(&mut self.data)[from..to].fill(true);
    }

    pub fn fallocate(&mut self, mode: i32, at: u64, len: u64) {
        self.changed();
        self.contents_changed();
        let (size, end) = (self.bytes.len() as u64, at + len);
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > size {
            self.resize(end);
        }
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 && at < size {
            let range = at as usize..end.min(size) as usize;
            Arc::make_mut(&mut self.bytes)[range.clone()].fill(0);
            Arc::make_mut(&mut self.data)[range].fill(false);
        }
    }

    pub fn chown(&mut self, uid: u32) {
        self.uid = uid;
        if self.kind != Kind::Dir {
            self.clear_set_id();
        }
        self.xattrs.remove(CAPABILITY);
    }

    pub fn seek(&self, at: u64, data: bool) -> Result<u64, FsError> {
        let size = self.bytes.len();
        let tail = self.data.get(at as usize..).filter(|t| !t.is_empty());
        let tail = tail.ok_or(FsError::NoSuchOffset)?;
        match tail.iter().position(|d| *d == data) {
            Some(n) => Ok(at + n as u64),
            None if data => Err(FsError::NoSuchOffset),
            None => Ok(size as u64),
        }
    }

    pub fn set_xattr(&mut self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(), FsError> {
        match self.xattrs.contains_key(name) {
            true if mode.create => return Err(FsError::Exists),
            false if mode.replace => return Err(FsError::NoAttr),
            _ => {}
        }
        self.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub struct Reference {
    pub nodes: BTreeMap<Ino, Node>,
}

impl Reference {
    pub fn new() -> Reference {
        let mut root = Node::new(Kind::Dir, 0o755, Ino::ROOT);
        root.known = 1;
        Reference { nodes: BTreeMap::from([(Ino::ROOT, root)]) }
    }

    pub fn node(&mut self, ino: Ino) -> &mut Node {
        self.nodes.get_mut(&ino).expect("chosen among those that live")
    }

    /// The `n`-th of the inodes that live, wrapping around.
    pub fn any(&self, n: u8) -> Ino {
        *self.nodes.keys().nth(n as usize % self.nodes.len()).expect("the root lives")
    }

    /// The same among those of one kind.
    pub fn pick(&self, n: u8, kind: Kind) -> Option<Ino> {
        let all: Vec<_> = self.nodes.iter().filter(|(_, i)| i.kind == kind).collect();
        (!all.is_empty()).then(|| *all[n as usize % all.len()].0)
    }

    fn entry(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        self.nodes[&dir].entries.get(name).copied()
    }

    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino, FsError> {
        self.entry(dir, name).ok_or(FsError::NotFound)
    }

    pub fn may_create(&self, dir: Ino, name: &[u8]) -> Result<(), FsError> {
        match (self.nodes[&dir].nlink, self.entry(dir, name)) {
            (0, _) => Err(FsError::NotFound),
            (_, Some(_)) => Err(FsError::Exists),
            _ => Ok(()),
        }
    }

    fn attach(&mut self, dir: Ino, name: &[u8], ino: Ino) {
        let is_dir = self.nodes[&ino].kind == Kind::Dir;
        let d = self.node(dir);
        d.entries.insert(name.to_vec(), ino);
        d.nlink += u32::from(is_dir);
        d.mtime = None;
        if is_dir {
            self.node(ino).parent = dir;
        }
    }

    fn detach(&mut self, dir: Ino, name: &[u8]) -> Ino {
        let ino = self.node(dir).entries.remove(name).expect("looked up before");
        let is_dir = self.nodes[&ino].kind == Kind::Dir;
        let d = self.node(dir);
        d.nlink -= u32::from(is_dir);
        d.mtime = None;
        ino
    }

    pub fn create(&mut self, dir: Ino, name: &[u8], ino: Ino, mut node: Node) {
        if self.nodes[&dir].perm & 0o2000 != 0 {
            node.gid = self.nodes[&dir].gid;
            if node.kind == Kind::Dir {
                node.perm |= 0o2000;
            }
        }
        node.known = 1;
        assert!(self.nodes.insert(ino, node).is_none(), "inode {ino} was handed out twice");
        self.attach(dir, name, ino);
    }

    pub fn link(&mut self, ino: Ino, dir: Ino, name: &[u8]) -> Result<(), FsError> {
        if self.nodes[&ino].kind == Kind::Dir {
            return Err(FsError::NotPermitted);
        }
        self.may_create(dir, name)?;
        self.attach(dir, name, ino);
        self.node(ino).nlink += 1;
        self.node(ino).known += 1;
        Ok(())
    }

    fn drop_link(&mut self, ino: Ino) {
        let node = self.node(ino);
        node.nlink = if node.kind == Kind::Dir { 0 } else { node.nlink - 1 };
        if node.nlink == 0 && node.known == 0 {
            self.nodes.remove(&ino);
        }
    }

    pub fn unlink(&mut self, dir: Ino, name: &[u8]) -> Result<(), FsError> {
        let ino = self.lookup(dir, name)?;
        if self.nodes[&ino].kind == Kind::Dir {
            return Err(FsError::IsDir);
        }
        self.detach(dir, name);
        self.drop_link(ino);
        Ok(())
    }

    pub fn rmdir(&mut self, dir: Ino, name: &[u8]) -> Result<(), FsError> {
        let ino = self.lookup(dir, name)?;
        match &self.nodes[&ino] {
            node if node.kind != Kind::Dir => return Err(FsError::NotDir),
            node if !node.entries.is_empty() => return Err(FsError::NotEmpty),
            _ => {}
        }
        self.detach(dir, name);
        self.drop_link(ino);
        Ok(())
    }

    fn is_within(&self, mut ino: Ino, of: Ino) -> bool {
        while ino != of && ino != Ino::ROOT {
            ino = self.nodes[&ino].parent;
        }
        ino == of
    }

    pub fn rename(
        &mut self,
        (from, name): (Ino, &[u8]),
        (to, new_name): (Ino, &[u8]),
        flag: Flag,
    ) -> Result<(), FsError> {
        let source = self.lookup(from, name)?;
        if self.nodes[&to].nlink == 0 {
            return Err(FsError::NotFound);
        }
        let target = self.entry(to, new_name);
        if flag == Flag::NoReplace && target.is_some() {
            return Err(FsError::Exists);
        }
        let is_dir = |ino: Ino| self.nodes[&ino].kind == Kind::Dir;
        if is_dir(source) && self.is_within(to, source) {
            return Err(FsError::Invalid);
        }
        if flag == Flag::Exchange {
            let target = target.ok_or(FsError::NotFound)?;
            if is_dir(target) && self.is_within(from, target) {
                return Err(FsError::Invalid);
            }
            if source != target {
                self.detach(from, name);
                self.detach(to, new_name);
                self.attach(from, name, target);
                self.attach(to, new_name, source);
            }
            return Ok(());
        }
        if target == Some(source) {
            return Ok(());
        }
        if let Some(target) = target {
            match (is_dir(source), is_dir(target)) {
                (true, true) if !self.nodes[&target].entries.is_empty() => {
                    return Err(FsError::NotEmpty);
                }
                (true, false) => return Err(FsError::NotDir),
                (false, true) => return Err(FsError::IsDir),
                _ => {}
            }
            self.detach(to, new_name);
            self.drop_link(target);
        }
        self.detach(from, name);
        self.attach(to, new_name, source);
        Ok(())
    }

    pub fn copy(
        &mut self,
        (from, at): (Ino, u64),
        (to, to_at): (Ino, u64),
        len: u64,
    ) -> Result<u64, FsError> {
        let source = &self.nodes[&from];
        let (bytes, data) = (source.bytes.clone(), source.data.clone());
        let len = len.min((bytes.len() as u64).saturating_sub(at));
        if from == to && at < to_at + len && to_at < at + len {
            return Err(FsError::Invalid);
        }
        if len > 0 {
            let node = self.node(to);
            let (range, target) = (at as usize..(at + len) as usize, to_at as usize);
            node.write(to_at, &bytes[range.clone()]);
            // Holes are copied as holes.
            let copied = target..target + range.len();
            Arc::make_mut(&mut node.data)[copied].copy_from_slice(&data[range]);
            node.contents_changed();
        }
        Ok(len)
    }

    pub fn forget(&mut self, ino: Ino, n: u64) {
        let node = self.node(ino);
        let was_known = node.known > 0;
        node.known -= n.min(node.known);
        if was_known && node.known == 0 && node.nlink == 0 {
            self.nodes.remove(&ino);
        }
    }

    /// What a new mount finds: nothing is known, nothing without a name is left.
    pub fn remounted(&mut self) {
        self.nodes.retain(|_, node| node.nlink > 0);
        for (ino, node) in &mut self.nodes {
            node.known = u64::from(*ino == Ino::ROOT);
        }
    }
}
