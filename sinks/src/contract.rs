//! The one suite that every store passes, on every database: warehouse and vault, SQLite and PostgreSQL.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, AssertSqlSafe};
use sunder_retention::store::{Control, Extent, Forget as _, Mark, Needles, Prove as _, Subject};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::envelope::Attribution;
use sunder_schemas::ids::{EntityToken, EventId, KeyId, MarketplaceId, Offset, Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::outcome::FilterReason;
use sunder_schemas::private::SealedBlock;
use sunder_schemas::records::{PackageRow, PiiRecord, StateRecord};
use sunder_schemas::time::Timestamp;

use crate::rows::Row;
use crate::{Change, Retry, Sink, SinkError, Source, StoreOptions, Vault, Warehouse};

mod aged;
mod beside;
mod laws;

/// The key whose blocks no vault of this suite takes.
const DESTROYED: KeyId = KeyId([0xdd; 16]);

/// What the suite needs of a store.
#[async_trait]
trait Fixture: Send + Sync + 'static {
    type Record: Row + Clone + std::fmt::Debug + 'static;
    type Store: Sink<Self::Record> + crate::beside::Replaceable + 'static;
    const TOPIC: &'static str;
    const TABLE: &'static str;
    /// A text column that carries `tag`.
    const TAG: &'static str;
    const ENTITY: &'static str;
    async fn open(options: &StoreOptions) -> Result<Self::Store, SinkError>;
    fn record(entity: u8, version: i64, tag: &str) -> Self::Record;
    fn key(entity: u8) -> Vec<u8>;
}

struct OfWarehouse;
struct OfVault;

fn seller() -> SellerId {
    SellerId::parse("A1SELLER").unwrap()
}

fn token(entity: u8) -> EntityToken {
    EntityToken([entity; 16])
}

/// The data key of an entity; like no token, so that a hit is one of the key.
fn key_of(entity: u8) -> KeyId {
    let mut key = [0x4b; 16];
    key[8..].fill(entity);
    KeyId(key)
}

fn attribution(version: i64) -> Arc<Attribution> {
    Arc::new(Attribution {
        selling_partner_id: seller(),
        marketplace_id: MarketplaceId::parse("A1PA6795UKMFR9").unwrap(),
        source_api: "orders_2026-01-01".to_owned(),
        source_operation: "searchOrders".to_owned(),
        source_request_id: "request-1".to_owned(),
        collected_at: Timestamp(1_790_000_000_123 + version),
        event_id: EventId(uuid::Uuid::from_u128(version.unsigned_abs().into())),
        payload_sha256: "ab".repeat(32),
    })
}

fn block(key: KeyId) -> SealedBlock {
    let mut bytes = SealedBlock::header(key).to_vec();
    bytes.extend((0..200u8).map(|n| n.wrapping_mul(37)));
    SealedBlock::from_bytes(bytes).unwrap()
}

#[async_trait]
impl Fixture for OfWarehouse {
    type Record = StateRecord;
    type Store = Warehouse;
    const TOPIC: &'static str = "sp.state.packages.v1";
    const TABLE: &'static str = "packages";
    const TAG: &'static str = "carrier";
    const ENTITY: &'static str = "order_token";

    async fn open(options: &StoreOptions) -> Result<Warehouse, SinkError> {
        Warehouse::open(options).await
    }

    fn record(entity: u8, version: i64, tag: &str) -> StateRecord {
        StateRecord::Package(PackageRow {
            attribution: attribution(version),
            source_version: version,
            order_token: token(entity),
            package_token: token(7),
            status: None,
            detailed_status: Some("OUT_FOR_DELIVERY".into()),
            carrier: Some(tag.into()),
            shipping_service: None,
            created_at: Some(Timestamp(1_790_000_000_001)),
            shipped_at: None,
            item_tokens: vec![token(1), token(2)],
            item_quantities: vec![3, 4],
        })
    }

    fn key(entity: u8) -> Vec<u8> {
        key::state_key(&seller(), token(entity), Some(token(7))).into_bytes()
    }
}

#[async_trait]
impl Fixture for OfVault {
    type Record = PiiRecord;
    type Store = Vault;
    const TOPIC: &'static str = "sp.pii.orders.v1";
    const TABLE: &'static str = "sealed_block";
    const TAG: &'static str = "deadline_rule";
    const ENTITY: &'static str = "entity_token";

    async fn open(options: &StoreOptions) -> Result<Vault, SinkError> {
        Vault::open(options, Arc::new(|key| key == DESTROYED)).await
    }

    fn record(entity: u8, version: i64, tag: &str) -> PiiRecord {
        PiiRecord {
            attribution: attribution(version),
            source_version: version,
            entity_token: token(entity),
            field_group: FieldGroup::BuyerName,
            key_id: key_of(entity),
            classification: "orders_2026-01-01#1".to_owned(),
            deadline: Timestamp(1_800_000_000_000),
            deadline_rule: tag.to_owned(),
            block: block(key_of(entity)),
        }
    }

    fn key(entity: u8) -> Vec<u8> {
        key::pii_key(&seller(), token(entity), FieldGroup::BuyerName).into_bytes()
    }
}

/// A fresh database, opened as a store and, beside it, as plain SQL.
struct Bench<F: Fixture> {
    store: F::Store,
    options: StoreOptions,
    sql: AnyPool,
    _folder: Option<tempfile::TempDir>,
}

impl<F: Fixture> Bench<F> {
    async fn on(database: &str) -> Option<Self> {
        let (url, folder) = if database == "postgres" {
            (sunder_retention::testing::postgres().await?, None)
        } else {
            let folder = tempfile::tempdir().unwrap();
            (format!("sqlite://{}", folder.path().join("store.db").display()), Some(folder))
        };
        let options = StoreOptions::new(&url, "sp");
        let store = F::open(&options).await.unwrap();
        sqlx::any::install_default_drivers();
        let sql = AnyPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
        Some(Self { store, options, sql, _folder: folder })
    }

    /// Rows by entity: version and tag.
    async fn rows(&self) -> BTreeMap<String, (i64, String)> {
        let sql = format!("SELECT {}, source_version, {} FROM {} WHERE selling_partner_id <> '~canary'", F::ENTITY, F::TAG, F::TABLE);
        let rows: Vec<(String, i64, String)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&self.sql).await.unwrap();
        rows.into_iter().map(|(entity, version, tag)| (entity, (version, tag))).collect()
    }

    async fn apply(&self, expected: Option<i64>, next: i64, changes: Vec<Change<F::Record>>) -> Result<crate::Applied, SinkError> {
        self.store.apply(&source::<F>("one"), expected.map(Offset), Offset(next), changes).await
    }
}

fn source<F: Fixture>(incarnation: &str) -> Source {
    Source { topic: F::TOPIC.to_owned(), incarnation: incarnation.to_owned(), partition: Partition(3) }
}

fn upsert<F: Fixture>(offset: i64, entity: u8, version: i64, tag: &str) -> Change<F::Record> {
    Change::Upsert { offset: Offset(offset), record: F::record(entity, version, tag) }
}

fn delete<F: Fixture>(offset: i64, entity: u8) -> Change<F::Record> {
    Change::Delete { offset: Offset(offset), key: F::key(entity) }
}

fn subject(entity: u8) -> Subject {
    Subject { seller: seller(), token: token(entity), keys: vec![key_of(entity)] }
}
