//! Old copies come back, as after the loss of a disk: of the key database, of stores, of both at once; the same copy more than once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use sqlx::Row as _;
use sunder_retention::audit::{self, MirroredRow};
use sunder_retention::case::restore::{self as cases, FurtherSubjects, MirroredCertificate, MirroredRequest};
use sunder_retention::case::{Reason, Shown};
use sunder_retention::mirror::{self, ErasedSubject, Mirrored, Standing};
use sunder_retention::outbox;
use sunder_retention::restore::{Ledger, Restore};
use sunder_retention::store::{Extent, Forget as _, OutboxRecord};
use sunder_schemas::ids::{CaseId, Fingerprint};
use sunder_schemas::time::Clock as _;

use super::Sim;
use super::model::Model;
use super::process::{Process, Retainer};
use crate::world::log::Topic;
use crate::world::signer;
use crate::world::stores::Held;

/// A copy of the key database, with what the model knew then.
#[derive(Clone)]
pub(super) struct Backup {
    file: PathBuf,
    model: Model,
    generations: Vec<(String, i64)>,
}

/// What one record of each key keeps of a compacted topic, in the order of the log.
fn compacted(told: &[OutboxRecord]) -> Vec<OutboxRecord> {
    let newest: HashMap<(&str, &str), usize> =
        told.iter().enumerate().map(|(n, record)| ((record.topic.as_str(), record.key.as_str()), n)).collect();
    let is_kept = |(n, record): &(usize, &OutboxRecord)| {
        !record.topic.starts_with("privacy.") || newest[&(record.topic.as_str(), record.key.as_str())] == *n
    };
    told.iter().enumerate().filter(is_kept).map(|(_, record)| record.clone()).collect()
}

fn of<T: serde::de::DeserializeOwned>(told: &[OutboxRecord], topic: &str, is_part: bool) -> Vec<T> {
    let values = told.iter().filter(|record| record.topic == topic && record.key.contains('|') == is_part);
    values.map(|record| serde_json::from_str(record.value.as_deref().unwrap()).unwrap()).collect()
}

fn mirrored(told: &[OutboxRecord]) -> Vec<Mirrored> {
    let own = told.iter().filter(|record| record.topic == mirror::TOPIC);
    own.filter_map(|record| Mirrored::read(record.key.as_bytes(), record.value.as_deref().map(str::as_bytes)).unwrap()).collect()
}

impl Sim {
    /// A copy is made, or comes back.
    pub(super) async fn lose(&mut self) {
        match self.draw.below(10) {
            0..2 => self.back_up().await,
            2 => self.back_up_stores(),
            _ => self.lose_some().await,
        }
    }

    pub(super) async fn lose_some(&mut self) {
        match self.draw.below(6) {
            0 => self.restore_stores().await,
            1 => {
                self.restore_keys().await;
                self.restore_stores().await;
            }
            _ => self.restore_keys().await,
        }
    }

    /// Copies of everything, where there are none yet.
    pub(super) async fn back_up_once(&mut self) {
        if self.backup.is_none() {
            self.back_up().await;
        }
        if self.held.is_none() {
            self.back_up_stores();
        }
    }

    fn back_up_stores(&mut self) {
        self.held = Some(self.world.stores().map(|store| store.held.lock().unwrap().clone()));
        self.say("the stores are backed up");
    }

    /// Some stores come back as they were. Their sink sees by its positions that they did, and has them forget by the ledger, before it
    /// applies anything.
    async fn restore_stores(&mut self) {
        let Some(held) = self.held.clone() else { return self.back_up_stores() };
        self.started += 1;
        let fresh = Process::start(&self.world, format!("sinks{}", self.started)).await;
        self.dead.push(std::mem::replace(&mut self.sinks, fresh).name);
        let only = if self.draw.chance(30) { None } else { Some(self.draw.below(held.len())) };
        for (n, old) in held.into_iter().enumerate().filter(|(n, _)| only.is_none_or(|only| only == *n)) {
            self.restore_store(n, old).await;
        }
    }

    async fn restore_store(&mut self, n: usize, old: Held) {
        let store = self.world.stores()[n].clone();
        *store.held.lock().unwrap() = old;
        let extent = if store.topic() == Topic::State { Extent::WithBusinessData } else { Extent::Personal };
        let mut pages = Ledger::of(extent);
        let mut forgotten = 0;
        loop {
            let subjects = pages.page(self.world.ring.db()).await.unwrap();
            if subjects.is_empty() {
                break;
            }
            forgotten += store.forget(&subjects, extent).await.unwrap();
        }
        self.say(format!("store {n} is lost, its backup takes its place and forgets {forgotten} rows"));
    }

    async fn generations(&self) -> Vec<(String, i64)> {
        let sql = "SELECT seller, generation FROM seller ORDER BY seller";
        let rows = sqlx::query(sql).fetch_all(self.world.ring.db().pool()).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// A backup of the key database, once every seller has its keys: those of a younger one would be lost, which has tests of its own.
    async fn back_up(&mut self) {
        let generations = self.generations().await;
        if generations.len() < self.model.sellers.len() {
            return;
        }
        self.started += 1;
        let file = self.world.keys.folder.path().join(format!("backup{}.db", self.started));
        sqlx::query("VACUUM INTO $1").bind(file.display().to_string()).execute(self.world.ring.db().pool()).await.unwrap();
        self.backup = Some(Backup { file, model: self.model.clone(), generations });
        self.say("the key database is backed up");
    }

    /// Every process dies, the database of the backup takes the place of the present one, and what was erased since goes again.
    async fn restore_keys(&mut self) {
        let Some(backup) = self.backup.clone() else { return self.back_up().await };
        if self.generations().await != backup.generations {
            // Its keys would be lost, which has tests of its own.
            self.backup = None;
            return self.say("a seller was readmitted since the backup");
        }
        if self.draw.chance(70) {
            // It is sent every moment where all is well.
            outbox::drain(self.world.ring.db(), &*self.world.log).await.unwrap();
        }
        self.say("the key database is lost, the backup takes its place");
        self.has_restored = true;
        self.stop_all();
        self.world.restore_keys(&backup.file).await;
        let told = self.world.log.lock().published.clone();
        let read = if self.draw.chance(50) { compacted(&told) } else { told.clone() };
        let newest = mirrored(&read).into_iter().rev().find_map(|each| match each {
            Mirrored::Generation(generation) => Some(generation),
            Mirrored::Erased(_) | Mirrored::Seller(_) => None,
        });
        let here = mirror::here(self.world.ring.db()).await.unwrap();
        match mirror::standing(&here, newest.as_ref()) {
            Standing::Foreign => panic!("it is the same database"),
            Standing::Current => self.say("nothing was told since"),
            Standing::Behind => self.undo(&read, &newest.expect("it is behind something")).await,
        }
        sqlx::query("UPDATE process SET lease_until = 0").execute(self.world.ring.db().pool()).await.unwrap();
        self.merge(backup, &told).await;
        self.start_all().await;
        self.check_ledger().await;
    }

    /// What was on its way arrives or not, and nobody writes it down: it takes longer to bring a database back than any client still has
    /// of a dead process.
    fn stop_all(&mut self) {
        self.ghosts.clear();
        let batch = self.batch.take();
        let log = self.world.log.clone();
        let mut log = log.lock();
        if let Some(batch) = batch.filter(|_| self.draw.chance(50)) {
            log.flush(batch.records);
        }
        for page in std::mem::take(&mut self.pages) {
            if self.draw.chance(50) || self.world.system.elapsed().saturating_sub(page.since) > super::operate::CLIENT_TIMEOUT {
                continue;
            }
            for (key, row) in page.records {
                log.append(Topic::Raw, &key, Some(row));
            }
            for sent in &page.sent {
                self.model.subject(page.seller, sent.print).arrived(sent.token, sent.version, sent.is_sealed);
            }
        }
        log.restart_splitter();
    }

    async fn start_all(&mut self) {
        let mut fresh = Vec::new();
        for _ in 0..self.pollers.len() + 2 {
            self.started += 1;
            fresh.push(Process::start(&self.world, format!("restored{}", self.started)).await);
        }
        self.splitter = fresh.remove(0);
        self.sinks = fresh.remove(0);
        self.pollers = fresh;
        self.retainers = vec![Retainer::start(&self.world), Retainer::start(&self.world)];
        self.dead.clear();
    }

    /// What the program does at its start with a database that is behind the log; now and then cut off in the middle.
    async fn undo(&mut self, told: &[OutboxRecord], newest: &mirror::Generation) {
        let ring = self.world.ring.clone();
        let db = ring.db();
        let mut rows: Vec<MirroredRow> = told
            .iter()
            .filter(|record| record.topic == "audit.log")
            .filter_map(|record| MirroredRow::read(record.value.as_deref()?.as_bytes()))
            .collect();
        rows.sort_by_key(|row| row.seq);
        let records = mirrored(told);
        if self.draw.chance(30) {
            audit::take_over(db, &rows).await.unwrap();
            let mut cut = Restore::begin(&ring, newest.clone()).await.unwrap();
            let some = self.draw.below(records.len() + 1);
            cut.apply(&records[..some]).await.unwrap();
            self.say("its undoing is cut off");
        }
        audit::take_over(db, &rows).await.unwrap();
        let mut undo = Restore::begin(&ring, newest.clone()).await.unwrap();
        // The log is read in batches.
        for batch in records.chunks(1 + self.draw.below(20)) {
            undo.apply(batch).await.unwrap();
        }
        let certificates: Vec<MirroredCertificate> = of(told, "privacy.certificates", false);
        let taken = cases::certificates(db, &signer(), certificates).await.unwrap();
        let requests: Vec<MirroredRequest> = of(told, "privacy.requests", false);
        let further: BTreeMap<CaseId, Vec<_>> =
            of::<FurtherSubjects>(told, "privacy.requests", true).into_iter().map(|more| (more.case, more.subjects)).collect();
        let opened = cases::requests(db, &requests, &further, self.world.system.now()).await.unwrap();
        undo.took(taken, opened, 0);
        let report = undo.finish().await.unwrap();
        mirror::publish(db, &*self.world.log).await.unwrap();
        assert!(report.sellers_lost.is_empty(), "no seller was made since");
        let (keys, rows) = (report.keys_destroyed, report.ledger_rows);
        self.say(format!("{keys} keys are destroyed again, {rows} ledger rows, {taken} certificates, {opened} cases"));
    }

    /// What the model knows afterwards: of erasures and certificates what was told on the log, of everything else what the backup has.
    async fn merge(&mut self, backup: Backup, told: &[OutboxRecord]) {
        let now = std::mem::replace(&mut self.model, backup.model);
        let mut erased: BTreeMap<Fingerprint, (ErasedSubject, bool)> = BTreeMap::new();
        for each in mirrored(told) {
            if let Mirrored::Erased(subject) = each {
                let is_withheld = subject.extent == Extent::WithBusinessData;
                let known = erased.entry(subject.fingerprint).or_insert((subject, false));
                known.1 |= is_withheld;
            }
        }
        let before: HashSet<CaseId> = self.model.asked.keys().cloned().collect();
        let present: BTreeMap<CaseId, Shown> = self.world.cases().await.into_iter().map(|case| (case.id.clone(), case)).collect();
        for (seller, current) in self.model.sellers.iter_mut().zip(now.sellers) {
            seller.orders = current.orders;
            for (print, current) in current.subjects {
                let subject = seller.subjects.entry(print).or_default();
                subject.take_over(current, erased.get(&print).map(|(_, is_withheld)| *is_withheld));
            }
            let leaves = |case: &Shown| case.seller == seller.id && case.reason == Reason::SellerOffboarding && !before.contains(&case.id);
            seller.is_leaving |= present.values().any(leaves);
        }
        let was_told = |topic: &str, case: &CaseId| told.iter().any(|record| record.topic == topic && record.key == case.as_str());
        for (case, asked) in &now.asked {
            let is_lost = !present.contains_key(case);
            assert!(!is_lost || asked.is_expiry || !was_told("privacy.requests", case), "{case} was asked for and is forgotten");
        }
        self.model.asked = now.asked.into_iter().filter(|(case, _)| present.contains_key(case)).collect();
        self.model.certified = now.certified.into_iter().filter(|(case, _)| was_told("privacy.certificates", case)).collect();
        for case in self.model.certified.keys() {
            assert!(present.get(case).is_some_and(|shown| shown.certified_at.is_some()), "{case} was certified and is not any more");
        }
    }
}
