//! Topics exactly as declared: made, compared, and brought back without touching any other setting.
//!
//! Invariants: what is compared is what [`Topic::settings`] declares, plus partitions, replicas and `min.insync.replicas`; a topic
//! that cannot be read counts as drifted; settings are changed by IncrementalAlterConfigs alone; partitions and replicas of an
//! existing topic are never changed, since every key would move.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;
use serde::Serialize;
use sunder_schemas::ids::Partition;
use sunder_schemas::topic::Topic;

use crate::kafka::error::{KafkaError, code_name};
use crate::kafka::incarnation::{INCARNATION_HEADER, INCARNATION_KEY};
use crate::kafka::wire::Settings;
use crate::kafka::{Kafka, OutRecord, blocking, native};

/// How long an admin call may take on the broker.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long new topics may take to have leaders everywhere (three brokers on two idle cores: 5 s, kafka-confirmed section 2).
const LEADERS_WITHIN: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One difference between what is declared and what is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The setting, or `topic`, `partitions`, `replicas`.
    pub setting: String,
    /// What is declared.
    pub declared: String,
    /// What the broker has.
    pub found: String,
}

impl Drift {
    fn new(setting: &str, declared: impl ToString, found: impl ToString) -> Self {
        Self { setting: setting.to_owned(), declared: declared.to_string(), found: found.to_string() }
    }

    /// Whether `topics apply` can mend it.
    #[must_use]
    pub fn is_mendable(&self) -> bool {
        !matches!(self.setting.as_str(), "partitions" | "replicas" | "log.cleaner.enable")
    }
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}, declared {}", self.setting, self.found, self.declared)
    }
}

/// A topic and how it differs; no drift: as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicState {
    /// Full topic name, or `broker <id>`.
    pub name: String,
    /// The differences.
    pub drift: Vec<Drift>,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, but should be looked at.
    Warn,
    /// Must be mended.
    Fail,
}

/// One line of `topics diff` and `check` (DESIGN section 6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Topic.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl TopicState {
    /// As a line of `topics diff`.
    #[must_use]
    pub fn entry(&self) -> Entry {
        if self.drift.is_empty() {
            return Entry { name: self.name.clone(), status: Status::Ok, detail: "as declared".to_owned(), fix: None };
        }
        let detail = self.drift.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let fix = if self.drift.iter().all(Drift::is_mendable) {
            "sunder topics apply".to_owned()
        } else if self.drift.iter().any(|drift| drift.setting == "log.cleaner.enable") {
            "set log.cleaner.enable=true on the broker and restart it: without the cleaner nothing is ever erased".to_owned()
        } else {
            "set kafka.partitions and kafka.replication to what the topic has, or start anew under another kafka.prefix: partitions are fixed \
             for life"
                .to_owned()
        };
        Entry { name: self.name.clone(), status: Status::Fail, detail, fix: Some(fix) }
    }
}

/// What a broker says of a topic's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    partitions: usize,
    replicas: usize,
    has_leaders: bool,
}

/// Whether two values of a setting mean the same: lists in any order.
fn is_same(declared: &str, found: &str) -> bool {
    let parts = |text: &str| text.split(',').map(|part| part.trim().to_owned()).collect::<BTreeSet<_>>();
    declared == found || (declared.contains(',') && parts(declared) == parts(found))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT)).operation_timeout(Some(ADMIN_TIMEOUT))
}

impl Kafka {
    /// The settings of `topic`, with `min.insync.replicas`.
    #[must_use]
    pub fn declared(&self, topic: Topic) -> Vec<(&'static str, String)> {
        let mut settings = topic.settings(self.settings().profile);
        settings.push(("min.insync.replicas", self.settings().min_insync().to_string()));
        settings
    }

    /// Compares every topic, and each broker's cleaner where the rights allow it, with what is declared.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where the broker does not answer: unknown, so to be taken as drift.
    pub async fn diff_topics(&self) -> Result<Vec<TopicState>, KafkaError> {
        let (shapes, _) = self.shapes().await?;
        let topics = Topic::all();
        let names: Vec<String> = topics.iter().map(|topic| self.topic(*topic)).collect();
        let present: Vec<&str> = names.iter().map(String::as_str).filter(|name| shapes.contains_key(*name)).collect();
        let mut found = self.settings_of(&present).await?;
        let mut states = Vec::with_capacity(topics.len());
        for (topic, name) in topics.into_iter().zip(&names) {
            let mut drift = Vec::new();
            match (shapes.get(name), found.remove(name)) {
                (None, _) => drift.push(Drift::new("topic", "present", "missing")),
                (Some(_), None | Some(Err(_))) => drift.push(Drift::new("topic", "readable settings", "unknown")),
                (Some(shape), Some(Ok(found))) => {
                    drift = self.compare(topic, *shape, &found);
                }
            }
            states.push(TopicState { name: name.clone(), drift });
        }
        states.extend(self.diff_brokers().await);
        Ok(states)
    }

    fn compare(&self, topic: Topic, shape: Shape, found: &BTreeMap<String, String>) -> Vec<Drift> {
        let mut drift = Vec::new();
        let partitions = usize::try_from(self.partitions(topic)).unwrap_or(0);
        let replicas = usize::try_from(self.settings().replication).unwrap_or(0);
        if shape.partitions != partitions {
            drift.push(Drift::new("partitions", partitions, shape.partitions));
        }
        if shape.replicas != replicas {
            drift.push(Drift::new("replicas", replicas, shape.replicas));
        }
        for (setting, declared) in self.declared(topic) {
            // An empty cleanup.policy is taken by brokers and neither deletes nor compacts; it differs from any declared one.
            let found = found.get(setting).map_or("unknown", String::as_str);
            if !is_same(&declared, found) {
                drift.push(Drift::new(setting, declared, if found.is_empty() { "empty" } else { found }));
            }
        }
        drift
    }

    /// Makes missing topics and sets drifted settings; returns how every topic stands after that.
    ///
    /// # Errors
    /// [`KafkaError::Call`] with the topic and the broker's code. What was done stays done; calling again goes on.
    pub async fn apply_topics(&self) -> Result<Vec<TopicState>, KafkaError> {
        let (shapes, _) = self.shapes().await?;
        let missing: Vec<Topic> = Topic::all().into_iter().filter(|topic| !shapes.contains_key(&self.topic(*topic))).collect();
        self.create(&missing).await?;
        let states = self.diff_of_known_topics().await?;
        let mut is_changed = false;
        for state in &states {
            let settings: Vec<(String, String)> = state
                .drift
                .iter()
                .filter(|drift| drift.is_mendable() && drift.setting != "topic")
                .map(|drift| (drift.setting.clone(), drift.declared.clone()))
                .collect();
            if !settings.is_empty() {
                self.set_settings(&state.name, settings).await?;
                is_changed = true;
            }
        }
        if is_changed { self.diff_topics().await } else { Ok(states) }
    }

    /// As [`Kafka::diff_topics`], once every broker that is asked knows every topic: new topics reach some brokers later than others.
    async fn diff_of_known_topics(&self) -> Result<Vec<TopicState>, KafkaError> {
        let started = Instant::now();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let states = self.diff_topics().await?;
            let is_known = states.iter().flat_map(|state| &state.drift).all(|drift| drift.setting != "topic");
            if is_known || started.elapsed() > LEADERS_WITHIN {
                return Ok(states);
            }
        }
    }

    /// Sets `settings` of the topic called `name`, leaves every other override as it is, and returns once the brokers show them.
    ///
    /// # Errors
    /// [`KafkaError::Call`] with the broker's code; `NotSpread` where a broker still shows other values after 60 s.
    pub async fn set_settings(&self, name: &str, settings: Vec<(String, String)>) -> Result<(), KafkaError> {
        let (this, topic, wanted) = (self.clone(), name.to_owned(), settings.clone());
        blocking(move || {
            let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            native::set_topic_settings(this.admin().inner(), &topic, &settings, ADMIN_TIMEOUT)
        })
        .await?;
        // Each broker learns of the change by itself.
        let started = Instant::now();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            if self.shown_by_all(name, &wanted).await? {
                return Ok(());
            }
            if started.elapsed() > LEADERS_WITHIN {
                return Err(KafkaError::own(format!("set settings of {name}"), "NotSpread"));
            }
        }
    }

    /// Whether every broker that is alive shows `wanted` of the topic called `name`.
    async fn shown_by_all(&self, name: &str, wanted: &[(String, String)]) -> Result<bool, KafkaError> {
        let shows = |found: Settings| {
            found.is_ok_and(|found| wanted.iter().all(|(setting, value)| found.get(setting).is_some_and(|found| is_same(value, found))))
        };
        if self.is_embedded() {
            return Ok(self.settings_of(&[name]).await?.remove(name).is_some_and(shows));
        }
        let (this, topic) = (self.clone(), name.to_owned());
        let told = blocking(move || {
            let brokers = this.wire().layout(&[])?.brokers;
            brokers
                .values()
                .map(|address| Ok(this.wire().broker(address)?.topic_settings(&[&topic])?.remove(&topic)))
                .collect::<Result<Vec<_>, _>>()
        });
        // One that died a moment ago is still named as alive: the next look knows.
        Ok(told.await.is_ok_and(|told: Vec<Option<Settings>>| told.into_iter().all(|settings| settings.is_some_and(shows))))
    }

    /// The value of one setting of the topic called `name`; `None` where the broker does not tell it.
    ///
    /// # Errors
    /// [`KafkaError::Call`] with the broker's code.
    pub async fn setting(&self, name: &str, setting: &str) -> Result<Option<String>, KafkaError> {
        match self.settings_of(&[name]).await?.remove(name) {
            Some(Ok(mut settings)) => Ok(settings.remove(setting)),
            Some(Err(code)) => Err(KafkaError::own(format!("describe {name}"), &code)),
            None => Ok(None),
        }
    }

    async fn create(&self, topics: &[Topic]) -> Result<(), KafkaError> {
        if topics.is_empty() {
            return Ok(());
        }
        let declared: Vec<_> = topics.iter().map(|topic| (self.topic(*topic), self.partitions(*topic), self.declared(*topic))).collect();
        let new: Vec<NewTopic<'_>> = declared
            .iter()
            .map(|(name, partitions, settings)| {
                settings
                    .iter()
                    .fold(NewTopic::new(name, *partitions, TopicReplication::Fixed(self.settings().replication)), |topic, (key, value)| {
                        topic.set(key, value)
                    })
            })
            .collect();
        let results = self.admin().create_topics(&new, &options()).await.map_err(|error| KafkaError::call("create topics", &error))?;
        for result in results {
            match result {
                Ok(name) => tracing::info!(topic = name, "topic created"),
                // Another process was faster.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => return Err(KafkaError::own(format!("create {name}"), &code_name(code))),
            }
        }
        let names: Vec<String> = declared.into_iter().map(|(name, _, _)| name).collect();
        self.wait_for_leaders(&names).await?;
        self.name_incarnations(&names).await
    }

    async fn wait_for_leaders(&self, names: &[String]) -> Result<(), KafkaError> {
        let started = Instant::now();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            look.tick().await;
            let (shapes, _) = self.shapes().await?;
            match names.iter().find(|name| !shapes.get(*name).is_some_and(|shape| shape.has_leaders)) {
                None => return Ok(()),
                Some(name) if started.elapsed() > LEADERS_WITHIN => {
                    return Err(KafkaError::own(format!("create {name}"), "LeaderNotAvailable"));
                }
                Some(_) => {}
            }
        }
    }

    /// Writes the `~incarnation` record of new topics; a broker without topic ids is asked for it later.
    async fn name_incarnations(&self, names: &[String]) -> Result<(), KafkaError> {
        let (this, names) = (self.clone(), names.to_vec());
        blocking(move || {
            let started = Instant::now();
            let mut ids = Vec::with_capacity(names.len());
            for name in &names {
                let id = this.incarnations().topic_id(name)?;
                ids.push(id.unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string()));
                this.incarnations().forget(name);
            }
            loop {
                let batch = this.producer().batch();
                let sent = names.iter().zip(&ids).try_for_each(|(name, id)| {
                    batch.send(OutRecord {
                        topic: name,
                        partition: Partition(0),
                        key: INCARNATION_KEY.as_bytes(),
                        value: None,
                        headers: &[(INCARNATION_HEADER, id.as_bytes())],
                    })
                });
                match sent.and_then(|()| batch.acked_blocking()) {
                    Ok(_) => return Ok(()),
                    // A leader may not know yet that it leads; writing the record twice changes nothing.
                    Err(error) if error.is_retriable && started.elapsed() < LEADERS_WITHIN => {}
                    Err(error) => return Err(error.into()),
                }
            }
        })
        .await
    }

    /// Names of all topics under this installation's prefix, known or not.
    ///
    /// # Errors
    /// [`KafkaError::Call`].
    pub async fn topics_under_prefix(&self) -> Result<Vec<String>, KafkaError> {
        let front = format!("{}.", self.settings().prefix);
        let (shapes, _) = self.shapes().await?;
        Ok(shapes.into_keys().filter(|name| name.starts_with(&front)).collect())
    }

    /// Partitions and replicas of every topic, and the brokers.
    async fn shapes(&self) -> Result<(BTreeMap<String, Shape>, Vec<i32>), KafkaError> {
        let this = self.clone();
        blocking(move || {
            let metadata =
                this.admin().inner().fetch_metadata(None, ADMIN_TIMEOUT).map_err(|error| KafkaError::call("list topics", &error))?;
            let shapes = metadata
                .topics()
                .iter()
                .filter(|topic| topic.error().is_none() && !topic.partitions().is_empty())
                .map(|topic| {
                    let partitions = topic.partitions();
                    let shape = Shape {
                        partitions: partitions.len(),
                        replicas: partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
                        has_leaders: partitions.iter().all(|partition| partition.leader() >= 0),
                    };
                    (topic.name().to_owned(), shape)
                })
                .collect();
            Ok((shapes, metadata.brokers().iter().map(rdkafka::metadata::MetadataBroker::id).collect()))
        })
        .await
    }

    pub(super) async fn settings_of(&self, names: &[&str]) -> Result<BTreeMap<String, Settings>, KafkaError> {
        let mut settings = BTreeMap::new();
        if names.is_empty() {
            return Ok(settings);
        }
        if !self.is_embedded() {
            // Not by librdkafka: it asks what it takes for the controller, which may be a broker that has just died.
            let (this, names) = (self.clone(), names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            return blocking(move || {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                this.wire().ask_any(|broker| broker.topic_settings(&names))
            })
            .await;
        }
        let resources: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let results = self
            .admin()
            .describe_configs(&resources, &options())
            .await
            .map_err(|error| KafkaError::call("describe topic settings", &error))?;
        // Results come in the order of the question.
        for (name, result) in names.iter().zip(results) {
            let result = result
                .map(|resource| resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
                .map_err(code_name);
            settings.insert((*name).to_owned(), result);
        }
        Ok(settings)
    }

    /// The settings of each broker that is alive and tells them, by its id; none of the embedded one.
    pub(super) async fn broker_settings(&self) -> Result<Vec<(i32, BTreeMap<String, String>)>, KafkaError> {
        if self.is_embedded() {
            return Ok(Vec::new());
        }
        let this = self.clone();
        blocking(move || {
            let brokers = this.wire().layout(&[])?.brokers;
            let told =
                brokers.iter().filter_map(|(id, address)| Some((*id, this.wire().broker(address).ok()?.own_settings(*id).ok()?.ok()?)));
            Ok(told.collect())
        })
        .await
    }

    /// Brokers whose cleaner is switched off; brokers that may not be asked are left out.
    async fn diff_brokers(&self) -> Vec<TopicState> {
        let mut states = Vec::new();
        for (broker, settings) in self.broker_settings().await.unwrap_or_default() {
            if settings.get("log.cleaner.enable").is_some_and(|value| value == "false") {
                let drift = vec![Drift::new("log.cleaner.enable", "true", "false")];
                states.push(TopicState { name: format!("broker {broker}"), drift });
            }
        }
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_compare_in_any_order_and_empty_is_drift() {
        assert!(is_same("compact,delete", "delete,compact"));
        assert!(!is_same("compact,delete", "compact"));
        assert!(!is_same("compact", ""));
    }

    #[test]
    fn an_unmendable_drift_names_its_remedy() {
        let state = TopicState { name: "sp.raw.orders.v1".to_owned(), drift: vec![Drift::new("partitions", 12, 6)] };
        let entry = state.entry();
        assert_eq!(entry.status, Status::Fail);
        assert!(entry.detail.contains("partitions is 6, declared 12") && entry.fix.unwrap().contains("kafka.partitions"));
    }
}
