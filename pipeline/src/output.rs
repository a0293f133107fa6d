//! What commands print: one JSON document, or text and tables for people. Standard output only carries results.

use std::io::Write;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// One JSON document instead of text.
    pub json: bool,
}

impl Output {
    /// Prints `document` as JSON, or `text` for people.
    pub fn show(self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            // Our own types always serialise; a failure would be a defect and shows as null.
            print(&serde_json::to_string_pretty(document).unwrap_or_else(|_| "null".to_owned()));
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
}

/// Writes a line to standard output. A reader that has gone (`sunder ... | head`) has what it wanted, and the exit code tells the rest.
fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    _ = writeln!(out, "{line}").and_then(|()| out.flush());
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
