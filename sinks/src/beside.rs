//! A store that is built beside the live one from the log, and then takes its place.
//!
//! On SQLite it is a second file, on PostgreSQL a second schema of the same database. Taking over copies its rows and positions into the
//! live tables in one transaction: readers see the old rows or the new ones, and tables keep their grants and the views on them. A sink
//! that writes meanwhile finds its position moved and goes on from the new one. Planted controls of cases stay, and so do tables that no topic
//! feeds: the cold store is in no log, so nothing could bring it back.
//!
//! The copy is in no scan. So no case is certified while one is being built (the process that does so is registered under
//! [`sunder_retention::lease::REPLAY`]), and every forgetting first removes what a builder that died, or stands still, has left: then
//! there is nothing left to take over.

use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::store::{CANARY, Store};
use crate::tables::Table;
use crate::{SinkError, Vault, Warehouse};

/// Which of the two a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Side {
    /// The one that is read and proved.
    #[default]
    Live,
    /// The one that is being built.
    Beside,
}

/// A store that another one, built beside it, can take the place of.
#[async_trait]
pub trait Replaceable: Send + Sync {
    /// Replaces its rows and positions by those of the store beside, in one transaction; returns how many rows it has now. The store
    /// beside must be closed.
    ///
    /// # Errors
    /// [`SinkError`]: then nothing was replaced.
    async fn take_over(&self) -> Result<u64, SinkError>;

    /// Removes the store beside; says whether there was one.
    ///
    /// # Errors
    /// [`SinkError`].
    async fn drop_beside(&self) -> Result<bool, SinkError>;

    /// Closes every connection.
    async fn close(&self);
}

#[async_trait]
impl Replaceable for Store {
    async fn take_over(&self) -> Result<u64, SinkError> {
        self.backend.take_over(&self.fed()).await
    }

    async fn drop_beside(&self) -> Result<bool, SinkError> {
        self.backend.drop_beside().await
    }

    async fn close(&self) {
        self.backend.close().await;
    }
}

macro_rules! replaceable {
    ($($store:ty),+) => {
        $(#[async_trait]
        impl Replaceable for $store {
            async fn take_over(&self) -> Result<u64, SinkError> {
                self.store.take_over().await
            }

            async fn drop_beside(&self) -> Result<bool, SinkError> {
                self.store.drop_beside().await
            }

            async fn close(&self) {
                self.store.close().await;
            }
        })+
    };
}
replaceable!(Vault, Warehouse);

/// Name under which the store beside `store` keeps its positions, and after which its consumer group is called.
pub(crate) const fn name(store: &'static str) -> &'static str {
    match store.as_bytes() {
        b"warehouse" => "warehouse-replay",
        b"vault" => "vault-replay",
        _ => "replay",
    }
}

/// Where the built rows lie: a schema, or the name an attached file gets.
pub(crate) fn schema(store: &str) -> String {
    format!("sunder_replay_{store}")
}

/// What every name of a copy beside holds: of a schema in PostgreSQL, of a file on SQLite.
#[must_use]
pub fn is_beside(name: &str) -> bool {
    name.starts_with("sunder_replay_") || [".replay", ".replay-wal", ".replay-shm", ".replay-journal"].iter().any(|end| name.ends_with(end))
}

/// A statement of taking over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    /// Whether it writes rows of the store.
    pub(crate) writes_rows: bool,
}

/// The statements of taking over, in order. `fed`: indexes of the tables that topics feed, no other is touched.
pub(crate) fn take_over_sql(store: &'static str, tables: &[Table], fed: &BTreeSet<usize>) -> Vec<Statement> {
    let (schema, built) = (schema(store), name(store));
    let mut statements = Vec::new();
    let mut push = |sql, writes_rows| statements.push(Statement { sql, writes_rows });
    for (_, table) in tables.iter().enumerate().filter(|(index, _)| fed.contains(index)) {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
        let (columns, is_row) = (columns.join(", "), format!("selling_partner_id <> '{CANARY}'"));
        push(format!("DELETE FROM {} WHERE {is_row}", table.name), false);
        push(format!("INSERT INTO {0} ({columns}) SELECT {columns} FROM {schema}.{0} WHERE {is_row}", table.name), true);
    }
    push(format!("DELETE FROM sink_offset WHERE sink = '{store}'"), false);
    push(
        format!(
            "INSERT INTO sink_offset (sink, topic, incarnation, topic_partition, next_offset) \
             SELECT '{store}', topic, incarnation, topic_partition, next_offset FROM {schema}.sink_offset WHERE sink = '{built}'"
        ),
        false,
    );
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cold_store_is_never_replaced() {
        let tables = [Table::sealed_block(), Table::held_block()];
        let statements = take_over_sql("vault", &tables, &BTreeSet::from([crate::vault::SEALED]));
        assert!(statements.iter().any(|statement| statement.sql.starts_with("DELETE FROM sealed_block ")));
        assert!(!statements.iter().any(|statement| statement.sql.contains("held_block")));
    }

    #[test]
    fn a_copy_is_known_by_its_name() {
        for name in ["sunder_replay_vault.sealed_block", "/var/lib/vault.db.replay", "/var/lib/vault.db.replay-wal"] {
            assert!(is_beside(name), "{name}");
        }
        for name in ["sealed_block", "analytics.orders", "/var/lib/vault.db", "/var/lib/vault.db.bak"] {
            assert!(!is_beside(name), "{name}");
        }
    }
}
