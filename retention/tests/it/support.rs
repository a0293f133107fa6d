//! Orders as the tests of this crate need them.

use std::sync::Arc;

use sunder_retention::admit::Candidate;
use sunder_retention::audit;
use sunder_retention::deadline::{Observed, Policy, Progress};
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::{Keyring, SellerKeys};
use sunder_retention::ledger::{Condemned, Destroyed, Destruction};
use sunder_retention::store::Extent;
use sunder_retention::testing::{TEST_DAY, TestKeys};
use sunder_schemas::ids::{CaseId, OrderId, SellerId};
use sunder_schemas::note::NoteSigner;
use sunder_schemas::time::{ManualClock, Period, Timestamp};

/// A policy without backup and margin.
pub(crate) const PLAIN: Policy =
    Policy { after_delivery: Period::days(30), backup: Period::Millis(0), margin: Period::Millis(0), business: Period::Months(18) };

pub(crate) fn seller() -> SellerId {
    SellerId::parse("A1SELLER").unwrap()
}

pub(crate) fn case(n: u32) -> CaseId {
    CaseId::parse(&format!("case-20261122-{n:016x}")).unwrap()
}

pub(crate) fn order(n: usize) -> OrderId {
    OrderId::parse(&format!("111-{n:07}-0000000")).unwrap()
}

/// Key databases on every engine, with their clock at [`TEST_DAY`].
pub(crate) async fn databases() -> (Arc<ManualClock>, Vec<TestKeys>) {
    let clock = Arc::new(ManualClock::at(TEST_DAY));
    let all = TestKeys::all(clock.clone(), PLAIN).await;
    (clock, all)
}

/// An unshipped order of a day ago, fulfilled by Amazon: due 60 days after its creation.
pub(crate) fn observed(version: i64) -> Observed {
    Observed {
        created: TEST_DAY.minus(Period::days(1)),
        last_updated: Timestamp(TEST_DAY.0 + version),
        asked_at: None,
        previous_look: None,
        progress: Progress::Open,
        delivery_visible: false,
        latest_promise: None,
        last_ship_time: None,
        packages: 0,
        packages_delivered: 0,
        delivered_at: None,
    }
}

pub(crate) fn candidate(keys: &SellerKeys, n: usize, version: i64) -> Candidate {
    let token = keys.order_token(&order(n));
    Candidate {
        fingerprint: keys.fingerprint(&order(n)),
        token,
        observed: observed(version),
        source_version: version,
        event_id: keys.event_id("orders", token, version, "00"),
        wants_key: true,
    }
}

/// Destroys orders for `case`, each with its token.
pub(crate) async fn destroy(keyring: &Keyring, n: u32, orders: &[usize]) -> Destroyed {
    destroy_to(keyring, n, orders, Extent::Personal).await
}

/// The same, as far as `extent` says.
pub(crate) async fn destroy_to(keyring: &Keyring, n: u32, orders: &[usize], extent: Extent) -> Destroyed {
    let (seller, case) = (seller(), case(n));
    let keys = keyring.seller(&seller).await.unwrap();
    let subjects: Vec<Condemned> =
        orders.iter().map(|n| Condemned { fingerprint: keys.fingerprint(&order(*n)), token: Some(keys.order_token(&order(*n))) }).collect();
    let mut tx = keyring.db().begin_write().await.unwrap();
    let destruction = Destruction { case: &case, seller: &seller, subjects: &subjects, extent, at: keyring.now(), actor: "test" };
    let destroyed = sunder_retention::ledger::destroy(&mut tx, &destruction).await.unwrap();
    tx.commit().await.unwrap();
    destroyed
}

/// Who signs in these tests.
pub(crate) fn signer() -> NoteSigner {
    NoteSigner::from_seed("example.com/sunder", &[9; 32]).unwrap()
}

/// The audit chain read again, with nothing known of it from before.
pub(crate) async fn verified(db: &KeyDb) -> Result<audit::Verified, audit::VerifyError> {
    audit::verify(db, &signer().verifier_key(), &audit::Known::default()).await
}
