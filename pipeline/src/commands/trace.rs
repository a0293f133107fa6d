//! `sunder trace`: from a row of the warehouse back to the event it came from and the call that fetched it.
//!
//! The row's own attribution names call and event. The records are looked for where the row's key puts them: its partition of
//! `events.<kind>` and of `raw.<family>` is read from its start, outside any group. Raw records are gone after their retention.

use serde::Serialize;
use sunder_schemas::class::Kind;
use sunder_schemas::envelope::RawEvent;
use sunder_schemas::ids::{EntityToken, EventId, Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::private::SealedBlock;
use sunder_schemas::records::Record as _;
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;
use sunder_sinks::RowText;
use sunder_sinks::tables::Table;

use super::Failure;
use crate::app::{Base, connect_kafka, registry};
use crate::cli::{DONE, NOT_TRUE, TraceArgs};
use crate::config::Config;
use crate::kafka::{Kafka, KafkaError, Record, blocking};
use crate::output::Output;
use crate::registry::Schemas;

/// The answer (DESIGN section 6).
#[derive(Debug, Serialize)]
struct Trace {
    table: &'static str,
    /// The record's key on `state.<kind>`.
    key: String,
    call: Call,
    event: Event,
    /// Every column as text.
    row: RowText,
}

/// Which call of which API brought it.
#[derive(Debug, Serialize)]
struct Call {
    selling_partner_id: Option<String>,
    marketplace_id: Option<String>,
    source_api: Option<String>,
    source_operation: Option<String>,
    source_request_id: Option<String>,
    collected_at: Option<String>,
}

/// The event, and where it lies.
#[derive(Debug, Serialize)]
struct Event {
    event_id: Option<String>,
    source_version: Option<String>,
    payload_sha256: Option<String>,
    /// The record the row was written from.
    state: Lies,
    /// The record of the history; null once it has expired.
    history: Option<Lies>,
    /// The raw event; null after its retention.
    raw: Option<Raw>,
}

/// Coordinates of a record.
#[derive(Debug, Clone, Serialize)]
struct Lies {
    topic: String,
    partition: Option<String>,
    offset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    appended_at: Option<String>,
}

/// What the raw event says of its making; nothing personal, and no block.
#[derive(Debug, Serialize)]
struct Raw {
    #[serde(flatten)]
    lies: Lies,
    poller: String,
    classification: String,
    /// Sealed groups with the id of the key they are sealed under.
    sealed: Vec<(&'static str, String)>,
    deadline: Option<String>,
    deadline_rule: Option<String>,
}

/// Traces one row.
pub(super) async fn run(config: Config, args: TraceArgs, output: Output) -> Result<u8, Failure> {
    let kind: Kind = args.table.parse().map_err(|_| Failure::Use(format!("--table is one of {}", names())))?;
    let parts = key::split(args.key.as_bytes()).ok_or_else(|| Failure::Use("--key is not the key of a record".to_owned()))?;
    let base = Base::open(config, None).await?;
    let warehouse = base.warehouse().await?;
    let mut rows = warehouse.rows(kind, &parts).await.map_err(|e| Failure::of("warehouse", &e))?;
    let Some(row) = rows.pop() else {
        output.show(&serde_json::Value::Null, || format!("no row of {} has this key", kind.as_str()));
        return Ok(NOT_TRUE);
    };
    if !rows.is_empty() {
        return Err(Failure::Use(
            "--key names more than one row: give more parts of it, seller|token or seller|order token|own token".to_owned(),
        ));
    }
    let kafka = connect_kafka(&base.config).await?;
    let schemas = Schemas::open(registry(&base.config)?, &base.config.kafka.prefix).await.map_err(|e| Failure::of("registry", &e))?;
    let sought = Sought::of(kind, &row).ok_or_else(|| Failure::Failed("trace: the row's own key or event id is damaged".to_owned()))?;
    let (reader, wanted) = (kafka.clone(), sought.clone());
    let found = blocking(move || wanted.find(&reader, &schemas)).await.map_err(|e| Failure::of("kafka", &e))?;
    let trace = trace(&kafka, kind, &sought, found, row);
    output.show(&trace, || text(&trace));
    Ok(DONE)
}

fn names() -> String {
    Kind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ")
}

/// What is looked for on the log.
#[derive(Debug, Clone)]
struct Sought {
    partition: Partition,
    history: (Topic, String),
    raw: (Topic, String),
    state_key: String,
}

impl Sought {
    fn of(kind: Kind, row: &RowText) -> Option<Self> {
        let table = Table::of_kind(kind);
        let text = |name: &str| row.get(name).and_then(Option::as_deref);
        let token = |at: usize| table.key.get(at).map(|name| EntityToken::parse(text(name)?).ok());
        let seller = SellerId::parse(text("selling_partner_id")?).ok()?;
        let entity = token(1)??;
        let child = match token(2) {
            Some(child) => Some(child?),
            None => None,
        };
        let event = EventId(text("event_id")?.parse().ok()?);
        Some(Self {
            partition: Partition(text("topic_partition")?.parse().ok()?),
            history: (Topic::Events(kind), key::event_key(&seller, entity, child, event)),
            raw: (Topic::Raw(kind.family()), key::event_key(&seller, entity, None, event)),
            state_key: key::state_key(&seller, entity, child),
        })
    }

    /// Reads the row's partition of both topics; the last record of a key counts, and a tombstone is none.
    fn find(&self, kafka: &Kafka, schemas: &Schemas) -> Result<Found, KafkaError> {
        let mut found = Found::default();
        for (topic, wanted) in [&self.history, &self.raw] {
            let name = kafka.topic(*topic);
            let range = kafka.whole_blocking(&name, self.partition)?;
            kafka.read_blocking(&[range], |record| {
                if record.key == Some(wanted.as_bytes()) {
                    if matches!(topic, Topic::Raw(_)) {
                        found.raw = record.value.and_then(|value| raw_of(record, schemas, value));
                    } else {
                        found.history = record.value.map(|_| lies(record));
                    }
                }
                Ok(())
            })?;
        }
        Ok(found)
    }
}

#[derive(Debug, Default)]
struct Found {
    history: Option<Lies>,
    raw: Option<Raw>,
}

fn lies(record: &Record<'_>) -> Lies {
    Lies {
        topic: record.topic.to_owned(),
        partition: Some(record.partition.to_string()),
        offset: Some(record.offset.to_string()),
        appended_at: record.appended_ms.map(|ms| Timestamp(ms).to_iso()),
    }
}

/// `None` where it was written with a schema that is not ours.
fn raw_of(record: &Record<'_>, schemas: &Schemas, value: &[u8]) -> Option<Raw> {
    let body = schemas.body(RecordType::RawEvent, value).ok()?;
    let event = RawEvent::decode(&body).ok()?;
    let sealed =
        event.sealed.iter().filter_map(|group| Some((group.group.as_str(), SealedBlock::key_of(group.block.as_bytes()).ok()?.to_string())));
    Some(Raw {
        lies: lies(record),
        sealed: sealed.collect(),
        deadline: event.deadline.as_ref().map(|(at, _)| at.to_iso()),
        deadline_rule: event.deadline.map(|(_, rule)| rule),
        poller: event.poller,
        classification: event.classification,
    })
}

fn trace(kafka: &Kafka, kind: Kind, sought: &Sought, found: Found, row: RowText) -> Trace {
    let text = |name: &str| row.get(name).cloned().flatten();
    Trace {
        table: kind.as_str(),
        key: sought.state_key.clone(),
        call: Call {
            selling_partner_id: text("selling_partner_id"),
            marketplace_id: text("marketplace_id"),
            source_api: text("source_api"),
            source_operation: text("source_operation"),
            source_request_id: text("source_request_id"),
            collected_at: text("collected_at"),
        },
        event: Event {
            event_id: text("event_id"),
            source_version: text("source_version"),
            payload_sha256: text("payload_sha256"),
            state: Lies {
                topic: kafka.topic(Topic::State(kind)),
                partition: text("topic_partition"),
                offset: text("topic_offset"),
                appended_at: None,
            },
            history: found.history,
            raw: found.raw,
        },
        row,
    }
}

fn text(trace: &Trace) -> String {
    let show = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let at = |lies: Option<&Lies>| {
        lies.map_or_else(|| "expired".to_owned(), |at| format!("{}[{}]@{}", at.topic, show(&at.partition), show(&at.offset)))
    };
    let (call, event) = (&trace.call, &trace.event);
    let made =
        event.raw.as_ref().map_or_else(String::new, |raw| format!("\n  made by   {}, classified by {}", raw.poller, raw.classification));
    format!(
        "{} {}\n  call      {} {}, request {}, collected at {}\n  event     {}, version {}{made}\n  raw       {}\n  history   {}\n  state     {}",
        trace.table,
        trace.key,
        show(&call.source_api),
        show(&call.source_operation),
        show(&call.source_request_id),
        show(&call.collected_at),
        show(&event.event_id),
        show(&event.source_version),
        at(event.raw.as_ref().map(|raw| &raw.lies)),
        at(event.history.as_ref()),
        at(Some(&event.state)),
    )
}
