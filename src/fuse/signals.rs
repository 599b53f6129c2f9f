//! Whether a caller is about to end. Only then may its request be given up: local file systems
//! never answer `EINTR` to those who only handle a signal (a timer, a child that has ended), and
//! programs do not expect it.

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals that by default do nothing, or stop the process (signal(7)).
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

/// Whether a signal is pending that ends thread `tid`; false where that cannot be seen.
pub(super) fn is_dying(tid: u32) -> bool {
    status(tid).is_some_and(|status| has_fatal_signal(&status))
}

/// The text of `/proc/TID/status`.
fn status(tid: u32) -> Option<String> {
    // The name in its first line may be cut in the middle of a character.
    let status = std::fs::read(format!("/proc/{tid}/status")).ok()?;
    Some(String::from_utf8_lossy(&status).into_owned())
}

/// The same from the text of `/proc/TID/status` (proc_pid_status(5)). Linux turns what ends a
/// process without a core dump into a pending SIGKILL of each of its threads.
fn has_fatal_signal(status: &str) -> bool {
    let mask = |name: &str| {
        let hex = status.lines().find_map(|line| line.strip_prefix(name));
        hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    let pending = mask("SigPnd:") | mask("ShdPnd:");
    let taken_care_of = mask("SigBlk:") | mask("SigIgn:") | mask("SigCgt:") | HARMLESS;
    pending & (bit(libc::SIGKILL) | !taken_care_of) != 0
}

/// Whether thread `tid` has ended. False where that cannot be seen, and for 0.
pub(super) fn has_ended(tid: u32) -> bool {
    let Some(number) = i32::try_from(tid).ok().filter(|number| *number > 0) else { return false };
    // SAFETY: takes two numbers, and sends nothing.
    let sent = unsafe { libc::kill(number, 0) };
    if sent != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH) {
        return true;
    }
    status(tid).is_some_and(|status| is_zombie(&status))
}

/// The same from the text of `/proc/TID/status`, of one that nobody has waited for yet.
fn is_zombie(status: &str) -> bool {
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| state.trim_start().starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, caught: u64) -> String {
        format!(
            "Name:\tcat\nSigQ:\t1/95\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
             SigBlk:\t0000000000000000\nSigIgn:\t0000000000001000\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn who_has_ended_is_seen_and_nobody_else() {
        // Guards against EINTR for who only waits long, and against reads that nobody waits for.
        let (me, parent) = (std::process::id(), 1);
        assert!(!has_ended(me) && !has_ended(parent) && !has_ended(0) && !has_ended(u32::MAX));
        let mut child = std::process::Command::new("true").spawn().expect("runs");
        while !has_ended(child.id()) {
            std::thread::sleep(std::time::Duration::from_millis(1)); // a zombie: nobody has waited
        }
        child.wait().expect("has ended");
        assert!(has_ended(child.id()));
        assert!(is_zombie("Name:\tcat\nState:\tZ (zombie)\n"));
        assert!(!is_zombie("Name:\tState:\tZ\nState:\tD (disk sleep)\n") && !is_zombie(""));
    }

    #[test]
    fn only_a_signal_that_ends_the_caller_is_fatal() {
        // Guards against EINTR from stat or read for a program that uses timers, and against
        // Ctrl-C that has to wait for the network.
        let (int, alarm, quit) = (bit(libc::SIGINT), bit(libc::SIGALRM), bit(libc::SIGQUIT));
        let kill = bit(libc::SIGKILL);
        assert!(!has_fatal_signal(&status(0, 0, 0)));
        assert!(!has_fatal_signal(&status(0, alarm, alarm | int)), "it has a handler");
        assert!(!has_fatal_signal(&status(bit(libc::SIGPIPE), 0, 0)), "it is ignored");
        assert!(!has_fatal_signal(&status(0, bit(libc::SIGCHLD) | bit(libc::SIGTSTP), 0)));
        assert!(has_fatal_signal(&status(kill, int, alarm)));
        assert!(has_fatal_signal(&status(0, quit, alarm)), "it dumps core");
        assert!(has_fatal_signal(&status(kill, 0, u64::MAX)), "nobody handles SIGKILL");
        assert!(!has_fatal_signal("Name:\tcat\n"));
        assert!(!is_dying(std::process::id()) && !is_dying(0));
    }
}
