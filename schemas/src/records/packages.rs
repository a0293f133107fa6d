//! The row of a package.

use std::sync::Arc;

use super::{Text, kind_row};
use crate::envelope::Attribution;
use crate::ids::EntityToken;
use crate::time::Timestamp;

kind_row!(
    /// One row per package, without its tracking number.
    PackageRow = "Packages" {
        /// where the record came from
        attribution: Arc<Attribution>,
        /// lastUpdatedTime of the order's version, ms since 1970
        source_version: i64,
        /// pseudonym of the order
        order_token: EntityToken,
        /// pseudonym of the package
        package_token: EntityToken,
        /// PENDING, IN_TRANSIT, SHIPPED, DELIVERED, CANCELLED, UNDELIVERABLE
        status: Option<Text>,
        /// detailedStatus, e.g. OUT_FOR_DELIVERY
        detailed_status: Option<Text>,
        /// carrier
        carrier: Option<Text>,
        /// shippingService
        shipping_service: Option<Text>,
        /// when the package was created
        created_at: Option<Timestamp>,
        /// when it was handed to the carrier
        shipped_at: Option<Timestamp>,
        /// pseudonyms of the items in it
        item_tokens: Vec<EntityToken>,
        /// units of each item in it, parallel
        item_quantities: Vec<i64>,
    }
);
