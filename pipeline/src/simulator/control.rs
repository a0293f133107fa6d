//! `/_sim/...`: the simulator's own clock, truth and switches, for tests and demonstrations.

use axum::body::{Body, Bytes};
use axum::extract::{Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sunder_schemas::time::{Period, Timestamp};

use super::content::{self, Included};
use super::inventory::rows;
use super::items;
use super::timeline::Status;
use super::world::Seller;
use super::{Faults, Shared, State};

/// What one seller has now, as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SellerTruth {
    /// `selling_partner_id`.
    pub seller: String,
    /// `eu`, `na` or `fe`.
    pub region: String,
    /// Ids of its marketplaces.
    pub marketplaces: Vec<String>,
    /// Whether its application may see buyers and recipients.
    pub has_role: bool,
    /// Visible orders.
    pub orders: usize,
    /// Their items.
    pub order_items: usize,
    /// Packages of its merchant-fulfilled orders.
    pub packages: usize,
    /// Inventory rows over all its marketplaces.
    pub inventory_rows: usize,
    /// Orders by fulfilment status.
    pub pending: usize,
    /// Released, nothing shipped.
    pub unshipped: usize,
    /// First of two parcels shipped.
    pub partially_shipped: usize,
    /// Shipped.
    pub shipped: usize,
    /// Cancelled.
    pub cancelled: usize,
    /// Cannot be fulfilled.
    pub unfulfillable: usize,
    /// Packages that were delivered.
    pub delivered_packages: usize,
}

impl State {
    /// What the API shows now, per seller.
    pub(super) fn truth(&self) -> Vec<SellerTruth> {
        let now = self.now();
        let world = self.world();
        world.sellers.iter().map(|seller| truth_of(&world, seller, now)).collect()
    }
}

fn truth_of(world: &super::world::World, seller: &Seller, now: i64) -> SellerTruth {
    let mut truth = SellerTruth {
        seller: seller.id.clone(),
        region: seller.region.to_owned(),
        marketplaces: seller.markets.iter().map(|market| market.id.to_owned()).collect(),
        has_role: seller.has_role,
        orders: 0,
        order_items: 0,
        packages: 0,
        inventory_rows: (0..seller.markets.len()).map(|market| rows(world, seller, market, now).len()).sum(),
        pending: 0,
        unshipped: 0,
        partially_shipped: 0,
        shipped: 0,
        cancelled: 0,
        unfulfillable: 0,
        delivered_packages: 0,
    };
    for (order, seen) in world.visible(seller, now) {
        let Some(timeline) = world.timeline(order) else { continue };
        truth.orders += 1;
        truth.order_items += usize::try_from(items::count(world, order, timeline)).unwrap_or(0);
        if timeline.merchant {
            truth.packages += seen.parcels.len();
            truth.delivered_packages += seen.parcels.iter().filter(|p| p.end == Some(super::timeline::ParcelEnd::Delivered)).count();
        }
        *match seen.status {
            Status::Pending => &mut truth.pending,
            Status::Unshipped => &mut truth.unshipped,
            Status::PartiallyShipped => &mut truth.partially_shipped,
            Status::Shipped => &mut truth.shipped,
            Status::Cancelled => &mut truth.cancelled,
            Status::Unfulfillable => &mut truth.unfulfillable,
        } += 1;
    }
    truth
}

/// Narrows a listing of truth.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Only {
    seller: Option<String>,
    order: Option<String>,
}

/// `GET /_sim/truth`.
pub(super) async fn truth(Extract(shared): Extract<Shared>) -> Response {
    let sellers = shared.truth();
    let sum = |count: fn(&SellerTruth) -> usize| sellers.iter().map(count).sum::<usize>();
    let totals = json!({
        "orders": sum(|t| t.orders), "order_items": sum(|t| t.order_items), "packages": sum(|t| t.packages),
        "inventory_rows": sum(|t| t.inventory_rows), "delivered_packages": sum(|t| t.delivered_packages),
    });
    axum::Json(json!({ "now": super::iso(shared.now()), "totals": totals, "sellers": sellers })).into_response()
}

/// `GET /_sim/truth/personal`: one JSON line per personal value.
pub(super) async fn personal(Extract(shared): Extract<Shared>, Query(only): Query<Only>) -> Response {
    lines(shared, only, |state, seller, order| {
        state.personal_of(seller, order).iter().filter_map(|v| serde_json::to_string(v).ok()).collect()
    })
}

/// `GET /_sim/truth/orders`: one JSON line per visible order, as an answer with every data set holds it now.
pub(super) async fn orders(Extract(shared): Extract<Shared>, Query(only): Query<Only>) -> Response {
    lines(shared, only, |state, seller, order| {
        let world = state.world();
        let seen = world.timeline(order).and_then(|timeline| timeline.seen_at(state.now()));
        let found = seen.and_then(|seen| content::order(&world, seller, order, &seen, Included::ALL));
        found.map(|order| json!({ "seller": seller.id, "order": order }).to_string()).into_iter().collect()
    })
}

/// Streams what `write` makes of each visible order, made as it is read.
fn lines(shared: Shared, only: Only, write: fn(&State, &Seller, u32) -> Vec<String>) -> Response {
    let now = shared.now();
    let chosen: Vec<(Seller, u32)> = {
        let world = shared.world();
        let sellers = world.sellers.iter().filter(|seller| only.seller.as_ref().is_none_or(|id| *id == seller.id));
        let orders = sellers.flat_map(|seller| {
            let bare = seller.without_indexes();
            world.visible(seller, now).map(move |(order, _)| (bare.clone(), order)).collect::<Vec<_>>()
        });
        orders.filter(|(_, order)| only.order.as_ref().is_none_or(|id| world.order_id(*order) == *id)).collect()
    };
    let parts = chosen.into_iter().map(move |(seller, order)| {
        let mut text = write(&shared, &seller, order).join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        Ok::<_, std::convert::Infallible>(Bytes::from(text))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream::iter(parts))).into_response()
}

#[derive(Debug, Deserialize)]
pub(super) struct Advance {
    advance: Option<Period>,
}

/// `POST /_sim/clock {"advance": "30d"}`.
pub(super) async fn clock(Extract(shared): Extract<Shared>, body: Bytes) -> Response {
    let Ok(asked) = serde_json::from_slice::<Advance>(&body) else { return refuse("give {\"advance\": \"30d\"}") };
    if let Some(period) = asked.advance {
        shared.advance(period);
    }
    axum::Json(json!({ "now": super::iso(shared.now()) })).into_response()
}

/// `GET /_sim/clock`.
pub(super) async fn time(Extract(shared): Extract<Shared>) -> Response {
    axum::Json(json!({ "now": super::iso(shared.now()) })).into_response()
}

#[derive(Debug, Deserialize)]
pub(super) struct Named {
    seller: String,
    order: Option<String>,
}

/// `POST /_sim/revoke {"seller": "A..."}`.
pub(super) async fn revoke(Extract(shared): Extract<Shared>, body: Bytes) -> Response {
    let Ok(asked) = serde_json::from_slice::<Named>(&body) else { return refuse("give {\"seller\": \"A...\"}") };
    if shared.revoke(&asked.seller) { axum::Json(json!({ "revoked": asked.seller })).into_response() } else { unknown() }
}

/// `POST /_sim/change {"seller": "A...", "order": "..."}`.
pub(super) async fn change(Extract(shared): Extract<Shared>, body: Bytes) -> Response {
    let Ok(Named { seller, order: Some(order) }) = serde_json::from_slice(&body) else {
        return refuse("give {\"seller\": \"A...\", \"order\": \"...\"}");
    };
    match shared.change(&seller, &order) {
        Some(Timestamp(at)) => axum::Json(json!({ "lastUpdatedTime": super::iso(at) })).into_response(),
        None => unknown(),
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Level {
    level: super::FaultLevel,
}

/// `POST /_sim/faults {"level": "none"}`: what goes wrong from now on; fields that no model knows stay as they were at the start.
pub(super) async fn faults(Extract(shared): Extract<Shared>, body: Bytes) -> Response {
    let Ok(asked) = serde_json::from_slice::<Level>(&body) else { return refuse("give {\"level\": \"none\" | \"mild\" | \"hostile\"}") };
    shared.set_faults(Faults::from(asked.level));
    axum::Json(Value::Null).into_response()
}

/// `GET /_sim/calls`.
pub(super) async fn calls(Extract(shared): Extract<Shared>) -> Response {
    axum::Json(json!(shared.calls())).into_response()
}

fn refuse(usage: &str) -> Response {
    (StatusCode::BAD_REQUEST, axum::Json(json!({ "error": usage }))).into_response()
}

fn unknown() -> Response {
    (StatusCode::NOT_FOUND, axum::Json(json!({ "error": "no such seller or order" }))).into_response()
}
