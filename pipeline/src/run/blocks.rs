//! The sealed blocks on the log, each the latest of its key, one partition at a time: what nobody reads but who looks for blocks that should
//! not be.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sunder_schemas::class::Family;
use sunder_schemas::ids::{EntityToken, KeyId, Partition, SellerId};
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{PiiRecord, Record as _};
use sunder_schemas::topic::Topic;

use crate::kafka::log::CASE_HEADER;
use crate::kafka::{Kafka, KafkaError, OutRecord};
use crate::registry::{Schemas, Unread};

/// A sealed block that is the latest of its key.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) topic: String,
    pub(super) partition: Partition,
    pub(super) key: Vec<u8>,
    pub(super) seller: SellerId,
    pub(super) entity: EntityToken,
    pub(super) data_key: KeyId,
}

/// Every partition of the sealed topics.
pub(super) fn places(kafka: &Kafka) -> Vec<(Topic, Partition)> {
    let topics = Family::ALL.iter().map(|family| Topic::Pii(*family));
    topics.flat_map(|topic| (0..kafka.partitions(topic)).map(move |n| (topic, Partition(n)))).collect()
}

/// The latest block of every key of one partition.
///
/// # Errors
/// [`KafkaError`]: nothing is known of it.
pub(super) async fn latest(kafka: &Kafka, schemas: &Arc<Schemas>, topic: Topic, partition: Partition) -> Result<Vec<Block>, KafkaError> {
    let (kafka, schemas, handle) = (kafka.clone(), Arc::clone(schemas), tokio::runtime::Handle::current());
    let read = crate::kafka::blocking(move || {
        let mut latest = HashMap::new();
        let mut unknown = BTreeSet::new();
        for _ in 0..2 {
            latest.clear();
            read(&kafka, &schemas, (topic, partition), &mut latest, &mut unknown)?;
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
    read.await
}

fn read(
    kafka: &Kafka,
    schemas: &Schemas,
    (topic, partition): (Topic, Partition),
    latest: &mut HashMap<Vec<u8>, Option<Block>>,
    unknown: &mut BTreeSet<u32>,
) -> Result<(), KafkaError> {
    let name = kafka.topic(topic);
    let range = kafka.whole_blocking(&name, partition)?;
    kafka.read_blocking(&[range], |record| {
        let Some(key) = record.key.filter(|_| !record.is_own()) else { return Ok(()) };
        let block = match record.value.map(|value| schemas.body(RecordType::Pii, value)) {
            None => None,
            Some(Ok(body)) => PiiRecord::decode(&body).ok().map(|row| Block {
                topic: name.clone(),
                partition,
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
        latest.insert(key.to_vec(), block);
        Ok(())
    })?;
    Ok(())
}

/// Tombstones `blocks` in the name of `case` and waits for the acknowledgement.
///
/// # Errors
/// [`KafkaError`]: some may not be.
pub(super) async fn bury(kafka: &Kafka, case: &str, blocks: &[Block]) -> Result<(), KafkaError> {
    let batch = kafka.producer().batch();
    for block in blocks {
        let headers = [(CASE_HEADER, case.as_bytes())];
        batch.send(OutRecord { topic: &block.topic, partition: block.partition, key: &block.key, value: None, headers: &headers })?;
    }
    batch.acked().await?;
    Ok(())
}
