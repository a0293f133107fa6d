//! Laws of the splitter, without Kafka.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use proptest::prelude::*;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::envelope::{Attribution, Entity, SealedGroup};
use sunder_schemas::ids::{EventId, MarketplaceId, SellerId};
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::Timestamp;

use super::*;
use crate::registry::BuiltIn;
use crate::split::versions::{Standing, Versions};

const PARTITIONS: i32 = 4;

/// A record as it was written: topic, partition, key, value, headers.
type Written = (Topic, Partition, String, Option<Vec<u8>>, Vec<(String, String)>);

/// The topics in memory.
#[derive(Default)]
struct World {
    erased: HashSet<KeyId>,
    withheld: HashSet<EntityToken>,
    cutoff: Option<Timestamp>,
    log: Vec<Written>,
    dead: Vec<DeadLetterReason>,
}

impl Surroundings for World {
    type Error = std::convert::Infallible;
    fn is_erased(&self, key: KeyId) -> bool {
        self.erased.contains(&key)
    }
    fn is_withheld(&self, entity: EntityToken) -> bool {
        self.withheld.contains(&entity)
    }
    fn is_past(&self, row: &StateRecord) -> bool {
        row.event_time().is_some_and(|at| Some(at) < self.cutoff)
    }
    fn learn(&mut self, _: u32) -> Result<(), Self::Error> {
        Ok(())
    }
    fn write(
        &mut self,
        topic: Topic,
        partition: Partition,
        key: &str,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<(), Self::Error> {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), String::from_utf8(value.to_vec()).unwrap())).collect();
        self.log.push((topic, partition, key.to_owned(), value.map(<[u8]>::to_vec), headers));
        Ok(())
    }
    fn set_aside(&mut self, _: &RawRecord<'_>, reason: DeadLetterReason) -> Result<(), Self::Error> {
        self.dead.push(reason);
        Ok(())
    }
}

impl World {
    /// The latest value of each key of `topic`; tombstoned keys are absent.
    fn state(&self, topic: Topic) -> BTreeMap<String, Vec<u8>> {
        let mut state = BTreeMap::new();
        for (at, _, key, value, _) in &self.log {
            if *at == topic {
                match value {
                    Some(value) => state.insert(key.clone(), value.clone()),
                    None => state.remove(key),
                };
            }
        }
        state
    }

    fn count(&self, topic: Topic) -> usize {
        self.log.iter().filter(|entry| entry.0 == topic).count()
    }
}

fn schemas() -> Schemas {
    futures::executor::block_on(Schemas::open(Arc::new(BuiltIn), "sp")).unwrap()
}

fn hex(n: u8) -> String {
    EntityToken([n; 16]).to_string()
}

/// An order with these items and packages, fetched at `collected`.
fn order(order: u8, version: i64, collected: i64, items: &[u8], packages: &[u8]) -> RawEvent {
    let items: Vec<String> = items
        .iter()
        .map(|n| format!(r#"{{"orderItemId":"{}","product":{{"sellerSku":"SKU-{n}"}},"quantityOrdered":{n}}}"#, hex(*n)))
        .collect();
    let packages: Vec<String> =
        packages.iter().map(|n| format!(r#"{{"packageReferenceId":"{}","packageStatus":{{"status":"SHIPPED"}}}}"#, hex(*n))).collect();
    let clear = format!(
        r#"{{"createdTime":"2026-11-01T10:00:00Z","fulfillment":{{"fulfillmentStatus":"SHIPPED"}},"lastUpdatedTime":"2026-11-05T10:00:00Z","orderId":"{}","orderItems":[{}],"packages":[{}],"proceeds":{{"grandTotal":{{"amount":"19.90","currencyCode":"EUR"}}}}}}"#,
        hex(order),
        items.join(","),
        packages.join(",")
    );
    let key = KeyId([order; 16]);
    let mut block = SealedBlock::header(key).to_vec();
    block.resize(100, 1);
    RawEvent {
        attribution: Attribution {
            selling_partner_id: SellerId::parse("A1EXAMPLE").unwrap(),
            marketplace_id: MarketplaceId::parse("A1PA6795UKMFR9").unwrap(),
            source_api: "orders_2026-01-01".to_owned(),
            source_operation: "searchOrders".to_owned(),
            source_request_id: "r".to_owned(),
            collected_at: Timestamp(collected),
            event_id: EventId(uuid::Uuid::from_u128((u128::from(order) << 64) | u128::from(version.unsigned_abs()))),
            payload_sha256: "ab".repeat(32),
        },
        entity: Entity { family: Family::Orders, token: EntityToken([order; 16]) },
        source_version: version,
        poller: "sunder/0.1.0".to_owned(),
        classification: "orders_2026-01-01#1".to_owned(),
        clear: clear.into_bytes(),
        sealed: vec![SealedGroup { group: FieldGroup::BuyerName, block: SealedBlock::from_bytes(block).unwrap() }],
        deadline: Some((Timestamp(9), "delivery".to_owned())),
    }
}

/// Key, partition and value as a poller writes them.
fn framed(event: &RawEvent) -> (String, Partition, Vec<u8>) {
    let seller = &event.attribution.selling_partner_id;
    let mut value = Vec::new();
    schemas().begin(RecordType::RawEvent, &mut value);
    event.encode(&mut value);
    (
        key::event_key(seller, event.entity.token, None, event.attribution.event_id),
        key::partition_of(seller, event.entity.token, PARTITIONS),
        value,
    )
}

fn record<'a>(key: Option<&'a str>, partition: Partition, value: Option<&'a [u8]>) -> RawRecord<'a> {
    RawRecord {
        family: Family::Orders,
        topic: "sp.raw.orders.v1",
        partition,
        offset: Offset(0),
        key: key.map(str::as_bytes),
        headers: &[],
        value,
    }
}

fn feed(splitter: &mut Splitter<'_>, world: &mut World, event: &RawEvent) -> Outcome {
    let (key, partition, value) = framed(event);
    splitter.process(&record(Some(&key), partition, Some(&value)), world).unwrap()
}

#[test]
fn an_empty_text_in_the_place_of_a_time_or_an_amount_is_none() {
    let mut event = order(1, 5, 1, &[1], &[2]);
    let clear = String::from_utf8(event.clear).unwrap();
    let clear = clear.replace("19.90", "").replace(r#""packageStatus""#, r#""createdTime":"","shipTime":"","packageStatus""#);
    event.clear = clear.replace(r#""fulfillmentStatus""#, r#""deliverByWindow":{"latestDateTime":""},"fulfillmentStatus""#).into_bytes();
    let rows = project(event).unwrap().rows;
    assert_eq!(rows.len(), 3);
    for row in &rows {
        match row {
            StateRecord::Order(row) => {
                assert_eq!((row.total_amount, row.total_currency.as_deref(), row.deliver_by_latest_at), (None, Some("EUR"), None));
            }
            StateRecord::Package(row) => assert_eq!((row.created_at, row.shipped_at), (None, None)),
            StateRecord::OrderItem(_) | StateRecord::InventoryLevel(_) => {}
        }
    }
}

#[test]
fn an_order_becomes_rows_history_and_sealed_records() {
    let (schemas, mut world) = (schemas(), World::default());
    let mut splitter = Splitter::new(&schemas, PARTITIONS);
    let event = order(1, 10, 10, &[2, 3], &[4]);
    assert_eq!(feed(&mut splitter, &mut world, &event), Outcome::Stored);
    for (topic, rows) in [
        (Topic::State(Kind::Orders), 1),
        (Topic::Events(Kind::Orders), 1),
        (Topic::State(Kind::OrderItems), 2),
        (Topic::Events(Kind::OrderItems), 2),
        (Topic::State(Kind::Packages), 1),
        (Topic::Pii(Family::Orders), 1),
    ] {
        assert_eq!(world.count(topic), rows, "{topic}");
    }
    let (_, value) = world.state(Topic::State(Kind::Orders)).pop_first().unwrap();
    let StateRecord::Order(row) =
        StateRecord::decode(Kind::Orders, &schemas.body(RecordType::State(Kind::Orders), &value).unwrap()).unwrap()
    else {
        panic!()
    };
    assert_eq!(row.total_amount.unwrap().to_string(), "19.9");
    assert_eq!((row.item_count, row.item_tokens.len(), row.package_tokens.len()), (2, 2, 1));
    let (_, partition, _, _, headers) = world.log.iter().find(|e| e.0 == Topic::Events(Kind::OrderItems)).unwrap();
    assert_eq!(*partition, framed(&event).1, "all of an order lies on one partition number");
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_subject", "ce_dataschema", "content-type"]);
    let counts = splitter.take_counts();
    assert_eq!((counts.records, counts.outcomes.total(), counts.written), (1, 1, u64::try_from(world.log.len()).unwrap()));
}

#[test]
fn events_are_avro_of_their_own_schema() {
    let (schemas, mut world) = (schemas(), World::default());
    feed(&mut Splitter::new(&schemas, PARTITIONS), &mut world, &order(1, 10, 10, &[2], &[3]));
    for (topic, _, _, value, _) in &world.log {
        let record = RecordType::of(*topic).unwrap();
        let value = value.as_ref().unwrap();
        let body = schemas.body(record, value).unwrap();
        let mut rest: &[u8] = &body;
        let read = apache_avro::reader::datum::GenericDatumReader::builder(record.latest().schema()).build().unwrap();
        read.read_value(&mut rest).unwrap();
        assert!(rest.is_empty(), "{topic}");
    }
}

#[test]
fn a_lower_version_never_replaces_a_higher_one() {
    let (schemas, mut world) = (schemas(), World::default());
    let mut splitter = Splitter::new(&schemas, PARTITIONS);
    feed(&mut splitter, &mut world, &order(1, 20, 20, &[2], &[]));
    let before = (world.state(Topic::State(Kind::Orders)), world.state(Topic::Pii(Family::Orders)));
    assert_eq!(feed(&mut splitter, &mut world, &order(1, 10, 30, &[2, 3], &[])), Outcome::Filtered(FilterReason::Stale));
    assert_eq!((world.state(Topic::State(Kind::Orders)), world.state(Topic::Pii(Family::Orders))), before);
    assert_eq!(world.state(Topic::State(Kind::OrderItems)).len(), 1);
    assert_eq!(world.count(Topic::Events(Kind::Orders)), 2, "history keeps the older version");
}

#[test]
fn children_that_vanished_are_tombstoned() {
    let (schemas, mut world) = (schemas(), World::default());
    let mut splitter = Splitter::new(&schemas, PARTITIONS);
    feed(&mut splitter, &mut world, &order(1, 10, 10, &[2, 3], &[4]));
    feed(&mut splitter, &mut world, &order(1, 20, 20, &[3], &[]));
    assert_eq!(world.state(Topic::State(Kind::OrderItems)).keys().collect::<Vec<_>>(), [&format!("A1EXAMPLE|{}|{}", hex(1), hex(3))]);
    assert!(world.state(Topic::State(Kind::Packages)).is_empty());
    assert_eq!(splitter.take_counts().children_tombstoned, 2);
}

#[test]
fn a_block_of_a_destroyed_key_is_not_copied_and_the_clear_part_goes_on() {
    let (schemas, mut world) = (schemas(), World::default());
    world.erased.insert(KeyId([1; 16]));
    let mut splitter = Splitter::new(&schemas, PARTITIONS);
    assert_eq!(feed(&mut splitter, &mut world, &order(1, 10, 10, &[2], &[])), Outcome::Stored);
    assert_eq!(world.count(Topic::Pii(Family::Orders)), 0);
    assert_eq!(world.count(Topic::State(Kind::Orders)), 1);
    assert_eq!(splitter.take_counts().blocks_erased, 1);
}

#[test]
fn what_was_erased_with_its_business_data_does_not_come_back() {
    let (schemas, mut world) = (schemas(), World::default());
    let mut splitter = Splitter::new(&schemas, PARTITIONS);
    let event = order(1, 10, 10, &[2], &[]);
    let mut versions = Versions::default();
    versions.restore_tombstone(&event.attribution.selling_partner_id, event.entity.token);
    splitter.assign(Family::Orders, framed(&event).1, versions);
    assert_eq!(feed(&mut splitter, &mut world, &event), Outcome::Filtered(FilterReason::Erased));
    assert!(world.log.is_empty());
}

#[test]
fn a_running_splitter_withholds_what_it_knows_as_living() {
    let (schemas, mut world) = (schemas(), World::default());
    let mut splitter = Splitter::new(&schemas, PARTITIONS);
    assert_eq!(feed(&mut splitter, &mut world, &order(1, 10, 10, &[2], &[])), Outcome::Stored);
    let written = world.log.len();
    let later = order(1, 20, 20, &[2], &[]);
    world.withheld.insert(later.entity.token);
    assert_eq!(feed(&mut splitter, &mut world, &later), Outcome::Filtered(FilterReason::Erased));
    assert_eq!(world.log.len(), written);
    assert_eq!(feed(&mut splitter, &mut world, &order(3, 10, 10, &[4], &[])), Outcome::Stored, "others go on");
}

#[test]
fn an_order_from_before_the_period_is_left_out_with_all_that_belongs_to_it() {
    let (schemas, mut world) = (schemas(), World::default());
    let mut splitter = Splitter::new(&schemas, PARTITIONS);
    let created = Timestamp::parse("2026-11-01T10:00:00Z").unwrap();
    world.cutoff = Some(Timestamp(created.0 + 1));
    assert_eq!(feed(&mut splitter, &mut world, &order(1, 10, 10, &[2], &[3])), Outcome::Filtered(FilterReason::PastPeriod));
    assert!(world.log.is_empty());
    world.cutoff = Some(created);
    assert_eq!(feed(&mut splitter, &mut world, &order(1, 10, 10, &[2], &[3])), Outcome::Stored);
}

#[test]
fn an_entity_that_was_forgotten_begins_anew() {
    let mut versions = Versions::default();
    let row = project(order(1, 10, 10, &[], &[])).unwrap().rows.remove(0);
    versions.restore(&row);
    versions.forget(row.seller(), row.entity());
    assert_eq!(versions.standing(&row), Standing::Latest { vanished: Vec::new() });
    versions.restore_tombstone(row.seller(), row.entity());
    assert_eq!(versions.standing(&row), Standing::Gone);
}

#[test]
fn what_is_not_ours_is_set_aside_with_its_code() {
    let (schemas, mut world) = (schemas(), World::default());
    let mut splitter = Splitter::new(&schemas, PARTITIONS);
    let event = order(1, 10, 10, &[], &[]);
    let (key, partition, value) = framed(&event);
    let other = Partition((partition.0 + 1) % PARTITIONS);
    let mut foreign = value.clone();
    foreign[4] = 10;
    let mut unknown = value.clone();
    unknown[1] = 9;
    let mut longer = value.clone();
    longer.push(0);
    let mut no_deadline = order(1, 10, 10, &[], &[]);
    no_deadline.deadline = None;
    let mut not_json = order(1, 10, 10, &[], &[]);
    not_json.clear = b"{\"orderId\":".to_vec();
    let mut no_time = order(1, 10, 10, &[], &[]);
    no_time.clear = format!(r#"{{"orderId":"{}"}}"#, hex(1)).into_bytes();
    let block_at = value.windows(2).position(|w| w == [0xe5, 1]).unwrap();
    let mut bad_block = value.clone();
    bad_block[block_at] = 0;
    use DeadLetterReason as R;
    for (key, partition, value, reason) in [
        (Some(key.as_str()), partition, None, R::EmptyValue),
        (Some(&key), partition, Some(&b""[..]), R::EmptyValue),
        (Some(&key), partition, Some(b"{\"name\":\"Jane\"}"), R::NotFramed),
        (Some(&key), partition, Some(&[1; 30]), R::UnknownSchema),
        (Some(&key), partition, Some(&unknown), R::UnknownSchema),
        (Some(&key), partition, Some(&foreign), R::ForeignSchema),
        (Some(&key), partition, Some(&longer), R::BadAvro),
        (Some(&key), partition, Some(&bad_block), R::BadBlock),
        (Some("A1EXAMPLE|x|y"), partition, Some(&value), R::KeyMismatch),
        (None, partition, Some(&value), R::KeyMismatch),
        (Some(&key), other, Some(&value), R::WrongPartition),
        (Some(&key), partition, Some(&framed(&no_deadline).2), R::BadField),
        (Some(&key), partition, Some(&framed(&not_json).2), R::BadClearPart),
        (Some(&key), partition, Some(&framed(&no_time).2), R::BadField),
    ] {
        let outcome = splitter.process(&record(key, partition, value), &mut world).unwrap();
        assert_eq!(outcome, Outcome::DeadLettered(reason));
    }
    assert!(world.log.is_empty());
    assert_eq!(splitter.process(&record(Some("~hb"), partition, None), &mut world).unwrap(), Outcome::Filtered(FilterReason::Own));
    let counts = splitter.take_counts();
    assert_eq!((counts.records, counts.outcomes.total()), (15, 15));
    assert_eq!(world.dead.len(), 14);
}

#[test]
fn an_amount_that_does_not_fit_is_refused_and_not_rounded() {
    let mut event = order(1, 10, 10, &[], &[]);
    event.clear = String::from_utf8(event.clear).unwrap().replace("19.90", "19.9000001").into_bytes();
    assert_eq!(project(event).unwrap_err().reason, DeadLetterReason::BadField);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever order versions come in, and whatever is read again after a restart, state is the latest version and in = out.
    #[test]
    fn state_is_the_latest_version(arrivals in proptest::collection::vec((0u8..3, 0i64..5, any::<bool>()), 1..30)) {
        let (schemas, mut world) = (schemas(), World::default());
        let mut splitter = Splitter::new(&schemas, PARTITIONS);
        let mut latest: BTreeMap<u8, i64> = BTreeMap::new();
        let mut counts = Counts::default();
        for (number, version, restart) in &arrivals {
            if *restart {
                let done = splitter.take_counts();
                counts.records += done.records;
                counts.outcomes.add(&done.outcomes);
                splitter = Splitter::new(&schemas, PARTITIONS);
                let mut by_partition: BTreeMap<i32, Versions> = BTreeMap::new();
                for value in world.state(Topic::State(Kind::Orders)).into_values() {
                    let row = StateRecord::decode(Kind::Orders, &schemas.body(RecordType::State(Kind::Orders), &value).unwrap()).unwrap();
                    by_partition.entry(key::partition_of(row.seller(), row.entity(), PARTITIONS).0).or_default().restore(&row);
                }
                for (partition, versions) in by_partition {
                    splitter.assign(Family::Orders, Partition(partition), versions);
                }
            }
            // Version n of an order has the one item n.
            let item = u8::try_from(*version).unwrap() + 100;
            feed(&mut splitter, &mut world, &order(*number, *version, *version, &[item], &[]));
            let known = latest.entry(*number).or_insert(*version);
            *known = (*known).max(*version);
        }
        let expected: Vec<String> = latest.iter().map(|(n, v)| format!("A1EXAMPLE|{}|{}", hex(*n), hex(u8::try_from(*v).unwrap() + 100))).collect();
        prop_assert_eq!(world.state(Topic::State(Kind::OrderItems)).into_keys().collect::<Vec<_>>(), expected);
        let done = splitter.take_counts();
        counts.records += done.records;
        counts.outcomes.add(&done.outcomes);
        prop_assert_eq!(counts.records, arrivals.len() as u64);
        prop_assert_eq!(counts.outcomes.total(), counts.records);
    }
}
