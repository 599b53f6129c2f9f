//! `recover`: what a local journal holds and the bucket does not have, as ordinary files.
//!
//! For the journal of a mount that was fenced, or of a machine that will not mount again. Reads
//! the journal and nothing else (the keyring may come from a copy), changes nothing, and gives
//! only what the journal itself proves: a file that it knows parts of is written with holes and
//! listed as partial; a directory whose name it does not know is named by its inode number.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::fsck::printable;
use crate::base::{Ino, JournalPos, Timestamp, counted, is_root};
use crate::commit::replay::batch_of;
use crate::commit::{Batch, CommitGroup, ViewError};
use crate::data::plan::Pending;
use crate::data::{Part, Source};
use crate::journal::{Journal, RecordLoc};
use crate::meta::{DecodeError, Dirent, Inode, Kind, NAME_MAX, keys};
use crate::seal::{KEYRING_MAX, Keyring, VolumeKeys};
use crate::stack::records::state::{Remembered, StateFile};
use crate::stack::{Key, StackError, StoreOptions, StoreStack, load_keyring, unlock};

/// Where the list of what was recovered goes, in the directory of the recovered files.
pub const LIST_NAME: &str = "#recovered.txt";
/// Bytes that are read from the journal at once.
const COPY_BYTES: u32 = 1 << 20;
/// How long reading the keyring from a store may take.
const KEYRING_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the keyring comes from.
#[derive(Debug)]
pub enum KeyringSource {
    /// A copy in a file.
    File(PathBuf),
    /// The bucket.
    Store(Box<StoreOptions>),
}

/// What `sealfs recover` does.
#[derive(Debug)]
pub struct RecoverOptions {
    /// The journal's directory, also one that was set aside.
    pub journal_dir: PathBuf,
    /// Where to; made, or empty.
    pub out_dir: PathBuf,
    /// Where the keyring comes from.
    pub keyring: KeyringSource,
    /// Opens the keyring.
    pub key: Key,
    /// Told how far it is.
    pub progress: Arc<RecoverProgress>,
}

/// How far an export is.
#[derive(Debug, Default)]
pub struct RecoverProgress {
    /// Bytes of contents written.
    pub bytes: AtomicU64,
    /// Of so many; 0 while the journal is being read.
    pub of: AtomicU64,
}

/// Lies in a directory as long as an export into it is not at its end: the next one begins again there.
pub const UNFINISHED_NAME: &str = ".sealfs-recover-unfinished";

/// What was recovered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Records that the bucket did not have when this machine last looked.
    pub records: u64,
    /// Files written in whole or in part.
    pub files: u64,
    /// How many of them only in part.
    pub partial: u64,
    /// Directories, links and special files made.
    pub others: u64,
    /// Bytes of contents.
    pub bytes: u64,
    /// A line for everything that is not simply there: parts, deletions, renames, damage. Names
    /// are in it: it is for the list, never for a log.
    pub remarks: Vec<String>,
}

/// Exports what a journal holds.
///
/// # Errors
/// [`StackError::Journal`], [`StackError::Keyring`], [`StackError::Local`] (also if `out_dir` is
/// not empty).
pub async fn recover(options: RecoverOptions) -> Result<Recovered, StackError> {
    let keyring = match &options.keyring {
        KeyringSource::File(path) => Keyring::parse(&read_bounded(path)?)?,
        KeyringSource::Store(store) => {
            let name = store.location.to_string();
            let load = async {
                let layers = StoreStack::connect(store, KEYRING_TIMEOUT, false).await?;
                load_keyring(&layers, &name).await
            };
            tokio::select! {
                loaded = load => loaded?,
                () = store.attended.stopped() => return Err(StackError::Stopped),
            }
        }
    };
    let keys = unlock(keyring, &options.key).await?.keys;
    let work = move || export(&options.journal_dir, &options.out_dir, keys, &options.progress);
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| StackError::Repair(format!("the export ended early: {e}")))?
}

fn local(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StackError + use<> {
    let path = path.to_owned();
    move |source| StackError::Local { what, path, source }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, StackError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(local("reading the keyring in", path))?;
    let read = file.take(KEYRING_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(local("reading the keyring in", path))?;
    Ok(bytes)
}

fn export(
    journal_dir: &Path,
    out_dir: &Path,
    keys: VolumeKeys,
    progress: &RecoverProgress,
) -> Result<Recovered, StackError> {
    let (journal, recovery) = Journal::examine(journal_dir, keys.clone())?;
    let mut done = Recovered::default();
    if let Some(damage) = &recovery.damage {
        done.remarks.push(format!("damaged: {damage}; what it held is missing"));
    }
    let committed = committed(journal_dir, &journal, &recovery.released, keys, &mut done.remarks);
    let todo = recovery.records.iter().filter(|(pos, _)| *pos > committed);
    let mut net = CommitGroup::new(committed);
    for (pos, record) in todo {
        match batch_of(&journal, *record) {
            Ok((batch, data_start)) => {
                let cloned = cloned(&net, &batch, &mut done.remarks);
                net.apply(batch, *record, data_start, &cloned);
                done.records += 1;
            }
            Err(e) => done.remarks.push(format!("damaged: record {pos}: {e}")),
        }
    }
    prepare(out_dir)?;
    let ranges = net.files.values().flat_map(|file| file.ranges.iter());
    let held = ranges.filter(|(_, _, source)| matches!(source, Source::Record { .. }));
    progress.of.store(held.map(|(start, end, _)| end - start).sum(), Ordering::Relaxed);
    let (tree, out) = (Tree::of(&net)?, out_dir);
    let mut export = Export { journal: &journal, out, net: &net, done, tree, progress };
    export.all()?;
    export.list()?;
    let unfinished = out_dir.join(UNFINISHED_NAME);
    fs::remove_file(&unfinished).map_err(local("removing", &unfinished))?;
    Ok(export.done)
}

/// What a batch shares of other files, as far as the journal has it; the rest goes to the remarks.
fn cloned(net: &CommitGroup, batch: &Batch, remarks: &mut Vec<String>) -> Vec<Part> {
    let Some(from) = batch.clone_source() else { return Vec::new() };
    let file = net.files.get(&from.file());
    let found = Pending::resolve(from.offset, from.end(), file.map(|f| &f.ranges));
    if !file.is_some_and(|f| f.fresh) {
        for (start, end) in found.gaps() {
            let (ino, bytes) = (from.ino, counted(end - start, "byte"));
            remarks.push(format!(
                "{bytes} were copied from inode {ino}, whose contents at {start} are in the bucket; \
                 the copy has zeros there"
            ));
        }
    }
    found.over(&[])
}

/// The last record that this machine knows to be in the bucket. Where what it remembers cannot be
/// used, that goes to the remarks, and more is exported than would have to be.
fn committed(
    journal_dir: &Path,
    journal: &Journal,
    released: &JournalPos,
    keys: VolumeKeys,
    remarks: &mut Vec<String>,
) -> JournalPos {
    let parent = journal_dir.parent().unwrap_or(Path::new("."));
    let state = StateFile::<Remembered>::new(parent, keys).load().unwrap_or_else(|e| {
        remarks.push(format!("what is in the bucket already is exported as well: {e}"));
        None
    });
    let state = state.unwrap_or_default();
    let same = state.journal == journal.id().to_string();
    JournalPos(released.0.max(if same { state.journal_committed } else { 0 }))
}

fn prepare(out: &Path) -> Result<(), StackError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(out);
    made.map_err(local("creating", out))?;
    let unfinished = out.join(UNFINISHED_NAME);
    let is_unfinished = unfinished.symlink_metadata().is_ok();
    for entry in fs::read_dir(out).map_err(local("listing", out))? {
        let path = entry.map_err(local("listing", out))?.path();
        if !is_unfinished {
            let full = io::Error::from(io::ErrorKind::DirectoryNotEmpty);
            return Err(local("writing into", out)(full));
        }
        // Of an export that was cut off, into a directory that was empty: it begins again.
        let removed = match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
            _ if path == unfinished => Ok(()),
            _ => fs::remove_file(&path),
        };
        removed.map_err(local("removing", &path))?;
    }
    File::create(&unfinished).map(drop).map_err(local("creating", &unfinished))
}

/// What the journal knows of names and inodes.
#[derive(Default)]
struct Tree {
    inodes: BTreeMap<Ino, Inode>,
    /// By inode: directory and name.
    names: BTreeMap<Ino, Vec<(Ino, Bytes)>>,
    xattrs: HashMap<Ino, Vec<(Bytes, Bytes)>>,
    /// Names that were taken away.
    removed: Vec<(Ino, Bytes)>,
}

impl Tree {
    fn of(net: &CommitGroup) -> Result<Tree, StackError> {
        let mut tree = Tree::default();
        let key = |what| ViewError::from(DecodeError(what));
        for (raw, row) in &net.rows {
            match (raw.first(), &row.value) {
                (Some(b'i'), Some(value)) => {
                    let ino = keys::inode_of(raw).ok_or(key("inode key"))?;
                    tree.inodes.insert(ino, Inode::decode(value).map_err(ViewError::from)?);
                }
                (Some(b'd'), value) => {
                    let (dir, _, name) = keys::dirent_of(raw).ok_or(key("entry key"))?;
                    let name = Bytes::copy_from_slice(name);
                    if !is_plain(&name) {
                        return Err(key("entry with an impossible name").into());
                    }
                    match value {
                        None => tree.removed.push((dir, name)),
                        Some(value) => {
                            let entry = Dirent::decode(value).map_err(ViewError::from)?;
                            tree.names.entry(entry.ino).or_default().push((dir, name));
                        }
                    }
                }
                (Some(b'x'), Some(value)) => {
                    let ino = raw.get(1..9).and_then(|b| b.try_into().ok());
                    let name = keys::xattr_of(raw).ok_or(key("attribute key"))?;
                    let ino = Ino(u64::from_be_bytes(ino.ok_or(key("attribute key"))?));
                    let pair = (Bytes::copy_from_slice(name), value.clone());
                    tree.xattrs.entry(ino).or_default().push(pair);
                }
                _ => {}
            }
        }
        Ok(tree)
    }

    /// Where a directory lies below the root of the export.
    fn directory(&self, ino: Ino) -> PathBuf {
        let (mut at, mut below) = (ino, Vec::new());
        // As deep as there are names; more would be a cycle.
        for _ in 0..=self.names.len() {
            if at == Ino::ROOT {
                break;
            }
            match self.names.get(&at).and_then(|names| names.first()) {
                Some((parent, name)) => {
                    below.push(PathBuf::from(OsStr::from_bytes(name)));
                    at = *parent;
                }
                None => {
                    below.push(PathBuf::from(format!("#{at}")));
                    break;
                }
            }
        }
        below.into_iter().rev().collect()
    }

    fn path(&self, dir: Ino, name: &[u8]) -> PathBuf {
        self.directory(dir).join(OsStr::from_bytes(name))
    }
}

/// Whether a name can be made a file's; the journal holds no other, but a path is made of it.
fn is_plain(name: &[u8]) -> bool {
    let odd = matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0);
    !odd && name.len() <= NAME_MAX
}

struct Export<'a> {
    journal: &'a Journal,
    out: &'a Path,
    net: &'a CommitGroup,
    done: Recovered,
    tree: Tree,
    progress: &'a RecoverProgress,
}

impl Export<'_> {
    fn all(&mut self) -> Result<(), StackError> {
        let tree = std::mem::take(&mut self.tree);
        let mut directories = Vec::new();
        for (&ino, inode) in tree.inodes.iter().filter(|(_, i)| i.nlink > 0) {
            let names = tree.names.get(&ino).map_or(&[][..], Vec::as_slice);
            let path = match names.first() {
                _ if inode.kind == Kind::Dir => tree.directory(ino),
                Some((dir, name)) => tree.path(*dir, name),
                None => PathBuf::from(format!("#{ino}")),
            };
            let full = self.out.join(&path);
            if inode.kind == Kind::Dir {
                self.make_dirs(&full)?;
                if !names.is_empty() {
                    self.done.others += 1;
                }
                directories.push((full, ino));
                continue;
            }
            self.make_dirs(full.parent().unwrap_or(self.out))?;
            if !self.one(ino, inode, &path, &full)? {
                continue;
            }
            self.attributes(&full, inode, tree.xattrs.get(&ino));
            for (dir, name) in names.iter().skip(1) {
                let link = self.out.join(tree.path(*dir, name));
                self.make_dirs(link.parent().unwrap_or(self.out))?;
                fs::hard_link(&full, &link).map_err(local("linking", &link))?;
            }
        }
        // Names of what the journal does not hold: renamed, or linked once more.
        for (ino, names) in tree.names.iter().filter(|(ino, _)| !tree.inodes.contains_key(ino)) {
            for (dir, name) in names {
                let path = shown(&tree.path(*dir, name));
                self.remark(format!("renamed: inode {ino}, its contents in the bucket: {path}"));
            }
        }
        for (dir, name) in &tree.removed {
            let path = shown(&tree.path(*dir, name));
            self.remark(format!("name removed: {path}"));
        }
        // Children first: making them changed the times of their directory.
        directories.sort_by(|a, b| b.0.cmp(&a.0));
        for (path, ino) in directories {
            if path != self.out {
                self.attributes(&path, &tree.inodes[&ino], tree.xattrs.get(&ino));
            }
        }
        Ok(())
    }

    fn remark(&mut self, text: String) {
        self.done.remarks.push(text);
    }

    fn make_dirs(&self, path: &Path) -> Result<(), StackError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(local("creating", path))
    }

    /// Makes what `inode` is; false if there was nothing to make.
    fn one(
        &mut self,
        ino: Ino,
        inode: &Inode,
        path: &Path,
        full: &Path,
    ) -> Result<bool, StackError> {
        let failed = || local("creating", full);
        let made = match inode.kind {
            Kind::File => return self.file(ino, inode, path, full),
            Kind::Symlink => std::os::unix::fs::symlink(OsStr::from_bytes(&inode.target), full),
            Kind::Dir => return Ok(false),
            Kind::Fifo => make_node(full, libc::S_IFIFO, 0),
            Kind::Socket => make_node(full, libc::S_IFSOCK, 0),
            Kind::CharDev => make_node(full, libc::S_IFCHR, inode.rdev),
            Kind::BlockDev => make_node(full, libc::S_IFBLK, inode.rdev),
        };
        match made {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                self.remark(format!("not made (only root may): {}", shown(path)));
                return Ok(false);
            }
            made => made.map_err(failed())?,
        }
        self.done.others += 1;
        Ok(true)
    }

    fn file(
        &mut self,
        ino: Ino,
        inode: &Inode,
        path: &Path,
        full: &Path,
    ) -> Result<bool, StackError> {
        let pending = self.net.files.get(&inode.contents(ino));
        let Some(pending) = pending.filter(|p| p.fresh || !p.ranges.is_empty()) else {
            if inode.size > 0 {
                let path = shown(path);
                self.remark(format!("attributes changed, contents in the bucket: {path}"));
                return Ok(false);
            }
            self.create(full, 0)?;
            self.done.files += 1;
            return Ok(true);
        };
        let file = self.create(full, inode.size)?;
        let (mut parts, mut at, mut whole, mut restored) = (Vec::new(), 0, true, 0);
        for (start, end, source) in pending.ranges.iter() {
            let end = end.min(inode.size);
            if start >= end {
                continue;
            }
            whole &= pending.fresh || start <= at;
            at = end;
            // Restored from a snapshot: the journal says only where in the bucket it is.
            if matches!(source, Source::Segment { .. }) {
                (whole, restored) = (false, restored + (end - start));
                continue;
            }
            parts.push(format!("{start}..{end}"));
            if let Source::Record { record, skip } = source
                && let Err(e) = self.copy(&file, start, record, skip, (end - start) as u32)
            {
                match e {
                    StackError::Journal(e) => {
                        self.remark(format!("damaged: {} at {start}: {e}", shown(path)));
                        whole = false;
                    }
                    e => return Err(e),
                }
            }
        }
        whole &= pending.fresh || at >= inode.size;
        file.sync_all().map_err(local("writing", full))?;
        self.done.files += 1;
        if !whole {
            self.done.partial += 1;
            let (path, parts) = (shown(path), parts.join(" "));
            let only = if parts.is_empty() { "nothing".into() } else { format!("bytes {parts}") };
            self.remark(format!("partial: {path}: only {only}; the rest reads as zeros"));
        }
        if restored > 0 {
            self.remark(format!(
                "{}: restored from a snapshot, which has {} of it: restore it again (sealfs snapshot \
                 restore)",
                shown(path),
                counted(restored, "byte"),
            ));
        }
        Ok(true)
    }

    fn create(&self, full: &Path, size: u64) -> Result<File, StackError> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(full);
        let file = file.map_err(local("creating", full))?;
        file.set_len(size).map_err(local("creating", full))?;
        Ok(file)
    }

    fn copy(
        &mut self,
        file: &File,
        mut at: u64,
        record: RecordLoc,
        mut skip: u32,
        mut len: u32,
    ) -> Result<(), StackError> {
        while len > 0 {
            let piece = len.min(COPY_BYTES);
            let bytes = self.journal.read(record, skip..skip + piece)?;
            file.write_all_at(&bytes, at).map_err(local("writing into", self.out))?;
            self.done.bytes += u64::from(piece);
            self.progress.bytes.store(self.done.bytes, Ordering::Relaxed);
            (at, skip, len) = (at + u64::from(piece), skip + piece, len - piece);
        }
        Ok(())
    }

    /// Sets what can be set; what cannot is remarked.
    fn attributes(&mut self, path: &Path, inode: &Inode, xattrs: Option<&Vec<(Bytes, Bytes)>>) {
        let mut failed = Vec::new();
        if is_root() {
            let (uid, gid) = (Some(inode.uid), Some(inode.gid));
            failed.extend(std::os::unix::fs::lchown(path, uid, gid).err());
        }
        for (name, value) in xattrs.into_iter().flatten() {
            failed.extend(set_xattr(path, name, value).err());
        }
        if inode.kind != Kind::Symlink {
            let mode = Permissions::from_mode(inode.perm.into());
            failed.extend(fs::set_permissions(path, mode).err());
            failed.extend(set_times(path, inode).err());
        }
        if let Some(e) = failed.first() {
            let below = path.strip_prefix(self.out).unwrap_or(path);
            self.remark(format!("attributes not all set: {}: {e}", shown(below)));
        }
    }

    fn list(&mut self) -> Result<(), StackError> {
        let path = self.out.join(LIST_NAME);
        let Recovered { records, files, partial, others, bytes, remarks } = &self.done;
        let mut text = format!(
            "{} ({partial} of them in part, {}) and {}, from {}\n",
            counted(*files, "file"),
            counted(*bytes, "byte"),
            counted(*others, "other"),
            counted(*records, "journal record"),
        );
        remarks.iter().for_each(|line| text += &format!("{line}\n"));
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(local("writing", &path))
    }
}

fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_bytes())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn make_node(path: &Path, kind: libc::mode_t, rdev: u32) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path is a C string that lives through the call.
    match unsafe { libc::mknod(path.as_ptr(), kind | 0o600, rdev.into()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_xattr(path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_path(path)?, CString::new(name).map_err(io::Error::other)?);
    let (data, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: both strings are C strings, `data` has `len` bytes, and all live through the call.
    match unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), data, len, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_times(path: &Path, inode: &Inode) -> io::Result<()> {
    let time = |t: Timestamp| -> SystemTime {
        let whole = Duration::from_secs(t.secs.unsigned_abs());
        let at = if t.secs < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
        at + Duration::from_nanos(t.nanos.into())
    };
    if !matches!(inode.kind, Kind::File | Kind::Dir) {
        return Ok(()); // opening a pipe would wait for its other end
    }
    let times =
        fs::FileTimes::new().set_accessed(time(inode.atime)).set_modified(time(inode.mtime));
    File::open(path)?.set_times(times)
}
