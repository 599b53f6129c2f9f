//! From a bucket into a tree.
//!
//! One GetObject for each small object, which brings its metadata along; a HeadObject and ranges for
//! large ones. A file remembers in the xattr [`ORIGIN`] which object it came from: that is how the
//! next run knows, from the listing alone, that there is nothing to do.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::attributes::What;
use super::bucket::{Bucket, patiently};
use super::compare::{
    ORIGIN, has_metadata, is_md5_of, is_origin, is_unchanged, origin_of_dir, same_contents,
};
use super::draft::{Draft, NEW_FILE};
use super::large::{FileSink, LARGE, PARTS_XATTR, Sink, blocking, fetch_large, pour};
use super::names::{ALSO_DIRECTORY, Odd};
use super::outfit::{INSTRUCTION, Outfit, Told};
use super::parallel::each;
use super::plan::{Item, Plan, levels, plan};
use super::report::{Event, ExchangeError, Run, Trouble};
use super::sealed::{CipherSink, Found, OpenWith, envelope_of, instructed, is_instruction};
use super::spot::Spot;
use super::tree::{Stat, Tree};
use super::way::{delete_rest, make_dir};
use crate::base::is_root;
use crate::store::s3::{About, Body, Listed};

/// Objects up to this size are in memory whole.
const SMALL: u64 = 1 << 20;
/// Tries of an object that is replaced while it is read.
const VERSIONS_MAX: u32 = 3;

/// What is at the path of an object.
enum Look {
    /// The object, in everything that is asked for.
    Same,
    /// The object, of which an earlier run brought no metadata and tags, which are asked for now.
    WithoutMetadata(Stat),
    /// Something else, or nothing.
    Other(Option<Stat>),
}

/// What the tasks of one import share.
struct Import {
    bucket: Bucket,
    tree: Arc<Tree>,
    run: Arc<Run>,
    open: OpenWith,
    /// Objects that have one under the name of their instruction file, and the key of that.
    instructed: HashMap<String, String>,
    streams: Arc<Semaphore>,
    is_root: bool,
    /// Permission bits of a file that nobody says anything of.
    perm_default: u32,
}

/// Imports what is listed below the prefix of `bucket`.
///
/// # Errors
/// What ends the run; what failed of single objects is in the report.
pub async fn import_bucket(
    mut bucket: Bucket,
    tree: Arc<Tree>,
    run: Arc<Run>,
    open: OpenWith,
) -> Result<(), ExchangeError> {
    let mut listed = bucket.list(&run).await?;
    if listed.is_empty() && !bucket.prefix.is_empty() {
        listed = only_object(&mut bucket, &run).await;
    }
    bucket.refuse_volume(&run, &listed).await?;
    if listed.is_empty() && run.options.delete {
        let what = format!("{} has no object", bucket.store);
        return Err(ExchangeError::Refused(format!(
            "{what}: --delete would delete everything\nhint: check the prefix"
        )));
    }
    if listed.is_empty() {
        let shown = format!("s3://{}/{}", bucket.store.bucket(), bucket.prefix);
        run.say(Event::Note(format!("there is no object in {shown}")));
    }
    let instructed = with_instruction(&listed);
    let Plan { items, keep } = plan(&bucket, listed, &run)?;
    let import = Arc::new(Import {
        open,
        instructed,
        streams: Arc::new(Semaphore::new(run.options.parallel)),
        is_root: is_root(),
        perm_default: NEW_FILE & !current_umask(),
        bucket,
        tree: tree.clone(),
        run: run.clone(),
    });
    let _work = match run.options.dry_run {
        true => None,
        false => Some(take_work(&tree)?),
    };
    let (directories, files): (Vec<Item>, Vec<Item>) =
        items.into_iter().partition(|item| item.is_dir);
    transfer(&import, files).await?;
    // Deepest first, after what is in them: their times stay.
    for level in levels(directories) {
        transfer(&import, level).await?;
    }
    end(&tree, &run, move |path, _| keep.contains(path)).await
}

/// Takes the directory of unfinished files, until what it returns is dropped.
///
/// # Errors
/// Another run has it, or it cannot be made.
pub fn take_work(tree: &Tree) -> Result<Arc<OwnedFd>, ExchangeError> {
    let shown = tree.path().display();
    let local = |source| ExchangeError::Local { what: format!("cannot write in {shown}"), source };
    tree.take_work().map_err(local)?.ok_or_else(|| {
        ExchangeError::Refused(format!(
            "another import into {shown} is running\nhint: wait for it, or stop it"
        ))
    })
}

/// What comes after the files: deletes the rest, takes the directory of unfinished files away, syncs.
pub async fn end(
    tree: &Arc<Tree>,
    run: &Arc<Run>,
    keep: impl Fn(&Path, bool) -> bool + Send + 'static,
) -> Result<(), ExchangeError> {
    let (t, r) = (tree.clone(), run.clone());
    let done = blocking(move || {
        let failed = r.failures();
        match (r.options.delete, failed) {
            (true, 0) => delete_rest(&t, &r, &keep)?,
            (true, _) => r.say(Event::Note(format!("nothing is deleted, since {failed} failed"))),
            (false, _) => {}
        }
        if !r.options.dry_run {
            t.sync()?;
            if failed == 0 {
                let top = t.stat(Path::new(""))?;
                t.clear_work()?;
                // Which is no change that anybody wants to see.
                if let Some(top) = top {
                    t.set_times(Spot::At(Path::new("")), None, top.mtime)?;
                }
                t.forget_losses();
            }
        }
        Ok(())
    });
    match done.await {
        Ok(()) => Ok(()),
        Err(Trouble::End(e)) => Err(e),
        Err(Trouble::One(why)) => {
            run.failed(&tree.path().display().to_string(), why);
            Ok(())
        }
    }
}

/// Where `bucket.prefix` without its slash is one object: that, below the prefix of its directory.
async fn only_object(bucket: &mut Bucket, run: &Run) -> Vec<Listed> {
    let key = bucket.prefix.trim_end_matches('/').to_owned();
    let Ok(about) = patiently(run, || bucket.store.about(&key)).await else { return Vec::new() };
    bucket.prefix = key.rsplit_once('/').map_or(String::new(), |(dir, _)| format!("{dir}/"));
    vec![Listed {
        key,
        size: about.size,
        modified: about.modified.unwrap_or(std::time::UNIX_EPOCH),
        e_tag: about.e_tag,
    }]
}

/// Keys of objects that have one under the name of their instruction file, and its key.
fn with_instruction(listed: &[Listed]) -> HashMap<String, String> {
    let has = |key: &str| listed.binary_search_by(|l| l.key.as_str().cmp(key)).is_ok();
    let mut found = HashMap::new();
    for Listed { key, .. } in listed {
        if let Some(of) = instructed(key).filter(|of| has(of)) {
            // In the order of keys the suffix that all clients know comes first.
            found.entry(of.to_owned()).or_insert_with(|| key.clone());
        }
    }
    found
}

async fn transfer(import: &Arc<Import>, items: Vec<Item>) -> Result<(), ExchangeError> {
    let one = |item| {
        let import = import.clone();
        async move { import.one(item).await }
    };
    each(&import.run, items, one).await
}

impl Import {
    /// One object. What is wrong with it alone is noted; the rest ends the run.
    async fn one(self: &Arc<Self>, item: Item) -> Result<(), ExchangeError> {
        let key = item.object.key.clone();
        let done = match item.is_dir {
            true => self.directory(item).await,
            false => self.file(item).await,
        };
        self.run.looked_at();
        match done {
            Ok(()) => Ok(()),
            Err(Trouble::One(why)) => {
                self.run.failed(&key, why);
                Ok(())
            }
            Err(Trouble::End(e)) => {
                let why = self.bucket.only_of_one(&self.run, e).await?;
                self.run.failed(&key, why);
                Ok(())
            }
        }
    }

    async fn file(self: &Arc<Self>, mut item: Item) -> Result<(), Trouble> {
        let (me, looked) = (self.clone(), item.clone());
        let look = match self.is_surely_new(&item) {
            true => Look::Other(None),
            false => blocking(move || me.look(&looked)).await?,
        };
        let was = match look {
            Look::Same => {
                self.run.unchanged(item.object.size);
                return Ok(());
            }
            Look::WithoutMetadata(stat) => {
                if self.run.options.dry_run || self.only_metadata(&item, stat).await? {
                    self.run.unchanged(item.object.size);
                    return Ok(());
                }
                Some(stat)
            }
            Look::Other(was) => was,
        };
        if self.run.options.dry_run {
            self.run.say(Event::Would("copy", item.object.key.clone()));
            self.run.moved(item.object.size);
            self.run.copied(item.object.size);
            return Ok(());
        }
        for version in 1.. {
            let tried = match item.object.size >= LARGE {
                true => self.large(&item, was).await,
                false => self.whole(&item, was).await,
            };
            match tried {
                // Replaced since it was listed: the new one, then.
                Err(Trouble::One(_)) if version < VERSIONS_MAX && !self.run.is_stopped() => {
                    let key = &item.object.key;
                    let Some(about) = self.bucket.about_if_there(&self.run, key).await? else {
                        self.run.vanished(key);
                        return Ok(());
                    };
                    if about.e_tag == item.object.e_tag {
                        return tried;
                    }
                    item.object.e_tag = about.e_tag;
                    item.object.size = about.size;
                    item.object.modified = about.modified.unwrap_or(item.object.modified);
                }
                tried => return tried,
            }
        }
        Ok(())
    }

    /// Whether nothing can be at the path: that need not be looked at.
    fn is_surely_new(&self, item: &Item) -> bool {
        !self.is_instruction_file(&item.object) && self.tree.is_in_new_dir(&item.path)
    }

    /// What is at the path now, and whether that is the object already.
    fn look(&self, item: &Item) -> Result<Look, Trouble> {
        if self.is_instruction_file(&item.object)
            && let Some(of) = item.path.to_str().and_then(instructed)
            && let Some(read) = self.tree.xattr(Path::new(of), INSTRUCTION)?
            && read == item.object.e_tag.as_bytes()
        {
            return Ok(Look::Same); // its object was opened with it
        }
        let Some(stat) = self.tree.stat(&item.path)? else { return Ok(Look::Other(None)) };
        if !stat.is_file() {
            return Ok(Look::Other(Some(stat)));
        }
        let origin = self.tree.xattr(&item.path, ORIGIN)?;
        let is_same = match self.run.options.checksum {
            true => is_md5_of(&self.tree, &item.path, &item.object)?,
            false => is_unchanged(&stat, origin.as_deref(), &item.object),
        };
        Ok(match is_same {
            true if self.run.options.metadata && !has_metadata(origin.as_deref()) => {
                Look::WithoutMetadata(stat)
            }
            true => Look::Same,
            false => Look::Other(Some(stat)),
        })
    }

    /// Metadata and tags for a file that an earlier run made without them; false if the object is another one
    /// by now.
    async fn only_metadata(self: &Arc<Self>, item: &Item, stat: Stat) -> Result<bool, Trouble> {
        let about = self.bucket.about(&self.run, &item.object.key).await?;
        if about.e_tag != item.object.e_tag {
            return Ok(false);
        }
        let mut outfit = self.outfit(&about, &item.object, Told::Head).await?;
        outfit.mtime = stat.mtime;
        outfit.remember(&self.run, &item.object, stat.size);
        let (me, path) = (self.clone(), item.path.clone());
        blocking(move || outfit.put_xattrs(&me.tree, &me.run, Spot::At(&path))).await?;
        Ok(true)
    }

    async fn outfit(&self, about: &About, object: &Listed, told: Told) -> Result<Outfit, Trouble> {
        Outfit::of(&self.bucket, &self.run, object, about, told).await
    }

    /// An object in one stream.
    async fn whole(self: &Arc<Self>, item: &Item, was: Option<Stat>) -> Result<(), Trouble> {
        let object = &item.object;
        let stream = self.streams.acquire().await; // never closed
        let tag = Some(object.e_tag.as_str());
        let (about, body) = self.bucket.fetch(&self.run, &object.key, None, tag).await?;
        if about.size != object.size {
            return Err(Trouble::One("it is not as long as it was listed".into()));
        }
        let mut outfit = self.outfit(&about, object, Told::Get).await?;
        if let Some(found) = self.envelope(object, &about).await? {
            outfit.instruction.clone_from(&found.instruction);
            return self.sealed(item, was, outfit, found, Some(body)).await;
        }
        match outfit.attributes.what {
            What::File if object.size > SMALL => {
                let draft = self.draft(item, was, &outfit).await?;
                let poured = self.pour_into(&draft, object, body).await;
                drop(stream);
                self.dress(item, was, draft, outfit, poured).await
            }
            _ => {
                let bytes = self.gather(object, body).await?;
                drop(stream);
                if self.is_instruction_file(object) && is_instruction(&about, &bytes) {
                    return Ok(()); // it belongs to its object
                }
                let (me, item) = (self.clone(), item.clone());
                blocking(move || me.small(&item, was, &bytes, outfit)).await
            }
        }
    }

    /// The envelope of an object of the Encryption Client.
    async fn envelope(&self, object: &Listed, about: &About) -> Result<Option<Found>, Trouble> {
        let beside = self.instructed.get(&object.key).map(String::as_str);
        envelope_of(&self.bucket, &self.run, &object.key, about, beside).await
    }

    /// Whether an object has the name of the instruction file of another one.
    fn is_instruction_file(&self, object: &Listed) -> bool {
        instructed(&object.key).is_some_and(|of| self.instructed.contains_key(of))
    }

    /// An object of the Encryption Client: into a file without its name, which it gets once all of
    /// it is authenticated.
    async fn sealed(
        self: &Arc<Self>,
        item: &Item,
        was: Option<Stat>,
        outfit: Outfit,
        found: Found,
        body: Option<Body>,
    ) -> Result<(), Trouble> {
        let object = &item.object;
        let unlocked = self.open.unlock(&found.envelope).await?;
        let draft = self.draft(item, was, &outfit).await?;
        let (file, size) = (draft.again(), object.size);
        let made = blocking(move || CipherSink::new(&unlocked, size, Arc::new(file?)));
        let poured = async {
            let all = 0..object.size;
            let sink = pour(&self.bucket, &self.run, object, all, body, made.await?).await?;
            blocking(move || sink.finish()).await
        };
        let poured = poured.await.map(drop);
        self.dress(item, was, draft, outfit, poured).await
    }

    /// A file for an object that comes.
    async fn draft(
        self: &Arc<Self>,
        item: &Item,
        was: Option<Stat>,
        outfit: &Outfit,
    ) -> Result<Draft, Trouble> {
        let (me, path, perm) = (self.clone(), item.path.clone(), self.said(outfit, was));
        let perm = perm.unwrap_or(NEW_FILE);
        blocking(move || Ok(Draft::file(&me.tree, &path, perm, was.is_some())?)).await
    }

    async fn pour_into(&self, draft: &Draft, object: &Listed, body: Body) -> Result<(), Trouble> {
        let sink = FileSink::new(Arc::new(draft.again()?), 0);
        pour(&self.bucket, &self.run, object, 0..object.size, Some(body), sink).await.map(drop)
    }

    /// The bytes of a small object.
    async fn gather(&self, object: &Listed, body: Body) -> Result<Bytes, Trouble> {
        struct Memory(Vec<u8>);
        impl Sink for Memory {
            fn take(&mut self, bytes: Bytes) -> Result<(), Trouble> {
                self.0.extend_from_slice(&bytes);
                Ok(())
            }
        }
        let sink = Memory(Vec::with_capacity(object.size.min(SMALL) as usize));
        let all = 0..object.size;
        let sink = pour(&self.bucket, &self.run, object, all, Some(body), sink).await?;
        Ok(sink.0.into())
    }

    /// An object in ranges.
    async fn large(self: &Arc<Self>, item: &Item, was: Option<Stat>) -> Result<(), Trouble> {
        let about = self.bucket.about(&self.run, &item.object.key).await?;
        let mut outfit = self.outfit(&about, &item.object, Told::Head).await?;
        outfit.attributes.what = What::File;
        if let Some(found) = self.envelope(&item.object, &about).await? {
            let _stream = self.streams.acquire().await; // never closed
            outfit.instruction.clone_from(&found.instruction);
            return self.sealed(item, was, outfit, found, None).await;
        }
        let (bucket, run) = (&self.bucket, &self.run);
        let temp = fetch_large(bucket, &self.tree, run, &item.object, &self.streams).await?;
        self.dress(item, was, Draft::at(temp), outfit, Ok(())).await
    }

    /// Gives a finished file its name, or removes one that failed.
    async fn dress(
        self: &Arc<Self>,
        item: &Item,
        was: Option<Stat>,
        draft: Draft,
        outfit: Outfit,
        poured: Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let (me, item) = (self.clone(), item.clone());
        blocking(move || {
            let made = poured.and_then(|()| Ok(Some(draft.size(&me.tree)?)));
            me.placed(&item, was, draft, made, outfit)
        })
        .await
    }

    /// What is small enough to be in memory: a file, a link.
    fn small(
        &self,
        item: &Item,
        was: Option<Stat>,
        bytes: &[u8],
        outfit: Outfit,
    ) -> Result<(), Trouble> {
        let attributes = &outfit.attributes;
        let is_marker = attributes.what == What::Directory && bytes.is_empty();
        if is_marker {
            return self.marker(item, outfit);
        }
        let (draft, made) = match (&attributes.what, &attributes.target) {
            (What::Symlink, target) => {
                let target = target.as_ref().map_or(bytes, |target| target.as_bytes());
                if self.is_link_to(&item.path, was, target)? {
                    outfit.put_on(&self.tree, &self.run, Spot::At(&item.path), self.is_root)?;
                    self.run.note(|report| report.unchanged += 1);
                    return Ok(());
                }
                let temp = self.tree.temp();
                self.tree.symlink(OsStr::from_bytes(target), &temp)?;
                (Draft::at(temp), Ok(None))
            }
            _ => {
                let perm = self.said(&outfit, was).unwrap_or(NEW_FILE);
                let draft = Draft::file(&self.tree, &item.path, perm, was.is_some())?;
                let written = draft.opened().and_then(|file| file.write_all_at(bytes, 0));
                (draft, written.map(|()| Some(bytes.len() as u64)).map_err(Trouble::from))
            }
        };
        self.placed(item, was, draft, made, outfit)
    }

    /// Gives what was made its attributes and its name, or does away with what failed.
    fn placed(
        &self,
        item: &Item,
        was: Option<Stat>,
        mut draft: Draft,
        made: Result<Option<u64>, Trouble>,
        outfit: Outfit,
    ) -> Result<(), Trouble> {
        let done = made.and_then(|size| self.place(item, was, &mut draft, size, outfit));
        if done.is_err() {
            draft.discard(&self.tree);
        }
        done
    }

    /// The permission bits of a file, if somebody says anything of them: else they stay as they are.
    fn said(&self, outfit: &Outfit, was: Option<Stat>) -> Option<u32> {
        let kept = was.filter(Stat::is_file).map(|was| was.mode & 0o7777);
        outfit.attributes.perm.or(kept)
    }

    /// Whether the link that is there already has this target.
    fn is_link_to(&self, path: &Path, was: Option<Stat>, target: &[u8]) -> Result<bool, Trouble> {
        let is_link = was.is_some_and(|was| was.kind() == libc::S_IFLNK);
        Ok(is_link && self.tree.target(path)?.as_bytes() == target)
    }

    /// An object of s3fs that stands for a directory, without a slash at the end of its key.
    fn marker(&self, item: &Item, mut outfit: Outfit) -> Result<(), Trouble> {
        let path = match (item.odd, item.path.to_str()) {
            (Some(Odd::AlsoDirectory), Some(path)) => {
                PathBuf::from(path.strip_suffix(ALSO_DIRECTORY).unwrap_or(path))
            }
            _ => item.path.clone(),
        };
        let is_there = self.tree.stat(&path)?.is_some_and(|stat| stat.is_dir());
        make_dir(&self.tree, &self.run, &path)?;
        outfit.origin = None;
        outfit.put_on(&self.tree, &self.run, Spot::At(&path), self.is_root)?;
        if is_there {
            self.run.note(|report| report.unchanged += 1);
            return Ok(());
        }
        self.run.note(|report| report.others += 1);
        Ok(())
    }

    /// Attributes, then the name. `size`: of a file.
    fn place(
        &self,
        item: &Item,
        was: Option<Stat>,
        draft: &mut Draft,
        size: Option<u64>,
        mut outfit: Outfit,
    ) -> Result<(), Trouble> {
        if self.run.options.checksum && was.is_some_and(|was| was.is_file() && was.size > 0) {
            let temp = draft.named(&self.tree)?;
            let is_same = same_contents(&self.tree, temp, &item.path)?;
            if is_same {
                self.tree.remove(temp, false)?;
                outfit.put_xattrs(&self.tree, &self.run, Spot::At(&item.path))?;
                self.run.note(|report| report.unchanged += 1);
                return Ok(());
            }
        }
        let kept = was.filter(Stat::is_file);
        let (said, is_link) = (self.said(&outfit, was), outfit.attributes.what == What::Symlink);
        let rights = match is_link {
            true => None,
            false => draft.rights_of_place(&self.tree, &item.path, kept)?,
        };
        let attributes = &mut outfit.attributes;
        // One that was made where it is to be has the rights of that place.
        let new =
            draft.is_elsewhere().then_some(rights.map_or(self.perm_default, |(perm, _)| perm));
        attributes.perm = said.or(new);
        attributes.uid = attributes.uid.or(kept.map(|was| was.uid));
        attributes.gid = attributes.gid.or(kept.map(|was| was.gid)).or(rights.map(|(_, gid)| gid));
        if let Some(size) = size.filter(|_| !is_link) {
            outfit.remember(&self.run, &item.object, size);
        }
        if item.object.size >= LARGE {
            let _ = self.tree.set_xattr(draft.spot(), OsStr::new(PARTS_XATTR), None); // it may have none
        }
        if outfit.attributes.what == What::Special {
            self.run.lost("devices and pipes, which became files", 1);
        }
        outfit.put_on(&self.tree, &self.run, draft.spot(), self.is_root)?;
        draft.put(&self.tree, &self.run, &item.path)?;
        self.run.copied(item.object.size);
        Ok(())
    }

    /// The marker of a directory: it is made, and gets what the marker says.
    async fn directory(self: &Arc<Self>, item: Item) -> Result<(), Trouble> {
        let (me, looked) = (self.clone(), item.clone());
        let is_same = blocking(move || {
            let Some(stat) = me.tree.stat(&looked.path)?.filter(Stat::is_dir) else {
                return Ok(false);
            };
            let origin = me.tree.xattr(&looked.path, ORIGIN)?;
            let now = origin_of_dir(&looked.object, stat.mtime);
            let lacks = me.run.options.metadata && !has_metadata(origin.as_deref());
            Ok(!lacks && origin.is_some_and(|origin| is_origin(&origin, &now)))
        });
        if is_same.await? {
            self.run.unchanged(0);
            return Ok(());
        }
        if self.run.options.dry_run {
            self.run.say(Event::Would("make", item.object.key.clone()));
            self.run.note(|report| report.others += 1);
            return Ok(());
        }
        let about = self.bucket.about(&self.run, &item.object.key).await?;
        let mut outfit = self.outfit(&about, &item.object, Told::Head).await?;
        outfit.remember(&self.run, &item.object, 0);
        outfit.attributes.what = What::Directory;
        let me = self.clone();
        blocking(move || {
            make_dir(&me.tree, &me.run, &item.path)?;
            outfit.put_on(&me.tree, &me.run, Spot::At(&item.path), me.is_root)?;
            me.run.note(|report| report.others += 1);
            Ok(())
        })
        .await
    }
}

fn current_umask() -> u32 {
    // Without changing it, which other threads would notice.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}
