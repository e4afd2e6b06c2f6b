//! A user's rules. <https://spec.matrix.org/v1.19/client-server-api/#push-rules>

use bytes::Bytes;
use cofactor_types::{ErrorClass, Fault};
use ruma::{
    RoomId, UserId,
    push::{Action, AnyPushRuleRef, NewPushRule, PushCondition, RemovePushRuleError, RuleKind, Ruleset},
};
use serde::{Deserialize, Serialize};

use crate::{evaluate::CONDITIONS_MAX, glob::PATTERN_BYTES_MAX, place::Place};

/// Rules of one user, the predefined ones included.
const RULES_MAX: usize = 1_000;

/// All rules of one user, in bytes.
const RULES_BYTES_MAX: usize = 512 << 10;

/// The id of a rule, in bytes.
const RULE_ID_BYTES_MAX: usize = 255;

/// The content of the account data `m.push_rules`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rules {
    /// The rules.
    pub global: Ruleset,
}

impl Rules {
    /// The type of the account data.
    pub const EVENT_TYPE: &'static str = "m.push_rules";

    /// What a new user has.
    pub fn server_default(user_id: &UserId) -> Self {
        Self { global: Ruleset::server_default(user_id) }
    }

    /// The stored rules, with the predefined ones of this release; the default if nothing is stored.
    ///
    /// # Errors
    /// If what is stored cannot be read.
    pub fn load(user_id: &UserId, stored: Option<&[u8]>) -> Result<Self, Fault> {
        let mut rules = Self::server_default(user_id);
        if let Some(stored) = stored {
            let damaged = |error: serde_json::Error| Fault::internal(format!("stored push rules are damaged: {error}"));
            let mut known: Self = serde_json::from_slice(stored).map_err(damaged)?;
            known.global.update_with_server_default(rules.global);
            rules = known;
        }
        Ok(rules)
    }

    /// The content to store and to show: every kind is there, also where it has no rule.
    ///
    /// # Errors
    /// `M_TOO_LARGE`; or the rules cannot be encoded: a defect.
    pub fn store(&self) -> Result<Bytes, Fault> {
        let defect = |error: serde_json::Error| Fault::internal(error.to_string());
        let mut content = serde_json::to_value(self).map_err(defect)?;
        for kind in ["override", "content", "room", "sender", "underride"] {
            if content["global"][kind].is_null() {
                content["global"][kind] = serde_json::json!([]);
            }
        }
        let content = serde_json::to_vec(&content).map_err(defect)?;
        if content.len() > RULES_BYTES_MAX {
            return Err(too_large("the push rules are too large"));
        }
        Ok(content.into())
    }

    /// One rule.
    ///
    /// # Errors
    /// `M_NOT_FOUND`.
    pub fn get(&self, kind: RuleKind, rule_id: &str) -> Result<AnyPushRuleRef<'_>, Fault> {
        self.global.get(kind, rule_id).ok_or_else(no_rule)
    }

    /// Adds or replaces a rule; a replaced one keeps its place unless it is given another.
    /// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3pushrulesglobalkindruleid>
    ///
    /// # Errors
    /// If the rule or its place is wrong, or there are too many.
    pub fn put(&mut self, rule: NewPushRule, after: Option<&str>, before: Option<&str>) -> Result<(), Fault> {
        check(&rule)?;
        if self.get(rule.kind(), rule.rule_id()).is_err() && self.global.iter().count() >= RULES_MAX {
            return Err(too_large("there are too many push rules"));
        }
        let place = Place { after, before };
        let global = &mut self.global;
        match rule {
            NewPushRule::Override(rule) => place.put(&mut global.override_, rule.into()),
            NewPushRule::Underride(rule) => place.put(&mut global.underride, rule.into()),
            NewPushRule::Content(rule) => place.put(&mut global.content, rule.into()),
            NewPushRule::Room(rule) => place.put(&mut global.room, rule.into()),
            NewPushRule::Sender(rule) => place.put(&mut global.sender, rule.into()),
            _ => Err(Fault::invalid("unknown kind of push rule")),
        }
    }

    /// Removes a rule of the user's own.
    ///
    /// # Errors
    /// `M_NOT_FOUND`, or `M_INVALID_PARAM` for a predefined rule.
    pub fn delete(&mut self, kind: RuleKind, rule_id: &str) -> Result<(), Fault> {
        self.global.remove(kind, rule_id).map_err(|error| match error {
            RemovePushRuleError::NotFound => no_rule(),
            _ => Fault::invalid(error.to_string()),
        })
    }

    /// Switches a rule on or off.
    ///
    /// # Errors
    /// `M_NOT_FOUND`.
    pub fn set_enabled(&mut self, kind: RuleKind, rule_id: &str, enabled: bool) -> Result<(), Fault> {
        self.global.set_enabled(kind, rule_id, enabled).map_err(|_| no_rule())
    }

    /// Sets what a rule does.
    ///
    /// # Errors
    /// `M_NOT_FOUND`.
    pub fn set_actions(&mut self, kind: RuleKind, rule_id: &str, actions: Vec<Action>) -> Result<(), Fault> {
        self.global.set_actions(kind, rule_id, actions).map_err(|_| no_rule())
    }

    /// Whether running totals say what these rules say in `room_id`: no rule of the user's own could match there, and no
    /// predefined one was changed.
    pub fn is_default(&self, user_id: &UserId, room_id: &RoomId) -> bool {
        let default = Ruleset::server_default(user_id);
        let same = |rule: AnyPushRuleRef<'_>| {
            let known = default.get(kind_of(&rule), rule.rule_id());
            known.is_some_and(|known| {
                let actions = |rule: &AnyPushRuleRef<'_>| serde_json::to_string(rule.actions()).unwrap_or_default();
                known.enabled() == rule.enabled() && actions(&known) == actions(&rule)
            })
        };
        self.global.iter().all(|rule| match &rule {
            AnyPushRuleRef::Room(room) if room.rule_id != room_id => true,
            _ if !rule.is_server_default() => !rule.enabled(),
            _ => same(rule),
        })
    }
}

fn kind_of(rule: &AnyPushRuleRef<'_>) -> RuleKind {
    match rule {
        AnyPushRuleRef::Override(_) => RuleKind::Override,
        AnyPushRuleRef::Content(_) => RuleKind::Content,
        AnyPushRuleRef::Room(_) => RuleKind::Room,
        AnyPushRuleRef::Sender(_) => RuleKind::Sender,
        _ => RuleKind::Underride,
    }
}

/// What a rule of the user's own may be.
fn check(rule: &NewPushRule) -> Result<(), Fault> {
    let rule_id = rule.rule_id();
    if rule_id.starts_with('.') || rule_id.contains(['/', '\\']) {
        return Err(Fault::invalid("a rule id begins with no dot and contains no slash or backslash"));
    }
    if rule_id.len() > RULE_ID_BYTES_MAX {
        return Err(too_large("the rule id is too long"));
    }
    let conditions = match rule {
        NewPushRule::Override(rule) | NewPushRule::Underride(rule) => &rule.conditions[..],
        NewPushRule::Content(rule) if rule.pattern.len() > PATTERN_BYTES_MAX => {
            return Err(too_large("the pattern is too long"));
        }
        _ => &[],
    };
    let too_long = |condition: &PushCondition| match condition {
        PushCondition::EventMatch(data) => data.pattern.len().max(data.key.len()) > PATTERN_BYTES_MAX,
        PushCondition::EventPropertyIs(data) => data.key.len() > PATTERN_BYTES_MAX,
        PushCondition::EventPropertyContains(data) => data.key.len() > PATTERN_BYTES_MAX,
        _ => false,
    };
    if conditions.len() > CONDITIONS_MAX || conditions.iter().any(too_long) {
        return Err(too_large("the rule has too many conditions, or too long ones"));
    }
    Ok(())
}

fn too_large(message: &'static str) -> Fault {
    Fault::new(ErrorClass::Invalid, "M_TOO_LARGE", message)
}

fn no_rule() -> Fault {
    Fault::not_found("there is no such push rule")
}

#[cfg(test)]
mod tests {
    use ruma::{
        push::{NewSimplePushRule, PredefinedOverrideRuleId},
        room_id, user_id,
    };

    use super::*;

    #[test]
    fn rules_survive_being_stored_and_a_changed_one_is_no_default() {
        let (alice, room) = (user_id!("@alice:example.org"), room_id!("!a:example.org"));
        let mut rules = Rules::server_default(alice);
        assert!(rules.is_default(alice, room));
        rules.set_enabled(RuleKind::Override, PredefinedOverrideRuleId::Master.as_str(), true).unwrap();
        let stored = rules.store().unwrap();
        let loaded = Rules::load(alice, Some(&stored)).unwrap();
        assert!(!loaded.is_default(alice, room));
    }

    #[test]
    fn a_muted_room_concerns_that_room_alone() {
        let (alice, room) = (user_id!("@alice:example.org"), room_id!("!a:example.org"));
        let mut rules = Rules::server_default(alice);
        rules.put(NewPushRule::Room(NewSimplePushRule::new(room.to_owned(), vec![])), None, None).unwrap();
        assert!(!rules.is_default(alice, room));
        assert!(rules.is_default(alice, room_id!("!b:example.org")));
        rules.delete(RuleKind::Room, room.as_str()).unwrap();
        assert!(rules.is_default(alice, room));
        assert!(rules.delete(RuleKind::Override, ".m.rule.master").is_err());
    }
}
