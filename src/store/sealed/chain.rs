//! The log of the metadata as a chain: an object of it opens only behind the one before it.
//!
//! The commitment of object `n − 1`, which stands in clear in its header, is part of the context of
//! object `n` (FORMAT.md "The log"). So an authentic object of another history does not fit, and
//! what was opened fixes everything before it. This file remembers the commitments; [`Sealed`] asks
//! for them when it seals and opens objects of the log.
//!
//! A header that was merely seen may be anybody's: it counts as a *link* once the object opened,
//! something opened behind it, or a manifest names it. From then on no other will do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use object_store::path::Path;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Failed, Sealed};
use crate::seal::offsets::HEADER;
use crate::seal::{COMMITMENT, OpenError, Opener, Place, SALT};
use object_store::{GetOptions, GetRange};

use super::super::error::{ErrorClass, StoreError, class};

/// What stands in a header of a sealed message behind its salt.
pub(super) type Commitment = [u8; COMMITMENT];

/// Digits of the number in a name.
const DIGITS: usize = 20;
/// Commitments that are remembered; those further back are fetched again when they are wanted.
const LINKS_MAX: usize = 64 << 10;

/// The number of an object of the log, from 1.
pub(super) fn number(location: &Path) -> Option<u64> {
    let digits = location.as_ref().strip_prefix("meta/wal/")?.strip_suffix(".sst")?;
    let plain = digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten().filter(|&n| n > 0)
}

/// The name of object `number` of the log.
fn name(number: u64) -> Path {
    Path::from(format!("meta/wal/{number:020}.sst"))
}

/// The commitment in a header.
pub(super) fn commitment(header: &[u8; HEADER]) -> Commitment {
    *header[SALT..].first_chunk().expect("a header is salt and commitment")
}

#[derive(Clone, Copy)]
struct Link {
    commitment: Commitment,
    /// No other will do.
    is_certain: bool,
}

/// How a manifest is read: what the anchor in it is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestRead {
    /// The first one: what was known of the log is forgotten, it starts here.
    First,
    /// One that takes the place of the last: it must continue what was read.
    Next,
}

/// Why an anchor does not hold.
pub(super) enum Misfit {
    /// It contradicts what was read.
    Other(String),
    /// Nothing that was read tells whether it continues that.
    Unknown,
}

/// What is known of the log.
pub(super) struct Chain {
    links: Mutex<BTreeMap<u64, Link>>,
    /// The object behind which replay starts, by the last manifest.
    anchor: Mutex<u64>,
    /// A manifest was refused with [`Misfit::Unknown`].
    is_behind: AtomicBool,
    /// How many reads of an object are under way that will say what its header is.
    reads: Mutex<BTreeMap<u64, usize>>,
    changed: watch::Sender<()>,
}

impl Default for Chain {
    fn default() -> Chain {
        Chain {
            links: Mutex::default(),
            anchor: Mutex::new(0),
            is_behind: AtomicBool::new(false),
            reads: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }
}

/// A read under way; others wait for what it sees rather than ask the store themselves.
pub(super) struct Reading<'a>(&'a Chain, u64);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut reads = self.0.reads.lock();
        if let Some(count) = reads.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                reads.remove(&self.1);
            }
        }
        drop(reads);
        self.0.changed.send_replace(());
    }
}

fn another(number: u64) -> String {
    format!("object {number} of the log is of another history than what was read before")
}

impl Chain {
    fn reading(&self, number: u64) -> Reading<'_> {
        *self.reads.lock().entry(number).or_default() += 1;
        Reading(self, number)
    }

    fn known(&self, number: u64) -> Option<Link> {
        if number == 0 {
            return Some(Link { commitment: [0; COMMITMENT], is_certain: true });
        }
        self.links.lock().get(&number).copied()
    }

    /// The commitment of object `number`, if it is known or a read under way finds it out.
    async fn awaited(&self, number: u64) -> Option<Commitment> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(link) = self.known(number) {
                return Some(link.commitment);
            }
            if !self.reads.lock().contains_key(&number) {
                return None;
            }
            // The sender is part of `self`: it cannot be gone.
            let _ = changed.changed().await;
        }
    }

    /// Takes up what the header of an object says, or what is certain of it.
    fn learn(&self, number: u64, seen: Commitment, is_certain: bool) -> Result<(), String> {
        let mut links = self.links.lock();
        let is_certain = match links.get(&number) {
            Some(link) if link.is_certain && link.commitment != seen => {
                return Err(another(number));
            }
            Some(link) => is_certain || link.is_certain && link.commitment == seen,
            None => is_certain,
        };
        links.insert(number, Link { commitment: seen, is_certain });
        while links.len() > LINKS_MAX {
            links.pop_first();
        }
        drop(links);
        self.changed.send_replace(());
        Ok(())
    }

    /// What was merely seen of an object is forgotten: something did not open.
    fn doubt(&self, number: u64) {
        let mut links = self.links.lock();
        if links.get(&number).is_some_and(|link| !link.is_certain) {
            links.remove(&number);
        }
    }

    /// A manifest names the object behind which replay starts. Those before it are not needed any
    /// more.
    pub(super) fn anchored(
        &self,
        number: u64,
        commitment: Commitment,
        read: Option<ManifestRead>,
    ) -> Result<(), Misfit> {
        let known = self.known(number).filter(|link| link.is_certain);
        let fits = known.map(|link| link.commitment == commitment);
        let mut anchor = self.anchor.lock();
        match (read, fits) {
            (_, Some(false)) => return Err(Misfit::Other(another(number))),
            // Looked at for its own sake, like one that a snapshot keeps.
            (None, _) => return Ok(()),
            (Some(ManifestRead::First), _) => self.links.lock().clear(),
            (Some(ManifestRead::Next), _) if number < *anchor => {
                let why = format!("it goes back to object {number} of the log from {}", *anchor);
                return Err(Misfit::Other(why));
            }
            (Some(ManifestRead::Next), Some(true)) => {}
            (Some(ManifestRead::Next), None) => {
                self.is_behind.store(true, Ordering::Release);
                return Err(Misfit::Unknown);
            }
        }
        *anchor = number;
        if number > 0 {
            self.learn(number, commitment, true).map_err(Misfit::Other)?;
        }
        let mut links = self.links.lock();
        let kept = links.split_off(&number);
        *links = kept;
        Ok(())
    }

    /// Whether a manifest was refused because nothing that was read tells whether it continues that.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Acquire)
    }
}

impl Sealed {
    /// Says that object `location` is being read, if it is of the log.
    pub(super) fn reading_log(&self, location: &Path) -> Option<Reading<'_>> {
        number(location).map(|number| self.1.reading(number))
    }

    /// The opener of object `number` of the log, which has this header, and the epoch it was sealed
    /// in.
    pub(super) async fn log_opener(
        &self,
        number: u64,
        location: &Path,
        header: &[u8; HEADER],
    ) -> Result<(u32, Opener), Failed> {
        let chain = &self.1;
        chain.learn(number, commitment(header), false).map_err(Failed::Damaged)?;
        let behind = self.behind(number).await?;
        match self.0.keys.log_opener(location.as_ref(), &behind, header) {
            Ok(opened) => {
                chain.learn(number, commitment(header), true).map_err(Failed::Damaged)?;
                if number > 1 {
                    chain.learn(number - 1, behind, true).map_err(Failed::Damaged)?;
                }
                Ok(opened)
            }
            Err(e) => {
                chain.doubt(number);
                chain.doubt(number - 1);
                Err(Failed::Damaged(format!("{e}, or it does not follow the one before it")))
            }
        }
    }

    /// The commitment of the object before object `number`. A read under way brings it; else it
    /// costs a small request.
    async fn behind(&self, number: u64) -> Result<Commitment, Failed> {
        let before = number - 1;
        if let Some(commitment) = self.1.awaited(before).await {
            return Ok(commitment);
        }
        let reading = self.1.reading(before);
        let range = Some(GetRange::Bounded(0..HEADER as u64));
        let header = self.raw(&name(before), GetOptions { range, ..GetOptions::default() }).await;
        let raw = match header {
            Ok(raw) => raw,
            Err(Failed::Store(e)) if class(&e) == ErrorClass::NotFound => {
                let message =
                    format!("object {before} of the log is not there, behind which it opens");
                let e = StoreError::new(ErrorClass::Corrupt, message);
                return Err(Failed::Alone(e.into_store("sealed")));
            }
            Err(e) => return Err(e),
        };
        let header = raw.header().ok_or(OpenError::TooShort(raw.size()))?;
        self.1.learn(before, commitment(&header), false).map_err(Failed::Damaged)?;
        drop(reading);
        Ok(commitment(&header))
    }

    /// The commitment of object `number`, which must have opened: something is to be sealed behind it.
    async fn certain(&self, number: u64) -> object_store::Result<Commitment> {
        for _ in 0..2 {
            match self.1.known(number) {
                Some(link) if link.is_certain => return Ok(link.commitment),
                // Reading its end proves that it is of this history.
                _ => self.open_end(&name(number)).await?,
            }
        }
        let message = format!("object {number} of the log could not be read");
        Err(StoreError::new(ErrorClass::Other, message).into_store("sealed"))
    }

    /// Where object `number` of the log is sealed.
    pub(super) async fn log_place(
        &self,
        number: u64,
        location: &Path,
    ) -> object_store::Result<Place> {
        let behind = self.certain(number - 1).await?;
        Ok(self.0.keys.log(location.as_ref(), &behind))
    }

    /// Object `number` of the log was put with this header.
    pub(super) fn put_log(&self, number: u64, header: &[u8; HEADER]) -> Result<(), String> {
        self.1.learn(number, commitment(header), true)
    }

    /// What a manifest says of the object of the log behind which replay starts.
    pub(super) async fn anchor_of(&self, number: u64) -> object_store::Result<Commitment> {
        self.certain(number).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_of_the_log_have_a_number() {
        // Guards against another object being sealed as one of the log, or one of the log not.
        let of = |name: &str| number(&Path::from(name));
        assert_eq!(of("meta/wal/00000000000000000007.sst"), Some(7));
        assert_eq!(name(7).as_ref(), "meta/wal/00000000000000000007.sst");
        for other in [
            "meta/wal/00000000000000000000.sst",
            "meta/wal/7.sst",
            "meta/wal/0000000000000000000a.sst",
            "meta/compacted/00000000000000000007.sst",
            "x/meta/wal/00000000000000000007.sst",
            "meta/wal/00000000000000000007.sst/x",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn what_is_certain_stays_and_what_was_seen_may_change() {
        // Guards against a header that somebody showed for a moment deciding what fits, and against
        // an object that opened being exchanged for another.
        let chain = Chain::default();
        chain.learn(5, [1; 32], false).expect("seen");
        chain.learn(5, [2; 32], false).expect("seen again");
        chain.learn(5, [2; 32], true).expect("certain");
        chain.doubt(5);
        chain.learn(5, [2; 32], false).expect("the same");
        assert!(chain.learn(5, [1; 32], false).is_err());
        let next =
            |number, commitment| chain.anchored(number, [commitment; 32], Some(ManifestRead::Next));
        assert!(matches!(next(5, 1), Err(Misfit::Other(_))));
        chain.learn(4, [9; 32], true).expect("certain");
        assert!(next(5, 2).is_ok() && !chain.is_behind());
        assert!(matches!(next(4, 9), Err(Misfit::Other(_))), "it goes back");
        assert!(matches!(next(8, 7), Err(Misfit::Unknown)) && chain.is_behind());
        assert!(chain.anchored(3, [7; 32], None).is_ok(), "looked at for its own sake");
        assert!(chain.known(4).is_none(), "what is before an anchor is let go");
        assert_eq!(chain.awaited(5).await, Some([2; 32]));
        assert_eq!(chain.awaited(6).await, None, "nobody reads it");
        let reading = chain.reading(6);
        let (waited, ()) = futures::join!(chain.awaited(6), async {
            chain.learn(6, [3; 32], false).expect("seen");
        });
        drop(reading);
        assert_eq!(waited, Some([3; 32]));
    }
}
