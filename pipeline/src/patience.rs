//! How long an answer may take: a network that swallows everything, and gives no error, would keep a role waiting for ever.

use std::future::Future;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Longest patience (chosen: no statement of ours takes as long).
const PATIENCE_MAX: Duration = Duration::from_secs(6 * 3_600);
/// How long an answer may take once the process is told to stop (chosen: well below what draining may take in all). What is called off
/// then is as if the process had been killed: it is done again at the next start.
const STOPPING_MAX: Duration = Duration::from_secs(20);

/// Waits so long for an answer, and each time in a row that none comes twice as long: what is only slow comes to its end.
#[derive(Debug)]
pub(crate) struct Patience {
    first_ms: u64,
    now_ms: AtomicU64,
    stop: OnceLock<CancellationToken>,
    stopping_max: Duration,
}

impl Patience {
    /// Patience of `first` to begin with.
    pub(crate) fn new(first: Duration) -> Self {
        let first_ms = u64::try_from(first.as_millis()).unwrap_or(u64::MAX);
        Self { first_ms, now_ms: AtomicU64::new(first_ms), stop: OnceLock::new(), stopping_max: STOPPING_MAX }
    }

    /// From `stop` on it waits for no answer longer than a process has to drain. The first call counts.
    pub(crate) fn ends_with(&self, stop: &CancellationToken) {
        drop(self.stop.set(stop.clone()));
    }

    /// What `work` answers; `None` where it took too long, and was called off.
    pub(crate) async fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let limit = Duration::from_millis(self.now_ms.load(Ordering::Relaxed)).min(PATIENCE_MAX);
        let stopping = async {
            match self.stop.get() {
                Some(stop) => stop.cancelled().await,
                None => std::future::pending().await,
            }
            tokio::time::sleep(self.stopping_max).await;
        };
        let answer = tokio::select! {
            answer = tokio::time::timeout(limit, work) => answer.ok(),
            () = stopping => return None,
        };
        let next = if answer.is_some() { self.first_ms } else { self.now_ms.load(Ordering::Relaxed).saturating_mul(2) };
        self.now_ms.store(next, Ordering::Relaxed);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ends_soon_after_a_stop() {
        let stop = CancellationToken::new();
        let patience = Patience { stopping_max: Duration::from_millis(10), ..Patience::new(Duration::from_secs(3_600)) };
        patience.ends_with(&stop);
        stop.cancel();
        assert_eq!(patience.wait(std::future::pending::<()>()).await, None);
        assert_eq!(patience.wait(std::future::ready(7)).await, Some(7), "what answers is not called off");
    }

    #[tokio::test]
    async fn it_doubles_while_nothing_is_answered_and_begins_anew_with_an_answer() {
        let patience = Patience::new(Duration::from_millis(10));
        let limit = || patience.now_ms.load(Ordering::Relaxed);
        for doubled in [20, 40] {
            assert_eq!(patience.wait(std::future::pending::<()>()).await, None);
            assert_eq!(limit(), doubled);
        }
        assert_eq!(patience.wait(std::future::ready(7)).await, Some(7));
        assert_eq!(limit(), 10);
    }
}
