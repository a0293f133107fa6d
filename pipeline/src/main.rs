//! The program `sunder`: parses the command line, installs telemetry and the TLS provider, and calls a command.

use std::process::ExitCode;

use clap::Parser;
use sunder::cli::Cli;
use sunder::{commands, telemetry};

/// A record is some tens of small pieces that live for a batch; in the benches this allocator took a quarter off a record's cost.
/// What must not stay in freed memory is wiped by its owner, whichever allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let metrics = telemetry::install(if cli.command.tells_a_story() { telemetry::QUIET_FILTER } else { telemetry::FILTER });
    // A second provider could only have been installed by this line running twice.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::warn!("a TLS provider was installed before");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(kind = %error.kind(), "the runtime did not start");
            return ExitCode::from(sunder::cli::FAILED);
        }
    };
    let code = runtime.block_on(commands::run(cli, metrics));
    // Background threads of the clients end by themselves; whatever still blocks is not waited for longer than this.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    ExitCode::from(code)
}
