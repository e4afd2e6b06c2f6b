//! What a client asks.

use std::{borrow::Cow, str::FromStr, sync::Arc, time::Duration};

use cofactor_types::{Fault, SyncToken};
use ruma::{OwnedDeviceId, OwnedUserId, api::client::filter::FilterDefinition};
use serde::{Deserialize, Serialize};

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
    pub filter: Arc<FilterDefinition>,
    /// The whole state of every room, whatever changed.
    pub full_state: bool,
    /// How long to wait for something new.
    pub timeout: Duration,
    /// The name under which the state at the end of each timeline is wanted instead of the one at its start: `state_after`, or
    /// the name that it had before it was stable.
    pub state_after: Option<Cow<'static, str>>,
}

/// A request on its way to another node.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SyncFrame {
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    since: Option<String>,
    /// JSON, the form that filters have in the specification.
    filter: String,
    full_state: bool,
    timeout_ms: u64,
    state_after: Option<String>,
}

impl TryFrom<&SyncRequest> for SyncFrame {
    type Error = Fault;

    fn try_from(request: &SyncRequest) -> Result<Self, Fault> {
        let filter = serde_json::to_string(&*request.filter).map_err(|error| Fault::internal(error.to_string()))?;
        Ok(Self {
            user_id: request.user_id.clone(),
            device_id: request.device_id.clone(),
            since: request.since.as_ref().map(ToString::to_string),
            filter,
            full_state: request.full_state,
            timeout_ms: u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX),
            state_after: request.state_after.as_deref().map(ToOwned::to_owned),
        })
    }
}

impl TryFrom<SyncFrame> for SyncRequest {
    type Error = Fault;

    fn try_from(frame: SyncFrame) -> Result<Self, Fault> {
        let since = frame.since.as_deref().map(SyncToken::from_str).transpose();
        Ok(Self {
            user_id: frame.user_id,
            device_id: frame.device_id,
            since: since.map_err(|error| Fault::invalid(error.to_string()))?,
            filter: Arc::new(serde_json::from_str(&frame.filter).map_err(|error| Fault::bad_json(error.to_string()))?),
            full_state: frame.full_state,
            timeout: Duration::from_millis(frame.timeout_ms),
            state_after: frame.state_after.map(Cow::Owned),
        })
    }
}

#[cfg(test)]
impl SyncFrame {
    /// With every field.
    pub(crate) fn sample() -> Self {
        let user_id = ruma::user_id!("@alice:example.org").to_owned();
        let text = |text: &str| Some(text.to_owned());
        Self {
            user_id,
            device_id: ruma::owned_device_id!("DEVICE"),
            since: text("s1"),
            filter: "{}".to_owned(),
            full_state: true,
            timeout_ms: 30_000,
            state_after: text("state_after"),
        }
    }
}
