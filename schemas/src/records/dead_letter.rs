//! A raw record that could not be split: sealed, with its coordinates.

use super::codec::{Field, Reader, put_bytes};
use super::{DecodeError, row};
use crate::ids::KeyId;
use crate::outcome::DeadLetterReason;
use crate::private::SealedBlock;
use crate::time::Timestamp;

row!(
    /// The original of a record that could not be split, sealed under the quarantine key of the day, with its coordinates and a code.
    DeadLetter = "DeadLetter" {
        /// full name of the topic it lay on
        source_topic: String,
        /// incarnation (topic id) of that topic
        source_topic_id: String,
        /// its partition there
        source_partition: i64,
        /// its offset there
        source_offset: i64,
        /// why it could not be split; a code of docs/errors.md
        reason: DeadLetterReason,
        /// name and version of the program that set it aside
        splitter: String,
        /// when it was set aside, by the policy clock
        set_aside_at: Timestamp,
        /// the quarantine key that opens the block
        key_id: KeyId,
        /// key, headers and value as they were (sealed); Avro of the record Original
        block: SealedBlock,
    }
);

/// What lies sealed in a dead letter: the record as it was, byte for byte. A key or value that was null stays apart from an empty one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Original {
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// The record's headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// The record's value.
    pub value: Option<Vec<u8>>,
}

impl Original {
    /// Appends the bytes to seal, of a record that is still borrowed from the client: key, value, number of headers, then each header's
    /// name and value, in Avro's encoding.
    pub fn encode_parts<'a>(
        key: Option<&[u8]>,
        headers: impl ExactSizeIterator<Item = (&'a str, Option<&'a [u8]>)>,
        value: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) {
        put_optional(key, out);
        put_optional(value, out);
        Field::put(&i64::try_from(headers.len()).unwrap_or(i64::MAX), out);
        for (name, value) in headers {
            put_bytes(name.as_bytes(), out);
            put_optional(value, out);
        }
    }

    /// Reads the bytes that were sealed.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let key = reader.field("key")?;
        let value = reader.field("value")?;
        let count: i64 = reader.field("headers")?;
        let mut headers = Vec::new();
        for _ in 0..count {
            headers.push((reader.field("header name")?, reader.field("header value")?));
        }
        reader.finish()?;
        Ok(Self { key, headers, value })
    }
}

fn put_optional(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    match bytes {
        None => out.push(0),
        Some(bytes) => {
            out.push(2);
            put_bytes(bytes, out);
        }
    }
}
