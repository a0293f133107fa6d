//! What a case is about: the request, and the subjects it comes to.
//!
//! A clear order id never gets further than [`Keys::identify`](super::keys::Keys::identify): what is stored is its fingerprint and token.

use std::collections::HashMap;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};
use sunder_schemas::ids::{CaseId, EntityToken, Fingerprint, KeyId, OrderId, SellerId};
use sunder_schemas::time::Timestamp;

use super::CaseError;
use crate::keydb::{DbError, KeyDb, ROWS_PER_STATEMENT, blob, on, push_tuples};
use crate::store::{Extent, Subject};

/// Why a case was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A deadline was reached; the sweep's own.
    Expiry,
    /// Amazon asked.
    AmazonRequest,
    /// The seller asked.
    SellerRequest,
    /// A buyer asked.
    BuyerRequest,
    /// The seller leaves.
    SellerOffboarding,
    /// A field turned out to be personal.
    Reclassified,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Expiry, Self::AmazonRequest, Self::SellerRequest, Self::BuyerRequest, Self::SellerOffboarding, Self::Reclassified];

    /// The name on the command line and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expiry => "expiry",
            Self::AmazonRequest => "amazon-request",
            Self::SellerRequest => "seller-request",
            Self::BuyerRequest => "buyer-request",
            Self::SellerOffboarding => "seller-offboarding",
            Self::Reclassified => "reclassified",
        }
    }

    /// The reason called `name`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Whether business rows go too where the request does not say: requests by Amazon and by the seller (design, section 6).
    #[must_use]
    pub const fn takes_business_data(self) -> bool {
        matches!(self, Self::AmazonRequest | Self::SellerRequest)
    }
}

/// What a request is about.
#[derive(Debug, Clone)]
pub enum Scope {
    /// These orders, known or not.
    Orders(Vec<OrderId>),
    /// Orders that are known by their pseudonyms alone: those that a search found.
    Entities(Vec<EntityToken>),
    /// Everything of the seller.
    All,
}

/// A request to erase.
#[derive(Debug, Clone)]
pub struct EraseRequest {
    /// Whose customers.
    pub seller: SellerId,
    /// Which of them.
    pub scope: Scope,
    /// Why.
    pub reason: Reason,
    /// Whether business rows go too; `None`: as the reason says.
    pub with_business_data: Option<bool>,
    /// Whether removal is to be forced rather than waited for.
    pub now: bool,
    /// Who asked: a user or role of the operator, never a data subject.
    pub requested_by: String,
}

impl EraseRequest {
    /// How much of a subject goes.
    #[must_use]
    pub fn extent(&self) -> Extent {
        if self.with_business_data.unwrap_or_else(|| self.reason.takes_business_data()) {
            Extent::WithBusinessData
        } else {
            Extent::Personal
        }
    }
}

/// What a request would do, in numbers: the answer of `--dry-run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Whose customers.
    pub seller: SellerId,
    /// Why.
    pub reason: Reason,
    /// How much of a subject goes.
    pub extent: Extent,
    /// Subjects in scope.
    pub subjects: u64,
    /// Of these, how many have a key that would be destroyed.
    pub with_live_keys: u64,
    /// Of these, how many are unknown or erased already: the ledger row is written all the same.
    pub without_keys: u64,
    /// What would be deleted where.
    pub goes: Vec<Goes>,
    /// The stores that would be cleaned and read again.
    pub stores: Vec<String>,
    /// When the case would be due, by the policy clock.
    pub due_at: String,
}

/// Rows of a request's subjects in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Goes {
    /// The store.
    pub store: String,
    /// The table.
    pub table: String,
    /// How many rows.
    pub rows: u64,
}

/// One subject as the case keeps it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listed {
    /// What the erased ledger knows it by.
    pub fingerprint: Fingerprint,
    /// Its pseudonym.
    pub token: EntityToken,
    /// The keys it ever had.
    pub keys: Vec<KeyId>,
}

impl Listed {
    /// As the stores know it.
    #[must_use]
    pub fn subject(&self, seller: &SellerId) -> Subject {
        Subject { seller: seller.clone(), token: self.token, keys: self.keys.clone() }
    }
}

/// Name of the scope of a case over business data that is older than it may be kept: its entities are listed when it is opened.
pub(super) const AGED: &str = "aged";

/// The entities of `tokens` as a case lists them: those of the ledger with fingerprint and key, others (an inventory level for one, or an
/// order that the ledger does not know) under a fingerprint made of their token.
pub(super) async fn by_token(db: &KeyDb, seller: &SellerId, tokens: &[EntityToken]) -> Result<Vec<Listed>, CaseError> {
    let mut known: HashMap<EntityToken, Listed> = HashMap::new();
    for chunk in tokens.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "SELECT fingerprint, token, key_id FROM subject WHERE seller = $1 AND token IN ".to_owned();
        push_tuples(&mut sql, 1, chunk.len(), 2);
        // Only placeholders were added to the fixed text.
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(seller.as_str().to_owned());
        for token in chunk {
            query = query.bind(token.0.to_vec());
        }
        for row in query.fetch_all(db.pool()).await.map_err(on("read subjects"))? {
            let subject = listed(&row)?;
            known.insert(subject.token, subject);
        }
    }
    let listed = tokens.iter().map(|token| {
        let unknown = || Listed { fingerprint: entity_fingerprint(seller, *token), token: *token, keys: Vec::new() };
        known.remove(token).unwrap_or_else(unknown)
    });
    let mut listed: Vec<Listed> = listed.collect();
    listed.sort();
    Ok(listed)
}

/// Those of `subjects` that the ledger knows.
pub(super) async fn in_ledger(db: &KeyDb, subjects: &[Listed]) -> Result<Vec<Listed>, CaseError> {
    let known = rows_of(db, subjects).await?;
    Ok(subjects.iter().filter(|subject| known.contains_key(&subject.fingerprint)).cloned().collect())
}

/// Stands in the ledger for an entity that is no data subject: made of its token, since nobody knows what the token was made of.
pub(super) fn entity_fingerprint(seller: &SellerId, token: EntityToken) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    for part in [b"sunder entity 1".as_slice(), seller.as_str().as_bytes(), &token.0] {
        context.update(part);
        context.update(&[0]);
    }
    let mut fingerprint = Fingerprint([0; 32]);
    fingerprint.0.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    fingerprint
}

/// In the evidence of a case's first event: the ledger epoch at which it was opened.
pub(super) const OPENED_AT_EPOCH: &str = "epoch";

/// Every subject of `seller` of which something within `extent` is left: one that is erased already still has its business data. What was
/// erased after ledger epoch `since`, when the case was opened, belongs to it as well: the case may have done so itself, in a database
/// that was lost, and nobody else removes what is left of it.
pub(super) async fn all_of(db: &KeyDb, seller: &SellerId, extent: Extent, since: i64) -> Result<Vec<Listed>, CaseError> {
    let rows = sqlx::query(
        "SELECT fingerprint, token, key_id FROM subject WHERE seller = $1 AND token IS NOT NULL AND COALESCE(rule, '') <> 'hold' \
         AND (state <> 'destroyed' OR ($2 = 1 AND withheld_epoch IS NULL) OR destroyed_epoch > $3 OR withheld_epoch > $3) \
         ORDER BY fingerprint",
    )
    .bind(seller.as_str().to_owned())
    .bind(i64::from(extent.takes_rows()))
    .bind(since)
    .fetch_all(db.pool())
    .await
    .map_err(on("list a seller's subjects"))?;
    Ok(rows.iter().map(listed).collect::<Result<_, _>>()?)
}

/// Every subject of `seller` whose deadline is at or before `until` and whose key still lives, and those that `case` destroyed itself in
/// a database that was lost since.
pub(super) async fn due_of(db: &KeyDb, seller: &SellerId, until: Timestamp, case: &CaseId) -> Result<Vec<Listed>, CaseError> {
    let rows = sqlx::query(
        "SELECT fingerprint, token, key_id FROM subject WHERE seller = $1 AND token IS NOT NULL \
         AND ((state = 'live' AND deadline <= $2) OR (state = 'destroyed' AND case_id = $3)) ORDER BY fingerprint",
    )
    .bind(seller.as_str().to_owned())
    .bind(until.0)
    .bind(case.as_str().to_owned())
    .fetch_all(db.pool())
    .await
    .map_err(on("list due subjects"))?;
    Ok(rows.iter().map(listed).collect::<Result<_, _>>()?)
}

/// The rows of `subjects` that exist, by fingerprint: id of the key they ever had, and whether it lives.
async fn rows_of(db: &KeyDb, subjects: &[Listed]) -> Result<HashMap<Fingerprint, (Option<KeyId>, bool)>, CaseError> {
    let failed = on("read subjects");
    let mut known = HashMap::with_capacity(subjects.len());
    for chunk in subjects.chunks(ROWS_PER_STATEMENT) {
        let mut sql = "SELECT fingerprint, key_id, state FROM subject WHERE fingerprint IN ".to_owned();
        push_tuples(&mut sql, 1, chunk.len(), 1);
        // Only placeholders were added to the fixed text.
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        for subject in chunk {
            query = query.bind(subject.fingerprint.0.to_vec());
        }
        for row in query.fetch_all(db.pool()).await.map_err(&failed)? {
            let fingerprint = blob(&row, "fingerprint")?.map(Fingerprint).ok_or_else(|| DbError::fixed("read subjects", "bad_column"))?;
            let state: String = row.try_get("state").map_err(&failed)?;
            known.insert(fingerprint, (blob(&row, "key_id")?.map(KeyId), state == "live"));
        }
    }
    Ok(known)
}

/// The same subjects with the keys they have by now: a key may have been minted since the request.
pub(super) async fn with_keys(db: &KeyDb, mut subjects: Vec<Listed>) -> Result<Vec<Listed>, CaseError> {
    let known = rows_of(db, &subjects).await?;
    for subject in &mut subjects {
        if let Some((Some(key), _)) = known.get(&subject.fingerprint)
            && !subject.keys.contains(key)
        {
            subject.keys.push(*key);
        }
    }
    subjects.sort();
    subjects.dedup();
    Ok(subjects)
}

/// How many of `subjects` have a key that lives.
pub(super) async fn live_keys(db: &KeyDb, subjects: &[Listed]) -> Result<u64, CaseError> {
    let live = rows_of(db, subjects).await?.values().filter(|(_, is_live)| *is_live).count();
    Ok(u64::try_from(live).unwrap_or(u64::MAX))
}

fn listed(row: &AnyRow) -> Result<Listed, DbError> {
    let bad = || DbError::fixed("read a subject", "bad_column");
    Ok(Listed {
        fingerprint: blob(row, "fingerprint")?.map(Fingerprint).ok_or_else(bad)?,
        token: blob(row, "token")?.map(EntityToken).ok_or_else(bad)?,
        keys: blob(row, "key_id")?.map(KeyId).into_iter().collect(),
    })
}
