//! STUB: the stack over the in-memory stub of fs/.
#![allow(missing_docs)]
mod control;
mod error;
mod options;
pub use control::{Connection, Control, Progress, Requests, Status, resident_bytes};
pub use error::{StackError, StackErrorKind};
pub use options::{InitOptions, MountOptions, StoreOptions};

use std::sync::Arc;

use crate::base::VolumeId;
use crate::fs::Fs;

pub struct Mounted {
    pub fs: Arc<Fs>,
    pub control: Arc<dyn Control>,
}
impl Mounted {
    pub async fn shutdown(self) -> Result<(), StackError> {
        Ok(())
    }
}
pub async fn init(o: InitOptions) -> Result<VolumeId, StackError> {
    if let crate::store::Location::File(d) = &o.store.location {
        std::fs::write(d.join("keyring"), b"x").unwrap();
    }
    Ok(VolumeId([7; 16]))
}
pub async fn mount(o: MountOptions) -> Result<Mounted, StackError> {
    if let crate::seal::Secret::Passphrase(p) = &o.secret {
        if &p[..] == b"wrong" {
            return Err(StackError::new(StackErrorKind::Secret, "wrong passphrase").hint("try"));
        }
    }
    struct C(MountOptions, std::time::Instant);
    impl Control for C {
        fn status(&self) -> Status {
            Status {
                volume_id: "07".repeat(16),
                store: self.0.store.location.to_string(),
                mount_point: self.0.mount_point.display().to_string(),
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").into(),
                uptime_secs: self.1.elapsed().as_secs(),
                connection: Connection::Online,
                progress: self.progress(),
                oldest_pending_secs: None,
                upload_bytes_per_sec: 0,
                journal_bytes: 0,
                journal_bytes_max: self.0.journal_bytes_max,
                cache_bytes: 0,
                cache_bytes_max: self.0.cache_bytes_max,
                cache_hit_ratio: None,
                requests: Requests::default(),
                sse: "default".into(),
                sse_applied: None,
                resident_bytes: resident_bytes(),
                warnings: vec![],
            }
        }
        fn progress(&self) -> Progress {
            Progress::default()
        }
        fn sync(&self) -> futures::future::BoxFuture<'static, Result<(), String>> {
            Box::pin(async { Ok(()) })
        }
    }
    Ok(Mounted { fs: Fs::stub(), control: Arc::new(C(o, std::time::Instant::now())) })
}
