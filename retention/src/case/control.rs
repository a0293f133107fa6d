//! The control of a case: a real sealed block of constant text, planted in every store and found again, or the scan is void.
//!
//! Its key is made for the case, kept wrapped by the root key, and opens nothing else. One control a case: made once, the same after
//! every restart, so that planting is idempotent.

use ring::rand::SystemRandom;
use sqlx::Row;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{CaseId, EntityToken, KeyId, SellerId};
use sunder_schemas::time::Timestamp;

use super::CaseError;
use super::engine::Engine;
use super::keys::Keys;
use super::probe::Moment;
use super::store::Record;
use crate::keydb::{DbError, KeyDb, on};
use crate::keys::{Context, DataKey};
use crate::rotate::guard;
use crate::store::Control;

/// What a control says; not personal.
const TEXT: &[u8] = b"sunder control 1: this text is not personal data";
/// Stands in the place of a catalogue version in a control's associated data.
const CLASSIFICATION: &str = "~control";

fn context(seller: &SellerId) -> Context<'_> {
    Context { seller, entity: EntityToken([0; 16]), group: FieldGroup::Unclassified, classification: CLASSIFICATION }
}

pub(crate) fn wrap_context(case: &CaseId) -> Vec<u8> {
    format!("case control|{case}").into_bytes()
}

/// The control of `case`, made on first use.
pub(super) async fn control(db: &KeyDb, keys: &dyn Keys, case: &CaseId, seller: &SellerId) -> Result<Control, CaseError> {
    if let Some((key, _, block)) = read(db, case).await? {
        return Ok(Control { case: case.to_string(), key, block });
    }
    guard::wrapping!(mint(db, keys, case, seller))?;
    // Another process may have been first: what is stored is the control.
    let (key, _, block) = read(db, case).await?.ok_or_else(|| DbError::fixed("write a control", "row_missing"))?;
    Ok(Control { case: case.to_string(), key, block })
}

async fn mint(db: &KeyDb, keys: &dyn Keys, case: &CaseId, seller: &SellerId) -> Result<(), CaseError> {
    let (key, bytes) = DataKey::mint(&SystemRandom::new()).ok_or_else(|| CaseError::Keys("no randomness".to_owned()))?;
    let block = key.seal(&context(seller), TEXT).into_bytes();
    let wrapped = keys.wrap(&wrap_context(case), bytes.as_ref()).await?;
    let mut tx = db.begin_write().await?;
    sqlx::query("INSERT INTO case_control (case_id, key_id, wrapped, block) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
        .bind(case.as_str().to_owned())
        .bind(key.id().to_hex())
        .bind(wrapped.clone())
        .bind(block)
        .execute(&mut *tx)
        .await
        .map_err(on("write a control"))?;
    keys.may_commit(&mut tx, &wrapped).await?;
    Ok(tx.commit().await.map_err(on("write a control"))?)
}

/// Notes that the control of `case` is planted now, by the system's clock.
async fn planted(db: &KeyDb, case: &CaseId, at: Timestamp) -> Result<(), CaseError> {
    write(db, "note a control", "UPDATE case_control SET planted_at = $2 WHERE case_id = $1", case, Some(at)).await
}

/// Forgets the control of `case`: it lies nowhere any more.
pub(super) async fn forget(db: &KeyDb, case: &CaseId) -> Result<(), CaseError> {
    write(db, "forget a control", "DELETE FROM case_control WHERE case_id = $1", case, None).await
}

async fn write(db: &KeyDb, action: &'static str, sql: &'static str, case: &CaseId, at: Option<Timestamp>) -> Result<(), CaseError> {
    let mut tx = db.begin_write().await?;
    let mut query = sqlx::query(sql).bind(case.as_str().to_owned());
    if let Some(at) = at {
        query = query.bind(at.0);
    }
    query.execute(&mut *tx).await.map_err(on(action))?;
    tx.commit().await.map_err(on(action))?;
    Ok(())
}

/// Certified cases whose controls were planted before `until` and lie there still.
pub(super) async fn forgotten(db: &KeyDb, until: Timestamp) -> Result<Vec<CaseId>, CaseError> {
    let failed = on("look for forgotten controls");
    let rows = sqlx::query(
        "SELECT c.case_id FROM case_control c JOIN erasure_case e ON e.case_id = c.case_id \
         WHERE e.state = 'certified' AND (c.planted_at IS NULL OR c.planted_at < $1) ORDER BY c.case_id",
    )
    .bind(until.0)
    .fetch_all(db.pool())
    .await
    .map_err(&failed)?;
    let bad = |_| DbError::fixed("look for forgotten controls", "bad_id");
    rows.iter().map(|row| Ok(CaseId::parse(&row.try_get::<String, _>(0).map_err(&failed)?).map_err(bad)?)).collect()
}

impl Engine {
    /// Plants the control of the case in every store; again is the same as once.
    pub(super) async fn plant(&self, record: &Record) -> Result<Control, CaseError> {
        let control = control(&self.parts.db, &*self.parts.keys, &record.id, &record.seller).await?;
        planted(&self.parts.db, &record.id, self.parts.system_clock.now()).await?;
        for store in &self.parts.prove {
            store.plant(&control).await?;
            self.reach(&record.id, "plant_controls", Moment::Within("planted in a store")).await;
        }
        Ok(control)
    }
}

/// Whether the control opens with its own key, read back from the database: shows that opening works at all.
pub(super) async fn opens(db: &KeyDb, keys: &dyn Keys, case: &CaseId, seller: &SellerId) -> Result<bool, CaseError> {
    let Some((key, wrapped, block)) = read(db, case).await? else { return Ok(false) };
    let bytes = keys.unwrap(&wrap_context(case), &wrapped).await?;
    let Some(key) = DataKey::from_bytes(key, &bytes) else { return Ok(false) };
    Ok(key.open(&context(seller), &block).is_ok_and(|plain| plain.reveal() == TEXT))
}

async fn read(db: &KeyDb, case: &CaseId) -> Result<Option<(KeyId, Vec<u8>, Vec<u8>)>, CaseError> {
    let row = sqlx::query("SELECT key_id, wrapped, block FROM case_control WHERE case_id = $1")
        .bind(case.as_str().to_owned())
        .fetch_optional(db.pool())
        .await
        .map_err(on("read a control"))?;
    let Some(row) = row else { return Ok(None) };
    let failed = on("read a control");
    let key: String = row.try_get(0).map_err(&failed)?;
    let key = KeyId::parse(&key).map_err(|_| DbError::fixed("read a control", "bad_key_id"))?;
    Ok(Some((key, row.try_get(1).map_err(&failed)?, row.try_get(2).map_err(&failed)?)))
}
