//! Keys, ledger, lease and audit against real databases: SQLite always, PostgreSQL where it is to be had.

mod keys;
mod support;
