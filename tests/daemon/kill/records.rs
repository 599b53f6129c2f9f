//! Records appended to a log, each synced before the next; the log starts again when it is long.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Load, Signals, Span, close, mix, newest, text};

const DIR: &str = "records";
/// Then the next file begins.
const LONG: u64 = 1 << 20;

/// The log as it is after a record.
#[derive(Clone, Copy, Debug)]
struct Mark {
    file: u64,
    len: u64,
    issued: Instant,
    /// When its sync returned.
    returned: Option<Instant>,
}

pub struct Records {
    seed: u64,
    marks: Vec<Mark>,
    count: u64,
}

impl Records {
    pub fn new(root: &Path, seed: u64) -> Records {
        fs::create_dir(root.join(DIR)).expect("makes a directory");
        let now = Instant::now();
        let first = Mark { file: 0, len: 0, issued: now, returned: Some(now) };
        File::create(Records::path(root, 0)).expect("creates");
        Records { seed, marks: vec![first], count: 0 }
    }

    fn path(root: &Path, file: u64) -> PathBuf {
        root.join(DIR).join(format!("log-{file}"))
    }

    fn text(&self, file: u64, from: u64, to: u64) -> Vec<u8> {
        text(self.seed ^ file << 40, from, (to - from) as usize)
    }

    fn append(&mut self, root: &Path, open: &mut Option<File>) -> io::Result<()> {
        let last = *self.marks.last().expect("never empty");
        self.count += 1;
        let size = match mix(self.seed ^ self.count) % 20 {
            0 => 9000,
            n => 1 + n * 37,
        };
        let (file, from) = match last.len > LONG {
            true => (last.file + 1, 0),
            false => (last.file, last.len),
        };
        let record = self.text(file, from, from + size);
        let mark = Mark { file, len: from + size, issued: Instant::now(), returned: None };
        self.marks.push(mark);
        if from == 0 {
            *open = None;
        }
        let mut log = match open.take() {
            Some(log) => log,
            None => OpenOptions::new().append(true).create(true).open(Records::path(root, file))?,
        };
        log.write_all(&record)?;
        match self.count % 3 {
            0 => log.sync_all()?,
            1 => log.sync_data()?,
            _ => {
                close(log)?; // kill -9 may not take what was closed
                return self.returned(root);
            }
        }
        *open = Some(log);
        self.returned(root)
    }

    fn returned(&mut self, root: &Path) -> io::Result<()> {
        let n = self.marks.len();
        self.marks[n - 1].returned = Some(Instant::now());
        match self.marks[n - 1].file != self.marks[n - 2].file {
            true => fs::remove_file(Records::path(root, self.marks[n - 2].file)),
            false => Ok(()),
        }
    }

    /// The newest file that is there, and what is in it.
    fn look(&self, root: &Path) -> io::Result<(u64, Vec<u8>)> {
        let newest = newest(&root.join(DIR), "log-")?;
        Ok((newest, fs::read(Records::path(root, newest))?))
    }

    /// How much of `data` is exactly the text, and whether the rest is text or zeros.
    fn judge(&self, file: u64, data: &[u8]) -> (u64, bool) {
        let text = self.text(file, 0, data.len() as u64);
        let good = data.iter().zip(&text).take_while(|(a, b)| a == b).count();
        let torn = data.iter().zip(&text).skip(good).all(|(a, b)| a == b || *a == 0);
        (good as u64, torn)
    }
}

impl Load for Records {
    fn name(&self) -> &'static str {
        DIR
    }

    fn run(&mut self, root: &Path, signals: &Signals) -> Result<(), String> {
        let mut open = None;
        while !signals.stopped() {
            if let Err(e) = self.append(root, &mut open) {
                return signals.excuse("records", e);
            }
        }
        Ok(())
    }

    fn settle(&mut self, root: &Path) -> Result<(), String> {
        let (file, data) = self.look(root).map_err(|e| format!("reading: {e}"))?;
        let (good, torn) = self.judge(file, &data);
        let last = *self.marks.last().expect("never empty");
        let promised = match last.returned {
            Some(_) => last,
            None => self.marks[self.marks.len() - 2],
        };
        let len = data.len() as u64;
        let short = (file, good) < (promised.file, promised.len);
        if short || !torn || (file, len) > (last.file, last.len) {
            return Err(format!("log {file}: {good} good of {len} bytes, promised {promised:?}"));
        }
        if last.returned.is_none() {
            // Again, as a whole, so that the log stays what it should be.
            let from = if promised.file == last.file { promised.len } else { 0 };
            let record = self.text(last.file, from, last.len);
            let again = || -> io::Result<()> {
                let path = Records::path(root, last.file);
                let log = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
                log.write_all_at(&record, from)?;
                log.sync_all()?;
                close(log)
            };
            again().and_then(|()| self.returned(root)).map_err(|e| format!("again: {e}"))?;
        }
        for old in 0..last.file {
            let _ = fs::remove_file(Records::path(root, old)); // a crash may have come before
        }
        Ok(())
    }

    fn find(&self, root: &Path) -> Result<Vec<Span>, String> {
        let (file, data) = self.look(root).map_err(|e| format!("reading: {e}"))?;
        let (good, torn) = self.judge(file, &data);
        let len = data.len() as u64;
        let after = self.marks.partition_point(|m| (m.file, m.len) <= (file, good));
        let Some(at) = after.checked_sub(1) else {
            return Err(format!("log {file} is older than can be: {good} good of {len} bytes"));
        };
        let (mark, next) = (self.marks[at], self.marks.get(after));
        let exact = (mark.file, mark.len) == (file, len);
        // More than the mark, but less than all of the next record: that was being written.
        let partly = torn && next.is_some_and(|next| (file, len) <= (next.file, next.len));
        match (exact, partly) {
            (true, _) => {
                Ok(vec![Span { from: mark.issued, to: next.and_then(|next| next.returned) }])
            }
            (false, true) => next
                .map(|next| vec![Span { from: next.issued, to: next.returned }])
                .ok_or_else(|| "unreachable".into()),
            _ => Err(format!("log {file}: {good} good of {len} bytes, near {mark:?} {next:?}")),
        }
    }

    fn forget_before(&mut self, at: Instant) {
        let n = self.marks.partition_point(|m| m.returned.is_some_and(|r| r < at));
        self.marks.drain(..n.saturating_sub(1));
    }
}
