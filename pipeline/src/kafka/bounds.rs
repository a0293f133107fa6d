//! First and last offset of a partition, asked of its leader until it has one.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;
use sunder_schemas::ids::{Offset, Partition};

use crate::kafka::error::KafkaError;
use crate::kafka::reader::is_passing;

/// Within this a partition whose leader died has another one that answers: Kafka gives a broker up after `broker.session.timeout.ms`
/// (9 s); where the dead broker led the controllers too, they vote first (`controller.quorum.fetch.timeout.ms` 2 s and
/// `election.timeout.ms` 1 s, more than once on a busy machine).
pub(super) const LEADER_WITHIN: Duration = Duration::from_secs(60);
/// How long one question may take: a dead leader does not answer, and the client asks it until then.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two questions meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// First offset and end (next offset to be written) of a partition. Blocks; while the partition has no leader that answers, for `within`.
///
/// # Errors
/// [`KafkaError::Call`] with the code of the last answer.
pub(super) fn bounds<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: Partition,
    within: Duration,
) -> Result<(Offset, Offset), KafkaError> {
    let started = Instant::now();
    loop {
        match client.fetch_watermarks(topic, partition.0, ASK_TIMEOUT) {
            Ok((low, high)) => return Ok((Offset(low), Offset(high))),
            Err(error) if started.elapsed() < within && error.rdkafka_error_code().is_some_and(is_passing) => {
                std::thread::sleep(ASK_AGAIN);
                // The client remembers who led the partition; only an answer of a living broker makes it forget. One that fails says
                // what the next question says again.
                _ = client.fetch_metadata(Some(topic), ASK_TIMEOUT);
            }
            Err(error) => return Err(KafkaError::call(format!("read the bounds of {topic}[{partition}]"), &error)),
        }
    }
}
