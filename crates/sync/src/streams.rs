//! The streams of an answer, a file each: what is new in `(after, up to]`.

pub(crate) mod account_data;
pub(crate) mod device_lists;
pub(crate) mod ephemeral;
pub(crate) mod invited;
pub(crate) mod joined;
pub(crate) mod left;
pub(crate) mod state;
pub(crate) mod to_device;
