//! Devices. <https://spec.matrix.org/v1.19/client-server-api/#device-management>

use cofactor_http::{ApiError, Caller, Reply, Routes, Session};
use cofactor_wire::user_command::{Device, UserCommand};
use ruma::{
    DeviceId,
    api::client::device::{delete_device, delete_devices, get_device, get_devices, update_device},
};
use serde_json::{Value, json};

use crate::Api;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_devices::v3::Request, _, _>(devices);
    routes.mount::<get_device::v3::Request, _, _>(device);
    routes.mount::<update_device::v3::Request, _, _>(update);
    routes.mount::<delete_device::v3::Request, _, _>(delete);
    routes.mount::<delete_devices::v3::Request, _, _>(delete_many);
}

fn shown(device_id: &DeviceId, device: &Device) -> Value {
    json!({
        "device_id": device_id,
        "display_name": device.display_name,
        "last_seen_ip": device.last_seen_ip,
        "last_seen_ts": device.last_seen_ms,
    })
}

async fn devices(api: Api, caller: Caller<Session>, _request: get_devices::v3::Request) -> Result<Reply, ApiError> {
    let devices = api.users.devices(&caller.session.user_id).await?;
    let devices: Vec<_> = devices.iter().map(|(device_id, device)| shown(device_id, device)).collect();
    Reply::value(&json!({ "devices": devices }))
}

async fn device(api: Api, caller: Caller<Session>, request: get_device::v3::Request) -> Result<Reply, ApiError> {
    let device = api.users.device(&caller.session.user_id, &request.device_id).await?;
    let device = device.ok_or_else(|| ApiError::not_found("there is no such device"))?;
    Reply::value(&shown(&request.device_id, &device))
}

async fn update(api: Api, caller: Caller<Session>, request: update_device::v3::Request) -> Result<Reply, ApiError> {
    let update_device::v3::Request { device_id, display_name, .. } = request;
    api.user(&caller.session.user_id, UserCommand::UpdateDevice { device_id, display_name }).await?;
    Ok(Reply::empty())
}

async fn delete(api: Api, caller: Caller<Session>, request: delete_device::v3::Request) -> Result<Reply, ApiError> {
    let purpose = format!("delete {}", request.device_id);
    api.ask_password(&caller.session, &caller.context, &purpose, request.auth.as_ref()).await?;
    let device_ids = Some(vec![request.device_id]);
    api.user(&caller.session.user_id, UserCommand::DeleteDevices { device_ids }).await?;
    Ok(Reply::empty())
}

async fn delete_many(
    api: Api,
    caller: Caller<Session>,
    request: delete_devices::v3::Request,
) -> Result<Reply, ApiError> {
    let mut purpose = "delete".to_owned();
    request.devices.iter().for_each(|device_id| purpose.push_str(&format!(" {device_id}")));
    api.ask_password(&caller.session, &caller.context, &purpose, request.auth.as_ref()).await?;
    let device_ids = Some(request.devices);
    api.user(&caller.session.user_id, UserCommand::DeleteDevices { device_ids }).await?;
    Ok(Reply::empty())
}
