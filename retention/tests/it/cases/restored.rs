//! An old key database comes back: what the log knows of cases, certificates and the audit chain wins.

use std::sync::Arc;

use sqlx::Row as _;
use sunder_retention::audit::{self, MirroredRow};
use sunder_retention::case::restore::{self, MirroredCertificate, MirroredRequest};
use sunder_retention::case::{self, CaseError, EraseRequest, Progress, Scope};
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::Keyring;
use sunder_retention::lease::ErasedKeys;
use sunder_retention::mirror::{self, Mirrored};
use sunder_retention::restore::Restore;
use sunder_retention::store::OutboxRecord;
use sunder_schemas::certificate::check;
use sunder_schemas::time::{Clock as _, Period};

use super::{is_certified, request};
use crate::world::{START, World, order, seller, signer};

fn of<T: serde::de::DeserializeOwned>(records: &[OutboxRecord], topic: &str) -> Vec<T> {
    let values = records.iter().filter(|record| record.topic == topic).filter_map(|record| record.value.as_deref());
    values.filter_map(|value| serde_json::from_str(value).ok()).collect()
}

async fn back_up(world: &World) -> String {
    let copy = world.keys.folder.path().join("backup.db");
    sqlx::query("VACUUM INTO $1").bind(copy.display().to_string()).execute(world.ring.db().pool()).await.unwrap();
    format!("sqlite://{}", copy.display())
}

#[tokio::test]
async fn a_certificate_of_the_log_is_taken_over_and_what_was_asked_for_is_done() {
    let mut world = World::new().await;
    world.orders(1..6).await;
    world.flow();
    let engine = world.engine();
    let first = engine.request(&request(&[1])).await.unwrap();
    assert_eq!(world.work(&first).await, Progress::Done);
    let begun = engine.request(&request(&[2])).await.unwrap();
    let url = back_up(&world).await;

    // After the backup: one case of before is certified, one is opened and certified, one is opened and no more.
    assert_eq!(world.work(&begun).await, Progress::Done);
    let younger = engine.request(&request(&[3])).await.unwrap();
    assert_eq!(world.work(&younger).await, Progress::Done);
    let asked = engine.request(&request(&[4])).await.unwrap();
    sunder_retention::outbox::drain(world.ring.db(), &*world.log).await.unwrap();
    let files = world.certificate(&younger).await;
    let told = world.log.state.lock().unwrap().published.clone();
    let chain = crate::support::verified(world.ring.db()).await.unwrap();

    let db = KeyDb::open(&url, None).await.unwrap();
    let root = sunder_retention::root::FileRoot::open(&world.keys.folder.path().join("root.key")).unwrap();
    let ring = Arc::new(Keyring::new(db.clone(), Arc::new(root), world.clock.clone(), *world.ring.policy()));
    let rows: Vec<MirroredRow> = told
        .iter()
        .filter(|record| record.topic == "audit.log")
        .filter_map(|record| MirroredRow::read(record.value.as_deref()?.as_bytes()))
        .collect();
    assert!(audit::take_over(&db, &rows).await.unwrap() > 0);
    assert_eq!(audit::take_over(&db, &rows).await.unwrap(), 0, "twice is once");
    let here = crate::support::verified(&db).await.unwrap();
    assert_eq!((here.rows, &here.head), (chain.rows, &chain.head), "the chain goes on where it ended");

    let mirrored: Vec<Mirrored> = told
        .iter()
        .filter(|record| record.topic == mirror::TOPIC)
        .filter_map(|record| Mirrored::read(record.key.as_bytes(), record.value.as_deref().map(str::as_bytes)).unwrap())
        .collect();
    let mut undo = Restore::begin(&ring, mirror::here(world.ring.db()).await.unwrap()).await.unwrap();
    undo.apply(&mirrored).await.unwrap();
    let certificates: Vec<MirroredCertificate> = of(&told, "privacy.certificates");
    let gap: Vec<MirroredCertificate> = certificates.iter().filter(|certificate| certificate.leaf != 1).cloned().collect();
    let known = restore::leaves(&db).await.unwrap();
    assert_eq!(known, 1);
    let refused = restore::certificates(&db, &signer(), gap).await.unwrap_err();
    assert!(matches!(&refused, CaseError::Db(error) if error.code == "leaf_missing"), "{refused}");
    let mut forged = certificates.clone();
    for certificate in &mut forged {
        certificate.note = certificate.note.replace("purge", "clear").replace("Purge", "Clear");
    }
    restore::certificates(&db, &signer(), forged).await.unwrap_err();
    assert_eq!(restore::certificates(&db, &signer(), certificates.clone()).await.unwrap(), 2);
    assert_eq!(restore::certificates(&db, &signer(), certificates).await.unwrap(), 0, "twice is once");
    let requests: Vec<MirroredRequest> = of(&told, "privacy.requests");
    let now = sunder_schemas::time::Clock::now(&*world.system);
    assert_eq!(restore::requests(&db, &requests, &Default::default(), now).await.unwrap(), 1);
    undo.finish().await.unwrap();

    let left = |db: KeyDb| async move {
        let sql = "SELECT case_id, residual_until FROM erasure_case WHERE state = 'certified' ORDER BY case_id";
        let rows = sqlx::query(sql).fetch_all(db.pool()).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(String, Option<i64>)>>()
    };
    assert_eq!(left(db.clone()).await, left(world.ring.db().clone()).await, "until when what is left of each is known");
    for case in [&first, &begun, &younger] {
        assert!(case::show(&db, case, now).await.unwrap().certified_at.is_some(), "{case}");
        assert!(is_certified(&world, case).await);
    }
    let again = case::certificate_files(&db, &younger, &signer()).await.unwrap();
    assert_eq!((&again.note, &again.proof), (&files.note, &files.proof), "the same certificate, the same proof");
    check(&again.note, &again.verifier_key, Some(&again.proof), Some(&again.statement)).unwrap();

    // The case that was asked for is worked to its end on the restored database, behind the leaves that were taken over.
    world.ring = ring;
    assert_eq!(world.work(&asked).await, Progress::Done);
    assert_eq!(restore::leaves(&db).await.unwrap(), 4);
    crate::support::verified(&db).await.unwrap();
}

/// Brings `world`'s key database back from `url`, and does what the program does at its start with one that is behind the log.
async fn bring_back(world: &mut World, url: &str) -> mirror::Standing {
    let told = world.log.lock().published.clone();
    world.restore_keys(std::path::Path::new(url.trim_start_matches("sqlite://"))).await;
    let mirrored: Vec<Mirrored> = told
        .iter()
        .filter(|record| record.topic == mirror::TOPIC)
        .filter_map(|record| Mirrored::read(record.key.as_bytes(), record.value.as_deref().map(str::as_bytes)).unwrap())
        .collect();
    let newest = mirrored.iter().rev().find_map(|each| match each {
        Mirrored::Generation(generation) => Some(generation.clone()),
        Mirrored::Erased(_) | Mirrored::Seller(_) => None,
    });
    let db = world.ring.db().clone();
    let standing = mirror::standing(&mirror::here(&db).await.unwrap(), newest.as_ref());
    if standing == mirror::Standing::Behind {
        let mut undo = Restore::begin(&world.ring, newest.unwrap()).await.unwrap();
        undo.apply(&mirrored).await.unwrap();
        restore::certificates(&db, &signer(), of(&told, "privacy.certificates")).await.unwrap();
        let requests: Vec<MirroredRequest> = of(&told, "privacy.requests");
        restore::requests(&db, &requests, &Default::default(), START).await.unwrap();
        undo.finish().await.unwrap();
    }
    standing
}

/// The ledger names the case that erased an order first; the certificate of a later one is about it all the same.
#[tokio::test]
async fn a_certified_case_that_comes_back_is_about_all_that_it_was_about() {
    for is_begun in [false, true] {
        let mut world = World::new().await;
        world.orders(1..3).await;
        world.flow();
        let personal = world.engine().request(&request(&[1])).await.unwrap();
        assert_eq!(world.work(&personal).await, Progress::Done);
        let more = EraseRequest { with_business_data: Some(true), ..request(&[1, 2]) };
        let begun = if is_begun { Some(world.engine().request(&more).await.unwrap()) } else { None };
        let url = back_up(&world).await;
        let case = if let Some(case) = begun { case } else { world.engine().request(&more).await.unwrap() };
        assert_eq!(world.work(&case).await, Progress::Done);
        bring_back(&mut world, &url).await;
        let report = world.engine().verify(&case).await.unwrap();
        assert_eq!((report.recover.tried, report.recover.opened), (2, 0), "begun {is_begun}");
    }
}

/// Found by the simulation: two erasures of one order lie on the log until it is cleaned.
#[tokio::test]
async fn of_two_erasures_of_one_order_the_stronger_comes_back() {
    let mut world = World::new().await;
    world.orders(1..9).await;
    world.flow();
    let url = back_up(&world).await;
    let orders: Vec<usize> = (1..9).collect();
    let personal = world.engine().request(&request(&orders)).await.unwrap();
    assert_eq!(world.work(&personal).await, Progress::Done);
    let more = EraseRequest { with_business_data: Some(true), ..request(&orders) };
    let business = world.engine().request(&more).await.unwrap();
    assert_eq!(world.work(&business).await, Progress::Done);
    bring_back(&mut world, &url).await;
    let gate = ErasedKeys::default();
    gate.refresh(world.ring.db()).await.unwrap();
    let keys = world.ring.seller(&seller()).await.unwrap();
    for n in orders {
        assert!(gate.withholds(keys.order_token(&order(n))), "order {n}");
    }
}

/// Found by the simulation: what the recover test tries was lost with the database, and the case was blocked for good.
#[tokio::test]
async fn an_order_that_the_backup_did_not_know_is_still_tried_by_the_recover_test() {
    let mut world = World::new().await;
    world.order(1).await;
    let url = back_up(&world).await;
    world.order(2).await;
    world.flow();
    let case = world.engine().request(&request(&[2])).await.unwrap();
    world.engine().advance(&case).await.unwrap();
    bring_back(&mut world, &url).await;
    assert_eq!(world.work(&case).await, Progress::Done);
    let files = world.certificate(&case).await;
    let statement = check(&files.note, &files.verifier_key, Some(&files.proof), None).unwrap().statement;
    assert_eq!((statement.recover.tried, statement.recover.opened, statement.subjects.keys), (1, 0, 1));
}

/// Found by the simulation: nothing was erased yet, so nothing said that the database was an old one.
#[tokio::test]
async fn a_request_that_was_told_is_not_forgotten_with_the_database() {
    let mut world = World::new().await;
    world.order(1).await;
    world.flow();
    sunder_retention::outbox::drain(world.ring.db(), &*world.log).await.unwrap();
    let url = back_up(&world).await;
    let case = world.engine().request(&request(&[1])).await.unwrap();
    sunder_retention::outbox::drain(world.ring.db(), &*world.log).await.unwrap();
    assert_eq!(bring_back(&mut world, &url).await, mirror::Standing::Behind);
    assert_eq!(world.work(&case).await, Progress::Done);
}

/// Found by the simulation: what a case over a whole seller, or over what was due, had erased was in the ledger of the restored
/// database, so the case, which had to begin again, listed nothing of it and left its rows and blocks where they were.
#[tokio::test]
async fn a_case_that_begins_again_after_a_restore_removes_what_it_had_erased_before() {
    for is_expiry in [false, true] {
        let mut world = World::new().await;
        let sent = world.orders(1..4).await;
        world.flow();
        let engine = world.engine();
        let case = if is_expiry {
            world.clock.advance(Period::days(70));
            engine.sweep(world.clock.now()).await.unwrap().remove(0)
        } else {
            let all = EraseRequest { scope: Scope::All, with_business_data: Some(true), ..request(&[]) };
            engine.request(&all).await.unwrap()
        };
        let url = back_up(&world).await;
        world.log.lock().is_splitter_down = true;
        world.order(9).await;
        engine.advance(&case).await.unwrap();
        bring_back(&mut world, &url).await;
        world.log.lock().is_splitter_down = false;
        assert_eq!(world.work(&case).await, Progress::Done);
        let files = world.certificate(&case).await;
        let statement = check(&files.note, &files.verifier_key, Some(&files.proof), None).unwrap().statement;
        assert!(statement.subjects.count >= 3, "expiry {is_expiry}: {:?}", statement.subjects);
        for (key, (_, place, _)) in &sent {
            assert!(!world.vault.holds_block(*key), "expiry {is_expiry}");
            let own = place.rsplit_once('|').unwrap().0;
            assert_eq!(world.warehouse.has(own), is_expiry, "expiry {is_expiry}");
        }
    }
}
