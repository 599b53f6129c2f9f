//! One directory with very many names.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::suites::Stand;
use crate::{e2e, needs_fuse};

/// Names in an ordinary run, and in a full one.
const ENTRIES: (usize, usize) = (20_000, 1_000_000);
/// Parts in which names are made and removed, each with its cost per name.
const PARTS: usize = 10;
/// Names that are looked up at random after each part.
const LOOKUPS: usize = 2_000;
/// Parts at either end that are compared, and how many times as much per name the last ones may
/// cost the daemon. Work that goes with the number of names would be 9 times as much.
const ENDS: usize = 2;
const GROWTH_MAX: f64 = 4.5;

fn name(n: usize) -> String {
    // Not in the order of their hashes, nor of their making.
    format!("{:08x}-{n}", n.wrapping_mul(0x9E37_79B1) & 0xffff_ffff)
}

/// What the daemon has computed for so far, in microseconds (the kernel counts in 10 ms): unlike
/// the time that goes by, it does not depend on what else this machine does.
fn computed_us(daemon: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{daemon}/stat")).expect("it lives");
    let fields = stat.rsplit_once(") ").expect("as proc(5) says").1;
    let ticks = fields.split(' ').skip(11).take(2).map(|t| t.parse::<f64>().expect("a number"));
    ticks.sum::<f64>() * 10_000.0
}

/// Cost per name of one thing done to many, part by part.
struct Costs {
    what: &'static str,
    daemon: i32,
    elapsed_us: Vec<f64>,
    computed_us: Vec<f64>,
}

impl Costs {
    fn new(what: &'static str, daemon: i32) -> Costs {
        Costs { what, daemon, elapsed_us: Vec::new(), computed_us: Vec::new() }
    }

    /// Does it to `n` names.
    fn part(&mut self, n: usize, work: impl FnOnce()) {
        let (begun, before) = (Instant::now(), computed_us(self.daemon));
        work();
        self.computed_us.push((computed_us(self.daemon) - before) / n as f64);
        self.elapsed_us.push(begun.elapsed().as_secs_f64() * 1e6 / n as f64);
    }

    fn print(&self) {
        let list = |costs: &[f64]| costs.iter().map(|c| format!(" {c:.0}")).collect::<String>();
        let (elapsed, computed) = (list(&self.elapsed_us), list(&self.computed_us));
        eprintln!("{}: us each{elapsed}; of the daemon's CPU{computed}", self.what);
    }

    /// The cost per name does not go with how many names there are.
    fn assert_flat(&self) {
        self.print();
        let mean = |costs: &[f64]| costs.iter().sum::<f64>() / costs.len() as f64;
        let first = mean(&self.computed_us[..ENDS]);
        let last = mean(&self.computed_us[PARTS - ENDS..]);
        assert!(
            last <= first.max(20.0) * GROWTH_MAX,
            "{}: {first:.0}, then {last:.0} us",
            self.what
        );
    }
}

fn count(dir: &Path) -> io::Result<usize> {
    Ok(fs::read_dir(dir)?.map(|e| e.map(drop)).collect::<io::Result<Vec<()>>>()?.len())
}

#[test]
fn a_name_costs_the_same_however_many_there_are() {
    // Guards against work that goes with the size of a directory: per name made, looked up,
    // listed or removed; against memory that does; and against a listing that loses names.
    needs_fuse!();
    let stand = Stand::new();
    let v = &stand.volume;
    let set = std::env::var("SEALFS_TEST_ENTRIES").ok().and_then(|n| n.parse().ok());
    let entries = set.unwrap_or(if e2e::is_full() { ENTRIES.1 } else { ENTRIES.0 });
    let part = entries / PARTS;
    let dir = v.at("d");
    fs::create_dir(&dir).expect("makes");
    let mut rng = StdRng::seed_from_u64(1);
    let daemon = v.daemon();
    // Each part pays for its own commits: otherwise the first ones would leave them to the last.
    let sync = || v.ok(&["sync", &v.text("vault")]);
    let (mut create, mut stat) = (Costs::new("create", daemon), Costs::new("stat", daemon));
    for at in 0..PARTS {
        create.part(part, || {
            for n in at * part..(at + 1) * part {
                File::create_new(dir.join(name(n))).expect("creates");
            }
            sync();
        });
        stat.part(LOOKUPS, || {
            for _ in 0..LOOKUPS {
                let n = rng.random_range(0..(at + 1) * part);
                fs::metadata(dir.join(name(n))).expect("is there");
            }
        });
    }
    create.assert_flat();
    stat.assert_flat();
    for place in ["warm", "cold"] {
        let mut list = Costs::new("list", v.daemon());
        list.part(entries, || assert_eq!(count(&dir).expect("lists"), part * PARTS, "{place}"));
        let mut stat = Costs::new("stat", v.daemon());
        stat.part(LOOKUPS, || {
            for _ in 0..LOOKUPS {
                let n = rng.random_range(0..part * PARTS);
                fs::metadata(dir.join(name(n))).expect("is there");
            }
        });
        eprint!("{place}: ");
        list.print();
        eprint!("{place}: ");
        stat.print();
        assert!(fs::metadata(dir.join("none")).is_err());
        if place == "warm" {
            stand.move_elsewhere();
        }
    }
    let mut unlink = Costs::new("unlink", v.daemon());
    for at in 0..PARTS {
        unlink.part(part, || {
            for n in at * part..(at + 1) * part {
                fs::remove_file(dir.join(name(n))).expect("unlinks");
            }
            v.ok(&["sync", &v.text("vault")]);
        });
    }
    unlink.assert_flat();
    assert_eq!(count(&dir).expect("lists"), 0);
    fs::remove_dir(&dir).expect("is empty");
    stand.close();
}
