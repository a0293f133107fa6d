//! What the deadline of an order's personal data is reckoned from, read out of the clear part.

use std::borrow::Cow;

use serde::Deserialize;

use crate::time::Timestamp;

/// The facts of one version of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderFacts {
    /// `createdTime`.
    pub created: Timestamp,
    /// `lastUpdatedTime`: the version.
    pub last_updated: Timestamp,
    /// `fulfillment.fulfillmentStatus`, e.g. `SHIPPED`; empty where the answer says nothing of fulfilment.
    pub status: String,
    /// `fulfillment.fulfilledBy`: `AMAZON` or `MERCHANT`.
    pub fulfilled_by: Option<String>,
    /// `fulfillment.deliverByWindow.latestDateTime`: the latest promise of this version.
    pub latest_promise: Option<Timestamp>,
    /// Its packages; only merchant-fulfilled orders have any.
    pub packages: Vec<PackageFacts>,
}

/// The facts of one package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageFacts {
    /// `packageStatus.status`, e.g. `DELIVERED`.
    pub status: Option<String>,
    /// `packageStatus.detailedStatus`, e.g. `RETURNED_TO_SELLER`.
    pub detailed_status: Option<String>,
    /// `shipTime`.
    pub shipped: Option<Timestamp>,
    /// `createdTime`.
    pub created: Option<Timestamp>,
}

/// A clear part that lacks what an order always has. Names the place, never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// It is not the JSON of an order.
    #[error("the clear part is not the JSON of an order (line {line}, column {column})")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// A time that is not ISO 8601.
    #[error("{0} is not a time")]
    Time(&'static str),
    /// A field that is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Order<'a> {
    #[serde(borrow)]
    created_time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    last_updated_time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    fulfillment: Option<Fulfillment<'a>>,
    #[serde(borrow)]
    packages: Option<Vec<Package<'a>>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Fulfillment<'a> {
    fulfillment_status: Option<String>,
    fulfilled_by: Option<String>,
    #[serde(borrow)]
    deliver_by_window: Option<Window<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Window<'a> {
    #[serde(borrow)]
    latest_date_time: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Package<'a> {
    package_status: Option<PackageStatus>,
    #[serde(borrow)]
    ship_time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    created_time: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct PackageStatus {
    status: Option<String>,
    detailed_status: Option<String>,
}

impl OrderFacts {
    /// Reads the facts from the clear part of an order.
    ///
    /// # Errors
    /// [`FactsError`]; never with a value.
    pub fn from_clear(clear: &[u8]) -> Result<Self, FactsError> {
        let order: Order<'_> = serde_json::from_slice(clear).map_err(|e| FactsError::Json { line: e.line(), column: e.column() })?;
        let fulfillment = order.fulfillment.unwrap_or_default();
        let window = fulfillment.deliver_by_window.and_then(|w| w.latest_date_time);
        let packages = order.packages.unwrap_or_default().into_iter().map(|package| {
            let status = package.package_status.unwrap_or_default();
            Ok(PackageFacts {
                status: status.status,
                detailed_status: status.detailed_status,
                shipped: time("packages.shipTime", package.ship_time)?,
                created: time("packages.createdTime", package.created_time)?,
            })
        });
        Ok(Self {
            created: time("createdTime", order.created_time)?.ok_or(FactsError::Missing("createdTime"))?,
            last_updated: time("lastUpdatedTime", order.last_updated_time)?.ok_or(FactsError::Missing("lastUpdatedTime"))?,
            status: fulfillment.fulfillment_status.unwrap_or_default(),
            fulfilled_by: fulfillment.fulfilled_by,
            latest_promise: time("fulfillment.deliverByWindow.latestDateTime", window)?,
            packages: packages.collect::<Result<_, _>>()?,
        })
    }
}

fn time(field: &'static str, text: Option<Cow<'_, str>>) -> Result<Option<Timestamp>, FactsError> {
    // Amazon also writes an empty text where it has no time.
    text.filter(|t| !t.is_empty()).map(|t| Timestamp::parse(&t).map_err(|_| FactsError::Time(field))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_the_clear_part() {
        let clear = br#"{"createdTime":"2026-11-01T10:00:00Z","fulfillment":{"deliverByWindow":{"latestDateTime":"2026-11-09T22:59:59Z"},"fulfilledBy":"MERCHANT","fulfillmentStatus":"SHIPPED"},"lastUpdatedTime":"2026-11-05T10:00:00Z","orderId":"00000000000000000000000000000001","packages":[{"packageStatus":{"status":"DELIVERED"},"shipTime":"2026-11-03T08:00:00Z"}]}"#;
        let facts = OrderFacts::from_clear(clear).unwrap();
        assert_eq!(facts.status, "SHIPPED");
        assert_eq!(facts.latest_promise, Some(Timestamp::parse("2026-11-09T22:59:59Z").unwrap()));
        assert_eq!(facts.packages.first().unwrap().status.as_deref(), Some("DELIVERED"));
    }

    #[test]
    fn an_error_names_the_field_and_not_its_value() {
        let error =
            OrderFacts::from_clear(br#"{"createdTime":"Jane","lastUpdatedTime":"x","fulfillment":{"fulfillmentStatus":"SHIPPED"}}"#)
                .unwrap_err();
        assert_eq!(error, FactsError::Time("createdTime"));
        assert!(!OrderFacts::from_clear(b"{\"createdTime\":7,\"Jane\"}").unwrap_err().to_string().contains("Jane"));
    }
}
