#![doc = include_str!("../README.md")]

pub mod class;
pub mod envelope;
pub mod ids;
pub mod key;
pub mod outcome;
pub mod private;
pub mod time;
pub mod topic;
