//! The poller of one process: turns of all sellers assigned to it, bounded in number, none stopping another.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use secrecy::SecretString;
use sunder_retention::keys::Keyring;
use sunder_retention::sellers;
use sunder_schemas::class::{Dataset, FieldGroup};
use sunder_schemas::ids::{MarketplaceId, SellerId};
use sunder_schemas::time::{Clock, Period};
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::{PollError, Unreadable};
use super::publish::Publisher;
use super::schedule::{Schedule, Task, Turn};
use super::under_way::UnderWay;
use super::{inventory, orders};
use crate::kafka::Kafka;
use crate::registry::Schemas;
use crate::spapi::{Answer, AuthCode, Client, Credentials, Region, Request, SpapiError, TransportCode};
use crate::telemetry::chain;

/// How often the assignment is looked at again (chosen: a seller that was added is polled within seconds).
const REASSIGN_EVERY: Duration = Duration::from_secs(2);
/// After a 403 to personal data, how long a seller's data is asked for without it (chosen: a role is granted by hand, with a new consent).
const ROLE_MISSING_FOR: Duration = Duration::from_secs(6 * 3_600);

/// How many times a call is refused, each time with a fresh token, until that is believed (chosen).
const FORBIDDEN_TRIES: u32 = 2;

/// A seller as this process polls it.
#[derive(Debug, Clone)]
pub struct PolledSeller {
    /// The seller.
    pub id: SellerId,
    /// Where its refresh token is good.
    pub region: Region,
    /// Its marketplaces, at most 50.
    pub marketplaces: Vec<MarketplaceId>,
    /// Its refresh token.
    pub refresh_token: SecretString,
    /// What is fetched.
    pub datasets: Vec<Dataset>,
    /// The groups of personal fields that are wanted.
    pub personal: Vec<FieldGroup>,
    /// How far back the first poll reads, by the policy clock.
    pub since: Period,
    /// How far behind its cursor each poll reads again.
    pub overlap: Period,
}

impl PolledSeller {
    pub(super) fn credentials(&self) -> Credentials {
        Credentials { seller: self.id.clone(), refresh_token: self.refresh_token.clone() }
    }
}

/// How often each dataset is polled, and how many turns run at once.
#[derive(Debug, Clone, Copy)]
pub struct PollSettings {
    /// Between the end of one turn of orders and the next.
    pub orders_every: Duration,
    /// Between the end of one turn of inventory and the next.
    pub inventory_every: Duration,
    /// Between two full listings of inventory, by the policy clock: changes of inbound quantities are seen in those alone.
    pub inventory_full_every: Period,
    /// Turns that work at once. One that waits for its seller's rate does not count.
    pub turns_max: usize,
    /// How long turns may go on after the signal to stop.
    pub drain: Duration,
}

impl Default for PollSettings {
    /// Orders every 3 minutes (one call at the published rate), inventory every 15 with a full listing a day, 16 turns (chosen).
    fn default() -> Self {
        Self {
            orders_every: Duration::from_secs(180),
            inventory_every: Duration::from_secs(900),
            inventory_full_every: Period::days(1),
            turns_max: 16,
            drain: Duration::from_secs(30),
        }
    }
}

/// Counts of this run.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) polled: AtomicU64,
    pub(super) published: AtomicU64,
    pub(super) unchanged: AtomicU64,
    pub(super) withheld: AtomicU64,
    pub(super) past_period: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) gaps: AtomicU64,
}

/// What the poller has done in this run, and how far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entities (orders, inventory levels) fetched.
    pub polled: u64,
    /// Events acknowledged by Kafka.
    pub published: u64,
    /// Entities left out because the same version was published before.
    pub unchanged: u64,
    /// Entities left out because they were erased with their business data.
    pub withheld: u64,
    /// Orders left out because they are older than business data may be kept.
    pub past_period: u64,
    /// Groups of personal fields that were fetched and dropped in memory.
    pub dropped: u64,
    /// Entities that could not be taken in; each left a gap.
    pub rejected: u64,
    /// Windows left as open gaps.
    pub gaps: u64,
    /// Every dataset of every seller was polled to the server's present end at least once, or its seller is blocked.
    pub caught_up: bool,
    /// Sellers that cannot be polled until a person acts.
    pub blocked: Vec<SellerId>,
}

/// The sellers assigned to this process at this moment.
pub type Assignment = Arc<dyn Fn() -> Vec<Arc<PolledSeller>> + Send + Sync>;

/// The poller of one process.
pub struct Poller {
    pub(super) client: Arc<Client>,
    pub(super) keyring: Arc<Keyring>,
    pub(super) publisher: Publisher,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: PollSettings,
    pub(super) counts: Arc<Counts>,
    assignment: Assignment,
    schedule: Mutex<Schedule>,
    sellers: RwLock<HashMap<SellerId, Arc<PolledSeller>>>,
    role_missing: Mutex<HashMap<SellerId, Instant>>,
    is_assigned: AtomicBool,
}

impl Poller {
    /// A poller that publishes through `kafka`, with the schema ids that `schemas` got from the registry.
    #[must_use]
    pub fn new(
        client: Arc<Client>,
        keyring: Arc<Keyring>,
        kafka: &Kafka,
        schemas: Arc<Schemas>,
        clock: Arc<dyn Clock>,
        settings: PollSettings,
        assignment: Assignment,
    ) -> Self {
        let counts = Arc::new(Counts::default());
        let publisher = Publisher::new(Arc::clone(&keyring), kafka, schemas, Arc::clone(&counts));
        Self {
            client,
            keyring,
            publisher,
            clock,
            settings,
            counts,
            assignment,
            schedule: Mutex::default(),
            sellers: RwLock::default(),
            role_missing: Mutex::default(),
            is_assigned: AtomicBool::new(false),
        }
    }

    /// Polls until `cancel`: then no turn begins, and running ones end after the page in hand, or with [`PollSettings::drain`].
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let mut turns: JoinSet<Turn> = JoinSet::new();
        let mut running: HashMap<Id, Task> = HashMap::new();
        let places = Arc::new(Semaphore::new(self.settings.turns_max));
        let mut assign_at = Instant::now();
        while !cancel.is_cancelled() {
            let now = Instant::now();
            if assign_at <= now {
                self.assign();
                assign_at = now + REASSIGN_EVERY;
            }
            let due = self.lock_schedule().due();
            let wake = due.filter(|due| *due > now).map_or(assign_at, |due| due.min(assign_at));
            tokio::select! {
                () = cancel.cancelled() => {}
                Some(ended) = turns.join_next_with_id() => self.finish(&mut running, ended),
                // The semaphore is never closed.
                Ok(place) = Arc::clone(&places).acquire_owned(), if due.is_some_and(|due| due <= now) => {
                    let next = self.lock_schedule().next(now);
                    if let Some(task) = next {
                        let handle = turns.spawn(Arc::clone(&self).turn(task.clone(), UnderWay::new(cancel.clone(), place)));
                        running.insert(handle.id(), task);
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
        let drained = tokio::time::timeout(self.settings.drain, async {
            while let Some(ended) = turns.join_next_with_id().await {
                self.finish(&mut running, ended);
            }
        });
        if drained.await.is_err() {
            tracing::warn!(turns = turns.len(), "turns were cut off at shutdown; their pages are read again after the start");
        }
    }

    /// What this run has done, and how far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let schedule = self.lock_schedule();
        Progress {
            polled: get(&self.counts.polled),
            published: get(&self.counts.published),
            unchanged: get(&self.counts.unchanged),
            withheld: get(&self.counts.withheld),
            past_period: get(&self.counts.past_period),
            dropped: get(&self.counts.dropped),
            rejected: get(&self.counts.rejected),
            gaps: get(&self.counts.gaps),
            caught_up: schedule.is_assigned() && schedule.caught_up(),
            blocked: schedule.blocked(),
        }
    }

    /// Sends `request` for `seller`, unless asked to stop while waiting for its turn or its answer.
    pub(super) async fn ask(&self, seller: &PolledSeller, request: &Request, under_way: &UnderWay) -> Result<Answer, PollError> {
        let credentials = seller.credentials();
        let waits = || under_way.waits();
        under_way.note(false);
        let mut tries = 0;
        let answer = loop {
            let answer = tokio::select! {
                biased;
                () = under_way.stopped() => return Err(PollError::Stopped),
                answer = self.client.fetch(seller.region, &credentials, request, &waits) => answer,
            };
            tries += 1;
            // What follows from a refusal lasts for hours, so one that passes must not be mistaken for a missing role.
            if !matches!(answer, Err(SpapiError::Forbidden { .. })) || tries >= FORBIDDEN_TRIES {
                break answer;
            }
        };
        under_way.note(true);
        answer.map_err(|error| match error {
            // A body that never comes whole is as good as one that does not read: the window around it is looked at more closely.
            SpapiError::TooLarge { ref request_id, .. } => Unreadable::cut(error.code(), request_id),
            SpapiError::Transport { code: TransportCode::BodyCut, .. } => Unreadable::cut(error.code(), "absent"),
            error => PollError::Spapi(error),
        })
    }

    /// Whether `seller` lately answered 403 to personal data.
    pub(super) fn is_role_missing(&self, seller: &SellerId) -> bool {
        let mut missing = self.role_missing.lock().unwrap_or_else(PoisonError::into_inner);
        match missing.get(seller) {
            Some(until) if *until > Instant::now() => true,
            Some(_) => {
                missing.remove(seller);
                false
            }
            None => false,
        }
    }

    /// Remembers for a while that `seller` has no role for personal data.
    pub(super) fn note_role_missing(&self, seller: &SellerId) {
        self.role_missing.lock().unwrap_or_else(PoisonError::into_inner).insert(seller.clone(), Instant::now() + ROLE_MISSING_FOR);
    }

    fn lock_schedule(&self) -> std::sync::MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over who is polled here now.
    fn assign(&self) {
        let sellers = (self.assignment)();
        let mut tasks = Vec::new();
        for seller in &sellers {
            for dataset in &seller.datasets {
                let every = match dataset {
                    Dataset::Orders => self.settings.orders_every,
                    Dataset::Inventory => self.settings.inventory_every,
                };
                tasks.push((Task { seller: seller.id.clone(), dataset: *dataset }, every));
            }
        }
        self.lock_schedule().assign(&tasks, Instant::now());
        *self.sellers.write().unwrap_or_else(PoisonError::into_inner) =
            sellers.into_iter().map(|seller| (seller.id.clone(), seller)).collect();
        self.is_assigned.store(true, Ordering::SeqCst);
    }

    /// Whether the assignment was taken over at least once: before that nothing is to be done and [`Progress::caught_up`] says little.
    #[must_use]
    pub fn is_assigned(&self) -> bool {
        self.is_assigned.load(Ordering::SeqCst)
    }

    fn finish(&self, running: &mut HashMap<Id, Task>, ended: Result<(Id, Turn), tokio::task::JoinError>) {
        let (id, turn) = match ended {
            Ok((id, turn)) => (id, turn),
            // A broken invariant in one turn must not stop the others; the panic itself was reported where it happened.
            Err(error) => (error.id(), Turn::Failed),
        };
        if let Some(task) = running.remove(&id) {
            self.lock_schedule().finish(&task, turn, Instant::now());
        }
    }

    /// Writes down that a seller's grant is gone, so that every process and `sunder sellers list` know. A refusal of one operation or of
    /// the application itself says nothing of the grant.
    async fn block(&self, seller: &PolledSeller, error: &PollError) {
        let PollError::Spapi(SpapiError::Auth(code @ AuthCode::InvalidGrant)) = error else { return };
        match sellers::block(&self.keyring, &seller.id, &seller.refresh_token, code.as_str()).await {
            Ok(_) => {}
            // Nothing is lost: the next turn meets the same refusal and writes it down then.
            Err(error) => tracing::warn!(seller = %seller.id, error = chain(&error), "that it is blocked could not be written down"),
        }
    }

    /// One turn of one dataset of one seller.
    async fn turn(self: Arc<Self>, task: Task, under_way: UnderWay) -> Turn {
        let seller = self.sellers.read().unwrap_or_else(PoisonError::into_inner).get(&task.seller).cloned();
        // It was taken away since the schedule chose it.
        let Some(seller) = seller else { return Turn::Failed };
        let work = async {
            match task.dataset {
                Dataset::Orders => Box::pin(orders::turn(&self, &seller, &under_way)).await,
                Dataset::Inventory => Box::pin(inventory::turn(&self, &seller, &under_way)).await,
            }
        };
        let result = tokio::select! {
            result = work => result,
            () = under_way.stuck() => Err(PollError::Silent),
        };
        let turn = match &result {
            Ok(0) => Turn::Reached,
            Ok(gaps) => {
                self.counts.gaps.fetch_add(u64::from(*gaps), Ordering::Relaxed);
                Turn::Partly
            }
            Err(error) => error.turn(),
        };
        let dataset = task.dataset.as_str();
        match &result {
            Ok(_) => metrics::counter!("sunder_poll_turns_total", "dataset" => dataset, "end" => "reached").increment(1),
            Err(PollError::Stopped) => {}
            Err(error) => {
                metrics::counter!("sunder_poll_turns_total", "dataset" => dataset, "end" => error.code().to_owned()).increment(1);
                if turn == Turn::Blocked {
                    tracing::error!(seller = %task.seller, dataset, code = error.code(), "the seller cannot be polled: {error}");
                    self.block(&seller, error).await;
                } else {
                    tracing::warn!(seller = %task.seller, dataset, code = error.code(), "a turn ended early and is tried again: {error}");
                }
            }
        }
        turn
    }
}
