//! The row of an order item.

use std::sync::Arc;

use rust_decimal::Decimal;

use super::{Text, kind_row};
use crate::envelope::Attribution;
use crate::ids::EntityToken;
use crate::time::Timestamp;

kind_row!(
    /// One row per order item.
    OrderItemRow = "OrderItems" {
        /// where the record came from
        attribution: Arc<Attribution>,
        /// lastUpdatedTime of the order's version, ms since 1970
        source_version: i64,
        /// pseudonym of the order
        order_token: EntityToken,
        /// pseudonym of the order item
        order_item_token: EntityToken,
        /// seller's stock keeping unit
        sku: Option<Text>,
        /// Amazon's standard identification number
        asin: Option<Text>,
        /// product title
        title: Option<Text>,
        /// units ordered
        quantity: Option<i64>,
        /// units shipped
        quantity_fulfilled: Option<i64>,
        /// units still to ship
        quantity_unfulfilled: Option<i64>,
        /// unit of a measured item, e.g. KILOGRAMS
        measurement_unit: Option<Text>,
        /// amount in measurement_unit
        measurement_value: Option<Decimal>,
        /// price of one unit
        unit_price_amount: Option<Decimal>,
        /// ISO 4217 code of unit_price_amount
        unit_price_currency: Option<Text>,
        /// priceDesignation, e.g. BUSINESS_PRICE
        price_designation: Option<Text>,
        /// proceedsTotal of the item
        item_total_amount: Option<Decimal>,
        /// ISO 4217 code of item_total_amount
        item_total_currency: Option<Text>,
        /// type of each part of the proceeds, e.g. ITEM, SHIPPING, TAX, DISCOUNT
        proceeds_types: Vec<Text>,
        /// subtype of each part, parallel; empty for the part's own subtotal
        proceeds_subtypes: Vec<Text>,
        /// amount of each part, digit for digit, parallel
        proceeds_amounts: Vec<Text>,
        /// ISO 4217 code of each part, parallel
        proceeds_currencies: Vec<Text>,
        /// points granted
        points_granted: Option<i64>,
        /// monetary value of the points granted
        points_value_amount: Option<Decimal>,
        /// ISO 4217 code of points_value_amount
        points_value_currency: Option<Text>,
        /// conditionType, e.g. NEW
        condition_type: Option<Text>,
        /// conditionSubtype
        condition_subtype: Option<Text>,
        /// the seller's own note on the condition
        condition_note: Option<Text>,
        /// programs of the item, e.g. TRANSPARENCY
        programs: Vec<Text>,
        /// promotions applied
        promotion_ids: Vec<Text>,
        /// who asked to cancel
        cancellation_requester: Option<Text>,
        /// who cancelled
        cancelled_by: Option<Text>,
        /// reason code of the cancellation as executed
        cancel_reason: Option<Text>,
        /// gift wrap level
        gift_wrap_level: Option<Text>,
        /// whether serial numbers must be given
        serial_number_requirement: Option<Text>,
        /// substitutionType of a grocery item
        substitution_type: Option<Text>,
        /// ASIN of each substitution option
        substitution_asins: Vec<Text>,
        /// SKU of each substitution option, parallel
        substitution_skus: Vec<Text>,
        /// title of each substitution option, parallel
        substitution_titles: Vec<Text>,
        /// units of each substitution option, parallel; 0 where not said
        substitution_quantities: Vec<i64>,
        /// unit of each measured substitution option, parallel
        substitution_measurement_units: Vec<Text>,
        /// amount of each measured substitution option, digit for digit, parallel
        substitution_measurement_values: Vec<Text>,
        /// start of the scheduled delivery
        scheduled_delivery_earliest_at: Option<Timestamp>,
        /// end of the scheduled delivery
        scheduled_delivery_latest_at: Option<Timestamp>,
        /// MANDATORY where it must go by pallet
        pallet_delivery: Option<Text>,
        /// MANDATORY where it is paid on delivery
        cash_on_delivery: Option<Text>,
        /// MANDATORY where a signature is needed
        signature_confirmation: Option<Text>,
        /// MANDATORY where the recipient's identity is checked
        recipient_identity_verification: Option<Text>,
        /// MANDATORY where the recipient's age is checked
        recipient_age_verification: Option<Text>,
        /// IOSS number of the marketplace for imports into the EU
        ioss_number: Option<Text>,
        /// reporting schemes of the tax
        tax_reporting_schemes: Vec<Text>,
        /// model of each tax collection
        tax_collection_models: Vec<Text>,
        /// responsible party of each tax collection, parallel
        tax_responsible_parties: Vec<Text>,
        /// pseudonyms of the orders of associated items
        associated_order_tokens: Vec<EntityToken>,
        /// pseudonyms of the associated items, parallel
        associated_item_tokens: Vec<EntityToken>,
        /// kind of each association, parallel
        association_types: Vec<Text>,
    }
);
