//! Heartbeats: one null record per partition of each compacted topic, so that segments roll and the cleaner reaches them.
//!
//! Without an append nothing rolls: a tombstone on an idle partition would never take its value away (kafka-confirmed, claim 1).
//! `~hb` is a tombstone of a key that never had a value, so readers of typed topics see nothing new.

use std::time::Duration;

use sunder_retention::store::Mark;
use sunder_schemas::ids::Partition;
use sunder_schemas::topic::Topic;
use tokio_util::sync::CancellationToken;

use crate::kafka::error::KafkaError;
use crate::kafka::{Kafka, OutRecord};

/// Key of a heartbeat.
pub const HEARTBEAT_KEY: &str = "~hb";

impl Kafka {
    /// Appends one heartbeat to every partition of `topics` and returns where they lie.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where one was not acknowledged.
    pub async fn beat(&self, topics: &[Topic]) -> Result<Vec<Mark>, KafkaError> {
        let batch = self.producer().batch();
        for topic in topics {
            let name = self.topic(*topic);
            for partition in 0..self.partitions(*topic) {
                batch.send(OutRecord {
                    topic: &name,
                    partition: Partition(partition),
                    key: HEARTBEAT_KEY.as_bytes(),
                    value: None,
                    headers: &[],
                })?;
            }
        }
        Ok(batch.acked().await?)
    }
}

/// Sends heartbeats at the profile's period until `stop`. One process of a deployment is enough; more do no harm.
pub async fn run(kafka: Kafka, stop: CancellationToken) {
    let topics: Vec<Topic> = Topic::all().into_iter().filter(|topic| topic.is_compacted()).collect();
    let mut due = tokio::time::interval(Duration::from_millis(kafka.settings().times().heartbeat_ms.unsigned_abs()));
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = due.tick() => {}
        }
        if let Err(error) = kafka.beat(&topics).await {
            // The next one is due soon, and `Health` says so once where the broker is away.
            tracing::warn!(code = error.code(), "heartbeats were not acknowledged");
        }
    }
}
