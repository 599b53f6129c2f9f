//! Objects that are in memory whole, and the answers to reads of them: what the store would have said.
//! Used by `ahead` and by `kv/answers`, which fetch objects before they are asked for.

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetResult, GetResultPayload, ObjectMeta, Result};
use std::ops::Range;

use super::error::{ErrorClass, StoreError};

/// An object that was read whole.
#[derive(Clone)]
pub(super) struct Whole {
    pub(super) meta: ObjectMeta,
    pub(super) bytes: Bytes,
}

/// The answer to a read of `whole`; without it, that there is no such object.
///
/// # Errors
/// [`Error::NotFound`]; the range does not begin inside the object.
pub(super) fn answer(
    location: &Path,
    whole: Option<Whole>,
    options: &GetOptions,
) -> Result<GetResult> {
    let Whole { meta, bytes } = whole.ok_or_else(|| absent(location))?;
    let range = match (&options.range, options.head) {
        (Some(range), false) => range
            .as_range(meta.size)
            .map_err(|e| StoreError::new(ErrorClass::Other, e.to_string()).into_store("sealfs"))?,
        _ => 0..meta.size,
    };
    let part = match options.head {
        true => Bytes::new(),
        false => bytes.slice(range.start as usize..range.end as usize),
    };
    Ok(result(meta, range, part))
}

/// The answer to a read of `range`, which is `bytes`.
pub(super) fn result(meta: ObjectMeta, range: Range<u64>, bytes: Bytes) -> GetResult {
    GetResult {
        payload: GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed()),
        meta,
        range,
        attributes: Default::default(),
        extensions: Default::default(),
    }
}

/// There is no such object.
pub(super) fn absent(location: &Path) -> Error {
    Error::NotFound { path: location.to_string(), source: "it is not there".into() }
}
