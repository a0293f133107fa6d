//! Logs on standard error: lines for people on a terminal, JSON elsewhere. Metrics for `/metrics`.
//!
//! Logs carry tokens, case ids, topics and offsets; never clear order ids, names, bodies, tokens or URLs with queries (STYLE section 7).

use std::io::IsTerminal;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// What is logged by default: other crates at warn, since their text may quote what they handle.
pub const FILTER: &str = "warn,sunder=info,sunder_retention=info,sunder_sinks=info";
/// What is logged where the result is a story for people.
pub const QUIET_FILTER: &str = "error";

/// Installs the log and returns the metrics' renderer. Called once, in `main`.
#[must_use]
pub fn install(default_filter: &str) -> PrometheusHandle {
    // `RUST_LOG` is the field's convention for the filter.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_filter));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.compact().with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // Only a second call could fail, and then the first recorder stays.
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("metrics were installed before");
    }
    handle
}

/// The error and its causes on one line, without repeating what a cause already said.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let text = next.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = next.source();
    }
    line
}
