//! The exit statuses, and errors for people. The table is an interface: never renumbered.

use std::fmt::Display;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::base::one_line;
use crate::stack::{StackError, StackErrorKind};

/// What the process's exit status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// 1: anything that has no other number.
    General,
    /// 2: the command line makes no sense.
    Usage,
    /// 3: wrong passphrase or key file.
    Secret,
    /// 4: the store cannot be reached, or refuses the credentials.
    Unreachable,
    /// 5: the store cannot hold a volume, holds one already, or holds none.
    Unsuitable,
    /// 6: another mount has the volume, or has taken it over.
    InUse,
    /// 7: damaged, tampered with or rolled back.
    Corrupt,
    /// 8: not everything is in the bucket; it is safe in the local journal.
    Pending,
    /// 9: the directory is not a sealfs mount.
    NotMounted,
    /// 10: the mount is in use.
    Busy,
    /// 11: something was wrong, and all of it was repaired.
    Repaired,
    /// 12: stopped before the end.
    Stopped,
    /// 13: objects are not sealed or encrypted as requested.
    NotAsRequested,
    /// 14: a format or features that this sealfs does not know.
    Format,
    /// 15: some files could not be transferred; the others were.
    Partly,
}

/// The table as `--help` shows it.
pub const TABLE: &str = "\
Exit status:
   0  done
   1  failed, for a reason that has no exit status in this table
   2  the command line makes no sense
   3  wrong passphrase or key file
   4  the store cannot be reached, or refuses the credentials
   5  the store cannot hold a volume, holds something already, or holds no volume
   6  another mount has the volume
   7  something is damaged, tampered with or rolled back
   8  not everything is in the bucket yet; the rest is safe in the local journal
   9  the directory is not a sealfs mount
  10  the mount is in use
  11  something was wrong, and all of it was repaired
  12  stopped before the end
  13  objects are not sealed or encrypted as requested (sse audit, sse migrate, key rekey)
  14  the volume is of a format, or uses features, that this sealfs does not know
  15  some files could not be transferred, the others were (import, export)";

/// Every status but success.
const ALL: [Exit; 15] = [
    Exit::General,
    Exit::Usage,
    Exit::Secret,
    Exit::Unreachable,
    Exit::Unsuitable,
    Exit::InUse,
    Exit::Corrupt,
    Exit::Pending,
    Exit::NotMounted,
    Exit::Busy,
    Exit::Repaired,
    Exit::Stopped,
    Exit::NotAsRequested,
    Exit::Format,
    Exit::Partly,
];

impl Exit {
    /// The number of the table.
    pub fn code(self) -> u8 {
        match self {
            Exit::General => 1,
            Exit::Usage => 2,
            Exit::Secret => 3,
            Exit::Unreachable => 4,
            Exit::Unsuitable => 5,
            Exit::InUse => 6,
            Exit::Corrupt => 7,
            Exit::Pending => 8,
            Exit::NotMounted => 9,
            Exit::Busy => 10,
            Exit::Repaired => 11,
            Exit::Stopped => 12,
            Exit::NotAsRequested => 13,
            Exit::Format => 14,
            Exit::Partly => 15,
        }
    }

    /// The status that has this number.
    pub fn of_code(code: u8) -> Option<Exit> {
        ALL.into_iter().find(|exit| exit.code() == code)
    }
}

/// A command that failed: the status to exit with, what failed on what, and what to type next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    /// A sentence in lower case.
    pub message: String,
    /// The next command to type.
    pub hint: Option<String>,
}

/// What to type after a stop, where a command says nothing else: it had changed nothing that counts.
const BEGINS_AGAIN: &str = "the same command begins again";
/// The same where what was done counts.
pub const GOES_ON: &str = "what is done is done: the same command goes on from there";

/// What a command returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure without a hint. A message of two lines, the second being `hint: …`, is split.
    pub fn new(exit: Exit, message: impl Display) -> Failure {
        let text = message.to_string();
        match text.split_once("\nhint: ") {
            Some((message, hint)) => {
                Failure { exit, message: message.into(), hint: Some(hint.into()) }
            }
            None => Failure { exit, message: text, hint: None },
        }
    }

    /// An answer of a mount that is none to what it was asked.
    pub fn answered_else() -> Failure {
        Failure::new(Exit::General, "the mount process answered something else")
    }

    /// Adds the next command to type.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// The next command to type after a stop, unless it is said already.
    pub fn if_stopped(self, hint: impl Into<String>) -> Failure {
        match (self.exit, &self.hint) {
            (Exit::Stopped, None) => self.hint(hint),
            _ => self,
        }
    }

    /// Prints it to standard error and returns its status.
    pub fn report(&self) -> ExitCode {
        eprintln!("sealfs: error: {}", one_line(&self.message));
        let again = (self.exit == Exit::Stopped).then_some(BEGINS_AGAIN);
        if let Some(hint) = self.hint.as_deref().or(again) {
            eprintln!("hint: {}", one_line(hint));
        }
        ExitCode::from(self.exit.code())
    }
}

impl From<StackErrorKind> for Exit {
    fn from(kind: StackErrorKind) -> Exit {
        match kind {
            StackErrorKind::Secret => Exit::Secret,
            StackErrorKind::Unreachable => Exit::Unreachable,
            StackErrorKind::Unsuitable => Exit::Unsuitable,
            StackErrorKind::InUse => Exit::InUse,
            StackErrorKind::Pending => Exit::Pending,
            StackErrorKind::Busy => Exit::Busy,
            StackErrorKind::Corrupt => Exit::Corrupt,
            StackErrorKind::Format => Exit::Format,
            StackErrorKind::Stopped => Exit::Stopped,
            StackErrorKind::Other => Exit::General,
        }
    }
}

impl From<StackError> for Failure {
    fn from(e: StackError) -> Failure {
        let exit = Exit::from(e.kind());
        // What lies beneath knows better what to do than the kind of trouble does.
        let failure = Failure::new(exit, &e);
        Failure { hint: failure.hint.clone().or_else(|| e.hint()), ..failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_help_names_every_status_once() {
        // Guards against a status that is renumbered or missing from --help.
        for (i, exit) in ALL.iter().enumerate() {
            assert_eq!(usize::from(exit.code()), i + 1);
            assert_eq!(TABLE.matches(&format!("\n  {:>2}  ", exit.code())).count(), 1);
        }
    }

    #[test]
    fn a_hint_inside_a_message_becomes_the_hint() {
        // Guards against "hint:" printed in the middle of an error line.
        let f = Failure::new(Exit::Usage, "'x' is not a store\nhint: use s3://BUCKET");
        assert_eq!(
            (f.message.as_str(), f.hint.as_deref()),
            ("'x' is not a store", Some("use s3://BUCKET"))
        );
    }
}
