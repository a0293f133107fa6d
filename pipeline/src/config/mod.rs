//! The configuration: the only reader of files and of the environment.
//!
//! Invariants: unknown keys are errors with line, key and the nearest known key; a secret is a reference (`{ file = "..." }` or
//! `{ env = "..." }`), never a value; no error quotes a value. The form is a contract (DESIGN section 6).

mod check;
mod file;
mod load;
mod secret;

pub use check::check;
pub use file::{
    Certificate, ClockSection, Config, CopySection, Endpoints, Environment, Kafka, Keys, Principal, Purpose, Registry, Retention, Security,
    Seller, Serve, SpApi, Store,
};
pub use load::{ConfigError, EXAMPLE, load, parse};
pub use secret::SecretRef;
