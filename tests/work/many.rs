//! One directory with very many names.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::suites::Stand;
use crate::{e2e, mounts, needs_fuse};

/// Names in an ordinary run, and in a full one.
const ENTRIES: (usize, usize) = (20_000, 1_000_000);
/// Parts in which names are made and removed, each with its cost per name.
const PARTS: usize = 10;
/// Names that are looked up at random after each part.
const LOOKUPS: usize = 2_000;
/// The last part may cost so many times as much per name as the cheapest, noise included.
const GROWTH_MAX: f64 = 4.0;

fn name(n: usize) -> String {
    // Not in the order of their hashes, nor of their making.
    format!("{:08x}-{n}", n.wrapping_mul(0x9E37_79B1) & 0xffff_ffff)
}

fn micros_each(begun: Instant, n: usize) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6 / n as f64
}

/// The cost of a part, per name, does not go with how many names there are.
fn assert_flat(what: &str, costs: &[f64]) {
    let least = costs.iter().copied().fold(f64::MAX, f64::min);
    let last = costs[costs.len() - 1];
    let listed: Vec<String> = costs.iter().map(|c| format!("{c:.0}")).collect();
    eprintln!("{what}, us each, by tenth: {}", listed.join(" "));
    assert!(last <= least.max(5.0) * GROWTH_MAX, "{what}: {costs:?}");
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
    let (mut creates, mut stats) = (Vec::new(), Vec::new());
    for at in 0..PARTS {
        let begun = Instant::now();
        for n in at * part..(at + 1) * part {
            File::create_new(dir.join(name(n))).expect("creates");
        }
        creates.push(micros_each(begun, part));
        let begun = Instant::now();
        for _ in 0..LOOKUPS {
            let n = rng.random_range(0..(at + 1) * part);
            fs::metadata(dir.join(name(n))).expect("is there");
        }
        stats.push(micros_each(begun, LOOKUPS));
    }
    assert_flat("create", &creates);
    assert_flat("stat", &stats);
    let begun = Instant::now();
    v.ok(&["sync", &v.text("vault")]);
    eprintln!("sync of {entries} names: {:.1} s", begun.elapsed().as_secs_f64());
    for place in ["warm", "cold"] {
        let begun = Instant::now();
        assert_eq!(count(&dir).expect("lists"), part * PARTS, "{place}");
        eprintln!("list, {place}: {:.1} us each", micros_each(begun, entries));
        let begun = Instant::now();
        for _ in 0..LOOKUPS {
            fs::metadata(dir.join(name(rng.random_range(0..entries)))).expect("is there");
        }
        eprintln!("stat, {place}: {:.0} us each", micros_each(begun, LOOKUPS));
        assert!(fs::metadata(dir.join("none")).is_err());
        if place == "warm" {
            stand.move_elsewhere();
        }
    }
    let mut deletes = Vec::new();
    for at in 0..PARTS {
        let begun = Instant::now();
        for n in at * part..(at + 1) * part {
            fs::remove_file(dir.join(name(n))).expect("unlinks");
        }
        deletes.push(micros_each(begun, part));
    }
    assert_flat("unlink", &deletes);
    assert_eq!(count(&dir).expect("lists"), 0);
    fs::remove_dir(&dir).expect("is empty");
    stand.close();
}
