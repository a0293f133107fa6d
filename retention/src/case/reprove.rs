//! Closed cases proved again, all in one reading: for when the set of replicas has changed since, or a store was restored.
//!
//! A replica that was away for longer than tombstones are kept brings its values back for good, and nothing but a reading of that replica
//! shows it (kafka-confirmed, claim 3). What is found is deleted and tombstoned once more where it lies; the next call shows that it went.
//! The certificate stands: its key is gone since, and it names the replicas that were read for it.

use serde::Serialize;
use serde_json::{Value, json};
use sunder_schemas::ids::CaseId;

use super::CaseError;
use super::engine::Engine;
use super::machine::{Progress, State};
use super::pass::{Ask, CASES_PER_READING};
use super::steps::Cleaner;
use super::store::{self, Record};
use super::verify::{self, Verdict};
use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::keydb::on;

/// What one more proof of a closed case came to: a contract of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reproved {
    /// The case.
    pub case: CaseId,
    /// Whether nothing was found and nothing opened, with all controls in place.
    pub holds: bool,
    /// What does not hold, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether what was found was deleted and tombstoned again just now.
    pub mended: bool,
}

impl Engine {
    /// Proves every closed case again, oldest first; open ones are proved before they close in any case.
    ///
    /// # Errors
    /// [`CaseError`]: nothing is known of the rest then.
    pub async fn verify_all(&self) -> Result<Vec<Reproved>, CaseError> {
        let mut closed = Vec::new();
        for case in super::list(&self.parts.db, self.parts.clock.now()).await?.into_iter().filter(|case| case.state == State::Certified) {
            closed.push(self.record(&case.id).await?);
        }
        closed.sort_by(|a, b| (a.opened_at, &a.id).cmp(&(b.opened_at, &b.id)));
        self.prove_all(&closed).await
    }

    async fn prove_all(&self, closed: &[Record]) -> Result<Vec<Reproved>, CaseError> {
        let mut proved = Vec::with_capacity(closed.len());
        for records in closed.chunks(CASES_PER_READING) {
            let read = self.prove_again(records).await;
            for record in records {
                self.unplant(&record.id).await;
            }
            proved.extend(read?);
        }
        Ok(proved)
    }

    /// Reopens a certified case of which `blocks` came back: it is proved again until that holds. Its certificate stands, since it says
    /// what was so on its day.
    ///
    /// # Errors
    /// [`CaseError`]: it is not reopened.
    pub async fn reopen(&self, case: &CaseId, blocks: u64) -> Result<(), CaseError> {
        let why = format!("{blocks} blocks under its destroyed keys came back; they are deleted again and it is proved anew");
        self.note_came_back(case, "case.reopened", Some(&why), json!({ "blocks": blocks })).await
    }

    /// Proves the reopened cases again; returns those that do not hold yet, with what is in the way.
    ///
    /// # Errors
    /// [`CaseError`]: nothing is known of the rest then.
    pub async fn prove_reopened(&self) -> Result<Vec<(CaseId, String)>, CaseError> {
        let (mut standing, mut due) = (Vec::new(), Vec::new());
        for case in store::came_back(&self.parts.db).await? {
            match self.paused(&case) {
                Some(Progress::Blocked { why } | Progress::Waiting { why, .. }) => standing.push((case, why)),
                Some(Progress::Done) | None => due.push(self.record(&case).await?),
            }
        }
        for proved in self.prove_all(&due).await? {
            if let Some(why) = proved.reason {
                self.pause(&proved.case, |_| Progress::Blocked { why: why.clone() });
                standing.push((proved.case, why));
            } else {
                self.unpause(&proved.case);
                self.note_came_back(&proved.case, "case.proved_again", None, json!({})).await?;
                tracing::info!(case_id = %proved.case, "a reopened case is proved again");
            }
        }
        Ok(standing)
    }

    async fn note_came_back(&self, case: &CaseId, action: &'static str, why: Option<&str>, detail: Value) -> Result<(), CaseError> {
        let mut tx = self.parts.db.begin_write().await?;
        if store::set_came_back(&mut tx, case, why).await? {
            let object = case.to_string();
            let event = AuditEvent { actor: object.clone(), action, object, outcome: AuditOutcome::Success, detail };
            audit::append(&mut tx, self.parts.clock.now(), &event).await?;
        }
        tx.commit().await.map_err(on(action))?;
        Ok(())
    }

    async fn prove_again(&self, records: &[Record]) -> Result<Vec<Reproved>, CaseError> {
        for record in records {
            self.plant(record).await?;
        }
        let barrier = self.parts.log.barrier().await?;
        let asks: Vec<Ask<'_>> = records.iter().map(|record| Ask { record, barrier: &barrier, cleaner: Cleaner::Passed }).collect();
        let mut proved = Vec::with_capacity(records.len());
        for (record, seen) in records.iter().zip(self.look(&asks).await) {
            let verdict = match seen {
                Ok((verdict, _)) => verdict,
                // What cannot be read says nothing of this case, and the others may hold.
                Err(CaseError::Store(error)) => Verdict::Blocked(error.to_string()),
                Err(error) => return Err(error),
            };
            let mended = matches!(verdict, Verdict::Late { .. });
            if mended {
                self.delete_again(record).await?;
            }
            let reason = verify::reason(record, verdict).map(|why| if mended { format!("{why}; deleted again") } else { why });
            proved.push(Reproved { case: record.id.clone(), holds: reason.is_none(), reason, mended });
        }
        Ok(proved)
    }

    /// Deletes in every store and tombstones on the log, where it lies, whatever is left of a closed case.
    async fn delete_again(&self, record: &Record) -> Result<(), CaseError> {
        let (_, subjects) = self.subjects(record).await?;
        self.parts.log.tombstone_found(record.id.as_str(), &subjects, record.extent).await?;
        for store in &self.parts.forget {
            store.forget(&subjects, record.extent).await?;
        }
        tracing::warn!(case_id = %record.id, "values of a closed case came back and were deleted again");
        Ok(())
    }
}
