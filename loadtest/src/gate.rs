//! The gate of continuous integration: starts a server, measures what a send, an empty sync, a join and a page of history
//! cost at growing sizes, and refuses a server whose cost grows with them.
//!
//! Absolute times say little on a shared machine and are not judged; the law of growth is the same everywhere.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::launch::Launched;
use crate::probes::Floor;
use crate::progress::Progress;
use crate::report::table;
use crate::run::{Report, run};
use crate::scenario::{ALL, Context, Known, Plan};
use crate::world::{Bounds, ClientBounds, connect};

/// A cost that grows faster than `size^0.1` is refused: a thousand times the size would double it. Noise of a shared
/// machine stays below; anything proportional to the size, even a small part of the cost, does not.
pub const EXPONENT_MAX: f64 = 0.1;
/// What must cost the same at all sizes.
const SCENARIOS: [&str; 4] = ["send", "incremental", "membership", "history"];
/// How long each probe of the floor runs.
const PROBE: Duration = Duration::from_millis(500);

fn plan() -> Plan {
    Plan {
        members: vec![1, 10, 100, 1000],
        rooms: vec![10, 100, 1000],
        pages: vec![1, 10, 100],
        in_flight: vec![10],
        // What changed in many rooms must be sent, so the cost of such a sync grows by right.
        changed: Vec::new(),
        rounds: 5,
        time: Duration::from_millis(700),
        warm_up: Duration::from_millis(150),
        requests_max: 4000,
        open: false,
        check_members: 4,
        check_deliveries_max: 50_000,
        run: "gate".to_owned(),
        ..Plan::default()
    }
}

/// Measures `binary` and returns what was found.
///
/// # Errors
/// When the server does not start or an operation cannot be measured; not for what the measurement says.
pub async fn measure(binary: &Path, progress: Progress) -> Result<Report> {
    let floor = Floor::measure(PROBE)?;
    let launched = Launched::start(binary)?;
    let client = ClientBounds { connections_max: 64, time_limit: Duration::from_secs(30), i_own_this_server: false };
    let bounds = Bounds { users_max: 2000, rooms_max: 2000 };
    let world = connect(launched.target.clone(), client, None, "gate".to_owned(), bounds).await?;
    let scenarios: Vec<&Known> = ALL.iter().filter(|known| SCENARIOS.contains(&known.name)).collect();
    run(&mut [world], &scenarios, Some(floor), &Context { plan: plan(), progress }).await
}

/// What a report has against a server; empty if its costs do not grow.
#[must_use]
pub fn complaints(report: &Report) -> Vec<String> {
    let mut complaints = report.failures.clone();
    if report.laws.is_empty() {
        complaints.push("no cost was measured".to_owned());
    }
    for law in report.laws.iter().filter(|law| law.growth.exponent > EXPONENT_MAX) {
        let (series, variable, exponent) = (&law.series, law.variable, law.growth.exponent);
        complaints
            .push(format!("{series}: the CPU time grows like {variable}^{exponent:.2}; {EXPONENT_MAX} is allowed"));
    }
    for row in &report.rows {
        let bad = row.failed.values().sum::<u64>() + row.timed_out;
        let what = format!("{} with {} {}", row.case.series, row.case.size, row.case.variable);
        if let Some(why) = &row.invalid {
            complaints.push(format!("{what}: {why}"));
        } else if bad > 0 {
            complaints.push(format!("{what}: {bad} operations failed"));
        }
    }
    complaints
}

/// The table of a report, or the failure that it is.
///
/// # Errors
/// When there are [`complaints`].
pub fn judge(report: &Report) -> Result<String> {
    let table = table::render(report);
    let complaints = complaints(report);
    if complaints.is_empty() {
        return Ok(table);
    }
    bail!("{table}\n{}", complaints.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::growth;
    use crate::run::Law;

    fn report(cost: impl Fn(f64) -> f64) -> Report {
        let points: Vec<(f64, f64)> = [1.0, 10.0, 100.0, 1000.0].map(|size| (size, cost(size))).to_vec();
        let growth = growth(&points).unwrap();
        let law = Law { target: "t".to_owned(), series: "send".to_owned(), variable: "members", points, growth };
        Report { laws: vec![law], ..Report::default() }
    }

    #[test]
    fn a_constant_cost_passes() {
        assert!(complaints(&report(|_| 90.0)).is_empty());
        assert!(complaints(&report(|size| 90.0 + size.log10())).is_empty());
    }

    #[test]
    fn planted_growth_is_refused() {
        let planted: [fn(f64) -> f64; 4] =
            [|size| 90.0 * size, |size| 90.0 * size.sqrt(), |size| 90.0 + 0.5 * size, |size| 90.0 * size.powf(0.15)];
        for cost in planted {
            let refusal = judge(&report(cost)).unwrap_err().to_string();
            assert!(refusal.contains("send: the CPU time grows like members^"), "{refusal}");
        }
    }

    #[test]
    fn a_gate_that_measured_nothing_does_not_pass() {
        assert_eq!(complaints(&Report::default()), ["no cost was measured"]);
    }
}
