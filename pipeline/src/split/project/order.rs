//! An order and its packages.

use std::sync::Arc;

use sunder_schemas::envelope::Attribution;
use sunder_schemas::ids::EntityToken;
use sunder_schemas::outcome::DeadLetterReason;
use sunder_schemas::records::{OrderRow, PackageRow, StateRecord};

use super::{MoneyText, Parts, Unfit, item, money, needed, window};
use crate::split::walk::{Fit, Walk};

/// The rows of the order in `clear`: its own, its items', its packages'.
pub(super) fn rows(clear: &[u8], attribution: &Arc<Attribution>, version: i64, entity: EntityToken) -> Fit<Vec<StateRecord>> {
    let mut row = OrderRow::blank(Arc::clone(attribution), version);
    let (mut items, mut packages) = (Vec::new(), Vec::new());
    let (mut id, mut created, mut updated) = (None, None, None);
    Walk::whole(clear, |walk, name| match name {
        "orderId" => walk.token(&mut id),
        "createdTime" => walk.time(&mut created),
        "lastUpdatedTime" => walk.time(&mut updated),
        "programs" => walk.texts(&mut row.programs),
        "orderAliases" => walk.objects(|walk| {
            let mut ty = None;
            walk.only("aliasType", |walk| walk.text(&mut ty))?;
            row.alias_types.extend(ty);
            Ok(())
        }),
        "associatedOrders" => walk.objects(|walk| association(walk, &mut row)),
        "salesChannel" => walk.object(|walk, name| match name {
            "channelName" => walk.text(&mut row.sales_channel),
            "marketplaceName" => walk.text(&mut row.marketplace_name),
            _ => walk.skip(),
        }),
        "recipient" => walk.only("deliveryAddress", |walk| address(walk, &mut row)),
        "proceeds" => proceeds(walk, &mut row),
        "payment" => walk.only("paymentExecutions", |walk| walk.objects(|walk| payment(walk, &mut row))),
        "tax" => tax(walk, &mut row),
        "fulfillment" => fulfillment(walk, &mut row),
        "orderItems" => walk.objects(|walk| {
            let item = item::row(walk, attribution, version, entity)?;
            row.item_tokens.push(item.order_item_token);
            items.push(StateRecord::OrderItem(item));
            Ok(())
        }),
        "packages" => walk.objects(|walk| {
            let package = package(walk, attribution, version, entity)?;
            row.package_tokens.push(package.package_token);
            packages.push(StateRecord::Package(package));
            Ok(())
        }),
        _ => walk.skip(),
    })?;
    (row.order_token, row.created_at, row.updated_at) = (needed(id)?, needed(created)?, needed(updated)?);
    if row.order_token != entity {
        return Err(Unfit::whole(DeadLetterReason::KeyMismatch));
    }
    row.item_count = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let mut rows = Vec::with_capacity(1 + items.len() + packages.len());
    rows.push(StateRecord::Order(row));
    rows.append(&mut items);
    rows.append(&mut packages);
    Ok(rows)
}

fn association(walk: &mut Walk<'_>, row: &mut OrderRow) -> Fit<()> {
    let (mut order, mut ty) = (None, None);
    walk.object(|walk, name| match name {
        "orderId" => walk.token(&mut order),
        "associationType" => walk.text(&mut ty),
        _ => walk.skip(),
    })?;
    if let Some(order) = order {
        row.associated_order_tokens.push(order);
        row.association_types.push(ty.unwrap_or_default());
    }
    Ok(())
}

fn address(walk: &mut Walk<'_>, row: &mut OrderRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "stateOrRegion" => walk.text(&mut row.ship_state_or_region),
        "countryCode" => walk.text(&mut row.ship_country_code),
        "addressType" => walk.text(&mut row.address_type),
        _ => walk.skip(),
    })
}

fn proceeds(walk: &mut Walk<'_>, row: &mut OrderRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "grandTotal" => money(walk, &mut row.total_amount, &mut row.total_currency),
        "breakdowns" => {
            let mut parts = Parts {
                types: &mut row.proceeds_types,
                subtypes: None,
                statuses: Some(&mut row.proceeds_statuses),
                amounts: &mut row.proceeds_amounts,
                currencies: &mut row.proceeds_currencies,
            };
            walk.objects(|walk| parts.read(walk))
        }
        _ => walk.skip(),
    })
}

fn payment(walk: &mut Walk<'_>, row: &mut OrderRow) -> Fit<()> {
    let (mut method, mut amount, mut acquirer) = (None, MoneyText::default(), None);
    walk.object(|walk, name| match name {
        "paymentMethod" => walk.text(&mut method),
        "paymentAmount" => amount.read(walk),
        "acquirerId" => walk.text(&mut acquirer),
        _ => walk.skip(),
    })?;
    row.payment_methods.push(method.unwrap_or_default());
    row.payment_amounts.push(amount.amount.unwrap_or_default());
    row.payment_currencies.push(amount.currency.unwrap_or_default());
    row.payment_acquirer_ids.push(acquirer.unwrap_or_default());
    Ok(())
}

fn tax(walk: &mut Walk<'_>, row: &mut OrderRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "taxRegistrations" => walk.objects(|walk| {
            let (mut entity, mut registration) = (None, None);
            walk.object(|walk, name| match name {
                "entityType" => walk.text(&mut entity),
                "taxRegistrationType" => walk.text(&mut registration),
                _ => walk.skip(),
            })?;
            // A buyer's registration is sealed as a whole and leaves an empty object behind.
            if entity.is_some() || registration.is_some() {
                row.tax_entity_types.push(entity.unwrap_or_default());
                row.tax_registration_types.push(registration.unwrap_or_default());
            }
            Ok(())
        }),
        "taxInvoicing" => walk.object(|walk, name| match name {
            "buyerInvoicePreference" => walk.text(&mut row.buyer_invoice_preference),
            "invoiceStatus" => walk.text(&mut row.invoice_status),
            _ => walk.skip(),
        }),
        _ => walk.skip(),
    })
}

fn fulfillment(walk: &mut Walk<'_>, row: &mut OrderRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "fulfillmentStatus" => walk.text(&mut row.status),
        "fulfilledBy" => walk.text(&mut row.fulfilled_by),
        "fulfillmentServiceLevel" => walk.text(&mut row.service_level),
        "shipByWindow" => window(walk, &mut row.ship_by_earliest_at, &mut row.ship_by_latest_at),
        "deliverByWindow" => window(walk, &mut row.deliver_by_earliest_at, &mut row.deliver_by_latest_at),
        "labelPrintingWindow" => window(walk, &mut row.label_printing_earliest_at, &mut row.label_printing_latest_at),
        _ => walk.skip(),
    })
}

fn package(walk: &mut Walk<'_>, attribution: &Arc<Attribution>, version: i64, order: EntityToken) -> Fit<PackageRow> {
    let mut row = PackageRow::blank(Arc::clone(attribution), version);
    let mut id = None;
    walk.object(|walk, name| match name {
        "packageReferenceId" => walk.token(&mut id),
        "createdTime" => walk.time(&mut row.created_at),
        "packageStatus" => walk.object(|walk, name| match name {
            "status" => walk.text(&mut row.status),
            "detailedStatus" => walk.text(&mut row.detailed_status),
            _ => walk.skip(),
        }),
        "carrier" => walk.text(&mut row.carrier),
        "shipTime" => walk.time(&mut row.shipped_at),
        "shippingService" => walk.text(&mut row.shipping_service),
        "packageItems" => walk.objects(|walk| {
            let (mut item, mut quantity) = (None, None);
            walk.object(|walk, name| match name {
                "orderItemId" => walk.token(&mut item),
                "quantity" => walk.int(&mut quantity),
                _ => walk.skip(),
            })?;
            if let Some(item) = item {
                row.item_tokens.push(item);
                row.item_quantities.push(quantity.unwrap_or_default());
            }
            Ok(())
        }),
        _ => walk.skip(),
    })?;
    (row.order_token, row.package_token) = (order, needed(id)?);
    Ok(row)
}
