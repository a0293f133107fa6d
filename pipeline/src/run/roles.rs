//! Starts the roles of a process as tasks that shutdown waits for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use sunder_retention::store::Extent;
use sunder_schemas::class::Family;
use sunder_schemas::records::{PiiRecord, StateRecord};
use sunder_sinks::Sink;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::assignment::Share;
use super::{CaseWork, RunReport, rewind};
use crate::app::{App, PROGRAM, StartError};
use crate::cli::Role;
use crate::kafka::heartbeat;
use crate::poll::{Assignment, PollSettings, PolledSeller, Poller};
use crate::serve;
use crate::sink_runner::{self, FromTopic, SinkRunner};
use crate::split::runner::{SplitError, SplitRunner};
use crate::telemetry::chain;

/// How often connections are asked whether they still answer (chosen: `/readyz` is then at most this old).
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How often the root key is asked (chosen: each time costs a key service two calls).
const ROOT_PROBE_EVERY: Duration = Duration::from_secs(10);
/// How often a poller that waits for its share looks for it.
const SHARE_LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the list of sellers is read again from the database.
const SELLERS_EVERY: Duration = Duration::from_secs(2);

/// How long that may take (chosen: two queries, and a call of the key service for each seller that is new).
const SELLERS_WITHIN: Duration = Duration::from_secs(120);

/// Tasks of a process; each ends with what went wrong, or with nothing after a stop.
pub(super) type Tasks = JoinSet<Result<(), String>>;

/// A sink that runs, whatever it stores.
#[derive(Clone)]
pub(super) struct Sinking {
    name: String,
    progress: Arc<dyn Fn() -> sink_runner::Progress + Send + Sync>,
}

/// The roles that run, for idleness, readiness and the report.
#[derive(Default)]
pub(super) struct Roles {
    pub(super) poller: Option<Arc<Poller>>,
    pub(super) share: Share,
    pub(super) splitter: Option<Arc<SplitRunner>>,
    pub(super) sinks: Vec<Sinking>,
    pub(super) cases: Option<Arc<CaseWork>>,
    missing: Arc<Mutex<Vec<String>>>,
}

impl Roles {
    /// Starts `roles`; they stop at `stop`.
    ///
    /// # Errors
    /// [`StartError`].
    pub(super) async fn start(
        app: &Arc<App>,
        roles: &[Role],
        metrics: Option<PrometheusHandle>,
        stop: &CancellationToken,
    ) -> Result<(Self, Tasks), StartError> {
        let mut this = Self::default();
        let mut tasks = Tasks::new();
        for role in roles {
            match role {
                Role::Poll => this.start_poll(app, stop, &mut tasks).await?,
                Role::Split => this.start_split(app, stop, &mut tasks),
                Role::Sink => this.start_sinks(app, stop, &mut tasks),
                Role::Retain => this.start_retain(app, stop, &mut tasks),
                Role::Serve => this.start_serve(app, metrics.clone(), stop, &mut tasks),
            }
        }
        Ok((this, tasks))
    }

    async fn start_poll(&mut self, app: &Arc<App>, stop: &CancellationToken, tasks: &mut Tasks) -> Result<(), StartError> {
        let failed = |error: &(dyn std::error::Error + 'static)| StartError::Part { what: "poll".to_owned(), why: chain(error) };
        app.register_sellers().await?;
        rewind::align(app).await.map_err(|e| failed(&e))?;
        let client = app.spapi_client()?;
        let read = app.polled_sellers().await.map_err(|e| failed(&e))?;
        let sellers: Arc<Mutex<Vec<Arc<PolledSeller>>>> = Arc::new(Mutex::new(read));
        let (share, partitions) = (self.share.clone(), app.kafka.partitions(sunder_schemas::topic::Topic::ControlSellers));
        let listed = Arc::clone(&sellers);
        let assignment: Assignment = Arc::new(move || {
            let all = listed.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter(|seller| share.has(&seller.id, partitions)).cloned().collect()
        });
        let poller = Arc::new(Poller::new(
            client,
            Arc::clone(&app.base.keyring),
            &app.kafka,
            Arc::clone(&app.schemas),
            Arc::clone(&app.base.clock),
            PollSettings::default(),
            assignment,
        ));
        let (share, kafka, cancel) = (self.share.clone(), app.kafka.clone(), stop.clone());
        tasks.spawn_blocking(move || share.keep(&kafka, &cancel).map_err(|e| format!("poll: {}", chain(&e))));
        let (app, cancel) = (Arc::clone(app), stop.clone());
        tasks.spawn(async move {
            while tokio::time::timeout(SELLERS_EVERY, cancel.cancelled()).await.is_err() {
                // A look that nobody answers is called off; the next one gets another connection.
                let Ok(looked) = tokio::time::timeout(SELLERS_WITHIN, app.polled_sellers()).await else { continue };
                match looked {
                    Ok(read) => *sellers.lock().unwrap_or_else(PoisonError::into_inner) = read,
                    Err(error) => tracing::debug!(error = chain(&error), "sellers could not be read again"),
                }
            }
            Ok(())
        });
        let (running, cancel, share) = (Arc::clone(&poller), stop.clone(), self.share.clone());
        tasks.spawn(async move {
            // Without its share of the sellers a poller has nothing to do and would look idle.
            while !share.is_known() && tokio::time::timeout(SHARE_LOOK_EVERY, cancel.cancelled()).await.is_err() {}
            running.run(cancel).await;
            Ok(())
        });
        self.poller = Some(poller);
        Ok(())
    }

    fn start_split(&mut self, app: &Arc<App>, stop: &CancellationToken, tasks: &mut Tasks) {
        let families = Family::ALL.to_vec();
        let keyring = Arc::clone(&app.base.keyring);
        let splitter = Arc::new(SplitRunner::new(app.kafka.clone(), Arc::clone(&app.schemas), keyring, families, PROGRAM));
        let (running, app, stop, handle) = (Arc::clone(&splitter), Arc::clone(app), stop.clone(), Handle::current());
        tasks.spawn_blocking(move || {
            loop {
                match running.run(&handle, &stop) {
                    Err(SplitError::Lost(lost)) => {
                        tracing::error!(topic = lost.topic, code = lost.code, "raw events were lost before they were split");
                        let incarnation = app.kafka.incarnation_blocking(&lost.topic).map_err(|e| chain(&e))?;
                        let rewound = rewind::rewind(&app, lost.family, &lost.topic, &incarnation, Some(lost.code));
                        handle.block_on(rewound).map_err(|e| format!("split: {}", chain(&e)))?;
                        running.resume(&lost).map_err(|e| format!("split: {}", chain(&e)))?;
                    }
                    Err(error) => return Err(format!("split: {}", chain(&error))),
                    Ok(()) => return Ok(()),
                }
            }
        });
        self.splitter = Some(splitter);
    }

    fn start_sinks(&mut self, app: &Arc<App>, stop: &CancellationToken, tasks: &mut Tasks) {
        let warehouse: Arc<dyn Sink<StateRecord>> = Arc::clone(&app.warehouse) as _;
        let vault: Arc<dyn Sink<PiiRecord>> = Arc::clone(&app.vault) as _;
        let keyring = Arc::clone(&app.base.keyring);
        let of_warehouse = SinkRunner::new(app.kafka.clone(), Arc::clone(&app.schemas), warehouse, Some(Arc::clone(&keyring)));
        let of_vault = SinkRunner::new(app.kafka.clone(), Arc::clone(&app.schemas), vault, Some(Arc::clone(&keyring)));
        self.start_sink(of_warehouse.with_ledger(Arc::clone(&keyring), Extent::WithBusinessData), stop, tasks);
        self.start_sink(of_vault.with_ledger(keyring, Extent::Personal), stop, tasks);
    }

    fn start_sink<R: FromTopic + Sync + Send + 'static>(&mut self, runner: SinkRunner<R>, stop: &CancellationToken, tasks: &mut Tasks) {
        let runner = Arc::new(runner);
        let (running, stop, handle) = (Arc::clone(&runner), stop.clone(), Handle::current());
        tasks.spawn_blocking(move || running.run(&handle, &stop).map_err(|e| format!("sink: {}", chain(&e))));
        self.sinks.push(Sinking { name: runner.name().to_owned(), progress: Arc::new(move || runner.progress()) });
    }

    fn start_retain(&mut self, app: &Arc<App>, stop: &CancellationToken, tasks: &mut Tasks) {
        let work = Arc::new(CaseWork::default());
        let (running, with, cancel) = (Arc::clone(&work), Arc::clone(app), stop.clone());
        tasks.spawn(async move {
            running.run(&with, &cancel).await;
            Ok(())
        });
        let (kafka, moving, cancel) = (app.kafka.clone(), Arc::clone(&work), stop.clone());
        tasks.spawn(async move {
            heartbeat::run(kafka, move || moving.moves(), cancel).await;
            Ok(())
        });
        self.cases = Some(work);
    }

    fn start_serve(&self, app: &Arc<App>, metrics: Option<PrometheusHandle>, stop: &CancellationToken, tasks: &mut Tasks) {
        let Some(metrics) = metrics else { return };
        let missing = Arc::clone(&self.missing);
        let readiness: serve::Readiness = Arc::new(move || missing.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let registry = crate::registry::router(&app.base.config.kafka.prefix);
        let (listen, cancel) = (app.base.config.serve.listen, stop.clone());
        tasks.spawn(async move {
            serve::serve(listen, metrics, readiness, registry, cancel).await.map_err(|e| format!("serve.listen {listen}: {}", e.kind()))
        });
        let (app, missing, stop) = (Arc::clone(app), Arc::clone(&self.missing), stop.clone());
        let sinks = self.sinks.clone();
        let root = watch_root(tasks, &app, stop.clone());
        tasks.spawn(async move {
            loop {
                let mut now: Vec<String> = root.lock().unwrap_or_else(PoisonError::into_inner).clone().into_iter().collect();
                if !app.kafka.probe().await {
                    now.push(format!("kafka.bootstrap {} does not answer", app.kafka.address()));
                }
                if app.base.keyring.db().ping().await.is_err() {
                    now.push("keys.database does not answer".to_owned());
                } else if app.base.keyring.check_lease().is_err() {
                    now.push("keys.database takes no writes: the lease on cached keys ran out".to_owned());
                }
                now.extend(sinks.iter().filter(|s| !(s.progress)().is_up).map(|s| format!("{} does not answer", s.name)));
                *missing.lock().unwrap_or_else(PoisonError::into_inner) = now;
                if tokio::time::timeout(PROBE_EVERY, stop.cancelled()).await.is_ok() {
                    return Ok(());
                }
            }
        });
    }

    /// What was done so far.
    pub(super) fn report(&self) -> RunReport {
        let mut report = RunReport::default();
        if let Some(poller) = &self.poller {
            let progress = poller.progress();
            report.polled = progress.polled;
            report.published = progress.published;
            report.unchanged = progress.unchanged;
            report.withheld = progress.withheld;
            report.past_period = progress.past_period;
            report.dropped = progress.dropped;
            report.rejected = progress.rejected;
            report.gaps = progress.gaps;
            report.sellers_blocked = progress.blocked.iter().map(ToString::to_string).collect();
        }
        if let Some(splitter) = &self.splitter {
            let counts = splitter.progress().counts;
            report.split = counts.records;
            report.dead_lettered = counts.outcomes.dead_lettered.iter().sum();
        }
        report.stored = self.sinks.iter().map(|sink| (sink.progress)().rows_written).sum();
        if let Some(cases) = &self.cases {
            report.cases_certified = cases.certified();
            report.cases_blocked = cases.blocked().len() as u64;
        }
        report
    }
}

/// The first task that ends before it was told to; pends for ever where there is none.
pub(super) async fn first_failure(tasks: &mut Tasks) -> String {
    match tasks.join_next().await {
        Some(Ok(Err(failure))) => failure,
        Some(Ok(Ok(()))) => "a role ended without being told to".to_owned(),
        Some(Err(_)) => "a role panicked".to_owned(),
        None => std::future::pending().await,
    }
}

/// Waits for every task; the first failure, if any.
pub(super) async fn drain(tasks: &mut Tasks) -> Option<String> {
    let mut failure = None;
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(why)) => failure = failure.or(Some(why)),
            Err(_) => failure = failure.or_else(|| Some("a role panicked".to_owned())),
        }
    }
    failure
}

/// Asks the root key beside the other parts, since one that does not answer takes its time; what it says is in what this returns.
fn watch_root(tasks: &mut Tasks, app: &Arc<App>, stop: CancellationToken) -> Arc<Mutex<Option<String>>> {
    let said = Arc::new(Mutex::new(None));
    let (app, missing) = (Arc::clone(app), Arc::clone(&said));
    tasks.spawn(async move {
        loop {
            let root = app.base.keyring.root();
            let Some(answer) = stop.run_until_cancelled(root.probe()).await else { return Ok(()) };
            *missing.lock().unwrap_or_else(PoisonError::into_inner) = answer.err().map(|error| format!("keys.root: {error}"));
            if tokio::time::timeout(ROOT_PROBE_EVERY, stop.cancelled()).await.is_ok() {
                return Ok(());
            }
        }
    });
    said
}
