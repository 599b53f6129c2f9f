//! Bodies into files: streams that go on where they broke off, and large objects in ranges that come
//! at the same time and are not fetched again by the next run.
//!
//! Memory: [`GATHER`] bytes and a frame for each stream. Every range asks for the ETag that the
//! listing named, so that no file is made of two versions.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::bucket::Bucket;
use super::report::{ExchangeError, Run, Trouble};
use super::spot::Spot;
use super::tree::{PART_NAME, Tree, WORK_DIR};
use crate::base::hex;
use crate::store::class;
use crate::store::s3::{Body, Listed};

/// Objects from this size on are fetched in ranges.
pub const LARGE: u64 = 32 << 20;
/// Bytes of a range.
const PART: u64 = 16 << 20;
/// Ranges of one object at a time.
const PARTS_AT_ONCE: usize = 8;
/// Bytes that are gathered before they are written.
const GATHER: usize = 1 << 20;
/// How often a stream goes on where it broke off without having moved.
const STUCK_MAX: u32 = 6;
/// The xattr of an unfinished file that says which ranges it has.
const PARTS: &str = "user.sealfs.parts";

/// What takes bytes in their order: a file, or a cipher before one.
pub trait Sink: Send {
    /// Takes the next bytes. May block on the file system.
    ///
    /// # Errors
    /// Those of writing, and whatever is wrong with the bytes.
    fn take(&mut self, bytes: Bytes) -> Result<(), Trouble>;
}

/// A file, from an offset on.
pub struct FileSink {
    file: Arc<File>,
    at: u64,
}

impl FileSink {
    /// Writes to `file` from `at` on.
    pub fn new(file: Arc<File>, at: u64) -> FileSink {
        FileSink { file, at }
    }
}

impl Sink for FileSink {
    fn take(&mut self, bytes: Bytes) -> Result<(), Trouble> {
        self.file.write_all_at(&bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Runs `work`, which may block on the file system, on a thread for that.
///
/// # Errors
/// Those of `work`; a panic of it ends the run.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => {
            let source = io::Error::other(e.to_string());
            let what = "a thread of this command".to_owned();
            Err(Trouble::End(ExchangeError::Local { what, source }))
        }
    }
}

/// Fetches `range` of an object into `sink`, beginning with `body` if one has begun. A stream that
/// breaks off is asked for again from there.
///
/// # Errors
/// Those of the store once trying again has not helped, and of the sink.
pub async fn pour<S: Sink + 'static>(
    bucket: &Bucket,
    run: &Run,
    object: &Listed,
    range: Range<u64>,
    mut body: Option<Body>,
    mut sink: S,
) -> Result<S, Trouble> {
    let (mut at, mut stuck) = (range.start, 0);
    while at < range.end {
        let mut stream = match body.take() {
            Some(body) => body,
            None => {
                let tag = Some(object.e_tag.as_str());
                bucket.fetch(run, &object.key, Some(at..range.end), tag).await?.1
            }
        };
        let before = at;
        let mut gathered = BytesMut::new();
        let broken = loop {
            let frame = stream.next().await;
            if let Some(Ok(bytes)) = &frame {
                gathered.extend_from_slice(bytes);
            }
            let is_over = !matches!(frame, Some(Ok(_)));
            if gathered.len() >= GATHER || is_over && !gathered.is_empty() {
                let bytes = gathered.split().freeze();
                let len = bytes.len() as u64;
                run.pace(len).await?;
                sink = blocking(move || sink.take(bytes).map(|()| sink)).await?;
                at += len;
                run.moved(len);
            }
            if run.is_stopped() {
                return Err(Trouble::End(ExchangeError::Stopped));
            }
            match frame {
                Some(Ok(_)) => {}
                Some(Err(e)) => break Some(e),
                None => break None,
            }
        };
        stuck = if at > before { 0 } else { stuck + 1 };
        match broken {
            Some(e) if !class(&e).is_retryable() || stuck > STUCK_MAX => return Err(e.into()),
            _ if at < range.end && stuck > STUCK_MAX => {
                return Err(Trouble::One("the store sends fewer bytes than there are".into()));
            }
            _ if at < range.end => tokio::time::sleep(Duration::from_millis(100 << stuck)).await,
            _ => {}
        }
    }
    Ok(sink)
}

/// The unfinished file of a large object, by key and ETag: the next run finds it.
pub fn unfinished(object: &Listed) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(object.key.as_bytes());
    hash.update([0]);
    hash.update(object.e_tag.as_bytes());
    Path::new(WORK_DIR).join(format!("{PART_NAME}{}", hex(&hash.finalize()[..16])))
}

/// Which ranges of an unfinished file are there.
struct Parts {
    /// One byte each: `1` is there.
    have: Vec<u8>,
}

impl Parts {
    fn of(tree: &Tree, path: &Path, object: &Listed) -> io::Result<Parts> {
        let count = object.size.div_ceil(PART) as usize;
        let fresh = Parts { have: vec![b'0'; count] };
        let Some(stat) = tree.stat(path)? else { return Ok(fresh) };
        let found = tree.xattr(path, PARTS)?.unwrap_or_default();
        let fits = stat.is_file() && found.len() == count.div_ceil(8) && stat.size == object.size;
        if !fits {
            return Ok(fresh);
        }
        let has = |n: usize| if found[n / 8] >> (n % 8) & 1 == 1 { b'1' } else { b'0' };
        Ok(Parts { have: (0..count).map(has).collect() })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bits = vec![0u8; self.have.len().div_ceil(8)];
        for (n, _) in self.have.iter().enumerate().filter(|(_, have)| **have == b'1') {
            bits[n / 8] |= 1 << (n % 8);
        }
        bits
    }
}

/// Fetches a large object into its unfinished file, in ranges, but for those that an earlier run has
/// brought. `streams` bounds how many streams there are in the whole run.
///
/// # Errors
/// Those of the store and of the file system; what was fetched stays for the next run.
pub async fn fetch_large(
    bucket: &Bucket,
    tree: &Arc<Tree>,
    run: &Arc<Run>,
    object: &Listed,
    streams: &Arc<Semaphore>,
) -> Result<PathBuf, Trouble> {
    let path = unfinished(object);
    let (t, p, o) = (tree.clone(), path.clone(), object.clone());
    let (file, parts) = blocking(move || {
        let parts = Parts::of(&t, &p, &o)?;
        let file = t.write(&p)?;
        file.set_len(o.size)?;
        Ok((Arc::new(file), parts))
    })
    .await?;
    let range = |n: usize| n as u64 * PART..((n as u64 + 1) * PART).min(object.size);
    let (have, missing): (Vec<usize>, Vec<usize>) =
        (0..parts.have.len()).partition(|&n| parts.have[n] == b'1');
    run.moved(have.into_iter().map(|n| range(n).end - range(n).start).sum());
    let parts = Arc::new(Mutex::new(parts));
    let part = async |n: usize| -> Result<(), Trouble> {
        let _stream = streams.acquire().await; // never closed
        let sink = FileSink::new(file.clone(), range(n).start);
        pour(bucket, run, object, range(n), None, sink).await?;
        let (tree, file, parts) = (tree.clone(), file.clone(), parts.clone());
        blocking(move || {
            // First the bytes, else a crash of the machine could leave a mark without them.
            file.sync_data()?;
            let mut parts = parts.lock();
            parts.have[n] = b'1';
            let spot = Spot::Open { file: &file, perm: None };
            tree.set_xattr(spot, OsStr::new(PARTS), Some(&parts.bytes()))?;
            Ok(())
        })
        .await
    };
    let mut at_work = futures::stream::iter(missing).map(part).buffer_unordered(PARTS_AT_ONCE);
    while let Some(done) = at_work.next().await {
        done?;
    }
    Ok(path)
}

/// The xattr to take off before a file gets its name.
pub const PARTS_XATTR: &str = PARTS;
