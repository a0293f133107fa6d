//! The pages for people name every topic, outcome and code that the contract has.

use sunder_schemas::certificate::CertificateError;
use sunder_schemas::classify::{BodyCode, RejectCode};
use sunder_schemas::note::NoteError;
use sunder_schemas::outcome::{DeadLetterReason, DropReason, FilterReason};
use sunder_schemas::tlog::LogError;
use sunder_schemas::topic::{Profile, Topic};

const ERRORS: &str = include_str!("../../../docs/errors.md");
const OUTCOMES: &str = include_str!("../../../docs/outcomes.md");
const TOPICS: &str = include_str!("../../../docs/topics.md");

fn names(page: &str, words: impl IntoIterator<Item = String>) {
    let missing: Vec<String> = words.into_iter().filter(|word| !page.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "the page does not name {missing:?}");
}

#[test]
fn every_topic_has_its_line() {
    names(TOPICS, Topic::all().into_iter().map(|topic| topic.to_string()));
}

#[test]
fn every_setting_that_is_declared_is_named() {
    for topic in Topic::all() {
        for (setting, _) in topic.settings(Profile::Production) {
            assert!(TOPICS.contains(setting) || matches!(setting, "cleanup.policy" | "retention.ms"), "{setting} of {topic}");
        }
    }
}

#[test]
fn every_outcome_has_its_line() {
    names(OUTCOMES, FilterReason::ALL.iter().map(|reason| reason.as_str().to_owned()));
    names(OUTCOMES, DropReason::ALL.iter().map(|reason| reason.as_str().to_owned()));
}

#[test]
fn every_code_has_its_remedy() {
    names(ERRORS, DeadLetterReason::ALL.iter().map(|reason| reason.as_str().to_owned()));
    names(ERRORS, BodyCode::ALL.iter().map(|code| code.as_str().to_owned()));
    names(ERRORS, RejectCode::ALL.iter().map(|code| code.as_str().to_owned()));
    names(ERRORS, NoteError::ALL.iter().map(|code| code.code().to_owned()));
    names(ERRORS, LogError::ALL.iter().map(|code| code.code().to_owned()));
    names(ERRORS, CertificateError::ALL.iter().map(|code| code.code().to_owned()));
}
