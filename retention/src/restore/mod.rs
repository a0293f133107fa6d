//! Undoes the restore of an old key database: what was erased since its backup is destroyed again, before anything is served.
//!
//! Invariants: a database that is behind its mirror ([`crate::mirror`]) serves nothing until [`Restore::finish`] has committed; every
//! step may be done again, by this process after a crash or by another at the same time; the ledger epoch and the generation rise only
//! at the end, so that a restore that was cut off is noticed again. What came after the backup and is no erasure is lost here: younger
//! orders are fetched again, since the cursors are as old as the backup, and sealed under new keys.

mod lost;
mod stores;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::Row;
use sunder_schemas::ids::{KeyId, SellerId};

use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::keydb::{DbError, ROWS_PER_STATEMENT, Write, blob, numbered, on, push_tuples};
use crate::keys::{KeyError, Keyring, fresh};
use crate::ledger;
use crate::mirror::{self, ErasedSubject, Generation, Mirrored, SellerKeysExist};
use crate::rotate::guard;
use crate::sellers;
use crate::store::Extent;

pub use lost::{Lost, erased, is_read_again, publish_again, sealed_again, settle, unsettled, without_key};
pub use stores::{Ledger, note_store};

/// Why a seller is not polled after a restore: its own keys were made after the backup, so its tokens cannot be made again.
pub const KEYS_LOST: &str = "keys_lost";
/// Who restores, in the audit log.
const ACTOR: &str = "restore";

/// What undoing a restore came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Generation and ledger epoch of the backup.
    pub from: (i64, i64),
    /// Generation and ledger epoch that the log had seen.
    pub to: (i64, i64),
    /// Live keys that were destroyed again.
    pub keys_destroyed: u64,
    /// Ledger rows that the backup did not have.
    pub ledger_rows: u64,
    /// Sellers whose off-boarding was done again.
    pub sellers_removed: Vec<SellerId>,
    /// Sellers whose own keys are lost: not polled until removed and added again.
    pub sellers_lost: Vec<SellerId>,
    /// Certificates that the backup did not have.
    pub certificates: u64,
    /// Cases that were asked for after the backup and are opened again.
    pub cases_opened: u64,
    /// Audit rows that the backup did not have.
    pub audit_rows: u64,
    /// When each cursor had its version at the restore: what was lost is counted once all of active sellers have moved on.
    pub cursors: Vec<(SellerId, String, i64)>,
}

/// A restore that is being undone.
pub struct Restore<'a> {
    keyring: &'a Keyring,
    log: Generation,
    epoch: i64,
    known: HashSet<SellerId>,
    floors: BTreeMap<SellerId, (i64, Option<i64>)>,
    report: Report,
}

impl std::fmt::Debug for Restore<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Restore(to generation {})", self.log.generation)
    }
}

impl<'a> Restore<'a> {
    /// Begins to bring the database up to `log`.
    ///
    /// # Errors
    /// [`DbError`].
    pub async fn begin(keyring: &'a Keyring, log: Generation) -> Result<Self, DbError> {
        let here = mirror::here(keyring.db()).await?;
        let failed = on("read the sellers");
        // One whose ledger key was lost, now or in a restore before, is known anew each time: its floor counts all that was erased.
        let sql = "SELECT seller FROM seller WHERE seller NOT IN (SELECT seller FROM lost_ledger)";
        let rows = sqlx::query(sql).fetch_all(keyring.db().pool()).await.map_err(&failed)?;
        let known = rows
            .iter()
            .map(|row| row.try_get::<String, _>(0).map_err(&failed)?.parse().map_err(|_| DbError::fixed("read the sellers", "bad_column")))
            .collect::<Result<_, DbError>>()?;
        let report = Report { from: (here.generation, here.epoch), to: (log.generation, log.epoch), ..Report::default() };
        Ok(Self { keyring, epoch: here.epoch.max(log.epoch) + 1, log, known, floors: BTreeMap::new(), report })
    }

    /// Does again what `records` tell of; the order among them does not matter, but all of the topic must be given.
    ///
    /// # Errors
    /// [`KeyError`]: begin again.
    pub async fn apply(&mut self, records: &[Mirrored]) -> Result<(), KeyError> {
        // A ledger at one epoch holds all that was erased up to it: epochs are committed in their order.
        let since = self.report.from.1;
        let mut erased: Vec<&ErasedSubject> = Vec::new();
        for record in records {
            match record {
                Mirrored::Erased(subject) => {
                    if !self.known.contains(&subject.seller) {
                        let floor = self.floors.entry(subject.seller.clone()).or_insert((i64::MIN, None));
                        floor.0 = floor.0.max(subject.at.0.0);
                        if subject.extent == Extent::WithBusinessData {
                            floor.1 = floor.1.max(Some(subject.at.0.0));
                        }
                    }
                    if subject.epoch > since {
                        erased.push(subject);
                    }
                }
                Mirrored::Seller(seller) => self.seller(seller).await?,
                Mirrored::Generation(_) => {}
            }
        }
        // In the order in which admission and destruction lock them. One that lost its business data in a later case is told of twice, until
        // the topic is cleaned: the stronger erasure counts.
        erased.sort_unstable_by_key(|subject| (subject.fingerprint, subject.extent != Extent::WithBusinessData));
        erased.dedup_by_key(|subject| subject.fingerprint);
        for chunk in erased.chunks(ROWS_PER_STATEMENT) {
            self.destroy(chunk).await?;
        }
        Ok(())
    }

    async fn destroy(&mut self, subjects: &[&ErasedSubject]) -> Result<(), DbError> {
        let failed = on("destroy keys again");
        let mut tx = self.keyring.db().begin_write().await?;
        let mut sql = "SELECT state FROM subject WHERE fingerprint IN ".to_owned();
        push_tuples(&mut sql, 1, subjects.len(), 1);
        let mut query = sqlx::query(numbered(&tx, sql)).persistent(false);
        for subject in subjects {
            query = query.bind(subject.fingerprint.0.to_vec());
        }
        let mut before: HashMap<String, u64> = HashMap::new();
        for row in query.fetch_all(&mut *tx).await.map_err(&failed)? {
            *before.entry(row.try_get(0).map_err(&failed)?).or_default() += 1;
        }
        let count = |state: &str| before.get(state).copied().unwrap_or_default();
        self.report.keys_destroyed += count("live");
        self.report.ledger_rows += subjects.len() as u64 - count("destroyed");

        let mut sql =
            "INSERT INTO subject (fingerprint, seller, token, state, key_id, created_at, destroyed_at, destroyed_epoch, case_id, \
                       withheld_epoch, witness, commitment) VALUES "
                .to_owned();
        push_tuples(&mut sql, subjects.len(), 12, 1);
        sql.push_str(
            " ON CONFLICT (fingerprint) DO UPDATE SET state = 'destroyed', wrapped = NULL, token = COALESCE(subject.token, excluded.token), \
             key_id = COALESCE(subject.key_id, excluded.key_id), destroyed_at = COALESCE(subject.destroyed_at, excluded.destroyed_at), \
             destroyed_epoch = COALESCE(subject.destroyed_epoch, excluded.destroyed_epoch), \
             case_id = COALESCE(subject.case_id, excluded.case_id), \
             withheld_epoch = COALESCE(subject.withheld_epoch, excluded.withheld_epoch), \
             witness = CASE WHEN subject.key_id IS NULL THEN excluded.witness ELSE subject.witness END, \
             commitment = CASE WHEN subject.key_id IS NULL THEN excluded.commitment ELSE subject.commitment END",
        );
        let mut query = sqlx::query(numbered(&tx, sql)).persistent(false);
        for subject in subjects {
            let bytes = |text: &Option<String>| text.as_ref().and_then(|text| hex::decode(text).ok());
            query = query
                .bind(subject.fingerprint.0.to_vec())
                .bind(subject.seller.as_str().to_owned())
                .bind(subject.token.map(|token| token.0.to_vec()))
                .bind("destroyed")
                .bind(subject.keys.first().map(|key| key.0.to_vec()))
                .bind(subject.at.0.0)
                .bind(subject.at.0.0)
                .bind(self.epoch)
                .bind(subject.case.as_str().to_owned())
                .bind((subject.extent == Extent::WithBusinessData).then_some(self.epoch))
                .bind(bytes(&subject.witness))
                .bind(bytes(&subject.commitment));
        }
        query.execute(&mut *tx).await.map_err(&failed)?;
        let keys: Vec<KeyId> = subjects.iter().flat_map(|subject| subject.keys.iter().copied()).collect();
        ledger::revoke(&mut tx, &keys, self.epoch, self.keyring.now()).await?;
        // A key that the backup has under another name than the log: it goes as well.
        self.revoke_present(&mut tx, subjects).await?;
        // The log knows more of them than what waited when the backup was made: told behind that, it would take it back.
        mirror::untell(&mut tx, &subjects.iter().map(|subject| subject.fingerprint.to_hex()).collect::<Vec<_>>()).await?;
        tx.commit().await.map_err(&failed)
    }

    async fn revoke_present(&self, tx: &mut Write, subjects: &[&ErasedSubject]) -> Result<(), DbError> {
        let failed = on("destroy keys again");
        let mut sql = "SELECT key_id FROM subject WHERE key_id IS NOT NULL AND fingerprint IN ".to_owned();
        push_tuples(&mut sql, 1, subjects.len(), 1);
        let mut query = sqlx::query(numbered(tx, sql)).persistent(false);
        for subject in subjects {
            query = query.bind(subject.fingerprint.0.to_vec());
        }
        let rows = query.fetch_all(&mut **tx).await.map_err(&failed)?;
        let keys = rows.iter().map(|row| Ok(KeyId(blob(row, "key_id")?.unwrap_or_default()))).collect::<Result<Vec<_>, DbError>>()?;
        ledger::revoke(tx, &keys, self.epoch, self.keyring.now()).await
    }

    /// Brings a seller's own keys in line with what the log knows of them.
    async fn seller(&mut self, log: &SellerKeysExist) -> Result<(), KeyError> {
        let failed = on("restore a seller");
        let row = sqlx::query("SELECT generation, state, wrapping_key IS NOT NULL FROM seller WHERE seller = $1")
            .bind(log.seller.as_str().to_owned())
            .fetch_optional(self.keyring.db().pool())
            .await
            .map_err(&failed)?;
        let here = match &row {
            None => None,
            Some(row) => {
                let has_keys = row.try_get::<bool, _>(2).or_else(|_| row.try_get::<i64, _>(2).map(|n| n != 0)).map_err(&failed)?;
                Some((row.try_get::<i64, _>(0).map_err(&failed)?, has_keys))
            }
        };
        let (state, code) = match here {
            Some((generation, true)) if log.removed && generation <= log.generation => ("removed", None),
            Some((generation, _)) if generation >= log.generation => return Ok(()),
            _ if log.removed => ("removed", None),
            _ => ("blocked", Some(KEYS_LOST)),
        };
        // The ledger key of a seller that the backup does not know is lost: a new one, and a floor for what was erased under the old.
        let fresh = fresh(self.keyring, &log.seller, log.generation).await?;
        let now = self.keyring.now();
        let mut tx = self.keyring.db().begin_write().await?;
        sqlx::query(
            "INSERT INTO seller (seller, state, state_code, generation, wrapping_key, wrapping_version, token_key, ledger_key, created_at, \
             updated_at) VALUES ($1, $2, $3, $4, NULL, 1, NULL, $5, $6, $6) ON CONFLICT (seller) DO UPDATE SET state = excluded.state, \
             state_code = excluded.state_code, generation = excluded.generation, refresh_token = NULL, wrapping_key = NULL, \
             wrapping_previous = NULL, token_key = NULL, updated_at = excluded.updated_at",
        )
        .bind(log.seller.as_str().to_owned())
        .bind(state)
        .bind(code)
        .bind(log.generation)
        .bind(fresh.ledger.clone())
        .bind(now.0)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
        sellers::tell(&mut tx, &log.seller).await?;
        mirror::untell(&mut tx, &[mirror::seller_key(&log.seller)]).await?;
        if here.is_none() {
            // Marks the ledger key as new, also for a restore that is begun again; what was erased before sets the floor at the end.
            sqlx::query("INSERT INTO lost_ledger (seller, erased_until) VALUES ($1, $2) ON CONFLICT (seller) DO NOTHING")
                .bind(log.seller.as_str().to_owned())
                .bind(i64::MIN)
                .execute(&mut *tx)
                .await
                .map_err(&failed)?;
        }
        guard::may_commit(self.keyring.db(), &mut tx, self.keyring.root(), &[&fresh.ledger]).await?;
        tx.commit().await.map_err(&failed)?;
        self.keyring.forget_seller(&log.seller);
        let list = if code.is_some() { &mut self.report.sellers_lost } else { &mut self.report.sellers_removed };
        list.push(log.seller.clone());
        Ok(())
    }

    /// Notes what was taken over beside keys and ledger.
    pub const fn took(&mut self, certificates: u64, cases_opened: u64, audit_rows: u64) {
        self.report.certificates = certificates;
        self.report.cases_opened = cases_opened;
        self.report.audit_rows = audit_rows;
    }

    /// Ends it: raises ledger epoch and generation beyond what the log has seen, so that every process learns what was destroyed, and
    /// makes the keys leave the database's files. Mirror the generation afterwards.
    ///
    /// # Errors
    /// [`DbError`]: begin again; nothing may be served.
    pub async fn finish(mut self) -> Result<Report, DbError> {
        let failed = on("end a restore");
        let now = self.keyring.now();
        self.report.cursors = self.cursors().await?;
        let mut tx = self.keyring.db().begin_write().await?;
        for (seller, (erased, withheld)) in &self.floors {
            sqlx::query(
                "INSERT INTO lost_ledger (seller, erased_until, withheld_until) VALUES ($1, $2, $3) ON CONFLICT (seller) DO UPDATE SET \
                 erased_until = excluded.erased_until, withheld_until = COALESCE(excluded.withheld_until, lost_ledger.withheld_until)",
            )
            .bind(seller.as_str().to_owned())
            .bind(*erased)
            .bind(*withheld)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        }
        sqlx::query("UPDATE ledger_epoch SET epoch = $1 WHERE id = 1 AND epoch < $1")
            .bind(self.epoch)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        sqlx::query("UPDATE key_generation SET generation = $1 WHERE id = 1 AND generation < $1")
            .bind(self.log.generation)
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
        let report = serde_json::to_value(&self.report).map_err(|_| DbError::fixed("end a restore", "not_json"))?;
        mirror::note(&mut tx, "keys", now, "replayed", &report).await?;
        let event = AuditEvent {
            actor: ACTOR.to_owned(),
            action: "keys.restored",
            object: format!("generation {}", self.report.from.0),
            outcome: AuditOutcome::Success,
            detail: json!({
                "from": self.report.from, "to": self.report.to, "keys_destroyed": self.report.keys_destroyed,
                "ledger_rows": self.report.ledger_rows, "sellers_removed": self.report.sellers_removed,
                "sellers_lost": self.report.sellers_lost, "certificates": self.report.certificates,
                "cases_opened": self.report.cases_opened, "audit_rows": self.report.audit_rows,
            }),
        };
        audit::append(&mut tx, now, &event).await?;
        tx.commit().await.map_err(&failed)?;
        self.keyring.drop_all();
        self.keyring.db().rewrite_key_tables().await?;
        Ok(self.report)
    }

    async fn cursors(&self) -> Result<Vec<(SellerId, String, i64)>, DbError> {
        let failed = on("read the cursors");
        let rows = sqlx::query("SELECT seller, dataset, version FROM poll_cursor ORDER BY seller, dataset")
            .fetch_all(self.keyring.db().pool())
            .await
            .map_err(&failed)?;
        rows.iter()
            .map(|row| {
                let seller = row.try_get::<String, _>(0).map_err(&failed)?;
                let seller = seller.parse().map_err(|_| DbError::fixed("read the cursors", "bad_column"))?;
                Ok((seller, row.try_get(1).map_err(&failed)?, row.try_get(2).map_err(&failed)?))
            })
            .collect()
    }
}
