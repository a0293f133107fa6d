//! A turn that is under way.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a page may be worked on, from its answer to the next call: what takes longer waits for a database or Kafka that is silent
/// (chosen: Kafka's own limit is 30 s, and a batch of keys takes milliseconds).
const WORKED_ON_MAX: Duration = Duration::from_secs(180);

/// What a turn is told and holds: when to stop, and a place among the turns that work. The place is given up for good where the turn has
/// to wait for its seller's rate, which takes minutes: another seller's turn begins meanwhile.
pub(super) struct UnderWay {
    cancel: CancellationToken,
    place: Mutex<Option<OwnedSemaphorePermit>>,
    /// Since when it works; `None` while it waits for the API, which has limits of its own.
    works: Mutex<Option<Instant>>,
}

impl UnderWay {
    pub(super) fn new(cancel: CancellationToken, place: OwnedSemaphorePermit) -> Self {
        Self { cancel, place: Mutex::new(Some(place)), works: Mutex::new(Some(Instant::now())) }
    }

    /// Notes that it works, or waits for the API.
    pub(super) fn note(&self, works: bool) {
        *self.works.lock().unwrap_or_else(PoisonError::into_inner) = works.then(Instant::now);
    }

    /// Ends when it has worked on one page for longer than any page takes.
    pub(super) async fn stuck(&self) {
        loop {
            let works = *self.works.lock().unwrap_or_else(PoisonError::into_inner);
            let left = works.map_or(WORKED_ON_MAX, |since| WORKED_ON_MAX.saturating_sub(since.elapsed()));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Gives the place up, if it is held still.
    pub(super) fn waits(&self) {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Ends when the turn is to stop.
    pub(super) async fn stopped(&self) {
        self.cancel.cancelled().await;
    }
}
