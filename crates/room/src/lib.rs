//! Room rules, pure, no I/O.
