//! How to reach a store.

use std::time::Duration;

use secrecy::SecretString;

use crate::SinkError;
use crate::beside::Side;

/// Rewriting a table locks it; above this size remnants in free space are named instead (chosen: about 10 s on a laptop's disk).
pub const REWRITE_BYTES_MAX: u64 = 1 << 30;
/// How long rewriting a table waits for those who use it (chosen: whoever comes meanwhile queues behind it).
pub const REWRITE_LOCK: Duration = Duration::from_secs(5);
/// Connections of one store on PostgreSQL (chosen: one per partition that is applied at once, and one for cases).
pub const CONNECTIONS: u32 = 8;
/// Rows that one statement writes at most: a batch above it becomes several statements of one transaction (chosen).
pub const STATEMENT_ROWS_MAX: usize = 10_000;

/// How to reach a store, and which topics feed it.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// `postgres://user@host/database` or `sqlite:///path`; a password inside it is refused.
    pub url: String,
    /// PostgreSQL's password.
    pub password: Option<SecretString>,
    /// First part of every topic's name, e.g. `sp`.
    pub prefix: String,
    /// Connections at most (PostgreSQL; SQLite has one).
    pub connections: u32,
    /// The live store, or the one that is built beside it.
    pub side: Side,
    /// Size in bytes up to which a scan may rewrite a table to wipe remnants from its free space.
    pub rewrite_bytes_max: u64,
    /// How long rewriting a table waits for those who use it (PostgreSQL); then it fails with SQLSTATE 55P03, and the case says so.
    pub rewrite_lock: Duration,
}

impl StoreOptions {
    /// Options with the defaults of this module.
    #[must_use]
    pub fn new(url: &str, prefix: &str) -> Self {
        Self {
            url: url.to_owned(),
            password: None,
            prefix: prefix.to_owned(),
            connections: CONNECTIONS,
            side: Side::Live,
            rewrite_bytes_max: REWRITE_BYTES_MAX,
            rewrite_lock: REWRITE_LOCK,
        }
    }

    /// Which database the URL names.
    ///
    /// # Errors
    /// [`SinkError::Options`] for another scheme or a password in the URL.
    pub(crate) fn dialect(&self, store: &'static str) -> Result<Dialect, SinkError> {
        if self.url.starts_with("sqlite:") {
            return Ok(Dialect::Sqlite);
        }
        let Some(rest) = self.url.strip_prefix("postgres://").or_else(|| self.url.strip_prefix("postgresql://")) else {
            return Err(SinkError::Options { store, code: "the url must begin with postgres:// or sqlite://" });
        };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let has_password = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
        if has_password || rest.contains("password=") {
            return Err(SinkError::Options { store, code: "the url holds a password; give it as a reference beside the url" });
        }
        Ok(Dialect::Postgres)
    }
}

/// The SQL dialects of the stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL 15 or later.
    Postgres,
    /// SQLite 3.35 or later, as bundled.
    Sqlite,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_the_url_is_refused_without_being_quoted() {
        for url in ["postgres://u:hunter2@h/db", "postgres://u@h/db?password=hunter2", "postgres://h/db?user=u&password=hunter2"] {
            let error = StoreOptions::new(url, "sp").dialect("vault").unwrap_err();
            assert!(!error.to_string().contains("hunter2"));
        }
        assert_eq!(StoreOptions::new("postgres://u@h:5432/db", "sp").dialect("vault").unwrap(), Dialect::Postgres);
        assert_eq!(StoreOptions::new("sqlite:///tmp/x.db", "sp").dialect("vault").unwrap(), Dialect::Sqlite);
        assert!(StoreOptions::new("mysql://h/db", "sp").dialect("vault").is_err());
    }
}
