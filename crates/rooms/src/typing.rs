//! Typing: on the bus only. <https://spec.matrix.org/v1.19/client-server-api/#typing-notifications>

use std::{collections::BTreeMap, time::Duration};

use cofactor_entity::{Cx, Decision};
use cofactor_types::Fault;
use cofactor_wire::{
    encode,
    room::{RoomReply, Typing, class},
};
use ruma::{OwnedUserId, events::room::member::MembershipState};

use crate::entity::RoomEntity;

/// The longest a user types without saying so again, in milliseconds.
const TIMEOUT_MS_MAX: u64 = 120_000;

/// Users shown as typing at once.
const TYPING_MAX: usize = 100;

/// Who types, and until when in milliseconds since the Unix epoch.
pub(crate) type TypingUsers = BTreeMap<OwnedUserId, u64>;

impl RoomEntity {
    pub(crate) fn typing(&mut self, user_id: OwnedUserId, timeout_ms: u64, cx: &mut Cx) -> Decision<Self> {
        Decision::from_result(self.try_typing(user_id, timeout_ms, cx))
    }

    fn try_typing(&mut self, user_id: OwnedUserId, timeout_ms: u64, cx: &mut Cx) -> Result<Decision<Self>, Fault> {
        let room = self.room()?;
        if room.state.membership(&user_id) != MembershipState::Join {
            return Err(Fault::forbidden("you are not joined to the room"));
        }
        let now_ms = cx.now_ms();
        let changed = if timeout_ms == 0 {
            room.typing.remove(&user_id).is_some()
        } else if room.typing.len() < TYPING_MAX || room.typing.contains_key(&user_id) {
            room.typing.insert(user_id, now_ms + timeout_ms.min(TIMEOUT_MS_MAX)).is_none()
        } else {
            false
        };
        if changed {
            self.say_typing(cx)?;
        }
        self.arm(cx);
        Ok(Decision::Commit(RoomReply::Done))
    }

    pub(crate) fn typing_tick(&mut self, cx: &mut Cx) {
        let now_ms = cx.now_ms();
        let Some(room) = &mut self.room else { return };
        let before = room.typing.len();
        room.typing.retain(|_, end_ms| *end_ms > now_ms);
        if room.typing.len() != before
            && let Err(error) = self.say_typing(cx)
        {
            tracing::debug!(%error, "typing is not published; the next change says it");
        }
        self.arm(cx);
    }

    fn arm(&self, cx: &mut Cx) {
        let next = self.room.as_ref().and_then(|room| room.typing.values().min().copied());
        if let Some(next_ms) = next {
            cx.tick_in(Duration::from_millis(next_ms.saturating_sub(cx.now_ms()).max(1)));
        }
    }

    fn say_typing(&self, cx: &mut Cx) -> Result<(), Fault> {
        let Some(room) = &self.room else { return Ok(()) };
        let position = cx.allocate()?;
        let payload = encode(&Typing { user_ids: room.typing.keys().cloned().collect() })?;
        cx.publish(class::TYPING, position, payload);
        Ok(())
    }
}
