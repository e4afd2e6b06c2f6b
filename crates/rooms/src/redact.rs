//! Redactions: the event that asks, and the rewriting of its target.
//! <https://spec.matrix.org/v1.19/client-server-api/#redactions>

use std::sync::Arc;

use cofactor_entity::{Cx, Decision};
use cofactor_room::{Pdu, may_request_redaction, redact_pdu, redaction_applies};
use cofactor_store::{key, record, tables};
use cofactor_types::{Fault, Position};
use cofactor_wire::room::{CurrentState, EventRecord, NewEvent, Rewritten, RoomCommand, Transaction, class};
use ruma::{OwnedUserId, events::room::member::MembershipState};

use crate::{
    entity::{Room, RoomEntity},
    receipts::read_event,
    record::{Annotations, to_pdu, to_record},
};

impl RoomEntity {
    pub(crate) fn redact(
        &mut self,
        sender: OwnedUserId,
        transaction: Option<Transaction>,
        event: NewEvent,
        cx: &mut Cx,
    ) -> Decision<Self> {
        match self.find_target(&sender, transaction.as_ref(), &event, cx) {
            Ok(Found::Answered(decision)) => decision,
            Ok(Found::Read(read)) => Decision::Need(RoomCommand::Send { sender, transaction, event }, vec![read]),
            Ok(Found::Target(position, target)) => {
                Decision::from_result(self.apply_redaction(&sender, transaction, &event, position, &target, cx))
            }
            Err(fault) => Decision::Reply(Err(fault)),
        }
    }

    fn find_target(
        &mut self,
        sender: &OwnedUserId,
        transaction: Option<&Transaction>,
        event: &NewEvent,
        cx: &Cx,
    ) -> Result<Found, Fault> {
        let room = self.room()?;
        if let Some(done) = room.repeated(sender, &event.event_type, transaction) {
            return Ok(Found::Answered(Decision::Reply(Ok(done))));
        }
        if room.state.membership(sender) != MembershipState::Join {
            return Err(Fault::forbidden("you are not joined to the room"));
        }
        let missing = || Fault::not_found("the room has no such event to redact");
        let target_id = event.redacts.as_ref().ok_or_else(missing)?;
        let position = match room.position_of(cx, target_id) {
            Ok(position) => position.ok_or_else(missing)?,
            Err(read) => return Ok(Found::Read(read)),
        };
        match cx.log(0) {
            None => Ok(Found::Read(read_event(position))),
            Some(rows) => {
                let row = rows.first().ok_or_else(missing)?;
                Ok(Found::Target(position, Box::new(record::decode(&row.value)?)))
            }
        }
    }

    fn apply_redaction(
        &mut self,
        sender: &OwnedUserId,
        transaction: Option<Transaction>,
        event: &NewEvent,
        position: Position,
        target: &EventRecord,
        cx: &mut Cx,
    ) -> Result<Decision<Self>, Fault> {
        let config = self.config.clone();
        let room = self.room()?;
        let power = room.state.power()?;
        let target_pdu = to_pdu(target, room.state.version)?;
        if !may_request_redaction(sender, &target_pdu, &power) {
            return Err(Fault::forbidden("you may redact only your own events in this room"));
        }
        let redaction = room.author(&config, cx, sender, event)?;
        let reply = room.accept(&config, cx, &redaction, transaction)?;
        if redaction_applies(&redaction, &target_pdu, &power) {
            room.rewrite(cx, position, target, &target_pdu, &redaction)?;
        }
        Ok(Decision::Commit(reply))
    }
}

enum Found {
    Answered(Decision<RoomEntity>),
    Read(cofactor_entity::Read),
    Target(Position, Box<EventRecord>),
}

impl Room {
    /// Puts what remains of a redacted event wherever the event stands.
    fn rewrite(
        &mut self,
        cx: &mut Cx,
        position: Position,
        target: &EventRecord,
        target_pdu: &Pdu,
        redaction: &Pdu,
    ) -> Result<(), Fault> {
        let redacted = redact_pdu(target_pdu, redaction).map_err(|error| Fault::internal(error.to_string()))?;
        let because = redaction.client_json().map_err(|error| Fault::internal(error.to_string()))?;
        let mut unsigned = br#""redacted_because":"#.to_vec();
        unsigned.extend_from_slice(&because);
        let annotations = Annotations {
            transaction: target.transaction.clone(),
            totals: target.totals,
            notify: target.notify,
            highlight: target.highlight,
            unsigned: unsigned.into(),
        };
        let pdu = Arc::new(redacted.pdu);
        let event = EventRecord {
            extremities: target.extremities.clone(),
            hidden: target.hidden,
            ..to_record(&pdu, annotations)?
        };
        cx.append(class::TIMELINE, &Arc::from(""), position, record::encode(&event)?);
        if self.state.replace(&pdu)
            && let Some(state_key) = &event.state_key
        {
            let current = CurrentState { position, event: event.clone() };
            let clustering = key![event.event_type.as_str(), state_key.as_str()];
            cx.put(&tables::ROOM_STATE, key![cx.id()], clustering, record::encode(&current)?);
        }
        let at = cx.allocate()?;
        cx.publish(class::REWRITTEN, at, record::encode(&Rewritten { position })?);
        Ok(())
    }
}
