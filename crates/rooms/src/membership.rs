//! Changes of membership. <https://spec.matrix.org/v1.19/client-server-api/#room-membership>

use bytes::Bytes;
use cofactor_entity::{Cx, Decision, Read};
use cofactor_room::parse_client_content;
use cofactor_store::{key, record, tables};
use cofactor_types::Fault;
use cofactor_wire::room::{CurrentState, MembershipAction, NewEvent, RoomCommand, RoomReply};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedUserId, UserId,
    events::{StateEventType, room::member::MembershipState},
};

use crate::entity::{Room, RoomEntity};

/// Rooms of a restricted join rule that are looked at.
const ALLOWED_ROOMS_MAX: usize = 50;

impl RoomEntity {
    pub(crate) fn membership(
        &mut self,
        sender: OwnedUserId,
        target: OwnedUserId,
        action: MembershipAction,
        reason: Option<String>,
        content: Bytes,
        cx: &mut Cx,
    ) -> Decision<Self> {
        let reads = match &self.room {
            Some(room) if action == MembershipAction::Join => room.restricted_reads(&sender, cx),
            _ => Vec::new(),
        };
        if !reads.is_empty() {
            return Decision::Need(RoomCommand::Membership { sender, target, action, reason, content }, reads);
        }
        Decision::from_result(self.try_membership(&sender, &target, action, reason, &content, cx))
    }

    fn try_membership(
        &mut self,
        sender: &OwnedUserId,
        target: &OwnedUserId,
        action: MembershipAction,
        reason: Option<String>,
        content: &[u8],
        cx: &mut Cx,
    ) -> Result<Decision<Self>, Fault> {
        let config = self.config.clone();
        let room = self.room()?;
        let before = room.state.membership(target);
        if let Some(done) = room.nothing_to_do(target, action, &before) {
            return Ok(Decision::Reply(Ok(done)));
        }
        check_before(action, &before)?;
        let mut content = parse_client_content(content).map_err(|error| Fault::bad_json(error.to_string()))?;
        let membership = membership_after(action);
        content.insert("membership".to_owned(), CanonicalJsonValue::String(membership.to_string()));
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), CanonicalJsonValue::String(reason));
        }
        if action == MembershipAction::Join
            && let Some(authoriser) = room.authoriser(sender, &before, cx)?
        {
            let name = "join_authorised_via_users_server".to_owned();
            content.insert(name, CanonicalJsonValue::String(authoriser.to_string()));
        }
        let event = member_event(target, &content)?;
        let pdu = room.author(&config, cx, sender, &event)?;
        let reply = room.accept(&config, cx, &pdu, None, None)?;
        Ok(Decision::Commit(reply))
    }

    /// A member's new profile goes into its member event.
    pub(crate) fn profile(&mut self, user_id: &OwnedUserId, content: &[u8], cx: &mut Cx) -> Decision<Self> {
        Decision::from_result(self.try_profile(user_id, content, cx))
    }

    fn try_profile(&mut self, user_id: &OwnedUserId, content: &[u8], cx: &mut Cx) -> Result<Decision<Self>, Fault> {
        let config = self.config.clone();
        let Some(room) = &mut self.room else { return Ok(Decision::Reply(Ok(RoomReply::Done))) };
        let profile = parse_client_content(content).map_err(|error| Fault::bad_json(error.to_string()))?;
        let Some(member) = room.state.event(&StateEventType::RoomMember, user_id.as_str()) else {
            return Ok(Decision::Reply(Ok(RoomReply::Done)));
        };
        if room.state.membership(user_id) != MembershipState::Join {
            return Ok(Decision::Reply(Ok(RoomReply::Done)));
        }
        let before = parse_client_content(member.pdu.content().get().as_bytes());
        let before = before.map_err(|error| Fault::internal(error.to_string()))?;
        let mut content = before.clone();
        for name in ["displayname", "avatar_url"] {
            match profile.get(name) {
                Some(value) if *value != CanonicalJsonValue::Null => content.insert(name.to_owned(), value.clone()),
                _ => content.remove(name),
            };
        }
        if content == before {
            return Ok(Decision::Reply(Ok(RoomReply::Done)));
        }
        // The authoriser of a restricted join speaks for the join alone.
        content.remove("join_authorised_via_users_server");
        content.remove("reason");
        let pdu = room.author(&config, cx, user_id, &member_event(user_id, &content)?)?;
        room.accept(&config, cx, &pdu, None, None)?;
        Ok(Decision::Commit(RoomReply::Done))
    }
}

impl Room {
    /// Asking again for what is the case already makes no event.
    fn nothing_to_do(&self, target: &UserId, action: MembershipAction, before: &MembershipState) -> Option<RoomReply> {
        let same = matches!(
            (action, before),
            (MembershipAction::Join, MembershipState::Join) | (MembershipAction::Ban, MembershipState::Ban)
        );
        let member = self.state.event(&StateEventType::RoomMember, target.as_str()).filter(|_| same)?;
        Some(RoomReply::Sent { event_id: member.pdu.event_id().to_owned(), position: member.position })
    }

    /// Rooms whose members may join by the restricted join rule.
    /// <https://spec.matrix.org/v1.19/client-server-api/#restricted-rooms>
    fn allowed_rooms(&self) -> Vec<String> {
        #[derive(serde::Deserialize)]
        struct JoinRules {
            join_rule: String,
            #[serde(default)]
            allow: Vec<Allow>,
        }
        #[derive(serde::Deserialize)]
        struct Allow {
            #[serde(default)]
            room_id: Option<String>,
            r#type: String,
        }
        let rules = self.state.event(&StateEventType::RoomJoinRules, "");
        let rules = rules.and_then(|event| serde_json::from_str::<JoinRules>(event.pdu.content().get()).ok());
        let Some(rules) = rules.filter(|rules| matches!(rules.join_rule.as_str(), "restricted" | "knock_restricted"))
        else {
            return Vec::new();
        };
        let allow = rules.allow.into_iter().filter(|allow| allow.r#type == "m.room_membership");
        allow.filter_map(|allow| allow.room_id).take(ALLOWED_ROOMS_MAX).collect()
    }

    /// What must be read to know whether `user_id` may join by the restricted rule.
    fn restricted_reads(&self, user_id: &UserId, cx: &Cx) -> Vec<Read> {
        if matches!(self.state.membership(user_id), MembershipState::Join | MembershipState::Invite) {
            return Vec::new();
        }
        let reads = self.allowed_rooms().into_iter().map(|room_id| {
            let (partition, clustering) = (key![room_id], key!["m.room.member", user_id.as_str()]);
            (partition, clustering)
        });
        reads
            .filter(|(partition, clustering)| cx.row(&tables::ROOM_STATE, partition, clustering).is_none())
            .map(|(partition, clustering)| Read::Row { table: &tables::ROOM_STATE, partition, clustering })
            .collect()
    }

    /// A member of this server that may invite and so vouches for a restricted join; `None` if none is needed.
    fn authoriser(
        &mut self,
        user_id: &UserId,
        before: &MembershipState,
        cx: &Cx,
    ) -> Result<Option<OwnedUserId>, Fault> {
        let allowed = self.allowed_rooms();
        if allowed.is_empty() || matches!(before, MembershipState::Join | MembershipState::Invite) {
            return Ok(None);
        }
        let is_member = |room_id: &String| {
            let row = cx.row(&tables::ROOM_STATE, &key![room_id.as_str()], &key!["m.room.member", user_id.as_str()]);
            let current = row.flatten().and_then(|value| record::decode::<CurrentState>(&value).ok());
            current.is_some_and(|current| joined_by(&current.event.json))
        };
        if !allowed.iter().any(is_member) {
            return Err(Fault::forbidden("you are a member of none of the rooms whose members may join"));
        }
        let power = self.state.power()?;
        let local = user_id.server_name();
        let mut members = self.state.members().filter_map(|member| UserId::parse(member.pdu.state_key()?).ok());
        let authoriser = members.find(|member| {
            member.server_name() == local
                && self.state.membership(member) == MembershipState::Join
                && power.may_invite(member)
        });
        authoriser.map(Some).ok_or_else(|| Fault::forbidden("no member of this server may let you in"))
    }
}

fn joined_by(json: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Member {
        content: Content,
    }
    #[derive(serde::Deserialize)]
    struct Content {
        membership: String,
    }
    serde_json::from_slice::<Member>(json).is_ok_and(|member| member.content.membership == "join")
}

/// The state of affairs that each verb presupposes, where the authorisation rules alone would do something else.
fn check_before(action: MembershipAction, before: &MembershipState) -> Result<(), Fault> {
    let refused = match (action, before) {
        (MembershipAction::Unban, before) if *before != MembershipState::Ban => Some("the user is not banned"),
        (MembershipAction::Kick, MembershipState::Ban) => Some("the user is banned; lift the ban instead"),
        (MembershipAction::Kick, MembershipState::Leave) => Some("the user is not in the room"),
        (MembershipAction::Invite, MembershipState::Join) => Some("the user is in the room already"),
        (MembershipAction::Leave, MembershipState::Leave) => Some("you are not in the room"),
        _ => None,
    };
    refused.map_or(Ok(()), |message| Err(Fault::forbidden(message)))
}

fn membership_after(action: MembershipAction) -> MembershipState {
    match action {
        MembershipAction::Join => MembershipState::Join,
        MembershipAction::Invite => MembershipState::Invite,
        MembershipAction::Ban => MembershipState::Ban,
        MembershipAction::Knock => MembershipState::Knock,
        MembershipAction::Leave | MembershipAction::Kick | MembershipAction::Unban => MembershipState::Leave,
    }
}

pub(crate) fn member_event(target: &UserId, content: &CanonicalJsonObject) -> Result<NewEvent, Fault> {
    let content = serde_json::to_vec(content).map_err(|error| Fault::internal(error.to_string()))?;
    Ok(NewEvent {
        event_type: StateEventType::RoomMember.to_string(),
        state_key: Some(target.to_string()),
        content: content.into(),
        redacts: None,
    })
}
