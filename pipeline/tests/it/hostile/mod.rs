//! The poller against servers that are not our simulator: other paging, missing headers, wrong types, refusals, bodies of proxies. Nothing
//! is lost, nothing of a person is in clear, no secret goes elsewhere, and what is wrong is named by a stable code.

mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use rust_decimal::Decimal;
use secrecy::SecretString;
use serde_json::{Value, json};
use sunder::kafka::{Kafka, KafkaSettings};
use sunder::poll::{Assignment, PollSettings, PolledSeller, Poller, Progress};
use sunder::registry::{BuiltIn, Schemas};
use sunder::spapi::{Client, ClientSettings, Endpoints, Region, RetrySettings};
use sunder_retention::cursor::{self, Gap};
use sunder_retention::deadline::Policy;
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::Keyring;
use sunder_retention::root::FileRoot;
use sunder_retention::sellers::{self, Account};
use sunder_schemas::class::{Dataset, Family, FieldGroup};
use sunder_schemas::envelope::RawEvent;
use sunder_schemas::ids::{EntityToken, EventId, MarketplaceId, OrderId, Partition, SellerId};
use sunder_schemas::records::Record as _;
use sunder_schemas::time::{Clock, Period, SystemClock, Timestamp};
use sunder_schemas::topic::Topic;
use sunder_schemas::wire;
use tokio_util::sync::CancellationToken;

use crate::kafka::{PARTITIONS, off};
use server::{Asked, MARKER, Server, error, order, reply};

/// What must never be found in clear.
const SECRETS: [&str; 3] = [MARKER, "secret-access-token", "secret-refresh-token"];
/// How long anything here may take; far above what it needs.
const AT_MOST: Duration = Duration::from_secs(300);

struct World {
    server: Server,
    kafka: Kafka,
    keyring: Arc<Keyring>,
    schemas: Arc<Schemas>,
    seller: Arc<PolledSeller>,
    lwa: String,
    folder: tempfile::TempDir,
}

fn honest(_: &Asked, _: &Value) -> Option<Response> {
    None
}

impl World {
    async fn start(orders: Vec<Value>, script: impl Fn(&Asked, &Value) -> Option<Response> + Send + Sync + 'static) -> Self {
        let server = Server::start(orders, script).await;
        let kafka = Kafka::connect(KafkaSettings::embedded(&format!("h{}", uuid::Uuid::new_v4().simple()), PARTITIONS)).await.unwrap();
        kafka.apply_topics().await.unwrap();
        let schemas = Arc::new(Schemas::open(Arc::new(BuiltIn), &kafka.settings().prefix).await.unwrap());
        let folder = tempfile::tempdir().unwrap();
        let db = KeyDb::open(&format!("sqlite://{}/keys.db", folder.path().display()), None).await.unwrap();
        let root = Arc::new(FileRoot::create(&folder.path().join("root.key")).unwrap());
        let keyring = Arc::new(Keyring::new(db, root, Arc::new(SystemClock::default()), Policy::default()));
        let seller = PolledSeller {
            id: SellerId::parse("A1HOSTILE").unwrap(),
            region: Region::Eu,
            marketplaces: ["A1PA6795UKMFR9", "A13V1IB3VIYZZH"].map(|id| MarketplaceId::parse(id).unwrap()).to_vec(),
            refresh_token: SecretString::from("Atzr|secret-refresh-token"),
            datasets: vec![Dataset::Orders],
            personal: FieldGroup::ALL.iter().copied().filter(|group| group.may_be_wanted()).collect(),
            since: Period::days(30),
            overlap: Period::Millis(30 * 60_000),
        };
        let account = Account {
            id: seller.id.clone(),
            region: "eu".to_owned(),
            marketplaces: seller.marketplaces.clone(),
            refresh_token: Some(seller.refresh_token.clone()),
        };
        sellers::put(&keyring, &account).await.unwrap();
        let lwa = format!("{}/token", server.base);
        Self { server, kafka, keyring, schemas, seller: Arc::new(seller), lwa, folder }
    }

    /// A poller of our seller and, before it, of `others`.
    fn poller(&self, others: &[Arc<PolledSeller>]) -> Arc<Poller> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let settings = ClientSettings {
            endpoints: Endpoints { all: Some(self.server.base.clone()), ..Endpoints::default() },
            lwa_endpoint: self.lwa.clone(),
            client_id: "client".to_owned(),
            client_secret: SecretString::from("client-secret".to_owned()),
            rate_scale: Decimal::from(100_000),
            allow_http: true,
            timeout: Duration::from_secs(60),
            retry: RetrySettings { wait_min: Duration::from_millis(1), wait_max: Duration::from_millis(5), times: 3 },
        };
        let client = Arc::new(Client::new(settings, Arc::clone(&clock)).unwrap());
        let sellers: Vec<Arc<PolledSeller>> = others.iter().chain([&self.seller]).map(Arc::clone).collect();
        let assignment: Assignment = Arc::new(move || sellers.clone());
        Arc::new(Poller::new(
            client,
            Arc::clone(&self.keyring),
            &self.kafka,
            Arc::clone(&self.schemas),
            clock,
            PollSettings::default(),
            assignment,
        ))
    }

    /// Runs a poller until `enough` says so.
    async fn poll_until(&self, enough: impl Fn(&Progress) -> bool) -> Progress {
        self.poll_with(&[], enough).await
    }

    /// Runs a poller that has `others` before our seller until `enough` says so.
    async fn poll_with(&self, others: &[Arc<PolledSeller>], enough: impl Fn(&Progress) -> bool) -> Progress {
        let poller = self.poller(others);
        let cancel = CancellationToken::new();
        let run = Arc::clone(&poller).run(cancel.clone());
        let watch = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            while !enough(&poller.progress()) {
                ticks.tick().await;
            }
            cancel.cancel();
        };
        tokio::time::timeout(AT_MOST, async { tokio::join!(run, watch) }).await.expect("it comes to an end");
        poller.progress()
    }

    async fn catch_up(&self) -> Progress {
        self.poll_until(|progress| progress.caught_up).await
    }

    /// The events on the log. Nothing secret lies there or in a file.
    async fn events(&self) -> Vec<RawEvent> {
        let kafka = self.kafka.clone();
        let (events, bytes) = off(move || {
            let topic = kafka.topic(Topic::Raw(Family::Orders));
            let ranges: Vec<_> = (0..PARTITIONS).map(|n| kafka.whole_blocking(&topic, Partition(n)).unwrap()).collect();
            let (mut events, mut bytes) = (Vec::new(), Vec::new());
            let read = kafka.read_blocking(&ranges, |record| {
                bytes.extend_from_slice(record.key.unwrap_or_default());
                bytes.extend_from_slice(record.value.unwrap_or_default());
                record.headers().for_each(|(_, value)| bytes.extend_from_slice(value.unwrap_or_default()));
                if !record.is_own() {
                    events.push(RawEvent::decode(wire::open(record.value.unwrap()).unwrap().1).unwrap());
                }
                Ok(())
            });
            read.unwrap();
            (events, bytes)
        })
        .await;
        nothing_secret_in(&bytes, "the raw topic");
        for file in std::fs::read_dir(self.folder.path()).unwrap() {
            let path = file.unwrap().path();
            nothing_secret_in(&std::fs::read(&path).unwrap(), &path.display().to_string());
        }
        events
    }

    /// Asserts that exactly the orders called `ids` are on the log, each version under one event id.
    async fn has(&self, ids: &[&str]) -> Vec<RawEvent> {
        let events = self.events().await;
        let keys = self.keyring.seller(&self.seller.id).await.unwrap();
        let expected: BTreeSet<EntityToken> = ids.iter().map(|id| keys.order_token(&OrderId::parse(id).unwrap())).collect();
        let found: BTreeSet<EntityToken> = events.iter().map(|event| event.entity.token).collect();
        assert_eq!(found, expected, "{} orders of {}", found.intersection(&expected).count(), expected.len());
        let mut versions: BTreeMap<(EntityToken, i64), EventId> = BTreeMap::new();
        for event in &events {
            let id = *versions.entry((event.entity.token, event.source_version)).or_insert(event.attribution.event_id);
            assert_eq!(id, event.attribution.event_id, "one version is one event");
        }
        events
    }

    async fn gaps(&self) -> Vec<Gap> {
        cursor::open_gaps(self.keyring.db(), Some(&self.seller.id)).await.unwrap()
    }

    fn calls(&self) -> Vec<Asked> {
        self.server.asked().into_iter().filter(|asked| asked.path.starts_with("/orders")).collect()
    }
}

fn nothing_secret_in(bytes: &[u8], place: &str) {
    for secret in SECRETS {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} in {place}");
    }
}

/// Orders called `ids`, an hour apart, the first one the latest.
fn orders(ids: &[&str]) -> Vec<Value> {
    ids.iter().zip(1..).map(|(id, n)| order(*id, n * 60)).collect()
}

const FIVE: [&str; 5] = ["o-1", "o-2", "o-3", "o-4", "o-5"];

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_headers_of_another_server_are_read() {
    // In chunks, without any header of Amazon's, with a rate that is none, and with what the models do not know.
    let world = World::start(orders(&FIVE), |asked, page| {
        let text = page.to_string();
        Some(match asked.before % 3 {
            0 => {
                let chunks: Vec<_> = text.as_bytes().chunks(7).map(|part| Ok::<_, std::io::Error>(Bytes::copy_from_slice(part))).collect();
                reply(200, Body::from_stream(futures::stream::iter(chunks)))
            }
            1 => ([("x-amzn-ratelimit-limit", "fast"), ("x-amzn-requestid", "not a request id; \"quoted\"")], text).into_response(),
            _ => ([("x-amzn-ratelimit-limit", "NaN"), ("content-type", "text/plain")], text).into_response(),
        })
        .filter(|_| asked.path != "/token")
    })
    .await;
    let progress = world.catch_up().await;
    assert_eq!((progress.gaps, progress.rejected), (0, 0), "{progress:?}");
    for event in world.has(&FIVE).await {
        assert_eq!(event.attribution.source_request_id, "absent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_takes_neither_token_nor_order_to_another_host() {
    let elsewhere = Server::start(Vec::new(), honest).await;
    for status in [301, 302, 303, 307, 308] {
        let to = elsewhere.base.clone();
        let script = move |asked: &Asked, _: &Value| {
            let location = format!("{to}{}", asked.path);
            (asked.path != "/token").then(|| (axum::http::StatusCode::from_u16(status).unwrap(), [("location", location)]).into_response())
        };
        let world = World::start(orders(&FIVE), script).await;
        world.poll_until(|_| world.calls().len() >= 2).await;
        world.has(&[]).await;
        world.server.mend();
        world.catch_up().await;
        world.has(&FIVE).await;
    }
    // The token endpoint redirects: neither refresh token nor client secret is sent on.
    let to = elsewhere.base.clone();
    let script = move |asked: &Asked, _: &Value| {
        (asked.path == "/token")
            .then(|| (axum::http::StatusCode::TEMPORARY_REDIRECT, [("location", format!("{to}/token"))]).into_response())
    };
    let world = World::start(orders(&FIVE), script).await;
    world.poll_until(|_| world.server.asked().len() >= 2).await;
    world.server.mend();
    world.catch_up().await;
    world.has(&FIVE).await;
    assert!(elsewhere.asked().is_empty(), "somebody else was asked: {:?}", elsewhere.asked().first().map(|asked| &asked.path));
}

/// A turn that waits for its seller's rate, which takes minutes, keeps no other seller from its own.
#[tokio::test(flavor = "multi_thread")]
async fn sellers_that_wait_for_their_rate_keep_no_other_waiting() {
    let throttled = MarketplaceId::parse("A1RKKUPIHCS9HS").unwrap();
    let theirs = throttled.as_str().to_owned();
    let world = World::start(orders(&FIVE), move |asked, _| {
        let is_theirs = asked.query.values().any(|value| value.contains(&theirs));
        is_theirs.then(|| (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "600")], "{}").into_response())
    })
    .await;
    let others: Vec<Arc<PolledSeller>> = (0..3 * PollSettings::default().turns_max)
        .map(|n| {
            let id = SellerId::parse(&format!("A1THROTTLED{n}")).unwrap();
            Arc::new(PolledSeller { id, marketplaces: vec![throttled.clone()], ..(*world.seller).clone() })
        })
        .collect();
    let progress = world.poll_with(&others, |progress| progress.published >= 5).await;
    assert!(!progress.caught_up, "nobody was throttled");
    world.has(&FIVE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_believed_the_second_time_whatever_it_is_called() {
    for (status, code) in
        [(403, "Unauthorized"), (403, "AccessDenied"), (403, "InvalidAccessToken"), (403, "QuotaExceeded"), (401, "Unauthorized")]
    {
        // Once: the token is renewed and the call goes on.
        let world =
            World::start(orders(&FIVE), move |asked, _| (asked.path != "/token" && asked.before == 0).then(|| error(status, code))).await;
        let progress = world.catch_up().await;
        assert!(progress.blocked.is_empty(), "{status} {code} once: {progress:?}");
        world.has(&FIVE).await;

        // For good: the seller's data is not asked for any more, and nothing is passed over.
        let world = World::start(orders(&FIVE), move |asked, _| (asked.path != "/token").then(|| error(status, code))).await;
        let progress = world.catch_up().await;
        assert_eq!(progress.blocked, std::slice::from_ref(&world.seller.id), "{status} {code}");
        world.has(&[]).await;
        world.server.mend();
        world.catch_up().await;
        world.has(&FIVE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_retry_helps_ends_the_turn_and_keeps_the_place() {
    for status in [404, 408, 410, 413, 414, 415, 418, 204, 206] {
        let world = World::start(orders(&FIVE), move |asked, _| (asked.path != "/token").then(|| error(status, "Nope"))).await;
        world.poll_until(|_| world.calls().len() >= 4).await;
        world.has(&[]).await;
        world.server.mend();
        let progress = world.catch_up().await;
        assert_eq!(progress.gaps, 0, "{status}: {progress:?}");
        world.has(&FIVE).await;
        assert_eq!(world.gaps().await, [], "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_proxy_are_no_orders_and_are_not_searched_for_one() {
    let html = format!("<html><body>Welcome back, {MARKER}</body></html>");
    let gzip = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], MARKER.as_bytes()].concat();
    let bodies: [(&str, Vec<u8>); 6] = [
        ("html", html.into_bytes()),
        ("gzip", gzip),
        ("nothing", Vec::new()),
        ("an error with status 200", json!({"errors": [{"code": "InternalFailure", "message": MARKER}]}).to_string().into_bytes()),
        ("a list", b"[]".to_vec()),
        ("half", format!("{{\"orders\":[{{\"buyer\":{{\"buyerName\":\"{MARKER}").into_bytes()),
    ];
    for (name, body) in bodies {
        let world = World::start(orders(&FIVE), move |asked, _| {
            let encoded = if body.starts_with(&[0x1f, 0x8b]) { "gzip" } else { "identity" };
            (asked.path != "/token").then(|| ([("content-encoding", encoded)], body.clone()).into_response())
        })
        .await;
        world.poll_until(|_| world.calls().len() >= 12).await;
        world.has(&[]).await;
        let narrow = world.calls().iter().map(Asked::window).filter(|(from, until)| (1_001..86_400_000).contains(&(until - from))).count();
        assert_eq!(narrow, 0, "{name}: the window was cut to pieces");
        let gaps = world.gaps().await;
        assert_eq!(gaps, [], "{name}: the cursor stays, and nothing was passed over");
        world.server.mend();
        world.catch_up().await;
        world.has(&FIVE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_the_server_fails_at_for_ever_keeps_no_other_back() {
    for status in [500, 502, 503, 504, 200] {
        let world = World::start(orders(&FIVE), move |asked, page| {
            let is_poisoned = page["orders"].as_array().is_some_and(|orders| orders.iter().any(|order| order["orderId"] == "o-3"));
            (asked.path != "/token" && is_poisoned).then(|| error(status, "InternalFailure"))
        })
        .await;
        let progress = world.catch_up().await;
        assert_eq!(progress.gaps, 1, "{status}: {progress:?}");
        world.has(&["o-1", "o-2", "o-4", "o-5"]).await;
        let gaps = world.gaps().await;
        assert!(gaps.len() == 1 && gaps[0].until.0 - gaps[0].from.0 < 2_000, "{status}: {gaps:?}");
        world.server.mend();
        world.catch_up().await;
        world.has(&FIVE).await;
        assert_eq!(world.gaps().await, [], "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_may_have_empty_pages_repeat_itself_and_never_end() {
    type Twist = fn(&Asked, &Value) -> Option<Response>;
    let twists: [(&str, Twist); 5] = [
        ("an empty page before each page", |asked, page| {
            let is_first = !asked.query.contains_key("paginationToken");
            let empty = json!({"orders": [], "pagination": {"nextToken": "empty~0"}, "lastUpdatedBefore": page["lastUpdatedBefore"]});
            is_first.then(|| axum::Json(empty).into_response())
        }),
        ("each order twice on its page, the last one first", |_, page| {
            let mut page = page.clone();
            let orders = page["orders"].as_array().unwrap().clone();
            page["orders"] = orders.iter().rev().chain(&orders).cloned().collect();
            Some(axum::Json(page).into_response())
        }),
        ("the last page leads to the first", |_, page| {
            let mut page = page.clone();
            if page["orders"].as_array().is_some_and(|orders| !orders.is_empty()) && page["pagination"].is_null() {
                page["pagination"] = json!({"nextToken": "around~0"});
            }
            Some(axum::Json(page).into_response())
        }),
        ("no word of its present end, null for absent", |_, page| {
            let mut page = page.clone();
            page.as_object_mut().unwrap().remove("lastUpdatedBefore");
            if page["pagination"].is_null() {
                page["pagination"] = Value::Null;
            }
            Some(axum::Json(page).into_response())
        }),
        ("a present end in a far future", |_, page| {
            let mut page = page.clone();
            page["lastUpdatedBefore"] = json!("2999-01-01T00:00:00Z");
            Some(axum::Json(page).into_response())
        }),
    ];
    for (name, twist) in twists {
        let world = World::start(orders(&FIVE), move |asked, page| if asked.path == "/token" { None } else { twist(asked, page) }).await;
        world.catch_up().await;
        world.has(&FIVE).await;
        // What comes later is found as well: the place was kept honestly.
        world.server.add(order("o-6", 1));
        world.catch_up().await;
        world.has(&["o-1", "o-2", "o-3", "o-4", "o-5", "o-6"]).await;
        assert!(world.calls().len() < 2_000, "{name}: {} calls", world.calls().len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_ids_and_types_harm_no_other_order() {
    let long = "x".repeat(65);
    let mut listed = orders(&FIVE);
    // Ids that are ids, if odd ones.
    let odd = ["a|b", "50%", "~hb", "..", "a/b?c=d#e", "\"quoted\\"];
    listed.extend(odd.iter().zip(10..).map(|(id, n)| order(*id, n * 60)));
    // What cannot be an id or an order.
    let bad: Vec<Value> =
        vec![json!(""), json!("žluťoučký"), json!(long), json!(12_345), Value::Null, json!({"id": MARKER}), json!([MARKER])];
    listed.extend(bad.into_iter().zip(20..).map(|(id, n)| order(id, n * 60)));
    let mut without_id = order("x", 30 * 60);
    without_id.as_object_mut().unwrap().remove("orderId");
    let mut bad_time = order("bad-time", 31 * 60);
    bad_time["lastUpdatedTime"] = json!("yesterday");
    listed.extend([without_id, bad_time, json!(MARKER), json!(null), json!([]), json!(17)]);
    // Times with an offset and without milliseconds, numbers as strings and strings as numbers, null for absent, another marketplace.
    let at = Timestamp(Timestamp::parse(order("x", 32 * 60)["lastUpdatedTime"].as_str().unwrap()).unwrap().0 / 1_000 * 1_000);
    let mut offset = order("offset", 32 * 60);
    offset["lastUpdatedTime"] = json!(at.to_utc().with_timezone(&chrono::FixedOffset::east_opt(5 * 3_600 + 1_800).unwrap()).to_rfc3339());
    let mut types = order("types", 33 * 60);
    types["orderItems"][0]["quantityOrdered"] = json!("1");
    types["salesChannel"]["marketplaceName"] = json!(17);
    let mut nulls = order("nulls", 34 * 60);
    (nulls["buyer"], nulls["orderItems"], nulls["fulfillment"]) = (Value::Null, Value::Null, Value::Null);
    let mut other = order("other-marketplace", 35 * 60);
    other["salesChannel"]["marketplaceId"] = json!("A1RKKUPIHCS9HS");
    listed.extend([offset, types, nulls, other]);
    let world = World::start(listed, honest).await;
    let progress = world.catch_up().await;
    assert!(progress.rejected > 0 && progress.blocked.is_empty(), "{progress:?}");
    let events = world.has(&[FIVE.as_slice(), &odd, &["offset", "types", "nulls", "other-marketplace"]].concat()).await;
    let keys = world.keyring.seller(&world.seller.id).await.unwrap();
    let of = |id: &str| {
        let token = keys.order_token(&OrderId::parse(id).unwrap());
        events.iter().find(|event| event.entity.token == token).expect("an event")
    };
    assert_eq!(of("offset").source_version, at.0, "the same instant, however it is written");
    assert_eq!(of("other-marketplace").attribution.marketplace_id.as_str(), "A1RKKUPIHCS9HS", "it says where it is from");
    let gaps = world.gaps().await;
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| gap.code.starts_with("entity_")), "{gaps:?}");
    let db = std::fs::read(Path::new(world.folder.path()).join("keys.db")).unwrap();
    nothing_secret_in(&db, "keys.db");
}
