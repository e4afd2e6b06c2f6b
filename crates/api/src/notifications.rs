//! Unread counts of users with push rules of their own.

use std::sync::Arc;

use async_trait::async_trait;
use cofactor_history::{History, Placed};
use cofactor_push::{Context, Rules, evaluate};
use cofactor_sync::{Counts, Notifications};
use cofactor_types::Fault;
use cofactor_users::UsersHandle;
use ruma::{RoomId, UserId};

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
    async fn is_default(&self, user_id: &UserId, room_id: &RoomId) -> Result<bool, Fault> {
        // Nothing stored is the usual case.
        Ok(self.rules(user_id).await?.is_none_or(|rules| rules.is_default(user_id, room_id)))
    }

    fn default_rules(&self, user_id: &UserId) -> Result<bytes::Bytes, Fault> {
        Rules::server_default(user_id).store()
    }

    async fn count(&self, user_id: &UserId, room_id: &RoomId, events: &[Placed]) -> Result<Counts, Fault> {
        let rules = self.rules(user_id).await?.unwrap_or_else(|| Rules::server_default(user_id));
        let summary = self.history.summary(room_id).await?;
        let member = self.history.current(room_id, "m.room.member", user_id.as_str()).await?;
        let display_name = member.and_then(|member| display_name(&member.event.json)).unwrap_or_default();
        let context = Context {
            room_id: room_id.to_owned(),
            member_count: summary.joined,
            user_id: user_id.to_owned(),
            display_name,
            power_levels: None,
        };
        let mut counts = Counts::default();
        for placed in events {
            let outcome = evaluate(&rules, &placed.event.json, &context).await;
            counts.notify += u64::from(outcome.notify);
            counts.highlight += u64::from(outcome.highlight);
        }
        Ok(counts)
    }
}

fn display_name(json: &[u8]) -> Option<String> {
    let event: serde_json::Value = serde_json::from_slice(json).ok()?;
    event["content"]["displayname"].as_str().map(ToOwned::to_owned)
}
