//! Retrying what is more than one answer: batches of deletes, and listings.

use super::super::error::{ErrorClass, StoreError, class, replicate};
use super::super::stats::{RequestKind, RequestStats};
use super::Retry;
use super::attempt::Budget;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, Result};

impl Retry {
    /// Deletes what is named in `batch` and returns one outcome for each, in order.
    pub(super) async fn delete_batch(&self, batch: Vec<Result<Path>>) -> Vec<Result<Path>> {
        let mut results: Vec<Option<Result<Path>>> = Vec::with_capacity(batch.len());
        let mut open: Vec<(usize, Path)> = Vec::with_capacity(batch.len());
        for (index, location) in batch.into_iter().enumerate() {
            match location {
                Ok(path) => {
                    open.push((index, path));
                    results.push(None);
                }
                Err(e) => results.push(Some(Err(e))),
            }
        }
        let budget = self.attempts.write_budget(0);
        let Some((_, first)) = open.first().cloned() else {
            return results.into_iter().flatten().collect();
        };
        let (open_ref, results_ref) = (&mut open, &mut results);
        let outcome: Result<()> = async {
            let mut clock = self.attempts.start(budget);
            loop {
                let tried = self.delete_once(budget, clock.attempt(), open_ref, results_ref).await;
                match tried {
                    Ok(()) => return Ok(()),
                    Err(e) => clock.pause("delete", &first, e).await?,
                }
            }
        }
        .await;
        if let Err(e) = outcome {
            for (index, _) in open {
                results[index] = Some(Err(replicate(&e)));
            }
        }
        results.into_iter().flatten().collect()
    }

    /// One request for all of `open`; what is settled moves to `results`. An error means that
    /// some are left and may be tried again.
    async fn delete_once(
        &self,
        budget: Budget,
        attempt: u32,
        open: &mut Vec<(usize, Path)>,
        results: &mut [Option<Result<Path>>],
    ) -> Result<()> {
        RequestStats::add(&self.attempts.stats().delete, open.len() as u64);
        let paths: Vec<Result<Path>> = open.iter().map(|(_, p)| Ok(p.clone())).collect();
        let answers = self.inner.delete_stream(stream::iter(paths).boxed());
        let answers = async { Ok(answers.collect::<Vec<_>>().await) };
        let answers = budget.limit(0, "waiting for the answer", answers);
        let answers = self.attempts.stats().timed(RequestKind::Delete, answers).await;
        let answers = self.attempts.note(answers)?;
        if answers.len() != open.len() {
            let message = format!("{} answers to {} deletes", answers.len(), open.len());
            return Err(StoreError::new(ErrorClass::Other, message).into_store("retry"));
        }
        let mut again = None;
        let mut left = Vec::new();
        for ((index, path), answer) in open.drain(..).zip(answers) {
            match answer {
                Err(e) if class(&e).is_retryable() => {
                    left.push((index, path));
                    again = Some(e);
                }
                Err(e) if attempt > 1 && class(&e) == ErrorClass::NotFound => {
                    self.attempts.refused().note_delete(&path, &Ok(path.clone()));
                    results[index] = Some(Ok(path));
                }
                answer => {
                    if self.attempts.refused().note_delete(&path, &answer) {
                        RequestStats::add(&self.attempts.stats().errors, 1);
                    }
                    results[index] = Some(answer);
                }
            }
        }
        *open = left;
        match again {
            Some(e) => self.attempts.note(Err(e)),
            None => Ok(()),
        }
    }

    /// A listing that goes on after a failure: from the last name seen where the store lists in
    /// order, from the start while nothing has been handed out; otherwise it fails.
    pub(super) fn list_from(
        &self,
        prefix: Option<Path>,
        offset: Option<Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = Listing {
            retry: self.clone(),
            budget: self.attempts.read_budget(),
            prefix,
            after: offset,
            handed_out: false,
            inner: None,
        };
        stream::try_unfold(listing, |mut listing| async move {
            Ok(listing.next().await?.map(|meta| (meta, listing)))
        })
        .boxed()
    }
}

/// State of one listing in progress.
struct Listing {
    retry: Retry,
    budget: Budget,
    prefix: Option<Path>,
    after: Option<Path>,
    handed_out: bool,
    inner: Option<BoxStream<'static, Result<ObjectMeta>>>,
}

impl Listing {
    async fn next(&mut self) -> Result<Option<ObjectMeta>> {
        let attempts = self.retry.attempts.clone();
        let mut clock = attempts.start(self.budget);
        loop {
            // The names of a page come one by one; the first of them waits for the request.
            let _timed = self.inner.is_none().then(|| attempts.stats().begin(RequestKind::List));
            if self.inner.is_none() {
                RequestStats::add(&attempts.stats().list, 1);
                self.inner = Some(match &self.after {
                    Some(after) => self.retry.inner.list_with_offset(self.prefix.as_ref(), after),
                    None => self.retry.inner.list(self.prefix.as_ref()),
                });
            }
            let inner = self.inner.as_mut().expect("set just above");
            let next = async { inner.next().await.transpose() };
            let next = self.budget.limit(0, "waiting for the listing", next).await;
            match attempts.note(next) {
                Ok(Some(meta)) => {
                    if attempts.options().list_ordered {
                        self.after = Some(meta.location.clone());
                    }
                    self.handed_out = true;
                    return Ok(Some(meta));
                }
                Ok(None) => return Ok(None),
                Err(e) if self.handed_out && !attempts.options().list_ordered => return Err(e),
                Err(e) => {
                    self.inner = None;
                    let shown = self.prefix.clone().unwrap_or_default();
                    clock.pause("list", &shown, e).await?;
                }
            }
        }
    }
}
