//! A process of Sunder, assembled from the config: keys, log, stores, the machine of cases.
//!
//! Commands that only read keys and the vault do not need Kafka, so the parts are opened one after the other: [`Base`] is the key
//! database and the clock, [`App`] is everything.

mod restore;
mod root;
mod sellers;
pub mod settings;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use sunder_retention::case::{About, Engine, Parts, RingHolds, RingKeys, signer_from_file};
use sunder_retention::deadline::Policy;
use sunder_retention::keydb::KeyDb;
use sunder_retention::keyfiles::KeyFiles;
use sunder_retention::keys::Keyring;
use sunder_retention::lease::live_with_role;
use sunder_retention::store::{EventLog, Forget, Prove};
use sunder_schemas::note::NoteSigner;
use sunder_schemas::time::{Clock, Period, SystemClock};
use sunder_sinks::beside::Side;
use sunder_sinks::{StoreOptions, Vault, Warehouse};

use crate::cli::Role;
use crate::config::{Config, SecretRef, Store};
use crate::kafka::admin::{Entry, Status};
use crate::kafka::log::KafkaLog;
use crate::kafka::roll::is_lowered;
use crate::kafka::{Kafka, KafkaError};
use crate::registry::{BuiltIn, HttpRegistry, Registry, Schemas};

/// Program and version, on every event and certificate.
pub const PROGRAM: &str = concat!("sunder/", env!("CARGO_PKG_VERSION"));
/// The signer's name where the config has none (test only).
const TEST_SIGNER: &str = "sunder.test/signer";
/// How long a case of a request may take: the promise is 30 days, the target a week (controls, table of constants).
const REQUEST_DUE: Period = Period::days(30);
/// An expiry case is worked in the night it is opened; late after a day (kafka-design 1.1: alarm at 12 h, internal limit 24 h).
const EXPIRY_DUE: Period = Period::days(1);

/// A process that cannot start. The text names the part and its address, never a secret.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The config's words do not lead to a part.
    #[error("{0}")]
    Config(String),
    /// A part cannot be reached or opened.
    #[error("{what}: {why}")]
    Part {
        /// Key and address.
        what: String,
        /// The part's own code.
        why: String,
    },
    /// Topics are not as declared.
    #[error("topics are not as declared; `sunder topics diff` shows all, `sunder topics apply` mends:\n{}", .0.join("\n"))]
    Drift(Vec<String>),
    /// The log mirrors another key database.
    #[error(
        "keys.database is another one than the one that wrote this log: what was erased could not be recognised. Restore a backup of that \
         database, or choose another kafka.prefix"
    )]
    ForeignKeys,
}

fn part<E: std::error::Error + 'static>(what: impl Into<String>) -> impl FnOnce(E) -> StartError {
    let what = what.into();
    move |error| StartError::Part { what, why: crate::telemetry::chain(&error) }
}

/// Keys, ledger, cases, cursors, audit: what every command but the offline ones needs.
pub struct Base {
    /// The config it was made from.
    pub config: Config,
    /// The policy clock.
    pub clock: Arc<dyn Clock>,
    /// The system's clock, never moved.
    pub system_clock: Arc<dyn Clock>,
    /// Keys and their database.
    pub keyring: Arc<Keyring>,
}

impl Base {
    /// Opens the root key and the key database, migrating it.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(config: Config, clock: Option<Arc<dyn Clock>>) -> Result<Self, StartError> {
        let offset_ms = config.clock.offset.millis_max();
        let clock = clock.unwrap_or_else(|| Arc::new(SystemClock { offset_ms }));
        let root = root::open(&config)?;
        let password = settings::secret_if("keys.database_password", config.keys.database_password.as_ref())?;
        let db =
            KeyDb::open(&config.keys.database, password.as_ref()).await.map_err(part(format!("keys.database {}", config.keys.database)))?;
        let policy = Policy {
            after_delivery: config.retention.personal_after_delivery,
            backup: Period::days(i64::from(config.keys.backup_days)),
            margin: config.retention.margin,
            business: config.retention.non_personal,
        };
        let keyring = Arc::new(Keyring::new(db, root, Arc::clone(&clock), policy));
        Ok(Self { config, clock, system_clock: Arc::new(SystemClock::default()), keyring })
    }

    /// Opens the vault.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn vault(&self) -> Result<Arc<Vault>, StartError> {
        self.vault_on(Side::Live).await
    }

    /// Opens the vault, or the one that is built beside it.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn vault_on(&self, side: Side) -> Result<Arc<Vault>, StartError> {
        let erased = self.keyring.erased().clone();
        let options = self.store_options("vault.password", &self.config.vault, side)?;
        let vault = Vault::open(&options, Arc::new(move |key| erased.contains(key))).await;
        Ok(Arc::new(vault.map_err(part(format!("vault.url {}", self.config.vault.url)))?))
    }

    /// Opens the warehouse.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn warehouse(&self) -> Result<Arc<Warehouse>, StartError> {
        self.warehouse_on(Side::Live).await
    }

    /// Opens the warehouse, or the one that is built beside it.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn warehouse_on(&self, side: Side) -> Result<Arc<Warehouse>, StartError> {
        let options = self.store_options("warehouse.password", &self.config.warehouse, side)?;
        let erased = self.keyring.erased().clone();
        let warehouse = Warehouse::open(&options).await.map_err(part(format!("warehouse.url {}", self.config.warehouse.url)))?;
        Ok(Arc::new(warehouse.gated(Arc::new(move |entity| erased.withholds(entity)))))
    }

    fn store_options(&self, key: &str, store: &Store, side: Side) -> Result<StoreOptions, StartError> {
        let mut options = StoreOptions::new(&store.url, &self.config.kafka.prefix);
        options.side = side;
        options.password = settings::secret_if(key, store.password.as_ref())?;
        Ok(options)
    }
}

/// The key that signs certificates; in test it is made beside the root key.
///
/// # Errors
/// [`StartError`].
pub fn signer(config: &Config) -> Result<NoteSigner, StartError> {
    let section = config.certificate.as_ref();
    let name = section.map_or(TEST_SIGNER, |c| c.name.as_str());
    match section.and_then(|c| c.signer.as_ref()) {
        Some(SecretRef::File(path)) => signer_from_file(path, None).map_err(part(format!("certificate.signer {}", path.display()))),
        Some(reference @ SecretRef::Env(_)) => {
            use secrecy::ExposeSecret as _;
            let secret = settings::secret("certificate.signer", reference)?;
            NoteSigner::from_secret_line(secret.expose_secret()).map_err(part("certificate.signer"))
        }
        None => {
            let path = beside(&root::file(config)?, "certificate.signer");
            signer_from_file(&path, Some(name)).map_err(part(format!("certificate.signer {}", path.display())))
        }
    }
}

/// `name` in the folder of `file`.
fn beside(file: &Path, name: &str) -> PathBuf {
    file.parent().map_or_else(|| PathBuf::from(name), |folder| folder.join(name))
}

/// Connects to the log.
///
/// # Errors
/// [`StartError`], within 30 s where no broker answers.
pub async fn connect_kafka(config: &Config) -> Result<Kafka, StartError> {
    Kafka::connect(settings::kafka(config)?).await.map_err(part(format!("kafka.bootstrap {}", config.kafka.bootstrap)))
}

/// Everything a long-running process works with.
pub struct App {
    /// Config, clock, keys.
    pub base: Base,
    /// The log's clients.
    pub kafka: Kafka,
    /// The log as cases see it.
    pub log: Arc<KafkaLog>,
    /// Schema ids.
    pub schemas: Arc<Schemas>,
    /// Business data.
    pub warehouse: Arc<Warehouse>,
    /// Sealed blocks.
    pub vault: Arc<Vault>,
    /// Cases.
    pub engine: Arc<Engine>,
    /// Who signs certificates and heads of the logs.
    pub signer: Arc<NoteSigner>,
}

impl App {
    /// Opens everything. Missing topics are made; a drifted one is refused.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(base: Base) -> Result<Self, StartError> {
        let kafka = connect_kafka(&base.config).await?;
        ensure_topics(&base, &kafka).await?;
        Self::open_on(base, kafka).await
    }

    /// The same also where topics have drifted, which is logged: a request for erasure is taken at any time, and its keys go at once. Its
    /// case says that no certificate is made until the drift is mended.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open_for_request(base: Base) -> Result<Self, StartError> {
        let kafka = connect_kafka(&base.config).await?;
        match ensure_topics(&base, &kafka).await {
            Err(drift @ StartError::Drift(_)) => tracing::warn!("{drift}"),
            other => other?,
        }
        Self::open_on(base, kafka).await
    }

    async fn open_on(base: Base, kafka: Kafka) -> Result<Self, StartError> {
        root::probe(base.keyring.root()).await?;
        restore::settle(&base, &kafka).await?;
        let (warehouse, vault) = (base.warehouse().await?, base.vault().await?);
        let schemas = Schemas::open(registry(&base.config)?, &base.config.kafka.prefix).await;
        let schemas = Arc::new(schemas.map_err(part("registry.url"))?);
        let log = Arc::new(KafkaLog::with_schemas(kafka.clone(), Arc::clone(&schemas)));
        let signer = Arc::new(signer(&base.config)?);
        let engine = Arc::new(engine(&base, &signer, &log, &warehouse, &vault));
        Ok(Self { base, kafka, log, schemas, warehouse, vault, engine, signer })
    }
}

pub(crate) fn registry(config: &Config) -> Result<Arc<dyn Registry>, StartError> {
    let Some(section) = &config.registry else { return Ok(Arc::new(BuiltIn)) };
    let password = settings::secret_if("registry.password", section.password.as_ref())?;
    let login = section.username.clone().map(|user| (user, password.unwrap_or_default()));
    Ok(Arc::new(HttpRegistry::new(reqwest::Client::new(), &section.url, login)))
}

/// Whether a case forces the log at this moment. A forced removal whose process died is undone.
async fn is_rolling(base: &Base, kafka: &Kafka) -> Result<bool, StartError> {
    let db = base.keyring.db();
    if !sunder_retention::case::has_open_roll(db).await.map_err(part("keys.database"))? {
        return Ok(false);
    }
    if live_with_role(db, Role::Retain.as_str()).await.map_err(part("keys.database"))? > 0 {
        return Ok(true);
    }
    tracing::warn!("a forced removal was cut off; its topics get their declared settings back");
    kafka.undo_rolls().await.map_err(part(format!("kafka.bootstrap {}", kafka.address())))?;
    Ok(false)
}

/// Makes missing topics; refuses drifted ones. Repairing drift is left to a person: somebody changed it on purpose or by mistake. What a
/// forced removal changes while it runs is no drift: who runs it changes it back.
async fn ensure_topics(base: &Base, kafka: &Kafka) -> Result<(), StartError> {
    let failed = |error: KafkaError| part(format!("kafka.bootstrap {}", kafka.address()))(error);
    let is_rolling = is_rolling(base, kafka).await?;
    let mut states = kafka.diff_topics().await.map_err(failed)?;
    if is_rolling {
        states.iter_mut().for_each(|state| state.drift.retain(|drift| !is_lowered(drift)));
    }
    let is_missing = |state: &crate::kafka::admin::TopicState| state.drift.iter().any(|drift| drift.setting == "topic");
    let drifted: Vec<Entry> = states.iter().filter(|s| !is_missing(s)).map(crate::kafka::admin::TopicState::entry).collect();
    let lines: Vec<String> = drifted.iter().filter(|e| e.status == Status::Fail).map(|e| format!("  {}: {}", e.name, e.detail)).collect();
    if !lines.is_empty() {
        return Err(StartError::Drift(lines));
    }
    if states.iter().any(is_missing) {
        tracing::info!("making the topics that are missing");
        kafka.apply_topics().await.map_err(|error| part(format!("kafka.bootstrap {}", kafka.address()))(error))?;
    }
    Ok(())
}

fn engine(base: &Base, signer: &Arc<NoteSigner>, log: &Arc<KafkaLog>, warehouse: &Arc<Warehouse>, vault: &Arc<Vault>) -> Engine {
    let retention = &base.config.retention;
    let policy = json!({
        "personal_after_delivery": retention.personal_after_delivery.to_string(),
        "margin": retention.margin.to_string(),
        "backup_days": base.config.keys.backup_days,
        "non_personal": retention.non_personal.to_string(),
        "audit": retention.audit.to_string(),
    });
    let forget: Vec<Arc<dyn Forget>> = vec![Arc::clone(warehouse) as _, Arc::clone(vault) as _];
    let key_files = Arc::new(KeyFiles::new(Arc::clone(&base.keyring)));
    let prove: Vec<Arc<dyn Prove>> = vec![Arc::clone(log) as _, Arc::clone(warehouse) as _, Arc::clone(vault) as _, key_files];
    let holds = RingHolds::new(Arc::clone(&base.keyring), Arc::clone(vault) as _);
    let engine = Engine::new(Parts {
        db: base.keyring.db().clone(),
        keys: Arc::new(RingKeys::new(Arc::clone(&base.keyring))),
        log: Arc::clone(log) as Arc<dyn EventLog>,
        forget,
        prove,
        clock: Arc::clone(&base.clock),
        system_clock: Arc::clone(&base.system_clock),
        signer: Arc::clone(signer),
        about: About {
            tool: PROGRAM.replace('/', " "),
            issuer: base.config.certificate.as_ref().and_then(|section| section.issuer.clone()),
            operator: "retain".to_owned(),
            validator: "verify".to_owned(),
            policy_version: "1".to_owned(),
            policy,
            request_due: REQUEST_DUE,
            expiry_due: EXPIRY_DUE,
        },
    });
    engine.with_holds(Arc::new(holds)).with_copies(settings::copies(&base.config))
}
