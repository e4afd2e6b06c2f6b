//! The binary: command line and main.

fn main() {}
