//! What nodes say to one another.
