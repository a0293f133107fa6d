//! Who is polled next: pure, over instants that are given to it.
//!
//! A task is one dataset of one seller. The task that has been due longest goes first; one that failed comes back after a growing
//! wait, and never keeps another from its turn; a blocked one (grant revoked) rests until a person acts and looks again rarely.

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

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Begin this task's turn.
    Start(Task),
    /// Nothing is due before then.
    WaitUntil(Instant),
    /// Nothing is known to be due: wait for a turn to end or for new sellers.
    Idle,
}

#[derive(Debug)]
struct Entry {
    task: Task,
    interval: Duration,
    due: Instant,
    failures: u32,
    running: bool,
    last: Option<Turn>,
    reached: bool,
}

/// All tasks of this process.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    entries: Vec<Entry>,
    assigned: bool,
}

impl Schedule {
    /// Takes over the tasks of this process with their intervals. Known ones keep their state; new ones are due at once; ones that
    /// are gone are forgotten (a running turn ends by itself).
    pub(crate) fn assign(&mut self, tasks: &[(Task, Duration)], now: Instant) {
        self.assigned = true;
        self.entries.retain(|entry| tasks.iter().any(|(task, _)| *task == entry.task));
        for (task, interval) in tasks {
            match self.entries.iter_mut().find(|entry| entry.task == *task) {
                Some(entry) => entry.interval = *interval,
                None => self.entries.push(Entry {
                    task: task.clone(),
                    interval: *interval,
                    due: now,
                    failures: 0,
                    running: false,
                    last: None,
                    reached: false,
                }),
            }
        }
    }

    /// The task to begin now, marked as running; or how long to wait.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        let Some(entry) = self.entries.iter_mut().filter(|entry| !entry.running).min_by_key(|entry| entry.due) else {
            return Next::Idle;
        };
        if entry.due > now {
            return Next::WaitUntil(entry.due);
        }
        entry.running = true;
        Next::Start(entry.task.clone())
    }

    /// Notes how a turn ended.
    pub(crate) fn finish(&mut self, task: &Task, turn: Turn, now: Instant) {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.task == *task) else { return };
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
    }

    /// Whether anyone has been assigned yet: before the first look, nothing is known.
    #[must_use]
    pub(crate) const fn is_assigned(&self) -> bool {
        self.assigned
    }

    /// Whether every task has been polled to the server's present end at least once, or is blocked.
    #[must_use]
    pub(crate) fn caught_up(&self) -> bool {
        self.entries.iter().all(|entry| entry.reached || entry.last == Some(Turn::Blocked))
    }

    /// The sellers whose last turn ended as blocked.
    #[must_use]
    pub(crate) fn blocked(&self) -> Vec<SellerId> {
        let mut sellers: Vec<SellerId> =
            self.entries.iter().filter(|entry| entry.last == Some(Turn::Blocked)).map(|entry| entry.task.seller.clone()).collect();
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
        assert_eq!(schedule.next(now), Next::Start(task("A")));
        assert_eq!(schedule.next(now), Next::Start(task("B")));
        assert_eq!(schedule.next(now), Next::Idle);
        schedule.finish(&task("B"), Turn::Reached, now);
        schedule.finish(&task("A"), Turn::Reached, now + Duration::from_secs(1));
        assert_eq!(schedule.next(now), Next::WaitUntil(now + INTERVAL));
        assert_eq!(schedule.next(now + INTERVAL), Next::Start(task("B")));
    }

    #[test]
    fn a_failing_seller_waits_longer_each_time_and_stops_nobody() {
        let now = Instant::now();
        let mut schedule = schedule(now, &["A", "B"]);
        let mut waits = Vec::new();
        for _ in 0..12 {
            schedule.finish(&task("A"), Turn::Failed, now);
            waits.push(schedule.entries[0].due - now);
        }
        assert!(waits.windows(2).all(|w| w[0] <= w[1]) && waits[0] == FAILURE_WAIT_MIN && waits[11] == FAILURE_WAIT_MAX);
        assert_eq!(schedule.next(now), Next::Start(task("B")));
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
