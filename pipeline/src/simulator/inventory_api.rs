//! `getInventorySummaries` of FBA Inventory v1.

use axum::extract::{Request, State as Extract};
use axum::response::Response;
use serde_json::{Map, Value, json};
use sunder_schemas::time::{Period, Timestamp};

use super::answer::ApiError;
use super::api::{Call, serve};
use super::faults::Fault;
use super::inventory::{Row, rows};
use super::limits::Operation;
use super::query::PageToken;
use super::world::fingerprint;
use super::{Shared, State};

/// Rows of a page (chosen: as seen; the model does not say).
const PAGE: usize = 50;
/// Lifetime of a page token, in milliseconds (model).
const TOKEN_MS: i64 = 30_000;
/// Most SKUs of one call (model).
const SKUS_MAX: usize = 50;
/// How far back `startDateTime` may lie (model).
const START_MAX: Period = Period::Months(18);

/// `GET /fba/inventory/v1/summaries`.
pub(super) async fn summaries(Extract(shared): Extract<Shared>, request: Request) -> Response {
    serve(shared, Operation::GetInventorySummaries, request, None, list).await
}

fn list(state: &State, call: &Call) -> Result<Value, ApiError> {
    let query = &call.query;
    let markets = query.list("marketplaceIds");
    let [market] = markets.as_slice() else { return Err(ApiError::input("Give exactly one of marketplaceIds.")) };
    let granularity = query.one("granularityId")?;
    if query.one("granularityType")? != Some("Marketplace") || granularity != Some(market) {
        return Err(ApiError::input("granularityType must be Marketplace and granularityId the marketplace."));
    }
    // Amazon's own Python client writes `True`.
    let details = match query.one("details")?.map(str::to_ascii_lowercase).as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(ApiError::input("details must be true or false.")),
    };
    let start = query.time("startDateTime")?;
    if start.is_some_and(|at| at < Timestamp(call.now).minus(START_MAX).0) {
        return Err(ApiError::input("startDateTime is more than 18 months ago."));
    }
    let mut skus = query.list("sellerSkus");
    if skus.len() > SKUS_MAX {
        return Err(ApiError::input("Too many sellerSkus."));
    }
    if let (true, Some(sku)) = (skus.is_empty(), query.one("sellerSku")?) {
        skus.push(sku);
    }
    let filters = fingerprint(&[
        ("market", (*market).to_owned()),
        ("start", start.map_or_else(String::new, |at| at.to_string())),
        ("skus", skus.join("\n")),
        ("details", details.to_string()),
    ]);
    let token = match query.one("nextToken")? {
        None => None,
        Some(text) => Some(page_token(state, call, filters, text)?),
    };
    let as_of = token.map_or(call.now, |token| token.as_of);
    let first = usize::try_from(token.map_or(0, |token| token.after.0)).unwrap_or(usize::MAX);
    let wanted = |row: &Row| match start {
        Some(start) => row.updated.is_some_and(|at| at >= start),
        None => skus.is_empty() || skus.contains(&row.sku.as_str()),
    };
    let world = state.world();
    let seller = world.seller(call.seller).ok_or(ApiError::missing())?;
    let place = seller.markets.iter().position(|known| known.id == *market);
    let all: Vec<Row> = place.map_or_else(Vec::new, |place| rows(&world, seller, place, as_of)).into_iter().filter(wanted).collect();
    let page = if call.fault == Some(Fault::EmptyPage) { 0 } else { PAGE };
    let listed: Vec<Value> = all.iter().skip(first).take(page).map(|row| row.render(&world, seller, details, as_of)).collect();
    let next = first.saturating_add(listed.len());
    let mut body = Map::new();
    if next < all.len() || call.fault == Some(Fault::EmptyPage) {
        let after = (i64::try_from(next).unwrap_or(i64::MAX), 0);
        let token = PageToken { seller: call.seller, filters, issued: call.now, as_of, until: 0, after, before: (0, 0) };
        body.insert("pagination".into(), json!({ "nextToken": token.seal(&state.page_key) }));
    }
    body.insert(
        "payload".into(),
        json!({ "granularity": { "granularityType": "Marketplace", "granularityId": market }, "inventorySummaries": listed }),
    );
    Ok(Value::Object(body))
}

fn page_token(state: &State, call: &Call, filters: u64, text: &str) -> Result<PageToken, ApiError> {
    let token = PageToken::open(text, &state.page_key).filter(|token| token.seller == call.seller && token.filters == filters);
    let token = token.ok_or(ApiError::input("The nextToken is not valid."))?;
    if token.issued + TOKEN_MS <= call.now || call.fault == Some(Fault::PageToken) {
        return Err(ApiError::input("The nextToken has expired."));
    }
    Ok(token)
}
