//! A dataset's cursor and gaps as one turn holds them: read once, moved by compare-and-set.

use sunder_retention::cursor::{self, CursorMove, Gap, PageCommit};
use sunder_retention::keys::{KeyError, Keyring};
use sunder_schemas::class::Dataset;
use sunder_schemas::ids::SellerId;
use sunder_schemas::time::Timestamp;

use super::cursor::{Window, advance};
use super::error::PollError;

/// After so many tries a gap is left open for a person: `sunder check` names it (chosen).
const GAP_TRIES_MAX: i64 = 10;
/// Open gaps that are read again in one turn (chosen: at the published rate each costs three minutes or more).
const GAPS_PER_TURN: usize = 2;

/// The cursor of one dataset of one seller.
#[derive(Debug)]
pub(super) struct Mark {
    seller: SellerId,
    dataset: Dataset,
    version: i64,
    position: Option<Timestamp>,
    detail: String,
    /// Where the oldest open gap begins.
    hole: Option<Timestamp>,
}

impl Mark {
    pub(super) async fn read(keyring: &Keyring, seller: &SellerId, dataset: Dataset) -> Result<Self, PollError> {
        let cursor = cursor::read(keyring.db(), seller, dataset).await.map_err(KeyError::from)?;
        let gaps = cursor::open_gaps(keyring.db(), Some(seller)).await.map_err(KeyError::from)?;
        let hole = gaps.iter().filter(|gap| gap.dataset == dataset).map(|gap| gap.from).min();
        let mark = Self { seller: seller.clone(), dataset, version: 0, position: None, detail: "{}".to_owned(), hole };
        Ok(match cursor {
            Some(cursor) => Self { version: cursor.version, position: Some(cursor.position), detail: cursor.detail, ..mark },
            None => mark,
        })
    }

    /// Everything changed before it is acknowledged by Kafka; `None` before the first window was read.
    pub(super) const fn watermark(&self) -> Option<Timestamp> {
        self.position
    }

    /// Up to when it is known what did not change: the watermark, or the begin of the oldest open gap, whose changes were not seen.
    pub(super) fn look(&self) -> Option<Timestamp> {
        self.position.map(|at| self.hole.map_or(at, |hole| hole.min(at)))
    }

    /// The poller's own JSON beside the position.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// Moves the cursor to `end`, if that is later.
    ///
    /// # Errors
    /// [`PollError::Fenced`] where another process moved it.
    pub(super) async fn advance(&mut self, keyring: &Keyring, end: Timestamp, detail: Option<String>) -> Result<(), PollError> {
        let Some(position) = advance(self.position, Some(end)) else { return Ok(()) };
        if self.position == Some(position) && detail.is_none() {
            return Ok(());
        }
        let detail = detail.unwrap_or_else(|| self.detail.clone());
        let to = CursorMove { dataset: self.dataset, expected_version: self.version, position, detail: detail.clone() };
        keyring.commit_page(&self.seller, PageCommit { cursor: Some(to), ..PageCommit::default() }).await?;
        self.version += 1;
        self.position = Some(position);
        self.detail = detail;
        Ok(())
    }

    /// Opens a gap over `window`, which must be bounded, or counts one more try of it.
    pub(super) async fn open_gap(&mut self, keyring: &Keyring, window: Window, code: &str) -> Result<(), PollError> {
        let until = window.to.unwrap_or(window.from);
        self.hole = Some(self.hole.map_or(window.from, |hole| hole.min(window.from)));
        let gap = Gap {
            seller: self.seller.clone(),
            dataset: self.dataset,
            from: window.from,
            until,
            code: code.to_owned(),
            tries: 1,
            is_open: true,
        };
        tracing::warn!(seller = %self.seller, dataset = self.dataset.as_str(), code, from = %window.from, until = %until, "a gap is open");
        let mut tx = keyring.db().begin_write().await.map_err(KeyError::from)?;
        cursor::open_gap(&mut tx, &gap, keyring.now()).await.map_err(KeyError::from)?;
        commit(tx).await
    }

    /// Closes the gaps within `from` and `to`: all of it was read.
    pub(super) async fn close_gaps(&self, keyring: &Keyring, from: Timestamp, to: Timestamp) -> Result<(), PollError> {
        let mut tx = keyring.db().begin_write().await.map_err(KeyError::from)?;
        cursor::close_gaps(&mut tx, &self.seller, self.dataset, (from, to), keyring.now()).await.map_err(KeyError::from)?;
        commit(tx).await
    }

    /// The open gaps that this turn should read again.
    pub(super) async fn gaps_to_try(&self, keyring: &Keyring) -> Result<Vec<Window>, PollError> {
        let gaps = cursor::open_gaps(keyring.db(), Some(&self.seller)).await.map_err(KeyError::from)?;
        Ok(gaps
            .into_iter()
            .filter(|gap| gap.dataset == self.dataset && gap.tries < GAP_TRIES_MAX && gap.from < gap.until)
            .take(GAPS_PER_TURN)
            .map(|gap| Window { from: gap.from, to: Some(gap.until) })
            .collect())
    }
}

async fn commit(tx: sunder_retention::keydb::Write) -> Result<(), PollError> {
    tx.commit().await.map_err(|_| PollError::Keys { code: "commit".to_owned() })
}
