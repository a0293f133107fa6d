//! Follows a case to its certificate: `erase --wait`.
//!
//! Where a process runs the `retain` role the case is only watched. Where none does, this process works it, with the splitter and the
//! sinks that it needs; it takes over as well when the last such process goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sunder_retention::case::{self, CaseError, Shown, State};
use sunder_retention::lease;
use sunder_schemas::ids::CaseId;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::run::stop_on_signals;
use crate::app::App;
use crate::cli::Role;
use crate::output::Output;
use crate::run::{self, BLOCKED_AFTER, Ended, RunOptions};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why it is not followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Certified,
    /// Blocked for [`BLOCKED_AFTER`] without a break: somebody has to act.
    Blocked,
    LimitReached,
    /// A signal.
    Stopped,
    /// Nobody works it.
    Orphaned,
}

/// Follows `id` until it is certified, blocked, or `limit` is over, and returns it as it is then. Progress goes to standard error.
///
/// # Errors
/// [`Failure`] where this process had to work the case and could not.
pub(super) async fn follow(app: &Arc<App>, id: &CaseId, limit: Duration, output: Output) -> Result<Shown, Failure> {
    let mut watch = Watch::new(app, id, Instant::now() + limit, stop_on_signals(output)?);
    if watch.look(Others::Needed).await? == Seen::Orphaned {
        let stop = CancellationToken::new();
        let options = RunOptions { roles: vec![Role::Split, Role::Sink, Role::Retain], until_idle: false };
        let mut working = Box::pin(run::run(Arc::clone(app), options, None, stop.clone()));
        let ended = tokio::select! {
            ended = &mut working => ended,
            seen = watch.look(Others::NotNeeded) => {
                stop.cancel();
                let ended = working.await;
                seen?;
                ended
            }
        };
        if let Ended::Failed(why) = ended?.0 {
            return Err(Failure::Failed(why));
        }
    }
    show(app, id).await
}

async fn show(app: &App, id: &CaseId) -> Result<Shown, Failure> {
    case::show(app.base.keyring.db(), id, app.base.clock.now()).await.map_err(|e| Failure::of("cases", &e))
}

/// Whether another process has to work the case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    Needed,
    NotNeeded,
}

struct Watch<'a> {
    app: &'a App,
    id: &'a CaseId,
    until: Instant,
    stop: CancellationToken,
    progress: indicatif::ProgressBar,
    said: String,
    blocked_since: Option<Instant>,
}

impl<'a> Watch<'a> {
    fn new(app: &'a App, id: &'a CaseId, until: Instant, stop: CancellationToken) -> Self {
        let progress = indicatif::ProgressBar::new_spinner();
        Self { app, id, until, stop, progress, said: String::new(), blocked_since: None }
    }

    async fn look(&mut self, others: Others) -> Result<Seen, Failure> {
        loop {
            match self.once(others).await {
                Ok(Some(seen)) => return Ok(seen),
                Ok(None) => {}
                // It comes back; the limit ends the wait.
                Err(CaseError::Db(error)) if error.retry => tracing::warn!(code = error.code, "the key database does not answer"),
                Err(error) => return Err(Failure::of("cases", &error)),
            }
            if self.stop.is_cancelled() {
                return Ok(Seen::Stopped);
            }
            if Instant::now() >= self.until {
                return Ok(Seen::LimitReached);
            }
            // A signal ends the pause; the next round sees it.
            _ = tokio::time::timeout(LOOK_EVERY, self.stop.cancelled()).await;
        }
    }

    async fn once(&mut self, others: Others) -> Result<Option<Seen>, CaseError> {
        let db = self.app.base.keyring.db();
        let shown = case::show(db, self.id, self.app.base.clock.now()).await?;
        self.tell(&shown);
        if shown.state == State::Certified {
            return Ok(Some(Seen::Certified));
        }
        self.blocked_since = shown.blocked.then(|| self.blocked_since.unwrap_or_else(Instant::now));
        if self.blocked_since.is_some_and(|since| since.elapsed() >= BLOCKED_AFTER) {
            return Ok(Some(Seen::Blocked));
        }
        let is_orphaned = others == Others::Needed && lease::live_with_role(db, Role::Retain.as_str()).await? == 0;
        Ok(is_orphaned.then_some(Seen::Orphaned))
    }

    /// A spinner on a terminal, else a line for each change.
    fn tell(&mut self, shown: &Shown) {
        let waits_for = shown.blocked_by.as_deref().unwrap_or_default();
        let now = format!("{}: {} {waits_for}", shown.id, shown.state);
        self.progress.tick();
        if now != self.said {
            if self.progress.is_hidden() {
                tracing::info!(case_id = %shown.id, state = %shown.state, waits_for, blocked = shown.blocked, "following the case");
            }
            self.progress.set_message(now.clone());
            self.said = now;
        }
    }
}
