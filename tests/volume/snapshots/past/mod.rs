//! Looking into snapshots, and getting things back out of them.

mod beside;
mod compared;
mod costs;
mod crashes;
mod histories;
mod restored;
mod seen;

use std::sync::Arc;
use std::time::Duration;

use sealfs::base::Ino;
use sealfs::fs::Fs;
use sealfs::fs::restore::{NoKernel, RestoreError, RestoreOrder, RestoreProgress, Restored};
use sealfs::stack::{MountOptions, Mounted};

use super::{create, named};
use crate::volume::Bench;

/// Commits at once, and takes over from whoever was there before.
fn quick(o: &mut MountOptions) {
    o.commit_interval = Duration::from_millis(20);
    o.takeover = true;
}

/// Another machine of the same volume.
fn elsewhere(bench: &Bench) -> Bench {
    Bench { store: bench.store.clone(), local: tempfile::tempdir().expect("a directory") }
}

fn path(text: &str) -> Vec<Vec<u8>> {
    text.split('/').filter(|name| !name.is_empty()).map(|name| name.into()).collect()
}

fn all_of(snapshot: &str) -> RestoreOrder {
    RestoreOrder { snapshot: snapshot.into(), ..RestoreOrder::default() }
}

async fn restore(m: &Mounted, order: &RestoreOrder) -> Result<Restored, RestoreError> {
    let progress = RestoreProgress::default();
    m.tree.restore(order, &progress, Arc::new(NoKernel)).await
}

/// Everything below a directory in lines, but for numbers and change times.
async fn described(fs: &Arc<Fs>, dir: Ino) -> Vec<String> {
    let (mut lines, mut todo) = (Vec::new(), vec![(dir, String::new())]);
    let mut first_name = std::collections::HashMap::new();
    while let Some((dir, above)) = todo.pop() {
        let page = fs.readdir(dir, 0, 10_000).await.expect("lists");
        let mut names: Vec<_> = page.into_iter().filter(|e| e.cookie > 2).collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in names {
            let at = format!("{above}/{}", String::from_utf8_lossy(&entry.name));
            let attr = fs.getattr(entry.ino).await.expect("stats");
            let mut line = format!(
                "{at} {:?} {:o} {}:{} {} {} {:?} {:?} {:?}",
                attr.kind,
                attr.perm,
                attr.uid,
                attr.gid,
                attr.nlink,
                attr.rdev,
                attr.mtime,
                attr.atime,
                attr.btime,
            );
            if attr.nlink > 1 && entry.kind != sealfs::fs::Kind::Dir {
                let first = first_name.entry(entry.ino).or_insert_with(|| at.clone());
                line += &format!(" as {first}");
            }
            let mut xattrs = fs.listxattr(crate::volume::CALLER, entry.ino).await.expect("lists");
            xattrs.sort();
            for name in xattrs {
                let value = fs.getxattr(entry.ino, name.clone()).await.expect("there");
                line += &format!(" {}={value:?}", String::from_utf8_lossy(&name));
            }
            match entry.kind {
                sealfs::fs::Kind::Dir => todo.push((entry.ino, at)),
                sealfs::fs::Kind::File => {
                    let bytes = fs.read(entry.ino, 0, attr.size as u32).await.expect("reads");
                    let hash = blake(&bytes);
                    line += &format!(" {} {} {hash:x}", attr.size, attr.blocks);
                }
                sealfs::fs::Kind::Symlink => {
                    line += &format!(" {:?}", fs.readlink(entry.ino).await.expect("reads"));
                }
                _ => {}
            }
            lines.push(line);
        }
    }
    lines.sort();
    lines
}

/// Tells contents apart.
fn blake(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
