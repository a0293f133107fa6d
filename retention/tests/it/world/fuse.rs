//! Makes one call fail, before or after it took effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use async_trait::async_trait;
use sunder_retention::case::{CaseError, Keys, Listed, Record, RingKeys};
use sunder_retention::keydb::Write;
use sunder_retention::store::{EventLog, StoreError};
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint, OrderId, SellerId};
use sunder_schemas::time::{Period, Timestamp};
use zeroize::Zeroizing;

/// Fails one call: the `n`th from now, before or after it took effect.
#[derive(Debug, Default)]
pub(crate) struct Fuse {
    left: AtomicI64,
    after: AtomicBool,
    armed: AtomicBool,
    pub(crate) calls: AtomicU64,
    /// How often the key tables were rewritten.
    pub(crate) rewrites: AtomicU64,
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

    fn fails(&self, after: bool) -> bool {
        if after == self.after.load(Ordering::SeqCst) && self.armed.load(Ordering::SeqCst) && self.left.fetch_sub(1, Ordering::SeqCst) == 0
        {
            self.armed.store(false, Ordering::SeqCst);
            return true;
        }
        false
    }

    pub(crate) fn call<T>(&self, effect: impl FnOnce() -> T) -> Result<T, StoreError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.fails(false) {
            return Err(injected());
        }
        let value = effect();
        if self.fails(true) { Err(injected()) } else { Ok(value) }
    }
}

fn injected() -> StoreError {
    StoreError { store: "world".into(), action: "go on".into(), code: "injected".into() }
}

/// The real keys, behind the fuse.
pub(crate) struct FusedKeys {
    pub(crate) inner: RingKeys,
    pub(crate) fuse: Arc<Fuse>,
}

impl FusedKeys {
    fn before(&self) -> Result<(), CaseError> {
        self.fuse.calls.fetch_add(1, Ordering::SeqCst);
        if self.fuse.fails(false) { Err(injected().into()) } else { Ok(()) }
    }

    fn after<T>(&self, value: T) -> Result<T, CaseError> {
        if self.fuse.fails(true) { Err(injected().into()) } else { Ok(value) }
    }
}

#[async_trait]
impl Keys for FusedKeys {
    async fn identify(&self, seller: &SellerId, orders: &[OrderId]) -> Result<Vec<(Fingerprint, EntityToken)>, CaseError> {
        self.inner.identify(seller, orders).await
    }
    async fn due(&self, now: Timestamp) -> Result<Vec<SellerId>, CaseError> {
        self.inner.due(now).await
    }
    async fn destroy(&self, tx: &mut Write, record: &Record, subjects: &[Listed], at: Timestamp) -> Result<i64, CaseError> {
        self.before()?;
        let epoch = self.inner.destroy(tx, record, subjects, at).await?;
        self.after(epoch)
    }
    async fn remove_seller(&self, seller: &SellerId) -> Result<(), CaseError> {
        self.before()?;
        self.inner.remove_seller(seller).await?;
        self.after(())
    }
    async fn destroy_seller_keys(&self, tx: &mut Write, seller: &SellerId) -> Result<(), CaseError> {
        self.before()?;
        self.inner.destroy_seller_keys(tx, seller).await?;
        self.after(())
    }
    async fn audit(
        &self,
        tx: &mut Write,
        case: &CaseId,
        step: &'static str,
        at: Timestamp,
        detail: &serde_json::Value,
    ) -> Result<(), CaseError> {
        self.before()?;
        self.inner.audit(tx, case, step, at, detail).await?;
        self.after(())
    }
    async fn acknowledged(&self, epoch: i64) -> Result<bool, CaseError> {
        self.before()?;
        let done = self.inner.acknowledged(epoch).await?;
        self.after(done)
    }
    async fn publish(&self, log: &dyn EventLog) -> Result<(), CaseError> {
        self.before()?;
        self.inner.publish(log).await?;
        self.after(())
    }
    async fn wrapped_needles(&self, seller: &SellerId, subjects: &[Listed]) -> Result<Vec<Vec<u8>>, CaseError> {
        self.before()?;
        self.inner.wrapped_needles(seller, subjects).await
    }
    async fn rewrite(&self) -> Result<(), CaseError> {
        self.before()?;
        self.inner.rewrite().await?;
        self.fuse.rewrites.fetch_add(1, Ordering::SeqCst);
        self.after(())
    }
    async fn surviving(&self, seller: &SellerId, most: usize) -> Result<Vec<Zeroizing<Vec<u8>>>, CaseError> {
        self.before()?;
        self.inner.surviving(seller, most).await
    }
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, CaseError> {
        self.before()?;
        self.inner.wrap(context, key).await
    }
    async fn may_commit(&self, tx: &mut Write, wrapped: &[u8]) -> Result<(), CaseError> {
        self.before()?;
        self.inner.may_commit(tx, wrapped).await
    }
    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, CaseError> {
        self.before()?;
        self.inner.unwrap(context, wrapped).await
    }
    fn backups(&self) -> Period {
        self.inner.backups()
    }
    fn business_cutoff(&self, now: Timestamp) -> Timestamp {
        self.inner.business_cutoff(now)
    }
}
