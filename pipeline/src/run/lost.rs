//! After a restore of the key database: counts the sealed blocks that nobody can open any more, once everything that could be fetched
//! again was, and tombstones them.
//!
//! A block is lost when its key is unknown and its order was neither erased nor sealed anew. It is looked at twice: before its tombstone,
//! and behind it, so that one that was sealed anew in between is published once more.

use std::collections::{BTreeSet, HashSet};

use sunder_retention::keydb::DbError;
use sunder_retention::restore::{self, Lost};
use sunder_retention::store::{EventLog, StoreError};
use sunder_schemas::ids::{EntityToken, KeyId, SellerId};

use super::blocks::{bury, latest, places};
use crate::app::App;
use crate::kafka::KafkaError;

/// Why the count could not be taken; it is taken at the next round.
#[derive(Debug, thiserror::Error)]
pub(super) enum LostError {
    #[error(transparent)]
    Database(#[from] DbError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Registry(#[from] crate::registry::RegistryError),
}

/// Counts and tombstones what a restore lost, if one waits for it and everything was read again; returns whether it did.
pub(super) async fn settle(app: &App) -> Result<bool, LostError> {
    let db = app.base.keyring.db();
    let Some(noticed) = restore::unsettled(db).await? else { return Ok(false) };
    if !restore::is_read_again(db, &noticed, app.base.clock.now()).await? || !app.log.split_past(&app.log.raw_ends().await?).await? {
        return Ok(false);
    }
    let mut lost = Vec::new();
    for (topic, partition) in places(&app.kafka) {
        let blocks = latest(&app.kafka, &app.schemas, topic, partition).await?;
        let keys: HashSet<KeyId> = blocks.iter().map(|block| block.data_key).collect();
        let missing = restore::without_key(db, &keys).await?;
        lost.extend(blocks.into_iter().filter(|block| missing.contains(&block.data_key)));
    }
    let entities: Vec<_> = lost.iter().map(|block| (block.seller.clone(), block.entity)).collect();
    let live = restore::sealed_again(db, &entities).await?;
    lost.retain(|block| !live.contains(&(block.seller.clone(), block.entity)));
    bury(&app.kafka, &format!("restore-{}", noticed.id), &lost).await?;

    let entities: BTreeSet<(SellerId, EntityToken)> = lost.iter().map(|block| (block.seller.clone(), block.entity)).collect();
    let entities: Vec<_> = entities.into_iter().collect();
    let sealed_meanwhile = restore::sealed_again(db, &entities).await?;
    restore::publish_again(db, &sealed_meanwhile).await?;
    // What was erased is not lost: its case is under way, or was done again before this began.
    let erased = restore::erased(db, &entities).await?;
    let is_lost = |entity: &(SellerId, EntityToken)| !sealed_meanwhile.contains(entity) && !erased.contains(entity);
    let mut count = Lost { orders: entities.iter().filter(|entity| is_lost(entity)).cloned().collect(), ..Lost::default() };
    for block in lost.into_iter().filter(|block| is_lost(&(block.seller.clone(), block.entity))) {
        *count.blocks.entry(block.seller).or_default() += 1;
    }
    restore::settle(&app.base.keyring, &noticed, &count).await?;
    let blocks: u64 = count.blocks.values().sum();
    if blocks > 0 {
        tracing::error!(blocks, orders = count.orders.len(), "personal data was lost with the key database; `sunder check` names it");
    } else {
        tracing::info!("nothing was lost with the key database: all of it was fetched again");
    }
    Ok(true)
}
