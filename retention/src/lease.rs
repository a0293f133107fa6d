//! The lease on keys in memory: every process says in SQL that it lives, learns which keys were destroyed, and says when it has let go.
//!
//! Invariants: a process acknowledges a ledger epoch only after it dropped the epoch's keys and no work that began before is still on
//! its way; it uses no key once it has not heard from the database for its lease; a process that died counts as having let go when its
//! lease is over by the database's clock. The own lease is counted from *before* the heartbeat was sent, so it ends first.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Row};
use sunder_schemas::ids::{EntityToken, KeyId};
use tokio::sync::watch;

use crate::keydb::{DbError, KeyDb, blob, on};
use crate::keys::{KeyError, Keyring};
use crate::mirror;

/// The role of a process that builds a store beside a live one: its copy is in no reading, so no case is certified while it lives.
pub const REPLAY: &str = "replay";

/// Whether this process may use keys. Without a registered lease (a single command, a test) it always may.
#[derive(Debug)]
pub struct LeaseState {
    start: Instant,
    /// Milliseconds after `start`; `u64::MAX`: no lease is registered.
    until_ms: AtomicU64,
}

impl Default for LeaseState {
    fn default() -> Self {
        Self { start: Instant::now(), until_ms: AtomicU64::new(u64::MAX) }
    }
}

impl LeaseState {
    /// # Errors
    /// [`KeyError::LeaseLost`] where the lease is over.
    pub(crate) fn check(&self) -> Result<(), KeyError> {
        let until = self.until_ms.load(Ordering::SeqCst);
        if until == u64::MAX || self.elapsed_ms(Instant::now()) < until { Ok(()) } else { Err(KeyError::LeaseLost) }
    }

    /// How long it still runs; `None` where it is over.
    fn left(&self) -> Option<Duration> {
        let left = self.until_ms.load(Ordering::SeqCst).saturating_sub(self.elapsed_ms(Instant::now()));
        (left > 0).then(|| Duration::from_millis(left))
    }

    fn extend(&self, from: Instant, lease: Duration) {
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX - 1);
        self.until_ms.store(self.elapsed_ms(from).saturating_add(lease_ms).min(u64::MAX - 1), Ordering::SeqCst);
    }

    fn elapsed_ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX - 1)
    }
}

#[derive(Debug, Default)]
struct Passages {
    generation: u64,
    alive: BTreeMap<u64, usize>,
}

/// What work with keys passes through: a guard is held from `admit` (or from asking [`ErasedKeys`]) to the acknowledgement of what was
/// written. Entering never waits.
#[derive(Debug, Clone, Default)]
pub struct EpochGate(Arc<Mutex<Passages>>);

/// Work that is on its way; dropped when its writes are acknowledged or given up.
#[derive(Debug)]
pub struct Passage {
    gate: EpochGate,
    generation: u64,
}

impl EpochGate {
    /// Enters; async for symmetry with the places it is used in, it never waits.
    #[expect(clippy::unused_async, reason = "the interface leaves room for a gate that closes")]
    pub async fn enter(&self) -> Passage {
        self.enter_blocking()
    }

    /// Enters, from a thread of its own.
    #[must_use]
    pub fn enter_blocking(&self) -> Passage {
        let mut passages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = passages.generation;
        *passages.alive.entry(generation).or_default() += 1;
        Passage { gate: self.clone(), generation }
    }

    /// Marks this moment: work that enters from now on is after it.
    fn advance(&self) -> u64 {
        let mut passages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passages.generation += 1;
        passages.generation
    }

    /// Whether all work from before `generation` is done.
    fn is_drained(&self, generation: u64) -> bool {
        let passages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passages.alive.first_key_value().is_none_or(|(oldest, _)| *oldest >= generation)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut passages = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = passages.alive.get_mut(&self.generation) {
            *count -= 1;
            if *count == 0 {
                passages.alive.remove(&self.generation);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Erased {
    epoch: i64,
    keys: HashSet<KeyId>,
    withheld: HashSet<EntityToken>,
}

/// The ids of all destroyed keys, and the entities whose business data went too, as far as this process has heard: gates splitter and
/// sinks. 16 bytes a key and some.
#[derive(Debug, Clone, Default)]
pub struct ErasedKeys(Arc<RwLock<Erased>>);

impl ErasedKeys {
    /// Whether `key` is destroyed.
    #[must_use]
    pub fn contains(&self, key: KeyId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys.contains(&key)
    }

    /// Whether the rows of `entity` are withheld: it was erased with its business data. A token is an HMAC under its seller's own key,
    /// so it says whose it is.
    #[must_use]
    pub fn withholds(&self, entity: EntityToken) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).withheld.contains(&entity)
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys.len()
    }

    /// Whether no key is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ledger epoch up to which it is complete.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).epoch
    }

    /// Reads what was destroyed since; returns the epoch and the keys that are new.
    ///
    /// # Errors
    /// [`DbError`]: it stays as it was.
    pub async fn refresh(&self, db: &KeyDb) -> Result<(i64, Vec<KeyId>), DbError> {
        let known = self.epoch();
        // The epoch is read first: a destruction commits its keys with its epoch, so every key up to it is there to be read after it.
        let epoch = ledger_epoch(db).await?;
        if epoch <= known {
            return Ok((known, Vec::new()));
        }
        let rows = sqlx::query("SELECT key_id FROM revoked_key WHERE epoch > $1 AND epoch <= $2")
            .bind(known)
            .bind(epoch)
            .fetch_all(db.pool())
            .await
            .map_err(on("read revoked keys"))?;
        let bad = || DbError::fixed("read revoked keys", "bad_column");
        let keys: Vec<KeyId> = rows.iter().map(|row| blob(row, "key_id")?.map(KeyId).ok_or_else(bad)).collect::<Result<_, _>>()?;
        let withheld = withheld(db, known, epoch).await?;
        let mut erased = self.0.write().unwrap_or_else(PoisonError::into_inner);
        erased.withheld.extend(withheld);
        erased.keys.extend(keys.iter().copied());
        erased.epoch = erased.epoch.max(epoch);
        Ok((epoch, keys))
    }
}

/// The entities that were erased with their business data after epoch `after`, up to `until`.
async fn withheld(db: &KeyDb, after: i64, until: i64) -> Result<Vec<EntityToken>, DbError> {
    let rows = sqlx::query("SELECT token FROM subject WHERE withheld_epoch > $1 AND withheld_epoch <= $2 AND token IS NOT NULL")
        .bind(after)
        .bind(until)
        .fetch_all(db.pool())
        .await
        .map_err(on("read withheld entities"))?;
    let bad = || DbError::fixed("read withheld entities", "bad_column");
    rows.iter().map(|row| blob(row, "token")?.map(EntityToken).ok_or_else(bad)).collect()
}

/// The present ledger epoch.
///
/// # Errors
/// [`DbError`].
pub async fn ledger_epoch(db: &KeyDb) -> Result<i64, DbError> {
    let failed = on("read the ledger epoch");
    sqlx::query("SELECT epoch FROM ledger_epoch WHERE id = 1").fetch_one(db.pool()).await.map_err(&failed)?.try_get(0).map_err(&failed)
}

/// Whether every process has let go of what was destroyed up to `epoch`: it acknowledged the epoch, or its lease is over.
///
/// # Errors
/// [`DbError`]: unknown, so no.
pub async fn acknowledged(db: &KeyDb, epoch: i64) -> Result<bool, DbError> {
    Ok(waiting_for(db, epoch).await? == 0)
}

/// How many living processes have `role`.
///
/// # Errors
/// [`DbError`].
pub async fn live_with_role(db: &KeyDb, role: &str) -> Result<i64, DbError> {
    let failed = on("count the processes of a role");
    let sql = format!(
        "SELECT COUNT(*) FROM process WHERE ',' || roles || ',' LIKE '%,' || $1 || ',%' AND lease_until >= {}",
        db.dialect().now_ms()
    );
    sqlx::query(AssertSqlSafe(sql)).bind(role.to_owned()).fetch_one(db.pool()).await.map_err(&failed)?.try_get(0).map_err(&failed)
}

/// How many living processes have not yet acknowledged `epoch`.
///
/// # Errors
/// [`DbError`].
pub async fn waiting_for(db: &KeyDb, epoch: i64) -> Result<i64, DbError> {
    let failed = on("read the processes");
    let sql = format!("SELECT COUNT(*) FROM process WHERE acked_epoch < $1 AND lease_until >= {}", db.dialect().now_ms());
    sqlx::query(AssertSqlSafe(sql)).bind(epoch).fetch_one(db.pool()).await.map_err(&failed)?.try_get(0).map_err(&failed)
}

/// Longest pause between two heartbeats: a case waits for every process to hear of its keys, however long the leases are (chosen; one
/// small write a second and process).
pub const BEAT_EVERY_MAX: Duration = Duration::from_secs(1);
/// How often a process looks between two heartbeats whether keys were destroyed, or whether the work that it waited for is done (chosen:
/// every reader is without them a few tenths of a second after they are destroyed; one read of one row).
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a beat may take after the lease is over (chosen: a beat is a handful of statements).
const BEAT_MAX: Duration = Duration::from_secs(30);

/// This process's lease.
#[derive(Debug)]
pub struct Lease {
    keyring: Arc<Keyring>,
    process: String,
    length: Duration,
    /// Epochs that wait for the work from before them: epoch and generation of the gate.
    pending: Mutex<Option<(i64, u64)>>,
}

impl Lease {
    /// Registers this process with its `roles`; from now on keys are used only while the lease runs. All that was destroyed so far is
    /// read before it returns.
    ///
    /// # Errors
    /// [`KeyError::Database`].
    pub async fn register(keyring: Arc<Keyring>, roles: &str, length: Duration) -> Result<Self, KeyError> {
        let process = uuid::Uuid::new_v4().to_string();
        let asked = Instant::now();
        mirror::here(keyring.db()).await?;
        let (epoch, _) = keyring.erased().refresh(keyring.db()).await?;
        let now = keyring.db().dialect().now_ms();
        let sql =
            format!("INSERT INTO process (process_id, roles, lease_until, acked_epoch, started_at) VALUES ($1, $2, {now} + $3, $4, {now})");
        let mut tx = keyring.db().begin_write().await?;
        let failed = on("register the process");
        sqlx::query(AssertSqlSafe(sql))
            .bind(process.clone())
            .bind(roles.to_owned())
            .bind(millis(length))
            .bind(epoch)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        keyring.lease_state().extend(asked, length);
        Ok(Self { keyring, process, length, pending: Mutex::new(None) })
    }

    /// One heartbeat: learns what was destroyed, drops those keys, acknowledges what no earlier work holds any more, and extends the
    /// lease. [`Lease::run`] calls it; tests and `--until-idle` may as well.
    ///
    /// # Errors
    /// [`KeyError::Database`]: the lease runs on towards its end.
    pub async fn beat(&self) -> Result<(), KeyError> {
        let keyring = &self.keyring;
        let asked = Instant::now();
        if keyring.lease_state().check().is_err() {
            // The database may have counted us dead meanwhile: whatever was in memory is read anew.
            keyring.drop_all();
        }
        if let Err(error) = mirror::here(keyring.db()).await {
            return Err(if keyring.db().seen().is_older() { self.let_go() } else { error.into() });
        }
        let before = keyring.erased().epoch();
        let (epoch, keys) = keyring.erased().refresh(keyring.db()).await?;
        keyring.revoke(&keys);
        if epoch > before {
            keyring.forget_changed().await?;
        }
        let acknowledged = {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            if epoch > before {
                // A younger epoch waits for all work before it, which is all work the older one waited for: one entry is enough.
                *pending = Some((epoch, keyring.gate().advance()));
            }
            match *pending {
                Some((waiting, generation)) if keyring.gate().is_drained(generation) => {
                    *pending = None;
                    Some(waiting)
                }
                _ => None,
            }
        };
        let written = self.write(acknowledged).await;
        if let (Err(_), Some(epoch)) = (&written, acknowledged) {
            // It was not written down: acknowledge again with the next beat (all work from before is done, so generation 0 will do).
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.get_or_insert((epoch, 0));
        }
        written?;
        keyring.lease_state().extend(asked, self.length);
        Ok(())
    }

    /// A database that stands behind what this process has seen of it was restored meanwhile, or a standby took its place: what was
    /// erased since may be readable in it, and keys in memory may be lost there, so this process lets go of every key at once.
    fn let_go(&self) -> KeyError {
        self.keyring.lease_state().until_ms.store(0, Ordering::SeqCst);
        self.keyring.drop_all();
        // Closed from here on: whoever waits for a connection learns it at once.
        drop(self.keyring.db().pool().close());
        KeyError::Restored
    }

    async fn write(&self, acknowledged: Option<i64>) -> Result<(), KeyError> {
        let failed = on("extend the lease");
        let now = self.keyring.db().dialect().now_ms();
        let acked = "CASE WHEN acked_epoch < $2 THEN $2 ELSE acked_epoch END";
        let sql = format!("UPDATE process SET lease_until = {now} + $1, acked_epoch = {acked} WHERE process_id = $3");
        let mut tx = self.keyring.db().begin_write().await?;
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(millis(self.length))
            .bind(acknowledged.unwrap_or(-1))
            .bind(self.process.clone())
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(DbError::fixed("extend the lease", "process_unknown").into()) }
    }

    /// Beats every third of the lease, at least every [`BEAT_EVERY_MAX`], and as soon as keys were destroyed, until `stop` turns true; then
    /// gives the lease back.
    ///
    /// # Errors
    /// [`KeyError::Restored`] where the database was restored under this process; [`KeyError::Database`] where the lease could not be
    /// given back; it then ends by itself.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) -> Result<(), KeyError> {
        let beats = (self.length / 3).clamp(Duration::from_millis(1), BEAT_EVERY_MAX);
        let mut ticks = tokio::time::interval(beats.min(LOOK_EVERY));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut was_lost, mut beat) = (false, None::<Instant>);
        loop {
            tokio::select! {
                // A sender that is gone means stop as well. The answer holds a lock and goes at once.
                () = async { drop(stop.wait_for(|stopped| *stopped).await) } => return self.end().await,
                _ = ticks.tick() => match self.beat_or_let_go(beat.is_none_or(|last| last.elapsed() >= beats)).await {
                    Ok(None) => {}
                    Ok(Some(began)) => (was_lost, beat) = (false, Some(began)),
                    Err(error @ KeyError::Restored) => return Err(error),
                    Err(error) if !was_lost => {
                        was_lost = true;
                        tracing::warn!(%error, "lease could not be extended; keys are refused once it is over");
                    }
                    Err(_) => {}
                },
            }
        }
    }

    /// Whether a beat has something to learn or to acknowledge.
    async fn has_news(&self) -> Result<bool, KeyError> {
        let waits = self.pending.lock().unwrap_or_else(PoisonError::into_inner).map(|(_, generation)| generation);
        if waits.is_some_and(|generation| self.keyring.gate().is_drained(generation)) {
            return Ok(true);
        }
        Ok(ledger_epoch(self.keyring.db()).await? > self.keyring.erased().epoch())
    }

    /// A beat, where one `is_due` or there is something to tell; returns when it began. Where the database hangs, every key leaves memory at
    /// the lease's end all the same.
    async fn beat_or_let_go(&self, is_due: bool) -> Result<Option<Instant>, KeyError> {
        let over = async {
            while let Some(left) = self.keyring.lease_state().left() {
                tokio::time::sleep(left).await;
            }
        };
        let beat = async {
            if !is_due && !self.has_news().await? {
                return Ok(None);
            }
            let began = Instant::now();
            self.beat().await.map(|()| Some(began))
        };
        tokio::pin!(beat);
        tokio::select! {
            () = self.keyring.db().seen().until_older() => Err(self.let_go()),
            done = &mut beat => done,
            () = over => {
                self.keyring.drop_all();
                // What it acknowledges may be on its way and is true: no key is left. One that nobody answers is called off, or no beat
                // would follow it.
                tokio::time::timeout(BEAT_MAX, beat).await.unwrap_or_else(|_| Err(DbError::silent("extend the lease").into()))
            }
        }
    }

    /// Lets this process read keys again after [`Lease::end`], as a single command does: each use asks the database whether the key
    /// still exists. Only for when every role has ended, since nobody waits for this process any more.
    pub fn release(keyring: &Keyring) {
        keyring.lease_state().until_ms.store(u64::MAX, Ordering::SeqCst);
    }

    /// Gives the lease back: every key is dropped. Call it when no work is on its way any more.
    ///
    /// # Errors
    /// [`KeyError::Database`].
    pub async fn end(&self) -> Result<(), KeyError> {
        self.keyring.lease_state().until_ms.store(0, Ordering::SeqCst);
        self.keyring.drop_all();
        let failed = on("give the lease back");
        let mut tx = self.keyring.db().begin_write().await?;
        sqlx::query("DELETE FROM process WHERE process_id = $1").bind(self.process.clone()).execute(&mut *tx).await.map_err(&failed)?;
        tx.commit().await.map_err(&failed)?;
        Ok(())
    }
}

fn millis(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}
