//! Whatever is injected wherever: nothing unknown reaches the clear part, and nothing is lost.

use std::fmt::Write as _;

use jiter::{Jiter, Peek};
use proptest::prelude::*;
use sunder_schemas::catalogue::Catalogue;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::classify::{Classifier, Limits};

use crate::support::PlainTokens;

/// JSON as written: members may repeat, and strings are escaped as told.
#[derive(Debug, Clone)]
enum Json {
    Bare(String),
    Text(String, bool),
    Array(Vec<Json>),
    Object(Vec<(Json, Json)>),
}

/// In every injected string and name, written so that no escape can hide it from the search.
const MARK: &str = "qZq";

impl Json {
    fn of(value: &serde_json::Value) -> Self {
        match value {
            serde_json::Value::String(text) => Self::Text(text.clone(), false),
            serde_json::Value::Array(elements) => Self::Array(elements.iter().map(Self::of).collect()),
            serde_json::Value::Object(members) => {
                Self::Object(members.iter().map(|(name, value)| (Self::Text(name.clone(), false), Self::of(value))).collect())
            }
            other => Self::Bare(other.to_string()),
        }
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Bare(text) => out.push_str(text),
            Self::Text(text, true) => {
                out.push('"');
                for unit in text.encode_utf16() {
                    write!(out, "\\u{unit:04X}").unwrap();
                }
                out.push('"');
            }
            Self::Text(text, false) => out.push_str(&serde_json::to_string(text).unwrap()),
            Self::Array(elements) => {
                out.push('[');
                for (index, element) in elements.iter().enumerate() {
                    out.push_str(if index > 0 { " ,\n" } else { "" });
                    element.write(out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (index, (name, value)) in members.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { " " });
                    name.write(out);
                    out.push_str(": ");
                    value.write(out);
                }
                out.push('}');
            }
        }
    }

    /// The `at`th value of the tree, counted from its root.
    fn nth(&mut self, at: &mut usize) -> Option<&mut Self> {
        if *at == 0 {
            return Some(self);
        }
        *at -= 1;
        match self {
            Self::Array(elements) => elements.iter_mut().find_map(|element| element.nth(at)),
            Self::Object(members) => members.iter_mut().find_map(|(_, value)| value.nth(at)),
            Self::Bare(_) | Self::Text(..) => None,
        }
    }

    fn size(&self) -> usize {
        1 + match self {
            Self::Array(elements) => elements.iter().map(Self::size).sum(),
            Self::Object(members) => members.iter().map(|(_, value)| value.size()).sum(),
            Self::Bare(_) | Self::Text(..) => 0,
        }
    }

    /// Puts `foreign` where no rule can expect it: as a new member, a repeated one, a new element, or in place of a leaf.
    fn inject(&mut self, at: usize, pick: usize, name: Self, foreign: Self) {
        let mut at = at % self.size();
        match self.nth(&mut at).unwrap() {
            Self::Object(members) => {
                let repeat = members.get(pick % (members.len() * 2).max(1)).map(|(own, _)| own.clone());
                let place = if repeat.is_some() { members.len() } else { pick % (members.len() + 1) };
                members.insert(place, (repeat.unwrap_or(name), foreign));
            }
            Self::Array(elements) => elements.insert(pick % (elements.len() + 1), Self::Array(vec![foreign])),
            leaf => *leaf = if pick.is_multiple_of(2) { Self::Array(vec![foreign]) } else { Self::Object(vec![(name, foreign)]) },
        }
    }
}

/// An order with something of everything and nothing that is left out.
fn order() -> Json {
    Json::of(&serde_json::json!({
        "orderId": "123-4567890-1234567", "createdTime": "2026-01-01T10:00:00Z", "lastUpdatedTime": "2026-01-02T10:00:00.123Z",
        "programs": ["PRIME", "SUBSCRIBE"], "orderAliases": [{"aliasId": "alias-1", "aliasType": "SELLER_ORDER_ID"}],
        "associatedOrders": [{"orderId": "999-1", "associationType": "EXCHANGE_ORIGINAL_ID"}],
        "salesChannel": {"channelName": "AMAZON", "marketplaceId": "A1PA6795UKMFR9"},
        "buyer": {"buyerName": "Erika", "buyerEmail": "e@example.com", "buyerPurchaseOrderNumber": "PO"},
        "recipient": {
            "deliveryAddress": {"name": "Erika", "city": "Ulm", "stateOrRegion": "BW", "countryCode": "DE", "phone": "1", "extendedFields": {"streetName": "s"}},
            "deliveryPreference": {"deliveryTime": {"businessHours": [{"dayOfWeek": "MON", "timeWindows": [{"startTime": {"hour": 8, "minute": 0}}]}]}}},
        "proceeds": {"grandTotal": {"amount": "10.50", "currencyCode": "EUR"}},
        "payment": {"paymentExecutions": [{"paymentMethod": "CreditCard", "cardBrand": "Visa"}]},
        "tax": {"taxRegistrations": [{"entityType": "BUYER", "legalName": "Erika", "taxRegistrationAddress": {"city": "Ulm"}}, {"entityType": "MERCHANT"}]},
        "fulfillment": {"fulfillmentStatus": "SHIPPED", "shipByWindow": {"latestDateTime": "2026-01-03T00:00:00Z"}},
        "orderItems": [
            {"orderItemId": "1", "quantityOrdered": 2, "product": {"asin": "B0", "title": "T\u{1F600}", "serialNumbers": ["S1"], "customization": {"customizedUrl": "u"}},
             "cancellation": {"cancellationExecution": {"cancelledBy": "BUYER", "cancelReason": "r"}},
             "fulfillment": {"packing": {"giftOption": {"giftMessage": "g", "giftWrapLevel": "l"}}}},
            {"orderItemId": "2", "measurement": {"unit": "KILOGRAMS", "value": 1.50}}],
        "packages": [{"packageReferenceId": "1", "trackingNumber": "t", "packageStatus": {"status": "DELIVERED"}, "packageItems": [{"orderItemId": "1", "quantity": 1}]}],
        "fulfillmentOrders": [{"fulfillmentOrderId": "f"}]
    }))
}

fn text() -> impl Strategy<Value = Json> {
    ("[\\PC\"\\\\/\n\u{1}\u{7f}é日😀]{0,6}", any::<bool>()).prop_map(|(text, escaped)| Json::Text(format!("{MARK}{text}"), escaped))
}

fn foreign() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        4 => text(),
        1 => Just(Json::Bare("null".to_owned())),
        1 => Just(Json::Bare("true".to_owned())),
        // Numbers carry a mark of their own.
        2 => "-?77077[0-9]{1,20}(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?".prop_map(Json::Bare),
    ];
    leaf.prop_recursive(6, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::Array),
            prop::collection::vec((text(), inner), 0..4).prop_map(Json::Object),
        ]
    })
}

/// Counts scalars, repeated members included.
fn scalars(json: &mut Jiter<'_>, peek: Peek) -> usize {
    let mut count = 0;
    if peek == Peek::Array {
        let mut next = json.known_array().unwrap();
        while let Some(peek) = next {
            count += scalars(json, peek);
            next = json.array_step().unwrap();
        }
    } else if peek == Peek::Object {
        let mut more = json.known_object().unwrap().is_some();
        while more {
            let peek = json.peek().unwrap();
            count += scalars(json, peek);
            more = json.next_key().unwrap().is_some();
        }
    } else {
        json.known_skip(peek).unwrap();
        count = 1;
    }
    count
}

fn scalars_of(text: &[u8]) -> usize {
    let mut json = Jiter::new(text);
    let peek = json.peek().unwrap();
    scalars(&mut json, peek)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn nothing_injected_reaches_the_clear_part_and_no_leaf_is_lost(
        injections in prop::collection::vec((any::<usize>(), any::<usize>(), text(), foreign()), 1..5),
    ) {
        let mut order = order();
        for (at, pick, name, foreign) in injections {
            order.inject(at, pick, name, foreign);
        }
        let mut written = String::new();
        order.write(&mut written);
        let body = format!("{{\"orders\":[{written}]}}");
        let catalogue = Catalogue::for_operation("orders_2026-01-01", "searchOrders").unwrap();
        let mut classifier = Classifier::new(Limits::DEFAULT);
        let page = classifier.classify(catalogue, body.as_bytes(), &PlainTokens).unwrap();
        let spoken = format!("{:?} {:?} {:?}", page.rejected, page.unclassified, page.entities.iter().map(|e| &e.unclassified).collect::<Vec<_>>());
        prop_assert!(!spoken.contains(MARK), "{}", spoken);
        prop_assert!(page.leftover.is_none());
        prop_assert_eq!(page.entities.len() + page.rejected.len(), 1);
        let Some(entity) = page.entities.first() else { return Ok(()) };
        let clear = std::str::from_utf8(&entity.clear).unwrap();
        prop_assert!(!clear.contains(MARK) && !clear.contains("77077") && !clear.contains("Erika") && !clear.contains("Ulm"), "{}", clear);

        // In = clear + sealed, where an identifier with a token is in both.
        let twice = |group: &serde_json::Value| {
            let ids = |list: &serde_json::Value, name: &str| list.as_array().map_or(0, |list| list.iter().filter(|e| e.get(name).is_some()).count());
            usize::from(group.get("orderId").is_some()) + ids(&group["orderItems"], "orderItemId") + ids(&group["packages"], "packageReferenceId")
        };
        let mut sealed = 0;
        for (group, plain) in &entity.groups {
            sealed += scalars_of(plain.reveal());
            if *group == FieldGroup::Identifiers {
                sealed -= twice(&serde_json::from_slice(plain.reveal()).unwrap());
            }
        }
        prop_assert_eq!(scalars_of(written.as_bytes()), scalars_of(&entity.clear) + sealed);

        // The same again with used buffers, and from what is already canonical.
        let again = classifier.classify(catalogue, body.as_bytes(), &PlainTokens).unwrap();
        prop_assert_eq!(&again.entities[0].clear, &entity.clear);
        prop_assert_eq!(&again.entities[0].payload_sha256, &entity.payload_sha256);
    }

    #[test]
    fn no_bytes_whatever_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), at in 0usize..1000) {
        let mut written = String::new();
        order().write(&mut written);
        let mut body = format!("{{\"orders\":[{written}]}}").into_bytes();
        let at = at % body.len();
        body.splice(at..(at + bytes.len() / 2).min(body.len()), bytes);
        let catalogue = Catalogue::for_operation("orders_2026-01-01", "searchOrders").unwrap();
        drop(Classifier::default().classify(catalogue, &body, &PlainTokens));
    }
}
