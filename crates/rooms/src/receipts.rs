//! Receipts, and members' device changes: the room's side records.
//! <https://spec.matrix.org/v1.19/client-server-api/#receipts>

use std::sync::Arc;

use cofactor_entity::{Cx, Decision, Read};
use cofactor_store::{Direction, RangeRead, key, record, tables};
use cofactor_types::{Fault, Position};
use cofactor_wire::room::{DeviceChange, ReceiptRecord, RoomCommand, RoomReply, Totals, class};
use ruma::{OwnedEventId, OwnedUserId, events::room::member::MembershipState};

use crate::{entity::RoomEntity, recent::Known, send::now};

struct Receipt {
    user_id: OwnedUserId,
    receipt_type: String,
    thread_id: String,
    event_id: OwnedEventId,
}

impl RoomEntity {
    pub(crate) fn receipt(
        &mut self,
        user_id: OwnedUserId,
        receipt_type: String,
        thread_id: String,
        event_id: OwnedEventId,
        cx: &mut Cx,
    ) -> Decision<Self> {
        let receipt = Receipt { user_id, receipt_type, thread_id, event_id };
        match self.try_receipt(&receipt, cx) {
            Ok(Ok(decision)) => decision,
            Ok(Err(reads)) => {
                let Receipt { user_id, receipt_type, thread_id, event_id } = receipt;
                Decision::Need(RoomCommand::Receipt { user_id, receipt_type, thread_id, event_id }, reads)
            }
            Err(fault) => Decision::Reply(Err(fault)),
        }
    }

    /// Decides, or says what must be read first.
    fn try_receipt(&mut self, receipt: &Receipt, cx: &mut Cx) -> Result<Result<Decision<Self>, Vec<Read>>, Fault> {
        let room = self.room()?;
        if room.state.membership(&receipt.user_id) != MembershipState::Join {
            return Err(Fault::forbidden("you are not joined to the room"));
        }
        let missing = || Fault::not_found("the room has no such event");
        let partition = key![cx.id()];
        let clustering = key![receipt.user_id.as_str(), receipt.receipt_type.as_str(), receipt.thread_id.as_str()];
        let before = cx.row(&tables::RECEIPTS, &partition, &clustering);
        let known = room.known(cx, &receipt.event_id, 0)?;
        let (Some(before), Ok(known)) = (before.clone(), &known) else {
            let row = Read::Row { table: &tables::RECEIPTS, partition, clustering };
            return Ok(Err(before.is_none().then_some(row).into_iter().chain(known.err()).collect()));
        };
        let known = known.as_ref().ok_or_else(missing)?;
        let scoped = scoped(receipt, known)?;
        let before = before.map(|value| record::decode::<ReceiptRecord>(&value)).transpose()?;
        // Receipts only move forwards.
        if before.is_some_and(|before| before.event_position >= known.position) {
            return Ok(Ok(Decision::Reply(Ok(RoomReply::Done))));
        }
        let log_position = cx.allocate()?;
        let row = ReceiptRecord {
            user_id: receipt.user_id.clone(),
            receipt_type: receipt.receipt_type.clone(),
            thread_id: receipt.thread_id.clone(),
            event_id: receipt.event_id.clone(),
            event_position: known.position,
            totals: known.totals,
            scoped,
            ts: now(cx),
            position: log_position,
        };
        let encoded = record::encode(&row)?;
        cx.put(&tables::RECEIPTS, partition, clustering, encoded.clone());
        cx.append(class::RECEIPT, &Arc::from(""), log_position, encoded.clone());
        cx.publish(class::RECEIPT, log_position, encoded);
        Ok(Ok(Decision::Commit(RoomReply::Done)))
    }

    pub(crate) fn device_changed(&mut self, user_id: OwnedUserId, cx: &mut Cx) -> Decision<Self> {
        Decision::from_result(self.try_device_changed(user_id, cx))
    }

    fn try_device_changed(&mut self, user_id: OwnedUserId, cx: &mut Cx) -> Result<Decision<Self>, Fault> {
        let Some(room) = &self.room else { return Ok(Decision::Reply(Ok(RoomReply::Done))) };
        if room.state.membership(&user_id) != MembershipState::Join {
            return Ok(Decision::Reply(Ok(RoomReply::Done)));
        }
        let position = cx.allocate()?;
        let encoded = record::encode(&DeviceChange { user_id })?;
        cx.append(class::DEVICE_LIST, &Arc::from(""), position, encoded.clone());
        cx.publish(class::DEVICE_LIST, position, encoded);
        Ok(Decision::Commit(RoomReply::Done))
    }
}

/// The totals of what a receipt speaks of. <https://spec.matrix.org/v1.19/client-server-api/#threaded-read-receipts>
fn scoped(receipt: &Receipt, event: &Known) -> Result<Totals, Fault> {
    match (receipt.thread_id.as_str(), &event.thread) {
        ("", _) | ("main", None) => Ok(event.main),
        (root, Some(thread)) if thread.root == root => Ok(thread.totals),
        // At its root nothing of a thread has been read.
        (root, None) if receipt.event_id == root => Ok(Totals::default()),
        _ => Err(Fault::invalid("the event is not part of the thread")),
    }
}

/// The read of the one event at `position`.
pub(crate) fn read_event(position: Position) -> Read {
    let range = RangeRead { after: position.previous(), up_to: position, direction: Direction::Forward, limit: 1 };
    Read::Log { class: class::TIMELINE, sub: Arc::from(""), range }
}
