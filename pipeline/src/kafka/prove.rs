//! Reads the log again and shows that no block of an erased key is left in it.
//!
//! Every partition of every topic is read from its start to the barrier, `read_uncommitted`, outside any group; keys, values and
//! headers are searched for the key ids. Controls are planted in each partition of `pii.*`: `~canary|<case>|live` must be found in
//! all of them, or the reading proves nothing; `~canary|<case>|dead` was written and tombstoned like a subject and must be gone,
//! which shows that the cleaner passed there. Ciphertext on `raw.*` and `dlq.*` is no finding but residual until its retention
//! (DESIGN section 6). What it does not do: read followers one by one, or files.

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use sunder_retention::store::{Control, FoundBlock, Mark, Needles, Place, Prove, Residual, ScanReport, StoreError};
use sunder_schemas::class::Family;
use sunder_schemas::ids::{KeyId, Offset, Partition};
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::{Times, Topic};

use crate::kafka::error::KafkaError;
use crate::kafka::log::{CASE_HEADER, KafkaLog};
use crate::kafka::needles::{KeyFinder, block_at};
use crate::kafka::{Kafka, OutRecord, Range, Record, blocking};

/// Key prefix of controls.
pub const CANARY_PREFIX: &str = "~canary|";
/// Blocks kept of one scan: the case stays open after the first, so more than a recover test can use are only counted.
const FOUND_MAX: usize = 1_000;
/// Broker defaults: `log.cleaner.backoff.ms` and `log.retention.check.interval.ms` (kafka-design 1.1).
const CLEANER_BACKOFF_MS: i64 = 15_000;
const RETENTION_CHECK_MS: i64 = 300_000;

pub(super) fn canary(case: &str, what: &str) -> String {
    format!("{CANARY_PREFIX}{case}|{what}")
}

/// How long after its tombstone a value's bytes can stay: `max(L, S + H) + B + D` with an empty cleaner queue.
const fn deletion_bound_ms(times: &Times) -> i64 {
    let rolled = times.segment_ms + times.heartbeat_ms;
    let eligible = if times.lag_ms > rolled { times.lag_ms } else { rolled };
    eligible + CLEANER_BACKOFF_MS + times.file_delay_ms
}

/// How long after its append a record of a plain `delete` topic can stay.
const fn retention_bound_ms(times: &Times) -> i64 {
    times.raw_ms + times.raw_segment_ms + RETENTION_CHECK_MS + times.file_delay_ms
}

struct Scan<'a> {
    erased: KeyFinder,
    controls: HashSet<KeyId>,
    times: Times,
    report: ScanReport,
    /// Controls found: key, topic, partition.
    seen: HashSet<(KeyId, String, i32)>,
    /// Newest append of ciphertext that waits for its retention, by topic.
    waiting: BTreeMap<String, Option<i64>>,
    newest_ms: Option<i64>,
    dropped: u64,
    kinds: &'a BTreeMap<String, Topic>,
}

impl Scan<'_> {
    fn look(&mut self, record: &Record<'_>) {
        self.newest_ms = self.newest_ms.max(record.appended_ms);
        let Some(topic) = self.kinds.get(record.topic).copied() else { return };
        if self.is_control(record) {
            return;
        }
        let waits = matches!(topic, Topic::Raw(_) | Topic::DlqRaw(_));
        if matches!(topic, Topic::DlqRaw(_)) && !record.is_own() && record.value.is_some() {
            // The original is sealed once more under the quarantine key, so its own blocks cannot be seen.
            self.wait(record);
        }
        let names = record.headers().map(|(name, _)| name.as_bytes());
        let values = record.headers().filter_map(|(_, value)| value);
        for bytes in record.value.into_iter().chain(record.key).chain(names).chain(values) {
            let mut blocks: Vec<FoundBlock> = Vec::new();
            let mut is_hit = false;
            for hit in self.erased.find(bytes) {
                // Outside the topics of sealed blocks the ledger may name key ids: only a block is a finding there.
                if !topic.holds_sealed() && !hit.is_block {
                    continue;
                }
                is_hit = true;
                if !waits {
                    let block = if hit.is_block { block_at(bytes, hit.at).to_vec() } else { hit.key.0.to_vec() };
                    blocks.push(FoundBlock { place: place(record), key: hit.key, block });
                }
            }
            if is_hit && waits {
                self.wait(record);
            }
            for found in blocks {
                self.find(found);
            }
        }
    }

    /// Whether `record` is a control of this scan; counts a live one, and reports a dead one that is still there.
    fn is_control(&mut self, record: &Record<'_>) -> bool {
        let (Some(key), Some(value)) = (record.key, record.value) else { return false };
        if !key.starts_with(CANARY_PREFIX.as_bytes()) {
            return false;
        }
        let Some(id) = SealedBlock::key_of(value).ok().filter(|id| self.controls.contains(id)) else { return false };
        if key.ends_with(b"|live") {
            self.seen.insert((id, record.topic.to_owned(), record.partition.0));
        } else {
            self.find(FoundBlock { place: format!("{} (control that must be gone)", place(record)), key: id, block: value.to_vec() });
        }
        true
    }

    fn wait(&mut self, record: &Record<'_>) {
        let newest = self.waiting.entry(record.topic.to_owned()).or_insert(record.appended_ms);
        *newest = (*newest).max(record.appended_ms);
    }

    fn find(&mut self, found: FoundBlock) {
        if self.report.found.len() < FOUND_MAX {
            self.report.found.push(found);
        } else {
            self.dropped += 1;
        }
    }

    fn finish(mut self, planted: u64, replication: i32) -> ScanReport {
        self.report.controls_planted = planted;
        self.report.controls_found = u64::try_from(self.seen.len()).unwrap_or(u64::MAX);
        for (topic, newest) in &self.waiting {
            self.report.residual.push(Residual {
                what: format!("{topic}: ciphertext of destroyed or quarantine keys until the topic's retention"),
                until: newest.map(|ms| Timestamp(ms.saturating_add(retention_bound_ms(&self.times)))),
            });
        }
        let until = self.newest_ms.map(|ms| Timestamp(ms.saturating_add(deletion_bound_ms(&self.times))));
        self.report
            .residual
            .push(Residual { what: "kafka: segment files the cleaner has replaced and not yet unlinked".to_owned(), until });
        if replication > 1 {
            self.report.residual.push(Residual {
                what: "kafka: follower replicas, cleaned by their own brokers and read through the leader".to_owned(),
                until,
            });
        }
        if self.dropped > 0 {
            self.report.residual.push(Residual { what: format!("kafka: {} further findings not listed", self.dropped), until: None });
        }
        self.report
    }
}

fn place(record: &Record<'_>) -> String {
    format!("{}[{}]@{}", record.topic, record.partition, record.offset)
}

/// Up to where each partition is read: its mark, or its present end where the barrier does not name it.
fn ranges(kafka: &Kafka, kinds: &BTreeMap<String, Topic>, barrier: &[Mark]) -> Result<Vec<Range>, KafkaError> {
    let mut marks: BTreeMap<(&str, i32), &Mark> = BTreeMap::new();
    for mark in barrier {
        if !kinds.contains_key(&mark.topic) {
            return Err(KafkaError::own(format!("scan {}", mark.topic), "UnknownTopic"));
        }
        if kafka.incarnation_blocking(&mark.topic)? != mark.incarnation {
            return Err(KafkaError::own(format!("scan {}", mark.topic), "AnotherIncarnation"));
        }
        marks.insert((&mark.topic, mark.partition.0), mark);
    }
    let mut ranges = Vec::new();
    for (name, topic) in kinds {
        for partition in (0..kafka.partitions(*topic)).map(Partition) {
            let mut range = kafka.whole_blocking(name, partition)?;
            if let Some(mark) = marks.get(&(name.as_str(), partition.0)) {
                if mark.offset >= range.to {
                    return Err(KafkaError::own(format!("scan {name}[{partition}]"), "BarrierBeyondEnd"));
                }
                range.to = Offset(mark.offset.0 + 1);
            }
            ranges.push(range);
        }
    }
    Ok(ranges)
}

fn scan(kafka: &Kafka, needles: &Needles) -> Result<ScanReport, KafkaError> {
    let kinds: BTreeMap<String, Topic> = Topic::all().into_iter().map(|topic| (kafka.topic(topic), topic)).collect();
    let ranges = ranges(kafka, &kinds, &needles.barrier)?;
    let mut scan = Scan {
        erased: KeyFinder::new(needles.keys.iter().copied()),
        controls: needles.controls.iter().copied().collect(),
        times: kafka.settings().times(),
        report: ScanReport {
            store: "kafka".to_owned(),
            method: "every partition read from its start to the barrier (read_uncommitted, CRCs checked, no group); keys, values and \
                     headers searched for the key ids of destroyed keys"
                .to_owned(),
            ..ScanReport::default()
        },
        seen: HashSet::new(),
        waiting: BTreeMap::new(),
        newest_ms: None,
        dropped: 0,
        kinds: &kinds,
    };
    let mut counts: BTreeMap<String, BTreeMap<i32, u64>> = kinds.keys().map(|name| (name.clone(), BTreeMap::new())).collect();
    kafka.read_blocking(&ranges, |record| {
        if let Some(counts) = counts.get_mut(record.topic) {
            *counts.entry(record.partition.0).or_insert(0) += 1;
        }
        scan.look(record);
        Ok(())
    })?;
    for range in &ranges {
        let count = counts.get(&range.topic).and_then(|counts| counts.get(&range.partition.0)).copied().unwrap_or(0);
        let read = format!("{count} records [{}, {})", range.from, range.to);
        scan.report.places.push(Place { name: format!("{}[{}]", range.topic, range.partition), read });
    }
    let planted = scan.controls.len() * usize::try_from(pii_partitions(kafka)).unwrap_or(0);
    Ok(scan.finish(u64::try_from(planted).unwrap_or(u64::MAX), kafka.settings().replication))
}

fn pii_partitions(kafka: &Kafka) -> i32 {
    Family::ALL.iter().map(|family| kafka.partitions(Topic::Pii(*family))).sum()
}

/// Writes `records` of (what, value) for `case` to every partition of every `pii.*` topic.
async fn write_canaries(kafka: &Kafka, case: &str, records: &[(&str, Option<&[u8]>)]) -> Result<(), KafkaError> {
    let batch = kafka.producer().batch();
    for topic in Family::ALL.iter().map(|family| Topic::Pii(*family)) {
        let name = kafka.topic(topic);
        for partition in (0..kafka.partitions(topic)).map(Partition) {
            for (what, value) in records {
                batch.send(OutRecord {
                    topic: &name,
                    partition,
                    key: canary(case, what).as_bytes(),
                    value: *value,
                    headers: &[(CASE_HEADER, case.as_bytes())],
                })?;
            }
        }
    }
    batch.acked().await?;
    Ok(())
}

#[async_trait]
impl Prove for KafkaLog {
    fn name(&self) -> &str {
        "kafka"
    }

    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        let block = Some(control.block.as_slice());
        write_canaries(&self.kafka, &control.case, &[("live", block), ("dead", block), ("dead", None)]).await?;
        Ok(())
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        let (kafka, needles) = (self.kafka.clone(), needles.clone());
        Ok(blocking(move || scan(&kafka, &needles)).await?)
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        write_canaries(&self.kafka, case, &[("live", None), ("dead", None)]).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sunder_schemas::topic::Profile;

    #[test]
    fn the_production_bound_is_about_six_hours() {
        let bound = deletion_bound_ms(&Times::of(Profile::Production));
        assert!((21_600_000..22_000_000).contains(&bound), "{bound}");
    }
}
