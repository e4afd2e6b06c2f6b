//! Redactions: the event that asks, and the rewriting of its target.
//! <https://spec.matrix.org/v1.19/client-server-api/#redactions>

use std::sync::Arc;

use cofactor_entity::{Cx, Decision, Read};
use cofactor_room::{Pdu, may_request_redaction, redact_pdu, redaction_applies};
use cofactor_store::{key, record, tables};
use cofactor_types::{Fault, Position};
use cofactor_wire::room::{CurrentState, EventRecord, NewEvent, Rewritten, RoomCommand, Transaction, class};
use ruma::{OwnedUserId, events::room::member::MembershipState};

use crate::{
    entity::{Room, RoomEntity},
    receipts::read_event,
    record::{Annotations, to_pdu, to_record},
    relate::Unlink,
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
            Ok(Found::Read(reads)) => Decision::Need(RoomCommand::Send { sender, transaction, event }, reads),
            Ok(Found::Target(target)) => {
                Decision::from_result(self.apply_redaction(&sender, transaction, &event, *target, cx))
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
            Err(read) => return Ok(Found::Read(vec![read])),
        };
        let Some(rows) = cx.log(0) else { return Ok(Found::Read(vec![read_event(position)])) };
        let event: EventRecord = record::decode(&rows.first().ok_or_else(missing)?.value)?;
        Ok(match room.find_unlink(cx, &event)? {
            Ok(unlink) => Found::Target(Box::new(Target { position, event, unlink })),
            Err(reads) => Found::Read(reads),
        })
    }

    fn apply_redaction(
        &mut self,
        sender: &OwnedUserId,
        transaction: Option<Transaction>,
        event: &NewEvent,
        target: Target,
        cx: &mut Cx,
    ) -> Result<Decision<Self>, Fault> {
        let config = self.config.clone();
        let room = self.room()?;
        let power = room.state.power()?;
        let target_pdu = to_pdu(&target.event, room.state.version)?;
        if !may_request_redaction(sender, &target_pdu, &power) {
            return Err(Fault::forbidden("you may redact only your own events in this room"));
        }
        let redaction = room.author(&config, cx, sender, event)?;
        let applies = redaction_applies(&redaction, &target_pdu, &power);
        if applies {
            // Said before the redaction: whoever hears of it has given up what it remembers of the target.
            let at = cx.allocate()?;
            cx.publish(class::REWRITTEN, at, record::encode(&Rewritten { position: target.position })?);
        }
        let reply = room.accept(&config, cx, &redaction, transaction, None)?;
        if applies {
            room.rewrite(cx, target.position, &target.event, &target_pdu, &redaction)?;
            if let Some(unlink) = target.unlink {
                unlink.stage(cx, &target.event, target.position)?;
            }
        }
        Ok(Decision::Commit(reply))
    }
}

enum Found {
    Answered(Decision<RoomEntity>),
    Read(Vec<Read>),
    Target(Box<Target>),
}

/// The event to redact, and what it says about another.
struct Target {
    position: Position,
    event: EventRecord,
    unlink: Option<Unlink>,
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
            main: target.main,
            thread: target.thread.clone(),
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
        Ok(())
    }
}
