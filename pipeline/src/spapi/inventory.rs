//! FBA inventory summaries of one marketplace.

use sunder_schemas::ids::MarketplaceId;
use sunder_schemas::time::Timestamp;

use super::request::{Operation, Request};

/// One page of `getInventorySummaries`.
#[derive(Debug, Clone, Copy)]
pub struct InventoryListing<'a> {
    /// Exactly one per call.
    pub marketplace: &'a MarketplaceId,
    /// Only levels that changed since; `None` is a full listing. Changes of the three inbound quantities are not seen this way.
    pub changed_from: Option<Timestamp>,
    /// Where the page begins; it lives 30 seconds.
    pub page_token: Option<&'a str>,
}

/// `getInventorySummaries` with all quantities.
#[must_use]
pub fn inventory_summaries(listing: &InventoryListing<'_>) -> Request {
    let marketplace = listing.marketplace.as_str();
    let mut request = Request::new(Operation::GetInventorySummaries, "/fba/inventory/v1/summaries")
        .query("details", "true")
        .query("granularityType", "Marketplace")
        .query("granularityId", marketplace)
        .query("marketplaceIds", marketplace);
    if let Some(from) = listing.changed_from {
        request = request.time("startDateTime", from);
    }
    match listing.page_token {
        Some(token) => request.query("nextToken", token),
        None => request,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_page_repeats_its_start() {
        let marketplace = MarketplaceId::parse("M1").unwrap();
        let listing = InventoryListing { marketplace: &marketplace, changed_from: Some(Timestamp(0)), page_token: Some("t") };
        assert_eq!(
            inventory_summaries(&listing).target(),
            "/fba/inventory/v1/summaries?details=true&granularityType=Marketplace&granularityId=M1&marketplaceIds=M1\
             &startDateTime=1970-01-01T00%3A00%3A00.000Z&nextToken=t"
        );
    }
}
