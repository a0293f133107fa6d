//! Business data that is older than it may be kept.

use sqlx::Row;
use sunder_retention::case::{Progress, Reason, State};
use sunder_retention::store::{Aged, EventLog as _, Extent};
use sunder_schemas::certificate::check;
use sunder_schemas::class::Family;
use sunder_schemas::ids::EntityToken;
use sunder_schemas::time::{Clock as _, Period, Timestamp};

use crate::world::{World, order, seller};

async fn count(world: &World, sql: &'static str) -> i64 {
    sqlx::query(sql).fetch_one(world.ring.db().pool()).await.unwrap().try_get(0).unwrap()
}

/// Lays an order and an inventory level into the log, from before the cutoff and from `young`.
async fn lay(world: &World, old: Timestamp, young: Timestamp) -> (EntityToken, EntityToken) {
    world.order(1).await;
    world.flow();
    let token = world.ring.seller(&seller()).await.unwrap().order_token(&order(1));
    let (level, other) = (EntityToken([9; 16]), EntityToken([8; 16]));
    let aged = |family, token| Aged { seller: seller(), family, token };
    world.log.state.lock().unwrap().aged =
        vec![(old, aged(Family::Orders, token)), (old, aged(Family::Inventory, level)), (young, aged(Family::Inventory, other))];
    (token, level)
}

#[tokio::test]
async fn business_data_past_its_period_leaves_by_a_case_of_its_own_kind() {
    for world in World::all().await {
        let cutoff = world.ring.policy().business_cutoff(world.clock.now());
        let (token, _) = lay(&world, Timestamp(cutoff.0 - 1), cutoff).await;
        let before = count(&world, "SELECT COUNT(*) FROM subject").await;
        let engine = world.engine();
        let cases = engine.sweep(world.clock.now()).await.unwrap();
        assert_eq!(cases.len(), 2, "one a family: {}", world.keys.engine);
        assert!(engine.sweep(world.clock.now().plus(Period::hours(23))).await.unwrap().is_empty(), "once a day");
        let mut kinds = Vec::new();
        for case in &cases {
            assert_eq!(world.work(case).await, Progress::Done);
            let shown = world.show(case).await;
            assert_eq!((shown.state, shown.reason, shown.subjects), (State::Certified, Reason::Expiry, 1));
            assert_eq!((shown.extent, shown.older_than.clone()), (Extent::OlderThan(cutoff), Some(cutoff.to_iso())));
            kinds.push(shown.kind);
            let files = world.certificate(case).await;
            let checked = check(&files.note, &files.verifier_key, Some(&files.proof), Some(&files.statement)).unwrap();
            let kind = shown.kind.unwrap();
            assert_eq!(checked.statement.extent, format!("older_than {cutoff} ({kind})"));
            assert!(checked.statement.summary.contains("business data from before"), "{}", checked.statement.summary);
        }
        assert_eq!(kinds, [Some(Family::Orders), Some(Family::Inventory)]);
        assert_eq!(count(&world, "SELECT COUNT(*) FROM subject").await, before, "a level is no data subject");
        assert_eq!(count(&world, "SELECT COUNT(*) FROM subject WHERE withheld_epoch IS NOT NULL").await, 0, "age keeps it out, not a list");
        assert_eq!(count(&world, "SELECT COUNT(*) FROM subject WHERE state <> 'destroyed' OR facts IS NOT NULL").await, 0);
        world.ring.erased().refresh(world.ring.db()).await.unwrap();
        assert!(!world.ring.erased().withholds(token));

        // A day later what has come of age since is found, and only that.
        let later = world.clock.now().plus(Period::days(1));
        assert_eq!(engine.sweep(later).await.unwrap().len(), 2);
        assert_eq!(world.log.aged(world.ring.policy().business_cutoff(later)).await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_read_stops_no_other_case() {
    let world = World::new().await;
    world.order(1).await;
    world.clock.advance(Period::days(90));
    // The first call is the audit event of the case that is due, the second the log's.
    world.fuse.arm(1, false);
    let engine = world.engine();
    let cases = engine.sweep(world.clock.now()).await.unwrap();
    assert!(world.fuse.blew());
    assert_eq!(cases.len(), 1, "what is due is due");
    let cutoff = world.ring.policy().business_cutoff(world.clock.now());
    world.log.state.lock().unwrap().aged =
        vec![(Timestamp(cutoff.0 - 1), Aged { seller: seller(), family: Family::Inventory, token: EntityToken([9; 16]) })];
    assert_eq!(engine.sweep(world.clock.now()).await.unwrap().len(), 1, "the next sweep looks again");
}
