//! A root key under which the keys that make tokens and fingerprints come from the seed: the same seed gives the same order of subjects
//! and the same partitions, and so the same history. Everything else is wrapped as it is.

use std::sync::Arc;

use async_trait::async_trait;
use ring::digest::{Context, SHA256};
use sunder_retention::root::{FileRoot, Retired, RootError, RootKey};
use zeroize::Zeroizing;

use crate::world::World;

pub(super) struct SeededRoot {
    inner: FileRoot,
    seed: u64,
}

impl SeededRoot {
    pub(super) fn of(world: &World, seed: u64) -> Arc<Self> {
        Arc::new(Self { inner: FileRoot::open(&world.keys.folder.path().join("root.key")).unwrap(), seed })
    }
}

fn names(context: &[u8], role: &str) -> bool {
    context.windows(role.len()).any(|window| window == role.as_bytes())
}

#[async_trait]
impl RootKey for SeededRoot {
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, RootError> {
        if !names(context, "sunder seller key") || !(names(context, "tokens") || names(context, "ledger")) {
            return self.inner.wrap(context, key).await;
        }
        let mut digest = Context::new(&SHA256);
        digest.update(&self.seed.to_be_bytes());
        digest.update(context);
        self.inner.wrap(context, digest.finish().as_ref()).await
    }

    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        self.inner.unwrap(context, wrapped).await
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn version(&self) -> Result<u64, RootError> {
        self.inner.version().await
    }

    fn version_of(&self, wrapped: &[u8]) -> Option<u64> {
        self.inner.version_of(wrapped)
    }

    async fn rotate(&self, from: u64) -> Result<u64, RootError> {
        self.inner.rotate(from).await
    }

    async fn retire(&self, version: u64) -> Result<Retired, RootError> {
        self.inner.retire(version).await
    }
}
