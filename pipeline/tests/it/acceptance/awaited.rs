//! The one way to wait for what another process does: to look again until it is seen. Such a process tells nobody, so there is no event
//! to wait for; the limit only ends a test that would wait for ever.

use std::time::{Duration, Instant};

/// How long a state of a running process may take to show (chosen: far above what any needs, on a machine that does much else).
pub(super) const SHOWN_WITHIN: Duration = Duration::from_secs(300);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until there is something; fails with `what` after `most`.
pub(super) async fn found<T>(most: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < most, "not within {most:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Looks until `seen`; fails with `what` after `most`.
pub(super) async fn until(most: Duration, what: &str, mut seen: impl AsyncFnMut() -> bool) {
    found(most, what, async || seen().await.then_some(())).await;
}
