//! One row of the warehouse by its key, for tracing it back.

use std::collections::BTreeMap;

use sunder_schemas::class::Kind;

use crate::tables::Table;

/// Rows that are fetched at most: two tell that a key names more than one.
const ROWS_MAX: usize = 2;
/// First column of every table's key.
const SELLER: &str = "selling_partner_id";

/// A row as text, by column; `None` is NULL.
pub type RowText = BTreeMap<&'static str, Option<String>>;

/// A statement that finds rows, and how often its text parameters are bound: `parts` over and over.
pub(crate) struct Lookup {
    pub(crate) sql: String,
    pub(crate) parts: Vec<String>,
    pub(crate) columns: Vec<&'static str>,
}

impl Lookup {
    /// Rows of `kind` that `key` names: the record's key or neighbouring parts of it, or an event id.
    pub(crate) fn of(kind: Kind, key: &[String]) -> Self {
        let table = Table::of_kind(kind);
        let columns: Vec<&'static str> = table.columns.iter().map(|column| column.name).collect();
        let cast: Vec<String> = columns.iter().map(|name| format!("CAST({name} AS TEXT)")).collect();
        let mut parts = Vec::new();
        let mut ways = Vec::new();
        let mut way = |names: &[&str]| {
            let tests = names.iter().zip(key).map(|(name, part)| {
                parts.push(part.clone());
                format!("CAST({name} AS TEXT) = ${}", parts.len())
            });
            ways.push(tests.collect::<Vec<_>>().join(" AND "));
        };
        if key.len() == 1 {
            way(&["event_id"]);
        }
        // A seller alone names no row.
        for names in table.key.windows(key.len().max(1)).filter(|names| *names != [SELLER]) {
            way(names);
        }
        let found = if ways.is_empty() { "1 = 0".to_owned() } else { ways.join(" OR ") };
        let sql = format!("SELECT {} FROM {} WHERE {found} LIMIT {ROWS_MAX}", cast.join(", "), table.name);
        Self { sql, parts, columns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(kind: Kind, key: &[&str]) -> String {
        let key: Vec<String> = key.iter().map(|part| (*part).to_owned()).collect();
        let lookup = Lookup::of(kind, &key);
        assert_eq!(lookup.parts.len(), lookup.sql.matches('$').count());
        lookup.sql.split(" WHERE ").nth(1).unwrap().replace("CAST(", "").replace(" AS TEXT)", "")
    }

    #[test]
    fn a_key_may_leave_out_its_first_or_last_parts_but_a_seller_alone_names_nothing() {
        assert_eq!(ways(Kind::Orders, &["t"]), "event_id = $1 OR order_token = $2 LIMIT 2");
        assert_eq!(ways(Kind::Orders, &["s", "t"]), "selling_partner_id = $1 AND order_token = $2 LIMIT 2");
        assert_eq!(
            ways(Kind::OrderItems, &["a", "b"]),
            "selling_partner_id = $1 AND order_token = $2 OR order_token = $3 AND order_item_token = $4 LIMIT 2"
        );
        assert_eq!(ways(Kind::Orders, &["s", "t", "u"]), "1 = 0 LIMIT 2");
    }
}
