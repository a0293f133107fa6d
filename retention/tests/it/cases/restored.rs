//! An old key database comes back: what the log knows of cases, certificates and the audit chain wins.

use std::sync::Arc;

use sunder_retention::audit::{self, MirroredRow};
use sunder_retention::case::restore::{self, MirroredCertificate, MirroredRequest};
use sunder_retention::case::{self, CaseError, Progress};
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::Keyring;
use sunder_retention::mirror::{self, Mirrored};
use sunder_retention::restore::Restore;
use sunder_retention::store::OutboxRecord;
use sunder_schemas::certificate::check;

use super::{is_certified, request};
use crate::world::{World, signer};

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
