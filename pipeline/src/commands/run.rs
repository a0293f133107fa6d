//! `sunder run`

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::app::{App, Base};
use crate::cli::{DONE, Role, RunArgs};
use crate::config::Config;
use crate::output::Output;
use crate::run::{self, Ended, RunOptions, RunReport};

const SECOND_SIGNAL: &str = "second signal: ending without draining; what was in flight is read again at the next start";

/// Runs the roles until a signal or until idle.
pub(super) async fn run(config: Config, args: RunArgs, metrics: PrometheusHandle, output: Output) -> Result<u8, Failure> {
    let roles = if args.roles.is_empty() { Role::ALL.to_vec() } else { args.roles };
    let stop = stop_on_signals(output)?;
    let open = async { Ok::<_, Failure>(Arc::new(App::open(Base::open(config, None).await?).await?)) };
    let app = tokio::select! {
        app = open => app?,
        // Nothing was begun: a start that waits for a neighbour need not be waited for.
        () = stop.cancelled() => {
            let report = RunReport::default();
            output.show(&report, || text(&report));
            return Ok(DONE);
        }
    };
    let options = RunOptions { roles, until_idle: args.until_idle };
    let (ended, report) = run::run(app, options, Some(metrics), stop).await?;
    output.show(&report, || text(&report));
    match ended {
        Ended::Stopped | Ended::Idle => Ok(DONE),
        Ended::Blocked(cases) => Err(Failure::NotTrue(format!("cases are blocked:\n  {}", cases.join("\n  ")))),
        Ended::Failed(why) => Err(Failure::Failed(why)),
    }
}

fn text(report: &RunReport) -> String {
    let mut lines = vec![format!(
        "{} fetched, {} published, {} split, {} stored, {} dead-lettered, {} personal groups dropped in memory, {} cases certified",
        report.polled, report.published, report.split, report.stored, report.dead_lettered, report.dropped, report.cases_certified
    )];
    if report.gaps > 0 || report.rejected > 0 {
        lines.push(format!("{} windows and {} entities could not be read and stay open gaps", report.gaps, report.rejected));
    }
    for seller in &report.sellers_blocked {
        lines.push(format!("seller {seller} cannot be polled: its token was refused; let it authorise again, then `sunder sellers add`"));
    }
    lines.join("\n")
}

/// A token that SIGTERM or SIGINT cancels; a second signal ends the process at once with exit code 1.
pub(super) fn stop_on_signals(output: Output) -> Result<CancellationToken, Failure> {
    let failed = |error: std::io::Error| Failure::Failed(format!("signals cannot be handled: {}", error.kind()));
    let (mut term, mut int) = (signal(SignalKind::terminate()).map_err(failed)?, signal(SignalKind::interrupt()).map_err(failed)?);
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    #[expect(clippy::disallowed_methods, reason = "it listens for as long as the process lives and has nothing to drain")]
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if cancel.is_cancelled() {
                tracing::error!("{SECOND_SIGNAL}");
                output.fail(crate::cli::FAILED, SECOND_SIGNAL);
                std::process::exit(i32::from(crate::cli::FAILED));
            }
            tracing::info!("stopping; a second signal ends at once");
            cancel.cancel();
        }
    });
    Ok(stop)
}
