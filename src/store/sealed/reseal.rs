//! Sealing objects again, in place, in the newest epoch.
//!
//! The plaintext and the name stay; salt, key and entity tag are new. The write is conditional, so
//! that what somebody else puts meanwhile is never overwritten. Readers that remember the old header
//! see another tag and fetch the new one (`fetch`).

use super::super::error::{ErrorClass, StoreError, class};
use super::fetch::Failed;
use super::{HEADER, Sealed, chain, on_fitting_thread};
use crate::base::one_line;
use crate::seal::{OpenError, VolumeKeys};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, Result, UpdateVersion,
};
use zeroize::Zeroizing;

/// How often an object that somebody keeps replacing is tried.
const REPLACED_MAX: u32 = 5;

/// What became of an object that was to be sealed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resealed {
    /// It is sealed in this epoch, which is new enough.
    Already(u32),
    /// It was sealed in this epoch until now.
    Done(u32),
    /// It is not there any more.
    Gone,
}

impl Sealed {
    /// The oldest epoch in which anything that this layer writes can still arrive in the store.
    pub fn oldest_epoch(&self) -> u32 {
        let now = self.0.keys.epoch();
        self.0.underway.oldest().map_or(now, |oldest| oldest.min(now))
    }

    /// The epoch that an object is sealed in, and the version of the object that says so, its size
    /// that of the ciphertext; `None` if it is not there, or is an object of the metadata's log whose
    /// predecessor was collected, so that nobody needs it. One GET of the header.
    ///
    /// # Errors
    /// [`ErrorClass::Corrupt`] if it opens in no epoch that these keys, or newer ones, have; the
    /// store's.
    pub async fn epoch_of(&self, location: &Path) -> Result<Option<(u32, ObjectMeta)>> {
        for is_last in [false, true] {
            let range = Some(GetRange::Bounded(0..HEADER as u64));
            let got =
                match self.0.store.get_opts(location, GetOptions::new().with_range(range)).await {
                    Err(e) if class(&e) == ErrorClass::NotFound => return Ok(None),
                    got => got?,
                };
            let meta = got.meta.clone();
            let bytes = got.bytes().await?;
            let why = match (bytes.first_chunk(), chain::number(location)) {
                (None, _) => OpenError::TooShort(meta.size),
                (Some(header), Some(number)) => {
                    match self.log_opener(number, location, header).await {
                        Ok((epoch, _)) => return Ok(Some((epoch, meta))),
                        Err(Failed::Alone(_)) => return Ok(None),
                        Err(Failed::Store(e)) => return Err(e),
                        Err(Failed::Damaged(_)) => OpenError::Commitment,
                    }
                }
                (Some(header), None) => {
                    match self.0.keys.object_opener(location.as_ref(), header) {
                        Ok((epoch, _)) => return Ok(Some((epoch, meta))),
                        Err(e) => e,
                    }
                }
            };
            match self.0.renew.get() {
                Some(renew) if !is_last => {
                    renew.renew(location).await;
                }
                _ => return Err(damaged(location, why)),
            }
        }
        unreachable!("the second round returns")
    }

    /// Seals an object in the newest epoch if it is sealed in one before `least`. Not for objects of
    /// the metadata's log, which are bound to others. Holds the object in memory, up to three times.
    ///
    /// # Errors
    /// As [`Sealed::epoch_of`]; [`ErrorClass::Precondition`] if somebody keeps replacing it.
    pub async fn reseal(&self, location: &Path, least: u32) -> Result<Resealed> {
        let mut lost = None;
        for _ in 0..REPLACED_MAX {
            let Some((epoch, meta)) = self.epoch_of(location).await? else {
                return Ok(Resealed::Gone);
            };
            if epoch >= least {
                return Ok(Resealed::Already(epoch));
            }
            let outcome = self.reseal_version(location, meta).await;
            match outcome {
                Ok(()) => return Ok(Resealed::Done(epoch)),
                // Replaced or deleted meanwhile, or done by an attempt whose answer was lost.
                Err(e) if matches!(class(&e), ErrorClass::Precondition | ErrorClass::NotFound) => {
                    lost = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(lost.expect("every round that ends here set it"))
    }

    /// The message as it lies there, opened and sealed again: what is in it does not matter here.
    async fn reseal_version(&self, location: &Path, was: ObjectMeta) -> Result<()> {
        let version = UpdateVersion { e_tag: was.e_tag.clone(), version: None };
        let options = GetOptions { if_match: was.e_tag, ..GetOptions::default() };
        let message = self.0.store.get_opts(location, options).await?.bytes().await?;
        let _underway = self.0.underway.begin(self.0.keys.epoch());
        let (keys, name) = (self.0.keys.clone(), location.clone());
        let again = on_fitting_thread(message.len(), move || {
            let (_, plain) = open_message(&keys, &name, &message)?;
            let mut again = Vec::with_capacity(message.len());
            keys.object(name.as_ref()).seal_into(&[&plain[..]], &mut again);
            assert_eq!(again.len(), message.len(), "the plaintext is the same");
            Ok(again)
        });
        let (again, mode) = (again.await?, PutMode::Update(version));
        let outcome = self.0.store.put_opts(location, again.into(), mode.into()).await;
        self.forget(location);
        outcome.map(drop)
    }

    /// What is sealed in an object, authenticated to its last byte, and in which epoch. Holds it in
    /// memory twice. Not for objects of the metadata's log.
    ///
    /// # Errors
    /// As [`Sealed::epoch_of`].
    pub async fn open_whole(&self, location: &Path) -> Result<(u32, Zeroizing<Vec<u8>>)> {
        let message = self.0.store.get(location).await?.bytes().await?;
        let (keys, name) = (self.0.keys.clone(), location.clone());
        on_fitting_thread(message.len(), move || open_message(&keys, &name, &message)).await
    }
}

fn open_message(
    keys: &VolumeKeys,
    location: &Path,
    message: &[u8],
) -> Result<(u32, Zeroizing<Vec<u8>>)> {
    let damaged = |why| damaged(location, why);
    let Some((header, chunks)) = message.split_first_chunk::<HEADER>() else {
        return Err(damaged(OpenError::TooShort(message.len() as u64)));
    };
    let mut plain = Zeroizing::new(Vec::new());
    let (epoch, opener) = keys.object_opener(location.as_ref(), header).map_err(damaged)?;
    opener.open_chunks(0, chunks, true, &mut plain).map_err(damaged)?;
    Ok((epoch, plain))
}

fn damaged(location: &Path, why: OpenError) -> object_store::Error {
    let message = format!("object {} is damaged: {why}", one_line(location.as_ref()));
    StoreError::new(ErrorClass::Corrupt, message).into_store("sealed")
}
