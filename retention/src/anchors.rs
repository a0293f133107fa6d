//! Finds any of many byte strings in one pass: the search under every scan of rows, files and records.
//!
//! Each needle is known by eight of its bytes, its anchor: the caller says where the needle's randomness begins, as a prefix that many
//! share would have all of them compared. One bit in a filter, a few per cent of which are set, turns most positions away; the rest are
//! looked up, and their bytes compared. Nothing is found that is not there, nothing that is there is left out.

use std::collections::HashMap;

/// Bytes of an anchor: shorter needles occur by chance and are not looked for.
pub const ANCHOR_BYTES: usize = 8;
/// Bits of the filter for each needle (chosen: one position in 64 is looked up, and the filter of 30,000 needles is 256 KiB).
const FILTER_BITS_PER_NEEDLE: usize = 64;
/// Smallest and largest filter: a core's first cache, and 8 MiB.
const FILTER_BITS: std::ops::RangeInclusive<usize> = 1 << 16..=1 << 26;
/// 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4): its product's upper bits tell anchors apart.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

struct Needle<T> {
    bytes: Vec<u8>,
    anchor: usize,
    what: T,
}

/// A needle that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a, T> {
    /// Where it begins.
    pub at: usize,
    /// Its bytes.
    pub needle: &'a [u8],
    /// What it stands for.
    pub what: &'a T,
}

/// Needles, each with what it stands for, prepared for one pass.
pub struct Anchors<T> {
    needles: Vec<Needle<T>>,
    by_anchor: HashMap<[u8; ANCHOR_BYTES], Vec<usize>>,
    filter: Vec<u64>,
    /// 64 less the binary logarithm of the filter's bits.
    shift: u32,
    longest: usize,
}

impl<T> Anchors<T> {
    /// Prepares needles: the bytes, where their anchor begins, and what they stand for. Those whose anchor does not fit are left out.
    #[must_use]
    pub fn new(needles: impl IntoIterator<Item = (Vec<u8>, usize, T)>) -> Self {
        let (mut taken, mut by_anchor, mut longest) = (Vec::new(), HashMap::<_, Vec<usize>>::new(), 0);
        for (bytes, anchor, what) in needles {
            let Some(window) = bytes.get(anchor..).and_then(<[u8]>::first_chunk).copied() else { continue };
            by_anchor.entry(window).or_default().push(taken.len());
            longest = longest.max(bytes.len());
            taken.push(Needle { bytes, anchor, what });
        }
        let bits = (taken.len() * FILTER_BITS_PER_NEEDLE).next_power_of_two().clamp(*FILTER_BITS.start(), *FILTER_BITS.end());
        let mut of_needles = Self { needles: taken, by_anchor, filter: vec![0; bits / 64], shift: 64 - bits.ilog2(), longest };
        for window in of_needles.by_anchor.keys() {
            let (word, bit) = place(*window, of_needles.shift);
            if let Some(word) = of_needles.filter.get_mut(word) {
                *word |= bit;
            }
        }
        of_needles
    }

    /// Length in bytes of the longest needle: pieces of a file must overlap by one less.
    #[must_use]
    pub const fn longest(&self) -> usize {
        self.longest
    }

    /// Every needle in `hay`, in order of their anchors.
    pub fn each<'a>(&'a self, hay: &'a [u8]) -> impl Iterator<Item = Found<'a, T>> + 'a {
        let may_be = |window: [u8; ANCHOR_BYTES]| {
            let (word, bit) = place(window, self.shift);
            self.filter.get(word).is_some_and(|word| word & bit != 0)
        };
        hay.array_windows().enumerate().filter(move |(_, window)| may_be(**window)).flat_map(move |(at, window)| {
            self.by_anchor.get(window).into_iter().flatten().filter_map(move |index| {
                let needle = self.needles.get(*index)?;
                let at = at.checked_sub(needle.anchor)?;
                hay.get(at..)?.starts_with(&needle.bytes).then_some(Found { at, needle: &needle.bytes, what: &needle.what })
            })
        })
    }
}

/// Word and bit of an anchor in a filter.
const fn place(window: [u8; ANCHOR_BYTES], shift: u32) -> (usize, u64) {
    let slot = u64::from_le_bytes(window).wrapping_mul(GOLDEN) >> shift;
    ((slot / 64) as usize, 1 << (slot % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What it finds is what comparing at every position finds: needles may overlap, repeat, and lie at either end.
        #[test]
        fn it_finds_what_comparing_everywhere_finds(
            needles in proptest::collection::vec((proptest::collection::vec(0u8..3, 0..14), 0usize..8), 0..12),
            mut hay in proptest::collection::vec(0u8..3, 0..200),
            planted in proptest::collection::vec((0usize..12, 0usize..200), 0..6),
        ) {
            for (nth, at) in planted {
                let Some((needle, _)) = needles.get(nth) else { continue };
                hay.splice(at.min(hay.len())..at.min(hay.len()), needle.iter().copied());
            }
            let of_all = needles.iter().enumerate().filter(|(_, (needle, anchor))| needle.len() >= anchor + ANCHOR_BYTES);
            let mut wanted: Vec<(usize, usize)> = of_all
                .flat_map(|(nth, (needle, _))| hay.windows(needle.len()).enumerate().filter(move |(_, w)| w == needle).map(move |(at, _)| (at, nth)))
                .collect();
            let anchors = Anchors::new(needles.iter().cloned().enumerate().map(|(nth, (needle, anchor))| (needle, anchor, nth)));
            let mut found: Vec<(usize, usize)> = anchors.each(&hay).map(|found| (found.at, *found.what)).collect();
            wanted.sort_unstable();
            found.sort_unstable();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn many_needles_are_each_found_once() {
        let needle = |nth: u64| [b"same".as_slice(), &nth.wrapping_mul(GOLDEN).to_be_bytes(), b"end"].concat();
        let anchors = Anchors::new((0..20_000).map(|nth| (needle(nth), 4, nth)));
        assert_eq!(anchors.longest(), 15);
        let hay: Vec<u8> = (0..20_000).rev().flat_map(needle).collect();
        let found: Vec<u64> = anchors.each(&hay).map(|found| *found.what).collect();
        assert_eq!(found, (0..20_000).rev().collect::<Vec<_>>());
    }
}
