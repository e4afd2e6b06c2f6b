//! Logs, traces and metrics of a process.
//!
//! Logs are structured and never hold a token, a password or the content of a message. Traces go to an OpenTelemetry
//! collector where one is configured. Metrics are kept in the process and rendered for Prometheus on request.

mod trace;

use std::{fs, io::IsTerminal, sync::OnceLock};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::{Deserialize, Serialize};
#[doc(hidden)]
pub use tracing;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

pub use self::trace::{Collected, Ended, NoTrace, TARGET, Trace, current_trace, follow, is_tracing, rename};

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
    /// The part of all traces that is sent, from 0 to 1.
    pub trace_share: f64,
}

impl Default for Options {
    fn default() -> Self {
        // The libraries below say more than an operator wants to know.
        Self {
            log: "info,actix_server=warn,fjall=warn,lsm_tree=warn,ruma_state_res=warn,scylla=warn".into(),
            json: false,
            otlp_endpoint: None,
            trace_share: 1.0,
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
            trace::shutdown(&traces);
        }
    }
}

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Sets telemetry up for the process, which traces call `instance`.
///
/// # Errors
/// One sentence naming the option.
pub fn init(options: &Options, instance: &str) -> Result<Guard, TelemetryError> {
    let traces = options.otlp_endpoint.as_deref();
    let traces = traces.map(|endpoint| trace::provider(options, endpoint, instance)).transpose()?;
    install(options, traces)
}

/// As [`init`], with traces kept in the process. For tests.
///
/// # Errors
/// As [`init`].
pub fn init_collecting(options: &Options) -> Result<(Guard, Collected), TelemetryError> {
    let collected = Collected::default();
    Ok((install(options, Some(collected.provider()))?, collected))
}

fn install(options: &Options, traces: Option<SdkTracerProvider>) -> Result<Guard, TelemetryError> {
    let filter = EnvFilter::try_new(&options.log).map_err(|error| TelemetryError::Filter(error.to_string()))?;
    // Spans are for the collector; the lines of a log do not repeat them.
    let off = format!("{}=off", TARGET).parse();
    let filter = off.map_or(filter.clone(), |off| filter.add_directive(off));
    // Colours are for people; in a file or a pipe they are noise.
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let logs = if options.json { logs.json().boxed() } else { logs.boxed() };
    // Only spans of a message's way are sent: what libraries say of themselves may hold anything.
    let ours = Targets::new().with_target(TARGET, LevelFilter::INFO);
    let layer = traces.as_ref().map(|traces| {
        let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer("cofactor"));
        layer
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(ours)
    });
    tracing_subscriber::registry()
        .with(layer)
        .with(logs.with_filter(filter))
        .try_init()
        .map_err(|error| TelemetryError::Twice(error.to_string()))?;
    let recorder = PrometheusBuilder::new().install_recorder();
    let recorder = recorder.map_err(|error| TelemetryError::Twice(error.to_string()))?;
    let _ = METRICS.set(recorder);
    if traces.is_some() {
        trace::set_tracing();
    }
    Ok(Guard { traces })
}

/// Tidies up what histograms have kept, which must be done every few seconds whether or not anybody asks for metrics.
pub fn keep_up() {
    if let Some(metrics) = METRICS.get() {
        metrics.run_upkeep();
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
