//! The simulated SP-API as a client sees it: limits, paging, truth, clock, faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reqwest::header::HeaderMap;
use serde_json::Value;
use sunder::simulator::{Faults, RateScale, RoleMissing, Running, SellerAccess, Simulator, SimulatorOptions};
use sunder_schemas::time::{ManualClock, Period, Timestamp};
use tokio::net::TcpListener;

/// Noon of the day whose start the orders lie before.
pub(crate) const NOON: &str = "2026-11-22T12:00:00Z";
/// Every data set of the model.
pub(crate) const EVERYTHING: &str =
    "BUYER,RECIPIENT,PROCEEDS,EXPENSE,PROMOTION,CANCELLATION,FULFILLMENT,PACKAGES,TAX,PAYMENT,FULFILLMENT_ORDERS";

/// A simulator on a free port, and a client.
pub(crate) struct Api {
    pub(crate) simulator: Running,
    pub(crate) clock: Arc<ManualClock>,
    http: reqwest::Client,
    tokens: BTreeMap<String, String>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("the body is JSON")
    }
}

impl Api {
    /// Starts a simulator at noon with a thousand times the published rates, after `change` of its options.
    pub(crate) async fn start(change: impl FnOnce(&mut SimulatorOptions)) -> Self {
        _ = rustls::crypto::ring::default_provider().install_default();
        let clock = Arc::new(ManualClock::at(Timestamp::parse(NOON).unwrap()));
        let mut options = SimulatorOptions::new(42, Arc::clone(&clock) as _);
        options.rate_scale = RateScale::times(1000);
        change(&mut options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let simulator = Simulator::start(options, listener).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut api = Self { simulator, clock, http, tokens: BTreeMap::new() };
        api.renew().await;
        api
    }

    /// Fetches an access token for every seller.
    pub(crate) async fn renew(&mut self) {
        for seller in self.simulator.sellers() {
            let (status, body) = self.grant(&seller.refresh_token, self.simulator.client_secret()).await;
            assert_eq!(status, 200);
            assert_eq!(body["expires_in"], 3600);
            self.tokens.insert(seller.id, body["access_token"].as_str().unwrap().to_owned());
        }
    }

    async fn grant(&self, refresh_token: &str, secret: &str) -> (u16, Value) {
        let client = self.simulator.client_id().to_owned();
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh_token), ("client_id", &client), ("client_secret", secret)];
        let answer = self.http.post(self.simulator.lwa_endpoint()).form(&form).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub(crate) async fn get(&self, seller: &str, path: &str, query: &[(&str, &str)]) -> Answer {
        self.try_get(seller, path, query).await.expect("an answer")
    }

    /// None where the connection broke.
    async fn try_get(&self, seller: &str, path: &str, query: &[(&str, &str)]) -> Option<Answer> {
        let request = self.http.get(format!("{}{path}", self.simulator.endpoint())).query(query);
        let request = request.header("x-amz-access-token", &self.tokens[seller]).header("user-agent", "test/1.0");
        let answer = request.send().await.ok()?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Some(Answer { status, headers, text: answer.text().await.ok()? })
    }

    pub(crate) async fn search(&self, seller: &str, query: &[(&str, &str)]) -> Answer {
        self.get(seller, "/orders/2026-01-01/orders", query).await
    }

    /// Every order that a search gives, over all pages.
    pub(crate) async fn all_orders(&self, seller: &str, filters: &[(&str, &str)]) -> Vec<Value> {
        let (mut orders, mut next) = (Vec::new(), None::<String>);
        loop {
            let mut query = filters.to_vec();
            if let Some(token) = &next {
                query.push(("paginationToken", token));
            }
            let answer = self.search(seller, &query).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let mut body = answer.json();
            orders.append(body["orders"].as_array_mut().unwrap());
            match body["pagination"]["nextToken"].as_str() {
                Some(token) => next = Some(token.to_owned()),
                None => return orders,
            }
        }
    }

    pub(crate) async fn all_rows(&self, seller: &str, market: &str, more: &[(&str, &str)]) -> Vec<Value> {
        let (mut rows, mut next) = (Vec::new(), None::<String>);
        loop {
            let mut query = vec![("granularityType", "Marketplace"), ("granularityId", market), ("marketplaceIds", market)];
            query.extend(more);
            if let Some(token) = &next {
                query.push(("nextToken", token));
            }
            let answer = self.get(seller, "/fba/inventory/v1/summaries", &query).await;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let mut body = answer.json();
            let page = body["payload"]["inventorySummaries"].as_array_mut().unwrap();
            assert!(page.len() <= 50);
            rows.append(page);
            match body["pagination"]["nextToken"].as_str() {
                Some(token) => next = Some(token.to_owned()),
                None => return rows,
            }
        }
    }

    pub(crate) fn sellers(&self) -> Vec<SellerAccess> {
        self.simulator.sellers()
    }

    pub(crate) fn first(&self) -> String {
        self.sellers()[0].id.clone()
    }
}

/// All of a first read.
pub(crate) const SINCE: (&str, &str) = ("lastUpdatedAfter", "2026-01-01T00:00:00Z");

fn ids(orders: &[Value]) -> Vec<&str> {
    orders.iter().map(|order| order["orderId"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn tokens_are_checked_expire_and_are_revoked() {
    let api = Api::start(|_| ()).await;
    let seller = &api.sellers()[0];
    let (status, body) = api.grant(&seller.refresh_token, "wrong").await;
    assert_eq!((status, body["error"].as_str()), (401, Some("invalid_client")));
    let (status, body) = api.grant("Atzr|unknown", api.simulator.client_secret()).await;
    assert_eq!((status, body["error"].as_str()), (400, Some("invalid_grant")));

    assert_eq!(api.search(&seller.id, &[SINCE]).await.status, 200);
    api.simulator.advance(Period::hours(1));
    let expired = api.search(&seller.id, &[SINCE]).await;
    assert_eq!(expired.status, 403);
    assert_eq!(expired.json()["errors"][0]["details"], "The access token you provided has expired.");

    assert!(api.simulator.revoke(&seller.id));
    let (status, body) = api.grant(&seller.refresh_token, api.simulator.client_secret()).await;
    assert_eq!((status, body["error"].as_str()), (400, Some("invalid_grant")));
    assert!(!api.simulator.revoke("AUNKNOWN"));
}

#[tokio::test]
async fn wrong_requests_are_refused_as_documented() {
    let api = Api::start(|_| ()).await;
    let seller = api.first();
    let refused: &[&[(&str, &str)]] = &[
        &[],
        &[SINCE, ("createdAfter", "2026-01-01T00:00:00Z")],
        &[SINCE, ("createdBefore", "2026-02-01T00:00:00Z")],
        &[SINCE, ("lastUpdatedBefore", "2026-11-22T11:58:01Z")],
        &[SINCE, ("lastUpdatedBefore", "2025-01-01T00:00:00Z")],
        &[("lastUpdatedAfter", "yesterday")],
        &[SINCE, ("includedData", "BUYER,EVERYTHING")],
        &[SINCE, ("fulfillmentStatuses", "Shipped")],
        &[SINCE, ("fulfilledBy", "ME")],
        &[SINCE, ("marketplaceIds", "NOWHERE")],
        &[SINCE, ("maxResultsPerPage", "0")],
        &[SINCE, ("maxResultsPerPage", "101")],
        &[SINCE, ("paginationToken", "bm9uc2Vuc2U")],
    ];
    for query in refused {
        let answer = api.search(&seller, query).await;
        assert_eq!(answer.status, 400, "{query:?}");
        assert!(answer.json()["errors"][0]["code"].is_string());
        assert!(answer.headers.contains_key("x-amzn-requestid") && answer.headers.contains_key("x-amzn-ratelimit-limit"));
    }
    let other = api.simulator.order_ids(&api.sellers()[1].id)[0].clone();
    assert_eq!(api.get(&seller, &format!("/orders/2026-01-01/orders/{other}"), &[]).await.status, 404, "another seller's order");

    let url = format!("{}/orders/2026-01-01/orders?lastUpdatedAfter=2026-01-01T00:00:00Z", api.simulator.endpoint());
    let bare = api.http.get(&url).header("user-agent", "test/1.0").send().await.unwrap();
    assert_eq!(bare.status(), 403, "no token");
    let with_token = || api.http.get(&url).header("x-amz-access-token", &api.tokens[&seller]);
    assert_eq!(with_token().send().await.unwrap().status(), 400, "no user agent");
    assert_eq!(with_token().header("user-agent", "x".repeat(501)).send().await.unwrap().status(), 400);
    assert_eq!(with_token().header("user-agent", "test/1.0").body("{}").send().await.unwrap().status(), 400, "a body");
}

#[tokio::test]
async fn paging_is_complete_and_equals_the_truth() {
    let api = Api::start(|options| options.orders = 700).await;
    for (seller, truth) in api.sellers().iter().zip(api.simulator.truth()) {
        for size in ["100", "33", "1"] {
            let orders = api.all_orders(&seller.id, &[SINCE, ("includedData", "PACKAGES,FULFILLMENT"), ("maxResultsPerPage", size)]).await;
            let expected: BTreeSet<String> = api.simulator.order_ids(&seller.id).into_iter().collect();
            assert_eq!(orders.len(), expected.len(), "none twice");
            assert_eq!(ids(&orders).into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), expected);
            let count = |part: &str| orders.iter().filter_map(|order| order[part].as_array()).map(Vec::len).sum::<usize>();
            assert_eq!((count("orderItems"), count("packages")), (truth.order_items, truth.packages));
            let updated: Vec<&str> = orders.iter().map(|order| order["lastUpdatedTime"].as_str().unwrap()).collect();
            assert!(updated.is_sorted());
        }
        let markets: Vec<&str> = seller.marketplaces.clone();
        let mut rows = 0;
        for market in markets {
            let listed = api.all_rows(&seller.id, market, &[("details", "true")]).await;
            let skus: BTreeSet<&str> = listed.iter().map(|row| row["sellerSku"].as_str().unwrap()).collect();
            assert_eq!(skus.len(), listed.len());
            assert!(skus.iter().any(|sku| sku.contains('/') || sku.contains('%') || sku.contains(' ') || !sku.is_ascii()));
            rows += listed.len();
        }
        assert_eq!(rows, truth.inventory_rows);
    }
}

#[tokio::test]
async fn pages_stay_stable_while_orders_change() {
    let api = Api::start(|_| ()).await;
    let seller = api.first();
    let before: Vec<String> = ids(&api.all_orders(&seller, &[SINCE]).await).into_iter().map(str::to_owned).collect();
    let page = api.search(&seller, &[SINCE, ("maxResultsPerPage", "40")]).await.json();
    let bound = page["lastUpdatedBefore"].as_str().unwrap().to_owned();
    assert_eq!(bound, "2026-11-22T11:58:00.000Z");
    api.clock.advance(Period::Millis(30 * 60_000));
    api.simulator.change(&seller, &before[60]).unwrap();
    let token = page["pagination"]["nextToken"].as_str().unwrap();
    let rest = api.search(&seller, &[SINCE, ("paginationToken", token)]).await.json();
    assert_eq!(rest["lastUpdatedBefore"].as_str(), Some(bound.as_str()), "the window's bound is the first page's");
    let mut all = ids(page["orders"].as_array().unwrap());
    all.extend(ids(rest["orders"].as_array().unwrap()));
    assert_eq!(all, before);

    let other = api.search(&seller, &[SINCE, ("fulfilledBy", "AMAZON"), ("paginationToken", token)]).await;
    assert_eq!(other.status, 400, "other filters");
    let found = api.all_orders(&seller, &[("lastUpdatedAfter", &bound)]).await;
    assert!(ids(&found).contains(&before[60].as_str()), "the change is in the next window");
}

#[tokio::test]
async fn page_tokens_expire() {
    let mut api = Api::start(|_| ()).await;
    let (seller, market) = (api.first(), api.sellers()[0].marketplaces[0]);
    let page = api.search(&seller, &[SINCE, ("maxResultsPerPage", "10")]).await.json();
    let token = page["pagination"]["nextToken"].as_str().unwrap();
    let base = [("granularityType", "Marketplace"), ("granularityId", market), ("marketplaceIds", market)];
    let rows = api.get(&seller, "/fba/inventory/v1/summaries", &base).await.json();
    let row_token = rows["pagination"]["nextToken"].as_str().unwrap();
    api.clock.advance(Period::Millis(30_000));
    let mut query = base.to_vec();
    query.push(("nextToken", row_token));
    assert_eq!(api.get(&seller, "/fba/inventory/v1/summaries", &query).await.status, 400, "30 s");
    api.clock.advance(Period::hours(24));
    api.renew().await;
    assert_eq!(api.search(&seller, &[SINCE, ("maxResultsPerPage", "10"), ("paginationToken", token)]).await.status, 400, "24 h");
}

#[tokio::test]
async fn published_rates_hold_per_seller() {
    let api = Api::start(|options| options.rate_scale = RateScale::PUBLISHED).await;
    let sellers = api.sellers();
    let query = [SINCE, ("maxResultsPerPage", "1")];
    for _ in 0..20 {
        let answer = api.search(&sellers[0].id, &query).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["x-amzn-ratelimit-limit"], "0.0056");
    }
    let refused = api.search(&sellers[0].id, &query).await;
    assert_eq!((refused.status, refused.json()["errors"][0]["code"].as_str()), (429, Some("QuotaExceeded")));
    assert_eq!(api.search(&sellers[1].id, &query).await.status, 200);
    let calls = api.simulator.calls();
    assert_eq!((calls["searchOrders"].calls, calls["searchOrders"].throttled), (22, 1));
}

#[tokio::test]
async fn the_same_seed_gives_the_same_world() {
    let [one, two, other] = [42, 42, 43].map(|seed| async move {
        let api = Api::start(move |options| {
            *options = SimulatorOptions { rate_scale: options.rate_scale, ..SimulatorOptions::new(seed, Arc::clone(&options.clock)) };
        })
        .await;
        let seller = api.first();
        let market = api.sellers()[0].marketplaces[0];
        (api.all_orders(&seller, &[SINCE, ("includedData", EVERYTHING)]).await, api.all_rows(&seller, market, &[]).await)
    });
    let (one, two, other) = (one.await, two.await, other.await);
    assert_eq!(one, two);
    assert_ne!(one.0, other.0);
}

#[tokio::test]
async fn time_moves_orders_to_delivered_and_hides_the_phone() {
    let mut api = Api::start(|options| (options.orders, options.later_orders) = (900, 60)).await;
    let seller = api.first();
    let before = api.simulator.truth()[0].clone();
    assert!(before.unshipped > 0 && before.pending > 0 && before.cancelled > 0);
    let watermark = "2026-11-22T11:58:00.000Z";
    assert!(api.all_orders(&seller, &[("lastUpdatedAfter", watermark)]).await.is_empty());
    api.clock.advance(Period::days(45));
    api.renew().await;
    let after = api.simulator.truth()[0].clone();
    assert_eq!(after.orders, before.orders + 20, "the later orders arrived");
    assert!(after.delivered_packages > before.delivered_packages && after.unshipped == 0 && after.partially_shipped == 0);
    let changed = api.all_orders(&seller, &[("lastUpdatedAfter", watermark), ("includedData", EVERYTHING)]).await;
    assert!(changed.len() > 20 && changed.iter().all(|order| order["recipient"]["deliveryAddress"]["phone"].is_null()));
    assert!(changed.iter().any(|order| order["packages"][0]["packageStatus"]["status"] == "DELIVERED"));
}

#[tokio::test]
async fn late_changes_need_an_overlap_and_are_found_with_one() {
    let mut api = Api::start(|options| (options.sellers, options.orders) = (1, 30_000)).await;
    let seller = api.first();
    let published = Period::Millis(120_000);
    let start = api.simulator.now().minus(published);
    let versions = |orders: &[Value]| -> BTreeSet<(String, Timestamp)> {
        let version =
            |order: &Value| (order["orderId"].as_str().unwrap().to_owned(), order["lastUpdatedTime"].as_str().unwrap().to_owned());
        orders.iter().map(version).map(|(id, at)| (id, Timestamp::parse(&at).unwrap())).filter(|(_, at)| *at > start).collect()
    };
    // Small steps, so that some change falls between happening and being seen.
    let (mut without, mut with) = (BTreeSet::new(), BTreeSet::new());
    let mut watermark = start;
    for step in 0..150 {
        if step % 60 == 0 {
            api.renew().await;
        }
        api.clock.advance(Period::Millis(47_000));
        for (overlap_ms, found) in [(0, &mut without), (30_000, &mut with)] {
            let after = Timestamp(watermark.0 - overlap_ms).to_iso();
            found.extend(versions(&api.all_orders(&seller, &[("lastUpdatedAfter", &after)]).await));
        }
        watermark = api.simulator.now().minus(published);
    }
    let latest = versions(&api.all_orders(&seller, &[("lastUpdatedAfter", &start.to_iso())]).await);
    assert!(latest.is_subset(&with), "30 s of overlap find everything");
    assert!(
        without.is_subset(&with) && without.len() < with.len(),
        "without overlap, late changes are lost: {} of {}",
        without.len(),
        with.len()
    );
}

#[tokio::test]
async fn every_personal_value_is_told_and_unique() {
    let api = Api::start(|options| {
        options.sellers = 5;
        options.orders = 400;
        options.faults.unknown_fields = 300;
    })
    .await;
    let (mut needles, mut groups) = (BTreeSet::new(), BTreeSet::new());
    for seller in api.sellers() {
        let orders = api.all_orders(&seller.id, &[SINCE, ("includedData", EVERYTHING)]).await;
        let texts: BTreeMap<&str, String> = orders.iter().map(|order| (order["orderId"].as_str().unwrap(), order.to_string())).collect();
        let mut told: BTreeMap<String, String> = BTreeMap::new();
        for value in api.simulator.personal(&seller.id) {
            let Some(needle) = &value.needle else { continue };
            assert_eq!(texts[value.order.as_str()].contains(needle.as_str()), value.allowed, "{} {}", value.group, value.path);
            assert!(value.value.contains(needle.as_str()));
            let once = needles.insert((needle.clone(), value.path.clone()));
            assert!(once, "no two orders share a needle");
            told.insert(needle.clone(), value.order.clone());
            if value.allowed {
                groups.insert(value.group);
                assert!(seller.has_role || !matches!(value.group, "buyer_name" | "buyer_contact" | "recipient_address" | "tax_identity"));
            }
        }
        let plain = api.all_orders(&seller.id, &[SINCE]).await;
        assert!(plain.iter().all(|order| order["buyer"].is_null() && order["recipient"].is_null() && order["fulfillment"].is_null()));
    }
    let every = [
        "buyer_contact",
        "buyer_name",
        "customization",
        "delivery_instructions",
        "free_text",
        "gift",
        "identifiers",
        "payment",
        "recipient_address",
        "tax_identity",
        "tracking",
        "unclassified",
    ];
    assert_eq!(groups.into_iter().collect::<Vec<_>>(), every);
    assert!(api.sellers().iter().any(|seller| !seller.has_role));
}

#[tokio::test]
async fn a_missing_role_may_also_answer_403() {
    let api = Api::start(|options| {
        options.sellers = 5;
        options.role_missing = RoleMissing::Forbidden;
    })
    .await;
    for seller in api.sellers() {
        let status = api.search(&seller.id, &[SINCE, ("includedData", "BUYER")]).await.status;
        assert_eq!(status, if seller.has_role { 200 } else { 403 });
        assert_eq!(api.search(&seller.id, &[SINCE, ("includedData", "PACKAGES")]).await.status, 200);
    }
}

#[tokio::test]
async fn a_hostile_api_still_lets_a_patient_client_through() {
    let api = Api::start(|options| options.faults = Faults { huge_body: 0, slow: 0, ..Faults::hostile() }).await;
    let seller = api.first();
    let expected: BTreeSet<String> = api.simulator.order_ids(&seller).into_iter().collect();
    let mut complete = 0;
    for _ in 0..120 {
        let (mut seen, mut next) = (BTreeSet::new(), None::<String>);
        let mut tries = 0;
        loop {
            let mut query = vec![SINCE, ("maxResultsPerPage", "20")];
            if let Some(token) = &next {
                query.push(("paginationToken", token));
            }
            let answer = api.try_get(&seller, "/orders/2026-01-01/orders", &query).await;
            let body = answer.filter(|answer| answer.status == 200).and_then(|answer| serde_json::from_str::<Value>(&answer.text).ok());
            let Some(body) = body.filter(|body| body["orders"].is_array()) else {
                tries += 1;
                assert!(tries < 60, "faults do not go on for ever");
                continue;
            };
            seen.extend(ids(body["orders"].as_array().unwrap()).into_iter().map(str::to_owned));
            match body["pagination"]["nextToken"].as_str() {
                Some(token) => next = Some(token.to_owned()),
                None => break,
            }
        }
        assert!(seen.is_subset(&expected));
        complete += usize::from(seen == expected);
    }
    assert!(complete > 100, "{complete}");
    let calls = &api.simulator.calls()["searchOrders"];
    assert!(calls.faults > 50 && calls.statuses.keys().copied().collect::<Vec<_>>() == [200, 400, 403, 429, 500, 503], "{calls:?}");
    // Every body of fifty megabytes is really that long.
    api.simulator.set_faults(Faults { huge_body: 1000, ..Faults::none() });
    assert!(api.search(&seller, &[SINCE]).await.text.len() > 50 << 20);
}

#[tokio::test]
async fn the_controls_answer_over_http() {
    let api = Api::start(|_| ()).await;
    let base = api.simulator.endpoint();
    let get = async |path: &str| api.http.get(format!("{base}{path}")).send().await.unwrap().text().await.unwrap();
    let post = async |path: &str, body: &'static str| {
        let answer = api.http.post(format!("{base}{path}")).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let truth: Value = serde_json::from_str(&get("/_sim/truth").await).unwrap();
    assert_eq!(truth["totals"]["orders"], 300);
    let seller = api.first();
    let lines = get(&format!("/_sim/truth/personal?seller={seller}")).await;
    assert_eq!(lines.lines().count(), api.simulator.personal(&seller).len());
    assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["seller"] == seller));
    assert_eq!(get("/_sim/truth/orders").await.lines().count(), 300);
    let (status, now) = post("/_sim/clock", "{\"advance\":\"30d\"}").await;
    assert!(status == 200 && now.contains("2026-12-22T12:00:00.000Z"), "{now}");
    assert_eq!(post("/_sim/clock", "{\"advance\":\"-1d\"}").await.0, 400);
    assert_eq!(post("/_sim/revoke", "{\"seller\":\"A\"}").await.0, 404);
    assert_eq!(post("/_sim/change", "{\"seller\":\"A\"}").await.0, 400);
    assert_eq!(post("/_sim/faults", "{\"level\":\"hostile\"}").await.0, 200);
    assert!(get("/_sim/calls").await.contains("token"));
    api.simulator.stop().await;
}
