//! What is asked: operations with their usage plans, regions, hosts, and queries encoded exactly once.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sunder_schemas::ids::IdError;
use sunder_schemas::time::Timestamp;

use super::limits::Rate;

/// All but RFC 3986's unreserved characters is encoded: SKUs and page tokens may hold `/ + & % =` and spaces.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// An operation of SP-API that Sunder calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Orders 2026-01-01, a page of orders by time of last update.
    SearchOrders,
    /// Orders 2026-01-01, one order.
    GetOrder,
    /// FBA inventory, a page of summaries.
    GetInventorySummaries,
}

impl Operation {
    /// Every operation.
    pub const ALL: &'static [Self] = &[Self::SearchOrders, Self::GetOrder, Self::GetInventorySummaries];

    /// The operation's id in Amazon's model; `source_operation` of every record.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SearchOrders => "searchOrders",
            Self::GetOrder => "getOrder",
            Self::GetInventorySummaries => "getInventorySummaries",
        }
    }

    /// The model's name; `source_api` of every record.
    #[must_use]
    pub const fn api(self) -> &'static str {
        match self {
            Self::SearchOrders | Self::GetOrder => "orders_2026-01-01",
            Self::GetInventorySummaries => "fbaInventory",
        }
    }

    /// The published rate and burst per seller and application (usage plan tables of the models of 2026-08-05).
    #[must_use]
    pub const fn published(self) -> (Rate, u32) {
        match self {
            Self::SearchOrders => (Rate::per_10000_seconds(56), 20),
            Self::GetOrder => (Rate::per_10000_seconds(5_000), 30),
            Self::GetInventorySummaries => (Rate::per_10000_seconds(20_000), 2),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A region of SP-API: a refresh token belongs to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Region {
    /// North America and Brazil.
    Na,
    /// Europe, Middle East, India, South Africa.
    Eu,
    /// Far East.
    Fe,
}

impl Region {
    /// The production host (SP-API endpoints page).
    #[must_use]
    pub const fn endpoint(self) -> &'static str {
        match self {
            Self::Na => "https://sellingpartnerapi-na.amazon.com",
            Self::Eu => "https://sellingpartnerapi-eu.amazon.com",
            Self::Fe => "https://sellingpartnerapi-fe.amazon.com",
        }
    }

    /// As the config writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Na => "na",
            Self::Eu => "eu",
            Self::Fe => "fe",
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Region {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text {
            "na" => Ok(Self::Na),
            "eu" => Ok(Self::Eu),
            "fe" => Ok(Self::Fe),
            _ => Err(IdError { what: "region", rule: "one of: na, eu, fe" }),
        }
    }
}

/// Where requests go: Amazon's hosts unless the config overrides them.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// For every region without an override of its own (`spapi.endpoint`).
    pub all: Option<String>,
    /// For North America (`spapi.endpoints.na`).
    pub na: Option<String>,
    /// For Europe (`spapi.endpoints.eu`).
    pub eu: Option<String>,
    /// For the Far East (`spapi.endpoints.fe`).
    pub fe: Option<String>,
}

impl Endpoints {
    /// The base URL of `region`, without a trailing slash.
    #[must_use]
    pub fn of(&self, region: Region) -> &str {
        let own = match region {
            Region::Na => &self.na,
            Region::Eu => &self.eu,
            Region::Fe => &self.fe,
        };
        own.as_deref().or(self.all.as_deref()).unwrap_or_else(|| region.endpoint()).trim_end_matches('/')
    }
}

/// One GET request without its host. Its path and query may hold an order id or page token: it never prints them.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// Which operation.
    pub operation: Operation,
    /// Path and query, encoded.
    target: String,
    has_query: bool,
}

impl Request {
    /// A request to `path`, whose segments are literal text.
    #[must_use]
    pub fn new(operation: Operation, path: &str) -> Self {
        Self { operation, target: path.to_owned(), has_query: false }
    }

    /// Adds a path segment, encoded.
    #[must_use]
    pub fn segment(mut self, segment: &str) -> Self {
        self.target.push('/');
        self.target.extend(utf8_percent_encode(segment, QUERY));
        self
    }

    /// Adds a query parameter, encoded exactly once.
    #[must_use]
    pub fn query(self, name: &str, value: &str) -> Self {
        self.list(name, [value])
    }

    /// Adds a query parameter with a comma-separated list, each item encoded exactly once.
    #[must_use]
    pub fn list<'a>(mut self, name: &str, values: impl IntoIterator<Item = &'a str>) -> Self {
        self.target.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        self.target.push_str(name);
        self.target.push('=');
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self.target.push(',');
            }
            self.target.extend(utf8_percent_encode(value, QUERY));
        }
        self
    }

    /// Adds a time in ISO 8601 with milliseconds.
    #[must_use]
    pub fn time(self, name: &str, time: Timestamp) -> Self {
        self.query(name, &time.to_iso())
    }

    /// Path and query for the one place that sends it.
    #[must_use]
    pub(super) fn target(&self) -> &str {
        &self.target
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({}, ..)", self.operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_encoded_exactly_once() {
        let request = Request::new(Operation::GetInventorySummaries, "/p").list("skus", ["a/b+c&d%", "é f,g"]).query("t", "x==");
        assert_eq!(request.target(), "/p?skus=a%2Fb%2Bc%26d%25,%C3%A9%20f%2Cg&t=x%3D%3D");
        assert_eq!(format!("{request:?}"), "Request(getInventorySummaries, ..)");
    }

    #[test]
    fn an_override_of_the_region_wins() {
        let endpoints =
            Endpoints { all: Some("http://127.0.0.1:1/".into()), eu: Some("http://127.0.0.1:2".into()), ..Endpoints::default() };
        assert_eq!(endpoints.of(Region::Eu), "http://127.0.0.1:2");
        assert_eq!(endpoints.of(Region::Na), "http://127.0.0.1:1");
        assert_eq!(Endpoints::default().of(Region::Fe), "https://sellingpartnerapi-fe.amazon.com");
    }
}
