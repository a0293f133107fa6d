//! Closed cases proved again: what came back is found and deleted, and nothing that was not read counts as proved.

use sunder_retention::case::{Progress, Reproved, State};
use sunder_retention::store::{Drifted, Hindrance};
use sunder_schemas::ids::CaseId;
use sunder_schemas::time::Period;

use super::request;
use crate::world::log::Topic;
use crate::world::{Manner, World};

async fn closed(world: &World, order: usize) -> CaseId {
    let case = world.engine().request(&request(&[order])).await.unwrap();
    assert_eq!(world.work(&case).await, Progress::Done);
    case
}

async fn again(world: &World) -> Vec<Reproved> {
    let proved = world.engine().verify_all().await.unwrap();
    assert!(world.log.lock().living(Topic::Pii).all(|key| !key.starts_with("~canary|")), "controls are taken away again");
    proved
}

fn holding(proved: &[Reproved]) -> Vec<&CaseId> {
    proved.iter().filter(|proof| proof.holds).map(|proof| &proof.case).collect()
}

#[tokio::test]
async fn what_comes_back_after_a_case_closed_is_deleted_again_and_then_proved_gone() {
    for world in World::all().await {
        let (_, (topic, key, row)) = world.order(1).await;
        world.order(2).await;
        world.flow();
        let restored = world.vault.held.lock().unwrap().rows.clone();
        let first = closed(&world, 1).await;
        world.clock.advance(Period::Millis(1));
        let second = closed(&world, 2).await;
        assert_eq!(holding(&again(&world).await), [&first, &second]);

        // A replica that kept a value until its tombstone was gone, and a vault with the row of then.
        world.log.lock().drop_tombstones();
        world.log.lock().is_cleaner_down = true;
        world.log.lock().append(topic, &key, Some(row));
        world.vault.held.lock().unwrap().rows.extend(restored.into_iter().filter(|(of, _)| *of == key));
        let steps = world.steps(&first).await;
        let proved = again(&world).await;
        assert_eq!(holding(&proved), [&second], "{proved:?}");
        let found = &proved[0];
        assert!(found.mended && found.reason.as_ref().is_some_and(|why| why.ends_with("; deleted again")), "{found:?}");
        assert!(!world.vault.held.lock().unwrap().rows.contains_key(&key));

        // Its tombstone lies above it: nothing to mend, and no proof while the bytes are there.
        let proved = again(&world).await;
        assert!(!proved[0].holds && !proved[0].mended && proved[1].holds, "{proved:?}");
        world.log.lock().wake_cleaner();
        assert_eq!(holding(&again(&world).await), [&first, &second]);
        assert_eq!((world.steps(&first).await, world.show(&first).await.state), (steps, State::Certified));
    }
}

#[tokio::test]
async fn what_cannot_be_read_or_lost_its_control_is_never_called_proved() {
    type Spoil = fn(&World);
    let away = || Hindrance { what: "broker 3 is away".to_owned(), stops: true };
    let drift = || Drifted { what: "sp.pii.orders.v1: segment.ms is 1".to_owned(), is_lowered: false };
    let world = World::new().await;
    world.order(1).await;
    world.flow();
    let case = closed(&world, 1).await;
    let spoils: [(Spoil, &str); 3] = [
        (|w| w.vault.set(Manner::Unreadable), "vault could not scan"),
        (|w| w.vault.set(Manner::Forgetful), "found 0 of 1 planted controls"),
        (|w| w.log.lock().is_blind = true, "its scan is void"),
    ];
    let says = async |words: &str| {
        let proved = again(&world).await;
        let [proof] = proved.as_slice() else { panic!("one case: {proved:?}") };
        assert!(!proof.holds && !proof.mended && proof.reason.as_ref().is_some_and(|why| why.contains(words)), "{proof:?}");
    };
    for (spoil, words) in spoils {
        spoil(&world);
        says(words).await;
        world.vault.set(Manner::Honest);
        world.log.lock().is_blind = false;
        assert_eq!(holding(&again(&world).await), [&case], "{words}");
    }
    world.log.lock().hindrances = vec![away()];
    says("broker 3 is away").await;
    world.log.lock().hindrances.clear();
    world.log.lock().drift = vec![drift()];
    says("topic settings drifted").await;
    world.log.lock().drift.clear();
    assert_eq!(holding(&again(&world).await), [&case]);
}
