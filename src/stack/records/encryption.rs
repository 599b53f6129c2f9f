//! From what the volume remembers and what the command line asks to what the store does: the
//! mode, keys and tags of a mount, and how a running mount follows a change of the volume's.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStore;
use parking_lot::Mutex;

use super::config::{self, VolumeConfig};
use super::schedule::Schedule;
use crate::fs::Quota;
use crate::stack::{StackError, StackErrorKind};
use crate::store::s3::{S3Store, SecretKey32, SseAsk, SseMode};

/// What a mount does, and what is worth saying about it.
#[derive(Debug)]
pub struct Choice {
    /// The mode of its writes.
    pub mode: SseMode,
    /// The tags of its objects.
    pub tags: BTreeMap<String, String>,
    /// Where that differs from the volume's configuration, and how to change that.
    pub notes: Vec<String>,
}

/// What a mount of a volume with this configuration does when asked for `ask`.
///
/// # Errors
/// The customer key that the volume needs is not among those given.
pub fn choose(config: &VolumeConfig, ask: &SseAsk) -> Result<Choice, StackError> {
    let mut notes = Vec::new();
    let mode = match &ask.mode {
        Some(mode) => {
            if mode.remembered() != config.sse {
                notes.push(format!(
                    "this mount writes with --sse {mode}, the volume remembers {}; to make it \
                     the volume's: sealfs sse migrate STORE --to {}",
                    name(&config.sse),
                    mode.name()
                ));
            }
            mode.clone()
        }
        None => remembered(config, ask)?,
    };
    let tags = match &ask.tags {
        Some(tags) => {
            if *tags != config.tags {
                notes.push(
                    "this mount writes other object tags than the volume remembers; to make them \
                     the volume's: sealfs sse migrate STORE --to MODE --object-tag K=V"
                        .into(),
                );
            }
            tags.clone()
        }
        None => config.tags.clone(),
    };
    Ok(Choice { mode, tags, notes })
}

/// The configuration's mode in words.
pub fn name(sse: &SseMode<String>) -> String {
    match sse.clone().with_key(Err::<SecretKey32, _>) {
        Ok(mode) => mode.to_string(),
        Err(key) => format!("customer (key {key})"),
    }
}

/// The mode that the configuration names, with its key out of those given.
fn remembered(config: &VolumeConfig, ask: &SseAsk) -> Result<SseMode, StackError> {
    let is_customer = matches!(config.sse, SseMode::Customer { .. });
    if ask.write_key.is_some() && !is_customer {
        return Err(StackError::Encryption {
            kind: StackErrorKind::Secret,
            message: format!(
                "--sse-c-key-file has no meaning here: the volume's mode is {}",
                name(&config.sse)
            ),
            hint: "to read what a customer key has encrypted: --sse-c-read-key-file FILE; to \
                   change the mode: sealfs sse migrate STORE --to customer"
                .into(),
        });
    }
    config.sse.clone().with_key(|id| customer(&id, &ask.keys()))
}

/// The customer key with this id, out of those given.
fn customer(id: &str, keys: &[SecretKey32]) -> Result<SecretKey32, StackError> {
    if let Some(key) = keys.iter().find(|key| key.id() == id) {
        return Ok(key.clone());
    }
    let message = match keys {
        [] => format!("the volume is encrypted with customer key {id} (SSE-C)"),
        given => {
            let given: Vec<_> = given.iter().map(SecretKey32::id).collect();
            format!(
                "the volume is encrypted with customer key {id} (SSE-C), not with {}",
                given.join(", ")
            )
        }
    };
    Err(StackError::Encryption {
        kind: StackErrorKind::Secret,
        message,
        hint: "give the file with that key: --sse-c-key-file FILE".into(),
    })
}

/// The encryption of a mount: chosen when it starts, and changed with the volume's
/// configuration while it runs.
pub(crate) struct VolumeSse {
    s3: Option<Arc<S3Store>>,
    ask: SseAsk,
    state: Mutex<State>,
}

struct State {
    config: VolumeConfig,
    notes: Vec<String>,
}

impl VolumeSse {
    /// Puts what the configuration and the command line say into force. Errors: as [`choose`].
    pub(crate) fn begin(
        s3: Option<Arc<S3Store>>,
        ask: SseAsk,
        config: VolumeConfig,
    ) -> Result<VolumeSse, StackError> {
        let state = Mutex::new(State { config: VolumeConfig::default(), notes: Vec::new() });
        let sse = VolumeSse { s3, ask, state };
        sse.adopt(config)?;
        Ok(sse)
    }

    fn adopt(&self, config: VolumeConfig) -> Result<(), StackError> {
        // Without S3 there is nothing to ask for, whatever a volume that was copied remembers.
        let Some(s3) = &self.s3 else {
            self.state.lock().config = config;
            return Ok(());
        };
        let choice = choose(&config, &self.ask)?;
        s3.set_object_tags(&choice.tags);
        s3.set_storage_class(&config.storage_class);
        if choice.mode != s3.sse_mode() {
            s3.set_sse_mode(choice.mode);
        }
        *self.state.lock() = State { config, notes: choice.notes };
        Ok(())
    }

    /// The revision of the configuration in force.
    pub(crate) fn revision(&self) -> u64 {
        self.state.lock().config.revision
    }

    /// The epoch that every object is being brought into.
    pub(crate) fn rekey(&self) -> Option<u32> {
        self.state.lock().config.rekey
    }

    /// When snapshots are made by themselves.
    pub(crate) fn schedule(&self) -> Schedule {
        self.state.lock().config.snapshots
    }

    /// How much the files of the volume may take.
    pub(crate) fn quota(&self) -> Quota {
        self.state.lock().config.quota
    }

    /// What is worth saying, for `status` and the terminal.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.state.lock().notes.clone()
    }

    /// Reads the configuration again and follows a change. What cannot be followed (a customer
    /// key that this mount does not have) is noted.
    pub(crate) async fn look(&self, sealed: &dyn ObjectStore) {
        let config = match config::load(sealed).await {
            Ok(loaded) => loaded.config,
            Err(e) => return log::warn!("{e}"),
        };
        let before = self.revision();
        if config.revision < before {
            return log::error!(
                "the configuration of the volume went back from revision {before} to {}; it \
                 is not followed",
                config.revision
            );
        }
        if config.revision == before {
            return;
        }
        let (revision, rekey, now) = (config.revision, config.rekey, name(&config.sse));
        let (snapshots, quota) = (config.snapshots, config.quota);
        let class = config.storage_class.clone();
        match self.adopt(config) {
            Ok(()) => log::info!("the volume's configuration was changed; its encryption: {now}"),
            Err(e) => {
                let note =
                    format!("the volume's encryption was changed to {now}: {e}; mount again");
                log::error!("{note}");
                let mut state = self.state.lock();
                (state.config.revision, state.config.rekey) = (revision, rekey);
                (state.config.snapshots, state.config.quota) = (snapshots, quota);
                if let Some(s3) = &self.s3 {
                    s3.set_storage_class(&class);
                }
                state.config.storage_class = class;
                state.notes = vec![note];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn key(byte: u8) -> SecretKey32 {
        SecretKey32::new(Zeroizing::new([byte; 32]))
    }

    fn config(mode: &SseMode) -> VolumeConfig {
        VolumeConfig::new(mode, BTreeMap::new())
    }

    #[test]
    fn flags_win_and_their_absence_keeps_the_mode_of_the_volume() {
        // Guards against a mount that falls back to the bucket's default because a flag was
        // forgotten, and against one that changes the mode without a word.
        let volume = config(&SseMode::S3);
        let kept = choose(&volume, &SseAsk::default()).expect("remembered");
        assert!(matches!(kept.mode, SseMode::S3) && kept.notes.is_empty());
        let same = choose(&volume, &SseMode::S3.into()).expect("agrees");
        assert!(same.notes.is_empty());
        let other = choose(&volume, &SseMode::Default.into()).expect("flags win");
        assert!(matches!(other.mode, SseMode::Default));
        assert!(other.notes[0].contains("sealfs sse migrate STORE --to default"), "{other:?}");
        let tags = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        let tagged = choose(&volume, &SseAsk { tags, ..SseAsk::default() }).expect("flags win");
        assert_eq!((tagged.tags.len(), tagged.notes.len()), (1, 1));
    }

    #[test]
    fn the_customer_key_of_the_volume_is_found_among_those_given() {
        // Guards against new objects under an old key, or under a stranger's.
        let volume = config(&SseMode::Customer { key: key(2) });
        let ask = SseAsk { write_key: Some(key(1)), read_keys: vec![key(2)], ..SseAsk::default() };
        let chosen = choose(&volume, &ask).expect("there");
        assert_eq!(chosen.mode.customer_key(), Some(&key(2)));
        for ask in [SseAsk::default(), SseAsk { write_key: Some(key(3)), ..SseAsk::default() }] {
            let refused = choose(&volume, &ask).expect_err("another key");
            assert_eq!(refused.kind(), StackErrorKind::Secret);
            assert!(refused.to_string().contains(key(2).id()), "{refused}");
        }
        let ask = SseAsk { write_key: Some(key(1)), ..SseAsk::default() };
        choose(&config(&SseMode::S3), &ask).expect_err("a key that would not be used");
    }
}
