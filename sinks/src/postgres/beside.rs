//! The schema beside the live tables.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _};

use super::Postgres;
use crate::SinkError;
use crate::beside::{Statement, schema, take_over_sql};

/// Makes the schema of the store beside `store`, and returns the options under which unqualified names mean its tables.
pub(super) async fn connect_beside(store: &'static str, live: PgConnectOptions) -> Result<PgConnectOptions, SinkError> {
    let failed = || SinkError::of(store, "make the schema beside");
    let mut connection = live.connect().await.map_err(failed())?;
    let schema = schema(store);
    let sql = Arc::<str>::from(format!("CREATE SCHEMA IF NOT EXISTS {schema}"));
    sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.map_err(failed())?;
    Ok(live.options([("search_path", schema)]))
}

impl Postgres {
    pub(super) async fn replace_rows(&self, fed: &BTreeSet<usize>) -> Result<u64, SinkError> {
        let failed = || self.fail("take over the rows built beside");
        let mut tx = self.pool.begin().await.map_err(failed())?;
        // A writer takes its position first and its rows then: with this lock none is on its way.
        sqlx::query("LOCK TABLE sink_offset IN EXCLUSIVE MODE").execute(&mut *tx).await.map_err(failed())?;
        let mut rows = 0;
        for Statement { sql, writes_rows } in take_over_sql(self.store, &self.tables, fed) {
            let done = sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut *tx).await.map_err(failed())?;
            rows += if writes_rows { done.rows_affected() } else { 0 };
        }
        tx.commit().await.map_err(failed())?;
        Ok(rows)
    }

    /// Drops the schema beside; says whether there was one.
    pub(super) async fn remove_beside(&self) -> Result<bool, SinkError> {
        let failed = || self.fail("drop the schema built beside");
        let schema = schema(self.store);
        let is_there: bool =
            sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL").bind(&schema).fetch_one(&self.pool).await.map_err(failed())?;
        if is_there {
            let sql = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
            sqlx::query(AssertSqlSafe(sql)).execute(&self.pool).await.map_err(failed())?;
        }
        Ok(is_there)
    }
}
