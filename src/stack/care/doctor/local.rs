//! This machine: its disks and its kernel.

use std::io::Write;
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use super::{Report, TRIAL_BYTES};

/// Slower than this, `fsync` is felt.
const FSYNC_MAX: Duration = Duration::from_millis(50);

/// How fast a local directory takes data and syncs it.
pub(super) fn disk(report: &mut Report, dir: &FilePath) {
    let shown = dir.display();
    let measured = || -> std::io::Result<(Duration, Duration)> {
        let mut file = tempfile::tempfile_in(dir)?;
        let begun = Instant::now();
        file.write_all(&vec![0x5a; TRIAL_BYTES])?;
        file.sync_data()?;
        let bulk = begun.elapsed();
        let begun = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        Ok((bulk, begun.elapsed()))
    };
    match measured() {
        Ok((bulk, sync)) => {
            let rate = TRIAL_BYTES as f64 / bulk.as_secs_f64().max(1e-6) / 1e6;
            let ms = sync.as_secs_f64() * 1e3;
            let text = format!("{shown}: {rate:.0} MB/s with sync, {ms:.1} ms for a small one");
            match sync > FSYNC_MAX {
                true => report.warning("local disk", text, "use --state-dir on a faster disk"),
                false => report.ok("local disk", text),
            }
        }
        Err(e) => report.error(
            "local disk",
            format!("{shown}: {e}"),
            format!("mkdir -p {shown}, or choose another: --state-dir, --cache-dir"),
        ),
    }
}

pub(super) fn fuse(report: &mut Report) {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let root = crate::base::is_root();
    let on_path = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).exists())
    };
    match device {
        Err(e) => {
            report.error("fuse", format!("/dev/fuse: {e}"), "apt install fuse3; modprobe fuse")
        }
        Ok(_) if root || on_path("fusermount3") => report.ok("fuse", "/dev/fuse can be used"),
        Ok(_) => report.error("fuse", "fusermount3 is missing", "apt install fuse3"),
    }
}
