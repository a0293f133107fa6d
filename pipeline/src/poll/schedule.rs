//! Who is polled next: pure, over instants that are given to it.
//!
//! A task is one dataset of one seller. The task that has been due longest goes first; one that failed comes back after a growing
//! wait, and never keeps another from its turn; a blocked one (grant revoked) rests until a person acts and looks again rarely.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use sunder_schemas::class::Dataset;
use sunder_schemas::ids::SellerId;
use tokio::time::Instant;

/// First wait after a failed turn (chosen: the client has already repeated the call by itself).
const FAILURE_WAIT_MIN: Duration = Duration::from_secs(2);
/// Longest wait after failed turns: outages of hours occur (chosen).
const FAILURE_WAIT_MAX: Duration = Duration::from_secs(300);
/// How often a blocked seller is looked at again: a new grant comes by a person's hand (chosen).
const BLOCKED_WAIT: Duration = Duration::from_secs(3_600);

/// One dataset of one seller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    /// The seller.
    pub(crate) seller: SellerId,
    /// What is fetched.
    pub(crate) dataset: Dataset,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Everything up to the server's present end is acknowledged by Kafka.
    Reached,
    /// It got on, but the end is not reached (a part was left as an open gap): at once again would not help.
    Partly,
    /// It failed for a reason that passes.
    Failed,
    /// The seller cannot be polled until a person acts.
    Blocked,
}

#[derive(Debug)]
struct Entry {
    interval: Duration,
    due: Instant,
    /// Tasks that are due at the same time go in the order in which they came.
    nth: u64,
    failures: u32,
    running: bool,
    /// It was taken away while it ran; forgotten when it ends, unless it comes back before.
    gone: bool,
    last: Option<Turn>,
    reached: bool,
}

/// All tasks of this process. Thousands of sellers are usual: a look at what is next does not walk through them.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    entries: HashMap<Task, Entry>,
    /// What does not run, the longest due first.
    waiting: BTreeSet<(Instant, u64)>,
    by_nth: HashMap<u64, Task>,
    came: u64,
    assigned: bool,
}

impl Schedule {
    /// Takes over the tasks of this process with their intervals. Known ones keep their state; new ones are due at once; ones that
    /// are gone are forgotten, those that run when they end.
    pub(crate) fn assign(&mut self, tasks: &[(Task, Duration)], now: Instant) {
        self.assigned = true;
        let stay: HashSet<&Task> = tasks.iter().map(|(task, _)| task).collect();
        let (waiting, by_nth) = (&mut self.waiting, &mut self.by_nth);
        self.entries.retain(|task, entry| {
            entry.gone = !stay.contains(task);
            let stays = entry.running || !entry.gone;
            if !stays {
                waiting.remove(&(entry.due, entry.nth));
                by_nth.remove(&entry.nth);
            }
            stays
        });
        for (task, interval) in tasks {
            if let Some(entry) = self.entries.get_mut(task) {
                entry.interval = *interval;
                continue;
            }
            let nth = self.came;
            self.came += 1;
            let entry = Entry { interval: *interval, due: now, nth, failures: 0, running: false, gone: false, last: None, reached: false };
            self.waiting.insert((entry.due, nth));
            self.by_nth.insert(nth, task.clone());
            self.entries.insert(task.clone(), entry);
        }
    }

    /// When the next task is due, or was; `None` where nothing is known to be: wait for a turn to end or for new sellers.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// The task to begin now, marked as running.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Task> {
        let (due, nth) = *self.waiting.first().filter(|(due, _)| *due <= now)?;
        self.waiting.remove(&(due, nth));
        let task = self.by_nth.get(&nth)?.clone();
        self.entries.get_mut(&task)?.running = true;
        Some(task)
    }

    /// Notes how a turn ended.
    pub(crate) fn finish(&mut self, task: &Task, turn: Turn, now: Instant) {
        let Some(entry) = self.entries.get_mut(task) else { return };
        if entry.gone {
            self.by_nth.remove(&entry.nth);
            self.entries.remove(task);
            return;
        }
        self.waiting.remove(&(entry.due, entry.nth));
        entry.running = false;
        entry.last = Some(turn);
        let wait = match turn {
            Turn::Reached => {
                entry.reached = true;
                entry.failures = 0;
                entry.interval
            }
            Turn::Partly => {
                entry.reached = true;
                entry.failures = 0;
                entry.interval.max(FAILURE_WAIT_MIN)
            }
            Turn::Failed => {
                entry.failures = entry.failures.saturating_add(1);
                FAILURE_WAIT_MIN.saturating_mul(1 << entry.failures.saturating_sub(1).min(16)).min(FAILURE_WAIT_MAX)
            }
            Turn::Blocked => BLOCKED_WAIT,
        };
        entry.due = now + wait;
        self.waiting.insert((entry.due, entry.nth));
    }

    /// Whether anyone has been assigned yet: before the first look, nothing is known.
    #[must_use]
    pub(crate) const fn is_assigned(&self) -> bool {
        self.assigned
    }

    /// Whether every task has been polled to the server's present end at least once, or is blocked.
    #[must_use]
    pub(crate) fn caught_up(&self) -> bool {
        self.entries.values().filter(|entry| !entry.gone).all(|entry| entry.reached || entry.last == Some(Turn::Blocked))
    }

    /// The sellers whose last turn ended as blocked.
    #[must_use]
    pub(crate) fn blocked(&self) -> Vec<SellerId> {
        let mut sellers: Vec<SellerId> = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.gone && entry.last == Some(Turn::Blocked))
            .map(|(task, _)| task.seller.clone())
            .collect();
        sellers.sort();
        sellers.dedup();
        sellers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(60);

    fn task(seller: &str) -> Task {
        Task { seller: SellerId::parse(seller).unwrap(), dataset: Dataset::Orders }
    }

    fn schedule(now: Instant, sellers: &[&str]) -> Schedule {
        let mut schedule = Schedule::default();
        schedule.assign(&sellers.iter().map(|s| (task(s), INTERVAL)).collect::<Vec<_>>(), now);
        schedule
    }

    #[test]
    fn the_longest_due_goes_first_and_nobody_runs_twice() {
        let now = Instant::now();
        let mut schedule = schedule(now, &["A", "B"]);
        assert_eq!(schedule.next(now), Some(task("A")));
        assert_eq!(schedule.next(now), Some(task("B")));
        assert_eq!((schedule.next(now), schedule.due()), (None, None));
        schedule.finish(&task("B"), Turn::Reached, now);
        schedule.finish(&task("A"), Turn::Reached, now + Duration::from_secs(1));
        assert_eq!((schedule.next(now), schedule.due()), (None, Some(now + INTERVAL)));
        assert_eq!(schedule.next(now + INTERVAL), Some(task("B")));
    }

    #[test]
    fn one_that_goes_and_comes_back_while_it_runs_does_not_run_twice() {
        let now = Instant::now();
        let mut schedule = schedule(now, &["A", "B"]);
        assert_eq!(schedule.next(now), Some(task("A")));
        schedule.assign(&[(task("B"), INTERVAL)], now);
        schedule.assign(&[(task("B"), INTERVAL), (task("A"), INTERVAL)], now);
        assert_eq!((schedule.next(now), schedule.next(now)), (Some(task("B")), None));
        schedule.finish(&task("A"), Turn::Reached, now);
        schedule.assign(&[(task("A"), INTERVAL)], now);
        schedule.finish(&task("B"), Turn::Reached, now);
        assert_eq!((schedule.due(), schedule.entries.len(), schedule.by_nth.len()), (Some(now + INTERVAL), 1, 1));
    }

    #[test]
    fn a_failing_seller_waits_longer_each_time_and_stops_nobody() {
        let now = Instant::now();
        let mut schedule = schedule(now, &["A", "B"]);
        let mut waits = Vec::new();
        for _ in 0..12 {
            schedule.finish(&task("A"), Turn::Failed, now);
            waits.push(schedule.entries[&task("A")].due - now);
        }
        assert!(waits.windows(2).all(|w| w[0] <= w[1]) && waits[0] == FAILURE_WAIT_MIN && waits[11] == FAILURE_WAIT_MAX);
        assert_eq!(schedule.next(now), Some(task("B")));
    }

    #[test]
    fn caught_up_means_every_task_reached_the_end_or_is_blocked() {
        let now = Instant::now();
        let mut schedule = schedule(now, &["A", "B"]);
        assert!(!schedule.caught_up());
        schedule.finish(&task("A"), Turn::Reached, now);
        schedule.finish(&task("B"), Turn::Failed, now);
        assert!(!schedule.caught_up());
        schedule.finish(&task("B"), Turn::Blocked, now);
        assert!(schedule.caught_up());
        assert_eq!(schedule.blocked(), vec![SellerId::parse("B").unwrap()]);
        // A seller that comes later must be reached as well.
        schedule.assign(&[(task("A"), INTERVAL), (task("C"), INTERVAL)], now);
        assert!(!schedule.caught_up());
    }
}
