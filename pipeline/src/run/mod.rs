//! `sunder run`: the long-running roles of one process, until a signal, or until there is nothing left to do.
//!
//! Shutdown is a state: stop taking, drain, give the lease back, exit 0. A second signal, or work that does not end within
//! `DRAIN_MAX`, exits non-zero and says what was left.

mod assignment;
mod blocks;
mod history;
mod idle;
mod lost;
pub mod replay;
mod retain;
mod rewind;
mod roles;
pub mod stray;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable as _};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use sunder_retention::keys::KeyError;
use sunder_retention::lease::Lease;
use sunder_retention::mirror;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::{App, StartError, settings};
use crate::cli::Role;
use crate::telemetry::chain;

pub use retain::{BLOCKED_AFTER, CaseWork};

/// How long draining may take (chosen: above the poller's drain and the producers' message timeout together).
const DRAIN_MAX: Duration = Duration::from_secs(90);

/// How long a mirroring may take (chosen: a row and a record, and above Kafka's own limit).
const MIRRORED_WITHIN: Duration = Duration::from_secs(60);
/// For how long a start tries to mirror the key database (chosen: a partition gets another leader within the 9 s after which Kafka gives
/// a broker up, and a start that cannot work ends within the 30 s of DESIGN section 6).
const FIRST_MIRROR_MAX: Duration = Duration::from_secs(20);

/// What a run did, for its last line (DESIGN section 6).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RunReport {
    /// Entities fetched.
    pub polled: u64,
    /// Events acknowledged by Kafka.
    pub published: u64,
    /// Entities left out because the same version was published before.
    pub unchanged: u64,
    /// Entities left out because they were erased with their business data.
    pub withheld: u64,
    /// Orders left out because they are older than business data may be kept.
    pub past_period: u64,
    /// Groups of personal fields dropped in memory.
    pub dropped: u64,
    /// Entities that could not be taken in; each is an open gap.
    pub rejected: u64,
    /// Windows left as open gaps.
    pub gaps: u64,
    /// Raw records split.
    pub split: u64,
    /// Rows and blocks written to the stores.
    pub stored: u64,
    /// Records sealed into dead letters.
    pub dead_lettered: u64,
    /// Cases certified in this run.
    pub cases_certified: u64,
    /// Cases that cannot go on until a person acts.
    pub cases_blocked: u64,
    /// Sellers that cannot be polled until a person acts.
    pub sellers_blocked: Vec<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// By a signal, drained.
    Stopped,
    /// Nothing was left to do.
    Idle,
    /// A case is blocked: these say why.
    Blocked(Vec<String>),
    /// A role failed, or did not drain in time.
    Failed(String),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Roles of this process.
    pub roles: Vec<Role>,
    /// End once there is nothing left to do.
    pub until_idle: bool,
}

/// Runs until `stop` (or idle) and drains.
///
/// # Errors
/// [`StartError`] where a role could not be started.
pub async fn run(
    app: Arc<App>,
    options: RunOptions,
    metrics: Option<PrometheusHandle>,
    stop: CancellationToken,
) -> Result<(Ended, RunReport), StartError> {
    let names: Vec<&str> = options.roles.iter().map(|r| r.as_str()).collect();
    tracing::info!(roles = names.join(","), kafka = app.kafka.address(), "starting");
    let length = settings::lease(&app.base.config).to_std();
    let lease = Lease::register(Arc::clone(&app.base.keyring), &names.join(","), length).await;
    let lease = lease.map_err(|error| StartError::Part { what: "keys.database".to_owned(), why: chain(&error) })?;
    // The lease outlives the roles: it is given back when no work is on its way any more.
    let (lease_stop, lease_stopped) = watch::channel(false);
    let mut lease_task = JoinSet::new();
    lease_task.spawn(async move { lease.run(lease_stopped).await });

    let roles_stop = CancellationToken::new();
    first_mirrored(&app, &stop).await.map_err(|why| StartError::Part { what: "mirror of keys.database".to_owned(), why })?;
    let (running, mut tasks) = roles::Roles::start(&app, &options.roles, metrics, &roles_stop).await?;
    let ended = tokio::select! {
        () = stop.cancelled() => Ended::Stopped,
        () = keep_mirrored(&app, length) => Ended::Stopped,
        failure = lease_lost(&mut lease_task) => Ended::Failed(failure),
        failure = roles::first_failure(&mut tasks) => Ended::Failed(failure),
        ended = idle::wait(&app, &running, options.until_idle) => ended,
    };
    tracing::info!("draining");
    roles_stop.cancel();
    let drained = tokio::time::timeout(DRAIN_MAX, roles::drain(&mut tasks)).await;
    let mut report = running.report();
    let has_lease = !lease_task.is_empty();
    if has_lease && options.roles.contains(&Role::Poll) {
        // One that was blocked is in nobody's share any more; the database knows it. Where it does not answer, the run's own list stands.
        let blocked = app.blocked_sellers().await.unwrap_or_default();
        report.sellers_blocked.extend(blocked.iter().map(ToString::to_string));
        report.sellers_blocked.sort();
        report.sellers_blocked.dedup();
    }
    // Without it the database is no longer the one that this process began with, and answers nothing.
    if has_lease && let Err(error) = mirrored(&app).await {
        tracing::warn!(error, "the key database was not mirrored; the restore of a backup made in this run may go unnoticed");
    }
    lease_stop.send_replace(true);
    if let Some(Ok(Err(error))) = lease_task.join_next().await {
        tracing::warn!(error = chain(&error), "the lease was not given back; it ends by itself");
    }
    if drained.is_ok() {
        Lease::release(&app.base.keyring);
    }
    let ended = match (ended, drained) {
        (ended @ (Ended::Failed(_) | Ended::Blocked(_)), _) => ended,
        (_, Err(_)) => Ended::Failed("roles did not drain in time; what was in flight is read again at the next start".to_owned()),
        (_, Ok(Some(failure))) => Ended::Failed(failure),
        (ended, Ok(None)) => ended,
    };
    Ok((ended, report))
}

/// Raises the key database's generation and mirrors it, so that the restore of any older backup is noticed.
async fn mirrored(app: &App) -> Result<(), String> {
    // An embedded broker ends with the process: nobody could ask it.
    if app.kafka.is_embedded() {
        return Ok(());
    }
    let published = tokio::time::timeout(MIRRORED_WITHIN, mirror::publish(app.base.keyring.db(), &*app.log)).await;
    published.map_err(|_| "the key database or Kafka is silent".to_owned())?.map_err(|error| chain(&error))
}

/// Mirrors the key database for the first time of this run; a partition whose leader just died gets another one meanwhile.
async fn first_mirrored(app: &App, stop: &CancellationToken) -> Result<(), String> {
    let started = Instant::now();
    let waits = ExponentialBuilder::default().with_max_delay(Duration::from_secs(1)).without_max_times();
    (|| mirrored(app))
        .retry(waits)
        .when(|_| started.elapsed() < FIRST_MIRROR_MAX && !stop.is_cancelled())
        .notify(|error, _| tracing::warn!(error, "the key database is not mirrored yet; trying again"))
        .await
}

/// Mirrors the key database once every `period`, for ever: keys are minted without an erasure, and a backup from before is noticed by this.
async fn keep_mirrored(app: &App, period: Duration) {
    let mut was_failing = false;
    loop {
        tokio::time::sleep(period).await;
        match mirrored(app).await {
            Ok(()) => was_failing = false,
            Err(error) if !was_failing => {
                was_failing = true;
                tracing::warn!(error, "the key database could not be mirrored; trying again");
            }
            Err(_) => {}
        }
    }
}

/// Ends where the lease ends by itself: the database under this process is not the one that it began with.
async fn lease_lost(lease: &mut JoinSet<Result<(), KeyError>>) -> String {
    match lease.join_next().await {
        Some(Ok(Err(error))) => format!("keys.database: {}", chain(&error)),
        Some(Ok(Ok(())) | Err(_)) | None => "the lease on keys ended without being told to".to_owned(),
    }
}
