//! Asking again while a store is busy or away: for single requests outside a mount, where no
//! [`Retry`](super::Retry) is between. Called by `stack/`.

use super::error::class;
use std::future::Future;
use std::time::Duration;

/// Attempts of one request, and the pause before the second; it doubles with each further one.
const ATTEMPTS_MAX: u32 = 6;
const PAUSE: Duration = Duration::from_millis(200);

/// Asks again what failed for now, a bounded number of times: for about six seconds, and as long as
/// the attempts themselves take.
///
/// # Errors
/// That of the last attempt, or the first that asking again does not help.
pub async fn patiently<T, F>(ask: impl Fn() -> F) -> object_store::Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    let mut pause = PAUSE;
    for _ in 1..ATTEMPTS_MAX {
        match ask().await {
            Err(e) if class(&e).is_retryable() => {
                log::debug!("asking again: {e}");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            outcome => return outcome,
        }
    }
    ask().await
}
