#![doc = include_str!("../README.md")]

pub mod certificate;
pub mod class;
pub mod envelope;
pub mod ids;
pub mod key;
pub mod note;
pub mod outcome;
pub mod private;
pub mod records;
pub mod time;
pub mod topic;
pub mod wire;
