//! `sunder topics apply|diff`

use super::Failure;
use crate::app::connect_kafka;
use crate::cli::{DONE, NOT_TRUE, TopicsCommand};
use crate::config::Config;
use crate::kafka::admin::{Entry, Status, TopicState};
use crate::output::{Output, table};

/// Makes or compares the topics.
pub(super) async fn run(config: &Config, command: &TopicsCommand, output: Output) -> Result<u8, Failure> {
    let kafka = connect_kafka(config).await?;
    let states = match command {
        TopicsCommand::Apply => kafka.apply_topics().await,
        TopicsCommand::Diff => kafka.diff_topics().await,
    };
    let states = states.map_err(|error| Failure::of("topics", &error))?;
    let entries: Vec<Entry> = states.iter().map(TopicState::entry).collect();
    output.show(&entries, || show(&entries));
    Ok(if entries.iter().any(|e| e.status == Status::Fail) { NOT_TRUE } else { DONE })
}

/// Entries as a table.
pub(super) fn show(entries: &[Entry]) -> String {
    let word = |status: Status| match status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    };
    let rows = entries.iter().map(|e| {
        let fix = e.fix.as_deref().map_or_else(String::new, |fix| format!("\n-> {fix}"));
        vec![word(e.status).to_owned(), e.name.clone(), format!("{}{fix}", e.detail)]
    });
    table(&["", "what", "detail"], rows)
}
