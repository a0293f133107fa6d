//! One file per command, thin: parse what is given, call the crates, print.

mod audit;
mod cases;
pub(crate) mod certificate;
mod certificate_check;
mod check;
mod config;
mod erase;
mod follow;
mod hold;
mod inventory;
mod keys;
pub(crate) mod open;
mod replay;
mod run;
mod sellers;
mod topics;
mod trace;

use metrics_exporter_prometheus::PrometheusHandle;
use sunder_retention::sellers as sellers_register;
use sunder_schemas::ids::SellerId;

use crate::app::{Base, StartError};
use crate::cli::{AuditCommand, CertificateCommand, Cli, Command, DONE, FAILED, NOT_TRUE, WRONG_USE};
use crate::config::{Config, ConfigError};
use crate::output::Output;

/// Why a command did not do what it was asked. The text is for people: place and fix, never a value.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The config cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The command was called wrongly.
    #[error("{0}")]
    Use(String),
    /// Something failed.
    #[error("{0}")]
    Failed(String),
    /// What was asked does not hold (yet).
    #[error("{0}")]
    NotTrue(String),
}

impl Failure {
    /// The exit code.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Use(_) => WRONG_USE,
            Self::Failed(_) => FAILED,
            Self::NotTrue(_) => NOT_TRUE,
        }
    }

    /// A failure with the error's chain of causes.
    pub fn of(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Failed(format!("{what}: {}", crate::telemetry::chain(error)))
    }
}

/// Refuses a seller that neither the config nor the register names: a mistyped id must not end in a certificate that nothing was held.
async fn must_be_known(base: &Base, seller: &SellerId) -> Result<(), Failure> {
    let is_known = base.config.seller.iter().any(|known| known.id == *seller)
        || sellers_register::state(base.keyring.db(), seller).await.map_err(|e| Failure::of("sellers", &e))?.is_some();
    if is_known { Ok(()) } else { Err(Failure::Use(format!("seller {seller} is not known: `sunder sellers list`"))) }
}

/// Runs the command and gives the exit code; a failure is said on standard error, and with `--json` in the one document as well.
#[expect(clippy::print_stderr, reason = "the last word of a failed command is for the person who called it")]
pub async fn run(cli: Cli, metrics: PrometheusHandle) -> u8 {
    let output = Output { json: cli.json };
    let code = match dispatch(cli, metrics).await {
        Ok(code) => code,
        Err(failure) => {
            let text = failure.to_string();
            eprintln!("sunder: {text}");
            output.fail(failure.code(), &text);
            failure.code()
        }
    };
    if code != FAILED && crate::output::was_lost() {
        eprintln!("sunder: the result could not be written to standard output");
        return FAILED;
    }
    code
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(message) => Self::Use(message),
            StartError::Part { .. } => Self::Failed(error.to_string()),
            StartError::Drift(_) | StartError::ForeignKeys => Self::NotTrue(error.to_string()),
        }
    }
}

/// The operating system's user, for the audit log and for principals.
fn os_user() -> String {
    whoami::username().unwrap_or_else(|_| "unknown".to_owned())
}

async fn dispatch(cli: Cli, metrics: PrometheusHandle) -> Result<u8, Failure> {
    let output = Output { json: cli.json };
    let file = cli.config;
    let load = || -> Result<Config, Failure> { Ok(crate::config::load(&file)?) };
    match cli.command {
        #[cfg(feature = "embedded")]
        Command::Demo(args) => Box::pin(crate::demo::run(args, output)).await,
        Command::Run(args) => Box::pin(run::run(load()?, args, metrics, output)).await,
        Command::Simulate(args) => {
            let stop = run::stop_on_signals(output)?;
            let served = crate::simulator::run(args, cli.json, stop.cancelled_owned()).await;
            served.map(|()| DONE).map_err(|error| Failure::of("simulate", &error))
        }
        Command::Check => check::run(load()?, output).await,
        Command::Topics { command } => topics::run(&load()?, &command, output).await,
        Command::Sellers { command } => Box::pin(sellers::run(load()?, command, output)).await,
        Command::Erase(args) => Box::pin(erase::run(load()?, args, output)).await,
        Command::Hold { command } => Box::pin(hold::run(load()?, command, output)).await,
        Command::Inventory => Box::pin(inventory::run(load()?, output)).await,
        Command::Cases { id } => cases::list(load()?, id.as_deref(), output).await,
        Command::Verify { id, .. } => Box::pin(cases::verify(load()?, id.as_deref(), output)).await,
        Command::Certificate { command, id, out } => match (command, id, out) {
            (Some(CertificateCommand::Key), ..) => certificate::key(&load()?, output),
            (Some(CertificateCommand::Check(args)), ..) => certificate_check::check(&args, output),
            (Some(CertificateCommand::Log { out }), ..) => certificate::log(load()?, &out, output).await,
            (Some(CertificateCommand::NewSigner { file, name }), ..) => certificate::new_signer(&file, &name, output),
            (None, Some(id), Some(out)) => certificate::write(load()?, &id, &out, output).await,
            (None, ..) => Err(Failure::Use("certificate: give a case and --out DIR, or one of: key, check, log, new-signer".to_owned())),
        },
        Command::Keys { command } => Box::pin(keys::run(load()?, command, output)).await,
        Command::Open(args) => open::run(load()?, args, output).await,
        Command::Audit { command: AuditCommand::Verify(args) } => audit::verify(load()?, &args, output).await,
        Command::Audit { command: AuditCommand::Checkpoint { out } } => audit::checkpoint(load()?, &out, output).await,
        Command::Replay(args) => Box::pin(replay::run(load()?, args, output)).await,
        Command::Trace(args) => Box::pin(trace::run(load()?, args, output)).await,
        Command::Config { command } => {
            config::run(&command, output);
            Ok(DONE)
        }
    }
}
