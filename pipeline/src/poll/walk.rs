//! Reads a listing to its end, page by page: what to do when a token expires, a body cannot be read, a window must be cut.
//!
//! Invariants: a watermark is reported only after every page before it was published and acknowledged; sub-windows are read in order,
//! so that what was reported is covered without a hole but for gaps that were opened; a watermark never lies in the future, whatever the
//! server says; a window is only cut into pieces while the server reads others, so that an outage is never taken for a bad order; every
//! loop has a bound.

use std::collections::HashSet;

use sunder_schemas::time::{Period, Timestamp};

use super::cursor::{BOUND_LAG, Covered, Window};
use super::error::{PollError, Unreadable};
use crate::spapi::SpapiError;

/// How many times one page is fetched before its body counts as unreadable (chosen: passing faults seldom strike three times).
pub(crate) const BODY_TRIES: u32 = 3;
/// How many times one window is begun again because a page token expired (chosen).
pub(crate) const RESTARTS_MAX: u32 = 5;
/// Most pages of one window (chosen: two million orders; Amazon's tokens for orders live 24 h, 480 pages at the published rate).
pub(crate) const PAGES_MAX: u32 = 20_000;
/// Widest window that is read in one go (chosen): page tokens live 24 h, and a restart loses no more than one window's calls.
pub(crate) const WINDOW_MAX: Period = Period::days(7);
/// Width of the window that is asked for to see whether the server answers at all: one that most likely has no order (chosen).
const PROBE_WIDTH: Period = Period::Millis(1_000);

/// A page that was published and acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PageDone {
    /// Where the next page begins.
    pub(crate) next_token: Option<String>,
    /// The end of the window as the server told it.
    pub(crate) reported: Option<Timestamp>,
    /// The newest time of last update on the page.
    pub(crate) newest: Option<Timestamp>,
}

/// A listing of one seller: fetches and publishes pages, and keeps the cursor.
pub(crate) trait Listing {
    /// Fetches a page of `window`, publishes it and returns once Kafka acknowledged it and its dispositions are committed.
    fn page(&mut self, window: Window, token: Option<&str>) -> impl Future<Output = Result<PageDone, PollError>> + Send;

    /// Everything of `window` before `end` is covered: moves the cursor. Where it was `read`, and not passed over, its gaps are closed.
    fn reached(&mut self, window: Window, end: Timestamp, read: bool) -> impl Future<Output = Result<(), PollError>> + Send;

    /// Notes a body that could not be read; `open` once the window is passed over.
    fn gap(&mut self, window: Window, body: &Unreadable, open: bool) -> impl Future<Output = Result<(), PollError>> + Send;

    /// The present instant by the policy clock; it only chooses where windows are cut.
    fn present(&self) -> Timestamp;
}

/// Reads `window` up to the server's present end in windows of at most [`WINDOW_MAX`], passing over what cannot be read. Returns the
/// number of gaps it left open.
///
/// # Errors
/// [`PollError`]: what was reached before it stays reached.
pub(crate) async fn walk(listing: &mut impl Listing, window: Window) -> Result<u32, PollError> {
    let mut pending = vec![window];
    let mut gaps = 0;
    // Whether something was read since a window was last passed over.
    let mut answers = false;
    while let Some(window) = pending.pop() {
        let present = listing.present();
        let (window, rest) = cut(window, present);
        if let Some(rest) = rest {
            pending.push(rest);
        }
        match read(listing, window).await {
            Ok(covered) => {
                answers = true;
                if let Some(end) = covered.end(window) {
                    listing.reached(window, end.min(present), true).await?;
                }
            }
            Err(error) if stuck(&error).is_some() => {
                let Some(body) = stuck(&error) else { return Err(error) };
                if !answers {
                    answers_elsewhere(listing, present, error).await?;
                    answers = true;
                }
                if let Some((first, second)) = window.split(present) {
                    pending.extend([second, first]);
                } else if let Some(end) = window.to {
                    listing.gap(window, &body, true).await?;
                    listing.reached(window, end, false).await?;
                    gaps += 1;
                    answers = false;
                } else {
                    // The newest instants before the present: the cursor stays, and the next turn reads them again.
                    listing.gap(Window { from: window.from, to: Some(present) }, &body, true).await?;
                    return Err(PollError::Unreadable(body));
                }
            }
            // The server does not take the bound: its clock is behind ours. Its own present end serves as well.
            Err(PollError::Spapi(SpapiError::BadRequest { .. })) if window.to.is_some() => {
                pending.clear();
                let open = Window { from: window.from, to: None };
                if let Some(end) = read(listing, open).await?.end(open) {
                    listing.reached(open, end.min(present), true).await?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(gaps)
}

/// Reads a gap again; returns what is in its way still, while the server reads others: an outage is no try.
///
/// # Errors
/// [`PollError`]: nothing is known of the gap.
pub(crate) async fn read_gap(listing: &mut impl Listing, gap: Window) -> Result<Option<Unreadable>, PollError> {
    let Err(error) = read(listing, gap).await else { return Ok(None) };
    let Some(body) = stuck(&error) else { return Err(error) };
    let present = listing.present();
    answers_elsewhere(listing, present, error).await?;
    Ok(Some(body))
}

/// What is in the way, where a narrower window may do without it: a body that does not read, a failure that stays through all the
/// client's tries, a listing that does not end.
fn stuck(error: &PollError) -> Option<Unreadable> {
    match error {
        PollError::Unreadable(body) => Some(body.clone()),
        PollError::Spapi(SpapiError::Unavailable { .. }) | PollError::Restarts { .. } | PollError::Endless { .. } => {
            Some(Unreadable { code: error.code().to_owned(), request_id: "absent".to_owned(), place: (0, 0) })
        }
        _ => None,
    }
}

/// Whether the server can read another window than the one that ended in `error`: only then something within that one is in the way.
///
/// # Errors
/// `error`, where the server reads nothing at all; any other of the second window.
async fn answers_elsewhere(listing: &mut impl Listing, present: Timestamp, error: PollError) -> Result<(), PollError> {
    let to = present.minus(BOUND_LAG);
    let probe = Window { from: to.minus(PROBE_WIDTH), to: Some(to) };
    match read(listing, probe).await {
        // A refusal is an answer: the server's clock is behind ours.
        Ok(_) | Err(PollError::Spapi(SpapiError::BadRequest { .. })) => Ok(()),
        Err(again) if stuck(&again).is_some() => Err(error),
        Err(other) => Err(other),
    }
}

/// The first [`WINDOW_MAX`] of `window`, and what is left of it.
fn cut(window: Window, present: Timestamp) -> (Window, Option<Window>) {
    let middle = window.from.plus(WINDOW_MAX);
    let end = window.to.unwrap_or_else(|| present.minus(BOUND_LAG));
    if middle < end {
        (Window { from: window.from, to: Some(middle) }, Some(Window { from: middle, to: window.to }))
    } else {
        (window, None)
    }
}

/// Reads one window's pages to the end.
pub(crate) async fn read(listing: &mut impl Listing, window: Window) -> Result<Covered, PollError> {
    let mut restarts = 0;
    'window: loop {
        let mut covered = Covered::default();
        let mut token: Option<String> = None;
        let mut seen = HashSet::new();
        for _ in 0..PAGES_MAX {
            let done = match page(listing, window, token.as_deref()).await {
                Err(PollError::Spapi(SpapiError::BadRequest { .. })) if token.is_some() => {
                    restarts += 1;
                    metrics::counter!("sunder_poll_window_restarts_total").increment(1);
                    if restarts > RESTARTS_MAX {
                        return Err(PollError::Restarts { restarts });
                    }
                    continue 'window;
                }
                done => done?,
            };
            covered.page(done.reported, done.newest);
            // An empty page can have a next token; only its absence ends a listing.
            token = done.next_token;
            match &token {
                None => return Ok(covered),
                // Tokens are opaque, but the same one again leads to the same page again.
                Some(token) if !seen.insert(token.clone()) => return Err(PollError::Endless { pages: seen.len() }),
                Some(_) => {}
            }
        }
        return Err(PollError::Endless { pages: seen.len() });
    }
}

/// Fetches one page, again where its body cannot be read.
async fn page(listing: &mut impl Listing, window: Window, token: Option<&str>) -> Result<PageDone, PollError> {
    let mut tries = 0;
    loop {
        match listing.page(window, token).await {
            Err(PollError::Unreadable(body)) => {
                tries += 1;
                metrics::counter!("sunder_poll_unreadable_bodies_total").increment(1);
                listing.gap(window, &body, false).await?;
                if tries >= BODY_TRIES {
                    return Err(PollError::Unreadable(body));
                }
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spapi::Operation;
    use std::collections::BTreeSet;

    const T0: i64 = 1_795_000_000_000;
    const PRESENT: Timestamp = Timestamp(T0 + 10_000_000);

    type Fails = fn(u32, Window, usize) -> Option<PollError>;

    /// A server with one order per instant of `orders`, two a page; answers as scripted by `fault`.
    struct Fake<F> {
        orders: Vec<i64>,
        fault: F,
        calls: u32,
        published: BTreeSet<i64>,
        reached: Vec<i64>,
        gaps: Vec<(Window, bool)>,
    }

    impl<F: FnMut(u32, Window, usize) -> Option<PollError> + Send> Fake<F> {
        fn new(orders: Vec<i64>, fault: F) -> Self {
            Self { orders, fault, calls: 0, published: BTreeSet::new(), reached: Vec::new(), gaps: Vec::new() }
        }
    }

    impl<F: FnMut(u32, Window, usize) -> Option<PollError> + Send> Listing for Fake<F> {
        async fn page(&mut self, window: Window, token: Option<&str>) -> Result<PageDone, PollError> {
            let skip: usize = token.map_or(0, |t| t.parse().unwrap());
            self.calls += 1;
            if let Some(error) = (self.fault)(self.calls, window, skip) {
                return Err(error);
            }
            let end = window.to.unwrap_or(PRESENT.minus(Period::Millis(120_000)));
            let matching: Vec<i64> = self.orders.iter().copied().filter(|t| (window.from.0..end.0).contains(t)).collect();
            self.published.extend(matching.iter().skip(skip).take(2));
            let next_token = (skip + 2 < matching.len()).then(|| (skip + 2).to_string());
            Ok(PageDone { next_token, reported: Some(end), newest: matching.last().map(|t| Timestamp(*t)) })
        }

        async fn reached(&mut self, _: Window, end: Timestamp, _: bool) -> Result<(), PollError> {
            self.reached.push(end.0);
            Ok(())
        }

        async fn gap(&mut self, window: Window, _: &Unreadable, open: bool) -> Result<(), PollError> {
            self.gaps.push((window, open));
            Ok(())
        }

        fn present(&self) -> Timestamp {
            PRESENT
        }
    }

    fn unreadable() -> PollError {
        PollError::Unreadable(Unreadable { code: "truncated".into(), request_id: "r".into(), place: (1, 1) })
    }

    fn bad_request() -> PollError {
        PollError::Spapi(SpapiError::BadRequest { operation: Operation::SearchOrders, request_id: "r".into() })
    }

    fn orders() -> Vec<i64> {
        (0..9).map(|n| T0 + n * 1_000_000).collect()
    }

    fn open() -> Window {
        Window { from: Timestamp(T0), to: None }
    }

    #[tokio::test]
    async fn a_listing_is_read_to_its_end_and_reported_once() {
        let mut fake = Fake::new(orders(), |_, _, _| None);
        assert_eq!(walk(&mut fake, open()).await.unwrap(), 0);
        assert_eq!((fake.published.len(), fake.calls, fake.reached.as_slice()), (9, 5, &[PRESENT.0 - 120_000][..]));
    }

    #[tokio::test]
    async fn an_expired_page_token_starts_the_window_over() {
        let mut fake = Fake::new(orders(), |call, _, skip| (call == 3 && skip > 0).then(bad_request));
        walk(&mut fake, open()).await.unwrap();
        assert_eq!((fake.published.len(), fake.calls), (9, 3 + 5));
        // Tokens that never work: windows of one page each do without them.
        let mut fake = Fake::new(orders(), |_, _, skip| (skip > 0).then(bad_request));
        assert_eq!(walk(&mut fake, open()).await.unwrap(), 0);
        assert_eq!((fake.published.len(), fake.reached.last()), (9, Some(&(PRESENT.0 - 120_000))));
    }

    #[tokio::test]
    async fn an_order_that_the_server_fails_at_for_ever_is_fenced_in() {
        let poison = T0 + 3_000_000;
        let unavailable = || PollError::Spapi(SpapiError::Unavailable { operation: Operation::SearchOrders, status: 500 });
        let mut fake = Fake::new(orders(), move |_, window: Window, _| {
            (window.from.0..window.to.unwrap_or(PRESENT).0).contains(&poison).then(unavailable)
        });
        assert_eq!(walk(&mut fake, open()).await.unwrap(), 1);
        assert_eq!(fake.published.len(), 8);
        assert_eq!(fake.gaps.iter().filter(|(_, open)| *open).count(), 1);
    }

    #[tokio::test]
    async fn a_server_that_reads_nothing_is_not_searched_for_a_bad_order() {
        for error in [unreadable, || PollError::Spapi(SpapiError::Unavailable { operation: Operation::SearchOrders, status: 500 })] {
            let mut fake = Fake::new(orders(), move |_, _, _| Some(error()));
            assert_eq!(walk(&mut fake, open()).await.unwrap_err().code(), error().code());
            assert!(fake.reached.is_empty() && fake.calls <= 2 * BODY_TRIES, "{} calls", fake.calls);
        }
        // It breaks down in the middle: at most one second is passed over before that is noticed.
        let mut fake = Fake::new(orders(), move |call, _, _| (call > 4).then(unreadable));
        assert_eq!(walk(&mut fake, Window { from: Timestamp(T0 - 20 * 86_400_000), to: None }).await.unwrap_err().code(), "truncated");
        let passed: i64 =
            fake.gaps.iter().filter(|(w, open)| *open && w.to != Some(PRESENT)).map(|(w, _)| w.to.unwrap().0 - w.from.0).sum();
        assert!(passed < 2_000, "{passed} ms");
    }

    #[tokio::test]
    async fn a_page_token_that_comes_again_ends_the_listing() {
        struct Loop(Fake<Fails>);
        impl Listing for Loop {
            async fn page(&mut self, window: Window, token: Option<&str>) -> Result<PageDone, PollError> {
                let mut done = self.0.page(window, token).await?;
                // Where there is a second page, it names itself as the next.
                done.next_token = done.next_token.map(|_| "2".to_owned());
                Ok(done)
            }
            async fn reached(&mut self, window: Window, end: Timestamp, read: bool) -> Result<(), PollError> {
                self.0.reached(window, end, read).await
            }
            async fn gap(&mut self, window: Window, body: &Unreadable, open: bool) -> Result<(), PollError> {
                self.0.gap(window, body, open).await
            }
            fn present(&self) -> Timestamp {
                self.0.present()
            }
        }
        let mut endless = Loop(Fake::new(orders(), |_, _, _| None));
        assert_eq!(walk(&mut endless, open()).await.unwrap(), 0);
        assert_eq!((endless.0.published.len(), endless.0.reached.last()), (9, Some(&(PRESENT.0 - 120_000))));
        assert!(endless.0.calls < 100, "{}", endless.0.calls);
    }

    #[tokio::test]
    async fn a_present_end_in_the_future_is_not_believed() {
        struct Ahead(Fake<Fails>);
        impl Listing for Ahead {
            async fn page(&mut self, window: Window, token: Option<&str>) -> Result<PageDone, PollError> {
                Ok(PageDone { reported: Some(Timestamp(PRESENT.0 * 2)), ..self.0.page(window, token).await? })
            }
            async fn reached(&mut self, window: Window, end: Timestamp, read: bool) -> Result<(), PollError> {
                self.0.reached(window, end, read).await
            }
            async fn gap(&mut self, window: Window, body: &Unreadable, open: bool) -> Result<(), PollError> {
                self.0.gap(window, body, open).await
            }
            fn present(&self) -> Timestamp {
                self.0.present()
            }
        }
        let mut ahead = Ahead(Fake::new(orders(), |_, _, _| None));
        walk(&mut ahead, open()).await.unwrap();
        assert_eq!(ahead.0.reached, [PRESENT.0]);
    }

    #[tokio::test]
    async fn a_body_that_reads_at_the_second_try_leaves_no_open_gap() {
        let mut fake = Fake::new(orders(), |call, _, _| (call == 2).then(unreadable));
        assert_eq!(walk(&mut fake, open()).await.unwrap(), 0);
        assert_eq!(fake.published.len(), 9);
        assert_eq!(fake.gaps, vec![(open(), false)]);
    }

    #[tokio::test]
    async fn one_poisonous_order_is_fenced_in_and_all_others_are_read() {
        let poison = T0 + 3_000_000;
        let mut fake = Fake::new(orders(), move |_, window: Window, _| {
            let end = window.to.unwrap_or(PRESENT);
            (window.from.0..end.0).contains(&poison).then(unreadable)
        });
        assert_eq!(walk(&mut fake, open()).await.unwrap(), 1);
        assert_eq!(fake.published.len(), 8);
        let passed: Vec<_> = fake.gaps.iter().filter(|(_, open)| *open).collect();
        assert_eq!(passed.len(), 1);
        let gap = passed[0].0;
        assert!(gap.from.0 <= poison && poison < gap.to.unwrap().0 && gap.to.unwrap().0 - gap.from.0 < 2_000);
        assert!(fake.reached.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(fake.reached.last(), Some(&(PRESENT.0 - 120_000)));
    }

    #[tokio::test]
    async fn a_long_past_is_read_in_bounded_windows() {
        let from = Timestamp(T0 - 30 * 86_400_000);
        let mut fake = Fake::new(vec![from.0, from.0 + 86_400_000 * 8, T0], |_, _, _| None);
        walk(&mut fake, Window { from, to: None }).await.unwrap();
        assert_eq!((fake.published.len(), fake.calls, fake.reached.len()), (3, 5, 5));
    }

    #[tokio::test]
    async fn a_bound_that_the_server_refuses_is_left_to_the_server() {
        let from = Timestamp(T0 - 30 * 86_400_000);
        let mut fake = Fake::new(vec![from.0, T0], |_, window: Window, _| window.to.is_some().then(bad_request));
        walk(&mut fake, Window { from, to: None }).await.unwrap();
        assert_eq!((fake.published.len(), fake.reached.len()), (2, 1));
    }

    #[tokio::test]
    async fn a_failure_reports_nothing() {
        let mut fake = Fake::new(orders(), |call, _, _| (call == 2).then_some(PollError::Kafka { code: "timeout".into() }));
        assert!(walk(&mut fake, open()).await.is_err());
        assert!(fake.reached.is_empty());
    }
}
