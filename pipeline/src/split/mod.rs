//! The splitter: from raw events to typed history, typed state and sealed personal records, without opening a block.
//!
//! [`project`] is pure; [`versions`] keeps what is known of each entity; [`batch`] makes of each raw record exactly one outcome and the
//! records it becomes; [`runner`] is the loop over Kafka.

pub mod batch;
mod buffer;
pub mod project;
mod rebuild;
pub mod runner;
pub mod versions;
mod walk;

#[cfg(test)]
mod sandbox_tests;
