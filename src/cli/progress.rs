//! Shows how long work goes: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::base::counted;
use crate::stack::Progress;

/// When the first line is printed where there is no terminal, and how often one follows.
const LINE_FIRST: Duration = Duration::from_secs(10);
const LINE_EVERY: Duration = Duration::from_secs(60);

/// When lines are due where there is no terminal.
pub struct Lines {
    next: Instant,
}

impl Lines {
    /// The first one is due in a while.
    pub fn new(now: Instant) -> Lines {
        Lines { next: now + LINE_FIRST }
    }

    /// Whether one is due; then the next is due a minute later.
    pub fn due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + LINE_EVERY;
        }
        due
    }
}

/// A bar on standard error, if that is a terminal.
pub fn bar(template: &str) -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| ProgressBar::new(0).with_style(style(template)))
}

/// Says what is being done now: beside the bar, or in a line where there is none.
pub fn announce(bar: Option<&ProgressBar>, text: String) {
    match bar {
        Some(bar) => bar.set_message(text),
        None => eprintln!("sealfs: {text}"),
    }
}

/// A style of a bar.
pub fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is well formed")
}

/// The display of one drain. The bar's end is the most that was ever left to send.
pub struct Display {
    bar: Option<ProgressBar>,
    most_left: u64,
    lines: Lines,
}

impl Display {
    /// Starts a display; nothing shows before the first progress.
    pub fn new() -> Display {
        let bar = bar("{msg:12} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
        Display { bar, most_left: 0, lines: Lines::new(Instant::now()) }
    }

    /// Shows how far it is.
    pub fn show(&mut self, p: &Progress) {
        let left = left(p);
        self.most_left = self.most_left.max(left);
        if let Some(bar) = &self.bar {
            bar.set_length(self.most_left);
            bar.set_position(self.most_left - left);
            bar.set_message(match (p.offline, left) {
                (true, _) => "store away",
                (false, 0) => "committing",
                (false, _) => "uploading",
            });
        } else if self.lines.due(Instant::now()) {
            eprintln!("sealfs: {}", line(p, self.most_left));
        }
    }

    /// Takes the bar away.
    pub fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Pending bytes that the store has not taken yet.
fn left(p: &Progress) -> u64 {
    p.pending_bytes.saturating_sub(p.sent_bytes)
}

fn line(p: &Progress, most_left: u64) -> String {
    let (left, sent) = (left(p), most_left - left(p));
    let state = if p.offline { ", the store cannot be reached" } else { "" };
    format!(
        "{} of {} still to upload, {} sent{state}",
        HumanBytes(left),
        counted(p.pending_files, "file"),
        HumanBytes(sent)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_is_taking_counts_before_its_commit_ends() {
        // Guards against "0 B of 30 MiB" until everything is there at once.
        let mut p = Progress { pending_bytes: 30 << 20, pending_files: 1, ..Progress::default() };
        assert_eq!(line(&p, 30 << 20), "30.00 MiB of 1 file still to upload, 0 B sent");
        p.sent_bytes = 12 << 20;
        assert_eq!(line(&p, 30 << 20), "18.00 MiB of 1 file still to upload, 12.00 MiB sent");
        p.offline = true;
        assert!(line(&p, 30 << 20).ends_with(", the store cannot be reached"));
    }

    #[test]
    fn lines_come_soon_and_then_once_a_minute() {
        // Guards against a log that fills up, and against minutes without a word.
        let start = Instant::now();
        let mut lines = Lines::new(start);
        let due: Vec<u64> =
            (0..200).filter(|&s| lines.due(start + Duration::from_secs(s))).collect();
        assert_eq!(due, [10, 70, 130, 190]);
    }
}
