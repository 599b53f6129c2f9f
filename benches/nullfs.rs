//! A FUSE file system that does nothing but keep what it is given in memory: what FUSE itself
//! costs, for comparison.
//!
//! Usage: `nullfs MOUNTPOINT [--threads N]`. Mounts, prints `mounted`, and unmounts when standard
//! input ends. Asks the kernel for the same features as sealfs (`src/fuse/mount.rs`): write-back
//! cache, long timeouts, readdirplus always, no open and opendir requests, large requests.
//! Permissions, times of parents and hard links are kept only as far as the phases need them.

use clap::Parser;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// How long the kernel may trust entries and attributes: only it changes them.
const FOREVER: Duration = Duration::from_secs(86_400);
/// Bytes of one piece of a file.
const PIECE: usize = 1 << 20;
/// Locks the inode table is cut into.
const SHARDS: usize = 64;

#[derive(Parser)]
struct Args {
    /// Where to mount
    mountpoint: PathBuf,
    /// Threads that answer requests
    #[arg(long, default_value_t = 4)]
    threads: usize,
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(args.threads);
    config.clone_fd = args.threads > 1;
    config.mount_options =
        vec![MountOption::FSName("nullfs".into()), MountOption::DefaultPermissions];
    let session = fuser::spawn_mount(NullFs::new(), &args.mountpoint, &config)?;
    println!("mounted");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    session.umount_and_join()
}

/// One directory: entries by name, and by the number they were added under, which is their
/// readdir cookie.
#[derive(Default)]
struct Dir {
    by_name: HashMap<OsString, (u64, u64)>,
    by_cookie: BTreeMap<u64, (OsString, u64)>,
    last: u64,
}

impl Dir {
    fn insert(&mut self, name: &OsStr, ino: u64) {
        self.last += 1;
        self.by_name.insert(name.to_owned(), (ino, self.last));
        self.by_cookie.insert(self.last, (name.to_owned(), ino));
    }

    fn remove(&mut self, name: &OsStr) -> Option<u64> {
        let (ino, cookie) = self.by_name.remove(name)?;
        self.by_cookie.remove(&cookie);
        Some(ino)
    }

    fn get(&self, name: &OsStr) -> Option<u64> {
        self.by_name.get(name).map(|(ino, _)| *ino)
    }
}

enum Body {
    /// Pieces of up to [`PIECE`] bytes; what a piece lacks at its end is zeros.
    File(RwLock<Vec<Vec<u8>>>),
    Dir(RwLock<Dir>),
    Symlink(PathBuf),
}

struct Node {
    attr: Mutex<FileAttr>,
    body: Body,
}

impl Node {
    fn dir(&self) -> Result<&RwLock<Dir>, Errno> {
        match &self.body {
            Body::Dir(dir) => Ok(dir),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn attr(&self) -> FileAttr {
        *self.attr.lock()
    }
}

struct NullFs {
    shards: Vec<RwLock<HashMap<u64, Arc<Node>>>>,
    next: AtomicU64,
}

impl NullFs {
    fn new() -> NullFs {
        let fs = NullFs {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            next: AtomicU64::new(2),
        };
        fs.put(1, node(1, FileType::Directory, 0o755, 0, 0, Body::Dir(RwLock::default())));
        fs
    }

    fn shard(&self, ino: u64) -> &RwLock<HashMap<u64, Arc<Node>>> {
        &self.shards[ino as usize % SHARDS]
    }

    fn put(&self, ino: u64, node: Node) -> Arc<Node> {
        let node = Arc::new(node);
        self.shard(ino).write().insert(ino, node.clone());
        node
    }

    fn get(&self, ino: u64) -> Result<Arc<Node>, Errno> {
        self.shard(ino).read().get(&ino).cloned().ok_or(Errno::ENOENT)
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<Arc<Node>, Errno> {
        let found = self.get(parent.0)?.dir()?.read().get(name);
        self.get(found.ok_or(Errno::ENOENT)?)
    }

    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        kind: FileType,
        mode: u32,
        body: Body,
    ) -> Result<FileAttr, Errno> {
        let parent = self.get(parent.0)?;
        let mut dir = parent.dir()?.write();
        if dir.get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        let ino = self.next.fetch_add(1, Relaxed);
        let made = self.put(ino, node(ino, kind, mode, req.uid(), req.gid(), body));
        dir.insert(name, ino);
        Ok(made.attr())
    }

    fn unlink_any(&self, parent: INodeNo, name: &OsStr, want_dir: bool) -> Result<(), Errno> {
        let parent = self.get(parent.0)?;
        let mut dir = parent.dir()?.write();
        let node = self.get(dir.get(name).ok_or(Errno::ENOENT)?)?;
        match &node.body {
            Body::Dir(below) if want_dir && below.read().by_name.is_empty() => {}
            Body::Dir(_) if want_dir => return Err(Errno::ENOTEMPTY),
            Body::Dir(_) => return Err(Errno::EISDIR),
            _ if want_dir => return Err(Errno::ENOTDIR),
            _ => {}
        }
        dir.remove(name);
        let mut attr = node.attr.lock();
        attr.nlink = attr.nlink.saturating_sub(1);
        Ok(())
    }

    fn rename_any(
        &self,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return Err(Errno::EINVAL);
        }
        let (from, to) = (self.get(parent.0)?, self.get(newparent.0)?);
        let replaced = to.dir()?.read().get(newname);
        if replaced.is_some() && flags.contains(RenameFlags::RENAME_NOREPLACE) {
            return Err(Errno::EEXIST);
        }
        // The kernel holds both directories locked meanwhile.
        let ino = from.dir()?.write().remove(name).ok_or(Errno::ENOENT)?;
        let mut target = to.dir()?.write();
        target.remove(newname);
        target.insert(newname, ino);
        Ok(())
    }
}

fn node(ino: u64, kind: FileType, mode: u32, uid: u32, gid: u32, body: Body) -> Node {
    let now = SystemTime::now();
    let attr = FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm: (mode & 0o7777) as u16,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid,
        gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    };
    Node { attr: Mutex::new(attr), body }
}

/// Answers with `$then` applied to the value, or with the error.
macro_rules! answer {
    ($result:expr, $reply:ident, $value:ident => $then:expr) => {
        match $result {
            Ok($value) => $then,
            Err(errno) => $reply.error(errno),
        }
    };
}

impl Filesystem for NullFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_WRITEBACK_CACHE
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        let offered = config.capabilities();
        config
            .add_capabilities(wanted & offered)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::Unsupported))?;
        // Each setter refuses with the nearest value it would take; take that one.
        if let Err(nearest) = config.set_max_write(1 << 20) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(u32::MAX) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_background(128);
        let _ = config.set_congestion_threshold(96);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(self.find(parent, name), reply, node =>
            reply.entry(&FOREVER, &node.attr(), Generation(0)));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        let mut shard = self.shard(ino.0).write();
        let gone = shard.get(&ino.0).is_some_and(|node| {
            let attr = node.attr.lock();
            attr.nlink == 0 || (attr.nlink < 2 && attr.kind == FileType::Directory)
        });
        if gone {
            shard.remove(&ino.0);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        answer!(self.get(ino.0), reply, node => reply.attr(&FOREVER, &node.attr()));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer!(self.get(ino.0), reply, node => {
            if let (Some(size), Body::File(pieces)) = (size, &node.body) {
                truncate(&mut pieces.write(), size);
            }
            let time = |t| match t {
                TimeOrNow::SpecificTime(t) => t,
                TimeOrNow::Now => SystemTime::now(),
            };
            let mut attr = node.attr.lock();
            attr.perm = mode.map_or(attr.perm, |m| (m & 0o7777) as u16);
            attr.uid = uid.unwrap_or(attr.uid);
            attr.gid = gid.unwrap_or(attr.gid);
            attr.size = size.unwrap_or(attr.size);
            attr.blocks = attr.size.div_ceil(512);
            attr.atime = atime.map_or(attr.atime, time);
            attr.mtime = mtime.map_or(attr.mtime, time);
            attr.ctime = ctime.unwrap_or_else(SystemTime::now);
            reply.attr(&FOREVER, &attr)
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        answer!(self.get(ino.0), reply, node => match &node.body {
            Body::Symlink(target) => reply.data(target.as_os_str().as_encoded_bytes()),
            _ => reply.error(Errno::EINVAL),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(Errno::EPERM);
        }
        let body = Body::File(RwLock::default());
        let made = self.make(req, parent, name, FileType::RegularFile, mode & !umask, body);
        answer!(made, reply, attr => reply.entry(&FOREVER, &attr, Generation(0)));
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let body = Body::Dir(RwLock::default());
        let made = self.make(req, parent, name, FileType::Directory, mode & !umask, body);
        answer!(made, reply, attr => reply.entry(&FOREVER, &attr, Generation(0)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(self.unlink_any(parent, name, false), reply, _done => reply.ok());
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(self.unlink_any(parent, name, true), reply, _done => reply.ok());
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let body = Body::Symlink(target.to_owned());
        let made = self.make(req, parent, name, FileType::Symlink, 0o777, body);
        answer!(made, reply, attr => reply.entry(&FOREVER, &attr, Generation(0)));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.rename_any(parent, name, newparent, newname, flags);
        answer!(renamed, reply, _done => reply.ok());
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let linked = self.get(ino.0).and_then(|node| {
            self.get(newparent.0)?.dir()?.write().insert(newname, ino.0);
            node.attr.lock().nlink += 1;
            Ok(node.attr())
        });
        answer!(linked, reply, attr => reply.entry(&FOREVER, &attr, Generation(0)));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let body = Body::File(RwLock::default());
        let made = self.make(req, parent, name, FileType::RegularFile, mode & !umask, body);
        answer!(made, reply, attr => {
            let keep = FopenFlags::FOPEN_KEEP_CACHE;
            reply.created(&FOREVER, &attr, Generation(0), FileHandle(0), keep)
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(self.get(ino.0), reply, node => {
            let Body::File(pieces) = &node.body else { return reply.error(Errno::EISDIR) };
            let pieces = pieces.read();
            let end = node.attr().size.min(offset + u64::from(size));
            let (from, to) = (offset.min(end) as usize, end as usize);
            // The usual request lies within one piece and is sent from where it is.
            match pieces.get(from / PIECE) {
                Some(piece)
                    if from < to
                        && from / PIECE == (to - 1) / PIECE
                        && piece.len() > (to - 1) % PIECE =>
                {
                    reply.data(&piece[from % PIECE..(to - 1) % PIECE + 1]);
                }
                _ => reply.data(&gather(&pieces, from, to)),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        answer!(self.get(ino.0), reply, node => {
            let Body::File(pieces) = &node.body else { return reply.error(Errno::EISDIR) };
            scatter(&mut pieces.write(), offset as usize, data);
            let mut attr = node.attr.lock();
            attr.size = attr.size.max(offset + data.len() as u64);
            attr.blocks = attr.size.div_ceil(512);
            attr.mtime = SystemTime::now();
            reply.written(data.len() as u32)
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _d: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _d: bool, r: ReplyEmpty) {
        r.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.get(ino.0).and_then(|node| {
            for (cookie, (name, ino)) in node.dir()?.read().by_cookie.range(offset + 1..) {
                let Ok(child) = self.get(*ino) else { continue };
                if reply.add(INodeNo(*ino), *cookie, child.attr().kind, name) {
                    break;
                }
            }
            Ok(())
        });
        answer!(listed, reply, _done => reply.ok());
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.get(ino.0).and_then(|node| {
            for (cookie, (name, ino)) in node.dir()?.read().by_cookie.range(offset + 1..) {
                let Ok(child) = self.get(*ino) else { continue };
                let (ino, attr) = (INodeNo(*ino), child.attr());
                if reply.add(ino, *cookie, name, &FOREVER, &attr, Generation(0)) {
                    break;
                }
            }
            Ok(())
        });
        answer!(listed, reply, _done => reply.ok());
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 40, 1 << 40, 1 << 40, 1 << 40, 1 << 40, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

/// Bytes `from..to`, holes as zeros.
fn gather(pieces: &[Vec<u8>], from: usize, to: usize) -> Vec<u8> {
    let mut bytes = vec![0; to - from];
    let mut at = from;
    while at < to {
        let n = (PIECE - at % PIECE).min(to - at);
        if let Some(held) = pieces.get(at / PIECE).and_then(|piece| piece.get(at % PIECE..)) {
            let held = &held[..held.len().min(n)];
            bytes[at - from..at - from + held.len()].copy_from_slice(held);
        }
        at += n;
    }
    bytes
}

fn scatter(pieces: &mut Vec<Vec<u8>>, offset: usize, data: &[u8]) {
    let end = (offset + data.len()).div_ceil(PIECE);
    if pieces.len() < end {
        pieces.resize(end, Vec::new());
    }
    let mut at = offset;
    while at < offset + data.len() {
        let n = (PIECE - at % PIECE).min(offset + data.len() - at);
        let piece = &mut pieces[at / PIECE];
        if piece.len() < at % PIECE + n {
            piece.resize(at % PIECE + n, 0);
        }
        piece[at % PIECE..at % PIECE + n].copy_from_slice(&data[at - offset..at - offset + n]);
        at += n;
    }
}

fn truncate(pieces: &mut Vec<Vec<u8>>, size: u64) {
    let size = size as usize;
    pieces.truncate(size.div_ceil(PIECE));
    if let Some(last) = pieces.get_mut(size / PIECE) {
        last.truncate(size % PIECE);
    }
}
