//! `sunder config example|schema`

use crate::cli::ConfigCommand;
use crate::config::{Config, EXAMPLE};
use crate::output::Output;

/// Prints the example or the JSON Schema.
pub(super) fn run(command: &ConfigCommand, output: Output) {
    match command {
        ConfigCommand::Example => output.show(&EXAMPLE, || EXAMPLE.trim_end().to_owned()),
        ConfigCommand::Schema => Output { json: true }.show(&schemars::schema_for!(Config), String::new),
    }
}
