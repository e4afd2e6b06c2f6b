//! The HTTP edge: route table, endpoint adapter, credentials, errors, limits.
