//! Receipts: one person reads what the other one says.

use std::rc::Rc;

use cofactor_store::{key, record, tables};
use cofactor_types::Fault;
use cofactor_wire::room::{ReceiptRecord, RoomCommand, Rooms};
use ruma::{EventId, OwnedRoomId, OwnedUserId};

use super::World;

/// Receipts of one run.
const RECEIPTS: usize = 8;

const READ: &str = "m.read";

/// Reads what `speaker` has said, up to a place that is sometimes before the last; each receipt until it is acknowledged.
pub(super) async fn read(world: Rc<World>, reader: OwnedUserId, speaker: OwnedUserId, room_id: OwnedRoomId) {
    for _ in 0..RECEIPTS {
        world.pause(200).await;
        let back = world.up_to(2);
        let event_id = {
            let seen = world.seen.borrow();
            let said = seen.acknowledged.get(speaker.as_str()).map(Vec::as_slice).unwrap_or_default();
            said.iter().rev().nth(back).map(|(_, event_id)| event_id.clone())
        };
        let Some(event_id) = event_id else { continue };
        let command = RoomCommand::Receipt {
            user_id: reader.clone(),
            receipt_type: READ.to_owned(),
            thread_id: String::new(),
            event_id: EventId::parse(&event_id).unwrap_or_else(|error| panic!("{error}")),
        };
        world.insist(async |node| node.core.rooms.ask(&room_id, command.clone()).await).await;
        world.seen.borrow_mut().receipts_acknowledged.push(event_id);
    }
}

/// Up to where `reader` has read, at the end.
pub(super) async fn read_last(world: &World, reader: &OwnedUserId, room_id: &OwnedRoomId) {
    let (partition, clustering) = (key![room_id.as_str()], key![reader.as_str(), READ, ""]);
    let get = async |node: Rc<super::SimNode>| {
        let found = node.core.env.store().get(&tables::RECEIPTS, &partition, &clustering).await?;
        found.map(|value| record::decode::<ReceiptRecord>(&value)).transpose().map_err(Fault::from)
    };
    let found = world.insist(get).await;
    world.seen.borrow_mut().receipt = found.map(|receipt| receipt.event_id.to_string());
}
