//! The row of an inventory level.

use std::sync::Arc;

use super::{Text, kind_row};
use crate::envelope::Attribution;
use crate::ids::EntityToken;
use crate::time::Timestamp;

kind_row!(
    /// One row per seller, marketplace, SKU, FNSKU and condition: stock at Amazon, in units.
    InventoryLevelRow = "InventoryLevels" {
        /// where the record came from
        attribution: Arc<Attribution>,
        /// lastUpdatedTime, ms since 1970; the collection window's start where the source gives none
        source_version: i64,
        /// pseudonym of seller, marketplace, SKU, FNSKU and condition
        level_token: EntityToken,
        /// seller's stock keeping unit
        sku: Option<Text>,
        /// Amazon's fulfilment network SKU
        fnsku: Option<Text>,
        /// Amazon's standard identification number
        asin: Option<Text>,
        /// condition, e.g. NewItem
        condition: Option<Text>,
        /// product name
        product_name: Option<Text>,
        /// units in all
        total_quantity: Option<i64>,
        /// units that can be sold
        fulfillable_quantity: Option<i64>,
        /// units announced
        inbound_working_quantity: Option<i64>,
        /// units on the way
        inbound_shipped_quantity: Option<i64>,
        /// units being received
        inbound_receiving_quantity: Option<i64>,
        /// units reserved in all
        reserved_total_quantity: Option<i64>,
        /// units reserved for customers' orders
        reserved_customer_order_quantity: Option<i64>,
        /// units moving between fulfilment centres
        reserved_transshipment_quantity: Option<i64>,
        /// units sidelined at fulfilment centres
        reserved_processing_quantity: Option<i64>,
        /// misplaced or damaged units under research in all
        researching_total_quantity: Option<i64>,
        /// under research for 1 to 10 days
        researching_short_term_quantity: Option<i64>,
        /// under research for 11 to 20 days
        researching_mid_term_quantity: Option<i64>,
        /// under research for 21 days or longer
        researching_long_term_quantity: Option<i64>,
        /// units that cannot be sold in all
        unfulfillable_total_quantity: Option<i64>,
        /// damaged by customers
        customer_damaged_quantity: Option<i64>,
        /// damaged in the warehouse
        warehouse_damaged_quantity: Option<i64>,
        /// damaged by the distributor
        distributor_damaged_quantity: Option<i64>,
        /// damaged by the carrier
        carrier_damaged_quantity: Option<i64>,
        /// defective units
        defective_quantity: Option<i64>,
        /// expired units
        expired_quantity: Option<i64>,
        /// when Amazon last changed the level
        updated_at: Option<Timestamp>,
        /// seller's stores that hold it
        stores: Vec<Text>,
    }
);
