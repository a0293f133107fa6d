//! A turn of FBA inventory: a full listing from time to time, changes in between, marketplace by marketplace.
//!
//! The answers tell no present end, so the cursor is the policy clock's instant at which the turn began; the overlap of the next
//! turn covers what became visible late. Changes of the three inbound quantities are found by full listings alone. A level
//! that is missing from a full listing keeps its last state: Amazon does not say that a SKU was deleted, it just stops listing it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sunder_retention::keys::SellerKeys;
use sunder_schemas::catalogue::Catalogue;
use sunder_schemas::class::Dataset;
use sunder_schemas::classify::Limits;
use sunder_schemas::ids::MarketplaceId;
use sunder_schemas::time::Timestamp;

use super::cursor::Window;
use super::error::{PollError, Unreadable};
use super::fate::Wishes;
use super::mark::Mark;
use super::publish::Origin;
use super::runner::{PolledSeller, Poller};
use super::under_way::UnderWay;
use super::walk::{self, Listing, PageDone};
use crate::spapi::{Answer, InventoryListing, Operation, inventory_summaries};

/// What the cursor's detail holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Detail {
    /// When the last full listing began, ms since 1970 by the policy clock.
    #[serde(default)]
    full_at: Option<i64>,
}

/// Polls `seller`'s inventory; returns the number of marketplaces whose listing left a gap.
///
/// # Errors
/// [`PollError`]: the cursor stays, and the next turn reads the same again.
pub(super) async fn turn(poller: &Poller, seller: &PolledSeller, under_way: &UnderWay) -> Result<u32, PollError> {
    let operation = Operation::GetInventorySummaries;
    let catalogue = Catalogue::for_operation(operation.api(), operation.as_str()).map_err(|_| PollError::NoCatalogue)?;
    let keys = poller.keyring.seller(&seller.id).await?;
    let mut mark = Mark::read(&poller.keyring, &seller.id, Dataset::Inventory).await?;
    // What is not ours to read counts as never listed.
    let detail: Detail = serde_json::from_str(mark.detail()).unwrap_or_default();
    let began = poller.clock.now();
    let full_is_due = detail.full_at.is_none_or(|at| Timestamp(at).plus(poller.settings.inventory_full_every) <= began);
    let changed_from = if full_is_due { None } else { mark.watermark().map(|reached| reached.minus(seller.overlap)) };
    let window = Window { from: changed_from.unwrap_or(Timestamp(0)), to: None };
    let mut rejected = 0;
    for marketplace in &seller.marketplaces {
        let mut listing =
            Inventory { poller, seller, under_way, catalogue, keys: Arc::clone(&keys), marketplace, changed_from, began, rejected: None };
        match walk::read(&mut listing, window).await {
            Ok(_) => {}
            Err(PollError::Unreadable(body)) => {
                mark.open_gap(&poller.keyring, Window { from: window.from, to: Some(began) }, &body.code).await?;
                return Err(PollError::Unreadable(body));
            }
            Err(error) => return Err(error),
        }
        if let Some(code) = listing.rejected {
            rejected += 1;
            mark.open_gap(&poller.keyring, Window { from: window.from, to: Some(began) }, &code).await?;
        }
    }
    let full_at = if changed_from.is_none() { Some(began.0) } else { detail.full_at };
    let detail = serde_json::json!({ "full_at": full_at }).to_string();
    if rejected == 0 {
        mark.close_gaps(&poller.keyring, window.from, began).await?;
    }
    mark.advance(&poller.keyring, began, Some(detail)).await?;
    Ok(rejected)
}

struct Inventory<'a> {
    poller: &'a Poller,
    seller: &'a PolledSeller,
    under_way: &'a UnderWay,
    catalogue: &'static Catalogue,
    keys: Arc<SellerKeys>,
    marketplace: &'a MarketplaceId,
    changed_from: Option<Timestamp>,
    began: Timestamp,
    rejected: Option<String>,
}

impl Listing for Inventory<'_> {
    async fn page(&mut self, _: Window, token: Option<&str>) -> Result<PageDone, PollError> {
        let listing = InventoryListing { marketplace: self.marketplace, changed_from: self.changed_from, page_token: token };
        let answer = self.poller.ask(self.seller, &inventory_summaries(&listing), self.under_way).await?;
        let page = sunder_schemas::classify::classify(self.catalogue, &answer.body, &*self.keys, &Limits::DEFAULT)
            .map_err(|error| Unreadable::of(&error, &answer.request_id))?;
        let Answer { request_id, collected_at, body, .. } = answer;
        drop(body);
        let next_token = page.next_token.clone();
        let origin = Origin {
            seller: &self.seller.id,
            keys: &self.keys,
            catalogue: self.catalogue,
            request_id: &request_id,
            collected_at,
            marketplace: Some(self.marketplace),
            asked_at: self.began,
            watermark: None,
            version: self.began,
            // No group of personal fields lies in this dataset: a field without a rule is dropped and counted.
            wishes: Wishes { wanted: &[], role_missing: false },
        };
        let sum = self.poller.publisher.publish(&origin, page).await?;
        if self.rejected.is_none() {
            self.rejected = sum.rejected;
        }
        Ok(PageDone { next_token, reported: None, newest: sum.newest })
    }

    async fn reached(&mut self, _: Window, _: Timestamp, _: bool) -> Result<(), PollError> {
        Ok(())
    }

    async fn gap(&mut self, _: Window, body: &Unreadable, open: bool) -> Result<(), PollError> {
        tracing::warn!(seller = %self.seller.id, code = body.code, request = body.request_id, open, "an answer could not be read");
        Ok(())
    }

    fn present(&self) -> Timestamp {
        self.poller.clock.now()
    }
}
