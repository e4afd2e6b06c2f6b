//! Shows what a run found: a table for a terminal, JSON for programs, a page for people.

pub mod table;
