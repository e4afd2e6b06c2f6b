//! To-device messages. <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>

use bytes::Bytes;
use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_wire::user::ToDevice;
use ruma::{api::client::to_device::send_event_to_device, to_device::DeviceIdOrAllDevices};

use crate::Api;

/// Receivers in one request.
const RECEIVERS_MAX: usize = 1_000;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<send_event_to_device::v3::Request, _, _>(send);
}

async fn send(
    api: Api,
    caller: Caller<Session>,
    request: send_event_to_device::v3::Request,
) -> Result<Reply, ApiError> {
    let Session { user_id: sender, device_id } = caller.session;
    api.limit(LimitClass::Send, &sender).await?;
    if request.messages.len() > RECEIVERS_MAX {
        return Err(ApiError::invalid_param(format!("at most {RECEIVERS_MAX} receivers in one request")));
    }
    let event_type = request.event_type.to_string();
    let message = |content: &str| ToDevice {
        sender: sender.clone(),
        event_type: event_type.clone(),
        content: Bytes::copy_from_slice(content.as_bytes()),
    };
    let mut messages = Vec::new();
    for (user_id, devices) in request.messages {
        if devices.values().any(|content| !content.json().get().trim_start().starts_with('{')) {
            return Err(ApiError::bad_json("the content of a message is an object"));
        }
        let devices = devices.into_iter().map(|(device, content)| {
            let device = match device {
                DeviceIdOrAllDevices::DeviceId(device_id) => Some(device_id),
                DeviceIdOrAllDevices::AllDevices => None,
            };
            (device, message(content.json().get()))
        });
        // Messages to other servers wait for federation.
        if api.is_local(&user_id) {
            messages.push((user_id, devices.collect()));
        }
    }
    let transaction = format!("{event_type}\0{}", request.txn_id);
    api.users.send_to_device(&sender, &device_id, &transaction, messages).await?;
    Ok(Reply::empty())
}
