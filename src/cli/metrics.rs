//! What a mount counts as text for Prometheus: names, units and types of the metrics.
//!
//! The names are an interface: dashboards and alerts use them (`packaging/`), so that they are added,
//! never renamed. No label names a file, a directory or a bucket: what is scraped is stored
//! elsewhere, in clear.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::base::{Spread, histogram};
use crate::stack::Connection;

use super::protocol::Sample;

/// How the text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, which Prometheus asks for.
    OpenMetrics,
    /// The older text format, which everything reads.
    Text,
}

impl Format {
    /// What somebody wants whose `Accept` header is this.
    pub fn accepted(accept: &str) -> Format {
        match accept.contains("application/openmetrics-text") {
            true => Format::OpenMetrics,
            false => Format::Text,
        }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// The metrics of a mount at one moment.
pub fn text(sample: Sample, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(sample)));
    let mut out = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut out, &registry)?,
        Format::Text => prometheus_text::encode(&mut out, &registry)?,
    }
    Ok(out)
}

/// Buckets of a [`Spread`] that become one of the metric: each bucket is a time series.
const BUCKETS_JOINED: usize = 2;

type Written = Result<(), fmt::Error>;
type Label<'a> = [(&'a str, &'a str)];

#[derive(Debug)]
struct Metrics(Sample);

/// Writes one metric after the other.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn gauge(&mut self, name: &str, unit: Option<Unit>, value: f64, help: &str) -> Written {
        let unit = unit.as_ref();
        self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, unit: Option<Unit>, value: u64, help: &str) -> Written {
        let mut metric =
            self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        count(&mut metric, value)
    }

    /// One counter for each value of a label.
    fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (Vec<(&'a str, &'a str)>, u64)>,
    ) -> Written {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            let labels: &Label<'_> = &labels;
            count(&mut metric.encode_family(&labels)?, value)?;
        }
        Ok(())
    }

    /// One histogram for each value of `label`.
    fn times<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        times: impl Iterator<Item = (&'a str, &'a Spread)>,
    ) -> Written {
        let seconds = Some(&Unit::Seconds);
        let mut metric = self.0.encode_descriptor(name, help, seconds, MetricType::Histogram)?;
        for (value, spread) in times {
            let labels = [(label, value)];
            let mut family = metric.encode_family(&labels)?;
            let buckets = buckets(spread);
            family.encode_histogram::<[(&str, &str); 0]>(
                spread.sum_secs,
                spread.count(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

fn count(metric: &mut MetricEncoder<'_>, value: u64) -> Written {
    metric.encode_counter::<[(&str, &str); 0], u64, f64>(&value, None)
}

/// Upper bounds in seconds and how many lie in each; the last has no bound.
fn buckets(spread: &Spread) -> Vec<(f64, u64)> {
    let bounded = spread.counts.len().min(histogram::BUCKETS);
    let (counts, beyond) = spread.counts.split_at(bounded);
    let mut buckets: Vec<(f64, u64)> = counts
        .chunks(BUCKETS_JOINED)
        .enumerate()
        .map(|(n, joined)| {
            let last = n * BUCKETS_JOINED + joined.len() - 1;
            (histogram::bound(last).as_secs_f64(), joined.iter().sum())
        })
        .collect();
    buckets.push((f64::INFINITY, beyond.iter().sum()));
    buckets
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Written {
        let mut out = Writer(encoder);
        self.mount(&mut out)?;
        self.usage(&mut out)?;
        self.pending(&mut out)?;
        self.local(&mut out)?;
        self.store(&mut out)?;
        self.kernel(&mut out)
    }
}

impl Metrics {
    /// What it is and how it is.
    fn mount(&self, out: &mut Writer<'_>) -> Written {
        let numbers = &self.0.numbers;
        let status = &numbers.status;
        let (role, online) = match status.connection {
            Connection::Online => ("writer", true),
            Connection::Offline { .. } => ("writer", false),
            Connection::Fenced => ("fenced", true),
            Connection::ReadOnly => ("follower", true),
        };
        let labels = [
            ("volume", status.volume_id.as_str()),
            ("version", status.version.as_str()),
            ("role", role),
        ];
        let help = "The volume, the version of sealfs, and whether the mount writes, follows, or \
                    was overtaken by another writer";
        out.0
            .encode_descriptor("sealfs_mount", help, None, MetricType::Info)?
            .encode_info(&labels)?;
        let help = "Whether the store answers; 0 while changes wait in the local journal";
        out.gauge("sealfs_online", None, f64::from(online), help)?;
        let help = "Time since the mount started";
        out.gauge("sealfs_uptime", Some(Unit::Seconds), status.uptime_secs as f64, help)?;
        if let Some(last) = &status.last_transition {
            let help = "When the mount came by its role, in seconds since 1970";
            out.gauge("sealfs_role_since", Some(Unit::Seconds), last.unix_secs as f64, help)?;
        }
        let help = "Things that need a person; sealfs status says which";
        out.gauge("sealfs_warnings", None, status.warnings.len() as f64, help)?;
        let help = "Objects in the bucket that are known to be damaged or missing";
        out.gauge("sealfs_damaged_objects", None, numbers.damaged_objects as f64, help)?;
        let help = "The key epoch that new objects are sealed in";
        out.gauge("sealfs_key_epoch", None, numbers.key_epoch.into(), help)?;
        if let Some(age) = numbers.lease_age_secs {
            let help = "Time since this mount last confirmed that it alone writes the volume";
            out.gauge("sealfs_lease_age", Some(Unit::Seconds), age, help)?;
        }
        let help = "Resident memory of the mount process";
        out.gauge("sealfs_resident", Some(Unit::Bytes), status.resident_bytes as f64, help)
    }

    /// How much is in use of what there may be.
    fn usage(&self, out: &mut Writer<'_>) -> Written {
        let status = &self.0.numbers.status;
        let help = "Bytes in the blocks of files";
        out.gauge("sealfs_used", Some(Unit::Bytes), status.used_bytes as f64, help)?;
        let help = "Inodes in use";
        out.gauge("sealfs_used_inodes", None, status.used_inodes as f64, help)?;
        if let Some(most) = status.quota_bytes {
            let help = "The quota of bytes";
            out.gauge("sealfs_quota", Some(Unit::Bytes), most as f64, help)?;
        }
        if let Some(most) = status.quota_inodes {
            let help = "The quota of inodes";
            out.gauge("sealfs_quota_inodes", None, most as f64, help)?;
        }
        Ok(())
    }

    /// How far the bucket is behind.
    fn pending(&self, out: &mut Writer<'_>) -> Written {
        let status = &self.0.numbers.status;
        let progress = &status.progress;
        let help = "Changes that are only in the local journal";
        out.gauge("sealfs_pending", Some(Unit::Bytes), progress.pending_bytes as f64, help)?;
        let help = "Files with changes that are only in the local journal";
        out.gauge("sealfs_pending_files", None, progress.pending_files as f64, help)?;
        let help = "Age of the oldest change that is not in the bucket; 0 when all is";
        let age = status.oldest_pending_secs.unwrap_or(0.0);
        out.gauge("sealfs_pending_age", Some(Unit::Seconds), age, help)?;
        let help = "Contents of files that were committed to the bucket";
        out.counter("sealfs_committed", Some(Unit::Bytes), progress.committed_bytes, help)?;
        let help = "Commits in the life of the volume, as far as this mount knows";
        out.gauge("sealfs_commit_sequence", None, status.commit_sequence as f64, help)?;
        let help = "Live contents moved out of segments that were mostly dead, or tiny";
        out.counter("sealfs_cleaned", Some(Unit::Bytes), status.cleaned_bytes, help)
    }

    /// Journal and caches.
    fn local(&self, out: &mut Writer<'_>) -> Written {
        let numbers = &self.0.numbers;
        let (status, requests) = (&numbers.status, &numbers.requests);
        let bytes = || Some(Unit::Bytes);
        let help = "Disk space that the journal takes";
        out.gauge("sealfs_journal", bytes(), status.journal_bytes as f64, help)?;
        let help = "Most that the journal may take; then writers wait";
        out.gauge("sealfs_journal_limit", bytes(), status.journal_bytes_max as f64, help)?;
        if let Some(free) = status.journal_disk_free_bytes {
            let help = "Free space on the disk of the journal";
            out.gauge("sealfs_journal_disk_free", bytes(), free as f64, help)?;
        }
        let help = "Disk space that the ciphertext cache takes";
        out.gauge("sealfs_cache", bytes(), status.cache_bytes as f64, help)?;
        let help = "Most that the ciphertext cache may take";
        out.gauge("sealfs_cache_limit", bytes(), status.cache_bytes_max as f64, help)?;
        let help = "Disk space of the cache that is kept for what is pinned";
        out.gauge("sealfs_pinned", bytes(), status.pinned.kept_bytes as f64, help)?;
        let help = "Of that, what is not there yet";
        out.gauge("sealfs_pinned_missing", bytes(), status.pinned.missing_bytes as f64, help)?;
        let help = "Reads by the cache that was asked, and whether it had everything";
        let reads = [
            ("memory", "hit", numbers.memory_hits),
            ("memory", "miss", numbers.memory_misses),
            ("disk", "hit", requests.cache_hits),
            ("disk", "miss", requests.cache_misses),
        ];
        let reads = reads
            .into_iter()
            .map(|(cache, result, n)| (vec![("cache", cache), ("result", result)], n));
        out.counters("sealfs_cache_reads", help, reads)?;
        let help = "Ciphertext answered from the disk cache";
        out.counter("sealfs_cache_hit", bytes(), requests.cache_hit_bytes, help)?;
        let help = "Ciphertext fetched because the disk cache did not have it";
        out.counter("sealfs_cache_miss", bytes(), requests.cache_miss_bytes, help)?;
        let help = "Ciphertext not kept because the disk did not keep up";
        out.counter("sealfs_cache_skipped", bytes(), requests.cache_skipped_bytes, help)?;
        let help = "Entries of the disk cache that were dropped because they were torn or corrupt";
        out.counter("sealfs_cache_corrupt", None, requests.cache_corrupt, help)
    }

    /// Requests to the bucket.
    fn store(&self, out: &mut Writer<'_>) -> Written {
        let requests = &self.0.numbers.requests;
        let help = "Time until a request to the store was answered or given up, by kind; each \
                    attempt counts, and its body";
        let times = self.0.numbers.request_times.iter();
        let times = times.map(|(kind, spread)| (kind.as_str(), spread));
        out.times("sealfs_store_request_duration", help, "kind", times)?;
        let help = "Attempts that failed";
        out.counter("sealfs_store_request_errors", None, requests.errors, help)?;
        let help = "Attempts that were repeated";
        out.counter("sealfs_store_request_retries", None, requests.retries, help)?;
        let help = "Objects asked to be deleted";
        out.counter("sealfs_store_deleted_objects", None, requests.delete, help)?;
        let help = "Object bytes received";
        out.counter("sealfs_store_received", Some(Unit::Bytes), requests.bytes_down, help)?;
        let help = "Object bytes that the store has taken";
        out.counter("sealfs_store_sent", Some(Unit::Bytes), requests.bytes_up, help)
    }

    /// What the kernel asked for.
    fn kernel(&self, out: &mut Writer<'_>) -> Written {
        let fuse = &self.0.fuse;
        let help = "Time from a request of the kernel to its answer, by operation; what the \
                    kernel answers from its own caches is not asked for";
        let times = fuse.operations.iter().map(|o| (o.name.as_str(), &o.times));
        out.times("sealfs_fuse_operation_duration", help, "operation", times)?;
        let help = "Operations that were answered with an input/output error";
        let failed = fuse.operations.iter();
        let failed = failed.map(|o| (vec![("operation", o.name.as_str())], o.failed));
        out.counters("sealfs_fuse_operation_failures", help, failed)?;
        let help = "Contents of files that the kernel has read";
        out.counter("sealfs_fuse_read", Some(Unit::Bytes), fuse.read_bytes, help)?;
        let help = "Contents of files that the kernel has written";
        out.counter("sealfs_fuse_written", Some(Unit::Bytes), fuse.written_bytes, help)
    }
}
