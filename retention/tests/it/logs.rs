//! The audit chain and the certificate log under an attacker who may write SQL: on SQLite, and on PostgreSQL where it is to be had.

use sqlx::{AssertSqlSafe, Executor};
use sunder_retention::audit::{self, AuditEvent, AuditOutcome, Known, MirroredRow, VerifyError};
use sunder_retention::case::{KnownLog, LogFault, Progress, verify_log};
use sunder_retention::keydb::KeyDb;
use sunder_retention::outbox;
use sunder_schemas::chain::ChainHead;
use sunder_schemas::ids::CaseId;
use sunder_schemas::note::NoteSigner;
use sunder_schemas::time::{Clock as _, Period, Timestamp};
use sunder_schemas::tlog;

use crate::cases::request;
use crate::support::{databases, signer, verified};
use crate::world::World;

async fn append(db: &KeyDb, at: Timestamp, object: &str) {
    let mut tx = db.begin_write().await.unwrap();
    let detail = serde_json::json!({ "groups": ["buyer_name"], "count": 3 });
    let event = AuditEvent { actor: "someone".into(), action: "open", object: object.to_owned(), outcome: AuditOutcome::Success, detail };
    audit::append(&mut tx, at, &event).await.unwrap();
    tx.commit().await.unwrap();
}

async fn run(db: &KeyDb, sql: &str) {
    db.pool().execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
}

/// What was published so far, as it stands in the outbox.
async fn published(db: &KeyDb) -> Known {
    let mut known = Known::default();
    for record in outbox::waiting(db, 1_000).await.unwrap().iter().filter(|record| record.topic == "audit.log") {
        known.row(&MirroredRow::read(record.value.as_deref().unwrap().as_bytes()).expect("what was published reads back"));
    }
    known
}

async fn against(db: &KeyDb, known: &Known) -> Result<audit::Verified, VerifyError> {
    audit::verify(db, &signer().verifier_key(), known).await
}

/// Cuts the end off and mends the head, so that the rows that are left fit together.
async fn cut_after(db: &KeyDb, seq: i64) {
    run(db, &format!("DELETE FROM audit_event WHERE seq > {seq}")).await;
    run(db, &format!("UPDATE audit_head SET seq = {seq}, hash = (SELECT hash FROM audit_event WHERE seq = {seq})")).await;
}

#[tokio::test]
async fn a_chain_that_was_cut_or_written_anew_is_found_by_what_was_published() {
    let (clock, all) = databases().await;
    for keys in &all {
        let db = keys.keyring.db();
        for n in 0..6 {
            append(db, clock.now(), &format!("order {n}")).await;
        }
        let known = published(db).await;
        assert_eq!(against(db, &known).await.unwrap().rows, 6, "{}", keys.engine);
        cut_after(db, 4).await;
        assert_eq!(verified(db).await.unwrap().rows, 4, "the rows that are left fit together");
        assert_eq!(against(db, &known).await.unwrap_err(), VerifyError::Cut { seq: 5 }, "{}", keys.engine);
        for n in 0..3 {
            append(db, clock.now(), &format!("another order {n}")).await;
        }
        assert_eq!(verified(db).await.unwrap().rows, 7);
        assert_eq!(against(db, &known).await.unwrap_err(), VerifyError::Rewritten { seq: 5 }, "{}", keys.engine);
        // Two chains were published: that alone is enough.
        assert_eq!(against(db, &published(db).await).await.unwrap_err(), VerifyError::Rewritten { seq: 5 });
    }
}

#[tokio::test]
async fn a_signed_head_finds_a_rewritten_chain_without_kafka() {
    let (clock, all) = databases().await;
    for keys in &all {
        let db = keys.keyring.db();
        assert_eq!(audit::sign_head(db, &signer(), clock.now()).await.unwrap(), None, "nothing to sign yet");
        for n in 0..3 {
            append(db, clock.now(), &format!("order {n}")).await;
        }
        assert!(audit::sign_head_if_old(db, &signer(), clock.now()).await.unwrap());
        assert!(!audit::sign_head_if_old(db, &signer(), clock.now()).await.unwrap(), "nothing new");
        append(db, clock.now(), "order 3").await;
        assert!(!audit::sign_head_if_old(db, &signer(), clock.now()).await.unwrap(), "too soon");
        let later = clock.now().plus(audit::CHECKPOINT_EVERY);
        assert!(audit::sign_head_if_old(db, &signer(), later).await.unwrap());
        let kept = audit::sign_head(db, &signer(), later).await.unwrap().unwrap();
        assert_eq!(verified(db).await.unwrap().heads, 2);

        cut_after(db, 3).await;
        assert_eq!(verified(db).await.unwrap_err(), VerifyError::Cut { seq: 4 }, "{}", keys.engine);
        append(db, clock.now(), "another").await;
        assert_eq!(verified(db).await.unwrap_err(), VerifyError::Rewritten { seq: 4 });
        // The signed head is gone as well: whoever kept a copy finds it.
        run(db, "DELETE FROM audit_checkpoint WHERE seq = 4").await;
        assert_eq!(verified(db).await.unwrap().rows, 4);
        let mut known = Known::default();
        known.head(&ChainHead::open(kept.as_bytes(), &signer().verifier_key()).unwrap());
        assert_eq!(against(db, &known).await.unwrap_err(), VerifyError::Rewritten { seq: 4 });
        // A head that somebody else signed, or that was moved, is no head.
        let stranger = NoteSigner::from_seed("example.com/sunder", &[1; 32]).unwrap();
        audit::sign_head(db, &stranger, later).await.unwrap();
        assert!(matches!(verified(db).await.unwrap_err(), VerifyError::Head { seq: 4, .. }));
        run(db, "DELETE FROM audit_checkpoint WHERE seq = 4").await;
        run(db, "UPDATE audit_checkpoint SET seq = 2").await;
        assert!(matches!(verified(db).await.unwrap_err(), VerifyError::Head { seq: 2, .. }));
    }
}

#[tokio::test]
async fn rows_go_by_age_alone_and_a_signed_head_stands_for_them() {
    let keep_for = Period::days(400);
    let (clock, all) = databases().await;
    let start = clock.now();
    for keys in &all {
        let db = keys.keyring.db();
        for day in 0..10i64 {
            append(db, start.plus(Period::days(day)), &format!("order {day}")).await;
            audit::sign_head(db, &signer(), start).await.unwrap();
        }
        let expire = |now| async move { audit::expire(db, &signer(), now, keep_for).await.unwrap() };
        assert_eq!(expire(start.plus(keep_for)).await, 0, "not older than that");
        assert_eq!(expire(start.plus(Period::days(404))).await, 4, "{}", keys.engine);
        let now = verified(db).await.unwrap();
        assert_eq!((now.rows, now.after), (7, 4), "six of before, and the row that tells of it");
        assert_eq!(expire(start.plus(Period::days(404))).await, 0, "once");
        let kept = published(db).await;
        assert_eq!(against(db, &kept).await.unwrap().after, 4, "rows that went by age are missed by nobody");

        // Dropping younger rows the same way needs the signer, though a signed head of them stands.
        run(db, "CREATE TABLE kept AS SELECT * FROM audit_event").await;
        run(db, "DELETE FROM audit_event WHERE seq <= 6").await;
        assert_eq!(verified(db).await.unwrap_err(), VerifyError::Broken { seq: 1 });
        run(db, "UPDATE audit_checkpoint SET kind = 'expiry' WHERE seq = 6").await;
        assert!(matches!(verified(db).await.unwrap_err(), VerifyError::Head { seq: 6, .. }));
        run(db, "UPDATE audit_checkpoint SET kind = 'head' WHERE seq = 6").await;
        run(db, "INSERT INTO audit_event SELECT * FROM kept WHERE seq <= 6").await;
        assert_eq!(verified(db).await.unwrap().rows, 7);
        run(db, "DELETE FROM audit_checkpoint WHERE kind = 'expiry'").await;
        assert_eq!(verified(db).await.unwrap_err(), VerifyError::Broken { seq: 1 }, "the beginning needs its signature");
        run(db, "DROP TABLE kept").await;
    }
}

#[tokio::test]
async fn all_rows_may_go_and_the_chain_goes_on() {
    let (clock, all) = databases().await;
    for keys in &all {
        let db = keys.keyring.db();
        for n in 0..3 {
            append(db, clock.now(), &format!("order {n}")).await;
        }
        let later = clock.now().plus(Period::days(500));
        assert_eq!(audit::expire(db, &signer(), later, Period::days(400)).await.unwrap(), 3);
        append(db, later, "order 9").await;
        let chain = verified(db).await.unwrap();
        assert_eq!((chain.rows, chain.after), (2, 3), "{}", keys.engine);
        let much_later = later.plus(Period::days(401));
        assert_eq!(audit::expire(db, &signer(), much_later, Period::days(400)).await.unwrap(), 2);
        assert_eq!(verified(db).await.unwrap().after, 5);
    }
}

#[tokio::test]
async fn any_changed_byte_of_a_published_record_is_found() {
    let (clock, all) = databases().await;
    let db = all[0].keyring.db();
    append(db, clock.now(), "order ü \"quoted\"").await;
    let records = outbox::waiting(db, 10).await.unwrap();
    let value = records[0].value.clone().unwrap().into_bytes();
    assert_eq!(MirroredRow::read(&value).unwrap().seq, 1);
    for at in 0..value.len() {
        for bit in 0..8 {
            let mut bad = value.clone();
            bad[at] ^= 1 << bit;
            assert_eq!(MirroredRow::read(&bad), None, "byte {at} bit {bit}");
        }
        assert_eq!(MirroredRow::read(&value[..at]), None);
    }
}

/// Three certified cases.
async fn certify(world: &World) -> Vec<CaseId> {
    let mut cases = Vec::new();
    for n in 1..=3 {
        world.order(n).await;
        world.flow();
        let case = world.engine().request(&request(&[n])).await.unwrap();
        assert_eq!(world.work(&case).await, Progress::Done);
        cases.push(case);
    }
    cases
}

async fn fault(db: &KeyDb, known: &KnownLog) -> &'static str {
    verify_log(db, &signer().verifier_key(), known).await.unwrap_err().code()
}

#[tokio::test]
async fn any_change_to_the_certificate_log_is_found() {
    for world in World::all().await {
        let cases = certify(&world).await;
        let db = world.ring.db();
        let none = KnownLog::default();
        assert_eq!(verify_log(db, &signer().verifier_key(), &none).await.unwrap().leaves, 3);
        for table in ["certificate_leaf", "certificate_hash", "certificate_head", "erasure_case"] {
            run(db, &format!("CREATE TABLE kept_{table} AS SELECT * FROM {table}")).await;
        }
        let changes = [
            ("a leaf is dropped", "DELETE FROM certificate_leaf WHERE leaf = 1"),
            ("the last leaf is dropped", "DELETE FROM certificate_leaf WHERE leaf = 2"),
            (
                "a note is that of another case",
                "UPDATE certificate_leaf SET note = (SELECT note FROM kept_certificate_leaf WHERE leaf = 0) WHERE leaf = 1",
            ),
            ("a byte of a note", "UPDATE certificate_leaf SET note = replace(note, 'operator-7', 'operator-8') WHERE leaf = 0"),
            (
                "a proof is another one",
                "UPDATE certificate_leaf SET proof = (SELECT proof FROM kept_certificate_leaf WHERE leaf = 0) WHERE leaf = 1",
            ),
            (
                "a hash is another one",
                "UPDATE certificate_hash SET hash = (SELECT hash FROM kept_certificate_hash WHERE position = 0) WHERE position = 1",
            ),
            ("a hash is gone", "DELETE FROM certificate_hash WHERE position = 2"),
            ("the head is empty", "UPDATE certificate_head SET note = ''"),
            ("the head is nonsense", "UPDATE certificate_head SET note = 'x'"),
            (
                "a certified case has no leaf",
                "UPDATE erasure_case SET case_id = 'case-20261122-00000000000000aa' WHERE case_id = (SELECT case_id FROM kept_certificate_leaf WHERE leaf = 1)",
            ),
        ];
        for (what, sql) in changes {
            run(db, sql).await;
            let broken = verify_log(db, &signer().verifier_key(), &none).await.unwrap_err();
            assert!(!matches!(broken, LogFault::Database(_)), "{what}: {broken}");
            for table in ["certificate_leaf", "certificate_hash", "certificate_head", "erasure_case"] {
                run(db, &format!("DELETE FROM {table}")).await;
                run(db, &format!("INSERT INTO {table} SELECT * FROM kept_{table}")).await;
            }
        }
        assert_eq!(verify_log(db, &signer().verifier_key(), &none).await.unwrap().leaves, 3);
        cut_and_compare(&world, &cases).await;
    }
}

/// The end is cut off with the head of before put back, so that the rest fits together: what was published finds it.
async fn cut_and_compare(world: &World, cases: &[CaseId]) {
    let db = world.ring.db();
    let mut known = KnownLog::default();
    let key = signer().verifier_key();
    let published = world.log.state.lock().unwrap().published.clone();
    for record in published.iter().filter(|record| record.topic == "privacy.certificates") {
        let value: serde_json::Value = serde_json::from_str(record.value.as_deref().unwrap()).unwrap();
        let (Some(note), Some(head)) = (value["note"].as_str(), value["head"].as_str()) else { continue };
        known.notes.insert(CaseId::parse(&record.key).unwrap(), note.as_bytes().to_vec());
        known.heads.push(tlog::open_head(head.as_bytes(), &key).unwrap());
    }
    assert_eq!((known.heads.len(), known.notes.len()), (3, 3));
    assert_eq!(verify_log(db, &key, &known).await.unwrap().leaves, 3);
    run(db, &format!("DELETE FROM erasure_case WHERE case_id = '{}'", cases[2])).await;
    run(db, "DELETE FROM certificate_leaf WHERE leaf = 2").await;
    run(db, "DELETE FROM certificate_hash WHERE position > 2").await;
    let old: Vec<u8> = tlog::sign_head(&signer(), &known.heads[1]).unwrap();
    run(db, &format!("UPDATE certificate_head SET size = 2, note = '{}'", String::from_utf8(old).unwrap())).await;
    assert_eq!(verify_log(db, &key, &KnownLog::default()).await.unwrap().leaves, 2, "the rest fits together");
    assert_eq!(fault(db, &known).await, "log_rewritten");
    assert_eq!(fault(db, &KnownLog { heads: Vec::new(), ..known }).await, "certificate_dropped");
}
