//! Traces: the spans of a message's way, and how a trace passes from task to task and from process to process.
//!
//! Spans are made with [`crate::span!`], which costs one load of an atomic where no collector is configured. Their fields name
//! what was done and where, and never who said what: no token, no content, no user.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    Context, KeyValue,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter},
};
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{Options, TelemetryError};

/// The target of all spans that are sent to the collector, and of nothing else.
pub const TARGET: &str = "cofactor_trace";

/// How long the process waits for the collector when it ends.
const GOODBYE: Duration = Duration::from_secs(2);

static TRACING: AtomicBool = AtomicBool::new(false);

/// Whether traces are sent anywhere.
pub fn is_tracing() -> bool {
    TRACING.load(Ordering::Relaxed)
}

pub(crate) fn set_tracing() {
    TRACING.store(true, Ordering::Relaxed);
}

/// A span of a message's way, with the fields of [`tracing::info_span!`]; none where traces are not sent anywhere.
#[macro_export]
macro_rules! span {
    (parent: $parent:expr, $name:literal $($fields:tt)*) => {
        if $crate::is_tracing() {
            $crate::tracing::info_span!(target: $crate::TARGET, parent: $parent, $name $($fields)*)
        } else {
            $crate::tracing::Span::none()
        }
    };
    ($name:literal $($fields:tt)*) => {
        if $crate::is_tracing() {
            $crate::tracing::info_span!(target: $crate::TARGET, $name $($fields)*)
        } else {
            $crate::tracing::Span::none()
        }
    };
}

/// A place in a trace: what a span is to whoever follows it. <https://www.w3.org/TR/trace-context/>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Trace {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

/// A text or a row of bytes that is no [`Trace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a place in a trace")]
pub struct NoTrace;

impl Trace {
    /// The length of [`Self::to_bytes`].
    pub const BYTES: usize = 25;

    /// The place of `span`; `None` if traces are not sent anywhere.
    pub fn of(span: &Span) -> Option<Self> {
        if span.is_none() || !is_tracing() {
            return None;
        }
        let context = span.context();
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| Self {
            trace_id: span.trace_id().to_bytes(),
            span_id: span.span_id().to_bytes(),
            flags: span.trace_flags().to_u8(),
        })
    }

    /// The shortest form: the ids and the flags.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..24].copy_from_slice(&self.span_id);
        bytes[24] = self.flags;
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote; anything else is no trace.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace_id, rest) = bytes.split_first_chunk::<16>()?;
        let (span_id, rest) = rest.split_first_chunk::<8>()?;
        let [flags] = rest else { return None };
        Some(Self { trace_id: *trace_id, span_id: *span_id, flags: *flags })
    }

    /// The id that all spans of the trace have, in hexadecimal.
    pub fn id(&self) -> String {
        TraceId::from_bytes(self.trace_id).to_string()
    }

    /// Makes `span`, which nobody has entered yet, part of this trace.
    pub fn lead(self, span: &Span) {
        if !span.is_none() {
            // An error says that the span is sent nowhere, or was entered already and stays where it is.
            let _ = span.set_parent(Context::new().with_remote_span_context(self.context()));
        }
    }

    /// Says in `span` that it has to do with this trace, too.
    pub fn link(self, span: &Span) {
        if !span.is_none() {
            span.add_link(self.context());
        }
    }

    fn context(self) -> SpanContext {
        let (trace_id, span_id) = (TraceId::from_bytes(self.trace_id), SpanId::from_bytes(self.span_id));
        SpanContext::new(trace_id, span_id, TraceFlags::new(self.flags), true, TraceState::default())
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace_id, span_id) = (TraceId::from_bytes(self.trace_id), SpanId::from_bytes(self.span_id));
        write!(f, "00-{trace_id}-{span_id}-{:02x}", self.flags)
    }
}

impl FromStr for Trace {
    type Err = NoTrace;

    fn from_str(text: &str) -> Result<Self, NoTrace> {
        let mut parts = text.split('-').skip(1);
        let mut next = || parts.next().ok_or(NoTrace);
        let trace_id = TraceId::from_hex(next()?).map_err(|_| NoTrace)?;
        let span_id = SpanId::from_hex(next()?).map_err(|_| NoTrace)?;
        let flags = u8::from_str_radix(next()?, 16).map_err(|_| NoTrace)?;
        if trace_id == TraceId::INVALID || span_id == SpanId::INVALID {
            return Err(NoTrace);
        }
        Ok(Self { trace_id: trace_id.to_bytes(), span_id: span_id.to_bytes(), flags })
    }
}

/// The trace of the current span, as a `traceparent` header, if traces are sent anywhere.
pub fn current_trace() -> Option<String> {
    if !is_tracing() {
        return None;
    }
    Trace::of(&Span::current()).map(|trace| trace.to_string())
}

/// Makes `span`, which nobody has entered yet, part of the trace that a caller carries in a `traceparent` header. One that
/// cannot be read is ignored.
pub fn follow(span: &Span, trace: Option<&str>) {
    if let Some(trace) = trace.filter(|_| is_tracing()).and_then(|text| text.parse::<Trace>().ok()) {
        trace.lead(span);
    }
}

/// Gives `span` another name, when it is known only at the end what was asked.
pub fn rename(span: &Span, name: String) {
    if !span.is_none() {
        span.context().span().update_name(name);
    }
}

/// The way to the collector.
pub(crate) fn provider(options: &Options, endpoint: &str, instance: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(endpoint).build();
    let exporter = exporter.map_err(|error| TelemetryError::Exporter(error.to_string()))?;
    let resource = Resource::builder()
        .with_service_name("cofactor")
        .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
        .build();
    let share = Sampler::TraceIdRatioBased(options.trace_share.clamp(0.0, 1.0));
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource);
    Ok(provider.with_sampler(Sampler::ParentBased(Box::new(share))).build())
}

pub(crate) fn shutdown(provider: &SdkTracerProvider) {
    // The process ends; nobody is left to tell that the collector is gone.
    let _ = provider.shutdown_with_timeout(GOODBYE);
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// What was done.
    pub name: String,
    /// [`Trace::id`].
    pub trace_id: String,
    /// The trace ids of its links.
    pub links: Vec<String>,
    /// The fields, as text.
    pub fields: Vec<(String, String)>,
}

/// Ended spans, kept in the process for tests.
#[derive(Clone, Debug, Default)]
pub struct Collected(std::sync::Arc<Mutex<Vec<Ended>>>);

impl Collected {
    /// Those that have ended so far.
    pub fn ended(&self) -> Vec<Ended> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn provider(&self) -> SdkTracerProvider {
        SdkTracerProvider::builder().with_simple_exporter(self.clone()).build()
    }
}

impl SpanExporter for Collected {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let ended = batch.into_iter().map(|span| Ended {
            name: span.name.into_owned(),
            trace_id: span.span_context.trace_id().to_string(),
            links: span.links.iter().map(|link| link.span_context.trace_id().to_string()).collect(),
            fields: span.attributes.iter().map(|one| (one.key.to_string(), one.value.to_string())).collect(),
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(ended);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_survives_the_header_and_the_bytes() {
        let trace: Trace = HEADER.parse().unwrap();
        assert_eq!(trace.to_string(), HEADER);
        assert_eq!(trace.id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(Trace::from_bytes(&trace.to_bytes()), Some(trace));
        assert_eq!(Trace::from_bytes(&trace.to_bytes()[1..]), None);
        assert_eq!(Trace::from_bytes(&[0; Trace::BYTES + 1]), None);
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        for text in ["", "00", "00-x-y-01", zeros, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"] {
            assert_eq!(text.parse::<Trace>(), Err(NoTrace), "{text}");
        }
    }

    #[test]
    fn where_traces_go_nowhere_there_is_no_span() {
        assert!(crate::span!("anything", number = 1).is_none());
        assert_eq!(current_trace(), None);
    }
}
