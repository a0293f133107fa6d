//! After a restore of the key database: counts the sealed blocks that nobody can open any more, once everything that could be fetched
//! again was, and tombstones them.
//!
//! A block is lost when its key is unknown or destroyed and its order was not sealed anew. It is looked at twice: before its tombstone,
//! and behind it, so that one that was sealed anew in between is published once more.

use std::collections::{BTreeSet, HashMap, HashSet};

use sunder_retention::keydb::DbError;
use sunder_retention::restore::{self, Lost};
use sunder_retention::store::{EventLog, StoreError};
use sunder_schemas::class::Family;
use sunder_schemas::ids::{EntityToken, KeyId, Partition, SellerId};
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{PiiRecord, Record as _};
use sunder_schemas::topic::Topic;

use crate::app::App;
use crate::kafka::log::CASE_HEADER;
use crate::kafka::{Kafka, KafkaError, OutRecord};
use crate::registry::{Schemas, Unread};

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

/// A sealed block that is the latest of its key.
#[derive(Debug, Clone)]
struct Block {
    topic: String,
    partition: Partition,
    key: Vec<u8>,
    seller: SellerId,
    entity: EntityToken,
    data_key: KeyId,
}

/// Counts and tombstones what a restore lost, if one waits for it and everything was read again; returns whether it did.
pub(super) async fn settle(app: &App) -> Result<bool, LostError> {
    let db = app.base.keyring.db();
    let Some(noticed) = restore::unsettled(db).await? else { return Ok(false) };
    if !restore::is_read_again(db, &noticed, app.base.clock.now()).await? || !app.log.split_past(&app.log.raw_ends().await?).await? {
        return Ok(false);
    }
    let blocks = latest_blocks(app).await?;
    let keys: HashSet<KeyId> = blocks.iter().map(|block| block.data_key).collect();
    let missing = restore::without_key(db, &keys).await?;
    let mut lost: Vec<Block> = blocks.into_iter().filter(|block| missing.contains(&block.data_key)).collect();
    let entities: Vec<_> = lost.iter().map(|block| (block.seller.clone(), block.entity)).collect();
    let live = restore::sealed_again(db, &entities).await?;
    lost.retain(|block| !live.contains(&(block.seller.clone(), block.entity)));
    bury(&app.kafka, &format!("restore-{}", noticed.id), &lost).await?;

    let entities: BTreeSet<(SellerId, EntityToken)> = lost.iter().map(|block| (block.seller.clone(), block.entity)).collect();
    let entities: Vec<_> = entities.into_iter().collect();
    let sealed_meanwhile = restore::sealed_again(db, &entities).await?;
    restore::publish_again(db, &sealed_meanwhile).await?;
    let mut count = Lost { orders: entities.into_iter().filter(|entity| !sealed_meanwhile.contains(entity)).collect(), ..Lost::default() };
    for block in lost {
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

/// The latest block of every key of the sealed topics.
async fn latest_blocks(app: &App) -> Result<Vec<Block>, LostError> {
    let (kafka, schemas, handle) = (app.kafka.clone(), std::sync::Arc::clone(&app.schemas), tokio::runtime::Handle::current());
    let read = crate::kafka::blocking(move || {
        let mut latest: HashMap<(String, Vec<u8>), Option<Block>> = HashMap::new();
        let mut unknown = BTreeSet::new();
        for _ in 0..2 {
            latest.clear();
            read_blocks(&kafka, &schemas, &mut latest, &mut unknown)?;
            // A schema that is new to this process is asked for, and everything is read once more.
            if unknown.is_empty() {
                break;
            }
            for id in std::mem::take(&mut unknown) {
                handle.block_on(schemas.learn(id)).map_err(|_| KafkaError::own("read a sealed block", "SchemaUnknown"))?;
            }
        }
        Ok(latest.into_values().flatten().collect())
    });
    Ok(read.await?)
}

fn read_blocks(
    kafka: &Kafka,
    schemas: &Schemas,
    latest: &mut HashMap<(String, Vec<u8>), Option<Block>>,
    unknown: &mut BTreeSet<u32>,
) -> Result<(), KafkaError> {
    for topic in Family::ALL.iter().map(|family| Topic::Pii(*family)) {
        let name = kafka.topic(topic);
        let ranges: Vec<_> = (0..kafka.partitions(topic)).map(|n| kafka.whole_blocking(&name, Partition(n))).collect::<Result<_, _>>()?;
        kafka.read_blocking(&ranges, |record| {
            let Some(key) = record.key.filter(|_| !record.is_own()) else { return Ok(()) };
            let block = match record.value.map(|value| schemas.body(RecordType::Pii, value)) {
                None => None,
                Some(Ok(body)) => PiiRecord::decode(&body).ok().map(|row| Block {
                    topic: name.clone(),
                    partition: record.partition,
                    key: key.to_vec(),
                    data_key: row.block.key(),
                    seller: row.attribution.selling_partner_id.clone(),
                    entity: row.entity_token,
                }),
                Some(Err(Unread::Learn(id))) => {
                    unknown.insert(id);
                    None
                }
                // A stranger's record: the sinks leave it out and say so.
                Some(Err(Unread::Never(_))) => None,
            };
            latest.insert((name.clone(), key.to_vec()), block);
            Ok(())
        })?;
    }
    Ok(())
}

async fn bury(kafka: &Kafka, case: &str, blocks: &[Block]) -> Result<(), KafkaError> {
    let batch = kafka.producer().batch();
    for block in blocks {
        let headers = [(CASE_HEADER, case.as_bytes())];
        batch.send(OutRecord { topic: &block.topic, partition: block.partition, key: &block.key, value: None, headers: &headers })?;
    }
    batch.acked().await?;
    Ok(())
}
