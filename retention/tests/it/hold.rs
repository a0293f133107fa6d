//! Legal holds and the search for a buyer, against real key databases.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sunder_retention::admit::Admission;
use sunder_retention::buyer::{self, Found, SealedStore, Sought};
use sunder_retention::cursor::{Disposition, PageCommit};
use sunder_retention::hold::{self, ColdStore, Document, Hold, HoldError, Kept, NewHold};
use sunder_retention::keys::{Context, Keyring};
use sunder_retention::ledger::{self, Fate, SubjectState};
use sunder_retention::names::name;
use sunder_retention::open::StoredBlock;
use sunder_retention::purpose::{Purpose, Register, Wish};
use sunder_retention::store::StoreError;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::envelope::Attribution;
use sunder_schemas::ids::{EntityToken, EventId, MarketplaceId, SellerId};
use sunder_schemas::records::PiiRecord;
use sunder_schemas::time::{Clock as _, Period, Timestamp};

use crate::support::{candidate, databases, destroy, order, seller};

const CLASSIFICATION: &str = "orders_2026-01-01#1";

/// A vault and a cold store in memory.
#[derive(Default)]
struct Shelf {
    vault: Mutex<BTreeMap<(EntityToken, FieldGroup), PiiRecord>>,
    cold: Mutex<BTreeMap<(EntityToken, FieldGroup), PiiRecord>>,
}

fn of(rows: &Mutex<BTreeMap<(EntityToken, FieldGroup), PiiRecord>>, entity: EntityToken) -> Vec<PiiRecord> {
    rows.lock().unwrap().values().filter(|row| row.entity_token == entity).cloned().collect()
}

#[async_trait]
impl ColdStore for Shelf {
    async fn sealed(&self, _: &SellerId, order: EntityToken) -> Result<Vec<PiiRecord>, StoreError> {
        Ok(of(&self.vault, order))
    }

    async fn hold(&self, rows: &[PiiRecord]) -> Result<(), StoreError> {
        self.cold.lock().unwrap().extend(rows.iter().map(|row| ((row.entity_token, row.field_group), row.clone())));
        Ok(())
    }

    async fn held(&self, _: &SellerId, hold: EntityToken) -> Result<Vec<PiiRecord>, StoreError> {
        Ok(of(&self.cold, hold))
    }
}

#[async_trait]
impl SealedStore for Shelf {
    async fn page(
        &self,
        _: &SellerId,
        group: FieldGroup,
        after: Option<EntityToken>,
        limit: usize,
    ) -> Result<Vec<(EntityToken, StoredBlock)>, StoreError> {
        let vault = self.vault.lock().unwrap();
        let rows = vault.values().filter(|row| row.field_group == group && after.is_none_or(|after| row.entity_token > after));
        let stored = rows.map(|row| {
            let block = StoredBlock { group, classification: row.classification.clone(), block: row.block.clone() };
            (row.entity_token, block)
        });
        Ok(stored.take(limit.min(2)).collect())
    }
}

/// Seals `groups` of order `n` onto the shelf.
async fn seal(keyring: &Keyring, shelf: &Shelf, n: usize, groups: &[(FieldGroup, &str)]) -> EntityToken {
    let keys = keyring.seller(&seller()).await.unwrap();
    let candidate = candidate(&keys, n, 1);
    let admission = keyring.admit(&seller(), std::slice::from_ref(&candidate)).await.unwrap().pop().unwrap();
    let Admission::Seal { key, .. } = admission else { panic!("the order is admitted") };
    for (group, json) in groups {
        let context = Context { seller: &seller(), entity: candidate.token, group: *group, classification: CLASSIFICATION };
        let row = PiiRecord {
            attribution: Arc::new(Attribution {
                selling_partner_id: seller(),
                marketplace_id: MarketplaceId::parse("A1PA6795UKMFR9").unwrap(),
                source_api: "orders_2026-01-01".to_owned(),
                source_operation: "searchOrders".to_owned(),
                source_request_id: "r".to_owned(),
                collected_at: Timestamp(1),
                event_id: EventId(uuid::Uuid::nil()),
                payload_sha256: "00".repeat(32),
            }),
            source_version: 1,
            entity_token: candidate.token,
            field_group: *group,
            key_id: key.id(),
            classification: CLASSIFICATION.to_owned(),
            deadline: Timestamp(2),
            deadline_rule: "cap_created".to_owned(),
            block: key.seal(&context, json.as_bytes()),
        };
        shelf.vault.lock().unwrap().insert((candidate.token, *group), row);
    }
    let dispositions = groups.iter().map(|(group, _)| Disposition { token: candidate.token, group: *group, fate: Fate::Sealed }).collect();
    keyring.commit_page(&seller(), PageCommit { dispositions, ..PageCommit::default() }).await.unwrap();
    candidate.token
}

const FIELDS: [FieldGroup; 2] = [FieldGroup::BuyerName, FieldGroup::RecipientAddress];

async fn add(keyring: &Keyring, n: usize, fields: &[FieldGroup], until: Timestamp) -> Result<Hold, HoldError> {
    let named = name(keyring, &seller(), &order(n)).await.unwrap();
    let new = NewHold {
        seller: &seller(),
        order: &named,
        statute: "HGB 257",
        document: Document::Invoice,
        fields,
        purpose: None,
        until,
        by: "clerk",
    };
    hold::add(keyring, &new).await
}

#[tokio::test]
async fn held_fields_outlive_the_order_under_a_key_of_their_own_until_the_hold_ends() {
    let (clock, all) = databases().await;
    for db in &all {
        let (keyring, shelf) = (&db.keyring, Shelf::default());
        let name = r#"{"buyerName":"Canary Buyer"}"#;
        let token = seal(keyring, &shelf, 1, &[(FieldGroup::BuyerName, name), (FieldGroup::BuyerContact, r#"{"p":"1"}"#)]).await;
        let until = keyring.now().plus(Period::days(3000));
        let hold = add(keyring, 1, &FIELDS, until).await.unwrap();
        assert_eq!(hold::keep(keyring, &shelf, &hold, "retain").await.unwrap(), Kept::Fields(vec![FieldGroup::BuyerName]));
        destroy(keyring, 1, &[1]).await;
        assert_eq!(hold::keep(keyring, &shelf, &hold, "retain").await.unwrap(), Kept::KeyGone);
        assert!(matches!(keyring.subject(&seller(), token).await.unwrap(), SubjectState::Destroyed));

        let SubjectState::Live(own) = keyring.subject(&seller(), hold.token).await.unwrap() else { panic!("the hold's key lives") };
        let rows = shelf.held(&seller(), hold.token).await.unwrap();
        let [row] = rows.as_slice() else { panic!("one group is held, and never a phone number: {}", rows.len()) };
        let context = Context { seller: &seller(), entity: hold.token, group: row.field_group, classification: CLASSIFICATION };
        assert_eq!(own.open(&context, row.block.as_bytes()).unwrap().reveal(), name.as_bytes());
        assert_ne!(row.key_id, shelf.sealed(&seller(), token).await.unwrap()[0].key_id);

        // Until its end nothing is due; then its key is, as any subject's.
        let due = |at| async move { ledger::due(keyring, at, 10).await.unwrap().into_iter().filter(|due| due.rule == "hold").count() };
        assert_eq!((due(Timestamp(until.0 - 1)).await, due(until).await), (0, 1), "{}", db.engine);
        let ended = hold::end(keyring, &hold.id, "clerk").await.unwrap();
        assert_eq!((ended.until, due(keyring.now()).await), (clock.now(), 1));
        assert!(matches!(hold::end(keyring, "hold-x", "clerk").await, Err(HoldError::NotFound)));
        let listed = hold::list(keyring.db()).await.unwrap();
        assert_eq!((listed.len(), listed[0].moved_fields.clone(), listed[0].is_active), (1, vec![FieldGroup::BuyerName], true));
    }
}

#[tokio::test]
async fn a_hold_is_refused_that_keeps_too_much_or_for_ever_or_of_nothing() {
    let (_, all) = databases().await;
    let keyring = &all[0].keyring;
    let shelf = Shelf::default();
    seal(keyring, &shelf, 1, &[(FieldGroup::BuyerName, "{}")]).await;
    let later = keyring.now().plus(Period::days(1));
    let refused = |result: Result<Hold, HoldError>| matches!(result, Err(HoldError::Refused(_)));
    for fields in [vec![], vec![FieldGroup::BuyerContact], vec![FieldGroup::BuyerName, FieldGroup::Unclassified], FieldGroup::ALL.to_vec()]
    {
        assert!(refused(add(keyring, 1, &fields, later).await), "{fields:?}");
    }
    assert!(refused(add(keyring, 1, &FIELDS, keyring.now()).await), "it ends in the past");
    assert!(refused(add(keyring, 2, &FIELDS, later).await), "an order that was never held");
    destroy(keyring, 1, &[1]).await;
    assert!(refused(add(keyring, 1, &FIELDS, later).await), "an order that is erased");
    assert!(hold::list(keyring.db()).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_sealed_and_is_not_in_the_vault_yet_is_waited_for() {
    let (_, all) = databases().await;
    let keyring = &all[0].keyring;
    let shelf = Shelf::default();
    let token = seal(keyring, &shelf, 1, &[(FieldGroup::BuyerName, "{}"), (FieldGroup::RecipientAddress, "{}")]).await;
    let row = shelf.vault.lock().unwrap().remove(&(token, FieldGroup::RecipientAddress)).unwrap();
    let hold = add(keyring, 1, &FIELDS, keyring.now().plus(Period::days(9))).await.unwrap();
    let missing = Kept::NotThereYet(vec![FieldGroup::RecipientAddress]);
    assert_eq!(hold::keep(keyring, &shelf, &hold, "retain").await.unwrap(), missing);
    assert!(shelf.cold.lock().unwrap().is_empty());
    shelf.vault.lock().unwrap().insert((token, FieldGroup::RecipientAddress), row);
    assert_eq!(hold::keep(keyring, &shelf, &hold, "retain").await.unwrap(), Kept::Fields(FIELDS.to_vec()));
}

#[tokio::test]
async fn a_buyer_is_found_by_name_and_address_for_a_purpose_that_covers_them() {
    let (_, all) = databases().await;
    for db in &all {
        let (keyring, shelf) = (&db.keyring, Shelf::default());
        let buyer = |name: &'static str, address: &'static str| [(FieldGroup::BuyerName, name), (FieldGroup::BuyerContact, address)];
        let ada = buyer(r#"{"buyerName":"Ada  Lovelace"}"#, r#"{"buyerEmail":"ada@example.com"}"#);
        let namesake = buyer(r#"{"buyerName":"ADA LOVELACE"}"#, r#"{"buyerEmail":"other@example.com"}"#);
        let mut tokens = Vec::new();
        for (n, groups) in (1..).zip([ada, namesake, ada, ada]) {
            tokens.push(seal(keyring, &shelf, n, &groups).await);
        }
        destroy(keyring, 1, &[4]).await;
        let rights = Purpose {
            name: "rights".to_owned(),
            basis: "GDPR 17".to_owned(),
            fields: vec![FieldGroup::BuyerName, FieldGroup::BuyerContact],
            roles: vec!["dpo".to_owned()],
        };
        let narrow = Purpose { name: "invoice".to_owned(), fields: vec![FieldGroup::BuyerName], ..rights.clone() };
        let register = Register { purposes: vec![rights, narrow], principals: None };
        let find = |purpose: &'static str, role: Option<&'static str>, email: Option<&'static str>, name: Option<&'static str>| {
            let (register, shelf) = (&register, &shelf);
            async move {
                let wish = Wish { os_user: "dpo-1", role, purpose, fields: None };
                let sought = Sought::new(email, name).unwrap();
                buyer::search(keyring, register, &wish, &seller(), &sought, shelf).await.unwrap()
            }
        };
        let sorted = |wanted: &[usize]| {
            let mut tokens: Vec<EntityToken> = wanted.iter().map(|n| tokens[n - 1]).collect();
            tokens.sort();
            tokens
        };
        let dpo = Some("dpo");
        let found = |matches, read| Found::Orders { matches, read };
        assert_eq!(find("rights", dpo, Some("ADA@example.com"), None).await, found(sorted(&[1, 3]), 3), "{}", db.engine);
        assert_eq!(find("rights", dpo, None, Some("ada lovelace")).await, found(sorted(&[1, 2, 3]), 3));
        assert_eq!(find("rights", dpo, Some("ada@example.com"), Some("Ada Lovelace")).await, found(sorted(&[1, 3]), 6), "both must match");
        assert_eq!(find("rights", dpo, Some("nobody@example.com"), None).await, found(Vec::new(), 3));
        assert!(matches!(find("invoice", dpo, Some("ada@example.com"), None).await, Found::Denied(_)), "outside the purpose");
        assert!(matches!(find("rights", None, Some("ada@example.com"), None).await, Found::Denied(_)), "without a role");
        let rows = sqlx::query("SELECT actor || action || object || detail AS line FROM audit_event WHERE action LIKE 'search%'")
            .fetch_all(keyring.db().pool())
            .await
            .unwrap();
        let lines: Vec<String> = rows.iter().map(|row| sqlx::Row::get(row, 0)).collect();
        assert_eq!(lines.len(), 4 * 2 + 2, "begun and ended, or denied: {lines:?}");
        assert!(lines.iter().all(|line| !line.contains("@") && !line.to_lowercase().contains("lovelace")), "{lines:?}");
    }
}
