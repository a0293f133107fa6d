//! Splits a fetched answer into entities, and each entity into a clear part without personal data and groups of personal fields.
//!
//! Invariants: what no rule of the catalogue names, or what is of another type than its rule expects, is personal and goes whole into
//! the `unclassified` group; a fetched *name* that no rule knows is in no clear part, no reported path and no error; each value goes to
//! the clear part, to one group or to what the catalogue lists as left out (a token's clear id may be sealed as well). The clear part is
//! canonical JSON: keys sorted by bytes, no white space, shortest escapes, numbers digit for digit, clear ids replaced by tokens.
//!
//! Objects without a clear property are absent from the clear part, so that an order fetched with and without its personal fields has
//! the same one. Pruned arrays keep length and order, `{}` stands where an element has nothing to show. Of a property given twice the
//! first counts; later ones are unclassified, and stand in that group under the same name as often as they were given.
//!
//! It does not seal, and knows neither config nor network.

mod emit;
mod error;
mod parse;

use crate::catalogue::Catalogue;
pub use crate::catalogue::TokenKind;
use crate::class::FieldGroup;
use crate::ids::{EntityToken, MarketplaceId, OrderId};
use crate::private::Plain;
use crate::time::Timestamp;

pub use self::error::{BodyCode, BodyError, RejectCode, Rejected};

/// Makes the tokens of one seller: an HMAC under the seller's token key.
pub trait Tokens {
    /// The token of the identifier `clear`. Equal input gives equal tokens, different kinds different ones.
    fn token(&self, kind: TokenKind, clear: &str) -> EntityToken;
}

/// Bounds on what is read from one answer. Chosen: an answer holds 100 orders at most (Orders 2026-01-01, `maxResultsPerPage`), an order
/// with everything about 20 KB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a body.
    pub body_bytes_max: usize,
    /// Deepest nesting of objects and arrays; Amazon's models reach 12.
    pub depth_max: usize,
    /// Most entities on one page.
    pub entities_max: usize,
    /// Longest string or name, in bytes as decoded.
    pub string_bytes_max: usize,
    /// Most values in one entity, or on the page outside its entities.
    pub values_max: usize,
}

impl Limits {
    /// The limits in use unless a caller has others.
    pub const DEFAULT: Self =
        Self { body_bytes_max: 16 * 1024 * 1024, depth_max: 64, entities_max: 1_000, string_bytes_max: 256 * 1024, values_max: 200_000 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Which entity it is, and in which version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// An order.
    Order {
        /// The clear id; for the fingerprint and for asking again.
        id: OrderId,
        /// Its token.
        token: EntityToken,
        /// Where it was placed, if the answer says so.
        marketplace_id: Option<MarketplaceId>,
        /// `lastUpdatedTime`.
        source_version: Timestamp,
    },
    /// The stock of one SKU in one marketplace.
    InventoryLevel {
        /// The token of marketplace, SKU, FNSKU and condition.
        token: EntityToken,
        /// The marketplace of the listing.
        marketplace_id: MarketplaceId,
        /// `lastUpdatedTime`, where Amazon gives one.
        source_version: Option<Timestamp>,
    },
}

impl Identity {
    /// The entity's token.
    #[must_use]
    pub const fn token(&self) -> EntityToken {
        match self {
            Self::Order { token, .. } | Self::InventoryLevel { token, .. } => *token,
        }
    }

    /// The marketplace, if the answer says so.
    #[must_use]
    pub const fn marketplace_id(&self) -> Option<&MarketplaceId> {
        match self {
            Self::Order { marketplace_id, .. } => marketplace_id.as_ref(),
            Self::InventoryLevel { marketplace_id, .. } => Some(marketplace_id),
        }
    }

    /// The source's own version, where it has one.
    #[must_use]
    pub const fn source_version(&self) -> Option<Timestamp> {
        match self {
            Self::Order { source_version, .. } => Some(*source_version),
            Self::InventoryLevel { source_version, .. } => *source_version,
        }
    }

    /// The clear order id, of an order.
    #[must_use]
    pub const fn order_id(&self) -> Option<&OrderId> {
        match self {
            Self::Order { id, .. } => Some(id),
            Self::InventoryLevel { .. } => None,
        }
    }
}

/// One entity of an answer in its two halves.
#[derive(Debug)]
pub struct Classified {
    /// Which entity, in which version.
    pub identity: Identity,
    /// Canonical JSON without personal fields, clear ids replaced by tokens.
    pub clear: Vec<u8>,
    /// SHA-256 of `clear`, lower-case hex.
    pub payload_sha256: String,
    /// Per group that has a value: the fetched JSON pruned to the group's leaves, in the order of [`FieldGroup::ALL`].
    pub groups: Vec<(FieldGroup, Plain<Vec<u8>>)>,
    /// Values that no rule classifies: the path up to the last known property, then `.*`, and how many.
    pub unclassified: Vec<(String, u64)>,
}

/// An answer, taken apart.
#[derive(Debug, Default)]
pub struct Page {
    /// The entities, in the answer's order.
    pub entities: Vec<Classified>,
    /// Entities that cannot be taken in, and why; the rest of the page stands.
    pub rejected: Vec<Rejected>,
    /// The token of the next page; only its absence ends a listing.
    pub next_token: Option<String>,
    /// The end of the window the answer covers, where the operation tells it (`lastUpdatedBefore`).
    pub window_end: Option<Timestamp>,
    /// What stands outside the entities and has no rule, as pruned JSON: belongs to no order, so only the quarantine key may seal it.
    pub leftover: Option<Plain<Vec<u8>>>,
    /// What is in `leftover`, by path and count.
    pub unclassified: Vec<(String, u64)>,
}

/// Takes `body` apart by the rules of `catalogue`.
///
/// # Errors
/// [`BodyError`] where the body as a whole cannot be taken in: not JSON, past a limit, not the answer the catalogue knows.
pub fn classify(catalogue: &Catalogue, body: &[u8], tokens: &dyn Tokens, limits: &Limits) -> Result<Page, BodyError> {
    Classifier::new(*limits).classify(catalogue, body, tokens)
}

/// [`classify`] with buffers that are kept from one answer to the next. Personal values in them are wiped after each answer.
#[derive(Default)]
pub struct Classifier {
    limits: Limits,
    scratch: parse::Scratch,
}

impl Classifier {
    /// A classifier with these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, scratch: parse::Scratch::default() }
    }

    /// Takes `body` apart by the rules of `catalogue`.
    ///
    /// # Errors
    /// As [`classify`].
    pub fn classify(&mut self, catalogue: &Catalogue, body: &[u8], tokens: &dyn Tokens) -> Result<Page, BodyError> {
        let page = parse::page(catalogue, body, tokens, &self.limits, &mut self.scratch);
        self.scratch.wipe();
        page
    }
}

impl std::fmt::Debug for Classifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Classifier").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;

    impl Tokens for Fake {
        fn token(&self, kind: TokenKind, clear: &str) -> EntityToken {
            let digest = ring::digest::digest(&ring::digest::SHA256, format!("{}:{clear}", kind.as_str()).as_bytes());
            EntityToken(*digest.as_ref().first_chunk().unwrap())
        }
    }

    fn search(body: &str) -> Result<Page, BodyError> {
        let catalogue = Catalogue::for_operation("orders_2026-01-01", "searchOrders").unwrap();
        classify(catalogue, body.as_bytes(), &Fake, &Limits::DEFAULT)
    }

    fn one(order: &str) -> Classified {
        let mut page = search(&format!("{{\"orders\":[{order}]}}")).unwrap();
        assert!(page.rejected.is_empty(), "{:?}", page.rejected);
        page.entities.pop().unwrap()
    }

    fn group(classified: &Classified, group: FieldGroup) -> &str {
        classified.groups.iter().find(|(g, _)| *g == group).map_or("", |(_, plain)| std::str::from_utf8(plain.reveal()).unwrap())
    }

    const ID: &str = r#""orderId":"111-1","lastUpdatedTime":"2026-01-01T00:00:00Z""#;

    #[test]
    fn an_order_falls_into_its_two_halves() {
        let order = one(&format!(
            r#"{{ {ID}, "orderItems":[{{"orderItemId":"7","quantityOrdered":1.50}},{{"orderItemId":"8","product":{{"customization":{{"customizedUrl":"https://x"}}}}}}],
            "buyer":{{"buyerName":"J\u0061ne \"J\" D\u00f6e"}}, "recipient":{{"deliveryAddress":{{"countryCode":"DE","city":"Ulm"}}}}, "packages":[] }}"#
        ));
        let token = |kind, id| Fake.token(kind, id);
        let (o, a, b) = (token(TokenKind::Order, "111-1"), token(TokenKind::OrderItem, "7"), token(TokenKind::OrderItem, "8"));
        assert_eq!(
            std::str::from_utf8(&order.clear).unwrap(),
            format!(
                r#"{{"lastUpdatedTime":"2026-01-01T00:00:00Z","orderId":"{o}","orderItems":[{{"orderItemId":"{a}","quantityOrdered":1.50}},{{"orderItemId":"{b}"}}],"packages":[],"recipient":{{"deliveryAddress":{{"countryCode":"DE"}}}}}}"#
            )
        );
        assert_eq!(group(&order, FieldGroup::BuyerName), "{\"buyer\":{\"buyerName\":\"Jane \\\"J\\\" Döe\"}}");
        assert_eq!(group(&order, FieldGroup::RecipientAddress), r#"{"recipient":{"deliveryAddress":{"city":"Ulm"}}}"#);
        assert_eq!(
            group(&order, FieldGroup::Customization),
            r#"{"orderItems":[{},{"product":{"customization":{"customizedUrl":"https://x"}}}]}"#
        );
        assert_eq!(group(&order, FieldGroup::Identifiers), r#"{"orderId":"111-1","orderItems":[{"orderItemId":"7"},{"orderItemId":"8"}]}"#);
        assert_eq!(order.identity.token(), o);
        assert_eq!(order.groups.len(), 4);
        assert!(order.unclassified.is_empty());
    }

    #[test]
    fn the_clear_part_does_not_depend_on_order_space_escapes_or_personal_fields() {
        let a = one(&format!(r#"{{{ID},"programs":["A"],"buyer":{{"buyerName":"Jane"}}}}"#));
        let b = one(r#"{ "programs" : ["\u0041"], "lastUpdatedTime":"2026-01-01T00:00:00Z" , "orderId":"111-1"}"#);
        assert_eq!(a.clear, b.clear);
        assert_eq!(a.payload_sha256, b.payload_sha256);
    }

    #[test]
    fn what_no_rule_names_and_what_is_of_another_type_is_sealed_and_counted() {
        let order = one(&format!(
            r#"{{{ID},"Jane":{{"x":[1,{{"y":null}}]}},"buyer":{{"Doe":true,"Roe":2}},"createdTime":{{"z":1}},"orderItems":[["q"],{{"quantityOrdered":"3"}}],"programs":["A",5,"B"],"recipient":"Ulm"}}"#
        ));
        assert_eq!(
            group(&order, FieldGroup::Unclassified),
            r#"{"Jane":{"x":[1,{"y":null}]},"buyer":{"Doe":true,"Roe":2},"createdTime":{"z":1},"orderItems":[["q"],{"quantityOrdered":"3"}],"programs":[{},5,{}],"recipient":"Ulm"}"#
        );
        let clear = std::str::from_utf8(&order.clear).unwrap();
        assert!(clear.contains(r#""programs":["A",{},"B"]"#), "{clear}");
        for hidden in ["Jane", "Doe", "Roe", "Ulm", "createdTime", "quantityOrdered"] {
            assert!(!clear.contains(hidden), "{clear}");
        }
        let mut paths = order.unclassified.clone();
        paths.sort();
        let paths: Vec<(&str, u64)> = paths.iter().map(|(path, count)| (path.as_str(), *count)).collect();
        assert_eq!(
            paths,
            [
                ("order.*", 1),
                ("order.buyer.*", 2),
                ("order.createdTime.*", 1),
                ("order.orderItems[*].*", 1),
                ("order.orderItems[*].quantityOrdered.*", 1),
                ("order.programs[*].*", 1),
                ("order.recipient.*", 1)
            ]
        );
    }

    #[test]
    fn of_a_property_given_twice_the_first_counts_and_the_rest_is_sealed() {
        let order = one(&format!(
            r#"{{{ID},"orderId":"222-2","buyer":{{"buyerName":"A"}},"buyer":{{"buyerName":"B"}},"createdTime":"t1","createdTime":"t2"}}"#
        ));
        assert_eq!(order.identity.order_id().unwrap().reveal(), "111-1");
        assert_eq!(group(&order, FieldGroup::BuyerName), r#"{"buyer":{"buyerName":"A"}}"#);
        assert_eq!(group(&order, FieldGroup::Unclassified), r#"{"orderId":"222-2","buyer":{"buyerName":"B"},"createdTime":"t2"}"#);
        assert!(std::str::from_utf8(&order.clear).unwrap().contains(r#""createdTime":"t1""#));
    }

    #[test]
    fn a_registration_is_the_buyers_unless_it_says_otherwise() {
        let registration = |inside: &str| one(&format!(r#"{{{ID},"tax":{{"taxRegistrations":[{{"legalName":"Jane"{inside}}}]}}}}"#));
        let sellers = registration(r#","entityType":"MERCHANT""#);
        assert_eq!(group(&sellers, FieldGroup::TaxIdentity), "");
        assert!(std::str::from_utf8(&sellers.clear).unwrap().contains("MERCHANT"));
        for inside in [
            "",
            r#","entityType":"BUYER""#,
            r#","entityType":"merchant""#,
            r#","entityType":null"#,
            r#","entityType":"MERCHANT","entityType":"BUYER""#,
        ] {
            let buyers = registration(inside);
            assert!(group(&buyers, FieldGroup::TaxIdentity).contains("Jane"), "{inside}");
            assert!(!std::str::from_utf8(&buyers.clear).unwrap().contains("tax"), "{inside}");
        }
        let cancelled = |by: &str| {
            one(&format!(
                r#"{{{ID},"orderItems":[{{"cancellation":{{"cancellationExecution":{{"cancelledBy":"{by}","cancelReason":"why"}}}}}}]}}"#
            ))
        };
        assert!(std::str::from_utf8(&cancelled("MERCHANT").clear).unwrap().contains("why"));
        let buyer = cancelled("BUYER");
        assert!(std::str::from_utf8(&buyer.clear).unwrap().contains(r#"{"cancelledBy":"BUYER"}"#));
        assert!(group(&buyer, FieldGroup::FreeText).contains("why"));
    }
}
