//! Streams, waiters, recent-events cache, tokens and /sync.
