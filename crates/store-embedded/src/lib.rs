//! The store port on fjall.
