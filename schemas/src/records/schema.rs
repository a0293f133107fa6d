//! The compiled-in Avro schemas: every version of every record, with the id it has in the built-in registry.
//!
//! A version is never changed once records of it can lie on a topic: a change is a new file `avro/<name>.<version>.avsc` and a new line
//! here with the next free id. The last version of a record is the one this program writes; it must be able to read all earlier ones
//! (BACKWARD_TRANSITIVE), which a test checks.

use std::fmt::Write as _;
use std::sync::OnceLock;

use apache_avro::Schema;

use super::{DeadLetter, InventoryLevelRow, OrderItemRow, OrderRow, PackageRow, PiiRecord, Record};
use crate::class::Kind;
use crate::envelope::RawEvent;
use crate::topic::Topic;

/// Which record a topic carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordType {
    /// `raw.<family>`.
    RawEvent,
    /// `state.<kind>`.
    State(Kind),
    /// `events.<kind>`: the state's fields, then poller and classification.
    Event(Kind),
    /// `pii.<family>`.
    Pii,
    /// `dlq.raw.<family>`.
    DeadLetter,
}

/// One version of a record's schema.
#[derive(Debug, Clone, Copy)]
pub struct Version {
    /// Whose schema.
    pub record: RecordType,
    /// From 1, in order.
    pub version: u32,
    /// Its id in the built-in registry; the same in every process and for good.
    pub id: u32,
    /// The schema as checked in.
    pub text: &'static str,
}

macro_rules! versions {
    ($($id:literal: $record:expr, $version:literal, $file:literal;)+) => {
        /// Every version of every schema, by id.
        pub const VERSIONS: &[Version] =
            &[$(Version { record: $record, version: $version, id: $id, text: include_str!(concat!("../../avro/", $file, ".avsc")) },)+];

        /// The files of [`VERSIONS`] under `avro/`, without their ending.
        pub const FILES: &[&str] = &[$($file,)+];
    };
}
versions! {
    1: RecordType::RawEvent, 1, "raw_event.1";
    2: RecordType::State(Kind::Orders), 1, "state_orders.1";
    3: RecordType::Event(Kind::Orders), 1, "events_orders.1";
    4: RecordType::State(Kind::OrderItems), 1, "state_order_items.1";
    5: RecordType::Event(Kind::OrderItems), 1, "events_order_items.1";
    6: RecordType::State(Kind::Packages), 1, "state_packages.1";
    7: RecordType::Event(Kind::Packages), 1, "events_packages.1";
    8: RecordType::State(Kind::InventoryLevels), 1, "state_inventory_levels.1";
    9: RecordType::Event(Kind::InventoryLevels), 1, "events_inventory_levels.1";
    10: RecordType::Pii, 1, "pii.1";
    11: RecordType::DeadLetter, 1, "dead_letter.1";
}

impl RecordType {
    /// Every record type.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::RawEvent, Self::Pii, Self::DeadLetter];
        for kind in Kind::ALL {
            all.extend([Self::State(*kind), Self::Event(*kind)]);
        }
        all
    }

    /// What `topic` carries; `None` where its values are not Avro.
    #[must_use]
    pub const fn of(topic: Topic) -> Option<Self> {
        match topic {
            Topic::Raw(_) => Some(Self::RawEvent),
            Topic::Events(kind) => Some(Self::Event(kind)),
            Topic::State(kind) => Some(Self::State(kind)),
            Topic::Pii(_) => Some(Self::Pii),
            Topic::DlqRaw(_) => Some(Self::DeadLetter),
            Topic::PrivacyRequests
            | Topic::PrivacyErased
            | Topic::PrivacyCertificates
            | Topic::ControlSellers
            | Topic::KeysRevoked
            | Topic::AuditLog => None,
        }
    }

    /// The version this program writes.
    ///
    /// # Panics
    /// Never: every record type stands in [`VERSIONS`], which a test checks.
    #[must_use]
    #[expect(clippy::panic, reason = "every record type has a version; checked by a test")]
    pub fn latest(self) -> &'static Version {
        let Some(version) = VERSIONS.iter().rfind(|v| v.record == self) else { panic!("no schema of {self:?}") };
        version
    }

    /// The schema as the types of this crate declare it: what the latest checked-in version must be.
    #[must_use]
    pub fn declared(self) -> String {
        match self {
            Self::RawEvent => declare::<RawEvent>("", &[]),
            Self::Pii => declare::<PiiRecord>("", &[]),
            Self::DeadLetter => declare::<DeadLetter>("", &[]),
            Self::State(kind) => declare_kind(kind, "State", &[]),
            Self::Event(kind) => declare_kind(kind, "Event", EVENT_FIELDS),
        }
    }
}

/// What an event has beyond the state's fields.
const EVENT_FIELDS: &[(&str, &str)] =
    &[("poller", "name and version of the program that fetched it"), ("classification", "catalogue and version that classified it")];

fn declare_kind(kind: Kind, suffix: &str, more: &[(&str, &str)]) -> String {
    match kind {
        Kind::Orders => declare::<OrderRow>(suffix, more),
        Kind::OrderItems => declare::<OrderItemRow>(suffix, more),
        Kind::Packages => declare::<PackageRow>(suffix, more),
        Kind::InventoryLevels => declare::<InventoryLevelRow>(suffix, more),
    }
}

/// One field a line, so that a change of schema reads as a diff.
fn declare<R: Record>(suffix: &str, more: &[(&str, &str)]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    _ = write!(
        text,
        "{{\"type\":\"record\",\"namespace\":\"sunder\",\"name\":\"{}{suffix}\",\"doc\":{},\"fields\":[",
        R::NAME,
        quoted(R::DOC)
    );
    let columns = R::columns();
    let fields = columns.iter().map(|column| {
        let (ty, default) = match (column.nullable, column.avro.starts_with("{\"type\":\"array\"")) {
            (true, _) => (format!("[\"null\",{}]", column.avro), ",\"default\":null"),
            (false, true) => (column.avro.to_string(), ",\"default\":[]"),
            (false, false) => (column.avro.to_string(), ""),
        };
        format!("\n  {{\"name\":\"{}\",\"type\":{ty}{default},\"doc\":{}}}", column.name, quoted(column.doc))
    });
    let more = more.iter().map(|(name, doc)| format!("\n  {{\"name\":\"{name}\",\"type\":\"string\",\"doc\":{}}}", quoted(doc)));
    text.push_str(&fields.chain(more).collect::<Vec<_>>().join(","));
    text.push_str("\n]}\n");
    text
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text.trim()).to_string()
}

impl Version {
    /// The parsed schema.
    ///
    /// # Panics
    /// Never: the compiled-in texts parse, which a test checks.
    #[must_use]
    #[expect(clippy::panic, reason = "the compiled-in schemas parse; checked by a test")]
    pub fn schema(&self) -> &'static Schema {
        static PARSED: OnceLock<Vec<(u32, Schema)>> = OnceLock::new();
        let parsed = PARSED.get_or_init(|| {
            VERSIONS
                .iter()
                .map(|v| match Schema::parse_str(v.text) {
                    Ok(schema) => (v.id, schema),
                    Err(_) => panic!("schema {} does not parse", v.id),
                })
                .collect()
        });
        match parsed.iter().find(|(id, _)| *id == self.id) {
            Some((_, schema)) => schema,
            None => panic!("schema {} is not compiled in", self.id),
        }
    }
}
