//! The audit out of an S3 Inventory report: no object is touched, only listed.
//!
//! Source: S3 User Guide, "Amazon S3 Inventory": CSV files without a header line, gzipped, whose
//! columns the `fileSchema` of the report's manifest names; keys are percent-encoded.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::TryStreamExt;
use object_store::ObjectStore;

use super::audit::{AuditReport, Walked, is_of_a_volume};
use crate::stack::opening::unmounted::Opened;
use crate::stack::records::encryption;
use crate::stack::{Key, StackError, StackErrorKind, StoreOptions};
use crate::store::location::percent_decode;
use crate::store::s3::{SseKind, SseMode};
use crate::store::shown_key;

/// The columns that are needed.
const KEY: &str = "Key";
const SIZE: &str = "Size";
const STATUS: &str = "EncryptionStatus";

/// What to audit, and by which report.
pub struct InventoryOptions {
    /// The store and the mode, as for an audit.
    pub store: StoreOptions,
    /// Opens the volume, for the mode it remembers.
    pub key: Option<Key>,
    /// The report, CSV or gzipped CSV.
    pub file: PathBuf,
    /// Its columns, separated by commas; else those of `manifest.json` beside it.
    pub schema: Option<String>,
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    key: String,
    bytes: u64,
    status: String,
}

/// Audits a volume by an inventory report, and names what either the report or the bucket lacks.
///
/// # Errors
/// The report cannot be read or understood; the bucket cannot be listed.
pub async fn audit(
    options: &InventoryOptions,
    walked: Arc<Walked>,
) -> Result<AuditReport, StackError> {
    let opened = Opened::open(&options.store, options.key.as_ref()).await?;
    let s3 = opened.s3(&options.store)?;
    let mode = encryption::choose(&opened.loaded.config, &options.store.sse)?.mode;
    opened.layers.attended.goes_on();
    let (file, schema) = (options.file.clone(), options.schema.clone());
    let counted = walked.clone();
    let reading = move || read(&file, schema.as_deref(), &counted);
    let lines = tokio::task::spawn_blocking(reading).await;
    let lines = lines.map_err(|e| refused(&options.file, e, "run it again"))??;
    let mut sizes = HashMap::new();
    let mut listed = opened.layers.retry.list(None);
    let listing = |e| StackError::store(format!("listing {}", options.store.location), e);
    while let Some(meta) = listed.try_next().await.map_err(listing)? {
        sizes.insert(shown_key(&meta.location), meta.size);
    }
    let mut report = compare(&lines, s3.prefix(), &mode, sizes);
    report.store = options.store.location.to_string();
    Ok(report)
}

/// The report, given what the bucket lists now.
fn compare(
    lines: &[Line],
    prefix: &str,
    mode: &SseMode,
    mut listed: HashMap<String, u64>,
) -> AuditReport {
    let mut report = AuditReport {
        requested: mode.to_string(),
        sealing_checked: "names and sizes in the inventory",
        ..AuditReport::default()
    };
    listed.values().for_each(|bytes| report.listed.add(*bytes));
    for line in lines {
        let Some(name) = line.key.strip_prefix(prefix).filter(|name| !name.is_empty()) else {
            continue;
        };
        // Deleted, or replaced, since the inventory was taken: it says nothing any more.
        match listed.remove(name) {
            Some(bytes) if bytes == line.bytes => {}
            _ => continue,
        }
        report.examined.add(line.bytes);
        let found = mode_of(&line.status);
        report.count(found, None, line.bytes);
        if found != "none" {
            report.server_side.add(line.bytes);
        }
        match is_of_a_volume(name, line.bytes) {
            true => report.client_side.add(line.bytes),
            false => report.except(name, line.bytes, "it is no object of a volume".into()),
        }
        match mode.name() == found || matches!(mode, SseMode::Default) {
            true => report.as_requested.add(line.bytes),
            false => report.except(name, line.bytes, format!("the inventory says {}", line.status)),
        }
    }
    // What is newer than the report was not examined; it is not wrong, but it is not shown right.
    report.sampled = !listed.is_empty();
    report
}

/// The mode that an `EncryptionStatus` stands for.
fn mode_of(status: &str) -> &'static str {
    match status {
        "SSE-S3" => SseKind::S3.name(),
        "SSE-KMS" => SseKind::Kms.name(),
        "DSSE-KMS" => SseKind::Dsse.name(),
        "SSE-C" => SseKind::Customer.name(),
        _ => "none",
    }
}

fn refused(file: &FilePath, problem: impl std::fmt::Display, hint: &str) -> StackError {
    StackError::Encryption {
        kind: StackErrorKind::Other,
        message: format!("inventory {}: {problem}", file.display()),
        hint: hint.into(),
    }
}

fn read(file: &FilePath, schema: Option<&str>, walked: &Walked) -> Result<Vec<Line>, StackError> {
    let failed = |e: std::io::Error| refused(file, e, "check the name; only CSV is understood");
    let columns = match schema {
        Some(schema) => schema.to_owned(),
        None => schema_beside(file)?,
    };
    let opened = File::open(file).map_err(failed)?;
    match file.extension().is_some_and(|e| e == "gz") {
        true => parse(file, flate2::read::MultiGzDecoder::new(opened), &columns, walked),
        false => parse(file, opened, &columns, walked),
    }
}

fn schema_beside(file: &FilePath) -> Result<String, StackError> {
    const HINT: &str = "name its columns: --inventory-schema 'Bucket, Key, Size, EncryptionStatus'";
    let places = [file.with_file_name("manifest.json"), file.with_file_name("../manifest.json")];
    let manifest = places.iter().find_map(|place| std::fs::read(place).ok());
    let manifest =
        manifest.ok_or_else(|| refused(file, "there is no manifest.json by it", HINT))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)
        .map_err(|e| refused(file, format!("manifest.json: {e}"), HINT))?;
    match manifest["fileSchema"].as_str() {
        Some(schema) if manifest["fileFormat"].as_str().is_none_or(|f| f == "CSV") => {
            Ok(schema.to_owned())
        }
        _ => Err(refused(file, "manifest.json describes no CSV file", HINT)),
    }
}

fn parse(
    file: &FilePath,
    input: impl Read,
    schema: &str,
    walked: &Walked,
) -> Result<Vec<Line>, StackError> {
    let columns: Vec<_> = schema.split(',').map(str::trim).collect();
    let column = |name: &str| {
        columns.iter().position(|c| c.eq_ignore_ascii_case(name)).ok_or_else(|| {
            refused(
                file,
                format!("it has no column {name} (but {schema})"),
                "configure the inventory with the optional fields Size and Encryption status",
            )
        })
    };
    let (key, size, status) = (column(KEY)?, column(SIZE)?, column(STATUS)?);
    let latest = columns.iter().position(|c| c.eq_ignore_ascii_case("IsLatest"));
    let mut lines = Vec::new();
    let mut csv = csv::ReaderBuilder::new().has_headers(false).from_reader(input);
    for record in csv.records() {
        let record = record.map_err(|e| refused(file, e, "is it the CSV file of the report?"))?;
        let bad = |what: &str| {
            let at = record.position().map_or(0, |p| p.line());
            refused(file, format!("line {at}: {what}"), "check --inventory-schema")
        };
        if latest.is_some_and(|at| record.get(at) == Some("false")) {
            continue;
        }
        let field = |at: usize| record.get(at).ok_or_else(|| bad("it has too few fields"));
        // A delete marker has no size.
        let bytes = match field(size)? {
            "" => continue,
            text => text.parse().map_err(|_| bad("the size is no number"))?,
        };
        let key = key_decoded(field(key)?).ok_or_else(|| bad("the key is garbled"))?;
        walked.done.fetch_add(1, Relaxed);
        walked.bytes.fetch_add(bytes, Relaxed);
        lines.push(Line { key, bytes, status: field(status)?.to_owned() });
    }
    Ok(lines)
}

/// A key as reports carry it: `%XX` for unusual bytes, `+` for a space.
fn key_decoded(text: &str) -> Option<String> {
    percent_decode(&text.replace('+', "%20"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::garbled;

    const SCHEMA: &str = "Bucket, Key, Size, EncryptionStatus";

    #[test]
    fn a_report_is_compared_with_the_mode_and_with_what_is_there() {
        // Guards against counting objects of other prefixes, or such as are long gone, and
        // against a wrong mode passing.
        let csv = "\"b\",\"data/seg/ab/1\",\"73\",\"SSE-KMS\"\n\
                   \"b\",\"data/seg/ab/2\",\"73\",\"SSE-S3\"\n\
                   \"b\",\"data/seg/ab/gone\",\"73\",\"NOT-SSE\"\n\
                   \"b\",\"other/seg/ab/3\",\"73\",\"NOT-SSE\"\n\
                   \"b\",\"data/a%2Bb+c\",\"5\",\"SSE-KMS\"\n";
        let walked = Walked::default();
        let lines =
            parse(FilePath::new("r.csv"), csv.as_bytes(), SCHEMA, &walked).expect("understood");
        assert_eq!(lines[4].key, "data/a+b c");
        let listed = [("seg/ab/1", 73), ("seg/ab/2", 73), ("a+b c", 5), ("seg/ab/new", 73)];
        let listed = listed.map(|(name, bytes)| (name.to_owned(), bytes)).into();
        let kms = SseMode::Kms { key_id: None, context: Default::default(), bucket_key: None };
        let report = compare(&lines, "data/", &kms, listed);
        assert_eq!((report.examined.objects, report.examined.bytes), (3, 151));
        assert_eq!(report.as_requested.bytes, 78);
        assert_eq!(report.client_side.bytes, 146);
        assert_eq!(report.exceptions_total, 2);
        assert!(report.sampled, "an object is newer than the report");
    }

    #[test]
    fn a_report_without_the_needed_columns_is_refused() {
        // Guards against an inventory that was configured without encryption passing as clean.
        for schema in ["Bucket, Key, Size", "Bucket, Key, EncryptionStatus", ""] {
            let refused =
                parse(FilePath::new("r.csv"), &b"b,k,1\n"[..], schema, &Walked::default())
                    .expect_err(schema);
            assert!(refused.to_string().contains("no column"), "{refused}");
        }
        let short = parse(FilePath::new("r.csv"), &b"b,k\n"[..], SCHEMA, &Walked::default())
            .expect_err("short");
        assert!(short.to_string().contains("line 1"), "{short}");
    }

    #[test]
    fn no_report_makes_a_panic() {
        // Guards against a report that somebody else wrote.
        let csv = b"\"b\",\"a%2Bb+c\",\"73\",\"SSE-KMS\"\n\"b\",\"x\",\"\",\"NOT-SSE\"\n";
        let words: [&[u8]; 6] = [b"%", b"\"", b",", b"18446744073709551616", b"\xff", b"\r\n"];
        garbled(&[csv], &words, |bytes| {
            let walked = Walked::default();
            if let Ok(lines) = parse(FilePath::new("r.csv"), bytes, SCHEMA, &walked) {
                assert_eq!(lines.len() as u64, walked.done.load(Relaxed));
            }
        });
    }
}
