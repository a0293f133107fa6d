//! How to reach Kafka, and the client options that follow from it.
//!
//! Invariants: secrets never print; every client of one process gets its options here, so that none forgets `acks=all` or an
//! explicit end of the log. librdkafka's options: its CONFIGURATION.md; why each value: `docs/architecture.md`.

use std::fmt;
use std::path::PathBuf;

use rdkafka::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use sunder_schemas::topic::{DLQ_MESSAGE_BYTES_MAX, Profile, Times};

/// Which broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broker {
    /// `host:port[,host:port]` of Apache Kafka or what speaks its protocol.
    Address(String),
    /// A broker inside this process: in memory, for the demo and quick tests; never durable.
    Embedded,
}

/// How to speak to it.
#[derive(Clone)]
pub struct Security {
    /// `SASL_SSL`, `SSL` or `SASL_PLAINTEXT`.
    pub protocol: String,
    /// `SCRAM-SHA-512`, `SCRAM-SHA-256` or `PLAIN`; left out with `SSL`.
    pub mechanism: Option<String>,
    /// User name of SASL.
    pub username: Option<String>,
    /// Password of SASL.
    pub password: Option<SecretString>,
    /// File of the certificate authority; left out: the system's.
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("protocol", &self.protocol)
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .field("ca_file", &self.ca_file)
            .finish_non_exhaustive()
    }
}

/// What the config says of Kafka.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// Which broker.
    pub broker: Broker,
    /// Prefix of every topic and group, e.g. `sp`.
    pub prefix: String,
    /// Partitions of the topics of data; fixed for life.
    pub partitions: i32,
    /// Replicas of each partition.
    pub replication: i32,
    /// Which periods the topics and clients get.
    pub profile: Profile,
    /// Encryption and login; left out: plaintext.
    pub security: Option<Security>,
}

impl KafkaSettings {
    /// Settings of the embedded broker with the test profile, as the demo and tests use them.
    #[must_use]
    pub fn embedded(prefix: &str, partitions: i32) -> Self {
        Self { broker: Broker::Embedded, prefix: prefix.to_owned(), partitions, replication: 1, profile: Profile::Test, security: None }
    }

    /// Settings of a plaintext broker at `address` with the test profile.
    #[must_use]
    pub fn plaintext(address: &str, prefix: &str, partitions: i32, replication: i32) -> Self {
        Self {
            broker: Broker::Address(address.to_owned()),
            prefix: prefix.to_owned(),
            partitions,
            replication,
            profile: Profile::Test,
            security: None,
        }
    }

    /// The periods of the profile.
    #[must_use]
    pub const fn times(&self) -> Times {
        Times::of(self.profile)
    }

    /// `min.insync.replicas` of every topic: all replicas but one, at least one.
    #[must_use]
    pub fn min_insync(&self) -> i32 {
        (self.replication - 1).max(1)
    }

    /// Options of every client. The client id is fixed: brokers keep it in clear without a bound (kafka-confirmed section 4).
    #[must_use]
    pub(crate) fn client(&self, address: &str) -> ClientConfig {
        let mut options = ClientConfig::new();
        options
            .set("bootstrap.servers", address)
            .set("client.id", "sunder")
            .set("allow.auto.create.topics", "false")
            .set("statistics.interval.ms", "0")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "2000")
            // By default librdkafka connects where something is asked for, and each question that waits while every broker is away starts
            // the next connection at once, past the wait above: thousands a second and most of a core from one process. So each client
            // keeps a connection to each broker, and does not start over with `bootstrap.servers` (librdkafka issue 5088).
            .set("enable.sparse.connections", "false")
            .set("metadata.recovery.strategy", "none")
            .set("log_level", "4");
        if let Some(security) = &self.security {
            options.set("security.protocol", &security.protocol);
            if let Some(mechanism) = &security.mechanism {
                options.set("sasl.mechanism", mechanism);
            }
            if let Some(username) = &security.username {
                options.set("sasl.username", username);
            }
            if let Some(password) = &security.password {
                // The one place where the broker password leaves its wrapper; rdkafka hides this key in its Debug.
                options.set("sasl.password", password.expose_secret());
            }
            if let Some(file) = &security.ca_file {
                options.set("ssl.ca.location", file.to_string_lossy());
            }
        }
        options
    }

    /// Options of a producer: idempotent, acknowledged by all in-sync replicas, nothing in flight for longer than the profile says.
    #[must_use]
    pub(crate) fn producer(&self, address: &str) -> ClientConfig {
        let mut options = self.client(address);
        options
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            // Batches fill while earlier ones are in flight; 5 ms is librdkafka's default and costs no throughput here.
            .set("linger.ms", "5")
            // The largest topic decides; each topic refuses by its own bound what is too large for it. Batches keep their default size.
            .set("message.max.bytes", DLQ_MESSAGE_BYTES_MAX.to_string())
            .set("message.timeout.ms", self.times().message_timeout_ms.to_string())
            // Partitions are always explicit; if one ever is not, it lands where a Java client would put it.
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.messages", "200000")
            .set("queue.buffering.max.kbytes", "262144");
        options
    }

    /// Options of a consumer: never resets by itself, checks CRCs, commits only when told.
    #[must_use]
    pub(crate) fn consumer(&self, address: &str, group: &str) -> ClientConfig {
        let mut options = self.client(address);
        options
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("check.crcs", "true")
            // Range gives one member the same partition number of all its topics, so that an order stays with one process.
            .set("partition.assignment.strategy", "range")
            .set("fetch.wait.max.ms", "100")
            .set("queued.max.messages.kbytes", "65536");
        if self.broker == Broker::Embedded {
            // The embedded broker ignores the fetch size and answers with its whole backlog (embedded-broker section 7).
            options.set("receive.message.max.bytes", "2000000000");
            options.set("fetch.max.bytes", "1000000000");
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_never_prints() {
        let settings = KafkaSettings {
            security: Some(Security {
                protocol: "SASL_SSL".to_owned(),
                mechanism: Some("SCRAM-SHA-512".to_owned()),
                username: Some("sunder".to_owned()),
                password: Some(SecretString::from("hunter2".to_owned())),
                ca_file: None,
            }),
            ..KafkaSettings::plaintext("127.0.0.1:1", "sp", 1, 1)
        };
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert!(!format!("{:?}", settings.producer("127.0.0.1:1")).contains("hunter2"));
    }
}
