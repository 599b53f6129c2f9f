//! Tests of `cobblestone.rs`: shapes and refusals. The published vectors are in
//! `tests/format/seal_vectors.rs`, the second implementation in `tests/format/python_interop.rs`.

use super::super::offsets::{cipher_range, last_chunk};
use super::*;
use proptest::prelude::*;

const CONTEXT: &[u8] = b"a place";
const LENGTHS: [usize; 9] = [0, 1, 100, 16_383, 16_384, 16_385, 32_767, 32_768, 40_000];

fn key() -> InputKey {
    InputKey::from_bytes(&[0x5A; 32])
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i >> 12) as u8).collect()
}

#[test]
fn every_length_around_a_chunk_opens_with_either_backend() {
    // Guards against a boundary handled differently by sealing, opening or a backend.
    for len in LENGTHS {
        let plain = bytes(len);
        for backend in [Backend::Reference, Backend::Bulk] {
            let message = seal_with(backend, &key(), CONTEXT, &plain);
            assert_eq!(message.len() as u64, cipher_len(len as u64));
            for other in [Backend::Reference, Backend::Bulk] {
                assert_eq!(open_with(other, &key(), CONTEXT, &message).unwrap(), plain);
            }
        }
        let salt = [3; SALT];
        assert_eq!(
            seal_with_salt(Backend::Bulk, &key(), CONTEXT, &salt, &plain),
            seal_with_salt(Backend::Reference, &key(), CONTEXT, &salt, &plain)
        );
    }
}

#[test]
fn sealing_the_same_bytes_twice_gives_unrelated_messages() {
    // Guards against a reused salt, which would repeat key and nonce.
    let (a, b) = (seal(&key(), CONTEXT, b"same"), seal(&key(), CONTEXT, b"same"));
    assert_ne!(a[..SALT], b[..SALT]);
    assert_ne!(a[HEADER..], b[HEADER..]);
}

#[test]
fn a_message_opens_only_under_its_key_and_context() {
    // Guards against a swapped object: another context or key must fail at the commitment.
    let message = seal(&key(), CONTEXT, &bytes(20_000));
    assert_eq!(open(&key(), b"another place", &message), Err(OpenError::Commitment));
    let other = InputKey::from_bytes(&[0x5B; 32]);
    assert_eq!(open(&other, CONTEXT, &message), Err(OpenError::Commitment));
}

#[test]
fn any_flipped_bit_is_found_and_located() {
    // Guards against a byte outside every check: flip one in salt, commitment, both chunks, tags.
    let message = seal(&key(), CONTEXT, &bytes(20_000));
    let expected = |at: usize| match at {
        0..HEADER => OpenError::Commitment,
        _ => OpenError::Chunk(((at - HEADER) / CHUNK_CIPHER) as u64),
    };
    for at in (0..100).chain(16_430..16_480).chain((0..message.len()).step_by(331)) {
        let mut bad = message.clone();
        bad[at] ^= 0x10;
        assert_eq!(open(&key(), CONTEXT, &bad), Err(expected(at)), "byte {at}");
    }
}

#[test]
fn any_truncation_or_extension_is_refused() {
    // Guards against a shortened object read as a shorter file: cut at samples of every kind of
    // place, append bytes, drop the last chunk, repeat it.
    for len in [0usize, 10, 16_384, 33_000] {
        let message = seal(&key(), CONTEXT, &bytes(len));
        for cut in (0..message.len()).step_by(97).chain([HEADER, message.len() - 1]) {
            assert!(open(&key(), CONTEXT, &message[..cut]).is_err(), "{len} cut to {cut}");
        }
        for extra in [1usize, 15, 16, 17] {
            let longer = [&message[..], &vec![0; extra]].concat();
            assert!(open(&key(), CONTEXT, &longer).is_err(), "{len} with {extra} more");
        }
        let tail = &message[(HEADER + len / CHUNK_PLAIN * CHUNK_CIPHER)..];
        assert!(open(&key(), CONTEXT, &[&message[..], tail].concat()).is_err());
    }
}

#[test]
fn a_failed_open_leaves_the_output_as_it_was() {
    // Guards against unauthenticated or partial plaintext reaching a caller's buffer.
    let mut message = seal(&key(), CONTEXT, &bytes(40_000));
    *message.last_mut().unwrap() ^= 1;
    let header = message.first_chunk().unwrap();
    let opener = Opener::new(&key(), CONTEXT, header).unwrap();
    let mut out = b"before".to_vec();
    let result = opener.open_chunks(0, &message[HEADER..], true, &mut out);
    assert_eq!(result, Err(OpenError::Chunk(2)));
    assert_eq!(out, b"before");
    let mut place = vec![0xee; 40_000];
    assert_eq!(opener.open_to(0, &message[HEADER..], true, &mut place), result);
    assert!(place.iter().all(|b| *b == 0), "nothing of it is left");
}

#[test]
fn the_last_chunk_alone_proves_the_length() {
    // Guards against believing an object's length before anything vouches for it.
    for len in LENGTHS {
        let message = seal(&key(), CONTEXT, &bytes(len));
        let opener = Opener::new(&key(), CONTEXT, message.first_chunk().unwrap()).unwrap();
        let r = last_chunk(len as u64);
        let cipher = &message[r.cipher.start as usize..r.cipher.end as usize];
        let mut out = vec![];
        opener.open_chunks(r.first_chunk, cipher, r.ends_message, &mut out).unwrap();
        assert_eq!(out, &bytes(len)[len / CHUNK_PLAIN * CHUNK_PLAIN..]);
        // A middle chunk presented as the last one is never accepted.
        if len > CHUNK_PLAIN {
            let first = &message[HEADER..HEADER + CHUNK_CIPHER];
            assert!(opener.open_chunks(0, first, true, &mut out).is_err());
            assert!(opener.open_chunks(1, first, false, &mut out).is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn parts_and_pieces_seal_like_one_buffer(cuts in prop::collection::vec(0..50_000usize, 0..6)) {
        // Guards against bytes lost or doubled where parts meet chunks, in both ways of sealing.
        let plain = bytes(50_000);
        let mut cuts = [vec![0], cuts, vec![50_000]].concat();
        cuts.sort_unstable();
        let parts: Vec<&[u8]> = cuts.windows(2).map(|w| &plain[w[0]..w[1]]).collect();
        let mut out = b"kept".to_vec();
        seal_into(&key(), CONTEXT, &parts, &mut out);
        prop_assert_eq!(&out[..4], b"kept");
        prop_assert_eq!(&open(&key(), CONTEXT, &out[4..]).unwrap(), &plain);
        let mut place = vec![0xee; cipher_len(plain.len() as u64) as usize];
        seal_to(&key(), CONTEXT, &parts, &mut place);
        prop_assert_eq!(&open(&key(), CONTEXT, &place).unwrap(), &plain);
        out.clear();
        let mut sealer = Sealer::new(&key(), CONTEXT, &mut out);
        parts.iter().for_each(|part| sealer.push(part, &mut out));
        sealer.finish(&mut out);
        prop_assert_eq!(open(&key(), CONTEXT, &out).unwrap(), plain);
    }

    #[test]
    fn any_range_opens_from_its_chunks(len in 0..70_000usize, a in 0..70_000usize, b in 0..70_000usize) {
        // Guards against range reads that differ from the whole: compare with a slice.
        let plain = bytes(len);
        let (start, end) = (a.min(b).min(len), a.max(b).min(len));
        let message = seal(&key(), CONTEXT, &plain);
        let opener = Opener::new(&key(), CONTEXT, message.first_chunk().unwrap()).unwrap();
        let r = cipher_range(start as u64..end as u64, len as u64);
        let cipher = &message[r.cipher.start as usize..r.cipher.end as usize];
        let mut out = vec![];
        opener.open_chunks(r.first_chunk, cipher, r.ends_message, &mut out).unwrap();
        prop_assert_eq!(&out[r.skip..r.skip + end - start], &plain[start..end]);
    }
}
