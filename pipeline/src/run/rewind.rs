//! What the cursors say was read must lie on the raw topics of this incarnation: where offsets were lost or a topic was made anew, the
//! cursors go back to `since` and a gap is opened, so that nothing is skipped in silence (DESIGN section 2, rule 8).

use sunder_retention::cursor::{self, Gap};
use sunder_retention::keydb::DbError;
use sunder_schemas::class::{Dataset, Family};
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;

use crate::app::App;
use crate::kafka::KafkaError;

/// Why the cursors could not be brought in line.
#[derive(Debug, thiserror::Error)]
pub(super) enum RewindError {
    /// The log.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The key database.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The sellers' tokens.
    #[error(transparent)]
    Keys(#[from] sunder_retention::keys::KeyError),
}

/// Compares the raw topics with the incarnations the cursors belong to, and rewinds where they differ.
///
/// # Errors
/// [`RewindError`]: no poller may start.
pub(super) async fn align(app: &App) -> Result<(), RewindError> {
    for family in Family::ALL {
        let topic = app.kafka.topic(Topic::Raw(*family));
        let incarnation = app.kafka.incarnation(&topic).await?;
        match cursor::known_incarnation(app.base.keyring.db(), &topic).await? {
            Some(known) if known == incarnation => {}
            known => rewind(app, *family, &topic, &incarnation, known.is_some().then_some("recreated")).await?,
        }
    }
    Ok(())
}

/// Sets the cursors of `family` back for every seller, opens a gap where `code` says why, and records the topic's incarnation.
///
/// # Errors
/// [`RewindError`]; nothing was moved.
pub(super) async fn rewind(app: &App, family: Family, topic: &str, incarnation: &str, code: Option<&str>) -> Result<(), RewindError> {
    let now = app.base.clock.now();
    let keyring = &app.base.keyring;
    let sellers = app.polled_sellers().await?;
    let mut tx = keyring.db().begin_write().await?;
    if let Some(code) = code {
        for seller in &sellers {
            for dataset in Dataset::ALL.iter().filter(|d| d.family() == family && seller.datasets.contains(d)) {
                let from = now.minus(seller.since);
                let moved = cursor::rewind(&mut tx, Some(&seller.id), *dataset, from, now).await?;
                if moved > 0 {
                    open_gap(&mut tx, seller, *dataset, (from, now), code).await?;
                    tracing::warn!(seller = %seller.id, %dataset, code, "raw events are gone; reading again from `since`");
                }
            }
        }
        cursor::forget_published(&mut tx, None).await?;
    }
    cursor::record_incarnation(&mut tx, topic, incarnation, now).await?;
    tx.commit().await.map_err(sunder_retention::keydb::on("rewind cursors"))?;
    Ok(())
}

async fn open_gap(
    tx: &mut sunder_retention::keydb::Write,
    seller: &crate::poll::PolledSeller,
    dataset: Dataset,
    window: (Timestamp, Timestamp),
    code: &str,
) -> Result<(), DbError> {
    let gap = Gap { seller: seller.id.clone(), dataset, from: window.0, until: window.1, code: code.to_owned(), tries: 0, is_open: true };
    cursor::open_gap(tx, &gap, window.1).await
}
