//! Avro's binary encoding of the records of this crate, written and read in one pass without a tree of values.
//!
//! The layout is Avro 1.12's (zig-zag variable-length integers, length-prefixed strings and bytes, union branch then value, arrays in
//! blocks); the tests hold it against the `apache-avro` crate in both directions. Reading checks every length against what is left, so
//! hostile bytes cost no more memory than they are long. Bodies of *older* schema versions go through `apache-avro`'s resolution first
//! (see [`super::evolve`]).

use std::borrow::Cow;
use std::sync::Arc;

use rust_decimal::Decimal;
use uuid::Uuid;

use super::Text;
use crate::class::FieldGroup;
use crate::envelope::{Attribution, Entity, SealedGroup};
use crate::ids::{EntityToken, EventId, KeyId, MarketplaceId, SellerId};
use crate::outcome::DeadLetterReason;
use crate::private::SealedBlock;
use crate::time::Timestamp;

/// Digits of a money amount in all (Avro `decimal`, SQL `numeric`): what a 96-bit mantissa always holds.
pub const AMOUNT_PRECISION: u32 = 28;
/// Digits of a money amount after the point: more than any currency has; an amount that needs more is refused, never rounded.
pub const AMOUNT_SCALE: u32 = 6;

/// The rule broken by bytes that stand in the place of a sealed block and are none.
pub const BAD_BLOCK: &str = "not a sealed block";

/// A body that is not the Avro it should be: the field and the byte, never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Avro body breaks off at byte {at}, field {field}: {rule}")]
pub struct DecodeError {
    /// The field that was being read.
    pub field: &'static str,
    /// Bytes read before it broke.
    pub at: usize,
    /// The rule that is broken.
    pub rule: &'static str,
}

/// What a column holds, for stores that make tables of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// Text.
    Text,
    /// A token: 32 lower-case hex digits.
    Token,
    /// A UUID.
    Uuid,
    /// A 64-bit integer.
    Int,
    /// Yes or no.
    Bool,
    /// An instant, milliseconds, UTC.
    Time,
    /// A decimal of [`AMOUNT_PRECISION`] and [`AMOUNT_SCALE`].
    Decimal,
    /// Bytes.
    Bytes,
    /// A list of texts.
    Texts,
    /// A list of tokens.
    Tokens,
    /// A list of 64-bit integers.
    Ints,
    /// Not a column: a list of records (only the raw event's sealed blocks).
    Nested,
}

/// One field of a record: a column of its table and a field of its Avro schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Name, in snake case; the same in Avro and SQL.
    pub name: &'static str,
    /// What it says, with unit.
    pub doc: &'static str,
    /// What it holds.
    pub ty: ColumnType,
    /// Whether it may be absent.
    pub nullable: bool,
    /// The Avro type as JSON, without the union with null.
    pub avro: Cow<'static, str>,
}

/// One value of a record, borrowed, in the order of its columns.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'a> {
    /// Absent.
    Null,
    /// Text.
    Text(&'a str),
    /// A token.
    Token(EntityToken),
    /// A UUID.
    Uuid(Uuid),
    /// An integer.
    Int(i64),
    /// Yes or no.
    Bool(bool),
    /// An instant.
    Time(Timestamp),
    /// A decimal.
    Decimal(Decimal),
    /// Bytes.
    Bytes(&'a [u8]),
    /// Texts.
    Texts(&'a [Text]),
    /// Tokens.
    Tokens(&'a [EntityToken]),
    /// Integers.
    Ints(&'a [i64]),
}

/// Reads a body front to back.
#[derive(Debug)]
pub struct Reader<'a> {
    body: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `body`.
    #[must_use]
    pub const fn new(body: &'a [u8]) -> Self {
        Self { body, rest: body }
    }

    /// Reads the field `name`.
    ///
    /// # Errors
    /// [`DecodeError`] naming the field.
    pub fn field<T: Field>(&mut self, name: &'static str) -> Result<T, DecodeError> {
        T::take(self).map_err(|rule| DecodeError { field: name, at: self.body.len() - self.rest.len(), rule })
    }

    /// Demands that nothing is left.
    ///
    /// # Errors
    /// [`DecodeError`] where bytes are left over.
    pub const fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(DecodeError { field: "(end)", at: self.body.len() - self.rest.len(), rule: "bytes follow the record" })
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("the body is too short")?;
        self.rest = rest;
        Ok(taken)
    }

    fn long(&mut self) -> Result<i64, &'static str> {
        let mut value: u64 = 0;
        for shift in (0..64).step_by(7) {
            let [byte, rest @ ..] = self.rest else { return Err("the body is too short") };
            self.rest = rest;
            if shift == 63 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
            }
        }
        Err("an integer of more than 64 bits")
    }

    fn length(&mut self) -> Result<usize, &'static str> {
        usize::try_from(self.long()?).map_err(|_| "a negative length")
    }

    fn sized(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.length()?;
        self.bytes(length)
    }

    fn text(&mut self) -> Result<&'a str, &'static str> {
        std::str::from_utf8(self.sized()?).map_err(|_| "text that is not UTF-8")
    }

    /// Reads an array's items; every item is at least a byte long, so a count beyond what is left is refused before any memory is taken.
    fn items<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, &'static str>) -> Result<Vec<T>, &'static str> {
        let mut items = Vec::new();
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(items);
            }
            if count < 0 {
                self.long()?; // the block's length in bytes, for readers that skip
                count = count.checked_neg().ok_or("a list of impossible length")?;
            }
            let count = usize::try_from(count).map_err(|_| "a list of impossible length")?;
            if count > self.rest.len() {
                return Err("a list longer than the body");
            }
            items.reserve(count);
            for _ in 0..count {
                items.push(item(self)?);
            }
        }
    }
}

/// Appends a zig-zag variable-length integer.
#[expect(clippy::cast_possible_truncation, reason = "the low seven bits are what each byte takes")]
fn put_long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn put_length(length: usize, out: &mut Vec<u8>) {
    put_long(i64::try_from(length).unwrap_or(i64::MAX), out); // a slice is never longer than i64::MAX
}

/// Appends a text or bytes: its length, then itself.
pub(super) fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_length(bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Appends the hex digits of 16 bytes, a token's or a key id's, as a text.
fn put_hex(bytes: &[u8; 16], out: &mut Vec<u8>) {
    let mut digits = [0u8; 32];
    // 16 bytes always fit 32 digits.
    _ = hex::encode_to_slice(bytes, &mut digits);
    put_bytes(&digits, out);
}

/// A value of one column.
pub trait Scalar: Sized {
    /// What the column holds.
    const TYPE: ColumnType;
    /// The Avro type as JSON.
    const AVRO: &'static str;
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads a value.
    ///
    /// # Errors
    /// The rule that is broken.
    fn take(reader: &mut Reader<'_>) -> Result<Self, &'static str>;
    /// The value as a cell.
    fn cell(&self) -> Cell<'_>;
}

/// A member of a record: one column or several.
pub trait Field: Sized {
    /// Appends its columns.
    fn declare(name: &'static str, doc: &'static str, columns: &mut Vec<Column>);
    /// Appends its value.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads its value.
    ///
    /// # Errors
    /// The rule that is broken.
    fn take(reader: &mut Reader<'_>) -> Result<Self, &'static str>;
    /// Hands out its cells in the order of its columns.
    fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>));
}

/// What a row's member is before anything is known of it.
pub(super) trait Blank {
    /// Absent, empty or zero.
    fn blank() -> Self;
}

impl<T> Blank for Option<T> {
    fn blank() -> Self {
        None
    }
}

impl<T> Blank for Vec<T> {
    fn blank() -> Self {
        Self::new()
    }
}

impl Blank for i64 {
    fn blank() -> Self {
        0
    }
}

impl Blank for Timestamp {
    fn blank() -> Self {
        Self(0)
    }
}

impl Blank for EntityToken {
    fn blank() -> Self {
        Self([0; 16])
    }
}

impl<T: Scalar> Field for T {
    fn declare(name: &'static str, doc: &'static str, columns: &mut Vec<Column>) {
        columns.push(Column { name, doc, ty: T::TYPE, nullable: false, avro: Cow::Borrowed(T::AVRO) });
    }
    fn put(&self, out: &mut Vec<u8>) {
        Scalar::put(self, out);
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, &'static str> {
        Scalar::take(reader)
    }
    fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>)) {
        each(self.cell());
    }
}

impl<T: Scalar> Field for Option<T> {
    fn declare(name: &'static str, doc: &'static str, columns: &mut Vec<Column>) {
        columns.push(Column { name, doc, ty: T::TYPE, nullable: true, avro: Cow::Borrowed(T::AVRO) });
    }
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(2);
                value.put(out);
            }
        }
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, &'static str> {
        match reader.long()? {
            0 => Ok(None),
            1 => Scalar::take(reader).map(Some),
            _ => Err("an unknown branch of a union"),
        }
    }
    fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>)) {
        each(self.as_ref().map_or(Cell::Null, Scalar::cell));
    }
}

macro_rules! lists {
    ($($item:ty => $ty:ident, $cell:ident;)+) => { $(
        impl Field for Vec<$item> {
            fn declare(name: &'static str, doc: &'static str, columns: &mut Vec<Column>) {
                let avro = format!("{{\"type\":\"array\",\"items\":{}}}", <$item as Scalar>::AVRO);
                columns.push(Column { name, doc, ty: ColumnType::$ty, nullable: false, avro: Cow::Owned(avro) });
            }
            fn put(&self, out: &mut Vec<u8>) {
                if !self.is_empty() {
                    put_length(self.len(), out);
                    self.iter().for_each(|item| Scalar::put(item, out));
                }
                out.push(0);
            }
            fn take(reader: &mut Reader<'_>) -> Result<Self, &'static str> {
                reader.items(<$item as Scalar>::take)
            }
            fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>)) {
                each(Cell::$cell(self));
            }
        }
    )+ };
}
lists! { Text => Texts, Texts; EntityToken => Tokens, Tokens; i64 => Ints, Ints; }

macro_rules! scalars {
    ($($t:ty: $ty:ident, $avro:literal, |$v:ident, $out:ident| $put:expr, |$r:ident| $take:expr, |$c:ident| $cell:expr;)+) => { $(
        impl Scalar for $t {
            const TYPE: ColumnType = ColumnType::$ty;
            const AVRO: &'static str = $avro;
            fn put(&self, $out: &mut Vec<u8>) {
                let $v = self;
                $put;
            }
            fn take($r: &mut Reader<'_>) -> Result<Self, &'static str> {
                $take
            }
            fn cell(&self) -> Cell<'_> {
                let $c = self;
                $cell
            }
        }
    )+ };
}
scalars! {
    String: Text, "\"string\"", |v, out| put_bytes(v.as_bytes(), out), |r| r.text().map(str::to_owned), |c| Cell::Text(c);
    Text: Text, "\"string\"", |v, out| put_bytes(v.as_bytes(), out), |r| r.text().map(Text::from), |c| Cell::Text(c);
    i64: Int, "\"long\"", |v, out| put_long(*v, out), |r| r.long(), |c| Cell::Int(*c);
    bool: Bool, "\"boolean\"", |v, out| out.push(u8::from(*v)), |r| take_bool(r), |c| Cell::Bool(*c);
    Timestamp: Time, "{\"type\":\"long\",\"logicalType\":\"timestamp-millis\"}", |v, out| put_long(v.0, out), |r| r.long().map(Timestamp), |c| Cell::Time(*c);
    Decimal: Decimal, "{\"type\":\"bytes\",\"logicalType\":\"decimal\",\"precision\":28,\"scale\":6}", |v, out| put_decimal(*v, out), |r| take_decimal(r), |c| Cell::Decimal(*c);
    Vec<u8>: Bytes, "\"bytes\"", |v, out| put_bytes(v, out), |r| r.sized().map(<[u8]>::to_vec), |c| Cell::Bytes(c);
    EntityToken: Token, "\"string\"", |v, out| put_hex(&v.0, out), |r| EntityToken::parse(r.text()?).map_err(|e| e.rule), |c| Cell::Token(*c);
    KeyId: Bytes, "\"string\"", |v, out| put_hex(&v.0, out), |r| KeyId::parse(r.text()?).map_err(|e| e.rule), |c| Cell::Bytes(&c.0);
    EventId: Uuid, "{\"type\":\"string\",\"logicalType\":\"uuid\"}", |v, out| put_uuid(*v, out), |r| r.text()?.parse::<EventId>().map_err(|e| e.rule), |c| Cell::Uuid(c.0);
    SellerId: Text, "\"string\"", |v, out| put_bytes(v.as_str().as_bytes(), out), |r| SellerId::parse(r.text()?).map_err(|e| e.rule), |c| Cell::Text(c.as_str());
    MarketplaceId: Text, "\"string\"", |v, out| put_bytes(v.as_str().as_bytes(), out), |r| MarketplaceId::parse(r.text()?).map_err(|e| e.rule), |c| Cell::Text(c.as_str());
    FieldGroup: Text, "\"string\"", |v, out| put_bytes(v.as_str().as_bytes(), out), |r| r.text()?.parse::<FieldGroup>().map_err(|e| e.rule), |c| Cell::Text(c.as_str());
    DeadLetterReason: Text, "\"string\"", |v, out| put_bytes(v.as_str().as_bytes(), out), |r| r.text()?.parse::<DeadLetterReason>().map_err(|e| e.rule), |c| Cell::Text(c.as_str());
    SealedBlock: Bytes, "\"bytes\"", |v, out| put_bytes(v.as_bytes(), out), |r| SealedBlock::from_bytes(r.sized()?.to_vec()).map_err(|_| BAD_BLOCK), |c| Cell::Bytes(c.as_bytes());
}

fn put_uuid(id: EventId, out: &mut Vec<u8>) {
    let mut buffer = Uuid::encode_buffer();
    put_bytes(id.0.hyphenated().encode_lower(&mut buffer).as_bytes(), out);
}

fn take_bool(reader: &mut Reader<'_>) -> Result<bool, &'static str> {
    match reader.bytes(1)? {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err("a boolean that is neither 0 nor 1"),
    }
}

/// Whether `amount` keeps every digit in a column of money.
#[must_use]
pub fn fits(amount: Decimal) -> bool {
    let amount = amount.normalize();
    amount.scale() <= AMOUNT_SCALE && amount.mantissa().unsigned_abs() < 10u128.pow(AMOUNT_PRECISION - AMOUNT_SCALE + amount.scale())
}

/// Two's complement, big-endian, as short as it gets, at the fixed scale. An amount that does not [`fits`] never gets here: rows are
/// made by the projection, which refuses it; should one be made by hand, its further digits are cut.
fn put_decimal(amount: Decimal, out: &mut Vec<u8>) {
    let amount = amount.normalize();
    let unscaled = if amount.scale() <= AMOUNT_SCALE {
        amount.mantissa().saturating_mul(10i128.pow(AMOUNT_SCALE - amount.scale()))
    } else {
        amount.mantissa() / 10i128.pow(amount.scale() - AMOUNT_SCALE)
    };
    let bytes = unscaled.to_be_bytes();
    let sign = if unscaled < 0 { 0xff } else { 0 };
    let skip = bytes.iter().take(15).take_while(|b| **b == sign).count();
    // One sign bit must stay.
    let keep_one = bytes.get(skip).is_some_and(|b| (b & 0x80 != 0) != (unscaled < 0));
    put_bytes(bytes.get(skip - usize::from(keep_one && skip > 0)..).unwrap_or(&bytes), out);
}

fn take_decimal(reader: &mut Reader<'_>) -> Result<Decimal, &'static str> {
    let bytes = reader.sized()?;
    if bytes.is_empty() || bytes.len() > 16 {
        return Err("a decimal of impossible length");
    }
    let negative = bytes.first().is_some_and(|b| b & 0x80 != 0);
    let unscaled = bytes.iter().fold(if negative { -1i128 } else { 0 }, |n, b| (n << 8) | i128::from(*b));
    Decimal::try_from_i128_with_scale(unscaled, AMOUNT_SCALE).map(|d| d.normalize()).map_err(|_| "a decimal of too many digits")
}

/// An attribution, plain or shared: eight columns.
macro_rules! attribution {
    ($t:ty, $make:expr) => {
        impl Field for $t {
            fn declare(_: &'static str, _: &'static str, columns: &mut Vec<Column>) {
                declare_attribution(columns);
            }
            fn put(&self, out: &mut Vec<u8>) {
                put_attribution(self, out);
            }
            fn take(reader: &mut Reader<'_>) -> Result<Self, &'static str> {
                take_attribution(reader).map($make)
            }
            fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>)) {
                each(self.selling_partner_id.cell());
                each(self.marketplace_id.cell());
                each(self.source_api.cell());
                each(self.source_operation.cell());
                each(self.source_request_id.cell());
                each(self.collected_at.cell());
                each(self.event_id.cell());
                each(self.payload_sha256.cell());
            }
        }
    };
}
attribution!(Arc<Attribution>, Arc::new);
attribution!(Attribution, std::convert::identity);

fn declare_attribution(columns: &mut Vec<Column>) {
    SellerId::declare("selling_partner_id", "Amazon's merchant id of the seller whose data this is", columns);
    MarketplaceId::declare("marketplace_id", "Amazon's id of the marketplace the record belongs to", columns);
    String::declare("source_api", "name of the SP-API model it was fetched by, e.g. orders_2026-01-01", columns);
    String::declare("source_operation", "operation of that model, e.g. searchOrders", columns);
    String::declare("source_request_id", "x-amzn-RequestId of the answer it came in", columns);
    Timestamp::declare("collected_at", "when the answer arrived, by the policy clock", columns);
    EventId::declare("event_id", "names this version of the entity, the same from raw to the warehouse", columns);
    String::declare("payload_sha256", "SHA-256 of the clear part as canonical JSON after tokenising, hex", columns);
}

fn put_attribution(from: &Attribution, out: &mut Vec<u8>) {
    Scalar::put(&from.selling_partner_id, out);
    Scalar::put(&from.marketplace_id, out);
    Scalar::put(&from.source_api, out);
    Scalar::put(&from.source_operation, out);
    Scalar::put(&from.source_request_id, out);
    Scalar::put(&from.collected_at, out);
    Scalar::put(&from.event_id, out);
    Scalar::put(&from.payload_sha256, out);
}

fn take_attribution(r: &mut Reader<'_>) -> Result<Attribution, &'static str> {
    Ok(Attribution {
        selling_partner_id: Scalar::take(r)?,
        marketplace_id: Scalar::take(r)?,
        source_api: Scalar::take(r)?,
        source_operation: Scalar::take(r)?,
        source_request_id: Scalar::take(r)?,
        collected_at: Scalar::take(r)?,
        event_id: Scalar::take(r)?,
        payload_sha256: Scalar::take(r)?,
    })
}

impl Field for Entity {
    fn declare(_: &'static str, _: &'static str, columns: &mut Vec<Column>) {
        String::declare("family", "family of the data; names the topics", columns);
        EntityToken::declare("entity_token", "pseudonym of the order or inventory level", columns);
    }
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.family.as_str().as_bytes(), out);
        Scalar::put(&self.token, out);
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, &'static str> {
        Ok(Self { family: reader.text()?.parse().map_err(|_| "an unknown family")?, token: Scalar::take(reader)? })
    }
    fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>)) {
        each(Cell::Text(self.family.as_str()));
        each(self.token.cell());
    }
}

impl Field for Vec<SealedGroup> {
    fn declare(name: &'static str, doc: &'static str, columns: &mut Vec<Column>) {
        let avro = r#"{"type":"array","items":{"type":"record","name":"SealedGroup","fields":[{"name":"field_group","type":"string"},{"name":"block","type":"bytes"}]}}"#;
        columns.push(Column { name, doc, ty: ColumnType::Nested, nullable: false, avro: Cow::Borrowed(avro) });
    }
    fn put(&self, out: &mut Vec<u8>) {
        if !self.is_empty() {
            put_length(self.len(), out);
            for sealed in self {
                Scalar::put(&sealed.group, out);
                Scalar::put(&sealed.block, out);
            }
        }
        out.push(0);
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, &'static str> {
        reader.items(|r| Ok(SealedGroup { group: Scalar::take(r)?, block: Scalar::take(r)? }))
    }
    fn cells<'a>(&'a self, _: &mut dyn FnMut(Cell<'a>)) {}
}

impl Field for Option<(Timestamp, String)> {
    fn declare(_: &'static str, _: &'static str, columns: &mut Vec<Column>) {
        Option::<Timestamp>::declare("deadline", "when the sealed groups are destroyed at the latest", columns);
        Option::<String>::declare("deadline_rule", "the rule that decided the deadline", columns);
    }
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            None => out.extend([0, 0]),
            Some((at, rule)) => {
                out.push(2);
                Scalar::put(at, out);
                out.push(2);
                Scalar::put(rule, out);
            }
        }
    }
    fn take(reader: &mut Reader<'_>) -> Result<Self, &'static str> {
        let at: Option<Timestamp> = Field::take(reader)?;
        let rule: Option<String> = Field::take(reader)?;
        match (at, rule) {
            (Some(at), Some(rule)) => Ok(Some((at, rule))),
            (None, None) => Ok(None),
            _ => Err("a deadline and its rule go together"),
        }
    }
    fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>)) {
        each(self.as_ref().map_or(Cell::Null, |(at, _)| Cell::Time(*at)));
        each(self.as_ref().map_or(Cell::Null, |(_, rule)| Cell::Text(rule)));
    }
}
