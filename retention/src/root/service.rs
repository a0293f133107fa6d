//! What the key services have in common: one HTTP client, bounded in time, that tries again what may pass and reduces every error to a
//! code.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use serde_json::Value;
use zeroize::Zeroizing;

use super::RootError;

/// Longest time for one call, connecting included (chosen: a call inside one network takes milliseconds).
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a call that failed passingly is made in all (chosen: with the pauses below 20 s at the most, below the 30 s of a start).
const TRIES: u32 = 3;
/// First pause between two tries; doubles (chosen).
const PAUSE: Duration = Duration::from_millis(200);
/// Longest answer that is read, in bytes (chosen: a wrapped key is some hundred bytes).
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Reads a secret each time it is needed: a token may be renewed in its file while this process runs. Fails with words for a person.
pub type TokenSource = Arc<dyn Fn() -> Result<SecretString, String> + Send + Sync>;

/// How a key service may be reached.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServiceOptions {
    /// Whether plain HTTP is allowed (test environment).
    pub allow_http: bool,
}

/// A client of one key service.
pub(super) struct Service {
    http: reqwest::Client,
    address: String,
}

/// An answer that is no success: its status, and its body for the caller alone, who makes a code of it.
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Service {
    /// A client of the service at `address` (scheme, host and port).
    pub(super) fn new(address: &str, options: ServiceOptions) -> Result<Self, RootError> {
        let is_allowed = address.starts_with("https://") || (options.allow_http && address.starts_with("http://"));
        if !is_allowed {
            return Err(RootError::Address("the address of the key service must begin with https://; plain http:// is for tests alone"));
        }
        // An error means that a provider is installed already; the program installs ring at its start as well.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent("sunder")
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(CALL_TIMEOUT)
            .build()
            .map_err(|_| RootError::Address("TLS cannot be set up for the key service"))?;
        Ok(Self { http, address: address.trim_end_matches('/').to_owned() })
    }

    /// Its address.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// An error of this service.
    pub(super) fn failed(&self, code: impl Into<String>, retry: bool) -> RootError {
        RootError::Service { address: self.address.clone(), code: code.into(), retry }
    }

    /// Sends what `request` makes, again where the failure may pass, and returns the JSON of the answer. The body may hold a key: who
    /// takes it out wipes it.
    pub(super) async fn call(
        &self,
        request: impl Fn(&reqwest::Client) -> Result<reqwest::RequestBuilder, RootError>,
    ) -> Result<Result<Value, Refusal>, RootError> {
        let mut pause = PAUSE;
        for tried in 1.. {
            let failure = match request(&self.http)?.send().await {
                Err(error) => self.failed(if error.is_timeout() { "timeout" } else { "connect" }, true),
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    let body = self.body(answer).await;
                    match (status, body) {
                        // Sealed, on standby, busy, or broken for the moment.
                        (429 | 500..=599, _) => self.failed(format!("http_{status}"), true),
                        (200..=299, Some(body)) => return Ok(Ok(body)),
                        (200..=299, None) => self.failed("answer", true),
                        (_, body) => return Ok(Err(Refusal { status, body: body.unwrap_or_default() })),
                    }
                }
            };
            if tried >= TRIES {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(self.failed("timeout", true))
    }

    /// The JSON of an answer; `None` where it is cut off, too long or none. An empty one is null.
    async fn body(&self, mut answer: reqwest::Response) -> Option<Value> {
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(chunk) = answer.chunk().await.ok()? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return None;
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.is_empty() { Some(Value::Null) } else { serde_json::from_slice(&bytes).ok() }
    }
}

/// Takes the text at `pointer` out of an answer that holds a key, so that it is wiped with what it returns.
pub(super) fn take_secret(answer: &mut Value, pointer: &str) -> Option<Zeroizing<String>> {
    match answer.pointer_mut(pointer)?.take() {
        Value::String(text) => Some(Zeroizing::new(text)),
        _ => None,
    }
}
