//! Orders 2026-01-01: what is asked for, and no more.

use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{MarketplaceId, OrderId};
use sunder_schemas::time::Timestamp;

use super::request::{Operation, Request};

/// Largest page the operation gives.
const PAGE_ORDERS_MAX: &str = "100";
/// Longest list of marketplaces the operation takes.
pub(crate) const MARKETPLACES_MAX: usize = 50;

/// Asked for always: the non-personal parts of an order. The gift message comes with FULFILLMENT, the tracking number with PACKAGES
/// and the buyer's reason with CANCELLATION; where those are not wanted they are dropped in memory.
const BASE: [&str; 6] = ["PROCEEDS", "EXPENSE", "PROMOTION", "CANCELLATION", "FULFILLMENT", "PACKAGES"];

/// Which parts of an order are asked for (`includedData`): this choice is the guard of Orders 2026-01-01, which has no restricted token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncludedData {
    /// BUYER: name, company, e-mail, purchase order number.
    pub buyer: bool,
    /// RECIPIENT: delivery address with phone, delivery preferences.
    pub recipient: bool,
    /// TAX: the buyer's tax registrations.
    pub tax: bool,
    /// PAYMENT: card brand and authorisation.
    pub payment: bool,
}

impl IncludedData {
    /// The parts that the wanted groups lie in, and no others.
    #[must_use]
    pub fn of(wanted: &[FieldGroup]) -> Self {
        let any = |groups: &[FieldGroup]| wanted.iter().any(|group| groups.contains(group));
        Self {
            buyer: any(&[FieldGroup::BuyerName, FieldGroup::BuyerContact, FieldGroup::TaxIdentity]),
            recipient: any(&[FieldGroup::RecipientAddress, FieldGroup::BuyerContact, FieldGroup::DeliveryInstructions]),
            tax: any(&[FieldGroup::TaxIdentity]),
            payment: any(&[FieldGroup::Payment]),
        }
    }

    /// Whether it asks for parts that need a role for personal data.
    #[must_use]
    pub const fn needs_role(self) -> bool {
        self.buyer || self.recipient || self.tax
    }

    /// The same without the parts that need a role: what is left after a 403.
    #[must_use]
    pub const fn without_role(self) -> Self {
        Self { buyer: false, recipient: false, tax: false, payment: self.payment }
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        let personal = [(self.buyer, "BUYER"), (self.recipient, "RECIPIENT"), (self.tax, "TAX"), (self.payment, "PAYMENT")];
        BASE.into_iter().chain(personal.into_iter().filter_map(|(asked, name)| asked.then_some(name)))
    }
}

/// One page of `searchOrders`.
#[derive(Debug, Clone, Copy)]
pub struct OrdersPage<'a> {
    /// At most 50.
    pub marketplaces: &'a [MarketplaceId],
    /// Orders updated at or after this time.
    pub updated_from: Timestamp,
    /// Orders updated before this time; `None` lets the server choose its present end, which it reports.
    pub updated_before: Option<Timestamp>,
    /// What is asked for.
    pub included: IncludedData,
    /// Where the page begins; all other parameters but `included` must stay the same.
    pub page_token: Option<&'a str>,
}

/// `searchOrders`.
#[must_use]
pub fn search_orders(page: &OrdersPage<'_>) -> Request {
    let mut request = Request::new(Operation::SearchOrders, "/orders/2026-01-01/orders")
        .list("marketplaceIds", page.marketplaces.iter().take(MARKETPLACES_MAX).map(MarketplaceId::as_str))
        .time("lastUpdatedAfter", page.updated_from);
    if let Some(before) = page.updated_before {
        request = request.time("lastUpdatedBefore", before);
    }
    request = request.query("maxResultsPerPage", PAGE_ORDERS_MAX).list("includedData", page.included.names());
    match page.page_token {
        Some(token) => request.query("paginationToken", token),
        None => request,
    }
}

/// `getOrder`.
#[must_use]
pub fn get_order(order: &OrderId, included: IncludedData) -> Request {
    Request::new(Operation::GetOrder, "/orders/2026-01-01/orders").segment(order.reveal()).list("includedData", included.names())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personal_parts_are_asked_for_only_where_wanted() {
        let none = IncludedData::of(&[FieldGroup::Gift, FieldGroup::Tracking, FieldGroup::FreeText, FieldGroup::Customization]);
        assert!(!none.needs_role() && !none.payment);
        assert_eq!(none.names().collect::<Vec<_>>(), BASE);
        let address = IncludedData::of(&[FieldGroup::RecipientAddress]);
        assert!(address.recipient && !address.buyer && !address.tax);
        let all = IncludedData::of(FieldGroup::ALL);
        assert!(all.buyer && all.recipient && all.tax && all.payment);
        assert_eq!(all.without_role().names().last(), Some("PAYMENT"));
    }

    #[test]
    fn a_page_repeats_its_filters() {
        let marketplaces = [MarketplaceId::parse("M1").unwrap(), MarketplaceId::parse("M2").unwrap()];
        let page = OrdersPage {
            marketplaces: &marketplaces,
            updated_from: Timestamp(0),
            updated_before: None,
            included: IncludedData::of(&[]),
            page_token: Some("a+b"),
        };
        assert_eq!(
            search_orders(&page).target(),
            "/orders/2026-01-01/orders?marketplaceIds=M1,M2&lastUpdatedAfter=1970-01-01T00%3A00%3A00.000Z&maxResultsPerPage=100\
             &includedData=PROCEEDS,EXPENSE,PROMOTION,CANCELLATION,FULFILLMENT,PACKAGES&paginationToken=a%2Bb"
        );
    }
}
