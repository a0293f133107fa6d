//! `searchOrders` and `getOrder` of Orders 2026-01-01.

use axum::extract::{Path, Request, State as Extract};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answer::ApiError;
use super::api::{Call, serve};
use super::content::{self, Included};
use super::faults::Fault;
use super::limits::Operation;
use super::market::is_known;
use super::query::{PageToken, Query};
use super::timeline::{PUBLISH_MS, Seen};
use super::world::{By, Seller, World, fingerprint};
use super::{RoleMissing, Shared, State, iso};

/// Largest and default page (model).
const PAGE_MAX: usize = 100;
/// Most marketplaces of one call (model).
const MARKETPLACES_MAX: usize = 50;
/// Lifetime of a page token, in milliseconds (FACTS section 4: 24 h).
const TOKEN_MS: i64 = 24 * 3_600_000;
/// The model's statuses.
const STATUSES: [&str; 7] = ["PENDING_AVAILABILITY", "PENDING", "UNSHIPPED", "PARTIALLY_SHIPPED", "SHIPPED", "CANCELLED", "UNFULFILLABLE"];

/// Which orders a search wants.
#[derive(Debug)]
struct Search<'a> {
    by: By,
    from: i64,
    until: i64,
    markets: Vec<&'a str>,
    statuses: Vec<&'a str>,
    fulfilled_by: Vec<&'a str>,
    page: usize,
    included: Included,
    filters: u64,
}

/// `GET /orders/2026-01-01/orders`.
pub(super) async fn search_orders(Extract(shared): Extract<Shared>, request: Request) -> Response {
    serve(shared, Operation::SearchOrders, request, None, search).await
}

/// `GET /orders/2026-01-01/orders/{orderId}`.
pub(super) async fn get_order(Extract(shared): Extract<Shared>, Path(id): Path<String>, request: Request) -> Response {
    serve(shared, Operation::GetOrder, request, Some(id), get).await
}

fn get(state: &State, call: &Call) -> Result<Value, ApiError> {
    let included = included(state, call)?;
    let world = state.world();
    let seller = world.seller(call.seller).ok_or(ApiError::missing())?;
    let id = call.resource.as_deref().unwrap_or_default();
    let order = world.order_by_id(seller, id).ok_or(ApiError::missing())?;
    let seen = world.timeline(order).and_then(|timeline| timeline.seen_at(call.now)).ok_or(ApiError::missing())?;
    let order = content::order(&world, seller, order, &seen, included).ok_or(ApiError::missing())?;
    Ok(json!({ "order": order }))
}

fn search(state: &State, call: &Call) -> Result<Value, ApiError> {
    let mut search = Search::read(state, call)?;
    let token = match call.query.one("paginationToken")? {
        None => None,
        Some(text) => Some(page_token(state, call, &search, text)?),
    };
    let as_of = token.map_or(call.now, |token| token.as_of);
    search.until = token.map_or(search.until, |token| token.until);
    // The place before the first entry of the window, so that every page has a place to go on from.
    let start = (search.from - 1, u32::MAX);
    let after = match (token, call.fault) {
        (Some(token), Some(Fault::DuplicateOrder)) => token.before,
        (Some(token), _) => token.after,
        (None, _) => start,
    };
    let next = |after: (i64, u32), before: (i64, u32)| {
        PageToken { seller: call.seller, filters: search.filters, issued: call.now, as_of, until: search.until, after, before }
            .seal(&state.page_key)
    };
    if call.fault == Some(Fault::EmptyPage) {
        return Ok(search.answer(Vec::new(), Some(next(after, token.map_or(start, |token| token.before)))));
    }
    let world = state.world();
    let seller = world.seller(call.seller).ok_or(ApiError::missing())?;
    let mut found = world
        .listing(seller, search.by, (search.from, search.until), Some(after), as_of)
        .filter(|((_, order), seen)| search.wants(&world, seller, *order, seen));
    let page: Vec<((i64, u32), Seen)> = found.by_ref().take(search.page).collect();
    let more = found.next().is_some();
    let last = page.last().map_or(after, |(place, _)| *place);
    let before = page.len().checked_sub(2).and_then(|at| page.get(at)).map_or(after, |(place, _)| *place);
    let orders = page.iter().filter_map(|((_, order), seen)| content::order(&world, seller, *order, seen, search.included)).collect();
    Ok(search.answer(orders, more.then(|| next(last, before))))
}

fn page_token(state: &State, call: &Call, search: &Search<'_>, text: &str) -> Result<PageToken, ApiError> {
    let token = PageToken::open(text, &state.page_key).filter(|token| token.seller == call.seller);
    let token = token.ok_or(ApiError::input("The paginationToken is not valid."))?;
    if token.issued + TOKEN_MS <= call.now || call.fault == Some(Fault::PageToken) {
        return Err(ApiError::input("The paginationToken has expired."));
    }
    if token.filters != search.filters {
        return Err(ApiError::input("The paginationToken belongs to a request with other parameters."));
    }
    Ok(token)
}

fn included(state: &State, call: &Call) -> Result<Included, ApiError> {
    let mut included = Included::default();
    for name in call.query.list("includedData") {
        if !included.add(name) {
            return Err(ApiError::input("includedData has an unknown value."));
        }
    }
    let has_role = state.world().seller(call.seller).is_some_and(|seller| seller.has_role);
    if included.needs_role() && !has_role && state.options.role_missing == RoleMissing::Forbidden {
        return Err(ApiError::access("The application does not have the role for the requested data."));
    }
    Ok(included)
}

impl<'a> Search<'a> {
    fn read(state: &State, call: &'a Call) -> Result<Self, ApiError> {
        let query = &call.query;
        let (by, from, until) = window(query, call.now)?;
        let markets = query.list("marketplaceIds");
        if markets.len() > MARKETPLACES_MAX || !markets.iter().all(|id| is_known(id)) {
            return Err(ApiError::input("marketplaceIds has an unknown value or too many."));
        }
        let statuses = query.list("fulfillmentStatuses");
        if !statuses.iter().all(|status| STATUSES.contains(status)) {
            return Err(ApiError::input("fulfillmentStatuses has an unknown value."));
        }
        let fulfilled_by = query.list("fulfilledBy");
        if !fulfilled_by.iter().all(|by| matches!(*by, "MERCHANT" | "AMAZON")) {
            return Err(ApiError::input("fulfilledBy has an unknown value."));
        }
        let page = match query.one("maxResultsPerPage")? {
            None => PAGE_MAX,
            Some(text) => {
                let size = text.parse().ok().filter(|size| (1..=PAGE_MAX).contains(size));
                size.ok_or(ApiError::input("maxResultsPerPage must be between 1 and 100."))?
            }
        };
        let mut filters = Vec::new();
        for name in ["createdAfter", "createdBefore", "lastUpdatedAfter", "lastUpdatedBefore"] {
            filters.push((name, query.time(name)?.map_or_else(String::new, |at| at.to_string())));
        }
        for (name, list) in [("marketplaceIds", &markets), ("fulfillmentStatuses", &statuses), ("fulfilledBy", &fulfilled_by)] {
            let mut list = list.clone();
            list.sort_unstable();
            filters.push((name, list.join(",")));
        }
        let filters = fingerprint(&filters);
        Ok(Self { by, from, until, markets, statuses, fulfilled_by, page, included: included(state, call)?, filters })
    }

    fn wants(&self, world: &World, seller: &Seller, order: u32, seen: &Seen) -> bool {
        let Some(timeline) = world.timeline(order) else { return false };
        let market = seller.markets.get(timeline.market).map_or("", |market| market.id);
        let fulfilled_by = if timeline.merchant { "MERCHANT" } else { "AMAZON" };
        (self.markets.is_empty() || self.markets.contains(&market))
            && (self.statuses.is_empty() || self.statuses.contains(&seen.status.as_str()))
            && (self.fulfilled_by.is_empty() || self.fulfilled_by.contains(&fulfilled_by))
    }

    fn answer(&self, orders: Vec<Value>, next: Option<String>) -> Value {
        let mut body = Map::new();
        body.insert("orders".into(), Value::Array(orders));
        if let Some(next) = next {
            body.insert("pagination".into(), json!({ "nextToken": next }));
        }
        let bound = match self.by {
            By::Change => "lastUpdatedBefore",
            By::Creation => "createdBefore",
        };
        body.insert(bound.into(), json!(iso(self.until)));
        Value::Object(body)
    }
}

/// The window a search asks for: exactly one lower bound, and an upper one at least two minutes back.
fn window(query: &Query, now: i64) -> Result<(By, i64, i64), ApiError> {
    let (created, updated) = (query.time("createdAfter")?, query.time("lastUpdatedAfter")?);
    let (created_before, updated_before) = (query.time("createdBefore")?, query.time("lastUpdatedBefore")?);
    let (by, from, before) = match (created, updated) {
        (Some(from), None) if updated_before.is_none() => (By::Creation, from, created_before),
        (None, Some(from)) if created_before.is_none() => (By::Change, from, updated_before),
        _ => return Err(ApiError::input("Give exactly one of createdAfter and lastUpdatedAfter, and no bound of the other kind.")),
    };
    let latest = now - PUBLISH_MS;
    let until = before.unwrap_or(latest);
    if until > latest {
        return Err(ApiError::input("The upper bound must be at least two minutes before now."));
    }
    if from > until {
        return Err(ApiError::input("The lower bound is after the upper bound."));
    }
    Ok((by, from, until))
}
