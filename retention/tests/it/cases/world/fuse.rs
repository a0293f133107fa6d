//! One call that fails, before or after it took effect.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use sunder_retention::store::StoreError;

/// Fails one call: the `n`th from now, before or after it took effect.
#[derive(Debug, Default)]
pub(crate) struct Fuse {
    left: AtomicI64,
    after: AtomicBool,
    armed: AtomicBool,
    pub(crate) calls: AtomicU64,
}

impl Fuse {
    pub(crate) fn arm(&self, n: i64, after: bool) {
        self.left.store(n, Ordering::SeqCst);
        self.after.store(after, Ordering::SeqCst);
        self.armed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn blew(&self) -> bool {
        !self.armed.load(Ordering::SeqCst)
    }

    pub(super) fn fails(&self, after: bool) -> bool {
        if after == self.after.load(Ordering::SeqCst) && self.armed.load(Ordering::SeqCst) && self.left.fetch_sub(1, Ordering::SeqCst) == 0
        {
            self.armed.store(false, Ordering::SeqCst);
            return true;
        }
        false
    }

    pub(super) fn call<T>(&self, effect: impl FnOnce() -> T) -> Result<T, StoreError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.fails(false) {
            return Err(injected());
        }
        let value = effect();
        if self.fails(true) { Err(injected()) } else { Ok(value) }
    }
}

pub(super) fn injected() -> StoreError {
    StoreError { store: "world".into(), action: "go on".into(), code: "injected".into() }
}
