//! The row of an order item.

use std::sync::Arc;

use rust_decimal::Decimal;

use super::row;
use crate::envelope::Attribution;
use crate::ids::EntityToken;
use crate::time::Timestamp;

row!(
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
        sku: Option<String>,
        /// Amazon's standard identification number
        asin: Option<String>,
        /// product title
        title: Option<String>,
        /// units ordered
        quantity: Option<i64>,
        /// units shipped
        quantity_fulfilled: Option<i64>,
        /// units still to ship
        quantity_unfulfilled: Option<i64>,
        /// unit of a measured item, e.g. KILOGRAMS
        measurement_unit: Option<String>,
        /// amount in measurement_unit
        measurement_value: Option<Decimal>,
        /// price of one unit
        unit_price_amount: Option<Decimal>,
        /// ISO 4217 code of unit_price_amount
        unit_price_currency: Option<String>,
        /// priceDesignation, e.g. BUSINESS_PRICE
        price_designation: Option<String>,
        /// proceedsTotal of the item
        item_total_amount: Option<Decimal>,
        /// ISO 4217 code of item_total_amount
        item_total_currency: Option<String>,
        /// type of each part of the proceeds, e.g. ITEM, SHIPPING, TAX, DISCOUNT
        proceeds_types: Vec<String>,
        /// subtype of each part, parallel; empty for the part's own subtotal
        proceeds_subtypes: Vec<String>,
        /// amount of each part, digit for digit, parallel
        proceeds_amounts: Vec<String>,
        /// ISO 4217 code of each part, parallel
        proceeds_currencies: Vec<String>,
        /// points granted
        points_granted: Option<i64>,
        /// monetary value of the points granted
        points_value_amount: Option<Decimal>,
        /// ISO 4217 code of points_value_amount
        points_value_currency: Option<String>,
        /// conditionType, e.g. NEW
        condition_type: Option<String>,
        /// conditionSubtype
        condition_subtype: Option<String>,
        /// the seller's own note on the condition
        condition_note: Option<String>,
        /// programs of the item, e.g. TRANSPARENCY
        programs: Vec<String>,
        /// promotions applied
        promotion_ids: Vec<String>,
        /// who asked to cancel
        cancellation_requester: Option<String>,
        /// who cancelled
        cancelled_by: Option<String>,
        /// reason code of the cancellation as executed
        cancel_reason: Option<String>,
        /// gift wrap level
        gift_wrap_level: Option<String>,
        /// whether serial numbers must be given
        serial_number_requirement: Option<String>,
        /// substitutionType of a grocery item
        substitution_type: Option<String>,
        /// ASIN of each substitution option
        substitution_asins: Vec<String>,
        /// SKU of each substitution option, parallel
        substitution_skus: Vec<String>,
        /// title of each substitution option, parallel
        substitution_titles: Vec<String>,
        /// units of each substitution option, parallel; 0 where not said
        substitution_quantities: Vec<i64>,
        /// unit of each measured substitution option, parallel
        substitution_measurement_units: Vec<String>,
        /// amount of each measured substitution option, digit for digit, parallel
        substitution_measurement_values: Vec<String>,
        /// start of the scheduled delivery
        scheduled_delivery_earliest_at: Option<Timestamp>,
        /// end of the scheduled delivery
        scheduled_delivery_latest_at: Option<Timestamp>,
        /// MANDATORY where it must go by pallet
        pallet_delivery: Option<String>,
        /// MANDATORY where it is paid on delivery
        cash_on_delivery: Option<String>,
        /// MANDATORY where a signature is needed
        signature_confirmation: Option<String>,
        /// MANDATORY where the recipient's identity is checked
        recipient_identity_verification: Option<String>,
        /// MANDATORY where the recipient's age is checked
        recipient_age_verification: Option<String>,
        /// IOSS number of the marketplace for imports into the EU
        ioss_number: Option<String>,
        /// reporting schemes of the tax
        tax_reporting_schemes: Vec<String>,
        /// model of each tax collection
        tax_collection_models: Vec<String>,
        /// responsible party of each tax collection, parallel
        tax_responsible_parties: Vec<String>,
        /// pseudonyms of the orders of associated items
        associated_order_tokens: Vec<EntityToken>,
        /// pseudonyms of the associated items, parallel
        associated_item_tokens: Vec<EntityToken>,
        /// kind of each association, parallel
        association_types: Vec<String>,
    }
);
