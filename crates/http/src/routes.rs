//! The route table and the adapter from ruma's typed endpoints.

use std::{future::Future, net::IpAddr, panic::AssertUnwindSafe, sync::Arc};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, LocalBoxFuture};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use ruma::{
    OwnedDeviceId, OwnedUserId,
    api::{
        IncomingRequest, Metadata, OutgoingResponse, OutgoingResponseExt,
        auth_scheme::{
            AccessToken, AccessTokenOptional, AppserviceTokenOptional, AuthScheme, NoAccessToken, NoAuthentication,
        },
        path_builder::PathBuilder,
    },
};

use crate::{ApiError, Body, BodyStream, body::check_json};

/// What endpoints run on.
pub trait Service: Clone + Send + Sync + 'static {
    /// Who an access token belongs to.
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        context: &'a RequestContext,
    ) -> BoxFuture<'a, Result<Session, ApiError>>;
}

/// A logged-in device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
}

/// Where a request comes from.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The client's address.
    pub ip: IpAddr,
    /// The id in the answer's `x-request-id` and in the logs.
    pub request_id: String,
    /// What the client calls itself.
    pub user_agent: Option<String>,
}

/// Who asks, as the endpoint's authentication scheme says: a [`Session`], perhaps one, or nobody.
#[derive(Clone, Debug)]
pub struct Caller<C> {
    /// The session.
    pub session: C,
    /// Where the request comes from.
    pub context: Arc<RequestContext>,
}

/// Whether an endpoint wants a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Yes.
    Required,
    /// If there is one it must be good.
    Optional,
    /// No; a token is not looked at.
    Open,
}

/// An authentication scheme that endpoints can be mounted with.
pub trait Scheme: AuthScheme {
    /// What the handler gets.
    type Caller: Clone + 'static;
    /// Whether a token is wanted.
    const ACCESS: Access;
    /// The caller, out of the session that the token gave.
    ///
    /// # Errors
    /// If a session is needed and there is none.
    fn caller(session: Option<Session>) -> Result<Self::Caller, ApiError>;
}

impl Scheme for AccessToken {
    type Caller = Session;
    const ACCESS: Access = Access::Required;

    fn caller(session: Option<Session>) -> Result<Session, ApiError> {
        session.ok_or_else(ApiError::missing_token)
    }
}

impl Scheme for AccessTokenOptional {
    type Caller = Option<Session>;
    const ACCESS: Access = Access::Optional;

    fn caller(session: Option<Session>) -> Result<Option<Session>, ApiError> {
        Ok(session)
    }
}

impl Scheme for NoAuthentication {
    type Caller = ();
    const ACCESS: Access = Access::Open;

    fn caller(_: Option<Session>) -> Result<(), ApiError> {
        Ok(())
    }
}

impl Scheme for NoAccessToken {
    type Caller = ();
    const ACCESS: Access = Access::Open;

    fn caller(_: Option<Session>) -> Result<(), ApiError> {
        Ok(())
    }
}

/// Application services are not served yet: their token is not looked at, which gives nobody more.
impl Scheme for AppserviceTokenOptional {
    type Caller = ();
    const ACCESS: Access = Access::Open;

    fn caller(_: Option<Session>) -> Result<(), ApiError> {
        Ok(())
    }
}

/// One request, as a handler gets it.
#[derive(Debug)]
pub struct Exchange {
    /// Who asks.
    pub session: Option<Session>,
    /// Where the request comes from.
    pub context: Arc<RequestContext>,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// The headers.
    pub headers: HeaderMap,
    /// The path arguments, decoded.
    pub args: Vec<String>,
    /// The body.
    pub body: Body,
}

impl Exchange {
    /// A query parameter.
    pub fn query(&self, name: &str) -> Option<String> {
        let query = self.uri.query().unwrap_or_default();
        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: ReplyBody,
}

/// The body of an answer.
pub enum ReplyBody {
    /// All of it.
    Whole(Bytes),
    /// In pieces.
    Stream(BodyStream),
}

impl std::fmt::Debug for ReplyBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(bytes) => f.debug_tuple("Whole").field(&bytes.len()).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl Reply {
    /// 200 with a JSON body that is encoded already.
    pub fn json(body: Bytes) -> Self {
        let mut headers = HeaderMap::with_capacity(1);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self { status: StatusCode::OK, headers, body: ReplyBody::Whole(body) }
    }

    /// 200 with an empty JSON object.
    pub fn empty() -> Self {
        Self::json(Bytes::from_static(b"{}"))
    }

    /// 200 with a JSON value.
    ///
    /// # Errors
    /// If the value cannot be encoded, which only a map with keys that are not strings cannot.
    pub fn value(value: &impl serde::Serialize) -> Result<Self, ApiError> {
        serde_json::to_vec(value).map(|body| Self::json(body.into())).map_err(|error| not_encoded(&error))
    }

    /// 200 with one of ruma's responses.
    ///
    /// # Errors
    /// If it cannot be encoded: a defect.
    pub fn typed(response: impl OutgoingResponse) -> Result<Self, ApiError> {
        let response = response.try_into_http_response::<Vec<u8>>().map_err(|error| not_encoded(&error))?;
        let (parts, body) = response.into_parts();
        Ok(Self { status: parts.status, headers: parts.headers, body: ReplyBody::Whole(body.into()) })
    }

    /// 200 with text.
    pub fn text(body: String) -> Self {
        let mut headers = HeaderMap::with_capacity(1);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Self { status: StatusCode::OK, headers, body: ReplyBody::Whole(body.into()) }
    }
}

type Handler<S> = Arc<dyn Fn(S, Exchange) -> LocalBoxFuture<'static, Result<Reply, ApiError>> + Send + Sync>;

/// An endpoint under one method.
pub(crate) struct Endpoint<S> {
    pub(crate) method: Method,
    pub(crate) access: Access,
    /// The largest body read whole; `None`: the handler gets a stream.
    pub(crate) bytes_max: Option<usize>,
    pub(crate) template: &'static str,
    pub(crate) handler: Handler<S>,
    /// Path arguments that the path does not have, such as the empty state key.
    extra_args: &'static [&'static str],
}

/// The largest body, unless an endpoint says otherwise: 1 MiB.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;

/// The route table.
pub struct Routes<S> {
    pub(crate) service: S,
    table: matchit::Router<usize>,
    paths: Vec<Vec<Endpoint<S>>>,
    mistakes: Vec<String>,
    /// Web pages of other origins may not read the answers.
    pub(crate) same_origin: bool,
}

impl<S> std::fmt::Debug for Routes<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").field("paths", &self.paths.len()).finish_non_exhaustive()
    }
}

impl<S: Service> Routes<S> {
    /// No routes, on `service`.
    pub fn new(service: S) -> Self {
        Self { service, table: matchit::Router::new(), paths: Vec::new(), mistakes: Vec::new(), same_origin: false }
    }

    /// Keeps the answers from web pages of other origins, which may read those of the Matrix API.
    #[must_use]
    pub fn same_origin(mut self) -> Self {
        self.same_origin = true;
        self
    }

    /// Mounts an endpoint at every path it ever had.
    pub fn mount<R, H, F>(&mut self, handler: H)
    where
        R: IncomingRequest + Metadata + 'static,
        R::Authentication: Scheme,
        H: Fn(S, Caller<<R::Authentication as Scheme>::Caller>, R) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Reply, ApiError>> + 'static,
    {
        for path in R::PATH_BUILDER.all_paths() {
            self.mount_at::<R, H, F>(path, &[], handler.clone());
        }
    }

    /// Mounts an endpoint at one more path, whose missing last arguments are `extra_args`.
    pub fn mount_at<R, H, F>(&mut self, path: &'static str, extra_args: &'static [&'static str], handler: H)
    where
        R: IncomingRequest + Metadata + 'static,
        R::Authentication: Scheme,
        H: Fn(S, Caller<<R::Authentication as Scheme>::Caller>, R) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Reply, ApiError>> + 'static,
    {
        let typed: Handler<S> = Arc::new(move |service, exchange| {
            let handler = handler.clone();
            async move {
                let (caller, request) = parse::<R>(exchange)?;
                handler(service, caller, request).await
            }
            .boxed_local()
        });
        let access = <R::Authentication as Scheme>::ACCESS;
        self.add(
            path,
            Endpoint {
                method: R::METHOD,
                access,
                bytes_max: Some(BODY_BYTES_MAX),
                template: path,
                handler: typed,
                extra_args,
            },
        );
    }

    /// Mounts an endpoint that takes and gives bytes. `bytes_max`: the largest body, read whole; `None`: a stream.
    pub fn mount_raw<H, F>(
        &mut self,
        method: Method,
        path: &'static str,
        access: Access,
        bytes_max: Option<usize>,
        handler: H,
    ) where
        H: Fn(S, Exchange) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Reply, ApiError>> + 'static,
    {
        let handler: Handler<S> = Arc::new(move |service, exchange| handler(service, exchange).boxed_local());
        self.add(path, Endpoint { method, access, bytes_max, template: path, handler, extra_args: &[] });
    }

    fn add(&mut self, path: &'static str, endpoint: Endpoint<S>) {
        let number = match self.table.at(path).map(|found| *found.value) {
            Ok(known) if self.paths[known].first().is_some_and(|one| one.template == path) => known,
            _ => match self.table.insert(path, self.paths.len()) {
                Ok(()) => {
                    self.paths.push(Vec::new());
                    self.paths.len() - 1
                }
                Err(matchit::InsertError::Conflict { with }) => {
                    // The same shape under other names of its arguments is the same path.
                    let same = self.paths.iter().position(|all| all.first().is_some_and(|one| one.template == with));
                    match same {
                        Some(same) => same,
                        None => return self.mistakes.push(format!("{path} conflicts with {with}")),
                    }
                }
                Err(error) => return self.mistakes.push(format!("{path}: {error}")),
            },
        };
        if self.paths[number].iter().any(|known| known.method == endpoint.method) {
            return self.mistakes.push(format!("{} {path} is mounted twice", endpoint.method));
        }
        self.paths[number].push(endpoint);
    }

    /// Every method and path, for the operator and the checks.
    pub fn list(&self) -> Vec<(Method, &'static str)> {
        let mut all: Vec<_> =
            self.paths.iter().flatten().map(|endpoint| (endpoint.method.clone(), endpoint.template)).collect();
        all.sort_by(|a, b| (a.1, a.0.as_str()).cmp(&(b.1, b.0.as_str())));
        all
    }

    /// What was mounted wrongly; empty in a release, as a test shows.
    pub fn mistakes(&self) -> &[String] {
        &self.mistakes
    }

    /// The endpoint for a raw path, and its decoded arguments.
    pub(crate) fn find(&self, method: &Method, path: &str) -> Result<(&Endpoint<S>, Vec<String>), ApiError> {
        let found = self.table.at(path).map_err(|_| ApiError::unrecognized())?;
        let endpoints = &self.paths[*found.value];
        let serves = |endpoint: &&Endpoint<S>| {
            endpoint.method == *method || (endpoint.method == Method::GET && *method == Method::HEAD)
        };
        let endpoint = endpoints.iter().find(serves).ok_or_else(ApiError::wrong_method)?;
        let mut args = Vec::with_capacity(found.params.len() + endpoint.extra_args.len());
        for (_, value) in found.params.iter() {
            let decoded = percent_encoding::percent_decode_str(value).decode_utf8();
            let decoded = decoded.map_err(|_| ApiError::invalid_param("a part of the path is not UTF-8"))?;
            args.push(decoded.into_owned());
        }
        args.extend(endpoint.extra_args.iter().map(|&arg| arg.to_owned()));
        Ok((endpoint, args))
    }
}

type CallerOf<R> = Caller<<<R as Metadata>::Authentication as Scheme>::Caller>;

fn parse<R>(exchange: Exchange) -> Result<(CallerOf<R>, R), ApiError>
where
    R: IncomingRequest + Metadata,
    R::Authentication: Scheme,
{
    let Exchange { session, context, method, uri, headers, args, body } = exchange;
    let session = <R::Authentication as Scheme>::caller(session)?;
    let mut bytes = match body {
        Body::Whole(bytes) => bytes,
        Body::Stream(_) => Bytes::new(),
    };
    let has_body = R::METHOD == Method::POST || R::METHOD == Method::PUT || R::METHOD == Method::DELETE;
    if has_body {
        // Real clients send nothing where every member is optional.
        if bytes.is_empty() {
            bytes = Bytes::from_static(b"{}");
        }
        check_json(&bytes)?;
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let read = |bytes: &[u8]| {
        let mut request = http::Request::new(bytes);
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers.clone();
        // Some of the types behind this index into what may be missing.
        let read = AssertUnwindSafe(|| R::try_from_http_request_inner(request, &args));
        std::panic::catch_unwind(read)
            .unwrap_or_else(|_| {
                Err(<serde_json::Error as serde::de::Error>::custom("a member is missing or of the wrong type").into())
            })
            .map_err(ApiError::from)
    };
    let request = match read(&bytes) {
        Ok(request) => request,
        // A client that begins interactive authentication may say something in `auth` that is no stage yet.
        Err(error) => without_auth(&bytes).map_or(Err(error), |bytes| read(&bytes))?,
    };
    Ok((Caller { session, context }, request))
}

/// The body without an `auth` that names no stage, if it has such a one.
fn without_auth(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes).ok()?;
    let auth = body.remove("auth")?;
    auth.get("type").is_none().then(|| serde_json::to_vec(&body).ok()).flatten()
}

fn not_encoded(error: &dyn std::fmt::Display) -> ApiError {
    tracing::error!(%error, "an answer cannot be encoded");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "the answer cannot be encoded")
}
