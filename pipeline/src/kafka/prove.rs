//! Reads the log again and shows that no block of an erased key is left in it.
//!
//! Every replica of every partition of every topic is read up to the barrier (`kafka/replicas.rs`); keys, values and headers
//! are searched for the key ids of all cases at once. Controls are planted in each partition of `pii.*`: `~canary|<case>|live` must be
//! found on every replica, or the reading proves nothing; `~canary|<case>|dead` was written and tombstoned like a subject and must be
//! gone, which shows that this broker's cleaner passed there. A value is *buried* where a tombstone of its key lies above it on the
//! same replica: it waits for the cleaner. One that is not will never go by itself: it came late, lies under another key or partition
//! than ours, or its replica was away until the tombstone itself was gone. Ciphertext on `raw.*` and `dlq.*` is no finding but residual
//! until its retention (DESIGN section 6). What it does not do: read files.

use std::collections::{BTreeMap, HashMap, HashSet};

use async_trait::async_trait;
use sunder_retention::store::{Control, FoundBlock, Needles, Place, Prove, Residual, ScanReport, StoreError};
use sunder_schemas::class::Family;
use sunder_schemas::ids::{KeyId, Offset, Partition};
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::{Times, Topic};

use crate::kafka::error::KafkaError;
use crate::kafka::log::{CASE_HEADER, KafkaLog, topics_of_subjects};
use crate::kafka::needles::{KeyFinder, block_at};
use crate::kafka::replicas::{self, UpTo};
use crate::kafka::rows::{Row, RowFinder, RowReader};
use crate::kafka::{Kafka, OutRecord, Range, Record, blocking};

/// Key prefix of controls.
pub const CANARY_PREFIX: &str = "~canary|";
/// Blocks kept of one broker and case: the case stays open after the first, so more than a recover test can use are only counted.
const FOUND_MAX: usize = 1_000;
/// Broker defaults: `log.cleaner.backoff.ms` and `log.retention.check.interval.ms` (kafka-design 1.1).
const CLEANER_BACKOFF_MS: i64 = 15_000;
const RETENTION_CHECK_MS: i64 = 300_000;

pub(super) fn canary(case: &str, what: &str) -> String {
    format!("{CANARY_PREFIX}{case}|{what}")
}

/// How long after its tombstone a value's bytes can stay: `max(L, min(S, L) + H + m) + B + D` with an empty cleaner queue
/// (kafka-design 1.1), saturating, since L is without a bound where nobody declared one.
const fn bound_ms(lag_ms: i64, segment_ms: i64, min_lag_ms: i64, heartbeat_ms: i64, backoff_ms: i64, file_delay_ms: i64) -> i64 {
    let life = if segment_ms < lag_ms { segment_ms } else { lag_ms };
    let rolled = life.saturating_add(heartbeat_ms).saturating_add(min_lag_ms);
    let eligible = if lag_ms > rolled { lag_ms } else { rolled };
    eligible.saturating_add(backoff_ms).saturating_add(file_delay_ms)
}

/// The bound of the declared settings.
const fn deletion_bound_ms(times: &Times) -> i64 {
    bound_ms(times.lag_ms, times.segment_ms, 0, times.idle_heartbeat_ms, CLEANER_BACKOFF_MS, times.file_delay_ms)
}

impl Kafka {
    /// The longest bound of the topics whose cleaner removes subjects' records, by the settings that they and the brokers really have.
    ///
    /// # Errors
    /// [`KafkaError::Call`] where no broker answers.
    pub(crate) async fn removal_bound_ms(&self) -> Result<i64, KafkaError> {
        let heartbeat_ms = self.settings().times().idle_heartbeat_ms;
        let declared = deletion_bound_ms(&self.settings().times());
        if self.is_embedded() {
            return Ok(declared);
        }
        let topics: Vec<String> =
            topics_of_subjects().into_iter().filter(|topic| topic.is_compacted()).map(|topic| self.topic(topic)).collect();
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let number = |settings: &BTreeMap<String, String>, name: &str| settings.get(name).and_then(|value| value.parse::<i64>().ok());
        let backoff_ms = self.broker_settings().await?.iter().filter_map(|(_, settings)| number(settings, "log.cleaner.backoff.ms")).max();
        let mut longest = 0;
        for settings in self.settings_of(&names).await?.into_values() {
            let bound = settings.ok().and_then(|of| {
                let (lag, segment) = (number(&of, "max.compaction.lag.ms")?, number(&of, "segment.ms")?);
                let (min_lag, delay) = (number(&of, "min.compaction.lag.ms")?, number(&of, "file.delete.delay.ms")?);
                Some(bound_ms(lag, segment, min_lag, heartbeat_ms, backoff_ms.unwrap_or(CLEANER_BACKOFF_MS), delay))
            });
            longest = longest.max(bound.unwrap_or(declared));
        }
        Ok(longest)
    }
}

/// How long after its append a record of a plain `delete` topic can stay.
const fn retention_bound_ms(times: &Times) -> i64 {
    times.raw_ms + times.raw_segment_ms + RETENTION_CHECK_MS + times.file_delay_ms
}

/// What is looked for, for all cases at once.
struct Sought<'a> {
    kinds: &'a BTreeMap<String, Topic>,
    erased: KeyFinder,
    /// Which cases look for a key, and which case's control it is.
    cases: HashMap<KeyId, Vec<usize>>,
    controls: HashMap<KeyId, usize>,
    /// Business rows that must be gone, by case.
    rows: Vec<(usize, RowFinder)>,
}

impl<'a> Sought<'a> {
    fn new(kinds: &'a BTreeMap<String, Topic>, needles: &[Needles], reader: &RowReader) -> Self {
        let (erased, cases, controls, rows) = (KeyFinder::new(std::iter::empty()), HashMap::new(), HashMap::new(), Vec::new());
        let mut sought = Self { kinds, erased, cases, controls, rows };
        for (case, needles) in needles.iter().enumerate() {
            sought.rows.extend(RowFinder::of_needles(needles, reader.clone()).map(|rows| (case, rows)));
            for key in &needles.keys {
                sought.cases.entry(*key).or_default().push(case);
            }
            sought.controls.extend(needles.controls.iter().map(|key| (*key, case)));
        }
        sought.erased = KeyFinder::new(sought.cases.keys().copied());
        sought
    }
}

/// What one case has of one broker.
#[derive(Debug, Default)]
struct Findings {
    found: Vec<FoundBlock>,
    dropped: u64,
    /// Which of `found` lie under a key, while no tombstone of that key followed.
    unburied: HashMap<(String, i32, Vec<u8>), Vec<usize>>,
    /// Controls found: key, topic, partition.
    seen: HashSet<(KeyId, String, i32)>,
    /// Newest append of ciphertext that waits for its retention, by topic.
    waiting: BTreeMap<String, Option<i64>>,
}

impl Findings {
    fn find(&mut self, record: &Record<'_>, found: FoundBlock) {
        if self.found.len() >= FOUND_MAX {
            self.dropped += 1;
            return;
        }
        if let Some(key) = record.key {
            let place = (record.topic.to_owned(), record.partition.0, key.to_vec());
            self.unburied.entry(place).or_default().push(self.found.len());
        }
        self.found.push(found);
    }

    /// A tombstone of this key: what lies under it waits for the cleaner alone.
    fn bury(&mut self, record: &Record<'_>) {
        if self.unburied.is_empty() {
            return;
        }
        let Some(key) = record.key else { return };
        for index in self.unburied.remove(&(record.topic.to_owned(), record.partition.0, key.to_vec())).unwrap_or_default() {
            if let Some(found) = self.found.get_mut(index) {
                found.is_buried = true;
            }
        }
    }

    fn wait(&mut self, record: &Record<'_>) {
        let newest = self.waiting.entry(record.topic.to_owned()).or_insert(record.appended_ms);
        *newest = (*newest).max(record.appended_ms);
    }
}

/// One broker's replicas while they are read; `broker` is `None` where the embedded one serves what it has.
struct Scan<'a> {
    sought: &'a Sought<'a>,
    broker: Option<i32>,
    cases: Vec<Findings>,
    newest_ms: Option<i64>,
    /// A row whose age could not be asked for: nothing is known of it then.
    unread: Option<KafkaError>,
}

impl<'a> Scan<'a> {
    fn new(sought: &'a Sought<'a>, broker: Option<i32>, cases: usize) -> Self {
        Self { sought, broker, cases: std::iter::repeat_with(Findings::default).take(cases).collect(), newest_ms: None, unread: None }
    }

    fn look(&mut self, record: &Record<'_>) {
        self.newest_ms = self.newest_ms.max(record.appended_ms);
        let Some(topic) = self.sought.kinds.get(record.topic).copied() else { return };
        if record.value.is_none() && topic.is_compacted() {
            self.cases.iter_mut().for_each(|case| case.bury(record));
        }
        if self.is_control(record) {
            return;
        }
        let waits = matches!(topic, Topic::Raw(_) | Topic::DlqRaw(_));
        if matches!(topic, Topic::DlqRaw(_)) && !record.is_own() && record.value.is_some() {
            // The original is sealed once more under the quarantine key, so its own blocks cannot be seen.
            self.cases.iter_mut().for_each(|case| case.wait(record));
        }
        let sought = self.sought;
        for (case, rows) in &sought.rows {
            let found = FoundBlock { place: self.place(record), key: KeyId([0; 16]), block: Vec::new(), is_buried: false };
            let Some(case) = self.cases.get_mut(*case) else { continue };
            match rows.look(topic, record) {
                // A row names no key.
                Ok(Row::Goes) => case.find(record, found),
                // A younger value of the same key: an older one goes by compaction, as under a tombstone.
                Ok(Row::Stays) => case.bury(record),
                Ok(Row::Waits) => case.wait(record),
                Ok(Row::Other) => {}
                Err(error) => drop(self.unread.get_or_insert(error)),
            }
        }
        for bytes in record.pieces() {
            for hit in sought.erased.find(bytes) {
                // Outside the topics of sealed blocks the ledger may name key ids: only a block is a finding there.
                if !topic.holds_sealed() && !hit.is_block {
                    continue;
                }
                for case in sought.cases.get(&hit.key).into_iter().flatten() {
                    let block = if hit.is_block { block_at(bytes, hit.at).to_vec() } else { hit.key.0.to_vec() };
                    let found = FoundBlock { place: self.place(record), key: hit.key, block, is_buried: false };
                    let Some(case) = self.cases.get_mut(*case) else { continue };
                    if waits { case.wait(record) } else { case.find(record, found) }
                }
            }
        }
    }

    /// Whether `record` is a control of this scan; counts a live one, and reports a dead one that is still there.
    fn is_control(&mut self, record: &Record<'_>) -> bool {
        let (Some(key), Some(value)) = (record.key, record.value) else { return false };
        if !key.starts_with(CANARY_PREFIX.as_bytes()) {
            return false;
        }
        let Some(id) = SealedBlock::key_of(value).ok() else { return false };
        let Some(case) = self.sought.controls.get(&id) else { return false };
        let place = format!("{} (control that must be gone)", self.place(record));
        let Some(case) = self.cases.get_mut(*case) else { return false };
        if key.ends_with(b"|live") {
            case.seen.insert((id, record.topic.to_owned(), record.partition.0));
        } else {
            case.find(record, FoundBlock { place, key: id, block: value.to_vec(), is_buried: false });
        }
        true
    }

    fn place(&self, record: &Record<'_>) -> String {
        let at = format!("{}[{}]@{}", record.topic, record.partition, record.offset);
        match self.broker {
            Some(broker) => format!("{at} on broker {broker}"),
            None => at,
        }
    }
}

/// Up to where each partition is read: its highest mark, or its present end where no barrier names it.
fn ends(kafka: &Kafka, kinds: &BTreeMap<String, Topic>, needles: &[Needles]) -> Result<Vec<Range>, KafkaError> {
    let mut marks: BTreeMap<(&str, i32), Offset> = BTreeMap::new();
    let mut incarnations: BTreeMap<&str, &str> = BTreeMap::new();
    for mark in needles.iter().flat_map(|needles| &needles.barrier) {
        if !kinds.contains_key(&mark.topic) {
            return Err(KafkaError::own(format!("scan {}", mark.topic), "UnknownTopic"));
        }
        if *incarnations.entry(&mark.topic).or_insert(&mark.incarnation) != mark.incarnation
            || kafka.incarnation_blocking(&mark.topic)? != mark.incarnation
        {
            return Err(KafkaError::own(format!("scan {}", mark.topic), "AnotherIncarnation"));
        }
        let highest = marks.entry((&mark.topic, mark.partition.0)).or_insert(mark.offset);
        *highest = (*highest).max(mark.offset);
    }
    let mut ranges = Vec::new();
    for (name, topic) in kinds {
        for partition in (0..kafka.partitions(*topic)).map(Partition) {
            let mut range = kafka.whole_blocking(name, partition)?;
            if let Some(mark) = marks.get(&(name.as_str(), partition.0)) {
                if *mark >= range.to {
                    return Err(KafkaError::own(format!("scan {name}[{partition}]"), "BarrierBeyondEnd"));
                }
                range.to = Offset(mark.0 + 1);
            }
            ranges.push(range);
        }
    }
    Ok(ranges)
}

/// What was read, by whom, and what each broker has.
struct Seen<'a> {
    scans: Vec<Scan<'a>>,
    places: Vec<Place>,
    /// Replicas of partitions of `pii.*`: in each of them a control was planted.
    planted_in: u64,
}

fn scan_replicas<'a>(kafka: &Kafka, sought: &'a Sought<'a>, cases: usize, ranges: Vec<Range>) -> Result<Seen<'a>, KafkaError> {
    let wanted: Vec<UpTo> = ranges.into_iter().map(UpTo::from).collect();
    let read = replicas::read(kafka.wire(), &wanted, |broker| Scan::new(sought, Some(broker), cases), Scan::look)?;
    let (mut seen, mut reads) = (Seen { scans: Vec::new(), places: Vec::new(), planted_in: 0 }, Vec::new());
    for (scan, of_broker) in read {
        seen.scans.push(scan);
        reads.extend(of_broker);
    }
    reads.sort_by(|a, b| (&a.topic, a.partition, a.broker).cmp(&(&b.topic, b.partition, b.broker)));
    for read in reads {
        seen.planted_in += u64::from(matches!(sought.kinds.get(&read.topic), Some(Topic::Pii(_))));
        seen.places.push(Place {
            name: format!("{}[{}] on broker {}", read.topic, read.partition, read.broker),
            read: format!("{} records [{}, {})", read.records, read.from, read.to),
        });
    }
    Ok(seen)
}

/// The embedded broker has no replicas: what it serves is all there is to read.
fn scan_embedded<'a>(kafka: &Kafka, sought: &'a Sought<'a>, cases: usize, ranges: &[Range]) -> Result<Seen<'a>, KafkaError> {
    let mut scan = Scan::new(sought, None, cases);
    let mut counts: HashMap<(String, i32), u64> = HashMap::new();
    kafka.read_blocking(ranges, |record| {
        *counts.entry((record.topic.to_owned(), record.partition.0)).or_insert(0) += 1;
        scan.look(record);
        Ok(())
    })?;
    let places = ranges.iter().map(|range| {
        let count = counts.get(&(range.topic.clone(), range.partition.0)).copied().unwrap_or(0);
        Place { name: format!("{}[{}]", range.topic, range.partition), read: format!("{count} records [{}, {})", range.from, range.to) }
    });
    let planted_in = ranges.iter().filter(|range| matches!(sought.kinds.get(&range.topic), Some(Topic::Pii(_)))).count();
    Ok(Seen { places: places.collect(), scans: vec![scan], planted_in: u64::try_from(planted_in).unwrap_or(u64::MAX) })
}

/// One pass over every replica for all of `needles`.
fn scan(kafka: &Kafka, needles: &[Needles], reader: &RowReader) -> Result<Vec<ScanReport>, KafkaError> {
    let kinds: BTreeMap<String, Topic> = Topic::all().into_iter().map(|topic| (kafka.topic(topic), topic)).collect();
    let ranges = ends(kafka, &kinds, needles)?;
    let sought = Sought::new(&kinds, needles, reader);
    let outside = if kafka.is_embedded() { Vec::new() } else { kafka.view_blocking()?.residual() };
    let mut seen = if kafka.is_embedded() {
        scan_embedded(kafka, &sought, needles.len(), &ranges)?
    } else {
        scan_replicas(kafka, &sought, needles.len(), ranges)?
    };
    if let Some(error) = seen.scans.iter_mut().find_map(|scan| scan.unread.take()) {
        return Err(error);
    }
    let newest_ms = seen.scans.iter().filter_map(|scan| scan.newest_ms).max();
    let reports = needles.iter().enumerate().map(|(case, needles)| {
        let of_case = seen.scans.iter_mut().filter_map(|scan| scan.cases.get_mut(case)).map(std::mem::take).collect();
        let planted = seen.planted_in * u64::try_from(needles.controls.len()).unwrap_or(u64::MAX);
        let mut report = report(of_case, newest_ms, &kafka.settings().times());
        report.residual.extend(outside.iter().cloned());
        ScanReport {
            method: if kafka.is_embedded() { METHOD_EMBEDDED } else { METHOD_REPLICAS }.to_owned(),
            places: seen.places.clone(),
            controls_planted: planted,
            ..report
        }
    });
    Ok(reports.collect())
}

/// How absence is shown, in words for the certificate.
const METHOD_REPLICAS: &str = "every replica of every partition read from the broker that holds it, from its own first record to the barrier \
                               (uncommitted records included, every CRC checked); keys, values and headers searched for the key ids of \
                               destroyed keys, and where business data goes too, for its rows";
const METHOD_EMBEDDED: &str = "every partition of the in-memory broker read from its start to the barrier; keys, values and headers searched \
                               for the key ids of destroyed keys, and where business data goes too, for its rows";

/// One case's findings on all brokers.
fn report(of_brokers: Vec<Findings>, newest_ms: Option<i64>, times: &Times) -> ScanReport {
    let mut report = ScanReport { store: "kafka".to_owned(), ..ScanReport::default() };
    let (mut waiting, mut dropped): (BTreeMap<String, Option<i64>>, u64) = (BTreeMap::new(), 0);
    for findings in of_brokers {
        report.controls_found += u64::try_from(findings.seen.len()).unwrap_or(u64::MAX);
        report.found.extend(findings.found);
        dropped += findings.dropped;
        for (topic, newest) in findings.waiting {
            let of_topic = waiting.entry(topic).or_insert(newest);
            *of_topic = (*of_topic).max(newest);
        }
    }
    for (topic, newest) in waiting {
        report.residual.push(Residual {
            what: format!("{topic}: events of what was erased, their personal fields ciphertext of destroyed or quarantine keys, until the topic's retention"),
            until: newest.map(|ms| Timestamp(ms.saturating_add(retention_bound_ms(times)))),
        });
    }
    report.residual.push(Residual {
        what: "kafka: segment files the cleaner has replaced and not yet unlinked".to_owned(),
        until: newest_ms.map(|ms| Timestamp(ms.saturating_add(deletion_bound_ms(times)))),
    });
    if dropped > 0 {
        report.residual.push(Residual { what: format!("kafka: {dropped} further findings not listed"), until: None });
    }
    report
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
        Ok(self.scan_many(std::slice::from_ref(needles)).await?.into_iter().next().unwrap_or_default())
    }

    async fn scan_many(&self, needles: &[Needles]) -> Result<Vec<ScanReport>, StoreError> {
        let (kafka, needles, reader) = (self.kafka.clone(), needles.to_vec(), RowReader::new(&self.schemas));
        Ok(blocking(move || scan(&kafka, &needles, &reader)).await?)
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

    #[test]
    fn the_bound_follows_the_formula_of_the_design() {
        // Lag rules; then the roll (a segment lives no longer than the lag), with heartbeat and least lag; nobody declared a lag.
        assert_eq!(bound_ms(6_000, 5_000, 0, 100, 15, 60), 6_075);
        assert_eq!(bound_ms(1_000, 7_000, 50, 500, 15, 60), 1_625);
        assert_eq!(bound_ms(i64::MAX, 7_000, 0, 500, 15, 60), i64::MAX);
    }
}
