//! The forced roll: seconds instead of the bound, for a request or a late case (kafka-confirmed section 3).
//!
//! One topic's `segment.ms`, `max.compaction.lag.ms` and `file.delete.delay.ms` are lowered, each partition gets a record, the
//! cleaner passes, and the declared settings come back. Whoever rolls persists the intent first and calls [`Kafka::end_roll`] for
//! every open intent at start, before the drift check: between the two calls the topic counts as drifted.

use sunder_retention::store::Mark;
use sunder_schemas::topic::Topic;

use crate::kafka::Kafka;
use crate::kafka::error::KafkaError;

/// `segment.ms` and `max.compaction.lag.ms` during a roll (DESIGN section 5).
const ROLL_MS: &str = "1000";

impl Kafka {
    /// Lowers the settings of `topic` and appends a record to each partition. Repeat [`Kafka::beat`] after a second or more until a
    /// scan is clean: the record that rolls a segment must be a second younger than its first.
    ///
    /// # Errors
    /// [`KafkaError::Call`]; call [`Kafka::end_roll`] in any case.
    pub async fn begin_roll(&self, topic: Topic) -> Result<Vec<Mark>, KafkaError> {
        let low = [("segment.ms", ROLL_MS), ("max.compaction.lag.ms", ROLL_MS), ("file.delete.delay.ms", "0")];
        let low = low.iter().map(|(setting, value)| ((*setting).to_owned(), (*value).to_owned())).collect();
        self.set_settings(&self.topic(topic), low).await?;
        self.beat(&[topic]).await
    }

    /// Gives `topic` its declared settings back; nothing changes where it has them.
    ///
    /// # Errors
    /// [`KafkaError::Call`]: the topic stays drifted until this succeeds.
    pub async fn end_roll(&self, topic: Topic) -> Result<(), KafkaError> {
        let declared = self.declared(topic).into_iter().map(|(setting, value)| (setting.to_owned(), value)).collect();
        self.set_settings(&self.topic(topic), declared).await
    }
}
