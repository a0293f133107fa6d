//! Which sellers this process polls: the members of one consumer group share the partitions of `control.sellers`, and a seller belongs
//! to the partition of its id, so that it is polled by one process at a time.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sunder_schemas::ids::{Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::topic::Topic;
use tokio_util::sync::CancellationToken;

use crate::kafka::{GroupConsumer, Kafka, KafkaError};

/// How long one poll of the group may wait: as long as a stop may take to be noticed.
const POLL_WAIT: Duration = Duration::from_millis(250);
/// Pauses before the group is joined again: the first, and what they grow to.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Records of `control.sellers` taken at once; they are few.
const RECORDS_MAX: usize = 1_000;

/// The partitions of `control.sellers` that are ours; `None` until the group has assigned any.
#[derive(Debug, Clone, Default)]
pub(super) struct Share(Arc<RwLock<Option<HashSet<Partition>>>>);

impl Share {
    /// Whether the group has given this process its share.
    pub(super) fn is_known(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether `seller` is ours.
    pub(super) fn has(&self, seller: &SellerId, partitions: i32) -> bool {
        let partition = key::partition_of_key(key::join([seller.as_str()]).as_bytes(), partitions);
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|ours| ours.contains(&partition))
    }

    /// Keeps the membership until `stop`; where it is lost, nothing is ours until the group has us again. Blocks: runs on a thread of its
    /// own, inside the runtime.
    ///
    /// # Errors
    /// [`KafkaError::Fatal`]: the client is of no more use.
    pub(super) fn keep(&self, kafka: &Kafka, stop: &CancellationToken) -> Result<(), KafkaError> {
        let handle = tokio::runtime::Handle::current();
        let mut pause = PAUSE_MIN;
        while !stop.is_cancelled() {
            match self.follow(kafka, stop) {
                Err(error) if !matches!(error, KafkaError::Fatal { .. }) => {
                    tracing::warn!(error = %error, "this process left the pollers' group; it joins again");
                }
                ended => return ended,
            }
            pause = if self.is_known() { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
            // A stop ends the pause; which of the two it was shows in the loop's condition.
            _ = handle.block_on(async { tokio::time::timeout(pause, stop.cancelled()).await });
        }
        Ok(())
    }

    fn follow(&self, kafka: &Kafka, stop: &CancellationToken) -> Result<(), KafkaError> {
        let topic = kafka.topic(Topic::ControlSellers);
        let consumer = GroupConsumer::subscribe(kafka, &kafka.group("poll"), &[&topic], |ours| vec![None; ours.len()])?;
        while !stop.is_cancelled() {
            consumer.poll_batch(RECORDS_MAX, POLL_WAIT, |_| {})?;
            let changes = consumer.take_changes();
            if !changes.is_empty() {
                let ours: HashSet<Partition> = consumer.assignment().into_iter().map(|(_, partition)| partition).collect();
                tracing::info!(partitions = ours.len(), "the pollers' group shared out the sellers");
                *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(ours);
            }
        }
        Ok(())
    }
}
