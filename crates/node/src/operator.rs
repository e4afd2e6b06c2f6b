//! The operator's page: a listener of its own, for those who may see how the cluster is doing.
//!
//! It shows names of processes and the ids of busy rooms and users, and changes nothing. No token, secret or content stands
//! on it.

use std::{fmt::Write, sync::Arc, time::Duration};

use cofactor_http::{
    Access, ApiError, BindError, Exchange, Options, Reply, RequestContext, Routes, RunningServer, Service, Session,
    serve,
};
use cofactor_types::{Clock, Fault};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, header};
use tokio::sync::Mutex;

use crate::{
    Config, Finding, Glance, Identity,
    glance::{COLUMNS, Lookout, cells, hot},
    vitals::{self, Probe},
};

/// For so long a glance is shown again instead of taking another, in microseconds.
const FRESH_US: u64 = 2_000_000;

/// How often the page loads itself again, in seconds.
const REFRESH_S: u32 = 5;

/// How long the page may take to be built.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// What the page is built from. Cheap to clone.
#[derive(Clone, Debug)]
struct Operator {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    probe: Arc<Probe>,
    identity: Identity,
    /// The last glance, and when it was taken by the steady clock.
    last: Mutex<Option<(u64, Arc<Glance>)>>,
}

impl Service for Operator {
    fn authenticate<'a>(
        &'a self,
        _token: &'a str,
        _context: &'a RequestContext,
    ) -> BoxFuture<'a, Result<Session, ApiError>> {
        // Whoever reaches the listener may look; nobody is known here.
        Box::pin(async { Err(ApiError::unknown_token(false)) })
    }
}

/// Serves the page where `config` says; `None` if it says nowhere.
///
/// # Errors
/// If an address cannot be listened on.
pub(crate) fn listen(
    config: &Config,
    probe: &Arc<Probe>,
    identity: &Identity,
) -> Result<Option<RunningServer>, BindError> {
    if config.admin.listen.is_empty() {
        return Ok(None);
    }
    let inner = Inner { probe: Arc::clone(probe), identity: identity.clone(), last: Mutex::default() };
    let mut routes = Routes::new(Operator { inner: Arc::new(inner) }).same_origin();
    routes.mount_raw(Method::GET, "/", Access::Open, Some(0), page);
    routes.mount_raw(Method::GET, "/status.json", Access::Open, Some(0), status);
    routes.mount_raw(Method::GET, "/metrics", Access::Open, Some(0), metrics);
    routes.mount_raw(Method::GET, "/health/live", Access::Open, Some(0), live);
    routes.mount_raw(Method::GET, "/health/ready", Access::Open, Some(0), ready);
    let options = Options { listen: config.admin.listen.clone(), workers: 1, ..Options::default() };
    let prefix = probe.env.entropy().u128() as u64 >> 32;
    let server = serve(routes, &options, prefix, 1).map_err(|error| BindError { option: "admin.listen", ..error })?;
    for address in server.addresses() {
        tracing::info!(%address, "the operator's page");
    }
    Ok(Some(server))
}

impl Operator {
    async fn glance(&self) -> Result<Arc<Glance>, ApiError> {
        let env = &self.inner.probe.env;
        let now_us = || env.clock().steady_us();
        // Held while looking, so that many who ask at once make one look.
        let mut last = self.inner.last.lock().await;
        if let Some((at_us, glance)) = &*last
            && now_us().saturating_sub(*at_us) < FRESH_US
        {
            return Ok(Arc::clone(glance));
        }
        let clock: &dyn Clock = &**env.clock();
        let lookout = Lookout {
            server_name: self.inner.identity.server_name.as_str(),
            shard_count: env.shard_count(),
            store: &**env.store(),
            transport: env.transport(),
            clock,
            here: Some((env.ownership().node(), self.inner.probe.status())),
        };
        let late = |_| Fault::unavailable("the store does not say what the cluster is; see /metrics and the log");
        let glance = tokio::time::timeout(LOOK_MAX, lookout.look()).await.map_err(late)?;
        let glance = Arc::new(glance.map_err(Fault::from)?);
        *last = Some((now_us(), Arc::clone(&glance)));
        Ok(glance)
    }
}

async fn status(operator: Operator, _exchange: Exchange) -> Result<Reply, ApiError> {
    Reply::value(&*operator.glance().await?)
}

async fn metrics(_operator: Operator, _exchange: Exchange) -> Result<Reply, ApiError> {
    Ok(Reply::text(vitals::metrics()))
}

async fn live(_operator: Operator, _exchange: Exchange) -> Result<Reply, ApiError> {
    Ok(Reply::text("live\n".into()))
}

async fn ready(_operator: Operator, _exchange: Exchange) -> Result<Reply, ApiError> {
    match vitals::is_ready() {
        true => Ok(Reply::text("ready\n".into())),
        false => Err(Fault::unavailable("the server is starting or stopping").into()),
    }
}

async fn page(operator: Operator, _exchange: Exchange) -> Result<Reply, ApiError> {
    let mut reply = Reply::text(html(&*operator.glance().await?));
    let headers: &mut HeaderMap = &mut reply.headers;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(reply)
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:76em;padding:0 1em;color:#1b1b1b}\
    table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
    th,td{text-align:left;padding:.35em .8em .35em 0;border-bottom:1px solid #ddd;white-space:nowrap}\
    th{font-weight:600;color:#666}.wrong{border-left:4px solid #c22;padding:.2em .8em;margin:.6em 0;background:#fdf1f1}\
    .well{border-left:4px solid #2a7;padding:.2em .8em}p small{color:#666}";

/// The page: everything in one answer, without scripts.
fn html(glance: &Glance) -> String {
    let mut page = String::with_capacity(4_096);
    let name = escape(&glance.server_name);
    // Writing into a string cannot fail.
    let _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content={REFRESH_S}>\
         <title>{name}: {} wrong</title><style>{STYLE}</style><h1>{name}</h1>",
        glance.wrong.len()
    );
    if glance.wrong.is_empty() {
        page.push_str("<p class=well>All is well.</p>");
    }
    for Finding { what, todo } in &glance.wrong {
        let _ = write!(page, "<p class=wrong>{}<br><small>{}</small></p>", escape(what), escape(todo));
    }
    let _ = write!(page, "<p>{} of {} shards owned</p><table><tr>", glance.shards_owned, glance.shards);
    for column in COLUMNS {
        let _ = write!(page, "<th>{column}");
    }
    for node in &glance.nodes {
        page.push_str("<tr>");
        for cell in cells(node) {
            let _ = write!(page, "<td>{}", escape(&cell));
        }
    }
    page.push_str("</table>");
    let hot = hot(glance);
    if !hot.is_empty() {
        let _ = write!(page, "<p>Busiest (commands waiting): {}</p>", escape(&hot.join(", ")));
    }
    page.push_str(
        "<p><small>The same as <a href=/status.json>JSON</a>; <a href=/metrics>metrics</a> of this process</small></p>",
    );
    page
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeGlance;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let nodes = vec![NodeGlance { name: "<script>alert(1)</script>".into(), ..NodeGlance::default() }];
        let wrong = vec![Finding { what: "a < b".into(), todo: "\"quote\" it".into() }];
        let page = html(&Glance { server_name: "x&y".into(), nodes, wrong, ..Glance::default() });
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("a &lt; b") && page.contains("x&amp;y"), "{page}");
        assert!(!page.contains("All is well"), "{page}");
    }
}
