//! `--passphrase-command`: a passphrase out of a program, such as a password manager.
//!
//! The program is started directly, with the words of the flag as its arguments: no shell sees them.
//! Its standard error and terminal are this process's, so that it can ask. Called while the process
//! has one thread.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::exit::{Exit, Failure, Outcome};

/// How long it may take, with whoever unlocks the password manager.
const COMMAND_MAX: Duration = Duration::from_secs(120);
/// Bytes that it may print in all; only the first line counts.
const OUTPUT_MAX: usize = 1 << 20;
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Runs `command` and returns the first `bytes_max` bytes of what it prints.
pub fn output(command: &str, bytes_max: usize) -> Outcome<Zeroizing<Vec<u8>>> {
    within(command, bytes_max, COMMAND_MAX)
}

fn within(command: &str, bytes_max: usize, limit: Duration) -> Outcome<Zeroizing<Vec<u8>>> {
    let words = words(command).map_err(|why| {
        Failure::new(Exit::Usage, format!("--passphrase-command: {why}"))
            .hint("a program and its arguments, quoted as in a shell: 'pass show \"my volume\"'")
    })?;
    let Some((program, args)) = words.split_first() else {
        return Err(Failure::new(Exit::Usage, "--passphrase-command is empty"));
    };
    let failed = |e: io::Error| {
        Failure::new(Exit::General, format!("cannot run the passphrase command {program}: {e}")).hint(
            "it is started without a shell; where one is needed: --passphrase-command \"sh -c '…'\"",
        )
    };
    let mut ready = Command::new(program);
    ready.args(args).stdout(Stdio::piped());
    // SAFETY: close_range(2) may be called between fork and exec, and touches no memory.
    unsafe {
        ready.pre_exec(|| {
            // Descriptors that were passed to this process are not the command's: one of them may
            // be another passphrase. A kernel before 5.11 leaves them open.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
    let mut child = ready.spawn().map_err(failed)?;
    let deadline = Instant::now() + limit;
    let stdout = child.stdout.take().expect("it was asked for");
    let printed = read(stdout, bytes_max, deadline);
    let ended = wait(&mut child, deadline, printed.is_err());
    let late = || {
        let what =
            format!("the passphrase command {program} was not done within {} s", limit.as_secs());
        Failure::new(Exit::Secret, what).hint("run it by itself, and see what it waits for")
    };
    match (printed, ended) {
        (Err(e), _) if e.kind() == ErrorKind::TimedOut => Err(late()),
        (Err(e), _) => Err(failed(e)),
        (_, Err(e)) => Err(failed(e)),
        (Ok(_), Ok(None)) => Err(late()),
        (Ok(printed), Ok(Some(status))) if status.success() => Ok(printed),
        (Ok(_), Ok(Some(status))) => {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with status {code}"),
                (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
            };
            let what = format!("the passphrase command {program} {how}");
            Err(Failure::new(Exit::Secret, what).hint("run it by itself, and see what it says"))
        }
    }
}

/// The first `bytes_max` bytes of what is printed until the end of it; the rest is passed over.
fn read(
    mut from: ChildStdout,
    bytes_max: usize,
    deadline: Instant,
) -> io::Result<Zeroizing<Vec<u8>>> {
    // Allocated once, so that growing leaves no copies of it in freed memory.
    let mut kept = Zeroizing::new(Vec::with_capacity(bytes_max));
    let mut part = Zeroizing::new([0u8; 4096]);
    let mut total = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let mut ask = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        match unsafe { libc::poll(&mut ask, 1, wait_ms) } {
            0 => return Err(ErrorKind::TimedOut.into()),
            n if n < 0 => {
                let e = io::Error::last_os_error();
                if e.kind() != ErrorKind::Interrupted {
                    return Err(e);
                }
                continue;
            }
            _ => {}
        }
        let n = from.read(&mut part[..])?;
        if n == 0 {
            return Ok(kept);
        }
        let room = bytes_max - kept.len();
        kept.extend_from_slice(&part[..n.min(room)]);
        total += n;
        if total > OUTPUT_MAX {
            return Err(io::Error::other("it prints without end"));
        }
    }
}

/// Waits for the end; `None`: it was too late, or is `unwanted`, and the process was killed.
fn wait(child: &mut Child, deadline: Instant, unwanted: bool) -> io::Result<Option<ExitStatus>> {
    loop {
        if unwanted {
            break;
        }
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(LOOK);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// The words of a command as a POSIX shell cuts them (quotes and backslashes), without anything
/// that a shell would replace.
fn words(command: &str) -> Result<Vec<String>, &'static str> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("a ' is not closed")? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("a \" is not closed")? {
                        '"' => break,
                        '\\' => match chars.next().ok_or("a \" is not closed")? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => {
                word.get_or_insert_default().push(chars.next().ok_or("it ends in a backslash")?)
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_as_a_shell_does_and_nothing_is_replaced() {
        // Guards against a name with a space that becomes two arguments, and against $(…), ; or *
        // in a flag doing anything.
        let cut = |text: &str| words(text).expect("words");
        assert_eq!(cut("pass show a/b"), ["pass", "show", "a/b"]);
        assert_eq!(cut(r#" cat "my file" 'it''s' a\ b "#), ["cat", "my file", "its", "a b"]);
        assert_eq!(
            cut(r#"echo "\"q\" \n $HOME" '' $(id);*"#)[1..],
            ["\"q\" \\n $HOME", "", "$(id);*"]
        );
        assert_eq!(cut("  "), Vec::<String>::new());
        for bad in ["'a", "\"a", "a\\"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_command_that_fails_hangs_or_never_ends_is_no_passphrase() {
        // Guards against half a passphrase of a command that failed, and a mount that waits for
        // ever.
        let run = |command: &str, limit| within(command, 100, limit);
        let long = Duration::from_secs(60);
        assert_eq!(run("printf 'a b\\nmore'", long).expect("runs").as_slice(), b"a b\nmore");
        let whole = run("head -c 5000 /dev/zero", long).expect("runs");
        assert_eq!(whole.len(), 100);
        let said = |outcome: Outcome<Zeroizing<Vec<u8>>>| outcome.expect_err("fails").message;
        assert!(said(run("sh -c 'echo x; exit 3'", long)).ends_with("ended with status 3"));
        assert!(said(run("sh -c 'kill -9 $$'", long)).ends_with("killed by signal 9"));
        assert!(said(run("/no/such/program x", long)).contains("cannot run"));
        assert!(said(run("yes", long)).contains("without end"));
        let short = Duration::from_millis(300);
        assert!(said(run("sleep 1000", short)).contains("was not done within"));
        assert!(said(run("sh -c 'exec >&-; exec sleep 1000'", short)).contains("was not done"));
    }
}
