//! The warehouse as it was at an earlier time, built from the history on `events.*`.
//!
//! Of each key the latest version counts that was collected up to that time. An order's items and packages are those that its own latest
//! version lists. What was erased with its business data is tombstoned in the history too, so it does not come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sunder_schemas::class::Kind;
use sunder_schemas::ids::{EntityToken, Offset, Partition, SellerId};
use sunder_schemas::records::StateRecord;
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;
use sunder_sinks::{Change, Sink as _, Source, Warehouse};
use tokio::runtime::Handle;

use super::replay::{Built, Replay, ReplayError};
use crate::app::App;
use crate::kafka::{KafkaError, Record, blocking};
use crate::registry::Unread;

/// Rows of one transaction (chosen: a few megabytes).
const BATCH_ROWS: usize = 5_000;

/// A version of a row, where it lies and under which event key.
struct Version {
    offset: Offset,
    event_key: Vec<u8>,
    row: StateRecord,
}

/// Latest versions by the key of their row.
type Latest = BTreeMap<String, Version>;

/// The children that orders list: by seller and order.
type Children = BTreeMap<(SellerId, EntityToken), BTreeSet<EntityToken>>;

/// Fills `beside` with the rows as of `until`.
pub(super) async fn build(replay: &Replay<'_>, beside: &Warehouse, until: Timestamp) -> Result<Built, ReplayError> {
    let app = replay.app;
    let mut built = Built::default();
    for partition in (0..app.kafka.partitions(Topic::Events(Kind::Orders))).map(Partition) {
        // Orders come first: they say which children they had.
        let orders = latest(replay, Kind::Orders, partition, until, &mut built).await?;
        let children = children_of(&orders);
        built.rows += write(app, beside, Kind::Orders, partition, until, orders).await?;
        for kind in Kind::ALL.iter().copied().filter(|kind| *kind != Kind::Orders) {
            let mut rows = latest(replay, kind, partition, until, &mut built).await?;
            rows.retain(|_, version| is_listed(&children, &version.row));
            built.rows += write(app, beside, kind, partition, until, rows).await?;
            (replay.tell)(built);
        }
    }
    Ok(built)
}

fn children_of(orders: &Latest) -> Children {
    let listed = orders.values().filter_map(|version| match &version.row {
        StateRecord::Order(row) => {
            let children = row.item_tokens.iter().chain(&row.package_tokens).copied().collect();
            Some(((version.row.seller().clone(), row.order_token), children))
        }
        StateRecord::OrderItem(_) | StateRecord::Package(_) | StateRecord::InventoryLevel(_) => None,
    });
    listed.collect()
}

/// Whether it is no child, or one that its order lists.
fn is_listed(children: &Children, row: &StateRecord) -> bool {
    let is_of = |child| children.get(&(row.seller().clone(), row.entity())).is_some_and(|listed| listed.contains(&child));
    match row {
        StateRecord::Order(_) | StateRecord::InventoryLevel(_) => true,
        StateRecord::OrderItem(_) | StateRecord::Package(_) => row.child().is_some_and(is_of),
    }
}

/// The latest version of each key of one partition that was collected up to `until`; counts what was read.
async fn latest(replay: &Replay<'_>, kind: Kind, partition: Partition, until: Timestamp, built: &mut Built) -> Result<Latest, ReplayError> {
    let (app, stop, handle) = (Arc::clone(replay.app), replay.stop.clone(), Handle::current());
    let read = move || {
        let range = app.kafka.whole_blocking(&app.kafka.topic(Topic::Events(kind)), partition)?;
        let mut latest = Latest::new();
        let mut unreadable = 0;
        let records = app.kafka.read_blocking(&[range], |record| {
            // The rest of a partition is passed over quickly once it was stopped.
            if !stop.is_cancelled() && take(&app, &handle, kind, until, record, &mut latest).is_err() {
                unreadable += 1;
                let (topic, partition, offset) = (record.topic, record.partition, record.offset);
                tracing::warn!(topic, %partition, %offset, "an event was left out: it cannot be read");
            }
            Ok(())
        })?;
        Ok::<_, KafkaError>((records, unreadable, latest))
    };
    let (records, unreadable, latest) = blocking(read).await.map_err(|e| ReplayError::of(&e))?;
    if replay.stop.is_cancelled() {
        return Err(ReplayError::Stopped);
    }
    built.records += records;
    built.unreadable += unreadable;
    Ok(latest)
}

/// An event that cannot be read.
struct Unreadable;

fn take(app: &App, handle: &Handle, kind: Kind, until: Timestamp, record: &Record<'_>, latest: &mut Latest) -> Result<(), Unreadable> {
    let Some(key) = record.key.filter(|_| !record.is_own()) else { return Ok(()) };
    let Some(value) = record.value else {
        // An event that was taken out of the history, as all of an erased order's are.
        let row = std::str::from_utf8(key).ok().and_then(|key| key.rsplit_once('|')).map_or("", |(row, _)| row);
        if latest.get(row).is_some_and(|version| version.event_key == key) {
            latest.remove(row);
        }
        return Ok(());
    };
    let mut body = app.schemas.body(RecordType::Event(kind), value);
    if let Err(Unread::Learn(id)) = body
        && handle.block_on(app.schemas.learn(id)).is_ok()
    {
        body = app.schemas.body(RecordType::Event(kind), value);
    }
    let row = body.ok().and_then(|body| StateRecord::decode_event(kind, &body).ok()).ok_or(Unreadable)?;
    let mut own_key = String::new();
    row.put_event_key(&mut own_key);
    if own_key.as_bytes() != key {
        // Its tombstone would not find it.
        return Err(Unreadable);
    }
    let rank = |row: &StateRecord| (row.source_version(), row.attribution().collected_at);
    if row.attribution().collected_at <= until && latest.get(&row.key()).is_none_or(|known| rank(&known.row) <= rank(&row)) {
        latest.insert(row.key(), Version { offset: record.offset, event_key: key.to_vec(), row });
    }
    Ok(())
}

async fn write(
    app: &App,
    beside: &Warehouse,
    kind: Kind,
    partition: Partition,
    until: Timestamp,
    latest: Latest,
) -> Result<u64, ReplayError> {
    let source = Source { topic: app.kafka.topic(Topic::State(kind)), incarnation: incarnation(until), partition };
    let mut versions: Vec<Version> = latest.into_values().collect();
    versions.sort_by_key(|version| version.offset);
    let (mut expected, mut written) = (None, 0);
    while !versions.is_empty() {
        let rest = versions.split_off(versions.len().min(BATCH_ROWS));
        let next = versions.last().map_or(Offset(0), |version| Offset(version.offset.0 + 1));
        let changes = versions.into_iter().map(|version| Change::Upsert { offset: version.offset, record: version.row }).collect();
        let applied = beside.apply(&source, expected, next, changes).await.map_err(|e| ReplayError::of(&e))?;
        (expected, written) = (Some(next), written + applied.rows_written);
        versions = rest;
    }
    Ok(written)
}

/// What stands in the place of a topic's incarnation in rows as of `until`.
fn incarnation(until: Timestamp) -> String {
    format!("as of {}", until.to_iso())
}
