//! The stores on PostgreSQL: one statement per table and batch, a typed array per column.

mod beside;
mod scan;
mod types;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::ExposeSecret as _;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, PgPool, Postgres as Db, Row as _, Transaction};
use sunder_retention::horizon;
use sunder_retention::inventory::POSTGRES_OBJECTS;
use sunder_retention::store::{Control, Subject};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, Offset, Partition, SellerId};
use sunder_schemas::records::PiiRecord;
use sunder_schemas::time::Timestamp;

use crate::SinkError;
use crate::beside::Side;
use crate::cells::{Cells, HexToken, Values};
use crate::find::Finder;
use crate::lookup::{Lookup, RowText};
use crate::options::{Dialect, STATEMENT_ROWS_MAX, StoreOptions};
use crate::rows::RowKey;
use crate::store::{Backend, CANARY, Changed, Move, Position, Reading};
use crate::tables::{Class, SINK_OFFSET_SQL, Table, freshness_sql, scan_control_sql};
use types::{PgInstant, PgUuid};

/// How long a call waits for a connection before it fails as unreachable (chosen: well below the 30 s that a start may take).
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of the advisory lock under which processes make tables, one at a time ("sunder" in ASCII).
const SETTLE_LOCK: i64 = 0x73_75_6e_64_65_72;
/// SQLSTATE of a lock that was not had within `lock_timeout` (PostgreSQL manual, appendix A).
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// A store on PostgreSQL.
pub(crate) struct Postgres {
    store: &'static str,
    pool: PgPool,
    tables: Vec<Table>,
    upserts: Vec<Arc<str>>,
    deletes: Vec<Arc<str>>,
    has_control: bool,
    rewrite_lock: Duration,
}

impl Postgres {
    /// Connects and makes the tables as declared.
    pub(crate) async fn open(store: &'static str, options: &StoreOptions, tables: &[Table], with_views: bool) -> Result<Self, SinkError> {
        let mut connect = PgConnectOptions::from_str(&options.url)
            .map_err(|_| SinkError::Options { store, code: "the url is not of the form postgres://user@host/database" })?
            .application_name("sunder");
        if let Some(password) = &options.password {
            connect = connect.password(password.expose_secret());
        }
        if options.side == Side::Beside {
            connect = beside::connect_beside(store, connect).await?;
        }
        let pool = PgPoolOptions::new()
            .max_connections(options.connections.max(1))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move { sqlx::raw_sql(horizon::SESSION_SQL).execute(connection).await.map(|_| ()) })
            })
            .connect_with(connect)
            .await
            .map_err(SinkError::of(store, "connect"))?;
        let backend = Self {
            store,
            pool,
            upserts: tables.iter().map(|table| table.upsert_unnest_sql().into()).collect(),
            deletes: tables.iter().map(|table| table.delete_unnest_sql(table.key.len()).into()).collect(),
            tables: tables.to_vec(),
            has_control: with_views,
            rewrite_lock: options.rewrite_lock,
        };
        backend.settle().await.map_err(SinkError::of(store, "make its tables"))?;
        Ok(backend)
    }

    async fn settle(&self) -> Result<(), sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(SETTLE_LOCK).execute(&mut *tx).await?;
        sqlx::query(SINK_OFFSET_SQL).execute(&mut *tx).await?;
        for table in &self.tables {
            self.settle_table(&mut tx, table).await?;
        }
        if self.has_control {
            sqlx::query(scan_control_sql(Dialect::Postgres)).execute(&mut *tx).await?;
            for sql in freshness_sql(&self.tables, Dialect::Postgres) {
                sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut *tx).await?;
            }
        }
        tx.commit().await
    }

    /// Makes the table, or adds what it lacks. A table that is complete is only looked at: changing it would wait for, and hold up,
    /// everyone who reads it.
    async fn settle_table(&self, tx: &mut Transaction<'_, Db>, table: &Table) -> Result<(), sqlx::Error> {
        let held: Vec<String> = sqlx::query_scalar(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
        )
        .bind(table.name)
        .fetch_all(&mut **tx)
        .await?;
        let mut statements = Vec::new();
        if held.is_empty() {
            statements.extend([table.create_sql(Dialect::Postgres), table.comment_sql()]);
        }
        for column in table.columns.iter().filter(|column| !held.iter().any(|name| name == column.name)) {
            if !held.is_empty() {
                statements.push(table.add_column_sql(column, Dialect::Postgres));
            }
            statements.extend(table.settle_sql(column));
        }
        for sql in statements {
            sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut **tx).await?;
        }
        Ok(())
    }

    fn fail(&self, action: &'static str) -> impl FnOnce(sqlx::Error) -> SinkError + use<> {
        SinkError::of(self.store, action)
    }

    async fn upsert(&self, tx: &mut Transaction<'_, Db>, table: usize, cells: &Cells<'_>) -> Result<u64, sqlx::Error> {
        let Some(sql) = self.upserts.get(table) else { return Ok(0) };
        let mut written = 0;
        let mut from = 0;
        while from < cells.rows() {
            let to = cells.rows().min(from + STATEMENT_ROWS_MAX);
            let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
            for values in cells.columns() {
                query = bind(query, values, from, to);
            }
            written += query.execute(&mut **tx).await?.rows_affected();
            from = to;
        }
        Ok(written)
    }

    async fn delete(&self, tx: &mut Transaction<'_, Db>, table: usize, keys: &[RowKey]) -> Result<u64, sqlx::Error> {
        let Some(sql) = self.deletes.get(table) else { return Ok(0) };
        if keys.is_empty() {
            return Ok(0);
        }
        let sellers: Vec<&str> = keys.iter().map(|key| key.seller.as_str()).collect();
        let entities: Vec<HexToken> = keys.iter().map(|key| HexToken::new(key.entity)).collect();
        let parts: Vec<String> = keys.iter().filter_map(RowKey::part_text).collect();
        let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(sellers).bind(entities);
        if !parts.is_empty() {
            query = query.bind(parts);
        }
        Ok(query.execute(&mut **tx).await?.rows_affected())
    }

    /// Moves the position, or says with the stored one that it is not the expected one.
    async fn advance(&self, tx: &mut Transaction<'_, Db>, sink: &str, step: Move<'_>) -> Result<(), SinkError> {
        let Move { source, expected, next } = step;
        let query = match expected {
            None => sqlx::query(
                "INSERT INTO sink_offset (sink, topic, incarnation, topic_partition, next_offset) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            ),
            Some(_) => sqlx::query(
                "UPDATE sink_offset SET next_offset = $5 WHERE sink = $1 AND topic = $2 AND incarnation = $3 AND topic_partition = $4 AND next_offset = $6",
            ),
        };
        let mut query = query.bind(sink).bind(&source.topic).bind(&source.incarnation).bind(i64::from(source.partition.0)).bind(next.0);
        if let Some(expected) = expected {
            query = query.bind(expected.0);
        }
        if query.execute(&mut **tx).await.map_err(self.fail("move the position"))?.rows_affected() == 1 {
            return Ok(());
        }
        let stored: Option<i64> = sqlx::query_scalar(
            "SELECT next_offset FROM sink_offset WHERE sink = $1 AND topic = $2 AND incarnation = $3 AND topic_partition = $4",
        )
        .bind(sink)
        .bind(&source.topic)
        .bind(&source.incarnation)
        .bind(i64::from(source.partition.0))
        .fetch_optional(&mut **tx)
        .await
        .map_err(self.fail("read the position"))?;
        Err(SinkError::Moved { topic: source.topic.clone(), partition: source.partition, expected, stored: stored.map(Offset) })
    }

    async fn delete_all_of(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<u64, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        let mut deleted = 0;
        for table in &self.tables {
            let sql: Arc<str> = table.entities_sql("DELETE", Dialect::Postgres, 0, older_than.is_some()).into();
            for chunk in subjects.chunks(STATEMENT_ROWS_MAX) {
                let query = of_entities(sqlx::query(AssertSqlSafe(Arc::clone(&sql))), chunk);
                deleted += bind_age(query, table, older_than).execute(&mut *tx).await?.rows_affected();
            }
        }
        tx.commit().await?;
        Ok(deleted)
    }

    async fn count_all_of(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<Vec<(&'static str, u64)>, sqlx::Error> {
        let mut counts = Vec::with_capacity(self.tables.len());
        for table in &self.tables {
            let sql: Arc<str> = table.entities_sql("SELECT count(*)", Dialect::Postgres, 0, older_than.is_some()).into();
            let mut count = 0;
            for chunk in subjects.chunks(STATEMENT_ROWS_MAX) {
                let query = of_entities(sqlx::query(AssertSqlSafe(Arc::clone(&sql))), chunk);
                let row = bind_age(query, table, older_than).fetch_one(&self.pool).await?;
                count += row.try_get::<i64, _>(0)?.unsigned_abs();
            }
            counts.push((table.name, count));
        }
        Ok(counts)
    }

    async fn aged_rows(&self, cutoff: Timestamp) -> Result<Vec<(usize, String, String)>, sqlx::Error> {
        let mut aged = Vec::new();
        for (index, table) in self.tables.iter().enumerate() {
            let Some(sql) = table.aged_sql(Dialect::Postgres) else { continue };
            let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(sql)).bind(cutoff.0).fetch_all(&self.pool).await?;
            aged.extend(rows.into_iter().map(|(seller, token)| (index, seller, token)));
        }
        Ok(aged)
    }

    async fn drop_other_incarnations(&self, sink: &str, table: &Table, topic: &str, incarnation: &str) -> Result<u64, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        let rows = format!(
            "DELETE FROM {} WHERE topic_id IN (SELECT incarnation FROM sink_offset WHERE sink = $1 AND topic = $2 AND incarnation <> $3)",
            table.name
        );
        let positions = "DELETE FROM sink_offset WHERE sink = $1 AND topic = $2 AND incarnation <> $3".to_owned();
        let mut gone = Vec::with_capacity(2);
        for sql in [rows, positions] {
            gone.push(sqlx::query(AssertSqlSafe(sql)).bind(sink).bind(topic).bind(incarnation).execute(&mut *tx).await?.rows_affected());
        }
        tx.commit().await?;
        Ok(gone.first().copied().unwrap_or_default())
    }

    /// Makes the planner forget what it sampled of tables that are empty by now: ANALYZE leaves their statistics as they were. It is
    /// shown one row of constants instead, which nobody else sees.
    async fn forget_statistics(&self) -> Result<(), sqlx::Error> {
        for table in &self.tables {
            let sql = format!(
                "SELECT NOT EXISTS (SELECT 1 FROM {0}) AND EXISTS (SELECT 1 FROM pg_stats \
                 WHERE schemaname = ANY(current_schemas(false)) AND tablename = '{0}')",
                table.name
            );
            if !sqlx::query_scalar::<_, bool>(AssertSqlSafe(sql)).fetch_one(&self.pool).await? {
                continue;
            }
            let mut tx = self.pool.begin().await?;
            for sql in [table.constants_sql(), format!("ANALYZE {}", table.name), table.drop_constants_sql()] {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
            }
            tx.commit().await?;
        }
        Ok(())
    }

    /// Rewrites the tables. Each is locked meanwhile, and who waits for a lock holds up all who come after: so it waits briefly.
    async fn rewrite_tables(&self) -> Result<(), SinkError> {
        let connection = self.pool.acquire().await.map_err(self.fail("rewrite its tables"))?;
        // It leaves the pool, and its limit with it, however this ends.
        let mut connection = connection.detach();
        let limit = format!("SET lock_timeout = {}", self.rewrite_lock.as_millis().max(1));
        sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut connection).await.map_err(self.fail("rewrite its tables"))?;
        for table in &self.tables {
            let done = sqlx::raw_sql(AssertSqlSafe(format!("VACUUM FULL {}", table.name))).execute(&mut connection).await;
            done.map_err(|error| {
                let is_locked = error.as_database_error().and_then(|error| error.code()).as_deref() == Some(LOCK_NOT_AVAILABLE);
                self.fail(if is_locked { "rewrite its tables while another session uses one of them" } else { "rewrite its tables" })(error)
            })?;
        }
        connection.close().await.map_err(self.fail("rewrite its tables"))
    }

    /// Runs a maintenance statement on every table; such statements stand outside transactions.
    async fn on_each_table(&self, statement: &str) -> Result<(), sqlx::Error> {
        for table in &self.tables {
            sqlx::raw_sql(AssertSqlSafe(format!("{statement} {}", table.name))).execute(&self.pool).await?;
        }
        Ok(())
    }
}

type Query<'q> = sqlx::query::Query<'q, Db, PgArguments>;

/// Binds sellers and tokens of `subjects` as arrays.
fn of_entities<'q>(query: Query<'q>, subjects: &[Subject]) -> Query<'q> {
    let sellers: Vec<&str> = subjects.iter().map(|subject| subject.seller.as_str()).collect();
    let entities: Vec<HexToken> = subjects.iter().map(|subject| HexToken::new(subject.token)).collect();
    query.bind(sellers).bind(entities)
}

/// Binds the instant where the statement of `table` has a place for it.
fn bind_age<'q>(query: Query<'q>, table: &Table, older_than: Option<Timestamp>) -> Query<'q> {
    match older_than {
        Some(cutoff) if table.binds_age(true) => query.bind(cutoff.0),
        _ => query,
    }
}

/// Binds rows `from..to` of a column as one array; the driver encodes it at once, so values are borrowed.
fn bind<'q>(query: Query<'q>, values: &Values<'_>, from: usize, to: usize) -> Query<'q> {
    match values {
        Values::Text(v) => query.bind(v.get(from..to).unwrap_or_default()),
        Values::Token(v) => query.bind(v.get(from..to).unwrap_or_default()),
        Values::Integer(v) => query.bind(v.get(from..to).unwrap_or_default()),
        Values::Boolean(v) => query.bind(v.get(from..to).unwrap_or_default()),
        Values::Decimal(v) => query.bind(v.get(from..to).unwrap_or_default()),
        Values::Instant(v) => {
            let instants: Vec<Option<PgInstant>> = v.get(from..to).unwrap_or_default().iter().map(|t| t.map(PgInstant)).collect();
            query.bind(instants)
        }
        Values::Uuid(v) => {
            let ids: Vec<Option<PgUuid>> = v.get(from..to).unwrap_or_default().iter().map(|id| id.map(PgUuid)).collect();
            query.bind(ids)
        }
        Values::Bytes(v) => query.bind(v.get(from..to).unwrap_or_default()),
        Values::List(v) => query.bind((from..to).map(|row| v.get(row)).collect::<Vec<_>>()),
    }
}

#[async_trait]
impl Backend for Postgres {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn positions(&self, sink: &str) -> Result<Vec<Position>, SinkError> {
        let rows = sqlx::query("SELECT topic, incarnation, topic_partition::int, next_offset FROM sink_offset WHERE sink = $1")
            .bind(sink)
            .fetch_all(&self.pool)
            .await
            .map_err(self.fail("read the positions"))?;
        let position = |row: &PgRow| {
            Ok(Position {
                topic: row.try_get(0)?,
                incarnation: row.try_get(1)?,
                partition: Partition(row.try_get(2)?),
                next: Offset(row.try_get(3)?),
            })
        };
        rows.iter().map(position).collect::<Result<_, sqlx::Error>>().map_err(self.fail("read the positions"))
    }

    async fn write(&self, sink: &str, step: Move<'_>, table: usize, deletes: &[RowKey], upserts: Cells<'_>) -> Result<Changed, SinkError> {
        let mut tx = self.pool.begin().await.map_err(self.fail("begin a batch"))?;
        // First the position: its row lock keeps a second writer of this source waiting, who then finds it moved.
        self.advance(&mut tx, sink, step).await?;
        let deleted = self.delete(&mut tx, table, deletes).await.map_err(self.fail("delete rows"))?;
        let written = self.upsert(&mut tx, table, &upserts).await.map_err(self.fail("write rows"))?;
        tx.commit().await.map_err(self.fail("commit a batch"))?;
        Ok(Changed { written, deleted })
    }

    async fn rebuild(&self, sink: &str, table: usize, topic: &str, incarnation: &str) -> Result<u64, SinkError> {
        let Some(table) = self.tables.get(table) else { return Ok(0) };
        self.drop_other_incarnations(sink, table, topic, incarnation).await.map_err(self.fail("rebuild a topic's rows"))
    }

    async fn delete_subjects(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<u64, SinkError> {
        self.delete_all_of(subjects, older_than).await.map_err(self.fail("delete subjects"))
    }

    async fn count_subjects(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<Vec<(&'static str, u64)>, SinkError> {
        self.count_all_of(subjects, older_than).await.map_err(self.fail("count the rows of subjects"))
    }

    async fn aged(&self, cutoff: Timestamp) -> Result<Vec<(usize, String, String)>, SinkError> {
        self.aged_rows(cutoff).await.map_err(self.fail("look for old rows"))
    }

    async fn purge(&self) -> Result<(), SinkError> {
        self.on_each_table("VACUUM (ANALYZE)").await.map_err(self.fail("vacuum"))?;
        self.forget_statistics().await.map_err(self.fail("renew the planner's statistics"))
    }

    async fn rewrite(&self) -> Result<(), SinkError> {
        self.rewrite_tables().await
    }

    async fn read_rows(&self, finder: &Finder) -> Result<Reading, SinkError> {
        self.rows_read(finder).await
    }

    async fn holder(&self) -> Option<String> {
        let seen: Option<String> = sqlx::query_scalar(horizon::HOLDER_SQL).fetch_optional(&self.pool).await.ok().flatten();
        Some(seen.unwrap_or_else(|| horizon::UNSEEN.to_owned()))
    }

    async fn read_files(&self, finder: &Arc<Finder>) -> Result<Option<Reading>, SinkError> {
        self.files_read(finder).await
    }

    async fn size(&self) -> Result<u64, SinkError> {
        let mut total = 0;
        for table in &self.tables {
            let size: i64 = sqlx::query_scalar("SELECT pg_total_relation_size($1::regclass)")
                .bind(table.name)
                .fetch_one(&self.pool)
                .await
                .map_err(self.fail("read its size"))?;
            total += size.unsigned_abs();
        }
        Ok(total)
    }

    async fn set_control(&self, case: &str, control: Option<&Control>) -> Result<(), SinkError> {
        let query = match control {
            Some(control) => sqlx::query(
                "INSERT INTO scan_control (case_id, key_id, block) VALUES ($1, $2, $3) ON CONFLICT (case_id) DO UPDATE SET key_id = excluded.key_id, block = excluded.block",
            )
            .bind(case)
            .bind(control.key.0.to_vec())
            .bind(&control.block),
            None => sqlx::query("DELETE FROM scan_control WHERE case_id = $1").bind(case),
        };
        query.execute(&self.pool).await.map(drop).map_err(self.fail("set a control"))
    }

    async fn put_row(&self, table: usize, row: Cells<'_>) -> Result<(), SinkError> {
        let mut tx = self.pool.begin().await.map_err(self.fail("set a control"))?;
        self.upsert(&mut tx, table, &row).await.map_err(self.fail("set a control"))?;
        tx.commit().await.map_err(self.fail("set a control"))
    }

    async fn drop_canaries(&self, case: &str) -> Result<(), SinkError> {
        sqlx::query("DELETE FROM sealed_block WHERE selling_partner_id = $1 AND classification = $2")
            .bind(CANARY)
            .bind(case)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(self.fail("remove a control"))
    }

    async fn sampled_columns(&self) -> Result<Vec<String>, SinkError> {
        let sealed = self
            .tables
            .iter()
            .flat_map(|t| t.columns.iter().filter(|c| c.class == Class::Sealed).map(|c| format!("{}.{}", t.name, c.name)));
        sqlx::query_scalar(
            "SELECT c.relname || '.' || a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
             WHERE c.relname || '.' || a.attname = ANY($1) AND pg_table_is_visible(c.oid) AND coalesce(a.attstattarget, -1) <> 0",
        )
        .bind(sealed.collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(self.fail("read the planner's settings"))
    }

    async fn take_over(&self, fed: &BTreeSet<usize>) -> Result<u64, SinkError> {
        self.replace_rows(fed).await
    }

    async fn drop_beside(&self) -> Result<bool, SinkError> {
        self.remove_beside().await
    }

    async fn close(&self) {
        self.pool.close().await;
    }

    async fn look_up(&self, lookup: &Lookup) -> Result<Vec<RowText>, SinkError> {
        self.rows_found(lookup).await
    }

    async fn page(
        &self,
        table: usize,
        seller: &SellerId,
        group: FieldGroup,
        after: Option<EntityToken>,
        limit: usize,
    ) -> Result<Vec<PiiRecord>, SinkError> {
        self.sealed_page(table, seller, group, after, limit).await
    }

    async fn objects(&self) -> Result<Vec<(String, String)>, SinkError> {
        sqlx::query_as(POSTGRES_OBJECTS).fetch_all(&self.pool).await.map_err(self.fail("list what the database holds"))
    }

    async fn sealed(&self, table: usize, seller: &SellerId, entity: EntityToken) -> Result<Vec<PiiRecord>, SinkError> {
        self.sealed_rows(table, seller, entity).await
    }
}
