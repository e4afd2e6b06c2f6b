//! Carries the messages of `wire` over gRPC.
