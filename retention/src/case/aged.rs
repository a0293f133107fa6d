//! The sweep over business data: what is older than `retention.non_personal` by event time leaves, by a case of its own a seller and
//! family.
//!
//! Found by reading the log and the stores, not from a list of what should be there: a row that a restored backup brought back is found
//! as well. A reading of everything is dear, so it is done once a day of the policy clock; the margin of the policy is two days.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row;
use sunder_schemas::class::Family;
use sunder_schemas::ids::{CaseId, SellerId};
use sunder_schemas::time::{Period, Timestamp};

use super::engine::{Engine, SUBJECTS_PER_REQUEST_MAX, request_digest};
use super::{CaseError, Reason, scope};
use crate::keydb::on;
use crate::store::{Aged, Extent};

/// How much later the cutoff must be than at the last sweep. Chosen: what may stay 18 months need not be looked for more often than once
/// a day.
const SWEEP_EVERY: Period = Period::days(1);

impl Engine {
    /// Opens a case for each seller and family with business data that is older than it may be kept at `now`, and returns them.
    ///
    /// # Errors
    /// [`CaseError`]: the sweep is done again; cases opened before it stay open.
    pub(super) async fn sweep_business(&self, now: Timestamp) -> Result<Vec<CaseId>, CaseError> {
        let cutoff = self.parts.keys.business_cutoff(now);
        if self.swept_to().await?.is_some_and(|swept| swept.plus(SWEEP_EVERY) > cutoff) {
            return Ok(Vec::new());
        }
        let mut cases = Vec::new();
        for ((seller, family), aged) in self.find_aged(cutoff).await? {
            for chunk in aged.chunks(SUBJECTS_PER_REQUEST_MAX) {
                let tokens: Vec<_> = chunk.iter().map(|aged| aged.token).collect();
                let subjects = scope::by_token(&self.parts.db, &seller, &tokens).await?;
                let mut record = self.new_record(&seller, Reason::Expiry, Extent::OlderThan(cutoff), scope::AGED, now)?;
                record.kind = Some(family);
                let digest = request_digest(&record, &subjects, Some(&cutoff.to_iso()));
                cases.push(self.open(record, &subjects, &digest).await?);
            }
        }
        self.note_swept(cutoff).await?;
        Ok(cases)
    }

    /// What is older than `cutoff` in the log and in the stores, by seller and family.
    async fn find_aged(&self, cutoff: Timestamp) -> Result<BTreeMap<(SellerId, Family), Vec<Aged>>, CaseError> {
        let mut found: BTreeSet<Aged> = BTreeSet::new();
        for store in &self.parts.forget {
            found.extend(store.aged(cutoff).await?);
        }
        found.extend(self.parts.log.aged(cutoff).await?);
        let mut by_family: BTreeMap<(SellerId, Family), Vec<Aged>> = BTreeMap::new();
        for aged in found {
            by_family.entry((aged.seller.clone(), aged.family)).or_default().push(aged);
        }
        Ok(by_family)
    }

    async fn swept_to(&self) -> Result<Option<Timestamp>, CaseError> {
        let failed = on("read how far business data was swept");
        let row =
            sqlx::query("SELECT cutoff FROM business_sweep WHERE id = 1").fetch_optional(self.parts.db.pool()).await.map_err(&failed)?;
        Ok(row.map(|row| row.try_get(0).map(Timestamp)).transpose().map_err(&failed)?)
    }

    async fn note_swept(&self, cutoff: Timestamp) -> Result<(), CaseError> {
        let failed = on("note how far business data was swept");
        let mut tx = self.parts.db.begin_write().await?;
        sqlx::query(
            "INSERT INTO business_sweep (id, cutoff) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET cutoff = excluded.cutoff \
             WHERE business_sweep.cutoff < excluded.cutoff",
        )
        .bind(cutoff.0)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(())
    }
}
