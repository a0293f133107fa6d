//! The audit chain read again from its first row, against itself, against its signed heads, and against what was published of it.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;
use sunder_schemas::chain::{ChainHead, HeadKind};
use sunder_schemas::note::NoteError;
use sunder_schemas::time::Timestamp;

use super::{MirroredRow, hash_of};
use crate::keydb::{DbError, KeyDb, on};

/// Rows read at a time.
const PAGE: i64 = 1000;

/// A chain that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Rows checked.
    pub rows: u64,
    /// Number of the row before the first: 0, or what was removed by age.
    pub after: i64,
    /// Hash of the last, lower-case hex.
    pub head: String,
    /// Signed heads that were met, those of the database included.
    pub heads: u64,
}

/// Why the chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read.
    #[error(transparent)]
    Database(#[from] DbError),
    /// A row was changed, removed or put in; `seq` is the first number that does not fit.
    #[error("audit chain is broken at {seq}")]
    Broken {
        /// The number.
        seq: i64,
    },
    /// The chain ends before a row that was published or signed: its end was cut off.
    #[error("audit chain is cut off: row {seq} was published and is not here")]
    Cut {
        /// The published number.
        seq: i64,
    },
    /// The chain fits together, but a published or signed row is another one: it was written anew.
    #[error("audit chain was rewritten: row {seq} is not the one that was published")]
    Rewritten {
        /// The number.
        seq: i64,
    },
    /// A signed head of the database is not signed by this signer or says another thing than its row.
    #[error("signed head {seq} of the audit chain does not hold: {}", .why.code())]
    Head {
        /// Its number.
        seq: i64,
        /// What is wrong with the note.
        why: NoteError,
    },
    /// A published record is not what was published: its own hash does not fit.
    #[error("a published audit record was changed: {at}")]
    Published {
        /// Its place.
        at: String,
    },
}

impl VerifyError {
    /// The stable code (`docs/errors.md`).
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Database(_) => "keys",
            Self::Broken { .. } => "chain_broken",
            Self::Cut { .. } => "chain_cut",
            Self::Rewritten { .. } => "chain_rewritten",
            Self::Head { .. } => "chain_head",
            Self::Published { .. } => "record_changed",
        }
    }
}

/// What was published of the chain before, from wherever it was kept.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Hash by number.
    hashes: BTreeMap<i64, [u8; 32]>,
    /// Numbers that were published with two hashes: there was a second chain.
    forked: Option<i64>,
}

impl Known {
    /// Adds a row that was published.
    pub fn row(&mut self, mirrored: &MirroredRow) {
        self.add(mirrored.seq, mirrored.hash);
        if mirrored.seq > 1 {
            self.add(mirrored.seq - 1, mirrored.previous);
        }
    }

    /// Adds a signed head.
    pub fn head(&mut self, head: &ChainHead) {
        self.add(head.seq, head.hash);
    }

    fn add(&mut self, seq: i64, hash: [u8; 32]) {
        if *self.hashes.entry(seq).or_insert(hash) != hash {
            self.forked = Some(self.forked.map_or(seq, |first| first.min(seq)));
        }
    }

    /// Rows and heads that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

/// How often a reading is begun again because rows went by age meanwhile.
const TRIES: usize = 3;

/// Checks the whole chain, reading every row: each against the one before, against the signed heads, and against what is `known` from
/// before. Where rows were removed by age it begins at the signed head that says so.
///
/// # Errors
/// [`VerifyError`], at the first row that does not fit.
pub async fn verify(db: &KeyDb, verifier_key: &str, known: &Known) -> Result<Verified, VerifyError> {
    if let Some(seq) = known.forked {
        return Err(VerifyError::Rewritten { seq });
    }
    let mut signed = signed_heads(db, verifier_key).await?;
    for _ in 1..TRIES {
        let result = read_through(db, &signed, known).await;
        if result.is_ok() {
            return result;
        }
        // Rows that went while they were read look like rows that somebody removed.
        let now = signed_heads(db, verifier_key).await?;
        let expired = |heads: &[ChainHead]| heads.iter().filter(|head| head.kind == HeadKind::Expiry).map(|head| head.seq).max();
        if expired(&now) == expired(&signed) {
            return result;
        }
        signed = now;
    }
    read_through(db, &signed, known).await
}

async fn read_through(db: &KeyDb, signed: &[ChainHead], known: &Known) -> Result<Verified, VerifyError> {
    let failed = on("read the audit log");
    let after = begin(db, signed).await?;
    let mut walk = Walk { known: known.hashes.clone(), seq: after.0, hash: after.1, rows: 0 };
    for head in signed {
        if walk.known.insert(head.seq, head.hash).is_some_and(|hash| hash != head.hash) {
            return Err(VerifyError::Rewritten { seq: head.seq });
        }
    }
    walk.meet_known(after.0, after.1)?;
    loop {
        let rows = sqlx::query(
            "SELECT seq, prev_hash, hash, at, actor, action, object, outcome, detail FROM audit_event WHERE seq > $1 ORDER BY seq LIMIT $2",
        )
        .bind(walk.seq)
        .bind(PAGE)
        .fetch_all(db.pool())
        .await
        .map_err(&failed)?;
        rows.iter().try_for_each(|row| walk.take(row))?;
        if rows.len() < usize::try_from(PAGE).unwrap_or(usize::MAX) {
            break;
        }
    }
    end(db, &walk).await?;
    if let Some(seq) = walk.known.keys().find(|seq| **seq > walk.seq) {
        return Err(VerifyError::Cut { seq: *seq });
    }
    Ok(Verified { rows: walk.rows, after: after.0, head: hex::encode(walk.hash), heads: u64::try_from(signed.len()).unwrap_or(u64::MAX) })
}

/// The heads of the database, each with its signature checked.
async fn signed_heads(db: &KeyDb, verifier_key: &str) -> Result<Vec<ChainHead>, VerifyError> {
    let failed = on("read the audit log");
    let rows =
        sqlx::query("SELECT seq, kind, at, note FROM audit_checkpoint ORDER BY seq, kind").fetch_all(db.pool()).await.map_err(&failed)?;
    let mut heads = Vec::new();
    for row in &rows {
        let (seq, kind, at, note): (i64, String, i64, String) = (
            row.try_get(0).map_err(&failed)?,
            row.try_get(1).map_err(&failed)?,
            row.try_get(2).map_err(&failed)?,
            row.try_get(3).map_err(&failed)?,
        );
        let head = ChainHead::open(note.as_bytes(), verifier_key).map_err(|why| VerifyError::Head { seq, why })?;
        if head.seq != seq || head.kind.as_str() != kind || head.at != Timestamp(at) {
            return Err(VerifyError::Head { seq, why: NoteError::Malformed });
        }
        heads.push(head);
    }
    Ok(heads)
}

/// Where checking begins: before the first row, or after the last that was removed by age, which only a signature shows.
async fn begin(db: &KeyDb, signed: &[ChainHead]) -> Result<(i64, [u8; 32]), VerifyError> {
    let failed = on("read the audit log");
    let row = sqlx::query("SELECT MIN(seq) FROM audit_event").fetch_one(db.pool()).await.map_err(&failed)?;
    let first: Option<i64> = row.try_get(0).map_err(&failed)?;
    let row = sqlx::query("SELECT seq FROM audit_head WHERE id = 1").fetch_one(db.pool()).await.map_err(&failed)?;
    let end: i64 = row.try_get(0).map_err(&failed)?;
    let removed = first.map_or(end, |first| first - 1);
    if removed == 0 {
        return Ok((0, [0; 32]));
    }
    let expiry = signed.iter().find(|head| head.kind == HeadKind::Expiry && head.seq == removed);
    expiry.map(|head| (head.seq, head.hash)).ok_or(VerifyError::Broken { seq: 1 })
}

struct Walk {
    known: BTreeMap<i64, [u8; 32]>,
    seq: i64,
    hash: [u8; 32],
    rows: u64,
}

impl Walk {
    fn take(&mut self, row: &AnyRow) -> Result<(), VerifyError> {
        let failed = on("read the audit log");
        let text = |column: usize| row.try_get::<String, _>(column).map_err(&failed);
        let (number, prev_hash, hash): (i64, Vec<u8>, Vec<u8>) =
            (row.try_get(0).map_err(&failed)?, row.try_get(1).map_err(&failed)?, row.try_get(2).map_err(&failed)?);
        let at: i64 = row.try_get(3).map_err(&failed)?;
        let expected = hash_of(&self.hash, number, at, &text(4)?, &text(5)?, &text(6)?, &text(7)?, &text(8)?);
        if number != self.seq + 1 || prev_hash != self.hash || hash != expected {
            return Err(VerifyError::Broken { seq: self.seq + 1 });
        }
        (self.seq, self.hash) = (number, expected);
        self.rows += 1;
        self.meet_known(number, expected)
    }

    fn meet_known(&self, seq: i64, hash: [u8; 32]) -> Result<(), VerifyError> {
        if self.known.get(&seq).is_some_and(|known| *known != hash) {
            return Err(VerifyError::Rewritten { seq });
        }
        Ok(())
    }
}

/// Compares the chain's end with the row that every writer locks.
async fn end(db: &KeyDb, walk: &Walk) -> Result<(), VerifyError> {
    let failed = on("read the audit log");
    let head = sqlx::query("SELECT seq, hash FROM audit_head WHERE id = 1").fetch_one(db.pool()).await.map_err(&failed)?;
    let (last, hash): (i64, Vec<u8>) = (head.try_get(0).map_err(&failed)?, head.try_get(1).map_err(&failed)?);
    // Rows added while the chain was read are beyond what was checked; a head that is behind or differs is not.
    if last < walk.seq || (last == walk.seq && hash != walk.hash) {
        return Err(VerifyError::Broken { seq: walk.seq });
    }
    if last > walk.seq {
        let next = sqlx::query("SELECT prev_hash FROM audit_event WHERE seq = $1")
            .bind(walk.seq + 1)
            .fetch_optional(db.pool())
            .await
            .map_err(&failed)?;
        let linked = next.is_some_and(|row| row.try_get::<Vec<u8>, _>(0).is_ok_and(|previous| previous == walk.hash));
        if !linked {
            return Err(VerifyError::Broken { seq: walk.seq + 1 });
        }
    }
    Ok(())
}
