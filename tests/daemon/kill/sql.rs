//! Transactions of `sqlite3`, one after the other, each acknowledged by a line of its output.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::{Load, Signals, Span};

const DIR: &str = "sql";
/// Rows that the table keeps.
const KEPT: u64 = 50;

pub struct Sql {
    /// Issue and return of transaction n.
    done: Vec<(Instant, Option<Instant>)>,
    wal: bool,
}

fn sqlite(database: &Path, sql: &str) -> Result<String, String> {
    let done = Command::new("sqlite3").arg("-batch").arg("-bail").arg(database).arg(sql).output();
    let done = done.map_err(|e| e.to_string())?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    if !done.status.success() || !stderr.is_empty() {
        return Err(format!("sqlite3: {}: {stderr}", done.status));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

impl Sql {
    /// `None` if there is no `sqlite3` here.
    pub fn new(root: &Path, seed: u64) -> Option<Sql> {
        Command::new("sqlite3").arg("-version").output().ok()?;
        let wal = seed.is_multiple_of(2);
        let mode = if wal { "WAL" } else { "DELETE" };
        fs::create_dir(root.join(DIR)).expect("makes a directory");
        let made = sqlite(
            &root.join(DIR).join("db"),
            &format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE last(n); INSERT INTO last VALUES(0); \
                 CREATE TABLE rows(n INTEGER PRIMARY KEY, filler);"
            ),
        );
        assert_eq!(made.map(|s| s.to_lowercase()), Ok(mode.to_lowercase()));
        let now = Instant::now();
        Some(Sql { done: vec![(now, Some(now))], wal })
    }

    /// The number of the last transaction in the database at `path`, which must be whole.
    fn inspect(&self, path: &Path) -> Result<u64, String> {
        let answer = sqlite(
            path,
            "PRAGMA integrity_check; SELECT n FROM last; \
             SELECT count(*), ifnull(max(n), 0) FROM rows;",
        )?;
        let lines: Vec<&str> = answer.lines().collect();
        let [ok, last, rows] = lines[..] else { return Err(answer) };
        let last: u64 = last.parse().map_err(|_| answer.clone())?;
        match ok == "ok" && rows == format!("{}|{last}", last.min(KEPT)) {
            true => Ok(last),
            false => Err(answer),
        }
    }
}

impl Load for Sql {
    fn name(&self) -> &'static str {
        DIR
    }

    fn run(&mut self, root: &Path, signals: &Signals) -> Result<(), String> {
        let child = Command::new("sqlite3")
            .args(["-batch", "-bail"])
            .arg(root.join(DIR).join("db"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.map_err(|e| e.to_string())?;
        let mut input = child.stdin.take().ok_or("no stdin")?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        let mut begun = writeln!(input, "PRAGMA synchronous=FULL;").is_ok();
        while begun && !signals.stopped() {
            let n = self.done.len() as u64;
            self.done.push((Instant::now(), None));
            let filler = n % 37 * 100;
            begun = writeln!(
                input,
                "BEGIN IMMEDIATE; INSERT INTO rows VALUES({n}, randomblob({filler})); \
                 DELETE FROM rows WHERE n <= {n} - {KEPT}; UPDATE last SET n={n}; COMMIT; \
                 SELECT {n};"
            )
            .is_ok();
            match output.next() {
                Some(Ok(line)) if line == n.to_string() => {
                    self.done[n as usize].1 = Some(Instant::now());
                }
                _ => begun = false,
            }
        }
        drop(input);
        if !signals.stopped() {
            let _ = child.kill(); // it has seen an error, or has ended
        }
        let done = child.wait_with_output().map_err(|e| e.to_string())?;
        match begun {
            true => Ok(()),
            false => {
                let text = String::from_utf8_lossy(&done.stderr).into_owned();
                signals.excuse("sqlite3", std::io::Error::other(text))
            }
        }
    }

    fn settle(&mut self, root: &Path) -> Result<(), String> {
        let mode = if self.wal { "WAL" } else { "DELETE" };
        let last = self.inspect(&root.join(DIR).join("db")).map_err(|e| format!("{mode}: {e}"))?;
        let issued = self.done.len() as u64 - 1;
        let promised = match self.done[issued as usize].1 {
            Some(_) => issued,
            None => issued - 1,
        };
        if last < promised || last > issued {
            return Err(format!("{mode}: transaction {last} of {promised} to {issued}"));
        }
        self.done.truncate(last as usize + 1);
        self.done[last as usize].1.get_or_insert(Instant::now());
        Ok(())
    }

    fn find(&self, root: &Path) -> Result<Vec<Span>, String> {
        // In a copy: a read-only mount has no place for the log of a recovery.
        let copy = tempfile::tempdir().map_err(|e| e.to_string())?;
        for entry in fs::read_dir(root.join(DIR)).map_err(|e| e.to_string())? {
            let entry = entry.map_err(|e| e.to_string())?;
            if entry.file_name() != "db-shm" {
                let to = copy.path().join(entry.file_name());
                fs::copy(entry.path(), to).map_err(|e| format!("{:?}: {e}", entry.path()))?;
            }
        }
        let last = self.inspect(&copy.path().join("db"))? as usize;
        let Some((from, _)) = self.done.get(last) else {
            return Err(format!("transaction {last} of {}", self.done.len() - 1));
        };
        Ok(vec![Span { from: *from, to: self.done.get(last + 1).and_then(|(_, to)| *to) }])
    }

    fn forget_before(&mut self, _: Instant) {}
}
