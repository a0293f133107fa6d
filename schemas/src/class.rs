//! What kinds of data there are: families of topics, kinds of records, groups of personal fields.
//!
//! These closed lists are the vocabulary of the catalogue, the topics, the config and the stores (DESIGN section 4).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::IdError;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// Every value, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name used in topics, tables, config and files.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                match text { $($text => Ok(Self::$variant),)+ _ => Err(IdError { what: $what, rule: $rule }) }
            }
        }
    };
}
pub(crate) use words;

words!(
    /// A group of personal fields that is sealed, wanted, opened and held together.
    FieldGroup, "field group", "one of the groups of docs/fields.md", {
        /// The buyer's name and company.
        BuyerName = "buyer_name",
        /// The buyer's e-mail and the recipient's phone.
        BuyerContact = "buyer_contact",
        /// Recipient's name, company, lines, city, district, postal code; state or region and country stay clear.
        RecipientAddress = "recipient_address",
        /// Where and when to leave the parcel.
        DeliveryInstructions = "delivery_instructions",
        /// Gift messages.
        Gift = "gift",
        /// Customisation the buyer asked for.
        Customization = "customization",
        /// The buyer's tax registration and purchase order number.
        TaxIdentity = "tax_identity",
        /// Card brand and authorisation.
        Payment = "payment",
        /// Tracking numbers: they lead to an address at the carrier.
        Tracking = "tracking",
        /// Free text a buyer may have written.
        FreeText = "free_text",
        /// The clear order id and its aliases, sealed where any group is wanted.
        Identifiers = "identifiers",
        /// Fields that no rule classifies: personal until a person decides otherwise.
        Unclassified = "unclassified",
    }
);

impl FieldGroup {
    /// Whether a seller's `personal` list may name it; the other two follow by themselves (DESIGN section 4).
    #[must_use]
    pub const fn may_be_wanted(self) -> bool {
        !matches!(self, Self::Identifiers | Self::Unclassified)
    }
}

words!(
    /// A family of SP-API data; its raw and personal topics share a name and a partition count.
    Family, "family", "one of the families of docs/topics.md", {
        /// Orders API.
        Orders = "orders",
        /// FBA inventory.
        Inventory = "inventory",
    }
);

words!(
    /// A flat kind of non-personal record: one `events.*` and one `state.*` topic and one warehouse table.
    Kind, "kind", "one of the kinds of docs/topics.md", {
        /// One row per order.
        Orders = "orders",
        /// One row per order item.
        OrderItems = "order_items",
        /// One row per package, without its tracking number.
        Packages = "packages",
        /// One row per seller, marketplace, SKU, FNSKU and condition.
        InventoryLevels = "inventory_levels",
    }
);

impl Kind {
    /// The family whose raw topic this kind is split from.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::Orders | Self::OrderItems | Self::Packages => Family::Orders,
            Self::InventoryLevels => Family::Inventory,
        }
    }

    /// Whether its rows hang below an order: key `seller|order_token|own_token`.
    #[must_use]
    pub const fn is_child(self) -> bool {
        matches!(self, Self::OrderItems | Self::Packages)
    }
}

words!(
    /// What is fetched for a seller, as `datasets` in the config names it.
    Dataset, "dataset", "one of: orders, inventory", {
        /// Orders 2026-01-01.
        Orders = "orders",
        /// FBA inventory summaries.
        Inventory = "inventory",
    }
);

impl Dataset {
    /// The family its events belong to.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::Orders => Family::Orders,
            Self::Inventory => Family::Inventory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back() {
        for group in FieldGroup::ALL {
            assert_eq!(group.as_str().parse::<FieldGroup>().unwrap(), *group);
        }
        assert!("adress".parse::<FieldGroup>().is_err());
    }
}
