//! The current state of a room, in memory.

use std::{cell::OnceCell, collections::BTreeMap, sync::Arc};

use cofactor_room::{Pdu, PowerLevels, RoomVersion, StateView};
use cofactor_types::{Fault, Position};
use cofactor_wire::room::Summary;
use ruma::{
    OwnedUserId, UserId,
    events::{StateEventType, room::member::MembershipState},
};

/// Heroes kept: five are shown, and each member leaves itself out.
const HEROES_MAX: usize = 6;

/// A state event and where it stands in the timeline.
#[derive(Clone, Debug)]
pub(crate) struct StateEvent {
    pub(crate) pdu: Arc<Pdu>,
    pub(crate) position: Position,
}

/// The current state.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) version: &'static RoomVersion,
    events: BTreeMap<StateEventType, BTreeMap<Box<str>, StateEvent>>,
    /// Read when they are asked for first.
    power_levels: OnceCell<Arc<PowerLevels>>,
    joined: u64,
    invited: u64,
    heroes: Vec<OwnedUserId>,
}

impl State {
    pub(crate) fn new(version: &'static RoomVersion) -> Self {
        Self {
            version,
            events: BTreeMap::new(),
            power_levels: OnceCell::new(),
            joined: 0,
            invited: 0,
            heroes: Vec::new(),
        }
    }

    pub(crate) fn event(&self, event_type: &StateEventType, state_key: &str) -> Option<&StateEvent> {
        self.events.get(event_type)?.get(state_key)
    }

    /// Sets one key and returns what was there.
    pub(crate) fn set(&mut self, pdu: &Arc<Pdu>, position: Position) -> Option<StateEvent> {
        let (event_type, state_key) = pdu.state_slot()?;
        self.count(&event_type, state_key, -1);
        let event = StateEvent { pdu: Arc::clone(pdu), position };
        let before = self.events.entry(event_type.clone()).or_default().insert(state_key.into(), event);
        self.count(&event_type, state_key, 1);
        if event_type == StateEventType::RoomMember {
            self.note_hero(state_key, pdu);
        }
        if matches!(event_type, StateEventType::RoomPowerLevels | StateEventType::RoomCreate) {
            self.power_levels.take();
        }
        before
    }

    /// Replaces the content of a current event after its redaction.
    pub(crate) fn replace(&mut self, pdu: &Arc<Pdu>) -> bool {
        let Some((event_type, state_key)) = pdu.state_slot() else { return false };
        match self.event(&event_type, state_key) {
            Some(current) if current.pdu.event_id() == pdu.event_id() => {
                let position = current.position;
                self.set(pdu, position);
                true
            }
            _ => false,
        }
    }

    fn count(&mut self, event_type: &StateEventType, state_key: &str, by: i64) {
        if *event_type != StateEventType::RoomMember {
            return;
        }
        let membership = self.event(event_type, state_key).map(|event| membership_of(&event.pdu));
        let counter = match membership {
            Some(MembershipState::Join) => &mut self.joined,
            Some(MembershipState::Invite) => &mut self.invited,
            _ => return,
        };
        *counter = counter.saturating_add_signed(by);
    }

    /// Keeps the heroes: the first members, without looking at all of them unless one leaves.
    fn note_hero(&mut self, state_key: &str, pdu: &Pdu) {
        let Ok(user_id) = UserId::parse(state_key) else { return };
        let is_in = |pdu: &Pdu| matches!(membership_of(pdu), MembershipState::Join | MembershipState::Invite);
        let known = self.heroes.iter().position(|hero| *hero == user_id);
        match (is_in(pdu), known) {
            (true, None) if self.heroes.len() < HEROES_MAX => self.heroes.push(user_id),
            (false, Some(index)) => {
                self.heroes.remove(index);
                let more = self.members().filter(|member| is_in(&member.pdu));
                let more = more.filter_map(|member| UserId::parse(member.pdu.state_key()?).ok());
                let more: Vec<_> = more.filter(|user_id| !self.heroes.contains(user_id)).take(1).collect();
                self.heroes.extend(more);
            }
            _ => {}
        }
    }

    /// The room at a glance, for `/sync`.
    pub(crate) fn summary(&self, position: Position) -> Summary {
        let mut heroes = self.heroes.clone();
        if heroes.len() <= 1 {
            // Nobody else is there: the room is named by those who were.
            let all = self.members().filter_map(|member| UserId::parse(member.pdu.state_key()?).ok());
            let others: Vec<_> = all.filter(|user_id| !heroes.contains(user_id)).take(HEROES_MAX - 1).collect();
            heroes.extend(others);
        }
        Summary { joined: self.joined, invited: self.invited, heroes, position }
    }

    pub(crate) fn joined(&self) -> u64 {
        self.joined
    }

    pub(crate) fn invited(&self) -> u64 {
        self.invited
    }

    pub(crate) fn membership(&self, user_id: &UserId) -> MembershipState {
        self.event(&StateEventType::RoomMember, user_id.as_str())
            .map_or(MembershipState::Leave, |event| membership_of(&event.pdu))
    }

    /// All member events.
    pub(crate) fn members(&self) -> impl Iterator<Item = &StateEvent> {
        self.events.get(&StateEventType::RoomMember).into_iter().flat_map(BTreeMap::values)
    }

    pub(crate) fn create(&self) -> Result<&Arc<Pdu>, Fault> {
        let create = self.event(&StateEventType::RoomCreate, "");
        create.map(|event| &event.pdu).ok_or_else(|| Fault::internal("the room has no create event"))
    }

    /// Who may do what.
    pub(crate) fn power(&self) -> Result<Arc<PowerLevels>, Fault> {
        if let Some(levels) = self.power_levels.get() {
            return Ok(Arc::clone(levels));
        }
        let power_levels = self.event(&StateEventType::RoomPowerLevels, "").map(|event| &*event.pdu);
        let levels = PowerLevels::from_state(self.create()?, power_levels)
            .map(Arc::new)
            .map_err(|error| Fault::internal(format!("the room's power levels cannot be read: {error}")))?;
        Ok(Arc::clone(self.power_levels.get_or_init(|| levels)))
    }
}

impl StateView for State {
    fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<Arc<Pdu>> {
        self.event(event_type, state_key).map(|event| Arc::clone(&event.pdu))
    }
}

/// The membership that a member event says.
pub(crate) fn membership_of(pdu: &Pdu) -> MembershipState {
    pdu.content_string("membership").map_or(MembershipState::Leave, MembershipState::from)
}
