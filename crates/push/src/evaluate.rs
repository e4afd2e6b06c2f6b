//! What rules say about an event. <https://spec.matrix.org/v1.19/client-server-api/#push-rules>

use std::{collections::BTreeMap, fmt};

use ruma::{
    OwnedRoomId, OwnedUserId,
    push::{Action, AnyPushRuleRef, ConditionalPushRule, PushCondition, RoomMemberCountIs, ScalarJsonValue},
};
use serde_json::Value;

use crate::{
    Rules,
    event::{Event, Path},
    glob::{Extent, Glob, Work},
};

/// Conditions of one rule that are looked at; a rule with more matches nothing.
pub(crate) const CONDITIONS_MAX: usize = 64;

/// The level needed to notify with a key that the room does not mention.
/// <https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels>
const NOTIFICATION_DEFAULT: i64 = 50;

/// Who may notify everybody in a room, by key.
#[derive(Clone, Debug, Default)]
pub struct NotificationPower {
    /// Creators whose power nothing limits.
    pub creators: Vec<OwnedUserId>,
    /// Levels of users.
    pub users: BTreeMap<OwnedUserId, i64>,
    /// The level of all others.
    pub users_default: i64,
    /// Levels needed.
    pub notifications: BTreeMap<String, i64>,
}

impl NotificationPower {
    fn may_notify(&self, sender: &str, key: &str) -> bool {
        let is_sender = |user_id: &OwnedUserId| user_id.as_str() == sender;
        let level = self.users.iter().find(|(user_id, _)| is_sender(user_id)).map(|(_, level)| *level);
        let needed = self.notifications.get(key).copied().unwrap_or(NOTIFICATION_DEFAULT);
        self.creators.iter().any(is_sender) || level.unwrap_or(self.users_default) >= needed
    }
}

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
    pub power: NotificationPower,
}

/// What the rules say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// It notifies.
    pub notify: bool,
    /// It highlights.
    pub highlight: bool,
}

/// A user's rules, ready to judge events of one room.
pub struct Judge<'a> {
    context: &'a Context,
    rules: Vec<Rule<'a>>,
}

impl fmt::Debug for Judge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("rules", &self.rules.len()).finish_non_exhaustive()
    }
}

/// An enabled rule.
struct Rule<'a> {
    test: Test<'a>,
    outcome: Outcome,
}

enum Test<'a> {
    Body(Glob),
    Room(bool),
    Sender(&'a str),
    All(Vec<Check<'a>>),
    Never,
}

enum Check<'a> {
    Match(Path, Glob),
    Is(Path, &'a ScalarJsonValue),
    Contains(Path, &'a ScalarJsonValue),
    DisplayName(Glob),
    Members(bool),
    Permission(&'a str),
}

impl<'a> Judge<'a> {
    /// Reads the rules once, in the order of their kinds: override, content, room, sender, underride.
    pub fn new(rules: &'a Rules, context: &'a Context) -> Self {
        let enabled = rules.global.iter().filter(|rule| rule.enabled());
        Self { context, rules: enabled.map(|rule| Rule::new(rule, context)).collect() }
    }

    /// Judges an event, given as client JSON: the first rule that matches says what happens. A user's own events do nothing.
    /// When `work` is spent, conditions that look at text match no more, so the caller must stop.
    pub fn judge(&self, json: &[u8], work: &mut Work) -> Outcome {
        let event = Event::new(json, self.context.room_id.as_str());
        if event.sender() == Some(self.context.user_id.as_str()) {
            return Outcome::default();
        }
        let found = self.rules.iter().find(|rule| rule.test.holds(&event, self.context, work));
        found.map(|rule| rule.outcome).unwrap_or_default()
    }
}

impl<'a> Rule<'a> {
    fn new(rule: AnyPushRuleRef<'a>, context: &Context) -> Self {
        let test = match rule {
            AnyPushRuleRef::Override(rule) | AnyPushRuleRef::Underride(rule) => conditions(rule, context),
            AnyPushRuleRef::Content(rule) => Test::Body(Glob::new(&rule.pattern)),
            AnyPushRuleRef::Room(rule) => Test::Room(rule.rule_id == context.room_id),
            AnyPushRuleRef::Sender(rule) => Test::Sender(rule.rule_id.as_str()),
            _ => Test::Never,
        };
        let outcome = Outcome {
            notify: rule.actions().iter().any(Action::should_notify),
            highlight: rule.actions().iter().any(Action::is_highlight),
        };
        Self { test, outcome }
    }
}

/// A rule with a condition that this server does not know matches nothing.
fn conditions<'a>(rule: &'a ConditionalPushRule, context: &Context) -> Test<'a> {
    if rule.conditions.len() > CONDITIONS_MAX {
        return Test::Never;
    }
    let checks: Option<Vec<_>> = rule.conditions.iter().map(|condition| check(condition, context)).collect();
    checks.map_or(Test::Never, Test::All)
}

fn check<'a>(condition: &'a PushCondition, context: &Context) -> Option<Check<'a>> {
    Some(match condition {
        PushCondition::EventMatch(data) => Check::Match(Path::new(&data.key), Glob::new(&data.pattern)),
        PushCondition::EventPropertyIs(data) => Check::Is(Path::new(&data.key), &data.value),
        PushCondition::EventPropertyContains(data) => Check::Contains(Path::new(&data.key), &data.value),
        PushCondition::RoomMemberCount(data) => Check::Members(counts(&data.is, context.member_count)),
        PushCondition::SenderNotificationPermission(data) => Check::Permission(data.key.as_str()),
        // The library calls this one deprecated, so it is known by its name alone.
        other if other.kind() == "contains_display_name" => Check::DisplayName(Glob::literal(&context.display_name)),
        _ => return None,
    })
}

fn counts(is: &RoomMemberCountIs, members: u64) -> bool {
    use std::ops::RangeBounds;
    is.contains(&ruma::UInt::new_saturating(members))
}

impl Test<'_> {
    fn holds(&self, event: &Event, context: &Context, work: &mut Work) -> bool {
        match self {
            Self::Body(glob) => event.body().is_some_and(|body| glob.matches(body, Extent::Words, work)),
            Self::Room(matches) => *matches,
            Self::Sender(sender) => event.sender() == Some(sender),
            Self::All(checks) => checks.iter().all(|check| check.holds(event, context, work)),
            Self::Never => false,
        }
    }
}

impl Check<'_> {
    fn holds(&self, event: &Event, context: &Context, work: &mut Work) -> bool {
        match self {
            Self::Match(path, glob) => {
                let extent = if path.is_body() { Extent::Words } else { Extent::Whole };
                event.text(path).is_some_and(|text| glob.matches(text, extent, work))
            }
            Self::Is(path, wanted) => event.get(path).is_some_and(|value| equals(value, wanted)),
            Self::Contains(path, wanted) => {
                let array = event.get(path).and_then(Value::as_array);
                array.is_some_and(|array| work.spend(array.len()) && array.iter().any(|value| equals(value, wanted)))
            }
            Self::DisplayName(glob) => {
                // A user without a name is not meant by every empty text.
                let body = event.body().filter(|body| !body.is_empty());
                body.is_some_and(|body| glob.matches(body, Extent::Words, work))
            }
            Self::Members(matches) => *matches,
            Self::Permission(key) => event.sender().is_some_and(|sender| context.power.may_notify(sender, key)),
        }
    }
}

/// Whether a value is exactly the one wanted; nothing is converted.
fn equals(value: &Value, wanted: &ScalarJsonValue) -> bool {
    match wanted {
        ScalarJsonValue::Null => value.is_null(),
        ScalarJsonValue::Bool(wanted) => value.as_bool() == Some(*wanted),
        ScalarJsonValue::Integer(wanted) => value.as_i64() == Some(i64::from(*wanted)),
        ScalarJsonValue::String(wanted) => value.as_str() == Some(wanted),
    }
}
