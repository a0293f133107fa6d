//! The `retain` role: sweeps, works cases, sends what waits in the outbox, keeps segments rolling.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sunder_retention::case::{self, Progress};
use sunder_retention::{audit, outbox};
use sunder_schemas::ids::CaseId;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::patience::Patience;
use crate::telemetry::chain;

/// Between two looks at the open cases (chosen: a step waits for other processes for about a lease).
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// A case that is blocked for this long without a break is said to be blocked: shorter ones are a store that was just restarting.
pub const BLOCKED_AFTER: Duration = Duration::from_secs(20);

/// How long a round may take at first: see [`Patience`] (chosen: all there is may have to be read, or tables rewritten).
const ROUND_MAX: Duration = Duration::from_secs(3_600);

/// What became of the cases so far.
#[derive(Debug, Default)]
pub struct CaseWork {
    certified: AtomicU64,
    rounds: AtomicU64,
    open: AtomicU64,
    moves: AtomicU64,
    settled: AtomicU64,
    blocked: Mutex<BTreeMap<CaseId, (Instant, String)>>,
    /// Certified cases of which something came back.
    reopened: Mutex<BTreeSet<CaseId>>,
    /// Late cases that were told of.
    late: Mutex<BTreeSet<CaseId>>,
}

impl CaseWork {
    /// Cases certified in this run.
    #[must_use]
    pub fn certified(&self) -> u64 {
        self.certified.load(Ordering::SeqCst)
    }

    /// Rounds that ended without an error.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }

    /// Restores whose losses were counted in this run.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::SeqCst)
    }

    /// Cases that were open at the end of the last round.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }

    /// How often what the cases wait for has changed: each time something new may lie on the log that has to go.
    #[must_use]
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }

    /// Cases that have been blocked long enough to say so, with the reason.
    #[must_use]
    pub fn blocked(&self) -> Vec<String> {
        let blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        blocked.iter().filter(|(_, (since, _))| since.elapsed() >= BLOCKED_AFTER).map(|(id, (_, why))| format!("{id}: {why}")).collect()
    }

    /// Works until `stop`; errors are logged once each time they begin, and tried again for ever.
    pub(super) async fn run(&self, app: &App, stop: &CancellationToken) {
        let mut was_failing = false;
        let mut stands = BTreeMap::new();
        let patience = Patience::new(ROUND_MAX);
        patience.ends_with(stop);
        while !stop.is_cancelled() {
            let round = patience.wait(self.round(app, &mut stands)).await;
            match round.unwrap_or_else(|| Err("a store, the key database or Kafka is silent".to_owned())) {
                Ok(()) => {
                    was_failing = false;
                    self.rounds.fetch_add(1, Ordering::SeqCst);
                }
                Err(error) => {
                    if !was_failing {
                        tracing::warn!(error, "cases could not be worked; trying again");
                    }
                    was_failing = true;
                }
            }
            // A stop ends the pause; the loop's condition says which of the two it was.
            _ = tokio::time::timeout(LOOK_EVERY, stop.cancelled()).await;
        }
    }

    /// One look at everything; `stands` is what each open case waited for after the last one.
    async fn round(&self, app: &App, stands: &mut BTreeMap<CaseId, String>) -> Result<(), String> {
        let opened = app.engine.sweep(app.base.clock.now()).await.map_err(|e| chain(&e))?;
        for case_id in opened {
            tracing::info!(%case_id, "opened a case for what is due");
        }
        let mut open = 0;
        let mut now = BTreeMap::new();
        for (case_id, progress) in app.engine.advance_all().await.map_err(|e| chain(&e))? {
            if let Progress::Waiting { why, .. } | Progress::Blocked { why } = &progress {
                now.insert(case_id.clone(), why.clone());
            }
            match progress {
                Progress::Done => {
                    tracing::info!(%case_id, "certified");
                    metrics::counter!("sunder_retain_cases_certified_total").increment(1);
                    self.certified.fetch_add(1, Ordering::SeqCst);
                    self.unblock(&case_id);
                }
                Progress::Waiting { .. } => {
                    open += 1;
                    self.unblock(&case_id);
                }
                Progress::Blocked { why } => {
                    open += 1;
                    self.block(case_id, why);
                }
            }
        }
        if *stands != now {
            self.moves.fetch_add(1, Ordering::SeqCst);
            *stands = now;
        }
        super::stray::sweep(app).await.map_err(|e| chain(&e))?;
        let reopened = app.engine.prove_reopened().await.map_err(|e| chain(&e))?;
        open += reopened.len() as u64;
        self.reopened(reopened);
        self.open.store(open, Ordering::SeqCst);
        #[expect(clippy::cast_precision_loss, reason = "a gauge of a small number")]
        metrics::gauge!("sunder_retain_cases_open").set(open as f64);
        self.tell_late(app).await?;
        tend_audit(app).await?;
        outbox::drain(app.base.keyring.db(), &*app.log).await.map_err(|e| chain(&e))?;
        app.base.keyring.sweep_quarantine().await.map_err(|e| chain(&e))?;
        if super::lost::settle(app).await.map_err(|e| chain(&e))? {
            self.settled.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Says once of each case that it is late, and counts them.
    async fn tell_late(&self, app: &App) -> Result<(), String> {
        let late = case::late(app.base.keyring.db(), app.base.clock.now()).await.map_err(|e| chain(&e))?;
        #[expect(clippy::cast_precision_loss, reason = "a gauge of a small number")]
        metrics::gauge!("sunder_retain_cases_late").set(late.len() as f64);
        let mut told = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        for case in &late {
            if told.insert(case.id.clone()) {
                let (case_id, due, state, why) = (&case.id, &case.due_at, case.state, case.blocked_by.as_deref().unwrap_or_default());
                tracing::error!(%case_id, due, %state, why, "case is late");
            }
        }
        told.retain(|id| late.iter().any(|case| case.id == *id));
        Ok(())
    }

    /// Reopened cases are blocked until they are proved again.
    fn reopened(&self, standing: Vec<(CaseId, String)>) {
        let mut before = self.reopened.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeSet<CaseId> = standing.iter().map(|(case, _)| case.clone()).collect();
        before.difference(&now).for_each(|case| self.unblock(case));
        *before = now;
        for (case, why) in standing {
            self.block(case, why);
        }
    }

    fn block(&self, case_id: CaseId, why: String) {
        let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        let since = blocked.get(&case_id).map_or_else(Instant::now, |(since, _)| *since);
        if blocked.insert(case_id.clone(), (since, why.clone())).is_none_or(|(_, before)| before != why) {
            tracing::warn!(%case_id, why, "case is blocked");
        }
    }

    fn unblock(&self, case_id: &CaseId) {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).remove(case_id);
    }
}

/// Removes audit events that are older than the policy keeps them, and signs the chain's head from time to time.
async fn tend_audit(app: &App) -> Result<(), String> {
    let (db, now) = (app.base.keyring.db(), app.base.clock.now());
    let rows = audit::expire(db, &app.signer, now, app.base.config.retention.audit).await.map_err(|e| chain(&e))?;
    if rows > 0 {
        tracing::info!(rows, "audit events went by age; their signed head stays");
    }
    audit::sign_head_if_old(db, &app.signer, now).await.map_err(|e| chain(&e))?;
    Ok(())
}
