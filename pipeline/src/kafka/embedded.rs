//! The broker inside this process: in memory, one node, without topic ids and without files.
//!
//! It answers like Kafka for what the pipeline does, and proves nothing physical: certificates of it say so. It lives as long as
//! the process, since it has no stop call.

use crate::kafka::error::KafkaError;

/// Starts a broker on a free port of 127.0.0.1 and returns its address.
///
/// # Errors
/// [`KafkaError::Call`] where no port can be bound, or where the program was built without the feature `embedded`.
#[cfg(feature = "embedded")]
pub fn start() -> Result<String, KafkaError> {
    noida::kafka::spawn("127.0.0.1:0")
        .map(|address| address.to_string())
        .map_err(|error| KafkaError::own("start the embedded broker", &format!("{:?}", error.kind())))
}

/// Starts a broker on a free port of 127.0.0.1 and returns its address.
///
/// # Errors
/// Always: the program was built without the feature `embedded`.
#[cfg(not(feature = "embedded"))]
pub fn start() -> Result<String, KafkaError> {
    Err(KafkaError::own("start the embedded broker", "BuiltWithoutIt"))
}
