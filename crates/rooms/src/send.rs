//! Sending events: build, authorise, and stage all that an event says.

use std::sync::Arc;

use bytes::Bytes;
use cofactor_entity::{Cx, Decision, Read};
use cofactor_room::{
    AuthError, AuthorError, Class, Draft, EventRef, Outcome, Pdu, Verified, author, classify, next_depth,
    parse_client_content, select_auth_events,
};
use cofactor_store::{Key, key, record, tables};
use cofactor_types::{ErrorClass, Fault, Position};
use cofactor_wire::room::{
    CurrentState, EventRecord, InThread, KeyHistory, Mention, NewEvent, RoomCommand, RoomReply, StateChange,
    StateDelta, Transaction, class, state_sub,
};
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId, UInt, UserId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde_json::value::RawValue;

use crate::{
    entity::{Room, RoomEntity, RoomsConfig},
    record::{Annotations, to_record},
    relate::{Found, Link},
    state::membership_of,
    stripped::deliver_membership,
};

impl RoomEntity {
    pub(crate) fn send(
        &mut self,
        sender: OwnedUserId,
        transaction: Option<Transaction>,
        event: NewEvent,
        cx: &mut Cx,
    ) -> Decision<Self> {
        if event.event_type == "m.room.redaction" && event.redacts.is_some() {
            return self.redact(sender, transaction, event, cx);
        }
        match self.try_send(&sender, transaction.as_ref(), &event, cx) {
            Ok(Ok(decision)) => decision,
            Ok(Err(reads)) => Decision::Need(RoomCommand::Send { sender, transaction, event }, reads),
            Err(fault) => Decision::Reply(Err(fault)),
        }
    }

    fn try_send(
        &mut self,
        sender: &OwnedUserId,
        transaction: Option<&Transaction>,
        event: &NewEvent,
        cx: &mut Cx,
    ) -> Result<Found<Decision<Self>>, Fault> {
        let config = self.config.clone();
        let room = self.room()?;
        if let Some(done) = room.repeated(sender, &event.event_type, transaction) {
            return Ok(Ok(Decision::Reply(Ok(done))));
        }
        if event.event_type == "m.room.member" {
            return Err(Fault::forbidden("memberships are changed by the membership endpoints"));
        }
        if event.event_type == "m.room.create" {
            return Err(Fault::forbidden("a room is created once"));
        }
        if let Some(unchanged) = room.unchanged(sender, event) {
            return Ok(Ok(Decision::Reply(Ok(unchanged))));
        }
        // Asked first, so that an event is built once; of those who may not send nobody learns what the room has.
        let is_joined = room.state.membership(sender) == MembershipState::Join;
        let link = match if is_joined { room.find_link(cx, sender, event)? } else { Ok(None) } {
            Ok(link) => link,
            Err(reads) => return Ok(Err(reads)),
        };
        let pdu = room.author(&config, cx, sender, event)?;
        let reply = room.accept(&config, cx, &pdu, transaction.cloned(), link)?;
        Ok(Ok(Decision::Commit(reply)))
    }
}

impl Room {
    /// The answer that a transaction had before.
    pub(crate) fn repeated(
        &self,
        sender: &OwnedUserId,
        event_type: &str,
        transaction: Option<&Transaction>,
    ) -> Option<RoomReply> {
        let (event_id, position) = self.transactions.get(sender, event_type, transaction?)?;
        Some(RoomReply::Sent { event_id, position })
    }

    /// A state event that says what stands already makes no new event.
    fn unchanged(&self, sender: &UserId, event: &NewEvent) -> Option<RoomReply> {
        let state_key = event.state_key.as_deref()?;
        let current = self.state.event(&event.event_type.as_str().into(), state_key)?;
        let same = current.pdu.sender() == sender
            && parse_client_content(&event.content).ok()?
                == parse_client_content(current.pdu.content().get().as_bytes()).ok()?;
        let event_id = current.pdu.event_id().to_owned();
        same.then_some(RoomReply::Sent { event_id, position: current.position })
    }

    /// Builds, signs and authorises an event at the end of the room.
    pub(crate) fn author(
        &self,
        config: &RoomsConfig,
        cx: &Cx,
        sender: &UserId,
        event: &NewEvent,
    ) -> Result<Arc<Pdu>, Fault> {
        let room_id = cx.id().room_id().ok_or_else(|| Fault::invalid("not a room id"))?;
        let content = parse_client_content(&event.content).map_err(|error| Fault::bad_json(error.to_string()))?;
        let raw: &RawValue =
            serde_json::from_slice(&event.content).map_err(|error| Fault::bad_json(error.to_string()))?;
        let event_type = TimelineEventType::from(event.event_type.as_str());
        let version = self.state.version;
        let state_key = event.state_key.as_deref();
        let auth_events = select_auth_events(version, &event_type, sender, state_key, raw, &self.state);
        let auth_events = auth_events.map_err(author_fault)?;
        let auth_refs = auth_events.iter().map(|event| EventRef::to(event)).collect::<Result<Vec<_>, _>>();
        let auth_refs = auth_refs.map_err(|error| Fault::internal(error.to_string()))?;
        let localpart = if version.event_id_in_event() { cx.env().entropy().alphanumeric(18) } else { String::new() };
        let draft = Draft {
            room_id: Some(&room_id),
            sender,
            event_type: &event_type,
            state_key,
            content,
            redacts: event.redacts.as_deref(),
            origin_server_ts: now(cx),
            prev_events: &self.extremities,
            auth_events: &auth_refs,
            depth: next_depth([self.depth]),
            unsigned: None,
            event_id_localpart: &localpart,
        };
        let pdu = author(version, draft, config.key_pair()).map_err(author_fault)?;
        self.authorise(pdu, &auth_events)
    }

    /// Local events take the same way in as all others; only their signature is known to be good.
    fn authorise(&self, pdu: Pdu, auth_events: &[Arc<Pdu>]) -> Result<Arc<Pdu>, Fault> {
        let create = self.state.create()?;
        // From room version 12 on the create event is not cited, but asked for all the same.
        let known =
            |event_id: &EventId| auth_events.iter().chain([create]).find(|event| event.event_id() == event_id).cloned();
        // Levels that cannot be read are for the rules to judge.
        let levels = self.state.power().ok();
        match Verified::local(pdu).judge_authored(&known, &self.state, levels.as_deref()) {
            Outcome::Accepted(pdu) => Ok(pdu),
            Outcome::SoftFailed { reason, .. } | Outcome::Rejected { reason, .. } => Err(auth_fault(reason)),
        }
    }

    /// Takes an authorised event into the room, and stages everything it says.
    pub(crate) fn accept(
        &mut self,
        config: &RoomsConfig,
        cx: &mut Cx,
        pdu: &Arc<Pdu>,
        transaction: Option<Transaction>,
        link: Option<Link>,
    ) -> Result<RoomReply, Fault> {
        let power = if self.state.create().is_ok() { Some(self.state.power()?) } else { None };
        let class = classify(pdu, power.as_deref());
        let position = cx.allocate()?;
        let before = if pdu.state_key().is_some() { self.state.set(pdu, position) } else { None };
        let unsigned = previous_content(before.as_ref().map(|event| &*event.pdu));
        let thread = link.as_ref().and_then(|link| link.in_thread(&class));
        let mut record = to_record(pdu, self.annotate(&class, transaction, thread, unsigned))?;
        let encoded = record::encode(&record)?;
        cx.append(class::TIMELINE, &Arc::from(""), position, encoded);
        let at = record::encode(&position.0)?;
        cx.put(&tables::EVENT_POSITIONS, key![cx.id()], key![pdu.event_id().as_str()], at);
        if let Some(state_key) = pdu.state_key() {
            let said = match pdu.event_type() {
                TimelineEventType::RoomMember => Some(membership_of(pdu).to_string()),
                TimelineEventType::RoomHistoryVisibility => pdu.content_string("history_visibility"),
                _ => None,
            };
            stage_state(cx, position, &record, state_key, before.map(|event| event.position), said)?;
        }
        self.republish(pdu, cx)?;
        self.stage_counts(cx, &class, &record, position)?;
        if let Some(link) = link {
            link.stage(cx, &record, position)?;
        }
        // Who hears of it shows it to clients.
        record.federation = Bytes::new();
        cx.publish(class::TIMELINE, position, record::encode(&record)?);
        if *pdu.event_type() == TimelineEventType::RoomMember {
            deliver_membership(config, cx, &self.state, pdu, position)?;
            let summary = record::encode(&self.state.summary(position))?;
            cx.put(&tables::ROOM_SUMMARIES, key![cx.id()], Key::EMPTY, summary);
        }
        self.extremities = vec![EventRef::to(pdu).map_err(|error| Fault::internal(error.to_string()))?];
        self.depth = pdu.depth();
        self.head = position;
        self.recent.note(&record, position);
        if let Some(transaction) = &record.transaction {
            let event_id = record.event_id.clone();
            self.transactions.note(&record.sender, &record.event_type, transaction, event_id, position);
        }
        Ok(RoomReply::Sent { event_id: record.event_id, position })
    }

    /// Counts an event of this class.
    fn annotate(
        &mut self,
        class: &Class,
        transaction: Option<Transaction>,
        thread: Option<InThread>,
        unsigned: Bytes,
    ) -> Annotations {
        let totals = [Some(&mut self.totals), thread.is_none().then_some(&mut self.main)];
        for totals in totals.into_iter().flatten() {
            totals.notify += u64::from(class.notify);
            totals.highlight += u64::from(class.highlight_room);
        }
        Annotations {
            transaction,
            totals: self.totals,
            main: self.main,
            thread,
            notify: class.notify,
            highlight: class.highlight_room,
            unsigned,
        }
    }

    /// Stages who is mentioned, and up to where the sender has read.
    fn stage_counts(&self, cx: &mut Cx, class: &Class, event: &EventRecord, position: Position) -> Result<(), Fault> {
        for user_id in class.mentions.iter().filter(|user_id| **user_id != event.sender) {
            if self.state.membership(user_id) == MembershipState::Join {
                let thread = event.thread.as_ref().map(|thread| thread.root.clone());
                let mention = Mention { highlight: true, counted: class.notify, thread };
                let clustering = key![user_id.as_str(), position];
                cx.put(&tables::MENTIONS, key![cx.id()], clustering, record::encode(&mention)?);
            }
        }
        for own in event.own_receipts(position).into_iter().flatten() {
            let clustering = key![own.user_id.as_str(), own.receipt_type.as_str(), own.thread_id.as_str()];
            cx.put(&tables::RECEIPTS, key![cx.id()], clustering, record::encode(&own)?);
        }
        Ok(())
    }

    /// Where an event stands, and the totals there; `Err` says what to read first.
    pub(crate) fn position_of(&self, cx: &Cx, event_id: &OwnedEventId) -> Result<Option<Position>, Read> {
        if let Some(known) = self.recent.get(event_id) {
            return Ok(Some(known.position));
        }
        let (partition, clustering) = (key![cx.id()], key![event_id.as_str()]);
        match cx.row(&tables::EVENT_POSITIONS, &partition, &clustering) {
            Some(found) => Ok(found.and_then(|value| record::decode::<u64>(&value).ok()).map(Position)),
            None => Err(Read::Row { table: &tables::EVENT_POSITIONS, partition, clustering }),
        }
    }
}

impl RoomEntity {
    pub(crate) fn locate(&mut self, event_id: OwnedEventId, cx: &mut Cx) -> Decision<Self> {
        let room = match self.room() {
            Ok(room) => room,
            Err(fault) => return Decision::Reply(Err(fault)),
        };
        match room.position_of(cx, &event_id) {
            Ok(position) => Decision::Reply(Ok(RoomReply::Located { position })),
            Err(read) => Decision::Need(RoomCommand::Locate { event_id }, vec![read]),
        }
    }
}

/// The rows by which readers find the state: now, by change, and by key.
fn stage_state(
    cx: &mut Cx,
    position: Position,
    event: &EventRecord,
    state_key: &str,
    before: Option<Position>,
    said: Option<String>,
) -> Result<(), Fault> {
    let change = StateChange {
        event_type: event.event_type.clone(),
        state_key: state_key.to_owned(),
        position: Some(position),
        before,
    };
    cx.append(class::STATE, &Arc::from(""), position, record::encode(&StateDelta { changes: vec![change] })?);
    let sub: Arc<str> = state_sub(&event.event_type, state_key).into();
    let history = KeyHistory { position: Some(position), value: said };
    cx.append(class::KEY_HISTORY, &sub, position, record::encode(&history)?);
    let current = CurrentState { position, event: event.clone() };
    let clustering = key![event.event_type.as_str(), state_key];
    cx.put(&tables::ROOM_STATE, key![cx.id()], clustering, record::encode(&current)?);
    Ok(())
}

/// `unsigned.prev_content` and its kin. <https://spec.matrix.org/v1.19/client-server-api/#room-event-format>
fn previous_content(before: Option<&Pdu>) -> Bytes {
    before.map_or_else(Bytes::new, |before| {
        let content = before.content().get();
        let text = format!(
            r#""prev_content":{content},"prev_sender":"{}","replaces_state":"{}""#,
            before.sender(),
            before.event_id()
        );
        Bytes::from(text)
    })
}

pub(crate) fn now(cx: &Cx) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(cx.now_ms()))
}

pub(crate) fn author_fault(error: AuthorError) -> Fault {
    match error {
        AuthorError::TooLarge { .. } | AuthorError::FieldTooLong { .. } => {
            Fault::new(ErrorClass::Invalid, "M_TOO_LARGE", error.to_string())
        }
        // The library that signs refuses large events by its sentence alone.
        AuthorError::Sign(message) if message.contains("larger than maximum") => {
            Fault::new(ErrorClass::Invalid, "M_TOO_LARGE", message)
        }
        AuthorError::TooDeep | AuthorError::Invalid(_) => Fault::bad_json(error.to_string()),
        AuthorError::InvalidReferences(_) | AuthorError::Sign(_) | AuthorError::Pdu(_) => {
            Fault::internal(error.to_string())
        }
    }
}

pub(crate) fn auth_fault(error: AuthError) -> Fault {
    match error {
        AuthError::Forbidden(_) => Fault::forbidden(error.to_string()),
        AuthError::Invalid(_) => Fault::forbidden(error.to_string()),
        AuthError::UnknownAuthEvent(_) => Fault::internal(error.to_string()),
    }
}
