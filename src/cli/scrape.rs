//! `--metrics`: the address where Prometheus fetches what a mount counts, over HTTP.
//!
//! Answers `GET /metrics` and nothing else. There is no authentication: whoever can connect can read,
//! which is every user of the machine for a port of the loopback interface, and the user who
//! mounted for a socket in the file system. Connections are bounded in number and in time.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::exit::{Exit, Failure, Outcome};
use super::metrics::{self, Format};
use super::server::Watched;

/// How many may be connected at once; further ones are turned away.
const CONNECTIONS_MAX: usize = 8;
/// How long a connection may last. Each serves one request.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Bytes and headers of the largest request.
const REQUEST_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// How long until connections are taken again after that failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Where metrics are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port.
    Port(SocketAddr),
    /// A socket in the file system.
    Socket(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:").or(text.starts_with('/').then_some(text)) {
            return match path.is_empty() {
                true => Err("unix: needs the path of a socket: unix:/run/vault.metrics".into()),
                false => Ok(Address::Socket(path.into())),
            };
        }
        let local =
            |port: &str| Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?));
        let named = text.strip_prefix("localhost:").or(text.strip_prefix(':'));
        let port = named.and_then(local).or_else(|| text.parse().ok());
        port.map(Address::Port).ok_or_else(|| {
            "an address is IP:PORT, such as 127.0.0.1:9477 or [::1]:9477, or unix:/PATH".into()
        })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Port(at) => write!(f, "{at}"),
            Address::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Address {
    /// Refuses an address that other machines reach, unless that is `meant`.
    ///
    /// # Errors
    /// [`Exit::Usage`].
    pub fn check(&self, meant: bool) -> Outcome {
        match self {
            Address::Port(at) if !at.ip().to_canonical().is_loopback() && !meant => {
                let why = format!(
                    "other machines could read the metrics at {at}: nobody is asked for a password \
                     there, and nothing is encrypted"
                );
                Err(Failure::new(Exit::Usage, why).hint(format!(
                    "--metrics 127.0.0.1:{}; or, behind a firewall, --metrics-remote as well",
                    at.port()
                )))
            }
            _ => Ok(()),
        }
    }
}

/// An address that is listened at.
pub struct Listener(Bound);

enum Bound {
    Port(TcpListener),
    Socket(UnixListener, PathBuf),
}

impl Listener {
    /// Listens at `address`. A socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// [`Exit::General`], saying why it cannot be had.
    pub async fn bind(address: &Address) -> Outcome<Listener> {
        let bound = match address {
            Address::Port(at) => TcpListener::bind(at).await.map(Bound::Port),
            Address::Socket(path) => {
                socket(path).map(|listener| Bound::Socket(listener, path.clone()))
            }
        };
        bound.map(Listener).map_err(|e| {
            let failure =
                Failure::new(Exit::General, format!("cannot answer metrics at {address}: {e}"));
            match (e.kind(), address) {
                (io::ErrorKind::AddrInUse, Address::Port(at)) => failure.hint(format!(
                    "each mount needs its own port; see who has it: ss -tlnp 'sport = {}'",
                    at.port()
                )),
                _ => failure,
            }
        })
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match &self.0 {
            Bound::Port(listener) => Ok(Box::new(listener.accept().await?.0)),
            Bound::Socket(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Bound::Socket(_, path) = &self.0
            && let Err(e) = std::fs::remove_file(path)
        {
            log::debug!("{}: {e}", path.display());
        }
    }
}

fn socket(path: &Path) -> io::Result<UnixListener> {
    match path.symlink_metadata() {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("something that is no socket is there"));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    UnixListener::bind(path)
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Answers until dropped.
pub async fn serve(listener: Listener, watched: Watched) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(e) => {
                log::warn!("no connection for metrics: {e}");
                tokio::time::sleep(ACCEPT_AGAIN).await; // out of descriptors, perhaps
                continue;
            }
        };
        let Ok(place) = Arc::clone(&free).try_acquire_owned() else { continue };
        let watched = watched.clone();
        tokio::spawn(async move {
            let _place = place;
            match timeout(CONNECTION_MAX, connection(stream, watched)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => log::debug!("a connection for metrics: {e}"),
                Err(_) => log::debug!("a connection for metrics took too long"),
            }
        });
    }
}

async fn connection(stream: Box<dyn Stream>, watched: Watched) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let answered = answer(&request, &watched);
        async move { Ok::<_, Infallible>(answered) }
    });
    http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(request: &Request<Incoming>, watched: &Watched) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        respond(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "the metrics of this mount are at /metrics\n");
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept.unwrap_or_default());
    match metrics::text(watched.sample(), format) {
        Ok(text) => respond(StatusCode::OK, format.content_type(), text.into()),
        Err(e) => {
            log::error!("the metrics could not be written: {e}");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "see the log of the mount\n")
        }
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_answered_unless_more_is_meant() {
        // Guards against a port that the whole network reads because of a 0 in its address.
        let port = |text: &str| text.parse::<Address>();
        for (text, shown) in [
            ("127.0.0.1:9477", "127.0.0.1:9477"),
            (":9477", "127.0.0.1:9477"),
            ("localhost:9477", "127.0.0.1:9477"),
            ("[::1]:9477", "[::1]:9477"),
            ("127.9.9.9:0", "127.9.9.9:0"),
            ("unix:/run/m", "/run/m"),
            ("/run/m", "/run/m"),
        ] {
            let address = port(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.check(false), Ok(()), "{text}");
        }
        for text in ["0.0.0.0:9477", "[::]:9477", "10.0.0.1:80", "[::ffff:10.0.0.1]:80"] {
            let address = port(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let refused = address.check(false).expect_err(text);
            assert_eq!(refused.exit, Exit::Usage);
            assert!(refused.message.contains("other machines"), "{refused:?}");
            assert_eq!(address.check(true), Ok(()));
        }
        for text in ["", "9477", "unix:", "example.org:9477", "127.0.0.1", ":x", ":99999"] {
            assert!(port(text).is_err(), "{text}");
        }
    }
}
