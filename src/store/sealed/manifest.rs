//! Manifests of the metadata: what SlateDB wrote, and behind it the number and the commitment of
//! the object of the log behind which replay starts (FORMAT.md "The log").

use std::ops::Range;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, GetOptions, PutPayload};

use super::super::error::{ErrorClass, StoreError};
use super::Sealed;
use super::chain::{self, ManifestRead, Misfit};
use super::fetch::{Failed, Fetched, out_of_range};
use crate::seal::COMMITMENT;

/// Number and commitment.
pub(super) const ANCHOR: usize = 8 + COMMITMENT;
/// The field `replay_after_wal_id` in the table of a manifest, versions 1 and 2 of SlateDB's format.
const REPLAY_AFTER: usize = 14;

/// Whether this is a manifest.
pub(super) fn is(location: &Path) -> bool {
    let name = location.as_ref().strip_prefix("meta/manifest/");
    let digits = name.and_then(|name| name.strip_suffix(".manifest"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The number of the object of the log behind which replay starts, of the bytes that SlateDB wrote:
/// two bytes of version, then a flat buffer. `None`: it is none.
fn replay_after(manifest: &[u8]) -> Option<u64> {
    let (version, buffer) = manifest.split_first_chunk()?;
    if !matches!(u16::from_be_bytes(*version), 1 | 2) {
        return None;
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(*buffer.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*buffer.get(at..)?.first_chunk()?));
    let table = u32_at(0)? as usize;
    let back = u32_at(table)? as i32;
    let vtable = usize::try_from(table as i64 - i64::from(back)).ok()?;
    if usize::from(u16_at(vtable)?) < REPLAY_AFTER + 2 {
        return Some(0);
    }
    match u16_at(vtable + REPLAY_AFTER)? {
        0 => Some(0),
        field => {
            let bytes = buffer.get(table + usize::from(field)..)?.first_chunk()?;
            Some(u64::from_le_bytes(*bytes))
        }
    }
}

impl Sealed {
    /// A manifest as it is sealed: with its anchor.
    pub(super) async fn with_anchor(
        &self,
        payload: PutPayload,
    ) -> object_store::Result<PutPayload> {
        let manifest = Bytes::from(payload);
        let Some(number) = replay_after(&manifest) else {
            let message = "a manifest of the metadata is not of the format that is known";
            return Err(StoreError::new(ErrorClass::Other, message).into_store("sealed"));
        };
        let commitment = self.anchor_of(number).await?;
        let anchor = [&number.to_be_bytes()[..], &commitment].concat();
        Ok(PutPayload::from_iter([manifest, Bytes::from(anchor)]))
    }

    /// What SlateDB wrote of a manifest that was read whole; its anchor holds from now on.
    pub(super) fn without_anchor(
        &self,
        options: &GetOptions,
        mut whole: Fetched,
    ) -> Result<Fetched, Failed> {
        let plain = whole.plain.take().unwrap_or_default();
        let damaged = |why: &str| Failed::Damaged(why.into());
        let Some((manifest, anchor)) = plain.split_last_chunk::<ANCHOR>() else {
            return Err(damaged("a manifest without an anchor"));
        };
        let (number, commitment) = anchor.split_first_chunk().expect("longer than a number");
        let number = u64::from_be_bytes(*number);
        if replay_after(manifest) != Some(number) {
            return Err(damaged("a manifest with the anchor of another"));
        }
        let commitment: &chain::Commitment = commitment.first_chunk().expect("all that is left");
        let read = options.extensions.get::<ManifestRead>().copied();
        self.1.anchored(number, *commitment, read).map_err(|misfit| match misfit {
            Misfit::Other(why) => Failed::Damaged(why),
            Misfit::Unknown => {
                let message = "the log of the metadata has gone on beyond what was read of it";
                let e = StoreError::new(ErrorClass::Behind, message);
                Failed::Store(e.into_store("sealed"))
            }
        })?;
        let len = manifest.len() as u64;
        whole.meta.size = len;
        whole.range = match (&options.range, options.head) {
            (_, true) => 0..len,
            (None, _) => 0..len,
            (Some(range), _) => range.as_range(len).map_err(|e| out_of_range(e.to_string()))?,
        };
        let Range { start, end } = whole.range;
        whole.plain = (!options.head).then(|| plain.slice(start as usize..end as usize));
        Ok(whole)
    }
}

/// What is asked of the store for any read of a manifest.
pub(super) fn whole(options: &GetOptions) -> Result<GetOptions, Error> {
    if let Some(range) = &options.range {
        range
            .is_valid()
            .map_err(|e| StoreError::new(ErrorClass::Other, e.to_string()).into_store("sealed"))?;
    }
    Ok(GetOptions { range: None, head: false, ..options.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_bytes_are_looking_for_the_number_does_not_panic() {
        // Guards against a manifest that was damaged before it was sealed.
        let mut seed = 7u64;
        for len in 0..200usize {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 60) as u8
                })
                .collect();
            let _ = replay_after(&bytes);
            let _ = replay_after(&[&[0, 2], &bytes[..]].concat());
        }
        assert_eq!(replay_after(b"\0\x03whatever it is"), None);
    }
}
