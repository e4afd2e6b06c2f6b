//! Implements the bus on Redis.
