//! The key database: keys, erased ledger, cases, cursors, audit. One pool over PostgreSQL or SQLite, migrated at start.
//!
//! Invariants: SQL text is the same on both (`$n` placeholders, `ON CONFLICT`, `RETURNING`); a writer takes its lock when it begins,
//! so that SQLite never fails in the middle of a transaction; SQLite overwrites what it deletes (`secure_delete`).
//! It does not know what the tables mean: see `ledger`, `admit`, `audit`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Once};
use std::time::Duration;

use ring::digest;
use secrecy::{ExposeSecret, SecretString};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::{Any, AnyPool, AssertSqlSafe, ConnectOptions, Executor, Row, Transaction};

use crate::generation::{self, Seen};
use crate::{dbcode, horizon, inventory};

/// Connections per process. Chosen: a process works on few batches at once; PostgreSQL's default allows 100 in all.
const CONNECTIONS_MAX: u32 = 8;
/// How long a writer waits for SQLite's one write lock, in milliseconds. Chosen: far above the longest batch.
const SQLITE_BUSY_MS: u32 = 30_000;
/// How long to wait for a connection, so that a database gone at start is reported within 30 s (DESIGN section 6).
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(15);
/// Rows of one multi-row statement. Measured on 5000 keys minted: SQLite needs 0.3 s with 100, 0.6 s with 250, 1.6 s with 1000 (it looks up
/// parameters one by one); PostgreSQL is as fast with 100 as with more.
pub const ROWS_PER_STATEMENT: usize = 100;
/// Name of the lock that lets one process migrate at a time on PostgreSQL: "sunder" in ASCII.
const MIGRATION_LOCK: &str = "SELECT pg_advisory_xact_lock(126943972910450)";

/// Keeps PostgreSQL's planner from copying samples of keys and of what names them into `pg_statistic`, where neither DELETE nor VACUUM
/// FULL of the table reaches them (measured: wrapped keys stood in its TOAST table after an autovacuum). Every bytea column, before the
/// first ANALYZE; but those by which subjects are looked up a hundred at a time: without samples the planner believes each value to be
/// in a two-hundredth of all rows, and reads the whole table instead of its index. A subject's key id and token stay in its row for good.
const NO_SAMPLES: &str = "DO $sunder$ DECLARE c record; BEGIN \
    FOR c IN SELECT t.relname, a.attname FROM pg_attribute a JOIN pg_class t ON t.oid = a.attrelid \
        WHERE t.relnamespace = current_schema()::regnamespace AND t.relkind = 'r' AND a.atttypid = 'bytea'::regtype \
        AND NOT a.attisdropped AND coalesce(a.attstattarget, -1) <> 0 \
        AND (t.relname::text, a.attname::text) NOT IN (('subject', 'key_id'), ('subject', 'token'), ('disposition', 'token')) \
    LOOP EXECUTE format('ALTER TABLE %I ALTER COLUMN %I SET STATISTICS 0', c.relname, c.attname); END LOOP; END $sunder$";

/// The migrations, in order: numbers 01xx belong to keys and ledger, 02xx to cases. One step each; never changed once released.
const MIGRATIONS: &[(i64, &str)] = &[
    (101, include_str!("../migrations/0101_seller.sql")),
    (102, include_str!("../migrations/0102_subject.sql")),
    (103, include_str!("../migrations/0103_process.sql")),
    (104, include_str!("../migrations/0104_cursor.sql")),
    (105, include_str!("../migrations/0105_audit.sql")),
    (106, include_str!("../migrations/0106_quarantine.sql")),
    (107, include_str!("../migrations/0107_scan_control.sql")),
    (108, include_str!("../migrations/0108_topic_incarnation.sql")),
    (109, include_str!("../migrations/0109_unclassified_field.sql")),
    (110, include_str!("../migrations/0110_withheld.sql")),
    (120, include_str!("../migrations/0120_mirror.sql")),
    (121, include_str!("../migrations/0121_rotation.sql")),
    (160, include_str!("../migrations/0160_audit_checkpoint.sql")),
    (201, include_str!("../migrations/0201_case.sql")),
    // Later steps, in the order in which they came: some change tables of the cases.
    (130, include_str!("../migrations/0130_control_planted.sql")),
    (202, include_str!("../migrations/0202_case_block.sql")),
    (140, include_str!("../migrations/0140_business_period.sql")),
    (141, include_str!("../migrations/0141_hold.sql")),
    (131, include_str!("../migrations/0131_case_residual.sql")),
    (170, include_str!("../migrations/0170_stray_sweep.sql")),
];

/// An error of the key database: what was tried and a code; never the database's own text, which quotes values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key database could not {action}: {code}")]
pub struct DbError {
    /// What was tried.
    pub action: &'static str,
    /// SQLSTATE, SQLite's code, or a word such as `unreachable`.
    pub code: String,
    /// Whether trying again may help.
    pub retry: bool,
}

impl DbError {
    /// An error with a code of our own that no retry helps.
    #[must_use]
    pub fn fixed(action: &'static str, code: &str) -> Self {
        Self { action, code: code.to_owned(), retry: false }
    }

    /// Nothing was answered in time: the network swallowed it, or the database stands still.
    #[must_use]
    pub fn silent(action: &'static str) -> Self {
        Self { action, code: "silent".to_owned(), retry: true }
    }
}

/// Converts sqlx's error to a code; used as `map_err(on("read the subject"))`.
pub fn on(action: &'static str) -> impl Fn(sqlx::Error) -> DbError {
    move |error| {
        let (code, retry): (Cow<'_, str>, bool) = match &error {
            sqlx::Error::Database(e) => {
                let (code, retry) = dbcode::answered(&**e);
                (Cow::Owned(code), retry)
            }
            sqlx::Error::InvalidSavePointStatement | sqlx::Error::BeginFailed => (Cow::Borrowed("transaction_lost"), true),
            error if generation::is_older(error) => (Cow::Borrowed("restored"), false),
            sqlx::Error::Io(_) => (Cow::Borrowed("unreachable"), true),
            sqlx::Error::Tls(_) => (Cow::Borrowed("tls"), false),
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => (Cow::Borrowed("no_connection"), true),
            sqlx::Error::RowNotFound => (Cow::Borrowed("row_missing"), false),
            sqlx::Error::Configuration(_) => (Cow::Borrowed("bad_url"), false),
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
                (Cow::Borrowed("bad_column"), false)
            }
            _ => (Cow::Borrowed("driver"), false),
        };
        DbError { action, code: code.into_owned(), retry }
    }
}

/// Which database it is; SQL differs only where a module asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL 15 or later.
    Postgres,
    /// SQLite 3.
    Sqlite,
}

impl Dialect {
    /// SQL expression of the database's own clock in milliseconds since 1970: leases are compared by one clock only.
    #[must_use]
    pub const fn now_ms(self) -> &'static str {
        match self {
            Self::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
            Self::Sqlite => "CAST((julianday('now') - 2440587.5) * 86400000.0 AS INTEGER)",
        }
    }

    /// What locks selected rows until the transaction ends; empty on SQLite, whose writers hold the whole database.
    #[must_use]
    pub const fn for_update(self) -> &'static str {
        match self {
            Self::Postgres => " FOR UPDATE",
            Self::Sqlite => "",
        }
    }

    fn fill(self, sql: &str) -> String {
        let (bytes, serial, zero, random_id) = match self {
            Self::Postgres => (
                "BYTEA",
                "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
                format!("'\\x{}'", "00".repeat(32)),
                "replace(CAST(gen_random_uuid() AS TEXT), '-', '')",
            ),
            Self::Sqlite => ("BLOB", "INTEGER PRIMARY KEY AUTOINCREMENT", format!("x'{}'", "00".repeat(32)), "lower(hex(randomblob(16)))"),
        };
        let filled = sql.replace("{{bytes}}", bytes).replace("{{serial}}", serial).replace("{{zero_hash}}", &zero);
        filled.replace("{{random_id}}", random_id)
    }
}

/// A write transaction of the key database.
pub type Write = Transaction<'static, Any>;

/// The key database. Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct KeyDb {
    pool: AnyPool,
    dialect: Dialect,
    seen: Arc<Seen>,
}

impl KeyDb {
    /// Opens `url` (`postgres://user@host/name` or `sqlite:///path`) and brings its tables up to date.
    ///
    /// # Errors
    /// [`DbError`] where the URL carries a password, the database does not answer, or a migration was changed after it ran.
    pub async fn open(url: &str, password: Option<&SecretString>) -> Result<Self, DbError> {
        let seen = Arc::new(Seen::default());
        let (pool, dialect) = open_pool(url, password, &seen).await?;
        let db = Self { pool, dialect, seen };
        db.migrate().await?;
        Ok(db)
    }

    /// The pool, for reads.
    #[must_use]
    pub const fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Which database it is.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The folder of SQLite's file; of no use on PostgreSQL.
    pub(crate) fn folder(&self) -> PathBuf {
        let file = percent_decode(self.pool.connect_options().database_url.path());
        file.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_path_buf)
    }

    /// What this process has seen of it.
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Begins a transaction that may write: on SQLite it takes the write lock at once.
    ///
    /// # Errors
    /// [`DbError`] where no connection or lock is to be had; of code `restored` where the database is behind what this process has seen.
    pub async fn begin_write(&self) -> Result<Write, DbError> {
        let begin = match self.dialect {
            Dialect::Postgres => "BEGIN",
            Dialect::Sqlite => "BEGIN IMMEDIATE",
        };
        let action = "begin a transaction";
        tokio::select! {
            biased;
            begun = self.pool.begin_with(begin) => begun.map_err(on(action)),
            // Each new connection is refused from then on, and the pool would go on trying.
            () = self.seen.until_older() => Err(DbError::fixed(action, "restored")),
        }
    }

    /// Closes the pool and waits for its connections.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`DbError`] where it does not.
    pub async fn ping(&self) -> Result<(), DbError> {
        let asked = tokio::time::timeout(ACQUIRE_TIMEOUT, sqlx::query("SELECT 1").execute(&self.pool)).await;
        asked.map_err(|_| DbError::silent("answer"))?.map_err(on("answer")).map(|_| ())
    }

    /// Rewrites the key tables so that nulled wrapped keys leave its files: on SQLite the file is rewritten and the log emptied into
    /// it, on PostgreSQL the tables are rewritten and a checkpoint is asked for. What the write-ahead log still holds goes with its
    /// recycling and is residual until then.
    ///
    /// # Errors
    /// [`DbError`]; the keys stay destroyed, their bytes may linger.
    pub async fn rewrite_key_tables(&self) -> Result<(), DbError> {
        let failed = on("rewrite the key tables");
        match self.dialect {
            Dialect::Sqlite => {
                // `secure_delete` overwrites a deleted cell where it lies, but a page that was balanced before may keep a copy in its
                // free space; only a rewrite leaves none.
                self.pool.execute("VACUUM").await.map_err(&failed)?;
                let row = self.pool.fetch_one("PRAGMA wal_checkpoint(TRUNCATE)").await.map_err(&failed)?;
                let busy: i64 = row.try_get(0).map_err(&failed)?;
                if busy != 0 {
                    return Err(DbError { action: "rewrite the key tables", code: "busy".to_owned(), retry: true });
                }
            }
            Dialect::Postgres => {
                self.pool.execute("VACUUM (FULL) subject").await.map_err(&failed)?;
                self.pool.execute("VACUUM (FULL) seller").await.map_err(&failed)?;
                self.pool.execute("VACUUM (FULL) quarantine_key").await.map_err(&failed)?;
                // Needs the role pg_checkpoint; without it the server's own checkpoint follows within checkpoint_timeout.
                if let Err(error) = self.pool.execute("CHECKPOINT").await.map_err(&failed) {
                    tracing::debug!(code = error.code, "the key database's role may not ask for a checkpoint");
                }
            }
        }
        Ok(())
    }

    /// What keeps rows in its files that were deleted before the last rewriting; on SQLite nothing can.
    pub(crate) async fn holder(&self) -> Option<String> {
        if self.dialect == Dialect::Sqlite {
            return None;
        }
        let seen: Option<String> = sqlx::query_scalar(horizon::HOLDER_SQL).fetch_optional(&self.pool).await.ok().flatten();
        Some(seen.unwrap_or_else(|| horizon::UNSEEN.to_owned()))
    }

    /// What the database holds: kind and name.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn objects(&self) -> Result<Vec<(String, String)>, DbError> {
        let failed = on("list what the database holds");
        let sql = if self.dialect == Dialect::Postgres { inventory::POSTGRES_OBJECTS } else { inventory::SQLITE_OBJECTS };
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.map_err(&failed)?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>().map_err(&failed)
    }

    /// What this program makes in it: the tables of all migrations.
    #[must_use]
    pub fn own_objects() -> Vec<(&'static str, &'static str)> {
        let lines = MIGRATIONS.iter().flat_map(|(_, sql)| sql.lines());
        let tables = lines.filter_map(|line| line.strip_prefix("CREATE TABLE ")?.split([' ', '(']).next());
        tables.chain(["schema_migration"]).map(|name| ("table", name)).collect()
    }

    async fn migrate(&self) -> Result<(), DbError> {
        let failed = on("migrate");
        let mut tx = self.begin_write().await?;
        if self.dialect == Dialect::Postgres {
            tx.execute(MIGRATION_LOCK).await.map_err(&failed)?;
        }
        tx.execute("CREATE TABLE IF NOT EXISTS schema_migration (version BIGINT NOT NULL PRIMARY KEY, digest TEXT NOT NULL)")
            .await
            .map_err(&failed)?;
        let done: Vec<(i64, String)> = tx
            .fetch_all("SELECT version, digest FROM schema_migration")
            .await
            .map_err(&failed)?
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(&failed)?;
        if done.iter().any(|(version, _)| !MIGRATIONS.iter().any(|(known, _)| known == version)) {
            return Err(DbError::fixed("migrate", "newer_than_this_program"));
        }
        for (version, sql) in MIGRATIONS {
            let digest = hex::encode(digest::digest(&digest::SHA256, sql.as_bytes()));
            match done.iter().find(|(v, _)| v == version) {
                Some((_, recorded)) if *recorded == digest => {}
                Some(_) => return Err(DbError::fixed("migrate", "migration_changed")),
                None => {
                    sqlx::raw_sql(AssertSqlSafe(self.dialect.fill(sql))).execute(&mut *tx).await.map_err(&failed)?;
                    sqlx::query("INSERT INTO schema_migration (version, digest) VALUES ($1, $2)")
                        .bind(*version)
                        .bind(digest)
                        .execute(&mut *tx)
                        .await
                        .map_err(&failed)?;
                }
            }
        }
        if self.dialect == Dialect::Postgres {
            tx.execute(NO_SAMPLES).await.map_err(&failed)?;
        }
        tx.commit().await.map_err(&failed)
    }
}

/// Opens a pool as the stores of this workspace want it: no statement logging, SQLite in WAL mode with `secure_delete`.
async fn open_pool(url: &str, password: Option<&SecretString>, seen: &Arc<Seen>) -> Result<(AnyPool, Dialect), DbError> {
    static DRIVERS: Once = Once::new();
    DRIVERS.call_once(sqlx::any::install_default_drivers);
    let bad_url = |code: &str| DbError::fixed("open its URL", code);
    let mut options = AnyConnectOptions::from_str(url).map_err(|_| bad_url("bad_url"))?;
    let dialect = match options.database_url.scheme() {
        "postgres" | "postgresql" => Dialect::Postgres,
        "sqlite" => Dialect::Sqlite,
        _ => return Err(bad_url("unknown_scheme")),
    };
    if options.database_url.password().is_some() || options.database_url.query_pairs().any(|(name, _)| name == "password") {
        return Err(bad_url("password_in_url"));
    }
    if dialect == Dialect::Sqlite {
        make_private(options.database_url.path()).map_err(|e| DbError {
            action: "make its file",
            code: e.kind().to_string(),
            retry: false,
        })?;
        options.database_url.set_query(Some("mode=rw"));
    } else if let Some(password) = password {
        options.database_url.set_password(Some(password.expose_secret())).map_err(|()| bad_url("no_host"))?;
    }
    options = options.disable_statement_logging();
    let seen = Arc::clone(seen);
    let pool = AnyPoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            let seen = Arc::clone(&seen);
            Box::pin(async move {
                if dialect == Dialect::Sqlite {
                    let pragmas = format!(
                        "PRAGMA busy_timeout = {SQLITE_BUSY_MS}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                         PRAGMA secure_delete = ON; PRAGMA foreign_keys = ON;"
                    );
                    sqlx::raw_sql(AssertSqlSafe(pragmas)).execute(&mut *connection).await?;
                } else {
                    sqlx::raw_sql(horizon::SESSION_SQL).execute(&mut *connection).await?;
                }
                seen.admit(connection, dialect).await
            })
        })
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(dbcode::answers::<Any>(connection)))
        .after_release(|connection, _| Box::pin(dbcode::is_of_use::<Any>(connection)))
        .connect_with(options)
        .await
        .map_err(on("open"))?;
    Ok((pool, dialect))
}

/// Makes the file of a new SQLite database readable by its owner alone; SQLite gives its log the same mode.
fn make_private(path: &str) -> std::io::Result<()> {
    let path = percent_decode(path);
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// Undoes what a URL does to a path: `%20` is a space.
fn percent_decode(path: &str) -> PathBuf {
    let (mut out, mut rest) = (Vec::with_capacity(path.len()), path.as_bytes());
    while let [first, tail @ ..] = rest {
        let code = (*first == b'%').then(|| tail.first_chunk::<2>()).flatten().and_then(|hex| hex::decode(hex).ok());
        match code.as_deref() {
            Some([byte]) => {
                out.push(*byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Appends `rows` tuples of `columns` placeholders, numbered from `first`, to `sql`: `($1, $2), ($3, $4)`.
pub(crate) fn push_tuples(sql: &mut String, rows: usize, columns: usize, first: usize) {
    use std::fmt::Write as _;
    let mut n = first;
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            // Writing to a String cannot fail.
            _ = write!(sql, "{}${n}", if column == 0 { "" } else { ", " });
            n += 1;
        }
        sql.push(')');
    }
}

/// Gives a long statement the placeholders that its database reads fastest: SQLite looks up each `$n` among all before it, which makes
/// many of them quadratic; `?n` it takes as a number. `sql` is text of ours with placeholders alone.
pub(crate) fn numbered(tx: &Write, sql: String) -> AssertSqlSafe<String> {
    AssertSqlSafe(if tx.backend_name() == "PostgreSQL" { sql } else { sql.replace('$', "?") })
}

/// Reads an optional blob of exactly `N` bytes.
pub(crate) fn blob<const N: usize>(row: &AnyRow, column: &'static str) -> Result<Option<[u8; N]>, DbError> {
    let bytes: Option<Vec<u8>> = row.try_get(column).map_err(on("read a column"))?;
    bytes.map(|b| <[u8; N]>::try_from(b).map_err(|_| DbError::fixed("read a column", "bad_length"))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_migrates_once_and_refuses_a_password_in_its_url() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/the keys.db", folder.path().display());
        let db = KeyDb::open(&url, None).await.unwrap();
        db.ping().await.unwrap();
        assert_eq!(db.folder(), folder.path());
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let mode = std::os::unix::fs::PermissionsExt::mode(&entry.unwrap().metadata().unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600, "no file of the database is open to others");
        }
        db.close().await;
        let db = KeyDb::open(&url, None).await.unwrap();
        db.ping().await.unwrap();
        db.rewrite_key_tables().await.unwrap();
        let mode: String = db.pool().fetch_one("PRAGMA journal_mode").await.unwrap().try_get(0).unwrap();
        assert_eq!(mode, "wal");
        let secure: i64 = db.pool().fetch_one("PRAGMA secure_delete").await.unwrap().try_get(0).unwrap();
        assert_eq!(secure, 1);
        let error = KeyDb::open("postgres://u:hunter2@127.0.0.1/x", None).await.unwrap_err();
        assert_eq!(error.code, "password_in_url");
        assert!(!error.to_string().contains("hunter2"));
    }

    #[tokio::test]
    async fn a_full_disk_costs_its_transaction_and_no_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let db = KeyDb::open(&format!("sqlite://{}/keys.db", folder.path().display()), None).await.unwrap();
        let mut tx = db.begin_write().await.unwrap();
        tx.execute("PRAGMA max_page_count = 1").await.unwrap();
        let full = tx.execute("CREATE TABLE filler AS SELECT randomblob(1000000) AS b").await.map_err(on("fill")).unwrap_err();
        assert_eq!((full.code.as_str(), full.retry), ("13 disk_full", true));
        // So it ends the transaction by itself where the disk is full while it commits.
        tx.execute("ROLLBACK").await.unwrap();
        drop(tx);
        for _ in 0..=CONNECTIONS_MAX {
            db.begin_write().await.unwrap().commit().await.unwrap();
        }
    }

    #[test]
    fn tuples_are_numbered() {
        let mut sql = String::new();
        push_tuples(&mut sql, 2, 2, 3);
        assert_eq!(sql, "($3, $4), ($5, $6)");
    }
}
