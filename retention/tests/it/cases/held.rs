//! Holds that are made while a case is at work on their order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sunder_retention::case::{CaseError, Holds, Moment, Point, Probe};
use sunder_retention::hold::{self, Document, Hold, HoldError, Kept, NewHold};
use sunder_retention::keys::Keyring;
use sunder_retention::names::name;
use sunder_schemas::class::FieldGroup;

use super::*;

async fn add(ring: &Keyring, n: usize) -> Result<Hold, HoldError> {
    let named = name(ring, &seller(), &order(n)).await.unwrap();
    let new = NewHold {
        seller: &seller(),
        order: &named,
        statute: "HGB 257",
        document: Document::Invoice,
        fields: &[FieldGroup::BuyerName],
        purpose: None,
        until: ring.now().plus(Period::days(3000)),
        by: "clerk",
    };
    hold::add(ring, &new).await
}

/// A cold store that takes everything, and notes for which hold.
#[derive(Default)]
struct Cold(Mutex<Vec<String>>);

#[async_trait]
impl Holds for Cold {
    async fn keep(&self, hold: &Hold) -> Result<Kept, CaseError> {
        self.0.lock().unwrap().push(hold.id.clone());
        Ok(Kept::Fields(hold.fields.clone()))
    }
}

/// Makes a hold once the case has kept what was held, and before it destroys the key.
struct Latecomer {
    ring: Arc<Keyring>,
    has_come: AtomicBool,
}

#[async_trait]
impl Probe for Latecomer {
    async fn reached(&self, _: &CaseId, point: Point) {
        if point.moment == Moment::Within("held") && !self.has_come.swap(true, Ordering::SeqCst) {
            add(&self.ring, 1).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_hold_that_is_made_while_its_order_is_about_to_be_destroyed_is_kept_first() {
    for world in World::all().await {
        world.order(1).await;
        world.flow();
        let cold = Arc::new(Cold::default());
        let late = Latecomer { ring: Arc::clone(&world.ring), has_come: AtomicBool::new(false) };
        let engine = world.engine().with_holds(cold.clone()).with_probe(Arc::new(late));
        let case = engine.request(&request(&[1])).await.unwrap();
        assert!(matches!(engine.advance(&case).await.unwrap(), Progress::Waiting { .. }));
        assert_eq!(world.work(&case).await, Progress::Done);
        let holds: Vec<String> = hold::list(world.ring.db()).await.unwrap().into_iter().map(|hold| hold.id).collect();
        assert_eq!((holds.len(), cold.0.lock().unwrap().clone()), (1, holds));
        assert!(matches!(add(&world.ring, 1).await, Err(HoldError::Refused(_))), "once the key is gone there is nothing to hold");
    }
}

#[tokio::test]
async fn a_seller_that_leaves_and_a_hold_exclude_each_other() {
    for world in World::all().await {
        world.orders(1..3).await;
        world.flow();
        let removal = EraseRequest { scope: Scope::All, reason: Reason::SellerOffboarding, with_business_data: Some(true), ..request(&[]) };
        let hold = add(&world.ring, 1).await.unwrap();
        let refused = world.engine().request(&removal).await.unwrap_err().to_string();
        assert!(refused.contains("legal holds that have not ended"), "{refused}");
        assert!(world.cases().await.is_empty());

        hold::end(&world.ring, &hold.id, "clerk").await.unwrap();
        let ended = world.engine().request(&EraseRequest { scope: Scope::Entities(vec![hold.token]), ..request(&[]) }).await.unwrap();
        assert_eq!(world.work(&ended).await, Progress::Done);
        let case = world.engine().request(&removal).await.unwrap();
        let refused = add(&world.ring, 2).await.unwrap_err().to_string();
        assert!(refused.contains("the seller is being removed"), "{refused}");
        assert_eq!(world.work(&case).await, Progress::Done);
    }
}
