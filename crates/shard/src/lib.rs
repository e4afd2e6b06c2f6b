//! Entity to shard to owner, a pure function of a membership view.
