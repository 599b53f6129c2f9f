//! An S3 server in memory, in this process: fast enough to benchmark against, honest about
//! conditions and server-side encryption by default, and able to fail and lie on request.
//!
//! It runs on its own threads, so that it answers whatever the runtime of a test is doing.
//! Used by tests (`mod support;`), and as a separate process by `benches/s3mem.rs`.

// Each test file that includes this module uses another part of it.
#![allow(dead_code, unused_imports)]

mod control;
mod faults;
mod memory;
mod net;
mod service;
mod settings;
mod sse;

pub use control::serve_control;
pub use faults::{Fault, FaultKind, Faults, Outage, RequestKind};
pub use memory::{Counts, Labels};
pub use net::bind_free;
pub use sse::{Behaviour, SseConduct, StoredSse};

use bytes::Bytes;
use memory::Memory;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// The access key id that requests must be signed with.
pub const ACCESS_KEY: &str = "AKIDSEALFSTEST";
/// Its secret.
pub const SECRET_KEY: &str = "sealfs-test-secret-key";
/// Another key that is as good; [`Behaviour::revoked`] tells them apart.
pub const OTHER_ACCESS_KEY: &str = "AKIDSEALFSOTHER";
/// Its secret.
pub const OTHER_SECRET_KEY: &str = "sealfs-other-secret-key";
/// The bucket every server starts with.
pub const BUCKET: &str = "test";
/// The region requests are signed for; any other is accepted too.
pub const REGION: &str = "us-east-1";

/// What to start.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Port on 127.0.0.1; 0 picks a free one.
    pub port: u16,
    /// Buckets that exist; the first is the one raw access means.
    pub buckets: Vec<String>,
    /// Seed of the dice that faults with a rate roll.
    pub seed: u64,
    /// Threads that serve.
    pub threads: usize,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig { port: 0, buckets: vec![BUCKET.into()], seed: 1, threads: 2 }
    }
}

/// A running server; dropped, it stops and forgets everything.
pub struct S3Server {
    memory: Arc<Memory>,
    faults: Arc<Faults>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts one on a free port of 127.0.0.1 with the bucket [`BUCKET`].
    pub fn start() -> S3Server {
        S3Server::start_with(ServerConfig::default()).expect("127.0.0.1 has a free port")
    }

    /// Starts one as configured. Errors: the port cannot be bound.
    pub fn start_with(config: ServerConfig) -> std::io::Result<S3Server> {
        let listener = match config.port {
            0 => bind_free()?,
            port => std::net::TcpListener::bind(("127.0.0.1", port))?,
        };
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let memory = Arc::new(Memory::new(&config.buckets));
        let faults = Arc::new(Faults::new(config.seed));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.threads)
            .thread_name("s3server")
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = net::serve(listener, memory.clone(), faults.clone());
        let thread = std::thread::Builder::new().name("s3server-main".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serving => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(S3Server { memory, faults, address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Faults to inject.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Changes how honest the server is; holds for requests that arrive afterwards.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.memory.behaviour.write());
    }

    /// Puts an object of the first bucket with metadata and tags, past every check.
    pub fn put_labelled(
        &self,
        key: &str,
        bytes: impl Into<Bytes>,
        metadata: &[(&str, &str)],
        tags: Option<&str>,
    ) {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let metadata = metadata.iter().map(pair).collect();
        let labels = Labels { metadata, ..Labels::default() };
        self.memory.put_labelled(key, bytes.into(), labels, tags.map(str::to_owned));
    }

    /// What lies beside the bytes of an object of the first bucket.
    pub fn labels(&self, key: &str) -> Option<Labels> {
        self.memory.raw().get(key).map(|object| object.labels.clone())
    }

    /// What was asked of the server so far.
    pub fn counts(&self) -> Counts {
        self.memory.counters.snapshot()
    }

    /// Every key of the first bucket, in order.
    pub fn keys(&self) -> Vec<String> {
        self.memory.raw().keys()
    }

    /// The bytes of an object of the first bucket, past every check.
    pub fn get_raw(&self, key: &str) -> Option<Bytes> {
        self.memory.raw().get(key).map(|object| object.bytes.clone())
    }

    /// The tags of an object of the first bucket, as the header carried them.
    pub fn tags(&self, key: &str) -> Option<String> {
        self.memory.raw().get(key).and_then(|object| object.tags.clone())
    }

    /// The rule of the bucket's default encryption, as it was put last.
    pub fn bucket_rule(&self) -> Option<String> {
        self.memory.behaviour.read().bucket_rule.clone()
    }

    /// How an object of the first bucket was stored.
    pub fn stored_sse(&self, key: &str) -> Option<StoredSse> {
        self.memory.raw().get(key).map(|object| object.sse.clone())
    }

    /// The storage class of an object of the first bucket, `None` for the standard one.
    pub fn storage_class(&self, key: &str) -> Option<String> {
        self.memory.raw().get(key).and_then(|object| object.labels.storage_class.clone())
    }

    /// Replaces or creates an object of the first bucket, past every check; it keeps its
    /// encryption headers if it had any.
    pub fn put_raw(&self, key: &str, bytes: impl Into<Bytes>) {
        self.memory.put_raw(key, bytes.into());
    }

    /// Removes an object of the first bucket; whether it was there.
    pub fn remove_raw(&self, key: &str) -> bool {
        self.memory.raw().remove(key)
    }

    /// Flips the lowest bit of one byte of an object; whether there is such a byte.
    pub fn flip_raw(&self, key: &str, at: usize) -> bool {
        self.memory.flip_raw(key, at)
    }

    /// Uploads that were started and neither finished nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.memory.raw().open_uploads()
    }

    /// The parts of those.
    pub fn open_parts(&self) -> usize {
        self.memory.raw().uploads.lock().values().map(|upload| upload.parts.len()).sum()
    }

    /// Begins an upload of the first bucket, as some other client would.
    pub fn begin_upload(&self, key: &str) {
        let upload = memory::Upload {
            key: key.to_owned(),
            sse: StoredSse::default(),
            tags: None,
            labels: Labels::default(),
            parts: Default::default(),
        };
        let id = format!("upload-{}", self.memory.fresh());
        self.memory.raw().uploads.lock().insert(id, upload);
    }

    /// How the payloads of requests so far were signed: `sha256`, or the word that stood for it.
    pub fn payload_hashes_seen(&self) -> std::collections::BTreeSet<String> {
        self.memory.payload_hashes.lock().clone()
    }

    pub(crate) fn memory(&self) -> Arc<Memory> {
        self.memory.clone()
    }

    pub(crate) fn shared_faults(&self) -> Arc<Faults> {
        self.faults.clone()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The receiver is gone only if the server already ended.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
