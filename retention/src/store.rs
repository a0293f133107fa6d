//! What a case needs of the places that hold data: forget, prove, and the event log.
//!
//! No store may hold data unless it implements [`Forget`] and [`Prove`]. The contract, for every implementation:
//! - every call is idempotent: after a crash a case calls it again with the same arguments;
//! - `forget` returns only when the deletion is committed; `scan` reads what is really stored, again, every time, and never answers
//!   from a cache or an index of its own;
//! - an error means *unknown*: the case stays open. A store that cannot be read is never clean.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sunder_schemas::class::Family;
use sunder_schemas::ids::{EntityToken, KeyId, Offset, Partition, SellerId};
use sunder_schemas::time::Timestamp;

/// An error of a store, as a code and its place; never the store's own text, which may quote a value.
#[derive(Debug, thiserror::Error)]
#[error("{store} could not {action}: {code}")]
pub struct StoreError {
    /// Which store, e.g. `vault`, `kafka`.
    pub store: String,
    /// What was tried, e.g. `scan pii.orders`.
    pub action: String,
    /// A short stable code or SQLSTATE.
    pub code: String,
}

/// One data subject of a case: an order (or other entity) whose personal data goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// The seller whose customer it is.
    pub seller: SellerId,
    /// The order's token: part of every key and row.
    pub token: EntityToken,
    /// The data keys it ever had; empty where the order was never held.
    pub keys: Vec<KeyId>,
}

/// A point in a topic: `offset` is the highest record that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// Full topic name.
    pub topic: String,
    /// Its incarnation (topic id), so that a recreated topic is not taken for the old one.
    pub incarnation: String,
    /// Partition.
    pub partition: Partition,
    /// The record's offset; readers are past it when their next offset is greater.
    pub offset: Offset,
}

/// How much of a subject goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Sealed groups only; business rows live on and are still updated.
    Personal,
    /// Business rows and history too.
    WithBusinessData,
    /// What is older than this instant by event time: an order with all that belongs to it; of an inventory level, each row and event
    /// that was last seen before it, so that a level that is still listed lives on. What is younger may come again.
    OlderThan(Timestamp),
}

impl Extent {
    /// The name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Personal => "personal",
            Self::WithBusinessData => "with_business_data",
            Self::OlderThan(_) => "older_than",
        }
    }

    /// What happened before goes, where age decides.
    #[must_use]
    pub const fn older_than(self) -> Option<Timestamp> {
        match self {
            Self::OlderThan(cutoff) => Some(cutoff),
            Self::Personal | Self::WithBusinessData => None,
        }
    }

    /// Whether business rows go.
    #[must_use]
    pub const fn takes_rows(self) -> bool {
        matches!(self, Self::WithBusinessData | Self::OlderThan(_))
    }
}

impl std::fmt::Display for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OlderThan(cutoff) => write!(f, "{} {cutoff}", self.as_str()),
            Self::Personal | Self::WithBusinessData => f.write_str(self.as_str()),
        }
    }
}

impl Serialize for Extent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let older_than = text.strip_prefix("older_than ").and_then(|at| Timestamp::parse(at).ok()).map(Self::OlderThan);
        let known = [Self::Personal, Self::WithBusinessData].into_iter().find(|extent| extent.as_str() == text);
        known.or(older_than).ok_or_else(|| serde::de::Error::custom("unknown extent"))
    }
}

/// An entity with business data that is older than it may be kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Aged {
    /// Whose it is.
    pub seller: SellerId,
    /// What it is: an order, or an inventory level.
    pub family: Family,
    /// Its token.
    pub token: EntityToken,
}

/// A setting that is not as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drifted {
    /// Topic, setting, what it is and what is declared, on one line.
    pub what: String,
    /// Whether it is as [`EventLog::roll`] sets it for the time it runs: no drift while a case has a roll under way.
    pub is_lowered: bool,
}

/// The control a store plants and must find again, or its scan is void: a block sealed under a key made for the case.
#[derive(Debug, Clone)]
pub struct Control {
    /// The case, part of the control's key (`~canary|<case>|...`).
    pub case: String,
    /// The control's key id, present in `block`'s header.
    pub key: KeyId,
    /// A real sealed block of non-personal constant text.
    pub block: Vec<u8>,
}

/// What a scan looks for.
#[derive(Debug, Clone, Default)]
pub struct Needles {
    /// Key ids of the erased subjects: looked for as block headers and as bare bytes.
    pub keys: Vec<KeyId>,
    /// Key ids of the planted controls that must be found.
    pub controls: Vec<KeyId>,
    /// Further byte strings that must not be found in files (wrapped keys).
    pub bytes: Vec<Vec<u8>>,
    /// Where the log is read up to; empty: to the present end.
    pub barrier: Vec<Mark>,
    /// Subjects whose business rows must be gone as well; empty where they live on.
    pub gone: Vec<Subject>,
    /// Which rows of `gone` must be gone: see [`Extent::OlderThan`]; `None`: all.
    pub older_than: Option<Timestamp>,
}

/// A block that a scan met, for the recover test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundBlock {
    /// The place, e.g. `sp.pii.orders.v1[3]@17 on broker 2` or `vault.sealed_block`.
    pub place: String,
    /// The key in its header.
    pub key: KeyId,
    /// The block.
    pub block: Vec<u8>,
    /// Whether a tombstone lies above it, so that the log's cleaner alone is awaited. Where it is `false` the block stays until it is
    /// deleted again.
    pub is_buried: bool,
}

/// Something a scan cannot reach or must leave for now, named on the certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residual {
    /// What and where, e.g. `sp.raw.orders.v1: sealed events of up to 7 d`.
    pub what: String,
    /// The last day it can still be there; `None` where the operator decides.
    pub until: Option<Timestamp>,
}

/// One place that was read, with how much of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Topic-partition, table or file.
    pub name: String,
    /// Records, rows or bytes read, with the unit, e.g. `1200 records [0, 1200)`.
    pub read: String,
}

/// The result of reading one store again.
#[derive(Debug, Clone, Default)]
pub struct ScanReport {
    /// Which store.
    pub store: String,
    /// How absence is shown there, in words for the certificate.
    pub method: String,
    /// What was read.
    pub places: Vec<Place>,
    /// Blocks or bytes of erased keys that were found: anything here keeps the case open.
    pub found: Vec<FoundBlock>,
    /// Controls planted in this store and how many were found again.
    pub controls_planted: u64,
    /// See `controls_planted`; fewer found than planted voids the scan.
    pub controls_found: u64,
    /// What lies outside this scan.
    pub residual: Vec<Residual>,
    /// What keeps deleted rows in the database's files, where they were found after a rewriting.
    pub held_by: Option<String>,
}

/// Something that keeps the log from removing what is tombstoned, or from showing that it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hindrance {
    /// What, with topic, partition and broker, in words.
    pub what: String,
    /// Whether nothing may be certified while it lasts; `false`: it explains why something takes long.
    pub stops: bool,
}

/// A store that can delete a subject's data.
#[async_trait]
pub trait Forget: Send + Sync {
    /// The store's name, e.g. `warehouse`.
    fn name(&self) -> &str;

    /// Whether the store has applied everything up to `marks` (for stores fed from the log).
    ///
    /// # Errors
    /// [`StoreError`]: unknown, so not clean.
    async fn caught_up(&self, marks: &[Mark]) -> Result<bool, StoreError>;

    /// Deletes what is left of `subjects` and returns how many rows that were: 0 where the tombstones did it.
    ///
    /// # Errors
    /// [`StoreError`]: nothing may be assumed deleted.
    async fn forget(&self, subjects: &[Subject], extent: Extent) -> Result<u64, StoreError>;

    /// How many rows of `subjects` each table holds that [`Forget::forget`] would delete: for a plan, and no proof of anything.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn count(&self, _subjects: &[Subject], _extent: Extent) -> Result<Vec<(String, u64)>, StoreError> {
        Ok(Vec::new())
    }

    /// The entities with business rows older than `cutoff`: none in a store that keeps no business rows.
    ///
    /// # Errors
    /// [`StoreError`]: unknown, so not all of them.
    async fn aged(&self, _cutoff: Timestamp) -> Result<Vec<Aged>, StoreError> {
        Ok(Vec::new())
    }
}

/// A store that can be read again to prove absence.
#[async_trait]
pub trait Prove: Send + Sync {
    /// The store's name, e.g. `kafka`.
    fn name(&self) -> &str;

    /// Writes `control` where a subject's data would lie, by the way a subject's data takes. Idempotent per case.
    ///
    /// # Errors
    /// [`StoreError`]: the scan would be void.
    async fn plant(&self, control: &Control) -> Result<(), StoreError>;

    /// Reads the store again.
    ///
    /// # Errors
    /// [`StoreError`]: the case stays open.
    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError>;

    /// Reads the store again for several cases, and gives one report for each, in their order. A store that is read from end to end
    /// overrides it with one pass.
    ///
    /// # Errors
    /// [`StoreError`]: all of them stay open.
    async fn scan_many(&self, needles: &[Needles]) -> Result<Vec<ScanReport>, StoreError> {
        let mut reports = Vec::with_capacity(needles.len());
        for needles in needles {
            reports.push(self.scan(needles).await?);
        }
        Ok(reports)
    }

    /// Removes the controls of `case` once it is certified.
    ///
    /// # Errors
    /// [`StoreError`]; harmless, tried again by the next sweep.
    async fn unplant(&self, case: &str) -> Result<(), StoreError>;
}

/// A record that waits in the database for its topic (transactional outbox).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRecord {
    /// Position in the outbox.
    pub id: i64,
    /// Topic kind and name without prefix and version, e.g. `privacy.erased`.
    pub topic: String,
    /// Record key.
    pub key: String,
    /// JSON value; `None` is a tombstone.
    pub value: Option<String>,
}

/// What a case needs of the event log; Kafka implements it.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Publishes `records` in order and returns once all are acknowledged.
    ///
    /// # Errors
    /// [`StoreError`]: none may be taken as published.
    async fn publish(&self, records: &[OutboxRecord]) -> Result<(), StoreError>;

    /// Appends a tombstone for every key of `subjects`: every field group in `pii.*`, and where business rows go
    /// every key of theirs that has a value on `state.*` and `events.*`, buried before or not. Returns the highest offset per partition, acknowledged by all in-sync replicas.
    ///
    /// # Errors
    /// [`StoreError`]: repeat; duplicates are harmless.
    async fn tombstone(&self, case: &str, subjects: &[Subject], extent: Extent) -> Result<Vec<Mark>, StoreError>;

    /// As [`EventLog::tombstone`], and a tombstone where each value of `subjects` really lies: on whatever replica, partition and key
    /// it is found, since a foreign writer may have put it elsewhere, and a replica may have kept what the others removed.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn tombstone_found(&self, case: &str, subjects: &[Subject], extent: Extent) -> Result<Vec<Mark>, StoreError>;

    /// The present last record of every partition of every raw topic.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn raw_ends(&self) -> Result<Vec<Mark>, StoreError>;

    /// Whether the splitter has committed past `marks`.
    ///
    /// # Errors
    /// [`StoreError`]: unknown, so not drained.
    async fn split_past(&self, marks: &[Mark]) -> Result<bool, StoreError>;

    /// Appends one heartbeat to each partition of the topics that can hold sealed blocks or subjects' rows, so that segments roll;
    /// the offsets are the barrier that a scan reads up to.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn barrier(&self) -> Result<Vec<Mark>, StoreError>;

    /// The entities of `seller` with a value on `state.*`, `events.*` or `pii.*`: orders and what is none, an inventory level for one.
    ///
    /// # Errors
    /// [`StoreError`]: unknown, so not all of the seller's.
    async fn entities(&self, seller: &SellerId) -> Result<Vec<EntityToken>, StoreError>;

    /// The entities with a value on `state.*` or `events.*` that is older than `cutoff`.
    ///
    /// # Errors
    /// [`StoreError`]: unknown, so not all of them.
    async fn aged(&self, cutoff: Timestamp) -> Result<Vec<Aged>, StoreError>;

    /// Makes the log remove what `case` has tombstoned now rather than within its bound, and returns whether all of it is gone. Topic
    /// settings are changed meanwhile and are as declared again when it returns; who calls it persists the intent first, since a process
    /// that dies in between leaves them changed. A log that removes nothing physically does nothing and says so by `true`.
    ///
    /// # Errors
    /// [`StoreError`]: settings may be changed still; repeat.
    async fn roll(&self, case: &str, subjects: &[Subject], extent: Extent) -> Result<bool, StoreError>;

    /// How long a producer may hold a record that is not acknowledged (`message.timeout.ms`).
    fn message_timeout(&self) -> std::time::Duration;

    /// Drift of declared topic settings; empty where all is as declared. Drift stops certification.
    ///
    /// # Errors
    /// [`StoreError`]: unknown counts as drift.
    async fn drift(&self) -> Result<Vec<Drifted>, StoreError>;

    /// How long what was tombstoned now may stay until the log has removed it by itself, by the settings that its topics really have.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn removal_bound(&self) -> Result<std::time::Duration, StoreError>;

    /// What stands in the way of removing, and of reading again, the records up to `barrier`: a replica that is away, an open transaction,
    /// a partition that gets no heartbeats. Mended from outside; the case then goes on by itself.
    ///
    /// # Errors
    /// [`StoreError`]: unknown, so nothing is certified.
    async fn hindrances(&self, barrier: &[Mark]) -> Result<Vec<Hindrance>, StoreError>;

    /// Whether deletion is physical here. The embedded broker answers `false`: the certificate then claims no physical proof.
    fn is_durable(&self) -> bool;

    /// What the certificate says of the log: topics, partitions, replicas, a digest of the settings.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn describe(&self) -> Result<serde_json::Value, StoreError>;
}
