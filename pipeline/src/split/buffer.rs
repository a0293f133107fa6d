//! One batch of raw records, copied out of the client in a row.
//!
//! A batch is split after the poll that read it has returned, never inside it: partitions come and go only inside a poll, so while a
//! batch is being written no other splitter owns its partitions.

use std::ops::Range;

use sunder_schemas::class::Family;
use sunder_schemas::ids::{Offset, Partition};

use super::batch::RawRecord;
use crate::kafka::Record;

struct Entry {
    topic: usize,
    partition: Partition,
    offset: Offset,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    headers: Vec<(Range<usize>, Option<Range<usize>>)>,
}

/// Records of one batch, their bytes end to end.
pub(super) struct Buffer {
    topics: Vec<(String, Family)>,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Buffer {
    /// A buffer for records of these topics.
    pub(super) const fn new(topics: Vec<(String, Family)>) -> Self {
        Self { topics, bytes: Vec::new(), entries: Vec::new() }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// Copies `record`; one of another topic is passed over, as no splitter subscribes to such.
    pub(super) fn push(&mut self, record: &Record<'_>) {
        let Some(topic) = self.topics.iter().position(|(name, _)| name == record.topic) else { return };
        let key = record.key.map(|bytes| self.keep(bytes));
        let value = record.value.map(|bytes| self.keep(bytes));
        let headers = record.headers().map(|(name, value)| (self.keep(name.as_bytes()), value.map(|bytes| self.keep(bytes)))).collect();
        self.entries.push(Entry { topic, partition: record.partition, offset: record.offset, key, value, headers });
    }

    /// Drops the records of partitions that are not ours any more.
    pub(super) fn retain(&mut self, is_ours: impl Fn(&str, Partition) -> bool) {
        let topics = &self.topics;
        self.entries.retain(|entry| topics.get(entry.topic).is_some_and(|(name, _)| is_ours(name, entry.partition)));
    }

    /// Family and number of the partitions in the batch, each once.
    pub(super) fn partitions(&self) -> Vec<(Family, Partition)> {
        let mut all: Vec<(Family, Partition)> =
            self.entries.iter().filter_map(|entry| Some((self.topics.get(entry.topic)?.1, entry.partition))).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The next offset to read of each partition once the batch is done.
    pub(super) fn ends(&self) -> Vec<(String, Partition, Offset)> {
        let mut ends: Vec<(String, Partition, Offset)> = Vec::new();
        for entry in &self.entries {
            let Some((topic, _)) = self.topics.get(entry.topic) else { continue };
            let next = Offset(entry.offset.0 + 1);
            match ends.iter_mut().find(|(name, partition, _)| name == topic && *partition == entry.partition) {
                Some((_, _, end)) => *end = next,
                None => ends.push((topic.clone(), entry.partition, next)),
            }
        }
        ends
    }

    fn slice(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }

    /// Gives each record to `each`, in order, until one fails.
    pub(super) fn for_each<E>(&self, mut each: impl FnMut(&RawRecord<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut headers: Vec<(&str, Option<&[u8]>)> = Vec::new();
        for entry in &self.entries {
            let Some((topic, family)) = self.topics.get(entry.topic) else { continue };
            headers.clear();
            for (name, value) in &entry.headers {
                let name = std::str::from_utf8(self.slice(name)).unwrap_or_default();
                headers.push((name, value.as_ref().map(|range| self.slice(range))));
            }
            each(&RawRecord {
                family: *family,
                topic,
                partition: entry.partition,
                offset: entry.offset,
                key: entry.key.as_ref().map(|range| self.slice(range)),
                headers: &headers,
                value: entry.value.as_ref().map(|range| self.slice(range)),
            })?;
        }
        Ok(())
    }
}
