//! Access tokens of Login with Amazon (LWA): one per seller, cached, renewed before it ends, asked for by one caller at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use sunder_schemas::ids::SellerId;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::error::{AuthCode, SpapiError};

/// A token is renewed this long before it ends, so that no call starts with a dying one (chosen; tokens last an hour).
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// Longest life that is believed (Amazon gives 3600 s).
const LIFE_MAX: Duration = Duration::from_secs(3_600);
/// A token answer is some kilobytes at most; more is not one (chosen).
const TOKEN_BODY_BYTES_MAX: usize = 64 * 1024;

/// What a seller granted.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The seller.
    pub seller: SellerId,
    /// The seller's refresh token; it belongs to one region.
    pub refresh_token: SecretString,
}

/// A valid access token, with a number that tells a renewed one from the one it replaced.
#[derive(Clone)]
pub(super) struct AccessToken {
    pub(super) secret: SecretString,
    pub(super) generation: u64,
    renew_at: Instant,
}

type Slot = Arc<tokio::sync::Mutex<Option<AccessToken>>>;

/// The tokens of all sellers of this process.
pub(super) struct Tokens {
    endpoint: String,
    client_id: String,
    client_secret: SecretString,
    slots: Mutex<HashMap<SellerId, Slot>>,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    #[serde(default)]
    expires_in: u64,
}

#[derive(Deserialize)]
struct Refused {
    error: String,
}

impl Tokens {
    pub(super) fn new(endpoint: String, client_id: String, client_secret: SecretString) -> Self {
        Self { endpoint, client_id, client_secret, slots: Mutex::new(HashMap::new()) }
    }

    /// A token that is good for some minutes at least; `stale` names one that was just refused and must not be given again.
    ///
    /// # Errors
    /// [`SpapiError::Auth`] (final) or [`SpapiError::AuthUnavailable`].
    pub(super) async fn get(&self, http: &reqwest::Client, who: &Credentials, stale: Option<u64>) -> Result<AccessToken, SpapiError> {
        let slot = Arc::clone(self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(who.seller.clone()).or_default());
        // Held while asking: the others wait for the one answer instead of asking as well.
        let mut held = slot.lock().await;
        if let Some(token) = held.as_ref()
            && token.renew_at > Instant::now()
            && stale != Some(token.generation)
        {
            return Ok(token.clone());
        }
        let generation = held.as_ref().map_or(0, |t| t.generation + 1);
        *held = None;
        let granted = self.ask(http, &who.refresh_token).await?;
        let life = Duration::from_secs(granted.expires_in).min(LIFE_MAX);
        // A token of a short life is used for its first half.
        let renew_at = Instant::now() + life.saturating_sub(RENEW_BEFORE).max(life / 2);
        let token = AccessToken { secret: SecretString::from(granted.access_token), generation, renew_at };
        *held = Some(token.clone());
        Ok(token)
    }

    async fn ask(&self, http: &reqwest::Client, refresh_token: &SecretString) -> Result<Granted, SpapiError> {
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose_secret()),
            ("client_id", self.client_id.as_str()),
            ("client_secret", self.client_secret.expose_secret()),
        ];
        let mut answer = http.post(&self.endpoint).form(&form).send().await.map_err(|_| SpapiError::AuthUnavailable)?;
        let status = answer.status();
        let mut body = Zeroizing::new(Vec::with_capacity(TOKEN_BODY_BYTES_MAX));
        while let Some(chunk) = answer.chunk().await.map_err(|_| SpapiError::AuthUnavailable)? {
            if body.len() + chunk.len() > TOKEN_BODY_BYTES_MAX {
                return Err(SpapiError::AuthUnavailable);
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| SpapiError::AuthUnavailable);
        }
        if status.as_u16() == 429 || status.is_server_error() {
            return Err(SpapiError::AuthUnavailable);
        }
        let code = serde_json::from_slice::<Refused>(&body).map_or(AuthCode::Other, |refused| match refused.error.as_str() {
            "invalid_grant" => AuthCode::InvalidGrant,
            "invalid_client" | "unauthorized_client" => AuthCode::InvalidClient,
            _ => AuthCode::Other,
        });
        Err(SpapiError::Auth(code))
    }
}
