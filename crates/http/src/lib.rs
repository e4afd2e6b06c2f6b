//! The HTTP edge: the only crate that knows actix-web.
//!
//! One catch-all service looks every request up in one table ([`Routes`]). Typed endpoints are mounted by their ruma
//! request type, whose authentication scheme decides what the handler gets as its caller; raw ones take and give bytes or
//! streams. Errors have the Matrix form ([`ApiError`]), every answer the CORS headers and a request id.
//!
//! It holds no endpoint and no rule of Matrix beyond the form of requests and errors. To add an endpoint, write a function
//! in `api` and mount it there.

mod body;
mod connection;
mod convert;
mod error;
mod limit;
mod routes;
mod server;

pub use self::{
    body::{Body, BodyStream, check_json},
    error::ApiError,
    limit::{LimitClass, LimitOptions, Rate, RateLimiter},
    routes::{Access, Caller, Exchange, Reply, ReplyBody, RequestContext, Routes, Scheme, Service, Session},
    server::{BindError, Options, RunningServer, serve},
};
