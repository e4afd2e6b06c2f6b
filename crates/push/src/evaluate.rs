//! What rules say about an event.

use js_int::UInt;
use ruma::{
    OwnedRoomId, OwnedUserId,
    events::AnySyncTimelineEvent,
    push::{Action, PushConditionPowerLevelsCtx, PushConditionRoomCtx},
    serde::Raw,
};
use serde_json::value::RawValue;

use crate::Rules;

/// What rules ask beside the event.
#[derive(Clone, Debug)]
pub struct Context {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Joined members.
    pub member_count: u64,
    /// The user.
    pub user_id: OwnedUserId,
    /// The user's name in the room.
    pub display_name: String,
    /// Who may notify the room.
    pub power_levels: Option<PushConditionPowerLevelsCtx>,
}

/// What the rules say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// It notifies.
    pub notify: bool,
    /// It highlights.
    pub highlight: bool,
}

/// Judges an event, given as client JSON.
pub async fn evaluate(rules: &Rules, event: &[u8], context: &Context) -> Outcome {
    let Ok(event) = serde_json::from_slice::<Box<RawValue>>(event) else { return Outcome::default() };
    let event = Raw::<AnySyncTimelineEvent>::from_json(event);
    let mut room = PushConditionRoomCtx::new(
        context.room_id.clone(),
        UInt::new_saturating(context.member_count),
        context.user_id.clone(),
        context.display_name.clone(),
    );
    room.power_levels.clone_from(&context.power_levels);
    let actions = rules.global.get_actions(&event, &room).await;
    Outcome { notify: actions.iter().any(Action::should_notify), highlight: actions.iter().any(Action::is_highlight) }
}
