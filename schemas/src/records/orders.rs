//! The row of an order.

use std::sync::Arc;

use rust_decimal::Decimal;

use super::{Text, kind_row};
use crate::envelope::Attribution;
use crate::ids::EntityToken;
use crate::time::Timestamp;

kind_row!(
    /// One row per order: its latest non-personal state.
    OrderRow = "Orders" {
        /// where the record came from
        attribution: Arc<Attribution>,
        /// lastUpdatedTime of this version, ms since 1970; a lower one never replaces a higher one
        source_version: i64,
        /// pseudonym of the order; its identity in every table
        order_token: EntityToken,
        /// fulfillmentStatus: PENDING, UNSHIPPED, PARTIALLY_SHIPPED, SHIPPED, CANCELLED, ...
        status: Option<Text>,
        /// when the order was placed
        created_at: Timestamp,
        /// when Amazon last changed the order
        updated_at: Timestamp,
        /// channelName, e.g. AMAZON
        sales_channel: Option<Text>,
        /// marketplaceName, e.g. Amazon.de
        marketplace_name: Option<Text>,
        /// who ships it: AMAZON or MERCHANT
        fulfilled_by: Option<Text>,
        /// fulfillmentServiceLevel, e.g. STANDARD
        service_level: Option<Text>,
        /// start of the window to ship in
        ship_by_earliest_at: Option<Timestamp>,
        /// end of the window to ship in
        ship_by_latest_at: Option<Timestamp>,
        /// start of the promised delivery window
        deliver_by_earliest_at: Option<Timestamp>,
        /// end of the promised delivery window
        deliver_by_latest_at: Option<Timestamp>,
        /// start of the window to print labels in
        label_printing_earliest_at: Option<Timestamp>,
        /// end of the window to print labels in
        label_printing_latest_at: Option<Timestamp>,
        /// grandTotal
        total_amount: Option<Decimal>,
        /// ISO 4217 code of total_amount
        total_currency: Option<Text>,
        /// programs of the order, e.g. PRIME, AMAZON_BUSINESS
        programs: Vec<Text>,
        /// state or region of the delivery address
        ship_state_or_region: Option<Text>,
        /// ISO 3166-1 alpha-2 country of the delivery address
        ship_country_code: Option<Text>,
        /// RESIDENTIAL or COMMERCIAL
        address_type: Option<Text>,
        /// kinds of the order's aliases; the aliases themselves are sealed
        alias_types: Vec<Text>,
        /// pseudonyms of associated orders
        associated_order_tokens: Vec<EntityToken>,
        /// kind of each association, parallel to associated_order_tokens
        association_types: Vec<Text>,
        /// type of each part of the proceeds
        proceeds_types: Vec<Text>,
        /// status of each part of the proceeds, parallel; empty where there is none
        proceeds_statuses: Vec<Text>,
        /// amount of each part of the proceeds, digit for digit, parallel
        proceeds_amounts: Vec<Text>,
        /// ISO 4217 code of each part of the proceeds, parallel
        proceeds_currencies: Vec<Text>,
        /// payment methods, e.g. CashOnDelivery
        payment_methods: Vec<Text>,
        /// amount paid by each method, digit for digit, parallel; empty where there is none
        payment_amounts: Vec<Text>,
        /// ISO 4217 code of each payment, parallel
        payment_currencies: Vec<Text>,
        /// acquirer of each payment, parallel
        payment_acquirer_ids: Vec<Text>,
        /// entityType of each tax registration that is the seller's or Amazon's
        tax_entity_types: Vec<Text>,
        /// taxRegistrationType of each of them, parallel
        tax_registration_types: Vec<Text>,
        /// buyerInvoicePreference: INDIVIDUAL or BUSINESS
        buyer_invoice_preference: Option<Text>,
        /// invoiceStatus
        invoice_status: Option<Text>,
        /// number of order items
        item_count: i64,
        /// pseudonyms of the order's items: its children in order_items
        item_tokens: Vec<EntityToken>,
        /// pseudonyms of the order's packages: its children in packages
        package_tokens: Vec<EntityToken>,
    }
);
