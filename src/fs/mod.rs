//! STUB for the FUSE adapter's tests: the API of fs/ over maps in memory. Not the real one.
#![allow(missing_docs)]
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::base::{Clock, Ino, SystemClock, Timestamp};

#[derive(Clone, Copy)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDev,
    BlockDev,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Kind,
    pub perm: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
}
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    Now,
    At(Timestamp),
}
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    pub perm: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<Timestamp>,
    pub kill_suidgid: bool,
}
pub struct DirEntry {
    pub ino: Ino,
    pub cookie: u64,
    pub kind: Kind,
    pub name: Vec<u8>,
}
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    Set,
    Create,
    Replace,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    Data,
    Hole,
}
#[derive(Clone, Copy, Debug, Default)]
pub struct RenameFlags {
    pub no_replace: bool,
    pub exchange: bool,
}
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteFlags {
    pub kill_suidgid: bool,
    pub sync: bool,
    pub cached: bool,
}
#[derive(Clone, Debug)]
pub enum FsError {
    NotFound,
    Exists,
    NotDir,
    IsDir,
    NotEmpty,
    NotPermitted,
    Access,
    Invalid,
    NameTooLong,
    TooManyLinks,
    NoSpace,
    FileTooBig,
    ReadOnly,
    NoAttr,
    Range,
    NoSuchOffset,
    Unsupported,
    Stale,
    Busy,
    CrossDevice,
    ArgListTooBig,
    Io(String),
}
type R<T> = Result<T, FsError>;

struct Node {
    attr: Attr,
    data: Vec<u8>,
    names: BTreeMap<Vec<u8>, Ino>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    lookups: u64,
    parent: Ino,
}
#[derive(Default)]
struct State {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}
#[derive(Default)]
pub struct Fs(Mutex<State>);

fn now() -> Timestamp {
    SystemClock.now()
}

impl State {
    fn node(&mut self, ino: Ino) -> R<&mut Node> {
        self.nodes.get_mut(&ino.0).ok_or(FsError::Stale)
    }
    fn make(&mut self, c: Caller, kind: Kind, perm: u32, rdev: u32, nlink: u32) -> Ino {
        self.next += 1;
        let ino = Ino(self.next);
        let t = now();
        let attr = Attr {
            ino,
            kind,
            perm: (perm & 0o7777) as u16,
            nlink,
            uid: c.uid,
            gid: c.gid,
            rdev,
            size: 0,
            blocks: 0,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
        };
        let node = Node {
            attr,
            data: vec![],
            names: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            lookups: 0,
            parent: Ino::ROOT,
        };
        self.nodes.insert(ino.0, node);
        ino
    }
    fn add(&mut self, parent: Ino, name: Vec<u8>, ino: Ino) -> R<Attr> {
        if name.len() > 255 {
            return Err(FsError::NameTooLong);
        }
        let dir = self.node(parent)?;
        if dir.names.contains_key(&name) {
            return Err(FsError::Exists);
        }
        dir.names.insert(name, ino);
        dir.attr.mtime = now();
        let n = self.node(ino)?;
        n.parent = parent;
        n.lookups += 1;
        Ok(n.attr)
    }
    fn drop_if_unused(&mut self, ino: Ino) {
        if let Some(n) = self.nodes.get(&ino.0)
            && n.attr.nlink == 0
            && n.lookups == 0
        {
            self.nodes.remove(&ino.0);
        }
    }
    fn remove(&mut self, parent: Ino, name: &[u8], dir: bool) -> R<()> {
        let ino = *self.node(parent)?.names.get(name).ok_or(FsError::NotFound)?;
        let n = self.node(ino)?;
        match (n.attr.kind == Kind::Dir, dir) {
            (true, false) => return Err(FsError::IsDir),
            (false, true) => return Err(FsError::NotDir),
            _ => {}
        }
        if !n.names.is_empty() {
            return Err(FsError::NotEmpty);
        }
        n.attr.nlink = if dir { 0 } else { n.attr.nlink - 1 };
        self.node(parent)?.names.remove(name);
        self.drop_if_unused(ino);
        Ok(())
    }
    fn list(&mut self, ino: Ino, after: u64, max: usize) -> R<Vec<(DirEntry, Attr)>> {
        let n = self.node(ino)?;
        let (me, up) = (n.attr.ino, n.parent);
        let mut all = vec![(b".".to_vec(), me), (b"..".to_vec(), up)];
        all.extend(n.names.iter().map(|(k, v)| (k.clone(), *v)));
        let mut out = vec![];
        for (i, (name, ino)) in all.into_iter().enumerate().skip(after as usize).take(max) {
            let attr = self.node(ino)?.attr;
            out.push((DirEntry { ino, cookie: i as u64 + 1, kind: attr.kind, name }, attr));
        }
        Ok(out)
    }
}

macro_rules! op {
    ($name:ident($($a:ident: $t:ty),*) -> $r:ty, |$s:ident| $body:expr) => {
        pub fn $name(self: &Arc<Self>, $($a: $t),*) -> impl Future<Output = R<$r>> + Send + 'static + use<> {
            let fs = Arc::clone(self);
            #[allow(unused_mut)]
            async move {
                // every second operation is made to wait, so that both paths are taken
                if std::process::id() % 2 == 0 { tokio::task::yield_now().await; }
                let mut $s = fs.0.lock();
                (move || -> R<$r> { $body })()
            }
        }
    };
}

impl Fs {
    pub fn stub() -> Arc<Fs> {
        let fs = Fs::default();
        let c = Caller { uid: 0, gid: 0, pid: 0 };
        fs.0.lock().make(c, Kind::Dir, 0o755, 0, 2);
        Arc::new(fs)
    }
    op!(lookup(parent: Ino, name: Vec<u8>) -> Attr, |s| {
        let ino = *s.node(parent)?.names.get(&name).ok_or(FsError::NotFound)?;
        let n = s.node(ino)?;
        n.lookups += 1;
        Ok(n.attr)
    });
    op!(getattr(ino: Ino) -> Attr, |s| Ok(s.node(ino)?.attr));
    op!(setattr(_c: Caller, ino: Ino, a: SetAttr) -> Attr, |s| {
        let n = s.node(ino)?;
        let t = |t| match t { SetTime::Now => now(), SetTime::At(t) => t };
        if let Some(p) = a.perm { n.attr.perm = p; }
        if let Some(u) = a.uid { n.attr.uid = u; }
        if let Some(g) = a.gid { n.attr.gid = g; }
        if let Some(z) = a.size { n.data.resize(z as usize, 0); n.attr.size = z; }
        if let Some(x) = a.atime { n.attr.atime = t(x); }
        if let Some(x) = a.mtime { n.attr.mtime = t(x); }
        n.attr.ctime = a.ctime.unwrap_or_else(now);
        if a.kill_suidgid && n.attr.kind == Kind::File && a.perm.is_none() { n.attr.perm &= !0o6000; }
        Ok(n.attr)
    });
    op!(readlink(ino: Ino) -> Bytes, |s| Ok(s.node(ino)?.data.clone().into()));
    op!(mknod(c: Caller, parent: Ino, name: Vec<u8>, mode: u32, umask: u32, rdev: u32) -> Attr, |s| {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG => Kind::File,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::CharDev,
            libc::S_IFBLK => Kind::BlockDev,
            _ => return Err(FsError::Invalid),
        };
        let ino = s.make(c, kind, mode & !umask, rdev, 1);
        s.add(parent, name, ino)
    });
    op!(mkdir(c: Caller, parent: Ino, name: Vec<u8>, mode: u32, umask: u32) -> Attr, |s| {
        let ino = s.make(c, Kind::Dir, mode & !umask, 0, 2);
        s.add(parent, name, ino)
    });
    op!(unlink(parent: Ino, name: Vec<u8>) -> (), |s| s.remove(parent, &name, false));
    op!(rmdir(parent: Ino, name: Vec<u8>) -> (), |s| s.remove(parent, &name, true));
    op!(symlink(c: Caller, parent: Ino, name: Vec<u8>, target: Vec<u8>) -> Attr, |s| {
        let ino = s.make(c, Kind::Symlink, 0o777, 0, 1);
        let n = s.node(ino)?;
        n.attr.size = target.len() as u64;
        n.data = target;
        s.add(parent, name, ino)
    });
    op!(link(ino: Ino, parent: Ino, name: Vec<u8>) -> Attr, |s| {
        s.add(parent, name, ino)?;
        let n = s.node(ino)?;
        n.attr.nlink += 1;
        Ok(n.attr)
    });
    op!(rename(from: Ino, name: Vec<u8>, to: Ino, new_name: Vec<u8>, f: RenameFlags) -> (), |s| {
        let ino = *s.node(from)?.names.get(&name).ok_or(FsError::NotFound)?;
        let old = s.node(to)?.names.get(&new_name).copied();
        match old {
            Some(_) if f.no_replace => return Err(FsError::Exists),
            None if f.exchange => return Err(FsError::NotFound),
            Some(old) if f.exchange => {
                s.node(from)?.names.insert(name, old);
                s.node(to)?.names.insert(new_name, ino);
                return Ok(());
            }
            Some(old) => {
                let n = s.node(old)?;
                if !n.names.is_empty() { return Err(FsError::NotEmpty); }
                n.attr.nlink = 0;
                s.drop_if_unused(old);
            }
            None => {}
        }
        s.node(from)?.names.remove(&name);
        s.node(to)?.names.insert(new_name, ino);
        s.node(ino)?.parent = to;
        Ok(())
    });
    op!(tmpfile(c: Caller, parent: Ino, mode: u32, umask: u32) -> Attr, |s| {
        s.node(parent)?;
        let ino = s.make(c, Kind::File, mode & !umask, 0, 0);
        let n = s.node(ino)?;
        n.lookups = 1;
        Ok(n.attr)
    });
    op!(read(ino: Ino, offset: u64, len: u32) -> Bytes, |s| {
        let d = &s.node(ino)?.data;
        let from = (offset as usize).min(d.len());
        Ok(Bytes::copy_from_slice(&d[from..(from + len as usize).min(d.len())]))
    });
    op!(write(ino: Ino, offset: u64, data: Bytes, _f: WriteFlags) -> u32, |s| {
        let n = s.node(ino)?;
        let end = offset as usize + data.len();
        if n.data.len() < end { n.data.resize(end, 0); }
        n.data[offset as usize..end].copy_from_slice(&data);
        n.attr.size = n.data.len() as u64;
        n.attr.blocks = n.attr.size.div_ceil(512);
        Ok(data.len() as u32)
    });
    op!(fallocate(ino: Ino, offset: u64, len: u64, mode: i32) -> (), |s| {
        if mode != 0 { return Err(FsError::Unsupported); }
        let n = s.node(ino)?;
        let end = (offset + len) as usize;
        if n.data.len() < end { n.data.resize(end, 0); n.attr.size = end as u64; }
        Ok(())
    });
    op!(lseek(ino: Ino, offset: u64, w: Whence) -> u64, |s| {
        let size = s.node(ino)?.attr.size;
        if offset >= size { return Err(FsError::NoSuchOffset); }
        Ok(if w == Whence::Data { offset } else { size })
    });
    op!(copy_file_range(a: Ino, off_in: u64, b: Ino, off_out: u64, len: u64) -> u64, |s| {
        let d = s.node(a)?.data.clone();
        let from = (off_in as usize).min(d.len());
        let part = &d[from..(from + len as usize).min(d.len())];
        let n = s.node(b)?;
        let end = off_out as usize + part.len();
        if n.data.len() < end { n.data.resize(end, 0); }
        n.data[off_out as usize..end].copy_from_slice(part);
        n.attr.size = n.data.len() as u64;
        Ok(part.len() as u64)
    });
    op!(readdir(ino: Ino, after: u64, max: usize) -> Vec<DirEntry>, |s| {
        Ok(s.list(ino, after, max)?.into_iter().map(|(e, _)| e).collect())
    });
    op!(readdirplus(ino: Ino, after: u64, max: usize) -> Vec<(DirEntry, Attr)>, |s| {
        let page = s.list(ino, after, max)?;
        for (e, _) in &page {
            if e.name != b"." && e.name != b".." { s.node(e.ino)?.lookups += 1; }
        }
        Ok(page)
    });
    op!(setxattr(ino: Ino, name: Vec<u8>, value: Vec<u8>, m: XattrMode) -> (), |s| {
        let x = &mut s.node(ino)?.xattrs;
        match (x.contains_key(&name), m) {
            (true, XattrMode::Create) => return Err(FsError::Exists),
            (false, XattrMode::Replace) => return Err(FsError::NoAttr),
            _ => {}
        }
        x.insert(name, value);
        Ok(())
    });
    op!(getxattr(ino: Ino, name: Vec<u8>) -> Bytes, |s| {
        s.node(ino)?.xattrs.get(&name).cloned().map(Bytes::from).ok_or(FsError::NoAttr)
    });
    op!(listxattr(ino: Ino) -> Vec<Vec<u8>>, |s| Ok(s.node(ino)?.xattrs.keys().cloned().collect()));
    op!(removexattr(ino: Ino, name: Vec<u8>) -> (), |s| {
        s.node(ino)?.xattrs.remove(&name).map(drop).ok_or(FsError::NoAttr)
    });
    op!(fsync(ino: Ino, _data_only: bool) -> (), |s| s.node(ino).map(drop));
    op!(fsyncdir(ino: Ino) -> (), |s| s.node(ino).map(drop));
    op!(statfs() -> StatFs, |s| {
        let files = s.nodes.len() as u64;
        Ok(StatFs { blocks: 1 << 30, bfree: 1 << 29, bavail: 1 << 29, files, ffree: 1 << 40,
            bsize: 4096, namelen: 255, frsize: 4096 })
    });
    pub fn forget(&self, ino: Ino, nlookup: u64) {
        let mut s = self.0.lock();
        if let Some(n) = s.nodes.get_mut(&ino.0) {
            n.lookups = n.lookups.checked_sub(nlookup).expect("lookup counts must balance");
        }
        s.drop_if_unused(ino);
    }
    pub fn write_now(&self, _: Ino, _: u64, data: &[u8], _: WriteFlags) -> Option<R<u32>> {
        if data.len() > 4096 {
            return None;
        }
        None
    }
    pub fn read_now(&self, _: Ino, _: u64, _: u32) -> Option<R<Bytes>> {
        None
    }
    pub fn fsync_now(&self, _: Ino) -> R<()> {
        Ok(())
    }
    /// Nodes kept although they have no name.
    pub fn orphans(&self) -> usize {
        self.0.lock().nodes.values().filter(|n| n.attr.nlink == 0).count()
    }
}
