//! What a record costs at each step of Sunder, and how long an erasure takes.
//!
//! Each bench is a program of its own under `src/bin`, run by `scripts/bench`; this library holds what they share. Method, machine and
//! figures: `benches/README.md`. A bench that does not find its own results right fails; it never prints a figure for work undone.

pub mod database;
pub mod generate;
pub mod line;
pub mod log;
pub mod measure;

/// The allocator of the program `sunder`, so that figures are of what runs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
