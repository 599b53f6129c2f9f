//! What can be made to go wrong, for which requests, how often.
//!
//! Faults with a rate roll seeded dice, so that a run can be repeated (as far as the order of
//! requests repeats).

use parking_lot::Mutex;
use serde::Deserialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;

/// The requests the server tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    Get,
    Head,
    Put,
    Copy,
    List,
    Delete,
    DeleteMany,
    UploadCreate,
    UploadPart,
    UploadComplete,
    UploadAbort,
    Other,
}

impl RequestKind {
    /// The kind of a request of the path-style API.
    pub fn of<B>(request: &hyper::Request<B>) -> RequestKind {
        let has = |name: &str| has_query(request, name);
        let has_key = request.uri().path().trim_start_matches('/').contains('/');
        match request.method().as_str() {
            "GET" if has("uploads") || has("uploadId") => RequestKind::Other,
            "GET" if has("list-type") || !has_key => RequestKind::List,
            "GET" => RequestKind::Get,
            "HEAD" => RequestKind::Head,
            "PUT" if has("partNumber") => RequestKind::UploadPart,
            "PUT" if request.headers().contains_key("x-amz-copy-source") => RequestKind::Copy,
            "PUT" => RequestKind::Put,
            "POST" if has("uploads") => RequestKind::UploadCreate,
            "POST" if has("uploadId") => RequestKind::UploadComplete,
            "POST" if has("delete") => RequestKind::DeleteMany,
            "DELETE" if has("uploadId") => RequestKind::UploadAbort,
            "DELETE" => RequestKind::Delete,
            _ => RequestKind::Other,
        }
    }
}

/// Whether the query of a request has this name.
pub fn has_query<B>(request: &hyper::Request<B>, name: &str) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|pair| pair.split('=').next().is_some_and(|key| key == name))
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum FaultKind {
    /// Waits, then goes on.
    Delay(Duration),
    /// Answers this status with this error code, without acting.
    Status(u16, &'static str),
    /// Closes the connection without acting.
    Reset,
    /// Never answers (until faults are cleared).
    Hang,
    /// Waits until faults are cleared, then goes on.
    Hold,
    /// Acts, then closes the connection instead of answering.
    LoseAnswer,
    /// Sends half of the body, then closes the connection.
    CutBody,
    /// Sends half of the body as if it were all of it.
    Truncate,
    /// Answers this status with these headers and this body, without acting: something between.
    Foreign(u16, &'static [(&'static str, &'static str)], &'static str),
    /// Answers 413, as nginx does, to requests with more bytes than this.
    TooLarge(u64),
}

const HTML: &[(&str, &str)] = &[("content-type", "text/html; charset=utf-8")];

impl FaultKind {
    /// 500 InternalError.
    pub const INTERNAL: FaultKind = FaultKind::Status(500, "InternalError");
    /// 503 SlowDown.
    pub const SLOW_DOWN: FaultKind = FaultKind::Status(503, "SlowDown");
    /// 409 ConditionalRequestConflict.
    pub const CONFLICT: FaultKind = FaultKind::Status(409, "ConditionalRequestConflict");
    /// A page with status 200, as of a captive portal.
    pub const PAGE: FaultKind =
        FaultKind::Foreign(200, HTML, "<!DOCTYPE html>\n<html><body>Sign in</body></html>");
    /// The same with a version and a time, as web servers give their pages.
    pub const FILE: FaultKind = FaultKind::Foreign(
        200,
        &[
            ("content-type", "text/html"),
            ("etag", "\"5f3e-264\""),
            ("last-modified", "Thu, 26 Nov 2026 08:00:00 GMT"),
        ],
        "<html><body>It works</body></html>",
    );
    /// Status 200 and nothing else.
    pub const NOTHING: FaultKind = FaultKind::Foreign(200, &[], "");
    /// A proxy that does not let through: 403 and 404 with a page.
    pub const BLOCKED: FaultKind = FaultKind::Foreign(403, HTML, "<html>blocked</html>");
    pub const LOST: FaultKind = FaultKind::Foreign(404, HTML, "<html>not found</html>");
    /// A redirect to the page of a portal.
    pub const PORTAL: FaultKind =
        FaultKind::Foreign(302, &[("location", "http://portal.example/login")], "");
    /// A redirect to another address of the server.
    pub const MOVED: FaultKind =
        FaultKind::Foreign(301, &[("location", "https://s3.example.org/test/")], "");
    /// 403 AccessDenied.
    pub const DENIED: FaultKind = FaultKind::Status(403, "AccessDenied");
}

/// A fault and the requests it befalls. By default: every request, for ever.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: FaultKind,
    on: Option<RequestKind>,
    key_part: String,
    rate: f64,
    spared: u64,
    left: u64,
}

impl Fault {
    pub fn new(kind: FaultKind) -> Fault {
        Fault { kind, on: None, key_part: String::new(), rate: 1.0, spared: 0, left: u64::MAX }
    }

    /// Only requests of this kind.
    pub fn on(self, kind: RequestKind) -> Fault {
        Fault { on: Some(kind), ..self }
    }

    /// Only objects whose key (with the bucket) contains this.
    pub fn key(self, part: impl Into<String>) -> Fault {
        Fault { key_part: part.into(), ..self }
    }

    /// With this probability, 0 to 1.
    pub fn rate(self, rate: f64) -> Fault {
        Fault { rate, ..self }
    }

    /// Not the first of them, so many.
    pub fn after(self, spared: u64) -> Fault {
        Fault { spared, ..self }
    }

    /// Only so many times.
    pub fn times(self, times: u64) -> Fault {
        Fault { left: times, ..self }
    }
}

/// Whether the server can be reached at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outage {
    /// It can.
    #[default]
    None,
    /// Nothing listens; open connections were closed.
    Refused,
    /// Connections are accepted, and nothing ever answers.
    Silent,
}

/// The faults of one server.
pub struct Faults {
    active: Mutex<(Vec<Fault>, Dice)>,
    outage: watch::Sender<Outage>,
    cleared: watch::Sender<u64>,
    held: AtomicU64,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Faults {
        Faults {
            active: Mutex::new((Vec::new(), Dice(seed))),
            outage: watch::Sender::new(Outage::None),
            cleared: watch::Sender::new(0),
            held: AtomicU64::new(0),
        }
    }

    /// Adds a fault; faults are tried in the order they were added.
    pub fn add(&self, fault: Fault) {
        self.active.lock().0.push(fault);
    }

    /// Removes every fault, wakes what hangs, and ends an outage.
    pub fn clear(&self) {
        self.active.lock().0.clear();
        self.cleared.send_modify(|n| *n += 1);
        self.set_outage(Outage::None);
    }

    /// How many requests [`FaultKind::Hold`] has befallen.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// Starts or ends an outage.
    pub fn set_outage(&self, outage: Outage) {
        self.outage.send_replace(outage);
    }

    pub(super) fn outage(&self) -> watch::Receiver<Outage> {
        self.outage.subscribe()
    }

    pub(super) fn cleared(&self) -> watch::Receiver<u64> {
        self.cleared.subscribe()
    }

    /// What happens to this request: the delays that befall it in all, then at most one fault.
    pub(super) fn befall(
        &self,
        kind: RequestKind,
        key: &str,
        bytes: u64,
    ) -> (Duration, Option<FaultKind>) {
        let mut active = self.active.lock();
        let (faults, dice) = &mut *active;
        let mut delay = Duration::ZERO;
        for fault in faults.iter_mut() {
            let small = matches!(fault.kind, FaultKind::TooLarge(most) if bytes <= most);
            let meant = fault.left > 0
                && !small
                && fault.on.is_none_or(|on| on == kind)
                && key.contains(&fault.key_part);
            if !meant || (fault.rate < 1.0 && dice.roll() >= fault.rate) {
                continue;
            }
            if fault.spared > 0 {
                fault.spared -= 1;
                continue;
            }
            fault.left -= 1;
            match &fault.kind {
                FaultKind::Delay(wait) => delay += *wait,
                FaultKind::Hold => {
                    self.held.fetch_add(1, Relaxed);
                    return (delay, Some(FaultKind::Hold));
                }
                kind => return (delay, Some(kind.clone())),
            }
        }
        (delay, None)
    }
}

/// SplitMix64: enough to decide faults, and repeatable.
struct Dice(u64);

impl Dice {
    /// 0 up to, not including, 1.
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
