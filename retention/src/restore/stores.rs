//! Restored stores: a vault or a warehouse that is older than the log's readers were. What was erased since is forgotten again.

use serde_json::json;
use sqlx::Row;
use sunder_schemas::ids::{EntityToken, Fingerprint, KeyId, SellerId};
use sunder_schemas::time::Timestamp;

use crate::keydb::{DbError, KeyDb, blob, on};
use crate::mirror;
use crate::store::{Extent, Subject};

/// Subjects in one page. Chosen: one statement of a store.
const PAGE: i64 = 1000;

/// Reads the erased ledger page by page.
#[derive(Debug, Clone)]
pub struct Ledger {
    extent: Extent,
    after: Fingerprint,
}

impl Ledger {
    /// All subjects that were erased at least to `extent`.
    #[must_use]
    pub const fn of(extent: Extent) -> Self {
        Self { extent, after: Fingerprint([0; 32]) }
    }

    /// The next page; empty at the end. Subjects without a token lie in no store.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn page(&mut self, db: &KeyDb) -> Result<Vec<Subject>, DbError> {
        let failed = on("read the erased ledger");
        let rows = sqlx::query(
            "SELECT fingerprint, seller, token, key_id FROM subject WHERE state = 'destroyed' AND token IS NOT NULL AND fingerprint > $1 \
             AND ($2 = 0 OR withheld_epoch IS NOT NULL) ORDER BY fingerprint LIMIT $3",
        )
        .bind(self.after.0.to_vec())
        .bind(i64::from(self.extent == Extent::WithBusinessData))
        .bind(PAGE)
        .fetch_all(db.pool())
        .await
        .map_err(&failed)?;
        let bad = || DbError::fixed("read the erased ledger", "bad_column");
        let mut subjects = Vec::with_capacity(rows.len());
        for row in rows {
            self.after = Fingerprint(blob(&row, "fingerprint")?.ok_or_else(bad)?);
            subjects.push(Subject {
                seller: SellerId::parse(&row.try_get::<String, _>("seller").map_err(&failed)?).map_err(|_| bad())?,
                token: EntityToken(blob(&row, "token")?.ok_or_else(bad)?),
                keys: blob(&row, "key_id")?.map(KeyId).into_iter().collect(),
            });
        }
        Ok(subjects)
    }
}

/// Writes down that `store` was restored: so many records of the log it had read are read again, so many rows were forgotten again.
///
/// # Errors
/// [`DbError`].
pub async fn note_store(db: &KeyDb, store: &str, at: Timestamp, records_behind: u64, rows_forgotten: u64) -> Result<(), DbError> {
    let mut tx = db.begin_write().await?;
    let report = json!({ "records_behind": records_behind, "rows_forgotten": rows_forgotten });
    mirror::note(&mut tx, store, at, "settled", &report).await?;
    tx.commit().await.map_err(on("note a restore"))
}
