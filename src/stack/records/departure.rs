//! Processes of this machine that are in the way: whether they run, and waiting for those that are
//! about to go.
//!
//! A mount that follows an unmount meets the process that served the last one, which still uploads
//! or closes: its locks and its lease are not refused but waited for.

use std::time::{Duration, Instant};

use crate::stack::{Attended, StackError};

pub(crate) fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

/// Field 22 of `/proc/PID/stat` (`proc_pid_stat(5)`): 0 if there is no such process, or only
/// what is left of it until its parent takes notice (state `Z` or `X`).
pub(crate) fn start_of(pid: u32) -> u64 {
    let stat = read_line(&format!("/proc/{pid}/stat"));
    // The command name, field 2, may hold spaces; it ends at the last parenthesis.
    let mut after = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    match after.next() {
        None | Some("Z" | "X") => 0,
        Some(_) => after.nth(18).and_then(|f| f.parse().ok()).unwrap_or(0),
    }
}

/// Whether there is such a process, and not only what is left of it until its parent takes
/// notice: that has no file open.
pub fn is_running(pid: u32) -> bool {
    start_of(pid) != 0
}

/// What the process calls itself while it ends (proc_pid_comm(5)), at most 15 bytes: whoever looks
/// can tell, and no file is left when it dies.
const ENDING: &str = "sealfs: ending";
/// How long a process that is ending is waited for: it may upload what was pending.
pub(crate) const ENDING_MAX: Duration = Duration::from_secs(60);
/// How long a process that was killed may take to let go of its files.
const DEAD_MAX: Duration = Duration::from_secs(10);
/// How long a process may take to notice that it was unmounted.
const NOTICE_MAX: Duration = Duration::from_secs(2);
/// How long the last tasks of a mount of this process may hold its files once it has ended.
const TASKS_MAX: Duration = Duration::from_secs(1);

/// Says to whoever looks that this process serves no mount any more and will be gone soon.
pub fn announce_end() {
    if let Err(e) = std::fs::write("/proc/self/comm", ENDING) {
        log::debug!("cannot say that this process is ending: {e}");
    }
}

fn is_ending(pid: u32) -> bool {
    read_line(&format!("/proc/{pid}/comm")) == ENDING
}

/// Waiting for a process of this machine that is in the way, if it is about to go.
pub(crate) struct Departure {
    begun: Instant,
    attended: Attended,
    told: bool,
    /// How long this process itself is waited for.
    own_max: Duration,
}

impl Departure {
    pub(crate) fn new(attended: &Attended) -> Departure {
        Departure {
            begun: Instant::now(),
            attended: attended.clone(),
            told: false,
            own_max: Duration::ZERO,
        }
    }

    /// Also waits for this process itself: another mount of it lasts, but one that has ended may
    /// have tasks left that hold its files.
    pub(crate) fn or_own_tasks(self) -> Departure {
        Departure { own_max: TASKS_MAX, ..self }
    }

    /// Waits a little for `pid`; true if it is worth another try. Lasting holders are not waited
    /// for, or only as long as one takes to notice that it was unmounted.
    pub(crate) async fn wait(&mut self, pid: u32) -> bool {
        let waited = self.begun.elapsed();
        let ending = is_ending(pid);
        let limit = match (ending, is_running(pid)) {
            _ if pid == std::process::id() => self.own_max,
            (true, _) => ENDING_MAX,
            (false, true) => NOTICE_MAX,
            (false, false) => DEAD_MAX,
        };
        if ending && !self.told {
            self.told = true;
            log::info!("waiting for process {pid} to end, which unmounts");
            self.attended.waits_for(format!("process {pid}, which unmounts, to end"), limit);
        }
        let worth = waited < limit && !self.attended.is_stopped();
        if worth {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        worth
    }

    /// What to say when `pid` was not worth it: `otherwise`, unless it is ending.
    pub(crate) fn refused(&self, pid: u32, otherwise: StackError) -> StackError {
        match is_ending(pid) {
            true => StackError::Ending { pid, waited_secs: self.begun.elapsed().as_secs() },
            false => otherwise,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_that_nobody_has_reaped_yet_is_gone() {
        // Guards against "mounted by process N" right after kill -9, where the parent (init in a
        // container, often) is slow to reap.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("runs");
        assert!(start_of(child.id()) > 0);
        child.kill().expect("kills");
        let begun = std::time::Instant::now();
        while start_of(child.id()) != 0 {
            assert!(begun.elapsed().as_secs() < 10, "a zombie counts as alive");
            std::thread::yield_now();
        }
        child.wait().expect("reaped");
    }

    #[tokio::test]
    async fn a_holder_that_lasts_is_not_waited_for() {
        // Guards against a second mount that hangs for a minute before it is refused.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("runs");
        let mut departure = Departure::new(&Attended::default());
        let begun = Instant::now();
        while departure.wait(child.id()).await {
            assert!(begun.elapsed() < ENDING_MAX / 2, "it waits for a process that runs");
        }
        let refused = departure.refused(child.id(), StackError::Stopped);
        assert!(matches!(refused, StackError::Stopped));
        child.kill().expect("kills");
        child.wait().expect("reaped");
    }
}
