//! What can be wrong with an answer or one of its entities: codes and places, never a value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::class::words;
use crate::ids::IdError;

words!(
    /// What is wrong with a body as a whole. Stable: it goes into gaps, metrics and logs.
    BodyCode, "body code", "a code of docs/errors.md", {
        /// More bytes than allowed.
        TooLarge = "body_too_large",
        /// Not UTF-8.
        NotUtf8 = "body_not_utf8",
        /// Not JSON.
        NotJson = "body_not_json",
        /// The JSON ends too early.
        Truncated = "body_truncated",
        /// Something follows the JSON.
        TrailingBytes = "body_trailing_bytes",
        /// Nested deeper than allowed.
        TooDeep = "body_too_deep",
        /// A string or name longer than allowed.
        StringTooLong = "body_string_too_long",
        /// More entities than allowed.
        TooManyEntities = "body_too_many_entities",
        /// More values in one entity than allowed.
        TooManyValues = "body_too_many_values",
        /// The answer lacks the property that holds its entities.
        NoEntities = "body_no_entities",
        /// The next token, the end of the window, the marketplace, or what is around them or the entities, is not of the expected form.
        BadPage = "body_bad_page",
        /// One of them is given twice, so it is not known which holds.
        DuplicatePage = "body_duplicate_page",
    }
);

words!(
    /// What is wrong with one entity of an answer that is otherwise sound.
    RejectCode, "reject code", "a code of docs/errors.md", {
        /// The entity is not an object.
        NotAnObject = "entity_not_an_object",
        /// It has no id.
        NoId = "entity_no_id",
        /// Its id is not of the form of an id.
        BadId = "entity_bad_id",
        /// It has no source version.
        NoVersion = "entity_no_version",
        /// Its source version is not a time.
        BadVersion = "entity_bad_version",
        /// It has no marketplace where one is needed.
        NoMarketplace = "entity_no_marketplace",
        /// Its marketplace is not of the form of a marketplace id.
        BadMarketplace = "entity_bad_marketplace",
    }
);

/// A body that cannot be taken in, with where reading stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("answer cannot be read: {code} at byte {offset} (line {line}, column {column}), in {path}")]
pub struct BodyError {
    /// What is wrong.
    pub code: BodyCode,
    /// Bytes from the start of the body.
    pub offset: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in bytes, from 1.
    pub column: usize,
    /// The last known property above; never a fetched name.
    pub path: String,
}

impl BodyError {
    pub(super) fn at(code: BodyCode, body: &[u8], offset: usize, path: &str) -> Self {
        let before = body.get(..offset.min(body.len())).unwrap_or_default();
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
        Self { code, offset, line, column, path: path.to_owned() }
    }
}

/// An entity that cannot be taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entity {index} of the answer cannot be taken in: {code} at {path}")]
pub struct Rejected {
    /// Place in the answer, from 0.
    pub index: usize,
    /// What is wrong.
    pub code: RejectCode,
    /// The property at fault.
    pub path: String,
}
