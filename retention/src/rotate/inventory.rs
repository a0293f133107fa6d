//! Which keys there are, how old they are, where they lie, and when they are due: for `sunder keys status` and `inventory`.

use serde::Serialize;
use sqlx::Row;
use sunder_schemas::certificate::Iso;
use sunder_schemas::ids::SellerId;
use sunder_schemas::time::Timestamp;

use super::{ROTATE_EVERY, root};
use crate::keydb::{DbError, Dialect, on};
use crate::keys::{KeyError, Keyring};

/// The root key as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RootStatus {
    /// What it is and where.
    pub service: String,
    /// The newest version; `None` where the service did not say.
    pub version: Option<u64>,
    /// Whether it wraps and unwraps now.
    pub answers: bool,
    /// Why not: a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Since when this version is used, by the policy clock; `None` before the first seller.
    pub since: Option<Iso>,
    /// When it is due to be rotated.
    pub due: Option<Iso>,
    /// How far a rotation is that was begun and not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<String>,
}

/// A seller's wrapping key as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SellerStatus {
    /// Whose.
    pub seller: SellerId,
    /// The version that wraps.
    pub version: i64,
    /// Since when, by the policy clock.
    pub since: Iso,
    /// When it is due to be rotated.
    pub due: Iso,
    /// Whether a rotation was begun and not ended: the version before still unwraps.
    pub rotating: bool,
}

/// All keys that rotate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The root key.
    pub root: RootStatus,
    /// The wrapping keys of sellers that did not leave, by seller.
    pub sellers: Vec<SellerStatus>,
}

impl Status {
    /// What is due at `now`: `root`, and sellers.
    #[must_use]
    pub fn overdue(&self, now: Timestamp) -> Vec<String> {
        let root = self.root.due.is_some_and(|due| due.0 <= now).then(|| "root".to_owned());
        let sellers = self.sellers.iter().filter(|seller| seller.due.0 <= now).map(|seller| seller.seller.to_string());
        root.into_iter().chain(sellers).collect()
    }

    /// Rotations that were begun and not ended.
    #[must_use]
    pub fn unfinished(&self) -> Vec<String> {
        let root = self.root.rotation.as_ref().map(|_| "root".to_owned());
        let sellers = self.sellers.iter().filter(|seller| seller.rotating).map(|seller| seller.seller.to_string());
        root.into_iter().chain(sellers).collect()
    }
}

/// How the keys stand. A root key service that does not answer is said, not an error.
///
/// # Errors
/// [`DbError`].
pub async fn status(keyring: &Keyring) -> Result<Status, KeyError> {
    let failed = on("read the keys");
    let db = keyring.db();
    let rows = sqlx::query(
        "SELECT seller, wrapping_version, COALESCE(wrapping_since, created_at), wrapping_previous IS NOT NULL, created_at, state FROM seller \
         WHERE wrapping_key IS NOT NULL ORDER BY seller",
    )
    .fetch_all(db.pool())
    .await
    .map_err(&failed)?;
    let mut sellers = Vec::new();
    let mut first: Option<i64> = None;
    for row in &rows {
        let since = Timestamp(row.try_get(2).map_err(&failed)?);
        let created: i64 = row.try_get(4).map_err(&failed)?;
        first = Some(first.map_or(created, |known| known.min(created)));
        sellers.push(SellerStatus {
            seller: row.try_get::<String, _>(0).map_err(&failed)?.parse().map_err(|_| DbError::fixed("read the keys", "bad_seller"))?,
            version: row.try_get(1).map_err(&failed)?,
            since: Iso(since),
            due: Iso(since.plus(ROTATE_EVERY)),
            rotating: row.try_get::<bool, _>(3).or_else(|_| row.try_get::<i64, _>(3).map(|n| n != 0)).map_err(&failed)?,
        });
    }
    let last = sqlx::query("SELECT MAX(done_at) FROM root_rotation").fetch_one(db.pool()).await.map_err(&failed)?;
    let since = last.try_get::<Option<i64>, _>(0).map_err(&failed)?.or(first).map(Timestamp);
    let error = keyring.root().probe().await.err().map(|error| error.to_string());
    let root = RootStatus {
        service: keyring.root().describe(),
        // Reading the version wants a right that wrapping does not: its absence is no fault of the key.
        version: keyring.root().version().await.ok(),
        answers: error.is_none(),
        error,
        since: since.map(Iso),
        due: since.map(|since| Iso(since.plus(ROTATE_EVERY))),
        rotation: root::open(keyring).await?.map(|open| open.state),
    };
    Ok(Status { root, sellers })
}

/// One kind of key: how many there are and where their copies lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// What they are.
    pub kind: &'static str,
    /// What wraps them.
    pub wrapped_by: &'static str,
    /// How many exist.
    pub live: u64,
    /// How many were destroyed.
    pub destroyed: u64,
    /// Every place a copy can be in.
    pub places: Vec<String>,
    /// When and how they go.
    pub end: &'static str,
}

/// Every key there is (controls N-3, N-5): nothing is held in escrow by this program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The root key: what it is and where.
    pub root: String,
    /// How long a backup of the key database may live, in days.
    pub backup_days: i64,
    /// By kind.
    pub keys: Vec<Held>,
}

/// Lists every key by kind.
///
/// # Errors
/// [`DbError`].
pub async fn inventory(keyring: &Keyring) -> Result<Inventory, DbError> {
    let count = async |sql: &'static str| {
        let failed = on("count the keys");
        let row = sqlx::query(sql).fetch_one(keyring.db().pool()).await.map_err(&failed)?;
        Ok::<_, DbError>(row.try_get::<i64, _>(0).map_err(&failed)?.unsigned_abs())
    };
    let backup_days = keyring.policy().backup.millis_max() / sunder_schemas::time::Period::days(1).millis_max();
    let mut wrapped = vec!["key database".to_owned()];
    if backup_days > 0 {
        wrapped.push(format!("backups of the key database, {backup_days} days"));
    }
    if keyring.db().dialect() == Dialect::Postgres {
        wrapped.push("write-ahead log and replicas of the key database".to_owned());
    }
    let used = |by: &str| wrapped.iter().cloned().chain([format!("memory of {by}, for the lease at the longest")]).collect::<Vec<_>>();
    let readers = "poll and open";
    let held = vec![
        Held {
            kind: "data key of a subject",
            wrapped_by: "wrapping key of its seller",
            live: count("SELECT COUNT(*) FROM subject WHERE state = 'live' AND COALESCE(rule, '') <> 'hold'").await?,
            destroyed: count(
                "SELECT COUNT(*) FROM subject WHERE state = 'destroyed' AND key_id IS NOT NULL AND COALESCE(rule, '') <> 'hold'",
            )
            .await?,
            places: used(readers),
            end: "deadline, request, or the leaving of its seller",
        },
        Held {
            kind: "key of a hold",
            wrapped_by: "wrapping key of its seller",
            live: count("SELECT COUNT(*) FROM subject WHERE state = 'live' AND rule = 'hold'").await?,
            destroyed: count("SELECT COUNT(*) FROM subject WHERE state = 'destroyed' AND rule = 'hold'").await?,
            places: used("retain and open"),
            end: "the end of the hold",
        },
        Held {
            kind: "wrapping key of a seller",
            wrapped_by: "root key",
            live: count("SELECT COUNT(*) FROM seller WHERE wrapping_key IS NOT NULL").await?
                + count("SELECT COUNT(*) FROM seller WHERE wrapping_previous IS NOT NULL").await?,
            destroyed: count(
                "SELECT CAST(COALESCE(SUM(wrapping_version - CASE WHEN wrapping_key IS NULL THEN 0 ELSE 1 END \
                              - CASE WHEN wrapping_previous IS NULL THEN 0 ELSE 1 END), 0) AS BIGINT) FROM seller",
            )
            .await?,
            places: used(readers),
            end: "rotation, or the leaving of its seller",
        },
        Held {
            kind: "token key of a seller",
            wrapped_by: "root key",
            live: count("SELECT COUNT(*) FROM seller WHERE token_key IS NOT NULL").await?,
            destroyed: count("SELECT COUNT(*) FROM seller WHERE token_key IS NULL").await?,
            places: used(readers),
            end: "the leaving of its seller; never rotates",
        },
        Held {
            kind: "ledger key of a seller",
            wrapped_by: "root key",
            live: count("SELECT COUNT(*) FROM seller").await?,
            destroyed: 0,
            places: used(readers),
            end: "none: tells what was erased; never rotates",
        },
        Held {
            kind: "quarantine key of a day",
            wrapped_by: "root key",
            live: count("SELECT COUNT(*) FROM quarantine_key WHERE state = 'live'").await?,
            destroyed: count("SELECT COUNT(*) FROM quarantine_key WHERE state = 'destroyed'").await?,
            places: used("poll and split"),
            end: "7 days after its day",
        },
        Held {
            kind: "refresh token of a seller",
            wrapped_by: "root key",
            live: count("SELECT COUNT(*) FROM seller WHERE refresh_token IS NOT NULL").await?,
            destroyed: 0,
            places: used("poll"),
            end: "a new grant, or the leaving of its seller",
        },
        Held {
            kind: "control key of a case",
            wrapped_by: "root key",
            live: count("SELECT COUNT(*) FROM case_control").await?,
            destroyed: 0,
            places: used("retain"),
            end: "with its control; opens nothing but constant text",
        },
    ];
    Ok(Inventory { root: keyring.root().describe(), backup_days, keys: held })
}
