//! The journal against a plain vector, on a disk that crashes at any request and loses, tears
//! or reorders what was not synced.

use crate::disk_sim::{Fault, Restart, SimDisk, SplitMix};
use proptest::prelude::*;
use sealfs::base::JournalPos;
use sealfs::journal::{Journal, JournalError, JournalOptions};
use sealfs::seal::VolumeKeys;
use std::collections::BTreeMap;
use std::sync::Arc;

fn options(file_bytes: u64) -> JournalOptions {
    JournalOptions {
        file_bytes,
        pool_bytes_max: 3 * file_bytes,
        prewrite_bytes: 2 * file_bytes,
        keeper: false,
        ..JournalOptions::new("/var/j", 5 * file_bytes)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        len: usize,
    },
    Sync,
    /// Of what is not released, this many 256ths.
    Release(u8),
    Keep {
        prewrite: bool,
    },
    /// The process dies now, and perhaps the machine.
    Restart {
        power_loss: Option<u64>,
    },
    /// The machine dies at the nth disk request from now.
    CrashAt {
        nth: u64,
        power_loss: Option<u64>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..300).prop_map(|len| Step::Append { len }),
        4 => (300usize..9000).prop_map(|len| Step::Append { len }),
        4 => Just(Step::Sync),
        3 => any::<u8>().prop_map(Step::Release),
        2 => any::<bool>().prop_map(|prewrite| Step::Keep { prewrite }),
        1 => any::<Option<u64>>().prop_map(|power_loss| Step::Restart { power_loss }),
        2 => (1u64..25, any::<Option<u64>>())
            .prop_map(|(nth, power_loss)| Step::CrashAt { nth, power_loss }),
    ]
}

/// What must be true of the journal, whatever happens.
struct Model {
    disk: SimDisk,
    keys: VolumeKeys,
    file_bytes: u64,
    journal: Option<Journal>,
    /// What the records held that may be found after a restart, the one in flight included.
    contents: BTreeMap<u64, Vec<u8>>,
    appended: u64,
    synced: u64,
    /// The caller's committed position: it lives in the bucket, so no crash takes it.
    released: u64,
    random: SplitMix,
    power_loss: Option<u64>,
    restarts: u64,
}

impl Model {
    fn new(file_bytes: u64, seed: u64) -> Model {
        let mut model = Model {
            disk: SimDisk::new(),
            keys: VolumeKeys::random_for_tests(1),
            file_bytes,
            journal: None,
            contents: BTreeMap::new(),
            appended: 0,
            synced: 0,
            released: 0,
            random: SplitMix(seed),
            power_loss: None,
            restarts: 0,
        };
        model.open();
        model
    }

    fn journal(&self) -> &Journal {
        self.journal.as_ref().expect("open between steps")
    }

    /// Takes a failed call: fine after a crash, which is then followed by a restart.
    fn survive(&mut self, e: JournalError) {
        assert!(self.disk.crashed(), "without a crash: {e}");
        self.restart();
    }

    fn restart(&mut self) {
        self.journal = None;
        self.restarts += 1;
        let how = match self.power_loss {
            // Another outcome each time, from the one seed of the case.
            Some(seed) => Restart::PowerLoss { seed: seed.wrapping_add(self.restarts) },
            None => Restart::Kill,
        };
        if self.power_loss.is_none() {
            self.synced = self.synced.max(self.appended);
        }
        self.disk.restart(how);
        self.open();
    }

    fn open(&mut self) {
        let io = Arc::new(self.disk.clone());
        let opened = Journal::open(options(self.file_bytes), self.keys.clone(), io);
        let (journal, recovery) = match opened {
            Ok(opened) => opened,
            Err(e) => return self.survive(e),
        };
        let last = recovery.last.0;
        assert!(last <= self.appended + 1, "more than was ever appended: {last}");
        // What was acknowledged and is not in the bucket is all there.
        assert!(
            last >= self.synced.min(self.appended)
                || last >= self.released
                || self.synced <= self.released,
            "lost synced records: {last} of {}",
            self.synced
        );
        if self.synced > self.released {
            assert!(last >= self.synced, "lost synced records: {last} of {}", self.synced);
        }
        if last > self.released {
            let due = recovery.after(JournalPos(self.released)).expect("no gap behind the bucket");
            let numbers: Vec<u64> = due.iter().map(|(pos, _)| pos.0).collect();
            let wanted: Vec<u64> = (self.released + 1..=last).collect();
            assert_eq!(numbers, wanted);
        }
        for (pos, loc) in &recovery.records {
            assert_eq!(*pos, loc.pos());
            let bytes = journal.read(*loc, 0..loc.len()).expect("a recovered record opens");
            assert_eq!(Some(&bytes), self.contents.get(&pos.0), "record {pos}");
        }
        let last = if last < self.released {
            journal.start_after(JournalPos(self.released)).expect("nothing is later");
            self.released
        } else {
            last
        };
        self.contents.split_off(&(last + 1));
        (self.appended, self.synced) = (last, last);
        assert_eq!(journal.last_pos().0, last);
        journal.release(JournalPos(self.released));
        self.journal = Some(journal);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Append { len } => self.append(len),
            Step::Sync => match self.journal().sync(JournalPos(self.appended)) {
                Ok(()) => self.synced = self.appended,
                Err(e) => self.survive(e),
            },
            Step::Release(part) => {
                let open = self.appended - self.released;
                self.released += open * (part as u64 + 1) / 256;
                self.journal().release(JournalPos(self.released));
            }
            Step::Keep { prewrite } => {
                if let Err(e) = self.journal().keep(prewrite) {
                    self.survive(e);
                }
            }
            Step::Restart { power_loss } => {
                self.power_loss = power_loss;
                self.restart();
            }
            Step::CrashAt { nth, power_loss } => {
                self.disk.clear_faults();
                self.disk.fault_at(nth, Fault::Crash);
                self.power_loss = power_loss;
            }
        }
    }

    fn append(&mut self, len: usize) {
        let len = len.min(self.journal().record_max());
        // Never the same bytes twice, so that a record that comes back is noticed.
        let mut random = SplitMix(self.random.next_u64());
        let bytes: Vec<u8> = (0..len).map(|_| random.next_u64() as u8).collect();
        let (head, rest) = bytes.split_at(len / 3);
        match self.journal().append(&[head, rest]) {
            Ok((pos, loc)) => {
                self.appended += 1;
                assert_eq!(pos.0, self.appended);
                let (from, to) = (len as u32 / 4, len as u32 / 2);
                let read = self.journal().read(loc, from..to).expect("just written");
                assert_eq!(read, bytes[from as usize..to as usize]);
                self.contents.insert(pos.0, bytes);
            }
            Err(JournalError::Full { .. }) => {
                self.released = self.appended;
                self.journal().release(JournalPos(self.released));
            }
            Err(e) => {
                self.contents.insert(self.appended + 1, bytes);
                self.survive(e);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_synced_records_stay_and_void_ones_never_return(
        file_bytes in prop_oneof![Just(16u64 << 10), Just(48 << 10)],
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        // Guards against every loss, return or false alarm that some order of appends, syncs,
        // releases, kills and power losses at any disk request could bring about.
        let mut model = Model::new(file_bytes, seed);
        for step in &steps {
            model.apply(step);
        }
        model.restart();
    }
}

#[test]
fn a_crash_at_every_single_request_of_a_session_loses_nothing_synced() {
    // Guards against a window between two particular requests (a rename and its sync, a header
    // and its first record): the same session is run again and again, crashing one request
    // later each time, with four kinds of aftermath.
    let session = |model: &mut Model| {
        for round in 0..12u8 {
            for len in [100, 3000, 7000] {
                model.append(len);
            }
            model.apply(&Step::Sync);
            model.append(50);
            model.apply(&Step::Release(180 + round));
            model.apply(&Step::Keep { prewrite: round % 4 == 0 });
        }
    };
    let mut whole = Model::new(16 << 10, 1);
    session(&mut whole);
    let requests = whole.disk.ops();
    assert!(requests > 100, "{requests}");
    for nth in 1..=requests {
        for power_loss in [None, Some(nth), Some(nth + 1_000_000), Some(nth + 2_000_000)] {
            let mut model = Model::new(16 << 10, 1);
            model.apply(&Step::CrashAt { nth, power_loss });
            session(&mut model);
            model.restart();
        }
    }
}
