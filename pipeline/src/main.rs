//! The program `sunder`: parses the command line, installs telemetry and the TLS provider, and calls a command.

use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, setrlimit};
use sunder::cli::{Cli, WRONG_USE};
use sunder::output::Output;
use sunder::{commands, telemetry};

/// A record is some tens of small pieces that live for a batch; in the benches this allocator took a quarter off a record's cost.
/// What must not stay in freed memory is wiped by its owner, whichever allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Says on standard error what is wrong with the command line, or prints the help that was asked for on standard output.
fn wrong_use(wrong: &clap::Error) -> ExitCode {
    // Where the terminal or pipe is gone there is nobody to tell.
    _ = wrong.print();
    if !wrong.use_stderr() {
        return ExitCode::SUCCESS;
    }
    // The words could not be read, so this one is looked for as it stands. What was typed may be personal and is not repeated.
    let json = std::env::args_os().any(|word| word == "--json");
    Output { json }.fail(WRONG_USE, "the command line cannot be used: standard error says why");
    ExitCode::from(WRONG_USE)
}

/// A core dump would write the keys in memory to a disk that no erasure reaches.
fn forbid_core_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(kind = %error.kind(), "core dumps are not forbidden: switch them off for this user");
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(wrong) => return wrong_use(&wrong),
    };
    let metrics = telemetry::install(if cli.command.tells_a_story() { telemetry::QUIET_FILTER } else { telemetry::FILTER });
    forbid_core_dumps();
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
