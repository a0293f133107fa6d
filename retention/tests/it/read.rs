//! Authorised reads, the audit chain, sellers and quarantine keys.

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, Row};
use sunder_retention::admit::Admission;
use sunder_retention::audit::VerifyError;
use sunder_retention::keys::{Context, KeyError, Keyring};
use sunder_retention::ledger::{self, Condemned, Destruction};
use sunder_retention::names::{Named, name};
use sunder_retention::open::{Opened, ReadError, StoredBlock, open};
use sunder_retention::outbox;
use sunder_retention::purpose::{Purpose, Register, Wish};
use sunder_retention::sellers::{self, Account, SellerState};
use sunder_retention::store::Extent;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{MarketplaceId, OrderId, SellerId};
use sunder_schemas::time::Period;

use crate::support::{candidate, case, databases, destroy, order, seller, verified};

fn register() -> Register {
    let invoice = Purpose {
        name: "invoice".to_owned(),
        basis: "GDPR 6(1)(c)".to_owned(),
        fields: vec![FieldGroup::BuyerName, FieldGroup::RecipientAddress],
        roles: vec!["invoicing".to_owned()],
    };
    Register { purposes: vec![invoice], principals: None }
}

const WISH: Wish<'static> = Wish { os_user: "clerk", role: Some("invoicing"), purpose: "invoice", fields: None };

/// Reads an order of which the vault has nothing.
async fn read_named(keyring: &Keyring, of: &SellerId, order: &OrderId) -> Opened {
    let named = name(keyring, of, order).await.unwrap();
    open(keyring, &register(), &WISH, of, &named, &[]).await.unwrap()
}

#[tokio::test]
async fn what_was_erased_of_a_seller_that_left_is_told_from_what_it_never_had() {
    let (clock, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        let stranger = SellerId::parse("A9TYPO").unwrap();
        let opened = read_named(keyring, &stranger, &order(1)).await;
        assert_eq!((opened.state(), opened.reason()), ("absent", Some("unknown")));
        assert!(sellers::list(keyring.db()).await.unwrap().is_empty(), "a read makes no seller");

        let keys = keyring.seller(&seller()).await.unwrap();
        keyring.admit(&seller(), &[candidate(&keys, 1, 1), candidate(&keys, 2, 1)]).await.unwrap();
        destroy(keyring, 1, &[1]).await;
        sellers::set_state(keyring, &seller(), SellerState::Removed, None).await.unwrap();
        // Another process, which never had the seller's keys in memory.
        let other = db.another(clock.clone()).await;
        let opened = read_named(&other, &seller(), &order(2)).await;
        assert_eq!((opened.state(), opened.reason()), ("absent", Some("seller_removed")), "its case goes on");
        let mut tx = keyring.db().begin_write().await.unwrap();
        sellers::destroy_keys(&mut tx, &seller()).await.unwrap();
        tx.commit().await.unwrap();
        for keyring in [keyring, &other] {
            assert_eq!(read_named(keyring, &seller(), &order(1)).await.state(), "erased", "{}", db.engine);
            let opened = read_named(keyring, &seller(), &order(3)).await;
            assert_eq!((opened.state(), opened.reason()), ("absent", Some("unknown")));
        }
        // Back with new keys: its tokens are others, and the order stays erased.
        sellers::readmit(keyring, &seller()).await.unwrap();
        assert_eq!(read_named(keyring, &seller(), &order(1)).await.state(), "erased", "{}", db.engine);
    }
}

#[tokio::test]
async fn a_read_is_allowed_recorded_and_then_opened() {
    let (_, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        let keys = keyring.seller(&seller()).await.unwrap();
        let wanted = candidate(&keys, 1, 1);
        let Admission::Seal { key, .. } = &keyring.admit(&seller(), std::slice::from_ref(&wanted)).await.unwrap()[0] else { panic!() };
        let stored = |group, text: &[u8]| {
            let context = Context { seller: &seller(), entity: wanted.token, group, classification: "orders#1" };
            StoredBlock { group, classification: "orders#1".to_owned(), block: key.seal(&context, text) }
        };
        let blocks = [stored(FieldGroup::BuyerName, b"{\"buyer\":{\"buyerName\":\"Jane\"}}"), stored(FieldGroup::Gift, b"{}")];
        let register = register();
        let named = name(keyring, &seller(), &order(1)).await.unwrap();
        assert_eq!(named, Named { fingerprint: Some(wanted.fingerprint), token: Some(wanted.token) });
        let read = async |wish: &Wish<'_>, blocks: &[StoredBlock]| open(keyring, &register, wish, &seller(), &named, blocks).await;

        let opened = read(&WISH, &blocks).await.unwrap();
        let Opened::Readable(groups) = &opened else { panic!("{opened:?}") };
        assert_eq!(groups.keys().collect::<Vec<_>>(), [&FieldGroup::BuyerName], "a group outside the purpose is not opened");
        assert_eq!(groups[&FieldGroup::BuyerName].reveal(), b"{\"buyer\":{\"buyerName\":\"Jane\"}}");
        assert!(!format!("{opened:?}").contains("Jane"));
        let denied = read(&Wish { purpose: "111-1234567-1234567", ..WISH }, &blocks).await.unwrap();
        assert_eq!((denied.state(), denied.reason()), ("denied", Some("unknown_purpose")));
        let absent = read(&WISH, &blocks[1..]).await.unwrap();
        assert_eq!((absent.state(), absent.reason()), ("absent", Some("not_stored")));
        let moved = StoredBlock { group: FieldGroup::RecipientAddress, ..blocks[0].clone() };
        assert!(matches!(read(&WISH, &[moved]).await, Err(ReadError::Block { .. })));
        let unknown = read_named(keyring, &seller(), &order(99)).await;
        assert_eq!((unknown.state(), unknown.reason()), ("absent", Some("unknown")));
        destroy(keyring, 1, &[1]).await;
        assert_eq!(read(&WISH, &blocks).await.unwrap().state(), "erased");

        assert_eq!(verified(keyring.db()).await.unwrap().rows, 7, "{}", db.engine);
        let rows = keyring.db().pool().fetch_all("SELECT actor, action, object, outcome, detail FROM audit_event").await.unwrap();
        let log: String = rows.iter().flat_map(|row| (0..5).map(|c| row.get::<String, _>(c))).collect();
        assert!(!log.contains("Jane") && !log.contains("1234567") && log.contains("(not a name)"));
    }
}

/// The key is destroyed between the look and the event of the read: then nothing is opened, and the log says so. On SQLite a reader waits for
/// the writer in the same place.
#[tokio::test]
async fn a_read_that_meets_the_destruction_of_its_key_opens_nothing() {
    let (_, all) = databases().await;
    for db in all.iter().filter(|db| db.engine == "postgres") {
        let keyring = &db.keyring;
        let keys = keyring.seller(&seller()).await.unwrap();
        let wanted = candidate(&keys, 1, 1);
        let Admission::Seal { key, .. } = &keyring.admit(&seller(), std::slice::from_ref(&wanted)).await.unwrap()[0] else { panic!() };
        let context = Context { seller: &seller(), entity: wanted.token, group: FieldGroup::BuyerName, classification: "orders#1" };
        let block = key.seal(&context, b"{}");
        let blocks = [StoredBlock { group: FieldGroup::BuyerName, classification: "orders#1".to_owned(), block }];
        let named = name(keyring, &seller(), &order(1)).await.unwrap();

        let mut tx = keyring.db().begin_write().await.unwrap();
        let subjects = [Condemned { fingerprint: wanted.fingerprint, token: Some(wanted.token) }];
        let (case, at) = (case(1), keyring.now());
        let destruction =
            Destruction { case: &case, seller: &seller(), subjects: &subjects, extent: Extent::Personal, at, actor: "retain" };
        ledger::destroy(&mut tx, &destruction).await.unwrap();
        let (register, seller) = (register(), seller());
        let read = open(keyring, &register, &WISH, &seller, &named, &blocks);
        let waits = async {
            let sql = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
            while !sqlx::query_scalar::<_, bool>(sql).fetch_one(keyring.db().pool()).await.unwrap() {
                tokio::task::yield_now().await;
            }
            tx.commit().await.unwrap();
        };
        let (opened, ()) = tokio::join!(read, waits);
        assert_eq!(opened.unwrap().state(), "erased");
        let detail: String =
            sqlx::query_scalar("SELECT detail FROM audit_event WHERE action = 'open'").fetch_one(keyring.db().pool()).await.unwrap();
        assert!(detail.contains("erased") && !detail.contains("readable") && !detail.contains("buyer_name"), "{detail}");
    }
}

#[tokio::test]
async fn a_changed_or_removed_audit_row_is_found() {
    let (_, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        for _ in 0..4 {
            read_named(keyring, &seller(), &order(1)).await;
        }
        let pool = keyring.db().pool();
        assert_eq!(verified(keyring.db()).await.unwrap().rows, 4);
        let columns =
            [("at", "at + 1"), ("actor", "'x'"), ("action", "'x'"), ("object", "'x'"), ("outcome", "'denied'"), ("detail", "'{}'")];
        for (column, value) in columns {
            pool.execute("CREATE TABLE kept AS SELECT * FROM audit_event").await.unwrap();
            pool.execute(AssertSqlSafe(format!("UPDATE audit_event SET {column} = {value} WHERE seq = 3"))).await.unwrap();
            assert_eq!(verified(keyring.db()).await.unwrap_err(), VerifyError::Broken { seq: 3 }, "{} {column}", db.engine);
            pool.execute("DELETE FROM audit_event").await.unwrap();
            pool.execute("INSERT INTO audit_event SELECT * FROM kept").await.unwrap();
            pool.execute("DROP TABLE kept").await.unwrap();
        }
        assert_eq!(verified(keyring.db()).await.unwrap().rows, 4);
        pool.execute("DELETE FROM audit_event WHERE seq = 4").await.unwrap();
        assert_eq!(verified(keyring.db()).await.unwrap_err(), VerifyError::Broken { seq: 4 }, "the last row too");
        pool.execute("DELETE FROM audit_event WHERE seq = 2").await.unwrap();
        assert_eq!(verified(keyring.db()).await.unwrap_err(), VerifyError::Broken { seq: 2 });
    }
}

#[tokio::test]
async fn a_removed_seller_comes_back_with_new_keys_alone() {
    let (clock, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        let account = Account {
            id: seller(),
            region: "eu".to_owned(),
            marketplaces: vec![MarketplaceId::parse("A1PA6795UKMFR9").unwrap()],
            refresh_token: Some(SecretString::from("Atzr|secret-token")),
        };
        sellers::put(keyring, &account).await.unwrap();
        sellers::put(keyring, &Account { refresh_token: None, ..account.clone() }).await.unwrap();
        let other = db.another(clock.clone()).await;
        assert_eq!(sellers::refresh_token(&other, &seller()).await.unwrap().expose_secret(), "Atzr|secret-token");
        let listed = sellers::list(keyring.db()).await.unwrap();
        assert_eq!((listed[0].state, listed[0].has_refresh_token, listed[0].marketplaces.len()), (SellerState::Active, true, 1));
        let before = keyring.seller(&seller()).await.unwrap();
        keyring.admit(&seller(), &[candidate(&before, 1, 1)]).await.unwrap();
        destroy(keyring, 1, &[1]).await;

        let mut tx = keyring.db().begin_write().await.unwrap();
        assert!(sellers::destroy_keys(&mut tx, &seller()).await.is_err(), "a seller that is polled keeps its keys");
        tx.rollback().await.unwrap();
        sellers::set_state(keyring, &seller(), SellerState::Removed, None).await.unwrap();
        let mut tx = keyring.db().begin_write().await.unwrap();
        sellers::destroy_keys(&mut tx, &seller()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(sellers::put(keyring, &account).await.unwrap_err(), KeyError::SellerRemoved(seller()));
        assert!(sellers::set_state(keyring, &seller(), SellerState::Active, None).await.is_err());
        assert!(sellers::refresh_token(keyring, &seller()).await.is_err());

        sellers::readmit(keyring, &seller()).await.unwrap();
        assert!(sellers::readmit(keyring, &seller()).await.is_err());
        sellers::put(keyring, &account).await.unwrap();
        let after = keyring.seller(&seller()).await.unwrap();
        assert_ne!(after.order_token(&order(1)), before.order_token(&order(1)));
        assert_eq!(after.fingerprint(&order(1)), before.fingerprint(&order(1)));
        let again = keyring.admit(&seller(), &[candidate(&after, 1, 9), candidate(&after, 2, 9)]).await.unwrap();
        assert!(matches!(again[0], Admission::Drop(_)) && matches!(again[1], Admission::Seal { .. }), "{}", db.engine);
    }
}

#[tokio::test]
async fn the_control_topic_is_told_who_is_polled() {
    let (_clock, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        let mut account = Account {
            id: seller(),
            region: "eu".to_owned(),
            marketplaces: vec![MarketplaceId::parse("A1PA6795UKMFR9").unwrap()],
            refresh_token: Some(SecretString::from("Atzr|secret-token")),
        };
        sellers::put(keyring, &account).await.unwrap();
        sellers::put(keyring, &account).await.unwrap();
        account.marketplaces.push(MarketplaceId::parse("A13V1IB3VIYZZH").unwrap());
        sellers::put(keyring, &account).await.unwrap();
        sellers::set_state(keyring, &seller(), SellerState::Blocked, Some("invalid_grant")).await.unwrap();
        sellers::set_state(keyring, &seller(), SellerState::Removed, None).await.unwrap();
        assert!(sellers::set_state(keyring, &seller(), SellerState::Active, None).await.is_err());
        sellers::readmit(keyring, &seller()).await.unwrap();
        let other = SellerId::parse("A2NOTKNOWN00").unwrap();
        assert!(sellers::set_state(keyring, &other, SellerState::Paused, None).await.is_err());

        let waiting = outbox::waiting(keyring.db(), 100).await.unwrap();
        let told: Vec<(String, Option<Value>)> = waiting
            .iter()
            .filter(|record| record.topic == "control.sellers")
            .map(|record| (record.key.clone(), record.value.as_deref().map(|value| serde_json::from_str(value).unwrap())))
            .collect();
        let two = json!(["A1PA6795UKMFR9", "A13V1IB3VIYZZH"]);
        let expected = [
            Some(json!({ "state": "active", "code": null, "region": "eu", "marketplaces": ["A1PA6795UKMFR9"] })),
            Some(json!({ "state": "active", "code": null, "region": "eu", "marketplaces": two })),
            Some(json!({ "state": "blocked", "code": "invalid_grant", "region": "eu", "marketplaces": two })),
            None,
            Some(json!({ "state": "active", "code": null, "region": "eu", "marketplaces": two })),
        ];
        assert_eq!(told, expected.map(|value| (seller().as_str().to_owned(), value)), "{}", db.engine);
    }
}

#[tokio::test]
async fn a_quarantine_key_lives_seven_days_beyond_its_own() {
    let (clock, all) = databases().await;
    for db in &all {
        let keyring = &db.keyring;
        let start = keyring.now();
        let key = keyring.quarantine().await.unwrap();
        let other = db.another(clock.clone()).await;
        assert_eq!(other.quarantine().await.unwrap().id(), key.id(), "one key a day for all processes");
        clock.advance(Period::days(8));
        assert_ne!(keyring.quarantine().await.unwrap().id(), key.id());
        assert!(keyring.sweep_quarantine().await.unwrap().is_empty());
        clock.advance(Period::days(1));
        assert_eq!(keyring.sweep_quarantine().await.unwrap(), [key.id()], "{}", db.engine);
        assert!(keyring.sweep_quarantine().await.unwrap().is_empty());
        other.erased().refresh(other.db()).await.unwrap();
        assert!(other.erased().contains(key.id()));
        clock.advance(Period::Millis(start.0 - keyring.now().0));
    }
}
