//! The vault: the latest sealed block of each field group of each entity, as ciphertext only.

use std::sync::Arc;

use async_trait::async_trait;
use sunder_retention::buyer::SealedStore;
use sunder_retention::open::StoredBlock;
use sunder_retention::store::{Control, Extent, Forget, Mark, Needles, Prove, ScanReport, StoreError, Subject};
use sunder_schemas::class::{Family, FieldGroup};
use sunder_schemas::envelope::Attribution;
use sunder_schemas::ids::{EntityToken, KeyId, MarketplaceId, Offset, SellerId};
use sunder_schemas::outcome::FilterReason;
use sunder_schemas::private::SealedBlock;
use sunder_schemas::records::{Cell, PiiRecord};
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;

use crate::cells::Cells;
use crate::options::StoreOptions;
use crate::store::{CANARY, Move, Store, token_of};
use crate::tables::Table;
use crate::{Applied, Change, Sink, SinkError, Source};

/// Says whether a key is destroyed: a block of such a key is not stored, whichever replay or restore brings it.
pub type Destroyed = Arc<dyn Fn(KeyId) -> bool + Send + Sync>;

/// Index of the vault's own table.
pub(crate) const SEALED: usize = 0;
/// Index of the cold store's.
pub(crate) const HELD: usize = 1;

/// Sealed blocks, fed by `pii.*`; beside them the cold store, which no topic feeds.
pub struct Vault {
    pub(crate) store: Store,
    destroyed: Destroyed,
}

impl Vault {
    /// What the database holds: kind and name.
    ///
    /// # Errors
    /// [`SinkError::Database`].
    pub async fn objects(&self) -> Result<Vec<(String, String)>, SinkError> {
        self.store.backend.objects().await
    }

    /// What this store makes in it.
    #[must_use]
    pub fn own_objects() -> Vec<(&'static str, &'static str)> {
        let tables = [Table::sealed_block(), Table::held_block()];
        tables.iter().map(|table| ("table", table.name)).chain([("table", "sink_offset")]).collect()
    }

    /// Opens the vault and makes its table as declared.
    ///
    /// # Errors
    /// [`SinkError`], also where the database cannot be reached.
    pub async fn open(options: &StoreOptions, destroyed: Destroyed) -> Result<Self, SinkError> {
        let topics = Family::ALL.iter().map(|family| (Topic::Pii(*family).name(&options.prefix), SEALED)).collect();
        Ok(Self { store: Store::open("vault", options, vec![Table::sealed_block(), Table::held_block()], topics, false).await?, destroyed })
    }

    /// Full names of the topics that feed it.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.store.topics()
    }

    /// The sealed blocks of one entity, for an authorised read.
    ///
    /// # Errors
    /// [`SinkError::Database`].
    pub async fn blocks(&self, seller: &SellerId, entity: EntityToken) -> Result<Vec<PiiRecord>, SinkError> {
        self.store.backend.sealed(SEALED, seller, entity).await
    }

    /// The next blocks of one group in the cold store, by the tokens of their holds, behind `after`: each with its key.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn held_page(
        &self,
        seller: &SellerId,
        group: FieldGroup,
        after: Option<EntityToken>,
        limit: usize,
    ) -> Result<Vec<(EntityToken, KeyId)>, StoreError> {
        let rows = self.store.backend.page(HELD, seller, group, after, limit).await.map_err(SinkError::into_store_error)?;
        Ok(rows.into_iter().map(|row| (row.entity_token, row.block.key())).collect())
    }

    /// Sealed columns of which the database's planner keeps samples of values: `sunder check` fails on any.
    ///
    /// # Errors
    /// [`SinkError::Database`].
    pub async fn sampled_columns(&self) -> Result<Vec<String>, SinkError> {
        self.store.backend.sampled_columns().await
    }

    /// The control's row: of a seller that no seller can be, in the table where a subject's blocks lie.
    async fn plant_row(&self, control: &Control) -> Result<(), SinkError> {
        let Some(table) = self.store.tables.first() else { return Ok(()) };
        let mut row = Cells::new(table, self.store.backend.dialect(), 1);
        for column in &table.columns {
            row.push(match column.name {
                "selling_partner_id" => Cell::Text(CANARY),
                "entity_token" => Cell::Token(token_of(&control.case)),
                "key_id" => Cell::Bytes(&control.key.0),
                "block" => Cell::Bytes(&control.block),
                "collected_at" | "deadline" => Cell::Time(Timestamp(0)),
                "event_id" => Cell::Uuid(uuid::Uuid::nil()),
                "source_version" | "topic_partition" | "topic_offset" => Cell::Int(0),
                "classification" => Cell::Text(&control.case),
                _ => Cell::Text(CANARY),
            });
        }
        if row.end_row().is_err() {
            return Err(SinkError::Options { store: "vault", code: "the control does not fit the table" });
        }
        self.store.backend.put_row(0, row).await
    }
}

#[async_trait]
impl SealedStore for Vault {
    async fn page(
        &self,
        seller: &SellerId,
        group: FieldGroup,
        after: Option<EntityToken>,
        limit: usize,
    ) -> Result<Vec<(EntityToken, StoredBlock)>, StoreError> {
        let rows = self.store.backend.page(SEALED, seller, group, after, limit).await.map_err(SinkError::into_store_error)?;
        let stored = |row: PiiRecord| {
            (row.entity_token, StoredBlock { group: row.field_group, classification: row.classification, block: row.block })
        };
        Ok(rows.into_iter().map(stored).collect())
    }
}

#[async_trait]
impl Sink<PiiRecord> for Vault {
    async fn position(&self, source: &Source) -> Result<Option<Offset>, SinkError> {
        self.store.position(source).await
    }

    async fn apply(
        &self,
        source: &Source,
        expected: Option<Offset>,
        next: Offset,
        changes: Vec<Change<PiiRecord>>,
    ) -> Result<Applied, SinkError> {
        let destroyed = Arc::clone(&self.destroyed);
        let refused = move |record: &PiiRecord| {
            let is_gone = destroyed(record.block.key()) || destroyed(record.key_id);
            is_gone.then_some(FilterReason::Erased)
        };
        self.store.apply(Move { source, expected, next }, changes, refused).await
    }

    async fn rebuild(&self, topic: &str, incarnation: &str) -> Result<u64, SinkError> {
        self.store.rebuild(topic, incarnation).await
    }
}

#[async_trait]
impl Forget for Vault {
    fn name(&self) -> &str {
        self.store.name
    }

    async fn caught_up(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        self.store.caught_up(marks).await
    }

    async fn count(&self, subjects: &[Subject], _extent: Extent) -> Result<Vec<(String, u64)>, StoreError> {
        self.store.count(subjects, None).await
    }

    async fn forget(&self, subjects: &[Subject], _extent: Extent) -> Result<u64, StoreError> {
        self.store.forget(subjects, None).await
    }
}

#[async_trait]
impl Prove for Vault {
    fn name(&self) -> &str {
        self.store.name
    }

    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        self.plant_row(control).await.map_err(SinkError::into_store_error)
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        self.store.scan(needles).await.map_err(SinkError::into_store_error)
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        self.store.backend.drop_canaries(case).await.map_err(SinkError::into_store_error)
    }
}

macro_rules! sealed_sql {
    ($table:literal, $collected:literal, $deadline:literal, $event:literal, $which:literal) => {
        concat!(
            "SELECT selling_partner_id, marketplace_id, source_api, source_operation, source_request_id, payload_sha256, ",
            "field_group, classification, deadline_rule, entity_token, source_version, key_id, block, ",
            $collected,
            " AS collected_ms, ",
            $deadline,
            " AS deadline_ms, ",
            $event,
            " AS event FROM ",
            $table,
            " WHERE ",
            $which
        )
    };
}

macro_rules! sealed_sql_sqlite {
    ($table:literal, $which:literal) => {
        sealed_sql!(
            $table,
            "CAST(round((julianday(collected_at) - 2440587.5) * 86400000) AS INTEGER)",
            "CAST(round((julianday(deadline) - 2440587.5) * 86400000) AS INTEGER)",
            "event_id",
            $which
        )
    };
}
macro_rules! sealed_sql_postgres {
    ($table:literal, $which:literal) => {
        sealed_sql!(
            $table,
            "(extract(epoch FROM collected_at) * 1000)::bigint",
            "(extract(epoch FROM deadline) * 1000)::bigint",
            "event_id::text",
            $which
        )
    };
}

/// Selects [`Sealed`] rows of one entity in SQLite, from the table of the index: the vault's, the cold store's.
pub(crate) const SEALED_SQL_SQLITE: [&str; 2] = [
    sealed_sql_sqlite!("sealed_block", "selling_partner_id = ? AND entity_token = ? ORDER BY field_group"),
    sealed_sql_sqlite!("held_block", "selling_partner_id = ? AND entity_token = ? ORDER BY field_group"),
];
/// Selects the next [`Sealed`] rows of one group of a seller's entities in SQLite, from the table of the index.
pub(crate) const PAGE_SQL_SQLITE: [&str; 2] = [
    sealed_sql_sqlite!("sealed_block", "selling_partner_id = ? AND field_group = ? AND entity_token > ? ORDER BY entity_token LIMIT ?"),
    sealed_sql_sqlite!("held_block", "selling_partner_id = ? AND field_group = ? AND entity_token > ? ORDER BY entity_token LIMIT ?"),
];
/// Selects [`Sealed`] rows of one entity in PostgreSQL, from the table of the index: the vault's, the cold store's.
pub(crate) const SEALED_SQL_POSTGRES: [&str; 2] = [
    sealed_sql_postgres!("sealed_block", "selling_partner_id = $1 AND entity_token = $2 ORDER BY field_group"),
    sealed_sql_postgres!("held_block", "selling_partner_id = $1 AND entity_token = $2 ORDER BY field_group"),
];
/// Selects the next [`Sealed`] rows of one group of a seller's entities in PostgreSQL, from the table of the index.
pub(crate) const PAGE_SQL_POSTGRES: [&str; 2] = [
    sealed_sql_postgres!(
        "sealed_block",
        "selling_partner_id = $1 AND field_group = $2 AND entity_token > $3 ORDER BY entity_token LIMIT $4"
    ),
    sealed_sql_postgres!("held_block", "selling_partner_id = $1 AND field_group = $2 AND entity_token > $3 ORDER BY entity_token LIMIT $4"),
];

/// A row of the vault as both databases give it.
#[derive(sqlx::FromRow)]
pub(crate) struct Sealed {
    selling_partner_id: String,
    marketplace_id: String,
    source_api: String,
    source_operation: String,
    source_request_id: String,
    payload_sha256: String,
    field_group: String,
    classification: String,
    deadline_rule: String,
    entity_token: String,
    source_version: i64,
    key_id: Vec<u8>,
    block: Vec<u8>,
    collected_ms: i64,
    deadline_ms: i64,
    event: String,
}

impl Sealed {
    /// The row as a record.
    pub(crate) fn into_record(self) -> Result<PiiRecord, sqlx::Error> {
        /// A value that is no id: the error's text could quote it and stays here.
        fn bad<E>(_: E) -> sqlx::Error {
            sqlx::Error::Decode("bad id".into())
        }
        Ok(PiiRecord {
            attribution: Arc::new(Attribution {
                selling_partner_id: SellerId::parse(&self.selling_partner_id).map_err(bad)?,
                marketplace_id: MarketplaceId::parse(&self.marketplace_id).map_err(bad)?,
                source_api: self.source_api,
                source_operation: self.source_operation,
                source_request_id: self.source_request_id,
                collected_at: Timestamp(self.collected_ms),
                event_id: self.event.parse().map_err(bad)?,
                payload_sha256: self.payload_sha256,
            }),
            source_version: self.source_version,
            entity_token: EntityToken::parse(&self.entity_token).map_err(bad)?,
            field_group: self.field_group.parse::<FieldGroup>().map_err(bad)?,
            key_id: KeyId(self.key_id.try_into().map_err(bad)?),
            classification: self.classification,
            deadline: Timestamp(self.deadline_ms),
            deadline_rule: self.deadline_rule,
            block: SealedBlock::from_bytes(self.block).map_err(bad)?,
        })
    }
}
