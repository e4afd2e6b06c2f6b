//! Reads rooms as a viewer may see them.
