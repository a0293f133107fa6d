//! Record batches as brokers send them: found, checked against their CRC, decompressed, taken apart. Pure.
//!
//! The format is version 2 (Kafka protocol guide, "Record Batch"), the only one that brokers of today write. Nothing is skipped: a
//! batch that does not check, decompress or decode is an error, since what cannot be read cannot be shown to be free of anything.

use bytes::Bytes;
use kafka_protocol::compression::{Decompressor, Gzip, Lz4, Snappy, Zstd};
use kafka_protocol::records::Compression;

/// Bytes before the field that counts: base offset and length.
const FRAME: usize = 12;
/// Bytes of a header of version 2.
const HEADER: usize = 61;
/// Where the CRC begins, and what it covers.
const CRC_AT: usize = 17;
const CHECKED_FROM: usize = 21;
/// Attribute bits (protocol guide).
const COMPRESSION_BITS: i16 = 0x07;
const APPEND_TIME_BIT: i16 = 0x08;

/// Why a batch cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchError {
    /// The CRC is not that of the bytes: they were damaged on the broker's disk or on the way.
    Crc,
    /// Not version 2, or lengths that do not fit.
    Format,
    /// The records do not decompress.
    Compression,
}

impl BatchError {
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Crc => "DamagedBatch",
            Self::Format => "UnreadableBatch",
            Self::Compression => "UndecompressableBatch",
        }
    }
}

/// A batch whose CRC holds.
#[derive(Debug)]
pub(crate) struct RecordBatch {
    /// Offset of the first record that it ever had.
    pub(crate) base: i64,
    /// The offset after its last; compaction may have left fewer records, even none.
    pub(crate) next: i64,
    append_time: Option<i64>,
    base_time: i64,
    count: usize,
    compression: Compression,
    records: Bytes,
}

/// One record, borrowed from its batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WireRecord<'a> {
    pub(crate) offset: i64,
    pub(crate) time_ms: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    /// The headers' bytes: their number, then names and values.
    pub(crate) headers: &'a [u8],
}

/// Takes the next whole batch off `bytes`; `None` where only a part of one is left, as brokers cut answers at a size.
pub(crate) fn take(bytes: &mut Bytes) -> Result<Option<RecordBatch>, BatchError> {
    if bytes.len() < FRAME {
        return Ok(None);
    }
    let length = usize::try_from(int32(bytes, 8)?).map_err(|_| BatchError::Format)?;
    let whole = FRAME.checked_add(length).ok_or(BatchError::Format)?;
    if bytes.len() < whole {
        return Ok(None);
    }
    let batch = bytes.split_to(whole);
    if batch.len() < HEADER || batch.get(16) != Some(&2) {
        return Err(BatchError::Format);
    }
    let checked = batch.get(CHECKED_FROM..).ok_or(BatchError::Format)?;
    if crc32c::crc32c(checked) != u32::from_be_bytes(array(&batch, CRC_AT)?) {
        return Err(BatchError::Crc);
    }
    let attributes = i16::from_be_bytes(array(&batch, 21)?);
    let base = int64(&batch, 0)?;
    let compression = match attributes & COMPRESSION_BITS {
        0 => Compression::None,
        1 => Compression::Gzip,
        2 => Compression::Snappy,
        3 => Compression::Lz4,
        4 => Compression::Zstd,
        _ => return Err(BatchError::Format),
    };
    Ok(Some(RecordBatch {
        base,
        next: base.checked_add(i64::from(int32(&batch, 23)?)).and_then(|last| last.checked_add(1)).ok_or(BatchError::Format)?,
        append_time: if attributes & APPEND_TIME_BIT == 0 { None } else { Some(int64(&batch, 35)?) },
        base_time: int64(&batch, 27)?,
        count: usize::try_from(int32(&batch, 57)?).map_err(|_| BatchError::Format)?,
        compression,
        records: batch.slice(HEADER..),
    }))
}

impl RecordBatch {
    /// Gives each record to `each`, until all are given or one does not decode.
    pub(crate) fn each(&self, mut each: impl FnMut(&WireRecord<'_>)) -> Result<(), BatchError> {
        if self.count == 0 {
            return Ok(());
        }
        let plain = self.decompressed()?;
        let mut rest = Cursor(&plain);
        for _ in 0..self.count {
            let length = rest.length()?.ok_or(BatchError::Format)?;
            each(&self.record(rest.take(length)?)?);
        }
        if rest.0.is_empty() { Ok(()) } else { Err(BatchError::Format) }
    }

    fn record<'a>(&self, bytes: &'a [u8]) -> Result<WireRecord<'a>, BatchError> {
        let mut rest = Cursor(bytes);
        rest.take(1)?;
        let time_delta = rest.varint()?;
        let offset = self.base.checked_add(rest.varint()?).ok_or(BatchError::Format)?;
        let key = rest.optional()?;
        let value = rest.optional()?;
        let time_ms = self.append_time.unwrap_or_else(|| self.base_time.saturating_add(time_delta));
        Ok(WireRecord { offset, time_ms, key, value, headers: rest.0 })
    }

    fn decompressed(&self) -> Result<Bytes, BatchError> {
        let mut compressed = self.records.clone();
        let plain = match self.compression {
            Compression::None => return Ok(compressed),
            Compression::Gzip => Gzip::decompress(&mut compressed, |plain| Ok(plain.split_off(0))),
            Compression::Snappy => Snappy::decompress(&mut compressed, |plain| Ok(plain.split_off(0))),
            Compression::Lz4 => Lz4::decompress(&mut compressed, |plain| Ok(plain.split_off(0))),
            Compression::Zstd => Zstd::decompress(&mut compressed, |plain| Ok(plain.split_off(0))),
        };
        // The library's text may quote bytes.
        plain.map_err(|_| BatchError::Compression)
    }
}

/// The headers of a record, in order; a name that is no text is given as empty, and broken bytes end the list. A search takes the
/// bytes themselves.
pub(crate) fn headers(bytes: &[u8]) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
    let mut rest = Cursor(bytes);
    let count = rest.varint().unwrap_or(0);
    (0..count).map_while(move |_| {
        let name = rest.optional().ok()??;
        let value = rest.optional().ok()?;
        Some((std::str::from_utf8(name).unwrap_or_default(), value))
    })
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], BatchError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(BatchError::Format)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A zigzag varint of at most 64 bits.
    fn varint(&mut self) -> Result<i64, BatchError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(BatchError::Format)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
            }
        }
        Err(BatchError::Format)
    }

    /// A length; `None` where it is -1.
    fn length(&mut self) -> Result<Option<usize>, BatchError> {
        match self.varint()? {
            -1 => Ok(None),
            length => usize::try_from(length).map(Some).map_err(|_| BatchError::Format),
        }
    }

    fn optional(&mut self) -> Result<Option<&'a [u8]>, BatchError> {
        self.length()?.map(|length| self.take(length)).transpose()
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], BatchError> {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).ok_or(BatchError::Format)
}

fn int32(bytes: &[u8], at: usize) -> Result<i32, BatchError> {
    Ok(i32::from_be_bytes(array(bytes, at)?))
}

fn int64(bytes: &[u8], at: usize) -> Result<i64, BatchError> {
    Ok(i64::from_be_bytes(array(bytes, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use kafka_protocol::records::{Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
    use proptest::prelude::*;

    type Row = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

    fn encoded(rows: &[Row], base: i64, compression: Compression) -> Bytes {
        let records: Vec<Record> = rows
            .iter()
            .zip(0i32..)
            .map(|((key, value, headers), n)| Record {
                transactional: false,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: 0,
                producer_id: -1,
                producer_epoch: -1,
                timestamp_type: TimestampType::Creation,
                offset: base + i64::from(n),
                sequence: n,
                timestamp: 1_000 + i64::from(n),
                key: key.clone().map(Bytes::from),
                value: value.clone().map(Bytes::from),
                headers: headers.iter().map(|(name, value)| (name.clone().into(), value.clone().map(Bytes::from))).collect(),
            })
            .collect();
        let mut bytes = BytesMut::new();
        RecordBatchEncoder::encode(&mut bytes, &records, &RecordEncodeOptions { version: 2, compression }).unwrap();
        bytes.freeze()
    }

    fn decoded(bytes: &mut Bytes) -> Result<Vec<(i64, i64, Row)>, BatchError> {
        let mut rows = Vec::new();
        while let Some(batch) = take(bytes)? {
            batch.each(|record| {
                let headers = headers(record.headers).map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect();
                let row = (record.key.map(<[u8]>::to_vec), record.value.map(<[u8]>::to_vec), headers);
                rows.push((record.offset, record.time_ms, row));
            })?;
        }
        Ok(rows)
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let bytes = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..60));
        let headers = proptest::collection::btree_map("[a-z]{1,8}", bytes.clone(), 0..3).prop_map(|map| map.into_iter().collect());
        proptest::collection::vec((bytes.clone(), bytes, headers), 1..12)
    }

    const COMPRESSIONS: [Compression; 5] = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    proptest! {
        #[test]
        fn what_another_writer_encoded_is_read_back(rows in rows(), base in 0i64..1 << 40, which in 0usize..5) {
            let mut bytes = encoded(&rows, base, COMPRESSIONS[which]);
            let read = decoded(&mut bytes).unwrap();
            let expected: Vec<_> = (0i64..).zip(rows).map(|(n, row)| (base + n, 1_000 + n, row)).collect();
            prop_assert_eq!(read, expected);
        }

        /// Any flipped bit behind the frame is noticed; a cut batch is none.
        #[test]
        fn a_damaged_batch_is_never_read(rows in rows(), at in any::<prop::sample::Index>(), bit in 0u8..8, which in 0usize..5) {
            let whole = encoded(&rows, 7, COMPRESSIONS[which]);
            let mut damaged = whole.to_vec();
            let at = CRC_AT + at.index(damaged.len() - CRC_AT);
            damaged[at] ^= 1 << bit;
            prop_assert_eq!(decoded(&mut Bytes::from(damaged)), Err(BatchError::Crc));
            let mut cut = whole.slice(..whole.len() - 1);
            prop_assert!(decoded(&mut cut).unwrap().is_empty());
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decoded(&mut Bytes::from(bytes.clone())));
            let mut valid = encoded(&[(None, None, Vec::new())], 0, Compression::None).to_vec();
            valid.truncate(HEADER);
            valid.extend(bytes);
            let length = i32::try_from(valid.len() - FRAME).unwrap();
            valid[8..12].copy_from_slice(&length.to_be_bytes());
            let crc = crc32c::crc32c(&valid[CHECKED_FROM..]);
            valid[CRC_AT..CHECKED_FROM].copy_from_slice(&crc.to_be_bytes());
            drop(decoded(&mut Bytes::from(valid)));
        }
    }
}
