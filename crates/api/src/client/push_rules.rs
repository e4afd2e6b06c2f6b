//! Push rules. <https://spec.matrix.org/v1.19/client-server-api/#push-rules-api>

use cofactor_http::{ApiError, Caller, Reply, Routes, Session};
use cofactor_push::Rules;
use cofactor_types::Fault;
use ruma::{
    UserId,
    api::client::push::{
        delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
        get_pushrules_global_scope, set_pushrule, set_pushrule_actions, set_pushrule_enabled,
    },
    push::AnyPushRule,
};
use serde_json::json;

use crate::Api;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_pushrules_all::v3::Request, _, _>(all);
    routes.mount_at::<get_pushrules_all::v3::Request, _, _>("/_matrix/client/v3/pushrules", &[], all);
    routes.mount::<get_pushrules_global_scope::v3::Request, _, _>(global);
    routes.mount::<get_pushrule::v3::Request, _, _>(rule);
    routes.mount::<set_pushrule::v3::Request, _, _>(put);
    routes.mount::<delete_pushrule::v3::Request, _, _>(delete);
    routes.mount::<get_pushrule_enabled::v3::Request, _, _>(enabled);
    routes.mount::<set_pushrule_enabled::v3::Request, _, _>(set_enabled);
    routes.mount::<get_pushrule_actions::v3::Request, _, _>(actions);
    routes.mount::<set_pushrule_actions::v3::Request, _, _>(set_actions);
}

impl Api {
    async fn rules(&self, user_id: &UserId) -> Result<Rules, ApiError> {
        let stored = self.users.account_data(user_id, None, Rules::EVENT_TYPE).await?;
        Ok(Rules::load(user_id, stored.as_deref())?)
    }

    async fn change_rules(
        &self,
        user_id: &UserId,
        mut change: impl FnMut(&mut Rules) -> Result<(), Fault>,
    ) -> Result<Reply, ApiError> {
        self.change_account_data(user_id, None, Rules::EVENT_TYPE, |stored| {
            let mut rules = Rules::load(user_id, stored.map(|bytes| &**bytes))?;
            change(&mut rules)?;
            Ok(rules.store()?)
        })
        .await?;
        Ok(Reply::empty())
    }
}

async fn all(api: Api, caller: Caller<Session>, _request: get_pushrules_all::v3::Request) -> Result<Reply, ApiError> {
    Ok(Reply::json(api.rules(&caller.session.user_id).await?.store()?))
}

async fn global(
    api: Api,
    caller: Caller<Session>,
    _request: get_pushrules_global_scope::v3::Request,
) -> Result<Reply, ApiError> {
    let rules = api.rules(&caller.session.user_id).await?.store()?;
    let rules: serde_json::Value = serde_json::from_slice(&rules).unwrap_or_default();
    Reply::value(&rules["global"])
}

async fn rule(api: Api, caller: Caller<Session>, request: get_pushrule::v3::Request) -> Result<Reply, ApiError> {
    let rules = api.rules(&caller.session.user_id).await?;
    let rule: AnyPushRule = rules.get(request.kind, &request.rule_id)?.to_owned();
    let rule: ruma::api::client::push::PushRule = rule.into();
    Reply::value(&rule)
}

async fn put(api: Api, caller: Caller<Session>, request: set_pushrule::v3::Request) -> Result<Reply, ApiError> {
    let (after, before) = (request.after.as_deref(), request.before.as_deref());
    api.change_rules(&caller.session.user_id, |rules| rules.put(request.rule.clone(), after, before)).await
}

async fn delete(api: Api, caller: Caller<Session>, request: delete_pushrule::v3::Request) -> Result<Reply, ApiError> {
    let change = |rules: &mut Rules| rules.delete(request.kind.clone(), &request.rule_id);
    api.change_rules(&caller.session.user_id, change).await
}

async fn enabled(
    api: Api,
    caller: Caller<Session>,
    request: get_pushrule_enabled::v3::Request,
) -> Result<Reply, ApiError> {
    let rules = api.rules(&caller.session.user_id).await?;
    Reply::value(&json!({ "enabled": rules.get(request.kind, &request.rule_id)?.enabled() }))
}

async fn set_enabled(
    api: Api,
    caller: Caller<Session>,
    request: set_pushrule_enabled::v3::Request,
) -> Result<Reply, ApiError> {
    let change = |rules: &mut Rules| rules.set_enabled(request.kind.clone(), &request.rule_id, request.enabled);
    api.change_rules(&caller.session.user_id, change).await
}

async fn actions(
    api: Api,
    caller: Caller<Session>,
    request: get_pushrule_actions::v3::Request,
) -> Result<Reply, ApiError> {
    let rules = api.rules(&caller.session.user_id).await?;
    Reply::value(&json!({ "actions": rules.get(request.kind, &request.rule_id)?.actions() }))
}

async fn set_actions(
    api: Api,
    caller: Caller<Session>,
    request: set_pushrule_actions::v3::Request,
) -> Result<Reply, ApiError> {
    let change = |rules: &mut Rules| rules.set_actions(request.kind.clone(), &request.rule_id, request.actions.clone());
    api.change_rules(&caller.session.user_id, change).await
}
