//! The engine: opens cases and works them to their certificate.
//!
//! It does what [`machine::decide`](super::machine::decide) says, one event at a time. Two engines may work at once, in two processes:
//! each event has its number as primary key, so the second finds the step done and goes on from there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use sunder_schemas::ids::{CaseId, SellerId};
use sunder_schemas::note::NoteSigner;
use sunder_schemas::time::{Clock, Timestamp};
use tokio::sync::watch;

use super::CaseError;
use super::certify::About;
use super::held::Holds;
use super::keys::Keys;
use super::machine::{Event, LOOK_AGAIN, Progress, State, Step};
use super::probe::{Moment, Probe};
use super::restore;
use super::scope::{self, EraseRequest, Goes, Listed, Plan, Reason, Scope};
use super::store::{self, Record};
use crate::hold;
use crate::inventory::Copy;
use crate::keydb::{KeyDb, Write, on};
use crate::sellers;
use crate::store::{EventLog, Extent, Forget, OutboxRecord, Prove, Subject};
use crate::{lease, ledger};

/// Fingerprints and tokens of one request at the most. Chosen: a list of that size is opened as several cases.
pub(super) const SUBJECTS_PER_REQUEST_MAX: usize = 100_000;

/// What an engine works with.
pub struct Parts {
    /// The key database, which keeps the cases.
    pub db: KeyDb,
    /// The keys.
    pub keys: Arc<dyn Keys>,
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// Stores that delete.
    pub forget: Vec<Arc<dyn Forget>>,
    /// Stores that are read again: the log and all of `forget`.
    pub prove: Vec<Arc<dyn Prove>>,
    /// The policy clock.
    pub clock: Arc<dyn Clock>,
    /// The system's clock, never moved: waits and the second date of each event.
    pub system_clock: Arc<dyn Clock>,
    /// Signs certificates and log heads.
    pub signer: Arc<NoteSigner>,
    /// What certificates say of this installation.
    pub about: About,
}

/// Works cases. See the module.
pub struct Engine {
    pub(super) parts: Parts,
    /// When each case that did not hold may be read again; forgotten at a restart, since it only saves work.
    pub(super) paces: Mutex<HashMap<CaseId, Pace>>,
    /// When this engine first saw each case wait for the producers, by [`Clock::elapsed`]; a restart begins the wait anew.
    pub(super) drains: Mutex<HashMap<CaseId, Duration>>,
    /// The ledger epoch up to which this engine has rewritten the key tables: one rewriting serves every case before it.
    pub(super) rewritten: Mutex<i64>,
    /// Told of every point a case passes; none but in tests.
    pub(super) probe: Option<Arc<dyn Probe>>,
    /// Keeps what the law wants kept; without it a case over held fields is blocked.
    pub(super) holds: Option<Arc<dyn Holds>>,
    /// Copies that somebody declared, for certificates.
    pub(super) copies: Vec<Copy>,
}

/// How often a case that does not hold yet is read again: a scan reads every store, and the cleaner may take hours.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// The first time it did not hold, by [`Clock::elapsed`].
    since: Duration,
    /// Not before this instant.
    next: Duration,
    /// What was said then.
    last: Progress,
    /// When it was last looked whether something stops the next reading.
    looked: Duration,
    /// What was said of that.
    meanwhile: Option<Progress>,
}

/// Shortest pause between two scans of one case. Chosen: the cleaner of the test profile needs seconds.
const SCAN_AGAIN_MIN: Duration = Duration::from_secs(1);
/// Longest pause between two scans of one case. Chosen: small against the six hours of the production profile.
const SCAN_AGAIN_MAX: Duration = Duration::from_secs(300);
/// How often it is looked, between two scans, whether something stops the next one. Chosen: what stops a case is named within a minute;
/// a look is a few calls to each broker.
const LOOK_EVERY: Duration = Duration::from_secs(15);

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({} stores)", self.parts.prove.len())
    }
}

/// What an action came to.
pub(super) enum Did {
    /// It is done, with this evidence.
    Event(Step, Value),
    /// It is done and its event is written already, in the action's own transaction.
    Written,
    /// It cannot be done yet or at all.
    Not(Progress),
}

impl Engine {
    /// An engine over `parts`.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            paces: Mutex::default(),
            drains: Mutex::default(),
            rewritten: Mutex::new(0),
            probe: None,
            holds: None,
            copies: Vec::new(),
        }
    }

    /// The same engine with `holds`, which keeps held fields before their order's key goes.
    #[must_use]
    pub fn with_holds(mut self, holds: Arc<dyn Holds>) -> Self {
        self.holds = Some(holds);
        self
    }

    /// The same engine with `copies` that no scan reaches, named on certificates until they are past.
    #[must_use]
    pub fn with_copies(mut self, copies: Vec<Copy>) -> Self {
        self.copies = copies;
        self
    }

    /// The same engine with `probe` told of every point a case passes.
    #[must_use]
    pub fn with_probe(mut self, probe: Arc<dyn Probe>) -> Self {
        self.probe = Some(probe);
        self
    }

    /// What was last said of `case`, while it is not to be read again yet.
    pub(super) fn paused(&self, case: &CaseId) -> Option<Progress> {
        let now = self.parts.system_clock.elapsed();
        let paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.get(case).filter(|pace| now < pace.next).map(|pace| pace.meanwhile.as_ref().unwrap_or(&pace.last).clone())
    }

    /// Whether it is time to look what stops the next reading of `case`; notes that it is looked.
    pub(super) fn is_to_look(&self, case: &CaseId) -> bool {
        let now = self.parts.system_clock.elapsed();
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pace) = paces.get_mut(case).filter(|pace| now.saturating_sub(pace.looked) >= LOOK_EVERY) else { return false };
        pace.looked = now;
        true
    }

    /// Has `stops`, or what the reading said where nothing does, said of `case` until it is read or looked at again.
    pub(super) fn say_meanwhile(&self, case: &CaseId, stops: Option<Progress>) -> Option<Progress> {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = paces.get_mut(case)?;
        pace.meanwhile.clone_from(&stops);
        Some(stops.unwrap_or_else(|| pace.last.clone()))
    }

    /// Notes that `case` was read and did not hold: the longer that goes on, the longer the pause, a quarter of the time so far.
    pub(super) fn pause(&self, case: &CaseId, say: impl FnOnce(Duration) -> Progress) -> Progress {
        self.pause_at_most(case, SCAN_AGAIN_MAX, say)
    }

    /// The same, and no longer than `most`.
    pub(super) fn pause_at_most(&self, case: &CaseId, most: Duration, say: impl FnOnce(Duration) -> Progress) -> Progress {
        let now = self.parts.system_clock.elapsed();
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let since = paces.get(case).map_or(now, |pace| pace.since);
        let pause = (now.saturating_sub(since) / 4).min(most).clamp(SCAN_AGAIN_MIN, SCAN_AGAIN_MAX);
        let next = now.saturating_add(pause);
        let last = say(pause);
        paces.insert(case.clone(), Pace { since, next, last: last.clone(), looked: now, meanwhile: None });
        last
    }

    /// Forgets the pause of `case`: it held, or was mended by a further round.
    pub(super) fn unpause(&self, case: &CaseId) {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner).remove(case);
    }

    /// Opens a case for `request`; the same request while its case is open gives that case.
    ///
    /// # Errors
    /// [`CaseError`]: no case was opened.
    pub async fn request(&self, request: &EraseRequest) -> Result<CaseId, CaseError> {
        let (name, subjects) = self.resolve(request).await?;
        let now = self.parts.clock.now();
        let mut record = self.new_record(&request.seller, request.reason, request.extent(), name, now)?;
        record.requested_by.clone_from(&request.requested_by);
        record.forced = request.now;
        let digest = request_digest(&record, &subjects, None);
        let case = self.open(record, &subjects, &digest).await?;
        self.tell().await;
        Ok(case)
    }

    /// Has the log know what the key database has committed, so that no restored backup takes it back. Where the log does not answer it is
    /// told later: no case counts its keys as gone before.
    pub(super) async fn tell(&self) {
        if let Err(error) = self.parts.keys.publish(&*self.parts.log).await {
            tracing::warn!(%error, "the log does not know of the newest changes yet; it is told again");
        }
    }

    /// What `request` would do; nothing is written.
    ///
    /// # Errors
    /// [`CaseError`].
    pub async fn dry_run(&self, request: &EraseRequest) -> Result<Plan, CaseError> {
        if sellers::state(&self.parts.db, &request.seller).await?.is_none() {
            // Naming its orders would make keys for it: nothing is held of it, and that is all there is to say.
            let listed = if let Scope::Orders(orders) = &request.scope { orders.len() } else { 0 };
            return Ok(self.plan(request, listed, 0));
        }
        let listed = self.listed(request).await?;
        let live = scope::live_keys(&self.parts.db, &listed).await?;
        let subjects: Vec<Subject> = listed.iter().map(|listed| listed.subject(&request.seller)).collect();
        let mut plan = self.plan(request, subjects.len(), live);
        for store in &self.parts.forget {
            for (table, rows) in store.count(&subjects, request.extent()).await? {
                plan.goes.push(Goes { store: store.name().to_owned(), table, rows });
            }
        }
        Ok(plan)
    }

    /// The subjects that `request` comes to at this moment; nothing is written.
    ///
    /// # Errors
    /// [`CaseError`].
    pub async fn listed(&self, request: &EraseRequest) -> Result<Vec<Listed>, CaseError> {
        let (name, subjects) = self.resolve(request).await?;
        if name == "all" { scope::all_of(&self.parts.db, &request.seller, request.extent(), i64::MAX).await } else { Ok(subjects) }
    }

    fn plan(&self, request: &EraseRequest, subjects: usize, live: u64) -> Plan {
        let total = u64::try_from(subjects).unwrap_or(u64::MAX);
        Plan {
            seller: request.seller.clone(),
            reason: request.reason,
            extent: request.extent(),
            subjects: total,
            with_live_keys: live,
            without_keys: total.saturating_sub(live),
            goes: Vec::new(),
            stores: self.parts.prove.iter().map(|store| store.name().to_owned()).collect(),
            due_at: self.due_at(request.reason, self.parts.clock.now()).to_iso(),
        }
    }

    async fn resolve(&self, request: &EraseRequest) -> Result<(&'static str, Vec<Listed>), CaseError> {
        match &request.scope {
            Scope::All => Ok(("all", Vec::new())),
            Scope::Entities(tokens) => Ok(("listed", scope::by_token(&self.parts.db, &request.seller, tokens).await?)),
            Scope::Orders(orders) if orders.is_empty() => Err(CaseError::Request("no order is named")),
            Scope::Orders(orders) if orders.len() > SUBJECTS_PER_REQUEST_MAX => {
                Err(CaseError::Request("too many orders in one request: 100000 at the most"))
            }
            Scope::Orders(orders) => {
                let known = self.parts.keys.identify(&request.seller, orders).await?;
                let mut subjects: Vec<_> =
                    known.into_iter().map(|(fingerprint, token)| Listed { fingerprint, token, keys: Vec::new() }).collect();
                subjects.sort();
                subjects.dedup();
                Ok(("listed", scope::with_keys(&self.parts.db, subjects).await?))
            }
        }
    }

    pub(super) fn due_at(&self, reason: Reason, now: Timestamp) -> Timestamp {
        let about = &self.parts.about;
        now.plus(if reason == Reason::Expiry { about.expiry_due } else { about.request_due })
    }

    pub(super) fn new_record(
        &self,
        seller: &SellerId,
        reason: Reason,
        extent: Extent,
        scope: &str,
        now: Timestamp,
    ) -> Result<Record, CaseError> {
        let mut random = [0u8; 8];
        SystemRandom::new().fill(&mut random).map_err(|_| CaseError::Keys("no randomness".to_owned()))?;
        let id = format!("case-{}-{}", now.to_utc().format("%Y%m%d"), hex::encode(random));
        let id = CaseId::parse(&id).map_err(|_| CaseError::Request("the clock is outside the calendar"))?;
        Ok(Record {
            id,
            seller: seller.clone(),
            reason,
            extent,
            kind: None,
            scope: scope.to_owned(),
            requested_by: self.parts.about.operator.clone(),
            forced: false,
            opened_at: now,
            due_at: self.due_at(reason, now),
            state: State::Requested,
            subjects: 0,
            blocked_by: None,
            is_blocked: false,
            keys_destroyed_at: None,
            verified_at: None,
            certified_at: None,
            residual_until: None,
        })
    }

    pub(super) async fn open(&self, record: Record, subjects: &[Listed], digest: &str) -> Result<CaseId, CaseError> {
        self.reach(&record.id, "open", Moment::Before).await;
        let epoch = lease::ledger_epoch(&self.parts.db).await?;
        let mut tx = self.parts.db.begin_write().await?;
        if record.is_offboarding() {
            // With the seller locked no hold is made between this look and the commit, and none afterwards.
            ledger::lock_seller(&mut tx, &record.seller).await?;
            if !hold::active_ids(&mut tx, &record.seller).await?.is_empty() {
                // They are sealed under keys that this seller's own key wraps: they must have ended before it goes.
                return Err(CaseError::Request("the seller has legal holds that have not ended; see `sunder hold list`"));
            }
        }
        if !store::insert(&mut tx, &record, digest).await? {
            let open = store::open_case_of(&mut tx, digest).await?.ok_or(CaseError::Contended)?;
            if record.forced {
                // What waits for the log's bound may be asked for at once.
                store::force(&mut tx, &open).await?;
                tx.commit().await.map_err(on("force a case"))?;
            }
            return Ok(open);
        }
        store::write_subjects(&mut tx, &record.id, subjects).await?;
        let evidence = json!({
            "reason": record.reason, "extent": record.extent, "scope": record.scope, "requested_by": record.requested_by, "listed": subjects.len(),
            scope::OPENED_AT_EPOCH: epoch,
        });
        let event = self.event(&[], Step::Requested, evidence);
        self.append(&mut tx, &record, &event).await?;
        for (key, request) in restore::request_records(&record, subjects) {
            enqueue(&mut tx, "privacy.requests", &key, &request).await?;
        }
        self.reach(&record.id, "open", Moment::Within("written")).await;
        tx.commit().await.map_err(on("open a case"))?;
        self.reach(&record.id, "open", Moment::After).await;
        tracing::info!(case_id = %record.id, seller = %record.seller, reason = record.reason.as_str(), "case opened");
        Ok(record.id)
    }

    /// Sweeps and works cases until `stop` turns true or its sender is gone. Errors are logged and tried again: a case is never given
    /// up.
    pub async fn work(&self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let result = match self.sweep(self.parts.clock.now()).await {
                Ok(_) => self.advance_all().await,
                Err(error) => Err(error),
            };
            let mut again = LOOK_AGAIN;
            match result {
                Ok(cases) => {
                    let mut is_blocked = false;
                    for (case_id, progress) in cases {
                        match progress {
                            Progress::Blocked { why } => {
                                tracing::warn!(%case_id, why, "case is blocked");
                                is_blocked = true;
                            }
                            Progress::Waiting { again: soon, .. } => again = again.min(soon),
                            Progress::Done => {}
                        }
                    }
                    if is_blocked {
                        again = BLOCKED_AGAIN;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cases could not be worked; trying again");
                    again = BLOCKED_AGAIN;
                }
            }
            if let Ok(Err(_gone)) = tokio::time::timeout(again, stop.changed()).await {
                return;
            }
        }
    }

    pub(super) async fn record(&self, case: &CaseId) -> Result<Record, CaseError> {
        store::one(&self.parts.db, case).await
    }

    pub(super) fn event(&self, before: &[Event], step: Step, evidence: Value) -> Event {
        let seq = before.last().map_or(1, |event| event.seq + 1);
        Event { seq, step, at: self.parts.clock.now(), at_system: self.parts.system_clock.now(), evidence }
    }

    /// Appends an event with its audit entry.
    pub(super) async fn append(&self, tx: &mut Write, record: &Record, event: &Event) -> Result<(), CaseError> {
        store::append(tx, &record.id, event).await?;
        let detail = json!({"seller": record.seller, "seq": event.seq});
        self.parts.keys.audit(tx, &record.id, event.step.as_str(), event.at, &detail).await?;
        tracing::info!(case_id = %record.id, step = event.step.as_str(), seq = event.seq, "case moved");
        Ok(())
    }

    pub(super) async fn record_event(&self, record: &Record, before: &[Event], step: Step, evidence: Value) -> Result<(), CaseError> {
        let event = self.event(before, step, evidence);
        let mut tx = self.parts.db.begin_write().await?;
        self.append(&mut tx, record, &event).await?;
        tx.commit().await.map_err(on("append to a case"))?;
        Ok(())
    }
}

/// How long a blocked case waits before it is tried again. Chosen: a person has to act; a scan may have been costly.
const BLOCKED_AGAIN: Duration = Duration::from_secs(5);

/// What makes two requests the same.
pub(super) fn request_digest(record: &Record, subjects: &[Listed], unique: Option<&str>) -> String {
    let fingerprints: Vec<_> = subjects.iter().map(|subject| subject.fingerprint).collect();
    sunder_schemas::certificate::digest(&json!({
        "seller": record.seller, "reason": record.reason, "extent": record.extent, "scope": record.scope, "subjects": fingerprints, "unique": unique,
    }))
}

/// Puts a record into the outbox, in the transaction of what it tells.
pub(super) async fn enqueue(tx: &mut Write, topic: &str, key: &str, value: &Value) -> Result<(), CaseError> {
    let record = OutboxRecord { id: 0, topic: topic.to_owned(), key: key.to_owned(), value: Some(value.to_string()) };
    sqlx::query("INSERT INTO outbox (topic, record_key, record_value) VALUES ($1, $2, $3)")
        .bind(record.topic)
        .bind(record.key)
        .bind(record.value)
        .execute(&mut **tx)
        .await
        .map_err(on("write to the outbox"))?;
    Ok(())
}
