//! What must be true, kept apart from the program: who was promised what, and what each order's personal data may still do.

use std::collections::{BTreeMap, BTreeSet};

use sunder_retention::deadline::{self, Decision, Facts, Observed, Policy, Progress, Rule};
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint, KeyId, OrderId, SellerId};
use sunder_schemas::time::{Period, Timestamp};

use super::draw::Draw;

/// An order as Amazon has it.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) id: OrderId,
    pub(crate) created: Timestamp,
    pub(crate) updated: Timestamp,
    progress: Progress,
    delivery_visible: bool,
    promise: Option<Timestamp>,
    shipped_at: Option<Timestamp>,
    delivered_at: Option<Timestamp>,
}

impl Source {
    pub(crate) fn new(n: usize, now: Timestamp, draw: &mut Draw) -> Self {
        let created = now.minus(Period::days(draw.between(0, 19)));
        let promise = draw.chance(60).then(|| created.plus(Period::days(draw.between(2, 16))));
        Self {
            id: crate::world::order(n),
            created,
            updated: now,
            progress: Progress::Open,
            delivery_visible: draw.chance(50),
            promise,
            shipped_at: None,
            delivered_at: None,
        }
    }

    /// Something happens to it at `now`.
    pub(crate) fn change(&mut self, now: Timestamp, draw: &mut Draw) {
        // Amazon's versions rise, whatever our clock does.
        let now = now.max(self.updated.plus(Period::Millis(1)));
        self.updated = now;
        match draw.below(6) {
            0 if self.progress == Progress::Open => self.progress = Progress::Cancelled,
            1 | 2 if self.progress == Progress::Open => {
                self.progress = Progress::Shipped;
                self.shipped_at = draw.chance(50).then_some(now);
            }
            3 if self.progress == Progress::Shipped && self.delivered_at.is_none() => self.delivered_at = Some(now),
            // A promise that moves, or comes late, must move no cap once there was one.
            4 => self.promise = Some(now.plus(Period::days(draw.between(0, 59)))),
            _ => {}
        }
    }

    pub(crate) fn observed(&self, watermark: Option<Timestamp>, asked_at: Option<Timestamp>) -> Observed {
        let is_delivered = self.delivered_at.is_some();
        Observed {
            created: self.created,
            last_updated: self.updated,
            previous_look: watermark,
            asked_at,
            progress: self.progress,
            delivery_visible: self.delivery_visible,
            latest_promise: self.promise,
            last_ship_time: self.shipped_at,
            packages: u32::from(self.progress == Progress::Shipped),
            packages_delivered: u32::from(is_delivered && self.delivery_visible),
            delivered_at: self.delivered_at.filter(|_| self.delivery_visible),
        }
    }
}

/// What the rules say of a version that asks for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Seal,
    Clear,
    Erased,
    PastDeadline,
    Withheld,
    Unchanged,
}

/// What is known of one data subject.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subject {
    /// The key it was given: one, for good.
    pub(crate) key: Option<KeyId>,
    /// The case that destroyed it.
    pub(crate) erased_by: Option<CaseId>,
    /// Whether its business data went as well.
    pub(crate) is_withheld: bool,
    facts: Option<Facts>,
    pub(crate) decision: Option<Decision>,
    version: Option<i64>,
    /// For the cap: the first promise that was seen before there was a sign of delivery.
    created: Option<Timestamp>,
    promise: Option<Timestamp>,
    has_sign: bool,
    /// The last event that was recorded as published.
    last_event: Option<(i64, String)>,
    /// The newest version that reached the log, by the token it went under; whether it was sealed.
    pub(crate) sent: BTreeMap<EntityToken, (i64, bool)>,
    /// Keys that were lost with the key database.
    pub(crate) lost: BTreeSet<KeyId>,
}

impl Subject {
    /// What admission must answer, and what it must know of the order from then on.
    pub(crate) fn admit(
        &mut self,
        observed: &Observed,
        version: i64,
        event: &str,
        wants: bool,
        policy: &Policy,
        now: Timestamp,
    ) -> Verdict {
        if self.is_withheld {
            return Verdict::Withheld;
        }
        if self.last_event.as_ref().is_some_and(|(_, last)| last == event) {
            return Verdict::Unchanged;
        }
        if self.erased_by.is_some() {
            return Verdict::Erased;
        }
        if self.version.is_none_or(|known| known <= version) {
            let facts = deadline::observe(self.facts.as_ref(), observed, policy);
            self.decision = Some(deadline::deadline(&facts, observed.previous_look, policy));
            self.facts = Some(facts);
            self.version = Some(version);
            self.created.get_or_insert(observed.created);
            if !self.has_sign && self.promise.is_none() {
                self.promise = observed.latest_promise;
            }
            self.has_sign |= observed.delivered_at.is_some() || observed.packages_delivered > 0;
        }
        match self.decision {
            _ if !wants => Verdict::Clear,
            Some(decision) if decision.at > now => Verdict::Seal,
            _ => Verdict::PastDeadline,
        }
    }

    /// The latest instant at which it may be readable, by the rule in words: 30 days after the first promise, else 60 after its creation,
    /// less the life of backups and the margin.
    pub(crate) fn cap(&self, policy: &Policy) -> Option<Timestamp> {
        let base = match self.promise {
            Some(promise) => promise.plus(Period::days(30)),
            None => self.created?.plus(Period::days(60)),
        };
        Some(base.minus(policy.backup).minus(policy.margin))
    }

    /// What a sweep takes its deadline for, with the seller's watermark as it is then.
    pub(crate) fn due(&mut self, watermark: Option<Timestamp>, policy: &Policy, now: Timestamp) -> bool {
        let (Some(facts), Some(decision), None) = (&self.facts, self.decision, &self.erased_by) else { return false };
        if self.key.is_none() || decision.at > now {
            return false;
        }
        if decision.rule == Rule::NotYetDeliveredLook {
            let moved = deadline::deadline(facts, watermark, policy);
            if moved.at > now {
                self.decision = Some(moved);
                return false;
            }
        }
        true
    }

    /// The key database was restored from a backup that knew `self`; `current` is what was known before. `erased`: whether an erasure was
    /// told on the log, and whether it took the business data.
    pub(crate) fn take_over(&mut self, current: Self, erased: Option<bool>) {
        self.sent = current.sent;
        self.lost = current.lost;
        if let Some(is_withheld) = erased {
            self.key = current.key;
            self.erased_by = current.erased_by;
            self.is_withheld |= is_withheld;
        } else if current.key != self.key {
            // A key that was made after the backup: what it sealed never opens again, and is fetched and sealed anew.
            self.lost.extend(current.key);
            for newest in self.sent.values_mut() {
                newest.1 = false;
            }
        }
    }

    /// This event reached the log.
    pub(crate) fn arrived(&mut self, token: EntityToken, version: i64, is_sealed: bool) {
        let newest = self.sent.entry(token).or_insert((version, is_sealed));
        if version > newest.0 {
            *newest = (version, is_sealed);
        } else if version == newest.0 {
            newest.1 |= is_sealed;
        }
    }

    /// The log acknowledged this event and the page was recorded.
    pub(crate) fn published(&mut self, version: i64, event: &str) {
        if self.last_event.as_ref().is_none_or(|(known, _)| *known <= version) {
            self.last_event = Some((version, event.to_owned()));
        }
    }
}

/// One seller, its orders, and its subjects by fingerprint, which outlives removal and readmission.
#[derive(Debug, Clone)]
pub(crate) struct Seller {
    pub(crate) id: SellerId,
    /// Every version of every order, the latest last.
    pub(crate) orders: Vec<Vec<Source>>,
    pub(crate) subjects: BTreeMap<Fingerprint, Subject>,
    /// Whether its removal was asked for since it was last admitted.
    pub(crate) is_leaving: bool,
}

/// A case as it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) seller: usize,
    /// The orders that were named; `None`: all of the seller, or what is due.
    pub(crate) named: Option<BTreeSet<Fingerprint>>,
    pub(crate) is_expiry: bool,
}

/// Everything.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) sellers: Vec<Seller>,
    pub(crate) policy: Policy,
    pub(crate) asked: BTreeMap<CaseId, Asked>,
    /// What each certified case promises: keys that no place holds a block of, entities that no place holds a row of.
    pub(crate) certified: BTreeMap<CaseId, (BTreeSet<KeyId>, BTreeSet<EntityToken>)>,
}

impl Model {
    pub(crate) fn subject(&mut self, seller: usize, print: Fingerprint) -> &mut Subject {
        self.sellers[seller].subjects.entry(print).or_default()
    }
}
