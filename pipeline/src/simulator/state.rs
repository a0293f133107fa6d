//! What the handlers share.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use ring::hmac;
use sunder_schemas::time::{Period, Timestamp};

use super::api::{CallCounts, in_a_row};
use super::auth::Grants;
use super::content;
use super::faults::Fault;
use super::limits::{Limits, Operation};
use super::world::{Seller, Size, World};
use super::{Faults, PersonalValue, SimulatorOptions};

/// A day in milliseconds.
const DAY: i64 = 86_400_000;

pub(super) type Shared = Arc<State>;

/// One simulator.
#[derive(Debug)]
pub(super) struct State {
    pub(super) options: SimulatorOptions,
    /// Seals page tokens.
    pub(super) page_key: hmac::Key,
    world: RwLock<World>,
    /// Milliseconds by which the controls moved the clock.
    moved: AtomicI64,
    started: Instant,
    grants: Mutex<Grants>,
    limits: Mutex<Limits>,
    faults: Mutex<Faults>,
    in_a_row: Mutex<HashMap<(u32, Operation), u8>>,
    numbers: AtomicU64,
    calls: Mutex<BTreeMap<&'static str, CallCounts>>,
}

/// A lock whose holder panicked still guards whole values here: each is changed by one assignment or insertion.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(super) fn new(options: SimulatorOptions) -> Self {
        let now = options.clock.now().0;
        let size = Size {
            seed: options.seed,
            anchor: options.anchor.map_or(now - now.rem_euclid(DAY), |anchor| anchor.0),
            sellers: options.sellers,
            orders: options.orders,
            later: options.later_orders,
            inventory_rows: options.inventory_rows,
            unknown_per_mille: options.faults.unknown_fields,
        };
        Self {
            page_key: hmac::Key::new(hmac::HMAC_SHA256, &options.seed.to_be_bytes()),
            world: RwLock::new(World::draw(size)),
            moved: AtomicI64::new(0),
            started: Instant::now(),
            grants: Mutex::default(),
            limits: Mutex::new(Limits::new(options.rate_scale)),
            faults: Mutex::new(options.faults),
            in_a_row: Mutex::default(),
            numbers: AtomicU64::new(0),
            calls: Mutex::default(),
            options,
        }
    }

    pub(super) fn world(&self) -> RwLockReadGuard<'_, World> {
        self.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> i64 {
        self.options.clock.now().0.saturating_add(self.moved.load(Ordering::SeqCst))
    }

    pub(super) fn advance(&self, period: Period) {
        let now = self.now();
        self.moved.fetch_add(Timestamp(now).plus(period).0 - now, Ordering::SeqCst);
    }

    pub(super) fn grants(&self) -> MutexGuard<'_, Grants> {
        lock(&self.grants)
    }

    pub(super) fn take(&self, seller: u32, operation: Operation) -> bool {
        lock(&self.limits).take(seller, operation, self.started.elapsed())
    }

    pub(super) fn rate(&self, operation: Operation) -> String {
        lock(&self.limits).header(operation)
    }

    pub(super) fn next_call(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The fault that strikes a call, if one does.
    pub(super) fn strike(&self, seller: u32, operation: Operation, number: u64) -> Option<Fault> {
        let fault = lock(&self.faults).strike(self.options.seed, number);
        in_a_row(lock(&self.in_a_row).entry((seller, operation)).or_default(), fault)
    }

    pub(super) fn set_faults(&self, faults: Faults) {
        *lock(&self.faults) = faults;
    }

    pub(super) fn count(&self, operation: Operation, status: u16, fault: bool, included: &[String]) {
        let mut calls = lock(&self.calls);
        let counts = calls.entry(operation.as_str()).or_default();
        counts.calls += 1;
        *counts.statuses.entry(status).or_default() += 1;
        counts.throttled += u64::from(status == 429);
        counts.faults += u64::from(fault);
        for name in included {
            *counts.included_data.entry(name.clone()).or_default() += 1;
        }
    }

    pub(super) fn count_token_call(&self) {
        lock(&self.calls).entry("token").or_default().calls += 1;
    }

    pub(super) fn calls(&self) -> BTreeMap<&'static str, CallCounts> {
        lock(&self.calls).clone()
    }

    pub(super) fn revoke(&self, seller: &str) -> bool {
        let number = self.world().seller_by_id(seller).map(|seller| seller.number);
        if let Some(number) = number {
            self.grants().revoke(number);
        }
        number.is_some()
    }

    pub(super) fn change(&self, seller: &str, order: &str) -> Option<Timestamp> {
        let now = self.now();
        let mut world = self.world.write().unwrap_or_else(PoisonError::into_inner);
        let order = world.seller_by_id(seller).and_then(|seller| world.order_by_id(seller, order))?;
        world.timeline(order)?.seen_at(now)?;
        world.touch(order, now).map(Timestamp)
    }

    pub(super) fn personal_of(&self, seller: &Seller, order: u32) -> Vec<PersonalValue> {
        let world = self.world();
        let seen = world.timeline(order).and_then(|timeline| timeline.seen_at(self.now()));
        seen.map_or_else(Vec::new, |seen| content::personal(&world, seller, order, &seen))
    }

    pub(super) fn personal(&self, seller: &str) -> Vec<PersonalValue> {
        let world = self.world();
        let Some(seller) = world.seller_by_id(seller) else { return Vec::new() };
        let orders = world.visible(seller, self.now());
        orders.flat_map(|(order, seen)| content::personal(&world, seller, order, &seen)).collect()
    }

    pub(super) fn order_ids(&self, seller: &str) -> Vec<String> {
        let world = self.world();
        let Some(seller) = world.seller_by_id(seller) else { return Vec::new() };
        world.visible(seller, self.now()).map(|(order, _)| world.order_id(order)).collect()
    }
}
