//! What the warehouse and the vault have in common: a database that applies, forgets, and is read again.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use sunder_retention::store::{Aged, Control, FoundBlock, Mark, Needles, Place, Residual, ScanReport, StoreError, Subject};
use sunder_schemas::class::{Family, FieldGroup};
use sunder_schemas::ids::{EntityToken, KeyId, Offset, Partition, SellerId};
use sunder_schemas::outcome::{FilterReason, Outcome};
use sunder_schemas::records::{Cell, PiiRecord};
use sunder_schemas::time::Timestamp;

use crate::batch::{check_offsets, reduce};
use crate::beside::{self, Side};
use crate::cells::Cells;
use crate::find::Finder;
use crate::lookup::{Lookup, RowText};
use crate::options::{Dialect, StoreOptions};
use crate::rows::{Row, RowKey};
use crate::tables::Table;
use crate::{Applied, Change, SinkError, Source, postgres, sqlite};

/// First part of the key of a planted control: no seller is called so.
pub(crate) const CANARY: &str = "~canary";
/// Bytes that are kept of a block that a scan met, for the recover test (chosen: far above a group of fields).
pub(crate) const FOUND_BYTES_MAX: usize = 64 << 10;
/// Hits that a report lists at most; one is enough to keep a case open.
pub(crate) const FOUND_MAX: usize = 200;

/// A stored position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) topic: String,
    pub(crate) incarnation: String,
    pub(crate) partition: Partition,
    pub(crate) next: Offset,
}

/// Where a batch moves its source's position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move<'a> {
    pub(crate) source: &'a Source,
    pub(crate) expected: Option<Offset>,
    pub(crate) next: Offset,
}

/// Rows that one batch changed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Changed {
    pub(crate) written: u64,
    pub(crate) deleted: u64,
}

/// What reading rows or files came to.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) places: Vec<Place>,
    pub(crate) found: Vec<FoundBlock>,
    pub(crate) controls: BTreeSet<KeyId>,
    /// Pseudonyms that were met, each with the first place.
    pub(crate) tokens: BTreeMap<EntityToken, String>,
    /// Pseudonyms that stand in rows that live: another order's reference, or a level that is still listed.
    pub(crate) named: BTreeSet<EntityToken>,
}

impl Reading {
    /// Takes every hit of `finder` in `hay`.
    pub(crate) fn search(&mut self, finder: &Finder, place: &str, hay: &[u8], block: impl Fn(usize) -> Vec<u8>) {
        for hit in finder.each(hay) {
            let key = match hit.trace {
                crate::find::Trace::Control(key) => {
                    self.controls.insert(key);
                    continue;
                }
                crate::find::Trace::Erased(key) => key,
                crate::find::Trace::Token(token) => {
                    self.tokens.entry(token).or_insert_with(|| place.to_owned());
                    continue;
                }
                // A further byte string names no key of its own.
                crate::find::Trace::Bytes(_) => KeyId([0; 16]),
            };
            if self.found.len() < FOUND_MAX {
                self.found.push(FoundBlock { place: place.to_owned(), key, block: block(hit.at), is_buried: false });
            }
        }
    }

    /// Says that what was read so far were rows that live: their pseudonyms are no remnant.
    pub(crate) fn rows_end(&mut self) {
        self.named.extend(std::mem::take(&mut self.tokens).into_keys());
    }

    /// Makes findings of the pseudonyms that stand in no row of `named`.
    fn tell_remnants(&mut self, named: &BTreeSet<EntityToken>) {
        let left = std::mem::take(&mut self.tokens).into_iter().filter(|(token, _)| !named.contains(token));
        let remnant = |(_, place): (EntityToken, String)| FoundBlock {
            place: format!("{place} (a row that is gone)"),
            key: KeyId([0; 16]),
            block: Vec::new(),
            is_buried: false,
        };
        let room = FOUND_MAX.saturating_sub(self.found.len());
        self.found.extend(left.take(room).map(remnant));
    }
}

/// A database with the tables of one store.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    fn dialect(&self) -> Dialect;
    /// Every stored position of `sink`, of all incarnations.
    async fn positions(&self, sink: &str) -> Result<Vec<Position>, SinkError>;
    /// Deletes, upserts and moves the position, in one transaction.
    async fn write(&self, sink: &str, step: Move<'_>, table: usize, deletes: &[RowKey], upserts: Cells<'_>) -> Result<Changed, SinkError>;
    /// Removes rows and positions of other incarnations of `topic`.
    async fn rebuild(&self, sink: &str, table: usize, topic: &str, incarnation: &str) -> Result<u64, SinkError>;
    /// Deletes the rows of `subjects` from every table; with an instant only those older, where rows have an age of their own.
    async fn delete_subjects(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<u64, SinkError>;
    /// How many rows of `subjects` each table holds, counted as [`Backend::delete_subjects`] would delete them.
    async fn count_subjects(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<Vec<(&'static str, u64)>, SinkError>;
    /// Seller and entity of the rows that are older than `cutoff`, with the index of their table.
    async fn aged(&self, cutoff: Timestamp) -> Result<Vec<(usize, String, String)>, SinkError>;
    /// Makes the database give up what deleted rows left behind, as far as that needs no lock.
    async fn purge(&self) -> Result<(), SinkError>;
    /// Rewrites the tables, so that free space holds nothing; locks them meanwhile.
    async fn rewrite(&self) -> Result<(), SinkError>;
    /// What keeps deleted rows in the files after they were rewritten; `None` where nothing can.
    async fn holder(&self) -> Option<String>;
    /// Reads every row.
    async fn read_rows(&self, finder: &Finder) -> Result<Reading, SinkError>;
    /// Reads the files; `None` where the server does not let us.
    async fn read_files(&self, finder: &std::sync::Arc<Finder>) -> Result<Option<Reading>, SinkError>;
    /// Size of the files in bytes.
    async fn size(&self) -> Result<u64, SinkError>;
    /// Sets or removes the control of a case in the warehouse's own table.
    async fn set_control(&self, case: &str, control: Option<&Control>) -> Result<(), SinkError>;
    /// Writes one row outside any source (a control).
    async fn put_row(&self, table: usize, row: Cells<'_>) -> Result<(), SinkError>;
    /// Removes the vault's controls of `case`.
    async fn drop_canaries(&self, case: &str) -> Result<(), SinkError>;
    /// Sealed columns of which the planner keeps samples of values; there should be none.
    async fn sampled_columns(&self) -> Result<Vec<String>, SinkError>;
    /// Replaces positions and the rows of the tables that topics feed (`fed`: their indexes) by those of the store beside, in one
    /// transaction; returns how many rows those tables have now.
    async fn take_over(&self, fed: &BTreeSet<usize>) -> Result<u64, SinkError>;
    /// Removes the store beside; says whether there was one.
    async fn drop_beside(&self) -> Result<bool, SinkError>;
    /// Closes every connection.
    async fn close(&self);
    /// Rows as text.
    async fn look_up(&self, lookup: &Lookup) -> Result<Vec<RowText>, SinkError>;
    /// The next sealed rows of one group of a seller's entities in the table of the index, in the order of their tokens, behind `after`.
    async fn page(
        &self,
        table: usize,
        seller: &SellerId,
        group: FieldGroup,
        after: Option<EntityToken>,
        limit: usize,
    ) -> Result<Vec<PiiRecord>, SinkError>;
    /// What the database holds: kind and name.
    async fn objects(&self) -> Result<Vec<(String, String)>, SinkError>;
    /// The sealed rows of one entity in the table of the index.
    async fn sealed(&self, table: usize, seller: &SellerId, entity: EntityToken) -> Result<Vec<PiiRecord>, SinkError>;
}

/// A store: its name, its topics and tables, and the database below.
pub(crate) struct Store {
    pub(crate) name: &'static str,
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) tables: Vec<Table>,
    /// Full names of the topics that feed it, each with the index of its table.
    topics: Vec<(String, usize)>,
    rewrite_bytes_max: u64,
}

impl Store {
    /// Opens the database and makes its tables as declared.
    pub(crate) async fn open(
        name: &'static str,
        options: &StoreOptions,
        tables: Vec<Table>,
        topics: Vec<(String, usize)>,
        with_views: bool,
    ) -> Result<Self, SinkError> {
        let with_views = with_views && options.side == Side::Live;
        let backend: Box<dyn Backend> = match options.dialect(name)? {
            Dialect::Postgres => Box::new(postgres::Postgres::open(name, options, &tables, with_views).await?),
            Dialect::Sqlite => Box::new(sqlite::Sqlite::open(name, options, &tables, with_views).await?),
        };
        let name = if options.side == Side::Live { name } else { beside::name(name) };
        Ok(Self { name, backend, tables, topics, rewrite_bytes_max: options.rewrite_bytes_max })
    }

    /// Full names of the topics that feed the store.
    pub(crate) fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.iter().map(|(topic, _)| topic.as_str())
    }

    fn table_of(&self, source: &Source) -> Result<usize, SinkError> {
        self.topics.iter().find(|(topic, _)| *topic == source.topic).map(|(_, table)| *table).ok_or_else(|| SinkError::Batch {
            topic: source.topic.clone(),
            partition: source.partition,
            offset: Offset(0),
            code: "a topic that does not feed this store",
        })
    }

    pub(crate) async fn position(&self, source: &Source) -> Result<Option<Offset>, SinkError> {
        let positions = self.backend.positions(self.name).await?;
        let of_topic = || positions.iter().filter(|p| p.topic == source.topic);
        if let Some(other) = of_topic().find(|p| p.incarnation != source.incarnation) {
            return Err(SinkError::Rebuild { topic: source.topic.clone(), held: other.incarnation.clone() });
        }
        Ok(of_topic().find(|p| p.partition == source.partition).map(|p| p.next))
    }

    pub(crate) async fn apply<R: Row>(
        &self,
        step: Move<'_>,
        mut changes: Vec<Change<R>>,
        refused: impl Fn(&R) -> Option<FilterReason> + Send,
    ) -> Result<Applied, SinkError> {
        let source = step.source;
        let index = self.table_of(source)?;
        check_offsets(source, step.expected, step.next, &changes)?;
        let batch_error = |offset, code| SinkError::Batch { topic: source.topic.clone(), partition: source.partition, offset, code };
        let table = self.tables.get(index).ok_or_else(|| batch_error(step.next, "no such table"))?;
        let mut applied = Applied::default();
        changes.retain(|change| {
            let refused = match change {
                Change::Upsert { record, .. } => refused(record),
                Change::Delete { .. } => None,
            };
            if let Some(reason) = refused {
                applied.outcomes.count(Outcome::Filtered(reason));
            }
            refused.is_none()
        });
        let reduced = reduce(&changes, table.key.len());
        applied.outcomes.add(&reduced.outcomes);
        let mut cells = Cells::new(table, self.backend.dialect(), reduced.upserts.len());
        for (offset, row) in &reduced.upserts {
            row.cells(&mut |cell| cells.push(cell));
            cells.push(Cell::Text(&source.incarnation));
            cells.push(Cell::Int(i64::from(source.partition.0)));
            cells.push(Cell::Int(offset.0));
            cells.end_row().map_err(|_| batch_error(*offset, "a record of another kind than its topic"))?;
        }
        let rows = cells.rows() as u64;
        let changed = self.backend.write(self.name, step, index, &reduced.deletes, cells).await?;
        applied.rows_written = changed.written;
        applied.rows_deleted = changed.deleted;
        // The store itself turned away rows whose version it holds higher already.
        let stale = rows.saturating_sub(changed.written);
        applied.outcomes.stored = applied.outcomes.stored.saturating_sub(stale);
        for _ in 0..stale {
            applied.outcomes.count(Outcome::Filtered(FilterReason::Stale));
        }
        Ok(applied)
    }

    pub(crate) async fn rebuild(&self, topic: &str, incarnation: &str) -> Result<u64, SinkError> {
        let Some((_, table)) = self.topics.iter().find(|(name, _)| name == topic) else { return Ok(0) };
        self.backend.rebuild(self.name, *table, topic, incarnation).await
    }

    pub(crate) async fn caught_up(&self, marks: &[Mark]) -> Result<bool, StoreError> {
        let positions = self.backend.positions(self.name).await.map_err(SinkError::into_store_error)?;
        let is_fed = |mark: &&Mark| self.topics().any(|topic| topic == mark.topic);
        Ok(marks.iter().filter(is_fed).all(|mark| {
            positions.iter().any(|p| {
                p.topic == mark.topic && p.incarnation == mark.incarnation && p.partition == mark.partition && p.next > mark.offset
            })
        }))
    }

    /// Indexes of the tables that topics feed.
    pub(crate) fn fed(&self) -> BTreeSet<usize> {
        self.topics.iter().map(|(_, table)| *table).collect()
    }

    /// Removes what a builder that died has left: it is in no scan. No case comes here while one lives.
    pub(crate) async fn clear_beside(&self) -> Result<(), StoreError> {
        if self.backend.drop_beside().await.map_err(SinkError::into_store_error)? {
            tracing::warn!(store = self.name, "what a replay had left unfinished beside the store was removed");
        }
        Ok(())
    }

    pub(crate) async fn forget(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<u64, StoreError> {
        self.clear_beside().await?;
        let gone = self.backend.delete_subjects(subjects, older_than).await.map_err(SinkError::into_store_error)?;
        // Also where the tombstones had deleted all rows before: what they left in the files goes now.
        self.backend.purge().await.map_err(SinkError::into_store_error)?;
        Ok(gone)
    }

    /// Gives business rows that were deleted no place in free space either: no needle would find them there, so the tables are rewritten
    /// once, up to the size of the options.
    pub(crate) async fn wipe_rows(&self) -> Result<(), StoreError> {
        if self.keeps_free_space().await.map_err(SinkError::into_store_error)? {
            return Ok(());
        }
        self.backend.rewrite().await.map_err(SinkError::into_store_error)
    }

    /// Whether what deleted rows leave in free space stays until it is used again: where the tables are too large to rewrite.
    async fn keeps_free_space(&self) -> Result<bool, SinkError> {
        Ok(self.backend.size().await? > self.rewrite_bytes_max)
    }

    /// Reads rows and files. Where free space still holds a trace, the tables are rewritten (up to the size of the options) and the
    /// files read once more; what is found after that keeps the case open.
    pub(crate) async fn scan(&self, needles: &Needles) -> Result<ScanReport, SinkError> {
        let finder = std::sync::Arc::new(Finder::new(needles));
        let mut report = ScanReport { store: self.name.to_owned(), ..ScanReport::default() };
        let mut rows = self.backend.read_rows(&finder).await?;
        let named = std::mem::take(&mut rows.named);
        rows.found.extend(self.left_of(needles).await?);
        let is_clean = rows.found.is_empty();
        // What is left in the planner's statistics is no row: reading the rows anew, as deleting again does, mends it.
        rows.tell_remnants(&named);
        report.take(rows, &needles.controls);
        let mut rewritten = false;
        let mut files = self.files(&finder, &named).await?;
        if is_clean && files.as_ref().is_some_and(|files| !files.found.is_empty()) && !self.keeps_free_space().await? {
            self.backend.rewrite().await?;
            rewritten = true;
            files = self.files(&finder, &named).await?;
            if files.as_ref().is_some_and(|files| !files.found.is_empty()) {
                report.held_by = self.backend.holder().await;
            }
        }
        let has_files = files.is_some();
        match files {
            None => report.residual.push(self.left("the server's files cannot be read by this user; free space until it is used again")),
            Some(mut files) => {
                if is_clean && !rewritten && !files.found.is_empty() {
                    let (count, or_more) = (files.found.len(), if files.found.len() < FOUND_MAX { "" } else { " or more" });
                    let what = format!("{count}{or_more} remnants of what was deleted in free space, too large to rewrite");
                    report.residual.push(self.left(&what));
                    files.found.clear();
                }
                report.take(files, &needles.controls);
            }
        }
        report.residual.extend(self.known_to_be_left(needles, named.len()).await?);
        report.method = self.method(rewritten, has_files);
        if !needles.gone.is_empty() {
            report.method.push_str(", and with the pseudonyms of what was erased, whose rows are counted");
        }
        Ok(report)
    }

    /// Reads the files; a pseudonym there counts unless a row that lives has it too.
    async fn files(&self, finder: &std::sync::Arc<Finder>, named: &BTreeSet<EntityToken>) -> Result<Option<Reading>, SinkError> {
        let mut files = self.backend.read_files(finder).await?;
        if let Some(files) = &mut files {
            files.tell_remnants(named);
        }
        Ok(files)
    }

    /// What no search here reaches; `named` pseudonyms of what was erased stand in rows that live.
    async fn known_to_be_left(&self, needles: &Needles, named: usize) -> Result<Vec<Residual>, SinkError> {
        let mut left = Vec::new();
        if self.backend.dialect() == Dialect::Postgres {
            left.push(self.left("PostgreSQL's write-ahead log until recycled, its archive, base backups and replicas"));
        }
        if !needles.gone.is_empty() && self.keeps_free_space().await? {
            left.push(self.left("remnants of deleted rows in free space, too large to rewrite, until it is used again"));
        }
        if named > 0 {
            left.push(self.left(&format!(
                "{named} pseudonyms of what was erased, in rows of others that refer to it and live on; free space was not searched for these"
            )));
        }
        Ok(left)
    }

    /// Something of this store that stays, until nobody can say when.
    fn left(&self, what: &str) -> Residual {
        Residual { what: format!("{}: {what}", self.name), until: None }
    }

    /// The business rows that are still there and must be gone: one finding a table.
    async fn left_of(&self, needles: &Needles) -> Result<Vec<FoundBlock>, SinkError> {
        if needles.gone.is_empty() {
            return Ok(Vec::new());
        }
        let counts = self.backend.count_subjects(&needles.gone, needles.older_than).await?;
        let found = counts.into_iter().filter(|(_, count)| *count > 0);
        let place = |(table, count)| format!("{}.{table}: {count} rows", self.name);
        Ok(found.map(|counted| FoundBlock { place: place(counted), key: KeyId([0; 16]), block: Vec::new(), is_buried: false }).collect())
    }

    /// How many rows of `subjects` each table holds.
    pub(crate) async fn count(&self, subjects: &[Subject], older_than: Option<Timestamp>) -> Result<Vec<(String, u64)>, StoreError> {
        let counts = self.backend.count_subjects(subjects, older_than).await.map_err(SinkError::into_store_error)?;
        Ok(counts.into_iter().map(|(table, rows)| (table.to_owned(), rows)).collect())
    }

    /// The entities of rows older than `cutoff`; `family` says of each table what its entities are.
    pub(crate) async fn aged(&self, cutoff: Timestamp, family: impl Fn(usize) -> Option<Family>) -> Result<Vec<Aged>, StoreError> {
        let rows = self.backend.aged(cutoff).await.map_err(SinkError::into_store_error)?;
        let bad = |_| StoreError { store: self.name.to_owned(), action: "look for old rows".to_owned(), code: "bad_id".to_owned() };
        rows.into_iter()
            .filter_map(|(table, seller, token)| family(table).map(|family| (family, seller, token)))
            .map(|(family, seller, token)| {
                Ok(Aged { seller: SellerId::parse(&seller).map_err(bad)?, family, token: EntityToken::parse(&token).map_err(bad)? })
            })
            .collect()
    }

    fn method(&self, rewritten: bool, has_files: bool) -> String {
        let engine = match self.backend.dialect() {
            Dialect::Postgres => "PostgreSQL: rows deleted, tables vacuumed",
            Dialect::Sqlite => "SQLite: rows deleted with secure_delete, write-ahead log truncated",
        };
        let rewrite = if rewritten { ", tables rewritten" } else { "" };
        let read = if has_files { "every row and every byte of the tables' files" } else { "every row" };
        format!("{engine}{rewrite}; {read} compared with the key ids (bare, hex, base64)")
    }
}

/// Adds what a reading found to the report.
trait Take {
    fn take(&mut self, reading: Reading, controls: &[KeyId]);
}

impl Take for ScanReport {
    fn take(&mut self, reading: Reading, controls: &[KeyId]) {
        self.places.extend(reading.places);
        self.found.extend(reading.found);
        self.controls_planted += controls.len() as u64;
        self.controls_found += reading.controls.len() as u64;
    }
}

/// A token made of `text` (FNV-1a, 128 bits): gives a control its place, says nothing of anybody.
pub(crate) fn token_of(text: &str) -> EntityToken {
    let hash = text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    EntityToken(hash.to_be_bytes())
}
