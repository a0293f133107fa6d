//! Erasure cases: from a request or a deadline to a signed certificate.
//!
//! [`machine`] decides, purely; [`Engine`] does what it decided and appends the event; [`mod@verify`] judges; [`certify`]
//! writes the statement. Invariants: every step is an event that is persisted before the next begins; every action may be done twice;
//! a case only ends with a [`Case`] in state [`Verified`], which nothing but a verification that held can make.

mod aged;
pub mod certify;
mod certlog;
mod control;
mod engine;
mod held;
pub mod keys;
pub mod machine;
mod pass;
pub mod probe;
mod reprove;
pub mod restore;
mod scope;
mod steps;
mod store;
mod sweep;
pub mod verify;

pub use certify::{About, signer_from_file};
pub use certlog::{Files, KnownLog, LogFault, VerifiedLog, certificate_files, log_files, log_head, verify_log};
pub(crate) use control::wrap_context as control_context;
pub use engine::{Engine, Parts};
pub use held::{Holds, RingHolds};
pub use keys::{Keys, RingKeys};
pub use machine::{Progress, State};
pub use probe::{Moment, Point, Probe};
pub use reprove::Reproved;
pub use scope::{EraseRequest, Goes, Listed, Plan, Reason, Scope};
pub use store::{Record, Shown, ShownEvent, has_open_roll, late, list, show};
pub use verify::{Case, Verified, VerifyReport};

use sunder_schemas::certificate::CertificateError;
use sunder_schemas::note::NoteError;

use crate::keydb::DbError;
use crate::store::StoreError;

/// Why a case could not be worked on. No text of a store, database or person in it.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// The key database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A store or the log.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys; a code.
    #[error("keys could not be used: {0}")]
    Keys(String),
    /// No case of this id.
    #[error("no such case")]
    NotFound,
    /// Another process appended to the case at the same time; it goes on from there.
    #[error("another process works on this case")]
    Contended,
    /// What is stored of the case does not fit together.
    #[error(transparent)]
    Broken(#[from] machine::BrokenHistory),
    /// The case has no certificate yet.
    #[error("the case is not certified yet")]
    NotCertified,
    /// The statement or its signature.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A key or note of the certificate log.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// A request that makes no sense.
    #[error("{0}")]
    Request(&'static str),
}
