//! Strays: sealed blocks whose key is destroyed or unknown and that lie somewhere all the same, say from a foreign writer, a restored
//! copy or a replica that was away. Nobody can open them; they go, and the case that erased them is proved again (DESIGN section 5).

use std::collections::{HashMap, HashSet};

use serde_json::json;
use sqlx::{AssertSqlSafe, Row};
use sunder_schemas::ids::{CaseId, EntityToken, KeyId, SellerId};
use sunder_schemas::time::{Period, Timestamp};

use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::keydb::{DbError, KeyDb, ROWS_PER_STATEMENT, blob, on, push_tuples};
use crate::restore;

/// Between two readings (DESIGN section 5: nightly).
const EVERY: Period = Period::days(1);
/// In the name of whom the audit log tells of a reading.
const ACTOR: &str = "stray-sweep";

/// A sealed block that was met.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Met {
    /// Whose customer.
    pub seller: SellerId,
    /// The entity's pseudonym.
    pub entity: EntityToken,
    /// The key that its header names.
    pub key: KeyId,
}

/// A block that should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// What was met.
    pub met: Met,
    /// The certified case that destroyed its key; `None` of a key that nothing here knows.
    pub case: Option<CaseId>,
}

/// Whether a reading is due at `now`. The first is a day after the database was first asked.
///
/// # Errors
/// [`DbError`].
pub async fn is_due(db: &KeyDb, now: Timestamp) -> Result<bool, DbError> {
    let failed = on("look for the last sweep");
    let last = sqlx::query("SELECT at FROM stray_sweep WHERE id = 1").fetch_optional(db.pool()).await.map_err(&failed)?;
    match last {
        Some(row) => Ok(Timestamp(row.try_get(0).map_err(&failed)?).plus(EVERY) <= now),
        None => done(db, now, 0, 0).await.map(|()| false),
    }
}

/// Notes what the reading that began at `began` came to.
///
/// # Errors
/// [`DbError`].
pub async fn done(db: &KeyDb, began: Timestamp, blocks: u64, strays: u64) -> Result<(), DbError> {
    let failed = on("note a sweep");
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut tx = db.begin_write().await?;
    sqlx::query(
        "INSERT INTO stray_sweep (id, at, blocks, strays) VALUES (1, $1, $2, $3) \
         ON CONFLICT (id) DO UPDATE SET at = excluded.at, blocks = excluded.blocks, strays = excluded.strays",
    )
    .bind(began.0)
    .bind(count(blocks))
    .bind(count(strays))
    .execute(&mut *tx)
    .await
    .map_err(&failed)?;
    if strays > 0 {
        let event = AuditEvent {
            actor: ACTOR.to_owned(),
            action: "strays.found",
            object: "sealed blocks".to_owned(),
            outcome: AuditOutcome::Success,
            detail: json!({ "read": blocks, "found": strays }),
        };
        audit::append(&mut tx, began, &event).await?;
    }
    tx.commit().await.map_err(&failed)
}

/// The strays among `met`, which was read after `began`. A block whose case is still open, or was certified since, is none: the case
/// itself looks for it.
///
/// # Errors
/// [`DbError`].
pub async fn among(db: &KeyDb, met: &[Met], began: Timestamp) -> Result<Vec<Stray>, DbError> {
    let keys: HashSet<KeyId> = met.iter().map(|met| met.key).collect();
    let missing = restore::without_key(db, &keys).await?;
    let fates = fates(db, &missing, began).await?;
    let stray = |met: &Met| {
        let case = match fates.get(&met.key) {
            None => None,
            Some(Fate::Closed(case)) => Some(case.clone()),
            Some(Fate::Open) => return None,
        };
        Some(Stray { met: met.clone(), case })
    };
    Ok(met.iter().filter(|met| missing.contains(&met.key)).filter_map(stray).collect())
}

enum Fate {
    /// Its case looks for it, or the row is in a state that needs nobody.
    Open,
    Closed(CaseId),
}

async fn fates(db: &KeyDb, keys: &HashSet<KeyId>, began: Timestamp) -> Result<HashMap<KeyId, Fate>, DbError> {
    let failed = on("look for the cases of keys");
    let keys: Vec<KeyId> = keys.iter().copied().collect();
    let mut fates = HashMap::new();
    for chunk in keys.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "SELECT s.key_id, s.state, c.case_id, c.state, c.certified_at FROM subject s \
                       LEFT JOIN erasure_case c ON c.case_id = s.case_id WHERE s.key_id IN "
            .to_owned();
        push_tuples(&mut sql, 1, chunk.len(), 1);
        // Placeholders alone were added.
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        for key in chunk {
            query = query.bind(key.0.to_vec());
        }
        for row in query.fetch_all(db.pool()).await.map_err(&failed)? {
            let key = KeyId(blob(&row, "key_id")?.unwrap_or_default());
            let subject: String = row.try_get(1).map_err(&failed)?;
            let case: Option<String> = row.try_get(2).map_err(&failed)?;
            let certified: Option<i64> = row.try_get(4).map_err(&failed)?;
            let case =
                case.map(|case| CaseId::parse(&case).map_err(|_| DbError::fixed("look for the cases of keys", "bad_id"))).transpose()?;
            let fate = match (case, certified) {
                (Some(case), Some(at)) if subject == "destroyed" && at < began.0 => Fate::Closed(case),
                // Destroyed by a case that this database, being restored, does not have: nobody looks for it.
                (None, _) if subject == "destroyed" => continue,
                _ => Fate::Open,
            };
            fates.insert(key, fate);
        }
    }
    Ok(fates)
}
