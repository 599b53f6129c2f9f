//! One volume through its mounts: where it is kept, how it is left and found again.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use sealfs::commit::check::{CheckOptions, Report, check};
use sealfs::commit::{CleanOptions, SnapshotOrder};
use sealfs::fs::{Attr, Fs, Kind};
use sealfs::meta::{CommitRow, SnapshotName, SnapshotOrigin, keys};
use sealfs::seal::{KdfParams, Secret};
use sealfs::stack::{InitOptions, MountOptions, Mounted, StoreOptions, init, mount};
use sealfs::store::Location;
use tempfile::TempDir;

use super::ops::Op;
use super::reference::Reference;
use super::{Checked, same};

const PATIENCE: Duration = Duration::from_secs(30);
/// Small, so that some scripts fill it.
const JOURNAL_BYTES: u64 = 16 << 20;
/// Snapshots at a time.
const SNAPSHOTS_MAX: usize = 4;

/// A volume and its model.
pub struct World {
    pub model: Reference,
    bucket: Arc<InMemory>,
    local: TempDir,
    mounted: Option<Mounted>,
    /// The model after each operation, by the last journal record then: what the bucket may
    /// hold. Begins again with every journal.
    history: Vec<(u64, Reference)>,
    /// Commits in the life of the volume when the journal began.
    begun: u64,
    counter: u8,
    /// Requests take time, so that commits are under way while operations go on.
    slow: bool,
    /// Segments are cleaned at every occasion.
    clean: bool,
    /// Snapshots, each with the model when it was made.
    past: Vec<(SnapshotName, Reference)>,
    /// The one that is looked at.
    looking: Option<Arc<Fs>>,
    made: u32,
}

fn secret() -> Secret {
    Secret::KeyFile(vec![7; 64].into())
}

fn store(bucket: &Arc<InMemory>, slow: bool) -> StoreOptions {
    let mut options = StoreOptions::new(Location::Memory);
    let bucket = bucket.clone() as Arc<dyn ObjectStore>;
    let (wait_put, wait_get) = (Duration::from_millis(4), Duration::from_millis(1));
    let config = ThrottleConfig {
        wait_put_per_call: wait_put,
        wait_get_per_call: wait_get,
        ..ThrottleConfig::default()
    };
    options.custom = Some(match slow {
        true => Arc::new(ThrottledStore::new(bucket, config)),
        false => bucket,
    });
    options
}

/// In memory where there is such a directory: the journal syncs often.
fn local() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("tempdir")
}

/// A new volume: copied, for the keyring is made but once.
async fn new_volume() -> Arc<InMemory> {
    static VOLUME: OnceLock<Arc<InMemory>> = OnceLock::new();
    if VOLUME.get().is_none() {
        let bucket = Arc::new(InMemory::new());
        let (store, label) = (store(&bucket, false), "model".into());
        let options =
            InitOptions { label, kdf: KdfParams::FLOOR, ..InitOptions::new(store, secret()) };
        init(options).await.expect("init");
        let _ = VOLUME.set(bucket);
    }
    Arc::new(VOLUME.get().expect("set above").fork())
}

async fn open(
    bucket: &Arc<InMemory>,
    slow: bool,
    clean: bool,
    local: &TempDir,
) -> Checked<Mounted> {
    let mut failed = String::new();
    for _ in 0..100 {
        let (cache, state) = (local.path().join("cache"), local.path().join("state"));
        let mut options = MountOptions::new(store(bucket, slow), secret(), cache, state);
        options.journal_bytes_max = JOURNAL_BYTES;
        options.cache_bytes_max = 64 << 20;
        // Commits are where the script says.
        options.commit_interval = Duration::from_secs(3600);
        options.takeover = true;
        if clean {
            let look_every = Duration::ZERO;
            options.clean = CleanOptions { dead_bytes_min: 1, tiny_min: 2, look_every };
            options.dead_grace = Duration::from_secs(1);
            options.compress = Some("zstd:1".parse().expect("known"));
        }
        match mount(options).await {
            Ok(mounted) => return Ok(mounted),
            // A task of the mount before may still hold its journal.
            Err(e) => failed = e.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("mounting again: {failed}"))
}

impl World {
    /// A new volume, mounted; `slow`: on a store that takes its time, `clean`: with segments
    /// compressed, and cleaned whenever two could be merged or half of one is dead.
    pub async fn new(slow: bool, clean: bool) -> World {
        let (bucket, local) = (new_volume().await, local());
        let mounted = open(&bucket, slow, clean, &local).await.expect("mounts");
        let model = Reference::new();
        let history = vec![(0, model.clone())];
        let mounted = Some(mounted);
        World {
            model,
            bucket,
            local,
            mounted,
            history,
            begun: 0,
            counter: 0,
            slow,
            clean,
            past: Vec::new(),
            looking: None,
            made: 0,
        }
    }

    pub fn fs(&self) -> &Arc<Fs> {
        self.looking.as_ref().unwrap_or(&self.mounted().fs)
    }

    /// Makes a snapshot, unless there are many.
    pub(super) async fn snapshot(&mut self) -> Checked {
        if self.past.len() >= SNAPSHOTS_MAX {
            return Ok(());
        }
        self.made += 1;
        let name = SnapshotName::parse(&format!("s{}", self.made)).expect("a name");
        let (note, origin) = (String::new(), SnapshotOrigin::ByHand);
        let order = SnapshotOrder { name: name.clone(), note, expires_secs: 0, origin };
        let made = self.mounted().create_snapshot(order, PATIENCE).await;
        made.map_err(|e| format!("making a snapshot: {e}"))?;
        self.past.push((name, self.model.clone()));
        Ok(())
    }

    /// Deletes one of the snapshots.
    pub(super) async fn drop_snapshot(&mut self, n: u8) -> Checked {
        if self.past.is_empty() {
            return Ok(());
        }
        let (name, _) = self.past.remove(n as usize % self.past.len());
        let gone = self.mounted().delete_snapshots(vec![name], PATIENCE).await;
        gone.map_err(|e| format!("deleting a snapshot: {e}"))
    }

    /// Compares every snapshot with the model as it was.
    pub(super) async fn verify_past(&mut self) -> Checked {
        for (name, model) in self.past.clone() {
            let found = self.mounted().tree.snapshot(name.as_str()).await;
            let found = found.map_err(|e| format!("opening snapshot {name}: {e}"))?;
            self.looking = Some(found.ok_or_else(|| format!("snapshot {name} is not there"))?);
            let now = std::mem::replace(&mut self.model, model);
            let mut compared = Ok(());
            for ino in self.model.nodes.keys() {
                compared = compared.and(self.look(*ino).await);
            }
            (self.model, self.looking) = (now, None);
            compared.map_err(|e| format!("in snapshot {name}: {e}"))?;
        }
        Ok(())
    }

    fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("mounted all the time")
    }

    /// Bytes that no other call gives.
    pub fn fresh_bytes(&mut self, len: usize) -> Vec<u8> {
        self.counter = self.counter.wrapping_add(1).max(1);
        let salt = self.counter as usize;
        (0..len).map(|i| ((i * 7 + i / 251 + salt * 37) % 255) as u8 + 1).collect()
    }

    /// Counts that must be right after every operation; notes what the bucket may hold.
    pub async fn counts(&mut self) -> Checked {
        let stat = self.fs().statfs().await.map_err(|e| e.to_string())?;
        same("inodes in statfs", stat.files - stat.ffree, self.model.nodes.len() as u64)?;
        let last = self.mounted().view().pending_summary().0.0;
        match self.history.last_mut() {
            Some((pos, model)) if *pos == last => *model = self.model.clone(),
            _ => self.history.push((last, self.model.clone())),
        }
        Ok(())
    }

    /// Compares everything with the model.
    pub async fn verify(&self) -> Checked {
        for ino in self.model.nodes.keys() {
            self.look(*ino).await?;
        }
        let mut blocks = 0;
        for (ino, node) in &self.model.nodes {
            if node.kind == Kind::File {
                let attr = self.fs().getattr(*ino).await.map_err(|e| e.to_string())?;
                blocks += attr.blocks * 512;
            }
        }
        same("bytes in use", self.mounted().view().stats().bytes, blocks)
    }

    async fn sync(&self) -> Checked {
        let synced = self.mounted().sync(PATIENCE).await;
        same("synced", synced, true)?;
        same("state", self.mounted().control.status().warnings.len(), 0)
    }

    /// Checks the rows in the bucket against each other.
    pub async fn check(&self) -> Checked<Report> {
        let mut report = Report::default();
        for _ in 0..20 {
            // Passes of a few rows, so that their borders are tried too.
            let by_sums = CheckOptions::default();
            let options = CheckOptions { inodes_per_pass: 3, extents_per_pass: 5, by_sums: false };
            let kv = self.mounted().view().kv();
            let quick = check(kv, by_sums, &Default::default()).await;
            let quick = quick.map_err(|e| e.to_string())?.0;
            let checked = check(kv, options, &Default::default()).await;
            report = checked.map_err(|e| e.to_string())?.0;
            if quick.is_clean() && report.is_clean() {
                return Ok(report);
            }
            // The committer may be reclaiming, and a check is no snapshot.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(report.problems().join("\n"))
    }

    /// The points between operations at which something may get lost.
    pub(super) async fn point(&mut self, op: &Op) -> Checked {
        match op {
            Op::Commit => {
                // Asked for, not waited for.
                let sync = self.mounted().control.sync();
                let _ = tokio::time::timeout(Duration::ZERO, sync).await;
            }
            Op::Freeze => {
                self.mounted().view().freeze(true);
            }
            Op::Sync => {
                self.sync().await?;
                let report = self.check().await?;
                same("inodes in the bucket", report.inodes, self.model.nodes.len() as u64)?;
            }
            Op::Remount => {
                let before = self.attrs().await?;
                let drained = self.unmount(PATIENCE).await;
                same("drained", drained, true)?;
                self.find_again(before).await?;
            }
            Op::Crash => {
                let before = self.attrs().await?;
                self.unmount(Duration::ZERO).await;
                self.find_again(before).await?;
            }
            Op::Elsewhere => {
                let before = self.attrs().await?;
                let drained = self.unmount(PATIENCE).await;
                same("drained", drained, true)?;
                self.local = local();
                self.find_again(before).await?;
                self.begun = self.committed().await?.map_or(0, |row| row.sequence);
                self.history = vec![(0, self.model.clone())];
            }
            _ => unreachable!("no point"),
        }
        Ok(())
    }

    async fn unmount(&mut self, drain: Duration) -> bool {
        self.mounted.take().expect("mounted all the time").shutdown(drain).await
    }

    async fn attrs(&self) -> Checked<Vec<Attr>> {
        let mut attrs = Vec::new();
        for (ino, node) in &self.model.nodes {
            if node.nlink > 0 {
                attrs.push(self.fs().getattr(*ino).await.map_err(|e| e.to_string())?);
            }
        }
        Ok(attrs)
    }

    /// Mounts again: what has a name is as it was, what has none goes.
    async fn find_again(&mut self, before: Vec<Attr>) -> Checked {
        self.mounted = Some(open(&self.bucket, self.slow, self.clean, &self.local).await?);
        self.model.remounted();
        self.await_reaped().await?;
        for attr in before {
            let got = self.fs().getattr(attr.ino).await;
            same("attributes after mounting again", got, Ok(attr))?;
        }
        self.verify().await
    }

    async fn await_reaped(&self) -> Checked {
        for _ in 0..200 {
            let stat = self.fs().statfs().await.map_err(|e| e.to_string())?;
            if stat.files - stat.ffree == self.model.nodes.len() as u64 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err("inodes without a name were not removed".into())
    }

    async fn committed(&self) -> Checked<Option<CommitRow>> {
        let row = self.mounted().view().kv().get(&keys::commit()).await;
        let row = row.map_err(|e| e.to_string())?;
        row.map(|row| CommitRow::decode(&row).map_err(|e| e.to_string())).transpose()
    }

    /// The end of a script: everything is compared here and on another machine.
    pub async fn finish(&mut self) -> Checked {
        self.verify().await?;
        self.point(&Op::Elsewhere).await?;
        self.sync().await?;
        self.verify_past().await?;
        self.check().await?;
        self.unmount(PATIENCE).await;
        Ok(())
    }

    /// The other end of a script: the machine is lost, and the bucket holds what history had
    /// come to at some record.
    pub async fn lose(&mut self) -> Checked {
        self.unmount(Duration::ZERO).await;
        self.local = local();
        self.mounted = Some(open(&self.bucket, self.slow, self.clean, &self.local).await?);
        let row = self.committed().await?;
        let found = match row {
            Some(row) if row.sequence != self.begun => {
                let at = |(pos, _): &&(u64, Reference)| *pos == row.position.0;
                self.history.iter().find(at).map(|(_, model)| model.clone())
            }
            _ => Some(self.history[0].1.clone()),
        };
        // Otherwise in the middle of an operation of several records.
        if let Some(found) = found {
            self.model = found;
            self.model.remounted();
            self.await_reaped().await?;
            self.verify().await?;
            self.sync().await?;
        }
        self.verify_past().await?;
        self.check().await?;
        self.unmount(PATIENCE).await;
        Ok(())
    }
}
