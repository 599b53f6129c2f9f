//! Work under way that several may wait for.

use std::future::Future;

use tokio::sync::watch;

/// What somebody is about to bring; clones wait for the same. Waiting may be given up at
/// any point, unlike that for a `futures::future::Shared`, of which a waiter that goes can take
/// another's wake-up with it (futures-rs issue 2706).
#[derive(Clone, Debug)]
pub struct Underway<T>(watch::Receiver<Option<T>>);

/// Held by who brings it; dropped without a value, nothing will come.
#[derive(Debug)]
pub struct Promise<T>(watch::Sender<Option<T>>);

impl<T> Promise<T> {
    /// Hands `value` to all who wait, now or later.
    pub fn keep(&self, value: T) {
        self.0.send_replace(Some(value));
    }
}

impl<T: Clone + Send + Sync + 'static> Underway<T> {
    /// For work that the caller does itself.
    pub fn promised() -> (Promise<T>, Underway<T>) {
        let (tell, told) = watch::channel(None);
        (Promise(tell), Underway(told))
    }

    /// Starts `work` as a task of the current runtime. It runs to its end whoever waits.
    pub fn start(work: impl Future<Output = T> + Send + 'static) -> Underway<T> {
        let (promise, underway) = Underway::promised();
        tokio::spawn(async move { promise.keep(work.await) });
        underway
    }

    /// What has been brought already.
    pub fn done(value: T) -> Underway<T> {
        Underway(watch::channel(Some(value)).1)
    }

    /// Whether nothing will come.
    pub fn is_given_up(&self) -> bool {
        self.0.has_changed().is_err() && self.0.borrow().is_none()
    }

    /// What it brought, if it has.
    pub fn now(&self) -> Option<T> {
        self.0.borrow().clone()
    }

    /// Waits for the end; `None` if the work was given up or panicked, or its runtime is gone.
    pub async fn wait(mut self) -> Option<T> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::time::Duration;

    #[tokio::test]
    async fn everybody_gets_what_comes_whoever_gives_up() {
        // Guards against a wait that hangs because another ended.
        let (go, gone) = tokio::sync::oneshot::channel::<u32>();
        let work = Underway::start(async move { gone.await.expect("sent") });
        assert_eq!(work.now(), None);
        assert_eq!(work.clone().wait().now_or_never(), None);
        let waiters: Vec<_> = (0..10).map(|_| tokio::spawn(work.clone().wait())).collect();
        tokio::task::yield_now().await;
        waiters.iter().step_by(2).for_each(|waiter| waiter.abort());
        go.send(7).expect("is waited for");
        for waiter in waiters.into_iter().skip(1).step_by(2) {
            assert_eq!(waiter.await.expect("not aborted"), Some(7));
        }
        assert_eq!(work.now(), Some(7));
        assert_eq!(Underway::done(8).wait().await, Some(8));
    }

    #[tokio::test]
    async fn work_that_panics_is_not_waited_for() {
        let work = Underway::<u32>::start(async { panic!("meant") });
        let ended = tokio::time::timeout(Duration::from_secs(10), work.wait()).await;
        assert_eq!(ended.expect("ends"), None);
        let (promise, work) = Underway::<u32>::promised();
        assert!(!work.is_given_up());
        drop(promise);
        assert!(work.is_given_up() && !Underway::done(1).is_given_up());
    }
}
