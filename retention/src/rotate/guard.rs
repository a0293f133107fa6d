//! Keeps what lies under an old version of the root key from being committed behind a rotation's back.
//!
//! Invariant: once a rotation has written down its new version, no transaction commits anything that is wrapped under an older one. So
//! all there ever is under older ones is seen by the rotation's next look, however long a process paused between wrapping and committing.
//! A writer holds a shared lock from its look at the version to its commit; the rotation takes it alone to write its version down. On
//! SQLite writers come one after the other anyhow.

use sqlx::Row;

use crate::case::CaseError;
use crate::keydb::{DbError, Dialect, KeyDb, Write, on};
use crate::keys::KeyError;
use crate::root::RootKey;

/// The lock, shared: "sundrt" in ASCII. Taken last, so that nobody who holds it waits for another.
const SHARED: &str = "SELECT pg_advisory_xact_lock_shared(126948200444532)";
/// The same lock, alone.
const ALONE: &str = "SELECT pg_advisory_xact_lock(126948200444532)";
/// The code of the refusal.
const ROOT_ROTATED: &str = "root_key_rotated";
/// How often something is wrapped where the root key is rotated meanwhile (chosen: rotations are 90 days apart).
const WRAPS_MAX: u32 = 3;

/// Lets `tx` commit `wrapped`, unless a rotation has made a newer version than the one it lies under. The last statement of `tx` before
/// its commit.
///
/// # Errors
/// [`DbError`] with the code `root_key_rotated`: `tx` must not be committed; see `wrapping`.
pub(crate) async fn may_commit(db: &KeyDb, tx: &mut Write, root: &dyn RootKey, wrapped: &[&[u8]]) -> Result<(), DbError> {
    let failed = on("read the root key's version");
    if db.dialect() == Dialect::Postgres {
        sqlx::query(SHARED).execute(&mut **tx).await.map_err(&failed)?;
    }
    // A statement of its own: what it reads is what was committed before the lock was had.
    let row = sqlx::query("SELECT MAX(to_version) FROM root_rotation").fetch_one(&mut **tx).await.map_err(&failed)?;
    let Some(newest) = row.try_get::<Option<i64>, _>(0).map_err(&failed)? else { return Ok(()) };
    let newest = u64::try_from(newest).map_err(|_| DbError::fixed("read the root key's version", "bad_column"))?;
    let is_newest = |wrapped: &&[u8]| root.version_of(wrapped).is_some_and(|version| version >= newest);
    if wrapped.iter().all(is_newest) {
        return Ok(());
    }
    Err(DbError { action: "commit a wrapped key", code: ROOT_ROTATED.to_owned(), retry: true })
}

/// Waits within `tx` for all who may still commit something under an older version; from its commit on nobody does.
pub(super) async fn alone(db: &KeyDb, tx: &mut Write) -> Result<(), DbError> {
    if db.dialect() == Dialect::Postgres {
        sqlx::query(ALONE).execute(&mut **tx).await.map_err(on("rotate the root key"))?;
    }
    Ok(())
}

/// Whether `error` says that the root key was rotated between wrapping and committing.
fn is_outdated(error: &DbError) -> bool {
    error.code == ROOT_ROTATED
}

/// An error that may be one of the key database's.
pub(crate) trait OfDatabase {
    /// The key database's part in it.
    fn database(&self) -> Option<&DbError>;
}

impl OfDatabase for CaseError {
    fn database(&self) -> Option<&DbError> {
        if let Self::Db(error) = self { Some(error) } else { None }
    }
}

impl OfDatabase for KeyError {
    fn database(&self) -> Option<&DbError> {
        if let Self::Database(error) = self { Some(error) } else { None }
    }
}

/// Counts how often something was wrapped.
#[derive(Debug, Default)]
pub(crate) struct Wraps(u32);

impl Wraps {
    /// Whether to do it anew, since the root key was rotated in between.
    pub(crate) fn again(&mut self, error: &impl OfDatabase) -> bool {
        self.0 += 1;
        self.0 < WRAPS_MAX && error.database().is_some_and(is_outdated)
    }
}

/// Does a step, a call that wraps and commits, and does it anew where the root key was rotated in between.
macro_rules! wrapping {
    ($step:expr) => {{
        let mut wraps = $crate::rotate::guard::Wraps::default();
        loop {
            match $step.await {
                Err(error) if wraps.again(&error) => {}
                other => break other,
            }
        }
    }};
}
pub(crate) use wrapping;
