//! TLS as this client speaks it: whom it trusts, what its failures mean, and which version a server
//! and it agree on (asked on a separate connection, since the SDK does not tell).

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, ProtocolVersion,
    RootCertStore, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What the handshake may take, with connecting.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Trusts the certificates of `bundle` (PEM), or without one those of the system. One of the
/// bundle may also be the server's own, whatever it says of itself: OpenSSL makes those that sign
/// themselves authorities, and trusts them like this.
///
/// # Errors
/// A bundle that cannot be read. A system without certificates is none: it trusts nobody.
pub(super) fn client_config(bundle: Option<&[u8]>) -> io::Result<ClientConfig> {
    let own: Vec<CertificateDer<'static>> = match bundle {
        Some(pem) => CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?,
        None => Vec::new(),
    };
    let trusted = match bundle {
        Some(_) => own.clone(),
        None => rustls_native_certs::load_native_certs().certs,
    };
    let mut roots = RootCertStore::empty();
    // One that cannot be read is one that nothing is trusted by.
    let (readable, _) = roots.add_parsable_certificates(trusted);
    if readable == 0 && bundle.is_some() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no certificate in it is readable"));
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let mut config = if own.is_empty() {
        builder.with_root_certificates(roots).with_no_client_auth()
    } else {
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        let usual = usual.build().map_err(io::Error::other)?;
        let verifier = Arc::new(Verifier { usual, own });
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The usual verification, which refuses an authority's certificate as a server's own, even where
/// it was named as the one to trust.
#[derive(Debug)]
struct Verifier {
    usual: Arc<WebPkiServerVerifier>,
    /// The certificates of the bundle.
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let usual = self.usual.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match usual {
            // Its dates were looked at before that; that the server has the key, the handshake
            // proves. What is left is the name.
            Err(e) if is_authority_itself(&e) && self.own.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            usual => usual,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

fn is_authority_itself(e: &rustls::Error) -> bool {
    // The library below has no public name for it.
    matches!(e, rustls::Error::InvalidCertificate(CertificateError::Other(other))
        if format!("{other:?}").contains("CaUsedAsEndEntity"))
}

/// A handshake that fails the same way next time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What is wrong.
    pub(super) why: String,
    /// What to do about it.
    pub(super) next: &'static str,
}

/// What of TLS is wrong below `error`, if it is something that waiting does not mend.
pub(super) fn trouble(error: &(dyn Error + 'static)) -> Option<Trouble> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<rustls::Error>() {
            return trouble_of(e);
        }
        match super::connection::other_scheme(e) {
            Some("https") => return Some(asked_without()),
            Some(_) => return Some(Trouble { why: e.to_string(), next: PLAIN }),
            None => {}
        }
        cause = match e.downcast_ref::<io::Error>() {
            // Its `source` is the one of what it holds, and passes that over.
            Some(io) => io.get_ref().map(|held| held as &(dyn Error + 'static)),
            None => e.source(),
        };
    }
    None
}

fn trouble_of(error: &rustls::Error) -> Option<Trouble> {
    use CertificateError as C;
    let given = |why: String, next| Some(Trouble { why, next });
    match error {
        e if is_authority_itself(e) => given(stranger(), TRUST),
        rustls::Error::InvalidCertificate(C::UnknownIssuer) => given(stranger(), TRUST),
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => given(
            "the server's certificate has expired".into(),
            "renew it on the server; if it is good, this machine's clock is wrong: timedatectl",
        ),
        rustls::Error::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => given(
            "the server's certificate is not valid yet".into(),
            "set this machine's clock: timedatectl set-ntp true",
        ),
        rustls::Error::InvalidCertificate(C::NotValidForName) => {
            given("the server's certificate is for another host name".into(), NAME)
        }
        rustls::Error::InvalidCertificate(C::NotValidForNameContext { expected, presented }) => {
            let names = match presented.is_empty() {
                true => "for no host name at all".to_owned(),
                false => format!("for {}", presented.join(", ")),
            };
            given(
                format!("the server's certificate is {names}, not for {}", expected.to_str()),
                NAME,
            )
        }
        rustls::Error::InvalidCertificate(other) => given(
            format!("the server's certificate is not valid: {other}"),
            "openssl s_client -showcerts -connect HOST:PORT shows it; it has to be replaced on the server",
        ),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            given("the server does not speak TLS (https)".into(), PLAIN)
        }
        rustls::Error::PeerIncompatible(why) => given(
            format!("the server and this client have no way of TLS in common: {why:?}"),
            "let the server speak TLS 1.2 or 1.3",
        ),
        rustls::Error::AlertReceived(alert) if is_final(*alert) => given(
            format!("the server broke off the TLS handshake: {alert:?}"),
            "let the server speak TLS 1.2 or 1.3, without a certificate of the client",
        ),
        rustls::Error::NoCertificatesPresented | rustls::Error::UnsupportedNameType => given(
            format!("the TLS handshake failed: {error}"),
            "openssl s_client -showcerts -connect HOST:PORT shows what the server sends",
        ),
        _ => None,
    }
}

/// Whether an alert is about the two ends, not about a moment or one damaged record (RFC 8446, 6.2).
fn is_final(alert: rustls::AlertDescription) -> bool {
    use rustls::AlertDescription as A;
    matches!(
        alert,
        A::HandshakeFailure
            | A::ProtocolVersion
            | A::InsufficientSecurity
            | A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRequired
            | A::UnknownCA
            | A::AccessDenied
            | A::UnrecognisedName
            | A::NoApplicationProtocol
    )
}

const TRUST: &str = "set AWS_CA_BUNDLE to a PEM file with the certificate of the authority that signed it (or with the server's own, if it signed itself)";
const NAME: &str =
    "use a name that is in it as --endpoint-url, or let the server have a certificate for this one";

const PLAIN: &str = "--endpoint-url with http:// in place of https:// (to another machine with --allow-http), or another port";

/// A server of https on an endpoint of http.
pub(super) fn asked_without() -> Trouble {
    Trouble {
        why: "the server speaks TLS (https), and was asked without".into(),
        next: "--endpoint-url (or AWS_ENDPOINT_URL) with https:// in place of http://",
    }
}

/// Whom nobody vouches for, and who was asked.
fn stranger() -> String {
    match std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) {
        Some(path) => format!(
            "the server's certificate is signed by nobody in AWS_CA_BUNDLE ({})",
            path.display()
        ),
        None => "the server's certificate is signed by nobody whom this machine trusts".into(),
    }
}

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
    let config = client_config(bundle)?;
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

    /// Certificates of `localhost` that signed themselves, with their keys: until 2126; until 2126
    /// and said to be an authority, as OpenSSL makes them; until 2021.
    const CERTIFICATE: [&[u8]; 2] = [
        include_bytes!("../../../tests/tls/cert.pem"),
        include_bytes!("../../../tests/tls/key.pem"),
    ];
    const AUTHORITY: [&[u8]; 2] = [
        include_bytes!("../../../tests/tls/authority.pem"),
        include_bytes!("../../../tests/tls/authority-key.pem"),
    ];
    const EXPIRED: [&[u8]; 2] = [
        include_bytes!("../../../tests/tls/expired.pem"),
        include_bytes!("../../../tests/tls/expired-key.pem"),
    ];

    /// A server that shakes hands once; its port.
    async fn server(
        version: &'static SupportedProtocolVersion,
        [certificate, key]: [&'static [u8]; 2],
    ) -> u16 {
        let certificate = CertificateDer::from_pem_slice(certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(key).expect("a key");
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
            let port = server(version, CERTIFICATE).await;
            let found = negotiated("localhost", port, Some(CERTIFICATE[0])).await;
            assert_eq!(found.expect("trusted"), expected);
        }
        let port = server(&TLS13, CERTIFICATE).await;
        let refused = negotiated("localhost", port, None).await.expect_err("nobody vouches for it");
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }

    #[tokio::test]
    async fn a_bundle_may_hold_the_servers_own_certificate() {
        // Guards against `CaUsedAsEndEntity` for the certificate that `openssl req -x509` makes,
        // which every other tool takes from AWS_CA_BUNDLE; and against one that is taken for
        // another host, or without being in the bundle.
        let port = server(&TLS13, AUTHORITY).await;
        let found = negotiated("localhost", port, Some(AUTHORITY[0])).await;
        assert_eq!(found.expect("trusted"), "TLS 1.3");
        for (host, bundle, why) in [
            ("localhost", None, "signed by nobody"),
            ("localhost", Some(CERTIFICATE[0]), "signed by nobody"),
            ("127.0.0.2", Some(AUTHORITY[0]), "is for "),
        ] {
            let port = server(&TLS13, AUTHORITY).await;
            // It listens on 127.0.0.1 only; the name is what is checked.
            let e = handshake(host, port, bundle).await.expect_err("not this one");
            let trouble = trouble(&e).unwrap_or_else(|| panic!("{host}: {e:?}"));
            assert!(trouble.why.contains(why), "{host}: {trouble:?}");
        }
    }

    async fn handshake(name: &str, port: u16, bundle: Option<&[u8]>) -> io::Result<()> {
        let config = client_config(bundle)?;
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        TlsConnector::from(Arc::new(config)).connect(name, socket).await.map(drop)
    }

    #[tokio::test]
    async fn what_waiting_does_not_mend_is_said_with_the_setting() {
        // Guards against half a minute of retries that end in the debug text of a library.
        let port = server(&TLS13, EXPIRED).await;
        let e = handshake("localhost", port, Some(EXPIRED[0])).await.expect_err("expired");
        let expired = trouble(&e).expect("final");
        assert!(expired.why.contains("expired") && expired.next.contains("timedatectl"));
        // A server of plain http.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut socket, _) = listener.accept().await.expect("somebody comes");
            let _ = socket.read(&mut [0; 100]).await;
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        });
        let e = handshake("localhost", port, None).await.expect_err("no TLS");
        let plain = trouble(&e).unwrap_or_else(|| panic!("{e:?}"));
        assert!(plain.why.contains("does not speak TLS"), "{plain:?}");
        // A line that is cut is not one of them.
        assert_eq!(trouble(&io::Error::from(io::ErrorKind::UnexpectedEof)), None);
    }
}
