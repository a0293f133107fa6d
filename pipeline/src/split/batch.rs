//! One raw record in, one outcome out, and the records it becomes. Pure but for what [`Surroundings`] does.
//!
//! Invariants: every record ends in exactly one [`Outcome`]; a block of a destroyed key is never written on, nor anything of an entity
//! that was erased with its business data or is too old to be kept; nothing of a record that
//! cannot be split leaves unsealed. An older version still goes to `events.*`, for a crash may have cut off its first writing and the
//! key makes a second one harmless; `state.*` and `pii.*` it never touches.

use std::collections::HashMap;
use std::fmt::Write as _;

use sunder_schemas::class::{Family, Kind};
use sunder_schemas::envelope::{Attribution, RawEvent};
use sunder_schemas::ids::{EntityToken, KeyId, Offset, Partition};
use sunder_schemas::key;
use sunder_schemas::outcome::{DeadLetterReason, FilterReason, Outcome, Outcomes};
use sunder_schemas::records::codec::BAD_BLOCK;
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{PiiRecord, Record as _, StateRecord};
use sunder_schemas::topic::Topic;
use sunder_schemas::wire;

use super::project::project;
use super::versions::{Standing, Versions};
use crate::registry::{Schemas, Unread};

/// A raw record, borrowed from the client.
#[derive(Debug, Clone, Copy)]
pub struct RawRecord<'a> {
    /// The family of its topic.
    pub family: Family,
    /// Full topic name.
    pub topic: &'a str,
    /// Partition.
    pub partition: Partition,
    /// Offset.
    pub offset: Offset,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Headers in order.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// Value.
    pub value: Option<&'a [u8]>,
}

/// A header on its way out.
pub type Header<'a> = (&'a str, &'a [u8]);

/// What splitting needs of the world.
pub trait Surroundings {
    /// What stops a batch: it is tried again as a whole.
    type Error;

    /// Whether `key` is destroyed.
    fn is_erased(&self, key: KeyId) -> bool;

    /// Whether `entity` was erased with its business data, so that nothing of it is written any more.
    fn is_withheld(&self, entity: EntityToken) -> bool;

    /// Whether `row`, an entity's own, is older than business data may be kept, so that nothing of it is written.
    fn is_past(&self, row: &StateRecord) -> bool;

    /// Asks the registry for the schema `id`.
    ///
    /// # Errors
    /// Where the registry gives no answer.
    fn learn(&mut self, id: u32) -> Result<(), Self::Error>;

    /// Writes a record; `None` is a tombstone.
    ///
    /// # Errors
    /// Where it is not taken.
    fn write(
        &mut self,
        topic: Topic,
        partition: Partition,
        key: &str,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<(), Self::Error>;

    /// Seals `record` and writes it to its dead-letter topic.
    ///
    /// # Errors
    /// Where it cannot be sealed or is not taken.
    fn set_aside(&mut self, record: &RawRecord<'_>, reason: DeadLetterReason) -> Result<(), Self::Error>;
}

/// Counts of one batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Raw records that came in.
    pub records: u64,
    /// Where they ended: their sum is `records`.
    pub outcomes: Outcomes,
    /// Sealed blocks that were left out because their key is destroyed.
    pub blocks_erased: u64,
    /// Children that vanished and were tombstoned.
    pub children_tombstoned: u64,
    /// Records written to all topics, tombstones and dead letters included.
    pub written: u64,
}

impl Counts {
    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.outcomes.add(&other.outcomes);
        self.blocks_erased += other.blocks_erased;
        self.children_tombstoned += other.children_tombstoned;
        self.written += other.written;
    }
}

/// Splits records; holds what is known of the assigned partitions.
pub struct Splitter<'s> {
    schemas: &'s Schemas,
    partitions: i32,
    versions: HashMap<(Family, Partition), Versions>,
    counts: Counts,
    value: Vec<u8>,
    key: String,
    ce: CloudEvent,
}

impl<'s> Splitter<'s> {
    /// A splitter of topics with so many `partitions`.
    #[must_use]
    pub fn new(schemas: &'s Schemas, partitions: i32) -> Self {
        Self {
            schemas,
            partitions,
            versions: HashMap::new(),
            counts: Counts::default(),
            value: Vec::new(),
            key: String::new(),
            ce: CloudEvent::default(),
        }
    }

    /// Whether the versions of this partition are known.
    #[must_use]
    pub fn knows(&self, family: Family, partition: Partition) -> bool {
        self.versions.contains_key(&(family, partition))
    }

    /// Takes over what was read from the state topics of a partition.
    pub fn assign(&mut self, family: Family, partition: Partition, versions: Versions) {
        self.versions.insert((family, partition), versions);
    }

    /// Forgets partitions that are assigned no longer.
    pub fn retain(&mut self, is_assigned: impl Fn(Family, Partition) -> bool) {
        self.versions.retain(|(family, partition), _| is_assigned(*family, *partition));
    }

    /// The counts since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Splits one record.
    ///
    /// # Errors
    /// What the surroundings report; the batch is then void and is split again from its first record, by a new splitter.
    pub fn process<S: Surroundings>(&mut self, record: &RawRecord<'_>, around: &mut S) -> Result<Outcome, S::Error> {
        let outcome = match self.read(record, around)? {
            Err(outcome) => outcome,
            Ok(event) => self.split(record, event, around)?,
        };
        if let Outcome::DeadLettered(reason) = outcome {
            around.set_aside(record, reason)?;
            self.counts.written += 1;
        }
        self.counts.records += 1;
        self.counts.outcomes.count(outcome);
        Ok(outcome)
    }

    /// The event of a record, or the outcome of one that is none.
    fn read<S: Surroundings>(&mut self, record: &RawRecord<'_>, around: &mut S) -> Result<Result<RawEvent, Outcome>, S::Error> {
        let dead = |reason| Ok(Err(Outcome::DeadLettered(reason)));
        if record.key.is_some_and(key::is_own) {
            return Ok(Err(Outcome::Filtered(FilterReason::Own)));
        }
        let value = match record.value {
            None | Some([]) => return dead(DeadLetterReason::EmptyValue),
            Some(value) => value,
        };
        let mut body = self.schemas.body(RecordType::RawEvent, value);
        if let Err(Unread::Learn(id)) = body {
            around.learn(id)?;
            body = self.schemas.body(RecordType::RawEvent, value);
        }
        let body = match body {
            Ok(body) => body,
            Err(Unread::Never(reason)) => return dead(reason),
            // Asked and still not known.
            Err(Unread::Learn(_)) => return dead(DeadLetterReason::UnknownSchema),
        };
        let event = match RawEvent::decode(&body) {
            Ok(event) => event,
            Err(error) if error.rule == BAD_BLOCK => return dead(DeadLetterReason::BadBlock),
            Err(_) => return dead(DeadLetterReason::BadAvro),
        };
        let seller = &event.attribution.selling_partner_id;
        key::put_event_key(&mut self.key, seller, event.entity.token, None, event.attribution.event_id);
        if record.key != Some(self.key.as_bytes()) || event.entity.family != record.family {
            return dead(DeadLetterReason::KeyMismatch);
        }
        if key::partition_of(seller, event.entity.token, self.partitions) != record.partition {
            return dead(DeadLetterReason::WrongPartition);
        }
        Ok(Ok(event))
    }

    fn split<S: Surroundings>(&mut self, record: &RawRecord<'_>, mut event: RawEvent, around: &mut S) -> Result<Outcome, S::Error> {
        if around.is_withheld(event.entity.token) {
            return Ok(Outcome::Filtered(FilterReason::Erased));
        }
        let sealed = event.sealed.len();
        event.sealed.retain(|group| !around.is_erased(group.block.key()));
        let erased = u64::try_from(sealed - event.sealed.len()).unwrap_or(u64::MAX);
        let (poller, classification) = (event.poller.clone(), event.classification.clone());
        let projected = match project(event) {
            Ok(projected) => projected,
            Err(unfit) => return Ok(Outcome::DeadLettered(unfit.reason)),
        };
        let Some(own) = projected.rows.first() else { return Ok(Outcome::DeadLettered(DeadLetterReason::BadField)) };
        if around.is_past(own) {
            return Ok(Outcome::Filtered(FilterReason::PastPeriod));
        }
        let versions = self.versions.entry((record.family, record.partition)).or_default();
        let vanished = match versions.standing(own) {
            Standing::Gone => return Ok(Outcome::Filtered(FilterReason::Erased)),
            Standing::Stale => None,
            Standing::Latest { vanished } => {
                versions.learn(own);
                Some(vanished)
            }
        };
        self.counts.blocks_erased += erased;
        self.ce.begin(own.attribution());
        for row in &projected.rows {
            self.write_row(row, (&poller, &classification), record.partition, vanished.is_some(), around)?;
        }
        let Some(vanished) = vanished else { return Ok(Outcome::Filtered(FilterReason::Stale)) };
        for (kind, child) in vanished {
            let key = key::state_key(own.seller(), own.entity(), Some(child));
            around.write(Topic::State(kind), record.partition, &key, None, &[])?;
            self.counts.children_tombstoned += 1;
            self.counts.written += 1;
        }
        for pii in &projected.pii {
            self.write_pii(pii, record, around)?;
        }
        Ok(Outcome::Stored)
    }

    fn write_row<S: Surroundings>(
        &mut self,
        row: &StateRecord,
        (poller, classification): (&str, &str),
        partition: Partition,
        is_latest: bool,
        around: &mut S,
    ) -> Result<(), S::Error> {
        let kind = row.kind();
        let Self { schemas, value, key, ce, counts, .. } = self;
        ce.name(row.seller().as_str(), kind.as_str(), row.entity(), row.child());
        value.clear();
        schemas.begin(RecordType::State(kind), value);
        row.encode(value);
        if is_latest {
            row.put_key(key);
            ce.name_schema(schemas.id(RecordType::State(kind)));
            around.write(Topic::State(kind), partition, key, Some(value), &ce.list(state_type(kind)))?;
            counts.written += 1;
        }
        // The event's body is the state's with two more fields, under another id.
        let id = schemas.id(RecordType::Event(kind));
        wire::rename(id, value);
        StateRecord::extend_to_event(poller, classification, value);
        row.put_event_key(key);
        ce.name_schema(id);
        around.write(Topic::Events(kind), partition, key, Some(value), &ce.list(event_type(kind)))?;
        counts.written += 1;
        Ok(())
    }

    fn write_pii<S: Surroundings>(&mut self, pii: &PiiRecord, record: &RawRecord<'_>, around: &mut S) -> Result<(), S::Error> {
        let Self { schemas, value, key, ce, counts, .. } = self;
        ce.name(pii.seller().as_str(), pii.field_group.as_str(), pii.entity_token, None);
        value.clear();
        schemas.begin(RecordType::Pii, value);
        pii.encode(value);
        key::put_pii_key(key, pii.seller(), pii.entity_token, pii.field_group);
        ce.name_schema(schemas.id(RecordType::Pii));
        around.write(Topic::Pii(record.family), record.partition, key, Some(value), &ce.list("sunder.pii.v1"))?;
        counts.written += 1;
        Ok(())
    }
}

/// The attributes that change from record to record, in buffers that are kept.
#[derive(Default)]
struct CloudEvent {
    id: String,
    time: String,
    source: String,
    subject: String,
    schema: String,
}

impl CloudEvent {
    /// Begins the records of one event.
    fn begin(&mut self, event: &Attribution) {
        self.id.clear();
        self.id.push_str(event.event_id.0.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
        self.time = event.collected_at.to_iso();
    }

    /// `ce_source` and `ce_subject`. With the event id the source names one record, as CloudEvents asks; a child's carries its own token.
    fn name(&mut self, seller: &str, what: &str, entity: EntityToken, child: Option<EntityToken>) {
        self.source.clear();
        for part in ["/", seller, "/", what, "/"] {
            self.source.push_str(part);
        }
        entity.push_hex(&mut self.source);
        if let Some(child) = child {
            self.source.push('/');
            child.push_hex(&mut self.source);
        }
        self.subject.clear();
        child.unwrap_or(entity).push_hex(&mut self.subject);
    }

    /// `ce_dataschema`: where a registry serves the schema, relative to its own address.
    fn name_schema(&mut self, id: u32) {
        self.schema.clear();
        // Writing to a String cannot fail.
        _ = write!(self.schema, "/schemas/ids/{id}");
    }

    /// CloudEvents 1.0, Kafka binding, binary mode.
    fn list<'a>(&'a self, ty: &'a str) -> [Header<'a>; 8] {
        [
            ("ce_specversion", b"1.0"),
            ("ce_id", self.id.as_bytes()),
            ("ce_source", self.source.as_bytes()),
            ("ce_type", ty.as_bytes()),
            ("ce_time", self.time.as_bytes()),
            ("ce_subject", self.subject.as_bytes()),
            ("ce_dataschema", self.schema.as_bytes()),
            ("content-type", b"application/avro"),
        ]
    }
}

const fn state_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Orders => "sunder.state.orders.v1",
        Kind::OrderItems => "sunder.state.order_items.v1",
        Kind::Packages => "sunder.state.packages.v1",
        Kind::InventoryLevels => "sunder.state.inventory_levels.v1",
    }
}

const fn event_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Orders => "sunder.events.orders.v1",
        Kind::OrderItems => "sunder.events.order_items.v1",
        Kind::Packages => "sunder.events.packages.v1",
        Kind::InventoryLevels => "sunder.events.inventory_levels.v1",
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
