//! A local SP-API on loopback: what Amazon answers, with its limits, delays and faults, from a seed.
//!
//! Invariants: the same seed and anchor give the same sellers, orders and inventory; what an order looks like is a pure function of
//! those and of the simulator's clock; every personal value is made up, unique, and listed under `/_sim/truth/personal`. It shares no
//! code with the client, so that one mistake cannot hide in both.
//!
//! It serves `POST /auth/o2/token`, Orders 2026-01-01 (`searchOrders`, `getOrder`), FBA inventory summaries, and its own controls under
//! `/_sim/`. It does not check the `Host` header, and it has no TLS: it is for tests and demonstrations on one machine.

mod answer;
mod api;
mod args;
mod auth;
mod content;
mod control;
mod draw;
mod faults;
mod inventory;
mod inventory_api;
mod items;
mod limits;
mod market;
mod orders_api;
mod personal;
mod query;
mod state;
mod timeline;
mod world;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use sunder_schemas::time::{Clock, Period, Timestamp};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use api::CallCounts;
pub use args::{ConfigWish, SimulateArgs, SimulateError, run, write_config};
pub use control::SellerTruth;
pub use faults::Faults;
pub use limits::RateScale;
pub use personal::PersonalValue;
use state::{Shared, State};

/// Sellers of one simulator, at most (chosen).
pub const SELLERS_MAX: u32 = 10_000;

/// How much goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultLevel {
    /// Nothing.
    None,
    /// 429, 500, 503 and slow answers, now and then.
    Mild,
    /// Everything a client must survive.
    Hostile,
}

impl From<FaultLevel> for Faults {
    fn from(level: FaultLevel) -> Self {
        match level {
            FaultLevel::None => Self::none(),
            FaultLevel::Mild => Self::mild(),
            FaultLevel::Hostile => Self::hostile(),
        }
    }
}

/// What an application without the role gets when it asks for buyers or recipients; Amazon's pages do not say which (FACTS section 14).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RoleMissing {
    /// The answer without the personal fields.
    LeftOut,
    /// 403.
    Forbidden,
}

/// What is simulated.
#[derive(Debug, Clone)]
pub struct SimulatorOptions {
    /// Number of sellers; one in five lacks the role that opens buyers and recipients.
    pub sellers: u32,
    /// Orders that exist at the start, over all sellers.
    pub orders: u32,
    /// Further orders that arrive within 30 days after the anchor.
    pub later_orders: u32,
    /// Inventory rows per seller and marketplace.
    pub inventory_rows: u32,
    /// The seed of everything.
    pub seed: u64,
    /// Multiplies the published rates.
    pub rate_scale: RateScale,
    /// What goes wrong.
    pub faults: Faults,
    /// What a missing role does.
    pub role_missing: RoleMissing,
    /// The simulator's clock, before it is moved by `/_sim/clock`.
    pub clock: Arc<dyn Clock>,
    /// The instant before which the orders lie; left out: the start of the clock's day, so that a restart finds the same orders.
    pub anchor: Option<Timestamp>,
    /// The application's id.
    pub client_id: String,
    /// The application's secret; simulated, so no secret of anybody.
    pub client_secret: String,
}

impl SimulatorOptions {
    /// A small world: 3 sellers, 300 orders, 60 inventory rows per marketplace, published rates, no faults.
    #[must_use]
    pub fn new(seed: u64, clock: Arc<dyn Clock>) -> Self {
        Self {
            sellers: 3,
            orders: 300,
            later_orders: 0,
            inventory_rows: 60,
            seed,
            rate_scale: RateScale::PUBLISHED,
            faults: Faults::none(),
            role_missing: RoleMissing::LeftOut,
            clock,
            anchor: None,
            client_id: format!("amzn1.application-oa2-client.simulated{seed:016x}"),
            client_secret: format!("amzn1.oa2-cs.v1.simulated{seed:016x}"),
        }
    }
}

/// What a client needs to act for one seller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SellerAccess {
    /// `selling_partner_id`.
    pub id: String,
    /// `eu`, `na` or `fe`.
    pub region: &'static str,
    /// Ids of its marketplaces.
    pub marketplaces: Vec<&'static str>,
    /// The seller's refresh token.
    pub refresh_token: String,
    /// Whether the application may see buyers and recipients.
    pub has_role: bool,
}

/// Starts simulators.
#[derive(Debug)]
pub struct Simulator;

/// A simulator that serves until it is stopped or dropped.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    shared: Shared,
    stop: DropGuard,
    tasks: TaskTracker,
}

impl Simulator {
    /// Draws the world of `options` and serves it on `listener`.
    ///
    /// # Errors
    /// [`SimulateError`] where the options ask for more than can be drawn, or the listener has no address.
    pub async fn start(options: SimulatorOptions, listener: TcpListener) -> Result<Running, SimulateError> {
        if options.sellers == 0 || options.sellers > SELLERS_MAX {
            return Err(SimulateError::Sellers);
        }
        if options.orders.saturating_add(options.later_orders) > world::ORDERS_MAX {
            return Err(SimulateError::Orders);
        }
        let addr = listener.local_addr().map_err(SimulateError::Listen)?;
        let shared = tokio::task::spawn_blocking(move || Arc::new(State::new(options))).await.map_err(|_| SimulateError::Draw)?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (app, stopped) = (router(Arc::clone(&shared)), stop.clone().cancelled_owned());
        tasks.spawn(async move {
            // Serving ends by `stop` alone: axum retries failed accepts by itself.
            if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
                tracing::error!(kind = ?error.kind(), "the simulator stopped serving");
            }
        });
        tasks.close();
        Ok(Running { addr, shared, stop: stop.drop_guard(), tasks })
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/auth/o2/token", post(auth::token))
        .route("/orders/2026-01-01/orders", get(orders_api::search_orders))
        .route("/orders/2026-01-01/orders/{order}", get(orders_api::get_order))
        .route("/fba/inventory/v1/summaries", get(inventory_api::summaries))
        .route("/_sim/clock", get(control::time).post(control::clock))
        .route("/_sim/truth", get(control::truth))
        .route("/_sim/truth/personal", get(control::personal))
        .route("/_sim/truth/orders", get(control::orders))
        .route("/_sim/calls", get(control::calls))
        .route("/_sim/revoke", post(control::revoke))
        .route("/_sim/change", post(control::change))
        .route("/_sim/faults", post(control::faults))
        .with_state(shared)
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The API's endpoint, without a slash at its end.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The token endpoint.
    #[must_use]
    pub fn lwa_endpoint(&self) -> String {
        format!("http://{}/auth/o2/token", self.addr)
    }

    /// The application's id.
    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.shared.options.client_id
    }

    /// The application's secret.
    #[must_use]
    pub fn client_secret(&self) -> &str {
        &self.shared.options.client_secret
    }

    /// The simulator's time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp(self.shared.now())
    }

    /// Every seller and how to act for it.
    #[must_use]
    pub fn sellers(&self) -> Vec<SellerAccess> {
        let world = self.shared.world();
        let access = |seller: &world::Seller| SellerAccess {
            id: seller.id.clone(),
            region: seller.region,
            marketplaces: seller.markets.iter().map(|market| market.id).collect(),
            refresh_token: seller.refresh_token.clone(),
            has_role: seller.has_role,
        };
        world.sellers.iter().map(access).collect()
    }

    /// What the API shows now, per seller.
    #[must_use]
    pub fn truth(&self) -> Vec<SellerTruth> {
        self.shared.truth()
    }

    /// Every personal value of the visible orders of `seller`, with whether an answer holds it now.
    #[must_use]
    pub fn personal(&self, seller: &str) -> Vec<PersonalValue> {
        self.shared.personal(seller)
    }

    /// The clear ids of the visible orders of `seller`, oldest first.
    #[must_use]
    pub fn order_ids(&self, seller: &str) -> Vec<String> {
        self.shared.order_ids(seller)
    }

    /// Calls so far, by operation.
    #[must_use]
    pub fn calls(&self) -> std::collections::BTreeMap<&'static str, CallCounts> {
        self.shared.calls()
    }

    /// Moves the simulator's clock later, beside the injected clock.
    pub fn advance(&self, period: Period) {
        self.shared.advance(period);
    }

    /// Withdraws a seller's consent; false for an unknown seller.
    #[must_use]
    pub fn revoke(&self, seller: &str) -> bool {
        self.shared.revoke(seller)
    }

    /// Gives an order a new version; its `lastUpdatedTime`, none for an unknown order.
    #[must_use]
    pub fn change(&self, seller: &str, order: &str) -> Option<Timestamp> {
        self.shared.change(seller, order)
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.set_faults(faults);
    }

    /// Stops serving and waits for the calls in flight.
    pub async fn stop(self) {
        drop(self.stop);
        self.tasks.wait().await;
    }
}

/// Milliseconds since 1970 as Orders 2026-01-01 writes times.
fn iso(at: i64) -> String {
    Timestamp(at).to_iso()
}

/// Milliseconds since 1970 as FBA inventory writes times: whole seconds.
fn seconds(at: i64) -> String {
    Timestamp(at).to_utc().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}
