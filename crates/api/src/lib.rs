//! One function per endpoint.
