//! What a client asks.

use std::time::Duration;

use cofactor_types::SyncToken;
use ruma::{OwnedDeviceId, OwnedUserId, api::client::filter::FilterDefinition};

/// A `/sync` request. <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>
#[derive(Clone, Debug)]
pub struct SyncRequest {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// From where; `None`: all from the beginning.
    pub since: Option<SyncToken>,
    /// What to leave out.
    pub filter: FilterDefinition,
    /// The whole state of every room, whatever changed.
    pub full_state: bool,
    /// How long to wait for something new.
    pub timeout: Duration,
    /// The name under which the state at the end of each timeline is wanted instead of the one at its start: `state_after`, or
    /// the name that it had before it was stable.
    pub state_after: Option<&'static str>,
}
