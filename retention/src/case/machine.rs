//! The pure machine of a case: which events it has, which state they make, and what to do next.
//!
//! Deciding is [`decide`]: events in, the one next [`Action`] out; no clock, no store, no database. The shell (`engine`) does the
//! action and appends the event it ends in, so a crash between any two events is resumed by reading them back.
//!
//! The order is that of the erasure section of the design: keys go first, so that whatever stops later, nothing opens any more.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sunder_schemas::time::Timestamp;

use crate::store::Mark;

/// How far a case is; the names of the command line and of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Opened.
    Requested,
    /// Its subjects and their keys are listed.
    Scoped,
    /// First layer: the keys are destroyed and the ledger is written.
    KeysDestroyed,
    /// No process can use a cached key any more.
    CachesRevoked,
    /// Tombstones are acknowledged.
    Tombstoned,
    /// Nothing of the subjects is in flight; tombstoned a second time; the barrier is set.
    Drained,
    /// Every store applied the tombstones and deleted what was left.
    SinksClean,
    /// Every place was read again and nothing was found or could be opened.
    Verified,
    /// The certificate is signed.
    Certified,
}

impl State {
    /// Every state, in order.
    pub const ALL: [Self; 9] = [
        Self::Requested,
        Self::Scoped,
        Self::KeysDestroyed,
        Self::CachesRevoked,
        Self::Tombstoned,
        Self::Drained,
        Self::SinksClean,
        Self::Verified,
        Self::Certified,
    ];

    /// The name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Scoped => "scoped",
            Self::KeysDestroyed => "keys_destroyed",
            Self::CachesRevoked => "caches_revoked",
            Self::Tombstoned => "tombstoned",
            Self::Drained => "drained",
            Self::SinksClean => "sinks_clean",
            Self::Verified => "verified",
            Self::Certified => "certified",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an event records. Steps between two states are events too, so that none is done again without need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The case was opened.
    Requested,
    /// Subjects and keys listed.
    Scoped,
    /// Keys destroyed, ledger written; evidence: the ledger epoch.
    KeysDestroyed,
    /// Every live process acknowledged the epoch, or its lease ran out.
    CachesRevoked,
    /// First tombstones; evidence: marks.
    Tombstoned,
    /// The raw topics' ends, read after the acknowledgements; evidence: marks.
    RawEnds,
    /// The splitter committed past them.
    SplitPast,
    /// Tombstones again, after no producer can hold a record from before; evidence: marks.
    SecondTombstones,
    /// Controls planted in every store.
    ControlsPlanted,
    /// The barrier; evidence: marks.
    Drained,
    /// Every store caught up and cleaned.
    SinksClean,
    /// A value was found above its tombstone: the loop goes round once more.
    FoundAgain,
    /// Tombstones of a further round; evidence: marks.
    TombstonedAgain,
    /// Barrier of a further round; evidence: marks.
    BarrierAgain,
    /// Stores clean in a further round.
    SinksCleanAgain,
    /// The log is about to be forced to remove what is tombstoned; from here to `Rolled` its settings may be changed.
    RollIntended,
    /// The log was forced, and its settings are as declared again; evidence: whether all was gone by then.
    Rolled,
    /// Nothing found, nothing opened; evidence: the whole of it.
    Verified,
    /// Certificate signed; evidence: its digest and leaf.
    Certified,
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 19] = [
        Self::Requested,
        Self::Scoped,
        Self::KeysDestroyed,
        Self::CachesRevoked,
        Self::Tombstoned,
        Self::RawEnds,
        Self::SplitPast,
        Self::SecondTombstones,
        Self::ControlsPlanted,
        Self::Drained,
        Self::SinksClean,
        Self::FoundAgain,
        Self::TombstonedAgain,
        Self::BarrierAgain,
        Self::SinksCleanAgain,
        Self::RollIntended,
        Self::Rolled,
        Self::Verified,
        Self::Certified,
    ];

    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Scoped => "scoped",
            Self::KeysDestroyed => "keys_destroyed",
            Self::CachesRevoked => "caches_revoked",
            Self::Tombstoned => "tombstoned",
            Self::RawEnds => "raw_ends",
            Self::SplitPast => "split_past",
            Self::SecondTombstones => "second_tombstones",
            Self::ControlsPlanted => "controls_planted",
            Self::Drained => "drained",
            Self::SinksClean => "sinks_clean",
            Self::FoundAgain => "found_again",
            Self::TombstonedAgain => "tombstoned_again",
            Self::BarrierAgain => "barrier_again",
            Self::SinksCleanAgain => "sinks_clean_again",
            Self::RollIntended => "roll_intended",
            Self::Rolled => "rolled",
            Self::Verified => "verified",
            Self::Certified => "certified",
        }
    }

    /// The step called `name`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.as_str() == name)
    }

    /// The state a case is in once this step is its last.
    #[must_use]
    pub const fn state(self) -> State {
        match self {
            Self::Requested => State::Requested,
            Self::Scoped => State::Scoped,
            Self::KeysDestroyed => State::KeysDestroyed,
            Self::CachesRevoked => State::CachesRevoked,
            Self::Tombstoned | Self::RawEnds | Self::SplitPast | Self::SecondTombstones | Self::ControlsPlanted => State::Tombstoned,
            Self::Drained => State::Drained,
            Self::SinksClean
            | Self::FoundAgain
            | Self::TombstonedAgain
            | Self::BarrierAgain
            | Self::SinksCleanAgain
            | Self::RollIntended
            | Self::Rolled => State::SinksClean,
            Self::Verified => State::Verified,
            Self::Certified => State::Certified,
        }
    }
}

/// One event of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Number within the case, from 1 without gaps.
    pub seq: i64,
    /// What it records.
    pub step: Step,
    /// When, by the policy clock.
    pub at: Timestamp,
    /// When, by the system's clock.
    pub at_system: Timestamp,
    /// What it rests on.
    pub evidence: serde_json::Value,
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// List the subjects and their keys.
    Scope,
    /// Destroy the keys and write the ledger, in one transaction with its event.
    DestroyKeys,
    /// Wait until every process acknowledged `epoch`.
    AwaitCaches {
        /// The case's ledger epoch.
        epoch: i64,
    },
    /// First tombstones.
    Tombstone,
    /// Read the ends of the raw topics.
    ReadRawEnds,
    /// Wait until the splitter is past `ends`.
    AwaitSplit {
        /// Raw's ends.
        ends: Vec<Mark>,
    },
    /// Tombstone again, not before `message_timeout` has passed since the splitter was seen past raw's end.
    TombstoneAfter,
    /// Plant the controls, before the barrier so that they travel as data does.
    PlantControls,
    /// Set the barrier.
    Barrier,
    /// Let every store catch up with `marks`, then delete what is left.
    CleanSinks {
        /// Tombstones and barrier.
        marks: Vec<Mark>,
    },
    /// Tombstone what was found above its tombstone.
    TombstoneAgain,
    /// Set the barrier of a further round.
    BarrierAgain,
    /// Write down that the log will be forced.
    IntendRoll,
    /// Force the log to remove what is tombstoned.
    Roll,
    /// Read every place again, up to `barrier`.
    Verify {
        /// The last barrier.
        barrier: Vec<Mark>,
    },
    /// Sign the certificate.
    Certify,
    /// Nothing more.
    Finished,
}

impl Action {
    /// The name by which tests hold a case at it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Scope => "scope",
            Self::DestroyKeys => "destroy_keys",
            Self::AwaitCaches { .. } => "await_caches",
            Self::Tombstone => "tombstone",
            Self::ReadRawEnds => "read_raw_ends",
            Self::AwaitSplit { .. } => "await_split",
            Self::TombstoneAfter => "tombstone_after",
            Self::PlantControls => "plant_controls",
            Self::Barrier => "barrier",
            Self::CleanSinks { .. } => "clean_sinks",
            Self::TombstoneAgain => "tombstone_again",
            Self::BarrierAgain => "barrier_again",
            Self::IntendRoll => "intend_roll",
            Self::Roll => "roll",
            Self::Verify { .. } => "verify",
            Self::Certify => "certify",
            Self::Finished => "finished",
        }
    }
}

/// Why the events of a case make no sense: the database was changed by something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the events of the case do not fit together: {0}")]
pub struct BrokenHistory(pub &'static str);

/// Whether a case waits for the log to remove what is tombstoned, or forces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Within the bound of the topics' settings.
    Awaited,
    /// Now.
    Forced,
}

/// Decides the next action from the events of a case.
///
/// # Errors
/// [`BrokenHistory`] where events are missing, out of order or without the evidence they must have.
pub fn decide(events: &[Event], removal: Removal) -> Result<Action, BrokenHistory> {
    check_order(events)?;
    let last = events.last().ok_or(BrokenHistory("no event"))?;
    Ok(match last.step {
        Step::Requested => Action::Scope,
        Step::Scoped => Action::DestroyKeys,
        Step::KeysDestroyed => Action::AwaitCaches { epoch: epoch(events)? },
        Step::CachesRevoked => Action::Tombstone,
        Step::Tombstoned => Action::ReadRawEnds,
        Step::RawEnds => Action::AwaitSplit { ends: marks(last)? },
        Step::SplitPast => Action::TombstoneAfter,
        Step::SecondTombstones => Action::PlantControls,
        Step::ControlsPlanted => Action::Barrier,
        Step::Drained | Step::BarrierAgain => {
            let mut wanted = last_tombstones(events)?;
            wanted.extend(marks(last)?);
            Action::CleanSinks { marks: wanted }
        }
        Step::FoundAgain => Action::TombstoneAgain,
        Step::TombstonedAgain => Action::BarrierAgain,
        Step::SinksClean | Step::SinksCleanAgain if removal == Removal::Forced => Action::IntendRoll,
        Step::RollIntended => Action::Roll,
        Step::SinksClean | Step::SinksCleanAgain | Step::Rolled => Action::Verify { barrier: last_barrier(events)? },
        Step::Verified => Action::Certify,
        Step::Certified => Action::Finished,
    })
}

/// Which steps may follow which; [`decide`] refuses any other history.
const fn may_follow(before: Step, after: Step) -> bool {
    matches!(
        (before, after),
        (Step::Requested, Step::Scoped)
            | (Step::Scoped, Step::KeysDestroyed)
            | (Step::KeysDestroyed, Step::CachesRevoked)
            | (Step::CachesRevoked, Step::Tombstoned)
            | (Step::Tombstoned, Step::RawEnds)
            | (Step::RawEnds, Step::SplitPast)
            | (Step::SplitPast, Step::SecondTombstones)
            | (Step::SecondTombstones, Step::ControlsPlanted)
            | (Step::ControlsPlanted, Step::Drained)
            | (Step::Drained, Step::SinksClean)
            | (Step::SinksClean | Step::SinksCleanAgain, Step::RollIntended)
            | (Step::RollIntended, Step::Rolled)
            | (Step::SinksClean | Step::SinksCleanAgain | Step::Rolled, Step::FoundAgain | Step::Verified)
            | (Step::FoundAgain, Step::TombstonedAgain)
            | (Step::TombstonedAgain, Step::BarrierAgain)
            | (Step::BarrierAgain, Step::SinksCleanAgain)
            | (Step::Verified, Step::Certified)
    )
}

fn check_order(events: &[Event]) -> Result<(), BrokenHistory> {
    let mut before: Option<Step> = None;
    for (expected, event) in (1i64..).zip(events) {
        if event.seq != expected {
            return Err(BrokenHistory("an event is missing"));
        }
        let fits = before.map_or(event.step == Step::Requested, |step| may_follow(step, event.step));
        if !fits {
            return Err(BrokenHistory("a step does not follow the one before"));
        }
        before = Some(event.step);
    }
    Ok(())
}

/// The ledger epoch of the case.
///
/// # Errors
/// [`BrokenHistory`] where the event has none.
pub fn epoch(events: &[Event]) -> Result<i64, BrokenHistory> {
    let event = find(events, &[Step::KeysDestroyed]).ok_or(BrokenHistory("no destruction"))?;
    event.evidence.get("epoch").and_then(serde_json::Value::as_i64).ok_or(BrokenHistory("a destruction without its epoch"))
}

/// The marks that an event carries.
///
/// # Errors
/// [`BrokenHistory`] where it carries none.
pub fn marks(event: &Event) -> Result<Vec<Mark>, BrokenHistory> {
    let value = event.evidence.get("marks").cloned().ok_or(BrokenHistory("an event without its marks"))?;
    serde_json::from_value(value).map_err(|_| BrokenHistory("an event without its marks"))
}

/// The last event of one of `steps`.
#[must_use]
pub fn find<'a>(events: &'a [Event], steps: &[Step]) -> Option<&'a Event> {
    events.iter().rev().find(|event| steps.contains(&event.step))
}

/// How often a value was found above its tombstone.
#[must_use]
pub fn rounds(events: &[Event]) -> u64 {
    events.iter().map(|event| u64::from(event.step == Step::FoundAgain)).sum()
}

/// What a round was begun for, in its event's evidence, where a store had lost its controls.
pub(super) const CONTROLS_LOST: &str = "controls_lost";

/// How often controls were planted anew, and when controls were planted last, by the system's clock.
#[must_use]
pub fn planted(events: &[Event]) -> (u64, Option<Timestamp>) {
    let again: Vec<&Event> = events.iter().filter(|event| event.evidence.get(CONTROLS_LOST).is_some()).collect();
    let first = find(events, &[Step::ControlsPlanted]);
    (again.len().try_into().unwrap_or(u64::MAX), again.last().copied().or(first).map(|event| event.at_system))
}

/// The marks of the last tombstones, once they were sent a second time.
///
/// # Errors
/// [`BrokenHistory`] where they were not.
pub fn last_tombstones(events: &[Event]) -> Result<Vec<Mark>, BrokenHistory> {
    marks(find(events, &[Step::SecondTombstones, Step::TombstonedAgain]).ok_or(BrokenHistory("no second tombstones"))?)
}

/// Until when, by the system's clock, the log should have removed what lies below the last barrier: by its settings, and once it was
/// forced since, at once.
#[must_use]
pub fn gone_by(events: &[Event]) -> Option<Timestamp> {
    let last = events.iter().rev().find(|event| matches!(event.step, Step::Drained | Step::BarrierAgain | Step::Rolled))?;
    if last.step == Step::Rolled {
        return Some(last.at_system);
    }
    last.evidence.get("gone_by").and_then(serde_json::Value::as_str).and_then(|text| Timestamp::parse(text).ok())
}

fn last_barrier(events: &[Event]) -> Result<Vec<Mark>, BrokenHistory> {
    marks(find(events, &[Step::Drained, Step::BarrierAgain]).ok_or(BrokenHistory("no barrier"))?)
}

/// How long a wait may last before the engine looks again; it never decides anything. Chosen: short against a lease of a minute,
/// long against a query.
pub const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The same for what takes a few tenths of a second: every process lets go of keys (chosen).
pub const LOOK_SOON: Duration = Duration::from_millis(100);

/// What became of working on a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Certified.
    Done,
    /// Nothing is wrong; something is not yet so.
    Waiting {
        /// What it waits for, in words.
        why: String,
        /// When to look again.
        again: Duration,
    },
    /// Something is wrong, and the case goes on once it is mended.
    Blocked {
        /// What is wrong, in words.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sunder_schemas::ids::{Offset, Partition};

    fn event(seq: i64, step: Step) -> Event {
        let mark = Mark { topic: "t".into(), incarnation: "i".into(), partition: Partition(0), offset: Offset(seq) };
        let evidence = serde_json::json!({"epoch": 7, "marks": [mark]});
        Event { seq, step, at: Timestamp(seq), at_system: Timestamp(100 + seq), evidence }
    }

    fn history(steps: &[Step]) -> Vec<Event> {
        (1..).zip(steps).map(|(seq, step)| event(seq, *step)).collect()
    }

    fn decide(events: &[Event]) -> Result<Action, BrokenHistory> {
        super::decide(events, Removal::Awaited)
    }

    const STRAIGHT: [Step; 13] = [
        Step::Requested,
        Step::Scoped,
        Step::KeysDestroyed,
        Step::CachesRevoked,
        Step::Tombstoned,
        Step::RawEnds,
        Step::SplitPast,
        Step::SecondTombstones,
        Step::ControlsPlanted,
        Step::Drained,
        Step::SinksClean,
        Step::Verified,
        Step::Certified,
    ];

    #[test]
    fn every_prefix_of_the_straight_way_has_one_next_action() {
        let actions: Vec<_> = (1..=STRAIGHT.len()).map(|n| decide(&history(&STRAIGHT[..n])).unwrap()).collect();
        assert_eq!(actions.first(), Some(&Action::Scope));
        assert_eq!(actions[2], Action::AwaitCaches { epoch: 7 });
        assert_eq!(actions[6], Action::TombstoneAfter);
        assert_eq!(actions.last(), Some(&Action::Finished));
        let states: Vec<_> = STRAIGHT.iter().map(|step| step.state()).collect();
        assert!(states.is_sorted() && State::ALL.iter().all(|s| states.contains(s)));
    }

    #[test]
    fn a_further_round_uses_its_own_tombstones_and_barrier() {
        let steps = [&STRAIGHT[..11], &[Step::FoundAgain, Step::TombstonedAgain, Step::BarrierAgain, Step::SinksCleanAgain]].concat();
        let events = history(&steps);
        let Action::Verify { barrier } = decide(&events).unwrap() else { panic!("verify is next") };
        assert_eq!(barrier[0].offset.0, 14);
        assert_eq!(last_tombstones(&events).unwrap()[0].offset.0, 13);
        assert_eq!(rounds(&events), 1);
    }

    #[test]
    fn a_forced_removal_is_written_down_before_and_after() {
        let forced = |steps: &[Step]| super::decide(&history(steps), Removal::Forced).unwrap();
        let (mut steps, again) =
            (STRAIGHT[..11].to_vec(), [Step::FoundAgain, Step::TombstonedAgain, Step::BarrierAgain, Step::SinksCleanAgain]);
        assert_eq!(forced(&steps), Action::IntendRoll);
        steps.push(Step::RollIntended);
        assert_eq!(forced(&steps), Action::Roll);
        assert_eq!(decide(&history(&steps)).unwrap(), Action::Roll, "what was begun is ended");
        steps.push(Step::Rolled);
        assert!(matches!(forced(&steps), Action::Verify { .. }));
        steps.extend(again);
        assert_eq!(forced(&steps), Action::IntendRoll, "a further round is forced too");
    }

    #[test]
    fn histories_that_cannot_be_are_refused() {
        assert!(decide(&[]).is_err());
        assert!(decide(&history(&[Step::Scoped])).is_err());
        assert!(decide(&history(&[Step::Requested, Step::KeysDestroyed])).is_err());
        let mut gap = history(&STRAIGHT[..3]);
        gap[2].seq = 4;
        assert!(decide(&gap).is_err());
        let mut bare = history(&STRAIGHT[..6]);
        bare[5].evidence = serde_json::Value::Null;
        assert!(decide(&bare).is_err());
    }

    proptest! {
        /// From any history the machine takes, the step before `verified` is a clean-up, and before `certified` it is `verified`.
        #[test]
        fn certified_only_after_verified(picks in proptest::collection::vec(0usize..19, 1..24)) {
            let steps: Vec<_> = picks.iter().map(|p| Step::ALL[*p]).collect();
            if decide(&history(&steps)).is_ok() {
                for pair in steps.windows(2) {
                    prop_assert!(pair[1] != Step::Certified || pair[0] == Step::Verified);
                    prop_assert!(pair[1].state() >= pair[0].state());
                }
                prop_assert!(!steps.contains(&Step::Tombstoned) || steps.contains(&Step::KeysDestroyed));
            }
        }
    }

    #[test]
    fn steps_read_back() {
        for step in Step::ALL {
            assert_eq!(Step::parse(step.as_str()), Some(step));
        }
    }
}
