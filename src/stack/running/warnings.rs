//! What is wrong with a mount, in words, each with what to do about it.

use super::control::{Connection, Control};
use super::disks::journal_warning;
use super::status::OpenVolume;
use crate::base::counted;
use crate::fs::Quota;
use crate::meta::Stats;
use crate::stack::records::state::Remembered;
use crate::store::{Refusals, SegmentStore};

/// What the store refuses, in words.
fn refused(refusals: &Refusals, store: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(bytes) = refusals.too_large {
        warnings.push(format!(
            "uploads of {bytes} bytes are too large for the store or a proxy before it (413), so \
             data go in smaller pieces while that works; raise the limit of the proxy \
             (client_max_body_size of nginx) to 17 MiB or more"
        ));
    }
    if let Some(why) = &refusals.upload {
        warnings.push(format!(
            "the store refuses uploads, which waiting does not mend: {why}; see why: sealfs doctor {store}"
        ));
    }
    if let Some((count, why)) = &refusals.deletes {
        warnings.push(format!(
            "{count} objects cannot be deleted, so the bucket grows: {why}; grant s3:DeleteObject (see \
             sealfs doctor {store} --iam-policy), or lift what holds them: an object lock, MFA \
             delete, a policy of the bucket"
        ));
    }
    warnings
}

/// That changes were lost with the local journal, once that was accepted.
fn lost(remembered: &Remembered) -> Option<String> {
    let records = remembered.lost_records;
    let days = crate::base::unix_secs().saturating_sub(remembered.lost_secs) / (24 * 3600);
    let when = match days {
        0 => "today".into(),
        days => format!("{} ago", counted(days, "day")),
    };
    (records > 0).then(|| {
        format!(
            "at least {} that had been on stable storage here {} lost with the local journal, which was \
             accepted {when}; this is shown until a mount is told --accept-rollback=journal once more",
            counted(records, "change"),
            if records == 1 { "was" } else { "were" },
        )
    })
}

/// That nothing more fits.
fn quota_note(quota: &Quota, used: Stats) -> Option<String> {
    let is_full = |limit: u64, used: u64| limit > 0 && used >= limit;
    (is_full(quota.bytes, used.bytes) || is_full(quota.inodes, used.inodes)).then(|| {
        "the volume is at its quota, so what would take more is refused; delete something, or raise it: \
         sealfs quota DIR SIZE"
            .into()
    })
}

impl OpenVolume {
    /// That sealing everything again has not ended.
    pub(super) fn rekey_note(&self) -> Option<String> {
        let epoch = self.sse.rekey()?;
        let store = &self.store;
        Some(format!(
            "everything is being sealed again in key epoch {epoch}; if that was cut off, this goes \
             on with it: sealfs key rekey {store}"
        ))
    }

    /// That a name of the volume hides the snapshots.
    pub(super) fn hidden_note(&self) -> Option<String> {
        let at = self.mount_point.join(".snapshots");
        self.tree.is_hidden_by_volume().then(|| {
            format!(
                "{0} is a name that the volume itself has, and is shown in place of its snapshots: move \
                 it (mv {0} {0}.mine), or mount one by itself (sealfs mount --snapshot NAME {1} DIR)",
                at.display(),
                self.store
            )
        })
    }

    /// What whoever looks after the mount has to know, each with what to do about it.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.sse.notes();
        warnings.extend(self.key_watch.note());
        warnings.extend(self.view.kv().refused().map(|why| match &self.pinned {
            Some(pinned) if pinned.is_deleted() => format!("{why}: unmount"),
            _ => format!("{why}; nothing of it is shown: unmount, and find out who put it there"),
        }));
        let mut damaged = self.sealed.damaged();
        damaged.extend(self.segments.malformed().into_iter().map(SegmentStore::name));
        if !damaged.is_empty() {
            let names: Vec<_> = damaged.iter().take(5).map(|p| p.to_string()).collect();
            warnings.push(format!(
                "{} in the bucket {} damaged ({}{}); nothing is deleted meanwhile",
                counted(damaged.len() as u64, "object"),
                if damaged.len() == 1 { "is" } else { "are" },
                names.join(", "),
                if damaged.len() > 5 { ", …" } else { "" }
            ));
        }
        warnings.extend(quota_note(&self.fs.quota(), self.fs.used()));
        let writer = self.writer();
        let dir = self.plan.journal_dir();
        let journal = writer.as_ref().map(|writer| &*writer.journal);
        warnings.extend(journal.and_then(|j| journal_warning(&dir, j, &self.mount_point)));
        if let Some(why) = self.state.failed() {
            warnings.push(format!(
                "what this machine remembers of the volume cannot be written, so that an old copy \
                 of the bucket may go unnoticed: {why}; make the directory writable, or free space"
            ));
        }
        if let Some(why) = self.scheduled.now().failed.filter(|_| writer.is_some()) {
            warnings.push(format!("a snapshot of the schedule failed, and is tried again: {why}"));
        }
        let cache_max = self.layers.cache_bytes_max().unwrap_or(0);
        warnings.extend(self.pins.warning(cache_max));
        warnings.extend(lost(&self.remembered.lock()));
        warnings.extend(refused(&self.layers.retry.refusals(), &self.store));
        if let Some(aside) = writer.as_ref().and_then(|writer| writer.set_aside.as_ref()) {
            let aside = aside.display();
            warnings.push(format!(
                "a journal with changes that another writer has overtaken lies at {aside}; to \
                 get them as files: sealfs recover {aside} OUT --store {}",
                self.store
            ));
        }
        let fenced = matches!(self.connection(), Connection::Fenced);
        if fenced && self.progress().pending_bytes > 0 {
            warnings.push(format!(
                "what is pending will never be sent, because another mount has taken over; to \
                 get it as files: sealfs recover {} OUT --store {}",
                dir.display(),
                self.store
            ));
        }
        warnings
    }
}
