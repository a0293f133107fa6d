//! The root key that the config names: a file, a transit engine, or AWS KMS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sunder_retention::root::{FileRoot, KmsAccess, KmsRoot, RootKey, ServiceOptions, TokenSource, TransitRoot};
use sunder_schemas::time::SystemClock;

use super::{StartError, part};
use crate::config::{Config, Environment, SecretRef};

/// Opens the root key; a service is not asked yet.
///
/// # Errors
/// [`StartError::Config`] where its words, its file or its secrets lead to no key.
pub(super) fn open(config: &Config) -> Result<Arc<dyn RootKey>, StartError> {
    let options = ServiceOptions { allow_http: config.environment == Environment::Test };
    let wrong = |error: sunder_retention::root::RootError| StartError::Config(format!("keys.root: {error}"));
    let keys = &config.keys;
    if let Some(address) = keys.root.strip_prefix("transit:") {
        let token = source("keys.root_token", keys.root_token.as_ref())?;
        return Ok(Arc::new(TransitRoot::new(address, token, options).map_err(wrong)?));
    }
    if let Some(arn) = keys.root.strip_prefix("awskms:") {
        let access = KmsAccess {
            access_key_id: source("keys.root_access_key_id", keys.root_access_key_id.as_ref())?,
            secret_access_key: source("keys.root_secret_access_key", keys.root_secret_access_key.as_ref())?,
            session_token: match &keys.root_session_token {
                None => None,
                reference => Some(source("keys.root_session_token", reference.as_ref())?),
            },
        };
        // The system's time, not the policy's: AWS refuses a signature of another.
        let clock = Arc::new(SystemClock::default());
        return Ok(Arc::new(KmsRoot::new(arn, keys.root_endpoint.as_deref(), access, clock, options).map_err(wrong)?));
    }
    let path = file(config)?;
    // In production a root key that is missing is a mistake, not a wish for a new one: what it wrapped would be lost.
    let root = match config.environment {
        Environment::Test => FileRoot::open_or_create(&path),
        Environment::Production => FileRoot::open(&path),
    };
    // Exit code 2: the file that the config names, not the world around, has to be put right.
    Ok(Arc::new(root.map_err(|error| StartError::Config(format!("keys.root {}: {error}", path.display())))?))
}

/// A secret that is read each time it is needed, and once now, so that a wrong reference is said at the start.
fn source(key: &str, reference: Option<&SecretRef>) -> Result<TokenSource, StartError> {
    let reference = reference
        .ok_or_else(|| StartError::Config(format!("{key}: needed for this keys.root; give {{ file = \"..\" }} or {{ env = \"..\" }}")))?
        .clone();
    super::settings::secret(key, &reference)?;
    Ok(Arc::new(move || reference.read()))
}

/// The file of the root key, where it is one.
///
/// # Errors
/// [`StartError::Config`] where it is in a key service.
pub(super) fn file(config: &Config) -> Result<PathBuf, StartError> {
    let path = config.keys.root.strip_prefix("file:").map(|path| Path::new(path).to_owned());
    path.ok_or_else(|| StartError::Config("certificate.signer: needed where the root key is in a key service".to_owned()))
}

/// Asks the root key's service whether it does its part, so that a start says so and not the first order.
///
/// # Errors
/// [`StartError::Part`] with its address.
pub(super) async fn probe(root: &dyn RootKey) -> Result<(), StartError> {
    root.probe().await.map_err(part("keys.root"))
}
