//! The poller against the simulator, on the embedded broker: what is on `raw.*` is what the simulator says, sealed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;
use secrecy::SecretString;
use sunder::kafka::{Kafka, KafkaSettings};
use sunder::poll::{Assignment, PollSettings, PolledSeller, Poller, Progress};
use sunder::registry::{BuiltIn, Schemas};
use sunder::simulator::{Faults, RateScale, RoleMissing, Running, Simulator, SimulatorOptions};
use sunder::spapi::{Client, ClientSettings, Endpoints, RetrySettings};
use sunder_retention::deadline::Policy;
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::{Context, Keyring};
use sunder_retention::ledger::{self, Condemned, Destruction, SubjectState};
use sunder_retention::root::FileRoot;
use sunder_retention::store::Extent;
use sunder_schemas::class::{Dataset, Family, FieldGroup};
use sunder_schemas::envelope::RawEvent;
use sunder_schemas::ids::{CaseId, EntityToken, EventId, MarketplaceId, OrderId, Partition, SellerId};
use sunder_schemas::records::Record as _;
use sunder_schemas::time::{Clock, Period, SystemClock, Timestamp};
use sunder_schemas::topic::Topic;
use sunder_schemas::{key, wire};
use tokio_util::sync::CancellationToken;

use crate::kafka::{PARTITIONS, off};

/// Far above the published rates, the same on both sides.
const SCALE: u32 = 100_000;

struct World {
    simulator: Running,
    kafka: Kafka,
    keyring: Arc<Keyring>,
    schemas: Arc<Schemas>,
    clock: Arc<dyn Clock>,
    sellers: Vec<Arc<PolledSeller>>,
    _folder: tempfile::TempDir,
}

async fn world(name: &str, orders: u32, adjust: impl FnOnce(&mut SimulatorOptions)) -> World {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let mut options = SimulatorOptions::new(7, Arc::clone(&clock));
    (options.sellers, options.orders, options.rate_scale) = (5, orders, RateScale::times(SCALE));
    adjust(&mut options);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let simulator = Simulator::start(options, listener).await.unwrap();
    let kafka = Kafka::connect(KafkaSettings::embedded(&format!("{name}{}", uuid::Uuid::new_v4().simple()), PARTITIONS)).await.unwrap();
    kafka.apply_topics().await.unwrap();
    let schemas = Arc::new(Schemas::open(Arc::new(BuiltIn), &kafka.settings().prefix).await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let db = KeyDb::open(&format!("sqlite://{}/keys.db", folder.path().display()), None).await.unwrap();
    let root = Arc::new(FileRoot::create(&folder.path().join("root.key")).unwrap());
    let keyring = Arc::new(Keyring::new(db, root, Arc::clone(&clock), Policy::default()));
    let sellers = simulator
        .sellers()
        .into_iter()
        .map(|access| {
            Arc::new(PolledSeller {
                id: SellerId::parse(&access.id).unwrap(),
                region: access.region.parse().unwrap(),
                marketplaces: access.marketplaces.iter().map(|id| MarketplaceId::parse(id).unwrap()).collect(),
                refresh_token: SecretString::from(access.refresh_token),
                datasets: Dataset::ALL.to_vec(),
                personal: FieldGroup::ALL.iter().copied().filter(|group| group.may_be_wanted()).collect(),
                since: Period::days(120),
                overlap: Period::Millis(30 * 60_000),
            })
        })
        .collect();
    World { simulator, kafka, keyring, schemas, clock, sellers, _folder: folder }
}

impl World {
    fn poller(&self) -> Arc<Poller> {
        let settings = ClientSettings {
            endpoints: Endpoints { all: Some(self.simulator.endpoint()), ..Endpoints::default() },
            lwa_endpoint: self.simulator.lwa_endpoint(),
            client_id: self.simulator.client_id().to_owned(),
            client_secret: SecretString::from(self.simulator.client_secret().to_owned()),
            rate_scale: Decimal::from(SCALE),
            allow_http: true,
            timeout: Duration::from_secs(20),
            retry: RetrySettings { wait_min: Duration::from_millis(1), wait_max: Duration::from_millis(20), times: 6 },
        };
        let client = Arc::new(Client::new(settings, Arc::clone(&self.clock)).unwrap());
        let sellers = self.sellers.clone();
        let assignment: Assignment = Arc::new(move || sellers.clone());
        let poll = PollSettings {
            orders_every: Duration::from_millis(200),
            inventory_every: Duration::from_millis(200),
            ..PollSettings::default()
        };
        let schemas = Arc::clone(&self.schemas);
        Arc::new(Poller::new(client, Arc::clone(&self.keyring), &self.kafka, schemas, Arc::clone(&self.clock), poll, assignment))
    }

    /// Runs a poller until it has caught up.
    async fn catch_up(&self) -> Progress {
        let poller = self.poller();
        let cancel = CancellationToken::new();
        let run = Arc::clone(&poller).run(cancel.clone());
        let watch = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            while !poller.progress().caught_up {
                ticks.tick().await;
            }
            cancel.cancel();
        };
        tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(run, watch) }).await.unwrap();
        poller.progress()
    }

    /// Everything on `raw.<family>`: the events, and all bytes of keys, values and headers.
    async fn raw(&self, family: Family) -> (Vec<RawEvent>, Vec<u8>) {
        let kafka = self.kafka.clone();
        off(move || {
            let topic = kafka.topic(Topic::Raw(family));
            let ranges: Vec<_> = (0..PARTITIONS).map(|n| kafka.whole_blocking(&topic, Partition(n)).unwrap()).collect();
            let (mut events, mut bytes) = (Vec::new(), Vec::new());
            kafka
                .read_blocking(&ranges, |record| {
                    bytes.extend_from_slice(record.key.unwrap_or_default());
                    bytes.extend_from_slice(record.value.unwrap_or_default());
                    record.headers().for_each(|(_, value)| bytes.extend_from_slice(value.unwrap_or_default()));
                    if !record.is_own() {
                        let (id, body) = wire::open(record.value.unwrap()).unwrap();
                        assert_eq!(id, 1);
                        let event = RawEvent::decode(body).unwrap();
                        let (seller, token) = (&event.attribution.selling_partner_id, event.entity.token);
                        let expected = key::event_key(seller, token, None, event.attribution.event_id);
                        assert_eq!(record.key.unwrap(), expected.as_bytes());
                        let header = |name: &str| record.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
                        assert_eq!(header("ce_type"), Some(format!("sunder.raw.{}.v1", family.as_str())));
                        assert_eq!(header("ce_id"), Some(event.attribution.event_id.to_string()));
                        assert_eq!(header("ce_dataschema").as_deref(), Some("/schemas/ids/1"));
                        assert_eq!(record.partition, key::partition_of(seller, token, PARTITIONS));
                        events.push(event);
                    }
                    Ok(())
                })
                .unwrap();
            (events, bytes)
        })
        .await
    }

    /// Asserts that the latest version of every order of the simulator is on the log, and no order that is not the simulator's.
    async fn orders_are_complete(&self) -> Vec<RawEvent> {
        let (events, bytes) = self.raw(Family::Orders).await;
        let mut latest: HashMap<(String, EntityToken), i64> = HashMap::new();
        for event in &events {
            let at = latest.entry((event.attribution.selling_partner_id.to_string(), event.entity.token)).or_insert(0);
            *at = (*at).max(event.source_version);
        }
        let mut expected = 0;
        let url = format!("{}/_sim/truth/orders", self.simulator.endpoint());
        for line in reqwest::get(url).await.unwrap().text().await.unwrap().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let seller = line["seller"].as_str().unwrap();
            let keys = self.keyring.seller(&SellerId::parse(seller).unwrap()).await.unwrap();
            let token = keys.order_token(&OrderId::parse(line["order"]["orderId"].as_str().unwrap()).unwrap());
            let updated = Timestamp::parse(line["order"]["lastUpdatedTime"].as_str().unwrap()).unwrap();
            assert_eq!(latest.get(&(seller.to_owned(), token)), Some(&updated.0), "an order of {seller} is missing or stale");
            expected += 1;
        }
        assert_eq!(latest.len(), expected);
        self.nothing_personal_in(&bytes);
        events
    }

    fn nothing_personal_in(&self, bytes: &[u8]) {
        let finder: BTreeSet<&[u8]> = bytes.windows(NEEDLE).collect();
        let mut needles = 0;
        for seller in &self.sellers {
            let clear_ids = self.simulator.order_ids(seller.id.as_str());
            let personal = self.simulator.personal(seller.id.as_str()).into_iter().filter_map(|value| value.needle);
            for needle in personal.chain(clear_ids).filter(|needle| needle.len() >= NEEDLE) {
                needles += 1;
                let is_hit = finder.contains(&needle.as_bytes()[..NEEDLE]) && bytes.windows(needle.len()).any(|w| w == needle.as_bytes());
                assert!(!is_hit, "a personal value is in clear on a raw topic");
            }
        }
        assert!(needles > 100, "{needles}");
    }
}

/// Shortest needle that is looked for, in bytes.
const NEEDLE: usize = 6;

/// One event per version: the same version twice carries the same id.
fn ids_are_of_versions(events: &[RawEvent]) {
    let mut ids: BTreeMap<(EntityToken, i64, &str), EventId> = BTreeMap::new();
    for event in events {
        let version = (event.entity.token, event.source_version, event.attribution.payload_sha256.as_str());
        assert_eq!(*ids.entry(version).or_insert(event.attribution.event_id), event.attribution.event_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_and_level_is_on_the_log_once_and_sealed() {
    let world = world("mild", 200, |options| options.faults = Faults::mild()).await;
    let progress = world.catch_up().await;
    assert_eq!((progress.blocked.len(), progress.gaps, progress.rejected), (0, 0, 0), "{progress:?}");
    let events = world.orders_are_complete().await;
    ids_are_of_versions(&events);

    let (levels, bytes) = world.raw(Family::Inventory).await;
    world.nothing_personal_in(&bytes);
    let rows: usize = world.simulator.truth().iter().map(|seller| seller.inventory_rows).sum();
    let distinct: BTreeSet<_> = levels.iter().map(|e| (e.attribution.selling_partner_id.clone(), e.entity.token)).collect();
    assert_eq!(distinct.len(), rows);
    assert_eq!(progress.published, (events.len() + levels.len()) as u64);

    // Polling again brings no order a second time.
    let again = world.catch_up().await;
    assert_eq!(world.raw(Family::Orders).await.0.len(), events.len());
    assert_eq!(again.rejected, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_roles_allow_opens_and_nothing_else_was_sealed() {
    let world = world("open", 120, |options| options.role_missing = RoleMissing::Forbidden).await;
    world.catch_up().await;
    let events = world.orders_are_complete().await;
    let mut opened = 0;
    for seller in &world.sellers {
        let keys = world.keyring.seller(&seller.id).await.unwrap();
        let mut values: HashMap<(EntityToken, &str), Vec<String>> = HashMap::new();
        for value in world.simulator.personal(seller.id.as_str()).into_iter().filter(|value| value.allowed) {
            let token = keys.order_token(&OrderId::parse(&value.order).unwrap());
            values.entry((token, value.group)).or_default().extend(value.needle);
        }
        for event in events.iter().filter(|event| event.attribution.selling_partner_id == seller.id) {
            let token = event.entity.token;
            if event.sealed.is_empty() {
                continue;
            }
            let SubjectState::Live(key) = world.keyring.subject(&seller.id, token).await.unwrap() else {
                panic!("no key for a sealed event")
            };
            assert!(event.deadline.as_ref().unwrap().0 > world.clock.now());
            for sealed in &event.sealed {
                let context = Context { seller: &seller.id, entity: token, group: sealed.group, classification: &event.classification };
                let plain = key.open(&context, sealed.block.as_bytes()).unwrap();
                let text = String::from_utf8_lossy(plain.reveal()).into_owned();
                for needle in values.get(&(token, sealed.group.as_str())).into_iter().flatten() {
                    assert!(text.contains(needle.as_str()), "{} lacks a value", sealed.group);
                    opened += 1;
                }
            }
        }
    }
    assert!(opened > 50, "{opened}");
    let lacking: Vec<_> = world.simulator.sellers().into_iter().filter(|seller| !seller.has_role).map(|seller| seller.id).collect();
    assert!(!lacking.is_empty());
    for event in events.iter().filter(|event| lacking.contains(&event.attribution.selling_partner_id.to_string())) {
        assert!(!event.sealed.iter().any(|sealed| matches!(sealed.group, FieldGroup::BuyerName | FieldGroup::RecipientAddress)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_server_loses_nothing() {
    let world = world("hostile", 150, |options| options.faults = Faults::hostile()).await;
    let progress = world.catch_up().await;
    assert!(progress.blocked.is_empty(), "{progress:?}");
    world.simulator.set_faults(Faults::none());
    world.catch_up().await;
    ids_are_of_versions(&world.orders_are_complete().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poller_killed_anywhere_loses_nothing_after_its_restart() {
    let world = world("kill", 200, |_| {}).await;
    for round in 0..12u64 {
        // Dropped where it stands: in a call, before or after Kafka's acknowledgement, within a commit.
        let run = world.poller().run(CancellationToken::new());
        assert!(tokio::time::timeout(Duration::from_millis(5 + 23 * round), run).await.is_err());
    }
    world.catch_up().await;
    ids_are_of_versions(&world.orders_are_complete().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_change_and_a_revoked_grant_are_seen() {
    let world = world("late", 100, |_| {}).await;
    world.catch_up().await;
    let before = world.orders_are_complete().await.len();
    let first = world.sellers[0].id.as_str();
    let changed = world.simulator.order_ids(first);
    for order in changed.iter().take(5) {
        world.simulator.change(first, order).unwrap();
    }
    // A change is visible two minutes after it happened: the server's present end lies that far back.
    world.simulator.advance(Period::Millis(300_000));
    world.catch_up().await;
    let events = world.orders_are_complete().await;
    assert!(events.len() >= before + 5, "{before} then {}", events.len());
    let revoked = world.sellers[1].id.clone();
    assert!(world.simulator.revoke(revoked.as_str()));
    assert_eq!(world.catch_up().await.blocked, vec![revoked]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_order_comes_back_without_its_personal_data() {
    let world = world("erased", 100, |_| {}).await;
    world.catch_up().await;
    let events = world.orders_are_complete().await;
    let event = events.iter().find(|event| !event.sealed.is_empty()).unwrap();
    let (seller, token) = (&event.attribution.selling_partner_id, event.entity.token);
    let keys = world.keyring.seller(seller).await.unwrap();
    let ids = world.simulator.order_ids(seller.as_str());
    let id = ids.iter().find(|id| keys.order_token(&OrderId::parse(id).unwrap()) == token).unwrap();
    let subject = Condemned { fingerprint: keys.fingerprint(&OrderId::parse(id).unwrap()), token: Some(token) };
    let case = CaseId::parse("case-1").unwrap();
    let destruction =
        Destruction { case: &case, seller, subjects: &[subject], extent: Extent::Personal, at: world.clock.now(), actor: "test" };
    let mut tx = world.keyring.db().begin_write().await.unwrap();
    ledger::destroy(&mut tx, &destruction).await.unwrap();
    tx.commit().await.unwrap();
    let version = world.simulator.change(seller.as_str(), id).unwrap();
    world.simulator.advance(Period::Millis(300_000));
    world.catch_up().await;
    let events = world.orders_are_complete().await;
    let latest = events.iter().filter(|e| e.entity.token == token).max_by_key(|e| e.source_version).unwrap();
    assert_eq!(latest.source_version, version.0);
    assert!(latest.sealed.is_empty() && latest.deadline.is_none());
}
