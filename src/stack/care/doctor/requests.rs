//! What is asked of the server: whether it answers, at what time, and which requests of a mount it
//! allows, each by itself. Leaves nothing behind, as far as it may delete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::{Report, TRIAL_BYTES};
use crate::base::counted;
use crate::stack::{StackErrorKind, StoreStack};
use crate::store::s3::S3Store;
use crate::store::{ErrorClass, ProbeError, advice, class, probe, random_name, sentence};

/// A clock that is off by more than this makes S3 refuse signatures soon (at 15 minutes).
const SKEW_SECS_MAX: i64 = 60;
/// From here on S3 refuses every request (S3 API Reference, "Error responses").
const SKEW_REFUSED: i64 = 900;
const TOO_SKEWED: &str = "RequestTimeTooSkewed";
/// Slower than this, every operation that needs the bucket is felt.
const LATENCY_MAX: Duration = Duration::from_millis(300);
/// An upload that no server knows.
const NO_UPLOAD: &str = "sealfs-doctor";

/// What the permissions came to, for what is tried next.
pub(super) struct Can {
    pub(super) put: bool,
    pub(super) delete: bool,
}

/// Reachability, transport and clock; false if nothing more can be asked.
pub(super) async fn connection(report: &mut Report, s3: &Arc<S3Store>) -> bool {
    let what = "connection";
    // The first request opens the connection; the second is what every other costs.
    let mut ping = s3.ping().await;
    if ping.outcome.is_ok() {
        ping = s3.ping().await;
    }
    let skew = ping.clock_skew_secs.unwrap_or(0);
    if let Err(e) = refused(s3, ping.outcome, skew).await {
        if sentence(&e).contains(TOO_SKEWED) || is_refused(&e) && skew.abs() >= SKEW_REFUSED {
            let how_far = match skew.abs() <= SKEW_SECS_MAX {
                true => ", though the two agree now: a proxy may delay requests".into(),
                false => format!(": {}", clocks(skew)),
            };
            report.fails(
                StackErrorKind::Unreachable,
                "clock",
                format!("the server refuses requests for the time they say{how_far}"),
                "timedatectl set-ntp true",
            );
            return false;
        }
        let next = advice(&e).unwrap_or_else(|| match class(&e) {
            ErrorClass::Auth => "check the credentials: aws sts get-caller-identity".into(),
            ErrorClass::NotFound => "create it: sealfs init STORE --create-bucket".into(),
            _ => "check the name of the bucket, --region, --endpoint-url and the network".into(),
        });
        let kind = match class(&e) {
            ErrorClass::Auth
            | ErrorClass::Transport
            | ErrorClass::Untrusted
            | ErrorClass::Foreign
            | ErrorClass::Throttled => StackErrorKind::Unreachable,
            _ => StackErrorKind::Unsuitable,
        };
        report.fails(kind, what, sentence(&e), next);
        return false;
    }
    let text = format!("the bucket answers in {} ms", ping.took.as_millis());
    match ping.took > LATENCY_MAX {
        true => report.warning(what, text, "use a bucket nearer by"),
        false => report.ok(what, text),
    }
    match (s3.is_tls(), s3.is_private()) {
        (true, _) => {
            let version = match &ping.server {
                Some(server) => s3.tls_version(server).await,
                None => Err(std::io::Error::other("no host")),
            };
            let version = version.map(str::to_owned).unwrap_or_else(|e| {
                format!("TLS 1.2 or later (this client speaks no other; which one: {e})")
            });
            report.ok("transport", format!("{version}, the certificate is checked"));
        }
        (false, true) => report.ok("transport", "plain http, which does not leave this machine"),
        (false, false) => report.warning(
            "transport",
            "plain http: names, sizes and times can be seen on the way",
            "use an https endpoint",
        ),
    }
    match ping.clock_skew_secs {
        None => report.ok("clock", "the server does not tell its time"),
        Some(skew) if skew.abs() <= SKEW_SECS_MAX => {
            report.ok("clock", format!("agrees with the server's within {} s", skew.abs() + 1));
        }
        Some(skew) => report.error(
            "clock",
            format!("{}; at {SKEW_REFUSED} s S3 refuses everything", clocks(skew)),
            "timedatectl set-ntp true",
        ),
    }
    true
}

/// How this machine's clock is, where the server's is `ahead` seconds ahead of it.
fn clocks(ahead: i64) -> String {
    let which = if ahead > 0 { "behind" } else { "ahead of" };
    format!(
        "this machine's clock is {} {which} the server's",
        counted(ahead.unsigned_abs(), "second")
    )
}

pub(super) fn is_refused(e: &object_store::Error) -> bool {
    class(e) == ErrorClass::Auth
}

/// Why nothing can be asked of a server that has answered so. The answer to HEAD has no body:
/// only a listing says why it is refused. Credentials that are known and may not do this or that
/// are no reason: the permissions are looked at one by one.
async fn refused(
    s3: &Arc<S3Store>,
    head: object_store::Result<()>,
    skew: i64,
) -> object_store::Result<()> {
    let listed = match head {
        Err(e) if is_refused(&e) => s3.list(None).next().await.transpose().map(drop),
        outcome => return outcome,
    };
    match listed {
        Err(e) if is_refused(&e) && skew.abs() >= SKEW_REFUSED => Err(e),
        Err(e) if sentence(&e).contains("AccessDenied") => Ok(()),
        outcome => outcome,
    }
}

/// The requests that a mount makes, one by one, with the permission that each needs. Each says
/// something about its own permission only: where it needs what another one should have left, and
/// did not, it is made on what is not there, which is refused no less.
pub(super) async fn permissions(
    report: &mut Report,
    s3: &Arc<S3Store>,
    tags: &BTreeMap<String, String>,
) -> Can {
    let location = random_name().unwrap_or_else(|_| Path::from("probe/doctor"));
    report.may("s3:ListBucket", s3.list(None).next().await.transpose().map(drop));
    let mut put = s3.put(&location, "doctor".into()).await.map(drop);
    if !tags.is_empty() && put.as_ref().is_err_and(is_refused) {
        s3.set_object_tags(&BTreeMap::new());
        let plain = s3.put(&location, "doctor".into()).await.map(drop);
        s3.set_object_tags(tags);
        if plain.is_ok() {
            report.may("s3:PutObjectTagging", put);
            put = plain;
        }
    }
    let can_put = report.may("s3:PutObject", put);
    let got = s3.get(&location).await.map(drop);
    report.may("s3:GetObject", if can_put { got } else { on_nothing(got) });
    let upload = match s3.put_multipart(&location).await {
        Ok(mut upload) => {
            let part = upload.put_part("part".into()).await;
            let aborted = upload.abort().await;
            if let Err(e) = part {
                report.may("s3:PutObject (parts)", Err(e));
            }
            aborted
        }
        // Refused like the other writes; whether aborting is allowed shows on any upload.
        Err(e) if is_refused(&e) => {
            if can_put {
                report.may("s3:PutObject (parts)", Err(e));
            }
            on_nothing(s3.abort_multipart(&location, &NO_UPLOAD.to_owned()).await)
        }
        Err(e) => {
            report.may("s3:PutObject (parts)", Err(e));
            on_nothing(s3.abort_multipart(&location, &NO_UPLOAD.to_owned()).await)
        }
    };
    report.may("s3:AbortMultipartUpload", upload);
    let deleted = s3.delete(&location).await;
    let can_delete = report.may("s3:DeleteObject", on_absent(deleted));
    if can_put && !can_delete {
        let last = report.0.last_mut().expect("one was just added");
        last.text += &format!(" (so {location} stays)");
    }
    if !can_put {
        if let Some(diagnosis) = s3.why_refused().await {
            report.error("encryption mode", diagnosis.why, diagnosis.next);
        }
    } else if let Some(applied) = s3.sse_applied() {
        report.ok("encryption mode", format!("the server applies {}", s3.shown(&applied)));
    }
    Can { put: can_put, delete: can_delete }
}

/// A request about what is not there: any answer but a refusal says that it is allowed.
fn on_nothing(outcome: object_store::Result<()>) -> object_store::Result<()> {
    match outcome {
        Err(e) if matches!(class(&e), ErrorClass::NotFound | ErrorClass::Other) => Ok(()),
        outcome => outcome,
    }
}

/// The same for a request whose other failures are known.
fn on_absent(outcome: object_store::Result<()>) -> object_store::Result<()> {
    match outcome {
        Err(e) if class(&e) == ErrorClass::NotFound => Ok(()),
        outcome => outcome,
    }
}

pub(super) async fn conditional(report: &mut Report, layers: &StoreStack) {
    let what = "conditional writes";
    match probe(&*layers.retry).await {
        Ok(()) => report.ok(what, "honoured: two mounts cannot overwrite each other"),
        Err(ProbeError::Failed { what: action, source }) => {
            let next = advice(&source).unwrap_or_else(|| "see the lines above".into());
            report.error(what, format!("cannot {action}: {}", sentence(&source)), next);
        }
        Err(e) => {
            let what = match &e {
                ProbeError::MissingIsForbidden { .. } => "missing objects",
                _ => what,
            };
            let all = e.to_string();
            let (text, next) = all.split_once("\nhint: ").unwrap_or((&all, "use another server"));
            report.error(what, text, next);
        }
    }
}

/// An upload as large as a full segment, sealed: whatever limits the size of requests on the way is
/// met here, and not by the first mount.
const UPLOAD_BYTES: usize = (16 << 20) + (64 << 10);

pub(super) async fn throughput(report: &mut Report, layers: &StoreStack) {
    let what = "throughput";
    let location = random_name().unwrap_or_else(|_| Path::from("probe/doctor-throughput"));
    let store = &layers.retry;
    let measured = async {
        let begun = Instant::now();
        store.put(&location, Bytes::from(vec![0x5a; UPLOAD_BYTES]).into()).await?;
        let up = begun.elapsed();
        let begun = Instant::now();
        store.get_range(&location, 0..TRIAL_BYTES as u64).await?;
        Ok::<_, object_store::Error>((up, begun.elapsed()))
    };
    let measured = measured.await;
    if let Err(e) = store.delete(&location).await
        && class(&e) != ErrorClass::NotFound
    {
        log::warn!("cannot remove {location}: {e}");
    }
    let rate = |bytes: usize, took: Duration| bytes as f64 / took.as_secs_f64().max(1e-6) / 1e6;
    match measured {
        Ok((up, down)) => {
            let (up, down) = (rate(UPLOAD_BYTES, up), rate(TRIAL_BYTES, down));
            let text = format!("{up:.0} MB/s up, {down:.0} MB/s down, one request at a time");
            report.ok(what, text);
        }
        Err(e) => {
            let next = advice(&e).unwrap_or_else(|| "see the lines above".into());
            report.warning(what, sentence(&e), next);
        }
    }
}
