//! The actions of a case, each safe to do again: the same arguments after a crash give the same end.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::Duration;

use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use sunder_schemas::certificate::{Iso, Remains};
use sunder_schemas::ids::CaseId;
use sunder_schemas::time::Period;

use super::engine::{Did, Engine};
use super::held::KeptHolds;
use super::machine::{self, Action, Event, LOOK_AGAIN, LOOK_SOON, Progress, Step};
use super::pass::Ask;
use super::probe::Moment;
use super::scope::{self, Listed};
use super::store::{self, Record};
use super::verify::{self, Case, Evidence, ScanAnswer, Seen, Verdict, VerifyReport};
use super::{CaseError, certify, certlog, control};
use crate::keydb::on;
use crate::keyfiles;
use crate::lease;
use crate::store::{Extent, Hindrance, Mark, Subject};

/// How often what is found above its tombstone is tombstoned again before a person must look. Chosen: each round is a full scan; a
/// record in flight can be late once, not many times.
const ROUNDS_MAX: u64 = 5;
/// How long after controls were planted they may be planted anew the first time; each further time waits twice as long. Chosen: longer
/// than any reading of a small installation takes.
const PLANT_ANEW_AFTER: Period = Period::Millis(10_000);
/// Doublings of that wait at the most: about a day, well below the 7 days for which raw topics keep a control.
const PLANT_DOUBLINGS_MAX: u64 = 13;
/// How long another process may need to set its topic back once a roll has ended for its case. Chosen: the longest roll of one topic,
/// and the spreading of settings.
const ROLL_ENDS_WITHIN: Period = Period::Millis(120_000);

/// Whether controls that must be gone count. A case awaits the log's cleaner; a later verification plants controls of its own, which the
/// cleaner may take hours to pass, and what it proves does not rest on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cleaner {
    Awaited,
    Passed,
}

/// Something is not yet so; it is looked at again soon.
pub(super) fn waiting_for(why: impl Into<String>) -> Progress {
    Progress::Waiting { why: why.into(), again: LOOK_AGAIN }
}

fn waiting(why: impl Into<String>) -> Did {
    Did::Not(waiting_for(why))
}

/// The ledger epoch when the case was opened; 0, so that nothing is missed, where its first event does not tell.
fn opened_at_epoch(events: &[Event]) -> i64 {
    events.first().and_then(|opened| opened.evidence.get(scope::OPENED_AT_EPOCH)).and_then(Value::as_i64).unwrap_or(0)
}

fn marks(marks: &[Mark]) -> Value {
    json!({ "marks": marks })
}

/// How long after the log's bound a case is late: the bound knows of no queue before the cleaner. Chosen: several turns of a cleaner
/// that looks every 15 s (`log.cleaner.backoff.ms`).
const LATE_AFTER: Period = Period::Millis(30_000);

/// What waits for the log's cleaner.
struct Waits<'a> {
    count: u64,
    places: &'a [String],
    hindrances: &'a [Hindrance],
}

impl Engine {
    pub(super) async fn perform(&self, record: &Record, events: &[Event], action: Action) -> Result<Did, CaseError> {
        Ok(match action {
            Action::Scope => self.scope(record, events).await?,
            Action::DestroyKeys => self.destroy_keys(record, events).await?,
            Action::AwaitCaches { epoch } => self.await_caches(record, epoch).await?,
            Action::Tombstone => Did::Event(Step::Tombstoned, marks(&self.tombstone(record).await?)),
            Action::ReadRawEnds => Did::Event(Step::RawEnds, marks(&self.parts.log.raw_ends().await?)),
            Action::AwaitSplit { ends } => {
                if !self.parts.log.split_past(&ends).await? {
                    return Ok(waiting("the splitter has not committed past the raw topics' end yet"));
                }
                self.split_past(record, events).await?
            }
            Action::TombstoneAfter => self.tombstone_after(record, events).await?,
            Action::PlantControls => self.plant_controls(record).await?,
            Action::Barrier => Did::Event(Step::Drained, self.barrier().await?),
            Action::CleanSinks { marks } => self.clean_sinks(record, events, &marks).await?,
            Action::TombstoneAgain => {
                self.parts.keys.rewrite().await?;
                self.reach(&record.id, "tombstone_again", Moment::Within("rewritten")).await;
                if events.last().is_some_and(|event| event.evidence.get(machine::CONTROLS_LOST).is_some()) {
                    // Below the next barrier, or no reading would meet them.
                    self.plant(record).await?;
                }
                let (_, subjects) = self.subjects(record).await?;
                let log = &self.parts.log;
                Did::Event(Step::TombstonedAgain, marks(&log.tombstone_found(record.id.as_str(), &subjects, record.extent).await?))
            }
            Action::BarrierAgain => Did::Event(Step::BarrierAgain, self.barrier().await?),
            Action::IntendRoll => Did::Event(Step::RollIntended, json!({})),
            Action::Roll => self.roll(record).await?,
            Action::Verify { barrier } => self.verify_step(record, events, &barrier).await?,
            Action::Certify => self.certify(record, events).await?,
            Action::Finished => Did::Not(Progress::Done),
        })
    }

    async fn scope(&self, record: &Record, events: &[Event]) -> Result<Did, CaseError> {
        let db = &self.parts.db;
        if record.is_offboarding() {
            // Before anything is listed, so that no poller adds to it.
            self.parts.keys.remove_seller(&record.seller).await?;
            self.reach(&record.id, "scope", Moment::Within("seller removed")).await;
        }
        let mut subjects = match record.scope.as_str() {
            "all" => scope::all_of(db, &record.seller, record.extent, opened_at_epoch(events)).await?,
            "due" => scope::due_of(db, &record.seller, record.opened_at, &record.id).await?,
            _ => scope::with_keys(db, store::subjects(db, &record.id).await?).await?,
        };
        if record.is_offboarding() {
            let more = self.unlisted(record, &subjects).await?;
            subjects.extend(more);
        }
        let evidence = json!({
            "subjects": subjects.len(),
            "with_keys": subjects.iter().filter(|subject| !subject.keys.is_empty()).count(),
            "keys": subjects.iter().map(|subject| subject.keys.len()).sum::<usize>(),
            "subjects_sha256": subjects_digest(&subjects),
        });
        let event = self.event(events, Step::Scoped, evidence);
        let mut tx = db.begin_write().await?;
        // The event first: where another process was faster, its list stands.
        self.append(&mut tx, record, &event).await?;
        store::write_subjects(&mut tx, &record.id, &subjects).await?;
        self.reach(&record.id, "scope", Moment::Within("written")).await;
        tx.commit().await.map_err(on("scope a case"))?;
        Ok(Did::Written)
    }

    async fn destroy_keys(&self, record: &Record, events: &[Event]) -> Result<Did, CaseError> {
        // Keys minted since the scope was taken belong to it as well: the list may grow until the ledger row exists, never shrink.
        let mut listed = store::subjects(&self.parts.db, &record.id).await?;
        if matches!(record.extent, Extent::OlderThan(_)) {
            // Age alone keeps the others out, and what is younger may come again: the ledger has no word on them.
            listed = scope::in_ledger(&self.parts.db, &listed).await?;
        }
        let kept = match self.keep_held(record, &listed).await? {
            KeptHolds::All(kept) => kept,
            KeptHolds::Not(waits) => return Ok(waits),
        };
        self.reach(&record.id, "destroy_keys", Moment::Within("held")).await;
        let mut tx = self.parts.db.begin_write().await?;
        let epoch = self.parts.keys.destroy(&mut tx, record, &listed, self.parts.clock.now()).await?;
        // With the destruction the seller is locked: no hold is made any more before the commit.
        if Self::is_held_anew(&mut tx, record, &listed, &kept).await? {
            return Err(CaseError::Contended);
        }
        if record.is_offboarding() {
            // Its tokens stand in the list by now; nothing needs the keys that made them any more.
            self.parts.keys.destroy_seller_keys(&mut tx, &record.seller).await?;
        }
        let event = self.event(events, Step::KeysDestroyed, json!({ "epoch": epoch, "seller_keys": record.is_offboarding() }));
        self.append(&mut tx, record, &event).await?;
        self.reach(&record.id, "destroy_keys", Moment::Within("written")).await;
        tx.commit().await.map_err(on("destroy keys"))?;
        Ok(Did::Written)
    }

    /// What the log holds of the seller besides `listed`: inventory is no data subject's and so in no ledger, but it goes with its seller.
    async fn unlisted(&self, record: &Record, listed: &[Listed]) -> Result<Vec<Listed>, CaseError> {
        let known: HashSet<_> = listed.iter().map(|subject| subject.token).collect();
        let entities = self.parts.log.entities(&record.seller).await?;
        let unknown = entities.into_iter().filter(|token| !known.contains(token));
        Ok(unknown.map(|token| Listed { fingerprint: scope::entity_fingerprint(&record.seller, token), token, keys: Vec::new() }).collect())
    }

    /// The splitter is past raw's end. What it still wrote of a seller that leaves joins the list, now that nothing more can come.
    async fn split_past(&self, record: &Record, events: &[Event]) -> Result<Did, CaseError> {
        if !record.is_offboarding() {
            return Ok(Did::Event(Step::SplitPast, json!({})));
        }
        let mut listed = store::subjects(&self.parts.db, &record.id).await?;
        let more = self.unlisted(record, &listed).await?;
        let event = self.event(events, Step::SplitPast, json!({ "added": more.len() }));
        let mut tx = self.parts.db.begin_write().await?;
        // Rows are locked in the order of every destruction, the audit chain last: two cases never wait for each other crosswise.
        if !more.is_empty() {
            self.parts.keys.destroy(&mut tx, record, &more, self.parts.clock.now()).await?;
            listed.extend(more);
            store::write_subjects(&mut tx, &record.id, &listed).await?;
        }
        self.append(&mut tx, record, &event).await?;
        self.reach(&record.id, "await_split", Moment::Within("written")).await;
        tx.commit().await.map_err(on("scope a case"))?;
        Ok(Did::Written)
    }

    async fn roll(&self, record: &Record) -> Result<Did, CaseError> {
        let (_, subjects) = self.subjects(record).await?;
        let is_gone = self.parts.log.roll(record.id.as_str(), &subjects, record.extent).await?;
        self.unpause(&record.id);
        Ok(Did::Event(Step::Rolled, json!({ "all_gone": is_gone })))
    }

    /// Drift that counts, and how many settings a forced removal has lowered for the time it runs, whichever process runs it.
    pub(super) async fn drift(&self) -> Result<(Vec<String>, usize), CaseError> {
        let drift = self.parts.log.drift().await?;
        let since = self.parts.system_clock.now().minus(ROLL_ENDS_WITHIN);
        if drift.iter().any(|drifted| drifted.is_lowered) && store::has_roll_since(&self.parts.db, since).await? {
            let (lowered, rest): (Vec<_>, Vec<_>) = drift.into_iter().partition(|drifted| drifted.is_lowered);
            return Ok((rest.into_iter().map(|drifted| drifted.what).collect(), lowered.len()));
        }
        Ok((drift.into_iter().map(|drifted| drifted.what).collect(), 0))
    }

    async fn await_caches(&self, record: &Record, epoch: i64) -> Result<Did, CaseError> {
        // The revocations must be out before anyone can be expected to have heard of them.
        self.parts.keys.publish(&*self.parts.log).await?;
        self.reach(&record.id, "await_caches", Moment::Within("published")).await;
        if !self.parts.keys.acknowledged(epoch).await? {
            let why = format!("not every process has acknowledged ledger epoch {epoch} yet, and its lease still runs");
            return Ok(Did::Not(Progress::Waiting { why, again: LOOK_SOON }));
        }
        Ok(Did::Event(Step::CachesRevoked, json!({ "epoch": epoch })))
    }

    /// Rewrites the key tables, unless that was done since the keys of `epoch` went.
    async fn rewrite_up_to(&self, epoch: i64) -> Result<(), CaseError> {
        if *self.rewritten.lock().unwrap_or_else(PoisonError::into_inner) >= epoch {
            return Ok(());
        }
        // Read before: what is destroyed while the tables are rewritten may be copied.
        let done = lease::ledger_epoch(&self.parts.db).await?;
        self.parts.keys.rewrite().await?;
        let mut rewritten = self.rewritten.lock().unwrap_or_else(PoisonError::into_inner);
        *rewritten = done.max(*rewritten);
        Ok(())
    }

    /// The subjects with the keys they have now: a key minted between scoping and destruction is found here.
    pub(super) async fn subjects(&self, record: &Record) -> Result<(Vec<Listed>, Vec<Subject>), CaseError> {
        let listed = scope::with_keys(&self.parts.db, store::subjects(&self.parts.db, &record.id).await?).await?;
        let subjects = listed.iter().map(|subject| subject.subject(&record.seller)).collect();
        Ok((listed, subjects))
    }

    async fn tombstone(&self, record: &Record) -> Result<Vec<Mark>, CaseError> {
        let (_, subjects) = self.subjects(record).await?;
        Ok(self.parts.log.tombstone(record.id.as_str(), &subjects, record.extent).await?)
    }

    /// Waits out what a producer may still hold, by a clock that no correction moves, then tombstones again. Meanwhile the key tables are
    /// rewritten: by now nobody uses the keys whose bytes go with it, and nothing that is to be quick waits for it.
    async fn tombstone_after(&self, record: &Record, events: &[Event]) -> Result<Did, CaseError> {
        let timeout = self.parts.log.message_timeout();
        let now = self.parts.system_clock.elapsed();
        let since = *self.drains.lock().unwrap_or_else(PoisonError::into_inner).entry(record.id.clone()).or_insert(now);
        self.rewrite_up_to(machine::epoch(events)?).await?;
        let now = self.parts.system_clock.elapsed();
        let left = timeout.saturating_sub(now.saturating_sub(since));
        if !left.is_zero() {
            let why = "a producer may still hold a record from before the keys were destroyed".to_owned();
            return Ok(Did::Not(Progress::Waiting { why, again: left }));
        }
        let marks = marks(&self.tombstone(record).await?);
        self.drains.lock().unwrap_or_else(PoisonError::into_inner).remove(&record.id);
        Ok(Did::Event(Step::SecondTombstones, marks))
    }

    async fn plant_controls(&self, record: &Record) -> Result<Did, CaseError> {
        let control = self.plant(record).await?;
        let stores: Vec<&str> = self.parts.prove.iter().map(|store| store.name()).collect();
        Ok(Did::Event(Step::ControlsPlanted, json!({ "key": control.key, "stores": stores })))
    }

    async fn clean_sinks(&self, record: &Record, events: &[Event], wanted: &[Mark]) -> Result<Did, CaseError> {
        if let Some(waits) = self.awaits_replay().await? {
            return Ok(Did::Not(waits));
        }
        for store in &self.parts.forget {
            if !store.caught_up(wanted).await? {
                let why = format!("store {} has not applied the log up to the barrier yet", store.name());
                // An open transaction keeps records from the stores as it does from the cleaner.
                return Ok(Did::Not(match self.hindered_by(wanted).await? {
                    Some(hindered) => Progress::Blocked { why: format!("{why}: {hindered}") },
                    None => waiting_for(why),
                }));
            }
        }
        let (_, subjects) = self.subjects(record).await?;
        let mut rows = serde_json::Map::new();
        for store in &self.parts.forget {
            rows.insert(store.name().to_owned(), json!(store.forget(&subjects, record.extent).await?));
            self.reach(&record.id, "clean_sinks", Moment::Within("a store is clean")).await;
        }
        let step = if machine::rounds(events) == 0 { Step::SinksClean } else { Step::SinksCleanAgain };
        Ok(Did::Event(step, json!({ "rows_deleted": rows })))
    }

    /// Sets the barrier, and says until when the log should have removed what lies below it.
    async fn barrier(&self) -> Result<Value, CaseError> {
        let marks = self.parts.log.barrier().await?;
        let bound = self.parts.log.removal_bound().await?;
        let bound = Period::Millis(i64::try_from(bound.as_millis()).unwrap_or(i64::MAX));
        Ok(json!({ "marks": marks, "gone_by": self.parts.system_clock.now().plus(bound).to_iso() }))
    }

    /// What is said of a case that waits for the log's cleaner. Once it is late, removal is forced; what is left then is named.
    async fn awaits_cleaner(&self, record: &Record, events: &[Event], waits: &Waits<'_>) -> Result<Did, CaseError> {
        let Waits { count, places, hindrances } = waits;
        let gone_by = machine::gone_by(events);
        let by = gone_by.map_or_else(String::new, |gone_by| format!(", gone by {}", gone_by.to_iso()));
        let because = if hindrances.is_empty() { String::new() } else { format!(": {}", verify::said(hindrances)) };
        let why = format!("{count} tombstoned blocks wait for the log's cleaner{by}{because}");
        let left = gone_by.map(|gone_by| gone_by.plus(LATE_AFTER).0.saturating_sub(self.parts.system_clock.now().0));
        if let Some(left) = left.filter(|left| *left <= 0) {
            return self.late(record, &why, places, -left).await;
        }
        // Not before it is late, and not long after.
        let soon = left.and_then(|left| u64::try_from(left).ok()).map_or(Duration::MAX, Duration::from_millis);
        Ok(Did::Not(self.pause_at_most(&record.id, soon, |again| {
            if hindrances.is_empty() { Progress::Waiting { why, again } } else { Progress::Blocked { why } }
        })))
    }

    /// A case that the log's cleaner should have passed: forced once, then named with its likely cause until it is mended.
    async fn late(&self, record: &Record, why: &str, places: &[String], by_ms: i64) -> Result<Did, CaseError> {
        let first = places.first().map_or("", String::as_str);
        let why = format!(
            "late: {why}; first {first}: the cleaner has not passed there, so the partition is uncleanable (a damaged segment), or that \
             broker's cleaner is dead or busy"
        );
        tracing::warn!(case_id = %record.id, late_ms = by_ms, place = first, "a case is late against its log's bound");
        if record.forced {
            return Ok(Did::Not(self.pause(&record.id, |_| Progress::Blocked { why })));
        }
        let mut tx = self.parts.db.begin_write().await?;
        store::force(&mut tx, &record.id).await?;
        tx.commit().await.map_err(on("force a case"))?;
        Ok(Did::Not(waiting_for(format!("{why}; removal is forced now"))))
    }

    /// A copy that is being built beside a store is in no reading: nothing is gone while its builder lives.
    async fn awaits_replay(&self) -> Result<Option<Progress>, CaseError> {
        let lives = lease::live_with_role(&self.parts.db, lease::REPLAY).await? > 0;
        Ok(lives.then(|| waiting_for("a replay is running, and the copy that it builds is in no reading")))
    }

    /// What stops every reading, whatever it would see.
    pub(super) async fn stopped_by(&self) -> Result<Option<Progress>, CaseError> {
        let (drift, lowered) = self.drift().await?;
        Ok(match lowered {
            _ if !drift.is_empty() => Some(Progress::Blocked { why: verify::drifted(&drift) }),
            0 => self.awaits_replay().await?,
            _ => Some(waiting_for("a forced removal has topic settings lowered while it runs")),
        })
    }

    /// What is said of a case that is not to be read again yet. What would stop its reading is said meanwhile, not hours later.
    pub(super) async fn rests(&self, record: &Record, barrier: &[Mark]) -> Result<Option<Progress>, CaseError> {
        let Some(last) = self.paused(&record.id) else { return Ok(None) };
        if !self.is_to_look(&record.id) {
            return Ok(Some(last));
        }
        let stops = match self.stopped_by().await? {
            Some(blocked @ Progress::Blocked { .. }) => Some(blocked),
            Some(_) => None,
            None => self.hindered_by(barrier).await?.map(|why| Progress::Blocked { why }),
        };
        Ok(self.say_meanwhile(&record.id, stops).or(Some(last)))
    }

    /// What stops the reading up to `barrier`.
    pub(super) async fn hindered_by(&self, barrier: &[Mark]) -> Result<Option<String>, CaseError> {
        Ok(verify::stopping(&self.parts.log.hindrances(barrier).await?))
    }

    async fn verify_step(&self, record: &Record, events: &[Event], barrier: &[Mark]) -> Result<Did, CaseError> {
        if let Some(last) = self.rests(record, barrier).await? {
            return Ok(Did::Not(last));
        }
        if let Some(progress) = self.stopped_by().await? {
            return Ok(Did::Not(progress));
        }
        if let Some(why) = self.hindered_by(barrier).await? {
            return Ok(Did::Not(Progress::Blocked { why }));
        }
        let ask = Ask { record, barrier, cleaner: Cleaner::Awaited };
        let seen = self.look(&[ask]).await.pop().unwrap_or(Err(CaseError::Request("nothing was read")));
        self.answer(record, events, seen).await
    }

    /// What a case does about what was seen.
    pub(super) async fn answer(
        &self,
        record: &Record,
        events: &[Event],
        seen: Result<(Verdict, Seen), CaseError>,
    ) -> Result<Did, CaseError> {
        let blocked = |why: String| Ok(Did::Not(self.pause(&record.id, |_| Progress::Blocked { why })));
        match seen {
            Ok((Verdict::Holds(evidence), _)) => {
                self.unpause(&record.id);
                let value = serde_json::to_value(&*evidence).map_err(|_| CaseError::Request("the evidence has no JSON form"))?;
                Ok(Did::Event(Step::Verified, value))
            }
            Ok((Verdict::Void(why), _)) if self.may_plant_anew(events) => {
                self.unpause(&record.id);
                tracing::warn!(case_id = %record.id, why, "controls are planted anew");
                Ok(Did::Event(Step::FoundAgain, json!({ "count": 0, "places": [], machine::CONTROLS_LOST: why })))
            }
            Ok((Verdict::Late { count, places, .. }, _)) if machine::rounds(events) - machine::planted(events).0 < ROUNDS_MAX => {
                self.unpause(&record.id);
                Ok(Did::Event(Step::FoundAgain, json!({ "count": count, "places": places })))
            }
            Ok((Verdict::Late { count, places, held_by }, _)) => blocked(format!(
                "{count} blocks of erased subjects are still found after {ROUNDS_MAX} rounds, {}",
                verify::where_found(&places, held_by.as_deref())
            )),
            Ok((Verdict::Cleaning { count, places }, seen)) => {
                self.awaits_cleaner(record, events, &Waits { count, places: &places, hindrances: &seen.hindrances }).await
            }
            Ok((Verdict::Void(why) | Verdict::Blocked(why), _)) => blocked(why),
            Err(CaseError::Store(error)) => blocked(error.to_string()),
            Err(error) => Err(error),
        }
    }

    /// Whether controls that a store lost may be planted anew: soon, since a topic may have been emptied on purpose or a control have reached
    /// the end of its topic's period, and ever more seldom, since a store that never finds them is broken.
    fn may_plant_anew(&self, events: &[Event]) -> bool {
        let (times, last) = machine::planted(events);
        let wait = PLANT_ANEW_AFTER.millis_max().saturating_mul(1 << times.min(PLANT_DOUBLINGS_MAX));
        last.is_some_and(|last| self.parts.system_clock.now().0.saturating_sub(last.0) >= wait)
    }

    /// Backups of the key database are outside every scan; they are named until the last of them is gone. Where its files are a store of
    /// their own, that store names them.
    pub(super) fn key_backups(&self, record: &Record) -> Option<Remains> {
        if self.parts.prove.iter().any(|store| store.name() == keyfiles::STORE) {
            return None;
        }
        let backups = self.parts.keys.backups();
        let destroyed = record.keys_destroyed_at?;
        (backups.millis_max() > 0).then(|| Remains {
            what: "wrapped keys in backups and old files of the key database".to_owned(),
            until: Some(Iso(destroyed.plus(backups))),
        })
    }

    /// Verifies a case again, at any time: plants its controls, sets a fresh barrier, reads everything.
    ///
    /// # Errors
    /// [`CaseError`]: nothing is known then.
    pub async fn verify(&self, case: &CaseId) -> Result<VerifyReport, CaseError> {
        let record = self.record(case).await?;
        self.plant(&record).await?;
        let barrier = self.parts.log.barrier().await?;
        let ask = Ask { record: &record, barrier: &barrier, cleaner: Cleaner::Passed };
        let (verdict, seen) = self.look(&[ask]).await.pop().unwrap_or(Err(CaseError::Request("nothing was read")))?;
        if record.certified_at.is_some() {
            self.unplant(case).await;
        }
        let reason = verify::reason(&record, verdict);
        let stores = verify::evidence_of(&seen.reports);
        let scan = verify::totals(&stores);
        Ok(VerifyReport {
            case: case.clone(),
            holds: reason.is_none(),
            reason,
            scan: ScanAnswer { found: scan.found, controls_found: scan.controls_found, controls_planted: scan.controls_planted, stores },
            recover: seen.recover,
        })
    }

    /// Removes the controls of `case` everywhere; what fails is tried again by a later pass.
    pub(super) async fn unplant(&self, case: &CaseId) {
        for store in &self.parts.prove {
            if let Err(error) = store.unplant(case.as_str()).await {
                tracing::warn!(case_id = %case, %error, "a control stays for now; it is harmless");
                return;
            }
        }
        if let Err(error) = control::forget(&self.parts.db, case).await {
            tracing::warn!(case_id = %case, %error, "a control is kept for now; it is harmless");
        }
    }

    async fn certify(&self, record: &Record, events: &[Event]) -> Result<Did, CaseError> {
        if let Some(waits) = self.awaits_replay().await? {
            return Ok(Did::Not(waits));
        }
        let evidence = machine::find(events, &[Step::Verified]).map(|event| event.evidence.clone()).unwrap_or_default();
        let evidence: Evidence = serde_json::from_value(evidence).map_err(|_| machine::BrokenHistory("a verification without evidence"))?;
        let (listed, _) = self.subjects(record).await?;
        let case = Case::verified(record.clone(), evidence);
        let certified = self.event(events, Step::Certified, Value::Null);
        let is_durable = self.parts.log.is_durable();
        let held = self.held_of(record, &listed).await?;
        let mut tx = self.parts.db.begin_write().await?;
        let ledgers = certlog::ledgers(&mut tx).await?;
        let mut statement = certify::statement(&case, events, &certified, &listed, &self.parts.about, ledgers, is_durable)?;
        statement.held = held;
        let destroyed = record.keys_destroyed_at.unwrap_or(record.opened_at);
        statement.residual.extend(self.copies.iter().map(|copy| copy.remains(destroyed)));
        statement.residual.sort();
        let issued = certlog::issue(&mut tx, &case, &statement, &self.parts.signer).await?;
        self.append(&mut tx, record, &Event { evidence: issued.evidence(), ..certified }).await?;
        super::engine::enqueue(&mut tx, "privacy.certificates", record.id.as_str(), &issued.mirror()).await?;
        self.reach(&record.id, "certify", Moment::Within("written")).await;
        tx.commit().await.map_err(on("certify a case"))?;
        self.reach(&record.id, "certify", Moment::Within("controls left")).await;
        self.unplant(&record.id).await;
        self.reach(&record.id, "certify", Moment::Within("mirror left")).await;
        // The certificate stands; its mirror waits in the outbox for the next publication.
        if let Err(error) = self.parts.keys.publish(&*self.parts.log).await {
            tracing::warn!(case_id = %record.id, %error, "the certificate's mirror waits in the outbox");
        }
        Ok(Did::Written)
    }
}

/// SHA-256 over the sorted subjects, as the certificate's form says.
pub(super) fn subjects_digest(subjects: &[Listed]) -> String {
    let mut tokens: Vec<_> = subjects.iter().map(|subject| subject.token).collect();
    tokens.sort();
    let mut context = Context::new(&SHA256);
    for token in tokens {
        context.update(token.to_hex().as_bytes());
        context.update(&[0]);
    }
    hex::encode(context.finish())
}
