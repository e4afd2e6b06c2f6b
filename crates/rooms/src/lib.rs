//! The room actor and the projections of its log.
