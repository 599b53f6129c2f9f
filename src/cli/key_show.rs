//! How `sealfs key` shows a keyring and its slots, for people and as JSON.

use std::collections::BTreeMap;

use indicatif::HumanBytes;
use serde::Serialize;

use crate::base::{counted, date_of_day, one_line};
use crate::seal::{AgeSlot, Keyring, KmsSlot, SlotInfo, SlotKind};
use crate::stack::audit::Tally;

/// A slot in a sentence.
pub(super) fn named(slot: &SlotInfo) -> String {
    format!("{} ({}, {})", slot.id, slot.label, slot.kind)
}

/// The keyring as it is shown.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    volume: String,
    revision: u64,
    epoch: u32,
    old_roots: Vec<u32>,
    verified: bool,
    slots: Vec<ShownSlot>,
    /// What is sealed in which epoch, where that was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed_in: Option<BTreeMap<u32, Tally>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<&'a str>,
}

/// A slot as it is shown.
#[derive(Serialize)]
pub(super) struct ShownSlot {
    slot: u32,
    kind: String,
    label: String,
    made_secs: u64,
    made_epoch: u32,
    cost: Option<String>,
    /// Of KMS slots: whom to ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    kms: Option<ShownKms>,
    /// Of age slots: for whom they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipients: Option<Vec<String>>,
    /// When this machine last opened the volume with it, as far as it remembers.
    last_used_secs: Option<u64>,
}

#[derive(Serialize)]
struct ShownKms {
    key: String,
    region: String,
    endpoint_url: Option<String>,
}

impl ShownSlot {
    pub(super) fn of(slot: &SlotInfo) -> ShownSlot {
        ShownSlot {
            slot: slot.id,
            kind: slot.kind.to_string(),
            label: slot.label.clone(),
            made_secs: slot.made_secs,
            made_epoch: slot.made_epoch,
            cost: slot.kdf.map(|kdf| kdf.to_string()),
            kms: kms_of(slot),
            recipients: recipients_of(slot),
            last_used_secs: None,
        }
    }

    /// What it takes to open it, beside what the kind says.
    fn takes(&self) -> String {
        if let Some(kms) = &self.kms {
            let at = kms.endpoint_url.as_ref().map(|url| format!(" at {url}")).unwrap_or_default();
            return format!("{}{at}", kms.key);
        }
        match (&self.recipients, &self.cost) {
            (Some(recipients), _) => {
                recipients.iter().map(|r| short(r)).collect::<Vec<_>>().join(", ")
            }
            (None, cost) => cost.clone().unwrap_or_default(),
        }
    }
}

fn kms_of(slot: &SlotInfo) -> Option<ShownKms> {
    let stored = KmsSlot::parse(&slot.params).ok().filter(|_| slot.kind == SlotKind::Kms)?;
    let (key, region) = (stored.key_arn().to_owned(), stored.region().to_owned());
    Some(ShownKms { key, region, endpoint_url: stored.endpoint().map(str::to_owned) })
}

fn recipients_of(slot: &SlotInfo) -> Option<Vec<String>> {
    let stored = AgeSlot::parse(&slot.params).ok().filter(|_| slot.kind == SlotKind::Age)?;
    Some(stored.recipients().to_vec())
}

/// A recipient as it fits in a line: the keys of ssh are long, and differ in their ends.
fn short(recipient: &str) -> String {
    const WHOLE: usize = 90;
    match recipient.len() {
        0..=WHOLE => recipient.to_owned(),
        // It is ASCII.
        len => format!("{}…{}", &recipient[..24], &recipient[len - 12..]),
    }
}

impl<'a> Shown<'a> {
    /// With what this machine remembers of the use of slots.
    pub(super) fn with_use(mut self, used: &BTreeMap<u32, u64>) -> Self {
        for slot in &mut self.slots {
            slot.last_used_secs = used.get(&slot.slot).copied();
        }
        self
    }

    /// With a key that is shown this once.
    pub(super) fn with_recovery_key(self, text: &'a str) -> Self {
        Shown { recovery_key: Some(text), ..self }
    }

    pub(super) fn of(keyring: &Keyring, verified: bool) -> Self {
        Shown {
            volume: keyring.volume_id().to_string(),
            revision: keyring.revision(),
            epoch: keyring.epoch(),
            old_roots: keyring.old_roots(),
            verified,
            slots: keyring.slots().iter().map(ShownSlot::of).collect(),
            sealed_in: None,
            recovery_key: None,
        }
    }

    /// With what is sealed in which epoch.
    pub(super) fn with_epochs(self, sealed_in: Option<BTreeMap<u32, Tally>>) -> Self {
        Shown { sealed_in, ..self }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut out = format!("volume {}\nepoch {}", self.volume, self.epoch);
        if !self.old_roots.is_empty() {
            let old: Vec<String> = self.old_roots.iter().map(u32::to_string).collect();
            out += &format!(", with the keys of epochs {}", old.join(", "));
        }
        out += &format!("\nrevision {}\n", self.revision);
        let lines = self.slots.iter().map(|slot| {
            let used = slot.last_used_secs.map_or_else(|| "-".to_owned(), day);
            [
                slot.slot.to_string(),
                slot.kind.clone(),
                day(slot.made_secs),
                used,
                one_line(&slot.label),
                slot.takes(),
            ]
        });
        let head = ["slot", "kind", "made", "last used", "label", ""].map(str::to_owned);
        for [id, kind, made, used, label, takes] in std::iter::once(head).chain(lines) {
            let line = format!("{id:>4}  {kind:<12}  {made:<10}  {used:<10}  {label:<16}  {takes}");
            out += line.trim_end();
            out.push('\n');
        }
        for (epoch, tally) in self.sealed_in.iter().flatten() {
            let (objects, bytes) = (counted(tally.objects, "object"), HumanBytes(tally.bytes));
            out += &format!("sealed in epoch {epoch}: {objects}, {bytes}\n");
        }
        out
    }
}

/// The date of a Unix time, in UTC.
pub(super) fn day(secs: u64) -> String {
    let (year, month, day) = date_of_day(secs / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        // Guards against a slot dated a day or a year off: the start, leap days, a century.
        let known = [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_800_000_000, "2027-01-15"),
            (4_107_542_400, "2100-03-01"),
        ];
        for (secs, date) in known {
            assert_eq!(day(secs), date);
        }
        let _ = day(u64::MAX);
    }
}
