//! What keeps the log from removing what is tombstoned, or from showing that it did: named with topic, partition and broker.
//!
//! Brokers tell too little of their cleaners for any gauge to be believed (kafka-design 1.3): a dead cleaner, an uncleanable partition
//! and an idle one all look calm. So everything here is judged by what can be read from outside: which replicas answer and are in
//! sync, where the last stable offset stands, when a partition last got a record, which log directories failed, and which heartbeats
//! are still there although a later one should have replaced them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sunder_retention::store::{Hindrance, Mark, Residual};
use sunder_schemas::ids::{Offset, Partition};
use sunder_schemas::time::{Clock as _, SystemClock};
use sunder_schemas::topic::Topic;

use crate::kafka::error::KafkaError;
use crate::kafka::replicas::Away;
use crate::kafka::wire::{Bound, BoundAt, Bounds, Broker, Layout};
use crate::kafka::{Kafka, blocking};

/// How long a view is used again: several cases ask in one round.
const USED_FOR: Duration = Duration::from_secs(1);
/// A partition without a record for three heartbeats and this long is idle. Chosen: a busy machine delays a heartbeat by seconds.
const IDLE_SLACK_MS: i64 = 20_000;

/// The state of the log at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogView {
    pub(crate) layout: Layout,
    /// Replicas that are away, and brokers that are alive and do not answer us.
    pub(crate) away: Vec<Away>,
    /// Log directories that failed: broker, code.
    pub(crate) failed_dirs: Vec<(i32, String)>,
    /// Brokers that do not tell their log directories: broker, code.
    pub(crate) unseen_dirs: Vec<(i32, String)>,
    /// Folders of our topics on brokers that hold no such replica: broker, topic, partition.
    pub(crate) leftovers: Vec<(i32, String, Partition)>,
    /// Partitions with an open transaction: topic, partition, the first offset that it holds back.
    pub(crate) held: Vec<(String, Partition, Offset)>,
    /// Compacted partitions and when they last got a record, in milliseconds since 1970 by the broker's clock.
    pub(crate) newest: BTreeMap<(String, Partition), i64>,
}

/// The last view, shared by what asks for it within a second.
#[derive(Clone, Default)]
pub(crate) struct Views(Arc<Mutex<Option<Taken>>>);

/// A view and when it was taken.
type Taken = (Instant, Arc<LogView>);

impl Kafka {
    /// The log as its brokers tell it now, or told it within the last second.
    pub(crate) fn view_blocking(&self) -> Result<Arc<LogView>, KafkaError> {
        let mut last = self.views().0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, view)) = last.as_ref()
            && at.elapsed() < USED_FOR
        {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(look(self)?);
        *last = Some((Instant::now(), Arc::clone(&view)));
        Ok(view)
    }

    /// What stands in the way of a removal whose scan reads up to `barrier`; empty: of any. The embedded broker has none of it.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where no broker answers.
    pub async fn hindrances(&self, barrier: &[Mark]) -> Result<Vec<Hindrance>, KafkaError> {
        if self.is_embedded() {
            return Ok(Vec::new());
        }
        let (this, barrier) = (self.clone(), barrier.to_vec());
        blocking(move || {
            let view = this.view_blocking()?;
            let mut hindrances = view.missing();
            hindrances.extend(view.held_back(&barrier));
            hindrances.extend(view.idle(this.settings().times().heartbeat_ms, now_ms()));
            Ok(hindrances)
        })
        .await
    }
}

/// The system's clock, not the policy clock: brokers stamp with theirs.
fn now_ms() -> i64 {
    SystemClock::default().now().0
}

/// "`first` and n more".
fn and_more(first: &str, count: usize) -> String {
    if count > 1 { format!("{first} and {} more", count - 1) } else { first.to_owned() }
}

impl LogView {
    /// Replicas and directories that cannot be read: nothing is certified while one is missing.
    pub(crate) fn missing(&self) -> Vec<Hindrance> {
        let mut by_broker: BTreeMap<(i32, &str), Vec<&Away>> = BTreeMap::new();
        for away in &self.away {
            by_broker.entry((away.broker, &away.code)).or_default().push(away);
        }
        let away = by_broker.into_iter().filter_map(|((broker, code), replicas)| {
            let first = replicas.first()?;
            let first = format!("{}[{}]", first.topic, first.partition);
            Some(format!("broker {broker} does not have its replica of {} ready ({code})", and_more(&first, replicas.len())))
        });
        let dirs = self.failed_dirs.iter().map(|(broker, code)| format!("a log directory of broker {broker} failed ({code})"));
        away.chain(dirs).map(|what| Hindrance { what, stops: true }).collect()
    }

    /// Open transactions that hold records up to `barrier` back from the cleaner.
    fn held_back(&self, barrier: &[Mark]) -> Vec<Hindrance> {
        let reached: BTreeMap<(&str, Partition), Offset> =
            barrier.iter().map(|mark| ((mark.topic.as_str(), mark.partition), mark.offset)).collect();
        let held = self.held.iter().filter(|(topic, partition, stable)| {
            barrier.is_empty() || reached.get(&(topic.as_str(), *partition)).is_some_and(|barrier| stable <= barrier)
        });
        held.map(|(topic, partition, stable)| Hindrance {
            what: format!(
                "an open transaction holds the last stable offset of {topic}[{partition}] at {stable}: nothing above is cleaned until it ends"
            ),
            stops: true,
        })
        .collect()
    }

    /// Partitions that get no heartbeats: their segments do not roll, so nothing in them goes.
    fn idle(&self, heartbeat_ms: i64, now_ms: i64) -> Vec<Hindrance> {
        let oldest_allowed = now_ms - 3 * heartbeat_ms - IDLE_SLACK_MS;
        let idle: Vec<_> = self.newest.iter().filter(|(_, newest)| **newest < oldest_allowed).collect();
        let Some(((topic, partition), newest)) = idle.first() else { return Vec::new() };
        let seconds = (now_ms - **newest) / 1_000;
        let places = and_more(&format!("{topic}[{partition}]"), idle.len());
        let what = format!("no record for {seconds} s on {places}: heartbeats are missing, is a retain process running?");
        vec![Hindrance { what, stops: false }]
    }
}

fn look(kafka: &Kafka) -> Result<LogView, KafkaError> {
    let topics: BTreeMap<String, Topic> = Topic::all().into_iter().map(|topic| (kafka.topic(topic), topic)).collect();
    let names: Vec<String> = topics.keys().cloned().collect();
    let layout = kafka.wire().layout(&names)?;
    let mut view = LogView { away: layout.away(), layout, ..LogView::default() };
    for (id, address) in &view.layout.brokers.clone() {
        if let Err(error) = kafka
            .wire()
            .broker(address)
            .and_then(|mut broker| view.ask(*id, &mut broker, &topics, &format!("{}.", kafka.settings().prefix)))
        {
            view.unanswered(*id, error.code());
        }
    }
    Ok(view)
}

impl LogView {
    /// A broker that the others count as alive and that does not answer us.
    fn unanswered(&mut self, id: i32, code: &str) {
        for (topic, layout) in &self.layout.topics {
            for (partition, _) in layout.partitions.iter().filter(|(_, layout)| layout.replicas.contains(&id)) {
                let away = Away { topic: topic.clone(), partition: *partition, broker: id, code: code.to_owned() };
                if !self.away.iter().any(|known| known.broker == id && known.topic == away.topic && known.partition == away.partition) {
                    self.away.push(away);
                }
            }
        }
    }

    fn ask(&mut self, id: i32, broker: &mut Broker, topics: &BTreeMap<String, Topic>, prefix: &str) -> Result<(), KafkaError> {
        match broker.log_dirs() {
            Ok(dirs) => {
                for dir in dirs {
                    if let Some(code) = dir.error {
                        self.failed_dirs.push((id, code));
                    }
                    for (topic, partition) in dir.partitions {
                        if topic.starts_with(prefix) && !self.holds(id, &topic, partition) {
                            self.leftovers.push((id, topic, partition));
                        }
                    }
                }
            }
            Err(error) if error.code().ends_with("AuthorizationFailed") => self.unseen_dirs.push((id, error.code().to_owned())),
            Err(error) => return Err(error),
        }
        let led: Vec<(String, Partition)> = self
            .layout
            .topics
            .iter()
            .filter(|(topic, _)| topics.get(*topic).is_some_and(|topic| topic.is_compacted()))
            .flat_map(|(topic, layout)| layout.partitions.iter().map(move |(partition, layout)| (topic, *partition, layout.leader)))
            .filter(|(_, _, leader)| *leader == id)
            .map(|(topic, partition, _)| (topic.clone(), partition))
            .collect();
        if led.is_empty() {
            return Ok(());
        }
        let asked: Vec<(&str, Partition)> = led.iter().map(|(topic, partition)| (topic.as_str(), *partition)).collect();
        // The stable offset first: what ends in between is not taken for open.
        let high = known(broker.bounds(Bound::HighWatermark, &asked)?);
        let stable = known(broker.bounds(Bound::LastStable, &asked)?);
        for (place, stable) in stable {
            if high.get(&place).is_some_and(|high| stable.offset < high.offset) {
                self.held.push((place.0, place.1, stable.offset));
            }
        }
        // A partition that never had a record has no largest timestamp, and nothing that could wait.
        let newest = known(broker.bounds(Bound::Newest, &asked)?).into_iter().filter(|(_, at)| at.time_ms >= 0);
        self.newest.extend(newest.map(|(place, at)| (place, at.time_ms)));
        Ok(())
    }

    fn holds(&self, broker: i32, topic: &str, partition: Partition) -> bool {
        let layout = self.layout.topics.get(topic).and_then(|layout| layout.partitions.get(&partition));
        layout.is_some_and(|layout| layout.replicas.contains(&broker))
    }

    /// What lies outside of what is read: folders left on brokers that hold no such replica, and brokers whose folders are not seen.
    pub(crate) fn residual(&self) -> Vec<Residual> {
        let mut leftovers: BTreeMap<i32, Vec<String>> = BTreeMap::new();
        for (broker, topic, partition) in &self.leftovers {
            leftovers.entry(*broker).or_default().push(format!("{topic}[{partition}]"));
        }
        let left = leftovers.into_iter().map(|(broker, places)| {
            let places = and_more(places.first().map_or("", String::as_str), places.len());
            format!("kafka: broker {broker} keeps folders of {places} although it holds no such replica; not read, to be removed by its operator")
        });
        let unseen = self.unseen_dirs.iter().map(|(broker, code)| {
            format!(
                "kafka: log directories of broker {broker} not seen ({code}); folders left there by replicas that moved would not be known"
            )
        });
        left.chain(unseen).map(|what| Residual { what, until: None }).collect()
    }

    /// The brokers that hold the replicas of each partition of the topic called `topic`.
    pub(crate) fn replicas_of(&self, topic: &str) -> BTreeMap<i32, Vec<i32>> {
        let partitions = self.layout.topics.get(topic).map(|layout| &layout.partitions);
        partitions.into_iter().flatten().map(|(partition, layout)| (partition.0, layout.replicas.iter().copied().collect())).collect()
    }
}

/// The answers; a partition whose leader has just moved gives none, and is asked again a second later.
fn known(answers: Bounds) -> BTreeMap<(String, Partition), BoundAt> {
    answers.into_iter().filter_map(|(place, answer)| Some((place, answer.ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(partition: i32, offset: i64) -> Mark {
        Mark { topic: "t".to_owned(), incarnation: "i".to_owned(), partition: Partition(partition), offset: Offset(offset) }
    }

    #[test]
    fn a_transaction_stops_what_lies_above_its_first_record_alone() {
        let view = LogView { held: vec![("t".to_owned(), Partition(0), Offset(10))], ..LogView::default() };
        assert_eq!(view.held_back(&[mark(0, 9)]), []);
        assert_eq!(view.held_back(&[mark(1, 50)]), []);
        let held = view.held_back(&[mark(0, 10)]);
        assert!(held.len() == 1 && held[0].stops && held[0].what.contains("t[0] at 10"), "{held:?}");
        assert_eq!(view.held_back(&[]).len(), 1);
    }

    #[test]
    fn a_partition_is_idle_once_its_heartbeats_stay_away() {
        let newest = BTreeMap::from([(("t".to_owned(), Partition(0)), 100_000), (("t".to_owned(), Partition(1)), 50_000)]);
        let view = LogView { newest, ..LogView::default() };
        assert_eq!(view.idle(500, 70_000), []);
        let idle = view.idle(500, 110_000);
        assert!(idle[0].what.contains("60 s on t[1]") && !idle[0].stops, "{idle:?}");
        assert!(view.idle(500, 900_000)[0].what.contains("t[0] and 1 more"));
    }

    #[test]
    fn replicas_that_are_away_are_named_by_broker() {
        let away =
            |partition, broker| Away { topic: "t".to_owned(), partition: Partition(partition), broker, code: "OutOfSync".to_owned() };
        let view = LogView {
            away: vec![away(0, 3), away(1, 3), away(0, 2)],
            failed_dirs: vec![(1, "KafkaStorageError".to_owned())],
            ..LogView::default()
        };
        let said: Vec<String> = view.missing().into_iter().map(|hindrance| hindrance.what).collect();
        assert_eq!(
            said,
            [
                "broker 2 does not have its replica of t[0] ready (OutOfSync)",
                "broker 3 does not have its replica of t[0] and 1 more ready (OutOfSync)",
                "a log directory of broker 1 failed (KafkaStorageError)"
            ]
        );
    }
}
