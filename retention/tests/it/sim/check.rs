//! What must be true at every moment, and what must be true at rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::Row as _;
use sunder_retention::case::{self, Listed, Shown, State};
use sunder_retention::keys::Context;
use sunder_retention::ledger::SubjectState;
use sunder_retention::store::Extent;
use sunder_schemas::certificate::check;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint, KeyId, SellerId};
use sunder_schemas::private::SealedBlock;
use sunder_schemas::time::{Clock as _, Timestamp};

use super::Sim;
use super::operate::name_of;
use crate::world::CLASSIFICATION;
use crate::world::log::{Topic, entity_of, key_of, state_key};

/// What every case goes through, in order.
const STEPS: [&str; 13] = [
    "requested",
    "scoped",
    "keys_destroyed",
    "caches_revoked",
    "tombstoned",
    "raw_ends",
    "split_past",
    "second_tombstones",
    "controls_planted",
    "drained",
    "sinks_clean",
    "verified",
    "certified",
];

/// A subject's row as the database has it.
struct Stored {
    seller: String,
    state: String,
    key: Option<KeyId>,
    has_wrapped: bool,
    deadline: Option<Timestamp>,
    case: Option<String>,
    is_withheld: bool,
}

impl Sim {
    async fn stored(&self) -> BTreeMap<Fingerprint, Stored> {
        let sql = "SELECT fingerprint, seller, state, key_id, wrapped, deadline, case_id, withheld_epoch FROM subject";
        let rows = sqlx::query(sql).fetch_all(self.world.ring.db().pool()).await.unwrap();
        let stored = rows.iter().map(|row| {
            let key = row.get::<Option<Vec<u8>>, _>(3).map(|key| KeyId(key.try_into().unwrap()));
            let stored = Stored {
                seller: row.get(1),
                state: row.get(2),
                key,
                has_wrapped: row.get::<Option<Vec<u8>>, _>(4).is_some(),
                deadline: row.get::<Option<i64>, _>(5).map(Timestamp),
                case: row.get(6),
                is_withheld: row.get::<Option<i64>, _>(7).is_some(),
            };
            (Fingerprint(row.get::<Vec<u8>, _>(0).try_into().unwrap()), stored)
        });
        stored.collect()
    }

    async fn scope_of(&self, case: &CaseId) -> Vec<Listed> {
        let sql = "SELECT subjects FROM case_scope WHERE case_id = $1 ORDER BY chunk";
        let rows = sqlx::query(sql).bind(case.as_str().to_owned()).fetch_all(self.world.ring.db().pool()).await.unwrap();
        rows.iter().flat_map(|row| serde_json::from_str::<Vec<Listed>>(&row.get::<String, _>(0)).unwrap()).collect()
    }

    /// The ledger says what the model says: a subject is destroyed if and only if a case that may have it destroyed it; what is
    /// destroyed stays so; who is in no case keeps the key it has; no deadline is past its cap.
    pub(super) async fn check_ledger(&mut self) {
        let stored = self.stored().await;
        let cases: HashMap<String, Shown> = self.world.cases().await.into_iter().map(|case| (case.id.to_string(), case)).collect();
        self.learn_erasures(&stored, &cases).await;
        let policy = self.model.policy;
        for seller in &self.model.sellers {
            for (print, subject) in &seller.subjects {
                let Some(row) = stored.get(print) else {
                    assert!(subject.key.is_none(), "a subject with a key has no row");
                    continue;
                };
                assert_eq!(row.seller, seller.id.as_str());
                assert_eq!(row.is_withheld, subject.is_withheld, "withheld for good, and only if asked for");
                assert!(row.key.is_none() || row.key == subject.key, "a key that nobody was given");
                if subject.erased_by.is_some() {
                    assert_eq!((row.state.as_str(), row.has_wrapped), ("destroyed", false), "what is destroyed stays so");
                } else {
                    let state = if subject.key.is_some() { "live" } else { "none" };
                    assert_eq!((row.state.as_str(), row.has_wrapped), (state, subject.key.is_some()), "what nobody asked for stays");
                    assert!(row.deadline.is_none_or(|at| at <= subject.cap(&policy).unwrap()), "a deadline past its cap");
                    if let (Some(at), Some(decision)) = (row.deadline, subject.decision) {
                        assert_eq!(at, decision.at, "another deadline than the rules give, {}", decision.rule);
                    }
                }
            }
        }
    }

    /// Takes over what was destroyed since, each against what was asked for.
    async fn learn_erasures(&mut self, stored: &BTreeMap<Fingerprint, Stored>, cases: &HashMap<String, Shown>) {
        let mut scopes: HashMap<String, BTreeSet<Fingerprint>> = HashMap::new();
        for (id, shown) in cases {
            if shown.state >= State::KeysDestroyed {
                let scope = self.scope_of(&shown.id).await.into_iter().map(|listed| listed.fingerprint).collect();
                scopes.insert(id.clone(), scope);
            }
        }
        for (id, scope) in &scopes {
            let shown = &cases[id];
            let asked = self.model.asked[&shown.id].clone();
            for print in scope {
                let row = stored.get(print).expect("what a case destroyed has its row");
                assert_eq!(row.state, "destroyed", "case {id} destroyed it");
                let subject = self.model.subject(asked.seller, *print);
                if subject.erased_by.is_none() {
                    if asked.is_expiry {
                        let due = subject.decision.map(|decision| decision.at);
                        let opened = Timestamp::parse(&shown.opened_at).unwrap();
                        assert!(due.is_some_and(|due| due <= opened), "expired before its time: {due:?}, {opened:?}");
                    }
                    subject.erased_by = Some(shown.id.clone());
                }
                subject.is_withheld |= shown.extent == Extent::WithBusinessData;
            }
            if let Some(named) = &asked.named {
                assert_eq!(scope, named, "case {id} is about what was asked for");
            }
        }
        for (print, row) in stored.iter().filter(|(_, row)| row.state == "destroyed") {
            let case = row.case.as_ref().expect("a destroyed subject names its case");
            let is_about = scopes.get(case).is_some_and(|scope| scope.contains(print));
            // After a restore its case may have to begin again, or is gone where only a sweep had asked; what it had destroyed is known.
            let was_known =
                || self.model.sellers.iter().any(|seller| seller.subjects.get(print).is_some_and(|known| known.erased_by.is_some()));
            assert!(is_about || (self.has_restored && was_known()), "destroyed by case {case}, which is not about it");
        }
    }

    /// No place holds what a certificate says is gone.
    pub(super) fn check_places(&self) {
        let keys: HashMap<KeyId, &CaseId> =
            self.model.certified.iter().flat_map(|(case, (keys, _))| keys.iter().map(move |key| (*key, case))).collect();
        let tokens: HashMap<EntityToken, &CaseId> =
            self.model.certified.iter().flat_map(|(case, (_, tokens))| tokens.iter().map(move |token| (*token, case))).collect();
        let look = |place: &str, key: &str, block: &[u8], is_business: bool| {
            if let Some(case) = SealedBlock::key_of(block).ok().and_then(|key| keys.get(&key)) {
                panic!("{place} holds a block that {case} certified as gone");
            }
            if let Some(case) = entity_of(key).filter(|_| is_business).and_then(|token| tokens.get(&token)) {
                panic!("{place} holds a row that {case} certified as gone");
            }
        };
        for (topic, _, record) in self.world.log.lock().records(&Topic::KEPT) {
            if let Some(row) = &record.value {
                look(topic.name(), &record.key, &row.block, topic != Topic::Pii);
            }
        }
        for (store, is_business) in self.world.stores().iter().zip([false, false, true]) {
            for (key, row) in &store.held.lock().unwrap().rows {
                look("a store", key, &row.block, is_business);
            }
        }
    }

    /// Every certificate checks offline, says what its case was about, and there is one a case.
    pub(super) async fn check_certificates(&mut self) {
        for shown in self.world.cases().await {
            if shown.state != State::Certified || self.model.certified.contains_key(&shown.id) {
                continue;
            }
            assert_eq!(shown.blocked_by, None, "a certified case waits for nothing");
            let files = self.world.certificate(&shown.id).await;
            let checked = check(&files.note, &files.verifier_key, Some(&files.proof), Some(&files.statement)).unwrap();
            let scope = self.scope_of(&shown.id).await;
            let asked = self.model.asked[&shown.id].clone();
            let mut keys = BTreeSet::new();
            for listed in &scope {
                let subject = self.model.subject(asked.seller, listed.fingerprint);
                keys.extend(subject.key);
            }
            let statement = checked.statement;
            assert_eq!(statement.subjects.count, u64::try_from(scope.len()).unwrap());
            assert_eq!(statement.subjects.keys, u64::try_from(keys.len()).unwrap(), "every key that was ever given");
            assert_eq!((statement.recover.opened, statement.scan.found), (0, 0));
            let takes_rows = shown.extent == Extent::WithBusinessData;
            let tokens = scope.iter().filter(|_| takes_rows).map(|listed| listed.token).collect();
            self.model.certified.insert(shown.id, (keys, tokens));
        }
        let row = sqlx::query("SELECT COUNT(*) FROM certificate_leaf").fetch_one(self.world.ring.db().pool()).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), i64::try_from(self.model.certified.len()).unwrap(), "one certificate a case");
    }

    /// At rest: nothing is due, what is due or asked for is gone from everywhere, and everything else is there and opens.
    pub(super) async fn check_rest(&mut self) {
        let now = self.world.clock.now();
        self.check_ledger().await;
        self.check_places();
        let stored = self.stored().await;
        assert!(!stored.values().any(|row| row.state == "live" && row.deadline.is_some_and(|at| at <= now)), "something is due still");
        crate::support::verified(self.world.ring.db()).await.unwrap();
        let key = crate::world::signer().verifier_key();
        case::verify_log(self.world.ring.db(), &key, &case::KnownLog::default()).await.unwrap();
        assert!(!case::has_open_roll(self.world.ring.db()).await.unwrap());
        self.check_closed(&stored).await;
        for s in 0..self.model.sellers.len() {
            self.check_seller(s).await;
        }
        self.check_told().await;
    }

    /// Every case went through every step, and every subject that is erased is what some certificate is about.
    async fn check_closed(&self, stored: &BTreeMap<Fingerprint, Stored>) {
        let mut covered = BTreeSet::new();
        for shown in self.world.cases().await {
            covered.extend(self.scope_of(&shown.id).await.into_iter().map(|listed| listed.fingerprint));
            let events = self.world.show(&shown.id).await.events;
            let is_from_log = events.iter().any(|event| event.step == "certified" && event.evidence.get("restored_from_log").is_some());
            let mut steps = events.iter().map(|event| event.step);
            // What the log alone knows of its end tells of no steps here: the certificate does.
            let skipped = STEPS.iter().find(|step| !steps.any(|done| done == **step));
            assert!(is_from_log || skipped.is_none(), "{} skipped {skipped:?}", shown.id);
            let statement = check(&self.world.certificate(&shown.id).await.note, &crate::world::signer().verifier_key(), None, None);
            let until = statement.unwrap().statement.residual.iter().filter_map(|left| left.until.map(|until| until.0)).max();
            let sql = "SELECT residual_until FROM erasure_case WHERE case_id = $1";
            let row = sqlx::query(sql).bind(shown.id.as_str().to_owned()).fetch_one(self.world.ring.db().pool()).await.unwrap();
            assert_eq!(row.get::<Option<i64>, _>(0), until.map(|until| until.0), "{}: what it left is known", shown.id);
        }
        for (print, _) in stored.iter().filter(|(_, row)| row.state == "destroyed") {
            assert!(covered.contains(print), "erased, and no certificate is about it");
        }
    }

    async fn check_seller(&self, s: usize) {
        let seller = &self.model.sellers[s];
        let ring = &self.retainers[0].ring();
        ring.forget_seller(&seller.id);
        let Ok(keys) = ring.seller(&seller.id).await else {
            assert!(seller.is_leaving, "seller {s} is gone");
            return;
        };
        for (n, versions) in seller.orders.iter().enumerate() {
            let id = &versions[0].id;
            let Some(subject) = seller.subjects.get(&keys.fingerprint(id)) else { continue };
            let token = keys.order_token(id);
            let says = format!("order {n} of seller {s}");
            let business = self.world.warehouse.held.lock().unwrap().rows.get(&state_key(&seller.id, token)).map(|row| row.version);
            let sent = subject.sent.get(&token).map(|(version, _)| *version);
            if subject.is_withheld {
                assert_eq!(business, None, "{says}: its rows went");
            } else {
                assert!(business >= sent, "{says}: version {sent:?} was acknowledged, the warehouse has {business:?}");
            }
            let state = ring.subject(&seller.id, token).await.unwrap();
            match (&subject.erased_by, state) {
                (Some(_), SubjectState::Destroyed) => {}
                (None, SubjectState::Live(key)) => {
                    self.check_block(&seller.id, token, &key, versions, (subject.sent.get(&token).copied(), &subject.lost), &says);
                }
                (None, SubjectState::NotHeld(_) | SubjectState::Unknown) if subject.key.is_none() => {}
                (erased, state) => panic!("{says}: erased by {erased:?}, but {state:?}"),
            }
        }
    }

    /// The block that the vault has of a live order opens, and says what was sealed.
    fn check_block(
        &self,
        seller: &SellerId,
        token: EntityToken,
        key: &sunder_retention::keys::DataKey,
        versions: &[super::model::Source],
        (sent, lost): (Option<(i64, bool)>, &BTreeSet<KeyId>),
        says: &str,
    ) {
        let held = self.world.vault.held.lock().unwrap().rows.get(&key_of(seller, token, FieldGroup::BuyerName)).cloned();
        if let (Some((version, true)), lost) = (sent, lost) {
            assert!(
                held.as_ref().is_none_or(|row| !SealedBlock::key_of(&row.block).is_ok_and(|of| lost.contains(&of))),
                "{says}: sealed anew"
            );
            assert_eq!(held.as_ref().map(|row| row.version), Some(version), "{says}: the block of its newest version is lost");
        }
        let Some(row) = held else { return };
        if SealedBlock::key_of(&row.block).is_ok_and(|of| lost.contains(&of)) {
            return;
        }
        let context = Context { seller, entity: token, group: FieldGroup::BuyerName, classification: CLASSIFICATION };
        let plain = key.open(&context, &row.block).unwrap_or_else(|error| panic!("{says}: {error}"));
        let source = versions.iter().find(|source| source.updated.0 == row.version).expect("a version that Amazon had");
        assert_eq!(plain.reveal().as_slice(), name_of(source).as_bytes(), "{says}");
    }

    /// Every erasure, revocation, request and certificate was told on the log.
    async fn check_told(&self) {
        sunder_retention::outbox::drain(self.world.ring.db(), &*self.world.log).await.unwrap();
        let told: BTreeSet<(String, String)> =
            self.world.log.lock().published.iter().map(|record| (record.topic.clone(), record.key.clone())).collect();
        let was_told = |topic: &str, key: String| told.contains(&(topic.to_owned(), key));
        for seller in &self.model.sellers {
            for (print, subject) in seller.subjects.iter().filter(|(_, subject)| subject.erased_by.is_some()) {
                assert!(was_told("privacy.erased", print.to_hex()), "an erasure that nobody was told of");
                assert!(subject.key.is_none_or(|key| was_told("keys.revoked", key.to_hex())), "a key whose end nobody was told of");
            }
        }
        for case in self.model.asked.keys() {
            assert!(was_told("privacy.requests", case.to_string()) && was_told("privacy.certificates", case.to_string()), "{case}");
        }
    }
}
