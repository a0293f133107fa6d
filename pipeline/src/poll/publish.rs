//! From a classified page to acknowledged events: admit, seal, frame, produce, commit.
//!
//! Invariants: between `admit` and Kafka's acknowledgement the epoch gate is held, so that a key destroyed meanwhile is known not to be
//! in use; personal bytes leave this module sealed or not at all; what was not acknowledged is not committed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sunder_retention::admit::{Admission, Candidate};
use sunder_retention::cursor::{Disposition, PageCommit, Published};
use sunder_retention::keys::{Context, DataKey, Keyring, SellerKeys};
use sunder_retention::ledger::Fate;
use sunder_schemas::catalogue::Catalogue;
use sunder_schemas::class::{Family, FieldGroup, Kind};
use sunder_schemas::classify::{Classified, Identity, Page};
use sunder_schemas::envelope::{Attribution, Entity, RawEvent, SealedGroup};
use sunder_schemas::ids::{EventId, MarketplaceId, SellerId};
use sunder_schemas::key;
use sunder_schemas::outcome::{DropReason, FilterReason};
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{OrderFacts, Record as _};
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;

use super::error::PollError;
use super::fate::{self, Wishes};
use super::observe::observe;
use super::runner::Counts;
use crate::kafka::{Batch, Kafka, OutRecord, Producer};
use crate::registry::Schemas;

/// Name and version of this program, on every event.
const POLLER: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Where a page came from, and what is known around it.
pub(super) struct Origin<'a> {
    pub(super) seller: &'a SellerId,
    pub(super) keys: &'a SellerKeys,
    pub(super) catalogue: &'static Catalogue,
    pub(super) request_id: &'a str,
    pub(super) collected_at: Timestamp,
    /// What stands for an entity's marketplace where the answer has none: known only where one marketplace is asked for.
    pub(super) marketplace: Option<&'a MarketplaceId>,
    /// When the page was asked for, by the policy clock.
    pub(super) asked_at: Timestamp,
    /// Up to when the seller's changes were seen before this answer.
    pub(super) watermark: Option<Timestamp>,
    /// The version of an entity that has none of its own: the start of the collection.
    pub(super) version: Timestamp,
    pub(super) wishes: Wishes<'a>,
}

/// What a page brought besides its events.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PageSum {
    /// Newest source version.
    pub(super) newest: Option<Timestamp>,
    /// Entities that could not be taken in: code of the first.
    pub(super) rejected: Option<String>,
}

/// Largest entity that is published, in bytes of its clear part and its personal groups: what the raw topic takes in one record, less
/// room for attribution, block headers and record headers (chosen: 64 KiB). An order is about 2 KB.
const ENTITY_BYTES_MAX: usize = 1_048_588 - 65_536;

/// Publishes the pages of all turns.
pub(super) struct Publisher {
    keyring: Arc<Keyring>,
    kafka: Kafka,
    producer: Producer,
    schemas: Arc<Schemas>,
    counts: Arc<Counts>,
}

/// An entity that is about to be published.
struct Prepared {
    classified: Classified,
    marketplace_id: MarketplaceId,
    source_version: i64,
    event_id: EventId,
    facts: Option<OrderFacts>,
}

impl Publisher {
    pub(super) fn new(keyring: Arc<Keyring>, kafka: &Kafka, schemas: Arc<Schemas>, counts: Arc<Counts>) -> Self {
        Self { keyring, producer: kafka.producer(), kafka: kafka.clone(), schemas, counts }
    }

    /// Publishes `page` and returns once Kafka acknowledged all of it and its dispositions are committed.
    ///
    /// # Errors
    /// [`PollError`]: nothing of the page may be taken as published; doing it again changes nothing that was.
    pub(super) async fn publish(&self, origin: &Origin<'_>, page: Page) -> Result<PageSum, PollError> {
        let mut commit = PageCommit::default();
        let (prepared, sum) = self.prepare(origin, page, &mut commit);
        // Held until Kafka acknowledged: a process must not call an erasure's epoch its own while it seals under an older view.
        let _guard = self.keyring.gate().enter().await;
        let admissions = self.admit(origin, &prepared).await?;
        let batch = self.producer.batch();
        let mut buffer = Vec::with_capacity(8 * 1024);
        let mut sent = 0;
        for (entity, admission) in prepared.into_iter().zip(admissions) {
            if let Some(reason) = self.count_filtered(&admission) {
                metrics::counter!("sunder_poll_outcomes_total", "outcome" => "filtered", "reason" => reason.as_str()).increment(1);
                continue;
            }
            let event = self.seal(origin, entity, &admission, &mut commit);
            self.send(&batch, &event, &mut buffer)?;
            sent += 1;
        }
        batch.acked().await.map_err(|error| PollError::Kafka { code: error.code })?;
        self.counts.published.fetch_add(sent, Ordering::Relaxed);
        metrics::counter!("sunder_poll_outcomes_total", "outcome" => "stored", "reason" => "").increment(sent);
        self.keyring.commit_page(origin.seller, commit).await?;
        Ok(sum)
    }

    /// Why an entity is not published at all, if so.
    fn count_filtered(&self, admission: &Admission) -> Option<FilterReason> {
        let (count, reason) = match admission {
            Admission::Unchanged => (&self.counts.unchanged, FilterReason::Unchanged),
            Admission::Withheld => (&self.counts.withheld, FilterReason::Erased),
            Admission::Seal { .. } | Admission::Clear { .. } | Admission::Drop(_) => return None,
        };
        count.fetch_add(1, Ordering::Relaxed);
        Some(reason)
    }

    /// Gives each entity its version, marketplace and event id; what lacks them is rejected, and counted.
    fn prepare(&self, origin: &Origin<'_>, page: Page, commit: &mut PageCommit) -> (Vec<Prepared>, PageSum) {
        let total = page.entities.len() + page.rejected.len();
        self.counts.polled.fetch_add(total as u64, Ordering::Relaxed);
        let mut sum = PageSum { newest: None, rejected: page.rejected.first().map(|rejected| rejected.code.as_str().to_owned()) };
        let mut rejected = page.rejected.len() as u64;
        report_unclassified(origin, page.unclassified, commit);
        let mut prepared = Vec::with_capacity(page.entities.len());
        let cutoff = self.keyring.policy().business_cutoff(self.keyring.now());
        for mut classified in page.entities {
            report_unclassified(origin, std::mem::take(&mut classified.unclassified), commit);
            let version = classified.identity.source_version();
            sum.newest = sum.newest.max(version);
            match prepare(origin, classified) {
                Ok(entity) if entity.facts.as_ref().is_some_and(|facts| facts.created < cutoff) => self.count_past(),
                Ok(entity) => prepared.push(entity),
                Err(code) => {
                    rejected += 1;
                    sum.rejected.get_or_insert_with(|| code.to_owned());
                }
            }
        }
        self.counts.rejected.fetch_add(rejected, Ordering::Relaxed);
        metrics::counter!("sunder_poll_rejected_entities_total").increment(rejected);
        (prepared, sum)
    }

    /// Counts an order that is older than business data may be kept: nothing of it is published, and no row of the ledger is made for it.
    fn count_past(&self) {
        self.counts.past_period.fetch_add(1, Ordering::Relaxed);
        let reason = FilterReason::PastPeriod.as_str();
        metrics::counter!("sunder_poll_outcomes_total", "outcome" => "filtered", "reason" => reason).increment(1);
    }

    /// Asks the ledger for each order; what is no order has no subject and nothing to admit.
    async fn admit(&self, origin: &Origin<'_>, prepared: &[Prepared]) -> Result<Vec<Admission>, PollError> {
        let wants_key = !origin.wishes.wanted.is_empty();
        let candidates: Vec<Candidate> = prepared
            .iter()
            .filter_map(|entity| {
                let (Some(facts), Identity::Order { id, token, .. }) = (&entity.facts, &entity.classified.identity) else { return None };
                Some(Candidate {
                    fingerprint: origin.keys.fingerprint(id),
                    token: *token,
                    observed: observe(facts, origin.watermark, Some(origin.asked_at)),
                    source_version: entity.source_version,
                    event_id: entity.event_id,
                    wants_key,
                })
            })
            .collect();
        if candidates.is_empty() {
            // Asked all the same: a seller that was removed publishes nothing more.
            self.keyring.admit(origin.seller, &[]).await?;
            return Ok(prepared.iter().map(|_| Admission::Drop(DropReason::NotWanted)).collect());
        }
        Ok(self.keyring.admit(origin.seller, &candidates).await?)
    }

    /// Seals what is wanted and allowed, counts what is dropped, and notes both for the commit.
    fn seal(&self, origin: &Origin<'_>, entity: Prepared, admission: &Admission, commit: &mut PageCommit) -> RawEvent {
        let token = entity.classified.identity.token();
        let family = origin.catalogue.kind().family();
        let (key, refused, deadline) = match admission {
            Admission::Seal { key, deadline, rule } => (Some(key), None, Some((*deadline, rule.clone()))),
            Admission::Drop(reason) => (None, Some(*reason), None),
            Admission::Clear { .. } | Admission::Withheld | Admission::Unchanged => (None, Some(DropReason::NotWanted), None),
        };
        let supplied: Vec<FieldGroup> = entity.classified.groups.iter().map(|(group, _)| *group).collect();
        let fates = fate::fates(&origin.wishes, &supplied, refused);
        let is_sealed = |group: FieldGroup| fates.iter().any(|(g, fate)| *g == group && *fate == Fate::Sealed);
        let mut sealed = Vec::new();
        for (group, plain) in entity.classified.groups {
            match key {
                Some(key) if is_sealed(group) => sealed.push(seal_group(origin, key, token, group, plain.reveal())),
                _ => self.count_dropped(&fates, group),
            }
        }
        if family == Family::Orders {
            commit.published.extend(entity.classified.identity.order_id().map(|id| Published {
                fingerprint: origin.keys.fingerprint(id),
                event_id: entity.event_id,
                source_version: entity.source_version,
            }));
            commit.dispositions.extend(fates.into_iter().map(|(group, fate)| Disposition { token, group, fate }));
        }
        let deadline = if sealed.is_empty() { None } else { deadline };
        RawEvent {
            attribution: Attribution {
                selling_partner_id: origin.seller.clone(),
                marketplace_id: entity.marketplace_id,
                source_api: origin.catalogue.api().to_owned(),
                source_operation: origin.catalogue.operation().to_owned(),
                source_request_id: origin.request_id.to_owned(),
                collected_at: origin.collected_at,
                event_id: entity.event_id,
                payload_sha256: entity.classified.payload_sha256,
            },
            entity: Entity { family, token },
            source_version: entity.source_version,
            poller: POLLER.to_owned(),
            classification: origin.catalogue.version().to_owned(),
            clear: entity.classified.clear,
            sealed,
            deadline,
        }
    }

    fn count_dropped(&self, fates: &[(FieldGroup, Fate)], group: FieldGroup) {
        let reason = fates.iter().find_map(|(g, fate)| match fate {
            Fate::Dropped(reason) if *g == group => Some(*reason),
            _ => None,
        });
        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        let reason = reason.unwrap_or(DropReason::NotWanted).as_str();
        metrics::counter!("sunder_poll_dropped_groups_total", "group" => group.as_str(), "reason" => reason).increment(1);
    }

    fn send(&self, batch: &Batch, event: &RawEvent, buffer: &mut Vec<u8>) -> Result<(), PollError> {
        let attribution = &event.attribution;
        let (seller, token, family) = (&attribution.selling_partner_id, event.entity.token, event.entity.family);
        buffer.clear();
        self.schemas.begin(RecordType::RawEvent, buffer);
        event.encode(buffer);
        let topic = self.kafka.topic(Topic::Raw(family));
        let key = key::event_key(seller, token, None, attribution.event_id);
        let (id, subject, time) = (attribution.event_id.to_string(), token.to_hex(), attribution.collected_at.to_iso());
        let source = format!("/{}/{}", attribution.source_api, attribution.source_operation);
        // As on the topics behind it, the type names no installation, and the schema's place is relative to the registry.
        let (ty, schema) = (Topic::Raw(family).name("sunder"), format!("/schemas/ids/{}", self.schemas.id(RecordType::RawEvent)));
        batch
            .send(OutRecord {
                topic: &topic,
                partition: self.kafka.partition_of(seller, token),
                key: key.as_bytes(),
                value: Some(buffer),
                headers: &[
                    ("ce_specversion", b"1.0"),
                    ("ce_id", id.as_bytes()),
                    ("ce_source", source.as_bytes()),
                    ("ce_type", ty.as_bytes()),
                    ("ce_subject", subject.as_bytes()),
                    ("ce_time", time.as_bytes()),
                    ("ce_dataschema", schema.as_bytes()),
                    ("content-type", b"application/avro"),
                ],
            })
            .map_err(|error| PollError::Kafka { code: error.code })
    }
}

fn prepare(origin: &Origin<'_>, classified: Classified) -> Result<Prepared, &'static str> {
    let identity = &classified.identity;
    let bytes = classified.groups.iter().fold(classified.clear.len(), |sum, (_, plain)| sum + plain.reveal().len());
    if bytes > ENTITY_BYTES_MAX {
        return Err("entity_too_large");
    }
    let marketplace_id = identity.marketplace_id().or(origin.marketplace).cloned().ok_or("entity_no_marketplace")?;
    let source_version = identity.source_version().unwrap_or(origin.version).0;
    let (kind, facts) = match identity {
        Identity::Order { .. } => (Kind::Orders, Some(OrderFacts::from_clear(&classified.clear).map_err(|_| "entity_no_facts")?)),
        Identity::InventoryLevel { .. } => (Kind::InventoryLevels, None),
    };
    let event_id = origin.keys.event_id(kind.as_str(), identity.token(), source_version, &classified.payload_sha256);
    Ok(Prepared { marketplace_id, source_version, event_id, facts, classified })
}

fn seal_group(
    origin: &Origin<'_>,
    key: &DataKey,
    entity: sunder_schemas::ids::EntityToken,
    group: FieldGroup,
    plain: &[u8],
) -> SealedGroup {
    let context = Context { seller: origin.seller, entity, group, classification: origin.catalogue.version() };
    SealedGroup { group, block: key.seal(&context, plain) }
}

/// Reports fields without a rule by their last known property, and keeps them for `sunder check`: a person decides what they are.
fn report_unclassified(origin: &Origin<'_>, paths: Vec<(String, u64)>, commit: &mut PageCommit) {
    for (path, count) in paths {
        metrics::counter!("sunder_poll_unclassified_fields_total", "path" => path.clone()).increment(count);
        tracing::debug!(path, count, "a fetched field has no rule; it is treated as personal");
        *commit.unclassified.entry((origin.catalogue.version().to_owned(), path)).or_default() += count;
    }
}
