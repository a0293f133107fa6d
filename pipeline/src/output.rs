//! What commands print: one JSON document, or text and tables for people. Standard output only carries results.

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
    #[expect(clippy::print_stdout, reason = "the one place results are printed")]
    pub fn show(self, document: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            // Our own types always serialise; a failure would be a defect and shows as null.
            println!("{}", serde_json::to_string_pretty(document).unwrap_or_else(|_| "null".to_owned()));
        } else {
            println!("{}", text());
        }
    }

    /// Prints a line for people; silent in JSON.
    #[expect(clippy::print_stdout, reason = "the one place results are printed")]
    pub fn say(self, line: impl AsRef<str>) {
        if !self.json {
            println!("{}", line.as_ref());
        }
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
