//! What each status and failure means, and whether to ask again. No text of a server, URL or library is kept.

use std::fmt;
use std::time::Duration;

use super::request::Operation;

/// When to ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// After this long.
    After(Duration),
    /// After a growing wait with jitter.
    Backoff,
    /// Not with this request.
    Never,
}

/// Why no answer came, as a closed list: the client library's text quotes the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportCode {
    /// No connection.
    Connect,
    /// Too slow.
    Timeout,
    /// The connection ended inside the body.
    BodyCut,
    /// The request could not be built: a bad endpoint in the config.
    Request,
    /// Anything else.
    Other,
}

impl TransportCode {
    /// The code in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::BodyCut => "body_cut",
            Self::Request => "request",
            Self::Other => "other",
        }
    }

    pub(super) fn of(error: &reqwest::Error) -> Self {
        if error.is_timeout() {
            Self::Timeout
        } else if error.is_connect() {
            Self::Connect
        } else if error.is_builder() {
            Self::Request
        } else if error.is_body() || error.is_decode() {
            Self::BodyCut
        } else {
            Self::Other
        }
    }
}

impl fmt::Display for TransportCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the token endpoint refused, as OAuth names it; other codes are not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthCode {
    /// The seller's grant is revoked, expired or another application's: final for that seller.
    InvalidGrant,
    /// Client id or secret is wrong: nobody gets a token.
    InvalidClient,
    /// Any other refusal.
    Other,
}

impl AuthCode {
    /// The code in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidGrant => "invalid_grant",
            Self::InvalidClient => "invalid_client",
            Self::Other => "refused",
        }
    }
}

impl fmt::Display for AuthCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call that brought no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpapiError {
    /// 429: over the usage plan.
    #[error("{operation} was throttled")]
    Throttled {
        /// What was called.
        operation: Operation,
        /// How long to wait: the server's word, else the time between two calls.
        after: Duration,
    },
    /// 500, 502, 503, 504: Amazon's failure.
    #[error("{operation} is unavailable (status {status})")]
    Unavailable {
        /// What was called.
        operation: Operation,
        /// HTTP status.
        status: u16,
    },
    /// 400: the parameters, or a page token that expired.
    #[error("{operation} refused the request (status 400, request {request_id})")]
    BadRequest {
        /// What was called.
        operation: Operation,
        /// Amazon's id of the call.
        request_id: String,
    },
    /// 401 or 403, after the token was renewed: a role is missing.
    #[error("{operation} is forbidden (request {request_id})")]
    Forbidden {
        /// What was called.
        operation: Operation,
        /// Amazon's id of the call.
        request_id: String,
    },
    /// 404: no such resource, or not this seller's, or too old.
    #[error("{operation} found nothing (request {request_id})")]
    NotFound {
        /// What was called.
        operation: Operation,
        /// Amazon's id of the call.
        request_id: String,
    },
    /// Any other status: a defect of ours or of an endpoint between.
    #[error("{operation} answered status {status} (request {request_id})")]
    Unexpected {
        /// What was called.
        operation: Operation,
        /// HTTP status.
        status: u16,
        /// Amazon's id of the call.
        request_id: String,
    },
    /// No answer, or half of one.
    #[error("{operation} got no answer ({code})")]
    Transport {
        /// What was called.
        operation: Operation,
        /// Why.
        code: TransportCode,
    },
    /// The body is longer than [`super::BODY_BYTES_MAX`].
    #[error("{operation} answered more than {limit} bytes (request {request_id})")]
    TooLarge {
        /// What was called.
        operation: Operation,
        /// The bound in bytes.
        limit: usize,
        /// Amazon's id of the call.
        request_id: String,
    },
    /// The token endpoint refused.
    #[error("no access token: {0}")]
    Auth(AuthCode),
    /// The token endpoint did not answer as it should; worth another try.
    #[error("no access token: token endpoint unavailable")]
    AuthUnavailable,
    /// The rate of the config is not positive.
    #[error("rate scale is not positive")]
    Rate,
}

impl SpapiError {
    /// Whether the same request may be sent again, and when.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Throttled { after, .. } => Retry::After(*after),
            Self::Transport { code: TransportCode::Request, .. } => Retry::Never,
            Self::Unavailable { .. } | Self::Transport { .. } | Self::AuthUnavailable => Retry::Backoff,
            Self::BadRequest { .. }
            | Self::Forbidden { .. }
            | Self::NotFound { .. }
            | Self::Unexpected { .. }
            | Self::TooLarge { .. }
            | Self::Auth(_)
            | Self::Rate => Retry::Never,
        }
    }

    /// A stable code for metrics, gaps and the state of a seller.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Throttled { .. } => "throttled",
            Self::Unavailable { .. } => "unavailable",
            Self::BadRequest { .. } => "bad_request",
            Self::Forbidden { .. } => "forbidden",
            Self::NotFound { .. } => "not_found",
            Self::Unexpected { .. } => "unexpected_status",
            Self::Transport { code, .. } => code.as_str(),
            Self::TooLarge { .. } => "body_too_large",
            Self::Auth(code) => code.as_str(),
            Self::AuthUnavailable => "auth_unavailable",
            Self::Rate => "rate",
        }
    }
}
