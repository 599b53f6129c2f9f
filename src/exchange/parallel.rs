//! Work on many files at once.

use std::future::Future;
use std::io;

use tokio::task::{JoinError, JoinSet};

use super::report::{ExchangeError, Run};

/// Does `work` with each of `items`, as many at a time as the run's options say. Ends with the first
/// error, or when the run is stopped; what is under way by then ends by itself, before this does.
///
/// # Errors
/// The first of `work`; [`ExchangeError::Stopped`].
pub async fn each<I, F>(
    run: &Run,
    items: Vec<I>,
    work: impl Fn(I) -> F,
) -> Result<(), ExchangeError>
where
    F: Future<Output = Result<(), ExchangeError>> + Send + 'static,
{
    let mut at_work = JoinSet::new();
    let mut outcome = Ok(());
    for item in items {
        while at_work.len() >= run.options.parallel {
            let Some(done) = at_work.join_next().await else { break };
            outcome = outcome.and(done.map_err(ended).and_then(|done| done));
        }
        if run.is_stopped() {
            outcome = outcome.and(Err(ExchangeError::Stopped));
        }
        if outcome.is_err() {
            run.stop(); // the others end, too
            break;
        }
        at_work.spawn(work(item));
    }
    while let Some(done) = at_work.join_next().await {
        outcome = outcome.and(done.map_err(ended).and_then(|done| done));
    }
    outcome
}

fn ended(e: JoinError) -> ExchangeError {
    let what = "a task of this command".into();
    ExchangeError::Local { what, source: io::Error::other(e.to_string()) }
}
