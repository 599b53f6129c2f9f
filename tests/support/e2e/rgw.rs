//! Somebody else's S3 server: a one-node Ceph with radosgw, started by `tests/support/ceph-rgw`.

use std::path::PathBuf;
use std::process::Command;

use crate::support::mounts::Remote;
use crate::support::{client, free_port};

const BUCKET: &str = "sealfs-test";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/ceph-rgw");
const PROGRAMS: [&str; 7] =
    ["ceph-mon", "ceph-osd", "ceph-mgr", "radosgw", "radosgw-admin", "ceph", "uuidgen"];

/// A running radosgw; stopped and removed when dropped.
pub struct Rgw {
    dir: PathBuf,
    _parent: tempfile::TempDir,
    endpoint: String,
}

/// Why it cannot run here, or `None`.
pub fn why_not() -> Option<String> {
    let found = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).exists())
    };
    let missing: Vec<_> = PROGRAMS.into_iter().filter(|p| !found(p)).collect();
    if !missing.is_empty() {
        return Some(format!("{} missing (scripts/test installs them)", missing.join(", ")));
    }
    (!super::is_root()).then(|| "Ceph's daemons need root here".into())
}

impl Rgw {
    /// Starts one on a free port, with an empty bucket.
    pub fn start() -> Rgw {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = parent.path().join("ceph");
        let (port, monitor) = (free_port(), free_port());
        let mut up = Command::new(SCRIPT);
        up.arg("up").arg(&dir).arg(port.to_string());
        let up = up.env("CEPH_MON_PORT", monitor.to_string()).output();
        let rgw = Rgw { dir, _parent: parent, endpoint: format!("http://127.0.0.1:{port}") };
        let up = up.expect("bash runs");
        let read = |name| std::fs::read_to_string(rgw.dir.join(name)).unwrap_or_default();
        let log = read("up.log") + &read("mon.a.log");
        let stderr = String::from_utf8_lossy(&up.stderr);
        assert!(up.status.success(), "ceph-rgw up: {stderr}{log}");
        rgw.make_bucket();
        rgw
    }

    fn make_bucket(&self) {
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let client = client(&self.endpoint, "AK", "SK");
        let made = runtime.block_on(client.create_bucket().bucket(BUCKET).send());
        made.unwrap_or_else(|e| panic!("creating a bucket: {e:?}"));
    }

    /// A prefix in its bucket.
    pub fn remote(&self) -> Remote {
        Remote::s3(&self.endpoint, BUCKET, "AK", "SK")
    }
}

impl Drop for Rgw {
    fn drop(&mut self) {
        let down = Command::new(SCRIPT).arg("down").arg(&self.dir).output();
        if !down.as_ref().is_ok_and(|o| o.status.success()) {
            eprintln!("radosgw in {} may still run: {down:?}", self.dir.display());
        }
    }
}
