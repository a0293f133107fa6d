//! The forced roll: seconds instead of the bound, for a request or a late case (kafka-confirmed section 3).
//!
//! One topic's `segment.ms`, `max.compaction.lag.ms` and `file.delete.delay.ms` are lowered, each partition gets a record, the
//! cleaner passes, and the declared settings come back. Whoever rolls persists the intent first and calls [`Kafka::end_roll`] for
//! every open intent at start, before the drift check: between the two calls the topic counts as drifted.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sunder_retention::store::{Extent, Mark, Subject};
use sunder_schemas::class::{Family, Kind};
use sunder_schemas::ids::Partition;
use sunder_schemas::key;
use sunder_schemas::topic::Topic;

use crate::kafka::admin::Drift;
use crate::kafka::error::KafkaError;
use crate::kafka::log::subject_part;
use crate::kafka::prove::canary;
use crate::kafka::{Kafka, blocking};

/// `segment.ms` and `max.compaction.lag.ms` during a roll (DESIGN section 5).
const ROLL_MS: &str = "1000";
/// Settings that a roll changes.
pub const ROLLED_SETTINGS: [&str; 3] = ["segment.ms", "max.compaction.lag.ms", "file.delete.delay.ms"];
/// The values they have meanwhile. A second before files go is what the broker's flush of the segment just rolled may take: see
/// [`Times::file_delay_ms`](sunder_schemas::topic::Times).
const LOWERED: [&str; 3] = [ROLL_MS, ROLL_MS, "1000"];
/// Between two rounds of heartbeats of a roll: the record that rolls a segment must be a second younger than its first.
const BEAT_EVERY: Duration = Duration::from_millis(1_200);
/// How long one topic is rolled at the most; what is left then waits for the bound. Chosen: the cleaner looks every 15 s
/// (`log.cleaner.backoff.ms`), and may need a second look.
const ROLL_MAX: Duration = Duration::from_secs(60);

/// Whether a difference is the one that a roll makes for the time it runs.
pub fn is_lowered(drift: &Drift) -> bool {
    ROLLED_SETTINGS.iter().zip(LOWERED).any(|(setting, value)| drift.setting == *setting && drift.found == value)
}

/// The topics that hold what goes with `extent`.
pub fn rolled(extent: Extent) -> Vec<Topic> {
    let mut topics: Vec<Topic> = Family::ALL.iter().map(|family| Topic::Pii(*family)).collect();
    if extent.takes_rows() {
        topics.extend(Kind::ALL.iter().flat_map(|kind| [Topic::State(*kind), Topic::Events(*kind)]));
    }
    topics
}

impl Kafka {
    /// Has `topic` cleaned of what `case` tombstoned of `subjects`, and returns whether all of it is gone. The settings are as declared
    /// when it returns.
    ///
    /// # Errors
    /// [`KafkaError::Call`]: the settings may be changed still; repeat, or call [`Kafka::end_roll`].
    pub async fn roll(&self, topic: Topic, case: &str, subjects: &[Subject]) -> Result<bool, KafkaError> {
        let wanted: Arc<HashSet<String>> =
            Arc::new(subjects.iter().map(|subject| key::state_key(&subject.seller, subject.token, None)).collect());
        let dead = canary(case, "dead");
        let mut dirty: Vec<Partition> = (0..self.partitions(topic)).map(Partition).collect();
        dirty = self.dirty(topic, dirty, &wanted, &dead).await?;
        if dirty.is_empty() {
            return Ok(true);
        }
        let started = Instant::now();
        let cleaned = async {
            self.begin_roll(topic).await?;
            let mut due = tokio::time::interval_at(tokio::time::Instant::now() + BEAT_EVERY, BEAT_EVERY);
            while !dirty.is_empty() && started.elapsed() < ROLL_MAX {
                due.tick().await;
                self.beat(&[topic]).await?;
                dirty = self.dirty(topic, dirty.clone(), &wanted, &dead).await?;
            }
            Ok(dirty.is_empty())
        };
        let cleaned = cleaned.await;
        self.end_roll(topic).await?;
        cleaned
    }

    /// The partitions of `partitions` of which any replica still holds a value under a key of `wanted` or under `dead`.
    async fn dirty(
        &self,
        topic: Topic,
        partitions: Vec<Partition>,
        wanted: &Arc<HashSet<String>>,
        dead: &str,
    ) -> Result<Vec<Partition>, KafkaError> {
        let (this, name, wanted, dead) = (self.clone(), self.topic(topic), Arc::clone(wanted), dead.to_owned());
        blocking(move || {
            let ranges = partitions.iter().map(|partition| this.whole_blocking(&name, *partition)).collect::<Result<Vec<_>, _>>()?;
            let dirty = this.read_replicas_blocking(ranges, |dirty: &mut HashSet<i32>, record| {
                let Some(key) = record.key.filter(|_| record.value.is_some()) else { return };
                let is_wanted = subject_part(key).and_then(|part| std::str::from_utf8(part).ok()).is_some_and(|part| wanted.contains(part));
                if is_wanted || key == dead.as_bytes() {
                    dirty.insert(record.partition.0);
                }
            })?;
            let dirty: HashSet<i32> = dirty.into_iter().flatten().collect();
            Ok(partitions.into_iter().filter(|partition| dirty.contains(&partition.0)).collect())
        })
        .await
    }

    /// Gives every topic that a roll changes its declared settings back: for a roll whose process died.
    ///
    /// # Errors
    /// [`KafkaError::Call`]: some stay changed until this succeeds.
    pub async fn undo_rolls(&self) -> Result<(), KafkaError> {
        for topic in rolled(Extent::WithBusinessData) {
            // One that was never made has nothing to give back.
            if self.setting(&self.topic(topic), "segment.ms").await?.is_some() {
                self.end_roll(topic).await?;
            }
        }
        Ok(())
    }

    /// Lowers the settings of `topic` and appends a record to each partition. Repeat [`Kafka::beat`] after a second or more until a
    /// scan is clean: the record that rolls a segment must be a second younger than its first.
    ///
    /// # Errors
    /// [`KafkaError::Call`]; call [`Kafka::end_roll`] in any case.
    pub async fn begin_roll(&self, topic: Topic) -> Result<Vec<Mark>, KafkaError> {
        let low = ROLLED_SETTINGS.iter().zip(LOWERED);
        let low = low.map(|(setting, value)| ((*setting).to_owned(), value.to_owned())).collect();
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
