//! The warehouse: typed tables without personal data, one per kind, for analysts.

use std::sync::Arc;

use async_trait::async_trait;
use sunder_retention::store::{Aged, Control, Extent, Forget, Mark, Needles, Prove, ScanReport, StoreError, Subject};
use sunder_schemas::class::Kind;
use sunder_schemas::ids::{EntityToken, Offset};
use sunder_schemas::outcome::FilterReason;
use sunder_schemas::records::StateRecord;
use sunder_schemas::time::Timestamp;
use sunder_schemas::topic::Topic;

use crate::lookup::{Lookup, RowText};
use crate::options::StoreOptions;
use crate::store::{Move, Store};
use crate::{Applied, Change, Sink, SinkError, Source, tables};

/// Says whether an entity was erased with its business data: no row of it is stored, whichever replay or restore brings it.
pub type Withheld = Arc<dyn Fn(EntityToken) -> bool + Send + Sync>;

/// Typed non-personal rows, fed by `state.*`.
pub struct Warehouse {
    pub(crate) store: Store,
    withheld: Withheld,
}

impl Warehouse {
    /// What the database holds: kind and name.
    ///
    /// # Errors
    /// [`SinkError::Database`].
    pub async fn objects(&self) -> Result<Vec<(String, String)>, SinkError> {
        self.store.backend.objects().await
    }

    /// What this store makes in it.
    #[must_use]
    pub fn own_objects() -> Vec<(&'static str, &'static str)> {
        let tables = tables::warehouse();
        let made = [("table", "sink_offset"), ("table", "scan_control"), ("view", "freshness")];
        tables.iter().map(|table| ("table", table.name)).chain(made).collect()
    }

    /// Opens the warehouse and makes its tables and views as declared.
    ///
    /// # Errors
    /// [`SinkError`], also where the database cannot be reached.
    pub async fn open(options: &StoreOptions) -> Result<Self, SinkError> {
        let topics = Kind::ALL.iter().enumerate().map(|(index, kind)| (Topic::State(*kind).name(&options.prefix), index)).collect();
        let store = Store::open("warehouse", options, tables::warehouse(), topics, true).await?;
        Ok(Self { store, withheld: Arc::new(|_| false) })
    }

    /// The same warehouse, which refuses the rows of entities that are `withheld`.
    #[must_use]
    pub fn gated(self, withheld: Withheld) -> Self {
        Self { withheld, ..self }
    }

    /// Full names of the topics that feed it.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.store.topics()
    }

    /// The rows of `kind` that `key` names, at most two: the parts of a record's key or some neighbours of them, or an event id.
    ///
    /// # Errors
    /// [`SinkError::Database`].
    pub async fn rows(&self, kind: Kind, key: &[String]) -> Result<Vec<RowText>, SinkError> {
        self.store.backend.look_up(&Lookup::of(kind, key)).await
    }
}

#[async_trait]
impl Sink<StateRecord> for Warehouse {
    async fn position(&self, source: &Source) -> Result<Option<Offset>, SinkError> {
        self.store.position(source).await
    }

    async fn apply(
        &self,
        source: &Source,
        expected: Option<Offset>,
        next: Offset,
        changes: Vec<Change<StateRecord>>,
    ) -> Result<Applied, SinkError> {
        let withheld = Arc::clone(&self.withheld);
        let refused = move |record: &StateRecord| withheld(record.entity()).then_some(FilterReason::Erased);
        self.store.apply(Move { source, expected, next }, changes, refused).await
    }

    async fn rebuild(&self, topic: &str, incarnation: &str) -> Result<u64, SinkError> {
        self.store.rebuild(topic, incarnation).await
    }
}

#[async_trait]
impl Forget for Warehouse {
    fn name(&self) -> &str {
        self.store.name
    }

    async fn caught_up(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        self.store.caught_up(marks).await
    }

    async fn forget(&self, subjects: &[Subject], extent: Extent) -> Result<u64, StoreError> {
        match extent {
            // Business rows live on: nothing personal is in them.
            Extent::Personal => {
                self.store.clear_beside().await?;
                Ok(0)
            }
            Extent::WithBusinessData | Extent::OlderThan(_) => {
                let gone = self.store.forget(subjects, extent.older_than()).await?;
                self.store.wipe_rows().await?;
                Ok(gone)
            }
        }
    }

    async fn count(&self, subjects: &[Subject], extent: Extent) -> Result<Vec<(String, u64)>, StoreError> {
        if extent.takes_rows() { self.store.count(subjects, extent.older_than()).await } else { Ok(Vec::new()) }
    }

    async fn aged(&self, cutoff: Timestamp) -> Result<Vec<Aged>, StoreError> {
        self.store.aged(cutoff, |table| Kind::ALL.get(table).map(|kind| kind.family())).await
    }
}

#[async_trait]
impl Prove for Warehouse {
    fn name(&self) -> &str {
        self.store.name
    }

    /// No table of the warehouse has a place for a block, so the control lies in one of its own, `scan_control`.
    async fn plant(&self, control: &Control) -> Result<(), StoreError> {
        self.store.backend.set_control(&control.case, Some(control)).await.map_err(SinkError::into_store_error)
    }

    async fn scan(&self, needles: &Needles) -> Result<ScanReport, StoreError> {
        self.store.scan(needles).await.map_err(SinkError::into_store_error)
    }

    async fn unplant(&self, case: &str) -> Result<(), StoreError> {
        self.store.backend.set_control(case, None).await.map_err(SinkError::into_store_error)
    }
}
