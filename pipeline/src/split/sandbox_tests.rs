//! Amazon's own examples, and one of everything the catalogues know, through classifying and projecting: each value of the clear part
//! stands in a row.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use sunder_schemas::catalogue::{Catalogue, TokenKind, Type};
use sunder_schemas::class::Family;
use sunder_schemas::classify::{Limits, Tokens, classify};
use sunder_schemas::envelope::{Attribution, Entity, RawEvent};
use sunder_schemas::ids::{EntityToken, EventId, MarketplaceId, SellerId};
use sunder_schemas::outcome::DeadLetterReason;
use sunder_schemas::records::{Cell, StateRecord};
use sunder_schemas::time::Timestamp;

use super::project::project;

struct Fake;

impl Tokens for Fake {
    fn token(&self, kind: TokenKind, clear: &str) -> EntityToken {
        let hash = ring::digest::digest(&ring::digest::SHA256, format!("{kind:?}|{clear}").as_bytes());
        EntityToken(*hash.as_ref().first_chunk::<16>().unwrap())
    }
}

/// Amazon's published examples; `None`, said loudly, where they are not at hand.
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment where Amazon's published models lie")]
fn examples() -> Option<Vec<Value>> {
    let folder = std::env::var_os("SUNDER_SPAPI_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/spapi")), PathBuf::from);
    match std::fs::read_to_string(folder.join("sandbox/orders_2026-01-01.jsonl")) {
        Ok(text) => Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()),
        Err(_) if std::env::var_os("CI").is_some() => panic!("Amazon's examples are missing: set SUNDER_SPAPI_DIR"),
        Err(_) => {
            eprintln!("NOT TESTED: Amazon's examples are missing; they are made from github.com/amzn/selling-partner-api-models");
            None
        }
    }
}

/// Every leaf of `value` as text, with its path.
fn leaves(value: &Value, path: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Bool(_) | Value::Number(_) => found.push((path.to_owned(), value.to_string())),
        Value::String(text) => found.push((path.to_owned(), text.clone())),
        Value::Array(items) => items.iter().for_each(|item| leaves(item, path, found)),
        Value::Object(members) => members.iter().for_each(|(name, member)| leaves(member, &format!("{path}.{name}"), found)),
    }
}

/// A raw event with this clear part.
fn event(clear: &[u8], family: Family, token: EntityToken) -> RawEvent {
    RawEvent {
        attribution: Attribution {
            selling_partner_id: SellerId::parse("A1EXAMPLE").unwrap(),
            marketplace_id: MarketplaceId::parse("A1VC38T7YXB528").unwrap(),
            source_api: "orders_2026-01-01".to_owned(),
            source_operation: "searchOrders".to_owned(),
            source_request_id: "r".to_owned(),
            collected_at: Timestamp(0),
            event_id: EventId(uuid::Uuid::nil()),
            payload_sha256: String::new(),
        },
        entity: Entity { family, token },
        source_version: 1,
        poller: String::new(),
        classification: String::new(),
        clear: clear.to_vec(),
        sealed: Vec::new(),
        deadline: None,
    }
}

/// What the rows made of `clear` say, each value in the forms it may have been fetched in.
fn said(clear: &[u8], family: Family, token: EntityToken) -> BTreeSet<String> {
    let mut said = BTreeSet::new();
    for row in project(event(clear, family, token)).unwrap().rows {
        row.cells(&mut |cell| match cell {
            Cell::Text(text) => _ = said.insert(text.to_owned()),
            Cell::Token(token) => _ = said.insert(token.to_string()),
            Cell::Int(n) => _ = said.insert(n.to_string()),
            Cell::Time(at) => _ = said.insert(at.to_iso()),
            Cell::Decimal(amount) => _ = said.insert(amount.normalize().to_string()),
            Cell::Texts(texts) => said.extend(texts.iter().map(ToString::to_string)),
            Cell::Tokens(tokens) => said.extend(tokens.iter().map(ToString::to_string)),
            Cell::Ints(ints) => said.extend(ints.iter().map(ToString::to_string)),
            Cell::Null | Cell::Uuid(_) | Cell::Bool(_) | Cell::Bytes(_) => {}
        });
    }
    said
}

fn every_clear_value_stands_in_a_row(api: &str, operation: &str, body: &[u8], family: Family, ignored: &[&str]) -> usize {
    let page = classify(Catalogue::for_operation(api, operation).unwrap(), body, &Fake, &Limits::DEFAULT).unwrap();
    assert!(page.rejected.is_empty());
    for entity in &page.entities {
        let said = said(&entity.clear, family, entity.identity.token());
        let mut found = Vec::new();
        leaves(&serde_json::from_slice(&entity.clear).unwrap(), "", &mut found);
        for (path, value) in found {
            let time = Timestamp::parse(&value).ok().map(Timestamp::to_iso);
            let number = value.parse::<rust_decimal::Decimal>().ok().map(|n| n.normalize().to_string());
            let stands = said.contains(&value) || time.is_some_and(|t| said.contains(&t)) || number.is_some_and(|n| said.contains(&n));
            assert!(stands || ignored.contains(&path.as_str()), "{path} is in no row");
        }
    }
    page.entities.len()
}

/// The marketplace is in the attribution, not in a column of its own.
const ATTRIBUTED: &[&str] = &[".salesChannel.marketplaceId"];

#[test]
fn amazons_examples_lose_no_clear_value() {
    let Some(examples) = examples() else { return };
    let mut orders = 0;
    for example in examples.iter().filter(|e| e["status"] == 200) {
        let operation = example["operationId"].as_str().unwrap();
        let body = example["response"].to_string();
        orders += every_clear_value_stands_in_a_row("orders_2026-01-01", operation, body.as_bytes(), Family::Orders, ATTRIBUTED);
    }
    assert!(orders >= 6, "{orders}");
}

/// A document with a value of its own at every path of the catalogue.
fn one_of_everything(catalogue: &Catalogue) -> Value {
    let mut root = Value::Null;
    for (index, rule) in catalogue.rules().iter().enumerate() {
        let name = rule.path.rsplit('.').next().unwrap();
        let value = match (name, rule.expects) {
            ("entityType", _) => Value::from("MERCHANT"),
            ("cancelledBy", _) => Value::from("AMAZON"),
            ("name", _) if rule.path.contains("researchingQuantityBreakdown") => Value::from("researchingQuantityInMidTerm"),
            ("amount", _) => Value::from(format!("{index}.25")),
            (_, Type::Number) => Value::from(1000 + index),
            (_, Type::Boolean) => Value::from(true),
            (name, Type::String) if name.ends_with("Time") || name == "lastUpdatedBefore" => {
                Value::from(format!("2026-01-01T{:02}:{:02}:00Z", index / 60, index % 60))
            }
            (_, Type::String) => Value::from(format!("value-{index}")),
        };
        put(&mut root, &rule.path, value);
    }
    root
}

fn put(at: &mut Value, path: &str, value: Value) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let (name, is_list) = first.strip_suffix("[*]").map_or((first, false), |name| (name, true));
    let mut slot = &mut at[name];
    if is_list {
        if slot.is_null() {
            *slot = Value::Array(vec![Value::Null]);
        }
        slot = &mut slot[0];
    }
    match rest {
        None => *slot = value,
        Some(rest) => put(slot, rest, value),
    }
}

/// [`one_of_everything`] with a marketplace where there has to be one.
fn one_of_everything_in(api: &str, operation: &str) -> Value {
    let mut body = one_of_everything(Catalogue::for_operation(api, operation).unwrap());
    for pointer in ["/payload/granularity/granularityId", "/orders/0/salesChannel/marketplaceId", "/order/salesChannel/marketplaceId"] {
        if let Some(market) = body.pointer_mut(pointer).filter(|market| !market.is_null()) {
            *market = Value::from("A1PA6795UKMFR9");
        }
    }
    body
}

#[test]
fn every_clear_path_of_the_catalogues_stands_in_a_row() {
    for (api, operation, family, ignored) in [
        ("orders_2026-01-01", "searchOrders", Family::Orders, ATTRIBUTED),
        ("orders_2026-01-01", "getOrder", Family::Orders, ATTRIBUTED),
        // The three names of the breakdown are columns.
        (
            "fbaInventory",
            "getInventorySummaries",
            Family::Inventory,
            &[".inventoryDetails.researchingQuantity.researchingQuantityBreakdown.name"],
        ),
    ] {
        let body = one_of_everything_in(api, operation);
        assert_eq!(every_clear_value_stands_in_a_row(api, operation, body.to_string().as_bytes(), family, ignored), 1, "{operation}");
    }
}

/// The clear part of everything there is, and the entity it is of.
fn clear_of_everything(api: &str, operation: &str) -> (String, EntityToken) {
    let body = one_of_everything_in(api, operation).to_string();
    let mut page = classify(Catalogue::for_operation(api, operation).unwrap(), body.as_bytes(), &Fake, &Limits::DEFAULT).unwrap();
    let entity = page.entities.pop().unwrap();
    (String::from_utf8(entity.clear).unwrap(), entity.identity.token())
}

#[test]
fn each_value_stands_in_its_own_column() {
    let mut shown = String::new();
    for (api, operation, family) in
        [("orders_2026-01-01", "getOrder", Family::Orders), ("fbaInventory", "getInventorySummaries", Family::Inventory)]
    {
        let (clear, token) = clear_of_everything(api, operation);
        for row in project(event(clear.as_bytes(), family, token)).unwrap().rows {
            let columns = StateRecord::columns(row.kind());
            let mut names = columns.iter().map(|column| column.name);
            row.cells(&mut |cell| {
                let name = names.next().unwrap();
                shown.push_str(&format!("{}.{name} = {cell:?}\n", row.kind()));
            });
        }
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn a_clear_part_that_breaks_a_rule_is_unfit_and_says_where() {
    let (clear, token) = clear_of_everything("orders_2026-01-01", "getOrder");
    let reason = |clear: &str| project(event(clear.as_bytes(), Family::Orders, token)).map(|_| ()).map_err(|unfit| unfit.reason);
    let with = |from: &str, to: &str| {
        assert!(clear.contains(from), "{from} is not in the clear part");
        reason(&clear.replacen(from, to, 1))
    };
    assert_eq!(reason(&clear), Ok(()));
    let bad_field = Err(DeadLetterReason::BadField);
    let bad_json = Err(DeadLetterReason::BadClearPart);
    // Of another type than its column, or given twice, also where it does not stand behind its first.
    assert_eq!(with("\"quantityOrdered\":1", "\"quantityOrdered\":1.5,\"x\":1"), bad_field);
    assert_eq!(with("\"quantityOrdered\":", "\"quantityOrdered\":99999999999999999999"), bad_field);
    assert_eq!(with("\"createdTime\":\"2", "\"createdTime\":\"no time 2"), bad_field);
    assert_eq!(with("\"salesChannel\":{", "\"salesChannel\":[],\"x\":{"), bad_field);
    assert_eq!(with("\"salesChannel\":{", "\"salesChannel\":{},\"salesChannel\":{"), bad_field);
    assert_eq!(with("\"fulfillment\":{", "\"salesChannel\":{},\"fulfillment\":{"), bad_field);
    assert_eq!(with(&format!("\"orderId\":\"{token}\""), "\"orderId\":null"), bad_field);
    // Names we do not know, null, and another order of the names are no matter.
    assert_eq!(with("\"salesChannel\":{", "\"zz\":[{\"y\":1}],\"aa\":null,\"salesChannel\":{"), Ok(()));
    assert_eq!(with("\"tax\":{", "\"tax\":null,\"x\":{"), Ok(()));
    // Not JSON, or not ours.
    assert_eq!(reason(clear.strip_suffix('}').unwrap()), bad_json);
    assert_eq!(reason(&format!("{clear}{clear}")), bad_json);
    assert_eq!(with("\"salesChannel\":{", "\"sales\\u0043hannel\":{"), bad_json);
    assert_eq!(reason("[]"), bad_field);
    assert_eq!(reason("Jane"), bad_json);
    let place = project(event(b"{\n \"createdTime\":7}", Family::Orders, token)).unwrap_err();
    assert_eq!((place.reason, place.line), (DeadLetterReason::BadField, 2));
}
