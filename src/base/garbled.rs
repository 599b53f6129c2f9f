//! For unit tests of what reads text and bytes of others: seeds, whole and garbled.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Garbled copies of each seed.
const VARIANTS: u64 = 2_000;

/// Calls `check` with each seed, and with copies of it that are cut, repeated, mixed with others and have
/// bytes changed; `words` are put in here and there.
pub(crate) fn garbled(seeds: &[&[u8]], words: &[&[u8]], mut check: impl FnMut(&[u8])) {
    let full = std::env::var_os("SEALFS_TEST_FULL").is_some();
    let variants = if full { VARIANTS * 100 } else { VARIANTS };
    for (n, seed) in seeds.iter().enumerate() {
        check(seed);
        // The same in every run.
        let mut random = StdRng::seed_from_u64(n as u64);
        for _ in 0..variants {
            let mut bytes = seed.to_vec();
            for _ in 0..random.random_range(1..=4) {
                change(&mut bytes, seeds, words, &mut random);
            }
            check(&bytes);
        }
    }
}

fn change(bytes: &mut Vec<u8>, seeds: &[&[u8]], words: &[&[u8]], random: &mut StdRng) {
    let at = random.random_range(0..=bytes.len());
    let end = at + random.random_range(0..=bytes.len() - at);
    match random.random_range(0..8) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 => bytes.extend_from_within(at..end),
        3 => bytes.insert(at, random.random()),
        4 => {
            let other = seeds[random.random_range(0..seeds.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.random_range(0..=other.len())..]);
        }
        5 | 6 if !words.is_empty() => {
            drop(bytes.splice(at..at, words[random.random_range(0..words.len())].iter().copied()));
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.random_range(0..8);
            }
        }
    }
}

/// The same with text.
pub(crate) fn garbled_text(seeds: &[&str], words: &[&str], mut check: impl FnMut(&str)) {
    let seeds: Vec<_> = seeds.iter().map(|seed| seed.as_bytes()).collect();
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    garbled(&seeds, &words, |bytes| check(&String::from_utf8_lossy(bytes)));
}
