//! The suite that every backend must pass. A backend's tests call [`all`] with a way to make an empty store.
