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
    Original::encode_parts(record.key, record.headers.iter().copied(), record.value, &mut plain);
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
