//! Record keys and the partition they belong to (DESIGN section 4).
//!
//! A key is its parts, percent-encoded, joined by `|`, in plain UTF-8 and never registry-framed: a key whose bytes change would
//! outlive its tombstone. The partition is always set explicitly from seller and entity, where the entity of a child is its order,
//! so all of an order lies on one partition number in raw, events, state and pii. Keys that begin with `~` are the pipeline's own.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::class::FieldGroup;
use crate::ids::{EntityToken, EventId, Partition, SellerId};

/// What is encoded inside a key part: all but letters, digits and `-._`.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// First character of keys that carry no data: heartbeats, canaries, incarnations.
pub const OWN_PREFIX: u8 = b'~';

/// Whether `key` is one of the pipeline's own.
#[must_use]
pub fn is_own(key: &[u8]) -> bool {
    key.first() == Some(&OWN_PREFIX)
}

/// Room for nearly every key: seller, two tokens, event id.
const KEY_BYTES: usize = 128;

/// Joins `parts` into a key.
#[must_use]
pub fn join<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut key = String::with_capacity(96);
    for (index, part) in parts.into_iter().enumerate() {
        if index > 0 {
            key.push('|');
        }
        key.extend(utf8_percent_encode(part, PART));
    }
    key
}

/// Splits a key into its decoded parts; `None` where a part is not UTF-8 after decoding.
#[must_use]
pub fn split(key: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(key).ok()?;
    text.split('|').map(|part| percent_encoding::percent_decode_str(part).decode_utf8().ok().map(std::borrow::Cow::into_owned)).collect()
}

/// Key of `raw.*` and `events.*` records: seller, entity token (for a child: its order's and its own), event id.
#[must_use]
pub fn event_key(seller: &SellerId, entity: EntityToken, child: Option<EntityToken>, event: EventId) -> String {
    let mut key = String::with_capacity(KEY_BYTES);
    put_event_key(&mut key, seller, entity, child, event);
    key
}

/// [`event_key`] in the place of what `key` holds: for keys by the million.
pub fn put_event_key(key: &mut String, seller: &SellerId, entity: EntityToken, child: Option<EntityToken>, event: EventId) {
    put_state_key(key, seller, entity, child);
    key.push('|');
    key.push_str(event.0.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
}

/// Key of `state.*` records: seller, entity token, and for a child its own token.
#[must_use]
pub fn state_key(seller: &SellerId, entity: EntityToken, child: Option<EntityToken>) -> String {
    let mut key = String::with_capacity(KEY_BYTES);
    put_state_key(&mut key, seller, entity, child);
    key
}

/// [`state_key`] in the place of what `key` holds.
pub fn put_state_key(key: &mut String, seller: &SellerId, entity: EntityToken, child: Option<EntityToken>) {
    key.clear();
    // Letters and digits alone: nothing to encode.
    key.push_str(seller.as_str());
    key.push('|');
    entity.push_hex(key);
    if let Some(child) = child {
        key.push('|');
        child.push_hex(key);
    }
}

/// Key of `pii.*` records: seller, entity token, field group.
#[must_use]
pub fn pii_key(seller: &SellerId, entity: EntityToken, group: FieldGroup) -> String {
    let mut key = String::with_capacity(KEY_BYTES);
    put_pii_key(&mut key, seller, entity, group);
    key
}

/// [`pii_key`] in the place of what `key` holds.
pub fn put_pii_key(key: &mut String, seller: &SellerId, entity: EntityToken, group: FieldGroup) {
    put_state_key(key, seller, entity, None);
    key.push('|');
    key.push_str(group.as_str());
}

/// The partition of everything of `entity` (for a child: its order): `toPositive(murmur2(seller|entity)) % partitions`, as Kafka's
/// Java client would place the `state.orders` key.
///
/// # Panics
/// Never: `partitions` below 1 counts as 1.
#[must_use]
pub fn partition_of(seller: &SellerId, entity: EntityToken, partitions: i32) -> Partition {
    partition_of_key(state_key(seller, entity, None).as_bytes(), partitions)
}

/// The partition a Java client's default partitioner gives to `key`.
#[must_use]
pub fn partition_of_key(key: &[u8], partitions: i32) -> Partition {
    Partition((murmur2(key) & 0x7fff_ffff) % partitions.max(1))
}

/// Murmur2 as in `org.apache.kafka.common.utils.Utils.murmur2` (seed 0x9747b28c).
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "32-bit wrapping arithmetic is the algorithm")]
pub fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = chunk.iter().rev().fold(0u32, |k, b| (k << 8) | u32::from(*b));
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        k = k.wrapping_mul(M);
        h = h.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        h ^= rest.iter().rev().fold(0u32, |k, b| (k << 8) | u32::from(*b));
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^= h >> 15;
    h as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn murmur2_equals_kafkas_java_client() {
        // Values of org.apache.kafka.common.utils.UtilsTest.testMurmur2.
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()), hash, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_key_splits_into_what_it_was_joined_from(parts in proptest::collection::vec(".{0,12}", 1..4)) {
            let key = join(parts.iter().map(String::as_str));
            prop_assert_eq!(split(key.as_bytes()).unwrap(), parts);
        }
    }
}
