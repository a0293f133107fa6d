//! From a watermark to the next window, and from a window's answers to the next watermark: pure.
//!
//! The watermark is an event-time watermark: everything updated before it was fetched and acknowledged by Kafka, but for what became
//! visible late, which the overlap reads again. It only ever comes from what the server said (`lastUpdatedBefore`, else the newest
//! `lastUpdatedTime` of a whole window): the local clock chooses where the very first window begins, and nothing after that.

use sunder_schemas::time::{Period, Timestamp};

/// A window is not split below this width: two orders updated in the same second stay together (chosen; a call takes 3 minutes).
const WINDOW_MS_MIN: i64 = 1_000;
/// How far behind the present a bound must lie: the API refuses one of less than two minutes (FACTS section 4); one more for clocks.
pub(super) const BOUND_LAG: Period = Period::Millis(180_000);

/// A span of times of last update: from, inclusive, to an end, or to the server's present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First instant.
    pub from: Timestamp,
    /// First instant that no longer belongs to it; `None`: the server's present end.
    pub to: Option<Timestamp>,
}

impl Window {
    /// The window a poll reads next: `overlap` behind the watermark, or from `since` where there is none.
    #[must_use]
    pub(crate) fn next(watermark: Option<Timestamp>, since: Timestamp, overlap: Period) -> Self {
        Self { from: watermark.map_or(since, |reached| reached.minus(overlap)), to: None }
    }

    /// Two halves, to find out which part of a window cannot be read; `None` where it is too narrow. The second half keeps the open
    /// end. `present` only chooses where to cut: what is covered is what the server reports.
    #[must_use]
    pub(crate) fn split(self, present: Timestamp) -> Option<(Self, Self)> {
        let end = self.to.unwrap_or_else(|| present.minus(BOUND_LAG));
        let width = end.0.saturating_sub(self.from.0);
        if width < 2 * WINDOW_MS_MIN {
            return None;
        }
        let middle = Timestamp(self.from.0.saturating_add(width / 2));
        Some((Self { from: self.from, to: Some(middle) }, Self { from: middle, to: self.to }))
    }
}

/// What the pages of one window said of its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Covered {
    reported: Option<Timestamp>,
    newest: Option<Timestamp>,
}

impl Covered {
    /// Takes a page: the end it reported and the newest time of last update on it.
    pub(crate) fn page(&mut self, reported: Option<Timestamp>, newest: Option<Timestamp>) {
        // The lowest end any page reported: a later page may look at a later present, but an earlier one did not.
        self.reported = match (self.reported, reported) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.newest = self.newest.max(newest);
    }

    /// Where the whole window ends, once all its pages are acknowledged; `None` where the server said nothing to go by.
    #[must_use]
    pub(crate) fn end(self, window: Window) -> Option<Timestamp> {
        match (self.reported, window.to) {
            (Some(reported), Some(asked)) => Some(reported.min(asked)),
            (Some(reported), None) => Some(reported),
            // Without a report a bounded window still ends where it was asked to end.
            (None, Some(asked)) => Some(asked),
            (None, None) => self.newest,
        }
    }
}

/// The watermark after a window that ended at `end`: it never moves back.
#[must_use]
pub(crate) fn advance(watermark: Option<Timestamp>, end: Option<Timestamp>) -> Option<Timestamp> {
    watermark.max(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Period = Period::Millis(60_000);

    #[test]
    fn the_first_window_begins_at_since_and_later_ones_behind_the_watermark() {
        assert_eq!(Window::next(None, Timestamp(7), MINUTE), Window { from: Timestamp(7), to: None });
        let next = Window::next(Some(Timestamp(100_000)), Timestamp(7), MINUTE);
        assert_eq!(next, Window { from: Timestamp(40_000), to: None });
    }

    #[test]
    fn the_servers_word_is_the_end() {
        let open = Window { from: Timestamp(0), to: None };
        let mut covered = Covered::default();
        assert_eq!(covered.end(open), None);
        covered.page(None, Some(Timestamp(5)));
        assert_eq!(covered.end(open), Some(Timestamp(5)));
        covered.page(Some(Timestamp(90)), Some(Timestamp(80)));
        covered.page(Some(Timestamp(95)), None);
        assert_eq!(covered.end(open), Some(Timestamp(90)));
        assert_eq!(covered.end(Window { to: Some(Timestamp(60)), ..open }), Some(Timestamp(60)));
    }

    proptest! {
        #[test]
        fn halves_cover_the_whole_and_end(from in 0i64..1_000_000, width in 0i64..10_000_000, open in any::<bool>()) {
            let present = Timestamp(from + width).plus(BOUND_LAG);
            let window = Window { from: Timestamp(from), to: (!open).then_some(Timestamp(from + width)) };
            match window.split(present) {
                None => prop_assert!(width < 2 * WINDOW_MS_MIN),
                Some((a, b)) => {
                    prop_assert_eq!((a.from, b.to), (window.from, window.to));
                    prop_assert_eq!(a.to, Some(b.from));
                    prop_assert!(a.from < b.from && b.from < Timestamp(from + width));
                }
            }
        }

        #[test]
        fn the_watermark_never_moves_back(mark in proptest::option::of(any::<i64>()), end in proptest::option::of(any::<i64>())) {
            prop_assert!(advance(mark.map(Timestamp), end.map(Timestamp)) >= mark.map(Timestamp));
        }
    }
}
