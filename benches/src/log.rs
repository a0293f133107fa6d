//! Topics of a bench's own on a broker that is given.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use sunder::kafka::{Kafka, KafkaSettings, OutRecord, Range};
use sunder_schemas::ids::{Offset, Partition};
use sunder_schemas::topic::{Profile, Topic};

/// Partitions of the topics of data where throughput is measured: as many as a small production has.
pub const PARTITIONS: i32 = 12;
/// Records of one batch while a topic is filled.
const FILL_BATCH: u64 = 20_000;

/// Topics under a prefix of this run, as the pipeline declares them in production.
#[derive(Debug)]
pub struct Log {
    /// The connection.
    pub kafka: Kafka,
    /// What the topics held when they were made: the pipeline's own records.
    own: BTreeMap<Topic, u64>,
}

impl Log {
    /// Connects to the brokers at `address` and makes the topics with so many `replicas`; `name` tells runs of one process apart.
    ///
    /// # Errors
    /// Where the broker does not answer or refuses.
    pub async fn open(address: &str, name: &str, profile: Profile, partitions: i32, replicas: i32) -> anyhow::Result<Self> {
        let prefix = format!("bench-{name}-{}", std::process::id());
        let settings = KafkaSettings { profile, ..KafkaSettings::plaintext(address, &prefix, partitions, replicas) };
        let kafka = Kafka::connect(settings).await?;
        kafka.apply_topics().await?;
        let mut own = BTreeMap::new();
        for topic in Topic::all() {
            own.insert(topic, held(&kafka, topic)?);
        }
        Ok(Self { kafka, own })
    }

    /// How many records were written to `topic` since it was made; exact while nothing was compacted or deleted. Blocks.
    ///
    /// # Errors
    /// Where the broker does not tell.
    pub fn written(&self, topic: Topic) -> anyhow::Result<u64> {
        Ok(held(&self.kafka, topic)? - self.own(topic))
    }

    /// How many records of the pipeline's own `topic` began with.
    #[must_use]
    pub fn own(&self, topic: Topic) -> u64 {
        self.own.get(&topic).copied().unwrap_or_default()
    }

    /// Writes `count` records that `make` draws; returns once all are acknowledged.
    ///
    /// # Errors
    /// What `make` returned, or where the broker does not take them.
    pub fn fill(&self, topic: Topic, count: u64, mut make: impl FnMut(u64, &mut Filled) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let (name, producer) = (self.kafka.topic(topic), self.kafka.producer());
        let mut record = Filled::default();
        let mut done = 0;
        while done < count {
            let batch = producer.batch();
            let until = count.min(done + FILL_BATCH);
            while done < until {
                record.value.clear();
                make(done, &mut record)?;
                let Filled { partition, key, value } = &record;
                let (key, partition) = (key.as_bytes(), Partition(*partition));
                batch.send(OutRecord { topic: &name, partition, key, value: Some(value), headers: &[] })?;
                done += 1;
            }
            batch.acked_blocking()?;
        }
        ensure!(self.written(topic)? == count, "{topic} does not hold what was written");
        Ok(())
    }

    /// The value of the first record of data on `topic`, of the first partition that has one. Blocks.
    ///
    /// # Errors
    /// Where the topic is empty or cannot be read.
    pub fn first_value(&self, topic: Topic) -> anyhow::Result<Vec<u8>> {
        let name = self.kafka.topic(topic);
        let mut value: Option<Vec<u8>> = None;
        for partition in (0..self.kafka.partitions(topic)).map(Partition) {
            let (from, end) = self.kafka.bounds_blocking(&name, partition)?;
            // The pipeline's own record may be the first.
            let range = Range { topic: name.clone(), partition, from, to: Offset(end.0.min(from.0 + 2)) };
            self.kafka.read_blocking(&[range], |record| {
                if !record.is_own() && value.is_none() {
                    value = record.value.map(<[u8]>::to_vec);
                }
                Ok(())
            })?;
            if value.is_some() {
                break;
            }
        }
        value.context("the topic holds no record with a value")
    }
}

/// How many records lie on `topic`.
fn held(kafka: &Kafka, topic: Topic) -> anyhow::Result<u64> {
    let name = kafka.topic(topic);
    let mut sum = 0;
    for partition in 0..kafka.partitions(topic) {
        let (from, to) = kafka.bounds_blocking(&name, Partition(partition))?;
        sum += u64::try_from(to.0 - from.0)?;
    }
    Ok(sum)
}

/// A record to fill a topic with.
#[derive(Debug, Default)]
pub struct Filled {
    /// Where it goes.
    pub partition: i32,
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
}
