//! Overwriting in the middle of a larger file: every word holds the number of the write that put
//! it there; a sync ends a group of writes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Load, Signals, Span, close};

const WORDS: usize = 2 << 20 >> 3;

/// Write number `n` puts `n` into `len` words from `at`.
#[derive(Clone, Copy, Debug)]
struct Put {
    n: u64,
    at: usize,
    len: usize,
}

/// Writes up to a sync.
#[derive(Debug)]
struct Group {
    puts: Vec<Put>,
    issued: Instant,
    returned: Option<Instant>,
}

pub struct Ranges {
    rng: StdRng,
    /// The file before the first group.
    base: Vec<u64>,
    groups: Vec<Group>,
    count: u64,
}

fn apply(image: &mut [u64], group: &Group) {
    for put in &group.puts {
        image[put.at..put.at + put.len].fill(put.n);
    }
}

fn is_of(group: &Group, at: usize, word: u64) -> bool {
    group.puts.iter().any(|p| p.n == word && (p.at..p.at + p.len).contains(&at))
}

impl Ranges {
    pub fn new(root: &Path, seed: u64) -> Ranges {
        fs::write(Ranges::path(root), vec![0; WORDS * 8]).expect("writes");
        let rng = StdRng::seed_from_u64(seed);
        Ranges { rng, base: vec![0; WORDS], groups: Vec::new(), count: 0 }
    }

    fn path(root: &Path) -> PathBuf {
        root.join("ranges")
    }

    fn write(file: &File, put: Put) -> io::Result<()> {
        file.write_all_at(&put.n.to_le_bytes().repeat(put.len), put.at as u64 * 8)
    }

    fn group(&mut self, root: &Path, open: &mut Option<File>) -> io::Result<()> {
        let file = match open.take() {
            Some(file) => file,
            None => OpenOptions::new().write(true).open(Ranges::path(root))?,
        };
        let group = Group { puts: Vec::new(), issued: Instant::now(), returned: None };
        self.groups.push(group);
        let current = self.groups.len() - 1;
        for _ in 0..self.rng.random_range(1..6) {
            self.count += 1;
            let len = match self.rng.random_range(0..8) {
                0 => self.rng.random_range(1..20_000),
                _ => self.rng.random_range(1..1500),
            };
            let put = Put { n: self.count, at: self.rng.random_range(0..WORDS - len), len };
            self.groups[current].puts.push(put);
            Ranges::write(&file, put)?;
        }
        match self.rng.random_bool(0.5) {
            true => close(file)?,
            false => {
                file.sync_data()?;
                *open = Some(file);
            }
        }
        self.groups[current].returned = Some(Instant::now());
        Ok(())
    }

    fn look(&self, root: &Path) -> Result<Vec<u64>, String> {
        let data = fs::read(Ranges::path(root)).map_err(|e| format!("reading: {e}"))?;
        if data.len() != WORDS * 8 {
            return Err(format!("{} bytes", data.len()));
        }
        let words = data.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight")));
        Ok(words.collect())
    }

    /// Whether `seen` is `image` with some of `open` in it.
    fn compare(&self, seen: &[u64], image: &[u64], open: Option<&Group>) -> Result<(), String> {
        let is_wrong =
            |&i: &usize| seen[i] != image[i] && !open.is_some_and(|g| is_of(g, i, seen[i]));
        let wrong: Vec<usize> = (0..WORDS).filter(is_wrong).collect();
        let (Some(&first), Some(&last)) = (wrong.first(), wrong.last()) else { return Ok(()) };
        let of = |n: u64| {
            let mut puts = self.groups.iter().flat_map(|g| &g.puts);
            (
                puts.find(|p| p.n == n),
                self.groups.iter().position(|g| g.puts.iter().any(|p| p.n == n)),
            )
        };
        Err(format!(
            "{} words wrong from {first} to {last}: the first is of {} {:?}, must be of {} {:?}; {} groups, in \
             flight {open:?}",
            wrong.len(),
            seen[first],
            of(seen[first]),
            image[first],
            of(image[first]),
            self.groups.len(),
        ))
    }
}

impl Load for Ranges {
    fn name(&self) -> &'static str {
        "ranges"
    }

    fn run(&mut self, root: &Path, signals: &Signals) -> Result<(), String> {
        let mut open = None;
        while !signals.stopped() {
            if let Err(e) = self.group(root, &mut open) {
                return signals.excuse("ranges", e);
            }
        }
        Ok(())
    }

    fn settle(&mut self, root: &Path) -> Result<(), String> {
        self.groups.retain(|g| !g.puts.is_empty()); // none was issued
        let seen = self.look(root)?;
        let mut image = self.base.clone();
        self.groups.iter().filter(|g| g.returned.is_some()).for_each(|g| apply(&mut image, g));
        let open = self.groups.last().filter(|g| g.returned.is_none());
        if let Err(e) = self.compare(&seen, &image, open) {
            // Whether it is only what this mount shows, or what is there.
            let again = self.compare(&self.look(root)?, &image, open);
            return Err(format!("{e}; read again: {again:?}"));
        }
        if let Some(group) = open {
            // Again, as a whole, so that the file stays what it should be.
            let again = || -> io::Result<()> {
                let file = OpenOptions::new().write(true).open(Ranges::path(root))?;
                group.puts.iter().try_for_each(|put| Ranges::write(&file, *put))?;
                file.sync_all()?;
                close(file)
            };
            again().map_err(|e| format!("again: {e}"))?;
            let last = self.groups.len() - 1;
            self.groups[last].returned = Some(Instant::now());
        }
        Ok(())
    }

    fn find(&self, root: &Path) -> Result<Vec<Span>, String> {
        let seen = self.look(root)?;
        let newest = seen.iter().copied().max().unwrap_or(0);
        let number = |g: &Group| g.puts.first().map_or(u64::MAX, |p| p.n);
        let after = self.groups.partition_point(|g| number(g) <= newest);
        let mut image = self.base.clone();
        let before = after.saturating_sub(1);
        self.groups[..before].iter().for_each(|g| apply(&mut image, g));
        let last = self.groups[..after].last();
        self.compare(&seen, &image, last)?;
        let from = last.map_or_else(|| self.groups.first().map(|g| g.issued), |g| Some(g.issued));
        let Some(from) = from else { return Ok(vec![Span { from: Instant::now(), to: None }]) };
        let from = if last.is_none() { from - std::time::Duration::from_secs(3600) } else { from };
        // All of it may have been there until the next group was through, a part not so long.
        if let Some(group) = last {
            apply(&mut image, group);
        }
        let to = match seen == image {
            true => self.groups.get(after).and_then(|g| g.returned),
            false => last.and_then(|g| g.returned),
        };
        Ok(vec![Span { from, to }])
    }

    fn forget_before(&mut self, at: Instant) {
        let n = self.groups.partition_point(|g| g.returned.is_some_and(|r| r < at));
        // The newest of them may be what is there.
        for group in self.groups.drain(..n.saturating_sub(1)) {
            apply(&mut self.base, &group);
        }
    }
}
