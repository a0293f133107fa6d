//! Kafka: clients, topics as declared, and the proof that what should be gone is gone.
//!
//! [`Kafka::connect`] is the way in; it knows names and options. [`Producer`] and [`GroupConsumer`] move records, [`admin`] makes and
//! checks topics, [`log`] and [`prove`] implement what retention asks of the event log, [`heartbeat`] lets segments roll.
//! Works on Apache Kafka 3.7 or newer, and on the embedded broker without any claim of physical proof.

pub mod admin;
mod bounds;
pub mod consumer;
pub mod embedded;
pub mod error;
mod health;
pub mod heartbeat;
pub mod hindrance;
pub mod incarnation;
pub mod log;
mod mirror;
mod native;
mod needles;
pub mod producer;
pub mod prove;
pub mod published;
pub mod reader;
pub mod record;
mod replicas;
pub mod roll;
mod rows;
pub mod settings;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::AdminClient;
use sunder_schemas::ids::{EntityToken, Offset, Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::topic::Topic;

pub use consumer::{GroupConsumer, Positions, Rebalanced, TopicPartition};
pub use error::KafkaError;
pub use log::KafkaLog;
pub use producer::{Batch, OutRecord, ProduceError, Producer};
pub use reader::Range;
pub use record::Record;
pub use settings::{Broker, KafkaSettings, Security};

use bounds::{LEADER_WITHIN, bounds};
use health::{Health, PlainContext};
use hindrance::Views;
use incarnation::Incarnations;
use reader::ReaderOptions;
use wire::Wire;
use wire::connection::REFUSALS;

/// How long `connect` tries before it gives up (DESIGN section 6: exit 1 within 30 s).
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// Runs `work` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, KafkaError> + Send + 'static) -> Result<T, KafkaError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(KafkaError::own("finish a blocking call", "Panicked")))
}

struct Shared {
    settings: KafkaSettings,
    address: String,
    health: Health,
    incarnations: Incarnations,
    reader: ReaderOptions,
    wire: Wire,
    views: Views,
    producer: Producer,
}

/// The connection of a process to Kafka; clones share it.
#[derive(Clone)]
pub struct Kafka {
    shared: Arc<Shared>,
}

impl Kafka {
    /// Starts the embedded broker where the settings ask for it, connects, and returns once a broker has answered.
    ///
    /// # Errors
    /// [`KafkaError::Unreachable`] within 30 s, with the address; [`KafkaError::Refused`]; [`KafkaError::Call`] for options librdkafka refuses.
    pub async fn connect(settings: KafkaSettings) -> Result<Self, KafkaError> {
        blocking(move || Self::connect_blocking(settings)).await
    }

    fn connect_blocking(settings: KafkaSettings) -> Result<Self, KafkaError> {
        let address = match &settings.broker {
            Broker::Address(address) => address.clone(),
            Broker::Embedded => embedded::start()?,
        };
        let health = Health::new(settings.broker == Broker::Embedded);
        let admin: AdminClient<PlainContext> = settings
            .client(&address)
            .create_with_context(PlainContext(health.clone()))
            .map_err(|error| KafkaError::call("make a client", &error))?;
        let wire = Wire::new(&address, settings.security.clone());
        let started = Instant::now();
        loop {
            match admin.inner().fetch_metadata(None, Duration::from_secs(5)) {
                Ok(_) => break,
                Err(error) if started.elapsed() >= CONNECT_WITHIN => {
                    let waited_s = started.elapsed().as_secs();
                    return Err(KafkaError::Unreachable { address, waited_s, code: error::code_of(&error) });
                }
                // Each try waits inside the client, which reconnects with backoff. librdkafka tells a refusal only to its log.
                Err(_) => {
                    if let Err(error) = wire.ask_any(|_| Ok(()))
                        && REFUSALS.contains(&error.code())
                    {
                        return Err(KafkaError::Refused { address, code: error.code().to_owned() });
                    }
                }
            }
        }
        health.answered();
        let reader = ReaderOptions::new(settings.consumer(&address, &format!("{}.reader", settings.prefix)), health.clone());
        let incarnations = Incarnations::new(admin, reader.clone(), wire.clone(), format!("broker-{}", uuid::Uuid::new_v4().simple()));
        let timeout = Duration::from_millis(settings.times().message_timeout_ms.unsigned_abs());
        let producer = Producer::new(settings.producer(&address), health.clone(), incarnations.clone(), timeout)?;
        Ok(Self { shared: Arc::new(Shared { settings, address, health, incarnations, reader, wire, views: Views::default(), producer }) })
    }

    /// The settings it was made from.
    #[must_use]
    pub fn settings(&self) -> &KafkaSettings {
        &self.shared.settings
    }

    /// The address in use; of the embedded broker: the one it got.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// Whether this is the broker inside the process, which proves nothing physical.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.shared.settings.broker == Broker::Embedded
    }

    /// The full name of `topic`.
    #[must_use]
    pub fn topic(&self, topic: Topic) -> String {
        topic.name(&self.shared.settings.prefix)
    }

    /// How many partitions `topic` has.
    #[must_use]
    pub fn partitions(&self, topic: Topic) -> i32 {
        topic.partitions(self.shared.settings.partitions)
    }

    /// The partition of everything of `entity` (for a child: its order).
    #[must_use]
    pub fn partition_of(&self, seller: &SellerId, entity: EntityToken) -> Partition {
        key::partition_of(seller, entity, self.shared.settings.partitions)
    }

    /// The name of the group of `role`, e.g. `sp.split`. Brokers keep group names in clear for ever: nothing personal in them.
    #[must_use]
    pub fn group(&self, role: &str) -> String {
        format!("{}.{role}", self.shared.settings.prefix)
    }

    /// The group of the splitters: what [`sunder_retention::store::EventLog::split_past`] asks about.
    #[must_use]
    pub fn split_group(&self) -> String {
        self.group("split")
    }

    /// The producer; clones share one client.
    #[must_use]
    pub fn producer(&self) -> Producer {
        self.shared.producer.clone()
    }

    /// Whether Kafka answers, as far as the clients know.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.shared.health.is_up()
    }

    /// Asks a broker now, for at most 5 s, and remembers the answer for [`Kafka::is_up`].
    pub async fn probe(&self) -> bool {
        let this = self.clone();
        let asked = blocking(move || {
            this.admin()
                .inner()
                .fetch_metadata(None, Duration::from_secs(5))
                .map_err(|error| KafkaError::call("ask for brokers", &error))?;
            Ok(())
        })
        .await;
        match asked {
            Ok(()) => self.shared.health.answered(),
            Err(error) => self.shared.health.lost(error.code()),
        }
        self.is_up()
    }

    /// The incarnation of the topic called `topic` (its full name): the topic id where the broker has one, else the `~incarnation`
    /// record. Believed for a minute.
    ///
    /// # Errors
    /// [`KafkaError::Call`], e.g. `UnknownTopicOrPart` where there is no such topic.
    pub async fn incarnation(&self, topic: &str) -> Result<String, KafkaError> {
        self.shared.incarnations.get(topic).await
    }

    /// As [`Kafka::incarnation`], on a thread that may block.
    ///
    /// # Errors
    /// As [`Kafka::incarnation`].
    pub fn incarnation_blocking(&self, topic: &str) -> Result<String, KafkaError> {
        self.shared.incarnations.get_blocking(topic)
    }

    /// First offset and end (next offset to be written) of a partition. Blocks, while the partition changes its leader too.
    ///
    /// # Errors
    /// [`KafkaError::Call`].
    pub fn bounds_blocking(&self, topic: &str, partition: Partition) -> Result<(Offset, Offset), KafkaError> {
        bounds(self.admin().inner(), topic, partition, LEADER_WITHIN)
    }

    /// Reads `ranges` from end to end outside any group and gives each record to `each`. Blocks. Compaction may have left gaps;
    /// ranges beyond the log's bounds are an error, never a shorter read.
    ///
    /// # Errors
    /// [`KafkaError::OffsetLost`], [`KafkaError::Call`], or what `each` returned.
    pub fn read_blocking(&self, ranges: &[Range], each: impl FnMut(&Record<'_>) -> Result<(), KafkaError>) -> Result<u64, KafkaError> {
        for range in ranges {
            let (low, high) = self.bounds_blocking(&range.topic, range.partition)?;
            let lost = |wanted| KafkaError::OffsetLost { topic: range.topic.clone(), partition: range.partition, wanted, low, high };
            if range.from < low {
                return Err(lost(range.from));
            }
            if range.to > high {
                return Err(lost(range.to));
            }
        }
        reader::read(&self.shared.reader, ranges, each)
    }

    /// Reads every replica of `ranges` from its own first record to the range's end and gives each record to `each` with its broker's
    /// state; the embedded broker, which has no replicas, is read as it serves. Returns the states. Blocks.
    ///
    /// # Errors
    /// [`KafkaError::Call`]: a replica that cannot be read in full is named.
    pub(crate) fn read_replicas_blocking<S: Default + Send>(
        &self,
        ranges: Vec<Range>,
        each: impl Fn(&mut S, &Record<'_>) + Sync,
    ) -> Result<Vec<S>, KafkaError> {
        if self.is_embedded() {
            let mut state = S::default();
            self.read_blocking(&ranges, |record| {
                each(&mut state, record);
                Ok(())
            })?;
            return Ok(vec![state]);
        }
        let wanted: Vec<replicas::UpTo> = ranges.into_iter().map(replicas::UpTo::from).collect();
        let read = replicas::read(self.wire(), &wanted, |_| S::default(), each)?;
        Ok(read.into_iter().map(|(state, _)| state).collect())
    }

    /// The whole of `partition` as it stands now.
    ///
    /// # Errors
    /// [`KafkaError::Call`].
    pub fn whole_blocking(&self, topic: &str, partition: Partition) -> Result<Range, KafkaError> {
        let (from, to) = self.bounds_blocking(topic, partition)?;
        Ok(Range { topic: topic.to_owned(), partition, from, to })
    }

    pub(crate) fn admin(&self) -> &AdminClient<PlainContext> {
        self.shared.incarnations.admin()
    }

    pub(crate) fn views(&self) -> &Views {
        &self.shared.views
    }

    pub(crate) fn wire(&self) -> &Wire {
        &self.shared.wire
    }

    pub(crate) fn health(&self) -> &Health {
        &self.shared.health
    }

    pub(crate) fn incarnations(&self) -> &Incarnations {
        &self.shared.incarnations
    }
}

impl std::fmt::Debug for Kafka {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kafka").field("address", &self.shared.address).field("prefix", &self.shared.settings.prefix).finish()
    }
}
