//! Which topic of a name this is: offsets belong to an incarnation, and a recreated topic is another one (DESIGN section 2, rule 8).
//!
//! The incarnation is the topic id. A broker without topic ids (the embedded one) is asked for the `~incarnation` record that
//! `topics apply` writes to partition 0 of each topic it creates.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD as STANDARD_NO_PAD;
use rdkafka::admin::AdminClient;
use sunder_schemas::ids::{Offset, Partition};

use crate::kafka::bounds::{LEADER_WITHIN, bounds};
use crate::kafka::error::KafkaError;
use crate::kafka::health::PlainContext;
use crate::kafka::reader::{Range, ReaderOptions, read};
use crate::kafka::wire::Wire;
use crate::kafka::wire::connection::OLD_BROKER;

/// Key of the record that names an incarnation.
pub const INCARNATION_KEY: &str = "~incarnation";
/// Header that holds the name; the value is null, so that readers of typed topics see a tombstone of a key they do not have.
pub const INCARNATION_HEADER: &str = "incarnation";
/// How long an answer is believed: a topic recreated under a running process is noticed within this time (chosen: one describe call
/// per topic and minute costs nothing; the readers' `OffsetLost` notices most cases at once).
const BELIEVED_FOR: Duration = Duration::from_secs(60);
/// How long a new topic may take to be known to every broker (three brokers on two busy cores: under 2 s measured).
const SPREADS_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(50);

struct Shared {
    admin: AdminClient<PlainContext>,
    reader: ReaderOptions,
    wire: Wire,
    /// Stands for the life of an embedded broker where even the record is gone (its retention is over).
    broker_run: String,
    known: Mutex<HashMap<String, (String, Instant)>>,
}

/// Asks for incarnations and remembers them for a minute.
#[derive(Clone)]
pub(crate) struct Incarnations {
    shared: Arc<Shared>,
}

impl Incarnations {
    pub(crate) fn new(admin: AdminClient<PlainContext>, reader: ReaderOptions, wire: Wire, broker_run: String) -> Self {
        Self { shared: Arc::new(Shared { admin, reader, wire, broker_run, known: Mutex::new(HashMap::new()) }) }
    }

    pub(crate) fn admin(&self) -> &AdminClient<PlainContext> {
        &self.shared.admin
    }

    fn known(&self, topic: &str) -> Option<String> {
        let known = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(topic).filter(|(_, at)| at.elapsed() < BELIEVED_FOR).map(|(id, _)| id.clone())
    }

    /// Forgets what is believed of `topic`.
    pub(crate) fn forget(&self, topic: &str) {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }

    pub(crate) async fn get(&self, topic: &str) -> Result<String, KafkaError> {
        if let Some(id) = self.known(topic) {
            return Ok(id);
        }
        let (this, topic) = (self.clone(), topic.to_owned());
        super::blocking(move || this.get_blocking(&topic)).await
    }

    pub(crate) fn get_blocking(&self, topic: &str) -> Result<String, KafkaError> {
        if let Some(id) = self.known(topic) {
            return Ok(id);
        }
        let id = match self.topic_id(topic)? {
            Some(id) => id,
            None => self.recorded(topic)?.unwrap_or_else(|| self.shared.broker_run.clone()),
        };
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned(), (id.clone(), Instant::now()));
        Ok(id)
    }

    /// The topic id; `None` where the broker has no topic ids. Of several brokers some learn of a new topic later than others: a topic
    /// counts as unknown only when it stays so. Any broker is asked: librdkafka asks the controller alone, which may be the one that died.
    pub(crate) fn topic_id(&self, topic: &str) -> Result<Option<String>, KafkaError> {
        let started = Instant::now();
        loop {
            let asked = self.shared.wire.layout(&[topic.to_owned()]);
            let answer = asked.and_then(|mut layout| {
                let found = layout.topics.remove(topic);
                found.ok_or_else(|| KafkaError::own(format!("describe {topic}"), "UnknownTopicOrPartition"))
            });
            match answer {
                Ok(layout) => return Ok((!layout.id.is_nil()).then(|| STANDARD_NO_PAD.encode(layout.id.as_bytes()))),
                Err(error) if error.code() == OLD_BROKER => return Ok(None),
                Err(error) if started.elapsed() >= SPREADS_WITHIN => return Err(error),
                Err(_) => std::thread::sleep(ASK_AGAIN),
            }
        }
    }

    /// The newest `~incarnation` record of partition 0.
    fn recorded(&self, topic: &str) -> Result<Option<String>, KafkaError> {
        let (low, high) = bounds(self.shared.admin.inner(), topic, Partition(0), LEADER_WITHIN)?;
        // It is the first record ever written, or near it: a few records beyond the log's start are enough.
        let range = Range { topic: topic.to_owned(), partition: Partition(0), from: low, to: Offset(high.0.min(low.0 + 64)) };
        let mut found = None;
        read(&self.shared.reader, std::slice::from_ref(&range), |record| {
            if record.key == Some(INCARNATION_KEY.as_bytes()) {
                found = record.header(INCARNATION_HEADER).and_then(|id| std::str::from_utf8(id).ok()).map(str::to_owned);
            }
            Ok(())
        })?;
        Ok(found)
    }
}
