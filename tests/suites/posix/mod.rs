//! The rules by family, and the processes that try them.

mod access;
mod compare;
mod contents;
mod handles;
mod listing;
mod locks;
mod names;
mod remount;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::mounts::Holder;

/// A Python process that runs `script` line by line as it is told, and answers each in a line.
pub struct Process {
    child: Holder,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

const LOOP: &str = r"
import errno, fcntl, mmap, os, signal, struct, sys
def attempt(f):
    try:
        return f()
    except OSError as e:
        return errno.errorcode[e.errno]
for line in sys.stdin:
    try:
        print(attempt(lambda: eval(line)), flush=True)
    except Exception as e:
        print(repr(e), flush=True)
";

impl Process {
    /// Starts one in `dir`.
    pub fn new(dir: &Path) -> Process {
        let mut child = Command::new("python3")
            .args(["-c", LOOP])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs (scripts/test installs it)");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Process { child: Holder(child), input, output }
    }

    /// Has it evaluate `expression`, and does not wait for the answer.
    pub fn tell(&mut self, expression: &str) {
        writeln!(self.input, "{expression}").expect("it reads");
    }

    /// The answer to the oldest unanswered expression: its value, or the name of its errno.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        line.trim_end().to_owned()
    }

    /// [`Process::tell`] and [`Process::answer`].
    pub fn ask(&mut self, expression: &str) -> String {
        self.tell(expression);
        self.answer()
    }

    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Kills it as `kill -9` does.
    pub fn kill(mut self) {
        let child: &mut Child = &mut self.child.0;
        child.kill().expect("it lives");
        child.wait().expect("it ended");
    }
}

/// A shell script in `dir` as root: its output, or what it said as it failed.
pub fn sh(dir: &Path, script: &str) -> Result<String, String> {
    shell(Command::new("sh"), dir, script)
}

/// A shell script as another user, with these supplementary groups (comma separated, or none).
pub fn sh_as(user: u32, groups: &str, dir: &Path, script: &str) -> Result<String, String> {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={user}")]);
    match groups {
        "" => command.arg("--clear-groups"),
        some => command.args(["--groups", some]),
    };
    command.arg("sh");
    shell(command, dir, script)
}

fn shell(mut command: Command, dir: &Path, script: &str) -> Result<String, String> {
    let output = command
        .args(["-ec", script])
        .current_dir(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .expect("the shell runs");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()),
    }
}
