//! What can end a turn before its time. No value, id, token or text of a foreign error is kept.

use sunder_retention::keys::KeyError;
use sunder_schemas::classify::BodyError;

use super::schedule::Turn;
use crate::spapi::{AuthCode, SpapiError};

/// A body that could not be read: where and why, never what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// A stable code, e.g. `truncated`.
    pub code: String,
    /// Amazon's id of the call.
    pub request_id: String,
    /// Line and column of the body where reading ended, from 1; 0 where there is no place.
    pub place: (u64, u64),
}

/// A turn that could not go on.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    /// The API gave no usable answer.
    #[error(transparent)]
    Spapi(#[from] SpapiError),
    /// A body could not be read, again and again.
    #[error("a body could not be read: {} (request {}, line {}, column {})", .0.code, .0.request_id, .0.place.0, .0.place.1)]
    Unreadable(Unreadable),
    /// Page tokens ended too often before the listing did.
    #[error("the listing could not be read to its end: page tokens expired {restarts} times")]
    Restarts {
        /// How many times it was begun again.
        restarts: u32,
    },
    /// A listing that never ends.
    #[error("the listing did not end after {pages} pages")]
    Endless {
        /// How many different pages it had.
        pages: usize,
    },
    /// The key database could not do its part.
    #[error("key database: {code}")]
    Keys {
        /// A stable code.
        code: String,
    },
    /// Kafka did not acknowledge.
    #[error("kafka: {code}")]
    Kafka {
        /// A stable code.
        code: String,
    },
    /// The key database or Kafka did not answer in time, and gave no error either.
    #[error("the key database or kafka is silent")]
    Silent,
    /// Another process moved this cursor: it polls the seller now.
    #[error("the cursor was moved by another process")]
    Fenced,
    /// The seller left.
    #[error("the seller was removed")]
    Removed,
    /// The process is asked to stop.
    #[error("stopped")]
    Stopped,
    /// The catalogue does not know the operation: a defect.
    #[error("no catalogue classifies this operation")]
    NoCatalogue,
}

impl Unreadable {
    /// What `classify` says of the body of call `request_id`.
    pub(super) fn of(error: &BodyError, request_id: &str) -> PollError {
        PollError::Unreadable(Self {
            code: error.code.as_str().to_owned(),
            request_id: request_id.to_owned(),
            place: (error.line as u64, error.column as u64),
        })
    }

    /// A body that could not even be received.
    pub(super) fn cut(code: &str, request_id: &str) -> PollError {
        PollError::Unreadable(Self { code: code.to_owned(), request_id: request_id.to_owned(), place: (0, 0) })
    }
}

impl From<KeyError> for PollError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::CursorMoved { .. } => Self::Fenced,
            KeyError::SellerRemoved(_) => Self::Removed,
            KeyError::Database(error) => Self::Keys { code: error.code },
            KeyError::Root(_) => Self::Keys { code: "root_key".to_owned() },
            KeyError::LeaseLost => Self::Keys { code: "lease_lost".to_owned() },
            KeyError::Rewrapped(_) => Self::Keys { code: "keys_rotated".to_owned() },
            KeyError::Restored => Self::Keys { code: "keys_restored".to_owned() },
            KeyError::SellerUnknown(_) => Self::Keys { code: "seller_unknown".to_owned() },
            KeyError::Damaged { .. } => Self::Keys { code: "damaged".to_owned() },
            KeyError::NoRandomness => Self::Keys { code: "no_randomness".to_owned() },
        }
    }
}

impl PollError {
    /// A stable code for metrics and gaps.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Spapi(error) => error.code(),
            Self::Unreadable(body) => &body.code,
            Self::Restarts { .. } => "page_tokens_expired",
            Self::Endless { .. } => "endless_listing",
            Self::Keys { .. } => "keys",
            Self::Kafka { .. } => "kafka",
            Self::Silent => "silent",
            Self::Fenced => "fenced",
            Self::Removed => "seller_removed",
            Self::Stopped => "stopped",
            Self::NoCatalogue => "no_catalogue",
        }
    }

    /// What the schedule makes of it: only a grant that is gone, or that opens nothing, needs a person.
    #[must_use]
    pub(super) const fn turn(&self) -> Turn {
        match self {
            Self::Spapi(SpapiError::Auth(AuthCode::InvalidGrant | AuthCode::InvalidClient) | SpapiError::Forbidden { .. })
            | Self::Removed => Turn::Blocked,
            _ => Turn::Failed,
        }
    }
}
