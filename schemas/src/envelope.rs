//! One fetched record with where, when and by which call it was fetched: the value of `raw.*`.
//!
//! Invariants: the clear part holds no personal field and no clear order id; every sealed block carries its key id; the attribution
//! is complete, on every record and later on every warehouse row (DESIGN section 4).

use serde::{Deserialize, Serialize};

use crate::class::{Family, FieldGroup};
use crate::ids::{EntityToken, EventId, MarketplaceId, SellerId};
use crate::private::SealedBlock;
use crate::time::Timestamp;

/// Where a record came from. Copied unchanged onto every record and row made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribution {
    /// Amazon's merchant id of the seller whose data this is.
    pub selling_partner_id: SellerId,
    /// The marketplace the record belongs to.
    pub marketplace_id: MarketplaceId,
    /// The model's name, e.g. `orders_2026-01-01`.
    pub source_api: String,
    /// The operation's id in that model, e.g. `searchOrders`.
    pub source_operation: String,
    /// `x-amzn-RequestId` of the answer.
    pub source_request_id: String,
    /// When the answer arrived, by the policy clock.
    pub collected_at: Timestamp,
    /// Names this version of the entity; the same from raw to the warehouse.
    pub event_id: EventId,
    /// SHA-256 of the clear part as canonical JSON after tokenising, lower-case hex.
    pub payload_sha256: String,
}

/// Which entity an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entity {
    /// The family, which names the topics.
    pub family: Family,
    /// The pseudonym of the order or inventory level.
    pub token: EntityToken,
}

/// A sealed group of fields on its way from the poller to the vault; nobody between opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedGroup {
    /// Which fields.
    pub group: FieldGroup,
    /// The ciphertext with its key id.
    pub block: SealedBlock,
}

/// The value of a `raw.<family>` record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEvent {
    /// Where the record came from.
    pub attribution: Attribution,
    /// What it is about.
    pub entity: Entity,
    /// The source's own version in milliseconds: an order's `lastUpdatedTime`; the collection window's start where the source has none.
    pub source_version: i64,
    /// Name and version of the program that fetched it, e.g. `sunder/0.1.0`.
    pub poller: String,
    /// Version of the catalogue that classified it, e.g. `orders_2026-01-01#1`; bound into every sealed block.
    pub classification: String,
    /// The clear part: canonical JSON (keys sorted, no white space, numbers digit for digit) with tokens in the place of clear ids.
    pub clear: Vec<u8>,
    /// The personal groups, sealed. Empty where nothing is wanted, supplied or allowed.
    pub sealed: Vec<SealedGroup>,
    /// When the sealed groups are due to be destroyed, if there are any; with the rule that decided.
    pub deadline: Option<(Timestamp, String)>,
}
