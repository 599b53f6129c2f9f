//! Shows how a drain goes: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::stack::Progress;

/// How often a line is printed where there is no terminal, while it goes on and while it stands.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const LINE_INTERVAL_STALLED: Duration = Duration::from_secs(60);

/// The display of one drain. The bar's end is the most that was ever pending.
pub struct Display {
    bar: Option<ProgressBar>,
    most_pending: u64,
    last_line: Instant,
    last_pending: u64,
}

impl Display {
    /// Starts a display; nothing shows before the first progress.
    pub fn new() -> Display {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{msg:12} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(style).expect("the template is well formed");
            ProgressBar::new(0).with_style(style).with_message("uploading")
        });
        Display { bar, most_pending: 0, last_line: Instant::now(), last_pending: 0 }
    }

    /// Shows how far it is.
    pub fn show(&mut self, p: &Progress) {
        self.most_pending = self.most_pending.max(p.pending_bytes);
        if let Some(bar) = &self.bar {
            bar.set_length(self.most_pending);
            bar.set_position(self.most_pending - p.pending_bytes);
            bar.set_message(if p.offline { "store away" } else { "uploading" });
            return;
        }
        let stalled = self.last_pending == p.pending_bytes;
        let interval = if stalled { LINE_INTERVAL_STALLED } else { LINE_INTERVAL };
        if self.last_line.elapsed() >= interval {
            (self.last_line, self.last_pending) = (Instant::now(), p.pending_bytes);
            let (bytes, files) = (HumanBytes(p.pending_bytes), p.pending_files);
            let state = if p.offline { ", the store cannot be reached" } else { "" };
            eprintln!("sealfs: {bytes} of {files} files still to upload{state}");
        }
    }

    /// Takes the bar away.
    pub fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
