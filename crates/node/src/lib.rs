//! Roles, backends, lifecycle, configuration.
