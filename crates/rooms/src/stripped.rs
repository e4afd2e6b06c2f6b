//! What a user hears of a room through its own list.

use cofactor_entity::Cx;
use cofactor_room::Pdu;
use cofactor_types::{EntityId, Fault, Position};
use cofactor_wire::{
    encode,
    user::{RoomEntry, UserDelivery},
};
use ruma::{
    UserId,
    events::{StateEventType, room::member::MembershipState},
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    entity::RoomsConfig,
    state::{State, membership_of},
};

/// State that an invited or knocking user may see.
/// <https://spec.matrix.org/v1.19/client-server-api/#stripped-state>
const STRIPPED: [StateEventType; 7] = [
    StateEventType::RoomCreate,
    StateEventType::RoomJoinRules,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomName,
    StateEventType::RoomAvatar,
    StateEventType::RoomTopic,
    StateEventType::RoomEncryption,
];

/// The stripped state of one user may be this large; beyond it only what identifies the room is told.
const STRIPPED_BYTES_MAX: usize = 128 << 10;

#[derive(Serialize)]
struct StrippedEvent<'a> {
    content: &'a RawValue,
    sender: &'a UserId,
    state_key: &'a str,
    r#type: String,
}

impl<'a> StrippedEvent<'a> {
    fn of(pdu: &'a Pdu) -> Self {
        Self {
            content: pdu.content(),
            sender: pdu.sender(),
            state_key: pdu.state_key().unwrap_or_default(),
            r#type: pdu.event_type().to_string(),
        }
    }
}

/// Tells a local user of its membership.
pub(crate) fn deliver_membership(
    config: &RoomsConfig,
    cx: &mut Cx,
    state: &State,
    pdu: &Pdu,
    position: Position,
) -> Result<(), Fault> {
    let Some(user_id) = pdu.state_key().and_then(|key| UserId::parse(key).ok()) else { return Ok(()) };
    if !config.is_local(&user_id) {
        return Ok(());
    }
    let membership = membership_of(pdu);
    let stripped_state = match membership {
        MembershipState::Invite | MembershipState::Knock => stripped_state(state, pdu)?,
        _ => bytes::Bytes::new(),
    };
    let entry = RoomEntry {
        room_id: pdu.room_id().to_owned(),
        was_joined: membership == MembershipState::Join,
        membership,
        room_position: position,
        event_id: pdu.event_id().to_owned(),
        sender: pdu.sender().to_owned(),
        stripped_state,
        forgotten: false,
        position: Position::ZERO,
        since: Position::ZERO,
        since_room: position,
    };
    cx.deliver(EntityId::user(&user_id), encode(&UserDelivery::Membership(Box::new(entry)))?);
    Ok(())
}

fn stripped_state(state: &State, member: &Pdu) -> Result<bytes::Bytes, Fault> {
    let mut events: Vec<_> = STRIPPED.iter().filter_map(|kind| state.event(kind, "")).map(|one| &*one.pdu).collect();
    if let Some(sender) = state.event(&StateEventType::RoomMember, member.sender().as_str())
        && sender.pdu.event_id() != member.event_id()
    {
        events.push(&sender.pdu);
    }
    events.push(member);
    let encode = |events: &[&Pdu]| {
        let stripped: Vec<_> = events.iter().map(|event| StrippedEvent::of(event)).collect();
        serde_json::to_vec(&stripped).map_err(|error| Fault::internal(error.to_string()))
    };
    let mut json = encode(&events)?;
    if json.len() > STRIPPED_BYTES_MAX {
        let create = events.first().copied();
        let least: Vec<_> = create.into_iter().chain([member]).collect();
        json = encode(&least)?;
    }
    Ok(json.into())
}
