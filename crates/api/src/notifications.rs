//! Unread counts of users with push rules of their own.

use std::sync::Arc;

use async_trait::async_trait;
use cofactor_history::{History, Placed};
use cofactor_push::{Context, Judge, NotificationPower, Rules, Work};
use cofactor_room::room_version;
use cofactor_sync::{Counts, Notifications};
use cofactor_types::Fault;
use cofactor_users::UsersHandle;
use ruma::{RoomId, UserId};
use serde_json::Value;

/// What one count may cost, in steps of pattern matching; a count that would cost more ends early.
const STEPS_MAX: u64 = 50_000_000;

/// Judges events by stored push rules.
#[derive(Clone, Debug)]
pub struct RuleNotifications {
    users: UsersHandle,
    history: History,
}

impl RuleNotifications {
    /// Rules of `users`.
    pub fn new(users: UsersHandle, history: History) -> Arc<Self> {
        Arc::new(Self { users, history })
    }

    async fn rules(&self, user_id: &UserId) -> Result<Option<Rules>, Fault> {
        let stored = self.users.account_data(user_id, None, Rules::EVENT_TYPE).await?;
        stored.map(|stored| Rules::load(user_id, Some(&stored))).transpose()
    }
}

#[async_trait]
impl Notifications for RuleNotifications {
    async fn are_untouched(&self, user_id: &UserId) -> Result<bool, Fault> {
        Ok(self.users.account_data(user_id, None, Rules::EVENT_TYPE).await?.is_none())
    }

    async fn is_default(&self, user_id: &UserId, room_id: &RoomId) -> Result<bool, Fault> {
        // Nothing stored is the usual case.
        Ok(self.rules(user_id).await?.is_none_or(|rules| rules.is_default(user_id, room_id)))
    }

    fn default_rules(&self, user_id: &UserId) -> Result<bytes::Bytes, Fault> {
        Rules::server_default(user_id).store()
    }

    async fn judge(&self, user_id: &UserId, room_id: &RoomId, events: &[Placed]) -> Result<Vec<Counts>, Fault> {
        let rules = self.rules(user_id).await?.unwrap_or_else(|| Rules::server_default(user_id));
        let context = self.context(user_id, room_id).await?;
        let judge = Judge::new(&rules, &context);
        let mut work = Work::new(STEPS_MAX);
        let mut outcomes = Vec::with_capacity(events.len());
        for placed in events {
            let outcome = judge.judge(&placed.event.json, &mut work);
            if work.is_spent() {
                break;
            }
            outcomes.push(Counts { notify: outcome.notify.into(), highlight: outcome.highlight.into() });
        }
        Ok(outcomes)
    }
}

impl RuleNotifications {
    async fn context(&self, user_id: &UserId, room_id: &RoomId) -> Result<Context, Fault> {
        let summary = self.history.summary(room_id).await?;
        let member = self.content(room_id, "m.room.member", user_id.as_str()).await?;
        Ok(Context {
            room_id: room_id.to_owned(),
            member_count: summary.joined,
            user_id: user_id.to_owned(),
            display_name: member["content"]["displayname"].as_str().unwrap_or_default().to_owned(),
            power: self.power(room_id).await?,
        })
    }

    /// <https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels>
    async fn power(&self, room_id: &RoomId) -> Result<NotificationPower, Fault> {
        let create = self.content(room_id, "m.room.create", "").await?;
        let levels = self.content(room_id, "m.room.power_levels", "").await?;
        let levels = &levels["content"];
        let user = |id: &Value| id.as_str().and_then(|id| UserId::parse(id).ok());
        let creator = user(&create["sender"]);
        let version = room_version(create["content"]["room_version"].as_str().unwrap_or("1"));
        let mut power = NotificationPower::default();
        if version.is_some_and(|version| version.rules().authorization.explicitly_privilege_room_creators) {
            let others = create["content"]["additional_creators"].as_array().into_iter().flatten();
            power.creators = creator.into_iter().chain(others.filter_map(user)).collect();
        } else if levels.is_null() {
            power.users.extend(creator.map(|creator| (creator, 100)));
        }
        let listed = levels["users"].as_object().into_iter().flatten();
        power.users.extend(listed.filter_map(|(id, level)| Some((UserId::parse(id).ok()?, number(level)?))));
        power.users_default = number(&levels["users_default"]).unwrap_or_default();
        let listed = levels["notifications"].as_object().into_iter().flatten();
        power.notifications.extend(listed.filter_map(|(key, level)| Some((key.clone(), number(level)?))));
        Ok(power)
    }

    /// A state event as client JSON; null if there is none.
    async fn content(&self, room_id: &RoomId, event_type: &str, state_key: &str) -> Result<Value, Fault> {
        let found = self.history.current(room_id, event_type, state_key).await?;
        let found = found.and_then(|found| serde_json::from_slice(&found.event.json).ok());
        Ok(found.unwrap_or_default())
    }
}

/// A power level; early room versions allowed strings.
fn number(level: &Value) -> Option<i64> {
    level.as_i64().or_else(|| level.as_str()?.trim().parse().ok())
}
