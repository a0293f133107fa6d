//! Legal holds: fields of an order that a statute keeps longer than the order itself.
//!
//! Invariants: a hold names statute, class of document, fields and an end; never a whole order, and never more fields than its class of
//! document may have; its fields lie in a cold store, sealed under a key of the hold's own; they are copied there before the order's key
//! goes; the hold's key is a subject of the ledger whose deadline is the hold's end, so its end is found, proved and certified like any
//! other. It does not know where the cold store is: see [`ColdStore`].

mod keep;

use std::collections::HashMap;

use ring::digest::{Context, SHA256};
use ring::rand::SecureRandom as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row;
use sqlx::any::AnyRow;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, Fingerprint, SellerId};
use sunder_schemas::time::Timestamp;

use crate::admit;
use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::keydb::{DbError, KeyDb, Write, blob, on};
use crate::keys::seal::commitment;
use crate::keys::{DataKey, KeyError, Keyring};
use crate::ledger;
use crate::names::Named;

pub use keep::{ColdStore, KeepError, Kept, keep};

/// The rule under which a hold's key stands among the subjects.
pub const RULE: &str = "hold";
/// Longest name of a statute, in bytes. Chosen: it is printed on certificates.
const STATUTE_BYTES_MAX: usize = 120;
/// How often a hold is tried where the seller's keys rotate meanwhile. Chosen: a rotation changes them twice.
const ADDS_MAX: u32 = 5;

/// A class of document that a law may want kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Document {
    /// An invoice: who was charged, where it went, with which tax number.
    Invoice,
    /// Its correction.
    CreditNote,
    /// A customs declaration.
    Customs,
}

impl Document {
    /// Every class.
    pub const ALL: [Self; 3] = [Self::Invoice, Self::CreditNote, Self::Customs];

    /// The name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invoice => "invoice",
            Self::CreditNote => "credit-note",
            Self::Customs => "customs",
        }
    }

    /// The class called `name`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|document| document.as_str() == name)
    }

    /// What a document of the class may show of a person: never how to reach him (controls H-1).
    #[must_use]
    pub const fn fields(self) -> &'static [FieldGroup] {
        match self {
            Self::Invoice | Self::CreditNote => &[FieldGroup::BuyerName, FieldGroup::RecipientAddress, FieldGroup::TaxIdentity],
            Self::Customs => &[FieldGroup::RecipientAddress, FieldGroup::TaxIdentity],
        }
    }
}

/// What a hold is to be.
#[derive(Debug, Clone)]
pub struct NewHold<'a> {
    /// Whose customer.
    pub seller: &'a SellerId,
    /// The order's names.
    pub order: &'a Named,
    /// The law that asks for it.
    pub statute: &'a str,
    /// The class of document.
    pub document: Document,
    /// What is held.
    pub fields: &'a [FieldGroup],
    /// The one purpose that may read it; `None`: any that covers its fields.
    pub purpose: Option<&'a str>,
    /// When it ends, by the policy clock.
    pub until: Timestamp,
    /// Who asked: a user of the operator.
    pub by: &'a str,
}

/// A hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Its id.
    pub id: String,
    /// Whose customer.
    pub seller: SellerId,
    /// The order in the erased ledger.
    pub order_fingerprint: Fingerprint,
    /// The order's pseudonym.
    pub order_token: EntityToken,
    /// Its own row among the subjects.
    pub fingerprint: Fingerprint,
    /// What the cold store knows it by.
    pub token: EntityToken,
    /// The law that asks for it.
    pub statute: String,
    /// The class of document.
    pub document: Document,
    /// What is held.
    pub fields: Vec<FieldGroup>,
    /// The one purpose that may read it; `None`: any that covers its fields.
    pub purpose: Option<String>,
    /// When it ends, by the policy clock.
    pub until: Timestamp,
    /// When it was made, by the policy clock.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When its fields were last copied to the cold store.
    pub moved_at: Option<Timestamp>,
    /// The fields that were there to be copied.
    pub moved_fields: Vec<FieldGroup>,
    /// Whether its key still exists.
    pub is_active: bool,
}

/// Why there is no such hold.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Keys or key database.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What was asked for is no hold.
    #[error("{0}")]
    Refused(&'static str),
    /// No hold of this id.
    #[error("no such hold")]
    NotFound,
}

impl From<DbError> for HoldError {
    fn from(error: DbError) -> Self {
        Self::Key(error.into())
    }
}

fn check(new: &NewHold<'_>, now: Timestamp) -> Result<(Fingerprint, EntityToken), HoldError> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b" .,()/-".contains(&byte);
    if new.statute.trim().is_empty() || new.statute.len() > STATUTE_BYTES_MAX || !new.statute.bytes().all(is_name) {
        return Err(HoldError::Refused("a hold needs a statute: letters, digits and .,()/- of 120 at the most, e.g. HGB 257"));
    }
    if new.fields.is_empty() {
        return Err(HoldError::Refused("a hold names the fields it keeps, never a whole order"));
    }
    if !new.fields.iter().all(|field| new.document.fields().contains(field)) {
        return Err(HoldError::Refused("a document of this class does not need that field"));
    }
    if new.until <= now {
        return Err(HoldError::Refused("a hold ends in the future"));
    }
    new.order.fingerprint.zip(new.order.token).ok_or(HoldError::Refused("nothing is held of this order: it is not known"))
}

/// Makes a hold with a key of its own. Its fields are copied by [`keep`].
///
/// # Errors
/// [`HoldError`]: nothing was made.
pub async fn add(keyring: &Keyring, new: &NewHold<'_>) -> Result<Hold, HoldError> {
    for _ in 1..ADDS_MAX {
        match try_add(keyring, new).await {
            Err(HoldError::Key(error)) if admit::is_outdated(&error) => {}
            other => return other,
        }
    }
    try_add(keyring, new).await
}

async fn try_add(keyring: &Keyring, new: &NewHold<'_>) -> Result<Hold, HoldError> {
    let now = keyring.now();
    let (order_fingerprint, order_token) = check(new, now)?;
    let keys = keyring.seller(new.seller).await?;
    let (mut random, mut token) = ([0u8; 8], EntityToken([0; 16]));
    let no_randomness = |_| KeyError::NoRandomness;
    keyring.random().fill(&mut random).map_err(no_randomness)?;
    keyring.random().fill(&mut token.0).map_err(no_randomness)?;
    let mut fields = new.fields.to_vec();
    fields.sort_unstable();
    fields.dedup();
    let hold = Hold {
        id: format!("hold-{}-{}", now.to_utc().format("%Y%m%d"), hex::encode(random)),
        seller: new.seller.clone(),
        order_fingerprint,
        order_token,
        fingerprint: fingerprint_of(new.seller, token),
        token,
        statute: new.statute.trim().to_owned(),
        document: new.document,
        fields,
        purpose: new.purpose.map(str::to_owned),
        until: new.until,
        created_at: now,
        created_by: new.by.to_owned(),
        moved_at: None,
        moved_fields: Vec::new(),
        is_active: true,
    };
    let (key, bytes) = DataKey::mint(keyring.random()).ok_or(KeyError::NoRandomness)?;
    let wrapped = keys.wrap(keyring.random(), key.id(), hold.fingerprint, bytes.as_ref()).ok_or(KeyError::NoRandomness)?;
    let failed = on("add a hold");
    let mut tx = keyring.db().begin_write().await?;
    // With the seller's row locked no erasure destroys the order's key between the look and the commit.
    let locked = ledger::lock_seller(&mut tx, new.seller).await?;
    if !locked.is_some_and(|locked| keys.is_current(&locked)) {
        keyring.forget_seller(new.seller);
        return Err(KeyError::from(admit::outdated("add a hold")).into());
    }
    if !ledger::is_live(&mut tx, order_fingerprint).await? {
        return Err(HoldError::Refused("nothing is held of this order: it is erased, or nothing of it was ever sealed"));
    }
    if is_leaving(&mut tx, new.seller).await? {
        return Err(HoldError::Refused("the seller is being removed: the key that would keep the held fields goes with it"));
    }
    sqlx::query(
        "INSERT INTO subject (fingerprint, seller, token, state, key_id, wrapped, wrapped_mask, wrapping_version, commitment, witness, \
         deadline, rule, created_at) VALUES ($1, $2, $3, 'live', $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(hold.fingerprint.0.to_vec())
    .bind(hold.seller.as_str().to_owned())
    .bind(hold.token.0.to_vec())
    .bind(key.id().0.to_vec())
    .bind(wrapped.clone())
    .bind(admit::mask(&wrapped))
    .bind(keys.wrapping_version())
    .bind(commitment(bytes.as_ref()).to_vec())
    .bind(key.witness(new.seller, hold.token).into_bytes())
    .bind(hold.until.0)
    .bind(RULE)
    .bind(now.0)
    .execute(&mut *tx)
    .await
    .map_err(&failed)?;
    insert(&mut tx, &hold).await?;
    record(&mut tx, &hold, "hold.added", &hold.created_by, now).await?;
    tx.commit().await.map_err(&failed)?;
    Ok(hold)
}

/// Whether a case takes everything of `seller`, its own keys too.
async fn is_leaving(tx: &mut Write, seller: &SellerId) -> Result<bool, DbError> {
    let sql = "SELECT 1 FROM erasure_case WHERE seller = $1 AND scope = 'all' AND reason = 'seller-offboarding' AND state <> 'certified'";
    let open = sqlx::query(sql).bind(seller.as_str().to_owned()).fetch_optional(&mut **tx).await;
    Ok(open.map_err(on("look for a seller's removal"))?.is_some())
}

/// The ids of the holds of `seller` whose key still exists, at this moment of `tx`.
pub(crate) async fn active_ids(tx: &mut Write, seller: &SellerId) -> Result<HashMap<String, Fingerprint>, DbError> {
    let failed = on("read holds");
    let sql = "SELECT h.hold_id, h.order_fingerprint FROM hold h JOIN subject s ON s.fingerprint = h.fingerprint \
               WHERE h.seller = $1 AND s.state = 'live'";
    let rows = sqlx::query(sql).bind(seller.as_str().to_owned()).fetch_all(&mut **tx).await.map_err(&failed)?;
    let bad = || DbError::fixed("read holds", "bad_column");
    rows.iter()
        .map(|row| Ok((row.try_get(0).map_err(&failed)?, blob(row, "order_fingerprint")?.map(Fingerprint).ok_or_else(bad)?)))
        .collect()
}

async fn insert(tx: &mut Write, hold: &Hold) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO hold (hold_id, seller, order_fingerprint, order_token, fingerprint, token, statute, document, fields, purpose, until, \
         created_at, created_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(hold.id.clone())
    .bind(hold.seller.as_str().to_owned())
    .bind(hold.order_fingerprint.0.to_vec())
    .bind(hold.order_token.0.to_vec())
    .bind(hold.fingerprint.0.to_vec())
    .bind(hold.token.0.to_vec())
    .bind(hold.statute.clone())
    .bind(hold.document.as_str())
    .bind(json!(hold.fields).to_string())
    .bind(hold.purpose.clone())
    .bind(hold.until.0)
    .bind(hold.created_at.0)
    .bind(hold.created_by.clone())
    .execute(&mut **tx)
    .await
    .map_err(on("add a hold"))?;
    Ok(())
}

async fn record(tx: &mut Write, hold: &Hold, action: &'static str, actor: &str, at: Timestamp) -> Result<(), DbError> {
    let detail = json!({
        "seller": hold.seller, "order": hold.order_token, "statute": hold.statute, "document": hold.document, "fields": hold.fields,
        "until": hold.until.to_iso(),
    });
    let event = AuditEvent { actor: actor.to_owned(), action, object: hold.id.clone(), outcome: AuditOutcome::Success, detail };
    audit::append(tx, at, &event).await?;
    Ok(())
}

/// Stands among the subjects for a hold: made of its token.
fn fingerprint_of(seller: &SellerId, token: EntityToken) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    for part in [b"sunder hold 1".as_slice(), seller.as_str().as_bytes(), &token.0] {
        context.update(part);
        context.update(&[0]);
    }
    let mut fingerprint = Fingerprint([0; 32]);
    fingerprint.0.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    fingerprint
}

/// Ends a hold now: the next sweep destroys its key, with a case and a certificate.
///
/// # Errors
/// [`HoldError::NotFound`]; one that has ended already is no error.
pub async fn end(keyring: &Keyring, id: &str, by: &str) -> Result<Hold, HoldError> {
    let now = keyring.now();
    let hold = list(keyring.db()).await?.into_iter().find(|hold| hold.id == id).ok_or(HoldError::NotFound)?;
    let failed = on("end a hold");
    let mut tx = keyring.db().begin_write().await?;
    sqlx::query("UPDATE subject SET deadline = $1 WHERE fingerprint = $2 AND state = 'live' AND deadline > $1")
        .bind(now.0)
        .bind(hold.fingerprint.0.to_vec())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    sqlx::query("UPDATE hold SET until = $1 WHERE hold_id = $2 AND until > $1")
        .bind(now.0)
        .bind(hold.id.clone())
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    record(&mut tx, &hold, "hold.ended", by, now).await?;
    tx.commit().await.map_err(&failed)?;
    Ok(Hold { until: hold.until.min(now), ..hold })
}

const SELECT: &str = "SELECT h.hold_id, h.seller, h.order_fingerprint, h.order_token, h.fingerprint, h.token, h.statute, h.document, h.fields, \
                      h.purpose, h.until, h.created_at, h.created_by, h.moved_at, h.moved_fields, s.state \
                      FROM hold h JOIN subject s ON s.fingerprint = h.fingerprint";

/// Every hold, oldest first.
///
/// # Errors
/// [`DbError`].
pub async fn list(db: &KeyDb) -> Result<Vec<Hold>, DbError> {
    let sql = format!("{SELECT} ORDER BY h.created_at, h.hold_id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(db.pool()).await.map_err(on("read holds"))?;
    rows.iter().map(hold_of).collect()
}

/// The holds of `seller` whose key still exists.
///
/// # Errors
/// [`DbError`].
pub async fn active_of(db: &KeyDb, seller: &SellerId) -> Result<Vec<Hold>, DbError> {
    let sql = format!("{SELECT} WHERE h.seller = $1 AND s.state = 'live' ORDER BY h.created_at, h.hold_id");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(seller.as_str().to_owned()).fetch_all(db.pool()).await;
    rows.map_err(on("read holds"))?.iter().map(hold_of).collect()
}

fn hold_of(row: &AnyRow) -> Result<Hold, DbError> {
    let failed = on("read holds");
    let bad = || DbError::fixed("read holds", "bad_column");
    let fields = |text: String| serde_json::from_str::<Vec<FieldGroup>>(&text).map_err(|_| bad());
    let text = |column: &str| row.try_get::<String, _>(column).map_err(on("read holds"));
    let moved: Option<String> = row.try_get("moved_fields").map_err(&failed)?;
    Ok(Hold {
        id: text("hold_id")?,
        seller: SellerId::parse(&text("seller")?).map_err(|_| bad())?,
        order_fingerprint: blob(row, "order_fingerprint")?.map(Fingerprint).ok_or_else(bad)?,
        order_token: blob(row, "order_token")?.map(EntityToken).ok_or_else(bad)?,
        fingerprint: blob(row, "fingerprint")?.map(Fingerprint).ok_or_else(bad)?,
        token: blob(row, "token")?.map(EntityToken).ok_or_else(bad)?,
        statute: text("statute")?,
        document: Document::parse(&text("document")?).ok_or_else(bad)?,
        fields: fields(text("fields")?)?,
        purpose: row.try_get("purpose").map_err(&failed)?,
        until: Timestamp(row.try_get("until").map_err(&failed)?),
        created_at: Timestamp(row.try_get("created_at").map_err(&failed)?),
        created_by: text("created_by")?,
        moved_at: row.try_get::<Option<i64>, _>("moved_at").map_err(&failed)?.map(Timestamp),
        moved_fields: moved.map(fields).transpose()?.unwrap_or_default(),
        is_active: text("state")? == "live",
    })
}
