//! Notices at start that the key database was restored from a backup or that its standby took over, and destroys again what was erased
//! since, before anything is served.

use std::collections::BTreeMap;

use sunder_retention::audit::{self, MirroredRow};
use sunder_retention::case::restore::{self, FurtherSubjects, MirroredCertificate, MirroredRequest};
use sunder_retention::mirror::{self, Generation, Standing};
use sunder_retention::restore::{Report, Restore};
use sunder_schemas::topic::Topic;
use tokio::sync::mpsc;

use super::{Base, StartError, part};
use crate::config::Config;
use crate::kafka::log::KafkaLog;
use crate::kafka::{Kafka, KafkaError};

/// Batches of the mirror on their way to the database (chosen: the reader is then never far ahead).
const BATCHES: usize = 4;

impl Base {
    /// Opens root key and key database as [`Base::open`], and makes sure that what was erased is erased here: for commands that use keys
    /// and nothing else of the log.
    ///
    /// # Errors
    /// [`StartError`], also where Kafka does not answer: it alone knows whether the database is an old one.
    pub async fn open_settled(config: Config) -> Result<Self, StartError> {
        let base = Self::open(config, None).await?;
        super::root::probe(base.keyring.root()).await?;
        // An embedded broker begins empty with each process: it mirrors nothing.
        if base.config.kafka.bootstrap != "embedded" {
            let kafka = super::connect_kafka(&base.config).await?;
            settle(&base, &kafka).await?;
        }
        Ok(base)
    }

    /// How the key database stands against its mirror.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn standing(&self, kafka: &Kafka) -> Result<Standing, StartError> {
        let log = kafka.newest_generation().await.map_err(log_part(kafka))?;
        let here = mirror::here(self.keyring.db()).await.map_err(part("keys.database"))?;
        Ok(mirror::standing(&here, log.as_ref()))
    }
}

fn log_part(kafka: &Kafka) -> impl FnOnce(KafkaError) -> StartError {
    part(format!("kafka.bootstrap {}", kafka.address()))
}

/// Refuses a database that is another one than the log's, and brings one that was restored up to the log.
///
/// # Errors
/// [`StartError`]: nothing may be served.
pub(super) async fn settle(base: &Base, kafka: &Kafka) -> Result<Option<Report>, StartError> {
    let Some(log) = kafka.newest_generation().await.map_err(log_part(kafka))? else { return Ok(None) };
    let here = mirror::here(base.keyring.db()).await.map_err(part("keys.database"))?;
    match mirror::standing(&here, Some(&log)) {
        Standing::Current => return Ok(None),
        Standing::Foreign => return Err(StartError::ForeignKeys),
        Standing::Behind => {}
    }
    tracing::warn!(
        here = here.generation,
        log = log.generation,
        "the key database was restored, or its standby took over: what was erased since is erased again"
    );
    let db = base.keyring.db();
    let known = audit::last(db).await.map_err(part("keys.database"))?;
    let rows = audit_rows(kafka, known).await.map_err(log_part(kafka))?;
    let audit_rows = audit::take_over(db, &rows).await.map_err(part("keys.database"))?;
    let mut restore = replay(base, kafka, log).await?;
    let (certificates, cases) = cases(base, kafka).await?;
    restore.took(certificates, cases, audit_rows);
    let report = restore.finish().await.map_err(part("keys.database"))?;
    mirror::publish(db, &KafkaLog::new(kafka.clone())).await.map_err(part("kafka"))?;
    tracing::warn!(
        keys_destroyed = report.keys_destroyed,
        ledger_rows = report.ledger_rows,
        certificates,
        cases,
        "the key database is up to the log again; orders since its backup are fetched and sealed anew"
    );
    Ok(Some(report))
}

/// Destroys again what the log says was erased.
async fn replay<'a>(base: &'a Base, kafka: &Kafka, log: Generation) -> Result<Restore<'a>, StartError> {
    let mut restore = Restore::begin(&base.keyring, log).await.map_err(part("keys.database"))?;
    let (sender, mut batches) = mpsc::channel(BATCHES);
    let reader = kafka.clone();
    let reading = crate::kafka::blocking(move || {
        // A receiver that is gone has failed, and says why itself.
        reader.mirrored_blocking(|batch| sender.blocking_send(batch).map_err(|_| KafkaError::own("read the erased ledger", "Stopped")))
    });
    let applying = async {
        while let Some(batch) = batches.recv().await {
            restore.apply(&batch).await?;
        }
        Ok(restore)
    };
    let (read, applied) = tokio::join!(reading, applying);
    let restore = applied.map_err(part::<sunder_retention::keys::KeyError>("keys.database"))?;
    read.map_err(log_part(kafka))?;
    Ok(restore)
}

/// The audit rows on the log after number `known`, by their numbers.
async fn audit_rows(kafka: &Kafka, known: i64) -> Result<Vec<MirroredRow>, KafkaError> {
    let reader = kafka.clone();
    crate::kafka::blocking(move || {
        let mut rows = Vec::new();
        reader.whole_topic_blocking(Topic::AuditLog, |_, value| {
            rows.extend(MirroredRow::read(value).filter(|row| row.seq > known));
            Ok(())
        })?;
        rows.sort_by_key(|row: &MirroredRow| row.seq);
        Ok(rows)
    })
    .await
}

/// Takes over the certificates, then opens again what was asked for and is not certified; returns how many of each.
async fn cases(base: &Base, kafka: &Kafka) -> Result<(u64, u64), StartError> {
    let db = base.keyring.db();
    let known = restore::leaves(db).await.map_err(part("keys.database"))?;
    let reader = kafka.clone();
    let read = crate::kafka::blocking(move || {
        let (mut certificates, mut requests, mut further) = (Vec::new(), Vec::new(), BTreeMap::new());
        reader.whole_topic_blocking(Topic::PrivacyCertificates, |_, value| {
            let certificate: MirroredCertificate = json(value, Topic::PrivacyCertificates)?;
            certificates.extend((certificate.leaf >= known).then_some(certificate));
            Ok(())
        })?;
        reader.whole_topic_blocking(Topic::PrivacyRequests, |key, value| {
            if key.contains(&b'|') {
                let part: FurtherSubjects = json(value, Topic::PrivacyRequests)?;
                further.entry(part.case).or_insert_with(Vec::new).extend(part.subjects);
            } else {
                requests.push(json::<MirroredRequest>(value, Topic::PrivacyRequests)?);
            }
            Ok(())
        })?;
        Ok((certificates, requests, further))
    })
    .await;
    let (certificates, requests, further) = read.map_err(log_part(kafka))?;
    let mut taken = 0;
    if !certificates.is_empty() {
        taken = restore::certificates(db, &super::signer(&base.config)?, certificates).await.map_err(part("the certificate log"))?;
    }
    let opened = restore::requests(db, &requests, &further, base.system_clock.now()).await.map_err(part("keys.database"))?;
    Ok((taken, opened))
}

fn json<T: serde::de::DeserializeOwned>(value: &[u8], topic: Topic) -> Result<T, KafkaError> {
    serde_json::from_slice(value).map_err(|_| KafkaError::own(format!("read {topic}"), "Unreadable"))
}
