//! Seeded draws: the same seed, stream and numbers give the same values on every machine and in every order of asking.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a draw is for; each has its own stream, so that adding a draw to one leaves the others as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Sellers' ids, regions and tokens.
    Seller = 1,
    /// When an order changes, and into what.
    Timeline = 2,
    /// Business content of an order.
    Content = 3,
    /// Personal content of an order.
    Personal = 4,
    /// Inventory rows.
    Inventory = 5,
    /// Faults, by number of call.
    Fault = 6,
    /// Access tokens and request ids, by number.
    Issue = 7,
}

/// A stream of draws.
#[derive(Debug)]
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream of `seed` for the thing that `a` and `b` name.
    pub(super) fn new(seed: u64, stream: Stream, a: u64, b: u64) -> Self {
        let mut key = [0u8; 32];
        for (part, word) in key.chunks_exact_mut(8).zip([seed, stream as u64, a, b]) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// 64 drawn bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `n`; 0 where `n` is 0.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        u64::try_from((u128::from(self.bits()) * u128::from(n)) >> 64).unwrap_or(0)
    }

    /// True in `per_mille` of 1000 draws.
    pub(super) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// A number from `low` up to, but not including, `high`.
    pub(super) fn between(&mut self, low: i64, high: i64) -> i64 {
        low.saturating_add_unsigned(self.below(high.saturating_sub(low).max(0).unsigned_abs()))
    }

    /// One of `words`; empty text where there are none.
    pub(super) fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words.get(self.index(words.len())).copied().unwrap_or("")
    }

    /// An index below `len`; 0 where `len` is 0.
    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// `len` capital letters and digits.
    pub(super) fn word(&mut self, len: usize) -> String {
        (0..len).map(|_| letter(self.bits())).collect()
    }
}

/// Crockford's base 32: no letter that is taken for a digit.
const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

fn letter(bits: u64) -> char {
    usize::try_from(bits & 31).ok().and_then(|at| LETTERS.get(at)).map_or('0', |b| char::from(*b))
}

/// Bits of a [`tag`].
const TAG_BITS: u32 = 60;

/// Twelve letters and digits that no other field of any order of this seed has: a needle for leak tests.
///
/// `field` is below 1024. The steps (multiply by an odd number, add, shift right and xor) are each a bijection on 60 bits, so two
/// different fields cannot share a tag.
pub(super) fn tag(seed: u64, order: u64, field: u64) -> String {
    const MASK: u64 = (1 << TAG_BITS) - 1;
    let mut bits = (order << 10 | field & 1023) & MASK;
    bits = bits.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03)) & MASK;
    bits ^= bits >> 31;
    bits = bits.wrapping_mul(0xBF58_476D_1CE4_E5B9) & MASK;
    bits ^= bits >> 29;
    (0..TAG_BITS / 5).map(|place| letter(bits >> (place * 5))).collect()
}

/// Eleven digits that no other field of any order of this seed has, for phone numbers. `field` is below 64.
pub(super) fn digits_tag(seed: u64, order: u64, field: u64) -> String {
    const SPACE: u128 = 100_000_000_000;
    // Odd and no multiple of five, so the map is a bijection on eleven digits.
    let number = u128::from(order << 6 | field & 63) * 61_803_398_877 + u128::from(seed) * 7;
    format!("{:011}", number % SPACE)
}

/// A number for `text`, the same on every machine (FNV-1a, 64 bits).
pub(super) fn number_of(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tags_are_unique_and_repeatable() {
        let all: HashSet<String> = (0..2000).flat_map(|order| (0..40).map(move |field| tag(7, order, field))).collect();
        assert_eq!(all.len(), 80_000);
        assert_eq!(tag(7, 12, 3), tag(7, 12, 3));
        assert_ne!(tag(7, 12, 3), tag(8, 12, 3));
        let phones: HashSet<String> = (0..2000).flat_map(|order| (0..3).map(move |field| digits_tag(7, order, field))).collect();
        assert_eq!(phones.len(), 6000);
    }

    #[test]
    fn draws_stay_in_their_range() {
        let mut draw = Draw::new(1, Stream::Timeline, 2, 3);
        for _ in 0..1000 {
            assert!((5..9).contains(&draw.between(5, 9)));
        }
        assert_eq!(draw.below(0), 0);
        assert_eq!(draw.pick(&[]), "");
    }
}
