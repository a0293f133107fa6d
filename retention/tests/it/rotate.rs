//! Rotation of the root key and of wrapping keys: under load, cut off at each step, and what the old versions open afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sunder_retention::admit::Admission;
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::{Context, Keyring};
use sunder_retention::lease::Lease;
use sunder_retention::ledger::SubjectState;
use sunder_retention::root::{FileRoot, RootKey};
use sunder_retention::rotate::{self, rotate_root, rotate_seller};
use sunder_retention::sellers::{self, Account, SellerState};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::SellerId;
use sunder_schemas::time::Period;

use crate::support::{PLAIN, candidate, databases, destroy, order, seller, verified};

const AT_ONCE: Duration = Duration::ZERO;

/// Seals a text for each of `orders` and returns the blocks.
async fn seal(ring: &Keyring, orders: std::ops::Range<usize>) -> Vec<(usize, Vec<u8>)> {
    let keys = ring.seller(&seller()).await.unwrap();
    let batch: Vec<_> = orders.clone().map(|n| candidate(&keys, n, 1)).collect();
    let answers = ring.admit(&seller(), &batch).await.unwrap();
    let seal = |(n, answer): (usize, &Admission)| {
        let Admission::Seal { key, .. } = answer else { panic!("{answer:?}") };
        let seller = seller();
        let here = Context { seller: &seller, entity: batch[n - orders.start].token, group: FieldGroup::Gift, classification: "c#1" };
        (n, key.seal(&here, format!("for {n}").as_bytes()).into_bytes())
    };
    orders.clone().zip(&answers).map(seal).collect()
}

/// Asserts that every block opens in a process that starts now.
async fn open_all(ring: &Arc<Keyring>, blocks: &[(usize, Vec<u8>)]) {
    let (seller, keys) = (seller(), ring.seller(&seller()).await.unwrap());
    for (n, block) in blocks {
        let entity = keys.order_token(&order(*n));
        let state = ring.subject(&seller, entity).await.unwrap();
        let SubjectState::Live(key) = state else { panic!("{n}: {state:?}") };
        let here = Context { seller: &seller, entity, group: FieldGroup::Gift, classification: "c#1" };
        assert_eq!(key.open(&here, block).unwrap().reveal(), format!("for {n}").as_bytes());
    }
}

#[tokio::test]
async fn a_sellers_wrapping_key_rotates_and_every_data_key_opens_as_before() {
    let (clock, all) = databases().await;
    for db in &all {
        let ring = &db.keyring;
        // A process that knew the keys before, with its lease, and one that starts afterwards.
        let old = db.another(clock.clone()).await;
        let lease = Arc::new(Lease::register(Arc::clone(&old), "poll", Duration::from_secs(3600)).await.unwrap());
        let blocks = seal(ring, 1..700).await;
        open_all(&old, &blocks[..5]).await;
        destroy(ring, 1, &[7]).await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let beating = Arc::clone(&lease);
        let done = async {
            let done = rotate_seller(ring, &seller(), "test").await.unwrap();
            stop.send(true).unwrap();
            done
        };
        let (done, beaten) = tokio::join!(done, beating.run(stopped));
        beaten.unwrap();
        Lease::release(&old);
        assert_eq!((done.version, done.rewrapped), (2, 698), "{}", db.engine);
        let living: Vec<_> = blocks.iter().filter(|(n, _)| *n != 7).cloned().collect();
        open_all(&db.another(clock.clone()).await, &living).await;
        open_all(&old, &living).await;
        let keys = ring.seller(&seller()).await.unwrap();
        assert!(matches!(ring.subject(&seller(), keys.order_token(&order(7))).await.unwrap(), SubjectState::Destroyed));
        // Minting goes on under the new version, and rotates again.
        let more = seal(&old, 1000..1010).await;
        let again = rotate_seller(ring, &seller(), "test").await.unwrap();
        assert_eq!((again.version, again.rewrapped), (3, 708));
        open_all(&db.another(clock.clone()).await, &more).await;
        verified(ring.db()).await.unwrap();
        let status = rotate::status(ring).await.unwrap();
        assert_eq!((status.sellers[0].version, status.sellers[0].rotating), (3, false));
    }
}

/// Pollers of two processes mint and read while wrapping and root keys rotate again and again: nothing is lost, nothing doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rotations_under_load_lose_and_double_nothing() {
    const ROUNDS: u32 = 6;
    let (clock, all) = databases().await;
    for db in &all {
        let (ring, other) = (Arc::clone(&db.keyring), db.another(clock.clone()).await);
        ring.seller(&seller()).await.unwrap();
        let stop = AtomicBool::new(false);
        let work = async |ring: &Arc<Keyring>, from: usize| {
            let mut blocks = Vec::new();
            let mut n = from;
            while !stop.load(Ordering::SeqCst) || blocks.is_empty() {
                blocks.extend(seal(ring, n..n + 20).await);
                // What was sealed before reads under whichever version it lies now.
                open_all(ring, &blocks[blocks.len().saturating_sub(30)..]).await;
                n += 20;
            }
            blocks
        };
        let rotating = async {
            let third = db.another(clock.clone()).await;
            for _ in 0..ROUNDS {
                rotate_seller(&third, &seller(), "test").await.unwrap();
                rotate_root(&third, AT_ONCE, "test").await.unwrap();
            }
            stop.store(true, Ordering::SeqCst);
        };
        let (mine, theirs, ()) = tokio::join!(work(&ring, 1), work(&other, 100_000), rotating);
        let fresh = db.another(clock.clone()).await;
        open_all(&fresh, &mine).await;
        open_all(&fresh, &theirs).await;
        let keys = fresh.seller(&seller()).await.unwrap();
        let ids: std::collections::BTreeSet<_> = {
            let batch: Vec<_> = mine.iter().chain(&theirs).map(|(n, _)| candidate(&keys, *n, 2)).collect();
            let answers = fresh.admit(&seller(), &batch).await.unwrap();
            answers
                .iter()
                .map(|answer| match answer {
                    Admission::Seal { key, .. } => key.id(),
                    other => panic!("{other:?}"),
                })
                .collect()
        };
        assert_eq!(ids.len(), mine.len() + theirs.len(), "{}: one key a subject", db.engine);
        let status = rotate::status(&fresh).await.unwrap();
        assert_eq!((status.root.version, status.sellers[0].version), (Some(u64::from(ROUNDS) + 1), i64::from(ROUNDS) + 1));
    }
}

#[tokio::test]
async fn the_old_root_opens_nothing_of_a_copy_of_the_new_database() {
    let (clock, all) = databases().await;
    for db in &all {
        let ring = &db.keyring;
        let blocks = seal(ring, 1..20).await;
        let account = Account {
            id: seller(),
            region: "eu".to_owned(),
            marketplaces: Vec::new(),
            refresh_token: Some("Atzr|the-token".to_owned().into()),
        };
        sellers::put(ring, &account).await.unwrap();
        let day = ring.quarantine().await.unwrap().id();
        let kept = db.folder.path().join("kept.key");
        std::fs::copy(db.folder.path().join("root.key"), &kept).unwrap();
        let done = rotate_root(ring, AT_ONCE, "test").await.unwrap();
        // Three keys of the seller, its refresh token, the quarantine key.
        assert_eq!((done.from, done.to, done.rewrapped, done.retired), (1, 2, 5, "destroyed"), "{}", db.engine);

        let old = Keyring::new(KeyDb::open(&db.url, None).await.unwrap(), Arc::new(FileRoot::open(&kept).unwrap()), clock.clone(), PLAIN);
        assert!(old.seller(&seller()).await.is_err());
        assert!(sellers::refresh_token(&old, &seller()).await.is_err());
        assert!(old.quarantine().await.is_err());
        let new = db.another(clock.clone()).await;
        open_all(&new, &blocks).await;
        assert_eq!(secrecy::ExposeSecret::expose_secret(&sellers::refresh_token(&new, &seller()).await.unwrap()), "Atzr|the-token");
        assert_eq!(new.quarantine().await.unwrap().id(), day);
        let row: (i64,) = sqlx::query_as("SELECT COUNT(*) FROM root_rotation WHERE state = 'done' AND retired = 'destroyed'")
            .fetch_one(new.db().pool())
            .await
            .unwrap();
        assert_eq!(row.0, 1);
    }
}

/// A root key that stops working after so many calls, as a process that was killed: what it did until then stands.
struct Dying {
    inner: FileRoot,
    left: std::sync::atomic::AtomicI64,
}

impl Dying {
    fn step(&self) -> Result<(), sunder_retention::root::RootError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        Err(sunder_retention::root::RootError::Service { address: "test".to_owned(), code: "killed".to_owned(), retry: false })
    }
}

#[async_trait::async_trait]
impl RootKey for Dying {
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, sunder_retention::root::RootError> {
        self.step()?;
        self.inner.wrap(context, key).await
    }
    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<zeroize::Zeroizing<Vec<u8>>, sunder_retention::root::RootError> {
        self.step()?;
        self.inner.unwrap(context, wrapped).await
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn version(&self) -> Result<u64, sunder_retention::root::RootError> {
        self.step()?;
        self.inner.version().await
    }
    fn version_of(&self, wrapped: &[u8]) -> Option<u64> {
        self.inner.version_of(wrapped)
    }
    async fn rotate(&self, from: u64) -> Result<u64, sunder_retention::root::RootError> {
        // Killed before it, and killed behind it: the version is made then, and nobody wrote it down.
        self.step()?;
        let made = self.inner.rotate(from).await?;
        self.step().map(|()| made)
    }
    async fn retire(&self, version: u64) -> Result<sunder_retention::root::Retired, sunder_retention::root::RootError> {
        self.step()?;
        let retired = self.inner.retire(version).await?;
        self.step().map(|()| retired)
    }
}

#[tokio::test]
async fn a_rotation_that_was_killed_at_any_call_goes_on_to_the_same_end() {
    let (clock, all) = databases().await;
    for db in &all {
        let blocks = seal(&db.keyring, 1..6).await;
        let (mut calls, mut version) = (1, 1);
        loop {
            let root = Dying { inner: FileRoot::open(&db.folder.path().join("root.key")).unwrap(), left: calls.into() };
            let dying = Keyring::new(KeyDb::open(&db.url, None).await.unwrap(), Arc::new(root), clock.clone(), PLAIN);
            let first = rotate_root(&dying, AT_ONCE, "test").await;
            dying.db().close().await;
            let ring = db.another(clock.clone()).await;
            if first.is_err() {
                // Whatever was left behind opens at once, and the next try ends it.
                open_all(&ring, &blocks).await;
                let done = rotate_root(&ring, AT_ONCE, "test").await.unwrap();
                assert_eq!(done.to, version + 1, "{} killed at call {calls}", db.engine);
            }
            version += 1;
            let fresh = db.another(clock.clone()).await;
            open_all(&fresh, &blocks).await;
            let status = rotate::status(&fresh).await.unwrap();
            assert_eq!((status.root.version, status.root.rotation), (Some(version), None), "{} killed at call {calls}", db.engine);
            if first.is_ok() {
                break;
            }
            calls += 1;
        }
        assert!(calls > 10, "it was killed at each of {calls} calls");
    }
}

#[tokio::test]
async fn a_seller_rotation_that_was_cut_off_goes_on_where_it_was() {
    let (clock, all) = databases().await;
    for db in &all {
        let blocks = seal(&db.keyring, 1..300).await;
        // Begun, one batch done, and then killed: what a dying root leaves behind after its single call.
        let root = Dying { inner: FileRoot::open(&db.folder.path().join("root.key")).unwrap(), left: 1.into() };
        let dying = Keyring::new(KeyDb::open(&db.url, None).await.unwrap(), Arc::new(root), clock.clone(), PLAIN);
        rotate_seller(&dying, &seller(), "test").await.unwrap_err();
        dying.db().close().await;
        let ring = db.another(clock.clone()).await;
        open_all(&ring, &blocks).await;
        let status = rotate::status(&ring).await.unwrap();
        assert_eq!((status.sellers[0].version, status.sellers[0].rotating, status.unfinished().len()), (2, true, 1));
        let more = seal(&ring, 500..510).await;
        let done = rotate_seller(&ring, &seller(), "test").await.unwrap();
        assert_eq!((done.version, done.rewrapped), (2, 299), "{}: what was minted meanwhile lies under the new one", db.engine);
        let fresh = db.another(clock.clone()).await;
        open_all(&fresh, &blocks).await;
        open_all(&fresh, &more).await;
        assert!(!rotate::status(&fresh).await.unwrap().sellers[0].rotating);
    }
}

#[tokio::test]
async fn what_is_older_than_90_days_is_due() {
    let (clock, all) = databases().await;
    for db in &all {
        let ring = &db.keyring;
        seal(ring, 1..3).await;
        ring.seller(&SellerId::parse("A2OTHER").unwrap()).await.unwrap();
        let overdue = async |ring: &Keyring| rotate::status(ring).await.unwrap().overdue(ring.now());
        clock.advance(Period::days(89));
        assert!(overdue(ring).await.is_empty());
        clock.advance(Period::days(1));
        assert_eq!(overdue(ring).await, ["root", "A1SELLER", "A2OTHER"]);
        rotate_root(ring, AT_ONCE, "test").await.unwrap();
        rotate_seller(ring, &seller(), "test").await.unwrap();
        assert_eq!(overdue(ring).await, ["A2OTHER"], "{}", db.engine);
        let inventory = rotate::inventory(ring).await.unwrap();
        let of = |kind: &str| inventory.keys.iter().find(|held| held.kind.starts_with(kind)).map(|held| (held.live, held.destroyed));
        assert_eq!((of("data key"), of("wrapping key"), of("token key")), (Some((2, 0)), Some((2, 1)), Some((2, 0))));
        clock.advance(Period::Millis(-90 * 86_400_000));
    }
}

/// A root key whose first wrapping is done, and then stays in the hands of a process that sleeps.
struct Sleeping {
    inner: FileRoot,
    is_first: AtomicBool,
    wrapped: tokio::sync::Notify,
    wake: tokio::sync::Notify,
}

#[async_trait::async_trait]
impl RootKey for Sleeping {
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, sunder_retention::root::RootError> {
        let wrapped = self.inner.wrap(context, key).await;
        if self.is_first.swap(false, Ordering::SeqCst) {
            self.wrapped.notify_one();
            self.wake.notified().await;
        }
        wrapped
    }
    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<zeroize::Zeroizing<Vec<u8>>, sunder_retention::root::RootError> {
        self.inner.unwrap(context, wrapped).await
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn version(&self) -> Result<u64, sunder_retention::root::RootError> {
        self.inner.version().await
    }
    fn version_of(&self, wrapped: &[u8]) -> Option<u64> {
        self.inner.version_of(wrapped)
    }
    async fn rotate(&self, from: u64) -> Result<u64, sunder_retention::root::RootError> {
        self.inner.rotate(from).await
    }
    async fn retire(&self, version: u64) -> Result<sunder_retention::root::Retired, sunder_retention::root::RootError> {
        self.inner.retire(version).await
    }
}

/// However long a process sleeps between wrapping and committing: nothing is committed under a version that was retired meanwhile.
#[tokio::test]
async fn what_was_wrapped_before_a_rotation_is_not_committed_after_it() {
    let (clock, all) = databases().await;
    for db in &all {
        db.keyring.seller(&seller()).await.unwrap();
        for (n, what) in ["a refresh token", "a quarantine key", "a new seller's keys", "a wrapping key", "a readmitted seller's keys"]
            .into_iter()
            .enumerate()
        {
            let root = Arc::new(Sleeping {
                inner: FileRoot::open(&db.folder.path().join("root.key")).unwrap(),
                is_first: true.into(),
                wrapped: tokio::sync::Notify::new(),
                wake: tokio::sync::Notify::new(),
            });
            let sleeper =
                Keyring::new(KeyDb::open(&db.url, None).await.unwrap(), Arc::clone(&root) as Arc<dyn RootKey>, clock.clone(), PLAIN);
            let late = SellerId::parse("A2LATE").unwrap();
            if n == 4 {
                sellers::set_state(&db.keyring, &late, SellerState::Removed, None).await.unwrap();
                let mut tx = db.keyring.db().begin_write().await.unwrap();
                sellers::destroy_keys(&mut tx, &late).await.unwrap();
                tx.commit().await.unwrap();
            }
            let account = |id: SellerId, refresh_token| Account { id, region: "eu".to_owned(), marketplaces: Vec::new(), refresh_token };
            let commits = async {
                match n {
                    0 => sellers::put(&sleeper, &account(seller(), Some("Atzr|late".to_owned().into()))).await.unwrap(),
                    1 => drop(sleeper.quarantine().await.unwrap()),
                    2 => drop(sleeper.seller(&late).await.unwrap()),
                    4 => sellers::readmit(&sleeper, &late).await.unwrap(),
                    _ => drop(rotate_seller(&sleeper, &seller(), "test").await.unwrap()),
                }
            };
            let rotates = async {
                root.wrapped.notified().await;
                rotate_root(&db.keyring, AT_ONCE, "test").await.unwrap();
                root.wake.notify_one();
            };
            tokio::join!(commits, rotates);
            // A process that starts now opens all of it.
            let fresh = db.another(clock.clone()).await;
            let token = sellers::refresh_token(&fresh, &seller()).await.unwrap_or_else(|error| panic!("{what} on {}: {error}", db.engine));
            assert_eq!(secrecy::ExposeSecret::expose_secret(&token), "Atzr|late", "{what} on {}", db.engine);
            fresh.seller(&seller()).await.unwrap_or_else(|error| panic!("{what} on {}: {error}", db.engine));
            if n >= 1 {
                fresh.quarantine().await.unwrap_or_else(|error| panic!("{what} on {}: {error}", db.engine));
            }
            if n >= 2 {
                fresh.seller(&late).await.unwrap_or_else(|error| panic!("{what} on {}: {error}", db.engine));
            }
        }
    }
}
