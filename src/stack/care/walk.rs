//! A walk over all objects of a store, as an audit, a migration and a rekey make it: how far it is,
//! how many objects at a time and a second, and that what was begun is done to the end.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStore};
use tokio::sync::Mutex;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::stack::{StackError, StoreOptions};

/// How far a walk over the objects is, of an audit or of a migration, which makes several.
#[derive(Debug, Default)]
pub struct Walked {
    /// Walks begun; each resets the other numbers.
    pub walks: AtomicU64,
    /// Objects there are to look at; 0 until they are counted.
    pub total: AtomicU64,
    /// Objects done.
    pub done: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
}

impl Walked {
    /// A walk begins.
    pub(super) fn begin(&self) {
        for number in [&self.total, &self.done, &self.bytes] {
            number.store(0, Relaxed);
        }
        self.walks.fetch_add(1, Relaxed);
    }

    /// An object is done.
    pub(super) fn pass(&self, bytes: u64) {
        self.done.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Does `work` and counts meanwhile what there is to do, by another listing (a request for
    /// a thousand objects). If that fails, the work finds out as well.
    pub(super) async fn counting<T>(
        &self,
        store: &dyn ObjectStore,
        meant: impl Fn(&ObjectMeta) -> bool,
        work: impl Future<Output = T>,
    ) -> T {
        let count = async {
            let mut objects = store.list(None);
            let mut total = 0;
            while let Some(Ok(meta)) = objects.next().await {
                total += u64::from(meant(&meta));
            }
            self.total.store(total, Relaxed);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            done = work => done,
            () = count => unreachable!("it pends for ever"),
        }
    }

    /// Does `one` for every object of `store` that is `meant`, for `parallel` of them at a time.
    ///
    /// # Errors
    /// The listing fails; [`StackError::Stopped`] if somebody asked for that: the objects that were
    /// begun are done by then, others are not begun.
    pub(super) async fn each<F: Future<Output = ()>>(
        &self,
        (store, options): (&dyn ObjectStore, &StoreOptions),
        parallel: usize,
        meant: impl Fn(&ObjectMeta) -> bool,
        one: impl Fn(ObjectMeta) -> F,
    ) -> Result<(), StackError> {
        self.begin();
        let stopped = std::pin::pin!(options.attended.stopped());
        let objects = store.list(None).try_filter(|meta| futures::future::ready(meant(meta)));
        let walk = objects.take_until(stopped).try_for_each_concurrent(parallel.max(1), |meta| {
            let bytes = meta.size;
            let done = one(meta);
            async move {
                done.await;
                self.pass(bytes);
                Ok(())
            }
        });
        let walked = self.counting(store, &meant, walk).await;
        walked.map_err(|e| StackError::store(format!("listing {}", options.location), e))?;
        match options.attended.is_stopped() {
            true => Err(StackError::Stopped),
            false => Ok(()),
        }
    }
}

/// Lets so many objects through a second, or all.
#[derive(Debug)]
pub(super) struct Pace(Option<Mutex<Interval>>);

impl Pace {
    pub(super) fn new(rate: Option<u32>) -> Pace {
        Pace(rate.map(|rate| {
            let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Mutex::new(ticks)
        }))
    }

    /// Waits for the turn of one object.
    pub(super) async fn turn(&self) {
        if let Some(ticks) = &self.0 {
            ticks.lock().await.tick().await;
        }
    }
}
