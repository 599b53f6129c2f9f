//! The controls that shell scripts steer the in-memory server with (`benches/s3mem.rs`).

use crate::support::s3_store;
use crate::support::s3server::{S3Server, serve_control};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sealfs::store::s3::SseMode;
use sealfs::store::{ErrorClass, class};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One request as curl would send it; status and body of the answer.
async fn curl(control: SocketAddr, method: &str, target: &str, body: &str) -> (u16, String) {
    let mut socket = tokio::net::TcpStream::connect(control).await.unwrap();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn every_control_does_what_its_table_says() {
    // Guards the tests written in shell: a control that does nothing makes them pass for the
    // wrong reason.
    let server = S3Server::start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = listener.local_addr().unwrap();
    let store = s3_store(&server, SseMode::Default).await;
    let path = Path::from("dir/object");
    let script = async {
        let ask = async |method: &str, target: &str, body: &str| {
            let (status, text) = curl(control, method, target, body).await;
            assert_eq!(status, 200, "{method} {target}: {text}");
            text
        };
        let read = async || store.get(&path).await?.bytes().await;
        ask("PUT", "/raw/dir/object", "hello").await;
        ask("PUT", "/raw/other", "world").await;
        assert_eq!(read().await.unwrap(), "hello");
        assert_eq!(ask("GET", "/raw/dir/object", "").await, "hello");
        assert_eq!(ask("GET", "/keys?prefix=dir/", "").await, "dir/object\n");
        ask("POST", "/flip/dir/object?at=0", "").await;
        assert_eq!(read().await.unwrap(), "iello");
        ask("POST", "/swap?a=dir/object&b=other", "").await;
        assert_eq!(read().await.unwrap(), "world");
        ask("POST", "/truncate/dir/object?to=3", "").await;
        assert_eq!(read().await.unwrap(), "wor");
        ask("POST", "/fault?kind=503&on=get&key=object&times=1", "").await;
        assert_eq!(class(&read().await.unwrap_err()), ErrorClass::Throttled);
        assert_eq!(read().await.unwrap(), "wor");
        ask("POST", "/fault?kind=403", "").await;
        assert_eq!(class(&read().await.unwrap_err()), ErrorClass::Auth);
        ask("POST", "/clear", "").await;
        ask("POST", "/behave?denies_all=true", "").await;
        assert_eq!(class(&read().await.unwrap_err()), ErrorClass::Auth);
        ask("POST", "/behave?denies_all=false&sse=aws:kms", "").await;
        store.put(&Path::from("new"), "x".into()).await.unwrap();
        assert!(store.sse_applied().unwrap().to_string().starts_with("aws:kms"));
        ask("POST", "/offline", "").await;
        assert_eq!(class(&until_error(&store, &path).await), ErrorClass::Transport);
        ask("POST", "/online", "").await;
        while read().await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        ask("DELETE", "/raw/dir/object", "").await;
        assert_eq!(class(&read().await.unwrap_err()), ErrorClass::NotFound);
        let counts = ask("GET", "/counts", "").await;
        assert!(counts.contains("\"put\":1,"), "{counts}");
        for wrong in ["/nonsense", "/fault?kind=nonsense", "/behave?nonsense=true", "/flip/x?at=0"]
        {
            assert_eq!(curl(control, "POST", wrong, "").await.0, 400, "{wrong}");
        }
    };
    tokio::select! {
        served = serve_control(listener, &server) => panic!("the controls ended: {served:?}"),
        done = tokio::time::timeout(std::time::Duration::from_secs(30), script) => done.unwrap(),
    }
}

/// Reads until the outage has begun, which closes connections from another thread.
async fn until_error(store: &dyn ObjectStore, path: &Path) -> object_store::Error {
    loop {
        if let Err(error) = store.get(path).await {
            return error;
        }
    }
}
