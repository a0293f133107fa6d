//! Reads what is known of a partition's entities back from `state.*`.
//!
//! Children are read too: a crash may have come between an order's row and the tombstones of its vanished children, and what the order
//! no longer names must not stay. Such orphans are handed back to be tombstoned.

use std::collections::HashSet;

use sunder_schemas::class::{Family, Kind};
use sunder_schemas::ids::{EntityToken, Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::records::StateRecord;
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::topic::Topic;

use super::runner::SplitError;
use super::versions::Versions;
use crate::kafka::{Kafka, Record};
use crate::registry::{RegistryError, Schemas, Unread};

/// A partition as its state topics show it.
pub(super) struct Rebuilt {
    pub(super) versions: Versions,
    /// Keys on `state.*` of children that their order no longer names.
    pub(super) orphans: Vec<(Kind, String)>,
}

/// The kind of a family's own rows, and those of its children.
const fn kinds_of(family: Family) -> (Kind, &'static [Kind]) {
    match family {
        Family::Orders => (Kind::Orders, &[Kind::OrderItems, Kind::Packages]),
        Family::Inventory => (Kind::InventoryLevels, &[]),
    }
}

/// Seller, entity and child of a key on `state.*`.
fn parse_key(key: &[u8]) -> Option<(SellerId, EntityToken, Option<EntityToken>)> {
    let parts = key::split(key)?;
    match parts.as_slice() {
        [seller, entity] => Some((SellerId::parse(seller).ok()?, EntityToken::parse(entity).ok()?, None)),
        [seller, entity, child] => {
            Some((SellerId::parse(seller).ok()?, EntityToken::parse(entity).ok()?, Some(EntityToken::parse(child).ok()?)))
        }
        _ => None,
    }
}

/// Reads the state topics of a partition from end to end. Blocks.
pub(super) fn rebuild(
    kafka: &Kafka,
    schemas: &Schemas,
    learn: &dyn Fn(u32) -> Result<(), RegistryError>,
    family: Family,
    partition: Partition,
) -> Result<Rebuilt, SplitError> {
    let (own, children) = kinds_of(family);
    let mut versions = Versions::default();
    let mut failed = None;
    let mut unreadable = 0u64;
    read(kafka, own, partition, &mut |record| {
        let Some((seller, entity, None)) = record.key.and_then(parse_key) else { return };
        match record.value {
            // A level is no order that was erased: its tombstone says that it was not seen for long, and it may be listed again.
            None | Some([]) if family == Family::Inventory => versions.forget(&seller, entity),
            None | Some([]) => versions.restore_tombstone(&seller, entity),
            Some(value) => match row_of(schemas, learn, own, value) {
                Ok(Some(row)) => versions.restore(&row),
                Ok(None) => unreadable += 1,
                Err(error) => failed = Some(error),
            },
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if unreadable > 0 {
        // Someone else wrote to a topic of ours; what cannot be read can hold nothing back.
        tracing::warn!(kind = %own, %partition, records = unreadable, "state records that are not ours were passed over");
    }
    let mut orphans = Vec::new();
    for kind in children {
        let mut found: HashSet<String> = HashSet::new();
        read(kafka, *kind, partition, &mut |record| {
            let Some((seller, entity, Some(child))) = record.key.and_then(parse_key) else { return };
            let text = key::state_key(&seller, entity, Some(child));
            let is_live = record.value.is_some_and(|value| !value.is_empty());
            if is_live && versions.names_child(&seller, entity, *kind, child) == Some(false) {
                found.insert(text);
            } else {
                found.remove(&text);
            }
        })?;
        orphans.extend(found.into_iter().map(|key| (*kind, key)));
    }
    Ok(Rebuilt { versions, orphans })
}

fn read(kafka: &Kafka, kind: Kind, partition: Partition, each: &mut dyn FnMut(&Record<'_>)) -> Result<(), SplitError> {
    let range = kafka.whole_blocking(&kafka.topic(Topic::State(kind)), partition)?;
    kafka.read_blocking(&[range], |record| {
        if !record.is_own() {
            each(record);
        }
        Ok(())
    })?;
    Ok(())
}

fn row_of(
    schemas: &Schemas,
    learn: &dyn Fn(u32) -> Result<(), RegistryError>,
    kind: Kind,
    value: &[u8],
) -> Result<Option<StateRecord>, RegistryError> {
    let record = RecordType::State(kind);
    let mut body = schemas.body(record, value);
    if let Err(Unread::Learn(id)) = body {
        learn(id)?;
        body = schemas.body(record, value);
    }
    Ok(body.ok().and_then(|body| StateRecord::decode(kind, &body).ok()))
}
