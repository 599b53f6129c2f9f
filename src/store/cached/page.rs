//! The bytes of a cache file besides its granules: the page at its start and the marks. Pure.
//!
//! All numbers are little-endian.
//!
//! ```text
//! page 4 096 | "sealfsC1" 8 | CRC-32 of the rest 4 | granule bytes 4 | object bytes 8
//!            | modified, microseconds since 1970 8 | path | entity tag | version | zeros
//! text       | length 2 (0xffff: none) | UTF-8
//! mark 16    | magic 4 | length 4 | granule number 4 | CRC-32 of the three and the data 4
//! ```

use crate::base::in_calendar;

use super::granule::{GRANULE, MARK, PAGE};
use object_store::ObjectMeta;
use object_store::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// First bytes of a page; the digit is the layout's version.
const MAGIC: &[u8; 8] = b"sealfsC1";
/// First bytes of a mark.
const MARK_MAGIC: u32 = 0x6752_4e31;

/// Whether these bytes were written as a mark (a hole of a sparse file was not).
pub(super) fn is_mark(bytes: &[u8]) -> bool {
    bytes.starts_with(&MARK_MAGIC.to_le_bytes())
}

/// What stands before a granule: magic, length, number, CRC-32 of the number and the data.
pub(super) fn mark<'a>(
    k: u64,
    data: impl Iterator<Item = &'a [u8]> + Clone,
) -> [u8; MARK as usize] {
    let mut mark = [0u8; MARK as usize];
    let len: usize = data.clone().map(<[u8]>::len).sum();
    mark[..4].copy_from_slice(&MARK_MAGIC.to_le_bytes());
    mark[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    mark[8..12].copy_from_slice(&(k as u32).to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&mark[..12]);
    data.for_each(|part| crc.update(part));
    mark[12..].copy_from_slice(&crc.finalize().to_le_bytes());
    mark
}

/// The page of an object: magic, CRC-32 of the rest, size, time, then path, tag and version as
/// length-prefixed strings. `None` if they do not fit, and then the object is not cached.
pub(super) fn of_meta(meta: &ObjectMeta) -> Option<Vec<u8>> {
    let mut page = Vec::with_capacity(PAGE as usize);
    page.extend_from_slice(MAGIC);
    page.extend_from_slice(&[0; 4]);
    page.extend_from_slice(&(GRANULE as u32).to_le_bytes());
    page.extend_from_slice(&meta.size.to_le_bytes());
    let time = SystemTime::from(meta.last_modified).duration_since(UNIX_EPOCH).ok()?;
    page.extend_from_slice(&(time.as_micros() as u64).to_le_bytes());
    let location = Some(meta.location.as_ref());
    for text in [location, meta.e_tag.as_deref(), meta.version.as_deref()] {
        // 0xffff stands for none.
        let len = text.map_or(Ok(u16::MAX), |t| u16::try_from(t.len())).ok()?;
        page.extend_from_slice(&len.to_le_bytes());
        page.extend_from_slice(text.unwrap_or_default().as_bytes());
    }
    if page.len() > PAGE as usize {
        return None;
    }
    page.resize(PAGE as usize, 0);
    let crc = crc32fast::hash(&page[12..]);
    page[8..12].copy_from_slice(&crc.to_le_bytes());
    Some(page)
}

/// The object a page names; `None` if the page is torn or of another layout.
pub(super) fn to_meta(page: &[u8]) -> Option<ObjectMeta> {
    let number = |at: usize| Some(u64::from_le_bytes(*page.get(at..)?.first_chunk()?));
    let good = page.starts_with(MAGIC)
        && page.get(8..12)? == crc32fast::hash(page.get(12..)?).to_le_bytes()
        && page.get(12..16)? == (GRANULE as u32).to_le_bytes();
    if !good {
        return None;
    }
    let (size, micros) = (number(16)?, number(24)?);
    let mut rest = page.get(32..)?;
    let mut texts = [const { None }; 3];
    for text in &mut texts {
        let len = u16::from_le_bytes(*rest.first_chunk()?);
        rest = &rest[2..];
        if len != u16::MAX {
            *text = Some(std::str::from_utf8(rest.get(..len as usize)?).ok()?.to_owned());
            rest = &rest[len as usize..];
        }
    }
    let [location, e_tag, version] = texts;
    let time = in_calendar(UNIX_EPOCH.checked_add(Duration::from_micros(micros))?);
    let location = Path::parse(location?).ok()?;
    Some(ObjectMeta { location, last_modified: time.into(), size, e_tag, version })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled;

    #[test]
    fn a_page_names_its_object_or_none() {
        // Guards against a cache file, which anybody with the disk can write, that makes the mount panic:
        // the sum over it is right here.
        let meta = ObjectMeta {
            location: Path::from("seg/ab/c"),
            last_modified: (UNIX_EPOCH + Duration::from_secs(1_800_000_000)).into(),
            size: 12345,
            e_tag: Some("tag".into()),
            version: None,
        };
        let page = of_meta(&meta).expect("fits");
        assert_eq!(to_meta(&page), Some(meta));
        garbled(&[&page[..64], &page], &[&[0xff; 8], b"../..", &[0xff, 0x7f]], |bytes| {
            let mut page = bytes.to_vec();
            if page.len() >= 12 {
                let sum = crc32fast::hash(&page[12..]);
                page[8..12].copy_from_slice(&sum.to_le_bytes());
            }
            if let Some(meta) = to_meta(&page) {
                assert!(!meta.location.parts().any(|part| part.as_ref() == ".."));
            }
        });
    }
}
