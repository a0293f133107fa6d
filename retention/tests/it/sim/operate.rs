//! What can happen.

use std::collections::BTreeSet;
use std::time::Duration;

use sunder_retention::admit::{Admission, Candidate};
use sunder_retention::case::{CaseError, EraseRequest, Progress, Reason, Scope, State};
use sunder_retention::cursor::{self, CursorMove, Disposition, PageCommit, Published};
use sunder_retention::keys::{Context, KeyError};
use sunder_retention::ledger::Fate;
use sunder_retention::{outbox, sellers};
use sunder_schemas::class::{Dataset, FieldGroup};
use sunder_schemas::ids::CaseId;
use sunder_schemas::outcome::DropReason;
use sunder_schemas::time::{Clock as _, Period, Timestamp};

use super::Sim;
use super::model::{Asked, Source, Verdict};
use super::process::{Batch, Ghost, Page, Process, Sent};
use crate::world::CLASSIFICATION;
use crate::world::log::{Row, Topic, state_key};

/// What a client may still deliver after its process died: the world's `message.timeout.ms`.
pub(super) const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);
/// Orders of one seller at the most.
const ORDERS_MAX: usize = 6;

/// The name that is sealed for one version of an order.
pub(super) fn name_of(source: &Source) -> String {
    format!("buyer of {} at {}", source.id.reveal(), source.updated.0)
}

impl Sim {
    pub(super) async fn operate(&mut self) {
        match self.draw.below(100) {
            0..8 => self.order(),
            8..27 => self.poll().await,
            27..37 => self.land_page().await,
            37..45 => self.split(),
            45..51 => self.land_batch(),
            51..57 => self.sink(),
            57..65 => self.beat().await,
            65..69 => drop(self.sweep().await),
            69..75 => self.request().await,
            75..85 => self.advance().await,
            85..88 => self.kill().await,
            88..90 => self.end_leases().await,
            90..93 => self.pass_time(),
            93..95 => self.disturb_log(),
            95..97 => self.readmit_or_look().await,
            _ => self.lose().await,
        }
    }

    fn now(&self) -> Timestamp {
        self.world.clock.now()
    }

    fn seller(&mut self) -> usize {
        self.draw.below(self.model.sellers.len())
    }

    /// A new order, or a change of one.
    fn order(&mut self) {
        let (s, now) = (self.seller(), self.now());
        let count = self.model.sellers[s].orders.len();
        if count == 0 || (count < ORDERS_MAX && self.draw.chance(50)) {
            let source = Source::new(count, now, &mut self.draw);
            self.say(format!("seller {s}: order {count} is made"));
            self.model.sellers[s].orders.push(vec![source]);
        } else {
            let n = self.draw.below(count);
            let mut source = self.model.sellers[s].orders[n].last().unwrap().clone();
            source.change(now, &mut self.draw);
            self.say(format!("seller {s}: order {n} changes at {}", source.updated.0));
            self.model.sellers[s].orders[n].push(source);
        }
    }

    /// A page of some orders, now and then in an old version, or of all that changed, which moves the cursor.
    async fn poll(&mut self) {
        let s = self.seller();
        if self.model.sellers[s].orders.is_empty() || self.draw.chance(20) {
            self.order();
            return;
        }
        let p = self.draw.below(self.pollers.len());
        let is_window = self.draw.chance(60);
        let count = self.model.sellers[s].orders.len();
        let mut picks = Vec::new();
        if is_window {
            picks.extend((0..count).map(|n| (n, self.model.sellers[s].orders[n].len() - 1)));
        } else {
            for _ in 0..1 + self.draw.below(3) {
                let n = self.draw.below(count);
                let versions = self.model.sellers[s].orders[n].len();
                let version = if self.draw.chance(25) { self.draw.below(versions) } else { versions - 1 };
                picks.push((n, version));
            }
        }
        self.poll_page(p, s, &picks, is_window).await;
    }

    pub(super) async fn poll_page(&mut self, p: usize, s: usize, picks: &[(usize, usize)], is_window: bool) {
        let id = self.model.sellers[s].id.clone();
        let (now, policy) = (self.now(), self.model.policy);
        let ring = self.pollers[p].ring.clone();
        let keys = match ring.seller(&id).await {
            Ok(keys) => keys,
            Err(KeyError::SellerRemoved(_)) => {
                assert!(self.model.sellers[s].is_leaving, "seller {s} is gone and nobody asked for it");
                return self.say(format!("poller {p}: seller {s} is removed"));
            }
            Err(error) => panic!("{error}"),
        };
        let cursor = cursor::read(ring.db(), &id, Dataset::Orders).await.unwrap();
        let watermark = cursor.as_ref().map(|cursor| cursor.position);
        let passage = ring.gate().enter().await;
        let mut candidates = Vec::new();
        for (n, version) in picks {
            let versions = &self.model.sellers[s].orders[*n];
            let source = &versions[*version];
            // An old version is an answer of long ago: nobody knows any more when it was asked for.
            let asked_at = (version + 1 == versions.len()).then_some(now);
            let token = keys.order_token(&source.id);
            candidates.push(Candidate {
                fingerprint: keys.fingerprint(&source.id),
                token,
                observed: source.observed(watermark, asked_at),
                source_version: source.updated.0,
                event_id: keys.event_id("orders", token, source.updated.0, "00"),
                wants_key: self.draw.chance(90),
            });
        }
        let admissions = match ring.admit(&id, &candidates).await {
            Ok(admissions) => admissions,
            Err(KeyError::SellerRemoved(_)) => {
                assert!(self.model.sellers[s].is_leaving, "seller {s} is gone and nobody asked for it");
                return self.say(format!("poller {p}: seller {s} is removed"));
            }
            Err(error) if error.is_transient() => return self.say(format!("poller {p}: {error}")),
            Err(error) => panic!("{error}"),
        };
        let mut page = Page {
            poller: p,
            seller: s,
            passage,
            since: self.world.system.elapsed(),
            records: Vec::new(),
            sent: Vec::new(),
            commit: PageCommit::default(),
        };
        let mut says = format!("poller {p}: seller {s}");
        for (((n, version), candidate), admission) in picks.iter().zip(&candidates).zip(admissions) {
            let event = candidate.event_id.to_string();
            let subject = self.model.subject(s, candidate.fingerprint);
            let expected = subject.admit(&candidate.observed, candidate.source_version, &event, candidate.wants_key, &policy, now);
            let (verdict, key) = match admission {
                Admission::Seal { key, deadline, .. } => {
                    assert!(deadline <= subject.cap(&policy).unwrap(), "order {n}: its deadline is past the cap");
                    assert!(*subject.key.get_or_insert(key.id()) == key.id(), "order {n}: a second key");
                    (Verdict::Seal, Some(key))
                }
                Admission::Clear { .. } => (Verdict::Clear, None),
                Admission::Drop(DropReason::Erased) => (Verdict::Erased, None),
                Admission::Drop(DropReason::PastDeadline) => (Verdict::PastDeadline, None),
                Admission::Drop(reason) => panic!("dropped for {reason:?}"),
                Admission::Withheld => (Verdict::Withheld, None),
                Admission::Unchanged => (Verdict::Unchanged, None),
            };
            assert_eq!(verdict, expected, "order {n} of seller {s} at version {version}");
            says.push_str(&format!(", order {n}@{} {verdict:?}", candidate.source_version));
            if matches!(verdict, Verdict::Withheld | Verdict::Unchanged) {
                continue;
            }
            let source = &self.model.sellers[s].orders[*n][*version];
            let context = Context { seller: &id, entity: candidate.token, group: FieldGroup::BuyerName, classification: CLASSIFICATION };
            let block = key.as_ref().map(|key| key.seal(&context, name_of(source).as_bytes()).into_bytes()).unwrap_or_default();
            let fate = match verdict {
                Verdict::Seal => Fate::Sealed,
                Verdict::Erased => Fate::Dropped(DropReason::Erased),
                Verdict::PastDeadline => Fate::Dropped(DropReason::PastDeadline),
                Verdict::Clear | Verdict::Withheld | Verdict::Unchanged => Fate::Dropped(DropReason::NotWanted),
            };
            let record = format!("{}|{event}", state_key(&id, candidate.token));
            page.records.push((record, Row { version: candidate.source_version, event: event.clone(), block }));
            page.commit.dispositions.push(Disposition { token: candidate.token, group: FieldGroup::BuyerName, fate });
            let published =
                Published { fingerprint: candidate.fingerprint, event_id: candidate.event_id, source_version: candidate.source_version };
            page.commit.published.push(published);
            let (print, token, version) = (candidate.fingerprint, candidate.token, candidate.source_version);
            page.sent.push(Sent { print, token, version, event, is_sealed: key.is_some() });
        }
        if is_window {
            let expected_version = cursor.map_or(0, |cursor| cursor.version);
            page.commit.cursor = Some(CursorMove { dataset: Dataset::Orders, expected_version, position: now, detail: "{}".into() });
        }
        self.say(says);
        self.pages.push(page);
    }

    /// Whether what was given to a client at `since` can still arrive.
    fn can_arrive(&self, since: Duration) -> bool {
        self.world.system.elapsed().saturating_sub(since) <= CLIENT_TIMEOUT
    }

    /// A page is acknowledged and recorded, or given up because its time is over.
    async fn land_page(&mut self) {
        if self.pages.is_empty() {
            return self.land_ghost();
        }
        let page = self.pages.swap_remove(self.draw.below(self.pages.len()));
        self.land(page).await;
    }

    async fn land(&mut self, page: Page) {
        if !self.can_arrive(page.since) {
            return self.say(format!("poller {}: a page timed out", page.poller));
        }
        {
            let mut log = self.world.log.lock();
            for (key, row) in page.records {
                log.append(Topic::Raw, &key, Some(row));
            }
        }
        for sent in &page.sent {
            self.model.subject(page.seller, sent.print).arrived(sent.token, sent.version, sent.is_sealed);
        }
        if self.draw.chance(10) {
            return self.say(format!("poller {}: a page arrived and was not recorded", page.poller));
        }
        let id = self.model.sellers[page.seller].id.clone();
        match self.pollers[page.poller].ring.commit_page(&id, page.commit).await {
            Ok(()) => {
                for sent in &page.sent {
                    self.model.subject(page.seller, sent.print).published(sent.version, &sent.event);
                }
                self.say(format!("poller {}: a page is recorded", page.poller));
            }
            Err(KeyError::CursorMoved { .. }) => self.say(format!("poller {}: another moved the cursor", page.poller)),
            Err(error) => panic!("{error}"),
        }
        drop(page.passage);
    }

    fn land_ghost(&mut self) {
        if self.ghosts.is_empty() {
            return;
        }
        let ghost = self.ghosts.swap_remove(self.draw.below(self.ghosts.len()));
        if self.can_arrive(ghost.since) {
            self.say(format!("{} records of a dead process arrive", ghost.records.len()));
            self.world.log.lock().flush(ghost.records);
            for (seller, sent) in ghost.sent.into_iter().flat_map(|(seller, sent)| sent.into_iter().map(move |sent| (seller, sent))) {
                self.model.subject(seller, sent.print).arrived(sent.token, sent.version, sent.is_sealed);
            }
        }
    }

    /// The splitter reads some of raw; what it writes is on its way.
    pub(super) fn split(&mut self) {
        if self.batch.is_some() {
            return self.land_batch();
        }
        let passage = self.splitter.ring.gate().enter_blocking();
        let most = if self.draw.chance(30) { 1 } else { usize::MAX };
        let records = self.world.log.lock().split(most, Some(self.splitter.ring.erased()));
        self.say(format!("splitter: {} records are on their way", records.len()));
        self.batch = Some(Batch { passage, since: self.world.system.elapsed(), records });
    }

    pub(super) fn land_batch(&mut self) {
        let Some(batch) = self.batch.take() else { return };
        let mut log = self.world.log.lock();
        if self.world.system.elapsed().saturating_sub(batch.since) > CLIENT_TIMEOUT {
            log.restart_splitter();
            drop(log);
            return self.say("splitter: a batch timed out, it starts over");
        }
        log.flush(batch.records);
        log.commit_split();
        drop(log);
        drop(batch.passage);
        self.say("splitter: a batch is committed");
    }

    pub(super) fn sink(&mut self) {
        let most = if self.draw.chance(30) { 2 } else { usize::MAX };
        for store in self.world.stores() {
            store.consume(most, Some(self.sinks.ring.erased()));
        }
        self.say("sinks: apply");
    }

    async fn beat(&mut self) {
        let all = [&self.splitter, &self.sinks];
        let process = self.draw.below(self.pollers.len() + all.len());
        let process = all.get(process).copied().unwrap_or_else(|| &self.pollers[process - all.len()]);
        process.lease.beat().await.unwrap();
        self.say(format!("{} beats", process.name));
    }

    pub(super) async fn beat_all(&self) {
        for process in self.pollers.iter().chain([&self.splitter, &self.sinks]) {
            process.lease.beat().await.unwrap();
        }
    }

    /// Returns whether the sweep came to its end.
    pub(super) async fn sweep(&mut self) -> bool {
        self.world.clock.advance(Period::Millis(1));
        let (r, now, policy) = (self.draw.below(self.retainers.len()), self.now(), self.model.policy);
        for s in 0..self.model.sellers.len() {
            let cursor = cursor::read(self.world.ring.db(), &self.model.sellers[s].id, Dataset::Orders).await.unwrap();
            for subject in self.model.sellers[s].subjects.values_mut() {
                subject.due(cursor.as_ref().map(|cursor| cursor.position), &policy, now);
            }
        }
        let before: BTreeSet<CaseId> = self.all_cases().await.into_iter().collect();
        let limit = if self.draw.chance(20) { i64::try_from(self.draw.below(6)).unwrap() } else { -1 };
        let retainer = &self.retainers[r];
        retainer.trigger.set(limit);
        let done = tokio::select! {
            biased;
            () = retainer.trigger.fired() => None,
            done = retainer.engine.sweep(now) => Some(done.unwrap()),
        };
        self.retainers[r].trigger.set(-1);
        if done.is_none() {
            self.retainers[r].restart(&self.world);
        }
        for case in self.world.cases().await {
            if !before.contains(&case.id) {
                let seller = self.model.sellers.iter().position(|seller| seller.id == case.seller).unwrap();
                self.model.asked.insert(case.id, Asked { seller, named: None, is_expiry: true });
            }
        }
        self.say(format!("retainer {r}: sweeps, {} cases, killed: {}", self.model.asked.len() - before.len(), done.is_none()));
        self.check_ledger().await;
        done.is_some()
    }

    async fn all_cases(&self) -> Vec<CaseId> {
        self.world.cases().await.into_iter().map(|case| case.id).collect()
    }

    /// Somebody asks for an erasure: of orders that are there, that are not there yet, or of a whole seller.
    async fn request(&mut self) {
        let (s, r) = (self.seller(), self.draw.below(self.retainers.len()));
        let id = self.model.sellers[s].id.clone();
        let (scope, reason) = match self.draw.below(10) {
            0 => (Scope::All, Reason::SellerOffboarding),
            1 | 2 => (Scope::All, *self.draw.pick(&[Reason::SellerRequest, Reason::Reclassified])),
            _ => {
                let orders = (0..1 + self.draw.below(2)).map(|_| crate::world::order(self.draw.below(ORDERS_MAX)));
                (Scope::Orders(orders.collect()), *self.draw.pick(&[Reason::BuyerRequest, Reason::AmazonRequest]))
            }
        };
        let is_leaving = reason == Reason::SellerOffboarding;
        let with_business_data = if is_leaving { Some(true) } else { *self.draw.pick(&[None, None, Some(true), Some(false)]) };
        // Of two cases of one instant the random id would say which is worked first.
        self.world.clock.advance(Period::Millis(1));
        let now = self.draw.chance(20);
        let request =
            EraseRequest { seller: id.clone(), scope: scope.clone(), reason, with_business_data, now, requested_by: "operator-7".into() };
        let retainer = &self.retainers[r];
        let before: BTreeSet<CaseId> = self.all_cases().await.into_iter().collect();
        let case = match retainer.engine.request(&request).await {
            Ok(case) => case,
            // Its tokens can no longer be made: what it had went when it left.
            Err(CaseError::Keys(_)) if self.model.sellers[s].is_leaving => return self.say(format!("seller {s} left, nothing to ask for")),
            Err(error) => panic!("{error}"),
        };
        let named = match &scope {
            // Nobody asks for pseudonyms here.
            Scope::All | Scope::Entities(_) => None,
            Scope::Orders(orders) => {
                // A seller that left is known by its ledger key alone.
                let keys = retainer.ring().seller(&id).await.ok();
                keys.map(|keys| orders.iter().map(|order| keys.fingerprint(order)).collect())
            }
        };
        if is_leaving {
            self.model.sellers[s].is_leaving = true;
        }
        if !before.contains(&case) {
            self.model.asked.insert(case.clone(), Asked { seller: s, named, is_expiry: false });
        }
        self.say(format!("seller {s}: {} of {scope:?}, business data {with_business_data:?}: {case}", reason.as_str()));
        self.check_ledger().await;
    }

    /// One retainer works its cases, and may die at any point.
    pub(super) async fn advance(&mut self) {
        let r = self.draw.below(self.retainers.len());
        let limit = if self.draw.chance(60) { i64::try_from(self.draw.below(50)).unwrap() } else { -1 };
        let retainer = &self.retainers[r];
        retainer.trigger.set(limit);
        let done = tokio::select! {
            biased;
            () = retainer.trigger.fired() => None,
            done = retainer.engine.advance_all() => Some(done.unwrap()),
        };
        self.retainers[r].trigger.set(-1);
        match &done {
            None => {
                self.say(format!("retainer {r}: killed at point {limit}"));
                self.retainers[r].restart(&self.world);
            }
            Some(done) => {
                for (case, progress) in done {
                    let says = match progress {
                        Progress::Waiting { why, .. } => why.split_whitespace().take(6).collect::<Vec<_>>().join(" "),
                        other => format!("{other:?}"),
                    };
                    self.say(format!("retainer {r}: {case} {says}"));
                    if let Progress::Blocked { why } = progress {
                        panic!("{case} is blocked: {why}");
                    }
                }
            }
        }
        self.check_ledger().await;
        self.check_certificates().await;
    }

    /// A process dies with what it has in memory; its lease runs on, and what its client had may still arrive.
    async fn kill(&mut self) {
        self.started += 1;
        let fresh = Process::start(&self.world, format!("again{}", self.started)).await;
        let now = self.world.system.elapsed();
        match self.draw.below(self.pollers.len() + 2) {
            0 => {
                self.say(format!("splitter: {} dies", self.splitter.name));
                if let Some(batch) = self.batch.take() {
                    let arrives = self.draw.below(batch.records.len() + 1);
                    let records = batch.records.into_iter().take(arrives).collect();
                    self.ghosts.push(Ghost { since: batch.since.min(now), records, sent: None });
                }
                self.dead.push(std::mem::replace(&mut self.splitter, fresh).name);
                self.world.log.lock().restart_splitter();
            }
            1 => {
                self.say(format!("sinks: {} dies", self.sinks.name));
                self.dead.push(std::mem::replace(&mut self.sinks, fresh).name);
            }
            other => {
                let p = other - 2;
                self.say(format!("poller {p}: {} dies", self.pollers[p].name));
                let (lost, kept) = std::mem::take(&mut self.pages).into_iter().partition(|page| page.poller == p);
                self.pages = kept;
                let lost: Vec<Page> = lost;
                for page in lost {
                    let arrives = self.draw.below(page.records.len() + 1);
                    let sent = Some((page.seller, page.sent.into_iter().take(arrives).collect()));
                    let records = page.records.into_iter().take(arrives).map(|(key, row)| (Topic::Raw, key, Some(row))).collect();
                    self.ghosts.push(Ghost { since: page.since, records, sent });
                }
                self.dead.push(std::mem::replace(&mut self.pollers[p], fresh).name);
            }
        }
    }

    /// The leases of the dead run out by the database's clock.
    pub(super) async fn end_leases(&mut self) {
        for name in std::mem::take(&mut self.dead) {
            let sql = "UPDATE process SET lease_until = 0 WHERE roles = $1";
            sqlx::query(sql).bind(name.clone()).execute(self.world.ring.db().pool()).await.unwrap();
            self.say(format!("the lease of {name} is over"));
        }
    }

    fn pass_time(&mut self) {
        if self.draw.chance(40) {
            let period = Period::Millis(self.draw.between(100, 3_000));
            self.world.system.advance(period);
            return self.say(format!("{period} pass"));
        }
        let now = self.now();
        if self.draw.chance(15) {
            let back = Period::Millis(self.draw.between(1, 86_400_000));
            self.world.clock.set(now.minus(back));
            self.world.system.set(self.world.system.now().minus(back));
            return self.say(format!("the clocks are set back by {back}"));
        }
        let later = Period::Millis(self.draw.between(3_600_000, 20 * 86_400_000));
        self.world.clock.set(now.plus(later));
        self.world.system.set(self.world.system.now().plus(later));
        self.say(format!("the clocks show {later} more"));
    }

    fn disturb_log(&mut self) {
        let mut log = self.world.log.lock();
        let says = match self.draw.below(5) {
            0 => {
                log.clean();
                "the cleaner passes"
            }
            1 => {
                log.expire_raw();
                "raw's retention is over"
            }
            2 => {
                log.drop_tombstones();
                "tombstones go"
            }
            3 if self.batch.is_none() => {
                log.replay_splitter();
                "raw is split again from its start"
            }
            _ => {
                drop(log);
                let at = self.draw.below(3);
                self.world.stores()[at].rebuild();
                return self.say(format!("store {at} is built again"));
            }
        };
        drop(log);
        self.say(says);
    }

    /// A removed seller comes back; or an old case is verified again, or the outbox is sent.
    async fn readmit_or_look(&mut self) {
        let s = self.seller();
        let id = self.model.sellers[s].id.clone();
        let cases = self.world.cases().await;
        let has_left = cases.iter().any(|case| case.seller == id && case.reason == Reason::SellerOffboarding)
            && cases.iter().all(|case| case.seller != id || case.reason != Reason::SellerOffboarding || case.state == State::Certified);
        if has_left && self.model.sellers[s].is_leaving {
            sellers::readmit(self.retainers[0].ring(), &id).await.unwrap();
            self.model.sellers[s].is_leaving = false;
            return self.say(format!("seller {s} is readmitted"));
        }
        outbox::drain(self.world.ring.db(), &*self.world.log).await.unwrap();
        self.say("the outbox is sent");
    }

    /// Every order of every seller in its latest version.
    pub(super) async fn poll_everything(&mut self) {
        for s in 0..self.model.sellers.len() {
            let orders = &self.model.sellers[s].orders;
            let picks: Vec<_> = orders.iter().enumerate().map(|(n, versions)| (n, versions.len() - 1)).collect();
            self.poll_page(0, s, &picks, true).await;
        }
    }

    /// Everything that is on its way arrives or is given up, everybody beats, and cases are worked until none is open and nothing is due.
    pub(super) async fn rest(&mut self) {
        for round in 0.. {
            self.end_leases().await;
            while let Some(page) = self.pages.pop() {
                self.land(page).await;
            }
            while !self.ghosts.is_empty() {
                self.land_ghost();
            }
            self.land_batch();
            while self.world.log.lock().has_unsplit() {
                self.split();
                self.land_batch();
            }
            self.beat_all().await;
            for store in self.world.stores() {
                store.consume(usize::MAX, Some(self.sinks.ring.erased()));
            }
            self.world.log.lock().clean();
            self.world.system.advance(Period::Millis(700));
            while !self.sweep().await {}
            let open = self.world.cases().await.into_iter().filter(|case| case.state != State::Certified).count();
            if open == 0 {
                return;
            }
            assert!(round < 60, "{open} cases come to no end");
            self.advance().await;
            self.check_places();
        }
    }
}
