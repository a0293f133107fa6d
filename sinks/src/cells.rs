//! Rows turned into columns, borrowed from the records: what one statement binds.

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
    List(Vec<Option<String>>),
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
            ColumnType::Texts | ColumnType::Tokens | ColumnType::Ints | ColumnType::Nested => Self::List(Vec::with_capacity(rows)),
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
        Values::List(rows) => of!(
            rows,
            Cell::Texts(v) => list(dialect, true, v.iter().map(String::as_str)),
            Cell::Tokens(v) => list(dialect, true, v.iter().map(EntityToken::to_hex)),
            Cell::Ints(v) => list(dialect, false, v.iter().map(ToString::to_string))
        ),
    }
}

/// A list as text: PostgreSQL's array literal (manual, 8.15.2: quote and backslash are escaped inside quotes) or JSON.
fn list(dialect: Dialect, quoted: bool, items: impl Iterator<Item = impl AsRef<str>>) -> String {
    let (open, close) = match dialect {
        Dialect::Postgres => ('{', '}'),
        Dialect::Sqlite => ('[', ']'),
    };
    let mut text = String::with_capacity(48);
    text.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            text.push(',');
        }
        match (quoted, dialect) {
            (false, _) => text.push_str(item.as_ref()),
            (true, Dialect::Sqlite) => text.push_str(&serde_json::Value::from(item.as_ref()).to_string()),
            (true, Dialect::Postgres) => {
                text.push('"');
                for c in item.as_ref().chars() {
                    if matches!(c, '"' | '\\') {
                        text.push('\\');
                    }
                    text.push(c);
                }
                text.push('"');
            }
        }
    }
    text.push(close);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_quoted_for_their_dialect() {
        let items = ["a", "b,\"c\"", "d\\e"];
        assert_eq!(list(Dialect::Postgres, true, items.iter()), r#"{"a","b,\"c\"","d\\e"}"#);
        assert_eq!(list(Dialect::Sqlite, true, items.iter()), r#"["a","b,\"c\"","d\\e"]"#);
        assert_eq!(list(Dialect::Postgres, false, ["1", "2"].iter()), "{1,2}");
        assert_eq!(list(Dialect::Postgres, true, std::iter::empty::<&str>()), "{}");
    }

    #[test]
    fn a_token_is_its_hex_text() {
        assert_eq!(HexToken::new(EntityToken([0xab; 16])).as_str(), EntityToken([0xab; 16]).to_hex());
    }
}
