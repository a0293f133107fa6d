//! The program `sunder`.

fn main() {}
