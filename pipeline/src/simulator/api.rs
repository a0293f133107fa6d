//! What every operation shares: headers, token, quota, faults, counting.

use std::collections::BTreeMap;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;

use super::answer::{ApiError, Marks, failed, fetched};
use super::auth::Refused;
use super::draw::{Draw, Stream};
use super::faults::{FAULTS_IN_A_ROW_MAX, Fault, Faults};
use super::limits::Operation;
use super::query::Query;
use super::{Shared, State};

/// Longest `user-agent` that is taken, in characters (FACTS section 3).
const USER_AGENT_MAX: usize = 500;

/// One admitted call.
#[derive(Debug)]
pub(super) struct Call {
    /// The seller whose token it carries.
    pub(super) seller: u32,
    /// The simulator's time.
    pub(super) now: i64,
    /// Its parameters.
    pub(super) query: Query,
    /// The last part of its path, decoded, where the operation has one.
    pub(super) resource: Option<String>,
    /// A fault that struck and that the operation itself plays out.
    pub(super) fault: Option<Fault>,
}

/// How often an operation was called, and how that went.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CallCounts {
    /// All calls.
    pub calls: u64,
    /// By status of the answer.
    pub statuses: BTreeMap<u16, u64>,
    /// Answers 429.
    pub throttled: u64,
    /// Faults that struck, those that only spoil a body included.
    pub faults: u64,
    /// How often each data set was asked for.
    pub included_data: BTreeMap<String, u64>,
}

/// Serves one call of `operation` by `act`, which gives the answer's body.
pub(super) async fn serve(
    shared: Shared,
    operation: Operation,
    request: Request,
    resource: Option<String>,
    act: fn(&State, &Call) -> Result<Value, ApiError>,
) -> Response {
    let number = shared.next_call();
    let id = Draw::new(shared.options.seed, Stream::Issue, number, 1).bits();
    let request_id = format!("{id:016x}-{number:08}");
    let query = Query::parse(request.uri().query());
    let included: Vec<String> = query.list("includedData").into_iter().map(str::to_owned).collect();
    let caller = caller(&shared, request.headers());
    let fault = caller.as_ref().ok().and_then(|seller| shared.strike(*seller, operation, number));
    drop(request);
    if fault == Some(Fault::Slow) {
        tokio::time::sleep(std::time::Duration::from_millis(Faults::SLOW_MS)).await;
    }
    let outcome = caller.and_then(|seller| {
        refuse(&shared, seller, operation, fault)?;
        act(&shared, &Call { seller, now: shared.now(), query, resource, fault })
    });
    // The rate is told on 200, 400 and 404, not reliably on others (FACTS section 4); a struck 429 is without it.
    let told = match &outcome {
        Ok(_) => true,
        Err(error) => {
            matches!(error.status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND)
                || error.status == StatusCode::TOO_MANY_REQUESTS && fault.is_none()
        }
    };
    let marks = Marks { request_id, rate: told.then(|| shared.rate(operation)) };
    let response = match outcome {
        Ok(body) => fetched(marks, &body, fault),
        Err(error) => failed(marks, &error),
    };
    shared.count(operation, response.status().as_u16(), fault.is_some(), &included);
    response
}

/// The faults and limits that end a call before the operation sees it.
fn refuse(shared: &State, seller: u32, operation: Operation, fault: Option<Fault>) -> Result<(), ApiError> {
    match fault {
        Some(Fault::Throttled) => return Err(ApiError::quota()),
        Some(Fault::Internal) => return Err(ApiError::internal()),
        Some(Fault::Unavailable) => return Err(ApiError::unavailable()),
        Some(Fault::AccessToken) => return Err(ApiError::access("The access token you provided has expired.")),
        _ => {}
    }
    if shared.take(seller, operation) { Ok(()) } else { Err(ApiError::quota()) }
}

/// Checks the headers and finds the seller of the access token.
fn caller(shared: &State, headers: &HeaderMap) -> Result<u32, ApiError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let length = text(header::CONTENT_LENGTH.as_str()).unwrap_or("0");
    if length != "0" || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(ApiError::input("A GET request must not have a body."));
    }
    match text(header::USER_AGENT.as_str()) {
        None | Some("") => return Err(ApiError::input("The user-agent header is missing.")),
        Some(agent) if agent.chars().count() > USER_AGENT_MAX => return Err(ApiError::input("The user-agent header is too long.")),
        Some(_) => {}
    }
    let token = text("x-amz-access-token").ok_or(ApiError::access("Access token is missing in the request header."))?;
    shared.grants().seller(token, shared.now()).map_err(|refused| {
        ApiError::access(match refused {
            Refused::Expired => "The access token you provided has expired.",
            Refused::Unknown => "The access token you provided is revoked, malformed or invalid.",
        })
    })
}

/// Lets at most [`FAULTS_IN_A_ROW_MAX`] faults follow one another.
pub(super) fn in_a_row(run: &mut u8, fault: Option<Fault>) -> Option<Fault> {
    let fault = fault.filter(|_| *run < FAULTS_IN_A_ROW_MAX);
    *run = if fault.is_some() { *run + 1 } else { 0 };
    fault
}
