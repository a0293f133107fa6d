//! The sweep: everything whose deadline has come, as one case a seller; and business data that is too old (`aged`).

use sqlx::Row;
use sunder_schemas::ids::CaseId;
use sunder_schemas::time::Timestamp;

use super::engine::{Engine, request_digest};
use super::{CaseError, Reason};
use crate::keydb::on;
use crate::store::Extent;

impl Engine {
    /// Opens one expiry case for each seller with subjects due at `now` by the policy clock, and those for business data that is too
    /// old, and returns them. A seller whose last expiry case has not destroyed its keys yet is left for the next sweep: its subjects are in that case.
    ///
    /// # Errors
    /// [`CaseError`]: cases opened before it stay open.
    pub async fn sweep(&self, now: Timestamp) -> Result<Vec<CaseId>, CaseError> {
        let failed = on("look for due subjects");
        let mut cases = Vec::new();
        for seller in self.parts.keys.due(now).await? {
            let row = sqlx::query(
                "SELECT COUNT(*) FROM erasure_case WHERE seller = $1 AND reason = 'expiry' AND scope = 'due' AND state IN ('requested', 'scoped')",
            )
            .bind(seller.as_str().to_owned())
            .fetch_one(self.parts.db.pool())
            .await
            .map_err(&failed)?;
            if row.try_get::<i64, _>(0).map_err(&failed)? > 0 {
                continue;
            }
            let record = self.new_record(&seller, Reason::Expiry, Extent::Personal, "due", now)?;
            // Two sweeps of the same instant are one; later ones are cases of their own, since the first may wait for hours.
            let digest = request_digest(&record, &[], Some(&now.to_iso()));
            cases.push(self.open(record, &[], &digest).await?);
        }
        match self.sweep_business(now).await {
            Ok(aged) => cases.extend(aged),
            // A store that cannot be read must not keep keys from being destroyed; the next sweep tries again.
            Err(CaseError::Store(error)) => tracing::warn!(%error, "business data could not be swept; trying again"),
            Err(error) => return Err(error),
        }
        Ok(cases)
    }

    /// How many live subjects are due at `now` and not yet in a case: 0 once a sweep and its cases have destroyed their keys.
    ///
    /// # Errors
    /// [`CaseError::Db`].
    pub async fn due(&self, now: Timestamp) -> Result<u64, CaseError> {
        let failed = on("count due subjects");
        let row = sqlx::query("SELECT COUNT(*) FROM subject WHERE state = 'live' AND deadline <= $1")
            .bind(now.0)
            .fetch_one(self.parts.db.pool())
            .await
            .map_err(&failed)?;
        let count: i64 = row.try_get(0).map_err(&failed)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }
}
