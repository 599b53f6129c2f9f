//! The reports of `sealfs sse` for people and as CSV. Pure text.

use std::fmt::Write as _;
use std::io::Write;

use indicatif::HumanBytes;

use crate::base::{counted, one_line};
use crate::stack::audit::{AuditReport, ClassGroup, Exception, Tally};
use crate::stack::migrate::MigrateReport;

/// Exceptions that are printed; `--json` and `--csv` have more.
const EXCEPTIONS_SHOWN: usize = 20;

/// An audit as a table.
pub fn text(report: &AuditReport) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        writeln!(out, "{}", one_line(&text)).expect("a String takes everything");
    };
    line(format!("volume     {}", report.store));
    line(format!("requested  {}", report.requested));
    let all = match report.sampled {
        true => {
            let all = counted(report.listed.objects, "object");
            format!("a sample of {} of {all}", report.examined.objects)
        }
        false => counted(report.examined.objects, "object"),
    };
    line(format!("examined   {all}, {}", HumanBytes(report.examined.bytes)));
    line(String::new());
    line(format!("{:14} {:>10} {:>12} {:>8}  key", "encryption", "objects", "bytes", "share"));
    for group in &report.groups {
        line(format!(
            "{:14} {:>10} {:>12} {:>8}  {}",
            group.mode,
            group.tally.objects,
            HumanBytes(group.tally.bytes).to_string(),
            share(group.tally, report.examined),
            group.key.as_deref().unwrap_or("-"),
        ));
    }
    if report.storage_classes.iter().any(|group| group.storage_class != "STANDARD") {
        line(String::new());
        line(format!("{:22} {:>10} {:>12}", "storage class", "objects", "bytes"));
        for ClassGroup { storage_class, tally } in &report.storage_classes {
            let bytes = HumanBytes(tally.bytes).to_string();
            line(format!("{storage_class:22} {:>10} {bytes:>12}", tally.objects));
        }
    }
    line(String::new());
    line(format!(
        "sealed on the client       {:>8} of bytes, by {}",
        share(report.client_side, report.examined),
        report.sealing_checked
    ));
    line(format!(
        "encrypted by the server    {:>8} of bytes",
        share(report.server_side, report.examined)
    ));
    line(format!(
        "exactly as requested       {:>8} of bytes",
        share(report.as_requested, report.examined)
    ));
    out + &exceptions(&report.exceptions, report.exceptions_total)
}

fn exceptions(all: &[Exception], total: u64) -> String {
    let mut out = String::new();
    if total > 0 {
        writeln!(out, "\nexceptions: {total}").expect("a String takes everything");
    }
    for e in all.iter().take(EXCEPTIONS_SHOWN) {
        let (name, problem) = (one_line(&e.name), one_line(&e.problem));
        writeln!(out, "  {name}: {problem}").expect("a String takes everything");
    }
    if total > EXCEPTIONS_SHOWN as u64 {
        out += "  … (--json lists more)\n";
    }
    out
}

/// What part of `all` bytes, rounded towards what is bad news: 100 % means all.
fn share(part: Tally, all: Tally) -> String {
    if part == all {
        return "100 %".into();
    }
    let permille = match all.bytes {
        0 => 0,
        bytes => u128::from(part.bytes) * 1000 / u128::from(bytes),
    };
    // Objects of no bytes count too: not everything, however small the rest, is not 100 %.
    let permille = permille.min(999);
    format!("{}.{} %", permille / 10, permille % 10)
}

/// An audit as CSV: kind, name or mode, key, objects, bytes, problem.
pub fn csv(report: &AuditReport, out: impl Write) -> std::io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    csv.write_record(["kind", "name", "key", "objects", "bytes", "problem"])?;
    let mut row = |kind: &str, name: &str, key: &str, tally: Tally, problem: &str| {
        let (objects, bytes) = (tally.objects.to_string(), tally.bytes.to_string());
        let [name, key, problem] = [name, key, problem].map(one_line);
        csv.write_record([kind, &name, &key, &objects, &bytes, &problem])
    };
    for group in &report.groups {
        row("mode", &group.mode, group.key.as_deref().unwrap_or_default(), group.tally, "")?;
    }
    for group in &report.storage_classes {
        row("class", &group.storage_class, "", group.tally, "")?;
    }
    row("total", "examined", "", report.examined, "")?;
    row("total", "client-side", "", report.client_side, "")?;
    row("total", "server-side", "", report.server_side, "")?;
    row("total", "as-requested", "", report.as_requested, "")?;
    for e in &report.exceptions {
        let tally = Tally { objects: 1, bytes: e.bytes };
        row("exception", &e.name, "", tally, &e.problem)?;
    }
    csv.flush()
}

/// A migration in a few lines, and its audit.
pub fn migration(report: &MigrateReport) -> String {
    let mut out = format!("from       {}\nto         {}\n", report.from, report.to);
    let Some(audit) = &report.audit else {
        return out + "what is written from now on is in the new mode; what was there stays\n";
    };
    for (what, tally) in [
        ("already", report.already),
        ("in place", report.in_place),
        ("copied", report.copied),
        ("rewritten", report.rewritten),
    ] {
        let bytes = HumanBytes(tally.bytes);
        writeln!(out, "{what:10} {}, {bytes}", counted(tally.objects, "object"))
            .expect("a String takes everything");
    }
    if !report.failed.is_empty() {
        out += "\nnot changed";
        out += &exceptions(&report.failed, report.failed.len() as u64);
    }
    out + "\n" + &text(audit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::audit::Group;

    fn report() -> AuditReport {
        let kms = Tally { objects: 9_999, bytes: 99_999_999 };
        let plain = Tally { objects: 1, bytes: 1 };
        let all = Tally { objects: 10_000, bytes: 100_000_000 };
        AuditReport {
            store: "s3://b/p".into(),
            requested: "aws:kms, key alias/a".into(),
            sealing_checked: "names and sizes",
            listed: all,
            examined: all,
            client_side: all,
            server_side: kms,
            as_requested: kms,
            groups: vec![
                Group { mode: "aws:kms".into(), key: Some("arn:x".into()), tally: kms },
                Group { mode: "none".into(), key: None, tally: plain },
            ],
            exceptions: vec![Exception {
                name: "seg/ab/cd".into(),
                bytes: 1,
                problem: "no server-side encryption: the answer names no algorithm".into(),
            }],
            exceptions_total: 1,
            ..AuditReport::default()
        }
    }

    #[test]
    fn one_wrong_object_among_ten_thousand_is_not_a_hundred_per_cent() {
        // Guards against rounding that hides the only thing an auditor looks for.
        let text = text(&report());
        for part in [
            "exactly as requested         99.9 % of bytes",
            "sealed on the client          100 % of bytes, by names and sizes",
            "exceptions: 1\n  seg/ab/cd: no server-side encryption",
            "arn:x",
        ] {
            assert!(text.contains(part), "{part:?} in:\n{text}");
        }
    }

    #[test]
    fn the_csv_has_a_row_for_each_mode_total_and_exception() {
        // Guards against a comma in a problem shifting the columns.
        let mut out = Vec::new();
        let mut with_comma = report();
        with_comma.exceptions[0].problem = "a, b".into();
        csv(&with_comma, &mut out).expect("a Vec takes everything");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text.lines().count(), 1 + 2 + 4 + 1);
        assert!(text.ends_with("exception,seg/ab/cd,,1,1,\"a, b\"\n"), "{text}");
    }
}
