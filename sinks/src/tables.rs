//! Every table, made from the columns that its record declares: both dialects' definitions and statements follow from there, so a
//! further dataset is a record type and a line in [`Table::of_kind`].
//!
//! Columns of a table stand in the order of its record's cells, then the provenance. All names are constants of this program: no text
//! from outside ever becomes SQL.

use std::fmt::Write as _;

use sunder_schemas::class::Kind;
use sunder_schemas::records::{ColumnType, PiiRecord, Record, StateRecord};

use crate::options::Dialect;

/// The type's name in `dialect`: decimals are `numeric` and in SQLite text, which keeps every digit; instants are `timestamptz` and in
/// SQLite ISO 8601 text with milliseconds, which sorts as time; lists are arrays and in SQLite JSON.
const fn sql_type(kind: ColumnType, dialect: Dialect) -> &'static str {
    match (dialect, kind) {
        (Dialect::Postgres, ColumnType::Text | ColumnType::Token | ColumnType::Nested) => "text",
        (Dialect::Postgres, ColumnType::Int) => "bigint",
        (Dialect::Postgres, ColumnType::Bool) => "boolean",
        (Dialect::Postgres, ColumnType::Decimal) => "numeric",
        (Dialect::Postgres, ColumnType::Time) => "timestamptz",
        (Dialect::Postgres, ColumnType::Uuid) => "uuid",
        (Dialect::Postgres, ColumnType::Bytes) => "bytea",
        (Dialect::Postgres, ColumnType::Texts | ColumnType::Tokens) => "text[]",
        (Dialect::Postgres, ColumnType::Ints) => "bigint[]",
        (Dialect::Sqlite, ColumnType::Int | ColumnType::Bool) => "INTEGER",
        (Dialect::Sqlite, ColumnType::Bytes) => "BLOB",
        (Dialect::Sqlite, _) => "TEXT",
    }
}

const fn is_list(kind: ColumnType) -> bool {
    matches!(kind, ColumnType::Texts | ColumnType::Tokens | ColumnType::Ints)
}

/// The type of one element of the array that binds a whole column in PostgreSQL: lists travel as their literal.
const fn bound_type(kind: ColumnType) -> &'static str {
    if is_list(kind) { "text" } else { sql_type(kind, Dialect::Postgres) }
}

/// What a column's values say about people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Business data without personal fields.
    Business,
    /// A token: leads back to a person only with the seller's token key.
    Pseudonym,
    /// Where the row came from.
    Attribution,
    /// Which record of which topic made it.
    Provenance,
    /// Ciphertext, or what names its key.
    Sealed,
}

/// A column.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: ColumnType,
    /// Whether it is NOT NULL.
    pub required: bool,
    /// What it says about people.
    pub class: Class,
    /// Meaning and unit.
    pub comment: &'static str,
}

/// Which record made the row.
const PROVENANCE: [Column; 3] = [
    provenance("topic_id", ColumnType::Text, "incarnation of the topic the row came from"),
    provenance("topic_partition", ColumnType::Int, "partition of that topic"),
    provenance("topic_offset", ColumnType::Int, "offset of the record in that partition"),
];

const fn provenance(name: &'static str, kind: ColumnType, comment: &'static str) -> Column {
    Column { name, kind, required: true, class: Class::Provenance, comment }
}

/// Columns of ciphertext and of what names its key.
const SEALED: [&str; 2] = ["key_id", "block"];
/// Columns of the attribution (DESIGN section 4) and the source's version: on every row, never null.
pub const ATTRIBUTION: [&str; 9] = [
    "selling_partner_id",
    "marketplace_id",
    "source_api",
    "source_operation",
    "source_request_id",
    "collected_at",
    "event_id",
    "payload_sha256",
    "source_version",
];

/// What the age of a table's rows counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// A column; the row goes with all that belongs to its entity.
    OfEntity(&'static str),
    /// A column; each row goes by itself, and one that was seen again lives on.
    OfRow(&'static str),
    /// Not its own: it goes with its order, or by a deadline of its own.
    None,
}

/// A table.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its name; in the warehouse the kind's.
    pub name: &'static str,
    /// What a row is.
    pub comment: &'static str,
    /// Its primary key, in the order of the record key's parts: seller, entity, and the child's or group's own part.
    pub key: &'static [&'static str],
    /// Every column in order.
    pub columns: Vec<Column>,
    /// What the age of its rows counts from.
    pub age: Age,
}

impl Table {
    /// The warehouse's table of `kind`.
    #[must_use]
    pub fn of_kind(kind: Kind) -> Self {
        let key: &[&str] = match kind {
            Kind::Orders => &["selling_partner_id", "order_token"],
            Kind::OrderItems => &["selling_partner_id", "order_token", "order_item_token"],
            Kind::Packages => &["selling_partner_id", "order_token", "package_token"],
            Kind::InventoryLevels => &["selling_partner_id", "level_token"],
        };
        let age = match kind {
            Kind::Orders => Age::OfEntity("created_at"),
            Kind::InventoryLevels => Age::OfRow("collected_at"),
            Kind::OrderItems | Kind::Packages => Age::None,
        };
        Self { age, ..Self::new(kind.as_str(), "one row per key: its latest non-personal state", key, StateRecord::columns(kind)) }
    }

    /// The vault's table: the latest sealed block of one field group of one entity.
    #[must_use]
    pub fn sealed_block() -> Self {
        Self::new("sealed_block", PiiRecord::DOC, &["selling_partner_id", "entity_token", "field_group"], PiiRecord::columns())
    }

    /// The cold store's table: fields under a legal hold, each under its hold's token and key.
    #[must_use]
    pub fn held_block() -> Self {
        let comment = "one row per hold and field group: sealed under the hold's own key, kept until the hold ends";
        Self { name: "held_block", comment, ..Self::sealed_block() }
    }

    fn new(name: &'static str, comment: &'static str, key: &'static [&'static str], columns: Vec<sunder_schemas::records::Column>) -> Self {
        let class = |column: &sunder_schemas::records::Column| {
            if SEALED.contains(&column.name) {
                Class::Sealed
            } else if ATTRIBUTION.contains(&column.name) {
                Class::Attribution
            } else if matches!(column.ty, ColumnType::Token | ColumnType::Tokens) {
                Class::Pseudonym
            } else {
                Class::Business
            }
        };
        let columns = columns
            .iter()
            .map(|column| Column {
                name: column.name,
                kind: column.ty,
                required: !column.nullable,
                class: class(column),
                comment: column.doc.trim(),
            })
            .chain(PROVENANCE)
            .collect();
        Self { name, comment: comment.trim(), key, columns, age: Age::None }
    }

    /// The column of the entity's token: second part of the key.
    #[must_use]
    pub fn entity_column(&self) -> &'static str {
        self.key.get(1).copied().unwrap_or_default()
    }

    /// Creates the table where it is missing.
    #[must_use]
    pub fn create_sql(&self, dialect: Dialect) -> String {
        let mut sql = format!("CREATE TABLE IF NOT EXISTS {} (", self.name);
        for column in &self.columns {
            let null = if column.required { " NOT NULL" } else { "" };
            _ = write!(sql, "\n  {} {}{null},", column.name, sql_type(column.kind, dialect));
            if dialect == Dialect::Sqlite {
                // SQLite keeps the definition's text, so its comments stay with the file.
                _ = write!(sql, " -- {}", column.described());
            }
        }
        _ = write!(sql, "\n  PRIMARY KEY ({})\n)", self.key.join(", "));
        if dialect == Dialect::Sqlite {
            sql.push_str(" WITHOUT ROWID");
        }
        sql
    }

    /// What PostgreSQL must know of a column beside its type: its comment, and for bytes and sealed values how they are kept.
    #[must_use]
    pub fn settle_sql(&self, column: &Column) -> Vec<String> {
        let mut statements = vec![format!("COMMENT ON COLUMN {}.{} IS '{}'", self.name, column.name, quoted(&column.described()))];
        if column.class == Class::Sealed {
            // ANALYZE would copy samples of the values into pg_statistic, where DELETE and VACUUM do not reach.
            statements.push(format!("ALTER TABLE {} ALTER COLUMN {} SET STATISTICS 0", self.name, column.name));
        }
        if column.kind == ColumnType::Bytes {
            // Uncompressed, so that a search of the files can see a block's header.
            statements.push(format!("ALTER TABLE {} ALTER COLUMN {} SET STORAGE EXTERNAL", self.name, column.name));
        }
        statements
    }

    /// What a row is, for the database's own documentation.
    #[must_use]
    pub fn comment_sql(&self) -> String {
        format!("COMMENT ON TABLE {} IS '{}'", self.name, quoted(self.comment))
    }

    /// Adds a column that an older version of the program did not have; nullable, for the rows that are there have none.
    #[must_use]
    pub fn add_column_sql(&self, column: &Column, dialect: Dialect) -> String {
        format!("ALTER TABLE {} ADD COLUMN {} {}", self.name, column.name, sql_type(column.kind, dialect))
    }

    /// One statement for a whole batch in PostgreSQL: an array per column, `$1` to `$n`.
    #[must_use]
    pub fn upsert_unnest_sql(&self) -> String {
        let mut arrays = String::new();
        let mut picked = String::new();
        let mut names = String::new();
        for (index, column) in self.columns.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            _ = write!(arrays, "{comma}${}::{}[]", index + 1, bound_type(column.kind));
            _ = write!(names, "{comma}{}", column.name);
            _ = write!(picked, "{comma}u.{}", column.name);
            if is_list(column.kind) {
                _ = write!(picked, "::{}", sql_type(column.kind, Dialect::Postgres));
            }
        }
        format!("INSERT INTO {} AS t ({names}) SELECT {picked} FROM UNNEST({arrays}) AS u({names}) {}", self.name, self.conflict_sql())
    }

    /// A statement for `rows` rows in SQLite.
    #[must_use]
    pub fn upsert_values_sql(&self, rows: usize) -> String {
        let names: Vec<&str> = self.columns.iter().map(|column| column.name).collect();
        let row = format!("({})", vec!["?"; names.len()].join(","));
        format!(
            "INSERT INTO {} AS t ({}) VALUES {} {}",
            self.name,
            names.join(", "),
            vec![row.as_str(); rows].join(","),
            self.conflict_sql()
        )
    }

    /// A lower version never replaces a higher one; of one version the later look wins; the same record again changes nothing.
    fn conflict_sql(&self) -> String {
        let set: Vec<String> = self
            .columns
            .iter()
            .filter(|column| !self.key.contains(&column.name))
            .map(|column| format!("{0} = excluded.{0}", column.name))
            .collect();
        format!(
            "ON CONFLICT ({}) DO UPDATE SET {} WHERE (t.source_version, t.collected_at) <= (excluded.source_version, excluded.collected_at)",
            self.key.join(", "),
            set.join(", ")
        )
    }

    /// Deletes by the first `parts` parts of the key, an array of texts per part: `$1` to `$parts`.
    #[must_use]
    pub fn delete_unnest_sql(&self, parts: usize) -> String {
        let key = self.key.get(..parts).unwrap_or(self.key);
        let arrays: Vec<String> = (1..=key.len()).map(|n| format!("${n}::text[]")).collect();
        let matches: Vec<String> = key.iter().map(|name| format!("t.{name} = k.{name}")).collect();
        format!(
            "DELETE FROM {} AS t USING UNNEST({}) AS k({}) WHERE {}",
            self.name,
            arrays.join(", "),
            key.join(", "),
            matches.join(" AND ")
        )
    }

    /// Deletes `rows` rows by the first `parts` parts of the key in SQLite.
    #[must_use]
    pub fn delete_values_sql(&self, parts: usize, rows: usize) -> String {
        let key = self.key.get(..parts).unwrap_or(self.key);
        let row = format!("({})", vec!["?"; key.len()].join(","));
        format!("DELETE FROM {} WHERE ({}) IN (VALUES {})", self.name, key.join(", "), vec![row.as_str(); rows].join(","))
    }

    /// What a row of one of the entities `older_than` takes must satisfy beside being theirs, in SQLite's `?`, or PostgreSQL's `$3`.
    fn age_condition(&self, dialect: Dialect, by_age: bool) -> String {
        match (self.age, dialect) {
            (Age::OfRow(column), Dialect::Postgres) if by_age => format!(" AND t.{column} < {}", instant_sql(3)),
            (Age::OfRow(column), Dialect::Sqlite) if by_age => format!(" AND {column} < ?"),
            _ => String::new(),
        }
    }

    /// Whether [`Table::entities_sql`] takes the instant as a further argument.
    #[must_use]
    pub const fn binds_age(&self, by_age: bool) -> bool {
        by_age && matches!(self.age, Age::OfRow(_))
    }

    /// Deletes or counts (`verb`: `DELETE` or `SELECT count(*)`) the rows of entities: in PostgreSQL of arrays of sellers and tokens, in
    /// SQLite of `rows` pairs. With `by_age` only those older than an instant, where rows have an age of their own: `$3` in milliseconds,
    /// or after the pairs as text.
    #[must_use]
    pub fn entities_sql(&self, verb: &str, dialect: Dialect, rows: usize, by_age: bool) -> String {
        let (seller, entity) = ("selling_partner_id", self.entity_column());
        let age = self.age_condition(dialect, by_age);
        match dialect {
            Dialect::Postgres => format!(
                "{verb} FROM {} AS t WHERE (t.{seller}, t.{entity}) IN (SELECT * FROM UNNEST($1::text[], $2::text[])){age}",
                self.name
            ),
            Dialect::Sqlite => {
                format!("{verb} FROM {} WHERE ({seller}, {entity}) IN (VALUES {}){age}", self.name, vec!["(?,?)"; rows].join(","))
            }
        }
    }

    /// Seller and entity of the rows that are older than an instant: `$1` in milliseconds, in SQLite `?` as text. `None` where rows have
    /// no age of their own.
    #[must_use]
    pub fn aged_sql(&self, dialect: Dialect) -> Option<String> {
        let (Age::OfEntity(column) | Age::OfRow(column)) = self.age else { return None };
        let instant = if dialect == Dialect::Postgres { instant_sql(1) } else { "?".to_owned() };
        Some(format!("SELECT selling_partner_id, {} FROM {} WHERE {column} < {instant}", self.entity_column(), self.name))
    }

    /// Inserts a row of constants into a table of PostgreSQL.
    #[must_use]
    pub fn constants_sql(&self) -> String {
        let constant = |column: &Column| match column.kind {
            ColumnType::Int => "0",
            ColumnType::Bool => "false",
            ColumnType::Decimal => "0",
            ColumnType::Time => "timestamptz 'epoch'",
            ColumnType::Uuid => "'00000000-0000-0000-0000-000000000000'",
            ColumnType::Bytes => "''::bytea",
            ColumnType::Text | ColumnType::Token | ColumnType::Nested => "'~constant'",
            ColumnType::Texts | ColumnType::Tokens | ColumnType::Ints => "'{}'",
        };
        let (names, values): (Vec<&str>, Vec<&str>) = self.columns.iter().map(|column| (column.name, constant(column))).unzip();
        format!("INSERT INTO {} ({}) VALUES ({})", self.name, names.join(", "), values.join(", "))
    }

    /// Deletes what [`Table::constants_sql`] inserted.
    #[must_use]
    pub fn drop_constants_sql(&self) -> String {
        format!("DELETE FROM {} WHERE selling_partner_id = '~constant'", self.name)
    }

    /// Every row as one text, then each column of bytes: what a scan compares with its needles.
    #[must_use]
    pub fn row_text_sql(&self, dialect: Dialect) -> String {
        let cast = if dialect == Dialect::Postgres { "::text" } else { "" };
        let (bytes, texts): (Vec<&Column>, Vec<&Column>) = self.columns.iter().partition(|column| column.kind == ColumnType::Bytes);
        let text: Vec<String> = texts.iter().map(|column| format!("coalesce({}{cast}, '')", column.name)).collect();
        let mut sql = format!("SELECT {}", text.join(" || ' ' || "));
        for column in bytes {
            _ = write!(sql, ", {}", column.name);
        }
        _ = write!(sql, " FROM {}", self.name);
        sql
    }
}

impl Column {
    /// Comment with class, for the database's own documentation.
    fn described(&self) -> String {
        let class = match self.class {
            Class::Business => "business",
            Class::Pseudonym => "pseudonym",
            Class::Attribution => "attribution",
            Class::Provenance => "provenance",
            Class::Sealed => "(sealed)",
        };
        format!("{}; {class}", self.comment)
    }
}

/// The instant that the `n`th argument gives in milliseconds since 1970, in PostgreSQL.
fn instant_sql(n: usize) -> String {
    format!("(timestamptz 'epoch' + ${n}::bigint * interval '1 millisecond')")
}

fn quoted(text: &str) -> String {
    text.replace('\'', "''")
}

/// Positions of the sinks, moved in the transaction of the rows.
pub const SINK_OFFSET_SQL: &str = "CREATE TABLE IF NOT EXISTS sink_offset (
  sink TEXT NOT NULL, topic TEXT NOT NULL, incarnation TEXT NOT NULL, topic_partition BIGINT NOT NULL, next_offset BIGINT NOT NULL,
  PRIMARY KEY (sink, topic, incarnation, topic_partition)
)";

/// Controls planted in the warehouse, which has no place for blocks of its own.
#[must_use]
pub const fn scan_control_sql(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => {
            "CREATE TABLE IF NOT EXISTS scan_control (case_id text PRIMARY KEY, key_id bytea NOT NULL, block bytea NOT NULL)"
        }
        Dialect::Sqlite => "CREATE TABLE IF NOT EXISTS scan_control (case_id TEXT PRIMARY KEY, key_id BLOB NOT NULL, block BLOB NOT NULL)",
    }
}

/// The view that says how fresh each table is, per seller.
#[must_use]
pub fn freshness_sql(tables: &[Table], dialect: Dialect) -> Vec<String> {
    let age = match dialect {
        Dialect::Postgres => "extract(epoch FROM now() - max(collected_at))::bigint",
        Dialect::Sqlite => "CAST((julianday('now') - julianday(max(collected_at))) * 86400 AS INTEGER)",
    };
    let selects: Vec<String> = tables
        .iter()
        .map(|table| {
            format!(
                "SELECT '{0}' AS table_name, selling_partner_id, count(*) AS row_count, max(collected_at) AS collected_at, {age} AS age_seconds \
                 FROM {0} GROUP BY selling_partner_id",
                table.name
            )
        })
        .collect();
    let select = selects.join(" UNION ALL ");
    match dialect {
        // Replaced in place: views of analysts may stand on it.
        Dialect::Postgres => vec![format!("CREATE OR REPLACE VIEW freshness AS {select}")],
        Dialect::Sqlite => vec!["DROP VIEW IF EXISTS freshness".to_owned(), format!("CREATE VIEW freshness AS {select}")],
    }
}

/// The tables of the warehouse, one per kind.
#[must_use]
pub fn warehouse() -> Vec<Table> {
    Kind::ALL.iter().map(|kind| Table::of_kind(*kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_part_is_a_column_and_required() {
        for table in warehouse().into_iter().chain([Table::sealed_block()]) {
            for part in table.key {
                assert!(table.columns.iter().any(|column| column.name == *part && column.required), "{}.{part}", table.name);
            }
            assert_eq!(table.key.first(), Some(&"selling_partner_id"), "{}", table.name);
            let names: std::collections::BTreeSet<_> = table.columns.iter().map(|column| column.name).collect();
            assert_eq!(names.len(), table.columns.len(), "a name twice in {}", table.name);
        }
    }

    #[test]
    fn every_row_carries_its_attribution() {
        for table in warehouse().into_iter().chain([Table::sealed_block()]) {
            for name in ATTRIBUTION {
                assert!(table.columns.iter().any(|column| column.name == name && column.required), "{}.{name}", table.name);
            }
        }
    }

    #[test]
    fn warehouse_tables_hold_nothing_sealed() {
        let sealed = |table: &Table| table.columns.iter().any(|column| column.class == Class::Sealed || column.kind == ColumnType::Bytes);
        assert!(!warehouse().iter().any(sealed));
        assert_eq!(Table::sealed_block().columns.iter().filter(|column| column.class == Class::Sealed).count(), SEALED.len());
    }
}
