//! What goes wrong, how often, and that it does not go wrong for ever.

use super::draw::{Draw, Stream};

/// After this many faults in a row for one seller and operation the next call is clean (chosen), so that a client with a handful of
/// tries gets through and a run ends.
pub(super) const FAULTS_IN_A_ROW_MAX: u8 = 2;

/// How often each fault strikes, per mille of the calls; the sum is at most 1000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// 429 without `x-amzn-RateLimit-Limit`.
    pub throttled: u16,
    /// 500.
    pub internal: u16,
    /// 503.
    pub unavailable: u16,
    /// The answer takes [`SLOW_MS`](Self::SLOW_MS) longer.
    pub slow: u16,
    /// The connection closes in the middle of the body.
    pub cut: u16,
    /// The body ends in the middle of a value, with a matching length.
    pub truncated: u16,
    /// The body is `{}`.
    pub empty_object: u16,
    /// The body is a page of HTML.
    pub html: u16,
    /// A page without entries but with a next token.
    pub empty_page: u16,
    /// The last order of the page before comes again.
    pub duplicate_order: u16,
    /// A page token is refused as expired.
    pub page_token: u16,
    /// An access token is refused as expired.
    pub access_token: u16,
    /// A property occurs twice in one object.
    pub duplicate_keys: u16,
    /// A body of more than 50 MB.
    pub huge_body: u16,
    /// A value nested [`DEPTH`](Self::DEPTH) deep.
    pub deep_nesting: u16,
    /// Per mille of the *orders* that carry fields no model knows, with personal-looking values and names.
    pub unknown_fields: u16,
}

/// A fault that struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Throttled,
    Internal,
    Unavailable,
    Slow,
    Cut,
    Truncated,
    EmptyObject,
    Html,
    EmptyPage,
    DuplicateOrder,
    PageToken,
    AccessToken,
    DuplicateKeys,
    HugeBody,
    DeepNesting,
}

impl Faults {
    /// How much longer a slow answer takes, in milliseconds (chosen).
    pub const SLOW_MS: u64 = 400;
    /// Levels of a deep value (chosen: beyond any sane parser's limit).
    pub const DEPTH: usize = 20_000;
    /// Padding of a huge body in MiB (chosen: more than 50 MB).
    pub const HUGE_MIB: usize = 50;

    /// Nothing goes wrong.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// What every client meets in a normal week.
    #[must_use]
    pub fn mild() -> Self {
        Self { throttled: 20, internal: 5, unavailable: 10, slow: 20, ..Self::default() }
    }

    /// Everything.
    #[must_use]
    pub fn hostile() -> Self {
        Self {
            throttled: 30,
            internal: 15,
            unavailable: 15,
            slow: 20,
            cut: 15,
            truncated: 15,
            empty_object: 10,
            html: 10,
            empty_page: 25,
            duplicate_order: 40,
            page_token: 5,
            access_token: 10,
            duplicate_keys: 5,
            huge_body: 2,
            deep_nesting: 5,
            unknown_fields: 50,
        }
    }

    /// What strikes call number `call`, if anything.
    pub(super) fn strike(&self, seed: u64, call: u64) -> Option<Fault> {
        let mut left = Draw::new(seed, Stream::Fault, call, 0).below(1000);
        for (rate, fault) in [
            (self.throttled, Fault::Throttled),
            (self.internal, Fault::Internal),
            (self.unavailable, Fault::Unavailable),
            (self.slow, Fault::Slow),
            (self.cut, Fault::Cut),
            (self.truncated, Fault::Truncated),
            (self.empty_object, Fault::EmptyObject),
            (self.html, Fault::Html),
            (self.empty_page, Fault::EmptyPage),
            (self.duplicate_order, Fault::DuplicateOrder),
            (self.page_token, Fault::PageToken),
            (self.access_token, Fault::AccessToken),
            (self.duplicate_keys, Fault::DuplicateKeys),
            (self.huge_body, Fault::HugeBody),
            (self.deep_nesting, Fault::DeepNesting),
        ] {
            match left.checked_sub(u64::from(rate)) {
                Some(rest) => left = rest,
                None => return Some(fault),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_hold_and_none_means_none() {
        assert!((0..1000).all(|call| Faults::none().strike(1, call).is_none()));
        let hostile = Faults::hostile();
        let struck: Vec<Fault> = (0..10_000).filter_map(|call| hostile.strike(1, call)).collect();
        assert!((1800..2700).contains(&struck.len()), "{}", struck.len());
        assert!(struck.contains(&Fault::HugeBody) && struck.contains(&Fault::DeepNesting) && struck.contains(&Fault::Cut));
    }
}
