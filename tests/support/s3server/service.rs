//! The S3 operations over [`Memory`], as the `s3s` trait has them.
//!
//! Conditions, ranges, checksums, parts and server-side encryption are enforced as AWS documents
//! them, except where [`Behaviour`](super::sse::Behaviour) says otherwise.

use super::memory::{Bucket, Entry, Labels, Memory, Object, Refusal, Upload, WriteCondition};
use super::sse::{AskedSse, StoredSse};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use s3s::dto::*;
use s3s::{Body, S3, S3Request, S3Response, S3Result, s3_error};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Entries of one page unless the request asks for fewer.
const PAGE_MAX: i32 = 1000;

/// The service; clones share the memory.
pub(super) struct MemoryS3 {
    memory: Arc<Memory>,
}

impl MemoryS3 {
    pub(super) fn new(memory: Arc<Memory>) -> MemoryS3 {
        MemoryS3 { memory }
    }

    fn bucket(&self, name: &str) -> S3Result<&Bucket> {
        if self.memory.behaviour.read().denies_all {
            return Err(s3_error!(AccessDenied, "access denied"));
        }
        self.memory.bucket(name).ok_or_else(|| s3_error!(NoSuchBucket, "no such bucket"))
    }

    fn writable(&self, name: &str) -> S3Result<&Bucket> {
        if self.memory.behaviour.read().denies_writes {
            return Err(s3_error!(AccessDenied, "access denied"));
        }
        self.bucket(name)
    }

    fn e_tag(&self, e_tag: &str) -> Option<ETag> {
        (!self.memory.behaviour.read().no_e_tags).then(|| strong(e_tag))
    }

    /// In the storage class that this server gives it.
    fn classed(&self, labels: Labels) -> S3Result<Labels> {
        let behaviour = self.memory.behaviour.read();
        let asked = labels.storage_class.as_deref();
        if asked.is_some() && asked == behaviour.refuses_storage_class {
            return Err(s3_error!(InvalidStorageClass, "it has no such class"));
        }
        let storage_class =
            labels.storage_class.clone().filter(|_| !behaviour.ignores_storage_class);
        Ok(Labels { storage_class, ..labels })
    }

    fn repeats_checksums(&self) -> bool {
        !self.memory.behaviour.read().no_checksums
    }

    /// Where objects may be deleted.
    fn deletable(&self, name: &str) -> S3Result<&Bucket> {
        if self.memory.behaviour.read().denies_deletes {
            return Err(s3_error!(AccessDenied, "access denied"));
        }
        self.writable(name)
    }

    fn object(&self, bucket: &str, key: &str) -> S3Result<Arc<Object>> {
        self.bucket(bucket)?.get(key).ok_or_else(|| s3_error!(NoSuchKey, "no such key"))
    }

    fn condition(
        &self,
        if_match: Option<IfMatch>,
        if_none_match: Option<IfNoneMatch>,
    ) -> S3Result<WriteCondition> {
        let behaviour = self.memory.behaviour.read();
        if behaviour.no_conditions && (if_match.is_some() || if_none_match.is_some()) {
            return Err(s3_error!(
                NotImplemented,
                "A header you provided implies functionality that is not implemented"
            ));
        }
        match (if_match, if_none_match) {
            (Some(_), Some(_)) => Err(s3_error!(NotImplemented, "both conditions at once")),
            (_, Some(ETagCondition::ETag(_))) => {
                Err(s3_error!(NotImplemented, "If-None-Match of a write must be *"))
            }
            (_, Some(ETagCondition::Any)) if !behaviour.ignores_if_none_match => {
                Ok(WriteCondition::Absent)
            }
            (Some(ETagCondition::Any), _) if !behaviour.ignores_if_match => {
                Ok(WriteCondition::Present)
            }
            (Some(ETagCondition::ETag(tag)), _) if !behaviour.ignores_if_match => {
                Ok(WriteCondition::Matches(tag.into_value()))
            }
            _ => Ok(WriteCondition::None),
        }
    }

    /// Stores bytes under a condition; returns the ETag and what is said about encryption.
    fn store(
        &self,
        bucket: &str,
        key: &str,
        bytes: Bytes,
        sse: StoredSse,
        beside: (Option<String>, Labels),
        condition: &WriteCondition,
    ) -> S3Result<(String, StoredSse)> {
        let told = sse.told(&self.memory.behaviour.read().sse);
        let (tags, labels) = beside;
        let object = Object { tags, labels, ..self.memory.object(bytes, sse) };
        let e_tag = object.e_tag.clone();
        match self.writable(bucket)?.put(key, object, condition) {
            Ok(()) => Ok((e_tag, told)),
            Err(Refusal::Precondition) => Err(s3_error!(PreconditionFailed, "precondition failed")),
            Err(Refusal::Missing) => Err(s3_error!(NoSuchKey, "no such key")),
        }
    }
}

/// The encryption headers of a creating request.
macro_rules! asked_sse {
    ($input:expr) => {
        AskedSse {
            algorithm: $input.server_side_encryption.clone(),
            kms_key: $input.ssekms_key_id.clone(),
            context: $input.ssekms_encryption_context.clone(),
            bucket_key: $input.bucket_key_enabled,
            customer_algorithm: $input.sse_customer_algorithm.clone(),
            customer_key: $input.sse_customer_key.clone(),
            customer_md5: $input.sse_customer_key_md5.clone(),
        }
    };
}

/// What lies beside the bytes, as the headers of a creating request have it.
macro_rules! labels {
    ($input:expr) => {
        Labels {
            metadata: $input.metadata.clone().unwrap_or_default().into_iter().collect(),
            content_type: $input.content_type.as_ref().map(|t| t.to_string()),
            storage_class: $input.storage_class.as_ref().map(|c| c.as_str().to_owned()),
        }
    };
}

/// The customer key headers of any request.
macro_rules! demand_key {
    ($sse:expr, $input:expr) => {
        $sse.demand(
            $input.sse_customer_algorithm.as_deref(),
            $input.sse_customer_key.as_deref(),
            $input.sse_customer_key_md5.as_deref(),
        )
    };
}

/// The source of a copy, its condition and its customer key being right.
macro_rules! copy_source {
    ($source:expr, $input:expr) => {{
        let source = $source;
        if let Some(ETagCondition::ETag(tag)) = &$input.copy_source_if_match
            && tag.value() != source.e_tag
        {
            return Err(s3_error!(PreconditionFailed, "the source was replaced"));
        }
        source.sse.demand(
            $input.copy_source_sse_customer_algorithm.as_deref(),
            $input.copy_source_sse_customer_key.as_deref(),
            $input.copy_source_sse_customer_key_md5.as_deref(),
        )?;
        source
    }};
}

/// Puts what is said about encryption on an answer.
macro_rules! tell_sse {
    ($output:expr, $told:expr) => {
        $output.server_side_encryption = $told.algorithm.map(ServerSideEncryption::from);
        $output.ssekms_key_id = $told.kms_key;
        $output.bucket_key_enabled = $told.bucket_key;
        $output.sse_customer_algorithm = $told.customer_md5.as_ref().map(|_| "AES256".to_owned());
        $output.sse_customer_key_md5 = $told.customer_md5;
    };
}

/// The conditions of a read, in the order of RFC 9110 §13.2.2.
macro_rules! check_read_conditions {
    ($object:expr, $input:expr) => {
        check_read(
            $object,
            $input.if_match.as_ref(),
            $input.if_none_match.as_ref(),
            $input.if_modified_since.as_ref(),
            $input.if_unmodified_since.as_ref(),
        )
    };
}

fn check_read(
    object: &Object,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
    if_modified_since: Option<&Timestamp>,
    if_unmodified_since: Option<&Timestamp>,
) -> S3Result<()> {
    let matches = |condition: &ETagCondition| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(tag) => tag.value() == object.e_tag,
    };
    let modified = Timestamp::from(object.modified);
    match (if_match, if_unmodified_since) {
        (Some(condition), _) if !matches(condition) => {
            return Err(s3_error!(PreconditionFailed, "precondition failed"));
        }
        (None, Some(time)) if modified > *time => {
            return Err(s3_error!(PreconditionFailed, "precondition failed"));
        }
        _ => {}
    }
    match (if_none_match, if_modified_since) {
        (Some(condition), _) if matches(condition) => Err(s3_error!(NotModified, "not modified")),
        (None, Some(time)) if modified <= *time => Err(s3_error!(NotModified, "not modified")),
        _ => Ok(()),
    }
}

/// The whole body, in one piece; refused if it is not what its length or checksum announced.
async fn collect(
    body: Option<StreamingBlob>,
    length: Option<i64>,
    crc32: Option<&str>,
) -> S3Result<Bytes> {
    let mut pieces = BytesMut::with_capacity(length.unwrap_or(0).clamp(0, 1 << 30) as usize);
    if let Some(mut body) = body {
        while let Some(piece) = body.next().await {
            pieces.extend_from_slice(&piece.map_err(|e| s3_error!(IncompleteBody, "{e}"))?);
        }
    }
    if length.is_some_and(|l| l != pieces.len() as i64) {
        return Err(s3_error!(IncompleteBody, "the body is not as long as announced"));
    }
    let actual = crc32.map(|_| crc32_of(&pieces));
    if actual.as_deref() != crc32 {
        return Err(s3_error!(BadDigest, "the CRC32 does not match"));
    }
    Ok(pieces.freeze())
}

/// As checksum headers carry it.
fn crc32_of(bytes: &[u8]) -> String {
    STANDARD.encode(crc32fast::hash(bytes).to_be_bytes())
}

fn strong(e_tag: &str) -> ETag {
    ETag::Strong(e_tag.to_owned())
}

#[async_trait::async_trait]
impl S3 for MemoryS3 {
    async fn head_bucket(
        &self,
        req: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn put_object(
        &self,
        req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let mut input = req.input;
        let body = input.body.take();
        let bytes = collect(body, input.content_length, input.checksum_crc32.as_deref()).await?;
        let sse = asked_sse!(input).resolve(&self.memory.behaviour.read())?;
        let condition = self.condition(input.if_match.take(), input.if_none_match.take())?;
        let context = sse.context.clone();
        let beside = (input.tagging.take(), self.classed(labels!(input))?);
        let (e_tag, told) =
            self.store(&input.bucket, &input.key, bytes, sse, beside, &condition)?;
        let mut output = PutObjectOutput { e_tag: self.e_tag(&e_tag), ..Default::default() };
        output.ssekms_encryption_context = told.context.clone().and(context);
        output.checksum_crc32 = input.checksum_crc32.filter(|_| self.repeats_checksums());
        tell_sse!(output, told);
        Ok(S3Response::new(output))
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let object = self.object(&input.bucket, &input.key)?;
        check_read_conditions!(&object, input)?;
        demand_key!(object.sse, input)?;
        let size = object.bytes.len() as u64;
        let range = input.range.filter(|_| !self.memory.behaviour.read().ignores_ranges);
        let range = range.map(|r| r.check(size)).transpose()?;
        let bytes = match &range {
            None => object.bytes.clone(),
            Some(r) => object.bytes.slice(r.start as usize..r.end as usize),
        };
        let told = object.sse.told(&self.memory.behaviour.read().sse);
        let mut output = GetObjectOutput {
            content_length: Some(bytes.len() as i64),
            content_range: range.map(|r| format!("bytes {}-{}/{size}", r.start, r.end - 1)),
            body: Some(StreamingBlob::from(Body::from(bytes))),
            e_tag: self.e_tag(&object.e_tag),
            last_modified: Some(object.modified.into()),
            accept_ranges: Some("bytes".into()),
            tag_count: object.tags.as_ref().map(|tags| tags.split('&').count() as i32),
            metadata: Some(object.labels.metadata.clone().into_iter().collect()),
            content_type: object.labels.content_type.as_ref().and_then(|t| t.parse().ok()),
            storage_class: object.labels.storage_class.clone().map(StorageClass::from),
            ..Default::default()
        };
        tell_sse!(output, told);
        Ok(S3Response::new(output))
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let object = self.object(&input.bucket, &input.key)?;
        check_read_conditions!(&object, input)?;
        demand_key!(object.sse, input)?;
        let told = object.sse.told(&self.memory.behaviour.read().sse);
        let mut output = HeadObjectOutput {
            content_length: Some(object.bytes.len() as i64),
            e_tag: self.e_tag(&object.e_tag),
            last_modified: Some(object.modified.into()),
            accept_ranges: Some("bytes".into()),
            metadata: Some(object.labels.metadata.clone().into_iter().collect()),
            content_type: object.labels.content_type.as_ref().and_then(|t| t.parse().ok()),
            storage_class: object.labels.storage_class.clone().map(StorageClass::from),
            ..Default::default()
        };
        tell_sse!(output, told);
        Ok(S3Response::new(output))
    }

    async fn get_object_tagging(
        &self,
        req: S3Request<GetObjectTaggingInput>,
    ) -> S3Result<S3Response<GetObjectTaggingOutput>> {
        let object = self.object(&req.input.bucket, &req.input.key)?;
        let pairs = object.tags.clone().unwrap_or_default();
        let tag = |(key, value): (std::borrow::Cow<str>, std::borrow::Cow<str>)| Tag {
            key: Some(key.into_owned()),
            value: Some(value.into_owned()),
        };
        let tag_set = url::form_urlencoded::parse(pairs.as_bytes()).map(tag).collect();
        Ok(S3Response::new(GetObjectTaggingOutput { tag_set, version_id: None }))
    }

    async fn copy_object(
        &self,
        req: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = req.input;
        let CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented, "access points"));
        };
        let source = copy_source!(self.object(bucket, key)?, input);
        let sse = asked_sse!(input).resolve(&self.memory.behaviour.read())?;
        let context = sse.context.clone();
        let bytes = source.bytes.clone();
        let replaces_tags = input
            .tagging_directive
            .as_ref()
            .is_some_and(|d| d.as_str() == TaggingDirective::REPLACE);
        let tags = if replaces_tags { input.tagging } else { source.tags.clone() };
        let replaces = input
            .metadata_directive
            .as_ref()
            .is_some_and(|d| d.as_str() == MetadataDirective::REPLACE);
        let labels = if replaces { self.classed(labels!(input))? } else { source.labels.clone() };
        let beside = (tags, labels);
        let (e_tag, told) =
            self.store(&input.bucket, &input.key, bytes, sse, beside, &WriteCondition::None)?;
        let result = CopyObjectResult {
            e_tag: Some(ETag::Strong(e_tag)),
            last_modified: Some(source.modified.into()),
            ..Default::default()
        };
        let mut output =
            CopyObjectOutput { copy_object_result: Some(result), ..Default::default() };
        output.ssekms_encryption_context = told.context.clone().and(context);
        tell_sse!(output, told);
        Ok(S3Response::new(output))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.deletable(&req.input.bucket)?.remove(&req.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        if self.memory.behaviour.read().no_delete_objects {
            return Err(s3_error!(NotImplemented, "DeleteObjects is not implemented"));
        }
        let bucket = self.deletable(&req.input.bucket)?;
        let delete = req.input.delete;
        if delete.objects.len() > 1000 {
            return Err(s3_error!(MalformedXML, "more than 1000 keys"));
        }
        let mut deleted = Vec::new();
        for object in delete.objects {
            bucket.remove(&object.key);
            deleted.push(DeletedObject { key: Some(object.key), ..Default::default() });
        }
        let deleted = (!delete.quiet.unwrap_or(false)).then_some(deleted);
        Ok(S3Response::new(DeleteObjectsOutput { deleted, ..Default::default() }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let bucket = self.bucket(&input.bucket)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input.continuation_token.as_ref().or(input.start_after.as_ref());
        let max = input.max_keys.unwrap_or(PAGE_MAX).clamp(0, PAGE_MAX);
        let (entries, truncated) = bucket.list(
            &prefix,
            input.delimiter.as_deref(),
            after.map(String::as_str).unwrap_or_default(),
            max as usize,
        );
        let (mut contents, mut common, mut last) = (Vec::new(), Vec::new(), None);
        let encodes = input.encoding_type.as_ref().is_some_and(|e| e.as_str() == "url");
        let shown = |key: String| match encodes {
            true => url_encoded(&key),
            false => key,
        };
        for entry in entries {
            match entry {
                Entry::Object(key, object) => {
                    last = Some(key.clone());
                    contents.push(s3s::dto::Object {
                        key: Some(shown(key)),
                        size: Some(object.bytes.len() as i64),
                        e_tag: Some(strong(&object.e_tag)),
                        last_modified: Some(object.modified.into()),
                        ..Default::default()
                    });
                }
                Entry::Prefix(prefix) => {
                    last = Some(prefix.clone());
                    common.push(CommonPrefix { prefix: Some(shown(prefix)) });
                }
            }
        }
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: Some((contents.len() + common.len()) as i32),
            max_keys: Some(max),
            is_truncated: Some(truncated),
            next_continuation_token: last.filter(|_| truncated),
            contents: Some(contents),
            common_prefixes: Some(common),
            prefix: input.prefix,
            delimiter: input.delimiter,
            encoding_type: input.encoding_type,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = req.input;
        let sse = asked_sse!(input).resolve(&self.memory.behaviour.read())?;
        let told = sse.told(&self.memory.behaviour.read().sse);
        let upload_id = format!("upload-{}", self.memory.fresh());
        let labels = self.classed(labels!(input))?;
        let (key, tags) = (input.key.clone(), input.tagging);
        let upload = Upload { key, sse: sse.clone(), tags, labels, parts: BTreeMap::new() };
        self.writable(&input.bucket)?.uploads.lock().insert(upload_id.clone(), upload);
        let mut output = CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(upload_id),
            ..Default::default()
        };
        output.ssekms_encryption_context = told.context.clone().and(sse.context);
        tell_sse!(output, told);
        Ok(S3Response::new(output))
    }

    async fn upload_part(
        &self,
        req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let mut input = req.input;
        let body = input.body.take();
        let bytes = collect(body, input.content_length, input.checksum_crc32.as_deref()).await?;
        let e_tag = format!("{:032x}", self.memory.fresh());
        let mut uploads = self.writable(&input.bucket)?.uploads.lock();
        let upload = uploads
            .get_mut(&input.upload_id)
            .ok_or_else(|| s3_error!(NoSuchUpload, "no such upload"))?;
        demand_key!(upload.sse, input)?;
        upload.parts.insert(input.part_number, (e_tag.clone(), bytes));
        let told = upload.sse.told(&self.memory.behaviour.read().sse);
        let mut output =
            UploadPartOutput { e_tag: Some(ETag::Strong(e_tag)), ..Default::default() };
        output.checksum_crc32 = input.checksum_crc32.filter(|_| self.repeats_checksums());
        tell_sse!(output, told);
        Ok(S3Response::new(output))
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let input = req.input;
        let CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented, "access points"));
        };
        let source = copy_source!(self.object(bucket, key)?, input);
        let range = input.copy_source_range.as_deref().and_then(|r| r.strip_prefix("bytes="));
        let bounds = |range: &str| {
            let (first, last) = range.split_once('-')?;
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last && last < source.bytes.len()).then_some(first..last + 1)
        };
        let bytes = match range.map(bounds) {
            None => source.bytes.clone(),
            Some(Some(range)) => source.bytes.slice(range),
            Some(None) => return Err(s3_error!(InvalidArgument, "the range is not in the source")),
        };
        let e_tag = format!("{:032x}", self.memory.fresh());
        let mut uploads = self.writable(&input.bucket)?.uploads.lock();
        let upload = uploads
            .get_mut(&input.upload_id)
            .ok_or_else(|| s3_error!(NoSuchUpload, "no such upload"))?;
        demand_key!(upload.sse, input)?;
        upload.parts.insert(input.part_number, (e_tag.clone(), bytes));
        let told = upload.sse.told(&self.memory.behaviour.read().sse);
        let result = CopyPartResult { e_tag: Some(ETag::Strong(e_tag)), ..Default::default() };
        let mut output =
            UploadPartCopyOutput { copy_part_result: Some(result), ..Default::default() };
        tell_sse!(output, told);
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let condition = self.condition(input.if_match, input.if_none_match)?;
        let named = input.multipart_upload.and_then(|u| u.parts).unwrap_or_default();
        if named.is_empty() {
            return Err(s3_error!(MalformedXML, "an upload needs at least one part"));
        }
        let bucket = self.writable(&input.bucket)?;
        let again = bucket.finished.lock().get(&input.upload_id).cloned();
        if let Some((key, e_tag)) = again
            && key == input.key
        {
            return Ok(S3Response::new(CompleteMultipartUploadOutput {
                bucket: Some(input.bucket),
                key: Some(key),
                e_tag: Some(ETag::Strong(e_tag)),
                ..Default::default()
            }));
        }
        let (bytes, sse, beside) = {
            let mut uploads = bucket.uploads.lock();
            let upload = uploads
                .get(&input.upload_id)
                .filter(|upload| upload.key == input.key)
                .ok_or_else(|| s3_error!(NoSuchUpload, "no such upload"))?;
            let mut whole = BytesMut::new();
            let mut before = 0;
            for part in &named {
                let number = part.part_number.unwrap_or(0);
                if number <= before {
                    return Err(s3_error!(InvalidPartOrder, "parts must ascend"));
                }
                before = number;
                match (upload.parts.get(&number), &part.e_tag) {
                    (Some((stored, bytes)), Some(e_tag)) if e_tag.value() == stored => {
                        whole.extend_from_slice(bytes);
                    }
                    _ => return Err(s3_error!(InvalidPart, "part {number} was not uploaded")),
                }
            }
            let beside = (upload.tags.clone(), upload.labels.clone());
            let sse = upload.sse.clone();
            uploads.remove(&input.upload_id);
            (whole.freeze(), sse, beside)
        };
        let (e_tag, told) =
            self.store(&input.bucket, &input.key, bytes, sse, beside, &condition)?;
        let became = (input.key.clone(), e_tag.clone());
        bucket.finished.lock().insert(input.upload_id, became);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(e_tag)),
            server_side_encryption: told.algorithm.map(ServerSideEncryption::from),
            ssekms_key_id: told.kms_key,
            bucket_key_enabled: told.bucket_key,
            ..Default::default()
        }))
    }

    async fn list_parts(
        &self,
        req: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        let input = req.input;
        let uploads = self.bucket(&input.bucket)?.uploads.lock();
        let upload = uploads
            .get(&input.upload_id)
            .filter(|upload| upload.key == input.key)
            .ok_or_else(|| s3_error!(NoSuchUpload, "no such upload"))?;
        let part = |(number, (e_tag, bytes)): (&i32, &(String, Bytes))| Part {
            part_number: Some(*number),
            size: Some(bytes.len() as i64),
            e_tag: Some(strong(e_tag)),
            checksum_crc32: self.repeats_checksums().then(|| crc32_of(bytes)),
            ..Default::default()
        };
        Ok(S3Response::new(ListPartsOutput {
            parts: Some(upload.parts.iter().map(part).collect()),
            is_truncated: Some(false),
            upload_id: Some(input.upload_id),
            key: Some(input.key),
            bucket: Some(input.bucket),
            ..Default::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = req.input;
        let prefix = input.prefix.unwrap_or_default();
        let uploads = self.bucket(&input.bucket)?.uploads.lock();
        let below = uploads.iter().filter(|(_, upload)| upload.key.starts_with(&prefix));
        let upload = |(id, upload): (&String, &Upload)| MultipartUpload {
            key: Some(url_encoded(&upload.key)),
            upload_id: Some(id.clone()),
            initiated: Some(std::time::SystemTime::now().into()),
            ..Default::default()
        };
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(below.map(upload).collect()),
            encoding_type: Some(EncodingType::from_static(EncodingType::URL)),
            is_truncated: Some(false),
            bucket: Some(input.bucket),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let bucket = self.writable(&req.input.bucket)?;
        match bucket.uploads.lock().remove(&req.input.upload_id) {
            Some(_) => Ok(S3Response::new(AbortMultipartUploadOutput::default())),
            None => Err(s3_error!(NoSuchUpload, "no such upload")),
        }
    }
}

/// As S3 encodes the keys of a listing.
fn url_encoded(key: &str) -> String {
    let mut out = String::new();
    for b in key.bytes() {
        match b {
            b'/' | b'-' | b'_' | b'.' | b'*' => out.push(b.into()),
            b' ' => out.push('+'),
            b if b.is_ascii_alphanumeric() => out.push(b.into()),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}
