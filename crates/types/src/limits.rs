//! Bounds that more than one crate must agree on. Each has a unit in its name or its comment.

/// Shards of a cluster, unless chosen otherwise when it is created.
pub const SHARDS_DEFAULT: u32 = 1024;

/// The size of an event in federation form, in bytes of canonical JSON.
/// <https://spec.matrix.org/v1.19/client-server-api/#size-limits>
pub const EVENT_BYTES_MAX: usize = 65_536;

/// The length of user ids, room ids, event types and state keys, in bytes.
/// <https://spec.matrix.org/v1.19/client-server-api/#size-limits>
pub const KEY_FIELD_BYTES_MAX: usize = 255;

/// How deep client JSON may nest.
pub const JSON_DEPTH_MAX: usize = 64;

/// Commands that may wait in one actor's mailbox.
pub const MAILBOX_MAX: usize = 1_000;

/// To-device messages kept for one device; the oldest are dropped beyond it.
pub const TO_DEVICE_QUEUE_MAX: usize = 10_000;

/// One-time keys kept for one device and algorithm.
pub const ONE_TIME_KEYS_MAX: usize = 100;

/// Devices of one user.
pub const DEVICES_MAX: usize = 500;

/// How long a transaction id is remembered, in microseconds: 24 hours.
pub const TRANSACTION_ID_LIFE_US: u64 = 24 * 60 * 60 * 1_000_000;

/// The heartbeat of a node on the bus, in milliseconds.
pub const HEARTBEAT_MS: u64 = 100;

/// Exceptions in a `/sync` token; an answer that would need more delivers less instead.
pub const TOKEN_EXCEPTIONS_MAX: usize = 256;
