//! Cases in the key database: rows, events, subjects. Append-only but for the summary row.

use serde::Serialize;
use serde_json::Value;
use sqlx::Row;
use sqlx::any::AnyRow;
use sunder_schemas::class::Family;
use sunder_schemas::ids::{CaseId, SellerId};
use sunder_schemas::time::{Period, Timestamp};

use super::machine::{Event, State, Step};
use super::scope::Listed;
use super::{CaseError, Reason};
use crate::keydb::{DbError, KeyDb, Write, on};
use crate::store::Extent;

/// Subjects in one row of `case_scope`. Chosen: about 150 KB of JSON, so that 10,000 subjects are 10 rows.
const SUBJECTS_PER_ROW: usize = 1000;

/// The summary of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its id.
    pub id: CaseId,
    /// Whose customers.
    pub seller: SellerId,
    /// Why.
    pub reason: Reason,
    /// How much of a subject goes.
    pub extent: Extent,
    /// What kind of business data goes, in a case over what is too old to be kept.
    pub kind: Option<Family>,
    /// `listed`, `all`, `due` or `aged`.
    pub scope: String,
    /// Who asked.
    pub requested_by: String,
    /// Whether removal is to be forced.
    pub forced: bool,
    /// When it was opened, by the policy clock.
    pub opened_at: Timestamp,
    /// When it is due, by the policy clock.
    pub due_at: Timestamp,
    /// How far it is.
    pub state: State,
    /// Number of subjects; 0 until scoped.
    pub subjects: u64,
    /// What it waits for or what is wrong.
    pub blocked_by: Option<String>,
    /// Whether that is something wrong, which somebody has to mend.
    pub is_blocked: bool,
    /// First layer, by the policy clock.
    pub keys_destroyed_at: Option<Timestamp>,
    /// Second layer, by the policy clock.
    pub verified_at: Option<Timestamp>,
    /// By the policy clock.
    pub certified_at: Option<Timestamp>,
    /// The last day of what is named as residual, of what has one.
    pub residual_until: Option<Timestamp>,
}

/// Within this time of its opening no copy that can be reached online may be left of what a case erases: 90 days after notice (Amazon's
/// Data Protection Policy; controls, table of constants).
const ONLINE_DUE: Period = Period::days(90);

/// A case in the JSON shape of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Its id.
    pub id: CaseId,
    /// How far it is.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// Whose customers.
    pub seller: SellerId,
    /// Number of subjects.
    pub subjects: u64,
    /// How much of a subject goes.
    pub extent: Extent,
    /// What kind of business data goes, where that alone is what the case is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Family>,
    /// What happened before goes: ISO 8601, policy clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<String>,
    /// ISO 8601, policy clock.
    pub opened_at: String,
    /// ISO 8601, policy clock.
    pub due_at: String,
    /// By when no copy that can be reached online may be left: ISO 8601, policy clock.
    pub online_due_at: String,
    /// Whether one of the two days passed without it.
    pub late: bool,
    /// ISO 8601, policy clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_destroyed_at: Option<String>,
    /// ISO 8601, policy clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<String>,
    /// ISO 8601, policy clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certified_at: Option<String>,
    /// What it waits for or what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_by: Option<String>,
    /// Whether that is something wrong, which somebody has to mend; else it passes by itself.
    pub blocked: bool,
    /// Until when the log should have removed what is tombstoned, ISO 8601, system clock; left out in lists and once it is verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone_by: Option<String>,
    /// What happened, with its evidence; left out in lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<ShownEvent>,
}

/// One event as the command line shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownEvent {
    /// Number within the case.
    pub seq: i64,
    /// What happened.
    pub step: &'static str,
    /// ISO 8601, policy clock.
    pub at: String,
    /// ISO 8601, system clock.
    pub at_system: String,
    /// What it rests on.
    pub evidence: Value,
}

impl Record {
    /// Whether the seller leaves: its own keys go with everything it had.
    #[must_use]
    pub fn is_offboarding(&self) -> bool {
        self.reason == Reason::SellerOffboarding && self.scope == "all" && self.extent == Extent::WithBusinessData
    }

    /// Whether the case is not certified by its due day, or something that it named can be reached online after the last day for that.
    #[must_use]
    pub fn is_late(&self, now: Timestamp) -> bool {
        let online_due = self.opened_at.plus(ONLINE_DUE);
        let is_left_online = now > online_due && self.residual_until.is_some_and(|until| until > online_due);
        is_left_online || (now > self.due_at && self.certified_at.is_none())
    }

    /// As the command line shows it at `now`, with `events` where a single case is asked for.
    #[must_use]
    pub fn shown(&self, events: &[Event], now: Timestamp) -> Shown {
        let iso = |at: Option<Timestamp>| at.map(Timestamp::to_iso);
        Shown {
            id: self.id.clone(),
            state: self.state,
            reason: self.reason,
            seller: self.seller.clone(),
            subjects: self.subjects,
            extent: self.extent,
            kind: self.kind,
            older_than: iso(self.extent.older_than()),
            opened_at: self.opened_at.to_iso(),
            due_at: self.due_at.to_iso(),
            online_due_at: self.opened_at.plus(ONLINE_DUE).to_iso(),
            late: self.is_late(now),
            keys_destroyed_at: iso(self.keys_destroyed_at),
            verified_at: iso(self.verified_at),
            certified_at: iso(self.certified_at),
            blocked_by: self.blocked_by.clone(),
            blocked: self.is_blocked,
            gone_by: if self.verified_at.is_some() { None } else { super::machine::gone_by(events).map(Timestamp::to_iso) },
            events: events
                .iter()
                .map(|event| ShownEvent {
                    seq: event.seq,
                    step: event.step.as_str(),
                    at: event.at.to_iso(),
                    at_system: event.at_system.to_iso(),
                    evidence: event.evidence.clone(),
                })
                .collect(),
        }
    }
}

/// Writes a new case; `false` where the same request is open already.
pub(super) async fn insert(tx: &mut Write, record: &Record, digest: &str) -> Result<bool, CaseError> {
    let done = sqlx::query(
        "INSERT INTO erasure_case (case_id, seller, reason, extent, scope, request_digest, requested_by, forced, opened_at, due_at, state, subjects, kind, older_than) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12, $13) ON CONFLICT DO NOTHING",
    )
    .bind(record.id.as_str().to_owned())
    .bind(record.seller.as_str().to_owned())
    .bind(record.reason.as_str())
    .bind(record.extent.as_str())
    .bind(record.scope.clone())
    .bind(digest.to_owned())
    .bind(record.requested_by.clone())
    .bind(i64::from(record.forced))
    .bind(record.opened_at.0)
    .bind(record.due_at.0)
    .bind(record.state.as_str())
    .bind(record.kind.map(Family::as_str))
    .bind(record.extent.older_than().map(|at| at.0))
    .execute(&mut **tx)
    .await
    .map_err(on("open a case"))?;
    Ok(done.rows_affected() == 1)
}

/// The open case of the same request.
pub(super) async fn open_case_of(tx: &mut Write, digest: &str) -> Result<Option<CaseId>, CaseError> {
    let row = sqlx::query("SELECT case_id FROM erasure_case WHERE request_digest = $1 AND state <> 'certified'")
        .bind(digest.to_owned())
        .fetch_optional(&mut **tx)
        .await
        .map_err(on("look for an open case"))?;
    row.map(|row| case_id(&row, 0)).transpose()
}

/// Has the removal of an open case forced from now on.
pub(super) async fn force(tx: &mut Write, case: &CaseId) -> Result<(), CaseError> {
    sqlx::query("UPDATE erasure_case SET forced = 1 WHERE case_id = $1")
        .bind(case.as_str().to_owned())
        .execute(&mut **tx)
        .await
        .map_err(on("force a case"))?;
    Ok(())
}

/// Whether a case has begun to force the log and not written down that it ended: topic settings may be changed.
///
/// # Errors
/// [`CaseError::Db`].
pub async fn has_open_roll(db: &KeyDb) -> Result<bool, CaseError> {
    has_roll_since(db, Timestamp(i64::MAX)).await
}

/// Whether a roll is open, or ended at `since` or later by the system's clock: of two processes that roll for one case the first to end
/// writes the event, and the other sets its topic back a moment after.
///
/// # Errors
/// [`CaseError::Db`].
pub(super) async fn has_roll_since(db: &KeyDb, since: Timestamp) -> Result<bool, CaseError> {
    let failed = on("look for a forced removal");
    let row = sqlx::query(
        "SELECT COUNT(*) FROM case_event e WHERE (e.step = $1 AND NOT EXISTS \
         (SELECT 1 FROM case_event l WHERE l.case_id = e.case_id AND l.seq > e.seq)) OR (e.step = $2 AND e.at_system >= $3)",
    )
    .bind(Step::RollIntended.as_str())
    .bind(Step::Rolled.as_str())
    .bind(since.0)
    .fetch_one(db.pool())
    .await
    .map_err(&failed)?;
    Ok(row.try_get::<i64, _>(0).map_err(&failed)? > 0)
}

/// Appends `event` and moves the summary row. [`CaseError::Contended`] where another process appended meanwhile.
pub(super) async fn append(tx: &mut Write, case: &CaseId, event: &Event) -> Result<(), CaseError> {
    let done = sqlx::query(
        "INSERT INTO case_event (case_id, seq, step, at, at_system, evidence) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(case.as_str().to_owned())
    .bind(event.seq)
    .bind(event.step.as_str())
    .bind(event.at.0)
    .bind(event.at_system.0)
    .bind(event.evidence.to_string())
    .execute(&mut **tx)
    .await
    .map_err(on("append to a case"))?;
    if done.rows_affected() != 1 {
        return Err(CaseError::Contended);
    }
    let at_step = |step: Step| (event.step == step).then_some(event.at.0);
    let subjects = if event.step == Step::Scoped { event.evidence.get("subjects").and_then(Value::as_i64) } else { None };
    sqlx::query(
        "UPDATE erasure_case SET state = $1, blocked_by = NULL, is_blocked = 0, subjects = COALESCE($3, subjects), \
         keys_destroyed_at = COALESCE($4, keys_destroyed_at), verified_at = COALESCE($5, verified_at), \
         certified_at = COALESCE($6, certified_at), residual_until = COALESCE($7, residual_until) WHERE case_id = $2",
    )
    .bind(event.step.state().as_str())
    .bind(case.as_str().to_owned())
    .bind(subjects)
    .bind(at_step(Step::KeysDestroyed))
    .bind(at_step(Step::Verified))
    .bind(at_step(Step::Certified))
    .bind(residual_until(event).map(|until| until.0))
    .execute(&mut **tx)
    .await
    .map_err(on("move a case"))?;
    Ok(())
}

/// The last day of what a verification named as residual, of what has one.
fn residual_until(event: &Event) -> Option<Timestamp> {
    let residual = event.evidence.get("residual").filter(|_| event.step == Step::Verified)?.as_array()?;
    residual.iter().filter_map(|each| Timestamp::parse(each.get("until")?.as_str()?).ok()).max()
}

/// Notes what a case waits for, and whether that is something wrong, which somebody has to mend, unless it has moved past event `last`
/// meanwhile; returns whether it was noted.
pub(super) async fn set_blocked(db: &KeyDb, case: &CaseId, last: i64, why: &str, is_blocked: bool) -> Result<bool, CaseError> {
    let failed = on("note what a case waits for");
    let mut tx = db.begin_write().await?;
    let done = sqlx::query(
        "UPDATE erasure_case SET blocked_by = $1, is_blocked = $4 WHERE case_id = $2 \
         AND NOT EXISTS (SELECT 1 FROM case_event WHERE case_id = $2 AND seq > $3)",
    )
    .bind(why.to_owned())
    .bind(case.as_str().to_owned())
    .bind(last)
    .bind(i64::from(is_blocked))
    .execute(&mut *tx)
    .await
    .map_err(&failed)?;
    tx.commit().await.map_err(&failed)?;
    Ok(done.rows_affected() == 1)
}

/// Notes of a certified case that what it erased came back (`Some`), or is proved gone again; returns whether that is new.
pub(super) async fn set_came_back(tx: &mut Write, case: &CaseId, why: Option<&str>) -> Result<bool, CaseError> {
    let done = sqlx::query(
        "UPDATE erasure_case SET blocked_by = $1, is_blocked = $2 WHERE case_id = $3 AND state = 'certified' AND is_blocked <> $2",
    )
    .bind(why.map(str::to_owned))
    .bind(i64::from(why.is_some()))
    .bind(case.as_str().to_owned())
    .execute(&mut **tx)
    .await
    .map_err(on("reopen a case"))?;
    Ok(done.rows_affected() == 1)
}

/// Certified cases of which something came back, oldest first.
pub(super) async fn came_back(db: &KeyDb) -> Result<Vec<CaseId>, CaseError> {
    let rows = sqlx::query("SELECT case_id FROM erasure_case WHERE state = 'certified' AND is_blocked = 1 ORDER BY opened_at, case_id")
        .fetch_all(db.pool())
        .await
        .map_err(on("read reopened cases"))?;
    rows.iter().map(|row| case_id(row, 0)).collect()
}

/// Replaces the list of subjects.
pub(super) async fn write_subjects(tx: &mut Write, case: &CaseId, subjects: &[Listed]) -> Result<(), CaseError> {
    sqlx::query("DELETE FROM case_scope WHERE case_id = $1")
        .bind(case.as_str().to_owned())
        .execute(&mut **tx)
        .await
        .map_err(on("write a case's subjects"))?;
    for (chunk, part) in (0i64..).zip(subjects.chunks(SUBJECTS_PER_ROW)) {
        let text = serde_json::to_string(part).map_err(|_| DbError::fixed("write a case's subjects", "not_json"))?;
        sqlx::query("INSERT INTO case_scope (case_id, chunk, subjects) VALUES ($1, $2, $3)")
            .bind(case.as_str().to_owned())
            .bind(chunk)
            .bind(text)
            .execute(&mut **tx)
            .await
            .map_err(on("write a case's subjects"))?;
    }
    Ok(())
}

/// The subjects of a case.
pub(super) async fn subjects(db: &KeyDb, case: &CaseId) -> Result<Vec<Listed>, CaseError> {
    let rows = sqlx::query("SELECT subjects FROM case_scope WHERE case_id = $1 ORDER BY chunk")
        .bind(case.as_str().to_owned())
        .fetch_all(db.pool())
        .await
        .map_err(on("read a case's subjects"))?;
    let mut all = Vec::new();
    for row in rows {
        let text: String = row.try_get(0).map_err(on("read a case's subjects"))?;
        let part: Vec<Listed> = serde_json::from_str(&text).map_err(|_| DbError::fixed("read a case's subjects", "not_json"))?;
        all.extend(part);
    }
    Ok(all)
}

/// The events of a case, in order.
pub(super) async fn events(db: &KeyDb, case: &CaseId) -> Result<Vec<Event>, CaseError> {
    let rows = sqlx::query("SELECT seq, step, at, at_system, evidence FROM case_event WHERE case_id = $1 ORDER BY seq")
        .bind(case.as_str().to_owned())
        .fetch_all(db.pool())
        .await
        .map_err(on("read a case's events"))?;
    rows.iter().map(event).collect()
}

fn event(row: &AnyRow) -> Result<Event, CaseError> {
    let failed = on("read a case's events");
    let broken = |code| DbError::fixed("read a case's events", code);
    let step: String = row.try_get(1).map_err(&failed)?;
    let evidence: String = row.try_get(4).map_err(&failed)?;
    Ok(Event {
        seq: row.try_get(0).map_err(&failed)?,
        step: Step::parse(&step).ok_or_else(|| broken("unknown_step"))?,
        at: Timestamp(row.try_get(2).map_err(&failed)?),
        at_system: Timestamp(row.try_get(3).map_err(&failed)?),
        evidence: serde_json::from_str(&evidence).map_err(|_| broken("not_json"))?,
    })
}

/// Which cases to read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which<'a> {
    /// One.
    One(&'a CaseId),
    /// All, oldest first.
    All,
    /// Those that are late at this instant by the policy clock, as [`Record::is_late`] says.
    Late(Timestamp),
}

/// Summary rows.
pub(super) async fn records(db: &KeyDb, which: Which<'_>) -> Result<Vec<Record>, CaseError> {
    let (id, kind, now) = match which {
        Which::One(id) => (id.as_str(), 0i64, Timestamp(0)),
        Which::All => ("", 1, Timestamp(0)),
        Which::Late(now) => ("", 2, now),
    };
    let rows = sqlx::query(
        "SELECT case_id, seller, reason, extent, scope, requested_by, forced, opened_at, due_at, state, subjects, blocked_by, \
         keys_destroyed_at, verified_at, certified_at, is_blocked, kind, older_than, residual_until FROM erasure_case \
         WHERE case_id = $1 OR $2 = 1 OR ($2 = 2 AND ((state <> 'certified' AND due_at < $3) \
         OR (residual_until > opened_at + $4 AND opened_at + $4 < $3))) ORDER BY opened_at, case_id",
    )
    .bind(id.to_owned())
    .bind(kind)
    .bind(now.0)
    .bind(ONLINE_DUE.millis_max())
    .fetch_all(db.pool())
    .await
    .map_err(on("read cases"))?;
    rows.iter().map(record).collect()
}

/// The summary of one case.
pub(super) async fn one(db: &KeyDb, case: &CaseId) -> Result<Record, CaseError> {
    records(db, Which::One(case)).await?.pop().ok_or(CaseError::NotFound)
}

/// All cases as they are at `now` by the policy clock, oldest first.
///
/// # Errors
/// [`CaseError::Db`].
pub async fn list(db: &KeyDb, now: Timestamp) -> Result<Vec<Shown>, CaseError> {
    Ok(records(db, Which::All).await?.iter().map(|record| record.shown(&[], now)).collect())
}

/// The cases that are late at `now` by the policy clock, oldest first.
///
/// # Errors
/// [`CaseError::Db`].
pub async fn late(db: &KeyDb, now: Timestamp) -> Result<Vec<Shown>, CaseError> {
    Ok(records(db, Which::Late(now)).await?.iter().map(|record| record.shown(&[], now)).collect())
}

/// One case with its events, as it is at `now` by the policy clock.
///
/// # Errors
/// [`CaseError::NotFound`].
pub async fn show(db: &KeyDb, case: &CaseId, now: Timestamp) -> Result<Shown, CaseError> {
    let record = one(db, case).await?;
    Ok(record.shown(&events(db, case).await?, now))
}

/// Ids of the cases that are not certified, oldest first.
pub(super) async fn open_cases(db: &KeyDb) -> Result<Vec<CaseId>, CaseError> {
    let rows = sqlx::query("SELECT case_id FROM erasure_case WHERE state <> 'certified' ORDER BY opened_at, case_id")
        .fetch_all(db.pool())
        .await
        .map_err(on("read open cases"))?;
    rows.iter().map(|row| case_id(row, 0)).collect()
}

fn case_id(row: &AnyRow, column: usize) -> Result<CaseId, CaseError> {
    let text: String = row.try_get(column).map_err(on("read a case id"))?;
    Ok(CaseId::parse(&text).map_err(|_| DbError::fixed("read a case id", "bad_id"))?)
}

fn record(row: &AnyRow) -> Result<Record, CaseError> {
    let failed = on("read a case");
    let broken = |code| DbError::fixed("read a case", code);
    let text = |column: usize| -> Result<String, CaseError> { Ok(row.try_get(column).map_err(on("read a case"))?) };
    let at = |column: usize| -> Result<Option<Timestamp>, CaseError> {
        Ok(row.try_get::<Option<i64>, _>(column).map_err(on("read a case"))?.map(Timestamp))
    };
    let state = text(9)?;
    let subjects: i64 = row.try_get(10).map_err(&failed)?;
    let kind: Option<String> = row.try_get(16).map_err(&failed)?;
    Ok(Record {
        id: case_id(row, 0)?,
        seller: SellerId::parse(&text(1)?).map_err(|_| broken("bad_seller"))?,
        reason: Reason::parse(&text(2)?).ok_or_else(|| broken("unknown_reason"))?,
        extent: match text(3)?.as_str() {
            "personal" => Extent::Personal,
            "with_business_data" => Extent::WithBusinessData,
            "older_than" => Extent::OlderThan(at(17)?.ok_or_else(|| broken("no_time"))?),
            _ => return Err(broken("unknown_extent").into()),
        },
        kind: kind.map(|kind| kind.parse().map_err(|_| broken("unknown_kind"))).transpose()?,
        scope: text(4)?,
        requested_by: text(5)?,
        forced: row.try_get::<i64, _>(6).map_err(&failed)? != 0,
        opened_at: at(7)?.ok_or_else(|| broken("no_time"))?,
        due_at: at(8)?.ok_or_else(|| broken("no_time"))?,
        state: State::ALL.into_iter().find(|s| s.as_str() == state).ok_or_else(|| broken("unknown_state"))?,
        subjects: u64::try_from(subjects).map_err(|_| broken("bad_count"))?,
        blocked_by: row.try_get(11).map_err(&failed)?,
        keys_destroyed_at: at(12)?,
        verified_at: at(13)?,
        certified_at: at(14)?,
        is_blocked: row.try_get::<i64, _>(15).map_err(&failed)? != 0,
        residual_until: at(18)?,
    })
}
