//! Keeps a storm of log lines to one line a minute and a count.
//!
//! What fails for every object or request says so each time, from one place of the program. Such a
//! place may log a number of lines between two ticks; further ones are counted, and at the next tick the
//! last of them is logged with their number. While it goes on, only those summaries are logged.

use std::collections::HashMap;

use log::Level;

/// Lines that one place of the program may log between two ticks.
const BURST: u32 = 30;

/// A place of the program: file and line.
pub type Site = (&'static str, u32);

/// What each place has logged since the last tick. Bounded by the number of places.
#[derive(Debug, Default)]
pub struct Storms(HashMap<Site, Window>);

#[derive(Debug, Default)]
struct Window {
    logged: u32,
    held_back: u64,
    /// It was too much before the last tick already.
    goes_on: bool,
    last: Option<(Level, String)>,
}

impl Storms {
    /// Whether a line of `site` is to be logged; if not, it is counted.
    pub fn admit(&mut self, site: Site, level: Level, text: &str) -> bool {
        let window = self.0.entry(site).or_default();
        if window.logged < BURST && !window.goes_on {
            window.logged += 1;
            return true;
        }
        window.held_back += 1;
        window.last = Some((level, text.to_owned()));
        false
    }

    /// A minute is over, or the end has come: what to log of the lines that were held back.
    pub fn tick(&mut self) -> Vec<(Level, String)> {
        let mut summaries = Vec::new();
        self.0.retain(|_, window| {
            window.logged = 0;
            window.goes_on = window.held_back > 0;
            let held_back = std::mem::take(&mut window.held_back);
            if let Some((level, text)) = window.last.take() {
                let more = held_back.saturating_sub(1);
                let text = match more {
                    0 => text,
                    _ => format!("{text} (and {more} more like this, not logged)"),
                };
                summaries.push((level, text));
            }
            window.goes_on
        });
        summaries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_becomes_one_line_a_minute_with_a_count_and_others_are_not_touched() {
        // Guards against a log that fills the disk while the store is away, and against one in
        // which the storm hides what else happens.
        let (here, there) = (("a.rs", 1), ("a.rs", 2));
        let mut storms = Storms::default();
        let logged = |storms: &mut Storms, n: u32| {
            (0..n).filter(|i| storms.admit(here, Level::Warn, &format!("failed {i}"))).count()
        };
        assert_eq!(logged(&mut storms, 1000), BURST as usize);
        assert!(storms.admit(there, Level::Info, "something else"));
        let summary = "failed 999 (and 969 more like this, not logged)";
        assert_eq!(storms.tick(), [(Level::Warn, summary.to_owned())]);
        // It goes on: only the count.
        assert_eq!(logged(&mut storms, 3), 0);
        let summary = "failed 2 (and 2 more like this, not logged)";
        assert_eq!(storms.tick(), [(Level::Warn, summary.to_owned())]);
        assert_eq!(logged(&mut storms, 1), 0);
        assert_eq!(storms.tick(), [(Level::Warn, "failed 0".to_owned())]);
        // It is over.
        assert_eq!(storms.tick(), []);
        assert_eq!(logged(&mut storms, 1), 1);
        assert_eq!(storms.tick(), []);
    }
}
