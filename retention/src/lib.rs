#![doc = include_str!("../README.md")]

pub mod admit;
pub mod anchors;
pub mod audit;
pub mod buyer;
pub mod case;
pub mod cursor;
pub mod dbcode;
pub mod deadline;
pub mod generation;
pub mod hold;
pub mod horizon;
pub mod inventory;
pub mod keydb;
pub mod keyfiles;
pub mod keys;
pub mod lease;
pub mod ledger;
pub mod mirror;
pub mod names;
pub mod open;
pub mod outbox;
pub mod purpose;
pub mod restore;
pub mod root;
pub mod rotate;
mod secretfile;
pub mod sellers;
pub mod store;
pub mod stray;
#[cfg(feature = "testing")]
pub mod testing;
mod turn;
