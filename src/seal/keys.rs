//! The key hierarchy of a volume: a root key for each epoch, and a key for each use (FORMAT.md
//! "Keys").
//!
//! Everything is derived from the roots with HKDF-Expand-SHA512; nothing here is stored. The
//! keyring wraps the roots. What is sealed is sealed in the newest epoch; a reader tries the
//! epochs that it has, newest first, since nothing in clear says which it was.

use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use zeroize::Zeroizing;

use super::cobblestone::{OpenError, Opener, open, seal, seal_into, seal_to};
use super::context;
use super::derive::{InputKey, KEY, fill_random, same};
use super::secret::Locked;
use super::{COMMITMENT, HEADER, offsets};
use crate::base::{ChainValue, JournalId, VolumeId};

/// The epoch of a new volume.
pub const FIRST_EPOCH: u32 = 1;
/// Bytes of the fingerprint of an epoch.
pub const FINGERPRINT: usize = 32;

// Labels under a root key. None is a prefix of another.
const LABEL_LOCAL: &[u8] = b"sealfs local";
const LABEL_KEYRING: &[u8] = b"sealfs keyring mac";
const LABEL_OLD_EPOCHS: &[u8] = b"sealfs old epochs";
const LABEL_OBJECT: &[u8] = b"sealfs object";
// Labels under a local key. None is a prefix of another.
const LABEL_VOLUME: &[u8] = b"sealfs volume id";
const LABEL_NAMES: &[u8] = b"sealfs names";
const LABEL_JOURNAL: &[u8] = b"sealfs journal";
const LABEL_STATE: &[u8] = b"sealfs state";
const LABEL_FINGERPRINT: &[u8] = b"sealfs fingerprint";
const LABEL_HISTORY: &[u8] = b"sealfs history";

/// The 32 random bytes of an epoch. Whoever has them reads every object sealed in it.
#[derive(Clone, Debug)]
pub struct RootKey(InputKey);

impl RootKey {
    /// A fresh root key from the operating system's random source.
    pub fn random() -> RootKey {
        let mut bytes = Zeroizing::new([0u8; KEY]);
        fill_random(&mut bytes[..]);
        RootKey::from_bytes(&bytes)
    }

    /// The root key with these bytes (from a keyring slot or a recovery kit).
    pub fn from_bytes(bytes: &[u8; KEY]) -> RootKey {
        RootKey(InputKey::from_bytes(bytes))
    }

    /// The secret bytes, to wrap them in a slot or print a recovery kit.
    pub fn expose(&self) -> &[u8; KEY] {
        self.0.expose()
    }

    /// The id of a volume whose first root this is.
    pub fn volume_id(&self) -> VolumeId {
        self.local().volume_id()
    }

    /// What stays of it when it leaves the keyring.
    pub(super) fn local(&self) -> LocalKey {
        LocalKey(self.0.derive(&[LABEL_LOCAL]))
    }

    /// The key the keyring as a whole is authenticated with.
    pub(super) fn keyring_key(&self) -> InputKey {
        self.0.derive(&[LABEL_KEYRING])
    }

    /// The key that what is kept of older epochs is sealed under.
    pub(super) fn old_epochs_key(&self) -> InputKey {
        self.0.derive(&[LABEL_OLD_EPOCHS])
    }

    fn object_key(&self, name: &str) -> InputKey {
        self.0.derive(&[LABEL_OBJECT, name.as_bytes()])
    }
}

/// Derived from the root of an epoch, and kept when that root has left the keyring: opens the
/// local files of that epoch, proves that a later keyring continues it, and opens no object.
#[derive(Clone, Debug)]
pub(super) struct LocalKey(InputKey);

impl LocalKey {
    pub fn from_bytes(bytes: &[u8; KEY]) -> LocalKey {
        LocalKey(InputKey::from_bytes(bytes))
    }

    pub fn expose(&self) -> &[u8; KEY] {
        self.0.expose()
    }

    /// Of the first epoch: the volume's id.
    pub fn volume_id(&self) -> VolumeId {
        let mut id = [0u8; 16];
        self.0.expand(&[LABEL_VOLUME], &mut id);
        VolumeId(id)
    }

    /// Shows that it is this key and gives nothing of it away.
    pub fn fingerprint(&self) -> [u8; FINGERPRINT] {
        let mut out = [0u8; FINGERPRINT];
        self.0.expand(&[LABEL_FINGERPRINT], &mut out);
        out
    }

    fn history(&self) -> HistoryKey {
        HistoryKey(self.0.derive(&[LABEL_HISTORY]))
    }

    fn names(&self) -> Locked<[u8; 16]> {
        let mut names = Zeroizing::new([0u8; 16]);
        self.0.expand(&[LABEL_NAMES], &mut names[..]);
        Locked::new(*names)
    }
}

/// Makes the chain values of commits. The same for the life of the volume.
#[derive(Clone, Debug)]
pub struct HistoryKey(InputKey);

impl HistoryKey {
    /// The chain value of commit `number`, made by the mount `instance` on top of one with the
    /// value `before`: the first 32 bytes of HMAC-SHA512.
    pub fn next(&self, before: ChainValue, number: u64, instance: &[u8; 16]) -> ChainValue {
        let data = [&before.0[..], &number.to_be_bytes(), instance].concat();
        ChainValue(self.0.mac(&data))
    }
}

/// What there is of one epoch.
#[derive(Clone, Debug)]
pub(super) enum EpochSecret {
    /// Everything.
    Root(RootKey),
    /// Nothing in the bucket is sealed in it any more.
    Local(LocalKey),
}

impl EpochSecret {
    pub fn local(&self) -> LocalKey {
        match self {
            EpochSecret::Root(root) => root.local(),
            EpochSecret::Local(local) => local.clone(),
        }
    }

    pub fn fingerprint(&self) -> [u8; FINGERPRINT] {
        self.local().fingerprint()
    }
}

/// An epoch with its keys, those that are used often made once.
struct Epoch {
    number: u32,
    secret: EpochSecret,
    journal: OnceLock<InputKey>,
}

impl Epoch {
    fn new(number: u32, secret: EpochSecret) -> Epoch {
        Epoch { number, secret, journal: OnceLock::new() }
    }

    fn root(&self) -> Option<&RootKey> {
        match &self.secret {
            EpochSecret::Root(root) => Some(root),
            EpochSecret::Local(_) => None,
        }
    }

    fn journal(&self) -> &InputKey {
        self.journal.get_or_init(|| self.secret.local().0.derive(&[LABEL_JOURNAL]))
    }

    fn state(&self) -> InputKey {
        self.secret.local().0.derive(&[LABEL_STATE])
    }
}

/// Where a message is sealed: the key and the context of one place in one epoch.
pub struct Place {
    key: InputKey,
    context: Vec<u8>,
}

impl Place {
    /// Seals a message for this place; see [`seal`].
    pub fn seal(&self, plain: &[u8]) -> Vec<u8> {
        seal(&self.key, &self.context, plain)
    }

    /// Appends such a message; see [`seal_into`].
    pub fn seal_into(&self, parts: &[&[u8]], out: &mut Vec<u8>) {
        seal_into(&self.key, &self.context, parts, out);
    }

    /// Writes such a message to a place that is exactly as long; see [`seal_to`].
    pub fn seal_to(&self, parts: &[&[u8]], out: &mut [u8]) {
        seal_to(&self.key, &self.context, parts, out);
    }

    /// The input key of messages here.
    pub fn key(&self) -> &InputKey {
        &self.key
    }

    /// Their context.
    pub fn context(&self) -> &[u8] {
        &self.context
    }
}

/// Every key of one volume. A clone is one reference count, and all clones move on together when
/// a newer keyring is taken up; `Debug` shows the volume id and the epoch only.
#[derive(Clone)]
pub struct VolumeKeys(Arc<Inner>);

struct Inner {
    volume: VolumeId,
    names: Locked<[u8; 16]>,
    history: HistoryKey,
    /// Newest first, the newest with its root; never empty.
    epochs: RwLock<Arc<Vec<Epoch>>>,
}

impl VolumeKeys {
    /// The keys of a new volume.
    pub fn from_root(root: RootKey) -> VolumeKeys {
        VolumeKeys::from_epochs(root.volume_id(), vec![(FIRST_EPOCH, EpochSecret::Root(root))])
    }

    /// The keys of a volume with these epochs, newest first; the last one is the first.
    pub(super) fn from_epochs(volume: VolumeId, epochs: Vec<(u32, EpochSecret)>) -> VolumeKeys {
        let first = epochs.last().expect("a volume has an epoch");
        let (names, history) = (first.1.local().names(), first.1.local().history());
        let epochs = epochs.into_iter().map(|(number, secret)| Epoch::new(number, secret));
        let epochs = RwLock::new(Arc::new(epochs.collect()));
        VolumeKeys(Arc::new(Inner { volume, names, history, epochs }))
    }

    /// Goes on with the epochs of `newer`, which were read from a newer keyring of this volume;
    /// so does every clone. False, and nothing is changed, unless they continue what there is:
    /// the same volume, the same root in our newest epoch.
    pub fn take_up(&self, newer: &VolumeKeys) -> bool {
        let ours = self.now();
        let theirs = newer.now();
        let continues = newer.0.volume == self.0.volume
            && theirs[0].number >= ours[0].number
            && newer.holds(ours[0].number, &ours[0].secret.fingerprint());
        if continues {
            *self.0.epochs.write() = theirs;
        }
        continues
    }

    /// The volume's id, which is not secret.
    pub fn volume_id(&self) -> VolumeId {
        self.0.volume
    }

    /// The epoch that new objects are sealed in (1 for a new volume).
    pub fn epoch(&self) -> u32 {
        self.now()[0].number
    }

    /// The epochs whose objects can be opened, newest first.
    pub fn epochs(&self) -> Vec<u32> {
        self.now().iter().filter(|e| e.root().is_some()).map(|e| e.number).collect()
    }

    /// The fingerprint of the newest epoch, for what this machine remembers. Not secret.
    pub fn fingerprint(&self) -> [u8; FINGERPRINT] {
        self.now()[0].secret.fingerprint()
    }

    /// Whether there is an epoch `number` with this fingerprint: whether these keys continue a
    /// keyring of which that was seen.
    pub fn holds(&self, number: u32, fingerprint: &[u8]) -> bool {
        let epochs = self.now();
        let epoch = epochs.iter().find(|e| e.number == number);
        epoch.is_some_and(|e| same(&e.secret.fingerprint(), fingerprint))
    }

    /// Where an object is sealed from now on; `name` is its full name below the STORE prefix.
    pub fn object(&self, name: &str) -> Place {
        let epochs = self.now();
        let root = epochs[0].root().expect("the newest epoch has its root");
        let context = context::object(self.0.volume, epochs[0].number, name);
        Place { key: root.object_key(name), context }
    }

    /// The opener of the object of this name and header, and the epoch it was sealed in. Costs
    /// about 3 µs for each epoch tried.
    ///
    /// # Errors
    /// [`OpenError::Commitment`].
    pub fn object_opener(
        &self,
        name: &str,
        header: &[u8; HEADER],
    ) -> Result<(u32, Opener), OpenError> {
        for epoch in self.now().iter() {
            let Some(root) = epoch.root() else { continue };
            let context = context::object(self.0.volume, epoch.number, name);
            if let Ok(opener) = Opener::new(&root.object_key(name), &context, header) {
                return Ok((epoch.number, opener));
            }
        }
        Err(OpenError::Commitment)
    }

    /// As [`VolumeKeys::object`], of an object of the metadata's log: `behind` is the commitment of
    /// the one before it, zeros for the first.
    pub fn log(&self, name: &str, behind: &[u8; COMMITMENT]) -> Place {
        let epochs = self.now();
        let root = epochs[0].root().expect("the newest epoch has its root");
        let context = context::log(self.0.volume, epochs[0].number, name, behind);
        Place { key: root.object_key(name), context }
    }

    /// As [`VolumeKeys::object_opener`], of an object of the metadata's log behind `behind`.
    ///
    /// # Errors
    /// [`OpenError::Commitment`].
    pub fn log_opener(
        &self,
        name: &str,
        behind: &[u8; COMMITMENT],
        header: &[u8; HEADER],
    ) -> Result<(u32, Opener), OpenError> {
        for epoch in self.now().iter() {
            let Some(root) = epoch.root() else { continue };
            let context = context::log(self.0.volume, epoch.number, name, behind);
            if let Ok(opener) = Opener::new(&root.object_key(name), &context, header) {
                return Ok((epoch.number, opener));
            }
        }
        Err(OpenError::Commitment)
    }

    /// The context of one object of the log, as [`VolumeKeys::object_context`].
    pub fn log_context(&self, epoch: u32, name: &str, behind: &[u8; COMMITMENT]) -> Vec<u8> {
        context::log(self.0.volume, epoch, name, behind)
    }

    /// The key of one object in one epoch. It opens that object only, so it can be handed to an
    /// auditor. `None`: the keyring has not the root of that epoch.
    pub fn object_key(&self, epoch: u32, name: &str) -> Option<InputKey> {
        let epochs = self.now();
        let epoch = epochs.iter().find(|e| e.number == epoch)?;
        Some(epoch.root()?.object_key(name))
    }

    /// The context of one object; `name` as for [`VolumeKeys::object`].
    pub fn object_context(&self, epoch: u32, name: &str) -> Vec<u8> {
        context::object(self.0.volume, epoch, name)
    }

    /// Where a record of a journal of this machine is sealed from now on. `kind` separates sorts
    /// of records (and file headers).
    pub fn journal(&self, journal: JournalId, kind: u8, number: u64) -> Place {
        self.journal_place(&self.now()[0], journal, kind, number)
    }

    /// Opens a record of a journal.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open_journal(
        &self,
        journal: JournalId,
        kind: u8,
        number: u64,
        message: &[u8],
    ) -> Result<Vec<u8>, OpenError> {
        let Some(header) = message.first_chunk() else {
            return Err(OpenError::TooShort(message.len() as u64));
        };
        if offsets::plain_len(message.len() as u64).is_none() {
            return Err(OpenError::BadLength(message.len() as u64));
        }
        let opener = self.journal_opener(journal, kind, number, header)?;
        let mut plain = Vec::new();
        opener.open_chunks(0, &message[HEADER..], true, &mut plain)?;
        Ok(plain)
    }

    /// The opener of the record of a journal with this header.
    ///
    /// # Errors
    /// [`OpenError::Commitment`].
    pub fn journal_opener(
        &self,
        journal: JournalId,
        kind: u8,
        number: u64,
        header: &[u8; HEADER],
    ) -> Result<Opener, OpenError> {
        for epoch in self.now().iter() {
            let place = self.journal_place(epoch, journal, kind, number);
            if let Ok(opener) = Opener::new(&place.key, &place.context, header) {
                return Ok(opener);
            }
        }
        Err(OpenError::Commitment)
    }

    fn journal_place(&self, epoch: &Epoch, journal: JournalId, kind: u8, number: u64) -> Place {
        let context = context::journal(self.0.volume, epoch.number, journal, kind, number);
        Place { key: epoch.journal().clone(), context }
    }

    /// Where a file of local state is sealed from now on, by its name inside the state directory,
    /// with the epoch and its fingerprint, which stand before it in clear.
    pub fn state(&self, file_name: &str) -> (u32, [u8; FINGERPRINT], Place) {
        let epochs = self.now();
        let (number, context) = (epochs[0].number, epochs[0].number);
        let context = context::state(self.0.volume, context, file_name);
        (number, epochs[0].secret.fingerprint(), Place { key: epochs[0].state(), context })
    }

    /// Opens a file of local state of this epoch.
    ///
    /// # Errors
    /// As [`open`]; [`OpenError::Commitment`] also without that epoch.
    pub fn open_state(
        &self,
        epoch: u32,
        file_name: &str,
        message: &[u8],
    ) -> Result<Vec<u8>, OpenError> {
        let epochs = self.now();
        let found = epochs.iter().find(|e| e.number == epoch).ok_or(OpenError::Commitment)?;
        open(&found.state(), &context::state(self.0.volume, epoch, file_name), message)
    }

    /// The SipHash key of directory cookies, so that nobody can choose names that collide. The
    /// same for the life of the volume.
    pub fn name_hash_key(&self) -> [u8; 16] {
        *self.0.names
    }

    /// What chain values are made with.
    pub fn history_key(&self) -> HistoryKey {
        self.0.history.clone()
    }

    /// The root key of the newest epoch, for the keyring and the recovery kit.
    pub fn root(&self) -> RootKey {
        self.now()[0].root().expect("the newest epoch has its root").clone()
    }

    /// Every secret that the process keeps, for tests that look for them where they must not be.
    #[doc(hidden)]
    pub fn secrets_for_tests(&self) -> Vec<InputKey> {
        let of = |epoch: &Epoch| {
            let root = epoch.root().map(|root| root.0.clone());
            let local = epoch.secret.local().0;
            root.into_iter().chain([local, epoch.journal().clone(), epoch.state()])
        };
        self.now().iter().flat_map(of).chain([self.0.history.0.clone()]).collect()
    }

    fn now(&self) -> Arc<Vec<Epoch>> {
        self.0.epochs.read().clone()
    }

    /// Keys that are the same for the same `seed`, for tests only: they protect nothing.
    #[doc(hidden)]
    pub fn random_for_tests(seed: u8) -> VolumeKeys {
        VolumeKeys::from_root(RootKey::from_bytes(&[seed; KEY]))
    }
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeKeys(volume {}, epoch {})", self.0.volume, self.epoch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(byte: u8) -> RootKey {
        RootKey::from_bytes(&[byte; KEY])
    }

    /// A volume in its second epoch.
    fn second() -> VolumeKeys {
        let epochs = vec![(2, EpochSecret::Root(root(2))), (1, EpochSecret::Root(root(1)))];
        VolumeKeys::from_epochs(root(1).volume_id(), epochs)
    }

    #[test]
    fn every_use_has_its_own_key() {
        // Guards against two uses sharing a key through a mistyped label.
        let keys = second();
        let root = keys.root();
        let mut all: Vec<[u8; KEY]> = vec![
            *keys.object("a").key().expose(),
            *keys.object("b").key().expose(),
            *keys.object_key(1, "a").expect("held").expose(),
            *root.keyring_key().expose(),
            *root.old_epochs_key().expose(),
            root.local().fingerprint(),
            *VolumeKeys::random_for_tests(2).object("other").key().expose(),
        ];
        all.extend(keys.secrets_for_tests().iter().map(|key| *key.expose()));
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b), "{i}");
        }
        assert_ne!(keys.volume_id(), VolumeKeys::random_for_tests(2).volume_id());
    }

    #[test]
    fn what_an_older_epoch_sealed_opens_in_a_newer_one_and_not_the_other_way_round() {
        // Guards against a volume that cannot be read after a rotation, and against one whose
        // new objects open with what was known before it.
        let (before, after) = (VolumeKeys::random_for_tests(1), second());
        let header = |message: &[u8]| *message.first_chunk::<HEADER>().expect("a header");
        let (old, new) = (before.object("x").seal(b"old"), after.object("x").seal(b"new"));
        assert_eq!(after.object_opener("x", &header(&old)).expect("opens").0, 1);
        assert_eq!(after.object_opener("x", &header(&new)).expect("opens").0, 2);
        assert!(before.object_opener("x", &header(&new)).is_err());
        let id = JournalId([4; 16]);
        let (old, new) = (before.journal(id, 3, 7), after.journal(id, 3, 7));
        assert_eq!(after.open_journal(id, 3, 7, &old.seal(b"r")).as_deref(), Ok(&b"r"[..]));
        assert!(before.open_journal(id, 3, 7, &new.seal(b"r")).is_err());
        let (epoch, fingerprint, place) = before.state("state");
        assert!(after.holds(epoch, &fingerprint) && !after.holds(2, &fingerprint));
        let sealed = place.seal(b"s");
        assert_eq!(after.open_state(epoch, "state", &sealed).as_deref(), Ok(&b"s"[..]));
        assert_eq!(before.name_hash_key(), after.name_hash_key());
    }

    #[test]
    fn an_epoch_whose_root_has_left_opens_local_files_and_no_object() {
        // Guards against a root that a rekey has retired and that still opens objects, and
        // against a journal that was away meanwhile and is lost.
        let before = VolumeKeys::random_for_tests(1);
        let epochs =
            vec![(2, EpochSecret::Root(root(2))), (1, EpochSecret::Local(root(1).local()))];
        let after = VolumeKeys::from_epochs(root(1).volume_id(), epochs);
        let object = before.object("x").seal(b"old");
        assert!(after.object_opener("x", object.first_chunk().expect("a header")).is_err());
        assert_eq!((after.epochs(), after.object_key(1, "x").is_some()), (vec![2], false));
        let id = JournalId([4; 16]);
        assert!(after.open_journal(id, 3, 7, &before.journal(id, 3, 7).seal(b"r")).is_ok());
        assert!(after.holds(1, &before.fingerprint()));
    }

    #[test]
    fn keys_move_on_only_to_what_continues_them() {
        // Guards against a mount that takes up a keyring of another volume, an older one, or one
        // that somebody forged who does not know the newest root.
        let keys = VolumeKeys::random_for_tests(1);
        let clone = keys.clone();
        assert!(!keys.take_up(&VolumeKeys::random_for_tests(2)));
        let forged = vec![(2, EpochSecret::Root(root(3))), (1, EpochSecret::Root(root(9)))];
        assert!(!keys.take_up(&VolumeKeys::from_epochs(keys.volume_id(), forged)));
        assert!(keys.take_up(&second()));
        assert_eq!((keys.epoch(), clone.epoch()), (2, 2));
        assert!(!keys.take_up(&VolumeKeys::random_for_tests(1)), "back");
    }

    #[test]
    fn debug_shows_the_volume_and_no_key() {
        // Guards against a key in a log line.
        let keys = VolumeKeys::random_for_tests(3);
        let shown = format!("{keys:?} {:?}", keys.root());
        assert!(shown.starts_with("VolumeKeys(volume "));
        assert!(shown.ends_with("RootKey(InputKey(32 bytes))"), "{shown}");
    }
}
