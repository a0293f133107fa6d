//! The crash matrix: a process that works a case is killed at every point of every step, for every kind of case; each time a fresh one
//! comes to the same end. Killed means that its future is dropped there: what was committed stays, everything else is gone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;
use sunder_retention::case::{Engine, EraseRequest, Moment, Point, Probe, Progress, Reason, Scope};
use sunder_retention::ledger::SubjectState;
use sunder_schemas::certificate::check;
use sunder_schemas::ids::CaseId;
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::{Clock as _, ManualClock, Period};
use tokio::sync::Notify;

use super::{STRAIGHT, request};
use crate::world::log::{Topic, contains};
use crate::world::{Sent, World, order, seller};

/// Counts points and holds a case at one of them for ever.
#[derive(Default)]
pub(super) struct Killer {
    at: Option<usize>,
    /// Or the first point of this kind.
    at_point: Option<Point>,
    passed: AtomicUsize,
    points: Mutex<Vec<Point>>,
    killed: Notify,
}

impl Killer {
    fn at(n: usize) -> Arc<Self> {
        Arc::new(Self { at: Some(n), ..Self::default() })
    }

    /// Strikes at the first such point.
    pub(super) fn at_first(action: &'static str, moment: Moment) -> Arc<Self> {
        Arc::new(Self { at_point: Some(Point { action, moment }), ..Self::default() })
    }

    pub(super) async fn killed(&self) {
        self.killed.notified().await;
    }

    fn points(&self) -> Vec<Point> {
        self.points.lock().unwrap().clone()
    }
}

#[async_trait]
impl Probe for Killer {
    async fn reached(&self, _case: &CaseId, point: Point) {
        self.points.lock().unwrap().push(point);
        if Some(point) == self.at_point {
            self.killed.notify_one();
            std::future::pending::<()>().await;
        }
        // After one action and before the next are one moment to a process that dies.
        if point.moment == Moment::After && point.action != "certify" {
            return;
        }
        if Some(self.passed.fetch_add(1, Ordering::SeqCst)) == self.at {
            self.killed.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// A kind of case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Two orders of a buyer.
    Orders,
    /// An order that was never held.
    Unknown,
    /// Everything of a seller, personal data alone.
    All,
    /// An order with its business data.
    WithBusinessData,
    /// A seller that leaves.
    Offboarding,
    /// What is due.
    Expiry,
    /// An order whose removal is forced.
    Forced,
}

const KINDS: [Kind; 7] = [Kind::Orders, Kind::Unknown, Kind::All, Kind::WithBusinessData, Kind::Offboarding, Kind::Expiry, Kind::Forced];

impl Kind {
    fn request(self) -> EraseRequest {
        let base = request(&[1]);
        match self {
            Self::Orders | Self::Expiry => request(&[1, 2]),
            Self::Unknown => request(&[77]),
            Self::All => EraseRequest { scope: Scope::All, ..base },
            Self::WithBusinessData => EraseRequest { reason: Reason::AmazonRequest, ..base },
            Self::Offboarding => {
                EraseRequest { scope: Scope::All, reason: Reason::SellerOffboarding, with_business_data: Some(true), ..base }
            }
            Self::Forced => EraseRequest { now: true, ..base },
        }
    }

    /// The orders that go, of the three there are.
    const fn goes(self) -> &'static [usize] {
        match self {
            Self::Orders => &[1, 2],
            Self::Unknown => &[],
            Self::WithBusinessData | Self::Forced => &[1],
            Self::All | Self::Offboarding | Self::Expiry => &[1, 2, 3],
        }
    }

    const fn takes_business_data(self) -> bool {
        matches!(self, Self::WithBusinessData | Self::Offboarding)
    }

    fn steps(self) -> Vec<&'static str> {
        if self == Self::Forced { [&STRAIGHT[..11], &["roll_intended", "rolled"], &STRAIGHT[11..]].concat() } else { STRAIGHT.to_vec() }
    }

    /// Three orders that have flown everywhere, and a second version of each that is still in raw.
    async fn prepare(self, world: &World) -> Vec<Sent> {
        world.orders(1..4).await;
        world.flow();
        let sent = world.orders(1..4).await;
        if self == Self::Expiry {
            world.clock.advance(Period::days(70));
        }
        sent
    }

    /// Opens the case, or finds it where it was opened before.
    async fn open(self, world: &World, engine: &Engine) -> CaseId {
        if let Some(shown) = world.cases().await.into_iter().next() {
            return shown.id;
        }
        if self == Self::Expiry {
            let opened = engine.sweep(world.clock.now()).await.unwrap();
            return opened.into_iter().next().expect("three orders are due");
        }
        engine.request(&self.request()).await.unwrap()
    }

    /// Works the case to its end, past every wait.
    async fn work(self, world: &World, engine: &Engine) -> CaseId {
        let case = self.open(world, engine).await;
        loop {
            match engine.advance(&case).await.unwrap() {
                Progress::Done => return case,
                Progress::Waiting { .. } => world.system.advance(Period::Millis(500)),
                Progress::Blocked { why } => panic!("{self:?}: {why}"),
            }
        }
    }

    /// Works until the case is done or the killer struck: then what ran is dropped where it stood.
    async fn run_until(self, world: &World, killer: &Arc<Killer>) -> Option<CaseId> {
        let engine = world.engine().with_probe(killer.clone());
        tokio::select! {
            biased;
            () = killer.killed() => None,
            case = self.work(world, &engine) => Some(case),
        }
    }

    /// What every run of this kind must come to, however often it was cut off.
    async fn check(self, world: &World, case: &CaseId, sent: &[Sent], says: &str) {
        let mut steps = world.steps(case).await;
        if world.keys.engine == "postgres" {
            // A rewrite keeps what another connection's snapshot may still see (an autovacuum's); then the case goes round once more.
            steps.retain(|step| *step != "found_again" && !step.ends_with("_again"));
        }
        assert_eq!(steps, self.steps(), "{says}: every step once");
        assert_eq!(world.cases().await.len(), 1, "{says}: one case");
        let files = world.certificate(case).await;
        let checked = check(&files.note, &files.verifier_key, Some(&files.proof), Some(&files.statement)).expect(says);
        let keys = u64::try_from(self.goes().len()).unwrap();
        assert_eq!((checked.statement.subjects.keys, checked.statement.recover.tried), (keys, keys), "{says}");
        assert_eq!((checked.statement.recover.opened, checked.statement.scan.found, checked.leaf), (0, 0, Some(0)), "{says}");
        let row = sqlx::query("SELECT COUNT(*) FROM certificate_leaf").fetch_one(world.ring.db().pool()).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), 1, "{says}: one certificate");
        self.check_ledger(world, case, says).await;
        self.check_places(world, sent, says).await;
        let report = world.engine().verify(case).await.unwrap();
        assert!(report.holds, "{says}: {report:?}");
        crate::support::verified(world.ring.db()).await.expect(says);
    }

    async fn check_ledger(self, world: &World, case: &CaseId, says: &str) {
        let rows = sqlx::query("SELECT state, CASE WHEN wrapped IS NULL THEN 1 ELSE 0 END, case_id FROM subject WHERE key_id IS NOT NULL")
            .fetch_all(world.ring.db().pool())
            .await
            .unwrap();
        let gone = rows.iter().filter(|row| row.get::<String, _>(0) == "destroyed").count();
        assert_eq!((rows.len(), gone), (3, self.goes().len()), "{says}");
        for row in rows.iter().filter(|row| row.get::<String, _>(0) == "destroyed") {
            let is_null = row.try_get::<i64, _>(1).or_else(|_| row.try_get::<i32, _>(1).map(i64::from)).unwrap();
            assert_eq!((is_null, row.get::<String, _>(2)), (1, case.to_string()), "{says}: its key is gone");
        }
        let log = world.log.lock();
        let told =
            |topic: &str| log.published.iter().filter(|record| record.topic == topic).map(|record| record.key.clone()).collect::<Vec<_>>();
        let mut revoked = told("keys.revoked");
        revoked.sort();
        revoked.dedup();
        assert!(revoked.len() >= self.goes().len(), "{says}: {revoked:?}");
        assert!(told("privacy.requests").iter().all(|key| key == case.as_str()), "{says}");
        assert!(told("privacy.certificates").iter().all(|key| key == case.as_str()), "{says}");
    }

    async fn check_places(self, world: &World, sent: &[Sent], says: &str) {
        for (n, (key, (_, place, _))) in (1..).zip(sent) {
            let goes = self.goes().contains(&n);
            let in_log =
                world.log.lock().records(&Topic::KEPT).any(|(_, _, r)| r.value.as_ref().is_some_and(|row| contains(&row.block, *key)));
            let in_stores = world.stores().iter().any(|store| store.holds_block(*key));
            assert_eq!((in_log, in_stores), (!goes, !goes), "{says}: block of order {n}");
            let own = place.rsplit_once('|').unwrap().0;
            let has_row = world.warehouse.has(own);
            assert_eq!(has_row, !(goes && self.takes_business_data()), "{says}: row of order {n}");
            let told = world.log.lock().records(&[Topic::Events]).any(|(_, _, r)| r.value.is_some() && r.key.starts_with(own));
            assert_eq!(told, !(goes && self.takes_business_data()), "{says}: history of order {n}");
        }
        if self == Self::Offboarding {
            return;
        }
        let keys = world.ring.seller(&seller()).await.unwrap();
        for n in 1..4 {
            let state = world.ring.subject(&seller(), keys.order_token(&order(n))).await.unwrap();
            assert_eq!(matches!(state, SubjectState::Destroyed), self.goes().contains(&n), "{says}: order {n} is {state:?}");
        }
        if self == Self::Unknown {
            let state = world.ring.subject(&seller(), keys.order_token(&order(77))).await.unwrap();
            assert!(matches!(state, SubjectState::Destroyed), "{says}: {state:?}");
        }
        let survivor = sent.iter().zip(1..).find(|(_, n)| !self.goes().contains(n));
        if let Some(((key, (_, _, row)), _)) = survivor {
            assert_eq!(SealedBlock::key_of(&row.block).unwrap(), *key, "{says}");
        }
    }
}

/// Kills the run at point `first`, its successor at the point `then` of its own, and lets a third end it. `None` once there is no such point.
async fn killed_at(kind: Kind, world: &World, first: usize, then: Option<usize>) -> Option<Vec<Point>> {
    let sent = kind.prepare(world).await;
    let killer = Killer::at(first);
    if kind.run_until(world, &killer).await.is_some() {
        return None;
    }
    let mut says = format!("{} {kind:?} killed at {first} {:?}", world.keys.engine, killer.points().last());
    if let Some(then) = then {
        let killer = Killer::at(then);
        if kind.run_until(world, &killer).await.is_none() {
            says = format!("{says} and at {then} {:?}", killer.points().last());
        }
    }
    let case = kind.run_until(world, &Arc::default()).await.expect("nobody kills the last");
    kind.check(world, &case, &sent, &says).await;
    Some(killer.points())
}

/// Every action is held before, in and after, and every one of these is a kill in the matrix below.
#[tokio::test]
async fn every_action_has_points_before_in_and_after() {
    for kind in KINDS {
        let world = World::new().await;
        kind.prepare(&world).await;
        let watcher = Arc::new(Killer::default());
        kind.run_until(&world, &watcher).await.expect("nobody kills it");
        let points = watcher.points();
        let mut actions: Vec<_> = points.iter().map(|point| point.action).collect();
        actions.dedup();
        let mut expected = vec![
            "open",
            "scope",
            "destroy_keys",
            "await_caches",
            "tombstone",
            "read_raw_ends",
            "await_split",
            "tombstone_after",
            "plant_controls",
            "barrier",
            "clean_sinks",
            "verify",
            "certify",
        ];
        if kind == Kind::Forced {
            expected.splice(11..11, ["intend_roll", "roll"]);
        }
        assert_eq!(actions, expected, "{kind:?}");
        for action in expected {
            let moments: Vec<_> = points.iter().filter(|point| point.action == action).map(|point| point.moment).collect();
            let is_within = |moment: &Moment| matches!(moment, Moment::Within(_));
            assert!(moments.first() == Some(&Moment::Before) && moments.last() == Some(&Moment::After), "{kind:?} {action}: {moments:?}");
            assert!(moments.iter().any(is_within), "{kind:?} {action}: {moments:?}");
        }
    }
}

/// Two kills: at `first`, and at each of the points that a successor meets first, since there it mends what the first left.
async fn kill_everywhere(kind: Kind) {
    let mut first = 0;
    while killed_at(kind, &World::new().await, first, None).await.is_some() {
        if first % 2 == 0 {
            killed_at(kind, &World::new().await, first, Some(first / 2 % 5)).await.expect("the same first point");
        }
        first += 1;
    }
    assert!(first > 25, "{kind:?}: {first} points");
}

macro_rules! killed_at_any_point_it_comes_to_the_same_end {
    ($($name:ident: $kind:expr),* $(,)?) => {$(
        #[tokio::test]
        async fn $name() {
            kill_everywhere($kind).await;
        }
    )*};
}

killed_at_any_point_it_comes_to_the_same_end! {
    orders_killed_at_any_point_come_to_the_same_end: Kind::Orders,
    an_unknown_order_killed_at_any_point_comes_to_the_same_end: Kind::Unknown,
    a_whole_seller_killed_at_any_point_comes_to_the_same_end: Kind::All,
    business_data_killed_at_any_point_comes_to_the_same_end: Kind::WithBusinessData,
    an_offboarding_killed_at_any_point_comes_to_the_same_end: Kind::Offboarding,
    an_expiry_killed_at_any_point_comes_to_the_same_end: Kind::Expiry,
    a_forced_removal_killed_at_any_point_comes_to_the_same_end: Kind::Forced,
}

/// The same on PostgreSQL, where a dropped transaction is rolled back by a server: every fifth point.
#[tokio::test]
async fn on_postgresql_a_killed_process_leaves_a_case_that_comes_to_the_same_end() {
    for (kind, offset) in [(Kind::Offboarding, 0), (Kind::WithBusinessData, 2), (Kind::Expiry, 4)] {
        let mut first = offset;
        while let Some(world) = World::postgres().await {
            if killed_at(kind, &world, first, Some(first % 4)).await.is_none() {
                break;
            }
            first += 5;
        }
    }
}

/// Holds a case at one point until it is let go.
struct Holder {
    at: usize,
    passed: AtomicUsize,
    /// The point, once it is held there.
    held: tokio::sync::watch::Sender<Option<Point>>,
    go: Notify,
}

#[async_trait]
impl Probe for Holder {
    async fn reached(&self, _case: &CaseId, point: Point) {
        // A transaction that stays open would hold the other's database; an opening that wakes up late is a new request.
        let is_held = point.moment != Moment::Within("written") && point.action != "open";
        if self.passed.fetch_add(1, Ordering::SeqCst) == self.at && is_held {
            self.held.send_replace(Some(point));
            self.go.notified().await;
        }
    }
}

/// A process that is stopped at any point, and goes on once another has ended its case, does no harm: one history, one certificate.
#[tokio::test]
async fn a_process_that_wakes_up_after_another_ended_its_case_changes_nothing() {
    for kind in [Kind::Orders, Kind::Offboarding, Kind::Forced] {
        for at in 0.. {
            let world = World::new().await;
            let sent = kind.prepare(&world).await;
            let holder = Arc::new(Holder { at, passed: AtomicUsize::new(0), held: Default::default(), go: Notify::new() });
            let sleeper = world.engine().with_probe(holder.clone());
            let other = world.engine_over(&world.keys.another(world.clock.clone()).await);
            let mut held = holder.held.subscribe();
            let wake = async {
                held.wait_for(Option::is_some).await.unwrap();
                let case = kind.work(&world, &other).await;
                holder.go.notify_one();
                case
            };
            let asleep = kind.work(&world, &sleeper);
            tokio::pin!(wake, asleep);
            let case = tokio::select! {
                case = &mut wake => { assert_eq!(asleep.await, case); Some(case) }
                _ = &mut asleep => None,
            };
            let point = *holder.held.borrow();
            if let Some(case) = case {
                kind.check(&world, &case, &sent, &format!("{kind:?} asleep at {at} {point:?}")).await;
            }
            if holder.passed.load(Ordering::SeqCst) <= at {
                assert!(at > 30, "{kind:?}: {at} points");
                break;
            }
        }
    }
}

/// Corrects both clocks at one point.
struct Corrector {
    at: usize,
    by: Period,
    is_later: bool,
    passed: AtomicUsize,
    clocks: [Arc<ManualClock>; 2],
    /// When the splitter was past raw's end, and when the second tombstones were written: time that passed, not time that was shown.
    seen: Mutex<Vec<(Point, Duration)>>,
}

#[async_trait]
impl Probe for Corrector {
    async fn reached(&self, _case: &CaseId, point: Point) {
        let [_, system] = &self.clocks;
        self.seen.lock().unwrap().push((point, system.elapsed()));
        if self.passed.fetch_add(1, Ordering::SeqCst) == self.at {
            for clock in &self.clocks {
                clock.set(if self.is_later { clock.now().plus(self.by) } else { clock.now().minus(self.by) });
            }
        }
    }
}

#[tokio::test]
async fn a_clock_that_jumps_between_any_two_steps_neither_stops_a_case_nor_shortens_its_waits() {
    let kind = Kind::WithBusinessData;
    for is_later in [false, true] {
        for at in 0.. {
            let world = World::new().await;
            let sent = kind.prepare(&world).await;
            let clocks = [world.clock.clone(), world.system.clone()];
            let (passed, seen) = (AtomicUsize::new(0), Mutex::default());
            let corrector = Arc::new(Corrector { at, by: Period::days(400), is_later, passed, clocks, seen });
            let case = kind.work(&world, &world.engine().with_probe(corrector.clone())).await;
            kind.check(&world, &case, &sent, &format!("{kind:?} corrected at {at}, later: {is_later}")).await;
            let seen = corrector.seen.lock().unwrap().clone();
            let when = |action, moment| seen.iter().find(|(point, _)| *point == Point { action, moment }).expect("it was passed").1;
            let waited = when("tombstone_after", Moment::After) - when("await_split", Moment::After);
            assert!(waited >= Duration::from_secs(2), "corrected at {at}, later: {is_later}: waited {waited:?}");
            if corrector.passed.load(Ordering::SeqCst) <= at {
                break;
            }
        }
    }
}
