//! Shows what a run found: a table for a terminal, a page for people; JSON for programs is the report itself.

pub mod chart;
pub mod page;
pub mod table;
