//! Tracing, OpenTelemetry, metrics, named task spawn.
