//! Notices at start that the key database was restored from a backup, and destroys again what was erased since, before anything is
//! served.

use sunder_retention::mirror::{self, Standing};
use sunder_retention::restore::{Report, Restore};
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
    tracing::warn!(here = here.generation, log = log.generation, "the key database was restored: what was erased since is erased again");
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
    let report = restore.finish().await.map_err(part("keys.database"))?;
    let log = KafkaLog::new(kafka.clone());
    mirror::publish(base.keyring.db(), &log).await.map_err(part("kafka"))?;
    tracing::warn!(
        keys_destroyed = report.keys_destroyed,
        ledger_rows = report.ledger_rows,
        "the key database is up to the log again; orders since its backup are fetched and sealed anew"
    );
    Ok(Some(report))
}
