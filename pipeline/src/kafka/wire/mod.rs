//! Kafka's protocol where librdkafka stops: asking one named broker.
//!
//! librdkafka reads from partition leaders and tells neither log directories nor a follower's own bounds. These calls go to a broker
//! by its id; what they answer is that broker's own view. They block, and share the security settings of every other client. Versions
//! are fixed to what Kafka 3.7 and 4.x both take.

pub(crate) mod batch;
pub(crate) mod connection;
mod login;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    DescribeConfigsRequest, DescribeLogDirsRequest, FetchRequest, ListOffsetsRequest, MetadataRequest, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use sunder_schemas::ids::{Offset, Partition};
use uuid::Uuid;

use crate::kafka::error::KafkaError;
use crate::kafka::settings::Security;
use connection::Connection;

/// From here on an answer names topics by id, so that a topic made anew is never taken for the old one.
const FETCH: i16 = 13;
const METADATA: i16 = 12;
/// From here on the largest timestamp can be asked for.
const LIST_OFFSETS: i16 = 7;
const DESCRIBE_LOG_DIRS: i16 = 4;
const DESCRIBE_CONFIGS: i16 = 4;
/// Types of resources that have settings (`ConfigResource.Type`).
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// A consumer: brokers answer it from any replica (KIP-392).
const CONSUMER: i32 = -1;
/// The debugging consumer, whom every replica tells its own bounds (`ListOffsetsRequest.DEBUGGING_REPLICA_ID`).
const ANY_REPLICA: i32 = -2;
/// No fetch session (KIP-227).
const NO_SESSION: i32 = -1;
/// How long a broker may wait for new records before it answers with none.
const FETCH_WAIT_MS: i32 = 250;
/// Bytes of one answer and of one partition in it: chosen; larger ones save no time on loopback.
const FETCH_BYTES: i32 = 16 << 20;
const PARTITION_BYTES: i32 = 4 << 20;

/// Brokers and where each partition's replicas are, as one broker knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Address of each broker that is alive.
    pub(crate) brokers: BTreeMap<i32, String>,
    /// The topics that were asked for and exist.
    pub(crate) topics: BTreeMap<String, TopicLayout>,
}

/// One topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TopicLayout {
    pub(crate) id: Uuid,
    pub(crate) partitions: BTreeMap<Partition, PartitionLayout>,
}

/// One partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PartitionLayout {
    pub(crate) leader: i32,
    pub(crate) replicas: BTreeSet<i32>,
    pub(crate) in_sync: BTreeSet<i32>,
    /// Replicas on a broker that is away or on a disk that failed.
    pub(crate) offline: BTreeSet<i32>,
}

/// Which bound of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// First offset that this replica has.
    Start,
    /// Leader: what is replicated.
    HighWatermark,
    /// Leader: what no open transaction holds back.
    LastStable,
    /// Leader: the record with the largest timestamp.
    Newest,
}

/// An answer to [`Broker::bounds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BoundAt {
    pub(crate) offset: Offset,
    /// When that record was appended; negative where the question has no time.
    pub(crate) time_ms: i64,
}

/// Answers by partition, or the broker's code.
pub(crate) type Bounds = BTreeMap<(String, Partition), Result<BoundAt, String>>;

/// The settings of a resource, or the broker's code.
pub(crate) type Settings = Result<BTreeMap<String, String>, String>;

/// What a fetch asks of one partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) topic_id: Uuid,
    pub(crate) partition: Partition,
    pub(crate) from: Offset,
}

/// What a fetch answered for one partition.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) topic_id: Uuid,
    pub(crate) partition: Partition,
    /// The broker's code, where it refused.
    pub(crate) error: Option<String>,
    /// Batches, the last possibly cut.
    pub(crate) batches: Bytes,
}

/// A log directory of a broker.
#[derive(Debug, Clone)]
pub(crate) struct LogDir {
    /// The code of a directory that failed.
    pub(crate) error: Option<String>,
    /// The partitions in it; copies that are still being made are left out.
    pub(crate) partitions: Vec<(String, Partition)>,
}

/// How to reach brokers.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    bootstrap: Vec<String>,
    security: Option<Security>,
}

/// A connection to one broker.
pub(crate) struct Broker(Connection);

/// The name of a broker's code.
fn code(error_code: i16) -> Option<String> {
    ResponseError::try_from_code(error_code).map(|error| format!("{error:?}"))
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

impl Wire {
    pub(crate) fn new(addresses: &str, security: Option<Security>) -> Self {
        Self { bootstrap: addresses.split(',').map(|address| address.trim().to_owned()).collect(), security }
    }

    /// Connects to the broker at `address`.
    ///
    /// # Errors
    /// [`KafkaError::Call`].
    pub(crate) fn broker(&self, address: &str) -> Result<Broker, KafkaError> {
        Ok(Broker(Connection::open(address, self.security.as_ref())?))
    }

    /// The brokers and the layout of `topics`, from the first of the configured brokers that answers.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where none does.
    pub(crate) fn layout(&self, topics: &[String]) -> Result<Layout, KafkaError> {
        self.ask_any(|broker| broker.layout(topics))
    }

    /// What the first of the configured brokers that answers says to `question`.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where none answers.
    pub(crate) fn ask_any<T>(&self, question: impl Fn(&mut Broker) -> Result<T, KafkaError>) -> Result<T, KafkaError> {
        let mut last = KafkaError::own("ask a broker", "NoAddress");
        for address in &self.bootstrap {
            match self.broker(address).and_then(|mut broker| question(&mut broker)) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Broker {
    /// The cluster as this broker knows it. Topics that do not exist are left out.
    pub(crate) fn layout(&mut self, topics: &[String]) -> Result<Layout, KafkaError> {
        let topics = topics.iter().map(|name| MetadataRequestTopic::default().with_name(Some(topic_name(name)))).collect();
        let request = MetadataRequest::default().with_topics(Some(topics)).with_allow_auto_topic_creation(false);
        let answer = self.0.ask(METADATA, &request)?;
        let brokers = answer.brokers.iter().map(|broker| (broker.node_id.0, format!("{}:{}", host(&broker.host), broker.port))).collect();
        let ids = |ids: &[kafka_protocol::messages::BrokerId]| ids.iter().map(|id| id.0).collect();
        let mut layout = Layout { brokers, topics: BTreeMap::new() };
        for topic in &answer.topics {
            let Some(name) = topic.name.as_ref().map(|name| name.0.to_string()) else { continue };
            match code(topic.error_code) {
                None => {}
                Some(unknown) if unknown == "UnknownTopicOrPartition" => continue,
                Some(other) => return Err(KafkaError::own(format!("ask for the replicas of {name}"), &other)),
            }
            let partitions = topic.partitions.iter().map(|partition| {
                let layout = PartitionLayout {
                    leader: partition.leader_id.0,
                    replicas: ids(&partition.replica_nodes),
                    in_sync: ids(&partition.isr_nodes),
                    offline: ids(&partition.offline_replicas),
                };
                (Partition(partition.partition_index), layout)
            });
            layout.topics.insert(name, TopicLayout { id: topic.topic_id, partitions: partitions.collect() });
        }
        Ok(layout)
    }

    /// `bound` of each of `partitions`, as this broker has it.
    pub(crate) fn bounds(&mut self, bound: Bound, partitions: &[(&str, Partition)]) -> Result<Bounds, KafkaError> {
        let (replica, timestamp, isolation) = match bound {
            Bound::Start => (ANY_REPLICA, -2, 0),
            Bound::HighWatermark => (CONSUMER, -1, 0),
            Bound::LastStable => (CONSUMER, -1, 1),
            Bound::Newest => (CONSUMER, -3, 0),
        };
        let mut topics: BTreeMap<&str, Vec<ListOffsetsPartition>> = BTreeMap::new();
        for (topic, partition) in partitions {
            let asked = ListOffsetsPartition::default().with_partition_index(partition.0).with_timestamp(timestamp);
            topics.entry(topic).or_default().push(asked.with_current_leader_epoch(-1));
        }
        let topics = topics
            .into_iter()
            .map(|(name, partitions)| ListOffsetsTopic::default().with_name(topic_name(name)).with_partitions(partitions))
            .collect();
        let request = ListOffsetsRequest::default().with_replica_id(replica.into()).with_isolation_level(isolation).with_topics(topics);
        let answer = self.0.ask(LIST_OFFSETS, &request)?;
        let mut bounds = BTreeMap::new();
        for topic in answer.topics {
            for partition in topic.partitions {
                let bound = match code(partition.error_code) {
                    Some(code) => Err(code),
                    None => Ok(BoundAt { offset: Offset(partition.offset), time_ms: partition.timestamp }),
                };
                bounds.insert((topic.name.0.to_string(), Partition(partition.partition_index)), bound);
            }
        }
        Ok(bounds)
    }

    /// Records of `wanted`, read uncommitted: aborted and open transactions are readable too.
    pub(crate) fn fetch(&mut self, wanted: &[Wanted]) -> Result<Vec<Fetched>, KafkaError> {
        let mut topics: Vec<FetchTopic> = Vec::new();
        for wanted in wanted {
            let partition = FetchPartition::default()
                .with_partition(wanted.partition.0)
                .with_current_leader_epoch(-1)
                .with_fetch_offset(wanted.from.0)
                .with_last_fetched_epoch(-1)
                .with_log_start_offset(-1)
                .with_partition_max_bytes(PARTITION_BYTES);
            // Brokers fill an answer in the order of the question, so that order is kept.
            match topics.last_mut().filter(|topic| topic.topic_id == wanted.topic_id) {
                Some(topic) => topic.partitions.push(partition),
                None => topics.push(FetchTopic::default().with_topic_id(wanted.topic_id).with_partitions(vec![partition])),
            }
        }
        let request = FetchRequest::default()
            .with_replica_id(CONSUMER.into())
            .with_max_wait_ms(FETCH_WAIT_MS)
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES)
            .with_isolation_level(0)
            .with_session_id(0)
            .with_session_epoch(NO_SESSION)
            .with_topics(topics);
        let answer = self.0.ask(FETCH, &request)?;
        if let Some(code) = code(answer.error_code) {
            return Err(self.0.failed(&code));
        }
        let fetched = answer.responses.into_iter().flat_map(|topic| {
            topic.partitions.into_iter().map(move |partition| Fetched {
                topic_id: topic.topic_id,
                partition: Partition(partition.partition_index),
                error: code(partition.error_code),
                batches: partition.records.unwrap_or_default(),
            })
        });
        Ok(fetched.collect())
    }

    /// The settings of `topics`, by name, or the broker's code for one that it does not tell.
    ///
    /// # Errors
    /// [`KafkaError::Call`].
    pub(crate) fn topic_settings(&mut self, topics: &[&str]) -> Result<BTreeMap<String, Settings>, KafkaError> {
        self.settings(topics.iter().map(|name| (TOPIC, (*name).to_owned())))
    }

    /// The settings of this broker, whose id is `id`.
    ///
    /// # Errors
    /// [`KafkaError::Call`].
    pub(crate) fn own_settings(&mut self, id: i32) -> Result<Settings, KafkaError> {
        let mut settings = self.settings([(BROKER, id.to_string())].into_iter())?;
        settings.remove(&id.to_string()).ok_or_else(|| self.0.failed("WrongAnswer"))
    }

    fn settings(&mut self, resources: impl Iterator<Item = (i8, String)>) -> Result<BTreeMap<String, Settings>, KafkaError> {
        let resource = |(kind, name)| {
            let name = StrBytes::from_string(name);
            DescribeConfigsResource::default().with_resource_type(kind).with_resource_name(name).with_configuration_keys(None)
        };
        let answer = self.0.ask(DESCRIBE_CONFIGS, &DescribeConfigsRequest::default().with_resources(resources.map(resource).collect()))?;
        let told = answer.results.into_iter().map(|result| {
            let settings = match code(result.error_code) {
                Some(code) => Err(code),
                None => Ok(result.configs.into_iter().filter_map(|one| Some((one.name.to_string(), one.value?.to_string()))).collect()),
            };
            (result.resource_name.to_string(), settings)
        });
        Ok(told.collect())
    }

    /// The log directories of this broker.
    ///
    /// # Errors
    /// [`KafkaError::Call`]; `ClusterAuthorizationFailed` where the principal may not DESCRIBE the cluster.
    pub(crate) fn log_dirs(&mut self) -> Result<Vec<LogDir>, KafkaError> {
        let answer = self.0.ask(DESCRIBE_LOG_DIRS, &DescribeLogDirsRequest::default().with_topics(None))?;
        if let Some(code) = code(answer.error_code) {
            return Err(self.0.failed(&code));
        }
        let dirs = answer.results.into_iter().map(|dir| LogDir {
            error: code(dir.error_code),
            partitions: dir
                .topics
                .into_iter()
                .flat_map(|topic| {
                    let name = topic.name.0.to_string();
                    let settled = topic.partitions.into_iter().filter(|partition| !partition.is_future_key);
                    settled.map(move |partition| (name.clone(), Partition(partition.partition_index)))
                })
                .collect(),
        });
        Ok(dirs.collect())
    }
}

/// A host as an address takes it.
fn host(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}
