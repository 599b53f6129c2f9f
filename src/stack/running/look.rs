//! The metadata as they are before anything is written: opened to be read at one state, and compared
//! with what this machine remembers and what its journal holds. Called by `opening` and `claim`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::hex;
use crate::commit::{ViewError, last_commit};
use crate::journal::Recovery;
use crate::meta::{BesideRow, CommitRow, DecodeError, Stats, keys};
use crate::stack::records::history::refuse_discord;
use crate::stack::records::lineage::{
    Lineage, copied_elsewhere, go_on_beside, lineage, refuse_lost,
};
use crate::stack::records::state::Remembered;
use crate::stack::{Accept, Attended, StackError, StackErrorKind, StoreStack};
use crate::store::Sealed;
use crate::store::kv::{Kv, KvError, KvOptions};

/// How often the metadata are opened if what they said does not fit what they say a moment later, and
/// how long after the last time.
const TRIES: u32 = 8;
const TRY_PAUSE: Duration = Duration::from_millis(100);

/// What the metadata said when they were looked at.
pub(crate) struct Found {
    pub(crate) commit: Option<CommitRow>,
    pub(crate) stats: Stats,
    /// The mount that made the last commit, in hex.
    pub(crate) writer: Option<String>,
    pub(crate) beside: BesideRow,
}

impl Found {
    async fn read(kv: &Kv) -> Result<Found, StackError> {
        let lacks = |what| ViewError::from(DecodeError(what));
        let (stats, ino) = (keys::stats(), keys::next_ino());
        let (writer, beside) = (keys::writer(), keys::beside());
        // The first brings the index of the newest table; the rest at once, as they may lie in several
        // blocks and tables. Boxed, since such futures are large.
        let commit = last_commit(kv).await;
        let (stats, ino, writer, beside) = futures::join!(
            Box::pin(kv.get(&stats)),
            Box::pin(kv.get(&ino)),
            Box::pin(kv.get(&writer)),
            Box::pin(kv.get(&beside))
        );
        let (commit, beside) = (commit?, beside?);
        let stats = stats?.ok_or_else(|| lacks("no statistics"))?;
        ino?.ok_or_else(|| lacks("no inode number"))?;
        let writer = writer?.map(|id| hex(&id));
        let beside = beside.as_deref().map(BesideRow::decode).transpose();
        let beside = beside.map_err(ViewError::from)?.unwrap_or_default();
        let stats = Stats::decode(&stats).map_err(ViewError::from)?;
        Ok(Found { commit, stats, writer, beside })
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.commit.map_or(0, |row| row.sequence)
    }

    /// What becomes of the local journal.
    pub(crate) fn lineage(
        &self,
        recovery: &Recovery,
        before: &Remembered,
        accept: Accept,
    ) -> Result<Lineage, StackError> {
        let accept = accept.older || accept.history;
        match copied_elsewhere(recovery, self.commit, self.writer.as_deref(), before) {
            Some(committed) => Ok(go_on_beside(recovery, self.commit, committed)),
            None => lineage(recovery, self.commit, before, accept),
        }
    }
}

/// The metadata, looked at, and what they were read through.
pub(crate) struct Seat {
    pub(crate) kv: Kv,
    pub(crate) found: Found,
    pub(crate) log_store: Arc<Sealed>,
}

/// By what the metadata are opened.
pub(crate) enum Source<'a> {
    /// By themselves.
    Alone(KvOptions),
    /// To take the place of these, which go on as they are.
    Beside(&'a Kv),
}

/// How the metadata are opened and what they are held against.
pub(crate) struct Look<'a> {
    pub(crate) layers: &'a StoreStack,
    pub(crate) sealed: &'a Arc<Sealed>,
    pub(crate) name: &'a str,
    pub(crate) before: &'a Remembered,
    pub(crate) attended: Attended,
    pub(crate) source: Source<'a>,
    pub(crate) open_timeout: Duration,
    /// The revision of the configuration.
    pub(crate) config: u64,
    /// Refuse a bucket that is older than this commit.
    pub(crate) at_least: u64,
    pub(crate) accept: Accept,
}

impl Look<'_> {
    /// Opens the metadata through `log_store` to be checked, and checks them; once more, through
    /// another, where what was read of them does not fit together because they have changed meanwhile.
    pub(crate) async fn open(
        &self,
        mut log_store: Arc<Sealed>,
        local: Option<&Recovery>,
    ) -> Result<Seat, StackError> {
        let deadline = Instant::now() + self.open_timeout;
        let mut tries = 0;
        loop {
            tries += 1;
            let e = match self.open_once(&log_store, local).await {
                Ok((kv, found)) => return Ok(Seat { kv, found, log_store }),
                Err(e) => e,
            };
            let ahead = &self.layers.ahead;
            match e {
                StackError::Metadata(KvError::Fenced)
                    if tries == TRIES || Instant::now() > deadline =>
                {
                    let why = "its writer goes on beyond what was read, again and again";
                    return Err(KvError::Unavailable(why.into()).into());
                }
                StackError::Metadata(KvError::Fenced) => {}
                // What was fetched ahead may be older than what a mount that has just ended here remembers.
                _ if ahead.was_used() && e.kind() == StackErrorKind::Corrupt && tries < TRIES => {}
                _ => return Err(e),
            }
            log::debug!("{e}: looking once more");
            ahead.end();
            tokio::time::sleep(TRY_PAUSE).await;
            log_store = Arc::new(self.sealed.apart());
        }
    }

    async fn open_once(
        &self,
        log_store: &Arc<Sealed>,
        local: Option<&Recovery>,
    ) -> Result<(Kv, Found), StackError> {
        let limit = self.open_timeout;
        self.attended.waits_for(format!("the metadata of {}", self.name), limit);
        let store = log_store.clone();
        let kv = match &self.source {
            Source::Alone(options) => Kv::open_to_check(store, options.clone(), limit).await?,
            Source::Beside(kv) => kv.successor(store, limit).await?,
        };
        match self.check(&kv, local).await {
            Ok(found) => Ok((kv, found)),
            Err(e) => {
                let _ = kv.close(false).await; // a reader: there is nothing to lose
                Err(e)
            }
        }
    }

    async fn check(&self, kv: &Kv, local: Option<&Recovery>) -> Result<Found, StackError> {
        let found = Found::read(kv).await?;
        let accept = self.accept;
        refuse_discord(kv, found.commit, self.before, self.at_least, accept).await?;
        let (config, seen) = (self.config, found.beside.config);
        if config < seen && !accept.config {
            return Err(StackError::ConfigRollback { found: config, seen });
        }
        if let Some(recovery) = local {
            match refuse_lost(recovery, found.commit, self.before) {
                Err(e) if accept.journal => log::error!("{e}: accepted, they are given up"),
                outcome => outcome?,
            }
            found.lineage(recovery, self.before, accept)?;
        }
        Ok(found)
    }

    /// Makes the handle that was checked the writer's. What it shows then must be what was checked.
    ///
    /// # Errors
    /// [`KvError::Fenced`]: another has written meanwhile.
    pub(crate) async fn open_for_writing(&self, kv: &Kv, found: &Found) -> Result<(), StackError> {
        kv.become_writer(self.open_timeout).await?;
        if last_commit(kv).await? == found.commit {
            return Ok(());
        }
        let _ = kv.close(false).await; // nothing was written
        Err(KvError::Fenced.into())
    }
}
