//! After a restore of the key database: counts the sealed blocks that nobody can open any more, once everything that could be fetched
//! again was, and tombstones them; legal holds among them.
//!
//! A block is lost when its key is unknown and its order was neither erased nor sealed anew. It is looked at twice: before its tombstone,
//! and behind it, so that one that was sealed anew in between is published once more.

use std::collections::{BTreeSet, HashSet};

use sunder_retention::keydb::{DbError, KeyDb};
use sunder_retention::restore::{self, Lost};
use sunder_retention::sellers;
use sunder_retention::store::{EventLog, Extent, Forget as _, StoreError, Subject};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, KeyId, SellerId};
use sunder_sinks::Vault;

use super::blocks::{bury, latest, places};
use crate::app::App;
use crate::kafka::KafkaError;

/// Rows of the cold store that are read at once (chosen: below a megabyte).
const HELD_ROWS: usize = 1_000;

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
    count.holds = forget_lost_holds(&app.vault, db).await?;
    restore::settle(&app.base.keyring, &noticed, &count).await?;
    let blocks: u64 = count.blocks.values().sum();
    if blocks > 0 || !count.holds.is_empty() {
        let (orders, holds) = (count.orders.len(), count.holds.len());
        tracing::error!(blocks, orders, holds, "personal data was lost with the key database; `sunder check` names it");
    } else {
        tracing::info!("nothing was lost with the key database: all of it was fetched again");
    }
    Ok(true)
}

/// The holds whose key is unknown: no topic feeds the cold store, so what a restored database does not know of is lost. Its blocks are
/// deleted, since nobody opens them any more.
async fn forget_lost_holds(vault: &Vault, db: &KeyDb) -> Result<Vec<(SellerId, EntityToken)>, LostError> {
    let mut lost = BTreeSet::new();
    for seller in sellers::list(db).await? {
        for group in FieldGroup::ALL {
            let mut after = None;
            loop {
                let page = vault.held_page(&seller.id, *group, after, HELD_ROWS).await?;
                after = page.last().map(|(hold, _)| *hold);
                let missing = restore::without_key(db, &page.iter().map(|(_, key)| *key).collect()).await?;
                lost.extend(page.iter().filter(|(_, key)| missing.contains(key)).map(|(hold, _)| (seller.id.clone(), *hold)));
                if page.len() < HELD_ROWS {
                    break;
                }
            }
        }
    }
    // One that has ended is no loss, and its case looks for what it left.
    let ended = restore::erased(db, &lost.iter().cloned().collect::<Vec<_>>()).await?;
    lost.retain(|hold| !ended.contains(hold));
    let subjects: Vec<Subject> =
        lost.iter().map(|(seller, token)| Subject { seller: seller.clone(), token: *token, keys: Vec::new() }).collect();
    if !subjects.is_empty() {
        vault.forget(&subjects, Extent::Personal).await?;
    }
    Ok(lost.into_iter().collect())
}
