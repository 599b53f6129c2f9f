//! From a tree into a bucket.
//!
//! One PutObject for each small file, parts for a large one. Time, permissions and owner go along as
//! metadata that rclone and s3fs read; the time is how the next run knows what has changed (one
//! HeadObject for each file of the right size). What an object cannot hold is counted and said.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::PutPayload;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::attributes::{mtime_text, to_metadata};
use super::bucket::{Bucket, patiently};
use super::compare::{ORIGIN, md5_of};
use super::large::blocking;
use super::parallel::each;
use super::report::{Event, ExchangeError, Run, Trouble};
use super::resume::{Cut, Remember, Underway, Uploads};
use super::sealed::{SealWith, instructed, instruction_key, object_size};
use super::spot::Spot;
use super::tree::{Stat, Tree, stat_fd};
use super::walk::{Item, say_what_is_lost, walk};
use crate::base::{counted, one_line, read_up_to};
use crate::s3ec::{PLAIN_MAX, Sealing};
use crate::store::s3::{About, Labels, Listed, PartNote, Sending};

/// Bytes of a part, and of the largest file that is put whole. Larger for files that would need more
/// than [`PARTS_MAX`].
const PART: u64 = 8 << 20;
/// Parts of an upload (S3 User Guide, "Amazon S3 multipart upload limits").
const PARTS_MAX: u64 = 10_000;
/// Parts of one file at a time.
const PARTS_AT_ONCE: usize = 4;
/// Bytes of parts that are in memory in the whole run, as long as one part is not larger.
const MEMORY_MAX: u64 = 128 << 20;
/// Bytes that one permit of that memory stands for.
const UNIT: u64 = 1 << 20;
/// Tries of a file that changes while it is read.
const TRIES_MAX: u32 = 3;
/// What is said of a file that is shorter than it was.
const CHANGED: &str = "it changes while it is read";
/// Keys that are deleted by one request.
const DELETE_BATCH: usize = 1000;

/// How objects are made.
#[derive(Default)]
pub struct How {
    /// Their storage class; `None` leaves it to the bucket.
    pub storage_class: Option<String>,
    /// How they are sealed; `None` leaves them in clear.
    pub seal: Option<SealWith>,
    /// Where uploads in parts are remembered for the next run; `None`: nowhere.
    pub remember: Option<Remember>,
}

/// What the tasks of one export share.
struct Export {
    tree: Arc<Tree>,
    bucket: Bucket,
    run: Arc<Run>,
    listed: Vec<Listed>,
    how: How,
    /// Keys that instruction files get.
    instructions: HashSet<String>,
    memory: Arc<Semaphore>,
    uploads: Uploads,
}

/// Exports the files of `tree` below the prefix of `bucket`.
///
/// # Errors
/// What ends the run; what failed of single files is in the report.
pub async fn export_tree(
    tree: Arc<Tree>,
    bucket: Bucket,
    run: Arc<Run>,
    how: How,
) -> Result<(), ExchangeError> {
    let listed = bucket.list(&run).await?;
    bucket.refuse_volume(&run, &listed).await?;
    let (t, r, prefix) = (tree.clone(), run.clone(), bucket.prefix.clone());
    let items = match blocking(move || walk(&t, &r, &prefix)).await {
        Ok(items) => items,
        Err(Trouble::End(e)) => return Err(e),
        Err(Trouble::One(why)) => {
            let what = tree.path().display().to_string();
            return Err(ExchangeError::Local { what, source: io::Error::other(why) });
        }
    };
    if items.is_empty() && run.options.delete {
        return Err(ExchangeError::Refused(format!(
            "{} has no file: --delete would delete everything\nhint: check the source",
            tree.path().display()
        )));
    }
    say_what_is_lost(&run);
    let instructions: HashSet<String> = match &how.seal {
        Some(seal) if seal.instruction_file => {
            items.iter().map(|item| instruction_key(&item.key)).collect()
        }
        _ => HashSet::new(),
    };
    let keys: HashSet<String> = items.iter().map(|item| item.key.clone()).collect();
    let memory = Arc::new(Semaphore::new((MEMORY_MAX / UNIT) as usize));
    let uploads = match run.options.dry_run {
        true => Uploads::default(),
        false => Uploads::open(how.remember.as_ref(), &bucket),
    };
    let export = Export { tree, bucket, run, listed, how, instructions, memory, uploads };
    let export = Arc::new(export);
    let done = transfer(&export, items).await;
    let under_way = export.uploads.count() as u64;
    if done.is_err() && under_way > 0 {
        let what = counted(under_way, "large file");
        export.run.say(Event::Note(format!("parts of {what} are there, and not sent again")));
    }
    done?;
    export.delete_rest(&keys).await?;
    export.name_instructions(&keys);
    export.name_unfinished().await;
    Ok(())
}

async fn transfer(export: &Arc<Export>, items: Vec<Item>) -> Result<(), ExchangeError> {
    let one = |item| {
        let export = export.clone();
        async move { export.one(item).await }
    };
    each(&export.run, items, one).await
}

impl Export {
    async fn one(self: &Arc<Self>, item: Item) -> Result<(), ExchangeError> {
        let done = self.file(&item).await;
        self.run.looked_at();
        match done {
            Ok(()) => Ok(()),
            Err(Trouble::One(why)) => {
                let name = item.path.display().to_string();
                match self.is_gone(&item.path).await {
                    true => self.run.vanished(&name),
                    false => self.run.failed(&name, why),
                }
                Ok(())
            }
            Err(Trouble::End(e)) => {
                let why = self.bucket.only_of_one(&self.run, e).await?;
                self.run.failed(&item.path.display().to_string(), why);
                Ok(())
            }
        }
    }

    /// Whether a file was removed since it was found.
    async fn is_gone(&self, path: &Path) -> bool {
        let (tree, path) = (self.tree.clone(), path.to_owned());
        matches!(blocking(move || Ok(tree.stat(&path)?)).await, Ok(None))
    }

    async fn file(self: &Arc<Self>, item: &Item) -> Result<(), Trouble> {
        if self.is_there(item).await? {
            self.run.unchanged(item.stat.size);
            return Ok(());
        }
        if self.run.options.dry_run {
            self.run.say(Event::Would("copy", item.path.to_string_lossy().into_owned()));
            self.run.moved(item.stat.size);
            self.run.copied(item.stat.size);
            return Ok(());
        }
        if self.instructions.contains(&item.key) {
            let why = "its key is that of the instruction file of another file";
            return Err(Trouble::One(why.into()));
        }
        if self.how.seal.is_some() && item.stat.size > PLAIN_MAX {
            let why = format!("it is larger than the format takes, which is {PLAIN_MAX} bytes");
            return Err(Trouble::One(why));
        }
        for _ in 0..TRIES_MAX {
            let (tree, path) = (self.tree.clone(), item.path.clone());
            let (file, stat) = blocking(move || {
                let file = tree.read(&path)?;
                let stat = stat_fd(file.as_raw_fd())?;
                Ok((Arc::new(file), stat))
            })
            .await?;
            let mut labels = self.labels(item, &stat).await?;
            let sealing = self.begin(item, &mut labels).await?;
            let done = match (sealing, stat.size > PART) {
                (Some(sealing), true) => {
                    self.sealed_in_parts(item, &file, &stat, &labels, sealing).await?
                }
                (Some(sealing), false) => self.sealed(item, &file, &stat, &labels, sealing).await?,
                (None, true) => self.in_parts(item, &file, &stat, &labels).await?,
                (None, false) => self.whole(item, &file, &stat, &labels).await?,
            };
            if done {
                self.run.copied(stat.size);
                return Ok(());
            }
        }
        Err(Trouble::One(CHANGED.into()))
    }

    fn listed(&self, key: &str) -> Option<&Listed> {
        let at = self.listed.binary_search_by(|listed| listed.key.as_str().cmp(key)).ok()?;
        self.listed.get(at)
    }

    /// Whether the object is this file already.
    async fn is_there(&self, item: &Item) -> Result<bool, Trouble> {
        let Some(listed) = self.listed(&item.key) else { return Ok(false) };
        if listed.size != object_size(self.how.seal.is_some(), item.stat.size) {
            return Ok(false);
        }
        let Some(about) = self.bucket.about_if_there(&self.run, &item.key).await? else {
            return Ok(false); // deleted since it was listed
        };
        if !self.bucket.store.is_encrypted_as_asked(&about) {
            return Ok(false);
        }
        if let Some(seal) = &self.how.seal
            && (!seal.is_such(&about.metadata) || self.lacks_instruction(item, listed, seal))
        {
            return Ok(false);
        }
        match self.run.options.checksum {
            // What is in a sealed object is not compared: it is sealed again.
            true if self.how.seal.is_some() => Ok(false),
            true => self.has_same_contents(item, listed, &about).await,
            false => Ok(about.metadata.get("mtime") == Some(&mtime_text(item.stat.mtime))),
        }
    }

    /// Whether the object has no instruction file, or one that was put after it: that of a later object, which
    /// a run did not come to put.
    fn lacks_instruction(&self, item: &Item, object: &Listed, seal: &SealWith) -> bool {
        let file = self.listed(&instruction_key(&item.key));
        seal.instruction_file && file.is_none_or(|file| file.modified > object.modified)
    }

    /// Says that instruction files of former objects lie beside those in clear, which would not be read as such.
    fn name_instructions(&self, keys: &HashSet<String>) {
        if self.how.seal.is_some() || self.run.options.delete {
            return;
        }
        let is_left = |listed: &&Listed| {
            let of = instructed(&listed.key);
            of.is_some_and(|of| keys.contains(of) && !keys.contains(&listed.key))
        };
        let left = self.listed.iter().filter(is_left).count() as u64;
        if left > 0 {
            let what = counted(left, "instruction file");
            self.run.say(Event::Note(format!(
                "{what} of former objects beside those in clear, which are taken for sealed ones with them; \
                 --delete takes them away"
            )));
        }
    }

    /// By the MD5 where the ETag is one, else by reading the object.
    async fn has_same_contents(
        &self,
        item: &Item,
        listed: &Listed,
        about: &About,
    ) -> Result<bool, Trouble> {
        let (tree, path) = (self.tree.clone(), item.path.clone());
        if about.is_md5 {
            let found = blocking(move || md5_of(&tree, &path)).await?;
            if found == about.e_tag.to_ascii_lowercase() {
                return Ok(true);
            }
        }
        if listed.size == 0 {
            return Ok(true);
        }
        let tag = Some(about.e_tag.as_str());
        let (tree, path) = (self.tree.clone(), item.path.clone());
        let file = blocking(move || Ok(Arc::new(tree.read(&path)?))).await?;
        let (_, mut body) = self.bucket.fetch(&self.run, &item.key, None, tag).await?;
        let mut at = 0u64;
        while let Some(frame) = body.next().await {
            let frame = frame?;
            let (file, len) = (file.clone(), frame.len() as u64);
            let is_same = blocking(move || {
                let mut own = vec![0; frame.len()];
                let n = read_up_to(&file, &mut own, at)?;
                Ok(n == frame.len() && own == frame)
            });
            if !is_same.await? {
                return Ok(false);
            }
            at += len;
            self.run.pace(len).await?;
        }
        Ok(at == item.stat.size)
    }

    /// Metadata, headers and tags of a file.
    async fn labels(&self, item: &Item, stat: &Stat) -> Result<Labels, Trouble> {
        let (tree, path) = (self.tree.clone(), item.path.clone());
        let xattrs = blocking(move || Ok(tree.xattrs(Spot::At(&path))?)).await?;
        let mut labels = Labels {
            metadata: to_metadata(stat.mode, stat.uid, stat.gid, stat.mtime),
            storage_class: self.how.storage_class.clone(),
            ..Labels::default()
        };
        let mut lost = 0;
        for (name, value) in xattrs {
            let (Some(name), Ok(value)) = (name.to_str(), String::from_utf8(value)) else {
                lost += 1;
                continue;
            };
            if name == ORIGIN {
                continue;
            }
            let fits = |text: &str| text.bytes().all(|b| (b' '..=b'~').contains(&b));
            match name.strip_prefix("user.s3.").filter(|_| self.run.options.metadata) {
                None => lost += 1,
                Some(rest) => match (rest.strip_prefix("meta."), rest.strip_prefix("tag.")) {
                    (_, Some(tag)) => {
                        labels.tags.insert(tag.to_owned(), value);
                    }
                    (Some(meta), None) if fits(meta) && fits(&value) => {
                        labels.metadata.entry(meta.to_owned()).or_insert(value);
                    }
                    (None, None) if fits(&value) => {
                        labels.headers.insert(rest.to_owned(), value);
                    }
                    _ => lost += 1,
                },
            }
        }
        self.run.lost("extended attributes", lost);
        Ok(labels)
    }

    /// A small file: one PutObject. False if it has changed meanwhile.
    async fn whole(
        &self,
        item: &Item,
        file: &Arc<File>,
        stat: &Stat,
        labels: &Labels,
    ) -> Result<bool, Trouble> {
        let _held = self.hold(stat.size).await;
        let bytes = read_piece(file, 0, stat.size).await?;
        if bytes.len() as u64 != stat.size || !is_still(file, stat).await? {
            return Ok(false);
        }
        self.put(&item.key, bytes, labels).await?;
        self.run.moved(stat.size);
        Ok(true)
    }

    /// Begins to seal, where that is asked for. The instruction file goes first: an object without one
    /// could never be read.
    async fn begin(&self, item: &Item, labels: &mut Labels) -> Result<Option<Sealing>, Trouble> {
        let Some(seal) = &self.how.seal else { return Ok(None) };
        let sealing = seal.begin().await?;
        if let Some((body, beside)) = seal.label(&sealing, labels) {
            self.put(&instruction_key(&item.key), body.into(), &beside).await?;
        }
        Ok(Some(sealing))
    }

    /// A small file, sealed: one PutObject. False if it has changed meanwhile.
    async fn sealed(
        &self,
        item: &Item,
        file: &Arc<File>,
        stat: &Stat,
        labels: &Labels,
        mut sealing: Sealing,
    ) -> Result<bool, Trouble> {
        let _held = self.hold(2 * stat.size).await;
        let bytes = read_piece(file, 0, stat.size).await?;
        if bytes.len() as u64 != stat.size || !is_still(file, stat).await? {
            return Ok(false);
        }
        let cipher = blocking(move || {
            let mut cipher = Vec::with_capacity(bytes.len() + 16);
            sealing.update(&bytes, &mut cipher)?;
            sealing.finish(&mut cipher);
            Ok(Bytes::from(cipher))
        });
        self.put(&item.key, cipher.await?, labels).await?;
        self.run.moved(stat.size);
        Ok(true)
    }

    /// A large file, sealed: one stream, whose parts go several at a time. False if it has changed
    /// meanwhile.
    async fn sealed_in_parts(
        &self,
        item: &Item,
        file: &Arc<File>,
        stat: &Stat,
        labels: &Labels,
        sealing: Sealing,
    ) -> Result<bool, Trouble> {
        let size = part_size(stat.size);
        let (all, begin) = (stat.size, (0u64, Some(sealing)));
        let next = |at: u64, sealing: Option<Sealing>, file: Arc<File>, memory| async move {
            let Some(mut sealing) = sealing else { return Ok::<_, Trouble>(None) };
            let len = size.min(all - at);
            let held = hold(memory, 2 * len).await;
            let bytes = read_part(&file, at, len).await?;
            let (end, is_last) = (at + len, at + len == all);
            let sealed = blocking(move || {
                let mut cipher = Vec::with_capacity(bytes.len() + 16);
                sealing.update(&bytes, &mut cipher)?;
                if is_last {
                    sealing.finish(&mut cipher);
                    return Ok((cipher, None));
                }
                Ok((cipher, Some(sealing)))
            });
            let (cipher, sealing) = sealed.await?;
            let number = (at / size) as i32 + 1;
            let bytes = Bytes::from(cipher);
            let piece = Piece { number, bytes, of_file: len, stored: None, _held: held };
            Ok(Some((piece, (end, sealing))))
        };
        let (source, memory) = (file.clone(), self.memory.clone());
        let pieces = futures::stream::try_unfold(begin, move |(at, sealing)| {
            next(at, sealing, source.clone(), memory.clone())
        });
        // Of its key nothing is kept, so that no other run can go on with it.
        let begun = self.uploads.begin_once(&self.bucket, &self.run, &item.key, labels);
        let of = (begun.await?, object_size(true, all));
        self.send_parts(of, (file, stat), pieces.boxed()).await
    }

    /// Sends what `pieces` come to, several at a time, as one object of `size` bytes. False if the
    /// file has changed meanwhile.
    async fn send_parts(
        &self,
        (sending, size): (Sending, u64),
        (file, stat): (&Arc<File>, &Stat),
        pieces: BoxStream<'_, Result<Piece, Trouble>>,
    ) -> Result<bool, Trouble> {
        let store = &self.bucket.store;
        let part = async |piece: Result<Piece, Trouble>| {
            let piece = piece?;
            if self.run.is_stopped() {
                return Err(Trouble::End(ExchangeError::Stopped));
            }
            if let Some(stored) = piece.stored {
                self.run.moved(piece.of_file);
                return Ok(stored);
            }
            self.run.pace(piece.of_file).await?;
            let payload = PutPayload::from(piece.bytes);
            let put = || store.put_part_of(&sending, piece.number, payload.clone());
            let done = patiently(&self.run, put).await?;
            self.run.moved(piece.of_file);
            Ok(done)
        };
        let mut parts = Vec::new();
        let sent = async {
            let mut at_work = pieces.map(part).buffered(PARTS_AT_ONCE);
            while let Some(done) = at_work.next().await {
                parts.push(done?);
            }
            is_still(file, stat).await
        };
        let ended = match sent.await {
            Ok(true) => {
                let end = || store.end_key(&sending, &parts, size);
                patiently(&self.run, end).await.map(|_| true).map_err(Trouble::from)
            }
            Err(Trouble::One(why)) if why == CHANGED => Ok(false),
            other => other,
        };
        self.uploads.ended(&self.bucket, &sending, &ended).await;
        ended
    }

    async fn put(&self, key: &str, bytes: Bytes, labels: &Labels) -> Result<(), Trouble> {
        self.run.pace(bytes.len() as u64).await?;
        let payload = PutPayload::from(bytes);
        let put = || self.bucket.store.put_key(key, payload.clone(), labels);
        patiently(&self.run, put).await?;
        Ok(())
    }

    /// Memory for a part, held until it is dropped.
    async fn hold(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        hold(self.memory.clone(), bytes).await
    }

    /// A large file: parts, several at a time. False if it has changed meanwhile.
    async fn in_parts(
        &self,
        item: &Item,
        file: &Arc<File>,
        stat: &Stat,
        labels: &Labels,
    ) -> Result<bool, Trouble> {
        let cut = Cut { size: stat.size, part: part_size(stat.size) };
        let (uploads, bucket) = (&self.uploads, &self.bucket);
        let Underway { sending, have } =
            uploads.go_on_or_begin(bucket, &self.run, &item.key, labels, cut).await?;
        let pieces = futures::stream::iter(0..cut.count()).map(|n| (n, have.get(&n).cloned()));
        let pieces = pieces.then(|(n, stored)| async move {
            let (number, of_file) = (n as i32 + 1, cut.len(n));
            if stored.is_some() {
                return Ok(Piece { number, bytes: Bytes::new(), of_file, stored, _held: None });
            }
            let _held = self.hold(of_file).await;
            let bytes = read_part(file, n * cut.part, of_file).await?;
            Ok(Piece { number, bytes, of_file, stored, _held })
        });
        self.send_parts((sending, stat.size), (file, stat), pieces.boxed()).await
    }

    /// Names uploads below the prefix that are not over: nothing else shows them, and they are paid for.
    async fn name_unfinished(&self) {
        if self.run.options.dry_run {
            return;
        }
        let keys = self.uploads.sweep(&self.bucket, &self.run).await;
        if let Some(first) = keys.first() {
            let what = counted(keys.len() as u64, "upload");
            self.run.say(Event::Note(format!(
                "{what} below the target that this run knows nothing of, not finished, the first of {}; a \
                 lifecycle rule with AbortIncompleteMultipartUpload removes what is left over",
                one_line(first)
            )));
        }
        self.run.note(|report| report.unfinished = keys);
    }

    /// Deletes the objects that no file of the source has and the filter takes.
    async fn delete_rest(&self, keep: &HashSet<String>) -> Result<(), ExchangeError> {
        let run = &self.run;
        if !run.options.delete {
            return Ok(());
        }
        let failed = run.failures();
        if failed > 0 {
            let text = format!("nothing is deleted, since {} failed", counted(failed, "file"));
            run.say(Event::Note(text));
            return Ok(());
        }
        let goes = |key: &&String| {
            if self.instructions.contains(*key) {
                return false;
            }
            let below = self.bucket.below(key);
            // An instruction file goes with its object.
            let is_meant = |name: &str| run.options.filter.takes(name);
            let is_meant = is_meant(below) || instructed(below).is_some_and(is_meant);
            !keep.contains(*key) && !below.is_empty() && is_meant
        };
        let rest: Vec<String> =
            self.listed.iter().map(|listed| &listed.key).filter(goes).cloned().collect();
        for batch in rest.chunks(DELETE_BATCH) {
            if run.is_stopped() {
                return Err(ExchangeError::Stopped);
            }
            if run.options.dry_run {
                batch.iter().for_each(|key| run.say(Event::Would("delete", key.clone())));
                run.note(|report| report.deleted += batch.len() as u64);
                continue;
            }
            let failed = self.bucket.remove(run, batch).await;
            run.note(|report| report.deleted += (batch.len() - failed.len()) as u64);
            for (key, e) in failed {
                run.failed(&key, crate::store::sentence(&e));
            }
        }
        Ok(())
    }
}

/// A part that is ready to be sent.
struct Piece {
    /// From 1.
    number: i32,
    bytes: Bytes,
    /// Bytes of the file that it stands for.
    of_file: u64,
    /// What the bucket has of it already.
    stored: Option<PartNote>,
    /// The memory that it takes.
    _held: Option<OwnedSemaphorePermit>,
}

async fn hold(memory: Arc<Semaphore>, bytes: u64) -> Option<OwnedSemaphorePermit> {
    let units = bytes.div_ceil(UNIT).clamp(1, MEMORY_MAX / UNIT) as u32;
    memory.acquire_many_owned(units).await.ok() // never closed
}

/// Bytes of a part of a file of this size: whole MiB.
fn part_size(size: u64) -> u64 {
    PART.max(size.div_ceil(PARTS_MAX).next_multiple_of(UNIT))
}

async fn read_piece(file: &Arc<File>, from: u64, len: u64) -> Result<Bytes, Trouble> {
    let file = file.clone();
    blocking(move || {
        let mut bytes = vec![0; len as usize];
        let n = read_up_to(&file, &mut bytes, from)?;
        bytes.truncate(n);
        Ok(Bytes::from(bytes))
    })
    .await
}

/// The same of a part, which is there as a whole or the file has changed.
async fn read_part(file: &Arc<File>, from: u64, len: u64) -> Result<Bytes, Trouble> {
    let bytes = read_piece(file, from, len).await?;
    match bytes.len() as u64 == len {
        true => Ok(bytes),
        false => Err(Trouble::One(CHANGED.into())),
    }
}

/// Whether the file is what it was when it was opened.
async fn is_still(file: &Arc<File>, stat: &Stat) -> Result<bool, Trouble> {
    let (file, was) = (file.clone(), *stat);
    blocking(move || {
        let is = stat_fd(file.as_raw_fd())?;
        Ok((is.size, is.mtime) == (was.size, was.mtime))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_object_has_no_more_parts_than_there_may_be() {
        // Guards against an upload of terabytes that fails at its ten-thousandth part.
        for size in [PART + 1, 80 << 30, 5 << 40] {
            let part = part_size(size);
            assert!(part.is_multiple_of(UNIT) && size.div_ceil(part) <= PARTS_MAX, "{size}");
        }
        assert_eq!(part_size(100 << 20), PART);
    }
}
