#![doc = include_str!("../README.md")]

pub mod admit;
pub mod audit;
pub mod cursor;
pub mod deadline;
pub mod keydb;
pub mod keys;
pub mod lease;
pub mod ledger;
pub mod open;
pub mod outbox;
pub mod purpose;
pub mod root;
pub mod sellers;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
