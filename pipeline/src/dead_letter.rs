//! Raw records that could not be split: their bytes sealed under the quarantine key of the day, coordinates and a code in clear.
//!
//! Nobody knows what a foreign record holds, so all of it counts as personal: key, headers and value go into one sealed block. The block
//! is bound to its coordinates, so it cannot be passed off as another's.

use ring::digest;
use sunder_retention::keys::{Context, DataKey};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, Offset, Partition, SellerId};
use sunder_schemas::key;
use sunder_schemas::outcome::DeadLetterReason;
use sunder_schemas::private::SealedBlock;
use sunder_schemas::records::{DeadLetter, Original};
use sunder_schemas::time::Timestamp;
use zeroize::Zeroize;

use crate::split::batch::RawRecord;

/// What stands for the classification in the associated data of a dead letter's block.
const CLASSIFICATION: &str = "dead_letter#1";

/// Largest original that is sealed whole, in bytes: what a dead-letter topic takes, less room for coordinates and headers (chosen: 15 MiB).
const ORIGINAL_BYTES_MAX: usize = 15 * 1024 * 1024;
/// The header that says how long a value was that had to be cut, in bytes.
const CUT_HEADER: &str = "sunder-cut";

/// Appends `record` as it is to be sealed. A record can be far larger than its topic's bound, which counts compressed bytes: one that no
/// dead letter could take is cut, and says so, rather than stopping the stream. The whole of it stays on the raw topic.
fn encode(record: &RawRecord<'_>, bytes_max: usize, plain: &mut Vec<u8>) {
    let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let headers_len: usize = record.headers.iter().map(|(name, value)| name.len() + len(*value) + 16).sum();
    let value_len = len(record.value);
    if len(record.key) + headers_len + value_len <= bytes_max {
        Original::encode_parts(record.key, record.headers.iter().copied(), record.value, plain);
        return;
    }
    let part = |bytes: &'_ [u8], max: usize| bytes.len().min(max);
    let third = bytes_max / 3;
    let key = record.key.and_then(|key| key.get(..part(key, third)));
    let mut headers: Vec<(&str, Option<&[u8]>)> = if headers_len <= third { record.headers.to_vec() } else { Vec::new() };
    let original_len = value_len.to_string();
    headers.push((CUT_HEADER, Some(original_len.as_bytes())));
    let value = record.value.and_then(|value| value.get(..part(value, third)));
    Original::encode_parts(key, headers.into_iter(), value, plain);
}

/// Where a record lay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates<'a> {
    /// Full topic name.
    pub topic: &'a str,
    /// The topic's incarnation.
    pub topic_id: &'a str,
    /// Partition.
    pub partition: Partition,
    /// Offset.
    pub offset: Offset,
}

impl Coordinates<'_> {
    /// Key of the dead letter: topic id, partition, offset.
    #[must_use]
    pub fn key(&self) -> String {
        key::join([self.topic_id, &self.partition.to_string(), &self.offset.to_string()])
    }

    /// The coordinates in the form of a token, for the block's associated data.
    fn token(&self) -> EntityToken {
        let hash = digest::digest(&digest::SHA256, self.key().as_bytes());
        EntityToken(hash.as_ref().first_chunk::<16>().copied().unwrap_or_default())
    }
}

/// No seller stands behind a dead letter; this id is none of Amazon's, which are upper case.
fn nobody() -> Option<SellerId> {
    SellerId::parse("quarantine").ok()
}

/// Seals `record` into a dead letter; `None` only where the pseudo seller's id did not parse, which it does.
#[must_use]
pub fn seal(
    at: Coordinates<'_>,
    reason: DeadLetterReason,
    record: &RawRecord<'_>,
    splitter: &str,
    now: Timestamp,
    quarantine: &DataKey,
) -> Option<DeadLetter> {
    let mut plain = Vec::new();
    encode(record, ORIGINAL_BYTES_MAX, &mut plain);
    let seller = nobody()?;
    let context = Context { seller: &seller, entity: at.token(), group: FieldGroup::Unclassified, classification: CLASSIFICATION };
    let block: SealedBlock = quarantine.seal(&context, &plain);
    plain.zeroize();
    Some(DeadLetter {
        source_topic: at.topic.to_owned(),
        source_topic_id: at.topic_id.to_owned(),
        source_partition: i64::from(at.partition.0),
        source_offset: at.offset.0,
        reason,
        splitter: splitter.to_owned(),
        set_aside_at: now,
        key_id: quarantine.id(),
        block,
    })
}

/// Opens a dead letter with the quarantine key it names; only an audited read may call this.
#[must_use]
pub fn open(letter: &DeadLetter, quarantine: &DataKey) -> Option<Original> {
    let at = Coordinates {
        topic: &letter.source_topic,
        topic_id: &letter.source_topic_id,
        partition: Partition(i32::try_from(letter.source_partition).ok()?),
        offset: Offset(letter.source_offset),
    };
    let seller = nobody()?;
    let context = Context { seller: &seller, entity: at.token(), group: FieldGroup::Unclassified, classification: CLASSIFICATION };
    let plain = quarantine.open(&context, letter.block.as_bytes()).ok()?;
    Original::decode(plain.reveal()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sunder_schemas::class::Family;

    fn encoded(key: &[u8], headers: &[(&str, Option<&[u8]>)], value: &[u8]) -> Original {
        let record = RawRecord {
            topic: "sp.raw.orders.v1",
            family: Family::Orders,
            partition: Partition(0),
            offset: Offset(0),
            key: Some(key),
            value: Some(value),
            headers,
        };
        let mut plain = Vec::new();
        encode(&record, 3_000, &mut plain);
        assert!(plain.len() <= 3_000 + 64, "{}", plain.len());
        Original::decode(&plain).unwrap()
    }

    #[test]
    fn what_fits_is_sealed_whole_and_what_does_not_is_cut_and_says_so() {
        let whole = encoded(b"key", &[("h", Some(b"1"))], &[7; 2_500]);
        assert_eq!((whole.value.unwrap().len(), whole.headers.len()), (2_500, 1));
        let cut = encoded(b"key", &[("h", Some(b"1"))], &[7; 50_000]);
        assert_eq!((cut.value.unwrap(), cut.key.unwrap()), (vec![7; 1_000], b"key".to_vec()));
        assert_eq!(cut.headers.last().unwrap(), &("sunder-cut".to_owned(), Some(b"50000".to_vec())));
        let large = vec![7u8; 9_000];
        let cut = encoded(&large, &[("h", Some(&large))], b"");
        assert_eq!((cut.key.unwrap().len(), cut.headers.len()), (1_000, 1));
    }
}
