//! A small world for cases: a key database, a log with a splitter and a cleaner, and two stores that really hold blocks. Everything
//! that a case calls can be made to fail once, before or after it took effect, and each store can misbehave.

mod fuse;
mod keys;
mod log;
mod store;

use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sunder_retention::admit::{Admission, Candidate};
use sunder_retention::case::{self, About, Engine, Files, Parts, Progress, RingKeys, Shown};
use sunder_retention::deadline::{self, Observed};
use sunder_retention::keyfiles::KeyFiles;
use sunder_retention::keys::{Context, Keyring};
use sunder_retention::testing::TestKeys;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{CaseId, KeyId, OrderId, SellerId};
use sunder_schemas::note::NoteSigner;
use sunder_schemas::time::{Clock, ManualClock, Period, Timestamp};

use fuse::Fuse;
use keys::FusedKeys;
use log::{FakeLog, key_of};
use store::FakeStore;
pub(crate) use store::Manner;

pub(crate) const START: Timestamp = Timestamp(1_795_305_600_000);

pub(crate) struct World {
    pub(crate) ring: Arc<Keyring>,
    pub(crate) log: Arc<FakeLog>,
    pub(crate) vault: Arc<FakeStore>,
    pub(crate) exports: Arc<FakeStore>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) system: Arc<ManualClock>,
    pub(crate) fuse: Arc<Fuse>,
    pub(crate) keys: TestKeys,
}

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

    /// One world for each kind of database that is to be had.
    pub(crate) async fn all() -> Vec<Self> {
        let mut all = vec![Self::new().await];
        let clock = Arc::new(ManualClock::at(START));
        if let Some(keys) = TestKeys::postgres(clock.clone(), deadline::Policy::default()).await {
            all.push(Self::over(keys, clock, true));
        }
        all
    }

    fn over(keys: TestKeys, clock: Arc<ManualClock>, is_durable: bool) -> Self {
        let ring = keys.keyring.clone();
        let fuse = Arc::new(Fuse::default());
        let log = Arc::new(FakeLog { state: Mutex::default(), fuse: fuse.clone(), is_durable });
        let store = |name| {
            Arc::new(FakeStore {
                name,
                log: log.clone(),
                fuse: fuse.clone(),
                rows: Mutex::default(),
                next: AtomicI64::new(0),
                manner: Mutex::default(),
            })
        };
        let (vault, exports) = (store("vault"), store("exports"));
        let system = Arc::new(ManualClock::at(Timestamp(START.0 - 1)));
        Self { ring, vault, exports, log, clock, system, fuse, keys }
    }

    /// A new engine, as after a restart.
    pub(crate) fn engine(&self) -> Engine {
        Engine::new(Parts {
            db: self.ring.db().clone(),
            keys: Arc::new(FusedKeys { inner: RingKeys::new(self.ring.clone()), fuse: self.fuse.clone() }),
            log: self.log.clone(),
            forget: vec![self.vault.clone(), self.exports.clone()],
            prove: vec![self.log.clone(), self.vault.clone(), self.exports.clone(), Arc::new(KeyFiles::new(self.ring.clone()))],
            clock: self.clock.clone(),
            system_clock: self.system.clone(),
            signer: Arc::new(signer()),
            about: About {
                tool: "sunder 0.1.0".into(),
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
        case::show(self.ring.db(), case).await.unwrap()
    }

    pub(crate) async fn certificate(&self, case: &CaseId) -> Files {
        case::certificate_files(self.ring.db(), case, &signer()).await.unwrap()
    }

    /// Admits an order and sends its sealed name through raw; returns its key and the record it becomes in `pii`.
    pub(crate) async fn order(&self, n: usize) -> (KeyId, (String, Vec<u8>)) {
        self.orders(n..n + 1).await.pop().unwrap()
    }

    /// The same for many, in one batch.
    pub(crate) async fn orders(&self, range: std::ops::Range<usize>) -> Vec<(KeyId, (String, Vec<u8>))> {
        let keys = self.ring.seller(&seller()).await.unwrap();
        let observed = Observed {
            created: self.clock.now().minus(Period::days(1)),
            last_updated: self.clock.now(),
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
        let admissions = self.ring.admit(&seller(), &candidates).await.unwrap();
        let sealed = candidates.iter().zip(admissions).map(|(candidate, admission)| {
            let Admission::Seal { key, .. } = admission else { panic!("the order is admitted: {admission:?}") };
            let entity = candidate.token;
            let context = Context { seller: &seller(), entity, group: FieldGroup::BuyerName, classification: "orders_2026-01-01#1" };
            let block = key.seal(&context, b"{\"name\":\"Canary Buyer\"}").into_bytes();
            (key.id(), (key_of(&seller(), entity, FieldGroup::BuyerName), block))
        });
        let sealed: Vec<_> = sealed.collect();
        self.log.state.lock().unwrap().raw.extend(sealed.iter().map(|(_, record)| record.clone()));
        sealed
    }

    /// Lets splitter and stores do their work.
    pub(crate) fn flow(&self) {
        self.log.state.lock().unwrap().split();
        self.vault.consume();
        self.exports.consume();
    }

    /// Works `case` with a new engine each time, moving the system's clock past the waits, until it is done, blocked, or waits for
    /// something that does not pass by itself.
    pub(crate) async fn work(&self, case: &CaseId) -> Progress {
        for _ in 0..40 {
            match self.engine().advance(case).await.unwrap() {
                Progress::Waiting { .. } => self.system.advance(Period::Millis(500)),
                Progress::Blocked { why } if why.ends_with("injected") => {}
                done => return done,
            }
        }
        self.engine().advance(case).await.unwrap()
    }
}
