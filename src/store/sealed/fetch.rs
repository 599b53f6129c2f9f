//! Reading: what to ask the store for, and opening what it answers.
//!
//! A read takes one round trip: the ciphertext of the chunks it touches and, for an object not
//! read before, its header, in the same request when they are near each other and in a parallel
//! one when not.

use super::super::error::{ErrorClass, StoreError, class};
use super::super::rope::Rope;
use super::{Known, Sealed, chain, manifest, on_fitting_thread};
use crate::base::Buffer;
use crate::seal::offsets::{
    CHUNK_CIPHER, CHUNK_PLAIN, HEADER, MESSAGE_MIN, TAG, chunk_start, cipher_range, plain_len,
    plain_of_chunks,
};
use crate::seal::{OpenError, Opener};
use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use std::ops::Range;

/// A range that starts before this byte is fetched together with the header; beyond it the
/// header comes by a separate request, at the same time.
const NEAR: u64 = 64 << 10;
/// Attempts at reading an object that somebody keeps replacing.
const REPLACED_MAX: u32 = 5;

/// An opened answer.
pub(super) struct Fetched {
    /// The plaintext; none for a `head`.
    pub(super) plain: Option<Bytes>,
    /// With the plaintext size.
    pub(super) meta: ObjectMeta,
    /// The plaintext range that `plain` is.
    pub(super) range: Range<u64>,
}

/// Why a read failed.
pub(super) enum Failed {
    /// What the store said.
    Store(Error),
    /// An object of the log whose predecessor was collected: nothing can be said of it.
    Alone(Error),
    /// The object is not what was sealed under this name.
    Damaged(String),
}

impl From<Error> for Failed {
    fn from(e: Error) -> Failed {
        Failed::Store(e)
    }
}

impl From<OpenError> for Failed {
    fn from(e: OpenError) -> Failed {
        Failed::Damaged(e.to_string())
    }
}

/// An answer of the store, collected.
pub(super) struct Raw {
    meta: ObjectMeta,
    range: Range<u64>,
    body: Rope,
}

impl Raw {
    /// The header of the message, if the answer begins with it.
    pub(super) fn header(&self) -> Option<[u8; HEADER]> {
        if self.range.start != 0 || self.body.len() < HEADER as u64 {
            return None;
        }
        let header = self.body.slice(0..HEADER as u64).into_bytes();
        header.first_chunk().copied()
    }

    /// The object's size, as the store says.
    pub(super) fn size(&self) -> u64 {
        self.meta.size
    }
}

/// What a read asks for, in plaintext terms.
enum Wanted {
    /// Only the size, proven.
    Size,
    /// Everything.
    All,
    /// A part.
    Part(GetRange),
}

impl Wanted {
    fn of(options: &GetOptions) -> Result<Wanted, Failed> {
        if options.head {
            return Ok(Wanted::Size);
        }
        match &options.range {
            None => Ok(Wanted::All),
            Some(range) => match range.is_valid() {
                Ok(()) => Ok(Wanted::Part(range.clone())),
                Err(e) => Err(out_of_range(e.to_string())),
            },
        }
    }

    /// The first byte and the range to ask the store for (`None`: all of it), if the header is
    /// not wanted in the same answer.
    fn cipher(&self) -> (u64, Option<GetRange>) {
        let chunk_at = |plain: u64| chunk_start(plain / CHUNK_PLAIN as u64);
        match self {
            // The last chunk is always shorter than a full one.
            Wanted::Size => (u64::MAX, Some(GetRange::Suffix(CHUNK_CIPHER as u64))),
            Wanted::All => (0, None),
            Wanted::Part(GetRange::Bounded(r)) => {
                let start = chunk_at(r.start);
                let past = ((r.end - 1) / CHUNK_PLAIN as u64).saturating_add(1);
                (start, Some(GetRange::Bounded(start..chunk_start(past))))
            }
            Wanted::Part(GetRange::Offset(o)) => {
                (chunk_at(*o), Some(GetRange::Offset(chunk_at(*o))))
            }
            Wanted::Part(GetRange::Suffix(n)) => {
                // One chunk for the unaligned start, one for the last.
                let chunks = n / CHUNK_PLAIN as u64 + 2;
                (u64::MAX, Some(GetRange::Suffix(chunks.saturating_mul(CHUNK_CIPHER as u64))))
            }
        }
    }

    /// The plaintext range of an object of `len` bytes.
    fn plain(&self, len: u64) -> Result<Range<u64>, Failed> {
        match self {
            Wanted::Size => Ok(len..len),
            Wanted::All => Ok(0..len),
            Wanted::Part(range) => range.as_range(len).map_err(|e| out_of_range(e.to_string())),
        }
    }

    /// Whether the answer depends on where the object ends, so that its last chunk must be
    /// opened.
    fn needs_end(&self, len: u64) -> bool {
        !matches!(self, Wanted::Part(GetRange::Bounded(r)) if r.end <= len)
    }
}

pub(super) fn out_of_range(message: String) -> Failed {
    Failed::Store(StoreError::new(ErrorClass::Other, message).into_store("sealed"))
}

impl Sealed {
    /// One read, in plaintext terms. Does not look for damage anywhere but in what it fetched.
    pub(super) async fn fetch(
        &self,
        location: &Path,
        options: &GetOptions,
    ) -> Result<Fetched, Failed> {
        if manifest::is(location) {
            let whole = self.fetch_object(location, &manifest::whole(options)?).await?;
            return self.without_anchor(options, whole);
        }
        let _reading = self.reading_log(location);
        self.fetch_object(location, options).await
    }

    /// Reads the end of an object, which proves what it is and where it ends.
    pub(super) async fn open_end(&self, location: &Path) -> object_store::Result<()> {
        let head = GetOptions::new().with_head(true);
        match self.fetch(location, &head).await {
            Ok(_) => Ok(()),
            Err(Failed::Store(e)) if class(&e) != ErrorClass::NotFound => Err(e),
            Err(Failed::Alone(e)) => Err(e),
            failed => {
                let why = match failed {
                    Err(Failed::Damaged(why)) => why,
                    _ => "it is not there".into(),
                };
                let message = format!("object {location} is damaged: {why}");
                Err(StoreError::new(ErrorClass::Corrupt, message).into_store("sealed"))
            }
        }
    }

    async fn fetch_object(&self, location: &Path, options: &GetOptions) -> Result<Fetched, Failed> {
        let wanted = Wanted::of(options)?;
        for _ in 0..REPLACED_MAX {
            match self.fetch_version(location, options, &wanted).await {
                Ok(Some(fetched)) => return Ok(fetched),
                Ok(None) => self.forget(location),
                Err(Failed::Store(e)) if class(&e) == ErrorClass::Other => {
                    return Err(self.why_refused(location, e).await);
                }
                Err(failed) => return Err(failed),
            }
        }
        let message = format!("{location} was replaced at each of {REPLACED_MAX} reads");
        Err(Failed::Store(StoreError::new(ErrorClass::Throttled, message).into_store("sealed")))
    }

    /// One try; `None` when header and body are of different versions of the object.
    async fn fetch_version(
        &self,
        location: &Path,
        options: &GetOptions,
        wanted: &Wanted,
    ) -> Result<Option<Fetched>, Failed> {
        // What opens an object of the log depends on what is known of the one before it.
        let remembers = options.version.is_none() && chain::number(location).is_none();
        let known = remembers.then(|| self.0.known.lock().get(location).cloned()).flatten();
        if let (Wanted::Size, Some(size)) = (wanted, known.as_ref().and_then(|k| k.size_proven)) {
            let meta = self.0.store.get_opts(location, options.clone()).await?.meta;
            let same = known.is_some_and(|k| k.e_tag == meta.e_tag) && meta.size == size;
            return Ok(same.then(|| plain_meta(meta, size)));
        }

        let (start, mut range) = wanted.cipher();
        let apart = known.is_none() && start > NEAR;
        if known.is_none() && !apart {
            range = match range {
                Some(GetRange::Bounded(r)) => Some(GetRange::Bounded(0..r.end)),
                _ => None,
            };
        }
        let main = GetOptions { range, head: false, ..options.clone() };
        let (raw, header) = if apart {
            let header = GetOptions {
                range: Some(GetRange::Bounded(0..HEADER as u64)),
                version: options.version.clone(),
                ..GetOptions::default()
            };
            let (raw, header) =
                futures::join!(self.raw(location, main), self.raw(location, header));
            (raw?, Some(header?))
        } else {
            (self.raw(location, main).await?, None)
        };

        let claimed = raw.meta.size;
        let Some(plain_size) = plain_len(claimed) else {
            return Err(OpenError::BadLength(claimed).into());
        };
        let opener = match (&known, &header) {
            (Some(known), _) if known.e_tag != raw.meta.e_tag => return Ok(None),
            (Some(known), _) => known.opener.clone(),
            (None, Some(header)) if header.meta.e_tag != raw.meta.e_tag => return Ok(None),
            (None, Some(header)) => self.open_header(location, header).await?,
            (None, None) => self.open_header(location, &raw).await?,
        };

        let take = Take::of(wanted, plain_size, &raw)?;
        let size_proven =
            take.ends_message.then_some(claimed).or(known.and_then(|k| k.size_proven));
        let meta = raw.meta.clone();
        let body =
            raw.body.slice(take.cipher.start - raw.range.start..take.cipher.end - raw.range.start);
        let chunks = opener.clone();
        let plain = on_fitting_thread(body.len() as usize, move || {
            Ok(open_rope(&chunks, take.first_chunk, &body, take.ends_message))
        })
        .await??;
        if remembers {
            let e_tag = meta.e_tag.clone();
            self.remember(location, Known { opener, e_tag, size_proven });
        }
        let mut fetched = plain_meta(meta, claimed);
        if !matches!(wanted, Wanted::Size) {
            let len = (take.plain.end - take.plain.start) as usize;
            fetched.plain = Some(plain.freeze().slice(take.skip..take.skip + len));
            fetched.range = take.plain;
        }
        Ok(Some(fetched))
    }

    /// One GET, collected and of the length it announced.
    pub(super) async fn raw(&self, location: &Path, options: GetOptions) -> Result<Raw, Failed> {
        let result = self.0.store.get_opts(location, options).await?;
        let (meta, range) = (result.meta.clone(), result.range.clone());
        let body = Rope::collect(result).await?;
        if range.start > range.end || body.len() != range.end - range.start {
            let message = format!("body of {location} has {} bytes, not {range:?}", body.len());
            return Err(StoreError::new(ErrorClass::Transport, message)
                .into_store("sealed")
                .into());
        }
        Ok(Raw { meta, range, body })
    }

    /// The opener for an answer that begins with the message's header.
    async fn open_header(&self, location: &Path, raw: &Raw) -> Result<Opener, Failed> {
        let header = raw.header().ok_or(OpenError::TooShort(raw.size()))?;
        match chain::number(location) {
            Some(number) => Ok(self.log_opener(number, location, &header).await?.1),
            None => self.opener(location, &header).ok_or_else(|| OpenError::Commitment.into()),
        }
    }

    /// The store refused a read for no reason it has a word for, such as a range past the end.
    /// Either the caller asked for too much, or the object was cut: then that is the answer.
    async fn why_refused(&self, location: &Path, refusal: Error) -> Failed {
        match self.0.store.head(location).await {
            Ok(meta) if plain_len(meta.size).is_none() => OpenError::BadLength(meta.size).into(),
            Ok(meta) if meta.size < MESSAGE_MIN as u64 => OpenError::TooShort(meta.size).into(),
            Ok(_) => {
                let head = GetOptions::new().with_head(true);
                self.forget(location);
                match self.fetch_version(location, &head, &Wanted::Size).await {
                    Err(Failed::Damaged(why)) => Failed::Damaged(why),
                    _ => Failed::Store(refusal),
                }
            }
            Err(_) => Failed::Store(refusal),
        }
    }
}

/// An answer without bytes: the metadata with the plaintext size of a message of `claimed` bytes.
fn plain_meta(mut meta: ObjectMeta, claimed: u64) -> Fetched {
    meta.size = plain_len(claimed).unwrap_or(0);
    Fetched { plain: None, range: 0..meta.size, meta }
}

/// What to open of an answer.
struct Take {
    plain: Range<u64>,
    cipher: Range<u64>,
    first_chunk: u64,
    skip: usize,
    ends_message: bool,
}

impl Take {
    fn of(wanted: &Wanted, plain_size: u64, raw: &Raw) -> Result<Take, Failed> {
        let plain = wanted.plain(plain_size)?;
        let first_chunk = plain.start / CHUNK_PLAIN as u64;
        let touched = cipher_range(plain.clone(), plain_size);
        // The last chunk is touched, or is empty and in the answer.
        let ends_message =
            touched.ends_message || (plain.end == plain_size && raw.range.end == raw.meta.size);
        let end = if ends_message { raw.meta.size } else { touched.cipher.end };
        let cipher = chunk_start(first_chunk)..end;
        let covered = raw.range.start <= cipher.start && cipher.end <= raw.range.end;
        if !covered || cipher.start > cipher.end || (wanted.needs_end(plain_size) && !ends_message)
        {
            let message = format!(
                "the store answered bytes {:?} of {} where {cipher:?} were needed",
                raw.range, raw.meta.size
            );
            return Err(Failed::Damaged(message));
        }
        let skip = (plain.start % CHUNK_PLAIN as u64) as usize;
        Ok(Take { plain, cipher, first_chunk, skip, ends_message })
    }
}

/// Opens the chunks `first_chunk..` that a rope holds. Pieces are opened where they lie; only a
/// chunk that two pieces share is copied together first.
fn open_rope(
    opener: &Opener,
    first_chunk: u64,
    rope: &Rope,
    ends_message: bool,
) -> Result<Buffer, OpenError> {
    let bad_length = OpenError::BadLength(rope.len());
    let mut out = Buffer::of(plain_of_chunks(rope.len(), ends_message).ok_or(bad_length)? as usize);
    let mut rest = &mut out[..];
    let mut shared: Vec<u8> = Vec::new();
    let mut chunk = first_chunk;
    let mut open = |cipher: &[u8], ends_message| {
        let chunks = cipher.len().div_ceil(CHUNK_CIPHER);
        let (now, later) = std::mem::take(&mut rest).split_at_mut(cipher.len() - chunks * TAG);
        rest = later;
        chunk += chunks as u64;
        opener.open_to(chunk - chunks as u64, cipher, ends_message, now)
    };
    for part in rope.parts() {
        let mut part = &part[..];
        if !shared.is_empty() {
            let (head, rest) = part.split_at(part.len().min(CHUNK_CIPHER - shared.len()));
            shared.extend_from_slice(head);
            part = rest;
            if shared.len() == CHUNK_CIPHER {
                open(&shared, false)?;
                shared.clear();
            }
        }
        let whole = part.len() - part.len() % CHUNK_CIPHER;
        open(&part[..whole], false)?;
        shared.extend_from_slice(&part[whole..]);
    }
    if ends_message {
        open(&shared, true)?;
    }
    Ok(out)
}
