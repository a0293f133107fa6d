//! Time, as the machine counts it: wall clock, and CPU of a thread, a process or a tree of processes.
//!
//! On a machine that does other work as well the wall clock says little: every figure stands beside its CPU time, runs are repeated, and
//! the median is reported with its range.

#![expect(
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates for people to read; no offsets or money"
)]

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Microseconds of one tick of `/proc/<pid>/stat`: Linux counts in 1/100 s to its readers on every architecture (proc(5), `CLK_TCK`).
const TICK_US: u64 = 10_000;

/// CPU time of the calling thread so far.
///
/// # Errors
/// Where the system does not tell.
pub fn thread_cpu() -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("read the thread's CPU time")?;
    let nanos = text.split(' ').next().and_then(|first| first.parse().ok()).context("read the thread's CPU time")?;
    Ok(Duration::from_nanos(nanos))
}

/// CPU time of this process so far, all threads, to 10 ms.
///
/// # Errors
/// Where the system does not tell.
pub fn own_cpu() -> anyhow::Result<Duration> {
    Ok(stat(&std::fs::read_to_string("/proc/self/stat").context("read the process's CPU time")?).context("read the process's CPU time")?.1)
}

/// CPU time so far of the process `pid` and its living children (a PostgreSQL server and its backends), to 10 ms each.
///
/// # Errors
/// Where there is no such process.
pub fn tree_cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for entry in std::fs::read_dir("/proc").context("list processes")?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that ends meanwhile is passed over.
        let Ok(text) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((parent, cpu)) = stat(&text)
            && (id == pid || parent == pid)
        {
            sum += cpu;
        }
    }
    Ok(sum)
}

/// Parent and CPU time from `/proc/<pid>/stat`; the name in parentheses may hold anything.
fn stat(text: &str) -> Option<(u32, Duration)> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    let ticks = number(11)? + number(12)?;
    Some((u32::try_from(number(1)?).ok()?, Duration::from_micros(ticks * TICK_US)))
}

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// How many of what is counted.
    pub count: u64,
    /// By the clock.
    pub wall: Duration,
    /// CPU of what is measured.
    pub cpu: Duration,
}

impl Run {
    /// Runs `work`, which says how many it did, on this thread.
    ///
    /// # Errors
    /// What `work` returned.
    pub fn of(work: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<Self> {
        let (cpu, wall) = (thread_cpu()?, Instant::now());
        let count = work()?;
        Ok(Self { count, wall: wall.elapsed(), cpu: thread_cpu()?.saturating_sub(cpu) })
    }

    /// How many a second by the clock.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.wall.as_secs_f64().max(1e-9)
    }

    /// How many a second of CPU.
    #[must_use]
    pub fn rate_cpu(&self) -> f64 {
        self.count as f64 / self.cpu.as_secs_f64().max(1e-9)
    }

    /// Microseconds of CPU each.
    #[must_use]
    pub fn each_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / (self.count.max(1) as f64)
    }

    /// CPU seconds for a million.
    #[must_use]
    pub fn per_million_s(&self) -> f64 {
        self.each_us()
    }
}

/// The median of `values`, with the lowest and the highest; zeros where there is none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    (at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

/// Writes a line of the result to standard output.
///
/// # Errors
/// Where it cannot be written.
pub fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write the result")
}

/// Says the median of a figure over `runs`, with its range.
///
/// # Errors
/// Where it cannot be written.
pub fn report(name: &str, unit: &str, runs: &[Run], figure: impl Fn(&Run) -> f64) -> anyhow::Result<f64> {
    let (mid, low, high) = median(runs.iter().map(figure).collect());
    let digits = usize::from(mid < 1_000.0) * 2;
    say(&format!("{name:<44} {mid:>12.digits$} {unit}   ({low:.digits$} to {high:.digits$}, {} runs)", runs.len()))?;
    Ok(mid)
}

/// A percentage of two figures.
#[must_use]
pub fn percent(part: f64, whole: f64) -> f64 {
    part * 100.0 / whole.max(1e-9)
}

/// The whole of `value`, for messages.
#[must_use]
pub fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_between_lowest_and_highest() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), (2.0, 1.0, 3.0));
        assert_eq!(median(Vec::new()), (0.0, 0.0, 0.0));
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let line = "7 (a) b (c)) S 3 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 1 1 1";
        assert_eq!(stat(line), Some((3, Duration::from_secs(2))));
    }

    #[test]
    fn cpu_time_rises_with_work() {
        let run = Run::of(|| Ok((0..2_000_000u64).fold(0, |sum, n| sum ^ std::hint::black_box(n)).min(1) + 1)).unwrap();
        assert!(run.cpu > Duration::ZERO && run.count > 0);
    }
}
