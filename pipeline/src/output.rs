//! What commands print: one JSON document, or text and tables for people. Standard output only carries results.
//!
//! Invariants: with `--json` a process prints exactly one document, whatever becomes of it; a result that could not be written is no
//! success ([`was_lost`]), unless the reader closed its end on purpose.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Whether this process printed its document. Of the process, as standard output is: a signal's handler asks it too.
static HAS_PRINTED: AtomicBool = AtomicBool::new(false);
/// Whether a result could not be written.
static WAS_LOST: AtomicBool = AtomicBool::new(false);

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// One JSON document instead of text.
    pub json: bool,
}

/// The document of a command that has no result to show.
#[derive(Debug, Serialize)]
struct Failed<'a> {
    error: Said<'a>,
}

#[derive(Debug, Serialize)]
struct Said<'a> {
    exit: u8,
    message: &'a str,
}

impl Output {
    /// Prints `document` as JSON, or `text` for people.
    pub fn show(self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            HAS_PRINTED.store(true, Ordering::SeqCst);
            // Our own types always serialise; a failure would be a defect and shows as null.
            print(&serde_json::to_string_pretty(document).unwrap_or_else(|_| "null".to_owned()));
        } else {
            print(&text());
        }
    }

    /// As [`Output::show`], the document on one line.
    pub fn show_line(self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            HAS_PRINTED.store(true, Ordering::SeqCst);
            print(&serde_json::to_string(document).unwrap_or_else(|_| "null".to_owned()));
        } else {
            print(&text());
        }
    }

    /// Prints a line for people; silent in JSON.
    pub fn say(self, line: impl AsRef<str>) {
        if !self.json {
            print(line.as_ref());
        }
    }

    /// In JSON, prints `{"error": {"exit", "message"}}` where no document was printed: a result that was shown stays the only one. Silent
    /// for people, who read standard error.
    pub fn fail(self, exit: u8, message: &str) {
        if self.json && !HAS_PRINTED.swap(true, Ordering::SeqCst) {
            let document = Failed { error: Said { exit, message } };
            print(&serde_json::to_string_pretty(&document).unwrap_or_else(|_| "null".to_owned()));
        }
    }
}

/// Whether a result could not be written, for example on a full disk: then no command was a success.
#[must_use]
pub fn was_lost() -> bool {
    WAS_LOST.load(Ordering::SeqCst)
}

/// Writes a line to standard output.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        WAS_LOST.store(true, Ordering::SeqCst);
    }
}

/// A plain table with a header.
#[must_use]
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}
