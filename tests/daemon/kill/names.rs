//! Names: small files created, replaced by rename, appended to, truncated, exchanged, unlinked;
//! directories made, renamed with what is in them, and removed.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Load, Signals, Span, close, text};

/// What a name stands for.
#[derive(Clone, Debug)]
enum Node {
    Dir,
    /// What is promised, and what was being written over it.
    File(Arc<[u8]>, Option<Arc<[u8]>>),
}

type Tree = BTreeMap<Arc<str>, Node>;
/// What a mount shows; `None` for a directory.
type Seen = BTreeMap<String, Option<Vec<u8>>>;

struct State {
    tree: Tree,
    span: Span,
}

pub struct Names {
    rng: StdRng,
    /// States in order. The last may not have been reached, if `in_flight`.
    history: Vec<State>,
    in_flight: bool,
    counter: u64,
    dir: &'static str,
}

fn file_matches(seen: &[u8], promised: &[u8], coming: Option<&Arc<[u8]>>) -> bool {
    let Some(coming) = coming else { return seen == promised };
    let longest = promised.len().max(coming.len());
    (promised.len()..=longest).contains(&seen.len())
        && seen.iter().enumerate().all(|(i, b)| {
            coming.get(i) == Some(b) || promised.get(i).map_or(*b == 0, |old| old == b)
        })
}

/// The first thing in which they differ, if any.
fn difference(tree: &Tree, seen: &Seen) -> Option<String> {
    if let Some(name) = seen.keys().find(|name| !tree.contains_key(name.as_str())) {
        return Some(format!("{name} is there and should not be"));
    }
    tree.iter().find_map(|(name, node)| match (node, seen.get(&**name)) {
        (_, None) => Some(format!("{name} is missing")),
        (Node::Dir, Some(None)) => None,
        (Node::File(promised, coming), Some(Some(data))) => {
            (!file_matches(data, promised, coming.as_ref())).then(|| {
                let (want, got) = (promised.len(), data.len());
                let at = promised.iter().zip(data).position(|(a, b)| a != b);
                let unsettled = coming.is_some();
                format!("{name}: {got} bytes for {want}, unlike at {at:?}, unsettled {unsettled}")
            })
        }
        _ => Some(format!("{name} is of another kind")),
    })
}

fn look(root: &Path) -> io::Result<Seen> {
    let mut seen = Seen::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.file_type()?.is_dir() {
            seen.insert(name, Some(fs::read(entry.path())?));
            continue;
        }
        for inner in fs::read_dir(entry.path())? {
            let inner = inner?;
            let inner_name = format!("{name}/{}", inner.file_name().to_string_lossy());
            seen.insert(inner_name, Some(fs::read(inner.path())?));
        }
        seen.insert(name, None);
    }
    Ok(seen)
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let c = |p: &Path| CString::new(p.as_os_str().as_bytes()).expect("no zero byte");
    let (a, b) = (c(a), c(b));
    let at = libc::AT_FDCWD;
    // SAFETY: both are C strings that live through the call.
    match unsafe { libc::renameat2(at, a.as_ptr(), at, b.as_ptr(), libc::RENAME_EXCHANGE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Names {
    /// Makes its directory.
    pub fn new(root: &Path, dir: &'static str, seed: u64) -> Names {
        fs::create_dir(root.join(dir)).expect("makes a directory");
        let span = Span { from: Instant::now(), to: None };
        Names {
            rng: StdRng::seed_from_u64(seed),
            history: vec![State { tree: Tree::new(), span }],
            in_flight: false,
            counter: seed << 20,
            dir,
        }
    }

    fn tree(&self) -> &Tree {
        &self.history.last().expect("never empty").tree
    }

    /// One system call, which leads from the current tree to `next`.
    fn step<T>(&mut self, next: Tree, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let span = Span { from: Instant::now(), to: None };
        self.history.push(State { tree: next, span });
        self.in_flight = true;
        let result = call()?;
        self.in_flight = false;
        let before = self.history.len() - 2;
        self.history[before].span.to = Some(Instant::now());
        Ok(result)
    }

    fn with(&self, name: &Arc<str>, node: Node) -> Tree {
        let mut tree = self.tree().clone();
        tree.insert(name.clone(), node);
        tree
    }

    fn pick(&mut self, fits: impl Fn(&str, &Node) -> bool) -> Option<Arc<str>> {
        let names: Vec<_> =
            self.tree().iter().filter(|(n, node)| fits(n, node)).map(|(n, _)| n.clone()).collect();
        match names.len() {
            0 => None,
            n => Some(names[self.rng.random_range(0..n)].clone()),
        }
    }

    fn pick_file(&mut self) -> Option<Arc<str>> {
        self.pick(|_, node| matches!(node, Node::File(..)))
    }

    /// A name for a file, taken or not.
    fn new_name(&mut self) -> Arc<str> {
        let name = format!("f{}", self.rng.random_range(0..9));
        let dir = match self.rng.random_bool(0.5) {
            true => self.pick(|_, node| matches!(node, Node::Dir)),
            false => None,
        };
        dir.map_or(name.as_str().into(), |dir| format!("{dir}/{name}").into())
    }

    /// Fills the empty file `name`, or adds to it.
    fn fill(&mut self, name: &Arc<str>, mut file: File, old: Arc<[u8]>) -> io::Result<()> {
        self.counter += 1;
        let len = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(1..200_000),
            _ => self.rng.random_range(1..6000),
        };
        let new = text(self.counter, 0, len);
        let all: Arc<[u8]> = [&old[..], &new].concat().into();
        let tree = self.with(name, Node::File(old, Some(all.clone())));
        self.step(tree, || file.write_all(&new))?;
        let tree = self.with(name, Node::File(all, None));
        if self.rng.random_bool(0.3) {
            self.step(tree.clone(), || file.sync_all())?;
        }
        self.step(tree, || close(file))
    }

    fn create(&mut self, root: &Path, name: &Arc<str>) -> io::Result<()> {
        let empty = Node::File(Arc::from([]), None);
        let tree = self.with(name, empty);
        let file = self.step(tree, || File::create(root.join(&**name)))?;
        self.fill(name, file, Arc::from([]))
    }

    fn rename(&mut self, root: &Path, from: &Arc<str>, to: &Arc<str>) -> io::Result<()> {
        let mut tree = self.tree().clone();
        let node = tree.remove(from).expect("picked from it");
        tree.insert(to.clone(), node);
        self.step(tree, || fs::rename(root.join(&**from), root.join(&**to)))
    }

    fn rename_dir(&mut self, root: &Path, from: &str, to: &str) -> io::Result<()> {
        let moved = |name: &str| match name.strip_prefix(from) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{to}{rest}").into(),
            _ => name.into(),
        };
        let tree = self.tree().iter().map(|(n, node)| (moved(n), node.clone())).collect();
        self.step(tree, || fs::rename(root.join(from), root.join(to)))
    }

    fn operation(&mut self, root: &Path) -> io::Result<()> {
        match self.rng.random_range(0..100) {
            0..40 => {
                let to = self.new_name();
                let temporary: Arc<str> = format!("t{}", self.counter).into();
                self.create(root, &temporary)?;
                self.rename(root, &temporary, &to)
            }
            40..55 => {
                let name = self.new_name();
                self.create(root, &name)
            }
            55..65 => {
                let Some(name) = self.pick_file() else { return Ok(()) };
                let Node::File(old, _) = self.tree()[&name].clone() else { return Ok(()) };
                let file = OpenOptions::new().append(true).open(root.join(&*name))?;
                self.fill(&name, file, old)
            }
            65..70 => {
                let Some(name) = self.pick_file() else { return Ok(()) };
                let Node::File(old, _) = self.tree()[&name].clone() else { return Ok(()) };
                let file = OpenOptions::new().write(true).open(root.join(&*name))?;
                let len = self.rng.random_range(0..=old.len());
                let tree = self.with(&name, Node::File(old[..len].into(), None));
                self.step(tree, || file.set_len(len as u64))?;
                close(file)
            }
            70..82 => {
                let Some(name) = self.pick_file() else { return Ok(()) };
                let mut tree = self.tree().clone();
                tree.remove(&name);
                self.step(tree, || fs::remove_file(root.join(&*name)))
            }
            82..88 => {
                let (Some(from), to) = (self.pick_file(), self.new_name()) else { return Ok(()) };
                if from == to { Ok(()) } else { self.rename(root, &from, &to) }
            }
            88..91 => {
                let (Some(a), Some(b)) = (self.pick_file(), self.pick_file()) else {
                    return Ok(());
                };
                let (x, y) = (self.tree()[&a].clone(), self.tree()[&b].clone());
                let mut tree = self.with(&a, y);
                tree.insert(b.clone(), x);
                self.step(tree, || exchange(&root.join(&*a), &root.join(&*b)))
            }
            91..95 => {
                let name: Arc<str> = format!("d{}", self.rng.random_range(0..4)).into();
                if self.tree().contains_key(&name) {
                    return Ok(());
                }
                let tree = self.with(&name, Node::Dir);
                self.step(tree, || fs::create_dir(root.join(&*name)))
            }
            95..98 => {
                let from = self.pick(|_, node| matches!(node, Node::Dir));
                let to = format!("d{}", self.rng.random_range(0..4));
                match from {
                    Some(from) if !self.tree().contains_key(to.as_str()) => {
                        self.rename_dir(root, &from, &to)
                    }
                    _ => Ok(()),
                }
            }
            _ => {
                let Some(name) = self.pick(|_, node| matches!(node, Node::Dir)) else {
                    return Ok(());
                };
                let inside = format!("{name}/");
                let mut tree = self.tree().clone();
                tree.remove(&name);
                if tree.keys().any(|n| n.starts_with(&inside)) {
                    return Ok(());
                }
                self.step(tree, || fs::remove_dir(root.join(&*name)))
            }
        }
    }
}

impl Load for Names {
    fn name(&self) -> &'static str {
        self.dir
    }

    fn run(&mut self, root: &Path, signals: &Signals) -> Result<(), String> {
        let root = root.join(self.dir);
        while !signals.stopped() {
            if let Err(e) = self.operation(&root) {
                return signals.excuse("names", e);
            }
        }
        Ok(())
    }

    fn settle(&mut self, root: &Path) -> Result<(), String> {
        let seen = look(&root.join(self.dir)).map_err(|e| format!("reading: {e}"))?;
        let mut differences = Vec::new();
        let candidates = if self.in_flight { 2 } else { 1 };
        for back in 1..=candidates {
            let index = self.history.len() - back;
            match difference(&self.history[index].tree, &seen) {
                Some(difference) => differences.push(difference),
                None => {
                    self.history.truncate(index + 1);
                    differences.clear();
                    break;
                }
            }
        }
        if !differences.is_empty() {
            return Err(differences.join("; or "));
        }
        self.in_flight = false;
        // From now on what is there is promised.
        let now = Instant::now();
        let tree = seen.into_iter().map(|(name, data)| {
            (name.into(), data.map_or(Node::Dir, |data| Node::File(data.into(), None)))
        });
        let tree = tree.collect();
        for state in &mut self.history {
            state.span.to.get_or_insert(now);
        }
        self.history.push(State { tree, span: Span { from: now, to: None } });
        Ok(())
    }

    fn find(&self, root: &Path) -> Result<Vec<Span>, String> {
        let seen = look(&root.join(self.dir)).map_err(|e| format!("reading: {e}"))?;
        let found = |state: &&State| difference(&state.tree, &seen).is_none();
        let spans: Vec<_> = self.history.iter().filter(found).map(|state| state.span).collect();
        match spans.is_empty() {
            true => Err(format!("never looked like this: {:?}", seen.keys())),
            false => Ok(spans),
        }
    }

    fn forget_before(&mut self, at: Instant) {
        self.history.retain(|state| state.span.to.is_none_or(|to| to >= at));
    }
}
