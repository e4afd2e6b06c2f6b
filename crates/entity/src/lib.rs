//! One runtime for every kind of actor.
