//! A server that is not ours: it lists orders as Orders 2026-01-01 does, and a script may answer anything else instead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sunder_schemas::time::{Clock, Period, SystemClock, Timestamp};

/// Orders of one page.
pub(super) const PAGE: usize = 2;
/// How far behind the present the server's own end lies (FACTS section 4).
const PRESENT_LAG: Period = Period::Millis(120_000);

/// One call.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    /// Calls of orders before this one.
    pub(super) before: usize,
}

impl Asked {
    /// The window that is asked for; its end is the server's where none is given.
    pub(super) fn window(&self) -> (i64, i64) {
        let time = |name: &str| self.query.get(name).map(|text| Timestamp::parse(text).expect("a time").0);
        (time("lastUpdatedAfter").expect("a window"), time("lastUpdatedBefore").unwrap_or_else(present_end))
    }

    fn skip(&self) -> usize {
        self.query.get("paginationToken").map_or(0, |token| token.rsplit('~').next().and_then(|n| n.parse().ok()).expect("our token"))
    }
}

fn present_end() -> i64 {
    SystemClock::default().now().minus(PRESENT_LAG).0
}

/// What answers instead of the honest page; `None`: the honest page.
type Script = Box<dyn Fn(&Asked, &Value) -> Option<Response> + Send + Sync>;

struct Shop {
    orders: Mutex<Vec<Value>>,
    script: Mutex<Script>,
    asked: Mutex<Vec<Asked>>,
}

/// The server, on a port of its own.
pub(super) struct Server {
    pub(super) base: String,
    shop: Arc<Shop>,
}

impl Server {
    pub(super) async fn start(orders: Vec<Value>, script: impl Fn(&Asked, &Value) -> Option<Response> + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shop = Arc::new(Shop { orders: Mutex::new(orders), script: Mutex::new(Box::new(script)), asked: Mutex::default() });
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&shop));
        #[expect(clippy::disallowed_methods, reason = "it serves until the test's runtime ends")]
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { base, shop }
    }

    /// Honest from now on.
    pub(super) fn mend(&self) {
        *self.shop.script.lock().unwrap() = Box::new(|_, _| None);
    }

    /// Adds an order.
    pub(super) fn add(&self, order: Value) {
        self.shop.orders.lock().unwrap().push(order);
    }

    /// All calls so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.shop.asked.lock().unwrap().clone()
    }
}

async fn answer(State(shop): State<Arc<Shop>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default();
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let query = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (decode(k), decode(v))).collect();
    let before = shop.asked.lock().unwrap().iter().filter(|asked| asked.path.starts_with("/orders")).count();
    let asked = Asked { path, query, before };
    shop.asked.lock().unwrap().push(asked.clone());
    if asked.path == "/token" {
        let honest = json!({"access_token": "Atza|secret-access-token", "token_type": "bearer", "expires_in": 3600});
        let scripted = (shop.script.lock().unwrap())(&asked, &honest);
        return scripted.unwrap_or_else(|| axum::Json(honest).into_response());
    }
    let honest = page(&shop, &asked);
    let scripted = (shop.script.lock().unwrap())(&asked, &honest);
    scripted.unwrap_or_else(|| ([("x-amzn-requestid", "11111111-2222-3333-4444-555555555555")], axum::Json(honest)).into_response())
}

fn page(shop: &Shop, asked: &Asked) -> Value {
    let (from, until) = asked.window();
    let orders = shop.orders.lock().unwrap();
    let updated = |order: &Value| order["lastUpdatedTime"].as_str().and_then(|text| Timestamp::parse(text).ok()).map(|at| at.0);
    // What has no readable time is on every page of its own: it has to be met somewhere.
    let found: Vec<&Value> = orders.iter().filter(|order| updated(order).is_none_or(|at| (from..until).contains(&at))).collect();
    let skip = asked.skip();
    let mut body =
        json!({"orders": found.iter().skip(skip).take(PAGE).collect::<Vec<_>>(), "lastUpdatedBefore": Timestamp(until).to_iso()});
    if skip + PAGE < found.len() {
        body["pagination"] = json!({"nextToken": format!("to+ken/=&%~{}", skip + PAGE)});
    }
    body
}

/// An answer with `status` and `body`.
pub(super) fn reply(status: u16, body: impl Into<Body>) -> Response {
    Response::builder().status(StatusCode::from_u16(status).unwrap()).body(body.into()).unwrap()
}

/// An answer of SP-API that names `code`.
pub(super) fn error(status: u16, code: &str) -> Response {
    reply(status, json!({"errors": [{"code": code, "message": format!("about {MARKER}"), "details": ""}]}).to_string())
}

/// Part of every personal value and of every error text; it must never be found in clear.
pub(super) const MARKER: &str = "Wilhelmina Fremdschreiber";

/// An order updated `minutes` ago.
pub(super) fn order(id: impl Into<Value>, minutes: i64) -> Value {
    let at = |minutes: i64| Timestamp(present_end() - minutes * 60_000).to_iso();
    json!({
        "orderId": id.into(),
        "createdTime": at(minutes + 60),
        "lastUpdatedTime": at(minutes),
        "salesChannel": {"channelName": "AMAZON", "marketplaceId": "A1PA6795UKMFR9", "marketplaceName": "Amazon.de"},
        "buyer": {"buyerName": format!("{MARKER} {minutes}")},
        "orderItems": [{
            "orderItemId": format!("item-{minutes}"), "quantityOrdered": 1,
            "product": {"asin": "B000000000", "sellerSku": "sku|1/% ä", "title": "A book"},
        }],
        "fulfillment": {"fulfillmentStatus": "UNSHIPPED", "fulfilledBy": "MERCHANT"},
    })
}
