//! Faults below the sealed layer, provoked in a memory store.

use super::*;
use crate::seal::offsets::{CHUNK_CIPHER, CHUNK_PLAIN};
use crate::store::class;
use object_store::GetRange;
use object_store::memory::InMemory;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

const P: usize = CHUNK_PLAIN;

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn fresh() -> (Arc<InMemory>, Sealed) {
    let below = Arc::new(InMemory::new());
    let sealed = Sealed::new(below.clone(), VolumeKeys::random_for_tests(1));
    (below, sealed)
}

/// A second reader of the same store, which remembers nothing.
fn reader(below: &Arc<InMemory>) -> Sealed {
    Sealed::new(below.clone(), VolumeKeys::random_for_tests(1))
}

async fn raw(below: &InMemory, location: &Path) -> Vec<u8> {
    below.get(location).await.unwrap().bytes().await.unwrap().to_vec()
}

async fn is_corrupt(sealed: &Sealed, location: &Path, range: Range<u64>) -> bool {
    match sealed.get_range(location, range).await {
        Ok(_) => false,
        Err(e) => {
            assert_eq!(class(&e), ErrorClass::Corrupt, "{e}");
            assert!(e.to_string().contains(location.as_ref()), "{e}");
            true
        }
    }
}

#[tokio::test]
async fn ranges_and_sizes_at_every_boundary_equal_those_of_the_plaintext() {
    // Guards against off-by-one between plain and cipher offsets: every kind of range at chunk
    // boundaries, by a reader that knows the header and by one that does not.
    let (below, writer) = fresh();
    for len in [0, 1, P - 1, P, P + 1, 2 * P, 5 * P + 77, 9 * P] {
        let location = Path::from(format!("meta/{len}"));
        let plain = bytes(len);
        writer.put(&location, plain.clone().into()).await.unwrap();
        assert_eq!(raw(&below, &location).await.len() as u64, cipher_len(len as u64));
        let len = len as u64;
        let edges: Vec<u64> = [0, 1, P - 1, P, P + 1, 4 * P, 5 * P, 6 * P]
            .into_iter()
            .map(|e| e as u64)
            .chain([len.saturating_sub(1), len, len + 1, len + P as u64])
            .collect();
        let mut ranges = vec![];
        for &a in &edges {
            ranges.push(GetRange::Offset(a));
            ranges.push(GetRange::Suffix(a));
            ranges.extend(edges.iter().filter(|&&b| b > a).map(|&b| GetRange::Bounded(a..b)));
        }
        for range in ranges {
            let expected = range.as_range(len).ok();
            for sealed in [reader(&below), writer.clone()] {
                let options = GetOptions::new().with_range(Some(range.clone()));
                let got = sealed.get_opts(&location, options).await;
                match &expected {
                    None => {
                        let e = got.expect_err("out of range");
                        assert_eq!(class(&e), ErrorClass::Other, "{range:?} of {len}: {e}");
                    }
                    Some(r) => {
                        let got = got.unwrap_or_else(|e| panic!("{range:?} of {len}: {e}"));
                        assert_eq!((got.meta.size, got.range.clone()), (len, r.clone()));
                        let got = got.bytes().await.unwrap();
                        assert_eq!(got[..], plain[r.start as usize..r.end as usize]);
                    }
                }
            }
        }
        assert_eq!(reader(&below).head(&location).await.unwrap().size, len);
    }
}

#[tokio::test]
async fn a_flipped_bit_in_any_region_gives_corrupt_and_never_wrong_bytes() {
    // Guards against unauthenticated regions: salt, commitment, each chunk's body and tag.
    let (below, writer) = fresh();
    let location = Path::from("seg/00/00");
    let plain = bytes(3 * P + 5);
    writer.put(&location, plain.clone().into()).await.unwrap();
    let good = raw(&below, &location).await;
    let c = CHUNK_CIPHER;
    let spots = [0, 23, 24, 55, 56, 56 + c - 1, 56 + c, 56 + 2 * c + 9, 56 + 3 * c, good.len() - 1];
    for spot in spots {
        let mut bad = good.clone();
        bad[spot] ^= 0x10;
        below.put(&location, bad.into()).await.unwrap();
        let sealed = reader(&below);
        assert!(is_corrupt(&sealed, &location, 0..plain.len() as u64).await, "byte {spot}");
        assert_eq!(sealed.damaged(), std::slice::from_ref(&location));
        // What does not depend on the damaged chunk stays readable.
        let hit = spot.checked_sub(56).map(|at| at / c);
        for chunk in 0..4 {
            let range = (chunk * P) as u64..(chunk * P + 5) as u64;
            match hit {
                Some(hit) if hit != chunk => {
                    let got = sealed.get_range(&location, range.clone()).await.unwrap();
                    assert_eq!(got[..], plain[range.start as usize..range.end as usize]);
                }
                _ => assert!(is_corrupt(&sealed, &location, range).await),
            }
        }
    }
}

#[tokio::test]
async fn truncation_anywhere_is_noticed_by_whole_reads_and_by_head() {
    // Guards against a shortened object passing for a shorter file: cuts at chunk boundaries,
    // inside tags, inside the header and to nothing.
    let (below, writer) = fresh();
    let location = Path::from("meta/x.sst");
    writer.put(&location, bytes(3 * P).into()).await.unwrap();
    let good = raw(&below, &location).await;
    let c = CHUNK_CIPHER;
    for len in [
        0,
        1,
        55,
        56,
        57,
        72,
        56 + 16,
        56 + c,
        56 + c + 16,
        56 + 2 * c + 40,
        56 + 3 * c,
        56 + 3 * c + 15,
    ] {
        below.put(&location, good[..len].to_vec().into()).await.unwrap();
        let sealed = reader(&below);
        assert!(is_corrupt(&sealed, &location, 0..(3 * P) as u64).await, "cut to {len}");
        let e = sealed.head(&location).await.expect_err("size of a cut object");
        assert_eq!(class(&e), ErrorClass::Corrupt, "cut to {len}: {e}");
        // A range that is not there any more is damage, not "past the end".
        assert!(is_corrupt(&sealed, &location, (3 * P - 1) as u64..(3 * P) as u64).await);
        let whole = sealed.get(&location).await.expect_err("cut object");
        assert_eq!(class(&whole), ErrorClass::Corrupt);
    }
    let mut longer = good.clone();
    longer.extend_from_slice(&[0; 40]);
    below.put(&location, longer.into()).await.unwrap();
    assert_eq!(class(&reader(&below).get(&location).await.unwrap_err()), ErrorClass::Corrupt);
}

#[tokio::test]
async fn objects_under_another_name_or_volume_do_not_open() {
    // Guards against swapped, copied and imported objects: the same valid message elsewhere.
    let (below, writer) = fresh();
    let (a, b) = (Path::from("seg/aa/a"), Path::from("seg/bb/b"));
    writer.put(&a, bytes(P + 1).into()).await.unwrap();
    writer.put(&b, bytes(P + 1).into()).await.unwrap();
    let (raw_a, raw_b) = (raw(&below, &a).await, raw(&below, &b).await);
    below.put(&a, raw_b.into()).await.unwrap();
    below.put(&b, raw_a.clone().into()).await.unwrap();
    // Also for the writer, which remembers the openers of what it wrote.
    for sealed in [reader(&below), writer] {
        for location in [&a, &b] {
            assert!(is_corrupt(&sealed, location, 0..5).await);
            assert_eq!(class(&sealed.head(location).await.unwrap_err()), ErrorClass::Corrupt);
        }
    }
    below.put(&a, raw_a.into()).await.unwrap();
    let stranger = Sealed::new(below.clone(), VolumeKeys::random_for_tests(2));
    assert!(is_corrupt(&stranger, &a, 0..5).await);
    reader(&below).get_range(&a, 0..5).await.unwrap();
}

#[tokio::test]
async fn an_object_replaced_by_another_writer_is_read_with_its_new_header() {
    // Guards against the remembered opener of an old version turning a good object into damage.
    let (below, writer) = fresh();
    let location = Path::from("meta/manifest");
    writer.put(&location, "one".into()).await.unwrap();
    writer.get_range(&location, 0..3).await.unwrap();
    reader(&below).put(&location, "two!".into()).await.unwrap();
    assert_eq!(writer.head(&location).await.unwrap().size, 4);
    reader(&below).put(&location, "three".into()).await.unwrap();
    assert_eq!(writer.get_range(&location, 0..3).await.unwrap(), "thr");
    assert!(writer.damaged().is_empty());
}

struct Counting(AtomicUsize, Arc<InMemory>, Vec<u8>);

impl Invalidate for Counting {
    fn invalidate(&self, location: &Path) {
        self.0.fetch_add(1, SeqCst);
        let (store, location, good) = (self.1.clone(), location.clone(), self.2.clone());
        futures::executor::block_on(async { store.put(&location, good.into()).await.unwrap() });
    }
}

#[tokio::test]
async fn damage_in_the_cache_is_dropped_and_read_from_the_store() {
    // Guards against a bad disk giving EIO for data the bucket has: the "cache" here is the
    // store below, repaired by the invalidation.
    let (below, writer) = fresh();
    let location = Path::from("seg/00/11");
    writer.put(&location, bytes(P).into()).await.unwrap();
    let good = raw(&below, &location).await;
    let mut bad = good.clone();
    bad[100] ^= 1;
    below.put(&location, bad.into()).await.unwrap();
    let cache = Arc::new(Counting(AtomicUsize::new(0), below.clone(), good));
    let keys = VolumeKeys::random_for_tests(1);
    let sealed = Sealed::with_cache(below.clone(), keys, Some(cache.clone()));
    assert_eq!(sealed.get_range(&location, 0..50).await.unwrap()[..], bytes(50)[..]);
    assert_eq!(cache.0.load(SeqCst), 1);
    assert!(sealed.damaged().is_empty());
}

#[tokio::test]
async fn multipart_gives_the_same_message_as_a_put_whatever_the_parts() {
    // Guards against lost or reordered bytes when parts do not match chunks.
    let (below, writer) = fresh();
    let plain = bytes((9 << 20) + 12_345);
    for part in [P - 1, 1 << 20, 5 << 20, plain.len()] {
        let location = Path::from(format!("meta/{part}.sst"));
        let mut upload = writer.put_multipart(&location).await.unwrap();
        for piece in plain.chunks(part) {
            upload.put_part(Bytes::copy_from_slice(piece).into()).await.unwrap();
        }
        upload.complete().await.unwrap();
        let got = reader(&below).get(&location).await.unwrap();
        assert_eq!(got.meta.size, plain.len() as u64);
        assert_eq!(got.bytes().await.unwrap(), plain);
    }
}

#[tokio::test]
async fn damage_is_forgotten_when_what_failed_reads_well_again() {
    // Guards against a warning, and a bucket from which nothing is deleted, for ever after damage
    // that was mended; and against forgetting it because another part reads well.
    let (below, writer) = fresh();
    let location = Path::from("seg/ab/x");
    writer.put(&location, bytes(3 * P).into()).await.unwrap();
    let good = raw(&below, &location).await;
    let mut bad = good.clone();
    bad[HEADER + 5] ^= 1;
    below.put(&location, bad.into()).await.unwrap();
    let sealed = reader(&below);
    assert!(is_corrupt(&sealed, &location, 0..10).await);
    let other = 2 * P as u64..2 * P as u64 + 5;
    sealed.get_range(&location, other).await.unwrap();
    assert_eq!(sealed.damaged(), std::slice::from_ref(&location));
    below.put(&location, good.into()).await.unwrap();
    sealed.look_again(Instant::now()).await;
    assert_eq!(sealed.damaged().len(), 1, "not yet due");
    sealed.look_again(Instant::now() + Duration::from_secs(3600)).await;
    assert!(sealed.damaged().is_empty());
}

#[tokio::test]
async fn a_segment_that_is_not_there_is_asked_for_again_in_bounded_time() {
    // Guards against EIO for one passing 404, and against asking for ever.
    let below = Arc::new(InMemory::new());
    let keys = VolumeKeys::random_for_tests(1);
    let patience = Duration::from_millis(200);
    let sealed = Sealed::with_patience(below.clone(), keys, None, patience);
    let location = Path::from("seg/ab/x");
    sealed.put(&location, bytes(10).into()).await.unwrap();
    let there = raw(&below, &location).await;
    below.delete(&location).await.unwrap();
    sealed.forget(&location);
    let comes_back = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        below.put(&location, there.into()).await.unwrap();
    };
    let (read, ()) = futures::join!(sealed.get_range(&location, 0..5), comes_back);
    assert_eq!(read.unwrap()[..], bytes(10)[..5]);
    assert!(sealed.damaged().is_empty());
    below.delete(&location).await.unwrap();
    sealed.forget(&location);
    let gone = sealed.get_range(&location, 0..5).await.unwrap_err();
    assert_eq!(class(&gone), ErrorClass::NotFound);
    assert_eq!(sealed.damaged(), std::slice::from_ref(&location));
}
