//! A turn that is under way.

use std::sync::{Mutex, PoisonError};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// What a turn is told and holds: when to stop, and a place among the turns that work. The place is given up for good where the turn has
/// to wait for its seller's rate, which takes minutes: another seller's turn begins meanwhile.
pub(super) struct UnderWay {
    cancel: CancellationToken,
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl UnderWay {
    pub(super) const fn new(cancel: CancellationToken, place: OwnedSemaphorePermit) -> Self {
        Self { cancel, place: Mutex::new(Some(place)) }
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
