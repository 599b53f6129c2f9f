//! Replays the committed seeds of `fuzz/` on the ordinary compiler, whole, cut and with bytes
//! changed, so that what fuzzing once found (and what it started from) stays checked everywhere.

#[path = "../fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::PathBuf;

use sealfs::journal::disk_sim::SplitMix;
use sealfs::seal::{KdfParams, Keyring, RootKey, Secret};

/// Changed copies of each seed in an ordinary run.
const VARIANTS: u64 = 300;

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|p| (p.clone(), fs::read(p).expect("a seed"))).collect()
}

fn replay(target: &str, check: fn(&[u8])) {
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "no seeds of {target}");
    let full = std::env::var_os("SEALFS_TEST_FULL").is_some();
    let variants = if full { VARIANTS * 100 } else { VARIANTS };
    for (n, (path, seed)) in seeds.iter().enumerate() {
        eprintln!("{}", path.display());
        check(seed);
        let mut random = SplitMix(n as u64);
        for _ in 0..variants {
            let mut bytes = seed.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len() as u64 + 1) as usize;
                match random.below(4) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, random.below(256) as u8),
                    _ => {
                        if let Some(byte) = bytes.get_mut(at) {
                            *byte = random.below(256) as u8;
                        }
                    }
                }
            }
            check(&bytes);
        }
    }
}

#[test]
fn no_bytes_from_the_bucket_open_without_having_been_sealed() {
    // Guards against a panic, or an acceptance, on what an attacker stores.
    replay("sealed", checks::sealed);
}

#[test]
fn no_bytes_of_a_journal_make_it_panic_or_believe() {
    // Guards against a journal file that crashes the next mount.
    replay("journal", checks::journal);
}

/// Makes the seeds of the keyring again, after a change of the format:
/// `cargo test --test fuzz_corpus -- --ignored`.
#[test]
#[ignore = "writes the seeds"]
fn make_the_seeds_of_the_keyring() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/keyring");
    let write = |name: &str, ring: &Keyring| {
        fs::write(dir.join(name), ring.to_bytes()).expect("writes");
    };
    let made = |secret: &Secret| {
        Keyring::create(RootKey::random(), secret, "first", KdfParams::FLOOR, 1_800_000_000)
    };
    let passphrase = Secret::Passphrase(b"a passphrase".to_vec().into());
    write("passphrase", &made(&passphrase).expect("a keyring").0);
    let (mut ring, keys) = made(&checks::keyring_secret()).expect("a keyring");
    write("key-file", &ring);
    let keys = ring.rotate(&keys).expect("rotates");
    ring.add_slot(&keys, &passphrase, "second", KdfParams::FLOOR, 1_800_000_100).expect("adds");
    write("rotated", &ring);
    ring.retire_root(&keys, 1).expect("retires");
    write("retired", &ring);
}

#[test]
fn no_bytes_of_a_keyring_make_it_panic_or_read_back_as_another() {
    // Guards against a keyring that crashes every mount, or is rewritten into something else.
    replay("keyring", checks::keyring);
}

#[test]
fn no_row_reads_back_as_another() {
    // Guards against rows that decode to one thing and are written again as another.
    replay("rows", checks::rows);
}

#[test]
fn no_store_argument_is_shown_as_another() {
    // Guards against `status` and hints that name another place than is used.
    replay("location", checks::location);
}
