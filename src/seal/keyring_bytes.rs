//! The keyring as bytes, both ways (FORMAT.md "Keyring"). Pure; every length is checked before it
//! is used, and nothing is allocated beyond the input's length.

use sha2::{Digest, Sha256};

use super::derive::same;
use super::kem::{ENCAPSULATION, PUBLIC};
use super::keyring::{Features, Keyring, OLD_EPOCHS_MAX, OldEpoch, SLOTS_MAX};
use super::keyring_error::KeyringError;
use super::keys::FIRST_EPOCH;
use super::offsets::MESSAGE_MIN;
use super::slots::{LABEL_MAX, Slot, SlotKind, Wrap};
use crate::base::VolumeId;

/// The first bytes of every keyring.
const MAGIC: &[u8; 8] = b"SEALFSKR";
/// The version byte this code reads and writes.
const VERSION: u8 = 2;
/// Cobblestone-256 with HKDF-SHA512, and X-Wing: the one suite.
const SUITE: u8 = 1;
/// Bytes of the MAC, and of the checksum after it.
pub(super) const MAC: usize = 32;
const CHECKSUM: usize = 32;
/// Bytes of a sealed message of 32 bytes: a root, an anchor.
const SEALED_KEY: usize = MESSAGE_MIN + 32;

/// Bytes of a slot's parameters at most.
pub(super) const PARAMS_MAX: usize = 16 << 10;
/// Bytes of a whole keyring at most; a longer object is refused unread. What [`SLOTS_MAX`] and
/// [`OLD_EPOCHS_MAX`] allow is less.
pub const KEYRING_MAX: usize = 1 << 20;
const _: () = assert!(
    256 + SLOTS_MAX * (PARAMS_MAX + PUBLIC + ENCAPSULATION + 512) + OLD_EPOCHS_MAX * 128
        <= KEYRING_MAX
);

impl Keyring {
    /// The keyring's bytes, at most [`KEYRING_MAX`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.body();
        out.extend_from_slice(&self.mac);
        let checksum = Sha256::digest(&out);
        out.extend_from_slice(&checksum);
        out
    }

    /// Reads a keyring. Never panics and never allocates more than the input's length.
    ///
    /// # Errors
    /// [`KeyringError::NotAKeyring`], [`KeyringError::Version`], [`KeyringError::Suite`],
    /// [`KeyringError::Damaged`], [`KeyringError::Features`].
    pub fn parse(bytes: &[u8]) -> Result<Keyring, KeyringError> {
        const CUT: KeyringError = KeyringError::Damaged("it is truncated");
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err(KeyringError::NotAKeyring);
        };
        match rest {
            [VERSION, SUITE, ..] => {}
            [VERSION, suite, ..] => return Err(KeyringError::Suite(*suite)),
            [version, ..] => return Err(KeyringError::Version(*version)),
            [] => return Err(CUT),
        }
        if bytes.len() > KEYRING_MAX {
            return Err(KeyringError::Damaged("it is too long"));
        }
        let (signed, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(CUT)?;
        if !same(&Sha256::digest(signed), checksum) {
            return Err(KeyringError::Damaged("its checksum does not match"));
        }
        let (body, mac) = signed.split_last_chunk::<MAC>().ok_or(CUT)?;
        let mut fields = Fields(body.get(MAGIC.len() + 2..).ok_or(CUT)?);
        if fields.u16()? != 0 {
            return Err(KeyringError::Damaged("a reserved field is set"));
        }
        let features = Features {
            compatible: fields.u64()?,
            read_only_compatible: fields.u64()?,
            incompatible: fields.u64()?,
        };
        // Before anything else is read: whatever follows may mean something else.
        if features.unknown_incompatible() != 0 {
            return Err(KeyringError::Features(features.unknown_incompatible()));
        }
        let revision = fields.u64()?;
        let volume = VolumeId(*fields.array()?);
        let (epoch, next_slot) = (fields.u32()?, fields.u32()?);
        let slots = usize::from(fields.u16()?);
        let old = usize::from(fields.u16()?);
        if slots > SLOTS_MAX || old > OLD_EPOCHS_MAX {
            return Err(KeyringError::Damaged("it has too many slots or earlier epochs"));
        }
        let slots = (0..slots).map(|_| fields.slot()).collect::<Result<Vec<_>, _>>()?;
        let old = (0..old).map(|_| fields.old_epoch()).collect::<Result<Vec<_>, _>>()?;
        if !fields.0.is_empty() {
            return Err(KeyringError::Damaged("something follows its fields"));
        }
        // From the first to the one before the current, each once, in order.
        let ascending = old.windows(2).all(|pair| pair[0].epoch < pair[1].epoch);
        let first = old.first().map_or(epoch, |first| first.epoch);
        if first != FIRST_EPOCH || !ascending || old.last().is_some_and(|o| o.epoch >= epoch) {
            return Err(KeyringError::Damaged("its epochs are out of order"));
        }
        Ok(Keyring { features, revision, volume, epoch, next_slot, slots, old, mac: *mac })
    }

    /// Everything the MAC covers.
    pub(super) fn body(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&[VERSION, SUITE, 0, 0]);
        let Features { compatible, read_only_compatible, incompatible } = self.features;
        for flags in [compatible, read_only_compatible, incompatible, self.revision] {
            out.extend_from_slice(&flags.to_be_bytes());
        }
        out.extend_from_slice(&self.volume.0);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.next_slot.to_be_bytes());
        for count in [self.slots.len(), self.old.len()] {
            let count = u16::try_from(count).expect("at most SLOTS_MAX or OLD_EPOCHS_MAX");
            out.extend_from_slice(&count.to_be_bytes());
        }
        for slot in &self.slots {
            out.extend_from_slice(&slot.before_root());
            out.extend_from_slice(&slot.wrap.root);
        }
        for old in &self.old {
            out.extend_from_slice(&old.epoch.to_be_bytes());
            out.push(old.content);
            out.extend_from_slice(&old.sealed);
        }
        out
    }
}

/// What is left of the keyring's body; every read is checked against its end.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], KeyringError> {
        let split = self.0.split_at_checked(len);
        let (head, rest) = split.ok_or(KeyringError::Damaged("a field is cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], KeyringError> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    fn u16(&mut self) -> Result<u16, KeyringError> {
        Ok(u16::from_be_bytes(*self.array()?))
    }

    fn u32(&mut self) -> Result<u32, KeyringError> {
        Ok(u32::from_be_bytes(*self.array()?))
    }

    fn u64(&mut self) -> Result<u64, KeyringError> {
        Ok(u64::from_be_bytes(*self.array()?))
    }

    fn slot(&mut self) -> Result<Slot, KeyringError> {
        let id = self.u32()?;
        let [kind] = *self.array()?;
        let (made_secs, made_epoch) = (self.u64()?, self.u32()?);
        let [label_len] = *self.array()?;
        let label = self.take(usize::from(label_len))?;
        let label = match std::str::from_utf8(label) {
            Ok(label) if label.len() <= LABEL_MAX && !label.chars().any(char::is_control) => label,
            _ => return Err(KeyringError::Damaged("a label is not printable text")),
        };
        let params_len = usize::from(self.u16()?);
        if params_len > PARAMS_MAX {
            return Err(KeyringError::Damaged("the parameters of a slot are too long"));
        }
        Ok(Slot {
            id,
            kind: SlotKind::from_byte(kind),
            made_secs,
            made_epoch,
            label: label.to_owned(),
            params: self.take(params_len)?.to_vec(),
            public: self.take(PUBLIC)?.to_vec(),
            anchor: self.take(SEALED_KEY)?.to_vec(),
            wrap: Wrap {
                encapsulation: self.take(ENCAPSULATION)?.to_vec(),
                root: self.take(SEALED_KEY)?.to_vec(),
            },
        })
    }

    fn old_epoch(&mut self) -> Result<OldEpoch, KeyringError> {
        let epoch = self.u32()?;
        let [content] = *self.array()?;
        Ok(OldEpoch { epoch, content, sealed: self.take(SEALED_KEY)?.to_vec() })
    }
}
