//! `tar -x` of one archive into one directory after the other. It names each entry as it begins
//! with it, so that the entries before are known to be closed.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::{Load, Signals, Span, mix, newest, text};

const DIR: &str = "untar";
const DIRS: u64 = 4;
const FILES: u64 = 9;

/// What the archive holds under a name.
enum Entry {
    Dir,
    File { data: Vec<u8>, mtime: i64 },
    Link(PathBuf),
}

/// How much of an entry is there.
enum Found {
    Whole,
    /// Nothing, or what can be while it is written.
    InPart,
    Wrong,
}

/// One directory that the archive was unpacked into.
struct Tree {
    number: u64,
    /// Before it was made.
    begun: Instant,
    /// When making it returned.
    made: Option<Instant>,
    /// When it was known that the first so many entries are whole.
    whole: Vec<Instant>,
}

pub struct Untar {
    archive: tempfile::TempDir,
    entries: Vec<(PathBuf, Entry)>,
    /// The last is the one worked on; never empty.
    trees: Vec<Tree>,
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("tar runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("plain names")
}

impl Untar {
    pub fn new(root: &Path, seed: u64) -> Untar {
        let archive = tempfile::tempdir().expect("a temporary directory");
        let source = archive.path().join("source");
        for d in 0..DIRS {
            let dir = source.join(d.to_string());
            fs::create_dir_all(&dir).expect("makes a directory");
            for f in 0..FILES {
                let n = mix(seed ^ d << 8 ^ f);
                let len = if n.is_multiple_of(5) { 0 } else { n % 40_000 };
                fs::write(dir.join(f.to_string()), text(n, 0, len as usize)).expect("writes");
            }
            std::os::unix::fs::symlink("0", dir.join("link")).expect("links");
            fs::hard_link(dir.join("1"), dir.join("twin")).expect("links");
        }
        let tar = archive.path().join("tar");
        let make = ["--sort=name", "--format=posix", "-C"];
        run(Command::new("tar").args(make).arg(&source).arg("-cf").arg(&tar).arg("."));
        let names = run(Command::new("tar").arg("-tf").arg(&tar));
        let entry = |name: &str| {
            let path = source.join(name);
            let meta = fs::symlink_metadata(&path).expect("it was archived");
            let entry = match meta.file_type() {
                kind if kind.is_dir() => Entry::Dir,
                kind if kind.is_symlink() => Entry::Link(fs::read_link(&path).expect("a link")),
                _ => Entry::File { data: fs::read(&path).expect("reads"), mtime: meta.mtime() },
            };
            (PathBuf::from(name), entry)
        };
        let entries: Vec<_> = names.lines().map(entry).collect();
        assert_eq!(entries.len() as u64, 1 + DIRS * (FILES + 3));
        fs::create_dir(root.join(DIR)).expect("makes a directory");
        let mut untar = Untar { archive, entries, trees: Vec::new() };
        untar.unpack(root).expect("the mount works");
        assert_eq!(untar.trees[0].whole.len(), untar.entries.len());
        untar
    }

    fn tree(root: &Path, number: u64) -> PathBuf {
        root.join(DIR).join(number.to_string())
    }

    /// Unpacks into a new directory, then removes the older ones.
    fn unpack(&mut self, root: &Path) -> io::Result<()> {
        let number = self.trees.last().map_or(0, |tree| tree.number + 1);
        let dir = Untar::tree(root, number);
        self.trees.push(Tree { number, begun: Instant::now(), made: None, whole: Vec::new() });
        let tree = self.trees.last_mut().expect("just pushed");
        fs::create_dir(&dir)?;
        tree.made = Some(Instant::now());
        // One pipe for names and complaints, which keeps their order.
        let (reader, writer) = io::pipe()?;
        let mut tar = Command::new("tar");
        tar.arg("-xvf").arg(self.archive.path().join("tar")).arg("-C").arg(&dir);
        tar.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = tar.spawn()?;
        drop(tar); // it holds the other end of the pipe
        let mut complaint = None;
        let mut begun = 0;
        for line in BufReader::new(reader).lines() {
            let line = line?;
            if complaint.is_some() || line.starts_with("tar: ") {
                complaint.get_or_insert(line);
                continue;
            }
            assert_eq!(Path::new(&line), self.entries[begun].0, "tar works in order");
            begun += 1;
            if begun > 1 {
                tree.whole.push(Instant::now());
            }
        }
        let status = child.wait()?;
        if let Some(complaint) = complaint {
            return Err(io::Error::other(complaint));
        }
        if !status.success() {
            return Err(io::Error::other(format!("tar: {status}")));
        }
        tree.whole.push(Instant::now());
        for old in fs::read_dir(root.join(DIR))? {
            let old = old?.path();
            if old != dir {
                fs::remove_dir_all(old)?;
            }
        }
        Ok(())
    }

    fn look(path: &Path, entry: &Entry) -> io::Result<Found> {
        let meta = match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::InPart),
            meta => meta?,
        };
        let is = |whole: bool| if whole { Found::Whole } else { Found::Wrong };
        match entry {
            Entry::Dir => Ok(is(meta.is_dir())),
            Entry::Link(target) => Ok(is(meta.is_symlink() && fs::read_link(path)? == *target)),
            Entry::File { .. } if !meta.is_file() => Ok(Found::Wrong),
            Entry::File { data, mtime } => {
                let found = fs::read(path)?;
                if found == *data && meta.mtime() == *mtime {
                    return Ok(Found::Whole);
                }
                let partly = found.iter().zip(data).all(|(a, b)| a == b || *a == 0);
                Ok(if partly && found.len() <= data.len() { Found::InPart } else { Found::Wrong })
            }
        }
    }

    /// The newest directory that is there, and how many entries of it are whole; after them comes
    /// at most one in part.
    fn newest(&self, root: &Path) -> Result<(u64, usize), String> {
        let newest = newest(&root.join(DIR), "").map_err(|e| format!("the newest: {e}"))?;
        let dir = Untar::tree(root, newest);
        let mut whole = 0;
        for (n, (name, entry)) in self.entries.iter().enumerate() {
            let path = dir.join(name);
            match Untar::look(&path, entry).map_err(|e| format!("{}: {e}", path.display()))? {
                Found::Whole if whole == n => whole += 1,
                Found::InPart if n == whole || !path.exists() => {}
                _ => return Err(format!("{whole} are whole, but {} is there", path.display())),
            }
        }
        Ok((newest, whole))
    }
}

impl Load for Untar {
    fn name(&self) -> &'static str {
        DIR
    }

    fn run(&mut self, root: &Path, signals: &Signals) -> Result<(), String> {
        while !signals.stopped() {
            if let Err(e) = self.unpack(root) {
                return signals.excuse("untar", e);
            }
        }
        Ok(())
    }

    fn settle(&mut self, root: &Path) -> Result<(), String> {
        let (number, whole) = self.newest(root)?;
        let last = self.trees.last_mut().expect("never empty");
        if number == last.number {
            last.made.get_or_insert(Instant::now()); // its answer may have been lost
        } else {
            if last.made.is_some() || number + 1 != last.number {
                return Err(format!("the newest directory is {number}, not {}", last.number));
            }
            self.trees.pop();
        }
        let known = self.trees.last().expect("the one before").whole.len();
        if whole < known || whole > known + 1 {
            return Err(format!("{number}: {whole} entries are whole, {known} are promised"));
        }
        Ok(())
    }

    fn find(&self, root: &Path) -> Result<Vec<Span>, String> {
        let (number, whole) = self.newest(root)?;
        let at = self.trees.iter().position(|tree| tree.number == number);
        let at = at.ok_or(format!("directory {number} is older than can be"))?;
        let (tree, next) = (&self.trees[at], self.trees.get(at + 1));
        let ended = tree.whole.get(whole).copied().or(next.and_then(|next| next.made));
        Ok(vec![Span { from: tree.begun, to: ended }])
    }

    fn forget_before(&mut self, at: Instant) {
        let past = |tree: &Tree| tree.made.is_some_and(|made| made < at);
        let newer = self.trees.iter().rposition(past).unwrap_or(0);
        self.trees.drain(..newer);
    }
}
