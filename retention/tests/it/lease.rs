//! Leases, epochs and what a process must have let go of.

use std::sync::Arc;
use std::time::Duration;

use sunder_retention::admit::Admission;
use sunder_retention::keys::KeyError;
use sunder_retention::lease::{self, Lease};

use crate::support::{candidate, databases, destroy, seller};

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_epoch_is_acknowledged_once_no_earlier_work_is_on_its_way() {
    let (clock, all) = databases().await;
    for db in &all {
        let worker = db.another(clock.clone()).await;
        let lease = Lease::register(Arc::clone(&worker), "poll", LONG).await.unwrap();
        let keys = worker.seller(&seller()).await.unwrap();
        let passage = worker.gate().enter().await;
        let answers = worker.admit(&seller(), &[candidate(&keys, 1, 1)]).await.unwrap();
        let Admission::Seal { key, .. } = &answers[0] else { panic!("{answers:?}") };

        let epoch = destroy(&db.keyring, 1, &[1]).await.epoch;
        assert!(!lease::acknowledged(db.keyring.db(), epoch).await.unwrap());
        assert!(!worker.erased().contains(key.id()));
        lease.beat().await.unwrap();
        // It knows, and new work is refused by it; but work from before is still on its way to Kafka.
        assert!(worker.erased().contains(key.id()));
        lease.beat().await.unwrap();
        assert!(!lease::acknowledged(db.keyring.db(), epoch).await.unwrap(), "{}", db.engine);
        let later = worker.gate().enter_blocking();
        drop(passage);
        lease.beat().await.unwrap();
        assert!(lease::acknowledged(db.keyring.db(), epoch).await.unwrap(), "work that began later does not hold it up");
        drop(later);
        lease.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_process_without_a_lease_may_not_use_keys_and_holds_nothing_up() {
    let (clock, all) = databases().await;
    for db in &all {
        let worker = db.another(clock.clone()).await;
        let keys = worker.seller(&seller()).await.unwrap();
        // A lease of no length is over at once, here and by the database's clock.
        let lease = Lease::register(Arc::clone(&worker), "poll,split", Duration::ZERO).await.unwrap();
        let error = worker.admit(&seller(), &[candidate(&keys, 1, 1)]).await.unwrap_err();
        assert_eq!(error, KeyError::LeaseLost);
        assert_eq!(worker.subject(&seller(), candidate(&keys, 1, 1).token).await.unwrap_err(), KeyError::LeaseLost);
        assert_eq!(worker.quarantine().await.unwrap_err(), KeyError::LeaseLost);
        let epoch = destroy(&db.keyring, 1, &[1]).await.epoch;
        // The database's clock counts in milliseconds: the next one has come once a clock of our own has seen it pass.
        while !lease::acknowledged(db.keyring.db(), epoch).await.unwrap() {
            tokio::task::yield_now().await;
        }
        lease.end().await.unwrap();
        assert!(matches!(lease.beat().await, Err(KeyError::Database(_))), "a lease that was given back is not taken again");
    }
}

#[tokio::test]
async fn running_it_beats_until_it_is_stopped() {
    let (clock, all) = databases().await;
    for db in &all {
        let worker = db.another(clock.clone()).await;
        let lease = Lease::register(Arc::clone(&worker), "split", Duration::from_millis(300)).await.unwrap();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let epoch = destroy(&db.keyring, 1, &[1, 2]).await.epoch;
        let watch = async {
            while worker.erased().epoch() < epoch {
                tokio::task::yield_now().await;
            }
            stop.send(true).unwrap();
        };
        let (ended, ()) = tokio::join!(lease.run(stopped), watch);
        ended.unwrap();
        assert!(lease::acknowledged(db.keyring.db(), epoch).await.unwrap());
    }
}

#[tokio::test]
async fn keys_leave_memory_with_the_lease_also_while_the_database_hangs() {
    let (clock, all) = databases().await;
    for db in &all {
        let worker = db.another(clock.clone()).await;
        let lease = Lease::register(Arc::clone(&worker), "poll", Duration::from_secs(1)).await.unwrap();
        let (data_key, seller_keys) = {
            let keys = worker.seller(&seller()).await.unwrap();
            let answers = worker.admit(&seller(), &[candidate(&keys, 1, 1)]).await.unwrap();
            let Admission::Seal { key, .. } = &answers[0] else { panic!("{answers:?}") };
            (Arc::downgrade(key), Arc::downgrade(&keys))
        };
        assert!(data_key.upgrade().is_some() && seller_keys.upgrade().is_some(), "kept for later use");

        // Another session holds the table of processes, so that the beat gets no answer.
        let mut lock = db.keyring.db().begin_write().await.unwrap();
        if db.engine == "postgres" {
            sqlx::query("LOCK TABLE process IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
        }
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let watch = async {
            while data_key.upgrade().is_some() || seller_keys.upgrade().is_some() {
                tokio::task::yield_now().await;
            }
            assert_eq!(worker.quarantine().await.unwrap_err(), KeyError::LeaseLost);
            lock.rollback().await.unwrap();
            stop.send(true).unwrap();
        };
        let (ended, ()) = tokio::join!(lease.run(stopped), watch);
        ended.unwrap();
    }
}
