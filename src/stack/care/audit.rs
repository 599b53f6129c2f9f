//! How every object of a volume is encrypted, on this side and on the server's: the report that
//! is shown to an auditor.
//!
//! Changes nothing. One HeadObject an object (one ranged GetObject more where the sealing is to be
//! verified), many at a time; memory does not grow with the volume, except for the exceptions,
//! which are bounded.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};
use rand_sample::Sample;
use serde::Serialize;

pub use super::walk::Walked;
use crate::stack::records::encryption;
use crate::store::names::{CONFIG_NAME, KEYRING_NAME, LEASE_NAME, META_PREFIX, SEGMENT_PREFIX};

use crate::seal::offsets::plain_len;
use crate::stack::opening::unmounted::{Opened, is_gone};
use crate::stack::{Key, StackError, StoreOptions};
use crate::store::s3::{Applied, Inspected, S3Store, SseMode};
use crate::store::{ErrorClass, Sealed, class, patiently, sentence, shown_key};

/// Requests at a time.
pub const PARALLEL: usize = 64;
/// Exceptions that are kept by name; beyond it they are counted.
const EXCEPTIONS_MAX: usize = 10_000;

/// What to audit.
pub struct AuditOptions {
    /// The store, with what was asked of its encryption: a mode given there is what the objects
    /// are compared with, else the volume's.
    pub store: StoreOptions,
    /// Opens the volume; without it the mode must be given, and sealing cannot be verified.
    pub key: Option<Key>,
    /// Look at this many objects only, picked at random from all.
    pub sample: Option<usize>,
    /// Fetch the first bytes of every object and check that this volume's key made them.
    pub verify_sealing: bool,
}

/// Objects and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many.
    pub objects: u64,
    /// Their bytes as stored.
    pub bytes: u64,
}

impl Tally {
    /// Counts one object.
    pub fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// `AES256`, `aws:kms`, `aws:kms:dsse`, `customer`, `none`, or `refused` for what could not be
    /// looked at.
    pub mode: String,
    /// The KMS key's ARN, or the id of the customer key (its MD5 if it is not known here).
    pub key: Option<String>,
    /// How much there is of it.
    #[serde(flatten)]
    pub tally: Tally,
}

/// What is in one storage class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassGroup {
    /// Its name.
    pub storage_class: String,
    /// How much there is in it.
    #[serde(flatten)]
    pub tally: Tally,
}

/// An object that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exception {
    /// Its name below the STORE prefix.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// What is wrong.
    pub problem: String,
}

/// The result. Field names are an interface (`--json`): added, never renamed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AuditReport {
    /// The STORE.
    pub store: String,
    /// What the objects were compared with, in words.
    pub requested: String,
    /// How client-side sealing was established.
    pub sealing_checked: &'static str,
    /// Whether only a sample was looked at.
    pub sampled: bool,
    /// Objects in the listing.
    pub listed: Tally,
    /// Objects looked at.
    pub examined: Tally,
    /// Of these, sealed by a client.
    pub client_side: Tally,
    /// Of these, encrypted by the server.
    pub server_side: Tally,
    /// Of these, encrypted by the server exactly as requested.
    pub as_requested: Tally,
    /// By mode and key.
    pub groups: Vec<Group>,
    /// By storage class.
    pub storage_classes: Vec<ClassGroup>,
    /// What is wrong, at most 10,000 of them.
    pub exceptions: Vec<Exception>,
    /// How many there are in all.
    pub exceptions_total: u64,
}

impl AuditReport {
    /// Whether everything looked at is sealed and encrypted as requested.
    pub fn is_clean(&self) -> bool {
        self.exceptions_total == 0
    }

    pub(super) fn except(&mut self, name: &str, bytes: u64, problem: String) {
        self.exceptions_total += 1;
        if self.exceptions.len() < EXCEPTIONS_MAX {
            self.exceptions.push(Exception { name: name.into(), bytes, problem });
        }
    }

    fn count_class(&mut self, class: &str, bytes: u64) {
        match self.storage_classes.iter_mut().find(|group| group.storage_class == class) {
            Some(group) => group.tally.add(bytes),
            None => {
                let (storage_class, tally) = (class.to_owned(), Tally { objects: 1, bytes });
                self.storage_classes.push(ClassGroup { storage_class, tally });
            }
        }
    }

    pub(super) fn count(&mut self, mode: &str, key: Option<String>, bytes: u64) {
        match self.groups.iter_mut().find(|g| g.mode == mode && g.key == key) {
            Some(group) => group.tally.add(bytes),
            None => {
                let tally = Tally { objects: 1, bytes };
                self.groups.push(Group { mode: mode.into(), key, tally });
            }
        }
    }
}

/// What a name and a size can be: an object of a volume is a sealed message or the keyring.
pub fn is_of_a_volume(name: &str, bytes: u64) -> bool {
    match name.split('/').next() {
        Some(KEYRING_NAME) => name == KEYRING_NAME,
        Some(LEASE_NAME | CONFIG_NAME) => !name.contains('/') && plain_len(bytes).is_some(),
        Some(SEGMENT_PREFIX | META_PREFIX) => name.contains('/') && plain_len(bytes).is_some(),
        _ => false,
    }
}

/// Audits a volume.
///
/// # Errors
/// What keeps it from beginning or from listing; what is wrong with single objects is in the
/// report.
pub async fn audit(options: &AuditOptions, walked: Arc<Walked>) -> Result<AuditReport, StackError> {
    let opened = Opened::open(&options.store, options.key.as_ref()).await?;
    let s3 = opened.s3(&options.store)?;
    let mode = encryption::choose(&opened.loaded.config, &options.store.sse)?.mode;
    audit_as(options, &opened, s3, &mode, walked).await
}

/// [`audit`] of an opened volume against `mode`.
pub(super) async fn audit_as(
    options: &AuditOptions,
    opened: &Opened,
    s3: Arc<S3Store>,
    mode: &SseMode,
    walked: Arc<Walked>,
) -> Result<AuditReport, StackError> {
    let verify = opened.epochs().filter(|_| options.verify_sealing);
    let mut report = AuditReport {
        store: options.store.location.to_string(),
        requested: mode.to_string(),
        sealing_checked: match verify {
            Some(_) => "the header of every object, with the volume's key",
            None => "names and sizes",
        },
        sampled: options.sample.is_some(),
        ..AuditReport::default()
    };
    walked.begin();
    let listing = |e| StackError::store(format!("listing {}", options.store.location), e);
    let listed = std::cell::Cell::new(Tally::default());
    let all = opened.layers.retry.list(None).inspect_ok(|meta| {
        let mut tally = listed.get();
        tally.add(meta.size);
        listed.set(tally);
        opened.layers.attended.goes_on(); // it answers
    });
    let chosen = match options.sample {
        None => all.boxed_local(),
        Some(n) => {
            let mut sample = Sample::new(n);
            let mut all = std::pin::pin!(all);
            while let Some(meta) = all.try_next().await.map_err(listing)? {
                sample.offer(meta)?;
            }
            walked.total.store(sample.kept.len() as u64, Relaxed);
            futures::stream::iter(sample.kept.into_iter().map(Ok)).boxed_local()
        }
    };
    let mut looked = chosen.map_ok(|meta| look(&s3, verify, meta)).try_buffer_unordered(PARALLEL);
    let mut pinned = key_of_alias(&s3, mode).await;
    let walk = async {
        while let Some((meta, found)) = looked.try_next().await.map_err(listing)? {
            walked.pass(meta.size);
            enter(&mut report, &s3, mode, &mut pinned, &meta, found);
        }
        Ok::<_, StackError>(())
    };
    match options.sample {
        None => walked.counting(&*opened.layers.retry, |_| true, walk).await?,
        Some(_) => walk.await?,
    }
    drop(looked);
    report.listed = listed.get();
    report.groups.sort_by_key(|g| std::cmp::Reverse(g.tally.bytes));
    report.storage_classes.sort_by_key(|g| std::cmp::Reverse(g.tally.bytes));
    Ok(report)
}

/// The key that an alias stands for now: that of the objects which the volume's writer replaces.
pub(super) async fn key_of_alias(s3: &S3Store, mode: &SseMode) -> Option<String> {
    mode.key_id().filter(|id| id.contains("alias/"))?;
    for name in [CONFIG_NAME, LEASE_NAME] {
        let location = Path::from(name);
        if let Ok(found) = patiently(|| s3.inspect(&location)).await
            && found.applied.kms_key_id.is_some()
        {
            return found.applied.kms_key_id;
        }
    }
    None
}

/// What was found out about an object; `None` if it is gone by now.
type Found = Option<Result<(Inspected, Sealing), String>>;

/// Whether an object is sealed.
enum Sealing {
    Verified,
    Plausible,
    Broken(String),
}

async fn look(
    s3: &S3Store,
    verify: Option<&Sealed>,
    meta: ObjectMeta,
) -> object_store::Result<(ObjectMeta, Found)> {
    let inspected = match patiently(|| s3.inspect(&meta.location)).await {
        Ok(inspected) => inspected,
        Err(e) if is_gone(&e) => return Ok((meta, None)),
        Err(e) => return Ok((meta, Some(Err(sentence(&e))))),
    };
    let name = meta.location.as_ref();
    let sealing = match verify {
        _ if !is_of_a_volume(name, inspected.size) => {
            Sealing::Broken("it is no object of a volume, or not sealed".into())
        }
        Some(sealed) if name != KEYRING_NAME => {
            match patiently(|| sealed.epoch_of(&meta.location)).await {
                Ok(Some(_)) => Sealing::Verified,
                // Of the metadata's log, behind something that was collected.
                Ok(None) if name.starts_with("meta/wal/") => Sealing::Plausible,
                Ok(None) => return Ok((meta, None)),
                Err(e) if class(&e) == ErrorClass::Corrupt => Sealing::Broken(
                    "it was not sealed with this volume's key under this name".into(),
                ),
                Err(e) => Sealing::Broken(sentence(&e)),
            }
        }
        _ => Sealing::Plausible,
    };
    Ok((meta, Some(Ok((inspected, sealing)))))
}

fn enter(
    report: &mut AuditReport,
    s3: &S3Store,
    mode: &SseMode,
    pinned: &mut Option<String>,
    meta: &ObjectMeta,
    found: Found,
) {
    let (name, bytes) = (&*shown_key(&meta.location), meta.size);
    let (inspected, sealing) = match found {
        None => return,
        Some(Ok(found)) => found,
        Some(Err(why)) => {
            report.examined.add(bytes);
            report.count("refused", None, bytes);
            return report.except(name, bytes, why);
        }
    };
    let bytes = inspected.size;
    report.examined.add(bytes);
    match sealing {
        Sealing::Verified | Sealing::Plausible => report.client_side.add(bytes),
        Sealing::Broken(why) => report.except(name, bytes, why),
    }
    report.count_class(inspected.class_name(), bytes);
    if inspected.is_archived() {
        let class = inspected.class_name();
        report.except(name, bytes, format!("{class}: it cannot be read until it is restored"));
    }
    let applied = &inspected.applied;
    report.count(applied.mode_name(), key_name(s3, applied), bytes);
    if !applied.is_silent() {
        report.server_side.add(bytes);
    }
    match mode.unlike(applied, pinned) {
        None => report.as_requested.add(bytes),
        Some(why) => report.except(name, bytes, format!("{}: {why}", s3.shown(applied))),
    }
}

/// The key of a row: what a person can look up.
fn key_name(s3: &S3Store, applied: &Applied) -> Option<String> {
    match s3.key_of(applied) {
        Some(key) => Some(key.id().to_owned()),
        None => applied.kms_key_id.clone().or_else(|| applied.customer_key_md5.clone()),
    }
}

mod rand_sample {
    //! A uniform sample of a stream whose length is not known (Vitter's algorithm R).

    use crate::stack::StackError;
    use object_store::ObjectMeta;

    pub(super) struct Sample {
        pub(super) kept: Vec<ObjectMeta>,
        size: usize,
        seen: u64,
    }

    impl Sample {
        pub(super) fn new(size: usize) -> Sample {
            Sample { kept: Vec::new(), size, seen: 0 }
        }

        /// Errors: the operating system gives no random bytes.
        pub(super) fn offer(&mut self, meta: ObjectMeta) -> Result<(), StackError> {
            self.seen += 1;
            if self.kept.len() < self.size {
                self.kept.push(meta);
                return Ok(());
            }
            let mut random = [0u8; 8];
            getrandom::fill(&mut random).map_err(|e| StackError::Store {
                what: "drawing a sample".into(),
                message: e.to_string(),
            })?;
            let at = u64::from_le_bytes(random) % self.seen;
            if let Some(place) = self.kept.get_mut(at as usize) {
                *place = meta;
            }
            Ok(())
        }
    }
}
