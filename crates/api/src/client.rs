//! The client-server API.

mod account;
mod account_data;
mod aliases;
mod backup;
mod chunk;
mod devices;
mod directory;
pub(crate) mod discovery;
mod events;
mod find;
mod keys;
mod media;
mod membership;
mod messages;
mod profile;
mod push_rules;
mod receipts;
mod relations;
mod report;
mod rooms;
mod session;
mod spaces;
mod state;
mod sync;
mod to_device;
mod upgrade;

use cofactor_http::Routes;

use crate::Api;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    discovery::mount(routes);
    account::mount(routes);
    session::mount(routes);
    devices::mount(routes);
    profile::mount(routes);
    account_data::mount(routes);
    push_rules::mount(routes);
    rooms::mount(routes);
    aliases::mount(routes);
    directory::mount(routes);
    membership::mount(routes);
    state::mount(routes);
    events::mount(routes);
    messages::mount(routes);
    receipts::mount(routes);
    relations::mount(routes);
    sync::mount(routes);
    upgrade::mount(routes);
    spaces::mount(routes);
    report::mount(routes);
    find::mount(routes);
    keys::mount(routes);
    backup::mount(routes);
    to_device::mount(routes);
    media::mount(routes);
}
