//! The clear part of the fetched JSON as far as rows are made of it: Amazon's names and nesting, tokens in the place of clear ids.
//!
//! Everything the classification catalogue calls clear is named here; a test plays Amazon's own examples through and looks for every
//! value in the rows. All is optional but what a row cannot be without.

use rust_decimal::Decimal;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use sunder_schemas::ids::EntityToken;
use sunder_schemas::time::Timestamp;

/// A token as the clear part carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token(pub(super) EntityToken);

/// A time as SP-API writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time(pub(super) Timestamp);

/// A time that may be left out: Amazon also writes an empty text where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MaybeTime(pub(super) Option<Timestamp>);

/// Money, digit for digit; an empty text is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amount(pub(super) Option<Decimal>);

macro_rules! from_text {
    ($name:ident, $what:literal, |$text:ident| $parse:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_str<E: Error>(self, $text: &str) -> Result<$name, E> {
                        $parse.map($name).ok_or_else(|| E::custom($what))
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
from_text!(Token, "a token", |text| EntityToken::parse(text).ok());
from_text!(Time, "a time", |text| Timestamp::parse(text).ok());
from_text!(MaybeTime, "a time", |text| if text.is_empty() { Some(None) } else { Timestamp::parse(text).ok().map(Some) });
from_text!(Amount, "an amount", |text| if text.is_empty() { Some(None) } else { parse_amount(text).map(Some) });

/// A number as text; `None` where a column of money does not hold it digit for digit.
pub(super) fn parse_amount(text: &str) -> Option<Decimal> {
    let amount = Decimal::from_str_exact(text).or_else(|_| Decimal::from_scientific(text)).ok()?;
    sunder_schemas::records::codec::fits(amount).then_some(amount)
}

/// A list of texts. An element that was no text is sealed as unclassified and leaves `{}` in its place, which is passed over here.
#[derive(Debug, Default)]
pub(super) struct Texts(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let elements = Vec::<Element>::deserialize(deserializer)?;
        Ok(Self(elements.into_iter().filter_map(|element| element.0).collect()))
    }
}

/// A text, or what stands for something else.
struct Element(Option<String>);

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Element;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element(Some(text.to_owned())))
            }
            fn visit_unit<E: Error>(self) -> Result<Element, E> {
                Ok(Element(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Element, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Element(None))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Declares structs of Amazon's camel-case names whose members may all be absent or null.
macro_rules! objects {
    ($($name:ident { $($field:ident: $ty:ty,)* })+) => { $(
        #[derive(Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub(super) struct $name {
            $(#[serde(default)] pub(super) $field: Option<$ty>,)*
        }
    )+ };
}

objects! {
    SalesChannel { channel_name: String, marketplace_name: String, }
    Alias { alias_type: String, }
    Association { order_id: Token, association_type: String, }
    Recipient { delivery_address: Address, }
    Address { state_or_region: String, country_code: String, address_type: String, }
    Money { amount: Amount, currency_code: String, }
    MoneyText { amount: String, currency_code: String, }
    Proceeds { grand_total: Money, breakdowns: Vec<Breakdown>, }
    Breakdown { r#type: String, status: String, subtotal: MoneyText, detailed_breakdowns: Vec<DetailedBreakdown>, }
    DetailedBreakdown { subtype: String, value: MoneyText, }
    Payment { payment_executions: Vec<PaymentExecution>, }
    PaymentExecution { payment_method: String, payment_amount: MoneyText, acquirer_id: String, }
    Tax { tax_registrations: Vec<Registration>, tax_invoicing: Invoicing, }
    Registration { entity_type: String, tax_registration_type: String, }
    Invoicing { buyer_invoice_preference: String, invoice_status: String, }
    Fulfillment {
        fulfillment_status: String, fulfilled_by: String, fulfillment_service_level: String,
        ship_by_window: Window, deliver_by_window: Window, label_printing_window: Window,
    }
    Window { earliest_date_time: MaybeTime, latest_date_time: MaybeTime, }
    Measurement { unit: String, value: Box<RawValue>, }
    ItemAssociation { order_id: Token, order_item_id: Token, association_type: String, }
    Product { asin: String, title: String, seller_sku: String, condition: Condition, price: Price, }
    Condition { condition_type: String, condition_subtype: String, condition_note: String, }
    Price { unit_price: Money, price_designation: String, }
    ItemProceeds { proceeds_total: Money, breakdowns: Vec<Breakdown>, }
    Expense { points_cost: PointsCost, }
    PointsCost { points_granted: Points, }
    Points { points_number: i64, points_monetary_value: Money, }
    Promotion { breakdowns: Vec<PromotionPart>, }
    PromotionPart { promotion_id: String, }
    Cancellation { cancellation_request: CancellationRequest, cancellation_execution: CancellationExecution, }
    CancellationRequest { requester: String, }
    CancellationExecution { cancelled_by: String, cancel_reason: String, }
    ItemFulfillment { quantity_fulfilled: i64, quantity_unfulfilled: i64, picking: Picking, packing: Packing, shipping: Shipping, }
    Picking { substitution_preference: Substitution, }
    Substitution { substitution_type: String, substitution_options: Vec<SubstitutionOption>, }
    SubstitutionOption { asin: String, quantity_ordered: i64, seller_sku: String, title: String, measurement: Measurement, }
    Packing { gift_option: GiftOption, serial_number_requirement: SerialNumbers, }
    GiftOption { gift_wrap_level: String, }
    SerialNumbers { requirement_type: String, }
    Shipping { scheduled_delivery_window: Window, shipping_constraints: Constraints, international_shipping: International, }
    Constraints {
        pallet_delivery: String, cash_on_delivery: String, signature_confirmation: String,
        recipient_identity_verification: String, recipient_age_verification: String,
    }
    International { ioss_number: String, }
    ItemTax { tax_calculation_breakdowns: Vec<Scheme>, tax_collections: Vec<Collection>, }
    Scheme { reporting_scheme: String, }
    Collection { model: String, responsible_party: String, }
    PackageStatus { status: String, detailed_status: String, }
    PackageItem { order_item_id: Token, quantity: i64, }
    InventoryDetails {
        fulfillable_quantity: i64, inbound_working_quantity: i64, inbound_shipped_quantity: i64, inbound_receiving_quantity: i64,
        reserved_quantity: Reserved, researching_quantity: Researching, unfulfillable_quantity: Unfulfillable,
    }
    Reserved {
        total_reserved_quantity: i64, pending_customer_order_quantity: i64, pending_transshipment_quantity: i64, fc_processing_quantity: i64,
    }
    Researching { total_researching_quantity: i64, researching_quantity_breakdown: Vec<ResearchPart>, }
    ResearchPart { name: String, quantity: i64, }
    Unfulfillable {
        total_unfulfillable_quantity: i64, customer_damaged_quantity: i64, warehouse_damaged_quantity: i64, distributor_damaged_quantity: i64,
        carrier_damaged_quantity: i64, defective_quantity: i64, expired_quantity: i64,
    }
    InventoryLevel {
        asin: String, fn_sku: String, seller_sku: String, condition: String, inventory_details: InventoryDetails, last_updated_time: MaybeTime,
        product_name: String, total_quantity: i64, stores: Texts,
    }
}

/// An order.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Order {
    pub(super) order_id: Token,
    pub(super) created_time: Time,
    pub(super) last_updated_time: Time,
    #[serde(default)]
    pub(super) order_aliases: Option<Vec<Alias>>,
    #[serde(default)]
    pub(super) programs: Option<Texts>,
    #[serde(default)]
    pub(super) associated_orders: Option<Vec<Association>>,
    #[serde(default)]
    pub(super) sales_channel: Option<SalesChannel>,
    #[serde(default)]
    pub(super) recipient: Option<Recipient>,
    #[serde(default)]
    pub(super) proceeds: Option<Proceeds>,
    #[serde(default)]
    pub(super) payment: Option<Payment>,
    #[serde(default)]
    pub(super) tax: Option<Tax>,
    #[serde(default)]
    pub(super) fulfillment: Option<Fulfillment>,
    #[serde(default)]
    pub(super) order_items: Option<Vec<Item>>,
    #[serde(default)]
    pub(super) packages: Option<Vec<Package>>,
}

/// An order item.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Item {
    pub(super) order_item_id: Token,
    #[serde(default)]
    pub(super) quantity_ordered: Option<i64>,
    #[serde(default)]
    pub(super) measurement: Option<Measurement>,
    #[serde(default)]
    pub(super) associated_order_items: Option<Vec<ItemAssociation>>,
    #[serde(default)]
    pub(super) programs: Option<Texts>,
    #[serde(default)]
    pub(super) product: Option<Product>,
    #[serde(default)]
    pub(super) proceeds: Option<ItemProceeds>,
    #[serde(default)]
    pub(super) expense: Option<Expense>,
    #[serde(default)]
    pub(super) promotion: Option<Promotion>,
    #[serde(default)]
    pub(super) cancellation: Option<Cancellation>,
    #[serde(default)]
    pub(super) fulfillment: Option<ItemFulfillment>,
    #[serde(default)]
    pub(super) tax: Option<ItemTax>,
}

/// A package.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Package {
    pub(super) package_reference_id: Token,
    #[serde(default)]
    pub(super) created_time: Option<MaybeTime>,
    #[serde(default)]
    pub(super) package_status: Option<PackageStatus>,
    #[serde(default)]
    pub(super) carrier: Option<String>,
    #[serde(default)]
    pub(super) ship_time: Option<MaybeTime>,
    #[serde(default)]
    pub(super) shipping_service: Option<String>,
    #[serde(default)]
    pub(super) package_items: Option<Vec<PackageItem>>,
}
