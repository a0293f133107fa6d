//! The processes of a simulated installation: what each holds in memory, and what is on its way from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sunder_retention::case::{Engine, Point, Probe};
use sunder_retention::cursor::PageCommit;
use sunder_retention::keys::Keyring;
use sunder_retention::lease::{Lease, Passage};
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint};
use tokio::sync::Notify;

use crate::world::World;
use crate::world::log::{Pending, Row};

/// How long a lease is: it ends when the simulation says so, never by itself.
const LEASE: Duration = Duration::from_secs(3600);

/// A process with a lease.
pub(crate) struct Process {
    pub(crate) ring: Arc<Keyring>,
    pub(crate) lease: Lease,
    /// Its roles in the database, one name for each start.
    pub(crate) name: String,
}

impl Process {
    pub(crate) async fn start(world: &World, name: String) -> Self {
        let ring = world.process();
        let lease = Lease::register(ring.clone(), &name, LEASE).await.unwrap();
        Self { ring, lease, name }
    }
}

/// What one event of a page tells once it is acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) print: Fingerprint,
    pub(crate) token: EntityToken,
    pub(crate) version: i64,
    pub(crate) event: String,
    pub(crate) is_sealed: bool,
}

/// A page on its way from a poller to the log.
pub(crate) struct Page {
    pub(crate) poller: usize,
    pub(crate) seller: usize,
    /// Held until it is acknowledged or given up.
    pub(crate) passage: Passage,
    pub(crate) since: Duration,
    pub(crate) records: Vec<(String, Row)>,
    pub(crate) sent: Vec<Sent>,
    pub(crate) commit: PageCommit,
}

/// A batch on its way from the splitter.
pub(crate) struct Batch {
    pub(crate) passage: Passage,
    pub(crate) since: Duration,
    pub(crate) records: Vec<Pending>,
}

/// What a dead process had given to its client: it arrives within the client's timeout or not at all.
pub(crate) struct Ghost {
    pub(crate) since: Duration,
    pub(crate) records: Vec<Pending>,
    /// Of a poller: the seller, and what each record tells.
    pub(crate) sent: Option<(usize, Vec<Sent>)>,
}

/// Kills an engine at the point it is set to.
#[derive(Debug, Default)]
pub(crate) struct Trigger {
    left: AtomicI64,
    fired: Notify,
}

impl Trigger {
    /// Strikes at the `n`th point from now; a negative number never strikes.
    pub(crate) fn set(&self, n: i64) {
        self.left.store(n, Ordering::SeqCst);
    }

    pub(crate) async fn fired(&self) {
        self.fired.notified().await;
    }
}

#[async_trait]
impl Probe for Trigger {
    async fn reached(&self, _case: &CaseId, _point: Point) {
        if self.left.load(Ordering::SeqCst) >= 0 && self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.fired.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// A process that works cases.
pub(crate) struct Retainer {
    ring: Arc<Keyring>,
    pub(crate) engine: Engine,
    pub(crate) trigger: Arc<Trigger>,
}

impl Retainer {
    pub(crate) fn start(world: &World) -> Self {
        let (ring, trigger) = (world.process(), Arc::new(Trigger::default()));
        trigger.set(-1);
        let engine = world.engine_over(&ring).with_probe(trigger.clone());
        Self { ring, engine, trigger }
    }

    pub(crate) fn restart(&mut self, world: &World) {
        *self = Self::start(world);
    }

    pub(crate) const fn ring(&self) -> &Arc<Keyring> {
        &self.ring
    }
}
