//! Which version of TLS a server and this client agree on: asked of a connection of its own, since
//! the client of the SDK does not tell.
//!
//! The same library with the same versions and certificates as the SDK's connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What the handshake may take, with connecting.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Connects, shakes hands and hangs up; gives `TLS 1.3` or `TLS 1.2`. Trusts the certificates of
/// `bundle` (PEM), or without one those of the system.
///
/// # Errors
/// No connection, or no handshake within 10 s: among them every certificate that is not trusted.
pub(super) async fn negotiated(
    host: &str,
    port: u16,
    bundle: Option<&[u8]>,
) -> io::Result<&'static str> {
    let mut roots = RootCertStore::empty();
    let trusted: Vec<CertificateDer<'_>> = match bundle {
        Some(pem) => CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    // One that cannot be read is one that nothing is trusted by.
    roots.add_parsable_certificates(trusted);
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let handshake = async {
        let socket = TcpStream::connect((host, port)).await?;
        TlsConnector::from(Arc::new(config)).connect(name, socket).await
    };
    let stream = tokio::time::timeout(HANDSHAKE_MAX, handshake).await??;
    match stream.get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => Ok("TLS 1.3"),
        Some(ProtocolVersion::TLSv1_2) => Ok("TLS 1.2"),
        other => Err(io::Error::other(format!("TLS of version {other:?}"))),
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::version::{TLS12, TLS13};
    use rustls::{ServerConfig, SupportedProtocolVersion};

    /// Of `localhost` until 2126, signed by itself.
    const CERTIFICATE: &[u8] = include_bytes!("../../../tests/tls/cert.pem");
    const KEY: &[u8] = include_bytes!("../../../tests/tls/key.pem");

    /// A server that shakes hands once; its port.
    async fn server(version: &'static SupportedProtocolVersion) -> u16 {
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .and_then(|b| b.with_no_client_auth().with_single_cert(vec![certificate], key))
            .expect("they belong together");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.expect("somebody comes");
            // A client that does not trust it hangs up.
            let _ = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(socket).await;
        });
        port
    }

    #[tokio::test]
    async fn the_version_is_the_one_of_the_handshake() {
        // Guards against a doctor that says what should be instead of what is.
        for (version, expected) in [(&TLS12, "TLS 1.2"), (&TLS13, "TLS 1.3")] {
            let port = server(version).await;
            let found = negotiated("localhost", port, Some(CERTIFICATE)).await;
            assert_eq!(found.expect("trusted"), expected);
        }
        let port = server(&TLS13).await;
        let refused = negotiated("localhost", port, None).await.expect_err("nobody vouches for it");
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }
}
