//! Asking again while a store is busy or away: for single requests outside a mount, where no
//! [`Retry`](super::Retry) is between. Called by `stack/` and `exchange/`.

use super::error::class;
use std::future::Future;
use std::time::Duration;

/// How long it is asked again.
pub struct Patience {
    /// Attempts of one request.
    pub attempts_max: u32,
    /// Before the second; it doubles with each further one.
    pub pause: Duration,
    /// The longest.
    pub pause_max: Duration,
}

/// For about six seconds, and as long as the attempts themselves take.
const USUAL: Patience = Patience {
    attempts_max: 6,
    pause: Duration::from_millis(200),
    pause_max: Duration::from_secs(5),
};

/// Asks again what failed for now, a bounded number of times: for about six seconds, and as long as
/// the attempts themselves take.
///
/// # Errors
/// That of the last attempt, or the first that asking again does not help.
pub async fn patiently<T, F>(ask: impl Fn() -> F) -> object_store::Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    patiently_while(&USUAL, || true, ask).await
}

/// As [`patiently`], so often, and only as long as the answer is `wanted`.
///
/// # Errors
/// As [`patiently`].
pub async fn patiently_while<T, F>(
    patience: &Patience,
    wanted: impl Fn() -> bool,
    ask: impl Fn() -> F,
) -> object_store::Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    let mut pause = patience.pause;
    for _ in 1..patience.attempts_max {
        match ask().await {
            Err(e) if class(&e).is_retryable() && wanted() => {
                log::debug!("asking again: {e}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(patience.pause_max);
            }
            outcome => return outcome,
        }
    }
    ask().await
}
