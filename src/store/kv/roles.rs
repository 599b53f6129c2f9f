//! What a handle does: looks at a state that is to be checked, follows a writer, writes. A handle
//! changes its part while others use it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use object_store::ObjectStore;
use slatedb::DbReader;
use slatedb::db_cache::SplitCache;

use super::{
    Handle, Kv, KvError, KvOptions, bounded, close_handle, new_cache, open_reading, open_writer,
    told_why,
};
use crate::store::error::{ErrorClass, class, told};
use crate::store::kv_store::SlateStore;

/// Opens the database at its newest state. What the store lists shows whether something is missing
/// from the log; it is asked at the same time.
async fn look(
    store: &Arc<SlateStore>,
    cache: &Arc<SplitCache>,
    options: &KvOptions,
) -> Result<DbReader, KvError> {
    store.answers().hold();
    store.answers().lists_log();
    let reading = open_reading(store.clone(), cache.clone(), options);
    let listing = async {
        let listed = store.listed_log().await;
        store.answers().listed(listed.as_deref().ok());
        listed
    };
    let (db, listed) = futures::join!(reading, listing);
    let db = db?;
    let after = db.manifest().replay_after_wal_id();
    let whole = match listed {
        Ok(listed) => store.refuse_gaps(&listed, after).await,
        Err(e) => Err(e),
    };
    match whole {
        Ok(()) => Ok(db),
        Err(e) => {
            let _ = db.close().await; // a reader: there is nothing to lose
            match class(&e) {
                ErrorClass::Corrupt => Err(KvError::Damaged(e.to_string())),
                _ => Err(KvError::Unavailable(told(&e))),
            }
        }
    }
}

impl Kv {
    /// Opens the database read-only, at one state that stays what it is until [`Kv::follow`] or
    /// [`Kv::become_writer`]: nothing is written before that was checked.
    ///
    /// # Errors
    /// As [`Kv::open`]. What the store refuses is [`KvError::Unavailable`] at once.
    pub async fn open_to_check(
        store: Arc<dyn ObjectStore>,
        options: KvOptions,
        open_timeout: Duration,
    ) -> Result<Kv, KvError> {
        let store = Arc::new(SlateStore::new(store));
        let cache = new_cache(&options);
        let db =
            told_why(&store, bounded(open_timeout, look(&store, &cache, &options).boxed())).await?;
        Ok(Kv::new(Handle::Reader(Arc::new(db)), store, cache, options))
    }

    /// How long what is read may be behind the writer; `None`: this handle writes.
    pub fn behind(&self) -> Option<Duration> {
        matches!(self.handle(), Handle::Reader(_)).then_some(self.options.refresh)
    }

    /// From now on it follows the writer.
    pub fn follow(&self) {
        self.store().answers().let_go();
    }

    /// The newest state in `store`, to be checked before [`Kv::replace_by`] puts it in the place
    /// of what this handle shows, whose caches and settings it shares.
    ///
    /// # Errors
    /// As [`Kv::open_to_check`].
    pub async fn successor(
        &self,
        store: Arc<dyn ObjectStore>,
        open_timeout: Duration,
    ) -> Result<Kv, KvError> {
        let store = Arc::new(SlateStore::new(store));
        let db = told_why(
            &store,
            bounded(open_timeout, look(&store, &self.cache, &self.options).boxed()),
        )
        .await?;
        let (cache, options) = (self.cache.clone(), self.options.clone());
        Ok(Kv::new(Handle::Reader(Arc::new(db)), store, cache, options))
    }

    /// Goes on with the state of `successor`: as the writer, if that has become one, else reading
    /// only, and following the writer from there; writes fail with [`KvError::ReadOnly`] then.
    pub async fn replace_by(&self, successor: Kv) {
        successor.follow();
        let next = successor.handle();
        let reads_only = matches!(next, Handle::Reader(_));
        *self.store.write() = successor.store();
        let old = std::mem::replace(&mut *self.handle.write(), next);
        self.commits.store(0, Ordering::Relaxed);
        self.closing.send_replace(false);
        self.reads_only.send_replace(reads_only);
        self.worn.send_replace(false);
        let _ = close_handle(old).await;
    }

    /// Stops what a writer's handle runs in the background, after `grace`, and lets nothing begin
    /// until [`Kv::replace_by`], or [`Kv::goes_on_writing`].
    pub async fn stop_background(&self, grace: Duration) {
        self.stop_compacting(grace).await;
    }

    /// It stays the writer's after all.
    pub fn goes_on_writing(&self) {
        self.closing.send_replace(false);
    }

    /// From now on nothing can be read: what the bucket holds is not what it was.
    pub fn refuse(&self, why: String) {
        let _ = self.refused.set(why); // the first reason is as good as another
    }

    pub(super) fn check_refused(&self) -> Result<(), KvError> {
        match self.refused.get() {
            None => Ok(()),
            Some(why) => Err(KvError::Damaged(why.clone())),
        }
    }

    /// Why nothing can be read any more.
    pub fn refused(&self) -> Option<String> {
        self.refused.get().cloned()
    }

    /// Opens the database for writing at the state that this handle, which was opened to be
    /// checked, shows, and fences every earlier writer.
    ///
    /// # Errors
    /// [`KvError::Fenced`]: another has opened it meanwhile; as [`Kv::open`].
    pub async fn become_writer(&self, open_timeout: Duration) -> Result<(), KvError> {
        let (epoch, store) = (self.writer_epoch(), self.store());
        let (after, _) = self.log_span();
        let opening = async {
            let log_bytes = store.log_bytes(after).await?;
            open_writer(store.clone(), self.cache.clone(), Some(epoch), log_bytes).await
        };
        let db = told_why(&store, bounded(open_timeout, opening.boxed())).await?;
        store.answers().let_go();
        let old = std::mem::replace(&mut *self.handle.write(), Handle::Writer(Arc::new(db)));
        self.reads_only.send_replace(false);
        self.worn.send_replace(false);
        tokio::spawn(close_handle(old)); // a reader: there is nothing to lose
        Ok(())
    }

    /// Waits until [`Kv::replace_by`] is done, for at most `read_timeout`; true if it is. A
    /// caller that was refused with [`KvError::Fenced`] and only reads can then ask again.
    pub async fn until_reader(&self) -> bool {
        let mut reads_only = self.reads_only.subscribe();
        let reader = reads_only.wait_for(|reads_only| *reads_only);
        tokio::time::timeout(self.options.read_timeout, reader).await.is_ok()
    }
}
