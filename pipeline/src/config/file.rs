//! The form of the config file, section by section. Defaults are the safe ones.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use sunder_schemas::class::{Dataset, FieldGroup};
use sunder_schemas::ids::{MarketplaceId, SellerId};
use sunder_schemas::time::Period;
use sunder_schemas::topic::Profile;

use super::secret::SecretRef;

/// Production, or a test where safeguards may be lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// Every safeguard on.
    Production,
    /// Test profile, clock offset, development root key and plain HTTP are allowed.
    Test,
}

/// The whole file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `production` or `test`.
    pub environment: Environment,
    /// The policy clock.
    #[serde(default)]
    pub clock: ClockSection,
    /// Amazon's API.
    pub spapi: SpApi,
    /// Who is polled.
    #[serde(default)]
    pub seller: Vec<Seller>,
    /// The event log.
    pub kafka: Kafka,
    /// A Confluent-compatible registry; left out: the built-in one.
    pub registry: Option<Registry>,
    /// Keys, erased ledger, cases, cursors.
    pub keys: Keys,
    /// Sealed blocks.
    pub vault: Store,
    /// Business data.
    pub warehouse: Store,
    /// How long what is kept.
    #[serde(default)]
    pub retention: Retention,
    /// What sealed fields may be opened for.
    #[serde(default)]
    pub purpose: Vec<Purpose>,
    /// Who may claim which roles; needed in production.
    #[serde(default)]
    pub principal: Vec<Principal>,
    /// Copies of the data that no erasure reaches: backups, archives, replicas, other people's tables.
    #[serde(default)]
    pub copy: Vec<CopySection>,
    /// Who signs certificates; left out in test: a signer is made beside the root key.
    pub certificate: Option<Certificate>,
    /// Health, metrics, later the console.
    #[serde(default)]
    pub serve: Serve,
}

/// `[clock]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClockSection {
    /// Added to the system clock; test only.
    #[schemars(with = "String")]
    pub offset: Period,
}

impl Default for ClockSection {
    fn default() -> Self {
        Self { offset: Period::Millis(0) }
    }
}

/// `[spapi]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpApi {
    /// One endpoint for all regions, in the place of Amazon's.
    pub endpoint: Option<String>,
    /// An endpoint per region, in the place of Amazon's.
    #[serde(default)]
    pub endpoints: Endpoints,
    /// Login with Amazon.
    #[serde(default = "lwa_endpoint")]
    pub lwa_endpoint: String,
    /// The application's client id.
    pub client_id: String,
    /// The application's client secret.
    pub client_secret: SecretRef,
    /// Multiplies the published rates; test only.
    #[serde(default = "one")]
    pub rate_scale: f64,
}

fn lwa_endpoint() -> String {
    "https://api.amazon.com/auth/o2/token".to_owned()
}

const fn one() -> f64 {
    1.0
}

/// `[spapi.endpoints]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Endpoints {
    /// Europe, Middle East, India, South Africa.
    pub eu: Option<String>,
    /// North and South America.
    pub na: Option<String>,
    /// Far East.
    pub fe: Option<String>,
}

/// `[[seller]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Seller {
    /// `selling_partner_id`.
    #[schemars(with = "String")]
    pub id: SellerId,
    /// `eu`, `na` or `fe`.
    pub region: String,
    /// Amazon's marketplace ids.
    #[schemars(with = "Vec<String>")]
    pub marketplaces: Vec<MarketplaceId>,
    /// The seller's refresh token.
    pub refresh_token: SecretRef,
    /// What is fetched; nothing that is not named here.
    #[schemars(with = "Vec<String>")]
    pub datasets: Vec<Dataset>,
    /// Which groups of personal fields are wanted; empty: they are never asked for.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub personal: Vec<FieldGroup>,
    /// How far back the first poll reads.
    #[serde(default = "ninety_days")]
    #[schemars(with = "String")]
    pub since: Period,
    /// How far behind its cursor each poll reads again.
    #[serde(default = "half_hour")]
    #[schemars(with = "String")]
    pub overlap: Period,
}

const fn ninety_days() -> Period {
    Period::days(90)
}

const fn half_hour() -> Period {
    Period::Millis(30 * 60_000)
}

/// `[kafka]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// `host:port[,host:port]`, or `embedded` (not durable; refused in production).
    pub bootstrap: String,
    /// First part of every topic's name.
    #[serde(default = "sp")]
    pub prefix: String,
    /// Partitions of the data topics; fixed for life.
    #[serde(default = "twelve")]
    pub partitions: i32,
    /// Replicas of every topic.
    #[serde(default = "three")]
    pub replication: i32,
    /// Left out: plaintext, test only.
    pub security: Option<Security>,
}

fn sp() -> String {
    "sp".to_owned()
}

const fn twelve() -> i32 {
    12
}

const fn three() -> i32 {
    3
}

/// `kafka.security`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// `SASL_SSL`, `SSL`, `SASL_PLAINTEXT` or `PLAINTEXT`.
    pub protocol: String,
    /// `SCRAM-SHA-512`, `SCRAM-SHA-256` or `PLAIN`.
    pub mechanism: Option<String>,
    /// SASL user.
    pub username: Option<String>,
    /// SASL password.
    pub password: Option<SecretRef>,
    /// CA certificates, PEM; left out: the system's.
    pub ca: Option<PathBuf>,
}

/// `[registry]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Base address, e.g. `https://registry:8081`.
    pub url: String,
    /// User, where it asks for one (HTTP Basic).
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<SecretRef>,
}

/// `[keys]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// `file:/path`, `transit:URL` or `awskms:ARN`.
    pub root: String,
    /// Why a root key in a file is right in production; refused there without.
    pub file_root_reason: Option<String>,
    /// The token of the transit engine; read again at each call, so that whoever renews it may write it there.
    pub root_token: Option<SecretRef>,
    /// `AWS_ACCESS_KEY_ID` of who may use the KMS key.
    pub root_access_key_id: Option<SecretRef>,
    /// `AWS_SECRET_ACCESS_KEY` of who may use the KMS key.
    pub root_secret_access_key: Option<SecretRef>,
    /// `AWS_SESSION_TOKEN`, for temporary credentials.
    pub root_session_token: Option<SecretRef>,
    /// KMS at another address than AWS's own for the key's region.
    pub root_endpoint: Option<String>,
    /// `postgres://user@host/name` or `sqlite:///path`.
    pub database: String,
    /// The database's password.
    pub database_password: Option<SecretRef>,
    /// How long a cached key may be used without hearing from the store. Left out: 60 s, in the test profile 1 s.
    #[schemars(with = "Option<String>")]
    pub lease: Option<Period>,
    /// How long a backup of this database may live, in days; shortens every deadline. 0: there is none.
    #[serde(default)]
    pub backup_days: u16,
}

/// `[vault]` and `[warehouse]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// `postgres://user@host/name` or `sqlite:///path`.
    pub url: String,
    /// The database's password.
    pub password: Option<SecretRef>,
}

/// `[retention]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Settings of the topics: `production` or `test`.
    #[schemars(with = "String")]
    pub profile: Profile,
    /// How long personal data may stay after delivery; 30 d at most (Amazon's Data Protection Policy).
    #[schemars(with = "String")]
    pub personal_after_delivery: Period,
    /// Taken off every deadline.
    #[schemars(with = "String")]
    pub margin: Period,
    /// How long business data stays; 18 months at most.
    #[schemars(with = "String")]
    pub non_personal: Period,
    /// How long audit events stay; 400 d at least.
    #[schemars(with = "String")]
    pub audit: Period,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            profile: Profile::Production,
            personal_after_delivery: Period::days(30),
            margin: Period::days(2),
            non_personal: Period::Months(18),
            audit: Period::days(400),
        }
    }
}

/// `[[purpose]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Purpose {
    /// What `sunder open --purpose` names.
    pub name: String,
    /// The legal basis, e.g. `GDPR 6(1)(c)`.
    pub basis: String,
    /// The groups it may open.
    #[schemars(with = "Vec<String>")]
    pub fields: Vec<FieldGroup>,
    /// The roles that may claim it.
    pub roles: Vec<String>,
}

/// `[[principal]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// The operating system's user.
    pub os_user: String,
    /// The roles it may claim.
    pub roles: Vec<String>,
}

/// `[[copy]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopySection {
    /// What it is, in words for the certificate.
    pub what: String,
    /// Who answers for it.
    pub owner: String,
    /// How long it lives: what was erased is in none of it any more after that.
    #[schemars(with = "String")]
    pub life: Period,
    /// What `sunder inventory` sees of it, e.g. `vault.archive_mode` or `warehouse.dbt.*`.
    #[serde(default)]
    pub covers: Vec<String>,
}

/// `[certificate]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The Ed25519 key that signs.
    pub signer: Option<SecretRef>,
    /// The key's name in the note, e.g. `example.com/sunder`.
    pub name: String,
    /// Who answers for certificates: company, place, contact; stands on each of them.
    pub issuer: Option<String>,
}

/// `[serve]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Serve {
    /// Where `/livez`, `/readyz` and `/metrics` answer; loopback only until TLS and sign-in are there.
    pub listen: SocketAddr,
}

impl Default for Serve {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8470)) }
    }
}
