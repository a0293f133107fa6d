//! Integration tests of the pipeline: one binary, so that it links once.

// `cfg(test)` tells the lints that helpers here are tests too.
#[cfg(test)]
mod acceptance;
#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod kafka;
#[cfg(test)]
mod kafka_proof;
#[cfg(test)]
mod pipes;
#[cfg(test)]
mod poll;
#[cfg(test)]
mod simulator;
#[cfg(test)]
mod simulator_model;
#[cfg(test)]
mod sink;
#[cfg(test)]
mod split;
