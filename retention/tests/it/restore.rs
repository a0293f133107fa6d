//! An old key database comes back: what was erased since is destroyed again before anything is served.

use std::sync::Arc;

use sunder_retention::admit::Admission;
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::{KeyError, Keyring};
use sunder_retention::lease::Lease;
use sunder_retention::ledger::SubjectState;
use sunder_retention::mirror::{self, Generation, Mirrored, Standing};
use sunder_retention::outbox::{self, Outgoing};
use sunder_retention::restore::{self, KEYS_LOST, Restore};
use sunder_retention::sellers::{self, SellerState};
use sunder_retention::store::Extent;
use sunder_retention::testing::{TEST_DAY, TestKeys};
use sunder_schemas::ids::SellerId;
use sunder_schemas::outcome::DropReason;
use sunder_schemas::time::{ManualClock, Period};

use crate::support::{PLAIN, candidate, destroy, destroy_to, order, seller};
use crate::world::World;

/// A key database on SQLite, what its log was told, and a copy of its file.
struct Old {
    clock: Arc<ManualClock>,
    keys: TestKeys,
    told: Vec<Mirrored>,
}

impl Old {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::at(TEST_DAY));
        Self { keys: TestKeys::sqlite(clock.clone(), PLAIN).await, clock, told: Vec::new() }
    }

    fn ring(&self) -> &Keyring {
        &self.keys.keyring
    }

    /// Sends what waits to the log, behind a new generation, and returns that.
    async fn mirror(&mut self) -> Generation {
        let db = self.keys.keyring.db().clone();
        let mut records = vec![mirror::advance(&db).await.unwrap()];
        let waiting = outbox::waiting(&db, 10_000).await.unwrap();
        records.extend(waiting.iter().filter(|record| record.topic == mirror::TOPIC).cloned());
        for record in &records {
            self.told.extend(Mirrored::read(record.key.as_bytes(), record.value.as_deref().map(str::as_bytes)).unwrap());
        }
        outbox::published(&db, &waiting).await.unwrap();
        mirror::here(&db).await.unwrap()
    }

    async fn back_up(&self) {
        let copy = self.keys.folder.path().join("backup.db");
        sqlx::query("VACUUM INTO $1").bind(copy.display().to_string()).execute(self.ring().db().pool()).await.unwrap();
    }

    /// The keyring of a process that starts on the backup.
    async fn restored(&self) -> Arc<Keyring> {
        let url = format!("sqlite://{}", self.keys.folder.path().join("backup.db").display());
        let root = sunder_retention::root::FileRoot::open(&self.keys.folder.path().join("root.key")).unwrap();
        let db = KeyDb::open(&url, None).await.unwrap();
        Arc::new(Keyring::new(db, Arc::new(root), self.clock.clone(), PLAIN))
    }
}

async fn is_behind(ring: &Keyring, log: &Generation) -> bool {
    mirror::standing(&mirror::here(ring.db()).await.unwrap(), Some(log)) == Standing::Behind
}

#[tokio::test]
async fn what_was_erased_since_the_backup_is_destroyed_again_and_a_cut_off_restore_is_noticed_again() {
    let mut old = Old::new().await;
    let keys = old.ring().seller(&seller()).await.unwrap();
    let batch: Vec<_> = (1..=4).map(|n| candidate(&keys, n, 1)).collect();
    old.ring().admit(&seller(), &batch).await.unwrap();
    destroy(old.ring(), 1, &[4]).await;
    old.mirror().await;
    old.back_up().await;
    destroy(old.ring(), 2, &[1, 9]).await;
    destroy_to(old.ring(), 3, &[2], Extent::WithBusinessData).await;
    // Erased with its business data later than with its personal data alone: the log learns of both.
    destroy_to(old.ring(), 4, &[4], Extent::WithBusinessData).await;
    let log = old.mirror().await;

    let ring = old.restored().await;
    assert!(is_behind(&ring, &log).await);
    assert!(matches!(ring.subject(&seller(), batch[0].token).await.unwrap(), SubjectState::Live(_)), "the danger is real");
    // Cut off before its end: the next start notices it again.
    let mut cut = Restore::begin(&ring, log.clone()).await.unwrap();
    cut.apply(&old.told).await.unwrap();
    drop(cut);
    assert!(is_behind(&ring, &log).await);

    let ring = old.restored().await;
    let lease = Lease::register(Arc::clone(&ring), "split", std::time::Duration::from_secs(60)).await.unwrap();
    let mut again = Restore::begin(&ring, log.clone()).await.unwrap();
    for record in &old.told {
        again.apply(std::slice::from_ref(record)).await.unwrap();
    }
    let report = again.finish().await.unwrap();
    assert!(!is_behind(&ring, &log).await);
    assert_eq!((report.keys_destroyed, report.ledger_rows), (0, 0), "the cut-off try had destroyed them");
    for n in [1, 2, 4, 9] {
        let again = candidate(&keys, n, 2);
        let answer = ring.admit(&seller(), std::slice::from_ref(&again)).await.unwrap();
        match n {
            2 | 4 => assert!(matches!(answer[0], Admission::Withheld), "{n}: {answer:?}"),
            _ => assert!(matches!(answer[0], Admission::Drop(DropReason::Erased)), "{n}: {answer:?}"),
        }
        assert!(matches!(ring.subject(&seller(), again.token).await.unwrap(), SubjectState::Destroyed), "{n}");
    }
    assert!(matches!(ring.subject(&seller(), batch[2].token).await.unwrap(), SubjectState::Live(_)), "what is in the backup opens");
    // Other processes learn of it by the ledger epoch, and of what is withheld by its token.
    lease.beat().await.unwrap();
    assert!(ring.erased().withholds(batch[1].token) && ring.erased().withholds(batch[3].token));
    let noticed = mirror::noticed(ring.db()).await.unwrap();
    assert_eq!((noticed.len(), noticed[0].store.as_str(), noticed[0].is_settled), (1, "keys", false));
    crate::support::verified(ring.db()).await.unwrap();
}

#[tokio::test]
async fn a_seller_that_left_since_the_backup_has_left_again_and_a_younger_one_waits_for_a_person() {
    let mut old = Old::new().await;
    let young = SellerId::parse("A2YOUNGER").unwrap();
    let keys = old.ring().seller(&seller()).await.unwrap();
    old.ring().admit(&seller(), &[candidate(&keys, 1, 1)]).await.unwrap();
    old.mirror().await;
    old.back_up().await;
    sellers::set_state(old.ring(), &seller(), SellerState::Removed, None).await.unwrap();
    let mut tx = old.ring().db().begin_write().await.unwrap();
    sellers::destroy_keys(&mut tx, &seller()).await.unwrap();
    tx.commit().await.unwrap();
    let of_young = old.ring().seller(&young).await.unwrap();
    let (print, token) = (of_young.fingerprint(&order(1)), of_young.order_token(&order(1)));
    old.clock.advance(Period::days(1));
    let case = sunder_schemas::ids::CaseId::parse("case-20261123-0000000000000001").unwrap();
    let subjects = [sunder_retention::ledger::Condemned { fingerprint: print, token: Some(token) }];
    let mut tx = old.ring().db().begin_write().await.unwrap();
    let destruction = sunder_retention::ledger::Destruction {
        case: &case,
        seller: &young,
        subjects: &subjects,
        extent: Extent::Personal,
        at: old.ring().now(),
        actor: "test",
    };
    sunder_retention::ledger::destroy(&mut tx, &destruction).await.unwrap();
    tx.commit().await.unwrap();
    let log = old.mirror().await;

    let ring = old.restored().await;
    let mut undo = Restore::begin(&ring, log).await.unwrap();
    undo.apply(&old.told).await.unwrap();
    let report = undo.finish().await.unwrap();
    assert_eq!((report.sellers_removed, report.sellers_lost), (vec![seller()], vec![young.clone()]));
    assert!(matches!(ring.seller(&seller()).await, Err(KeyError::SellerRemoved(_))));
    let known = sellers::list(ring.db()).await.unwrap();
    let state = |id: &SellerId| known.iter().find(|s| s.id == *id).map(|s| (s.state, s.code.clone()));
    assert_eq!(state(&seller()), Some((SellerState::Removed, None)));
    assert_eq!(state(&young), Some((SellerState::Blocked, Some(KEYS_LOST.to_owned()))));
    // Back by a person's hand, with new keys: what may have been erased is not sealed, what is younger than the last erasure is.
    sellers::set_state(&ring, &young, SellerState::Removed, None).await.unwrap();
    sellers::readmit(&ring, &young).await.unwrap();
    let again = ring.seller(&young).await.unwrap();
    assert_ne!(again.fingerprint(&order(1)), print, "the ledger key is lost");
    let (before, mut after) = (candidate(&again, 1, 5), candidate(&again, 2, 5));
    after.observed.created = ring.now().plus(Period::Millis(1));
    let answers = ring.admit(&young, &[before, after]).await.unwrap();
    assert!(matches!(answers[0], Admission::Drop(DropReason::Erased)), "{answers:?}");
    assert!(matches!(answers[1], Admission::Seal { .. }), "{answers:?}");
}

#[tokio::test]
async fn what_waited_when_the_backup_was_made_does_not_take_back_what_was_told_since() {
    let mut old = Old::new().await;
    let keys = old.ring().seller(&seller()).await.unwrap();
    old.ring().admit(&seller(), &[candidate(&keys, 1, 1)]).await.unwrap();
    destroy(old.ring(), 1, &[1]).await;
    // Waits in it: that the seller has keys, and a weak erasure.
    old.back_up().await;
    old.mirror().await;
    destroy_to(old.ring(), 2, &[1], Extent::WithBusinessData).await;
    sellers::set_state(old.ring(), &seller(), SellerState::Removed, None).await.unwrap();
    let mut tx = old.ring().db().begin_write().await.unwrap();
    sellers::destroy_keys(&mut tx, &seller()).await.unwrap();
    tx.commit().await.unwrap();
    let log = old.mirror().await;

    let ring = old.restored().await;
    let mut undo = Restore::begin(&ring, log).await.unwrap();
    undo.apply(&old.told).await.unwrap();
    undo.finish().await.unwrap();
    let waiting = outbox::waiting(ring.db(), 1000).await.unwrap();
    let waiting: Vec<_> = waiting.iter().filter(|record| record.topic == mirror::TOPIC).collect();
    assert!(waiting.is_empty(), "the last record of a key is what a later restore goes by: {waiting:?}");
}

#[tokio::test]
async fn a_process_whose_database_is_exchanged_lets_go_of_every_key() {
    let mut old = Old::new().await;
    old.mirror().await;
    let worker = old.keys.another(old.clock.clone()).await;
    let lease = Lease::register(Arc::clone(&worker), "poll", std::time::Duration::from_secs(3600)).await.unwrap();
    old.mirror().await;
    lease.beat().await.unwrap();
    worker.seller(&seller()).await.unwrap();
    // What a restored file shows: an older generation than the one that was read.
    sqlx::query("UPDATE key_generation SET generation = 1").execute(old.ring().db().pool()).await.unwrap();
    // Told to the log, the older generation would stand for the newest, and the restore would never be noticed.
    assert_eq!(mirror::advance(worker.db()).await.unwrap_err().code, "restored");
    let told: i64 = sqlx::query_scalar("SELECT generation FROM key_generation").fetch_one(old.ring().db().pool()).await.unwrap();
    assert_eq!(told, 1);
    assert_eq!(lease.beat().await.unwrap_err(), KeyError::Restored);
    assert_eq!(worker.seller(&seller()).await.unwrap_err(), KeyError::LeaseLost);
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    assert_eq!(lease.run(stopped).await.unwrap_err(), KeyError::Restored, "it ends by itself");
}

#[tokio::test]
async fn keys_that_nothing_has_alive_are_told_from_those_that_live() {
    let (_, all) = crate::support::databases().await;
    for db in &all {
        let keys = db.keyring.seller(&seller()).await.unwrap();
        let batch = [candidate(&keys, 1, 1), candidate(&keys, 2, 1)];
        let answers = db.keyring.admit(&seller(), &batch).await.unwrap();
        let ids: Vec<_> = answers
            .iter()
            .map(|answer| match answer {
                Admission::Seal { key, .. } => key.id(),
                other => panic!("{other:?}"),
            })
            .collect();
        destroy(&db.keyring, 1, &[2]).await;
        let day = db.keyring.quarantine().await.unwrap().id();
        let lost = sunder_schemas::ids::KeyId([7; 16]);
        let asked = [ids[0], ids[1], day, lost].into_iter().collect();
        let missing = restore::without_key(db.keyring.db(), &asked).await.unwrap();
        assert_eq!(missing, [ids[1], lost].into_iter().collect(), "{}", db.engine);
        let entities: Vec<_> = batch.iter().map(|candidate| (seller(), candidate.token)).collect();
        let of = |n: usize| [entities[n].clone()].into_iter().collect();
        assert_eq!(restore::sealed_again(db.keyring.db(), &entities).await.unwrap(), of(0), "{}", db.engine);
        assert_eq!(restore::erased(db.keyring.db(), &entities).await.unwrap(), of(1), "{}", db.engine);
    }
}

/// What two told side by side came in either order: a weaker erasure behind a stronger one of the same order, an older generation last.
#[tokio::test]
async fn two_that_tell_the_log_at_once_tell_each_record_once_and_in_order() {
    for world in World::all().await {
        let (one, other) = (world.ring.db().clone(), world.process().db().clone());
        outbox::drain(&one, &*world.log).await.unwrap();
        world.log.lock().published.clear();
        let told: Vec<String> = (0..50).map(|n| format!("k{n}")).collect();
        for key in &told {
            let mut tx = one.begin_write().await.unwrap();
            let record = Outgoing { topic: "privacy.requests", key: key.clone(), value: None };
            outbox::push(&mut tx, &[record]).await.unwrap();
            tx.commit().await.unwrap();
        }
        let drained = tokio::join!(outbox::drain(&one, &*world.log), outbox::drain(&other, &*world.log));
        assert_eq!(drained.0.unwrap() + drained.1.unwrap(), 50);
        tokio::try_join!(mirror::publish(&one, &*world.log), mirror::publish(&other, &*world.log)).unwrap();
        let published = world.log.lock().published.clone();
        let keys: Vec<String> = published.iter().filter(|r| r.topic != mirror::TOPIC).map(|r| r.key.clone()).collect();
        assert_eq!(keys, told);
        let generations: Vec<i64> = published
            .iter()
            .filter_map(|r| Mirrored::read(r.key.as_bytes(), r.value.as_deref().map(str::as_bytes)).unwrap())
            .map(|mirrored| if let Mirrored::Generation(generation) = mirrored { generation.generation } else { i64::MIN })
            .collect();
        assert!(generations.len() >= 3 && generations.is_sorted_by(|a, b| a < b), "{generations:?}");
    }
}

/// Each look-up reads its rows and not the table: the daily reading asks for every block there is. (Seen: 760,000 blocks of 200,000 orders
/// took 275 s.)
#[tokio::test]
async fn postgres_looks_subjects_up_by_their_indexes() {
    let (_, all) = crate::support::databases().await;
    let Some(db) = all.iter().find(|db| db.engine == "postgres") else { return };
    let pool = db.keyring.db().pool();
    // Rows of the ledger's own shape; what they hold does not matter to the planner.
    let many = "INSERT INTO subject (fingerprint, seller, token, state, key_id, created_at) \
                SELECT sha256(i::text::bytea), 'A1', decode(md5(i::text), 'hex'), 'live', decode(md5((-i)::text), 'hex'), 0 FROM generate_series(1, 50000) i";
    sqlx::query(many).execute(pool).await.unwrap();
    sqlx::query("INSERT INTO disposition (seller, token, field_group, fate, at) SELECT seller, token, 'gift', 'sealed', 0 FROM subject")
        .execute(pool)
        .await
        .unwrap();
    sqlx::query("ANALYZE").execute(pool).await.unwrap();
    let asked = (0..100).map(|n: u128| format!("'\\x{n:032x}'")).collect::<Vec<_>>().join(", ");
    for (sql, index) in [
        (format!("SELECT key_id FROM subject WHERE state = 'live' AND key_id IN ({asked})"), "subject_key"),
        (format!("SELECT fingerprint FROM subject WHERE seller = 'A1' AND token IN ({asked})"), "subject_token"),
        (format!("DELETE FROM disposition WHERE seller = 'A1' AND token IN ({asked})"), "disposition_pkey"),
    ] {
        let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("EXPLAIN {sql}"))).fetch_all(pool).await.unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains(index) && !plan.contains("Seq Scan"), "{plan}");
    }
}
