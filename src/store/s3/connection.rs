//! Connections to the store, and that a dead one is left behind.
//!
//! A NAT, relay or load balancer may forget a connection without a word to either end; whatever
//! is sent on it then vanishes. What tells is silence: nothing went out and nothing came in.
//! A request that meets it is given up, and with it every idle connection, since they are likely
//! dead too; the next attempt (`store/retry`) gets a fresh one. Time that bytes move in is never
//! counted, so that a large body on a slow line has all it needs. Called by the SDK for each
//! request, those to the servers of credentials included; speaks HTTP/1.1 only, as S3 does.

use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::Uri;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{
    CaptureConnection, Connected, Connection, HttpConnector as TcpConnector, capture_connection,
};
use hyper_util::client::legacy::{Builder, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::TlsConnector;
use tower_service::Service;

/// The least silence that a connection is given up for.
const SILENCE_MIN: Duration = Duration::from_secs(4);
/// What a server is given on top for work that it does before it says a word: to copy, to
/// complete an upload.
const WORK: Duration = Duration::from_secs(15);
/// Bytes per second at which what lies in buffers on the way is expected to leave them. Slower
/// lines are learned.
const DRAIN_RATE: u64 = 1 << 20;
/// Bytes per second below which a request's own time limit runs out.
const SLOWEST_RATE: u64 = 64 << 10;
/// How often the wait for answers is doubled, one silence after the other.
const DOUBLINGS_MAX: u32 = 4;
/// How often it is looked whether a request has a connection yet.
const LOOK: Duration = Duration::from_millis(200);
/// Added to waits, so that the clock has surely got there.
const MARGIN: Duration = Duration::from_millis(2);
/// Bytes of a request that the kernel takes ahead of the network; with more, what is written
/// would say little about what is sent.
const UNSENT_MAX: u32 = 256 << 10;
/// When the kernel asks whether the other end of an idle connection is there, how often again, and
/// how long it waits for an acknowledgement of anything.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(5);
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);
/// Time for one plain question to a server that hung up on a handshake.
const QUESTION_MAX: Duration = Duration::from_secs(2);
/// Idle connections kept; more may be open at once. Above the parallel requests of one mount.
const IDLE_CONNECTIONS_MAX: usize = 128;
/// How long an idle connection is kept; below the idle limits of servers and load balancers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// All requests of a client. `silence_max` bounds every silence that is waited for; a request may
/// take as long until its answer begins, and what its length takes at the slowest rate.
///
/// # Errors
/// As `trust`.
pub(super) fn http_client<E: fmt::Display + 'static>(
    trust: impl Fn() -> Result<ClientConfig, E> + Send + Sync + 'static,
    silence_max: Duration,
) -> Result<SharedHttpClient, E> {
    Ok(SharedHttpClient::new(Http(Arc::new(Shared::new(trust, silence_max)?))))
}

/// How often [`trust_again`] was called in this process.
static TRUST_ASKED: AtomicU64 = AtomicU64::new(0);

/// Every client of this process reads the certificates that it trusts again before its next request,
/// which goes over a new connection. Those that cannot be read leave it what it had.
pub fn trust_again() {
    TRUST_ASKED.fetch_add(1, Relaxed);
}

/// Why a request was given up here.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error("the connection went silent for {:.1} s", .0.as_secs_f64())]
    Silence(Duration),
    #[error("no answer within {:.0} s", .0.as_secs_f64())]
    Late(Duration),
    #[error("no connection to {host} within {:.0} s", limit.as_secs_f64())]
    Connecting { host: String, limit: Duration },
    #[error("the server speaks TLS (https), and was asked without")]
    SpeaksTls,
    #[error("the server does not speak TLS (https), but plain http")]
    SpeaksHttp,
}

/// Whether an error says that the server wants the other scheme: the one it wants.
pub(super) fn other_scheme(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    match error.downcast_ref::<GivenUp>() {
        Some(GivenUp::SpeaksTls) => Some("https"),
        Some(GivenUp::SpeaksHttp) => Some("http"),
        _ => None,
    }
}

/// Whether a request, somewhere below `error`, got no answer.
pub(super) fn is_lost(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |e| e.source()).any(|e| e.is::<ConnectorError>())
}

#[derive(Clone)]
struct Http(Arc<Shared>);

struct Shared {
    tls: Mutex<Arc<ClientConfig>>,
    /// Reads the certificates again.
    trust: Box<dyn Fn() -> Result<ClientConfig, String> + Send + Sync>,
    /// [`TRUST_ASKED`] when they were read.
    trusted: AtomicU64,
    /// Some server has answered.
    answered: AtomicBool,
    patience: Patience,
    /// By the time that connecting may take: the servers of credentials have a separate one.
    pools: Mutex<HashMap<Option<Duration>, Pool>>,
}

/// A pool of connections; `number` counts how many were given up before it.
#[derive(Clone)]
struct Pool {
    number: u64,
    client: Client<Dialer, SdkBody>,
}

impl Shared {
    fn new<E: fmt::Display + 'static>(
        trust: impl Fn() -> Result<ClientConfig, E> + Send + Sync + 'static,
        silence_max: Duration,
    ) -> Result<Shared, E> {
        let trusted = AtomicU64::new(TRUST_ASKED.load(Relaxed));
        Ok(Shared {
            tls: Mutex::new(Arc::new(trust()?)),
            trust: Box::new(move || trust().map_err(|e| e.to_string())),
            trusted,
            answered: AtomicBool::new(false),
            patience: Patience { silence_max, ..Patience::default() },
            pools: Mutex::default(),
        })
    }

    fn pool(&self, connecting: Option<Duration>) -> Pool {
        let mut pools = self.pools.lock();
        let asked = TRUST_ASKED.load(Relaxed);
        if self.trusted.swap(asked, Relaxed) != asked {
            self.trust_again(&mut pools);
        }
        pools.entry(connecting).or_insert_with(|| self.new_pool(connecting, 0)).clone()
    }

    fn trust_again(&self, pools: &mut HashMap<Option<Duration>, Pool>) {
        match (self.trust)() {
            Ok(tls) => *self.tls.lock() = Arc::new(tls),
            Err(e) => {
                log::error!("the certificates trusted so far stay: {e}");
                return;
            }
        }
        for (connecting, pool) in pools {
            *pool = self.new_pool(*connecting, pool.number + 1);
        }
    }

    fn new_pool(&self, limit: Option<Duration>, number: u64) -> Pool {
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_AGAIN));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
        let tls = HttpsConnector::from((Lines(tcp), self.tls.lock().clone()));
        let client = Builder::new(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(Dialer { tls, limit });
        Pool { number, client }
    }

    /// Leaves every connection of a pool, unless somebody has done that already. Those that others
    /// use stay until they are done.
    fn give_up(&self, connecting: Option<Duration>, number: u64) {
        let mut pools = self.pools.lock();
        if pools.get(&connecting).is_some_and(|pool| pool.number == number) {
            log::debug!("a connection to the store went silent; opening new ones");
            self.patience.lost();
            pools.insert(connecting, self.new_pool(connecting, number + 1));
        }
    }
}

/// How much silence is waited for: what the slowest answer of late took, twice; and twice as much
/// after every silence within [`REMEMBERED`], so that a slow server is not taken for a dead line for
/// ever.
#[derive(Debug, Default)]
struct Patience {
    silence_max: Duration,
    slowest_ms: AtomicU64,
    doublings: AtomicU32,
    /// When a pool was last given up.
    lost_at: Mutex<Option<Instant>>,
}

/// How long a silence is remembered, whatever else is answered meanwhile: or a request that takes
/// long would never be given its time beside others that do not.
const REMEMBERED: Duration = Duration::from_secs(60);

impl Patience {
    fn of(&self, load: &Load) -> Duration {
        let slowest = Duration::from_millis(self.slowest_ms.load(Relaxed));
        let once = load.allowance() + SILENCE_MIN.max(2 * slowest);
        (once * (1 << self.doublings.load(Relaxed))).min(self.silence_max)
    }

    /// An answer came after this much silence.
    fn answered(&self, silence: Duration, load: &Load) {
        let ms = silence.saturating_sub(load.allowance()).as_millis() as u64;
        let slowest = self.slowest_ms.load(Relaxed);
        let is_lately = self.lost_at.lock().is_some_and(|at| at.elapsed() < REMEMBERED);
        let slowest = match ms > slowest {
            true => ms,
            false if is_lately => return,
            false => slowest - (slowest - ms).div_ceil(16),
        };
        self.slowest_ms.store(slowest, Relaxed);
        if !is_lately {
            self.doublings.store(0, Relaxed);
        }
    }

    /// A pool was given up.
    fn lost(&self) {
        *self.lost_at.lock() = Some(Instant::now());
        let doublings = self.doublings.load(Relaxed);
        self.doublings.store((doublings + 1).min(DOUBLINGS_MAX), Relaxed);
    }
}

/// What of a request says how long it may be quiet.
#[derive(Clone, Copy, Debug)]
struct Load {
    body_bytes: u64,
    is_work: bool,
}

impl Load {
    fn of(request: &HttpRequest) -> Load {
        let length = request.headers().get("content-length").and_then(|n| n.parse().ok());
        let is_work = request.headers().get("x-amz-copy-source").is_some()
            || request.method() == "POST"
                && ["uploadId=", "?delete"].iter().any(|of| request.uri().contains(of));
        Load { body_bytes: length.unwrap_or(0), is_work }
    }

    /// The silence that is no sign of anything.
    fn allowance(&self) -> Duration {
        let draining = Duration::from_millis(self.body_bytes.saturating_mul(1000) / DRAIN_RATE);
        draining + if self.is_work { WORK } else { Duration::ZERO }
    }
}

impl HttpClient for Http {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Wire {
            shared: self.0.clone(),
            connecting: settings.connect_timeout(),
            answering: settings.read_timeout(),
        })
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

/// Requests with the same limits.
#[derive(Clone)]
struct Wire {
    shared: Arc<Shared>,
    connecting: Option<Duration>,
    /// A limit of the caller's until the answer begins; the store's requests have none.
    answering: Option<Duration>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let wire = self.clone();
        HttpConnectorFuture::new(async move { wire.send(request).await })
    }
}

impl Wire {
    async fn send(self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let load = Load::of(&request);
        let mut request = request.try_into_http1x().map_err(|e| ConnectorError::user(e.into()))?;
        let uri = request.uri().clone();
        let captured = capture_connection(&mut request);
        let patience = self.shared.patience.of(&load);
        let slowest = Duration::from_secs(load.body_bytes / SLOWEST_RATE);
        let limit = self.answering.unwrap_or(self.shared.patience.silence_max) + slowest;
        let pool = self.shared.pool(self.connecting);
        let begun = Instant::now();
        let mut answer = std::pin::pin!(pool.client.request(request));
        let answer = loop {
            let left = limit.saturating_sub(begun.elapsed());
            let silence = pulse(&captured).map(|pulse| pulse.silence(begun));
            if left.is_zero() || silence.is_some_and(|silence| silence >= patience) {
                self.shared.give_up(self.connecting, pool.number);
                let why = match silence {
                    Some(silence) if silence >= patience => GivenUp::Silence(silence),
                    _ => GivenUp::Late(limit),
                };
                return Err(ConnectorError::timeout(why.into()));
            }
            let wait = silence.map_or(LOOK, |silence| patience - silence).min(left);
            match tokio::time::timeout(wait + MARGIN, &mut answer).await {
                Ok(answer) => break answer,
                Err(_) => continue,
            }
        };
        let pulse = pulse(&captured);
        let answer = match answer {
            Ok(answer) => answer,
            Err(_) if self.wants_tls(&uri, pulse.as_deref()).await => {
                return Err(ConnectorError::io(GivenUp::SpeaksTls.into()));
            }
            Err(e) => return Err(ConnectorError::io(e.into())),
        };
        self.shared.answered.store(true, Relaxed);
        if let Some(pulse) = &pulse {
            self.shared.patience.answered(pulse.waited(begun), &load);
        }
        if matches!(answer.status().as_u16(), 500 | 502 | 503 | 504)
            && let Some(connection) = captured.connection_metadata().as_ref()
        {
            // Behind one address are many servers; the next attempt shall meet another.
            connection.poison();
        }
        let (shared, connecting, number) = (self.shared, self.connecting, pool.number);
        let answer = answer.map(|body| {
            let (asked, timer) = (None, None);
            let watched =
                Watched { body, pulse, patience, asked, timer, shared, connecting, number };
            SdkBody::from_body_1_x(watched)
        });
        HttpResponse::try_from(answer).map_err(|e| ConnectorError::other(e.into(), None))
    }
}

impl Wire {
    /// Whether a request failed because the server wants it over TLS: its first words say so, or,
    /// from one that says nothing and has never answered, a handshake.
    async fn wants_tls(&self, uri: &Uri, pulse: Option<&Pulse>) -> bool {
        let Some(pulse) = pulse.filter(|_| uri.scheme_str() == Some("http")) else { return false };
        if pulse.heard_something() || self.shared.answered.load(Relaxed) {
            return pulse.speaks_tls.load(Relaxed);
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(80);
        let Ok(name) = ServerName::try_from(host.clone()) else { return false };
        let tls = TlsConnector::from(self.shared.tls.lock().clone());
        let asking = async {
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tls.connect(name, tcp).await.map(drop)
        };
        match tokio::time::timeout(QUESTION_MAX, asking).await {
            Ok(Ok(())) => true,
            // It got as far as a certificate, whoever vouches for it.
            Ok(Err(e)) => e.get_ref().is_some_and(|e| {
                matches!(e.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
            }),
            Err(_) => false,
        }
    }
}

/// The pulse of a request's connection, once it has one.
fn pulse(captured: &CaptureConnection) -> Option<Arc<Pulse>> {
    let mut extras = hyper::http::Extensions::new();
    captured.connection_metadata().as_ref()?.get_extras(&mut extras);
    extras.remove()
}

/// The body of an answer; an error once nothing of it has come for too long.
struct Watched {
    body: Incoming,
    pulse: Option<Arc<Pulse>>,
    patience: Duration,
    /// Since when more is waited for.
    asked: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    shared: Arc<Shared>,
    connecting: Option<Duration>,
    number: u64,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            (this.asked, this.timer) = (None, None);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Some(pulse) = &this.pulse else { return Poll::Pending };
        let asked = *this.asked.get_or_insert_with(Instant::now);
        loop {
            let silence = pulse.silence(asked);
            if silence >= this.patience {
                this.shared.give_up(this.connecting, this.number);
                return Poll::Ready(Some(Err(GivenUp::Silence(silence).into())));
            }
            let wait = this.patience - silence + MARGIN;
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
            ready!(timer.as_mut().poll(cx));
            timer.as_mut().reset(tokio::time::Instant::now() + wait);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// When bytes last moved on a connection.
#[derive(Debug)]
struct Pulse {
    born: Instant,
    /// Milliseconds after `born`.
    wrote: AtomicU64,
    moved: AtomicU64,
    heard: AtomicBool,
    /// The first byte that came began a record of TLS.
    speaks_tls: AtomicBool,
}

impl Pulse {
    fn new() -> Pulse {
        Pulse {
            born: Instant::now(),
            wrote: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            heard: AtomicBool::new(false),
            speaks_tls: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    fn has_written(&self) {
        let now = self.now();
        self.wrote.store(now, Relaxed);
        self.moved.store(now, Relaxed);
    }

    fn has_read(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return; // the end
        }
        self.moved.store(self.now(), Relaxed);
        if !self.heard.swap(true, Relaxed) {
            // Alerts and handshakes of TLS; no line of HTTP begins like that.
            self.speaks_tls.store(matches!(bytes, [0x15 | 0x16, 0x03, ..]), Relaxed);
        }
    }

    fn heard_something(&self) -> bool {
        self.heard.load(Relaxed)
    }

    /// How long nothing has moved, at most since `begun`.
    fn silence(&self, begun: Instant) -> Duration {
        let moved = self.born + Duration::from_millis(self.moved.load(Relaxed));
        moved.max(begun).elapsed()
    }

    /// How long ago the last of a request that began at `begun` was sent.
    fn waited(&self, begun: Instant) -> Duration {
        let wrote = self.born + Duration::from_millis(self.wrote.load(Relaxed));
        wrote.max(begun).elapsed()
    }
}

/// Opens TCP connections whose pulse is taken.
#[derive(Clone)]
struct Lines(TcpConnector);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Opening<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

impl Service<Uri> for Lines {
    type Response = TokioIo<Line>;
    type Error = BoxError;
    type Future = Opening<TokioIo<Line>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let opening = self.0.call(uri);
        Box::pin(async move {
            let tcp = opening.await?.into_inner();
            // Without it a silence is noticed later on slow lines, and nothing else.
            let _ = socket2::SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT_MAX);
            Ok(TokioIo::new(Line { tcp, pulse: Arc::new(Pulse::new()) }))
        })
    }
}

/// Opens connections of both kinds, within a limit.
#[derive(Clone)]
struct Dialer {
    tls: HttpsConnector<Lines>,
    limit: Option<Duration>,
}

impl Service<Uri> for Dialer {
    type Response = MaybeHttpsStream<TokioIo<Line>>;
    type Error = BoxError;
    type Future = Opening<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tls.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let is_tls = uri.scheme_str() == Some("https");
        let opening = self.tls.call(uri);
        let limit = self.limit.unwrap_or(UNACKNOWLEDGED_MAX);
        Box::pin(async move {
            match tokio::time::timeout(limit, opening).await {
                Err(_) => Err(GivenUp::Connecting { host, limit }.into()),
                Ok(Err(e)) if is_tls && is_end(&*e) && speaks_http(&host, port).await => {
                    Err(GivenUp::SpeaksHttp.into())
                }
                Ok(outcome) => outcome,
            }
        })
    }
}

/// Whether the other end hung up.
fn is_end(error: &(dyn std::error::Error + 'static)) -> bool {
    let kind = std::iter::successors(Some(error), |e| e.source())
        .find_map(|e| e.downcast_ref::<io::Error>().map(io::Error::kind));
    matches!(kind, Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset))
        || error.to_string().contains("eof")
}

/// Whether a server that hung up on a TLS handshake answers a plain question: some that are asked
/// over TLS and know none say nothing at all.
async fn speaks_http(host: &str, port: u16) -> bool {
    let asking = async {
        let mut tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        let question = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        tcp.write_all(question.as_bytes()).await?;
        let mut begin = [0; 5];
        tcp.read_exact(&mut begin).await?;
        io::Result::Ok(&begin == b"HTTP/")
    };
    tokio::time::timeout(QUESTION_MAX, asking).await.is_ok_and(|outcome| outcome.unwrap_or(false))
}

/// A TCP connection whose pulse is taken.
struct Line {
    tcp: TcpStream,
    pulse: Arc<Pulse>,
}

impl Connection for Line {
    fn connected(&self) -> Connected {
        self.tcp.connected().extra(self.pulse.clone())
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buffer))?;
        self.pulse.has_read(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, bytes))?;
        self.pulse.has_written();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.tcp).poll_write_vectored(cx, slices))?;
        self.pulse.has_written();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Load = Load { body_bytes: 1000, is_work: false };
    const SECOND: Duration = Duration::from_secs(1);

    fn patience() -> Patience {
        Patience { silence_max: 60 * SECOND, ..Patience::default() }
    }

    #[test]
    fn a_slow_server_is_waited_for_and_a_dead_line_is_not() {
        // Guards against a dead connection that is waited on for a minute, and against a server
        // that needs ten seconds for each answer and is never given them.
        let patience = patience();
        assert_eq!(patience.of(&SMALL), SILENCE_MIN);
        let mut waits = Vec::new();
        for _ in 0..6 {
            patience.lost();
            waits.push(patience.of(&SMALL).as_secs());
        }
        assert_eq!(waits, [8, 16, 32, 60, 60, 60]);
        // An answer to something else does not take back what one was given.
        patience.answered(Duration::from_millis(20), &SMALL);
        assert_eq!(patience.of(&SMALL), 60 * SECOND);
        let long_ago = Instant::now().checked_sub(REMEMBERED);
        *patience.lost_at.lock() = long_ago;
        patience.answered(10 * SECOND, &SMALL);
        assert_eq!(patience.of(&SMALL), 20 * SECOND);
        // Fast answers make it forget.
        for _ in 0..100 {
            patience.answered(Duration::from_millis(20), &SMALL);
        }
        assert_eq!(patience.of(&SMALL), SILENCE_MIN);
    }

    #[tokio::test]
    async fn certificates_are_read_again_when_asked_and_kept_if_they_cannot_be() {
        // Guards against a private authority whose new certificate needs an unmount, and against a
        // file that is being written just then, which would cut a mount off.
        let readable = Arc::new(AtomicBool::new(true));
        let asked = readable.clone();
        let trust = move || match asked.load(Relaxed) {
            true => super::super::tls::client_config(None),
            false => Err(io::Error::other("half a file")),
        };
        let shared = Shared::new(trust, SECOND).expect("readable");
        let state = || (shared.pool(None).number, Arc::as_ptr(&shared.tls.lock()));
        let first = state();
        assert_eq!(state(), first);
        trust_again();
        let second = state();
        assert!(second.0 > first.0 && second.1 != first.1);
        readable.store(false, Relaxed);
        trust_again();
        assert_eq!(state(), second);
    }

    #[test]
    fn what_a_request_needs_before_its_answer_is_no_silence() {
        // Guards against an upload given up while buffers on the way drain, and sent again.
        let large = Load { body_bytes: 16 << 20, is_work: false };
        assert_eq!(patience().of(&large), SILENCE_MIN + 16 * SECOND);
        assert_eq!(patience().of(&Load { is_work: true, ..SMALL }), SILENCE_MIN + WORK);
        let patience = patience();
        patience.answered(12 * SECOND, &large);
        assert_eq!(patience.of(&SMALL), SILENCE_MIN, "the body's share is not the server's");
        let impatient = Patience { silence_max: SECOND, ..Patience::default() };
        assert_eq!(impatient.of(&large), SECOND);
    }
}
