//! Questions to whoever sits at the terminal, and what age plugins tell.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal};

use zeroize::Zeroizing;

use crate::base::one_line;
use crate::stack::Ask;

/// Whether there is a terminal to ask on.
pub fn has_terminal() -> bool {
    io::stdin().is_terminal() || File::open("/dev/tty").is_ok()
}

/// The terminal of this process. Without one every question stays without an answer.
pub struct Terminal;

impl Terminal {
    /// A line that is typed in sight.
    fn typed(&self) -> Option<String> {
        let mut line = String::new();
        let read = match File::open("/dev/tty") {
            Ok(tty) => BufReader::new(tty).read_line(&mut line),
            Err(_) if io::stdin().is_terminal() => io::stdin().read_line(&mut line),
            Err(_) => return None,
        };
        match read {
            Ok(n) if n > 0 => Some(line.trim_end_matches(['\n', '\r']).to_owned()),
            _ => None,
        }
    }
}

impl Ask for Terminal {
    fn say(&self, message: &str) {
        eprintln!("sealfs: {}", one_line(message));
    }

    fn confirm(&self, message: &str, yes: &str, no: Option<&str>) -> Option<bool> {
        if !has_terminal() {
            return None;
        }
        let (message, yes) = (one_line(message), one_line(yes));
        let no = no.map(one_line);
        eprint!("{message} (y: {yes}, n: {}) ", no.as_deref().unwrap_or("no"));
        Some(matches!(self.typed()?.trim(), "y" | "Y" | "yes"))
    }

    fn line(&self, what: &str) -> Option<String> {
        if !has_terminal() {
            return None;
        }
        eprint!("{}: ", one_line(what));
        self.typed()
    }

    fn secret(&self, what: &str) -> Option<Zeroizing<String>> {
        if !has_terminal() {
            return None;
        }
        let what = one_line(what);
        rpassword::prompt_password(format!("{what}: ")).ok().map(Zeroizing::new)
    }
}
