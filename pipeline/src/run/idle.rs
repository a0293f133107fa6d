//! When there is nothing left to do: asked from the source down to the stores, each part only once the one before is at rest.

use std::time::Duration;

use sunder_retention::store::{EventLog, Forget, Mark, StoreError};
use sunder_schemas::class::{Family, Kind};
use sunder_schemas::ids::{Offset, Partition};
use sunder_schemas::topic::Topic;

use super::Ended;
use super::roles::Roles;
use crate::app::App;
use crate::kafka::KafkaError;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why a look could not be finished; the next one tries again.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Case(#[from] sunder_retention::case::CaseError),
}

/// Returns once the roles of this process have nothing left to do, or a case is blocked; pends for ever unless `until_idle`.
pub(super) async fn wait(app: &App, roles: &Roles, until_idle: bool) -> Ended {
    if !until_idle {
        return std::future::pending().await;
    }
    loop {
        match look(app, roles).await {
            Ok(Some(ended)) => return ended,
            Ok(None) => {}
            Err(error) => tracing::debug!(error = crate::telemetry::chain(&error), "could not look whether there is work left"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(app: &App, roles: &Roles) -> Result<Option<Ended>, LookError> {
    if roles.poller.as_ref().is_some_and(|poller| !poller.is_assigned() || !poller.progress().caught_up) {
        return Ok(None);
    }
    if roles.splitter.is_some() && !app.log.split_past(&app.log.raw_ends().await?).await? {
        return Ok(None);
    }
    if !roles.sinks.is_empty() && !stores_are_past(app, &ends(app).await?).await? {
        return Ok(None);
    }
    let Some(cases) = &roles.cases else { return Ok(Some(Ended::Idle)) };
    // A round that began after this look sees everything that became due before it.
    let (seen, settled) = (cases.rounds(), cases.settled());
    while cases.rounds() < seen + 2 {
        if !cases.blocked().is_empty() {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    if cases.settled() != settled {
        // Tombstones of what a restore lost are on their way to the stores.
        return Ok(None);
    }
    let blocked = cases.blocked();
    if cases.open() > blocked.len() as u64 || app.engine.due(app.base.clock.now()).await? > 0 {
        return Ok(None);
    }
    Ok(Some(if blocked.is_empty() { Ended::Idle } else { Ended::Blocked(blocked) }))
}

/// The last record of every partition that feeds a store.
async fn ends(app: &App) -> Result<Vec<Mark>, LookError> {
    let topics = Kind::ALL.iter().map(|kind| Topic::State(*kind)).chain(Family::ALL.iter().map(|family| Topic::Pii(*family)));
    Ok(ends_of(app, topics).await?)
}

/// The last record of every partition of `topics` that has one.
pub(super) async fn ends_of(app: &App, topics: impl Iterator<Item = Topic>) -> Result<Vec<Mark>, KafkaError> {
    let mut marks = Vec::new();
    for topic in topics {
        let name = app.kafka.topic(topic);
        let incarnation = app.kafka.incarnation(&name).await?;
        for partition in (0..app.kafka.partitions(topic)).map(Partition) {
            let (kafka, of) = (app.kafka.clone(), name.clone());
            let (low, end) = crate::kafka::blocking(move || kafka.bounds_blocking(&of, partition)).await?;
            if end > low {
                marks.push(Mark { topic: name.clone(), incarnation: incarnation.clone(), partition, offset: Offset(end.0 - 1) });
            }
        }
    }
    Ok(marks)
}

/// Waits for the stores to pass `marks`: the log's own heartbeats move its end all the time, so the marks stay fixed meanwhile.
async fn stores_are_past(app: &App, marks: &[Mark]) -> Result<bool, LookError> {
    /// Looks at one set of marks before new ones are taken.
    const LOOKS: u32 = 50;
    let stores: [&dyn Forget; 2] = [&*app.warehouse, &*app.vault];
    for _ in 0..LOOKS {
        let mut past = true;
        for store in stores {
            past &= store.caught_up(marks).await?;
        }
        if past {
            return Ok(true);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(false)
}
