//! The server's sockets: accepts, injects faults around the S3 service, plays outages.

use super::faults::{FaultKind, Faults, Outage, RequestKind};
use super::memory::Memory;
use super::service::MemoryS3;
use super::settings;
use super::{ACCESS_KEY, OTHER_ACCESS_KEY, OTHER_SECRET_KEY, SECRET_KEY};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::{fs, io};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

/// What every connection needs.
struct Shared {
    service: S3Service,
    memory: Arc<Memory>,
    faults: Arc<Faults>,
}

/// Serves until dropped.
pub(super) async fn serve(listener: StdListener, memory: Arc<Memory>, faults: Arc<Faults>) {
    let mut builder = S3ServiceBuilder::new(MemoryS3::new(memory.clone()));
    let mut keys = SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY);
    keys.register(OTHER_ACCESS_KEY.into(), OTHER_SECRET_KEY.into());
    builder.set_auth(keys);
    let shared = Arc::new(Shared { service: builder.build(), memory, faults });
    let mut outage = shared.faults.outage();
    let address = listener.local_addr().expect("a bound socket has an address");
    let mut listener = Some(TcpListener::from_std(listener).expect("inside a runtime"));
    let mut connections = JoinSet::new();
    loop {
        let down = *outage.borrow_and_update() == Outage::Refused;
        if down {
            listener = None;
            connections.shutdown().await;
        } else if listener.is_none() {
            listener = rebind(address).await;
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = outage.changed() => {
                if changed.is_err() { return }
            }
            accepted = accepted => {
                if let Ok((socket, _)) = accepted {
                    let _ = socket.set_nodelay(true);
                    connections.spawn(connection(TokioIo::new(socket), shared.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A port of 127.0.0.1 that nobody takes while nothing listens there for a moment: below those of the
/// connections that all programs make (`ip_local_port_range`, ip(7)), above those of Ceph's daemons.
pub fn bind_free() -> io::Result<StdListener> {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let range = fs::read_to_string(RANGE).unwrap_or_default();
    let low = range.split_whitespace().next().and_then(|low| low.parse().ok());
    let low = low.filter(|&low| low > 12_000).unwrap_or(32_768);
    let ports = std::iter::repeat_with(|| rand::random_range(10_000..low)).take(1000);
    let mut bound = ports.map(|port: u16| StdListener::bind(("127.0.0.1", port)));
    let taken = |bound: &io::Result<StdListener>| {
        bound.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
    };
    bound.find(|bound| !taken(bound)).unwrap_or_else(|| Err(io::ErrorKind::AddrInUse.into()))
}

/// The same port again after an outage; tried until it works, since the tests rely on it.
async fn rebind(address: SocketAddr) -> Option<TcpListener> {
    loop {
        let socket = TcpSocket::new_v4().ok()?;
        socket.set_reuseaddr(true).ok()?;
        if socket.bind(address).is_ok()
            && let Ok(listener) = socket.listen(1024)
        {
            return Some(listener);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn connection(io: TokioIo<tokio::net::TcpStream>, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { shared.answer(request).await }
    });
    // An error is a connection that was cut, by either side.
    let _ = http1::Builder::new().pipeline_flush(true).serve_connection(io, service).await;
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, HttpError> {
        let kind = RequestKind::of(&request);
        let key = request.uri().path().trim_start_matches('/').to_owned();
        self.memory.counters.request(kind, content_length(request.headers()));
        if let Some(hash) = request.headers().get("x-amz-content-sha256") {
            self.memory.note_payload_hash(hash);
        }
        let mut outage = self.faults.outage();
        // A closed channel means that the server is stopping.
        let _ = outage.wait_for(|outage| *outage != Outage::Silent).await;
        let bytes = content_length(request.headers());
        let mut cleared = self.faults.cleared();
        cleared.borrow_and_update();
        let (delay, fault) = self.faults.befall(kind, &key, bytes);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let answered = match fault {
            None | Some(FaultKind::Delay(_)) => self.act(request).await?,
            Some(FaultKind::Status(status, code)) => refuse(request, status, code).await?,
            Some(FaultKind::Reset) => return Err(cut("reset")),
            Some(FaultKind::Hang) => {
                let _ = cleared.changed().await;
                return Err(cut("hung"));
            }
            Some(FaultKind::Hold) => {
                let _ = cleared.changed().await;
                self.act(request).await?
            }
            Some(FaultKind::LoseAnswer) => {
                self.act(request).await?;
                return Err(cut("the answer was lost"));
            }
            Some(FaultKind::CutBody) => cut_body(self.act(request).await?).await?,
            Some(FaultKind::Foreign(status, headers, body)) => {
                foreign(request, status, headers, body).await?
            }
            Some(FaultKind::TooLarge(_)) => {
                let page = "<html><head><title>413 Request Entity Too Large</title></head></html>";
                foreign(request, 413, &[("content-type", "text/html")], page).await?
            }
            Some(FaultKind::Truncate) => truncate(self.act(request).await?).await?,
        };
        if kind != RequestKind::Head {
            self.memory.counters.answer(content_length(answered.headers()));
        }
        Ok(answered)
    }

    async fn act(&self, request: Request<Incoming>) -> Result<Response<Body>, HttpError> {
        let revoked = self.memory.behaviour.read().revoked;
        if let Some((key, status, code)) = revoked
            && is_signed_with(&request, key)
        {
            return refuse(request, status, code).await;
        }
        if self.memory.behaviour.read().wants_session_tokens && !has_its_token(&request) {
            return refuse(request, 403, "InvalidToken").await;
        }
        if settings::is_one(&request, &self.memory.behaviour.read()) {
            return settings::answer(request, &self.memory).await;
        }
        self.service.call(request.map(Body::from)).await
    }
}

fn is_signed_with(request: &Request<Incoming>, key: &str) -> bool {
    let signature = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    signature.is_some_and(|s| s.contains(&format!("Credential={key}/")))
}

/// Whether the session token is that of the access key.
fn has_its_token(request: &Request<Incoming>) -> bool {
    let token = request.headers().get("x-amz-security-token").and_then(|v| v.to_str().ok());
    token
        .and_then(|t| t.strip_prefix("session-of-"))
        .is_some_and(|key| is_signed_with(request, key))
}

fn content_length(headers: &hyper::HeaderMap) -> u64 {
    let value = headers.get(header::CONTENT_LENGTH);
    value.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn cut(why: &'static str) -> HttpError {
    HttpError::new(why.into())
}

/// Reads the request to its end, so that the client has sent it, and refuses it.
async fn refuse(
    request: Request<Incoming>,
    status: u16,
    code: &str,
) -> Result<Response<Body>, HttpError> {
    let has_body = request.method() != hyper::Method::HEAD;
    BodyExt::collect(request.into_body()).await.map_err(|e| HttpError::new(Box::new(e)))?;
    let mut answer = refusal(status, code);
    if !has_body {
        *answer.body_mut() = Body::empty();
    }
    Ok(answer)
}

/// Reads the request to its end, and answers as something else than S3.
async fn foreign(
    request: Request<Incoming>,
    status: u16,
    headers: &[(&str, &str)],
    body: &'static str,
) -> Result<Response<Body>, HttpError> {
    let has_body = request.method() != hyper::Method::HEAD;
    BodyExt::collect(request.into_body()).await.map_err(|e| HttpError::new(Box::new(e)))?;
    let mut answer = Response::builder().status(status);
    for (name, value) in headers {
        answer = answer.header(*name, *value);
    }
    // What a GET would get is announced to a HEAD as well.
    let answer = answer.header(header::CONTENT_LENGTH, body.len());
    let body = if has_body {
        Body::from(bytes::Bytes::from_static(body.as_bytes()))
    } else {
        Body::empty()
    };
    Ok(answer.body(body).expect("a fixed answer"))
}

/// An answer that is an error.
pub(super) fn refusal(status: u16, code: &str) -> Response<Body> {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>injected</Message></Error>"
    );
    let answer = Response::builder().status(status).header(header::CONTENT_TYPE, "application/xml");
    answer.body(Body::from(xml)).expect("a fixed answer")
}

async fn halved(
    answer: Response<Body>,
) -> Result<(hyper::http::response::Parts, Bytes, u64), HttpError> {
    let (parts, body) = answer.into_parts();
    let whole = BodyExt::collect(body).await.map_err(HttpError::new)?.to_bytes();
    let length = whole.len() as u64;
    Ok((parts, whole.slice(..whole.len() / 2), length))
}

/// Announces all of the body, sends half, and fails.
async fn cut_body(answer: Response<Body>) -> Result<Response<Body>, HttpError> {
    let (mut parts, half, length) = halved(answer).await?;
    parts.headers.insert(header::CONTENT_LENGTH, length.into());
    // The pause lets the head and the half go out before the connection is closed.
    let cut = async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        Err(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "cut"))
    };
    let frames = stream::once(async { Ok(Frame::data(half)) }).chain(stream::once(cut));
    Ok(Response::from_parts(parts, Body::http_body_unsync(StreamBody::new(frames))))
}

/// Announces and sends half of the body; all other headers stay.
async fn truncate(answer: Response<Body>) -> Result<Response<Body>, HttpError> {
    let (mut parts, half, _) = halved(answer).await?;
    parts.headers.insert(header::CONTENT_LENGTH, half.len().into());
    Ok(Response::from_parts(parts, Body::from(half)))
}
