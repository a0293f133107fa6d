#![doc = "The moving parts of Sunder: SP-API client and pollers, simulator, Kafka, splitter, runtime and the program `sunder`."]

pub mod config;
pub mod dead_letter;
pub mod kafka;
pub mod output;
pub mod poll;
pub mod registry;
pub mod serve;
pub mod simulator;
pub mod sink_runner;
pub mod spapi;
pub mod split;
pub mod telemetry;
