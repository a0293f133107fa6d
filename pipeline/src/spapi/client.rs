//! One request: token, limit, send, bounded read, status; and the loop that asks again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder, Retryable as _};
use rust_decimal::Decimal;
use secrecy::{ExposeSecret as _, SecretString};
use sunder_schemas::time::{Clock, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use super::auth::{Credentials, Tokens};
use super::error::{Retry, SpapiError, TransportCode};
use super::limits::Limits;
use super::request::{Endpoints, Operation, Region, Request};

/// Longest body that is read (chosen: a page of 100 orders with 50 items each is some 5 MB).
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Answers in hand at once, from the call until what they hold is dropped: with [`BODY_BYTES_MAX`] the memory they take (chosen: 256 MiB).
const ANSWERS_MAX: usize = 16;
/// First allocation for a body of unknown length.
const BODY_BYTES_START: usize = 64 * 1024;
/// Time to connect (chosen).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait that a `Retry-After` may ask for; none is documented, so a proxy may have written it (chosen).
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// Longest request id that is kept; Amazon's are UUIDs (chosen).
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Written where an answer carries no usable request id: the attribution column is never empty.
const REQUEST_ID_ABSENT: &str = "absent";
/// Amazon refuses a longer one.
const USER_AGENT_CHARS_MAX: usize = 500;

/// How a failed call is repeated.
#[derive(Debug, Clone, Copy)]
pub struct RetrySettings {
    /// First wait.
    pub wait_min: Duration,
    /// Longest wait of the growing ones.
    pub wait_max: Duration,
    /// How many times a request is sent again; after that the seller's turn ends and the schedule brings it back.
    pub times: usize,
}

impl Default for RetrySettings {
    /// Half a second to a minute, 6 times: about two minutes of outage inside one turn (chosen).
    fn default() -> Self {
        Self { wait_min: Duration::from_millis(500), wait_max: Duration::from_secs(60), times: 6 }
    }
}

/// What the client is made with.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// Hosts per region.
    pub endpoints: Endpoints,
    /// Token endpoint, e.g. `https://api.amazon.com/auth/o2/token`.
    pub lwa_endpoint: String,
    /// The application's client id.
    pub client_id: String,
    /// The application's client secret.
    pub client_secret: SecretString,
    /// Multiplies the published rates; 1 outside tests.
    pub rate_scale: Decimal,
    /// Whether plain HTTP is allowed (test environment).
    pub allow_http: bool,
    /// Longest time for one call, from send to the last byte.
    pub timeout: Duration,
    /// How failed calls are repeated.
    pub retry: RetrySettings,
}

/// An answer with status 2xx.
pub struct Answer {
    /// Amazon's id of the call, `absent` where it had none.
    pub request_id: String,
    /// The body: may hold personal data, wiped on drop.
    pub body: Zeroizing<Vec<u8>>,
    /// When it had arrived, by the policy clock.
    pub collected_at: Timestamp,
    _in_hand: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answer(request {}, {} bytes)", self.request_id, self.body.len())
    }
}

/// The client of one process, for all its sellers.
pub struct Client {
    http: reqwest::Client,
    tokens: Tokens,
    limits: Limits,
    endpoints: Endpoints,
    retry: RetrySettings,
    clock: Arc<dyn Clock>,
    in_hand: Arc<Semaphore>,
    calls: HashMap<Operation, AtomicU64>,
}

impl Client {
    /// A client with ring as its TLS provider, no proxy of the environment, no redirects and bounded times.
    ///
    /// # Errors
    /// [`SpapiError::Rate`] where the rate scale is not positive, [`SpapiError::Transport`] where TLS cannot be set up.
    pub fn new(settings: ClientSettings, clock: Arc<dyn Clock>) -> Result<Self, SpapiError> {
        // An error means that a provider is installed already; the program installs ring at its start as well.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(user_agent())
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .https_only(!settings.allow_http)
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(settings.timeout)
            .build()
            .map_err(|error| SpapiError::Transport { operation: Operation::SearchOrders, code: TransportCode::of(&error) })?;
        let limits = Limits::new(settings.rate_scale).map_err(|_| SpapiError::Rate)?;
        Ok(Self {
            http,
            tokens: Tokens::new(settings.lwa_endpoint, settings.client_id, settings.client_secret),
            limits,
            endpoints: settings.endpoints,
            retry: settings.retry,
            clock,
            in_hand: Arc::new(Semaphore::new(ANSWERS_MAX)),
            calls: Operation::ALL.iter().map(|operation| (*operation, AtomicU64::new(0))).collect(),
        })
    }

    /// How many calls of `operation` were sent.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.calls.get(&operation).map_or(0, |n| n.load(Ordering::Relaxed))
    }

    /// Sends `request` until it is answered or [`SpapiError::retry`] says otherwise. Tells by `waits` each time before it waits, for the
    /// seller's rate or to call again: that can take minutes in which the caller's place is better used by others.
    ///
    /// # Errors
    /// The last [`SpapiError`].
    pub async fn fetch(
        &self,
        region: Region,
        who: &Credentials,
        request: &Request,
        waits: &(dyn Fn() + Send + Sync),
    ) -> Result<Answer, SpapiError> {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(self.retry.wait_min)
            .with_max_delay(self.retry.wait_max)
            .with_max_times(self.retry.times)
            .with_jitter();
        (|| self.send(region, who, request, waits))
            .retry(pauses.build())
            .when(|error| error.retry() != Retry::Never)
            .adjust(|error, wait| match error.retry() {
                // Half of the growing wait on top is the jitter.
                Retry::After(after) => wait.map(|wait| after.saturating_add(wait / 2)),
                Retry::Backoff | Retry::Never => wait,
            })
            .notify(|error, wait| {
                waits();
                metrics::counter!("sunder_spapi_retries_total", "operation" => request.operation.as_str(), "code" => error.code()).increment(1);
                tracing::debug!(seller = %who.seller, operation = %request.operation, code = error.code(), wait_ms = wait.as_millis(), "calling again");
            })
            .await
    }

    /// Sends `request` once; a refused token is renewed, and the request repeated, once.
    async fn send(
        &self,
        region: Region,
        who: &Credentials,
        request: &Request,
        waits: &(dyn Fn() + Send + Sync),
    ) -> Result<Answer, SpapiError> {
        let token = self.tokens.get(&self.http, who, None).await?;
        let in_hand = self.may_call(who, request.operation, waits).await?;
        match self.send_with(region, who, request, &token.secret, in_hand).await {
            Err(SpapiError::Forbidden { .. }) => {
                let token = self.tokens.get(&self.http, who, Some(token.generation)).await?;
                let in_hand = self.may_call(who, request.operation, waits).await?;
                self.send_with(region, who, request, &token.secret, in_hand).await
            }
            answer => answer,
        }
    }

    /// Waits for the seller's rate, then for room for an answer.
    async fn may_call(
        &self,
        who: &Credentials,
        operation: Operation,
        waits: &(dyn Fn() + Send + Sync),
    ) -> Result<OwnedSemaphorePermit, SpapiError> {
        self.limits.wait(&who.seller, operation, waits).await.map_err(|_| SpapiError::Rate)?;
        // The semaphore is never closed.
        Arc::clone(&self.in_hand).acquire_owned().await.map_err(|_| SpapiError::Rate)
    }

    async fn send_with(
        &self,
        region: Region,
        who: &Credentials,
        request: &Request,
        token: &SecretString,
        in_hand: OwnedSemaphorePermit,
    ) -> Result<Answer, SpapiError> {
        let operation = request.operation;
        let transport = |error: &reqwest::Error| SpapiError::Transport { operation, code: TransportCode::of(error) };
        let mut access = reqwest::header::HeaderValue::from_str(token.expose_secret()).map_err(|_| SpapiError::AuthUnavailable)?;
        access.set_sensitive(true);
        let url = format!("{}{}", self.endpoints.of(region), request.target());
        if let Some(calls) = self.calls.get(&operation) {
            calls.fetch_add(1, Ordering::Relaxed);
        }
        metrics::counter!("sunder_spapi_calls_total", "operation" => operation.as_str()).increment(1);
        let answer = self
            .http
            .get(url)
            .header("x-amz-access-token", access)
            .header("x-amz-date", amz_date(self.clock.now()))
            .header("accept", "application/json")
            .send()
            .await
            .map_err(|error| transport(&error))?;
        if let Some(rate) = header(&answer, "x-amzn-ratelimit-limit") {
            self.limits.adopt(&who.seller, operation, rate);
        }
        self.read(&who.seller, operation, answer, in_hand).await
    }

    async fn read(
        &self,
        seller: &sunder_schemas::ids::SellerId,
        operation: Operation,
        mut answer: reqwest::Response,
        in_hand: OwnedSemaphorePermit,
    ) -> Result<Answer, SpapiError> {
        let request_id = header(&answer, "x-amzn-requestid")
            .filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_CHARS_MAX && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
            .unwrap_or(REQUEST_ID_ABSENT)
            .to_owned();
        let status = answer.status().as_u16();
        match status {
            200..=299 => {}
            400 => return Err(SpapiError::BadRequest { operation, request_id }),
            401 | 403 => return Err(SpapiError::Forbidden { operation, request_id }),
            404 => return Err(SpapiError::NotFound { operation, request_id }),
            429 => {
                let told = header(&answer, "retry-after").and_then(|s| s.parse().ok()).map(Duration::from_secs);
                let after = told.map_or_else(|| self.limits.period(seller, operation), |told| told.min(RETRY_AFTER_MAX));
                metrics::counter!("sunder_spapi_throttled_total", "operation" => operation.as_str()).increment(1);
                return Err(SpapiError::Throttled { operation, after });
            }
            500..=599 => return Err(SpapiError::Unavailable { operation, status }),
            _ => return Err(SpapiError::Unexpected { operation, status, request_id }),
        }
        let mut body = Buffer::new(answer.content_length().and_then(|n| usize::try_from(n).ok()));
        loop {
            let chunk = answer.chunk().await.map_err(|error| {
                let code = if error.is_timeout() { TransportCode::Timeout } else { TransportCode::BodyCut };
                SpapiError::Transport { operation, code }
            })?;
            let Some(chunk) = chunk else { break };
            if !body.extend(&chunk) {
                return Err(SpapiError::TooLarge { operation, limit: BODY_BYTES_MAX, request_id });
            }
        }
        Ok(Answer { request_id, body: body.0, collected_at: self.clock.now(), _in_hand: in_hand })
    }
}

/// A body under way: when it grows, the old copy is wiped, which a growing `Vec` would not do.
struct Buffer(Zeroizing<Vec<u8>>);

impl Buffer {
    fn new(announced: Option<usize>) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(announced.unwrap_or(BODY_BYTES_START).min(BODY_BYTES_MAX))))
    }

    /// Appends `chunk`; `false` where that would pass the bound.
    fn extend(&mut self, chunk: &[u8]) -> bool {
        let needed = self.0.len().saturating_add(chunk.len());
        if needed > BODY_BYTES_MAX {
            return false;
        }
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.saturating_mul(2).min(BODY_BYTES_MAX)));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(chunk);
        true
    }
}

fn header<'a>(answer: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name).and_then(|value| value.to_str().ok())
}

/// `20261121T120000Z`, as SP-API wants `x-amz-date`.
fn amz_date(now: Timestamp) -> String {
    now.to_utc().format("%Y%m%dT%H%M%SZ").to_string()
}

/// `sunder/0.1.0 (Language=Rust/1.95; Platform=linux)`.
fn user_agent() -> String {
    let mut agent = format!(
        "{}/{} (Language=Rust/{}; Platform={})",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_RUST_VERSION"),
        std::env::consts::OS
    );
    agent.truncate(USER_AGENT_CHARS_MAX);
    agent
}
