//! Finds any of many byte strings in one pass over rows and files.
//!
//! A scan looks for each key id in four forms: its 16 bytes (bare, and so also inside a block's header), its hex text, and the base64
//! of a header (of the 18 bytes that encode without a remainder). Where business rows go too it looks for their pseudonyms, in the hex in
//! which every table keeps them. Nothing here trusts an index or a column: bytes are compared.

use sunder_retention::anchors::Anchors;
use sunder_retention::store::Needles;
use sunder_schemas::ids::{EntityToken, KeyId};
use sunder_schemas::private::SealedBlock;

/// Whose trace a hit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trace {
    /// Of the key that was destroyed.
    Erased(KeyId),
    /// Of a planted control.
    Control(KeyId),
    /// One of the further byte strings, by its place in the list.
    Bytes(usize),
    /// The pseudonym of an entity whose rows must be gone.
    Token(EntityToken),
}

/// A hit: whose trace it is and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Whose.
    pub trace: Trace,
    /// Index of the first byte.
    pub at: usize,
}

/// All needles of a scan, prepared for one pass.
pub struct Finder(Anchors<Trace>);

impl Finder {
    /// Prepares `needles`; further byte strings shorter than [`ANCHOR_BYTES`](sunder_retention::anchors::ANCHOR_BYTES) are left out.
    #[must_use]
    pub fn new(needles: &Needles) -> Self {
        let erased = needles.keys.iter().map(|key| (*key, Trace::Erased(*key)));
        let controls = needles.controls.iter().map(|key| (*key, Trace::Control(*key)));
        let keys = erased.chain(controls).flat_map(|(key, trace)| forms(key).map(|(form, anchor)| (form, anchor, trace)));
        let bytes = needles.bytes.iter().enumerate().map(|(index, bytes)| (bytes.clone(), 0, Trace::Bytes(index)));
        let gone = needles.gone.iter().map(|subject| (subject.token.to_hex().into_bytes(), 0, Trace::Token(subject.token)));
        Self(Anchors::new(keys.chain(bytes).chain(gone)))
    }

    /// Length in bytes of the longest needle: pieces of a file must overlap by one less.
    #[must_use]
    pub const fn longest(&self) -> usize {
        self.0.longest()
    }

    /// Every hit in `hay`.
    pub fn each<'a>(&'a self, hay: &'a [u8]) -> impl Iterator<Item = Hit> + 'a {
        self.0.each(hay).map(|found| Hit { trace: *found.what, at: found.at })
    }
}

/// The forms of a key id, each with the place from which on two of them differ: the base64 of every header begins with the same mark.
fn forms(key: KeyId) -> [(Vec<u8>, usize); 3] {
    let header = SealedBlock::header(key);
    [(key.0.to_vec(), 0), (key.to_hex().into_bytes(), 0), (base64(header.get(..18).unwrap_or_default()).into_bytes(), 8)]
}

/// The sealed block around a hit of a bare key id at `at`: from its header to the end of `hay`, at most `max` bytes; empty where the
/// hit stands in no header.
#[must_use]
pub fn block_around(hay: &[u8], at: usize, max: usize) -> Vec<u8> {
    let block = at.checked_sub(4).and_then(|from| hay.get(from..)).filter(|rest| SealedBlock::key_of(rest).is_ok());
    block.map(|rest| rest.get(..max).unwrap_or(rest).to_vec()).unwrap_or_default()
}

/// Standard base64 without padding; `bytes` is a multiple of three long.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len() / 3 * 4);
    for chunk in bytes.chunks_exact(3) {
        let bits = chunk.iter().fold(0usize, |bits, byte| (bits << 8) | usize::from(*byte));
        for shift in [18, 12, 6, 0] {
            text.push(ALPHABET.get((bits >> shift) & 63).copied().map_or('=', char::from));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needles() -> Needles {
        Needles {
            keys: vec![KeyId([7; 16])],
            controls: vec![KeyId([9; 16])],
            bytes: vec![b"wrapped-key-bytes".to_vec()],
            ..Needles::default()
        }
    }

    #[test]
    fn base64_is_standard() {
        assert_eq!(base64(b"Man"), "TWFu");
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn every_form_of_a_key_id_is_found() {
        let finder = Finder::new(&needles());
        let key = KeyId([7; 16]);
        let forms = [
            key.0.to_vec(),
            SealedBlock::header(key).to_vec(),
            key.to_hex().into_bytes(),
            base64(&SealedBlock::header(key)[..18]).into_bytes(),
        ];
        for form in forms {
            let hay = [b"......".as_slice(), &form, b"....."].concat();
            let traces: Vec<Trace> = finder.each(&hay).map(|hit| hit.trace).collect();
            assert!(traces.contains(&Trace::Erased(key)), "{form:?}");
        }
        assert_eq!(finder.each(b"no trace at all in here, none").count(), 0);
    }

    #[test]
    fn controls_and_bytes_are_told_apart() {
        let finder = Finder::new(&needles());
        let hay = [b"x".as_slice(), &[9; 16], b"wrapped-key-bytes"].concat();
        let traces: Vec<Trace> = finder.each(&hay).map(|hit| hit.trace).collect();
        assert_eq!(traces, [Trace::Control(KeyId([9; 16])), Trace::Bytes(0)]);
    }

    #[test]
    fn the_block_around_a_hit_begins_with_its_header() {
        let mut block = SealedBlock::header(KeyId([7; 16])).to_vec();
        block.extend([1; 40]);
        let hay = [b"page ".as_slice(), &block].concat();
        assert_eq!(block_around(&hay, 9, 1000), block);
        assert_eq!(block_around(&hay, 9, 30), block[..30]);
        assert!(block_around(&hay, 30, 1000).is_empty());
    }
}
