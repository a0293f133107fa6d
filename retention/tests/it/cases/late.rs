//! The log's bound: shown per case, forced once it is past, and named with its likely cause while nothing helps.

use sunder_retention::case::{Engine, Progress, State};
use sunder_retention::store::Hindrance;
use sunder_schemas::ids::CaseId;
use sunder_schemas::time::{Clock as _, Period};

use crate::cases::{STRAIGHT, drifted, request};
use crate::world::World;
use crate::world::log::BOUND;

/// A case that waits for a cleaner that does not come.
async fn waits_for_cleaner(world: &World) -> (Engine, CaseId) {
    world.order(1).await;
    world.flow();
    world.log.lock().is_cleaner_down = true;
    let engine = world.engine();
    let case = engine.request(&request(&[1])).await.unwrap();
    for _ in 0..40 {
        let Progress::Waiting { why, .. } = engine.advance(&case).await.unwrap() else { panic!("it waits") };
        if why.contains("cleaner") {
            break;
        }
        world.system.advance(Period::Millis(500));
    }
    (engine, case)
}

fn bound() -> Period {
    Period::Millis(i64::try_from(BOUND.as_millis()).unwrap())
}

#[tokio::test]
async fn a_case_says_by_when_all_is_gone_and_is_forced_once_it_is_late() {
    let world = World::new().await;
    let (engine, case) = waits_for_cleaner(&world).await;
    let shown = world.show(&case).await;
    let gone_by = shown.gone_by.expect("gone by");
    assert!(shown.blocked_by.unwrap().contains(&format!("gone by {gone_by}")) && !shown.blocked);
    assert!(gone_by > world.system.now().plus(bound()).minus(Period::Millis(60_000)).to_iso(), "{gone_by}");

    // On time it only waits.
    world.system.advance(Period::Millis(bound().millis_max() - 60_000));
    assert!(matches!(engine.advance(&case).await.unwrap(), Progress::Waiting { .. }));
    assert_eq!(world.log.lock().rolls, 0);
    world.system.advance(Period::Millis(180_000));
    let late = engine.advance(&case).await.unwrap();
    assert!(matches!(&late, Progress::Waiting { why, .. } if why.starts_with("late: ") && why.contains("forced now")), "{late:?}");
    assert_eq!(engine.advance(&case).await.unwrap(), Progress::Done);
    let forced = [&STRAIGHT[..11], &["roll_intended", "rolled"], &STRAIGHT[11..]].concat();
    assert_eq!((world.steps(&case).await, world.log.lock().rolls), (forced, 1));
    assert_eq!(world.show(&case).await.gone_by, None);
}

#[tokio::test]
async fn what_not_even_force_removes_is_named_with_place_and_cause_until_it_is_mended() {
    let world = World::new().await;
    world.log.lock().is_uncleanable = true;
    let (engine, case) = waits_for_cleaner(&world).await;
    world.system.advance(bound());
    world.system.advance(Period::Millis(60_000));
    for _ in 0..200 {
        if matches!(engine.advance(&case).await.unwrap(), Progress::Blocked { .. }) {
            break;
        }
        world.system.advance(Period::Millis(500));
    }
    let shown = world.show(&case).await;
    let why = shown.blocked_by.expect("why");
    assert!(shown.blocked && why.starts_with("late: ") && why.contains("uncleanable") && why.contains("first sp."), "{why}");
    assert_eq!((shown.state, world.log.lock().rolls), (State::SinksClean, 1));
    world.log.lock().wake_cleaner();
    world.system.advance(Period::Millis(400_000));
    assert_eq!(engine.advance(&case).await.unwrap(), Progress::Done);
}

#[tokio::test]
async fn what_stops_a_case_is_named_while_it_waits_for_its_next_reading() {
    let world = World::new().await;
    let (engine, case) = waits_for_cleaner(&world).await;
    // Hours into the wait, minutes lie between two readings.
    world.system.advance(Period::Millis(3_600_000));
    engine.advance(&case).await.unwrap();
    let scans = world.log.lock().scans;
    let said = async || match engine.advance_all().await.unwrap().pop().expect("a case").1 {
        Progress::Waiting { why, .. } | Progress::Blocked { why } => why,
        Progress::Done => panic!("certified"),
    };
    let away = Hindrance { what: "broker 3 does not have its replica".to_owned(), stops: true };
    world.log.lock().hindrances = vec![away];
    world.system.advance(Period::Millis(20_000));
    assert!(said().await.contains("broker 3"));
    assert!(world.show(&case).await.blocked_by.unwrap().contains("broker 3"));
    world.log.lock().hindrances.clear();
    world.log.lock().drift = vec![drifted("sp.pii.orders.v1: segment.ms is 1, declared 1000", false)];
    world.system.advance(Period::Millis(20_000));
    assert!(said().await.contains("segment.ms"));
    world.log.lock().drift.clear();
    world.system.advance(Period::Millis(20_000));
    assert!(said().await.contains("wait for the log's cleaner"));
    assert!(!world.show(&case).await.blocked);
    assert_eq!(world.log.lock().scans, scans, "none of it was a reading");
    world.log.lock().wake_cleaner();
    world.system.advance(Period::Millis(400_000));
    assert_eq!(engine.advance(&case).await.unwrap(), Progress::Done);
}
