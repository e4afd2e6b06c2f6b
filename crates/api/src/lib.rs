//! One function per endpoint: translate and call.
//!
//! Endpoints are grouped by topic as the specification groups them; each takes ruma's typed request and answers with what
//! the services say. They hold no room rule, no lock and no database. Authentication that asks the user again lives in
//! `uia`, password hashing in `passwords`.
//!
//! To add an endpoint, write its function in the file of its topic and mount it in that file's `mount`.

mod client;
mod limits;
mod notifications;
mod passwords;
mod service;
mod uia;

pub use self::{
    limits::RateLimits,
    notifications::RuleNotifications,
    passwords::{Passwords, hash_password},
    service::{Api, ApiParts, RegistrationOptions},
};

use cofactor_http::Routes;

/// Every endpoint that this server has.
pub fn routes(api: Api) -> Routes<Api> {
    let mut routes = Routes::new(api);
    client::mount(&mut routes);
    routes
}

/// The endpoints of a process that serves no clients: whether it is well, and its metrics.
pub fn operator_routes(api: Api) -> Routes<Api> {
    let mut routes = Routes::new(api);
    client::discovery::mount_operator(&mut routes);
    routes
}
