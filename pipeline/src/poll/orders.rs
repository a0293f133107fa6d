//! A turn of orders: everything updated since the cursor, up to the server's present end.

use std::sync::Arc;

use sunder_retention::keys::SellerKeys;
use sunder_schemas::catalogue::Catalogue;
use sunder_schemas::class::Dataset;
use sunder_schemas::classify::Limits;
use sunder_schemas::time::Timestamp;

use super::cursor::Window;
use super::error::{PollError, Unreadable};
use super::fate::Wishes;
use super::mark::Mark;
use super::publish::Origin;
use super::runner::{PolledSeller, Poller};
use super::under_way::UnderWay;
use super::walk::{self, Listing, PageDone};
use crate::spapi::{Answer, IncludedData, Operation, OrdersPage, SpapiError, search_orders};

/// Polls `seller`'s orders to the server's present end; returns the number of gaps that were left open.
///
/// # Errors
/// [`PollError`]: what was reached stays reached.
pub(super) async fn turn(poller: &Poller, seller: &PolledSeller, under_way: &UnderWay) -> Result<u32, PollError> {
    let operation = Operation::SearchOrders;
    let catalogue = Catalogue::for_operation(operation.api(), operation.as_str()).map_err(|_| PollError::NoCatalogue)?;
    let keys = poller.keyring.seller(&seller.id).await?;
    let mark = Mark::read(&poller.keyring, &seller.id, Dataset::Orders).await?;
    let window = Window::next(mark.watermark(), poller.clock.now().minus(seller.since), seller.overlap);
    let gaps = mark.gaps_to_try(&poller.keyring).await?;
    let mut listing = Orders { poller, seller, under_way, catalogue, keys, mark, rejected: false };
    for gap in gaps {
        match walk::read_gap(&mut listing, gap).await? {
            None => listing.close(gap.from, gap.to.unwrap_or(gap.from)).await?,
            Some(body) => listing.gap(gap, &body, true).await?,
        }
    }
    walk::walk(&mut listing, window).await
}

struct Orders<'a> {
    poller: &'a Poller,
    seller: &'a PolledSeller,
    under_way: &'a UnderWay,
    catalogue: &'static Catalogue,
    keys: Arc<SellerKeys>,
    mark: Mark,
    /// Whether an entity of the window under way could not be taken in: its gap stays open.
    rejected: bool,
}

impl Orders<'_> {
    /// Fetches a page; where personal parts are forbidden, the page without them. Says whether that was so.
    async fn fetch(&self, window: Window, token: Option<&str>) -> Result<(Answer, bool), PollError> {
        let wanted = IncludedData::of(&self.seller.personal);
        let mut page = OrdersPage {
            marketplaces: &self.seller.marketplaces,
            updated_from: window.from,
            updated_before: window.to,
            included: wanted,
            page_token: token,
        };
        let mut role_missing = wanted.needs_role() && self.poller.is_role_missing(&self.seller.id);
        if role_missing {
            page.included = wanted.without_role();
        }
        match self.poller.ask(self.seller, &search_orders(&page), self.under_way).await {
            Err(PollError::Spapi(SpapiError::Forbidden { .. })) if page.included.needs_role() => {
                page.included = wanted.without_role();
                let answer = self.poller.ask(self.seller, &search_orders(&page), self.under_way).await?;
                // Only now is it known that it was the personal parts, not the seller's whole access.
                self.poller.note_role_missing(&self.seller.id);
                tracing::warn!(seller = %self.seller.id, "Amazon refuses the seller's personal data: a role is missing; asking without it");
                role_missing = true;
                Ok((answer, role_missing))
            }
            answer => Ok((answer?, role_missing)),
        }
    }
}

impl Orders<'_> {
    /// Closes the gaps of a window that was read, unless an entity of it was rejected.
    async fn close(&mut self, from: Timestamp, to: Timestamp) -> Result<(), PollError> {
        if std::mem::take(&mut self.rejected) { Ok(()) } else { self.mark.close_gaps(&self.poller.keyring, from, to).await }
    }
}

impl Listing for Orders<'_> {
    async fn page(&mut self, window: Window, token: Option<&str>) -> Result<PageDone, PollError> {
        let asked_at = self.present();
        let (answer, role_missing) = self.fetch(window, token).await?;
        let page = sunder_schemas::classify::classify(self.catalogue, &answer.body, &*self.keys, &Limits::DEFAULT)
            .map_err(|error| Unreadable::of(&error, &answer.request_id))?;
        let Answer { request_id, collected_at, body, .. } = answer;
        // Wiped here: from now on personal values live in their groups alone.
        drop(body);
        let (next_token, reported) = (page.next_token.clone(), page.window_end);
        let origin = Origin {
            seller: &self.seller.id,
            keys: &self.keys,
            catalogue: self.catalogue,
            request_id: &request_id,
            collected_at,
            marketplace: match self.seller.marketplaces.as_slice() {
                [only] => Some(only),
                _ => None,
            },
            asked_at,
            watermark: self.mark.look(),
            version: window.from,
            wishes: Wishes { wanted: &self.seller.personal, role_missing },
        };
        let sum = self.poller.publisher.publish(&origin, page).await?;
        if let Some(code) = sum.rejected {
            let until = reported.or(window.to).unwrap_or(collected_at);
            self.rejected = true;
            self.mark.open_gap(&self.poller.keyring, Window { from: window.from, to: Some(until) }, &code).await?;
        }
        Ok(PageDone { next_token, reported, newest: sum.newest })
    }

    async fn reached(&mut self, window: Window, end: Timestamp, read: bool) -> Result<(), PollError> {
        self.mark.advance(&self.poller.keyring, end, None).await?;
        if read { self.close(window.from, end).await } else { Ok(()) }
    }

    async fn gap(&mut self, window: Window, body: &Unreadable, open: bool) -> Result<(), PollError> {
        tracing::warn!(seller = %self.seller.id, code = body.code, request = body.request_id, open, "an answer could not be read");
        if open { self.mark.open_gap(&self.poller.keyring, window, &body.code).await } else { Ok(()) }
    }

    fn present(&self) -> Timestamp {
        self.poller.clock.now()
    }
}
