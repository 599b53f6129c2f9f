//! The calls about encryption that AWS added after the `s3s` trait: `PUT /BUCKET/KEY?encryption`
//! (UpdateObjectEncryption), and `GET` and `PUT /BUCKET?encryption` with BlockedEncryptionTypes;
//! and CreateBucket, of which only the place matters.

use super::faults::has_query;
use super::memory::{Memory, Object, WriteCondition};
use super::net::refusal;
use super::sse::{Behaviour, StoredSse};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request, Response, header};
use s3s::{Body, HttpError};

/// Whether this module answers a request, of a server that behaves like that.
pub fn is_one(request: &Request<Incoming>, behaviour: &Behaviour) -> bool {
    let has_key = target(request).1.is_some();
    if is_creation(request) && behaviour.place.is_some() {
        return true;
    }
    has_query(request, "encryption")
        && match *request.method() {
            Method::PUT if has_key => behaviour.updates_in_place.is_some(),
            Method::PUT | Method::GET => !has_key && behaviour.bucket_rule.is_some(),
            _ => false,
        }
}

/// Whether it is CreateBucket.
fn is_creation(request: &Request<Incoming>) -> bool {
    let (bucket, key) = target(request);
    let plain = request.uri().query().is_none_or(|q| q.is_empty() || q.starts_with("x-id="));
    request.method() == Method::PUT && !bucket.is_empty() && key.is_none() && plain
}

/// Answers it.
pub async fn answer(
    request: Request<Incoming>,
    memory: &Memory,
) -> Result<Response<Body>, HttpError> {
    let (bucket, key) = target(&request);
    let is_put = request.method() == Method::PUT;
    let is_creation = is_creation(&request);
    let signed = request.headers().contains_key(header::AUTHORIZATION);
    let body = request.into_body().collect().await.map_err(|e| HttpError::new(Box::new(e)))?;
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    if is_creation {
        let mut behaviour = memory.behaviour.write();
        let place = element(&body, "LocationConstraint").unwrap_or_default().to_owned();
        behaviour.created_with.push(place.clone());
        return Ok(match behaviour.place {
            Some(wanted) if wanted == place => success(String::new()),
            Some("") => refusal(400, "InvalidLocationConstraint"),
            _ => refusal(400, "IllegalLocationConstraintException"),
        });
    }
    let Some(bucket) = memory.bucket(&bucket) else {
        return Ok(refusal(404, "NoSuchBucket"));
    };
    if !signed || is_put && memory.behaviour.read().denies_writes {
        return Ok(refusal(403, "AccessDenied"));
    }
    let Some(key) = key else {
        let rule = &mut memory.behaviour.write().bucket_rule;
        if is_put {
            *rule = Some(body);
            return Ok(success(String::new()));
        }
        return Ok(success(rule.clone().unwrap_or_default()));
    };
    if memory.behaviour.read().updates_in_place == Some(false) {
        return Ok(refusal(501, "NotImplemented"));
    }
    // What AWS takes: an object under SSE-S3 or SSE-KMS, and the ARN of a key.
    let Some(object) = bucket.get(&key) else { return Ok(refusal(404, "NoSuchKey")) };
    let from = object.sse.algorithm.as_deref();
    let arn = element(&body, "KMSKeyArn").filter(|arn| arn.contains(":key/"));
    let (Some("AES256" | "aws:kms"), Some(arn)) = (from, arn) else {
        return Ok(refusal(400, "InvalidRequest"));
    };
    let sse = StoredSse {
        algorithm: Some("aws:kms".into()),
        kms_key: Some(arn.to_owned()),
        bucket_key: element(&body, "BucketKeyEnabled").map(|on| on == "true"),
        ..StoredSse::default()
    };
    // Bytes, ETag and time stay.
    let now = Object { sse, ..Object::clone(&object) };
    match bucket.put(&key, now, &WriteCondition::Matches(object.e_tag.clone())) {
        Ok(()) => Ok(success(String::new())),
        Err(_) => Ok(refusal(409, "OperationAborted")),
    }
}

/// Bucket and key of a path-style request.
fn target(request: &Request<Incoming>) -> (String, Option<String>) {
    let path = request.uri().path().trim_start_matches('/');
    match path.split_once('/') {
        Some((bucket, key)) if !key.is_empty() => (bucket.to_owned(), Some(key.to_owned())),
        Some((bucket, _)) => (bucket.to_owned(), None),
        None => (path.to_owned(), None),
    }
}

/// The text of the first element of this name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

fn success(body: String) -> Response<Body> {
    Response::new(Body::from(body))
}
