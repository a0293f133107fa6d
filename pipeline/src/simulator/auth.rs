//! Login with Amazon: refresh tokens become access tokens that really expire.

use std::collections::{HashMap, HashSet};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Shared;
use super::draw::{Draw, Stream};

/// Lifetime of an access token, in seconds (FACTS section 3).
const LIFETIME_SECONDS: i64 = 3600;
/// Access tokens kept at most; beyond it the expired ones go (chosen).
const TOKENS_MAX: usize = 10_000;

/// Tokens issued and sellers revoked.
#[derive(Debug, Default)]
pub(super) struct Grants {
    /// Access token to seller and end.
    access: HashMap<String, (u32, i64)>,
    revoked: HashSet<u32>,
    issued: u64,
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Expired,
    Unknown,
}

impl Grants {
    fn issue(&mut self, seed: u64, seller: u32, now: i64) -> String {
        if self.access.len() >= TOKENS_MAX {
            self.access.retain(|_, (_, end)| *end > now);
        }
        self.issued += 1;
        let token = format!("Atza|SIM{}", Draw::new(seed, Stream::Issue, self.issued, 0).word(200));
        self.access.insert(token.clone(), (seller, now + LIFETIME_SECONDS * 1000));
        token
    }

    /// The seller that an access token opens at `now`.
    pub(super) fn seller(&self, token: &str, now: i64) -> Result<u32, Refused> {
        match self.access.get(token) {
            Some((seller, _)) if self.revoked.contains(seller) => Err(Refused::Unknown),
            Some((_, end)) if *end <= now => Err(Refused::Expired),
            Some((seller, _)) => Ok(*seller),
            None => Err(Refused::Unknown),
        }
    }

    /// Withdraws a seller's consent: its refresh token and all access tokens are refused from now on.
    pub(super) fn revoke(&mut self, seller: u32) {
        self.revoked.insert(seller);
    }
}

fn refuse(status: StatusCode, error: &str, description: &str) -> Response {
    (status, axum::Json(json!({ "error": error, "error_description": description }))).into_response()
}

/// The form's fields, sent form-encoded or as JSON; both are seen in Amazon's own clients.
fn fields(headers: &HeaderMap, body: &[u8]) -> HashMap<String, String> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind.starts_with("application/json") {
        let Ok(Value::Object(map)) = serde_json::from_slice(body) else { return HashMap::new() };
        return map.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned()))).collect();
    }
    reqwest::Url::parse(&format!("http://form/?{}", String::from_utf8_lossy(body)))
        .map(|url| url.query_pairs().into_owned().collect())
        .unwrap_or_default()
}

/// `POST /auth/o2/token`.
pub(super) async fn token(State(shared): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let fields = fields(&headers, &body);
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    shared.count_token_call();
    if field("client_id") != shared.options.client_id || field("client_secret") != shared.options.client_secret {
        return refuse(StatusCode::UNAUTHORIZED, "invalid_client", "Client authentication failed");
    }
    if field("grant_type") != "refresh_token" {
        return refuse(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            "The authorization grant type is not supported by the authorization server",
        );
    }
    let refresh_token = field("refresh_token");
    if refresh_token.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "invalid_request", "The request is missing a required parameter : refresh_token");
    }
    let now = shared.now();
    let seller = shared.world().seller_by_refresh_token(refresh_token).map(|seller| seller.number);
    let mut grants = shared.grants();
    match seller {
        Some(seller) if !grants.revoked.contains(&seller) => {
            let access_token = grants.issue(shared.options.seed, seller, now);
            axum::Json(json!({
                "access_token": access_token, "refresh_token": refresh_token, "token_type": "bearer", "expires_in": LIFETIME_SECONDS,
            }))
            .into_response()
        }
        _ => refuse(StatusCode::BAD_REQUEST, "invalid_grant", "The request has an invalid grant parameter : refresh_token"),
    }
}
