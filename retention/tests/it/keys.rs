//! Admission, destruction, and what holds between them.

use std::sync::Arc;

use sunder_retention::admit::Admission;
use sunder_retention::cursor::{self, CursorMove, Disposition, Gap, PageCommit, Published};
use sunder_retention::deadline::Progress;
use sunder_retention::keys::{Context, DataKey, KeyError, Keyring};
use sunder_retention::lease::ErasedKeys;
use sunder_retention::ledger::{self, Fate, SubjectState};
use sunder_retention::outbox;
use sunder_retention::store::Extent;
use sunder_schemas::class::{Dataset, FieldGroup};
use sunder_schemas::ids::KeyId;
use sunder_schemas::outcome::DropReason;
use sunder_schemas::time::Period;

use crate::support::{candidate, databases, destroy, destroy_to, observed, order, seller, verified};

fn key_of(admission: &Admission) -> Arc<DataKey> {
    match admission {
        Admission::Seal { key, .. } => Arc::clone(key),
        other => panic!("not sealed: {other:?}"),
    }
}

#[tokio::test]
async fn a_subject_gets_one_key_and_keeps_it_in_every_process() {
    let (clock, all) = databases().await;
    for db in &all {
        let keys = db.keyring.seller(&seller()).await.unwrap();
        let batch: Vec<_> = (0..1500).map(|n| candidate(&keys, n, 1)).collect();
        let first = db.keyring.admit(&seller(), &batch).await.unwrap();
        assert_eq!(first.len(), 1500, "{}", db.engine);
        let other = db.another(clock.clone()).await;
        let keys_there = other.seller(&seller()).await.unwrap();
        assert_eq!(keys_there.order_token(&order(7)), keys.order_token(&order(7)));
        let second = other.admit(&seller(), &batch).await.unwrap();
        let here = Context { seller: &seller(), entity: batch[7].token, group: FieldGroup::Gift, classification: "c#1" };
        for (a, b) in first.iter().zip(&second) {
            assert_eq!(key_of(a).id(), key_of(b).id());
        }
        let block = key_of(&first[7]).seal(&here, b"for you");
        assert_eq!(key_of(&second[7]).open(&here, block.as_bytes()).unwrap().reveal(), b"for you");
        // The same subject twice in one batch.
        let twice = [candidate(&keys, 9000, 1), candidate(&keys, 9000, 2)];
        let answers = db.keyring.admit(&seller(), &twice).await.unwrap();
        assert_eq!(key_of(&answers[0]).id(), key_of(&answers[1]).id());
    }
}

#[tokio::test]
async fn what_went_with_its_business_data_is_withheld_whatever_is_erased_later() {
    let (_, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        let keys = keyring.seller(&seller()).await.unwrap();
        let batch = [candidate(&keys, 1, 1), candidate(&keys, 2, 1), candidate(&keys, 3, 1)];
        keyring.admit(&seller(), &batch).await.unwrap();
        // One at once, one later and known as erased already, one that was never seen.
        destroy(keyring, 1, &[1, 2]).await;
        destroy_to(keyring, 2, &[1, 4], Extent::WithBusinessData).await;
        destroy(keyring, 3, &[1, 4]).await;
        let again: Vec<_> = (1..=4).map(|n| candidate(&keys, n, 2)).collect();
        let answers = keyring.admit(&seller(), &again).await.unwrap();
        assert!(matches!(answers[0], Admission::Withheld), "{:?}", answers[0]);
        assert!(matches!(answers[1], Admission::Drop(DropReason::Erased)), "{:?}", answers[1]);
        assert!(matches!(answers[2], Admission::Seal { .. }), "{:?}", answers[2]);
        assert!(matches!(answers[3], Admission::Withheld), "{:?}", answers[3]);
        let gate = ErasedKeys::default();
        gate.refresh(keyring.db()).await.unwrap();
        let withheld: Vec<bool> = again.iter().map(|candidate| gate.withholds(candidate.token)).collect();
        assert_eq!(withheld, [true, false, false, true], "{}", db.engine);
    }
}

#[tokio::test]
async fn erased_stays_erased_known_order_or_not() {
    let (_, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        let keys = keyring.seller(&seller()).await.unwrap();
        let known = keyring.admit(&seller(), &[candidate(&keys, 1, 1)]).await.unwrap();
        let id = key_of(&known[0]).id();
        let destroyed = destroy(keyring, 1, &[1, 2]).await;
        let mut ids: Vec<Option<KeyId>> = destroyed.keys.iter().map(|(_, key)| *key).collect();
        ids.sort();
        assert_eq!(ids, [None, Some(id)]);
        for n in [1, 2] {
            let again = keyring.admit(&seller(), &[candidate(&keys, n, 5)]).await.unwrap();
            assert!(matches!(again[0], Admission::Drop(DropReason::Erased)), "{}: {again:?}", db.engine);
            let state = keyring.subject(&seller(), keys.order_token(&order(n))).await.unwrap();
            assert!(matches!(state, SubjectState::Destroyed));
        }
        // Again: nothing new, the same answer, a record for each subject once.
        let again = destroy(keyring, 1, &[1, 2]).await;
        assert_eq!(again.keys, destroyed.keys);
        assert!(again.epoch > destroyed.epoch);
        let records = outbox::waiting(keyring.db(), 100).await.unwrap();
        let count = |topic: &str| records.iter().filter(|r| r.topic == topic).count();
        assert_eq!((count("privacy.erased"), count("keys.revoked"), count("audit.log")), (3, 1, 2));
        assert_eq!(verified(keyring.db()).await.unwrap().rows, 2);
    }
}

#[tokio::test]
async fn past_its_deadline_nothing_is_minted_and_an_acknowledged_version_is_unchanged() {
    let (clock, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        let keys = keyring.seller(&seller()).await.unwrap();
        let mut cancelled = candidate(&keys, 1, 1);
        cancelled.observed.progress = Progress::Cancelled;
        cancelled.observed.last_updated = keyring.now();
        let answers = keyring.admit(&seller(), &[cancelled.clone(), candidate(&keys, 2, 1)]).await.unwrap();
        assert!(matches!(answers[0], Admission::Drop(DropReason::PastDeadline)));
        let key = key_of(&answers[1]);
        assert!(matches!(keyring.subject(&seller(), cancelled.token).await.unwrap(), SubjectState::NotHeld(_)));

        let page = PageCommit {
            dispositions: vec![Disposition {
                token: cancelled.token,
                group: FieldGroup::BuyerName,
                fate: Fate::Dropped(DropReason::PastDeadline),
            }],
            published: vec![Published { fingerprint: cancelled.fingerprint, event_id: cancelled.event_id, source_version: 1 }],
            cursor: Some(CursorMove { dataset: Dataset::Orders, expected_version: 0, position: keyring.now(), detail: "{}".to_owned() }),
            ..PageCommit::default()
        };
        keyring.commit_page(&seller(), page.clone()).await.unwrap();
        // Another process was at the same page: its compare-and-set fails and nothing of it is recorded.
        let error = keyring.commit_page(&seller(), page).await.unwrap_err();
        assert!(matches!(error, KeyError::CursorMoved { .. }), "{error}");
        assert_eq!(cursor::read(keyring.db(), &seller(), Dataset::Orders).await.unwrap().unwrap().version, 1);
        let state = keyring.subject(&seller(), cancelled.token).await.unwrap();
        assert!(matches!(state, SubjectState::NotHeld(groups) if groups == [(FieldGroup::BuyerName, DropReason::PastDeadline)]));
        let again = keyring.admit(&seller(), &[cancelled]).await.unwrap();
        assert!(matches!(again[0], Admission::Unchanged));

        // 59 days on it is not yet due, a day later it is.
        clock.advance(Period::days(58));
        assert!(ledger::due(keyring, keyring.now(), 10).await.unwrap().is_empty());
        clock.advance(Period::days(1));
        let due = ledger::due(keyring, keyring.now(), 10).await.unwrap();
        assert_eq!(due.iter().map(|d| (d.key, d.rule.as_str())).collect::<Vec<_>>(), [(key.id(), "cap_created")]);
        // Its next version comes: it is not sealed any more, though the sweep has not yet come.
        let late = keyring.admit(&seller(), &[candidate(&keys, 2, 2)]).await.unwrap();
        assert!(matches!(late[0], Admission::Drop(DropReason::PastDeadline)));
        clock.advance(Period::Millis(-59 * 86_400_000));
    }
}

#[tokio::test]
async fn an_undelivered_order_waits_while_the_watermark_moves_and_no_longer() {
    let (clock, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        let start = keyring.now();
        let keys = keyring.seller(&seller()).await.unwrap();
        let mut open = candidate(&keys, 1, 0);
        open.observed = sunder_retention::deadline::Observed { delivery_visible: true, ..observed(0) };
        keyring.admit(&seller(), &[open]).await.unwrap();
        clock.advance(Period::days(31));
        // The poller has read up to a day ago: not delivered, so not due.
        let to = CursorMove {
            dataset: Dataset::Orders,
            expected_version: 0,
            position: keyring.now().minus(Period::days(1)),
            detail: "{}".to_owned(),
        };
        keyring.commit_page(&seller(), PageCommit { cursor: Some(to), ..PageCommit::default() }).await.unwrap();
        // A gap behind the watermark may hold the delivery: only what lies before it was seen.
        let mut tx = keyring.db().begin_write().await.unwrap();
        let (from, until) = (start, keyring.now().minus(Period::days(2)));
        let gap =
            Gap { seller: seller(), dataset: Dataset::Orders, from, until, code: "body_not_json".to_owned(), tries: 1, is_open: true };
        cursor::open_gap(&mut tx, &gap, keyring.now()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(ledger::due(keyring, keyring.now(), 10).await.unwrap().len(), 1, "{}", db.engine);
        let mut tx = keyring.db().begin_write().await.unwrap();
        cursor::close_gaps(&mut tx, &seller(), Dataset::Orders, (from, until), keyring.now()).await.unwrap();
        tx.commit().await.unwrap();
        assert!(ledger::due(keyring, keyring.now(), 10).await.unwrap().is_empty(), "{}", db.engine);
        // The poller stands still: 30 days after its watermark, or at the cap, it is due.
        clock.advance(Period::days(28));
        assert_eq!(ledger::due(keyring, keyring.now(), 10).await.unwrap().len(), 1);
        clock.advance(Period::Millis(start.0 - keyring.now().0));
    }
}

/// Minting and erasing the same subjects from two processes, many times: never a live key after its destruction, never two keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn minting_and_erasing_interleave_without_write_skew() {
    const ROUNDS: usize = 40;
    let (clock, all) = databases().await;
    for db in &all {
        let (a, b, c): (Arc<Keyring>, Arc<Keyring>, Arc<Keyring>) =
            (Arc::clone(&db.keyring), db.another(clock.clone()).await, db.another(clock.clone()).await);
        let keys = a.seller(&seller()).await.unwrap();
        for round in 0..ROUNDS {
            let orders: Vec<usize> = (0..6).map(|n| round * 10 + n).collect();
            let batch: Vec<_> = orders.iter().map(|n| candidate(&keys, *n, 1)).collect();
            let reversed: Vec<_> = batch.iter().rev().cloned().collect();
            let erased = &orders[..3];
            let (seller, n) = (seller(), u32::try_from(round).unwrap());
            let (first, second, destroyed) = tokio::join!(a.admit(&seller, &batch), b.admit(&seller, &reversed), destroy(&c, n, erased));
            let (first, mut second) = (first.unwrap(), second.unwrap());
            second.reverse();
            for (index, (x, y)) in first.iter().zip(&second).enumerate() {
                if let (Admission::Seal { key: x, .. }, Admission::Seal { key: y, .. }) = (x, y) {
                    assert_eq!(x.id(), y.id(), "{} round {round}: two keys", db.engine);
                }
                let state = c.subject(&seller, batch[index].token).await.unwrap();
                let after = c.admit(&seller, &batch[index..=index]).await.unwrap();
                if index < 3 {
                    assert!(matches!(state, SubjectState::Destroyed), "{} round {round}: alive", db.engine);
                    assert!(matches!(after[0], Admission::Drop(DropReason::Erased)));
                    let recorded = destroyed.keys.iter().find(|(f, _)| *f == batch[index].fingerprint).unwrap().1;
                    // Whoever got a key got the one that was destroyed after it.
                    for answer in [x, y] {
                        if let Admission::Seal { key, .. } = answer {
                            assert_eq!(Some(key.id()), recorded, "{} round {round}", db.engine);
                        }
                    }
                } else {
                    assert_eq!(key_of(&after[0]).id(), key_of(x).id());
                }
            }
        }
    }
}
