//! Integration tests of the pipeline: one binary, so that it links once.

mod dependencies;
