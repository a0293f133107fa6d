//! Keys, ledger, lease, audit and cases against real databases: SQLite always, PostgreSQL where it is to be had.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where something is not as it should be"
)]

mod cases;
mod files;
mod hold;
mod keys;
mod lease;
mod logs;
mod read;
mod restore;
mod rotate;
mod services;
mod sim;
mod support;
mod world;
