//! `sunder replay`: build a sink again from the log beside the live one, then switch.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use sunder_schemas::time::Timestamp;

use super::Failure;
use super::run::stop_on_signals;
use crate::app::{App, Base};
use crate::cli::{DONE, ReplayArgs};
use crate::config::Config;
use crate::output::Output;
use crate::run::replay::{Built, ReplayError, Replayed, Which, replay};

/// Between two lines of progress where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Replays one sink.
pub(super) async fn run(config: Config, args: ReplayArgs, output: Output) -> Result<u8, Failure> {
    let until = args.until.as_deref().map(Timestamp::parse).transpose();
    let until = until.map_err(|_| Failure::Use("--until is a time, e.g. 2026-11-01T00:00:00Z".to_owned()))?;
    if until.is_some() && args.sink == Which::Vault {
        return Err(Failure::Use("--until: the vault only has the latest blocks; only the warehouse has a history".to_owned()));
    }
    let app = Arc::new(App::open(Base::open(config, None).await?).await?);
    if app.kafka.is_embedded() {
        return Err(Failure::Use("replay: the embedded broker's log ended with the process that wrote it".to_owned()));
    }
    let stop = stop_on_signals(output)?;
    let progress = ProgressBar::new_spinner();
    let told = Mutex::new(Instant::now());
    let tell = |built: Built| {
        progress.tick();
        progress.set_message(format!("{} records read, {} rows written beside the live sink", built.records, built.rows));
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.is_hidden() && told.elapsed() >= TELL_EVERY {
            tracing::info!(records = built.records, rows = built.rows, "building beside the live sink");
            *told = Instant::now();
        }
    };
    let done = replay(&app, args.sink, until, &stop, &tell).await.map_err(|error| match error {
        ReplayError::Empty | ReplayError::SinkRuns => Failure::NotTrue(format!("replay: {error}")),
        ReplayError::Start(error) => error.into(),
        ReplayError::Busy { .. } | ReplayError::Stopped | ReplayError::Failed(_) => Failure::Failed(format!("replay: {error}")),
    });
    progress.finish_and_clear();
    let done = done?;
    output.show(&done, || text(&done));
    Ok(DONE)
}

fn text(done: &Replayed) -> String {
    let as_of = done.until.as_ref().map_or_else(String::new, |until| format!(" as of {until}, until a sink runs again"));
    let left_out = if done.unreadable == 0 { String::new() } else { format!("; {} records cannot be read", done.unreadable) };
    format!("built again: {} rows from {} records{as_of}{left_out}", done.rows, done.records)
}
