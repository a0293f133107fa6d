//! An order item.

use std::sync::Arc;

use sunder_schemas::envelope::Attribution;
use sunder_schemas::ids::EntityToken;
use sunder_schemas::outcome::DeadLetterReason;
use sunder_schemas::records::{OrderItemRow, Text};

use super::{Parts, Unfit, money, needed, window};
use crate::split::walk::{Fit, Walk, parse_amount};

/// The row of the item that comes next, of the order `order`.
pub(super) fn row(walk: &mut Walk<'_>, attribution: &Arc<Attribution>, version: i64, order: EntityToken) -> Fit<OrderItemRow> {
    let mut row = OrderItemRow::blank(Arc::clone(attribution), version);
    let mut id = None;
    walk.object(|walk, name| match name {
        "orderItemId" => walk.token(&mut id),
        "quantityOrdered" => walk.int(&mut row.quantity),
        "measurement" => measurement(walk, &mut row),
        "associatedOrderItems" => walk.objects(|walk| association(walk, &mut row)),
        "programs" => walk.texts(&mut row.programs),
        "product" => product(walk, &mut row),
        "proceeds" => proceeds(walk, &mut row),
        "expense" => walk.only("pointsCost", |walk| walk.only("pointsGranted", |walk| points(walk, &mut row))),
        "promotion" => walk.only("breakdowns", |walk| {
            walk.objects(|walk| {
                let mut id = None;
                walk.only("promotionId", |walk| walk.text(&mut id))?;
                row.promotion_ids.extend(id);
                Ok(())
            })
        }),
        "cancellation" => walk.object(|walk, name| match name {
            "cancellationRequest" => walk.only("requester", |walk| walk.text(&mut row.cancellation_requester)),
            "cancellationExecution" => walk.object(|walk, name| match name {
                "cancelledBy" => walk.text(&mut row.cancelled_by),
                "cancelReason" => walk.text(&mut row.cancel_reason),
                _ => walk.skip(),
            }),
            _ => walk.skip(),
        }),
        "fulfillment" => fulfillment(walk, &mut row),
        "tax" => tax(walk, &mut row),
        _ => walk.skip(),
    })?;
    (row.order_token, row.order_item_token) = (order, needed(id)?);
    Ok(row)
}

fn measurement(walk: &mut Walk<'_>, row: &mut OrderItemRow) -> Fit<()> {
    let mut value = None;
    measured(walk, &mut row.measurement_unit, &mut value)?;
    row.measurement_value = value.map(|digits| parse_amount(digits).ok_or(Unfit::whole(DeadLetterReason::BadField))).transpose()?;
    Ok(())
}

fn measured<'j>(walk: &mut Walk<'j>, unit: &mut Option<Text>, value: &mut Option<&'j str>) -> Fit<()> {
    walk.object(|walk, name| match name {
        "unit" => walk.text(unit),
        "value" => walk.number(value),
        _ => walk.skip(),
    })
}

fn association(walk: &mut Walk<'_>, row: &mut OrderItemRow) -> Fit<()> {
    let (mut order, mut item, mut ty) = (None, None, None);
    walk.object(|walk, name| match name {
        "orderId" => walk.token(&mut order),
        "orderItemId" => walk.token(&mut item),
        "associationType" => walk.text(&mut ty),
        _ => walk.skip(),
    })?;
    if let (Some(order), Some(item)) = (order, item) {
        row.associated_order_tokens.push(order);
        row.associated_item_tokens.push(item);
        row.association_types.push(ty.unwrap_or_default());
    }
    Ok(())
}

fn product(walk: &mut Walk<'_>, row: &mut OrderItemRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "asin" => walk.text(&mut row.asin),
        "title" => walk.text(&mut row.title),
        "sellerSku" => walk.text(&mut row.sku),
        "condition" => walk.object(|walk, name| match name {
            "conditionType" => walk.text(&mut row.condition_type),
            "conditionSubtype" => walk.text(&mut row.condition_subtype),
            "conditionNote" => walk.text(&mut row.condition_note),
            _ => walk.skip(),
        }),
        "price" => walk.object(|walk, name| match name {
            "unitPrice" => money(walk, &mut row.unit_price_amount, &mut row.unit_price_currency),
            "priceDesignation" => walk.text(&mut row.price_designation),
            _ => walk.skip(),
        }),
        _ => walk.skip(),
    })
}

fn proceeds(walk: &mut Walk<'_>, row: &mut OrderItemRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "proceedsTotal" => money(walk, &mut row.item_total_amount, &mut row.item_total_currency),
        "breakdowns" => {
            let mut parts = Parts {
                types: &mut row.proceeds_types,
                subtypes: Some(&mut row.proceeds_subtypes),
                statuses: None,
                amounts: &mut row.proceeds_amounts,
                currencies: &mut row.proceeds_currencies,
            };
            walk.objects(|walk| parts.read(walk))
        }
        _ => walk.skip(),
    })
}

fn points(walk: &mut Walk<'_>, row: &mut OrderItemRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "pointsNumber" => walk.int(&mut row.points_granted),
        "pointsMonetaryValue" => money(walk, &mut row.points_value_amount, &mut row.points_value_currency),
        _ => walk.skip(),
    })
}

fn fulfillment(walk: &mut Walk<'_>, row: &mut OrderItemRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "quantityFulfilled" => walk.int(&mut row.quantity_fulfilled),
        "quantityUnfulfilled" => walk.int(&mut row.quantity_unfulfilled),
        "picking" => walk.only("substitutionPreference", |walk| {
            walk.object(|walk, name| match name {
                "substitutionType" => walk.text(&mut row.substitution_type),
                "substitutionOptions" => walk.objects(|walk| substitution(walk, row)),
                _ => walk.skip(),
            })
        }),
        "packing" => walk.object(|walk, name| match name {
            "giftOption" => walk.only("giftWrapLevel", |walk| walk.text(&mut row.gift_wrap_level)),
            "serialNumberRequirement" => walk.only("requirementType", |walk| walk.text(&mut row.serial_number_requirement)),
            _ => walk.skip(),
        }),
        "shipping" => shipping(walk, row),
        _ => walk.skip(),
    })
}

fn substitution(walk: &mut Walk<'_>, row: &mut OrderItemRow) -> Fit<()> {
    let (mut asin, mut sku, mut title, mut quantity, mut unit, mut value) = (None, None, None, None, None, None);
    walk.object(|walk, name| match name {
        "asin" => walk.text(&mut asin),
        "quantityOrdered" => walk.int(&mut quantity),
        "sellerSku" => walk.text(&mut sku),
        "title" => walk.text(&mut title),
        "measurement" => measured(walk, &mut unit, &mut value),
        _ => walk.skip(),
    })?;
    row.substitution_asins.push(asin.unwrap_or_default());
    row.substitution_skus.push(sku.unwrap_or_default());
    row.substitution_titles.push(title.unwrap_or_default());
    row.substitution_quantities.push(quantity.unwrap_or_default());
    row.substitution_measurement_units.push(unit.unwrap_or_default());
    row.substitution_measurement_values.push(value.unwrap_or_default().into());
    Ok(())
}

fn shipping(walk: &mut Walk<'_>, row: &mut OrderItemRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "scheduledDeliveryWindow" => window(walk, &mut row.scheduled_delivery_earliest_at, &mut row.scheduled_delivery_latest_at),
        "shippingConstraints" => walk.object(|walk, name| match name {
            "palletDelivery" => walk.text(&mut row.pallet_delivery),
            "cashOnDelivery" => walk.text(&mut row.cash_on_delivery),
            "signatureConfirmation" => walk.text(&mut row.signature_confirmation),
            "recipientIdentityVerification" => walk.text(&mut row.recipient_identity_verification),
            "recipientAgeVerification" => walk.text(&mut row.recipient_age_verification),
            _ => walk.skip(),
        }),
        "internationalShipping" => walk.only("iossNumber", |walk| walk.text(&mut row.ioss_number)),
        _ => walk.skip(),
    })
}

fn tax(walk: &mut Walk<'_>, row: &mut OrderItemRow) -> Fit<()> {
    walk.object(|walk, name| match name {
        "taxCalculationBreakdowns" => walk.objects(|walk| {
            let mut scheme = None;
            walk.only("reportingScheme", |walk| walk.text(&mut scheme))?;
            row.tax_reporting_schemes.extend(scheme);
            Ok(())
        }),
        "taxCollections" => walk.objects(|walk| {
            let (mut model, mut party) = (None, None);
            walk.object(|walk, name| match name {
                "model" => walk.text(&mut model),
                "responsibleParty" => walk.text(&mut party),
                _ => walk.skip(),
            })?;
            row.tax_collection_models.push(model.unwrap_or_default());
            row.tax_responsible_parties.push(party.unwrap_or_default());
            Ok(())
        }),
        _ => walk.skip(),
    })
}
