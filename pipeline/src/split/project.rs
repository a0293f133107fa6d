//! From a raw event to typed rows and sealed records, without opening anything. Pure.
//!
//! Invariants: every row carries the event's attribution and version; sealed blocks are moved, not read; an error names a code and a
//! place, never a value.

use std::sync::Arc;

use rust_decimal::Decimal;
use serde_json::error::Category;
use serde_json::value::RawValue;
use sunder_schemas::class::Family;
use sunder_schemas::envelope::{Attribution, RawEvent};
use sunder_schemas::ids::EntityToken;
use sunder_schemas::outcome::DeadLetterReason;
use sunder_schemas::records::{InventoryLevelRow, OrderItemRow, OrderRow, PackageRow, PiiRecord, StateRecord};
use sunder_schemas::time::Timestamp;

use super::model::{self, Breakdown, InventoryLevel, Item, MaybeTime, Money, MoneyText, Order, Package, Window};

/// What one raw event becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projected {
    /// The rows: the entity's own first, then its children's.
    pub rows: Vec<StateRecord>,
    /// The sealed groups.
    pub pii: Vec<PiiRecord>,
}

/// A raw event that no rows can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at line {line}, column {column} of the clear part")]
pub struct Unfit {
    /// The code.
    pub reason: DeadLetterReason,
    /// Line, from 1; 0 where no place in the clear part is meant.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

impl Unfit {
    /// An event that breaks `reason` as a whole.
    #[must_use]
    pub const fn whole(reason: DeadLetterReason) -> Self {
        Self { reason, line: 0, column: 0 }
    }

    /// Takes code and place of serde's error and drops its text, which quotes values.
    fn of(error: &serde_json::Error) -> Self {
        let reason = match error.classify() {
            Category::Data => DeadLetterReason::BadField,
            Category::Io | Category::Syntax | Category::Eof => DeadLetterReason::BadClearPart,
        };
        Self { reason, line: error.line(), column: error.column() }
    }
}

/// Makes rows and sealed records of `event`.
///
/// # Errors
/// [`Unfit`].
pub fn project(event: RawEvent) -> Result<Projected, Unfit> {
    let attribution = Arc::new(event.attribution);
    let (entity, version) = (event.entity.token, event.source_version);
    let rows = match event.entity.family {
        Family::Orders => order_rows(&event.clear, &attribution, version, entity)?,
        Family::Inventory => {
            let level: InventoryLevel = serde_json::from_str(text(&event.clear)?).map_err(|e| Unfit::of(&e))?;
            vec![StateRecord::InventoryLevel(level_row(level, &attribution, version, entity))]
        }
    };
    let mut pii = Vec::with_capacity(event.sealed.len());
    if !event.sealed.is_empty() {
        // A block without the date of its key's end could not be answered for.
        let (deadline, rule) = event.deadline.ok_or(Unfit::whole(DeadLetterReason::BadField))?;
        pii.extend(event.sealed.into_iter().map(|sealed| PiiRecord {
            attribution: Arc::clone(&attribution),
            source_version: version,
            entity_token: entity,
            field_group: sealed.group,
            key_id: sealed.block.key(),
            classification: event.classification.clone(),
            deadline,
            deadline_rule: rule.clone(),
            block: sealed.block,
        }));
    }
    Ok(Projected { rows, pii })
}

/// The clear part as text: looked at once as a whole, not string by string.
fn text(clear: &[u8]) -> Result<&str, Unfit> {
    std::str::from_utf8(clear).map_err(|_| Unfit::whole(DeadLetterReason::BadClearPart))
}

fn order_rows(clear: &[u8], attribution: &Arc<Attribution>, version: i64, entity: EntityToken) -> Result<Vec<StateRecord>, Unfit> {
    let mut order: Order = serde_json::from_str(text(clear)?).map_err(|e| Unfit::of(&e))?;
    if order.order_id.0 != entity {
        return Err(Unfit::whole(DeadLetterReason::KeyMismatch));
    }
    let items = order.order_items.take().unwrap_or_default();
    let packages = order.packages.take().unwrap_or_default();
    let mut rows = Vec::with_capacity(1 + items.len() + packages.len());
    let item_tokens = items.iter().map(|item| item.order_item_id.0).collect();
    let package_tokens = packages.iter().map(|package| package.package_reference_id.0).collect();
    rows.push(StateRecord::Order(order_row(order, attribution, version, item_tokens, package_tokens)));
    for item in items {
        rows.push(StateRecord::OrderItem(item_row(item, attribution, version, entity)?));
    }
    rows.extend(packages.into_iter().map(|package| StateRecord::Package(package_row(package, attribution, version, entity))));
    Ok(rows)
}

fn order_row(
    order: Order,
    attribution: &Arc<Attribution>,
    version: i64,
    item_tokens: Vec<EntityToken>,
    package_tokens: Vec<EntityToken>,
) -> OrderRow {
    let channel = order.sales_channel.unwrap_or_default();
    let address = order.recipient.and_then(|r| r.delivery_address).unwrap_or_default();
    let fulfillment = order.fulfillment.unwrap_or_default();
    let proceeds = order.proceeds.unwrap_or_default();
    let tax = order.tax.unwrap_or_default();
    let invoicing = tax.tax_invoicing.unwrap_or_default();
    let (ship_by_earliest_at, ship_by_latest_at) = window(fulfillment.ship_by_window);
    let (deliver_by_earliest_at, deliver_by_latest_at) = window(fulfillment.deliver_by_window);
    let (label_printing_earliest_at, label_printing_latest_at) = window(fulfillment.label_printing_window);
    let (total_amount, total_currency) = money(proceeds.grand_total);
    let parts = Parts::of(proceeds.breakdowns);
    let mut row = OrderRow {
        attribution: Arc::clone(attribution),
        source_version: version,
        order_token: order.order_id.0,
        status: fulfillment.fulfillment_status,
        created_at: order.created_time.0,
        updated_at: order.last_updated_time.0,
        sales_channel: channel.channel_name,
        marketplace_name: channel.marketplace_name,
        fulfilled_by: fulfillment.fulfilled_by,
        service_level: fulfillment.fulfillment_service_level,
        ship_by_earliest_at,
        ship_by_latest_at,
        deliver_by_earliest_at,
        deliver_by_latest_at,
        label_printing_earliest_at,
        label_printing_latest_at,
        total_amount,
        total_currency,
        programs: order.programs.unwrap_or_default().0,
        ship_state_or_region: address.state_or_region,
        ship_country_code: address.country_code,
        address_type: address.address_type,
        alias_types: order.order_aliases.unwrap_or_default().into_iter().filter_map(|alias| alias.alias_type).collect(),
        associated_order_tokens: Vec::new(),
        association_types: Vec::new(),
        proceeds_types: parts.types,
        proceeds_statuses: parts.statuses,
        proceeds_amounts: parts.amounts,
        proceeds_currencies: parts.currencies,
        payment_methods: Vec::new(),
        payment_amounts: Vec::new(),
        payment_currencies: Vec::new(),
        payment_acquirer_ids: Vec::new(),
        tax_entity_types: Vec::new(),
        tax_registration_types: Vec::new(),
        buyer_invoice_preference: invoicing.buyer_invoice_preference,
        invoice_status: invoicing.invoice_status,
        item_count: i64::try_from(item_tokens.len()).unwrap_or(i64::MAX),
        item_tokens,
        package_tokens,
    };
    for association in order.associated_orders.unwrap_or_default() {
        let Some(token) = association.order_id else { continue };
        row.associated_order_tokens.push(token.0);
        row.association_types.push(association.association_type.unwrap_or_default());
    }
    for payment in order.payment.and_then(|p| p.payment_executions).unwrap_or_default() {
        let amount = payment.payment_amount.unwrap_or_default();
        row.payment_methods.push(payment.payment_method.unwrap_or_default());
        row.payment_amounts.push(amount.amount.unwrap_or_default());
        row.payment_currencies.push(amount.currency_code.unwrap_or_default());
        row.payment_acquirer_ids.push(payment.acquirer_id.unwrap_or_default());
    }
    // A buyer's registration is sealed as a whole and leaves an empty object behind.
    for registration in tax.tax_registrations.unwrap_or_default() {
        if registration.entity_type.is_some() || registration.tax_registration_type.is_some() {
            row.tax_entity_types.push(registration.entity_type.unwrap_or_default());
            row.tax_registration_types.push(registration.tax_registration_type.unwrap_or_default());
        }
    }
    row
}

fn item_row(item: Item, attribution: &Arc<Attribution>, version: i64, order: EntityToken) -> Result<OrderItemRow, Unfit> {
    let product = item.product.unwrap_or_default();
    let condition = product.condition.unwrap_or_default();
    let price = product.price.unwrap_or_default();
    let proceeds = item.proceeds.unwrap_or_default();
    let points = item.expense.and_then(|e| e.points_cost).and_then(|p| p.points_granted).unwrap_or_default();
    let cancellation = item.cancellation.unwrap_or_default();
    let cancelled = cancellation.cancellation_execution.unwrap_or_default();
    let fulfillment = item.fulfillment.unwrap_or_default();
    let substitution = fulfillment.picking.and_then(|p| p.substitution_preference).unwrap_or_default();
    let packing = fulfillment.packing.unwrap_or_default();
    let shipping = fulfillment.shipping.unwrap_or_default();
    let constraints = shipping.shipping_constraints.unwrap_or_default();
    let tax = item.tax.unwrap_or_default();
    let (measurement_unit, measurement_value) = measurement(item.measurement)?;
    let (unit_price_amount, unit_price_currency) = money(price.unit_price);
    let (item_total_amount, item_total_currency) = money(proceeds.proceeds_total);
    let (points_value_amount, points_value_currency) = money(points.points_monetary_value);
    let (scheduled_delivery_earliest_at, scheduled_delivery_latest_at) = window(shipping.scheduled_delivery_window);
    let parts = Parts::of(proceeds.breakdowns);
    let mut row = OrderItemRow {
        attribution: Arc::clone(attribution),
        source_version: version,
        order_token: order,
        order_item_token: item.order_item_id.0,
        sku: product.seller_sku,
        asin: product.asin,
        title: product.title,
        quantity: item.quantity_ordered,
        quantity_fulfilled: fulfillment.quantity_fulfilled,
        quantity_unfulfilled: fulfillment.quantity_unfulfilled,
        measurement_unit,
        measurement_value,
        unit_price_amount,
        unit_price_currency,
        price_designation: price.price_designation,
        item_total_amount,
        item_total_currency,
        proceeds_types: parts.types,
        proceeds_subtypes: parts.subtypes,
        proceeds_amounts: parts.amounts,
        proceeds_currencies: parts.currencies,
        points_granted: points.points_number,
        points_value_amount,
        points_value_currency,
        condition_type: condition.condition_type,
        condition_subtype: condition.condition_subtype,
        condition_note: condition.condition_note,
        programs: item.programs.unwrap_or_default().0,
        promotion_ids: item.promotion.and_then(|p| p.breakdowns).unwrap_or_default().into_iter().filter_map(|p| p.promotion_id).collect(),
        cancellation_requester: cancellation.cancellation_request.and_then(|r| r.requester),
        cancelled_by: cancelled.cancelled_by,
        cancel_reason: cancelled.cancel_reason,
        gift_wrap_level: packing.gift_option.and_then(|g| g.gift_wrap_level),
        serial_number_requirement: packing.serial_number_requirement.and_then(|s| s.requirement_type),
        substitution_type: substitution.substitution_type,
        substitution_asins: Vec::new(),
        substitution_skus: Vec::new(),
        substitution_titles: Vec::new(),
        substitution_quantities: Vec::new(),
        substitution_measurement_units: Vec::new(),
        substitution_measurement_values: Vec::new(),
        scheduled_delivery_earliest_at,
        scheduled_delivery_latest_at,
        pallet_delivery: constraints.pallet_delivery,
        cash_on_delivery: constraints.cash_on_delivery,
        signature_confirmation: constraints.signature_confirmation,
        recipient_identity_verification: constraints.recipient_identity_verification,
        recipient_age_verification: constraints.recipient_age_verification,
        ioss_number: shipping.international_shipping.and_then(|i| i.ioss_number),
        tax_reporting_schemes: tax
            .tax_calculation_breakdowns
            .unwrap_or_default()
            .into_iter()
            .filter_map(|scheme| scheme.reporting_scheme)
            .collect(),
        tax_collection_models: Vec::new(),
        tax_responsible_parties: Vec::new(),
        associated_order_tokens: Vec::new(),
        associated_item_tokens: Vec::new(),
        association_types: Vec::new(),
    };
    for collection in tax.tax_collections.unwrap_or_default() {
        row.tax_collection_models.push(collection.model.unwrap_or_default());
        row.tax_responsible_parties.push(collection.responsible_party.unwrap_or_default());
    }
    for association in item.associated_order_items.unwrap_or_default() {
        let (Some(order), Some(item)) = (association.order_id, association.order_item_id) else { continue };
        row.associated_order_tokens.push(order.0);
        row.associated_item_tokens.push(item.0);
        row.association_types.push(association.association_type.unwrap_or_default());
    }
    substitutions(&mut row, substitution.substitution_options);
    Ok(row)
}

fn substitutions(row: &mut OrderItemRow, options: Option<Vec<model::SubstitutionOption>>) {
    for option in options.unwrap_or_default() {
        let measured = option.measurement.unwrap_or_default();
        row.substitution_asins.push(option.asin.unwrap_or_default());
        row.substitution_skus.push(option.seller_sku.unwrap_or_default());
        row.substitution_titles.push(option.title.unwrap_or_default());
        row.substitution_quantities.push(option.quantity_ordered.unwrap_or_default());
        row.substitution_measurement_units.push(measured.unit.unwrap_or_default());
        row.substitution_measurement_values.push(measured.value.map_or_else(String::new, |v| v.get().to_owned()));
    }
}

fn package_row(package: Package, attribution: &Arc<Attribution>, version: i64, order: EntityToken) -> PackageRow {
    let status = package.package_status.unwrap_or_default();
    let mut row = PackageRow {
        attribution: Arc::clone(attribution),
        source_version: version,
        order_token: order,
        package_token: package.package_reference_id.0,
        status: status.status,
        detailed_status: status.detailed_status,
        carrier: package.carrier,
        shipping_service: package.shipping_service,
        created_at: package.created_time.and_then(|t| t.0),
        shipped_at: package.ship_time.and_then(|t| t.0),
        item_tokens: Vec::new(),
        item_quantities: Vec::new(),
    };
    for item in package.package_items.unwrap_or_default() {
        let Some(token) = item.order_item_id else { continue };
        row.item_tokens.push(token.0);
        row.item_quantities.push(item.quantity.unwrap_or_default());
    }
    row
}

fn level_row(level: InventoryLevel, attribution: &Arc<Attribution>, version: i64, token: EntityToken) -> InventoryLevelRow {
    let details = level.inventory_details.unwrap_or_default();
    let reserved = details.reserved_quantity.unwrap_or_default();
    let researching = details.researching_quantity.unwrap_or_default();
    let unfulfillable = details.unfulfillable_quantity.unwrap_or_default();
    let research = researching.researching_quantity_breakdown.unwrap_or_default();
    // The three names are the model's closed list.
    let term = |name: &str| research.iter().find(|part| part.name.as_deref() == Some(name)).and_then(|part| part.quantity);
    InventoryLevelRow {
        attribution: Arc::clone(attribution),
        source_version: version,
        level_token: token,
        sku: level.seller_sku,
        fnsku: level.fn_sku,
        asin: level.asin,
        condition: level.condition,
        product_name: level.product_name,
        total_quantity: level.total_quantity,
        fulfillable_quantity: details.fulfillable_quantity,
        inbound_working_quantity: details.inbound_working_quantity,
        inbound_shipped_quantity: details.inbound_shipped_quantity,
        inbound_receiving_quantity: details.inbound_receiving_quantity,
        reserved_total_quantity: reserved.total_reserved_quantity,
        reserved_customer_order_quantity: reserved.pending_customer_order_quantity,
        reserved_transshipment_quantity: reserved.pending_transshipment_quantity,
        reserved_processing_quantity: reserved.fc_processing_quantity,
        researching_total_quantity: researching.total_researching_quantity,
        researching_short_term_quantity: term("researchingQuantityInShortTerm"),
        researching_mid_term_quantity: term("researchingQuantityInMidTerm"),
        researching_long_term_quantity: term("researchingQuantityInLongTerm"),
        unfulfillable_total_quantity: unfulfillable.total_unfulfillable_quantity,
        customer_damaged_quantity: unfulfillable.customer_damaged_quantity,
        warehouse_damaged_quantity: unfulfillable.warehouse_damaged_quantity,
        distributor_damaged_quantity: unfulfillable.distributor_damaged_quantity,
        carrier_damaged_quantity: unfulfillable.carrier_damaged_quantity,
        defective_quantity: unfulfillable.defective_quantity,
        expired_quantity: unfulfillable.expired_quantity,
        updated_at: level.last_updated_time.and_then(|t| t.0),
        stores: level.stores.unwrap_or_default().0,
    }
}

/// The parts of proceeds as parallel lists; a part's details follow it, with their subtype.
#[derive(Default)]
struct Parts {
    types: Vec<String>,
    subtypes: Vec<String>,
    statuses: Vec<String>,
    amounts: Vec<String>,
    currencies: Vec<String>,
}

impl Parts {
    fn of(breakdowns: Option<Vec<Breakdown>>) -> Self {
        let mut parts = Self::default();
        for breakdown in breakdowns.unwrap_or_default() {
            let ty = breakdown.r#type.unwrap_or_default();
            let details = breakdown.detailed_breakdowns.unwrap_or_default();
            let status = breakdown.status.unwrap_or_default();
            for detail in &details {
                parts.push(ty.clone(), detail.subtype.clone().unwrap_or_default(), status.clone(), detail.value.as_ref());
            }
            parts.push(ty, String::new(), status, breakdown.subtotal.as_ref());
        }
        parts
    }

    fn push(&mut self, ty: String, subtype: String, status: String, money: Option<&MoneyText>) {
        self.types.push(ty);
        self.subtypes.push(subtype);
        self.statuses.push(status);
        self.amounts.push(money.and_then(|m| m.amount.clone()).unwrap_or_default());
        self.currencies.push(money.and_then(|m| m.currency_code.clone()).unwrap_or_default());
    }
}

fn window(window: Option<Window>) -> (Option<Timestamp>, Option<Timestamp>) {
    let at = |time: Option<MaybeTime>| time.and_then(|t| t.0);
    window.map_or((None, None), |w| (at(w.earliest_date_time), at(w.latest_date_time)))
}

fn money(money: Option<Money>) -> (Option<Decimal>, Option<String>) {
    money.map_or((None, None), |m| (m.amount.and_then(|a| a.0), m.currency_code))
}

fn measurement(measurement: Option<model::Measurement>) -> Result<(Option<String>, Option<Decimal>), Unfit> {
    let Some(measurement) = measurement else { return Ok((None, None)) };
    let value = measurement.value.filter(|v| v.get() != "null").map(|v: Box<RawValue>| model::parse_amount(v.get()));
    match value {
        None => Ok((measurement.unit, None)),
        Some(Some(value)) => Ok((measurement.unit, Some(value))),
        Some(None) => Err(Unfit::whole(DeadLetterReason::BadField)),
    }
}
