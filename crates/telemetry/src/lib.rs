//! Logs, traces and metrics of a process.
//!
//! Logs are structured and never hold a token, a password or the content of a message. Traces go to an OpenTelemetry
//! collector where one is configured. Metrics are kept in the process and rendered for Prometheus on request.

use std::{fs, io::IsTerminal, sync::OnceLock};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider},
};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// What an operator may choose.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// What to log: a level (`info`), or levels by module (`info,cofactor_entity=debug`).
    pub log: String,
    /// Logs as JSON, one object a line.
    pub json: bool,
    /// The OpenTelemetry collector to send traces to, over OTLP/HTTP, such as `http://localhost:4318/v1/traces`.
    pub otlp_endpoint: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        // The libraries below say more than an operator wants to know.
        Self {
            log: "info,actix_server=warn,fjall=warn,lsm_tree=warn,ruma_state_res=warn,scylla=warn".into(),
            json: false,
            otlp_endpoint: None,
        }
    }
}

/// Why telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter has a mistake.
    #[error("the option `telemetry.log` cannot be read: {0}; write a level such as `info`")]
    Filter(String),
    /// The exporter cannot be made.
    #[error("traces cannot be sent (option `telemetry.otlp_endpoint`): {0}")]
    Exporter(String),
    /// Something is set up already.
    #[error("telemetry is set up already: {0}")]
    Twice(String),
}

/// Keeps telemetry going; dropping it sends what still waits.
#[derive(Debug)]
pub struct Guard {
    traces: Option<SdkTracerProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(traces) = self.traces.take() {
            // The process ends; nobody is left to tell that the collector is gone.
            let _ = traces.shutdown();
        }
    }
}

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Sets telemetry up for the process.
///
/// # Errors
/// One sentence naming the option.
pub fn init(options: &Options) -> Result<Guard, TelemetryError> {
    let filter = EnvFilter::try_new(&options.log).map_err(|error| TelemetryError::Filter(error.to_string()))?;
    // Colours are for people; in a file or a pipe they are noise.
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let logs = if options.json { logs.json().boxed() } else { logs.boxed() };
    let traces = options.otlp_endpoint.as_deref().map(exporter).transpose()?;
    let layer = traces.as_ref().map(|traces| tracing_opentelemetry::layer().with_tracer(traces.tracer("cofactor")));
    tracing_subscriber::registry()
        .with(layer)
        .with(logs.with_filter(filter))
        .try_init()
        .map_err(|error| TelemetryError::Twice(error.to_string()))?;
    let recorder = PrometheusBuilder::new().install_recorder();
    let recorder = recorder.map_err(|error| TelemetryError::Twice(error.to_string()))?;
    let _ = METRICS.set(recorder);
    Ok(Guard { traces })
}

fn exporter(endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(endpoint).build();
    let exporter = exporter.map_err(|error| TelemetryError::Exporter(error.to_string()))?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).build())
}

/// The trace of the current span, as a `traceparent` header, if traces are sent anywhere.
/// <https://www.w3.org/TR/trace-context/>
pub fn current_trace() -> Option<String> {
    let context = Span::current().context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8()))
}

/// Makes `span` part of the trace that a caller carries in a `traceparent` header. One that cannot be read is ignored.
pub fn follow(span: &Span, trace: Option<&str>) {
    let Some(trace) = trace else { return };
    let mut parts = trace.split('-').skip(1);
    let parsed = (|| {
        let trace_id = TraceId::from_hex(parts.next()?).ok()?;
        let span_id = SpanId::from_hex(parts.next()?).ok()?;
        let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
        Some(SpanContext::new(trace_id, span_id, TraceFlags::new(flags), true, TraceState::default()))
    })();
    if let Some(parent) = parsed.filter(SpanContext::is_valid) {
        // An error says that traces are not sent anywhere.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// The metrics page: what the process counted, and what the system says of it.
pub fn render_metrics() -> String {
    let mut page = METRICS.get().map(|metrics| {
        metrics.run_upkeep();
        metrics.render()
    });
    let page = page.get_or_insert_default();
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            page.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"));
        }
    };
    gauge("process_resident_memory_bytes", "Resident memory.", resident_bytes());
    gauge("process_cpu_seconds_total", "User and system time.", cpu_seconds());
    gauge("process_open_fds", "Open file descriptors.", open_files());
    std::mem::take(page)
}

fn resident_bytes() -> Option<f64> {
    const PAGE_BYTES: f64 = 4096.0;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<f64>().ok()? * PAGE_BYTES)
}

fn cpu_seconds() -> Option<f64> {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold blanks; the numbers begin after its closing parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / TICKS_A_SECOND)
}

fn open_files() -> Option<f64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}
