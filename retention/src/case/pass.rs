//! One pass over all open cases: keys first, then every case as far as it comes by itself, then one reading of everything for all that
//! wait for it. Ten thousand subjects of a night, or a thousand sellers', are read for once, not once each.

use std::time::{Duration, Instant};

use futures::future::join_all;
use sunder_schemas::ids::CaseId;
use sunder_schemas::time::{Period, Timestamp};

use super::engine::{Did, Engine};
use super::machine::{self, Action, Event, Progress, Removal};
use super::probe::Moment;
use super::scope::Listed;
use super::steps::Cleaner;
use super::store::{self, Record};
use super::verify::{self, Seen, Verdict};
use super::{CaseError, control};
use crate::store::{Control, FoundBlock, Mark, Needles, ScanReport};

/// Cases that one reading serves at the most. Chosen: a report names every place of every store, a few hundred kilobytes a case.
pub(super) const CASES_PER_READING: usize = 200;
/// How long after it was planted a control of a certified case counts as forgotten. Chosen: longer than any verification runs.
const FORGOTTEN_AFTER: Period = Period::days(1);

/// Where a case stands: all that its next action is decided from.
#[derive(Debug)]
pub(super) struct Stand {
    pub(super) record: Record,
    pub(super) events: Vec<Event>,
    pub(super) action: Action,
}

/// How far a case was worked.
enum Reached {
    /// Its next action is one that was to be left alone.
    Before(Box<Stand>),
    /// It goes no further for now.
    Said(Progress),
}

/// A case that asks for a reading.
pub(super) struct Ask<'a> {
    pub(super) record: &'a Record,
    pub(super) barrier: &'a [Mark],
    pub(super) cleaner: Cleaner,
}

/// What a reading is done with for one case.
struct Search {
    listed: Vec<Listed>,
    control: Control,
    needles: Needles,
}

/// How much of what is destroyed a restored backup could take back, until the cases are opened again by their requests (chosen).
const TELL_EVERY: Duration = Duration::from_secs(1);

const fn is_reading(action: &Action) -> bool {
    matches!(action, Action::Verify { .. })
}

/// What every open case does before any of them waits: afterwards nothing opens any more, whatever stops the rest.
const fn is_past_keys(action: &Action) -> bool {
    !matches!(action, Action::Scope | Action::DestroyKeys)
}

impl Engine {
    /// Works every open case once, oldest first, and returns what became of each: the keys of all go first, and those that wait for a
    /// reading share one.
    ///
    /// # Errors
    /// As [`Engine::advance`], where it concerns every case; what is wrong with one must not stop the others.
    pub async fn advance_all(&self) -> Result<Vec<(CaseId, Progress)>, CaseError> {
        let open = store::open_cases(&self.parts.db).await?;
        let mut told = Instant::now();
        for case in &open {
            self.advance_until(case, is_past_keys).await?;
            if told.elapsed() >= TELL_EVERY {
                self.tell().await;
                told = Instant::now();
            }
        }
        self.tell().await;
        let (mut done, mut waiting) = (Vec::with_capacity(open.len()), Vec::new());
        for case in open {
            match self.advance_until(&case, is_reading).await? {
                Reached::Said(progress) => done.push((case, progress)),
                Reached::Before(stand) => match self.resting(&stand).await? {
                    Some(last) => done.push((case, last)),
                    None => waiting.push(*stand),
                },
            }
        }
        for group in waiting.chunks(CASES_PER_READING) {
            let answers = self.read_for(group).await?;
            for (stand, answer) in group.iter().zip(answers) {
                let case = &stand.record.id;
                let progress = match self.conclude(stand, answer).await {
                    Ok(Some(progress)) => progress,
                    Ok(None) => match self.advance_until(case, is_reading).await? {
                        Reached::Said(progress) => progress,
                        // A further round, or another process: the next pass reads again.
                        Reached::Before(_) => super::steps::waiting_for("the next reading"),
                    },
                    Err(error) => blocked_alone(error)?,
                };
                done.push((case.clone(), progress));
            }
        }
        self.clear_forgotten_controls().await?;
        Ok(done)
    }

    /// What is said of a case that was read and is not to be read again yet, written down where it has changed.
    async fn resting(&self, stand: &Stand) -> Result<Option<Progress>, CaseError> {
        let Some(ask) = stand.ask() else { return Ok(None) };
        let rests = match self.rests(ask.record, ask.barrier).await {
            Ok(None) => return Ok(None),
            Ok(Some(last)) => Ok(Did::Not(last)),
            Err(error) => Err(error),
        };
        match self.conclude(stand, rests).await {
            Ok(said) => Ok(Some(said.unwrap_or_else(|| super::steps::waiting_for("the next reading")))),
            Err(error) => blocked_alone(error).map(Some),
        }
    }

    /// Works `case` until it is certified, waits, is blocked, or its next action `stops`.
    async fn advance_until(&self, case: &CaseId, stops: fn(&Action) -> bool) -> Result<Reached, CaseError> {
        loop {
            match self.advance_once(case, stops).await {
                Ok(Some(reached)) => return Ok(reached),
                Ok(None) => {}
                Err(error) => return Ok(Reached::Said(blocked_alone(error)?)),
            }
        }
    }

    async fn advance_once(&self, case: &CaseId, stops: fn(&Action) -> bool) -> Result<Option<Reached>, CaseError> {
        let stand = self.stand(case).await?;
        if stand.action == Action::Finished {
            return Ok(Some(Reached::Said(Progress::Done)));
        }
        if stops(&stand.action) {
            return Ok(Some(Reached::Before(Box::new(stand))));
        }
        self.reach(case, stand.action.name(), Moment::Before).await;
        let done = self.perform(&stand.record, &stand.events, stand.action.clone()).await;
        Ok(self.conclude(&stand, done).await?.map(Reached::Said))
    }

    /// Works `case` until it is certified, waits, or is blocked. Safe to repeat at any time and from any process.
    ///
    /// # Errors
    /// [`CaseError::NotFound`], [`CaseError::Broken`], or a key database that does not answer. What stores and log refuse is
    /// [`Progress::Blocked`], not an error.
    pub async fn advance(&self, case: &CaseId) -> Result<Progress, CaseError> {
        loop {
            if let Some(Reached::Said(progress)) = self.advance_once(case, |_| false).await? {
                return Ok(progress);
            }
        }
    }

    async fn stand(&self, case: &CaseId) -> Result<Stand, CaseError> {
        let record = self.record(case).await?;
        let events = store::events(&self.parts.db, case).await?;
        let removal = if record.forced { Removal::Forced } else { Removal::Awaited };
        let action = machine::decide(&events, removal)?;
        Ok(Stand { record, events, action })
    }

    /// Writes down what an action came to; `None` where the case has moved, by this process or another.
    async fn conclude(&self, stand: &Stand, done: Result<Did, CaseError>) -> Result<Option<Progress>, CaseError> {
        let (record, name) = (&stand.record, stand.action.name());
        let done = match done {
            Ok(Did::Event(step, evidence)) => {
                self.reach(&record.id, name, Moment::Within("done")).await;
                self.record_event(record, &stand.events, step, evidence).await.map(|()| Did::Written)
            }
            other => other,
        };
        let progress = match done {
            Ok(Did::Event(..) | Did::Written) => {
                self.reach(&record.id, name, Moment::After).await;
                return Ok(None);
            }
            Err(CaseError::Contended) => {
                self.give_way(record).await?;
                return Ok(None);
            }
            Ok(Did::Not(progress)) => progress,
            Err(error @ (CaseError::Store(_) | CaseError::Keys(_) | CaseError::Certificate(_) | CaseError::Note(_))) => {
                Progress::Blocked { why: error.to_string() }
            }
            // Busy or gone for the moment: nobody has to act, and the event is not written.
            Err(CaseError::Db(error)) if error.retry => super::steps::waiting_for(error.to_string()),
            Err(error) => return Err(error),
        };
        let (Progress::Waiting { why, .. } | Progress::Blocked { why }) = &progress else { return Ok(Some(progress)) };
        let last = stand.events.last().map_or(0, |event| event.seq);
        let is_blocked = matches!(progress, Progress::Blocked { .. });
        let is_noted = record.blocked_by.as_ref() == Some(why) && record.is_blocked == is_blocked;
        if is_noted || store::set_blocked(&self.parts.db, &record.id, last, why, is_blocked).await? {
            return Ok(Some(progress));
        }
        // Another process moved the case meanwhile: what was seen is of the past.
        self.give_way(record).await?;
        Ok(None)
    }

    /// Another process was faster. Where it has ended the case, a control that this one planted since goes again.
    async fn give_way(&self, record: &Record) -> Result<(), CaseError> {
        self.unpause(&record.id);
        if self.record(&record.id).await?.certified_at.is_some() {
            self.unplant(&record.id).await;
        }
        Ok(())
    }

    /// Reads everything once for all of `stands`, and says for each what that came to.
    async fn read_for(&self, stands: &[Stand]) -> Result<Vec<Result<Did, CaseError>>, CaseError> {
        for stand in stands {
            self.reach(&stand.record.id, stand.action.name(), Moment::Before).await;
        }
        if let Some(progress) = self.stopped_by().await? {
            return Ok(stands.iter().map(|_| Ok(Did::Not(progress.clone()))).collect());
        }
        let asks: Vec<Ask<'_>> = stands.iter().filter_map(Stand::ask).collect();
        // What stops one case stops those whose barrier it reaches, not the others.
        let mut hindered = Vec::with_capacity(asks.len());
        for ask in &asks {
            hindered.push(self.hindered_by(ask.barrier).await.map_err(|error| error.to_string()).unwrap_or_else(Some));
        }
        let free: Vec<Ask<'_>> = asks.into_iter().zip(&hindered).filter(|(_, why)| why.is_none()).map(|(ask, _)| ask).collect();
        let mut seen = self.look(&free).await.into_iter();
        let mut answers = Vec::with_capacity(stands.len());
        for (stand, why) in stands.iter().zip(hindered) {
            answers.push(match why {
                Some(why) => Ok(Did::Not(Progress::Blocked { why })),
                None => {
                    let seen = seen.next().unwrap_or(Err(CaseError::Request("nothing was read")));
                    self.answer(&stand.record, &stand.events, seen).await
                }
            });
        }
        Ok(answers)
    }

    /// Reads everything again for each of `asks`, in one reading of each store, and judges what was seen: one answer an ask, in order.
    pub(super) async fn look(&self, asks: &[Ask<'_>]) -> Vec<Result<(Verdict, Seen), CaseError>> {
        let mut searches = Vec::with_capacity(asks.len());
        for ask in asks {
            searches.push(self.search(ask).await);
        }
        let needles: Vec<Needles> = searches.iter().flatten().map(|search| search.needles.clone()).collect();
        let mut reports = match self.read_stores(asks, &needles).await {
            Ok(reports) => reports.into_iter(),
            Err(why) => return asks.iter().map(|_| Ok((Verdict::Blocked(why.clone()), Seen::default()))).collect(),
        };
        let mut answers = Vec::with_capacity(asks.len());
        for (ask, search) in asks.iter().zip(searches) {
            answers.push(match search {
                Err(error) => Err(error),
                Ok(search) => self.judge(ask, &search, reports.next().unwrap_or_default()).await,
            });
        }
        answers
    }

    async fn search(&self, ask: &Ask<'_>) -> Result<Search, CaseError> {
        let record = ask.record;
        let (listed, subjects) = self.subjects(record).await?;
        let control = control::control(&self.parts.db, &*self.parts.keys, &record.id, &record.seller).await?;
        let needles = Needles {
            keys: listed.iter().flat_map(|subject| subject.keys.iter().copied()).collect(),
            controls: vec![control.key],
            bytes: self.parts.keys.wrapped_needles(&record.seller, &listed).await?,
            barrier: ask.barrier.to_vec(),
            gone: if record.extent.takes_rows() { subjects } else { Vec::new() },
            older_than: record.extent.older_than(),
        };
        Ok(Search { listed, control, needles })
    }

    /// The reports of every store, by the place of their needles; all are read side by side. What one store refuses stops all: nothing is
    /// known then.
    async fn read_stores(&self, asks: &[Ask<'_>], needles: &[Needles]) -> Result<Vec<Vec<ScanReport>>, String> {
        let mut reports: Vec<Vec<ScanReport>> = needles.iter().map(|_| Vec::new()).collect();
        let all = join_all(self.parts.prove.iter().map(|store| store.scan_many(needles))).await;
        for (store, read) in self.parts.prove.iter().zip(all) {
            let read = read.map_err(|error| error.to_string())?;
            if read.len() != needles.len() {
                return Err(format!("store {} answered for {} of {} cases", store.name(), read.len(), needles.len()));
            }
            reports.iter_mut().zip(read).for_each(|(of_case, report)| of_case.push(report));
            for ask in asks {
                self.reach(&ask.record.id, "verify", Moment::Within("a store is read")).await;
            }
        }
        Ok(reports)
    }

    async fn judge(&self, ask: &Ask<'_>, search: &Search, reports: Vec<ScanReport>) -> Result<(Verdict, Seen), CaseError> {
        let (db, keys, record) = (&self.parts.db, &*self.parts.keys, ask.record);
        let (drift, _) = self.drift().await?;
        let hindrances = self.parts.log.hindrances(ask.barrier).await?;
        let mut seen = Seen { drift, hindrances, log: self.parts.log.describe().await?, ..Seen::default() };
        for mut report in reports {
            let (controls, found) = std::mem::take(&mut report.found).into_iter().partition(|block| block.key == search.control.key);
            report.found = found;
            if ask.cleaner == Cleaner::Awaited {
                let controls: Vec<FoundBlock> = controls;
                seen.dead_controls.extend(controls.into_iter().map(|control| control.place));
            }
            seen.reports.push(report);
        }
        let found: Vec<_> = seen.reports.iter().flat_map(|report| &report.found).collect();
        let (mut recover, keys_tried) = verify::recover(db, keys, &record.seller, &search.listed, &found).await?;
        recover.controls_planted = 1;
        recover.controls_opened = u64::from(control::opens(db, keys, &record.id, &record.seller).await?);
        (seen.recover, seen.keys_tried) = (recover, keys_tried);
        let with_keys = u64::try_from(search.needles.keys.len()).unwrap_or(u64::MAX);
        let verdict = verify::judge(&seen, with_keys, ask.barrier, self.key_backups(record));
        Ok((verdict, seen))
    }

    /// Removes the controls of certified cases whose process died before it could.
    async fn clear_forgotten_controls(&self) -> Result<(), CaseError> {
        let now: Timestamp = self.parts.system_clock.now();
        for case in control::forgotten(&self.parts.db, now.minus(FORGOTTEN_AFTER)).await? {
            self.unplant(&case).await;
        }
        Ok(())
    }
}

impl Stand {
    fn ask(&self) -> Option<Ask<'_>> {
        match &self.action {
            Action::Verify { barrier } => Some(Ask { record: &self.record, barrier, cleaner: Cleaner::Awaited }),
            _ => None,
        }
    }
}

/// What is wrong with one case stops that case; a database that fails concerns every case.
fn blocked_alone(error: CaseError) -> Result<Progress, CaseError> {
    match error {
        error @ CaseError::Db(_) => Err(error),
        error => Ok(Progress::Blocked { why: error.to_string() }),
    }
}
