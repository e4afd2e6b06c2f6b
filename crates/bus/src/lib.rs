//! The port of positions and wake-ups.
