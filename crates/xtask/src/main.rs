//! The checks of the repository.

fn main() {}
