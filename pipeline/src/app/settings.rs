//! From the config's words to the settings of each part.

use std::time::Duration;

use rust_decimal::Decimal;
use sunder_retention::inventory::Copy;
use sunder_schemas::time::Period;
use sunder_schemas::topic::Profile;

use super::StartError;
use crate::config::{Config, Environment, SecretRef};
use crate::kafka::{Broker, KafkaSettings, Security};
use crate::spapi::{ClientSettings, Endpoints, RetrySettings};

/// Longest time for one call of SP-API (chosen: Amazon's own client waits 60 s).
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// The lease of cached keys where the config names none: 60 s, in the test profile 1 s (DESIGN section 6).
const LEASE: (Period, Period) = (Period::Millis(60_000), Period::Millis(1_000));

/// Reads a secret that the config refers to.
pub(super) fn secret(key: &str, reference: &SecretRef) -> Result<secrecy::SecretString, StartError> {
    reference.read().map_err(|message| StartError::Config(format!("{key}: {message}")))
}

/// Reads a secret that may be left out.
pub(super) fn secret_if(key: &str, reference: Option<&SecretRef>) -> Result<Option<secrecy::SecretString>, StartError> {
    reference.map(|r| secret(key, r)).transpose()
}

/// Kafka's settings.
pub fn kafka(config: &Config) -> Result<KafkaSettings, StartError> {
    let section = &config.kafka;
    let broker = if section.bootstrap == "embedded" { Broker::Embedded } else { Broker::Address(section.bootstrap.clone()) };
    let security = match &section.security {
        None => None,
        Some(security) => Some(Security {
            protocol: security.protocol.clone(),
            mechanism: security.mechanism.clone(),
            username: security.username.clone(),
            password: secret_if("kafka.security.password", security.password.as_ref())?,
            ca_file: security.ca.clone(),
        }),
    };
    // The embedded broker is one process: more replicas cannot be had.
    let replication = if broker == Broker::Embedded { 1 } else { section.replication };
    Ok(KafkaSettings {
        broker,
        prefix: section.prefix.clone(),
        partitions: section.partitions,
        replication,
        profile: config.retention.profile,
        security,
    })
}

/// The SP-API client's settings.
pub(super) fn spapi(config: &Config) -> Result<ClientSettings, StartError> {
    let section = &config.spapi;
    let rate_scale = Decimal::try_from(section.rate_scale).map_err(|_| StartError::Config("spapi.rate_scale: too large".to_owned()))?;
    Ok(ClientSettings {
        endpoints: Endpoints {
            all: section.endpoint.clone(),
            na: section.endpoints.na.clone(),
            eu: section.endpoints.eu.clone(),
            fe: section.endpoints.fe.clone(),
        },
        lwa_endpoint: section.lwa_endpoint.clone(),
        client_id: section.client_id.clone(),
        client_secret: secret("spapi.client_secret", &section.client_secret)?,
        rate_scale,
        allow_http: config.environment == Environment::Test,
        timeout: CALL_TIMEOUT,
        retry: RetrySettings::default(),
    })
}

/// How long a cached key may be used without hearing from the store.
pub fn lease(config: &Config) -> Period {
    config.keys.lease.unwrap_or(match config.retention.profile {
        Profile::Production => LEASE.0,
        Profile::Test => LEASE.1,
    })
}

/// The copies that the config declares.
#[must_use]
pub fn copies(config: &Config) -> Vec<Copy> {
    let copy = |section: &crate::config::CopySection| Copy {
        what: section.what.clone(),
        owner: section.owner.clone(),
        life: section.life,
        covers: section.covers.clone(),
    };
    config.copy.iter().map(copy).collect()
}
