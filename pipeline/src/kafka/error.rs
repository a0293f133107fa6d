//! Errors of the Kafka clients: a code and a place, never the client's own text.

use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use sunder_retention::store::StoreError;
use sunder_schemas::ids::{Offset, Partition};

/// Why a call to Kafka failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KafkaError {
    /// No broker answered when the program started.
    #[error("kafka at {address} did not answer within {waited_s} s ({code})")]
    Unreachable {
        /// The configured bootstrap address.
        address: String,
        /// How long was tried, in seconds.
        waited_s: u64,
        /// The client's code, e.g. `BrokerTransportFailure`, `Authentication`.
        code: String,
    },
    /// A broker answered, and will not have this client.
    #[error("kafka at {address} refuses the connection ({code}): see kafka.security (protocol, mechanism, username, password, ca)")]
    Refused {
        /// The configured bootstrap address.
        address: String,
        /// `UnknownCertificate`, `NoTls`, `Authentication`, `UnsupportedSaslMechanism` or `BrokerUnknown`.
        code: String,
    },
    /// A call failed.
    #[error("kafka could not {action}: {code}")]
    Call {
        /// What was tried, e.g. `describe sp.raw.orders.v1`.
        action: String,
        /// Kafka's or librdkafka's code, e.g. `TopicAuthorizationFailed`.
        code: String,
    },
    /// The position to read from is not in the log: it was deleted below it, or the topic is another one.
    #[error("{topic}[{partition}] no longer holds offset {wanted}: the log is [{low}, {high})")]
    OffsetLost {
        /// Full topic name.
        topic: String,
        /// Partition.
        partition: Partition,
        /// The position that was asked for.
        wanted: Offset,
        /// First offset that is left.
        low: Offset,
        /// End of the log.
        high: Offset,
    },
    /// The client stopped for good (e.g. its static group membership was taken by another process).
    #[error("the kafka client stopped for good: {code}")]
    Fatal {
        /// The client's code.
        code: String,
    },
}

impl KafkaError {
    /// An error of `action` with the code of `error`.
    #[must_use]
    pub(crate) fn call(action: impl Into<String>, error: &ClientError) -> Self {
        Self::Call { action: action.into(), code: code_of(error) }
    }

    /// An error of `action` with a code of our own.
    #[must_use]
    pub(crate) fn own(action: impl Into<String>, code: &str) -> Self {
        Self::Call { action: action.into(), code: code.to_owned() }
    }

    /// Whether the broker that was asked does not know the topic (yet).
    #[must_use]
    pub fn is_unknown_topic(&self) -> bool {
        matches!(self.code(), "UnknownTopicOrPartition" | "UnknownTopic" | "UnknownPartition")
    }

    /// The code alone, for metrics and store errors.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Unreachable { code, .. } | Self::Refused { code, .. } | Self::Call { code, .. } | Self::Fatal { code } => code,
            Self::OffsetLost { .. } => "OffsetLost",
        }
    }
}

impl From<KafkaError> for StoreError {
    fn from(error: KafkaError) -> Self {
        let code = error.code().to_owned();
        let action = match error {
            KafkaError::Call { action, .. } => action,
            KafkaError::Unreachable { address, .. } | KafkaError::Refused { address, .. } => format!("reach {address}"),
            KafkaError::OffsetLost { topic, partition, wanted, .. } => format!("read {topic}[{partition}]@{wanted}"),
            KafkaError::Fatal { .. } => "go on".to_owned(),
        };
        Self { store: "kafka".to_owned(), action, code }
    }
}

/// The code of a client's error, without its text. A wrong client option names its key, never its value.
#[must_use]
pub(crate) fn code_of(error: &ClientError) -> String {
    if let Some(code) = error.rdkafka_error_code() {
        return code_name(code);
    }
    match error {
        ClientError::ClientConfig(_, _, key, _) => format!("ClientOption({key})"),
        ClientError::ClientCreation(_) => "ClientCreation".to_owned(),
        ClientError::AdminOp(code) => code_name(*code),
        ClientError::AdminOpCreation(_) => "AdminOpCreation".to_owned(),
        ClientError::Nul(_) => "NulByte".to_owned(),
        ClientError::PartitionEOF(_) => "PartitionEof".to_owned(),
        ClientError::Subscription(_) => "Subscription".to_owned(),
        _ => "Client".to_owned(),
    }
}

/// The name of a librdkafka code.
#[must_use]
pub(crate) fn code_name(code: RDKafkaErrorCode) -> String {
    format!("{code:?}")
}

/// The name of a raw librdkafka code.
#[must_use]
pub(crate) fn raw_code_name(code: RDKafkaRespErr) -> String {
    code_name(RDKafkaErrorCode::from(code))
}
