//! Looks for key ids in the bytes of records, all at once.
//!
//! Pure. A sealed block shows its key in its header; the bare key id is looked for as well, since a record may carry it beside the
//! block. Cost: one pass over the bytes whatever the number of keys.

use sunder_retention::anchors::Anchors;
use sunder_schemas::ids::KeyId;
use sunder_schemas::private::{BLOCK_HEADER_LEN, BLOCK_OVERHEAD, SealedBlock};

/// A set of key ids to look for.
pub(crate) struct KeyFinder(Anchors<KeyId>);

/// A key id that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) key: KeyId,
    /// Where the id begins.
    pub(crate) at: usize,
    /// Whether it stands in the header of a sealed block.
    pub(crate) is_block: bool,
}

impl KeyFinder {
    pub(crate) fn new(keys: impl IntoIterator<Item = KeyId>) -> Self {
        Self(Anchors::new(keys.into_iter().map(|key| (key.0.to_vec(), 0, key))))
    }

    /// Every key id in `bytes`, in order.
    pub(crate) fn find<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = Hit> + 'a {
        self.0.each(bytes).map(|found| {
            let (at, key) = (found.at, *found.what);
            let header = at.checked_sub(4).and_then(|start| bytes.get(start..at + 16));
            Hit { key, at, is_block: header == Some(&SealedBlock::header(key)[..]) }
        })
    }
}

/// The block whose key id begins at `at` in `bytes`, cut at the length that stands before it where it lies inside an Avro record,
/// else to the end.
pub(crate) fn block_at(bytes: &[u8], at: usize) -> &[u8] {
    let Some(start) = at.checked_sub(BLOCK_HEADER_LEN - 16) else { return &[] };
    let (before, rest) = bytes.split_at_checked(start).unwrap_or((bytes, &[]));
    // Avro writes the length as a zigzag varint: the last byte has its high bit clear, those before it set. A longer reading is
    // tried first, since only it explains a set high bit; a length that does not fit is no length.
    for width in (1..=4usize).rev() {
        let Some(varint) = before.len().checked_sub(width).and_then(|from| before.get(from..)) else { continue };
        let Some((last, front)) = varint.split_last() else { continue };
        if *last >= 0x80 || front.iter().any(|byte| *byte < 0x80) {
            continue;
        }
        let zigzag = varint.iter().rev().fold(0usize, |value, byte| (value << 7) | usize::from(byte & 0x7f));
        let length = zigzag / 2;
        if zigzag.is_multiple_of(2)
            && length >= BLOCK_OVERHEAD
            && let Some(block) = rest.get(..length)
        {
            return block;
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(key: KeyId, length: usize) -> Vec<u8> {
        let mut block = SealedBlock::header(key).to_vec();
        block.extend(std::iter::repeat_n(0x5a, 28 + length));
        block
    }

    fn framed(block: &[u8]) -> Vec<u8> {
        let mut zigzag = block.len() * 2;
        let mut bytes = b"\x02before".to_vec();
        while zigzag >= 0x80 {
            bytes.push(u8::try_from(zigzag & 0x7f).unwrap() | 0x80);
            zigzag >>= 7;
        }
        bytes.push(u8::try_from(zigzag).unwrap());
        bytes.extend_from_slice(block);
        bytes.extend_from_slice(b"after");
        bytes
    }

    proptest! {
        #[test]
        fn a_block_inside_a_record_is_found_and_cut_out(key in any::<[u8; 16]>(), length in 0usize..20_000) {
            let key = KeyId(key);
            let finder = KeyFinder::new([key]);
            let block = block(key, length);
            let bytes = framed(&block);
            let hits: Vec<_> = finder.find(&bytes).collect();
            prop_assert_eq!(hits.len(), 1);
            prop_assert!(hits[0].is_block);
            prop_assert_eq!(block_at(&bytes, hits[0].at), &block[..]);
        }

        #[test]
        fn bytes_without_the_key_hold_no_hit(key in any::<[u8; 16]>(), bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assume!(!bytes.windows(16).any(|window| window == key));
            prop_assert_eq!(KeyFinder::new([KeyId(key)]).find(&bytes).count(), 0);
        }
    }

    #[test]
    fn a_bare_key_id_is_found_and_is_no_block() {
        let key = KeyId([3; 16]);
        let mut bytes = b"x".to_vec();
        bytes.extend(key.0);
        let finder = KeyFinder::new([key]);
        assert_eq!(finder.find(&bytes).collect::<Vec<_>>(), [Hit { key, at: 1, is_block: false }]);
    }

    #[test]
    fn a_block_that_fills_the_bytes_is_taken_whole() {
        let key = KeyId([7; 16]);
        let block = block(key, 10);
        assert_eq!(block_at(&block, 4), &block[..]);
    }
}
