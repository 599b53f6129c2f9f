//! For unit tests of what reads text and bytes of others: seeds, whole and garbled.

/// Garbled copies of each seed.
const VARIANTS: u64 = 2_000;

/// Numbers that are the same in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

/// Calls `check` with each seed, and with copies of it that are cut, repeated, mixed with others and have
/// bytes changed; `words` are put in here and there.
pub(crate) fn garbled(seeds: &[&[u8]], words: &[&[u8]], mut check: impl FnMut(&[u8])) {
    let full = std::env::var_os("SEALFS_TEST_FULL").is_some();
    let variants = if full { VARIANTS * 100 } else { VARIANTS };
    for (n, seed) in seeds.iter().enumerate() {
        check(seed);
        let mut random = Random(n as u64);
        for _ in 0..variants {
            let mut bytes = seed.to_vec();
            for _ in 0..=random.below(4) {
                change(&mut bytes, seeds, words, &mut random);
            }
            check(&bytes);
        }
    }
}

fn change(bytes: &mut Vec<u8>, seeds: &[&[u8]], words: &[&[u8]], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = at + random.below(bytes.len() - at + 1);
    match random.below(8) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 => bytes.extend_from_within(at..end),
        3 => bytes.insert(at, random.below(256) as u8),
        4 => {
            let other = seeds[random.below(seeds.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
        }
        5 | 6 if !words.is_empty() => {
            drop(bytes.splice(at..at, words[random.below(words.len())].iter().copied()));
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
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
