//! Builds a sink again from the log beside the live one, then lets it take the live one's place.
//!
//! While it lasts this process is registered under [`lease::REPLAY`]: cases go on, but none is cleaned up, verified or certified, since a
//! copy of sealed blocks lies where no scan looks. What was destroyed before it began never enters the copy; keys destroyed meanwhile are
//! noticed within a heartbeat; what was built of them before that goes into the live store and is removed there by the case's tombstones
//! and cleaning, which come after. A replay that dies leaves a copy that the next replay, or the next case, drops. One whose lease ran out
//! takes nothing over: it knows no longer what is destroyed, and a case that went on meanwhile has dropped its copy.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sunder_retention::keys::Keyring;
use sunder_retention::lease::{self, Lease};
use sunder_retention::store::Mark;
use sunder_schemas::class::Kind;
use sunder_schemas::ids::{Offset, Partition};
use sunder_schemas::records::{PiiRecord, StateRecord};
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;
use sunder_sinks::Sink;
use sunder_sinks::beside::{Replaceable, Side};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{history, idle};
use crate::app::{App, StartError, settings};
use crate::cli::Role;
use crate::kafka::blocking;
use crate::sink_runner::{FromTopic, SinkRunner};
use crate::telemetry::chain;

/// Between two looks at how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Which sink is built again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Typed tables.
    Warehouse,
    /// Sealed blocks.
    Vault,
}

impl Which {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Warehouse => "warehouse",
            Self::Vault => "vault",
        }
    }
}

/// What was built.
#[derive(Debug, Clone, Serialize)]
pub struct Replayed {
    /// The sink.
    pub sink: Which,
    /// Records read.
    pub records: u64,
    /// Records left out because they cannot be read.
    pub unreadable: u64,
    /// Rows the sink has now.
    pub rows: u64,
    /// The time up to which it was built, where one was asked for.
    pub until: Option<String>,
}

/// What was read and written so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Built {
    /// Records read.
    pub records: u64,
    /// Records left out because they cannot be read.
    pub unreadable: u64,
    /// Rows written, each version counted.
    pub rows: u64,
}

/// Why a replay did not come to its end; the live store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Another one runs.
    #[error("another replay is running, or one was killed less than {lease_s} s ago")]
    Busy {
        /// How long a killed process counts as living, in seconds.
        lease_s: u64,
    },
    /// A sink would bring the rows to the present at once.
    #[error("a process with the role sink is running and would bring the rows to the present at once: stop it first")]
    SinkRuns,
    /// The log holds nothing for the sink.
    #[error("the log holds no row for this sink: nothing was replaced")]
    Empty,
    /// A signal.
    #[error("stopped: nothing was replaced")]
    Stopped,
    /// A part could not be opened.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Something failed.
    #[error("{0}; nothing was replaced")]
    Failed(String),
}

impl ReplayError {
    pub(super) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Failed(chain(error))
    }
}

/// What one replay works with.
pub(super) struct Replay<'a> {
    pub(super) app: &'a Arc<App>,
    /// Ends it before the switch.
    pub(super) stop: CancellationToken,
    /// Hears how far it is.
    pub(super) tell: &'a (dyn Fn(Built) + Sync),
}

/// Builds `which` again, up to `until` where given, and switches, unless `stop` comes first. `tell` hears how far it is.
///
/// # Errors
/// [`ReplayError`].
pub async fn replay(
    app: &Arc<App>,
    which: Which,
    until: Option<Timestamp>,
    stop: &CancellationToken,
    tell: &(dyn Fn(Built) + Sync),
) -> Result<Replayed, ReplayError> {
    let keyring = &app.base.keyring;
    let length = settings::lease(&app.base.config).to_std();
    let lease = Lease::register(Arc::clone(keyring), lease::REPLAY, length).await.map_err(|e| ReplayError::of(&e))?;
    let (end, ended) = watch::channel(false);
    let mut beating = JoinSet::new();
    beating.spawn(async move { lease.run(ended).await });
    let replay = Replay { app, stop: stop.child_token(), tell };
    let work = replay.work(which, until, length);
    tokio::pin!(work);
    let done = tokio::select! {
        done = &mut work => done,
        _ = beating.join_next() => {
            // It cleans up behind itself, and without a lease it replaces nothing.
            replay.stop.cancel();
            work.await.map_err(|error| match error {
                ReplayError::Stopped => ReplayError::Failed("the key database was restored under this process".to_owned()),
                error => error,
            })
        }
    };
    end.send_replace(true);
    if let Some(Ok(Err(error))) = beating.join_next().await {
        tracing::warn!(error = chain(&error), "the lease was not given back; it ends by itself");
    }
    Lease::release(keyring);
    done
}

impl Replay<'_> {
    async fn work(&self, which: Which, until: Option<Timestamp>, length: Duration) -> Result<Replayed, ReplayError> {
        let db = self.app.base.keyring.db();
        // Each registers first and counts then, so of two that begin at once one at least sees the other.
        if lease::live_with_role(db, lease::REPLAY).await.map_err(|e| ReplayError::of(&e))? > 1 {
            return Err(ReplayError::Busy { lease_s: length.as_secs() });
        }
        if until.is_some() && lease::live_with_role(db, Role::Sink.as_str()).await.map_err(|e| ReplayError::of(&e))? > 0 {
            return Err(ReplayError::SinkRuns);
        }
        let (built, rows) = match which {
            Which::Warehouse => {
                let live = &*self.app.warehouse;
                live.drop_beside().await.map_err(|e| ReplayError::of(&e))?;
                let beside = self.app.base.warehouse_on(Side::Beside).await?;
                let built = match until {
                    None => self.build::<StateRecord>(Arc::clone(&beside) as _).await,
                    Some(until) => history::build(self, &beside, until).await,
                };
                self.switch(live, &*beside, built).await?
            }
            Which::Vault => {
                let live = &*self.app.vault;
                live.drop_beside().await.map_err(|e| ReplayError::of(&e))?;
                let beside = self.app.base.vault_on(Side::Beside).await?;
                let built = self.build::<PiiRecord>(Arc::clone(&beside) as _).await;
                self.switch(live, &*beside, built).await?
            }
        };
        if until.is_some() {
            self.begin_group_anew().await;
        }
        let until = until.map(Timestamp::to_iso);
        Ok(Replayed { sink: which, records: built.records, unreadable: built.unreadable, rows, until })
    }

    /// Lets what was built take over, unless that failed, is nothing, or this process no longer knows what is destroyed; the copy goes in
    /// any case.
    async fn switch<S: Replaceable>(&self, live: &S, beside: &S, built: Result<Built, ReplayError>) -> Result<(Built, u64), ReplayError> {
        beside.close().await;
        let done = match built {
            Ok(built) => self.take_over(live, built).await.map(|rows| (built, rows)),
            Err(error) => Err(error),
        };
        if let Err(error) = live.drop_beside().await {
            tracing::warn!(error = chain(&error), "the copy stays for now; the next replay or case removes it");
        }
        done
    }

    async fn take_over(&self, live: &impl Replaceable, built: Built) -> Result<u64, ReplayError> {
        if self.stop.is_cancelled() {
            return Err(ReplayError::Stopped);
        }
        if built.rows == 0 {
            return Err(ReplayError::Empty);
        }
        self.keyring().check_lease().map_err(|e| ReplayError::of(&e))?;
        live.take_over().await.map_err(|e| ReplayError::of(&e))
    }

    fn keyring(&self) -> &Arc<Keyring> {
        &self.app.base.keyring
    }

    /// Reads the topics from their start to their end as of now.
    async fn build<R: FromTopic + Sync>(&self, beside: Arc<dyn Sink<R>>) -> Result<Built, ReplayError> {
        let app = self.app;
        let marks = idle::ends_of(app, R::topics().into_iter()).await.map_err(|e| ReplayError::of(&e))?;
        let keyring = Some(Arc::clone(self.keyring()));
        let runner = Arc::new(SinkRunner::new(app.kafka.clone(), Arc::clone(&app.schemas), Arc::clone(&beside), keyring));
        let stop = self.stop.child_token();
        // Also where this future is dropped: the reader's thread would hold up the end of the process.
        let _ends = stop.clone().drop_guard();
        let (running, stopping, handle) = (Arc::clone(&runner), stop.clone(), Handle::current());
        let mut reading = JoinSet::new();
        reading.spawn_blocking(move || running.run(&handle, &stopping));
        let so_far = || {
            let progress = runner.progress();
            Built { records: progress.records, unreadable: progress.unreadable.iter().sum(), rows: progress.rows_written }
        };
        let reached = async {
            while !beside.caught_up(&marks).await.map_err(|e| ReplayError::of(&e))? {
                (self.tell)(so_far());
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(())
        };
        let reached = tokio::select! {
            reached = reached => reached,
            () = self.stop.cancelled() => Err(ReplayError::Stopped),
            ended = reading.join_next() => Err(match ended {
                Some(Ok(Err(error))) => ReplayError::of(&error),
                _ => ReplayError::Failed("reading the log ended early".to_owned()),
            }),
        };
        stop.cancel();
        let ended = reading.join_next().await;
        reached?;
        match ended {
            Some(Ok(Err(error))) => Err(ReplayError::of(&error)),
            _ => Ok(so_far()),
        }
    }

    /// The sink will read the log from its start, to bring the rows to the present. Its group's offsets say so too, or it would take its
    /// store for one that was restored from a backup.
    async fn begin_group_anew(&self) {
        let kafka = self.app.kafka.clone();
        let group = kafka.group(Which::Warehouse.as_str());
        let start = |kind: &Kind| {
            let topic = kafka.topic(Topic::State(*kind));
            let partitions = (0..kafka.partitions(Topic::State(*kind))).map(Partition);
            partitions.map(move |partition| Mark { topic: topic.clone(), incarnation: String::new(), partition, offset: Offset(0) })
        };
        let starts: Vec<Mark> = Kind::ALL.iter().flat_map(start).collect();
        if let Err(error) = blocking(move || kafka.set_group_blocking(&group, &starts)).await {
            tracing::warn!(code = error.code(), "the group's offsets were not set back: the sink will take its store for a restored one");
        }
    }
}
