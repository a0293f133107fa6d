#![doc = include_str!("../README.md")]

pub mod app;
pub mod cli;
pub mod commands;
pub mod config;
pub mod dead_letter;
#[cfg(feature = "embedded")]
pub mod demo;
pub mod kafka;
pub mod output;
mod patience;
pub mod poll;
pub mod registry;
pub mod run;
pub mod serve;
pub mod simulator;
pub mod sink_runner;
pub mod spapi;
pub mod split;
pub mod telemetry;
