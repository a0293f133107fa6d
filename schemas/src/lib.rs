#![doc = include_str!("../README.md")]

pub mod catalogue;
pub mod certificate;
pub mod chain;
pub mod class;
pub mod classify;
pub mod envelope;
pub mod ids;
pub mod key;
pub mod note;
pub mod outcome;
pub mod private;
pub mod records;
pub mod time;
pub mod tlog;
pub mod topic;
pub mod wire;
