//! The file beside the live one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};

use super::Sqlite;
use crate::SinkError;
use crate::beside::{Statement, schema, take_over_sql};

/// The file of the store that is built beside the one in `live`.
pub(super) fn file_beside(live: &Path) -> PathBuf {
    let mut name = live.as_os_str().to_owned();
    name.push(".replay");
    name.into()
}

impl Sqlite {
    pub(super) async fn replace_rows(&self, fed: &BTreeSet<usize>) -> Result<u64, SinkError> {
        let failed = || self.fail("take over the rows built beside");
        let beside = file_beside(&self.path);
        if !tokio::fs::try_exists(&beside).await.unwrap_or(false) {
            // Attaching would make an empty one.
            return Err(self.unread("take over the rows built beside", "no_file"));
        }
        let mut connection = self.pool.acquire().await.map_err(failed())?;
        sqlx::query(AssertSqlSafe(format!("ATTACH DATABASE ? AS {}", schema(self.store))))
            .bind(beside.to_string_lossy().into_owned())
            .execute(&mut *connection)
            .await
            .map_err(failed())?;
        let done = self.replace_attached(&mut connection, fed).await;
        let detached = sqlx::query(AssertSqlSafe(format!("DETACH DATABASE {}", schema(self.store)))).execute(&mut *connection).await;
        if detached.is_err() {
            // The next one that works on this connection must not meet the attached file.
            drop(connection.detach());
        }
        done.map_err(failed())
    }

    async fn replace_attached(&self, connection: &mut SqliteConnection, fed: &BTreeSet<usize>) -> Result<u64, sqlx::Error> {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut rows = 0;
        for Statement { sql, writes_rows } in take_over_sql(self.store, &self.tables, fed) {
            let done = sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut *tx).await?;
            rows += if writes_rows { done.rows_affected() } else { 0 };
        }
        tx.commit().await?;
        Ok(rows)
    }

    /// Removes the file beside with its write-ahead log; says whether there was one.
    pub(super) async fn remove_beside(&self) -> Result<bool, SinkError> {
        let beside = file_beside(&self.path);
        let mut was_there = false;
        for suffix in ["", "-wal", "-shm"] {
            let mut name = beside.as_os_str().to_owned();
            name.push(suffix);
            match tokio::fs::remove_file(&name).await {
                Ok(()) => was_there = true,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.unread("remove the file built beside", &error.kind().to_string())),
            }
        }
        Ok(was_there)
    }
}
