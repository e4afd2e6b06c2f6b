//! The suite that every bus must pass.
