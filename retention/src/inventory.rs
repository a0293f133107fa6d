//! The inventory of copies: what is declared beside what is really there. Pure but for the SQL that asks a database what it holds.
//!
//! Invariants: what nobody declared is a finding, never an assumption; a declared copy that this program cannot reach (a base backup, an
//! archive, a replica) has an owner and a life, and is named on certificates until the last of it is past.

use std::collections::BTreeSet;

use serde::Serialize;
use sunder_schemas::certificate::{Iso, Remains};
use sunder_schemas::time::{Period, Timestamp};

/// Something that is there and may hold data.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Object {
    /// `kafka`, `keys`, `vault` or `warehouse`.
    pub store: String,
    /// What it is: topic, table, view, file, publication, replication slot, archive, ...
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl Object {
    /// One of `store`.
    #[must_use]
    pub fn new(store: &str, kind: &str, name: &str) -> Self {
        Self { store: store.to_owned(), kind: kind.to_owned(), name: name.to_owned() }
    }

    /// How a declaration names it: `warehouse.dbt.orders`, `vault.archive_mode`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.store, self.name)
    }
}

/// A copy that somebody declared, with who answers for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// What it is, in words for the certificate.
    pub what: String,
    /// Who answers for it.
    pub owner: String,
    /// How long it lives: what was erased is in no such copy any more after that.
    pub life: Period,
    /// Paths of the objects by which the inventory sees it; `*` at the end stands for the rest.
    pub covers: Vec<String>,
}

impl Copy {
    fn covers(&self, object: &Object) -> bool {
        let path = object.path();
        self.covers.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(front) => path.starts_with(front),
            None => *pattern == path,
        })
    }

    /// As a certificate names it: until the last copy from before `destroyed` is past.
    #[must_use]
    pub fn remains(&self, destroyed: Timestamp) -> Remains {
        Remains { what: format!("{} (answers for it: {})", self.what, self.owner), until: Some(Iso(destroyed.plus(self.life))) }
    }
}

/// What comparing came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compared {
    /// There and declared by this program.
    pub known: Vec<Object>,
    /// There and declared by somebody: with the place of its declaration in the list.
    pub declared: Vec<(Object, usize)>,
    /// There, and nobody knows why.
    pub unknown: Vec<Object>,
    /// Declared by this program, and not there.
    pub missing: Vec<Object>,
}

/// Compares what is there with what this program makes and what is declared.
#[must_use]
pub fn compare(found: &BTreeSet<Object>, own: &BTreeSet<Object>, copies: &[Copy]) -> Compared {
    let mut compared = Compared { missing: own.difference(found).cloned().collect(), ..Compared::default() };
    for object in found {
        if own.contains(object) {
            compared.known.push(object.clone());
        } else if let Some(index) = copies.iter().position(|copy| copy.covers(object)) {
            compared.declared.push((object.clone(), index));
        } else {
            compared.unknown.push(object.clone());
        }
    }
    compared
}

/// What a PostgreSQL database holds, and by which ways copies of it leave: kind and name, as text. A name of another schema than the
/// session's carries its schema.
pub const POSTGRES_OBJECTS: &str = "SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind, \
     CASE WHEN n.nspname = current_schema() THEN c.relname::text ELSE n.nspname::text || '.' || c.relname::text END AS name \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') \
     AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%' \
     UNION ALL SELECT 'publication', 'publication.' || pubname::text FROM pg_publication \
     UNION ALL SELECT 'replication slot', 'slot.' || slot_name::text FROM pg_replication_slots WHERE database IS NULL OR database = current_database() \
     UNION ALL SELECT 'replica', 'replica.' || coalesce(nullif(application_name, ''), 'unnamed') FROM pg_stat_replication \
     UNION ALL SELECT 'base backup', 'base_backup' FROM pg_stat_progress_basebackup \
     UNION ALL SELECT 'archive', 'archive_mode' FROM pg_settings WHERE name = 'archive_mode' AND setting <> 'off'";

/// What a SQLite file holds: kind and name.
pub const SQLITE_OBJECTS: &str =
    "SELECT type AS kind, name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_declared_is_unknown_and_what_is_declared_has_an_owner() {
        let table = |name: &str| Object::new("warehouse", "table", name);
        let found: BTreeSet<Object> = [table("orders"), table("dbt.daily"), table("orders_backup"), table("dbt2.x")].into();
        let own: BTreeSet<Object> = [table("orders"), table("packages")].into();
        let copy = Copy {
            what: "models of the analysts".to_owned(),
            owner: "analytics".to_owned(),
            life: Period::days(14),
            covers: vec!["warehouse.dbt.*".to_owned(), "warehouse.dbt2.y".to_owned()],
        };
        let compared = compare(&found, &own, std::slice::from_ref(&copy));
        assert_eq!(compared.known, [table("orders")]);
        assert_eq!(compared.declared, [(table("dbt.daily"), 0)]);
        assert_eq!(compared.unknown, [table("dbt2.x"), table("orders_backup")], "near is not declared");
        assert_eq!(compared.missing, [table("packages")]);
        let remains = copy.remains(Timestamp(0));
        assert_eq!(remains.until, Some(Iso(Timestamp(14 * 86_400_000))));
        assert!(remains.what.contains("analytics"));
    }
}
