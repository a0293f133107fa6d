//! Heartbeats: one null record per partition of each compacted topic, so that segments roll and the cleaner reaches them.
//!
//! Without an append nothing rolls: a tombstone on an idle partition would never take its value away (kafka-confirmed, claim 1).
//! `~hb` is a tombstone of a key that never had a value, so readers of typed topics see nothing new.
//!
//! A tombstone needs two appends behind it: one that rolls its segment, and time for the next. More of them only make work for the
//! cleaner. So while a case moves they come often, and otherwise seldom ([`Times::idle_heartbeat_ms`](sunder_schemas::topic::Times)).

use std::time::{Duration, Instant};

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

/// Heartbeats that follow each move of a case. Chosen: four seconds in the test profile, where a segment rolls after one.
const BEATS_PER_MOVE: u32 = 8;

/// When the next heartbeat is due: pure.
#[derive(Debug, Default)]
struct Rhythm {
    moves: Option<u64>,
    left: u32,
}

impl Rhythm {
    /// Whether to beat now, `since` the last beat, where cases have moved `moves` times so far.
    fn is_due(&mut self, moves: u64, since: Option<Duration>, idle: Duration) -> bool {
        if self.moves.replace(moves) != Some(moves) {
            self.left = BEATS_PER_MOVE;
        }
        if self.left > 0 {
            self.left -= 1;
            return true;
        }
        since.is_none_or(|since| since >= idle)
    }
}

/// Sends heartbeats at the profile's periods until `stop`; `moves` tells how often cases have moved so far. One process of a
/// deployment is enough; more do no harm.
pub async fn run(kafka: Kafka, moves: impl Fn() -> u64 + Send, stop: CancellationToken) {
    let topics: Vec<Topic> = Topic::all().into_iter().filter(|topic| topic.is_compacted()).collect();
    let times = kafka.settings().times();
    let idle = Duration::from_millis(times.idle_heartbeat_ms.unsigned_abs());
    let mut look = tokio::time::interval(Duration::from_millis(times.heartbeat_ms.unsigned_abs()));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut rhythm, mut last) = (Rhythm::default(), None::<Instant>);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => {}
        }
        if !rhythm.is_due(moves(), last.map(|at| at.elapsed()), idle) {
            continue;
        }
        last = Some(Instant::now());
        if let Err(error) = kafka.beat(&topics).await {
            // The next one is due soon, and `Health` says so once where the broker is away.
            tracing::warn!(code = error.code(), "heartbeats were not acknowledged");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_move_of_a_case_is_followed_by_beats_and_then_they_are_seldom() {
        let (idle, mut rhythm) = (Duration::from_secs(10), Rhythm::default());
        let mut beats = |moves, since| (0..20).filter(|_| rhythm.is_due(moves, Some(Duration::from_secs(since)), idle)).count();
        assert_eq!(beats(0, 1), 8, "a process that starts may find a case under way");
        assert_eq!(beats(0, 1), 0);
        assert_eq!(beats(1, 1), 8);
        assert_eq!(beats(1, 10), 20);
        assert!(Rhythm { moves: Some(1), left: 0 }.is_due(1, None, idle));
    }

    #[test]
    fn in_production_every_beat_is_the_idle_one() {
        let times = sunder_schemas::topic::Times::of(sunder_schemas::topic::Profile::Production);
        assert_eq!(times.heartbeat_ms, times.idle_heartbeat_ms);
    }
}
