//! Once a day: reads the sealed topics and the vault for blocks under keys that are destroyed or unknown, has them deleted again, and
//! reopens the case that erased them. Dead letters cannot be tombstoned: theirs is the topic's own period of 7 days.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use sunder_retention::buyer::SealedStore as _;
use sunder_retention::case::{CaseError, Engine};
use sunder_retention::keydb::{DbError, KeyDb};
use sunder_retention::store::StoreError;
use sunder_retention::stray::{self, Met, Stray};
use sunder_retention::{restore, sellers};
use sunder_schemas::class::{Family, FieldGroup};
use sunder_schemas::ids::{CaseId, EntityToken, SellerId};
use sunder_schemas::key;
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;
use sunder_sinks::Vault;

use super::blocks::{Block, bury, latest, places};
use crate::app::App;
use crate::kafka::{Kafka, KafkaError};
use crate::registry::Schemas;

/// Rows of the vault that are read at once (chosen: below a megabyte).
const VAULT_ROWS: usize = 1_000;
/// Stands in the place of a case in tombstones of blocks that no case is about.
const NO_CASE: &str = "stray-sweep";

/// Why the reading did not come to its end; it begins anew with the next round.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The key database.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The log.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The vault.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A case that was to be reopened.
    #[error(transparent)]
    Case(#[from] CaseError),
}

/// What is read, and by whom what is found is mended.
pub struct Sealed<'a> {
    /// The log.
    pub kafka: &'a Kafka,
    /// How its records are read.
    pub schemas: &'a Arc<Schemas>,
    /// Whose keys live.
    pub db: &'a KeyDb,
    /// The vault.
    pub vault: &'a Vault,
    /// The cases.
    pub engine: &'a Engine,
}

/// What a reading met.
#[derive(Debug, Default)]
pub struct Swept {
    /// Blocks that were read.
    pub read: u64,
    /// Blocks under destroyed or unknown keys.
    pub found: u64,
    /// Blocks by the case that erased them.
    cases: BTreeMap<CaseId, u64>,
    /// Blocks that no case is about.
    unknown: Vec<Block>,
}

/// Reads everything if a day has passed since the last time.
///
/// # Errors
/// [`SweepError`].
pub(super) async fn sweep(app: &App) -> Result<(), SweepError> {
    let db = app.base.keyring.db();
    let (began, started) = (app.base.clock.now(), Instant::now());
    // What a restore lost is looked for, and counted, by itself.
    if !stray::is_due(db, began).await? || restore::unsettled(db).await?.is_some() {
        return Ok(());
    }
    let sealed = Sealed { kafka: &app.kafka, schemas: &app.schemas, db, vault: &app.vault, engine: &app.engine };
    let swept = sealed.sweep(began).await?;
    let took = started.elapsed();
    metrics::histogram!("sunder_retain_sweep_seconds").record(took);
    metrics::counter!("sunder_retain_strays_total").increment(swept.found);
    if swept.found > 0 {
        tracing::error!(
            blocks = swept.found,
            cases = swept.cases.len(),
            "blocks under destroyed or unknown keys were found; they go again"
        );
    } else {
        tracing::info!(blocks = swept.read, took_ms = took.as_millis(), "no block under a destroyed or unknown key");
    }
    Ok(())
}

impl Sealed<'_> {
    /// Reads everything, has what should not be deleted again, and notes that it was done at `began`.
    ///
    /// # Errors
    /// [`SweepError`]: it counts as not done.
    pub async fn sweep(&self, began: Timestamp) -> Result<Swept, SweepError> {
        let mut swept = Swept::default();
        for (topic, partition) in places(self.kafka) {
            let blocks = latest(self.kafka, self.schemas, topic, partition).await?;
            swept.take(self.db, began, blocks).await?;
        }
        for seller in sellers::list(self.db).await? {
            for group in FieldGroup::ALL {
                self.sweep_vault(began, &seller.id, *group, &mut swept).await?;
            }
        }
        for (case, blocks) in &swept.cases {
            self.engine.reopen(case, *blocks).await?;
        }
        self.bury_unknown(&swept.unknown).await?;
        stray::done(self.db, began, swept.read, swept.found).await?;
        Ok(swept)
    }

    async fn sweep_vault(&self, began: Timestamp, seller: &SellerId, group: FieldGroup, swept: &mut Swept) -> Result<(), SweepError> {
        let mut after: Option<EntityToken> = None;
        loop {
            let page = self.vault.page(seller, group, after, VAULT_ROWS).await?;
            let is_last = page.len() < VAULT_ROWS;
            after = page.last().map(|(entity, _)| *entity);
            let blocks = page.into_iter().map(|(entity, stored)| Block {
                topic: String::new(),
                partition: self.kafka.partition_of(seller, entity),
                key: key::pii_key(seller, entity, group).into_bytes(),
                seller: seller.clone(),
                entity,
                data_key: stored.block.key(),
            });
            swept.take(self.db, began, blocks.collect()).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Tombstones what no case is about. A block of an entity that is live was sealed anew, and a store that has the old one still gets the
    /// new.
    async fn bury_unknown(&self, unknown: &[Block]) -> Result<(), SweepError> {
        let of = |block: &Block| (block.seller.clone(), block.entity);
        let live = restore::sealed_again(self.db, &unknown.iter().map(of).collect::<Vec<_>>()).await?;
        // A row of the vault does not say which family's topic it came from; a tombstone that meets no value harms nobody.
        let topics = Family::ALL.iter().map(|family| self.kafka.topic(Topic::Pii(*family)));
        let gone: Vec<Block> = topics
            .flat_map(|topic| unknown.iter().map(move |block| Block { topic: topic.clone(), ..block.clone() }))
            .filter(|block| !live.contains(&of(block)))
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        bury(self.kafka, NO_CASE, &gone).await?;
        // One that was sealed anew in between is published once more by its next poll.
        let live = restore::sealed_again(self.db, &gone.iter().map(of).collect::<Vec<_>>()).await?;
        Ok(restore::publish_again(self.db, &live).await?)
    }
}

impl Swept {
    async fn take(&mut self, db: &KeyDb, began: Timestamp, blocks: Vec<Block>) -> Result<(), SweepError> {
        let of = |block: &Block| Met { seller: block.seller.clone(), entity: block.entity, key: block.data_key };
        let met: Vec<Met> = blocks.iter().map(of).collect();
        self.read += blocks.len() as u64;
        let strays = stray::among(db, &met, began).await?;
        self.found += strays.len() as u64;
        let mut unknown = BTreeSet::new();
        for Stray { met, case } in strays {
            match case {
                Some(case) => *self.cases.entry(case).or_default() += 1,
                None => drop(unknown.insert(met.key.0)),
            }
        }
        self.unknown.extend(blocks.into_iter().filter(|block| unknown.contains(&block.data_key.0)));
        Ok(())
    }
}
