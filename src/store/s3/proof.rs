//! What proves that a write was done.
//!
//! A status of 200 proves nothing: whatever stands between may say it. An answer to a PUT counts
//! when it repeats the checksum that was sent, or when its ETag is the MD5 of what was sent (what
//! servers answer that know no checksums; not under SSE-KMS or SSE-C). Where it does neither, the
//! object is looked for once. What an answer leaves unproven is tried again like an outage.
//!
//! | server | repeats the CRC32 | ETag is the MD5 |
//! | --- | --- | --- |
//! | Amazon S3, MinIO, Garage, s3s-fs | yes | without SSE-KMS and SSE-C |
//! | Ceph 16, moto | no | yes |

use super::Inner;
use super::errors::own;
use crate::base::hex;
use crate::store::error::{ErrorClass, class, sentence};
use aws_sdk_s3::types::CompletedPart;
use base64::{Engine, engine::general_purpose::STANDARD};
use md5::{Digest, Md5};
use object_store::path::Path;
use object_store::{Error, GetOptions, PutPayload, Result};

/// Payloads longer than this are hashed on a blocking thread.
const INLINE_MAX: usize = 512 << 10;

/// What an answer to a write says about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    /// Its status; 0 where it is not known.
    pub(super) status: u16,
    pub(super) e_tag: Option<&'a str>,
    /// The checksum that it repeats.
    pub(super) checksum: Option<&'a str>,
}

/// How far an answer alone goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It has what was sent.
    Stored,
    /// It has something else.
    Differs,
    /// It does if the ETag is the MD5 of what was sent.
    StoredIfMd5,
    /// It does not say.
    Silent,
}

impl Said<'_> {
    fn verdict(self, checksum: &str) -> Verdict {
        let is_done = matches!(self.status, 0 | 200 | 201);
        match (self.e_tag.is_some_and(is_e_tag), self.checksum) {
            (_, Some(other)) if other != checksum => Verdict::Differs,
            (true, Some(_)) if is_done => Verdict::Stored,
            (true, _) if is_done => Verdict::StoredIfMd5,
            _ => Verdict::Silent,
        }
    }
}

/// Whether a text can be an ETag: opaque and printable, in quotes or (Ceph) without.
pub(super) fn is_e_tag(text: &str) -> bool {
    let tag = bare(text);
    (1..=256).contains(&tag.len())
        && tag.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'<' | b'>'))
}

/// An ETag without its quotes, and without the mark that proxies which compress put before it.
pub(super) fn bare(e_tag: &str) -> &str {
    let e_tag = e_tag.trim();
    e_tag.strip_prefix("W/").unwrap_or(e_tag).trim_matches('"')
}

/// A write that nothing proves: it is tried again.
fn unproven(action: &str, path: &str, why: &str) -> Error {
    own(ErrorClass::Foreign, format!("{action} {path}: nothing proves that it is stored: {why}"))
}

/// The ETag of an answer.
///
/// # Errors
/// `Foreign`: there is none, or it cannot be one.
pub(super) fn e_tag_of<'a>(e_tag: Option<&'a str>, action: &str, path: &str) -> Result<&'a str> {
    match e_tag {
        Some(tag) if is_e_tag(tag) => Ok(tag),
        Some(_) => Err(unproven(action, path, "the ETag of the answer is malformed")),
        None => Err(unproven(action, path, "the answer has no ETag")),
    }
}

/// The ETag of a part whose upload `said` this; whether all parts are there, the end of the upload
/// proves.
///
/// # Errors
/// `Foreign`: the answer is not one to a part that was stored as it was sent.
pub(super) fn prove_part<'a>(
    action: &str,
    path: &str,
    checksum: &str,
    said: Said<'a>,
) -> Result<&'a str> {
    match said.verdict(checksum) {
        Verdict::Differs => Err(unproven(action, path, "the server names another checksum")),
        _ => e_tag_of(said.e_tag, action, path),
    }
}

/// Whether an ETag is the MD5 of a payload. Hashes at about 600 MB/s.
async fn is_md5_of(e_tag: &str, payload: &PutPayload) -> Result<bool> {
    let tag = bare(e_tag).to_ascii_lowercase();
    if tag.len() != 32 {
        return Ok(false);
    }
    let short = payload.content_length() <= INLINE_MAX;
    let payload = payload.clone();
    let compare = move || {
        let mut hash = Md5::new();
        payload.iter().for_each(|piece| hash.update(piece));
        hex(&hash.finalize()) == tag
    };
    if short { Ok(compare()) } else { Ok(tokio::task::spawn_blocking(compare).await?) }
}

/// A part of an upload that is stored: what the end of the upload has to name of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartNote {
    /// Base64 of its CRC32; empty if the server keeps none, and asks for none.
    pub(super) checksum: String,
    /// Its bytes.
    pub(super) len: u64,
    pub(super) e_tag: String,
}

impl PartNote {
    /// As CompleteMultipartUpload names it.
    pub(super) fn as_named(&self, number: i32) -> CompletedPart {
        let part = CompletedPart::builder().part_number(number);
        let checksum = Some(self.checksum.clone()).filter(|checksum| !checksum.is_empty());
        part.e_tag(&self.e_tag).set_checksum_crc32(checksum).build()
    }

    pub(super) fn to_id(&self) -> String {
        format!("{} {} {}", self.checksum, self.len, self.e_tag)
    }

    pub(super) fn of_id(id: &str) -> Option<PartNote> {
        let mut fields = id.splitn(3, ' ');
        let (checksum, len, e_tag) = (fields.next()?, fields.next()?, fields.next()?);
        let (checksum, e_tag) = (checksum.to_owned(), e_tag.to_owned());
        Some(PartNote { checksum, len: len.parse().ok()?, e_tag })
    }
}

/// What the answer to CompleteMultipartUpload says of an upload of these parts.
fn verdict_of_upload(said: Said<'_>, parts: &[PartNote]) -> Verdict {
    let has_e_tag = said.e_tag.is_some_and(is_e_tag);
    let expected = said.checksum.and_then(|answered| match answered.contains('-') {
        true => checksum_of_checksums(parts),
        false => checksum_of_all(parts),
    });
    // The parts were proven one by one: a server that adds them up in another way is not lying.
    match (said.checksum, expected) {
        (Some(answered), Some(expected)) if has_e_tag && answered == expected => {
            return Verdict::Stored;
        }
        _ => {}
    }
    match (said.e_tag.map(bare), md5_of_md5s(parts)) {
        (Some(tag), Some(expected)) if tag.eq_ignore_ascii_case(&expected) => Verdict::Stored,
        _ => Verdict::Silent,
    }
}

fn crc32_of(part: &PartNote) -> Option<[u8; 4]> {
    STANDARD.decode(&part.checksum).ok()?.try_into().ok()
}

/// S3 User Guide, "Checking object integrity": the composite checksum of an upload.
fn checksum_of_checksums(parts: &[PartNote]) -> Option<String> {
    let mut crc = crc32fast::Hasher::new();
    for part in parts {
        crc.update(&crc32_of(part)?);
    }
    Some(format!("{}-{}", STANDARD.encode(crc.finalize().to_be_bytes()), parts.len()))
}

fn checksum_of_all(parts: &[PartNote]) -> Option<String> {
    let mut crc = crc32fast::Hasher::new();
    for part in parts {
        let of_part = u32::from_be_bytes(crc32_of(part)?);
        crc.combine(&crc32fast::Hasher::new_with_initial_len(of_part, part.len));
    }
    Some(STANDARD.encode(crc.finalize().to_be_bytes()))
}

/// The ETag of an upload whose parts have their MD5 for one.
fn md5_of_md5s(parts: &[PartNote]) -> Option<String> {
    let mut hash = Md5::new();
    for part in parts {
        let tag = bare(&part.e_tag);
        if tag.len() != 32 || !tag.is_ascii() {
            return None;
        }
        for digits in tag.as_bytes().chunks_exact(2) {
            let digits = std::str::from_utf8(digits).ok()?;
            hash.update([u8::from_str_radix(digits, 16).ok()?]);
        }
    }
    Some(format!("{}-{}", hex(&hash.finalize()), parts.len()))
}

impl Inner {
    /// Makes certain that a PUT whose answer `said` this has stored `payload`.
    ///
    /// # Errors
    /// `Foreign` if it is not certain: to be tried again; `Unsupported` if the server gives
    /// objects no ETags at all.
    pub(super) async fn prove_put(
        &self,
        location: &Path,
        payload: &PutPayload,
        checksum: &str,
        said: Said<'_>,
    ) -> Result<()> {
        const ACTION: &str = "put";
        let path = location.as_ref();
        match (said.verdict(checksum), said.e_tag) {
            (Verdict::Stored, _) => return Ok(()),
            (Verdict::Differs, _) => {
                return Err(unproven(ACTION, path, "the server names another checksum"));
            }
            (Verdict::StoredIfMd5, Some(tag)) if is_md5_of(tag, payload).await? => return Ok(()),
            _ => {}
        }
        let len = payload.content_length() as u64;
        let found = Box::pin(self.look_for(ACTION, location, len)).await?;
        let proven = match said.e_tag.filter(|tag| is_e_tag(tag)) {
            Some(tag) => bare(tag) == bare(&found),
            // The object may be an older one of the same size.
            None => is_md5_of(&found, payload).await?,
        };
        match proven {
            true => Ok(()),
            false => Err(unproven(ACTION, path, "another object lies under its name")),
        }
    }

    /// Makes certain that the end of an upload, whose answer `said` this, made an object of
    /// `parts`.
    ///
    /// # Errors
    /// As [`Inner::prove_put`].
    pub(super) async fn prove_upload(
        &self,
        action: &'static str,
        location: &Path,
        parts: &[PartNote],
        said: Said<'_>,
    ) -> Result<()> {
        if verdict_of_upload(said, parts) == Verdict::Stored {
            return Ok(());
        }
        let len = parts.iter().map(|part| part.len).sum();
        self.found_as(action, location, len, said.e_tag).await
    }

    /// Makes certain that there is an object of `len` bytes, with the ETag that an answer named.
    pub(super) async fn found_as(
        &self,
        action: &'static str,
        location: &Path,
        len: u64,
        e_tag: Option<&str>,
    ) -> Result<()> {
        let found = Box::pin(self.look_for(action, location, len)).await?;
        match e_tag.filter(|tag| is_e_tag(tag)) {
            Some(tag) if bare(tag) != bare(&found) => {
                let why = "another object lies under its name";
                Err(unproven(action, location.as_ref(), why))
            }
            _ => Ok(()),
        }
    }

    /// Makes certain that an object is gone whose deletion was answered in an unusual way.
    pub(super) async fn prove_gone(&self, location: &Path) -> Result<()> {
        match Box::pin(self.head_object(location, &GetOptions::default())).await {
            Err(e) if class(&e) == ErrorClass::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(_) => {
                let message =
                    format!("delete {location}: the answer says that it is done, and it is there");
                Err(own(ErrorClass::Foreign, message))
            }
        }
    }

    /// One HeadObject: the ETag of an object of `len` bytes that was just written.
    async fn look_for(&self, action: &'static str, location: &Path, len: u64) -> Result<String> {
        let path = location.as_ref();
        let found = match Box::pin(self.head_object(location, &GetOptions::default())).await {
            Ok(found) => found,
            Err(e) if class(&e) == ErrorClass::NotFound => {
                return Err(unproven(action, path, "it is not there"));
            }
            Err(e) if class(&e).is_retryable() => return Err(e),
            Err(e) => {
                let why = format!("it cannot be looked for: {}", sentence(&e));
                return Err(own(class(&e), format!("{action} {path}: {why}")));
            }
        };
        if found.content_length().and_then(|n| u64::try_from(n).ok()) != Some(len) {
            return Err(unproven(action, path, "what is there has another size"));
        }
        match found.e_tag() {
            Some(tag) if is_e_tag(tag) => Ok(tag.to_owned()),
            Some(_) => Err(unproven(action, path, "its ETag is malformed")),
            None => Err(own(
                ErrorClass::Unsupported,
                format!(
                    "{action} {path}: the server gives objects no ETags, by which versions are \
                     told apart\nhint: use a server that does, or have the proxy before it pass the \
                     header on"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<'a>(e_tag: Option<&'a str>, checksum: Option<&'a str>) -> Said<'a> {
        Said { status: 200, e_tag, checksum }
    }

    #[test]
    fn an_answer_counts_for_what_it_proves_and_no_more() {
        // Guards against a status of 200 alone being believed.
        use Verdict::*;
        for (said, expected) in [
            (said(Some("\"a1\""), Some("CRC")), Stored),
            (said(Some("a1"), Some("CRC")), Stored),
            (said(Some("\"a1\""), Some("OTHER")), Differs),
            (said(None, Some("OTHER")), Differs),
            (said(Some("\"a1\""), None), StoredIfMd5),
            (said(None, Some("CRC")), Silent),
            (said(None, None), Silent),
            (said(Some(""), Some("CRC")), Silent),
            (said(Some("\"\""), None), Silent),
            (said(Some("<html>"), None), Silent),
            (said(Some("two words"), None), Silent),
            (Said { status: 202, ..said(Some("a1"), Some("CRC")) }, Silent),
        ] {
            assert_eq!(said.verdict("CRC"), expected, "{said:?}");
        }
        assert_eq!(bare("W/\"a-1\""), "a-1");
    }

    #[tokio::test]
    async fn the_md5_is_that_of_all_pieces() {
        // Guards against a HEAD for every PUT to servers that know no checksums.
        let payload: PutPayload = ["he", "llo"].into_iter().map(bytes::Bytes::from).collect();
        for (tag, expected) in [
            ("\"5d41402abc4b2a76b9719d911017c592\"", true),
            ("5D41402ABC4B2A76B9719D911017C592", true),
            ("\"5d41402abc4b2a76b9719d911017c593\"", false),
            ("5d41402abc4b2a76b9719d911017c592-1", false),
        ] {
            assert_eq!(is_md5_of(tag, &payload).await.unwrap(), expected, "{tag}");
        }
        let large = PutPayload::from(vec![0; INLINE_MAX + 1]);
        let tag = hex(&Md5::digest(vec![0; INLINE_MAX + 1]));
        assert!(is_md5_of(&tag, &large).await.unwrap());
    }

    #[test]
    fn the_end_of_an_upload_is_proven_by_checksum_or_by_etag() {
        // Guards against an object that was put together from other parts, and against a HEAD
        // where the answer proves enough.
        let note = |text: &str| {
            let checksum = STANDARD.encode(crc32fast::hash(text.as_bytes()).to_be_bytes());
            let e_tag = format!("\"{}\"", hex(&Md5::digest(text)));
            PartNote { checksum, len: text.len() as u64, e_tag }
        };
        let parts = [note("hello "), note("world")];
        for part in &parts {
            assert_eq!(PartNote::of_id(&part.to_id()).as_ref(), Some(part));
        }
        let whole = STANDARD.encode(crc32fast::hash(b"hello world").to_be_bytes());
        assert_eq!(checksum_of_all(&parts).as_deref(), Some(&whole[..]));
        let composite = checksum_of_checksums(&parts).unwrap();
        let tag = md5_of_md5s(&parts).unwrap();
        for (answer, expected) in [
            (said(Some("x-2"), Some(&composite)), Verdict::Stored),
            (said(Some("x-2"), Some(&whole)), Verdict::Stored),
            (said(Some(&tag), None), Verdict::Stored),
            (said(Some("x-2"), Some("AAAAAA==-2")), Verdict::Silent),
            (said(Some("x-2"), None), Verdict::Silent),
            (said(None, None), Verdict::Silent),
        ] {
            assert_eq!(verdict_of_upload(answer, &parts), expected, "{answer:?}");
        }
        let odd = [PartNote { e_tag: "\"opaque\"".into(), ..note("a") }];
        assert_eq!(verdict_of_upload(said(Some("x-1"), None), &odd), Verdict::Silent);
    }
}
