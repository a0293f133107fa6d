//! Client of Amazon's Selling Partner API: tokens, limits, one request at a time, typed calls.
//!
//! Invariants: no URL with a query, no body, no token and no text of a foreign error ever leaves this module except as the answer's
//! body itself, which is wiped on drop; each operation keeps to its published usage plan, per seller; a status decides what happens
//! next, never the words of an error body (FACTS: codes vary for one cause).
//!
//! It does not read bodies (`schemas::classify` does), and it does not decide what to fetch (`poll` does).

mod auth;
mod client;
mod error;
mod inventory;
mod limits;
mod orders;
mod request;

pub use auth::Credentials;
pub use client::{Answer, BODY_BYTES_MAX, Client, ClientSettings, RetrySettings};
pub use error::{AuthCode, Retry, SpapiError, TransportCode};
pub use inventory::{InventoryListing, inventory_summaries};
pub use limits::{Rate, RateError};
pub use orders::{IncludedData, OrdersPage, get_order, search_orders};
pub use request::{Endpoints, Operation, Region, Request};

#[cfg(test)]
mod tests;
