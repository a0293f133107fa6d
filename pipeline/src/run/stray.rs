//! Once a day: reads the sealed topics and the vault for blocks under keys that are destroyed or unknown, has them deleted again, and
//! reopens the case that erased them. Dead letters cannot be tombstoned: theirs is the topic's own period of 7 days.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use sunder_retention::buyer::SealedStore as _;
use sunder_retention::case::CaseError;
use sunder_retention::keydb::DbError;
use sunder_retention::store::StoreError;
use sunder_retention::stray::{self, Met, Stray};
use sunder_retention::{restore, sellers};
use sunder_schemas::class::{Family, FieldGroup};
use sunder_schemas::ids::{CaseId, EntityToken, SellerId};
use sunder_schemas::key;
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;

use super::blocks::{Block, bury, latest, places};
use crate::app::App;
use crate::kafka::KafkaError;

/// Rows of the vault that are read at once (chosen: below a megabyte).
const VAULT_ROWS: usize = 1_000;
/// Stands in the place of a case in tombstones of blocks that no case is about.
const NO_CASE: &str = "stray-sweep";

/// Why the reading did not come to its end; it begins anew with the next round.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    #[error(transparent)]
    Database(#[from] DbError),
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Case(#[from] CaseError),
}

/// What a reading met so far.
#[derive(Default)]
struct Swept {
    read: u64,
    found: u64,
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
    let mut swept = Swept::default();
    for (topic, partition) in places(&app.kafka) {
        let blocks = latest(app, topic, partition).await?;
        swept.take(app, began, blocks).await?;
    }
    for seller in sellers::list(db).await? {
        for group in FieldGroup::ALL {
            sweep_vault(app, began, &seller.id, *group, &mut swept).await?;
        }
    }
    for (case, blocks) in &swept.cases {
        app.engine.reopen(case, *blocks).await?;
    }
    bury_unknown(app, &swept.unknown).await?;
    stray::done(db, began, swept.read, swept.found).await?;
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

async fn sweep_vault(app: &App, began: Timestamp, seller: &SellerId, group: FieldGroup, swept: &mut Swept) -> Result<(), SweepError> {
    let mut after: Option<EntityToken> = None;
    loop {
        let page = app.vault.page(seller, group, after, VAULT_ROWS).await?;
        let is_last = page.len() < VAULT_ROWS;
        after = page.last().map(|(entity, _)| *entity);
        let blocks = page.into_iter().map(|(entity, stored)| Block {
            topic: String::new(),
            partition: app.kafka.partition_of(seller, entity),
            key: key::pii_key(seller, entity, group).into_bytes(),
            seller: seller.clone(),
            entity,
            data_key: stored.block.key(),
        });
        swept.take(app, began, blocks.collect()).await?;
        if is_last {
            return Ok(());
        }
    }
}

impl Swept {
    async fn take(&mut self, app: &App, began: Timestamp, blocks: Vec<Block>) -> Result<(), SweepError> {
        let of = |block: &Block| Met { seller: block.seller.clone(), entity: block.entity, key: block.data_key };
        let met: Vec<Met> = blocks.iter().map(of).collect();
        self.read += blocks.len() as u64;
        let strays = stray::among(app.base.keyring.db(), &met, began).await?;
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

/// Tombstones what no case is about. A block of an entity that is live was sealed anew, and a store that has the old one still gets the new.
async fn bury_unknown(app: &App, unknown: &[Block]) -> Result<(), SweepError> {
    let db = app.base.keyring.db();
    let of = |block: &Block| (block.seller.clone(), block.entity);
    let live = restore::sealed_again(db, &unknown.iter().map(of).collect::<Vec<_>>()).await?;
    // A row of the vault does not say which family's topic it came from; a tombstone that meets no value harms nobody.
    let topics = Family::ALL.iter().map(|family| app.kafka.topic(Topic::Pii(*family)));
    let gone: Vec<Block> = topics
        .flat_map(|topic| unknown.iter().map(move |block| Block { topic: topic.clone(), ..block.clone() }))
        .filter(|block| !live.contains(&of(block)))
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    bury(&app.kafka, NO_CASE, &gone).await?;
    // One that was sealed anew in between is published once more by its next poll.
    let live = restore::sealed_again(db, &gone.iter().map(of).collect::<Vec<_>>()).await?;
    Ok(restore::publish_again(db, &live).await?)
}
