//! To-device messages. <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>

use std::sync::Arc;

use cofactor_entity::Cx;
use cofactor_store::record;
use cofactor_types::{Fault, Position, limits::TO_DEVICE_QUEUE_MAX};
use cofactor_wire::user::{ToDevice, class, state};
use ruma::{DeviceId, OwnedDeviceId};

use crate::entity::UserEntity;

impl UserEntity {
    pub(crate) fn add_to_device(
        &mut self,
        delivery: u128,
        messages: Vec<(Option<OwnedDeviceId>, ToDevice)>,
        cx: &mut Cx,
    ) -> Result<(), Fault> {
        if self.account.is_none() || self.delivered.contains(delivery) {
            return Ok(());
        }
        let at = cx.allocate()?;
        let no_sub: Arc<str> = Arc::from("");
        cx.append(class::DELIVERED, &no_sub, at, record::encode(&delivery)?);
        for old in self.delivered.note(delivery, at) {
            cx.remove(class::DELIVERED, &no_sub, old);
        }
        for (device_id, message) in messages {
            let encoded = record::encode(&message)?;
            let receivers: Vec<OwnedDeviceId> = match device_id {
                Some(device_id) => self.devices.contains_key(&device_id).then_some(device_id).into_iter().collect(),
                None => self.devices.keys().cloned().collect(),
            };
            for device_id in receivers {
                let position = cx.allocate()?;
                let sub: Arc<str> = device_id.as_str().into();
                cx.append(class::TO_DEVICE, &sub, position, encoded.clone());
                cx.publish(class::TO_DEVICE, position, encoded.clone());
                let queue = self.queues.entry(device_id).or_default();
                queue.push_back(position);
                // A device that never comes back keeps the newest; clients ask again for keys that they miss.
                if queue.len() > TO_DEVICE_QUEUE_MAX
                    && let Some(oldest) = queue.pop_front()
                {
                    cx.remove(class::TO_DEVICE, &sub, oldest);
                    self.put(cx, state::TO_DEVICE_TAKEN, &sub, &oldest)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn ack_to_device(&mut self, device_id: &DeviceId, up_to: Position, cx: &mut Cx) -> Result<(), Fault> {
        let Some(queue) = self.queues.get_mut(device_id) else { return Ok(()) };
        let sub: Arc<str> = device_id.as_str().into();
        let mut taken = None;
        while let Some(position) = queue.front().copied().filter(|position| *position <= up_to) {
            queue.pop_front();
            cx.remove(class::TO_DEVICE, &sub, position);
            taken = Some(position);
        }
        taken.map_or(Ok(()), |taken| self.put(cx, state::TO_DEVICE_TAKEN, &sub, &taken))
    }
}
