//! Positions, tokens, shard, node and epoch ids, limits, clock and entropy.
