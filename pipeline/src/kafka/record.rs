//! A record as it lies in a client's buffers: borrowed, never copied.

use rdkafka::Timestamp;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers as _, Message as _};
use sunder_schemas::ids::{Offset, Partition};

use crate::kafka::wire::batch::{self, WireRecord};

/// A record that was read; it borrows from the client's buffers and lives for one call.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// Full topic name.
    pub topic: &'a str,
    /// Partition.
    pub partition: Partition,
    /// Its offset.
    pub offset: Offset,
    /// When the broker appended it, in milliseconds since 1970 by the broker's clock; `None` where it says nothing.
    pub appended_ms: Option<i64>,
    /// Key; foreign writers may leave it out.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    headers: Headers<'a>,
}

/// Where the headers are.
#[derive(Clone, Copy)]
enum Headers<'a> {
    /// In librdkafka's message.
    Client(Option<&'a BorrowedHeaders>),
    /// In the bytes that a broker sent.
    Wire(&'a [u8]),
}

impl<'a> Record<'a> {
    pub(crate) fn of(message: &'a BorrowedMessage<'a>) -> Self {
        Self {
            topic: message.topic(),
            partition: Partition(message.partition()),
            offset: Offset(message.offset()),
            appended_ms: match message.timestamp() {
                Timestamp::NotAvailable => None,
                Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => Some(ms),
            },
            key: message.key(),
            value: message.payload(),
            headers: Headers::Client(message.headers()),
        }
    }

    /// A record that a named broker sent.
    pub(crate) const fn of_wire(topic: &'a str, partition: Partition, record: &WireRecord<'a>) -> Self {
        Self {
            topic,
            partition,
            offset: Offset(record.offset),
            appended_ms: Some(record.time_ms),
            key: record.key,
            value: record.value,
            headers: Headers::Wire(record.headers),
        }
    }

    /// All headers in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + use<'a> {
        let (client, wire) = match self.headers {
            Headers::Client(headers) => (headers, None),
            Headers::Wire(bytes) => (None, Some(bytes)),
        };
        let client = client.into_iter().flat_map(|headers| headers.iter().map(|header| (header.key, header.value)));
        client.chain(wire.into_iter().flat_map(batch::headers))
    }

    /// Every byte that somebody wrote into the record, in pieces: value, key, headers.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let (client, wire) = match self.headers {
            Headers::Client(headers) => (headers, None),
            Headers::Wire(bytes) => (None, Some(bytes)),
        };
        let client = client.into_iter().flat_map(BorrowedHeaders::iter);
        let client = client.flat_map(|header| std::iter::once(header.key.as_bytes()).chain(header.value));
        self.value.into_iter().chain(self.key).chain(client).chain(wire)
    }

    /// The first header of that name; `None` where it is missing or null.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find(|(key, _)| *key == name).and_then(|(_, value)| value)
    }

    /// Whether the record is the pipeline's own: heartbeat, canary, incarnation.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.key.is_some_and(sunder_schemas::key::is_own)
    }
}

impl std::fmt::Debug for Record<'_> {
    /// Coordinates alone: keys and values of foreign records may be personal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({}[{}]@{})", self.topic, self.partition, self.offset)
    }
}
