//! Amazon's sandbox answers through the classifier. The lists of this file are written by hand, not taken from the catalogue.

use serde_json::{Map, Value};
use sunder_schemas::catalogue::Catalogue;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::classify::{Classified, Limits, TokenKind, Tokens as _, classify};

use crate::support::{PlainTokens, sandbox};

/// Personal paths of an order and their groups; a path is meant with all below it.
const PERSONAL: &[(&str, FieldGroup)] = &[
    ("buyer.buyerName", FieldGroup::BuyerName),
    ("buyer.buyerCompanyName", FieldGroup::BuyerName),
    ("buyer.buyerEmail", FieldGroup::BuyerContact),
    ("buyer.buyerPurchaseOrderNumber", FieldGroup::TaxIdentity),
    ("recipient.deliveryAddress.name", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.companyName", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.addressLine1", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.addressLine2", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.addressLine3", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.city", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.districtOrCounty", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.municipality", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.postalCode", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.extendedFields", FieldGroup::RecipientAddress),
    ("recipient.deliveryAddress.phone", FieldGroup::BuyerContact),
    ("recipient.deliveryPreference", FieldGroup::DeliveryInstructions),
    ("orderItems[*].fulfillment.packing.giftOption.giftMessage", FieldGroup::Gift),
    ("orderItems[*].product.customization.customizedUrl", FieldGroup::Customization),
    ("orderItems[*].product.serialNumbers", FieldGroup::Customization),
    ("orderItems[*].cancellation.cancellationRequest.cancelReason", FieldGroup::FreeText),
    ("packages[*].trackingNumber", FieldGroup::Tracking),
    ("payment.paymentExecutions[*].authorizationCode", FieldGroup::Payment),
    ("payment.paymentExecutions[*].cardBrand", FieldGroup::Payment),
    ("orderId", FieldGroup::Identifiers),
    ("orderAliases[*].aliasId", FieldGroup::Identifiers),
    ("orderItems[*].orderItemId", FieldGroup::Identifiers),
    ("packages[*].packageReferenceId", FieldGroup::Identifiers),
    ("fulfillmentOrders[*].fulfillmentOrderId", FieldGroup::Identifiers),
];

/// Identifiers that stand as tokens in the clear part.
const TOKENS: &[(&str, TokenKind)] = &[
    ("orderId", TokenKind::Order),
    ("associatedOrders[*].orderId", TokenKind::Order),
    ("orderItems[*].associatedOrderItems[*].orderId", TokenKind::Order),
    ("orderItems[*].orderItemId", TokenKind::OrderItem),
    ("orderItems[*].associatedOrderItems[*].orderItemId", TokenKind::OrderItem),
    ("packages[*].packageItems[*].orderItemId", TokenKind::OrderItem),
    ("packages[*].packageReferenceId", TokenKind::Package),
];

/// Fetched, not a buyer's, and used nowhere.
const LEFT_OUT: &[&str] = &[
    "packages[*].shipFromAddress",
    "packages[*].packageItems[*].transparencyCodes",
    "tax.taxRegistrations[*].legalName",
    "tax.taxRegistrations[*].taxRegistrationNumber",
    "tax.taxRegistrations[*].taxRegistrationAddress",
    "tax.taxRegistrations[*].taxRegistrationAttributes",
];

fn below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('['))
}

/// A leaf with its path, the same with indexes as a JSON pointer, and whether it is in a registration of a buyer.
struct Leaf {
    path: String,
    pointer: String,
    buyers: bool,
    value: Value,
}

impl Leaf {
    fn group(&self) -> Option<FieldGroup> {
        if self.buyers {
            return Some(FieldGroup::TaxIdentity);
        }
        PERSONAL.iter().find(|(path, _)| below(&self.path, path)).map(|(_, group)| *group)
    }
}

fn leaves(value: &Value, path: &str, pointer: &str, buyers: bool, all: &mut Vec<Leaf>) {
    let buyers = buyers || (path == "tax.taxRegistrations[*]" && value["entityType"] != "MERCHANT" && value["entityType"] != "MARKETPLACE");
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(member, &below, &format!("{pointer}/{name}"), buyers, all);
            }
        }
        Value::Array(elements) if !elements.is_empty() => {
            for (index, element) in elements.iter().enumerate() {
                leaves(element, &format!("{path}[*]"), &format!("{pointer}/{index}"), buyers, all);
            }
        }
        _ => all.push(Leaf { path: path.to_owned(), pointer: pointer.to_owned(), buyers, value: value.clone() }),
    }
}

/// The order pruned to the leaves whose pointers are in `keep`.
fn prune(value: &Value, pointer: &str, keep: &[&str]) -> Option<Value> {
    match value {
        Value::Object(members) => {
            let kept: Map<String, Value> = members
                .iter()
                .filter_map(|(name, member)| Some((name.clone(), prune(member, &format!("{pointer}/{name}"), keep)?)))
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        Value::Array(elements) if !elements.is_empty() => {
            let pruned: Vec<_> =
                elements.iter().enumerate().map(|(index, element)| prune(element, &format!("{pointer}/{index}"), keep)).collect();
            pruned.iter().any(Option::is_some).then(|| pruned.into_iter().map(|e| e.unwrap_or_else(|| Value::Object(Map::new()))).collect())
        }
        _ => keep.contains(&pointer).then(|| value.clone()),
    }
}

fn check(order: &Value, classified: &Classified) {
    let clear: Value = serde_json::from_slice(&classified.clear).unwrap();
    let text = std::str::from_utf8(&classified.clear).unwrap();
    assert_eq!(serde_json::to_string(&clear).unwrap(), text, "the clear part is canonical: sorted, without white space");
    let mut all = Vec::new();
    leaves(order, "", "", false, &mut all);
    let id = order["orderId"].as_str().unwrap();
    let public: Vec<&Value> = all.iter().filter(|leaf| leaf.group().is_none()).map(|leaf| &leaf.value).collect();
    for leaf in &all {
        let token = TOKENS.iter().find(|(path, _)| *path == leaf.path).map(|(_, kind)| *kind);
        if leaf.group().is_some() || token.is_some() {
            let value = leaf.value.as_str().unwrap_or_default();
            let elsewhere = public.iter().any(|other| other.as_str().is_some_and(|other| other.contains(value)));
            assert!(value.is_empty() || elsewhere || !text.contains(value), "the value at {} is in the clear part", leaf.path);
        }
        if let Some(kind) = token {
            let value = leaf.value.as_str().unwrap();
            let made_from = if kind == TokenKind::Package { sunder_schemas::key::join([id, value]) } else { value.to_owned() };
            let expected = Value::String(PlainTokens.token(kind, &made_from).to_string());
            assert_eq!(clear.pointer(&leaf.pointer), Some(&expected), "{}", leaf.path);
        } else if leaf.group().is_some() {
            assert_eq!(clear.pointer(&leaf.pointer), None, "{} has no place in the clear part", leaf.path);
        } else if LEFT_OUT.iter().any(|path| below(&leaf.path, path)) {
            assert_eq!(clear.pointer(&leaf.pointer), None, "{} is left out", leaf.path);
        } else {
            assert_eq!(clear.pointer(&leaf.pointer), Some(&leaf.value), "{} is lost", leaf.path);
        }
    }
    for group in FieldGroup::ALL {
        let keep: Vec<&str> = all.iter().filter(|leaf| leaf.group() == Some(*group)).map(|leaf| leaf.pointer.as_str()).collect();
        let opened =
            classified.groups.iter().find(|(own, _)| own == group).map(|(_, plain)| serde_json::from_slice(plain.reveal()).unwrap());
        assert_eq!(opened, prune(order, "", &keep), "group {group}");
    }
    assert!(classified.unclassified.is_empty(), "{:?}", classified.unclassified);
}

#[test]
fn sandbox_orders_fall_into_the_right_halves() {
    let mut orders = 0;
    for pair in sandbox("orders_2026-01-01").iter().filter(|pair| pair["status"] == 200) {
        let operation = pair["operationId"].as_str().unwrap();
        let catalogue = Catalogue::for_operation("orders_2026-01-01", operation).unwrap();
        let body = serde_json::to_vec_pretty(&pair["response"]).unwrap();
        let page = classify(catalogue, &body, &PlainTokens, &Limits::DEFAULT).unwrap();
        assert!(page.rejected.is_empty() && page.unclassified.is_empty(), "{:?} {:?}", page.rejected, page.unclassified);
        let single = [pair["response"]["order"].clone()];
        let fetched = pair["response"]["orders"].as_array().map_or(single.as_slice(), Vec::as_slice);
        assert_eq!(page.entities.len(), fetched.len());
        assert_eq!(page.next_token.as_deref(), pair["response"]["pagination"]["nextToken"].as_str());
        for (order, classified) in fetched.iter().zip(&page.entities) {
            check(order, classified);
            orders += 1;
        }
    }
    assert!(orders >= 6 || sandbox("orders_2026-01-01").is_empty(), "only {orders} orders in the sandbox");
}

#[test]
fn an_inventory_answer_is_clear_and_identified_by_marketplace_sku_fnsku_and_condition() {
    let catalogue = Catalogue::for_operation("fbaInventory", "getInventorySummaries").unwrap();
    let body = r#"{"payload":{"inventorySummaries":[
        {"sellerSku":"A/b|c","fnSku":"X1","condition":"NewItem","totalQuantity":3,"lastUpdatedTime":"2026-11-01T00:00:00Z","inventoryDetails":{"reservedQuantity":{"fcProcessingQuantity":1}}},
        {"sellerSku":"B","lastUpdatedTime":"","stores":[]},{"fnSku":"X2"},{"sellerSku":"C","colour":"red"}],
        "granularity":{"granularityType":"Marketplace","granularityId":"A1PA6795UKMFR9"}},"pagination":{"nextToken":"t=="}}"#;
    let page = classify(catalogue, body.as_bytes(), &PlainTokens, &Limits::DEFAULT).unwrap();
    assert_eq!(page.next_token.as_deref(), Some("t=="));
    let [first, never_changed, other] = page.entities.as_slice() else { panic!("{:?}", page.entities.len()) };
    let token = PlainTokens.token(TokenKind::InventoryLevel, "A1PA6795UKMFR9|A%2Fb%7Cc|X1|NewItem");
    assert_eq!(first.identity.token(), token);
    assert_eq!(first.identity.marketplace_id().unwrap().as_str(), "A1PA6795UKMFR9");
    assert_eq!(first.identity.source_version().unwrap().to_iso(), "2026-11-01T00:00:00.000Z");
    assert!(first.groups.is_empty());
    assert_eq!(
        std::str::from_utf8(&first.clear).unwrap(),
        r#"{"condition":"NewItem","fnSku":"X1","inventoryDetails":{"reservedQuantity":{"fcProcessingQuantity":1}},"lastUpdatedTime":"2026-11-01T00:00:00Z","sellerSku":"A/b|c","totalQuantity":3}"#
    );
    // A level that never changed has an empty time of last update: it has no version of its own, as without the property.
    assert_eq!((never_changed.identity.source_version(), other.identity.source_version()), (None, None));
    assert_eq!(other.unclassified, [("inventorySummary.*".to_owned(), 1)]);
    let codes: Vec<_> = page.rejected.iter().map(|r| (r.index, r.code.as_str(), r.path.as_str())).collect();
    assert_eq!(codes, [(2, "entity_no_id", "inventorySummary.sellerSku")]);
}
