//! Whether Kafka answers, as the clients of this process see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};

use crate::kafka::error::code_of;

/// Shared by all clients of one [`super::Kafka`]: down once a client has lost every broker, up again with the next answer.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    is_up: Arc<AtomicBool>,
    appends: Option<Appends>,
}

/// How many records this process had acknowledged by the embedded broker: nobody else writes to it, so while it stands still there is
/// nothing new to read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Appends(Arc<AtomicU64>);

impl Appends {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Health {
    pub(crate) fn new(is_embedded: bool) -> Self {
        Self { is_up: Arc::new(AtomicBool::new(true)), appends: is_embedded.then(Appends::default) }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// What was appended to the embedded broker; `None` for any other, which others write to as well.
    pub(crate) fn appends(&self) -> Option<&Appends> {
        self.appends.as_ref()
    }

    /// A record was acknowledged.
    pub(crate) fn appended(&self) {
        if let Some(Appends(count)) = &self.appends {
            count.fetch_add(1, Ordering::SeqCst);
        }
        self.answered();
    }

    pub(crate) fn answered(&self) {
        // Read first: the flag is shared by all threads and nearly always set already.
        if !self.is_up() && !self.is_up.swap(true, Ordering::Relaxed) {
            tracing::info!("kafka answers again");
        }
    }

    pub(crate) fn lost(&self, code: &str) {
        if self.is_up.swap(false, Ordering::Relaxed) {
            tracing::warn!(code, "kafka does not answer; trying again until it does");
        }
    }

    /// Notes an error event of a client.
    pub(crate) fn note(&self, error: &ClientError) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => self.lost("AllBrokersDown"),
            _ => tracing::debug!(code = code_of(error), "kafka client event"),
        }
    }
}

/// Logs a line of librdkafka by its facility alone: its text may quote what a broker said.
pub(crate) fn client_log(level: RDKafkaLogLevel, facility: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(facility, "kafka client stopped working");
        }
        _ => tracing::debug!(facility, "kafka client"),
    }
}

/// Context of clients without callbacks of their own: admin and readers.
#[derive(Debug, Clone)]
pub(crate) struct PlainContext(pub(crate) Health);

impl ClientContext for PlainContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, _text: &str) {
        client_log(level, facility);
    }

    fn error(&self, error: ClientError, _reason: &str) {
        self.0.note(&error);
    }
}

impl rdkafka::consumer::ConsumerContext for PlainContext {}
