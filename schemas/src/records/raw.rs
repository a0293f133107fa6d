//! The Avro form of a raw event.

use super::record;
use crate::envelope::{Attribution, Entity, RawEvent, SealedGroup};
use crate::time::Timestamp;

record!(RawEvent, "RawEvent", "One fetched record as the poller publishes it: attribution, clear part, sealed blocks.", {
    attribution: Attribution = "where the record came from",
    entity: Entity = "what it is about",
    source_version: i64 = "the source's own version, ms since 1970",
    poller: String = "name and version of the program that fetched it",
    classification: String = "catalogue and version that classified it",
    clear: Vec<u8> = "canonical JSON of the clear part, tokens in the place of clear ids",
    sealed: Vec<SealedGroup> = "the personal field groups (sealed)",
    deadline: Option<(Timestamp, String)> = "when the sealed groups are destroyed at the latest, with its rule",
});
