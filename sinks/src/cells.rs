//! Rows turned into columns, borrowed from the records: what one statement binds.

use std::fmt::Write as _;
use std::ops::Range;

use rust_decimal::Decimal;
use sunder_schemas::ids::EntityToken;
use sunder_schemas::records::{Cell, ColumnType};
use sunder_schemas::time::Timestamp;
use uuid::Uuid;

use crate::options::Dialect;
use crate::tables::Table;

/// The hex form of a 16-byte token, without the heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HexToken([u8; 32]);

impl HexToken {
    /// The token's text.
    #[must_use]
    pub fn new(token: EntityToken) -> Self {
        let mut text = [0u8; 32];
        // The buffer is exactly twice as long as the token, the one thing that can fail here.
        if hex::encode_to_slice(token.0, &mut text).is_err() {
            text = [b'0'; 32];
        }
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The values of one column.
#[derive(Debug)]
pub enum Values<'a> {
    /// Text.
    Text(Vec<Option<&'a str>>),
    /// Tokens, stored as text.
    Token(Vec<Option<HexToken>>),
    /// Whole numbers.
    Integer(Vec<Option<i64>>),
    /// Yes or no.
    Boolean(Vec<Option<bool>>),
    /// Numbers digit for digit.
    Decimal(Vec<Option<Decimal>>),
    /// Instants.
    Instant(Vec<Option<Timestamp>>),
    /// UUIDs.
    Uuid(Vec<Option<Uuid>>),
    /// Bytes.
    Bytes(Vec<Option<&'a [u8]>>),
    /// Lists, in the dialect's own text: `{a,b}` in PostgreSQL, JSON in SQLite.
    List(Lists),
}

impl Values<'_> {
    fn of(kind: ColumnType, rows: usize) -> Self {
        match kind {
            ColumnType::Text => Self::Text(Vec::with_capacity(rows)),
            ColumnType::Token => Self::Token(Vec::with_capacity(rows)),
            ColumnType::Int => Self::Integer(Vec::with_capacity(rows)),
            ColumnType::Bool => Self::Boolean(Vec::with_capacity(rows)),
            ColumnType::Decimal => Self::Decimal(Vec::with_capacity(rows)),
            ColumnType::Time => Self::Instant(Vec::with_capacity(rows)),
            ColumnType::Uuid => Self::Uuid(Vec::with_capacity(rows)),
            ColumnType::Bytes => Self::Bytes(Vec::with_capacity(rows)),
            ColumnType::Texts | ColumnType::Tokens | ColumnType::Ints | ColumnType::Nested => {
                Self::List(Lists { text: String::new(), rows: Vec::with_capacity(rows) })
            }
        }
    }
}

/// A row whose cells are not those of its table: a defect of the program, never of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Position of the column in the table.
    pub column: usize,
}

/// The columns of one statement.
#[derive(Debug)]
pub struct Cells<'a> {
    dialect: Dialect,
    columns: Vec<Values<'a>>,
    next: usize,
    rows: usize,
    mismatch: Option<Mismatch>,
}

impl<'a> Cells<'a> {
    /// Room for `rows` rows of `table`.
    #[must_use]
    pub fn new(table: &Table, dialect: Dialect, rows: usize) -> Self {
        let columns = table.columns.iter().map(|column| Values::of(column.kind, rows)).collect();
        Self { dialect, columns, next: 0, rows: 0, mismatch: None }
    }

    /// The next cell of the present row, in the table's order.
    pub fn push(&mut self, cell: Cell<'a>) {
        let index = self.next;
        self.next += 1;
        let fits = match self.columns.get_mut(index) {
            Some(values) => put(values, cell, self.dialect),
            None => false,
        };
        if !fits {
            self.mismatch.get_or_insert(Mismatch { column: index });
        }
    }

    /// Ends the present row.
    ///
    /// # Errors
    /// [`Mismatch`] where it had too few, too many or other cells than its table.
    pub fn end_row(&mut self) -> Result<(), Mismatch> {
        if self.next != self.columns.len() {
            self.mismatch.get_or_insert(Mismatch { column: self.next });
        }
        self.next = 0;
        self.rows += 1;
        self.mismatch.map_or(Ok(()), Err)
    }

    /// How many rows there are.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The columns, in the table's order.
    #[must_use]
    pub fn columns(&self) -> &[Values<'a>] {
        &self.columns
    }

    /// The columns, given away.
    #[must_use]
    pub fn into_columns(self) -> Vec<Values<'a>> {
        self.columns
    }
}

/// Puts `cell` at the end of `values`; `false` where it is of another type (a null keeps the rows aligned).
fn put<'a>(values: &mut Values<'a>, cell: Cell<'a>, dialect: Dialect) -> bool {
    macro_rules! of {
        ($rows:ident, $($pattern:pat => $value:expr),+) => {
            match cell {
                Cell::Null => { $rows.push(None); true }
                $($pattern => { $rows.push(Some($value)); true })+
                _ => { $rows.push(None); false }
            }
        };
    }
    match values {
        Values::Text(rows) => of!(rows, Cell::Text(v) => v),
        Values::Token(rows) => of!(rows, Cell::Token(v) => HexToken::new(v)),
        Values::Integer(rows) => of!(rows, Cell::Int(v) => v),
        Values::Boolean(rows) => of!(rows, Cell::Bool(v) => v),
        Values::Decimal(rows) => of!(rows, Cell::Decimal(v) => v),
        Values::Instant(rows) => of!(rows, Cell::Time(v) => v),
        Values::Uuid(rows) => of!(rows, Cell::Uuid(v) => v),
        Values::Bytes(rows) => of!(rows, Cell::Bytes(v) => v),
        Values::List(lists) => lists.put(&cell, dialect),
    }
}

/// Lists as text, end to end: PostgreSQL's array literal (manual, 8.15.2: quote and backslash are escaped inside quotes) or JSON.
#[derive(Debug, Default)]
pub struct Lists {
    text: String,
    rows: Vec<Option<Range<usize>>>,
}

impl Lists {
    /// The list of `row`.
    #[must_use]
    pub fn get(&self, row: usize) -> Option<&str> {
        self.text.get(self.rows.get(row)?.clone()?)
    }

    /// How many rows there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a row with a list of `items`, each written by `put`.
    fn push<T>(&mut self, dialect: Dialect, items: &[T], mut put: impl FnMut(&mut String, &T)) {
        let (open, close) = match dialect {
            Dialect::Postgres => ('{', '}'),
            Dialect::Sqlite => ('[', ']'),
        };
        let start = self.text.len();
        self.text.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.text.push(',');
            }
            put(&mut self.text, item);
        }
        self.text.push(close);
        self.rows.push(Some(start..self.text.len()));
    }

    /// Adds `cell`; `false` where it is no list (a null keeps the rows aligned).
    fn put(&mut self, cell: &Cell<'_>, dialect: Dialect) -> bool {
        match cell {
            Cell::Texts(v) => self.push(dialect, v, |out, item| quote(out, item, dialect)),
            // Hex digits need no escapes in either dialect.
            Cell::Tokens(v) => self.push(dialect, v, |out, item| {
                out.push('"');
                item.push_hex(out);
                out.push('"');
            }),
            Cell::Ints(v) => self.push(dialect, v, |out, item| {
                // Writing to a String cannot fail.
                _ = write!(out, "{item}");
            }),
            _ => {
                self.rows.push(None);
                return *cell == Cell::Null;
            }
        }
        true
    }
}

/// A text between quotes, with the escapes of `dialect`.
fn quote(out: &mut String, text: &str, dialect: Dialect) {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        out.push('"');
        out.push_str(text);
        out.push('"');
        return;
    }
    match dialect {
        Dialect::Sqlite => out.push_str(&serde_json::Value::from(text).to_string()),
        Dialect::Postgres => {
            out.push('"');
            for c in text.chars() {
                if matches!(c, '"' | '\\') {
                    out.push('\\');
                }
                out.push(c);
            }
            out.push('"');
        }
    }
}

#[cfg(test)]
mod tests {
    use sunder_schemas::records::Text;

    use super::*;

    #[test]
    fn lists_are_quoted_for_their_dialect() {
        let items = ["a", "b,\"c\"", "d\\e", "\u{1}ä"].map(Text::from);
        let tokens = [EntityToken([0xab; 16])];
        let said = |dialect| {
            let mut lists = Lists::default();
            for cell in [Cell::Texts(&items), Cell::Null, Cell::Texts(&[]), Cell::Tokens(&tokens), Cell::Ints(&[1, -2])] {
                assert!(lists.put(&cell, dialect));
            }
            assert!(!lists.put(&Cell::Int(1), dialect), "a number is no list");
            assert_eq!((lists.len(), lists.get(5), lists.get(6)), (6, None, None));
            (0..5).map(|row| lists.get(row).unwrap_or("NULL").to_owned()).collect::<Vec<_>>()
        };
        let hex = "ab".repeat(16);
        let of_tokens = |open, close| format!("{open}\"{hex}\"{close}");
        assert_eq!(
            said(Dialect::Postgres),
            ["{\"a\",\"b,\\\"c\\\"\",\"d\\\\e\",\"\u{1}ä\"}", "NULL", "{}", &of_tokens('{', '}'), "{1,-2}"]
        );
        assert_eq!(
            said(Dialect::Sqlite),
            ["[\"a\",\"b,\\\"c\\\"\",\"d\\\\e\",\"\\u0001ä\"]", "NULL", "[]", &of_tokens('[', ']'), "[1,-2]"]
        );
    }

    #[test]
    fn a_token_is_its_hex_text() {
        assert_eq!(HexToken::new(EntityToken([0xab; 16])).as_str(), EntityToken([0xab; 16]).to_hex());
    }
}
