//! The first events of a room.

use std::sync::Arc;

use cofactor_entity::{Cx, Decision};
use cofactor_room::{Pdu, Verified, parse_pdu_object, room_version};
use cofactor_types::{Fault, Position};
use cofactor_wire::room::{CreateRoom, Totals};
use ruma::OwnedUserId;

use crate::{
    entity::{Room, RoomEntity, RoomsConfig},
    membership::member_event,
    recent::Recent,
    send::auth_fault,
    state::State,
    transactions::Transactions,
    typing::TypingUsers,
};

impl RoomEntity {
    pub(crate) fn create(&mut self, create: CreateRoom, cx: &mut Cx) -> Decision<Self> {
        Decision::from_result(self.try_create(create, cx))
    }

    /// All first events go into the log together, so that a room exists whole or not at all.
    fn try_create(&mut self, create: CreateRoom, cx: &mut Cx) -> Result<Decision<Self>, Fault> {
        if self.room.is_some() {
            return Err(Fault::new(cofactor_types::ErrorClass::Conflict, "M_ROOM_IN_USE", "the room exists already"));
        }
        let config = self.config.clone();
        let version = room_version(create.room_version.as_str()).ok_or_else(|| {
            Fault::new(cofactor_types::ErrorClass::Invalid, "M_UNSUPPORTED_ROOM_VERSION", "unknown room version")
        })?;
        let object = parse_pdu_object(&create.create_event).map_err(|error| Fault::bad_json(error.to_string()))?;
        let pdu = Pdu::from_canonical(object, version).map_err(|error| Fault::bad_json(error.to_string()))?;
        if pdu.room_id().as_str() != self.id.as_str() || pdu.sender() != create.creator {
            return Err(Fault::invalid("the create event is not this room's"));
        }
        let pdu = authorise_create(pdu)?;
        let mut room = Room {
            state: State::new(version),
            extremities: Vec::new(),
            depth: 0,
            head: Position::ZERO,
            totals: Totals::default(),
            main: Totals::default(),
            public: false,
            transactions: Transactions::default(),
            recent: Recent::default(),
            typing: TypingUsers::default(),
        };
        let reply = room.accept(&config, cx, &pdu, None, None)?;
        room.first_events(&config, &create, cx)?;
        if create.public {
            room.publish(true, cx)?;
        }
        self.room = Some(room);
        Ok(Decision::Commit(reply))
    }
}

impl Room {
    fn first_events(&mut self, config: &RoomsConfig, create: &CreateRoom, cx: &mut Cx) -> Result<(), Fault> {
        for event in &create.events {
            let pdu = self.author(config, cx, &create.creator, event)?;
            self.accept(config, cx, &pdu, None, None)?;
        }
        for (invited, content) in &create.invites {
            let pdu = self.invite(config, create, invited, content, cx)?;
            self.accept(config, cx, &pdu, None, None)?;
        }
        Ok(())
    }

    fn invite(
        &self,
        config: &RoomsConfig,
        create: &CreateRoom,
        invited: &OwnedUserId,
        content: &[u8],
        cx: &Cx,
    ) -> Result<Arc<Pdu>, Fault> {
        let content = cofactor_room::parse_client_content(content);
        let content = content.map_err(|error| Fault::bad_json(error.to_string()))?;
        self.author(config, cx, &create.creator, &member_event(invited, &content)?)
    }
}

/// The create event rests on no other: only the rules that do not depend on a state speak about it.
fn authorise_create(pdu: Pdu) -> Result<Arc<Pdu>, Fault> {
    let none = |_: &ruma::EventId| None;
    let cited = Verified::local(pdu).check_auth_events(None, &none).map_err(auth_fault)?;
    match cited.into_outlier() {
        cofactor_room::Outcome::Accepted(pdu) => Ok(pdu),
        cofactor_room::Outcome::SoftFailed { reason, .. } | cofactor_room::Outcome::Rejected { reason, .. } => {
            Err(auth_fault(reason))
        }
    }
}
