//! The public directory: the room writes what is said of it there.
//! <https://spec.matrix.org/v1.19/client-server-api/#published-room-directory>

use std::sync::Arc;

use bytes::Bytes;
use cofactor_entity::{Cx, Decision};
use cofactor_room::{Pdu, PowerLevels};
use cofactor_store::{key, record, tables};
use cofactor_types::Fault;
use cofactor_wire::room::{PublicRoom, RoomReply};
use ruma::{
    UserId,
    events::{StateEventType, room::member::MembershipState},
};

use crate::entity::{Room, RoomEntity};

/// The list of published rooms; the only one so far.
pub(crate) const PUBLIC_LIST: &str = "public";

impl RoomEntity {
    /// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3directorylistroomroomid>
    pub(crate) fn set_directory(&mut self, user_id: &UserId, public: bool, cx: &mut Cx) -> Decision<Self> {
        Decision::from_result(self.try_set_directory(user_id, public, cx))
    }

    fn try_set_directory(&mut self, user_id: &UserId, public: bool, cx: &mut Cx) -> Result<Decision<Self>, Fault> {
        self.may_alias(user_id)?;
        self.room()?.publish(public, cx)?;
        Ok(Decision::Commit(RoomReply::Done))
    }

    /// Who may say by what name the room is known.
    pub(crate) fn may_alias(&mut self, user_id: &UserId) -> Result<RoomReply, Fault> {
        let room = self.room()?;
        let power: Arc<PowerLevels> = room.state.power()?;
        let canonical_alias = StateEventType::RoomCanonicalAlias.to_string().as_str().into();
        if power.may_send(user_id, &canonical_alias, true) {
            Ok(RoomReply::Done)
        } else {
            Err(Fault::forbidden("you may not change the names of this room"))
        }
    }
}

impl RoomEntity {
    /// Whether a member may set the state of a type.
    pub(crate) fn may_set(&mut self, user_id: &UserId, event_type: &str) -> Result<RoomReply, Fault> {
        let room = self.room()?;
        let power: Arc<PowerLevels> = room.state.power()?;
        let is_joined = room.state.membership(user_id) == MembershipState::Join;
        if is_joined && power.may_send(user_id, &event_type.into(), true) {
            Ok(RoomReply::Done)
        } else {
            Err(Fault::forbidden(format!("you may not set {event_type} in this room")))
        }
    }
}

impl Room {
    /// Shows the room in the directory, or hides it.
    pub(crate) fn publish(&mut self, public: bool, cx: &mut Cx) -> Result<(), Fault> {
        self.public = public;
        if public {
            cx.put(&tables::DIRECTORY, key![PUBLIC_LIST], key![cx.id()], self.public_card()?);
        } else {
            cx.delete(&tables::DIRECTORY, key![PUBLIC_LIST], key![cx.id()]);
        }
        Ok(())
    }

    /// What the directory says follows the state.
    pub(crate) fn republish(&self, event: &Pdu, cx: &mut Cx) -> Result<(), Fault> {
        if self.public && event.state_slot().is_some_and(|(event_type, _)| is_shown(&event_type)) {
            cx.put(&tables::DIRECTORY, key![PUBLIC_LIST], key![cx.id()], self.public_card()?);
        }
        Ok(())
    }

    fn public_card(&self) -> Result<Bytes, Fault> {
        let field = |event_type: StateEventType, field: &str| {
            let event = self.state.event(&event_type, "")?;
            event.pdu.content_string(field).filter(|value| !value.is_empty())
        };
        let says = |event_type, name, value: &str| field(event_type, name).as_deref() == Some(value);
        let card = PublicRoom {
            name: field(StateEventType::RoomName, "name"),
            topic: field(StateEventType::RoomTopic, "topic"),
            canonical_alias: field(StateEventType::RoomCanonicalAlias, "alias"),
            avatar_url: field(StateEventType::RoomAvatar, "url"),
            join_rule: field(StateEventType::RoomJoinRules, "join_rule"),
            room_type: field(StateEventType::RoomCreate, "type"),
            world_readable: says(StateEventType::RoomHistoryVisibility, "history_visibility", "world_readable"),
            guest_can_join: says(StateEventType::RoomGuestAccess, "guest_access", "can_join"),
            joined: self.state.joined(),
        };
        Ok(record::encode(&card)?)
    }
}

fn is_shown(event_type: &StateEventType) -> bool {
    matches!(
        event_type,
        StateEventType::RoomMember
            | StateEventType::RoomName
            | StateEventType::RoomTopic
            | StateEventType::RoomCanonicalAlias
            | StateEventType::RoomAvatar
            | StateEventType::RoomJoinRules
            | StateEventType::RoomHistoryVisibility
            | StateEventType::RoomGuestAccess
    )
}
