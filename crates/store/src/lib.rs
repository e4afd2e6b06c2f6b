//! The persistence port.
