//! Laws of the records, with the `apache-avro` crate as the judge of the encoding.

use std::sync::Arc;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::prelude::*;
use rust_decimal::Decimal;

use super::codec::{AMOUNT_SCALE, fits};
use super::schema::{FILES, RecordType, VERSIONS};
use super::*;
use crate::class::{Family, FieldGroup};
use crate::envelope::{Entity, RawEvent, SealedGroup};
use crate::ids::{EventId, KeyId, MarketplaceId};
use crate::outcome::DeadLetterReason;
use crate::private::SealedBlock;
use crate::time::Timestamp;

/// Writes the checked-in schemas anew: `SUNDER_WRITE_SCHEMAS=1 cargo test -p sunder-schemas checked_in`.
const WRITE: &str = "SUNDER_WRITE_SCHEMAS";

#[test]
#[expect(clippy::disallowed_methods, reason = "the switch that rewrites the checked-in files")]
fn the_latest_checked_in_schemas_are_what_the_types_declare() {
    for record in RecordType::all() {
        let latest = record.latest();
        let file = FILES[VERSIONS.iter().position(|v| v.id == latest.id).unwrap()];
        let declared = record.declared();
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(format!("{}/avro/{file}.avsc", env!("CARGO_MANIFEST_DIR")), &declared).unwrap();
        } else {
            assert_eq!(latest.text, declared, "{file}: add a version, or set {WRITE}=1 where no record of this one was ever written");
        }
    }
}

#[test]
fn every_version_reads_back_all_before_it() {
    for (index, version) in VERSIONS.iter().enumerate() {
        assert_eq!(version.id as usize, index + 1, "ids are given once, in order");
        for earlier in VERSIONS.iter().filter(|v| v.record == version.record && v.version <= version.version) {
            evolve::check(earlier.schema(), version).unwrap_or_else(|e| panic!("schema {} reading {}: {e}", version.id, earlier.id));
        }
    }
}

#[test]
fn rows_are_flat() {
    for kind in Kind::ALL {
        for column in StateRecord::columns(*kind) {
            assert_ne!(column.ty, ColumnType::Nested, "{kind}.{}", column.name);
            assert!(!column.doc.trim().is_empty(), "{kind}.{}", column.name);
        }
    }
}

#[test]
fn an_older_body_is_read_through_resolution() {
    let ours = RecordType::State(Kind::Packages).latest();
    // A later program's schema: one more optional field, and the fields in another order.
    let theirs = ours.text.replacen(
        "\n  {\"name\":\"status\"",
        "\n  {\"name\":\"colour\",\"type\":[\"null\",\"string\"],\"default\":null},\n  {\"name\":\"status\"",
        1,
    );
    let theirs = Schema::parse_str(&theirs).unwrap();
    let row = PackageRow {
        attribution: Arc::new(attribution()),
        source_version: 5,
        order_token: EntityToken([1; 16]),
        package_token: EntityToken([2; 16]),
        status: Some("SHIPPED".into()),
        detailed_status: None,
        carrier: None,
        shipping_service: None,
        created_at: None,
        shipped_at: Some(Timestamp(7)),
        item_tokens: vec![EntityToken([3; 16])],
        item_quantities: vec![2],
    };
    let mut body = Vec::new();
    row.encode(&mut body);
    let value =
        GenericDatumReader::builder(ours.schema()).reader_schema(&theirs).build().unwrap().read_value(&mut body.as_slice()).unwrap();
    let their_body = GenericDatumWriter::builder(&theirs).build().unwrap().write_value_to_vec(value).unwrap();
    assert_ne!(their_body, body);
    evolve::check(&theirs, ours).unwrap();
    assert_eq!(PackageRow::decode(&evolve::resolve(&theirs, ours, &their_body).unwrap()).unwrap(), row);
    assert!(evolve::check(RecordType::Pii.latest().schema(), ours).is_err());
}

#[test]
fn sizes_stay_near_their_goals() {
    let mut body = Vec::new();
    let pii = PiiRecord {
        attribution: Arc::new(attribution()),
        source_version: 1,
        entity_token: EntityToken([1; 16]),
        field_group: FieldGroup::RecipientAddress,
        key_id: KeyId([1; 16]),
        classification: "orders_2026-01-01#1".to_owned(),
        deadline: Timestamp(1_764_000_000_000),
        deadline_rule: "delivery".to_owned(),
        block: block(KeyId([1; 16]), 180),
    };
    pii.encode(&mut body);
    assert!(body.len() < 600, "a sealed record has {} bytes", body.len());
    assert_eq!(PiiRecord::decode(&body).unwrap(), pii);
}

pub(crate) fn attribution() -> Attribution {
    Attribution {
        selling_partner_id: SellerId::parse("A1EXAMPLE").unwrap(),
        marketplace_id: MarketplaceId::parse("A1PA6795UKMFR9").unwrap(),
        source_api: "orders_2026-01-01".to_owned(),
        source_operation: "searchOrders".to_owned(),
        source_request_id: "00000000-0000-4000-8000-000000000001".to_owned(),
        collected_at: Timestamp(1_763_800_000_000),
        event_id: EventId(uuid::Uuid::from_u128(7)),
        payload_sha256: "ab".repeat(32),
    }
}

fn block(key: KeyId, len: usize) -> SealedBlock {
    let mut bytes = SealedBlock::header(key).to_vec();
    bytes.resize(bytes.len() + 28 + len, 0x5a);
    SealedBlock::from_bytes(bytes).unwrap()
}

/// Our body read by apache-avro and written again is our body; ours reads back as the record.
fn judged<R: Record + PartialEq + std::fmt::Debug>(record: &R, ty: RecordType) {
    let mut body = Vec::new();
    record.encode(&mut body);
    assert_eq!(&R::decode(&body).unwrap(), record);
    let schema = ty.latest().schema();
    let mut rest = body.as_slice();
    let value = GenericDatumReader::builder(schema).build().unwrap().read_value(&mut rest).unwrap();
    assert!(rest.is_empty());
    assert_eq!(GenericDatumWriter::builder(schema).build().unwrap().write_value_to_vec(value).unwrap(), body);
    // Cut anywhere, it is refused.
    for cut in 0..body.len() {
        assert!(R::decode(&body[..cut]).is_err());
    }
}

fn text() -> impl Strategy<Value = String> {
    ".{0,20}"
}

fn amount() -> impl Strategy<Value = Decimal> {
    (-10_000_000_000_000_000_000_000_i128..10_000_000_000_000_000_000_000, 0..=AMOUNT_SCALE)
        .prop_map(|(digits, scale)| Decimal::from_i128_with_scale(digits, scale).normalize())
}

fn token() -> impl Strategy<Value = EntityToken> {
    any::<[u8; 16]>().prop_map(EntityToken)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn inventory_rows_are_avro(texts in proptest::collection::vec(proptest::option::of(text()), 5), numbers in proptest::collection::vec(proptest::option::of(any::<i64>()), 21), stores in proptest::collection::vec(text(), 0..4), token in token(), at in any::<i64>()) {
        let (mut t, mut n) = (texts.into_iter(), numbers.into_iter());
        let mut number = || n.next().unwrap();
        let mut text = || t.next().unwrap().map(Text::from);
        let row = InventoryLevelRow {
            attribution: Arc::new(attribution()), source_version: at, level_token: token,
            sku: text(), fnsku: text(), asin: text(), condition: text(), product_name: text(),
            total_quantity: number(), fulfillable_quantity: number(), inbound_working_quantity: number(), inbound_shipped_quantity: number(),
            inbound_receiving_quantity: number(), reserved_total_quantity: number(), reserved_customer_order_quantity: number(),
            reserved_transshipment_quantity: number(), reserved_processing_quantity: number(), researching_total_quantity: number(),
            researching_short_term_quantity: number(), researching_mid_term_quantity: number(), researching_long_term_quantity: number(),
            unfulfillable_total_quantity: number(), customer_damaged_quantity: number(), warehouse_damaged_quantity: number(),
            distributor_damaged_quantity: number(), carrier_damaged_quantity: number(), defective_quantity: number(), expired_quantity: number(),
            updated_at: number().map(Timestamp), stores: stores.into_iter().map(Text::from).collect(),
        };
        judged(&row, RecordType::State(Kind::InventoryLevels));
        let mut cells = 0;
        row.cells(&mut |_| cells += 1);
        prop_assert_eq!(cells, InventoryLevelRow::columns().len());
    }

    #[test]
    fn raw_events_are_avro(clear in proptest::collection::vec(any::<u8>(), 0..60), groups in proptest::sample::subsequence(FieldGroup::ALL.to_vec(), 0..4), key in any::<[u8; 16]>(), deadline in proptest::option::of((any::<i64>(), text())), version in any::<i64>()) {
        let sealed = groups.into_iter().map(|group| SealedGroup { group, block: block(KeyId(key), 40) }).collect();
        let event = RawEvent {
            attribution: attribution(), entity: Entity { family: Family::Orders, token: EntityToken(key) }, source_version: version,
            poller: "sunder/0.1.0".to_owned(), classification: "orders_2026-01-01#1".to_owned(), clear, sealed,
            deadline: deadline.map(|(at, rule)| (Timestamp(at), rule)),
        };
        judged(&event, RecordType::RawEvent);
    }

    #[test]
    fn dead_letters_are_avro(partition in any::<i64>(), topic in text(), index in 0..DeadLetterReason::ALL.len()) {
        let letter = DeadLetter {
            source_topic: topic.clone(), source_topic_id: topic, source_partition: partition, source_offset: partition, reason: DeadLetterReason::ALL[index],
            splitter: "sunder/0.1.0".to_owned(), set_aside_at: Timestamp(partition), key_id: KeyId([1; 16]), block: block(KeyId([1; 16]), 9),
        };
        judged(&letter, RecordType::DeadLetter);
    }

    #[test]
    fn an_original_reads_back(key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9)), headers in proptest::collection::vec((text(), proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9))), 0..4), value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..30))) {
        let original = Original { key, headers, value };
        let mut bytes = Vec::new();
        Original::encode_parts(original.key.as_deref(), original.headers.iter().map(|(n, v)| (n.as_str(), v.as_deref())), original.value.as_deref(), &mut bytes);
        prop_assert_eq!(Original::decode(&bytes).unwrap(), original);
    }

    #[test]
    fn amounts_keep_every_digit(amount in amount()) {
        prop_assert!(fits(amount));
        let mut out = Vec::new();
        codec::Scalar::put(&amount, &mut out);
        let mut reader = Reader::new(&out);
        prop_assert_eq!(reader.field::<Decimal>("amount").unwrap(), amount);
    }

    #[test]
    fn hostile_bodies_are_refused_without_harm(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        _ = RawEvent::decode(&body);
        _ = OrderRow::decode(&body);
        _ = Original::decode(&body);
    }
}

#[test]
fn amounts_that_do_not_fit_are_told_apart() {
    for (text, fit) in [
        ("19.99", true),
        ("0.000001", true),
        ("0.0000001", false),
        ("9999999999999999999999.999999", true),
        ("10000000000000000000000", false),
    ] {
        assert_eq!(fits(text.parse().unwrap()), fit, "{text}");
    }
}
