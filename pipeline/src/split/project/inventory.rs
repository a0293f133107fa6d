//! An inventory level.

use std::sync::Arc;

use sunder_schemas::envelope::Attribution;
use sunder_schemas::ids::EntityToken;
use sunder_schemas::records::InventoryLevelRow;

use crate::split::walk::{Fit, Walk};

/// The row of the level in `clear`.
pub(super) fn row(clear: &[u8], attribution: &Arc<Attribution>, version: i64, token: EntityToken) -> Fit<InventoryLevelRow> {
    let mut row = InventoryLevelRow::blank(Arc::clone(attribution), version);
    row.level_token = token;
    Walk::whole(clear, |walk, name| match name {
        "asin" => walk.text(&mut row.asin),
        "fnSku" => walk.text(&mut row.fnsku),
        "sellerSku" => walk.text(&mut row.sku),
        "condition" => walk.text(&mut row.condition),
        "inventoryDetails" => details(walk, &mut row),
        "lastUpdatedTime" => walk.time(&mut row.updated_at),
        "productName" => walk.text(&mut row.product_name),
        "totalQuantity" => walk.int(&mut row.total_quantity),
        "stores" => walk.texts(&mut row.stores),
        _ => walk.skip(),
    })?;
    Ok(row)
}

fn details(walk: &mut Walk<'_>, row: &mut InventoryLevelRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "fulfillableQuantity" => walk.int(&mut row.fulfillable_quantity),
        "inboundWorkingQuantity" => walk.int(&mut row.inbound_working_quantity),
        "inboundShippedQuantity" => walk.int(&mut row.inbound_shipped_quantity),
        "inboundReceivingQuantity" => walk.int(&mut row.inbound_receiving_quantity),
        "reservedQuantity" => walk.object(|walk, name| match name {
            "totalReservedQuantity" => walk.int(&mut row.reserved_total_quantity),
            "pendingCustomerOrderQuantity" => walk.int(&mut row.reserved_customer_order_quantity),
            "pendingTransshipmentQuantity" => walk.int(&mut row.reserved_transshipment_quantity),
            "fcProcessingQuantity" => walk.int(&mut row.reserved_processing_quantity),
            _ => walk.skip(),
        }),
        "researchingQuantity" => walk.object(|walk, name| match name {
            "totalResearchingQuantity" => walk.int(&mut row.researching_total_quantity),
            "researchingQuantityBreakdown" => walk.objects(|walk| research(walk, row)),
            _ => walk.skip(),
        }),
        "unfulfillableQuantity" => walk.object(|walk, name| match name {
            "totalUnfulfillableQuantity" => walk.int(&mut row.unfulfillable_total_quantity),
            "customerDamagedQuantity" => walk.int(&mut row.customer_damaged_quantity),
            "warehouseDamagedQuantity" => walk.int(&mut row.warehouse_damaged_quantity),
            "distributorDamagedQuantity" => walk.int(&mut row.distributor_damaged_quantity),
            "carrierDamagedQuantity" => walk.int(&mut row.carrier_damaged_quantity),
            "defectiveQuantity" => walk.int(&mut row.defective_quantity),
            "expiredQuantity" => walk.int(&mut row.expired_quantity),
            _ => walk.skip(),
        }),
        _ => walk.skip(),
    })
}

fn research(walk: &mut Walk<'_>, row: &mut InventoryLevelRow) -> Fit<()> {
    let (mut term, mut quantity) = (None, None);
    walk.object(|walk, name| match name {
        "name" => walk.text(&mut term),
        "quantity" => walk.int(&mut quantity),
        _ => walk.skip(),
    })?;
    // The three names are the model's closed list; of a name given twice the first counts.
    let place = match term.as_deref() {
        Some("researchingQuantityInShortTerm") => &mut row.researching_short_term_quantity,
        Some("researchingQuantityInMidTerm") => &mut row.researching_mid_term_quantity,
        Some("researchingQuantityInLongTerm") => &mut row.researching_long_term_quantity,
        _ => return Ok(()),
    };
    if place.is_none() {
        *place = quantity;
    }
    Ok(())
}
