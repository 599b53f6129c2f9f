//! The random attacker: two machines that write and one that follows, each of which is shown what the
//! attacker likes of every version of every object that any of them ever put.
//!
//! A schedule is a list of steps made from a seed. Whatever it is, what a machine shows is a prefix of
//! one history that was made, and extends what that machine has seen; or an error. A schedule that
//! breaks this is made as short as it can be before it is printed.
//!
//! `SEALFS_SCHEDULES=10000 SEALFS_SEED=1 cargo test --test volume attack::random` is the long form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use sealfs::base::Ino;
use sealfs::fs::FsError;
use sealfs::stack::{MountOptions, Mounted, StackErrorKind};

use super::{Objects, objects, put_all};
use crate::volume::{Bench, LONG, write_file};

/// Schedules of the short form.
const SCHEDULES: u64 = 150;
const STEPS_MAX: u64 = 9;
/// How often the running follower looks.
const REFRESH: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Machine `who` mounts to write, commits some files, and leaves in order or by a crash.
    Write { who: usize, commits: u64, crashes: bool },
    /// What machine `who` shows when it mounts to read.
    Read { who: usize },
    /// `to` is shown what `from` has.
    Show { to: usize, from: usize },
    /// `to` is shown what some bucket was at some time.
    Back { to: usize, when: u64 },
    /// The same, with one kind of objects from another time.
    Mix { to: usize, when: u64, other: u64, kind: usize },
    /// One object of what `to` is shown is another version of itself.
    Swap { to: usize, which: u64, version: u64 },
    /// All of the log from some number on is what it was at another time.
    Tail { to: usize, from: u64, other: u64 },
    /// One object of what `to` is shown is gone.
    Drop { to: usize, which: u64 },
    /// The follower, which goes on running, looks.
    Look,
}

const KINDS: [&str; 4] = ["meta/wal", "meta/manifest", "meta/compacted", "lease"];
const FOLLOWER: usize = 2;

struct Random(u64);

impl Random {
    fn below(&mut self, max: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % max
    }
}

fn schedule(seed: u64) -> Vec<Step> {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EA1F5);
    (0..3 + random.below(STEPS_MAX - 2))
        .map(|_| {
            let (to, who) = (random.below(3) as usize, random.below(2) as usize);
            let (when, other) = (random.below(1 << 20), random.below(1 << 20));
            match random.below(12) {
                0..=3 => {
                    let commits = random.below(3);
                    Step::Write { who, commits, crashes: random.below(2) == 0 }
                }
                4 => Step::Read { who: to },
                5 => Step::Show { to, from: random.below(3) as usize },
                6 => Step::Back { to, when },
                7 => Step::Mix { to, when, other, kind: random.below(4) as usize },
                8 => Step::Swap { to, which: when, version: other },
                9 => Step::Tail { to, from: random.below(12), other },
                10 => Step::Drop { to, which: when },
                _ => Step::Look,
            }
        })
        .collect()
}

/// Everything there is, and what is true.
struct World {
    machines: Vec<(Bench, Arc<InMemory>)>,
    /// Every state of a bucket at some time.
    states: Vec<Objects>,
    /// Every version of every object.
    versions: BTreeMap<Path, Vec<Bytes>>,
    /// The files of each state of each history that was made.
    made: BTreeSet<BTreeSet<String>>,
    /// What each machine has seen.
    seen: Vec<BTreeSet<String>>,
    names: Vec<String>,
    running: Option<Mounted>,
}

async fn show(store: &InMemory, all: &Objects) {
    for at in objects(store).await.into_keys() {
        if !all.contains_key(&at) {
            store.delete(&at).await.expect("deletes");
        }
    }
    put_all(store, all).await;
}

impl World {
    async fn new(initial: &Objects) -> World {
        let mut machines = Vec::new();
        for _ in 0..3 {
            let store = Arc::new(InMemory::new());
            put_all(&*store, initial).await;
            let local = tempfile::tempdir().expect("tempdir");
            machines.push((Bench { store: store.clone(), local }, store));
        }
        let (mut world, none) = (
            World {
                machines,
                states: Vec::new(),
                versions: BTreeMap::new(),
                made: BTreeSet::new(),
                seen: vec![BTreeSet::new(); 3],
                names: Vec::new(),
                running: None,
            },
            BTreeSet::new(),
        );
        world.made.insert(none);
        world.keep(0).await;
        world
    }

    async fn keep(&mut self, who: usize) {
        let all = objects(&*self.machines[who].1).await;
        for (at, bytes) in &all {
            let versions = self.versions.entry(at.clone()).or_default();
            if !versions.contains(bytes) {
                versions.push(bytes.clone());
            }
        }
        self.states.push(all);
    }

    fn state(&self, when: u64) -> Objects {
        self.states[(when % self.states.len() as u64) as usize].clone()
    }

    /// What is shown has all file data: what is missing of them is no matter of history.
    async fn set(&self, to: usize, mut all: Objects) {
        for (at, versions) in &self.versions {
            if at.as_ref().starts_with("seg/") {
                all.insert(at.clone(), versions[0].clone());
            }
        }
        show(&self.machines[to].1, &all).await;
    }

    /// The files that a mount shows; `None` if it shows an error.
    async fn shown(&self, m: &Mounted) -> Option<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for name in &self.names {
            match m.fs.lookup(Ino::ROOT, name.as_bytes().to_vec()).await {
                Ok(entry) => {
                    match m.fs.read(entry.ino, 0, 100).await {
                        Ok(got) if got == name.as_bytes() => found.insert(name.clone()),
                        Ok(_) => found.insert(format!("wrong contents of {name}")),
                        Err(_) => return None,
                    };
                }
                Err(FsError::NotFound) => {}
                Err(_) => return None,
            }
        }
        Some(found)
    }

    /// Whether what machine `who` shows may be, and that it has seen it now.
    async fn check(&mut self, who: usize, m: &Mounted) -> Result<Option<BTreeSet<String>>, String> {
        let Some(found) = self.shown(m).await else { return Ok(None) };
        if !self.made.contains(&found) {
            return Err(format!("machine {who} shows {found:?}, which never was"));
        }
        if !found.is_superset(&self.seen[who]) {
            let seen = &self.seen[who];
            return Err(format!("machine {who} shows {found:?} and has seen {seen:?}"));
        }
        self.seen[who] = found.clone();
        Ok(Some(found))
    }

    async fn mount(&self, who: usize, read_only: bool) -> Result<Option<Mounted>, String> {
        let change = |o: &mut MountOptions| {
            (o.read_only, o.takeover, o.refresh) = (read_only, !read_only, REFRESH);
            o.read_timeout = Duration::from_secs(3);
        };
        match self.machines[who].0.mount_with(change).await {
            Ok(m) => Ok(Some(m)),
            Err(e) if e.kind() == StackErrorKind::Corrupt || e.kind() == StackErrorKind::InUse => {
                Ok(None)
            }
            Err(e) => Err(format!("machine {who}: {e}")),
        }
    }

    async fn write(&mut self, who: usize, commits: u64, crashes: bool) -> Result<(), String> {
        let Some(m) = self.mount(who, false).await? else { return Ok(()) };
        let mut state = self.check(who, &m).await?;
        for _ in 0..commits {
            let Some(now) = &mut state else { break };
            let name = format!("{}-{}", self.names.len(), ["a", "b"][who]);
            self.names.push(name.clone());
            write_file(&m.fs, Ino::ROOT, &name, name.as_bytes()).await;
            now.insert(name);
            // Whatever becomes of the commit, this is what this machine's history says next.
            self.made.insert(now.clone());
            if !m.sync(Duration::from_secs(5)).await {
                break;
            }
            self.seen[who] = now.clone();
            self.keep(who).await;
        }
        if crashes {
            // Nothing is flushed, and this is never to be seen, but may be pending.
            let left = format!("left-{}", self.names.len());
            let _ = m.fs.create(crate::volume::CALLER, Ino::ROOT, left.into(), 0o600, 0).await;
            m.shutdown(Duration::ZERO).await;
        } else {
            m.shutdown(LONG).await;
        }
        self.keep(who).await;
        Ok(())
    }

    async fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Write { who, commits, crashes } => self.write(who, commits, crashes).await?,
            Step::Read { who: FOLLOWER } | Step::Look => {
                if self.running.is_none() {
                    self.running = self.mount(FOLLOWER, true).await?;
                } else {
                    tokio::time::sleep(REFRESH * 8).await;
                }
                if let Some(m) = self.running.take() {
                    let checked = self.check(FOLLOWER, &m).await;
                    self.running = Some(m);
                    checked?;
                }
            }
            Step::Read { who } => {
                if let Some(m) = self.mount(who, true).await? {
                    self.check(who, &m).await?;
                    m.shutdown(LONG).await;
                }
            }
            Step::Show { to, from } => {
                let all = objects(&*self.machines[from].1).await;
                self.set(to, all).await;
            }
            Step::Back { to, when } => self.set(to, self.state(when)).await,
            Step::Mix { to, when, other, kind } => {
                let (mut all, other) = (self.state(when), self.state(other));
                let of_kind = |at: &Path| at.as_ref().starts_with(KINDS[kind]);
                all.retain(|at, _| !of_kind(at));
                all.extend(other.into_iter().filter(|(at, _)| of_kind(at)));
                self.set(to, all).await;
            }
            Step::Swap { to, which, version } => {
                let mut all = objects(&*self.machines[to].1).await;
                let names: Vec<&Path> = self.versions.keys().collect();
                let at = names[(which % names.len() as u64) as usize];
                let versions = &self.versions[at];
                all.insert(
                    at.clone(),
                    versions[(version % versions.len() as u64) as usize].clone(),
                );
                self.set(to, all).await;
            }
            Step::Tail { to, from, other } => {
                let mut all = objects(&*self.machines[to].1).await;
                let other = self.state(other);
                let first = Path::from(format!("meta/wal/{from:020}.sst"));
                let tail = |at: &Path| at.as_ref().starts_with("meta/wal") && *at >= first;
                all.retain(|at, _| !tail(at));
                all.extend(other.into_iter().filter(|(at, _)| tail(at)));
                self.set(to, all).await;
            }
            Step::Drop { to, which } => {
                let mut all = objects(&*self.machines[to].1).await;
                let names: Vec<Path> =
                    all.keys().filter(|at| at.as_ref().starts_with("meta/")).cloned().collect();
                if !names.is_empty() {
                    all.remove(&names[(which % names.len() as u64) as usize]);
                }
                self.set(to, all).await;
            }
        }
        Ok(())
    }
}

async fn run(initial: &Objects, steps: &[Step]) -> Result<(), String> {
    let mut world = World::new(initial).await;
    let mut outcome = Ok(());
    for (n, step) in steps.iter().enumerate() {
        outcome = world.step(*step).await.map_err(|e| format!("step {n}: {e}"));
        if outcome.is_err() {
            break;
        }
    }
    if let Some(m) = world.running.take() {
        m.shutdown(Duration::ZERO).await;
    }
    outcome
}

/// The shortest schedule that still fails, by leaving steps out.
async fn shrunk(initial: &Objects, mut steps: Vec<Step>, mut why: String) -> (Vec<Step>, String) {
    let mut at = 0;
    while at < steps.len() {
        let mut fewer = steps.clone();
        fewer.remove(at);
        match run(initial, &fewer).await {
            Err(e) => (steps, why) = (fewer, e),
            Ok(()) => at += 1,
        }
    }
    (steps, why)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_machine_is_shown_is_a_prefix_of_one_history_that_extends_what_it_saw() {
    // Guards against histories that are spliced, forked, hidden or rolled back unseen, in ways that
    // nobody thought of.
    let bucket = Arc::new(InMemory::new());
    let bench = Bench::over(bucket.clone()).await;
    drop(bench);
    let initial = objects(&*bucket).await;
    let first = number("SEALFS_SEED", 1);
    for seed in first..first + number("SEALFS_SCHEDULES", SCHEDULES) {
        let steps = schedule(seed);
        if let Err(why) = run(&initial, &steps).await {
            let (steps, why) = shrunk(&initial, steps, why).await;
            panic!("seed {seed}: {why}\n{steps:#?}");
        }
    }
}
