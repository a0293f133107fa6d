//! A small world for cases: a key database, a log with a splitter and a cleaner, and stores that really hold rows and blocks. Everything
//! that a case calls can be made to fail once, before or after it took effect, and each store can misbehave.

pub(crate) mod fuse;
pub(crate) mod log;
pub(crate) mod stores;

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sunder_retention::admit::{Admission, Candidate};
use sunder_retention::case::{self, About, Engine, Files, Parts, Progress, RingKeys, Shown};
use sunder_retention::deadline::{self, Observed};
use sunder_retention::keydb::KeyDb;
use sunder_retention::keyfiles::KeyFiles;
use sunder_retention::keys::{Context, Keyring};
use sunder_retention::root::{FileRoot, RootKey};
use sunder_retention::store::Prove;
use sunder_retention::testing::TestKeys;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{CaseId, KeyId, OrderId, SellerId};
use sunder_schemas::note::NoteSigner;
use sunder_schemas::time::{Clock, ManualClock, Period, Timestamp};

use fuse::{Fuse, FusedKeys};
use log::{FakeLog, Row, Topic, key_of, state_key};
pub(crate) use stores::{FakeStore, Manner};

pub(crate) const START: Timestamp = Timestamp(1_795_305_600_000);
/// The catalogue version that blocks of this world are bound to.
pub(crate) const CLASSIFICATION: &str = "orders_2026-01-01#1";

pub(crate) struct World {
    pub(crate) ring: Arc<Keyring>,
    pub(crate) log: Arc<FakeLog>,
    pub(crate) vault: Arc<FakeStore>,
    pub(crate) exports: Arc<FakeStore>,
    pub(crate) warehouse: Arc<FakeStore>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) system: Arc<ManualClock>,
    pub(crate) fuse: Arc<Fuse>,
    pub(crate) keys: TestKeys,
    /// Instead of the one in the folder of the keys.
    root: Option<Arc<dyn RootKey>>,
    /// Whether a case reads the key database's files: the costly part of a small case.
    pub(crate) reads_key_files: bool,
}

/// An order on its way: its key, and the record it becomes in `pii`.
pub(crate) type Sent = (KeyId, (Topic, String, Row));

pub(crate) fn seller() -> SellerId {
    SellerId::parse("A1SELLER").unwrap()
}

pub(crate) fn signer() -> NoteSigner {
    NoteSigner::from_seed("example.com/sunder", &[9; 32]).unwrap()
}

pub(crate) fn order(n: usize) -> OrderId {
    OrderId::parse(&format!("111-{n:07}-0000000")).unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(true).await
    }

    pub(crate) async fn with(is_durable: bool) -> Self {
        let clock = Arc::new(ManualClock::at(START));
        let keys = TestKeys::sqlite(clock.clone(), deadline::Policy::default()).await;
        Self::over(keys, clock, is_durable)
    }

    /// On PostgreSQL, if a server is to be had.
    pub(crate) async fn postgres() -> Option<Self> {
        let clock = Arc::new(ManualClock::at(START));
        Some(Self::over(TestKeys::postgres(clock.clone(), deadline::Policy::default()).await?, clock, true))
    }

    /// One world for each kind of database that is to be had.
    pub(crate) async fn all() -> Vec<Self> {
        let mut all = vec![Self::new().await];
        all.extend(Self::postgres().await);
        all
    }

    fn over(keys: TestKeys, clock: Arc<ManualClock>, is_durable: bool) -> Self {
        let ring = keys.keyring.clone();
        let fuse = Arc::new(Fuse::default());
        let log = Arc::new(FakeLog { state: Mutex::default(), fuse: fuse.clone(), is_durable });
        let store = |name, topic| Arc::new(FakeStore::new(name, topic, log.clone(), fuse.clone()));
        let (vault, exports, warehouse) = (store("vault", Topic::Pii), store("exports", Topic::Pii), store("warehouse", Topic::State));
        let system = Arc::new(ManualClock::at(Timestamp(START.0 - 1)));
        Self { ring, vault, exports, warehouse, log, clock, system, fuse, keys, root: None, reads_key_files: true }
    }

    /// Another process: its own caches and lease over the same database.
    pub(crate) fn process(&self) -> Arc<Keyring> {
        self.process_on(self.ring.db().clone())
    }

    fn process_on(&self, db: KeyDb) -> Arc<Keyring> {
        let own = || Arc::new(FileRoot::open(&self.keys.folder.path().join("root.key")).unwrap());
        let root = self.root.clone().unwrap_or_else(|| own());
        Arc::new(Keyring::new(db, root, self.clock.clone(), *self.ring.policy()))
    }

    /// The same world over `root`; nothing may have been made yet.
    pub(crate) fn with_root(mut self, root: Arc<dyn RootKey>) -> Self {
        self.root = Some(root);
        self.ring = self.process();
        self
    }

    /// The key database is lost, and the copy in `backup` takes its place. Every other pool on it must be gone.
    pub(crate) async fn restore_keys(&mut self, backup: &Path) {
        self.ring.db().close().await;
        let file = self.keys.folder.path().join("keys.db");
        for suffix in ["-wal", "-shm"] {
            drop(std::fs::remove_file(format!("{}{suffix}", file.display())));
        }
        std::fs::copy(backup, &file).unwrap();
        self.ring = self.process_on(KeyDb::open(&self.keys.url, None).await.unwrap());
    }

    pub(crate) fn stores(&self) -> [&Arc<FakeStore>; 3] {
        [&self.vault, &self.exports, &self.warehouse]
    }

    /// A new engine, as after a restart.
    pub(crate) fn engine(&self) -> Engine {
        self.engine_over(&self.ring)
    }

    /// A new engine of another process, over its own keyring.
    pub(crate) fn engine_over(&self, ring: &Arc<Keyring>) -> Engine {
        let mut prove: Vec<Arc<dyn Prove>> = vec![self.log.clone(), self.vault.clone(), self.exports.clone(), self.warehouse.clone()];
        if self.reads_key_files {
            prove.push(Arc::new(KeyFiles::new(ring.clone())));
        }
        Engine::new(Parts {
            db: ring.db().clone(),
            keys: Arc::new(FusedKeys { inner: RingKeys::new(ring.clone()), fuse: self.fuse.clone() }),
            log: self.log.clone(),
            forget: vec![self.vault.clone(), self.exports.clone(), self.warehouse.clone()],
            prove,
            clock: self.clock.clone(),
            system_clock: self.system.clone(),
            signer: Arc::new(signer()),
            about: About {
                tool: "sunder 0.1.0".into(),
                issuer: Some("Example GmbH, Berlin, privacy@example.com".into()),
                operator: "retain".into(),
                validator: "verify".into(),
                policy_version: "retention/1".into(),
                policy: json!({"personal_after_delivery": "30d"}),
                request_due: Period::days(30),
                expiry_due: Period::days(2),
            },
        })
    }

    pub(crate) async fn show(&self, case: &CaseId) -> Shown {
        case::show(self.ring.db(), case, self.clock.now()).await.unwrap()
    }

    /// Every case, oldest first.
    pub(crate) async fn cases(&self) -> Vec<Shown> {
        case::list(self.ring.db(), self.clock.now()).await.unwrap()
    }

    pub(crate) async fn steps(&self, case: &CaseId) -> Vec<&'static str> {
        self.show(case).await.events.iter().map(|event| event.step).collect()
    }

    pub(crate) async fn certificate(&self, case: &CaseId) -> Files {
        case::certificate_files(self.ring.db(), case, &signer()).await.unwrap()
    }

    /// Admits an order and sends its sealed name through raw; returns its key and the record it becomes in `pii`.
    pub(crate) async fn order(&self, n: usize) -> Sent {
        self.orders(n..n + 1).await.pop().unwrap()
    }

    /// The same for many, in one batch.
    pub(crate) async fn orders(&self, range: std::ops::Range<usize>) -> Vec<Sent> {
        self.orders_of(&seller(), range).await
    }

    /// The same for another seller.
    pub(crate) async fn orders_of(&self, seller: &SellerId, range: std::ops::Range<usize>) -> Vec<Sent> {
        let keys = self.ring.seller(seller).await.unwrap();
        let observed = Observed {
            created: self.clock.now().minus(Period::days(1)),
            last_updated: self.clock.now(),
            asked_at: None,
            previous_look: None,
            progress: deadline::Progress::Open,
            delivery_visible: false,
            latest_promise: None,
            last_ship_time: None,
            packages: 0,
            packages_delivered: 0,
            delivered_at: None,
        };
        let candidates: Vec<Candidate> = range
            .map(|n| {
                let (token, version) = (keys.order_token(&order(n)), i64::try_from(n).unwrap());
                Candidate {
                    fingerprint: keys.fingerprint(&order(n)),
                    token,
                    observed,
                    source_version: version,
                    event_id: keys.event_id("orders", token, version, "00"),
                    wants_key: true,
                }
            })
            .collect();
        let admissions = self.ring.admit(seller, &candidates).await.unwrap();
        let mut log = self.log.lock();
        let sealed = candidates.iter().zip(admissions).map(|(candidate, admission)| {
            let Admission::Seal { key, .. } = admission else { panic!("the order is admitted: {admission:?}") };
            let entity = candidate.token;
            let context = Context { seller, entity, group: FieldGroup::BuyerName, classification: CLASSIFICATION };
            let block = key.seal(&context, b"{\"name\":\"Canary Buyer\"}").into_bytes();
            let event = candidate.event_id.to_string();
            let row = Row { version: candidate.source_version, event, block };
            log.append(Topic::Raw, &format!("{}|{}", state_key(seller, entity), row.event), Some(row.clone()));
            (key.id(), (Topic::Pii, key_of(seller, entity, FieldGroup::BuyerName), row))
        });
        sealed.collect()
    }

    /// Lets splitter and stores do their work.
    pub(crate) fn flow(&self) {
        self.log.lock().split_all(None);
        for store in self.stores() {
            store.consume(usize::MAX, None);
        }
    }

    /// Works all cases, moving the system's clock past the waits, until none waits for something that passes by itself.
    pub(crate) async fn work_all(&self) -> Vec<(CaseId, Progress)> {
        let engine = self.engine();
        for _ in 0..20 {
            let done = engine.advance_all().await.unwrap();
            if done.iter().all(|(_, progress)| !matches!(progress, Progress::Waiting { .. })) {
                return done;
            }
            self.system.advance(Period::Millis(500));
        }
        engine.advance_all().await.unwrap()
    }

    /// Works `case`, moving the system's clock past the waits and with a new engine after each failure, until it is done, blocked, or
    /// waits for something that does not pass by itself.
    pub(crate) async fn work(&self, case: &CaseId) -> Progress {
        let mut engine = self.engine();
        for _ in 0..40 {
            match engine.advance(case).await.unwrap() {
                Progress::Waiting { .. } => self.system.advance(Period::Millis(500)),
                Progress::Blocked { why } if why.ends_with("injected") => engine = self.engine(),
                done => return done,
            }
        }
        engine.advance(case).await.unwrap()
    }
}
