//! Answers of the API: bodies, headers, errors, and bodies that a fault has spoiled.

use std::io;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::{Value, json};

use super::faults::{Fault, Faults};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const RATE_LIMIT: HeaderName = HeaderName::from_static("x-amzn-ratelimit-limit");

/// An error as SP-API words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: &'static str,
    pub(super) details: &'static str,
}

impl ApiError {
    /// 400 with what is wrong.
    pub(super) const fn input(message: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "InvalidInput", message, details: "" }
    }

    /// 403 with why.
    pub(super) const fn access(details: &'static str) -> Self {
        Self { status: StatusCode::FORBIDDEN, code: "Unauthorized", message: "Access to requested resource is denied.", details }
    }

    /// 404.
    pub(super) const fn missing() -> Self {
        Self { status: StatusCode::NOT_FOUND, code: "NotFound", message: "Resource not found.", details: "" }
    }

    /// 429.
    pub(super) const fn quota() -> Self {
        let message = "You exceeded your quota for the requested resource.";
        Self { status: StatusCode::TOO_MANY_REQUESTS, code: "QuotaExceeded", message, details: "" }
    }

    /// 500.
    pub(super) const fn internal() -> Self {
        let message = "We encountered an internal error. Please try again.";
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, code: "InternalFailure", message, details: "" }
    }

    /// 503.
    pub(super) const fn unavailable() -> Self {
        let message = "Service is temporarily unavailable. Please try again.";
        Self { status: StatusCode::SERVICE_UNAVAILABLE, code: "ServiceUnavailable", message, details: "" }
    }
}

/// The marks that every answer carries.
#[derive(Debug)]
pub(super) struct Marks {
    pub(super) request_id: String,
    /// The operation's rate, where it is told.
    pub(super) rate: Option<String>,
}

impl Marks {
    fn put(self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&self.request_id) {
            headers.insert(REQUEST_ID, value);
        }
        if let Some(value) = self.rate.and_then(|rate| HeaderValue::from_str(&rate).ok()) {
            headers.insert(RATE_LIMIT, value);
        }
        response
    }
}

/// An error's answer.
pub(super) fn failed(marks: Marks, error: &ApiError) -> Response {
    let body = json!({ "errors": [{ "code": error.code, "message": error.message, "details": error.details }] });
    marks.put((error.status, axum::Json(body)).into_response())
}

/// A good answer, spoiled if `fault` is of the kinds that spoil a body.
pub(super) fn fetched(marks: Marks, body: &Value, fault: Option<Fault>) -> Response {
    let text = body.to_string();
    let whole = |text: String| Body::from(text);
    let body = match fault {
        Some(Fault::Cut) => cut(text),
        Some(Fault::Truncated) => whole(half(text)),
        Some(Fault::EmptyObject) => whole("{}".to_owned()),
        Some(Fault::Html) => whole("<!DOCTYPE html><html><body><h1>Service busy</h1></body></html>".to_owned()),
        Some(Fault::DuplicateKeys) => whole(insert(&text, "\"orders\":[],\"payload\":{},")),
        Some(Fault::DeepNesting) => {
            let (open, close) = ("[".repeat(Faults::DEPTH), "]".repeat(Faults::DEPTH));
            whole(insert(&text, &format!("\"extension\":{open}{close},")))
        }
        Some(Fault::HugeBody) => huge(text),
        _ => whole(text),
    };
    let content = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    marks.put((StatusCode::OK, content, body).into_response())
}

/// `text` up to about its middle, on a character's edge.
fn half(mut text: String) -> String {
    let middle = text.len() / 2;
    let edge = (0..=middle).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(edge);
    text
}

/// Puts `members` at the start of the object that `text` is.
fn insert(text: &str, members: &str) -> String {
    format!("{{{members}{}", text.strip_prefix('{').unwrap_or(text))
}

/// Half the body, then the connection closes.
fn cut(text: String) -> Body {
    let broken = io::Error::from(io::ErrorKind::ConnectionReset);
    Body::from_stream(stream::iter([Ok(Bytes::from(half(text))), Err(broken)]))
}

/// The body behind many MiB of padding, made as it is sent.
fn huge(text: String) -> Body {
    let block = Bytes::from(vec![b'x'; 1 << 20]);
    let rest = text.strip_prefix('{').unwrap_or(&text).to_owned();
    let parts = std::iter::once(Bytes::from_static(b"{\"padding\":\""))
        .chain(std::iter::repeat_n(block, Faults::HUGE_MIB))
        .chain([Bytes::from_static(b"\","), Bytes::from(rest)]);
    Body::from_stream(stream::iter(parts.map(Ok::<_, io::Error>)))
}
