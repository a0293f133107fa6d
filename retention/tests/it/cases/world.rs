//! A small world for cases: a key database, a log with a splitter and a cleaner, and two stores that really hold blocks. Everything
//! that a case calls can be made to fail once, before or after it took effect, and each store can misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use sunder_retention::admit::{Admission, Candidate};
use sunder_retention::case::{self, About, CaseError, Engine, Files, Keys, Listed, Parts, Progress, Record, RingKeys, Shown};
use sunder_retention::deadline::{self, Observed};
use sunder_retention::keydb::Write;
use sunder_retention::keyfiles::KeyFiles;
use sunder_retention::keys::{Context, Keyring};
use sunder_retention::store::{
    Control, EventLog, Extent, Forget, FoundBlock, Mark, Needles, OutboxRecord, Place, Prove, Residual, ScanReport, StoreError, Subject,
};
use sunder_retention::testing::TestKeys;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint, KeyId, Offset, OrderId, Partition, SellerId};
use sunder_schemas::note::NoteSigner;
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::{Clock, ManualClock, Period, Timestamp};
use zeroize::Zeroizing;

pub(crate) const PII: &str = "sp.pii.orders.v1";
pub(crate) const RAW: &str = "sp.raw.orders.v1";
pub(crate) const START: Timestamp = Timestamp(1_795_305_600_000);

/// Fails one call: the `n`th from now, before or after it took effect.
#[derive(Debug, Default)]
pub(crate) struct Fuse {
    left: AtomicI64,
    after: AtomicBool,
    armed: AtomicBool,
    pub(crate) calls: AtomicU64,
}

impl Fuse {
    pub(crate) fn arm(&self, n: i64, after: bool) {
        self.left.store(n, Ordering::SeqCst);
        self.after.store(after, Ordering::SeqCst);
        self.armed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn blew(&self) -> bool {
        !self.armed.load(Ordering::SeqCst)
    }

    fn fails(&self, after: bool) -> bool {
        if after == self.after.load(Ordering::SeqCst) && self.armed.load(Ordering::SeqCst) && self.left.fetch_sub(1, Ordering::SeqCst) == 0
        {
            self.armed.store(false, Ordering::SeqCst);
            return true;
        }
        false
    }

    fn call<T>(&self, effect: impl FnOnce() -> T) -> Result<T, StoreError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.fails(false) {
            return Err(injected());
        }
        let value = effect();
        if self.fails(true) { Err(injected()) } else { Ok(value) }
    }
}

fn injected() -> StoreError {
    StoreError { store: "world".into(), action: "go on".into(), code: "injected".into() }
}

#[derive(Debug, Clone)]
struct LogRecord {
    offset: i64,
    key: String,
    value: Option<Vec<u8>>,
}

/// One partition of `pii`, one of `raw`.
#[derive(Debug, Default)]
pub(crate) struct LogState {
    pii: Vec<LogRecord>,
    next: i64,
    raw: Vec<(String, Vec<u8>)>,
    split: usize,
    pub(crate) published: Vec<OutboxRecord>,
    pub(crate) drift: Vec<String>,
    pub(crate) is_splitter_down: bool,
    pub(crate) is_cleaner_down: bool,
    pub(crate) is_blind: bool,
    /// How often removal was forced.
    pub(crate) rolls: usize,
    /// Appended behind the tombstones, once, when the barrier is set.
    pub(crate) late: Vec<(String, Vec<u8>)>,
    /// Appended behind every tombstone, for ever.
    pub(crate) always_late: Option<(String, Vec<u8>)>,
}

impl LogState {
    fn append(&mut self, key: String, value: Option<Vec<u8>>) -> i64 {
        let offset = self.next;
        self.next += 1;
        self.pii.push(LogRecord { offset, key, value });
        offset
    }

    fn clean(&mut self) {
        let mut last = BTreeMap::new();
        for record in &self.pii {
            last.insert(record.key.clone(), record.offset);
        }
        self.pii.retain(|record| last.get(&record.key) == Some(&record.offset));
    }

    /// Lays `value` under `key`, as the splitter would.
    pub(crate) fn put(&mut self, key: &str, value: &[u8]) {
        self.append(key.to_owned(), Some(value.to_vec()));
    }

    pub(crate) fn wake_cleaner(&mut self) {
        self.is_cleaner_down = false;
        self.clean();
    }

    fn split(&mut self) {
        while let Some((key, value)) = self.raw.get(self.split).cloned() {
            self.split += 1;
            self.append(key, Some(value));
        }
    }
}

pub(crate) struct FakeLog {
    pub(crate) state: Mutex<LogState>,
    fuse: Arc<Fuse>,
    pub(crate) is_durable: bool,
}

fn mark(topic: &str, offset: i64) -> Mark {
    Mark { topic: topic.into(), incarnation: "topic-id-1".into(), partition: Partition(0), offset: Offset(offset) }
}

fn key_of(seller: &SellerId, token: EntityToken, group: FieldGroup) -> String {
    format!("{seller}|{token}|{group}")
}

fn contains(bytes: &[u8], key: KeyId) -> bool {
    let header = SealedBlock::header(key);
    bytes.windows(header.len()).any(|window| window == header)
}

#[async_trait]
impl EventLog for FakeLog {
    async fn publish(&self, records: &[OutboxRecord]) -> Result<(), StoreError> {
        self.fuse.call(|| self.state.lock().unwrap().published.extend_from_slice(records))
    }

    async fn tombstone(&self, _case: &str, subjects: &[Subject], _extent: Extent) -> Result<Vec<Mark>, StoreError> {
        self.fuse.call(|| {
            let mut state = self.state.lock().unwrap();
            for subject in subjects {
                for group in FieldGroup::ALL {
                    state.append(key_of(&subject.seller, subject.token, *group), None);
                }
            }
            let marks = vec![mark(PII, state.next - 1)];
            if let Some((key, value)) = state.always_late.clone() {
                state.append(key, Some(value));
            }
            marks
        })
    }

    async fn raw_ends(&self) -> Result<Vec<Mark>, StoreError> {
        self.fuse.call(|| vec![mark(RAW, i64::try_from(self.state.lock().unwrap().raw.len()).unwrap() - 1)])
    }

    async fn split_past(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        self.fuse.call(|| {
            let mut state = self.state.lock().unwrap();
            if !state.is_splitter_down {
                state.split();
            }
            let split = i64::try_from(state.split).unwrap();
            marks.iter().all(|mark| mark.offset.0 < split)
        })
    }

    async fn barrier(&self) -> Result<Vec<Mark>, StoreError> {
        self.fuse.call(|| {
            let mut state = self.state.lock().unwrap();
            for (key, value) in std::mem::take(&mut state.late) {
                state.append(key, Some(value));
            }
            let offset = state.append("~hb".into(), None);
            if !state.is_cleaner_down {
                state.clean();
            }
            vec![mark(PII, offset)]
        })
    }

    async fn entities(&self, seller: &SellerId) -> Result<Vec<EntityToken>, StoreError> {
        self.fuse.call(|| {
            let state = self.state.lock().unwrap();
            let of_seller = state.pii.iter().filter(|record| record.value.is_some());
            let parts = of_seller.filter_map(|record| record.key.strip_prefix(&format!("{seller}|"))?.split('|').next());
            parts.filter_map(|token| EntityToken::parse(token).ok()).collect()
        })
    }

    async fn roll(&self, _case: &str, _subjects: &[Subject], _extent: Extent) -> Result<bool, StoreError> {
        self.fuse.call(|| {
            let mut state = self.state.lock().unwrap();
            state.rolls += 1;
            state.clean();
            true
        })
    }

    fn message_timeout(&self) -> Duration {
        Duration::from_secs(2)
    }

    async fn drift(&self) -> Result<Vec<String>, StoreError> {
        self.fuse.call(|| self.state.lock().unwrap().drift.clone())
    }

    fn is_durable(&self) -> bool {
        self.is_durable
    }

    async fn describe(&self) -> Result<serde_json::Value, StoreError> {
        self.fuse.call(|| json!({"topics": [{"name": PII, "partitions": 1, "replicas": 1, "cleanup.policy": "compact,delete"}]}))
    }
}

#[async_trait]
impl Prove for FakeLog {
    fn name(&self) -> &str {
        "log"
    }

    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        self.fuse.call(|| {
            let key = format!("~canary|{}|live", control.case);
            self.state.lock().unwrap().append(key, Some(control.block.clone()));
        })
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        self.fuse.call(|| {
            let state = self.state.lock().unwrap();
            let barrier = needles.barrier.iter().find(|mark| mark.topic == PII).map_or(i64::MAX, |mark| mark.offset.0);
            let read: Vec<_> = state.pii.iter().filter(|record| record.offset <= barrier && !state.is_blind).collect();
            let value = |record: &&LogRecord| record.value.clone().unwrap_or_default();
            ScanReport {
                store: "log".into(),
                method: "every record up to the barrier".into(),
                places: vec![Place { name: format!("{PII}[0]"), read: format!("{} records", read.len()) }],
                found: read
                    .iter()
                    .flat_map(|record| {
                        let value = value(record);
                        let place = format!("{PII}[0]@{}", record.offset);
                        needles
                            .keys
                            .iter()
                            .filter(|key| contains(&value, **key))
                            .map(|key| FoundBlock { place: place.clone(), key: *key, block: value.clone() })
                            .collect::<Vec<_>>()
                    })
                    .collect(),
                controls_planted: 1,
                controls_found: u64::from(read.iter().any(|record| needles.controls.iter().any(|key| contains(&value(record), *key)))),
                residual: vec![Residual {
                    what: format!("{RAW}: sealed events until their retention"),
                    until: Some(START.plus(Period::days(38))),
                }],
            }
        })
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        self.fuse.call(|| self.state.lock().unwrap().append(format!("~canary|{case}|live"), None)).map(|_| ())
    }
}

/// How a store misbehaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    #[default]
    Honest,
    /// Says that it deleted, and did not.
    Lies,
    /// Cannot be read.
    Unreadable,
    /// Loses the control.
    Forgetful,
    /// Never catches up.
    Behind,
}

/// A store fed from the log.
pub(crate) struct FakeStore {
    name: &'static str,
    log: Arc<FakeLog>,
    fuse: Arc<Fuse>,
    pub(crate) rows: Mutex<BTreeMap<String, Vec<u8>>>,
    next: AtomicI64,
    pub(crate) manner: Mutex<Manner>,
}

impl FakeStore {
    pub(crate) fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn manner(&self) -> Manner {
        *self.manner.lock().unwrap()
    }

    fn consume(&self) {
        let state = self.log.state.lock().unwrap();
        let mut rows = self.rows.lock().unwrap();
        let from = self.next.load(Ordering::SeqCst);
        for record in state.pii.iter().filter(|record| record.offset >= from && !record.key.starts_with('~')) {
            match &record.value {
                Some(value) => drop(rows.insert(record.key.clone(), value.clone())),
                None if self.manner() == Manner::Lies => {}
                None => drop(rows.remove(&record.key)),
            }
        }
        self.next.store(state.next, Ordering::SeqCst);
    }
}

#[async_trait]
impl Forget for FakeStore {
    fn name(&self) -> &str {
        self.name
    }

    async fn caught_up(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        self.fuse.call(|| {
            if self.manner() != Manner::Behind {
                self.consume();
            }
            marks.iter().filter(|mark| mark.topic == PII).all(|mark| mark.offset.0 < self.next.load(Ordering::SeqCst))
        })
    }

    async fn forget(&self, subjects: &[Subject], _extent: Extent) -> Result<u64, StoreError> {
        self.fuse.call(|| {
            let mut rows = self.rows.lock().unwrap();
            let before = rows.len();
            if self.manner() != Manner::Lies {
                let gone: BTreeSet<String> = subjects.iter().map(|subject| format!("{}|{}", subject.seller, subject.token)).collect();
                rows.retain(|key, _| !key.rsplit_once('|').is_some_and(|(subject, _)| gone.contains(subject)));
            }
            u64::try_from(before - rows.len()).unwrap()
        })
    }
}

#[async_trait]
impl Prove for FakeStore {
    fn name(&self) -> &str {
        self.name
    }

    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        self.fuse.call(|| drop(self.rows.lock().unwrap().insert(format!("~canary|{}", control.case), control.block.clone())))
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        if self.manner() == Manner::Unreadable {
            return Err(StoreError { store: self.name.into(), action: "scan sealed_block".into(), code: "io".into() });
        }
        self.fuse.call(|| {
            let rows = self.rows.lock().unwrap();
            let found = |keys: &[KeyId]| {
                rows.values()
                    .filter_map(|row| keys.iter().find(|key| contains(row, **key)).map(|key| (*key, row.clone())))
                    .collect::<Vec<_>>()
            };
            ScanReport {
                store: self.name.into(),
                method: "every row".into(),
                places: vec![Place { name: format!("{}.rows", self.name), read: format!("{} rows", rows.len()) }],
                found: found(&needles.keys)
                    .into_iter()
                    .map(|(key, block)| FoundBlock { place: format!("{}.rows", self.name), key, block })
                    .collect(),
                controls_planted: 1,
                controls_found: if self.manner() == Manner::Forgetful { 0 } else { u64::try_from(found(&needles.controls).len()).unwrap() },
                residual: Vec::new(),
            }
        })
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        self.fuse.call(|| drop(self.rows.lock().unwrap().remove(&format!("~canary|{case}"))))
    }
}

/// The real keys, behind the fuse.
struct FusedKeys {
    inner: RingKeys,
    fuse: Arc<Fuse>,
}

impl FusedKeys {
    fn before(&self) -> Result<(), CaseError> {
        self.fuse.calls.fetch_add(1, Ordering::SeqCst);
        if self.fuse.fails(false) { Err(injected().into()) } else { Ok(()) }
    }

    fn after<T>(&self, value: T) -> Result<T, CaseError> {
        if self.fuse.fails(true) { Err(injected().into()) } else { Ok(value) }
    }
}

#[async_trait]
impl Keys for FusedKeys {
    async fn identify(&self, seller: &SellerId, order: &OrderId) -> Result<(Fingerprint, EntityToken), CaseError> {
        self.inner.identify(seller, order).await
    }
    async fn due(&self, now: Timestamp) -> Result<Vec<SellerId>, CaseError> {
        self.inner.due(now).await
    }
    async fn destroy(&self, tx: &mut Write, record: &Record, subjects: &[Listed], at: Timestamp) -> Result<i64, CaseError> {
        self.before()?;
        let epoch = self.inner.destroy(tx, record, subjects, at).await?;
        self.after(epoch)
    }
    async fn remove_seller(&self, seller: &SellerId) -> Result<(), CaseError> {
        self.before()?;
        self.inner.remove_seller(seller).await?;
        self.after(())
    }
    async fn destroy_seller_keys(&self, tx: &mut Write, seller: &SellerId) -> Result<(), CaseError> {
        self.before()?;
        self.inner.destroy_seller_keys(tx, seller).await?;
        self.after(())
    }
    async fn audit(
        &self,
        tx: &mut Write,
        case: &CaseId,
        step: &'static str,
        at: Timestamp,
        detail: &serde_json::Value,
    ) -> Result<(), CaseError> {
        self.before()?;
        self.inner.audit(tx, case, step, at, detail).await?;
        self.after(())
    }
    async fn acknowledged(&self, epoch: i64) -> Result<bool, CaseError> {
        self.before()?;
        let done = self.inner.acknowledged(epoch).await?;
        self.after(done)
    }
    async fn publish(&self, log: &dyn EventLog) -> Result<(), CaseError> {
        self.before()?;
        self.inner.publish(log).await?;
        self.after(())
    }
    async fn wrapped_needles(&self, seller: &SellerId, subjects: &[Listed]) -> Result<Vec<Vec<u8>>, CaseError> {
        self.before()?;
        self.inner.wrapped_needles(seller, subjects).await
    }
    async fn rewrite(&self) -> Result<(), CaseError> {
        self.before()?;
        self.inner.rewrite().await?;
        self.after(())
    }
    async fn surviving(&self, seller: &SellerId, most: usize) -> Result<Vec<Zeroizing<Vec<u8>>>, CaseError> {
        self.before()?;
        self.inner.surviving(seller, most).await
    }
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, CaseError> {
        self.before()?;
        self.inner.wrap(context, key).await
    }
    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, CaseError> {
        self.before()?;
        self.inner.unwrap(context, wrapped).await
    }
    fn backups(&self) -> Period {
        self.inner.backups()
    }
}

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
