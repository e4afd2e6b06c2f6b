//! Single troubles, each alone.
