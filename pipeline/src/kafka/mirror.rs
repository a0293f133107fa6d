//! Reads what the log mirrors of the key database (`privacy.erased`): its newest generation, and the erased ledger whole.

use sunder_retention::mirror::{Generation, Mirrored};
use sunder_schemas::ids::{Offset, Partition};
use sunder_schemas::topic::Topic;

use crate::kafka::error::KafkaError;
use crate::kafka::reader::Range;
use crate::kafka::{Kafka, blocking};

/// Offsets from the end that are read first for the newest generation: it lies before each batch of at most 1000 erasures, and at least
/// one heartbeat a ten minutes comes behind it (chosen: a few hundred KB).
const TAIL: i64 = 4096;
/// Records that are handed over at once (chosen: some 300 KB).
const BATCH: usize = 1000;
/// The topic has one partition: the order of its records is that of the ledger.
const PARTITION: Partition = Partition(0);

impl Kafka {
    /// The newest generation that was mirrored; `None` where there is none, or not even its topic.
    ///
    /// # Errors
    /// [`KafkaError`]: whether the key database was restored is not known.
    pub async fn newest_generation(&self) -> Result<Option<Generation>, KafkaError> {
        let this = self.clone();
        blocking(move || {
            let topic = this.topic(Topic::PrivacyErased);
            let (low, high) = match this.bounds_blocking(&topic, PARTITION) {
                Err(error) if error.is_unknown_topic() => return Ok(None),
                bounds => bounds?,
            };
            let tail = Offset(low.0.max(high.0 - TAIL));
            let newest = this.newest_in(&topic, tail, high)?;
            if newest.is_some() || tail == low { Ok(newest) } else { this.newest_in(&topic, low, tail) }
        })
        .await
    }

    fn newest_in(&self, topic: &str, from: Offset, to: Offset) -> Result<Option<Generation>, KafkaError> {
        let mut newest: Option<Generation> = None;
        self.read_mirror(topic, from, to, |record| {
            if let Mirrored::Generation(generation) = record
                && newest.as_ref().is_none_or(|known| known.database != generation.database || known.generation < generation.generation)
            {
                newest = Some(generation);
            }
            Ok(())
        })?;
        Ok(newest)
    }

    /// Gives every record of the mirror to `each`, in batches and in order. Blocks.
    ///
    /// # Errors
    /// [`KafkaError`], `Unreadable` for a record that is not ours: what was erased is then not known in full.
    pub fn mirrored_blocking(&self, mut each: impl FnMut(Vec<Mirrored>) -> Result<(), KafkaError>) -> Result<(), KafkaError> {
        let topic = self.topic(Topic::PrivacyErased);
        let (low, high) = self.bounds_blocking(&topic, PARTITION)?;
        let mut batch = Vec::with_capacity(BATCH);
        self.read_mirror(&topic, low, high, |record| {
            batch.push(record);
            if batch.len() < BATCH { Ok(()) } else { each(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))) }
        })?;
        each(batch)
    }

    /// Gives key and value of every record of `topic`, which has one partition, that has both to `each`. Blocks.
    ///
    /// # Errors
    /// [`KafkaError`], or what `each` returned.
    pub fn whole_topic_blocking(
        &self,
        topic: Topic,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), KafkaError>,
    ) -> Result<(), KafkaError> {
        let range = self.whole_blocking(&self.topic(topic), PARTITION)?;
        self.read_blocking(std::slice::from_ref(&range), |record| match record.value {
            Some(value) if !record.is_own() => each(record.key.unwrap_or_default(), value),
            _ => Ok(()),
        })?;
        Ok(())
    }

    fn read_mirror(
        &self,
        topic: &str,
        from: Offset,
        to: Offset,
        mut each: impl FnMut(Mirrored) -> Result<(), KafkaError>,
    ) -> Result<(), KafkaError> {
        let range = Range { topic: topic.to_owned(), partition: PARTITION, from, to };
        self.read_blocking(std::slice::from_ref(&range), |record| {
            let unreadable = |_| KafkaError::own(format!("read {topic}[{PARTITION}]@{}", record.offset), "Unreadable");
            match Mirrored::read(record.key.unwrap_or_default(), record.value).map_err(unreadable)? {
                Some(mirrored) => each(mirrored),
                None => Ok(()),
            }
        })?;
        Ok(())
    }
}
