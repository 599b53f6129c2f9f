//! What a mount meets that is there for months: credentials and certificates that end, and a service
//! manager that wants to know how it is.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use crate::e2e::{self, noise};
use crate::e2e_outage::KEYS;
use crate::mounts::{Remote, Service, Volume, wait_at_most};
use crate::needs_fuse;
use crate::support::s3server::{ACCESS_KEY, BUCKET, Outage, S3Server, SECRET_KEY};

/// The longest pause of the committer between two tries is 15 s, that of the look for credentials longer.
const RECOVERY_MAX: Duration = Duration::from_secs(90);

/// A role of this machine, as the metadata service of EC2 (IMDSv2) gives it: its access key now, each with a
/// session token that the server wants to see.
struct Metadata {
    address: String,
    key: Arc<Mutex<usize>>,
}

impl Metadata {
    fn start() -> Metadata {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let key = Arc::new(Mutex::new(0));
        let now = key.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let Ok(mut socket) = socket else { return };
                let mut head = String::new();
                let mut lines = BufReader::new(&mut socket);
                while lines.read_line(&mut head).is_ok_and(|n| n > 2) {}
                let answer =
                    Metadata::answer(&head, *now.lock().unwrap_or_else(PoisonError::into_inner));
                let _ = socket.write_all(answer.as_bytes()); // it may have hung up
            }
        });
        Metadata { address, key }
    }

    fn answer(head: &str, key: usize) -> String {
        let has_token = head.to_ascii_lowercase().contains("x-aws-ec2-metadata-token: sesame");
        let (id, secret) = KEYS[key];
        let of = "/latest/meta-data/iam/security-credentials";
        let body = match head.split_whitespace().nth(1).unwrap_or_default() {
            "/latest/api/token" => "sesame".to_owned(),
            path if path == format!("{of}/") && has_token => "a-role".into(),
            path if path == format!("{of}/a-role") && has_token => format!(
                "{{\"Code\": \"Success\", \"Type\": \"AWS-HMAC\", \"LastUpdated\": \"2026-11-01T00:00:00Z\", \
                 \"AccessKeyId\": \"{id}\", \"SecretAccessKey\": \"{secret}\", \
                 \"Token\": \"session-of-{id}\", \"Expiration\": \"2099-01-01T00:00:00Z\"}}"
            ),
            _ => {
                return "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    .into();
            }
        };
        format!(
            "HTTP/1.1 200 OK\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Writes go on, though the access key is revoked twice; `give` sets the one that is to be found.
fn keys_are_exchanged(v: &Volume, server: &S3Server, give: impl Fn(usize)) {
    server.behave(|b| b.wants_session_tokens = true);
    give(0);
    v.ok(&["init", &v.url(), "--passphrase-file", &v.text("passphrase")]);
    v.mount(&[]);
    for (old, new) in [(0, 1), (1, 0)] {
        server.behave(|b| b.revoked = Some((KEYS[old].0, 400, "ExpiredToken")));
        fs::write(v.at("before"), "x").expect("writes");
        wait_at_most(RECOVERY_MAX, "the refusal is seen", || v.status("pending_bytes") != 0);
        give(new);
        wait_at_most(RECOVERY_MAX, "the new key is used", || v.status("pending_bytes") == 0);
    }
    v.umount();
}

#[test]
fn the_role_of_a_machine_is_asked_for_again_before_its_credentials_are_missed() {
    // Guards against a mount on EC2 that stays offline when its role's credentials were exchanged, and
    // against a session token that is left behind.
    needs_fuse!();
    let (server, metadata) = (S3Server::start(), Metadata::start());
    let env = vec![
        ("AWS_ENDPOINT_URL_S3", server.endpoint()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_EC2_METADATA_DISABLED", "false".into()),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.address.clone()),
        ("HOME", "/nonexistent".into()),
        ("AWS_CONFIG_FILE", "/nonexistent".into()),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent".into()),
    ];
    let v = Volume::bare_on(Some(Remote { url: format!("s3://{BUCKET}/data"), env }));
    keys_are_exchanged(&v, &server, |n| {
        *metadata.key.lock().unwrap_or_else(PoisonError::into_inner) = n;
    });
}

#[test]
fn a_session_token_that_was_replaced_in_the_file_is_picked_up() {
    // Guards against the new key with the token of the one before.
    needs_fuse!();
    let server = S3Server::start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("credentials");
    let env = vec![
        ("AWS_ENDPOINT_URL_S3", server.endpoint()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_CONFIG_FILE", "/nonexistent".into()),
        ("AWS_SHARED_CREDENTIALS_FILE", file.display().to_string()),
    ];
    let v = Volume::bare_on(Some(Remote { url: format!("s3://{BUCKET}/data"), env }));
    keys_are_exchanged(&v, &server, |n| {
        let (id, secret) = KEYS[n];
        let text = format!(
            "[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n\
             aws_session_token = session-of-{id}\n"
        );
        fs::write(&file, text).expect("writes");
    });
}

/// What stands before a server and speaks TLS for it, with one certificate at a time.
struct Front {
    port: u16,
    certificate: watch::Sender<&'static str>,
    _runtime: tokio::runtime::Runtime,
}

fn tls(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

fn acceptor(certificate: &str, key: &str) -> tokio_rustls::TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(tls(certificate)).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(tls(key)).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|b| b.with_no_client_auth().with_single_cert(vec![certificate], key))
        .expect("they belong together");
    Arc::new(config).into()
}

impl Front {
    fn start(server: SocketAddr) -> Front {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (certificate, now) = watch::channel("cert");
        let acceptors =
            [acceptor("cert.pem", "key.pem"), acceptor("expired.pem", "expired-key.pem")];
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptors, mut now) = (acceptors.clone(), now.clone());
                tokio::spawn(async move {
                    let which = *now.borrow_and_update();
                    let acceptor = &acceptors[usize::from(which == "expired")];
                    let Ok(mut near) = acceptor.accept(socket).await else { return };
                    let Ok(mut far) = tokio::net::TcpStream::connect(server).await else { return };
                    tokio::select! {
                        // Either end may hang up.
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = now.changed() => {}
                    }
                });
            }
        });
        Front { port, certificate, _runtime: runtime }
    }
}

#[test]
fn an_endpoint_whose_certificate_expires_says_so_and_heals_once_it_is_renewed() {
    // Guards against "check the address", or an hour of retries without a word, on the day when the
    // certificate of a private server runs out: of a mount that is there, and of a command.
    needs_fuse!();
    let server = S3Server::start();
    let front = Front::start(server.address());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bundle = dir.path().join("bundle.pem");
    let both = ["cert.pem", "expired.pem"].map(|name| fs::read(tls(name)).expect("reads"));
    fs::write(&bundle, both.concat()).expect("writes");
    let endpoint = format!("https://localhost:{}", front.port);
    let mut remote = Remote::s3(&endpoint, BUCKET, ACCESS_KEY, SECRET_KEY);
    remote.env.push(("AWS_CA_BUNDLE", bundle.display().to_string()));
    let v = Volume::bare_on(Some(remote));
    v.ok(&["init", &v.url(), "--passphrase-file", &v.text("passphrase")]);
    v.mount(&["--read-timeout", "5s"]);
    fs::write(v.at("before"), "x").expect("writes");
    v.ok(&["sync", &v.text("vault")]);
    front.certificate.send_replace("expired");
    fs::write(v.at("during"), "y").expect("takes it all the same");
    let status = || v.ok(&["status", &v.text("vault")]);
    wait_at_most(RECOVERY_MAX, "status says it", || status().contains("certificate has expired"));
    assert!(v.log().contains("certificate has expired"), "{}", v.log());
    let said = v.fails(&["key", "list", &v.url()], 4);
    assert!(said.contains("certificate has expired") && said.contains("timedatectl"), "{said}");
    let doctor = v.run(&["doctor", &v.url()]);
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(said.contains("certificate has expired") && said.contains("timedatectl"), "{said}");
    assert_eq!(doctor.status.code(), Some(4), "as every command says it");
    front.certificate.send_replace("cert");
    wait_at_most(RECOVERY_MAX, "it heals", || v.status("pending_bytes") == 0);
    v.umount();
}

#[test]
fn a_service_that_stops_says_how_far_it_is_and_asks_for_time_while_it_moves() {
    // Guards against systemd that kills a drain which moves, and a `systemctl status` that says nothing for
    // minutes.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    let flags = ["--upload-limit", "1M", "--commit-interval", "1h"];
    let mut service = Service::start(&v, &flags, &[], RECOVERY_MAX);
    assert!(service.said().starts_with("READY=1\nSTATUS=mounted on "));
    // `systemctl reload`: it is told when that has begun, and when it is done.
    service.signal(libc::SIGHUP);
    assert!(service.said().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(service.said(), "READY=1", "the status stays that of the mount");
    let bytes = 4 << 20;
    fs::write(v.at("large"), noise(7, bytes)).expect("writes");
    service.signal(libc::SIGTERM);
    let (mut messages, mut left) = (Vec::new(), Vec::new());
    service.socket.set_nonblocking(true).expect("sets");
    while service.daemon.0.try_wait().expect("own child").is_none() {
        match service.next() {
            Ok(message) => messages.push(message),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    for message in messages.iter().filter(|message| message.contains("STATUS=to upload: ")) {
        assert!(message.starts_with("EXTEND_TIMEOUT_USEC=120000000\n"), "{message}");
        let all = " of 4.00 MiB that are pending";
        let status = message.split_once("STATUS=to upload: ").expect("there").1;
        left.extend(status.strip_suffix(all).map(str::to_owned));
    }
    assert!(messages.iter().any(|m| m.contains("STOPPING=1")), "{messages:?}");
    left.dedup();
    assert!(left.len() >= 3, "it stands still: {messages:?}");
    assert_eq!(service.daemon.0.wait().expect("ends").code(), Some(0));
    assert!(!v.is_mounted());
    v.mount(&[]);
    assert!(fs::read(v.at("large")).expect("reads") == noise(7, bytes));
    v.umount();
}

#[test]
fn a_service_whose_store_is_away_says_so_while_it_stops() {
    // Guards against a stop of a quarter of an hour of which `systemctl status` says only that it uploads,
    // and against more time for what does not move.
    needs_fuse!();
    let server = S3Server::start();
    let v = Volume::create_on(e2e::remote(&server));
    let mut service = Service::start(&v, &["--commit-interval", "1h"], &[], RECOVERY_MAX);
    assert!(service.said().starts_with("READY=1"));
    server.faults().set_outage(Outage::Refused);
    fs::write(v.at("during"), noise(3, 5000)).expect("writes");
    service.signal(libc::SIGTERM);
    let away = loop {
        let message = service.said();
        if message.contains("the store cannot be reached") {
            break message;
        }
    };
    assert!(away.starts_with("STATUS=to upload: "), "{away}");
    service.signal(libc::SIGTERM);
    assert_eq!(service.daemon.0.wait().expect("ends").code(), Some(8));
}
