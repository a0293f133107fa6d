//! Whole cases: the straight way, every crash, every misbehaviour.

mod again;
mod aged;
mod crash;
mod held;
mod late;
mod pass;
mod restored;
mod strangers;

use sunder_retention::case::{self, EraseRequest, Progress, Reason, Scope, State};
use sunder_retention::keys::KeyError;
use sunder_retention::lease::ErasedKeys;
use sunder_retention::sellers;
use sunder_retention::store::{Drifted, Hindrance};
use sunder_schemas::certificate::check;
use sunder_schemas::ids::{CaseId, SellerId};
use sunder_schemas::time::{Clock as _, Period};

use crate::world::log::{Row, Topic, state_key};
use crate::world::{Manner, START, World, order, seller, signer};

pub(crate) const STRAIGHT: [&str; 13] = [
    "requested",
    "scoped",
    "keys_destroyed",
    "caches_revoked",
    "tombstoned",
    "raw_ends",
    "split_past",
    "second_tombstones",
    "controls_planted",
    "drained",
    "sinks_clean",
    "verified",
    "certified",
];

pub(crate) fn request(orders: &[usize]) -> EraseRequest {
    EraseRequest {
        seller: seller(),
        scope: Scope::Orders(orders.iter().map(|n| order(*n)).collect()),
        reason: Reason::BuyerRequest,
        with_business_data: None,
        now: false,
        requested_by: "operator-7".into(),
    }
}

async fn is_certified(world: &World, case: &CaseId) -> bool {
    world.show(case).await.certified_at.is_some()
}

#[tokio::test]
async fn a_request_goes_from_key_to_certificate_and_checks_offline() {
    for world in World::all().await {
        goes_from_key_to_certificate(&world).await;
    }
}

async fn goes_from_key_to_certificate(world: &World) {
    let (_, kept) = world.order(1).await;
    world.order(2).await;
    world.flow();
    world.order(2).await; // A second version is still in raw when the case begins.
    let engine = world.engine();
    let plan = engine.dry_run(&request(&[2, 99])).await.unwrap();
    assert_eq!((plan.subjects, plan.with_live_keys, plan.without_keys), (2, 1, 1));
    assert!(world.cases().await.is_empty(), "a dry run writes nothing");

    let case = engine.request(&request(&[2])).await.unwrap();
    assert_eq!(engine.request(&request(&[2])).await.unwrap(), case, "the same open request is the same case");
    assert_eq!(world.work(&case).await, Progress::Done);
    assert_eq!(world.steps(&case).await, STRAIGHT);

    let shown = world.show(&case).await;
    assert_eq!((shown.state, shown.subjects, shown.blocked_by), (State::Certified, 1, None));
    let files = world.certificate(&case).await;
    let checked = check(&files.note, &files.verifier_key, Some(&files.proof), Some(&files.statement)).unwrap();
    assert_eq!((checked.statement.case.clone(), checked.leaf), (case.clone(), Some(0)));
    assert_eq!((checked.statement.recover.tried, checked.statement.recover.opened), (1, 0));
    assert_eq!(checked.statement.scan.controls_planted, 6, "{}", world.keys.engine);
    let text = String::from_utf8(files.note.clone()).unwrap();
    assert!(!text.contains("Canary") && !text.contains("0000002"), "a certificate names nobody");
    assert!(world.vault.has(&kept.1), "another buyer's data stays");

    let report = world.engine().verify(&case).await.unwrap();
    assert!(report.holds && report.recover.controls_opened == 1 && report.scan.controls_found == 6, "{report:?}");
    let topics: Vec<_> = world.log.lock().published.iter().map(|record| record.topic.clone()).collect();
    for topic in ["privacy.requests", "privacy.erased", "keys.revoked", "privacy.certificates", "audit.log"] {
        assert!(topics.iter().any(|t| t == topic), "{topic} is published");
    }
    let again = engine.request(&request(&[2])).await.unwrap();
    assert_ne!(again, case, "after the certificate the same request is a new case");
    assert_eq!(world.work(&again).await, Progress::Done);
    let files = world.certificate(&again).await;
    assert_eq!(check(&files.note, &files.verifier_key, Some(&files.proof), Some(&files.statement)).unwrap().leaf, Some(1));
}

#[tokio::test]
async fn an_unknown_order_is_certified_as_never_held_and_stays_out() {
    let world = World::new().await;
    let case = world.engine().request(&request(&[77])).await.unwrap();
    assert_eq!(world.work(&case).await, Progress::Done);
    let files = world.certificate(&case).await;
    let statement = check(&files.note, &files.verifier_key, None, None).unwrap().statement;
    assert_eq!((statement.subjects.count, statement.subjects.with_keys, statement.recover.tried), (1, 0, 0));
    let known = world.ring.subject(&seller(), world.ring.seller(&seller()).await.unwrap().order_token(&order(77))).await.unwrap();
    assert!(matches!(known, sunder_retention::ledger::SubjectState::Destroyed), "{known:?}");
}

#[tokio::test]
async fn a_forced_case_does_not_wait_for_the_cleaner() {
    let world = World::new().await;
    world.order(1).await;
    world.flow();
    world.log.lock().is_cleaner_down = true;
    let case = world.engine().request(&request(&[1])).await.unwrap();
    let waits = world.work(&case).await;
    assert!(matches!(&waits, Progress::Waiting { why, .. } if why.contains("cleaner")), "{waits:?}");
    assert!(!case::has_open_roll(world.ring.db()).await.unwrap());
    // Asked again with `--now` it is the same case, and it is forced from then on.
    let again = EraseRequest { now: true, ..request(&[1]) };
    assert_eq!(world.engine().request(&again).await.unwrap(), case);
    assert_eq!(world.work(&case).await, Progress::Done);
    assert_eq!(world.log.lock().rolls, 1);
    let forced = [&STRAIGHT[..11], &["roll_intended", "rolled"], &STRAIGHT[11..]].concat();
    assert_eq!(world.steps(&case).await, forced);
}

#[tokio::test]
async fn a_seller_that_leaves_takes_everything_with_it_and_may_come_back_with_new_keys() {
    for world in World::all().await {
        leaves_and_comes_back(&world).await;
    }
}

async fn leaves_and_comes_back(world: &World) {
    for n in 0..3 {
        world.order(n).await;
    }
    world.flow();
    let before = world.ring.seller(&seller()).await.unwrap();
    let (token, print) = (before.order_token(&order(1)), before.fingerprint(&order(1)));
    // Personal data of one order went earlier; its business data goes now. What is in no ledger (an inventory level) goes as well.
    let earlier = world.engine().request(&request(&[2])).await.unwrap();
    assert_eq!(world.work(&earlier).await, Progress::Done);
    let inventory = sunder_schemas::ids::EntityToken([7; 16]);
    let row = Row { version: 1, event: "inventory".into(), block: Vec::new() };
    world.log.lock().append(Topic::State, &state_key(&seller(), inventory), Some(row));
    let offboarding = EraseRequest { scope: Scope::All, reason: Reason::SellerOffboarding, with_business_data: Some(true), ..request(&[]) };
    let case = world.engine().request(&offboarding).await.unwrap();
    assert_eq!(world.work(&case).await, Progress::Done);
    assert_eq!(world.show(&case).await.subjects, 4, "{}", world.keys.engine);
    world.ring.forget_seller(&seller());
    assert!(matches!(world.ring.seller(&seller()).await, Err(KeyError::SellerRemoved(_))));
    let gate = ErasedKeys::default();
    gate.refresh(world.ring.db()).await.unwrap();
    assert!(gate.withholds(token) && gate.withholds(inventory));
    assert!(world.engine().verify(&case).await.unwrap().holds, "it verifies without the seller's keys");
    // Asked for once more, an order that it had and one that it never had: both are certified, and the ledger has them for good.
    for (orders, reason) in [([1], Reason::BuyerRequest), ([88], Reason::AmazonRequest)] {
        let late = world.engine().request(&EraseRequest { reason, ..request(&orders) }).await.unwrap();
        assert_eq!(world.work(&late).await, Progress::Done, "order {orders:?} of a seller that left");
        assert_eq!(world.show(&late).await.subjects, 1);
    }
    let all = EraseRequest { scope: Scope::All, ..request(&[]) };
    let nothing = world.engine().request(&all).await.unwrap();
    assert_eq!(world.work(&nothing).await, Progress::Done, "nothing is left of it");

    sellers::readmit(&world.ring, &seller()).await.unwrap();
    let after = world.ring.seller(&seller()).await.unwrap();
    assert_ne!(after.order_token(&order(1)), token);
    assert_eq!(after.fingerprint(&order(1)), print, "what was erased is known still");
    world.order(50).await;
}

#[tokio::test]
async fn a_dry_run_makes_no_keys_for_a_seller_that_nobody_knows() {
    let world = World::new().await;
    let request = EraseRequest { seller: SellerId::parse("A9TYPO").unwrap(), ..request(&[1, 2]) };
    let plan = world.engine().dry_run(&request).await.unwrap();
    assert_eq!((plan.subjects, plan.with_live_keys, plan.without_keys), (2, 0, 2));
    assert!(sellers::list(world.ring.db()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_seller_that_leaves_before_it_was_ever_polled_does_not_come() {
    let world = World::new().await;
    let offboarding = EraseRequest { scope: Scope::All, reason: Reason::SellerOffboarding, with_business_data: Some(true), ..request(&[]) };
    let case = world.engine().request(&offboarding).await.unwrap();
    world.engine().advance(&case).await.unwrap();
    // A poller whose config names it, in the middle of the case.
    let poller = world.process();
    assert!(matches!(poller.seller(&seller()).await, Err(KeyError::SellerRemoved(_))));
    assert_eq!(world.work(&case).await, Progress::Done);
    assert!(matches!(poller.seller(&seller()).await, Err(KeyError::SellerRemoved(_))));
    sellers::readmit(&world.ring, &seller()).await.unwrap();
    world.order(1).await;
}

#[tokio::test]
async fn the_sweep_opens_one_case_for_all_that_is_due() {
    for world in World::all().await {
        sweeps_once(&world).await;
    }
}

async fn sweeps_once(world: &World) {
    for n in 0..25 {
        world.order(n).await;
    }
    world.flow();
    let engine = world.engine();
    assert!(engine.sweep(world.clock.now()).await.unwrap().is_empty(), "nothing is due yet");
    world.clock.advance(Period::days(70));
    let now = world.clock.now();
    let cases = engine.sweep(now).await.unwrap();
    let [case] = cases.as_slice() else { panic!("one case for the seller: {cases:?}") };
    assert_eq!(engine.sweep(now).await.unwrap(), Vec::new(), "its subjects are in the open case");
    assert_eq!(world.work(case).await, Progress::Done);
    assert_eq!(world.show(case).await.subjects, 25);
    assert_eq!(engine.due(now).await.unwrap(), 0);
    assert!(engine.sweep(now).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_case_of_many_makes_as_many_calls_as_a_case_of_one() {
    let mut calls = Vec::new();
    for subjects in [1u64, 1_300] {
        let world = World::new().await;
        world.orders(0..usize::try_from(subjects).unwrap()).await;
        world.flow();
        world.clock.advance(Period::days(70));
        let cases = world.engine().sweep(world.clock.now()).await.unwrap();
        let [case] = cases.as_slice() else { panic!("one case: {cases:?}") };
        assert_eq!(world.work(case).await, Progress::Done);
        let files = world.certificate(case).await;
        let statement = check(&files.note, &files.verifier_key, Some(&files.proof), None).unwrap().statement;
        assert_eq!((statement.subjects.count, statement.subjects.keys, statement.recover.tried), (subjects, subjects, subjects));
        calls.push(world.fuse.calls.load(std::sync::atomic::Ordering::SeqCst));
    }
    let [one, many] = calls.as_slice() else { panic!("two cases") };
    assert!(many <= &(one + 10), "one scan for all: {one} calls for one subject, {many} for many");
}

/// Fails every call a case makes, one run each, before and after the call took effect: each run ends as the straight way does, with no
/// step left out and none done twice.
#[tokio::test]
async fn a_crash_at_any_call_leads_to_the_same_end() {
    for after in [false, true] {
        let mut n = 0;
        loop {
            let world = World::new().await;
            world.order(1).await;
            world.flow();
            world.order(1).await;
            let case = world.engine().request(&request(&[1])).await.unwrap();
            world.fuse.arm(n, after);
            assert_eq!(world.work(&case).await, Progress::Done, "call {n}, after {after}");
            assert_eq!(world.steps(&case).await, STRAIGHT, "call {n}, after {after}");
            let files = world.certificate(&case).await;
            let statement = check(&files.note, &files.verifier_key, Some(&files.proof), None).unwrap().statement;
            assert_eq!((statement.recover.tried, statement.subjects.keys), (1, 1), "call {n}, after {after}");
            if !world.fuse.blew() {
                assert!(n > 20, "the straight way makes more calls than {n}");
                break;
            }
            n += 1;
        }
    }
}

#[tokio::test]
async fn a_late_record_is_tombstoned_again_and_the_round_is_on_the_certificate() {
    let world = World::new().await;
    let (_, late) = world.order(1).await;
    world.flow();
    world.log.lock().late = vec![late];
    let case = world.engine().request(&request(&[1])).await.unwrap();
    assert_eq!(world.work(&case).await, Progress::Done);
    let steps = world.steps(&case).await;
    assert_eq!(steps[11..], ["found_again", "tombstoned_again", "barrier_again", "sinks_clean_again", "verified", "certified"]);
    let files = world.certificate(&case).await;
    assert_eq!(check(&files.note, &files.verifier_key, None, None).unwrap().statement.log.repeated, 1);
}

#[tokio::test]
async fn what_comes_back_for_ever_is_never_certified() {
    let world = World::new().await;
    let (_, late) = world.order(1).await;
    world.flow();
    world.log.lock().always_late = Some(late);
    let case = world.engine().request(&request(&[1])).await.unwrap();
    let Progress::Blocked { why } = world.work(&case).await else { panic!("it is blocked") };
    assert!(why.contains("after 5 rounds"), "{why}");
    let shown = world.show(&case).await;
    assert_eq!((shown.state, shown.blocked_by.as_deref()), (State::SinksClean, Some(why.as_str())));
}

#[tokio::test]
async fn a_store_that_still_has_a_block_is_never_certified() {
    let world = World::new().await;
    world.order(1).await;
    world.flow();
    world.exports.set(Manner::Lies);
    let case = world.engine().request(&request(&[1])).await.unwrap();
    let Progress::Blocked { why } = world.work(&case).await else { panic!("it is blocked") };
    assert!(why.contains("exports.rows"), "{why}");
    assert!(!is_certified(&world, &case).await);
    assert!(case::certificate_files(world.ring.db(), &case, &signer()).await.is_err());
    let report = world.engine().verify(&case).await.unwrap();
    assert!(!report.holds && report.scan.found == 1, "{report:?}");
}

#[tokio::test]
async fn a_key_that_comes_back_is_noticed_by_the_recover_test() {
    let world = World::new().await;
    world.order(1).await;
    world.flow();
    let case = world.engine().request(&request(&[1])).await.unwrap();
    assert_eq!(world.work(&case).await, Progress::Done);
    assert!(world.engine().verify(&case).await.unwrap().holds);
    // As a restored backup would have it: the row holds a wrapped key again.
    sqlx::query("UPDATE subject SET wrapped = witness").execute(world.ring.db().pool()).await.unwrap();
    let report = world.engine().verify(&case).await.unwrap();
    assert!(!report.holds && (report.recover.opened, report.recover.tried) == (1, 1), "{report:?}");
    assert!(report.reason.is_some_and(|reason| reason.contains("1 of 1 witnesses and blocks could still be opened")));
}

fn drifted(what: &str, is_lowered: bool) -> Drifted {
    Drifted { what: what.to_owned(), is_lowered }
}

#[tokio::test]
async fn what_another_process_lowers_for_a_roll_is_waited_for_and_is_drift_once_no_roll_explains_it() {
    const LOWERED: &str = "sp.pii.orders.v1: segment.ms is 1000, declared 21600000";
    let world = World::new().await;
    world.order(1).await;
    world.flow();
    let sql = async |text: &'static str| {
        let mut tx = world.ring.db().begin_write().await.unwrap();
        sqlx::query(text).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
    };
    let rolling = "INSERT INTO case_event (case_id, seq, step, at, at_system, evidence) VALUES ('case-x', 1, 'roll_intended', 0, 0, '{}')";
    sql(rolling).await;
    world.log.lock().drift = vec![drifted(LOWERED, true)];
    let case = world.engine().request(&request(&[1])).await.unwrap();
    let waits = world.work(&case).await;
    assert!(matches!(&waits, Progress::Waiting { why, .. } if why.contains("forced removal")), "{waits:?}");
    assert!(!world.show(&case).await.blocked);
    // Nothing else hides behind a roll.
    world.log.lock().drift.push(drifted("sp.raw.orders.v1: retention.ms is -1, declared 1", false));
    let blocked = world.work(&case).await;
    assert!(
        matches!(&blocked, Progress::Blocked { why } if why.contains("sp.raw.orders.v1") && !why.contains("segment.ms")),
        "{blocked:?}"
    );
    assert!(world.show(&case).await.blocked);
    // The roll's process is gone without setting its topic back, and no intent stands any more.
    world.log.lock().drift.pop();
    sql("DELETE FROM case_event WHERE case_id = 'case-x'").await;
    let blocked = world.work(&case).await;
    assert!(matches!(&blocked, Progress::Blocked { why } if why.contains(LOWERED)), "{blocked:?}");
    world.log.lock().drift.clear();
    assert_eq!(world.work(&case).await, Progress::Done);
    assert!(!world.show(&case).await.blocked);
}

fn away() -> Hindrance {
    Hindrance { what: "broker 3 does not have its replica of sp.pii.orders.v1[0] ready (BrokerAway)".to_owned(), stops: true }
}

#[tokio::test]
async fn what_cannot_be_read_drifted_or_lost_its_control_blocks_until_it_is_mended() {
    type Spoil = fn(&World);
    let spoils: [(Spoil, Spoil, &str); 6] = [
        (|w| w.vault.set(Manner::Unreadable), |w| w.vault.set(Manner::Honest), "vault could not scan sealed_block: io"),
        (|w| w.vault.set(Manner::Forgetful), |w| w.vault.set(Manner::Honest), "store vault found 0 of 1 planted controls"),
        (|w| w.log.lock().is_blind = true, |w| w.log.lock().is_blind = false, "store log found 0 of 2"),
        (
            |w| w.log.lock().drift = vec![drifted("sp.pii.orders.v1: segment.ms is 1, declared 1000", false)],
            |w| w.log.lock().drift.clear(),
            "topic settings drifted: sp.pii.orders.v1",
        ),
        (|w| w.log.lock().hindrances = vec![away()], |w| w.log.lock().hindrances.clear(), "broker 3 does not have its replica"),
        (|w| w.log.lock().is_blind = true, |w| w.log.lock().is_blind = false, "its scan is void"),
    ];
    for (spoil, mend, says) in spoils {
        let world = World::new().await;
        world.order(1).await;
        world.flow();
        spoil(&world);
        let case = world.engine().request(&request(&[1])).await.unwrap();
        let Progress::Blocked { why } = world.work(&case).await else { panic!("blocked: {says}") };
        assert!(why.contains(says), "{why}");
        assert_eq!(world.show(&case).await.blocked_by.as_deref(), Some(why.as_str()));
        mend(&world);
        assert_eq!(world.work(&case).await, Progress::Done, "{says}");
        assert_eq!(world.steps(&case).await, STRAIGHT);
    }
}

#[tokio::test]
async fn controls_that_a_store_lost_are_planted_anew_below_a_further_barrier() {
    let world = World::new().await;
    world.order(1).await;
    world.flow();
    world.vault.set(Manner::Unreadable);
    let case = world.engine().request(&request(&[1])).await.unwrap();
    assert!(matches!(world.work(&case).await, Progress::Blocked { .. }));
    // A topic that was emptied, a table that was restored: what was planted is there no more.
    sunder_retention::store::Prove::unplant(&*world.vault, case.as_str()).await.unwrap();
    world.vault.set(Manner::Honest);
    world.system.advance(Period::Millis(1_000));
    let blocked = world.work(&case).await;
    assert!(matches!(&blocked, Progress::Blocked { why } if why.contains("store vault found 0 of 1 planted controls")), "{blocked:?}");
    world.system.advance(Period::Millis(10_000));
    assert_eq!(world.work(&case).await, Progress::Done);
    let round = ["found_again", "tombstoned_again", "barrier_again", "sinks_clean_again"];
    assert_eq!(world.steps(&case).await, [&STRAIGHT[..11], &round, &STRAIGHT[11..]].concat());
}

#[tokio::test]
async fn a_store_that_never_finds_its_controls_never_gets_a_certificate_and_few_rounds() {
    let world = World::new().await;
    world.order(1).await;
    world.flow();
    world.vault.set(Manner::Forgetful);
    let case = world.engine().request(&request(&[1])).await.unwrap();
    for _ in 0..360 {
        let progress = world.work(&case).await;
        assert!(matches!(&progress, Progress::Blocked { why } if why.contains("found 0 of 1 planted controls")), "{progress:?}");
        world.system.advance(Period::Millis(10_000));
    }
    // 10 s, 20 s, ... after one another: eight within the hour.
    let rounds = world.steps(&case).await.iter().filter(|step| **step == "found_again").count();
    assert_eq!(rounds, 8);
    world.vault.set(Manner::Honest);
    world.system.advance(Period::Millis(300_000));
    assert_eq!(world.work(&case).await, Progress::Done);
}

#[tokio::test]
async fn it_waits_for_splitter_stores_and_cleaner_and_says_so() {
    type Spoil = fn(&World);
    let waits: [(Spoil, Spoil, &str); 3] = [
        (|w| w.log.lock().is_splitter_down = true, |w| w.log.lock().is_splitter_down = false, "the splitter has not committed"),
        (|w| w.vault.set(Manner::Behind), |w| w.vault.set(Manner::Honest), "store vault has not applied the log"),
        (|w| w.log.lock().is_cleaner_down = true, |w| w.log.lock().wake_cleaner(), "wait for the log's cleaner"),
    ];
    for (spoil, mend, says) in waits {
        let world = World::new().await;
        world.order(1).await;
        world.flow();
        world.order(1).await;
        spoil(&world);
        let case = world.engine().request(&request(&[1])).await.unwrap();
        let progress = world.work(&case).await;
        let Progress::Waiting { why, .. } = &progress else { panic!("waiting: {says}, not {progress:?}") };
        assert!(why.contains(says), "{why}");
        mend(&world);
        assert_eq!(world.work(&case).await, Progress::Done, "{says}");
        assert_eq!(world.steps(&case).await, STRAIGHT);
    }
}

#[tokio::test]
async fn a_case_that_is_not_certified_by_its_day_is_late_until_it_is() {
    let world = World::new().await;
    world.order(1).await;
    world.flow();
    world.vault.set(Manner::Behind);
    let case = world.engine().request(&request(&[1])).await.unwrap();
    world.work(&case).await;
    world.clock.advance(Period::days(30));
    assert!(!world.show(&case).await.late, "it has the whole day");
    assert!(case::late(world.ring.db(), world.clock.now()).await.unwrap().is_empty());
    world.clock.advance(Period::Millis(1));
    assert!(world.show(&case).await.late);
    assert_eq!(case::late(world.ring.db(), world.clock.now()).await.unwrap()[0].id, case);
    world.vault.set(Manner::Honest);
    assert_eq!(world.work(&case).await, Progress::Done);
    assert!(!world.show(&case).await.late);
}

/// What a certificate names as residual until a day past the ninetieth is late from the ninetieth on.
#[tokio::test]
async fn a_copy_that_can_be_reached_online_after_ninety_days_makes_its_case_late() {
    for (days, is_late) in [(89, false), (91, true)] {
        let world = World::new().await;
        world.order(1).await;
        world.flow();
        world.log.lock().residual_days = days;
        let case = world.engine().request(&request(&[1])).await.unwrap();
        assert_eq!(world.work(&case).await, Progress::Done);
        let shown = world.show(&case).await;
        assert_eq!((shown.late, shown.online_due_at), (false, START.plus(Period::days(90)).to_iso()));
        world.clock.advance(Period::Millis(90 * 86_400_000 + 1));
        assert_eq!(world.show(&case).await.late, is_late, "{days} days");
    }
}

#[tokio::test]
async fn the_embedded_log_claims_nothing_physical() {
    let world = World::with(false).await;
    world.order(1).await;
    world.flow();
    let case = world.engine().request(&request(&[1])).await.unwrap();
    assert_eq!(world.work(&case).await, Progress::Done);
    let files = world.certificate(&case).await;
    let statement = check(&files.note, &files.verifier_key, None, None).unwrap().statement;
    assert!(!statement.sanitisation.physical);
    assert!(statement.not_claimed.iter().any(|claim| claim.contains("embedded broker")));
}

#[tokio::test]
async fn two_engines_on_one_case_do_each_step_once() {
    let world = World::new().await;
    for n in 0..8 {
        world.order(n).await;
    }
    world.flow();
    let case = world.engine().request(&request(&[0, 1, 2, 3, 4, 5, 6, 7])).await.unwrap();
    let (one, two) = (world.engine(), world.engine());
    for _ in 0..40 {
        let (a, b) = tokio::join!(one.advance(&case), two.advance(&case));
        if a.unwrap() == Progress::Done && b.unwrap() == Progress::Done {
            break;
        }
        world.system.advance(Period::Millis(500));
    }
    assert_eq!(world.steps(&case).await, STRAIGHT);
}
