//! What a command prints, and what becomes of it when nobody reads on or the disk is full.
//!
//! The `print!` family of std panics then. These macros go by the same names, so that all of `cli/`
//! uses them: what could not be written to standard output is told once, by [`end`], which `main`
//! calls last. A command is never cut short half way because of it. Standard error is for people:
//! where nobody reads it, nothing is lost.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use parking_lot::Mutex;
use serde::Serialize;

use crate::base::plain_json;

use super::exit::{Exit, Failure, Outcome};

/// Why standard output takes no more, once it did not.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

macro_rules! print {
    ($($part:tt)*) => { $crate::cli::out::standard(format_args!($($part)*)) };
}

macro_rules! println {
    ($($part:tt)*) => {
        $crate::cli::out::standard(format_args!("{}\n", format_args!($($part)*)))
    };
}

macro_rules! eprint {
    ($($part:tt)*) => { $crate::cli::out::error(format_args!($($part)*)) };
}

macro_rules! eprintln {
    ($($part:tt)*) => {
        $crate::cli::out::error(format_args!("{}\n", format_args!($($part)*)))
    };
}

/// Prints to standard output, unless that has failed before.
pub fn standard(text: Arguments) {
    let fine = FAILED.lock().is_none();
    if fine {
        keep(io::stdout().write_fmt(text));
    }
}

/// As [`standard`], of what something else has printed there.
pub fn keep(printed: io::Result<()>) {
    let mut failed = FAILED.lock();
    if failed.is_none() {
        *failed = printed.err();
    }
}

/// Prints to standard error.
pub fn error(text: Arguments) {
    let _ = io::stderr().write_fmt(text); // nobody is left to tell
}

/// Prints `value` as JSON.
///
/// # Errors
/// It has no JSON: a bug of this program.
pub fn print_json(value: &impl Serialize) -> Outcome {
    standard(format_args!("{}\n", json_text(value)?));
    Ok(())
}

fn json_text(value: &impl Serialize) -> Outcome<String> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(Exit::General, format!("cannot print this as JSON: {e}")))?;
    Ok(plain_json(&json))
}

/// Whether everything that was printed is out, for what can be said only once.
///
/// # Errors
/// What standard output said.
pub fn written() -> Outcome {
    let mut failed = FAILED.lock();
    if failed.is_none() {
        *failed = io::stdout().flush().err();
    }
    match &*failed {
        None => Ok(()),
        Some(e) => {
            let what = format!("cannot write to standard output: {e}");
            Err(Failure::new(Exit::General, what))
        }
    }
}

/// The exit status of a command: also of one whose output could not be written. If nobody reads
/// it any more (`sealfs … | head -1`), this ends the process as that ends any other: by SIGPIPE.
pub fn end(outcome: Outcome) -> ExitCode {
    let written = written();
    let is_pipe = matches!(&*FAILED.lock(), Some(e) if e.kind() == ErrorKind::BrokenPipe);
    // A command that asked [`written`] itself has failed of that, which is told once.
    let is_that = |failure: &Failure| matches!(&written, Err(e) if e.message == failure.message);
    let outcome = match outcome {
        Err(failure) if is_that(&failure) => Ok(()),
        outcome => outcome,
    };
    match outcome {
        Ok(()) if is_pipe => {
            // SAFETY: the default handler of a signal is valid, and raise(3) takes any number.
            unsafe {
                libc::signal(libc::SIGPIPE, libc::SIG_DFL);
                libc::raise(libc::SIGPIPE);
            }
            ExitCode::from(Exit::General.code()) // the signal is blocked
        }
        Ok(()) => match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        },
        Err(failure) => {
            if let (Err(e), false) = (&written, is_pipe) {
                e.report();
            }
            failure.report()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_json_cannot_deceive_the_terminal_that_shows_it() {
        // Guards against a label or a path that another writer of the volume chose, which turns
        // the text around where a person reads the JSON.
        let json = json_text(&["a\u{202e}b\u{1b}[2J"]).expect("is JSON");
        assert_eq!(json, "[\n  \"a\\u202eb\\u001b[2J\"\n]");
        let back: Vec<String> = serde_json::from_str(&json).expect("parses");
        assert_eq!(back, ["a\u{202e}b\u{1b}[2J"]);
    }
}
