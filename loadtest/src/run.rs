//! Runs scenarios on targets that take turns, and puts the rounds of each case together.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::check::Findings;
use crate::fit::{Growth, growth, median};
use crate::load::Tally;
use crate::probes::Floor;
use crate::scenario::{Case, Context, FloorOf, Known, Sample, Scenario};
use crate::world::World;

/// The generator used more of a core than this: its own limit may be what was measured.
pub const GENERATOR_SHARE_MAX: f64 = 0.9;
/// More arrivals than this part were late: the arrival times were not what they should be.
pub const LATE_SHARE_MAX: f64 = 0.05;

/// One case of one target, all rounds together.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The target.
    pub target: String,
    /// The scenario.
    pub scenario: &'static str,
    /// The case.
    #[serde(flatten)]
    pub case: Case,
    /// The server's CPU time for one operation in µs: the median of the rounds.
    pub cpu_us: Option<f64>,
    /// The same, the least and the most of the rounds.
    pub cpu_us_range: Option<(f64, f64)>,
    /// That cost as a multiple of the floor.
    pub over_floor: Option<f64>,
    /// Bytes written to storage for each operation.
    pub written_bytes: Option<f64>,
    /// Calls that write, to sockets and files, for each operation.
    pub write_calls: Option<f64>,
    /// Operations a second at full speed: the median of the rounds.
    pub capacity: Option<f64>,
    /// Arrivals a second that were offered.
    pub offered: Option<f64>,
    /// Latencies in ms with open arrivals.
    pub latency_ms: Option<Latency>,
    /// How many operations were done, over all phases that are counted.
    pub done: u64,
    /// How many failed, by kind.
    pub failed: BTreeMap<String, u64>,
    /// How many got no answer in time.
    pub timed_out: u64,
    /// What was wrong with what arrived.
    pub findings: Option<Findings>,
    /// Other figures, by name with unit.
    pub figures: BTreeMap<&'static str, f64>,
    /// What the server counted itself, for each operation at full speed, by the names of its metrics.
    pub counters: BTreeMap<String, f64>,
    /// Open arrivals done in each second.
    pub by_second: Vec<u64>,
    /// The most of a core that the generator used in a round.
    pub generator: f64,
    /// Arrivals that the generator started late.
    pub late: u64,
    /// Why no figure of this row may be used: the server did not do what it was measured for.
    pub invalid: Option<String>,
    /// Why its latencies and rates may not be used: the generator was the limit.
    pub void: Option<String>,
}

/// A distribution of latencies in ms.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// (percentile, ms), for charts.
    pub curve: Vec<(f64, f64)>,
}

impl Latency {
    /// The distribution of a tally, in which everything that failed took for ever: it stands behind every percentile.
    #[must_use]
    pub fn of(tally: &Tally) -> Option<Self> {
        let (done, tried) = (tally.latency.len(), tally.tried());
        if done == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts and µs far below 2^52")]
        let at = |percent: f64| {
            let rank = (percent / 100.0 * tried as f64).ceil() as u64;
            if rank > done { f64::INFINITY } else { quantile(tally, rank as f64 / done as f64) }
        };
        let curve = [
            0.0, 1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 85.0, 90.0, 92.5, 95.0, 97.0, 98.0, 99.0,
            99.5, 99.9, 99.99,
        ];
        let curve = curve.into_iter().map(|percent| (percent, at(percent))).filter(|(_, ms)| ms.is_finite()).collect();
        Some(Self { p50: at(50.0), p90: at(90.0), p99: at(99.0), p999: at(99.9), max: at(100.0), curve })
    }
}

#[expect(clippy::cast_precision_loss, reason = "µs far below 2^52")]
fn quantile(tally: &Tally, part: f64) -> f64 {
    tally.latency.value_at_quantile(part.min(1.0)) as f64 / 1000.0
}

/// How the cost of a series grows on one target.
#[derive(Debug, Clone, Serialize)]
pub struct Law {
    /// The target.
    pub target: String,
    /// The series.
    pub series: String,
    /// What the size counts.
    pub variable: &'static str,
    /// (size, µs) as measured.
    pub points: Vec<(f64, f64)>,
    /// The law.
    pub growth: Growth,
}

/// Everything that a run found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What the machine allows.
    pub floor: Option<Floor>,
    /// Every case of every target.
    pub rows: Vec<Row>,
    /// How costs grow.
    pub laws: Vec<Law>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
    /// What a reader must know: targets, options, limits.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether every server did what it was measured for.
    #[must_use]
    pub fn valid(&self) -> bool {
        self.failures.is_empty() && self.rows.iter().all(|row| row.invalid.is_none())
    }
}

/// Measures every case of the scenarios on every world, in rounds in which the worlds take turns. A scenario that
/// cannot be measured stands in the report with the reason, and the others go on.
///
/// # Errors
/// When nothing at all could be measured.
pub async fn run(
    worlds: &mut [World],
    scenarios: &[&Known],
    floor: Option<Floor>,
    context: &Context,
) -> Result<Report> {
    let mut report = Report { floor, ..Report::default() };
    for known in scenarios {
        if let Err(error) = one(worlds, known, context, &mut report).await {
            context.progress.say(&format!("{}: {error:#}", known.name));
            report.failures.push(format!("{}: {error:#}", known.name));
        }
    }
    if let (true, Some(failure)) = (report.rows.is_empty(), report.failures.first()) {
        bail!("{failure}");
    }
    report.laws = laws(&report.rows);
    Ok(report)
}

async fn one(worlds: &mut [World], known: &Known, context: &Context, report: &mut Report) -> Result<()> {
    let mut runs: Vec<(&mut World, Box<dyn Scenario>)> = Vec::new();
    for world in worlds.iter_mut() {
        let scenario = (known.make)();
        match scenario.lacks(world).await? {
            Some(why) => report.notes.push(format!("{}: {} was not measured: {why}", world.target.name, known.name)),
            None => runs.push((world, scenario)),
        }
    }
    let cases = (known.make)().cases(&context.plan);
    for (world, scenario) in &mut runs {
        for case in &cases {
            let prepared = scenario.prepare(world, case, context).await;
            prepared.with_context(|| format!("preparing {} with {} {}", case.series, case.size, case.variable))?;
        }
    }
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); runs.len() * cases.len()];
    let parts = samples.len() * context.plan.rounds as usize;
    let step = context.progress.step(&format!("measuring {}", known.name), parts);
    for round in 0..context.plan.rounds {
        for (at, case) in cases.iter().enumerate() {
            for (which, (world, scenario)) in runs.iter_mut().enumerate() {
                let measured = scenario.measure(world, case, context, round).await;
                let what = || format!("{}: {} with {} {}", world.target.name, case.series, case.size, case.variable);
                samples[which * cases.len() + at].push(measured.with_context(what)?);
                step.tick();
            }
        }
    }
    for (place, samples) in samples.iter().enumerate() {
        let (target, case) = (&runs[place / cases.len()].0.target.name, &cases[place % cases.len()]);
        report.rows.push(row(target.clone(), known.name, case, samples, report.floor.as_ref()));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn row(target: String, scenario: &'static str, case: &Case, samples: &[Sample], floor: Option<&Floor>) -> Row {
    let costs: Vec<_> = samples.iter().filter_map(|sample| sample.cost).collect();
    let of_each = |figure: fn(&crate::proc::Usage) -> u64, unit: f64| {
        let each: Vec<f64> = costs.iter().map(|(count, usage)| figure(usage) as f64 / unit / *count as f64).collect();
        (median(&each), each)
    };
    let (cpu_us, rounds) = of_each(|usage| usage.cpu_ns, 1000.0);
    let range = (rounds.iter().copied().fold(f64::INFINITY, f64::min), rounds.iter().copied().fold(0.0, f64::max));
    let mut open: Option<Tally> = None;
    let mut counted = Tally::default();
    for sample in samples {
        if let Some(tally) = &sample.open {
            open.get_or_insert_default().append(tally);
            counted.append(tally);
        }
        for tally in [&sample.capacity, &sample.other].into_iter().flatten() {
            counted.append(tally);
        }
    }
    let findings = samples.iter().filter_map(|sample| sample.findings.as_ref()).fold(None, |sum, one| {
        let mut sum: Findings = sum.unwrap_or_default();
        sum.add(one);
        Some(sum)
    });
    let rates: Vec<f64> = samples.iter().filter_map(|sample| Some(sample.capacity.as_ref()?.rate())).collect();
    let offered: Vec<f64> = samples.iter().map(|sample| sample.offered).filter(|rate| *rate > 0.0).collect();
    let floor_us = floor.and_then(|floor| match case.floor {
        FloorOf::Send => Some(floor.send_us()),
        FloorOf::Sync => Some(floor.sync_us()),
        FloorOf::Nothing => None,
    });
    let mut row = Row {
        target,
        scenario,
        case: case.clone(),
        cpu_us,
        cpu_us_range: cpu_us.map(|_| range),
        over_floor: cpu_us.zip(floor_us).map(|(cost, floor)| cost / floor),
        written_bytes: of_each(|usage| usage.written_bytes, 1.0).0,
        write_calls: of_each(|usage| usage.write_calls, 1.0).0,
        capacity: median(&rates),
        offered: median(&offered),
        latency_ms: open.as_ref().and_then(Latency::of),
        done: counted.done,
        failed: counted.failed,
        timed_out: counted.timed_out,
        findings,
        figures: medians(samples, |sample| &sample.figures),
        counters: medians(samples, |sample| &sample.counters),
        by_second: open.as_ref().map(|tally| tally.by_second.clone()).unwrap_or_default(),
        generator: samples.iter().map(|sample| sample.generator).fold(0.0, f64::max),
        late: open.as_ref().map_or(0, |tally| tally.late),
        invalid: None,
        void: None,
    };
    row.invalid = fault(&row);
    row.void = limit(&row, open.as_ref());
    row
}

fn medians<K: Ord + Clone>(samples: &[Sample], of: fn(&Sample) -> &BTreeMap<K, f64>) -> BTreeMap<K, f64> {
    let mut values: BTreeMap<K, Vec<f64>> = BTreeMap::new();
    for (name, value) in samples.iter().flat_map(of) {
        values.entry(name.clone()).or_default().push(*value);
    }
    values.into_iter().filter_map(|(name, values)| Some((name, median(&values)?))).collect()
}

/// What the server did wrong, so that its speed means nothing.
fn fault(row: &Row) -> Option<String> {
    if let Some(findings) = row.findings.as_ref().filter(|findings| !findings.clean()) {
        let Findings { lost, repeated, reordered, late, .. } = findings;
        return Some(format!("{lost} events lost, {repeated} repeated, {reordered} out of order, {late} late"));
    }
    (row.done == 0).then(|| "nothing succeeded".to_owned())
}

/// How the generator was the limit, so that latencies and rates say nothing about the server.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn limit(row: &Row, open: Option<&Tally>) -> Option<String> {
    let tried = open.map_or(0, Tally::tried);
    if row.late as f64 > tried as f64 * LATE_SHARE_MAX {
        return Some(format!("the generator started {} of {tried} arrivals more than 2 ms late", row.late));
    }
    let limited = row.generator > GENERATOR_SHARE_MAX;
    limited.then(|| format!("the generator used {:.0} % of a core", row.generator * 100.0))
}

fn laws(rows: &[Row]) -> Vec<Law> {
    let mut series: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let key = (row.target.as_str(), row.case.series.as_str());
        if !series.contains(&key) {
            series.push(key);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
    let law = |(target, series): (&str, &str)| {
        let of_series = rows.iter().filter(|row| row.target == target && row.case.series == series);
        let variable = of_series.clone().next()?.case.variable;
        let points: Vec<(f64, f64)> = of_series.filter_map(|row| Some((row.case.size as f64, row.cpu_us?))).collect();
        let growth = growth(&points)?;
        Some(Law { target: target.to_owned(), series: series.to_owned(), variable, points, growth })
    };
    series.into_iter().filter_map(law).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::Outcome;
    use crate::proc::Usage;

    fn case(size: u64) -> Case {
        Case { series: "send".to_owned(), variable: "members", size, in_flight: 1, floor: FloorOf::Send }
    }

    fn sample(cpu_us: u64) -> Sample {
        let mut tally = Tally::default();
        (0..10).for_each(|_| tally.count(Outcome::Done, Duration::from_millis(2), Duration::from_millis(500)));
        let usage = Usage { cpu_ns: cpu_us * 10 * 1000, written_bytes: 5000, ..Usage::default() };
        Sample { capacity: Some(tally), cost: Some((10, usage)), ..Sample::default() }
    }

    #[test]
    fn a_row_is_the_median_of_its_rounds_as_a_multiple_of_the_floor() {
        let floor = Floor { sign_us: 14.0, json_us: 2.0, put_us: 10.0, get_us: 8.0, hop_us: 5.0, append_us: 4.0 };
        let row = row("a".to_owned(), "send", &case(1), &[sample(100), sample(80), sample(9000)], Some(&floor));
        assert_eq!((row.cpu_us, row.cpu_us_range), (Some(100.0), Some((80.0, 9000.0))));
        assert_eq!((row.over_floor, row.written_bytes, row.capacity), (Some(2.5), Some(500.0), Some(20.0)));
        assert!(row.invalid.is_none() && row.done == 30);
    }

    #[test]
    fn growth_is_fitted_for_each_target_and_series() {
        let rows: Vec<Row> = [(1, 100), (10, 101), (100, 99)]
            .into_iter()
            .flat_map(|(size, flat)| {
                let linear = sample(100 * size);
                [
                    row("a".to_owned(), "send", &case(size), &[sample(flat)], None),
                    row("b".to_owned(), "send", &case(size), &[linear], None),
                ]
            })
            .collect();
        let laws = laws(&rows);
        assert_eq!(laws.len(), 2);
        assert!(laws[0].growth.exponent.abs() < 0.05 && (laws[1].growth.exponent - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_lost_event_makes_a_figure_invalid() {
        let findings = Findings { lost: 1, ..Findings::default() };
        let bad = Sample { findings: Some(findings), ..sample(100) };
        let row = row("a".to_owned(), "send", &case(1), &[sample(100), bad], None);
        assert!(row.invalid.is_some_and(|why| why.contains("1 events lost")));
    }

    #[test]
    fn what_failed_stands_behind_every_percentile() {
        let mut tally = Tally::default();
        for ms in 1..=90 {
            tally.count(Outcome::Done, Duration::from_millis(ms), Duration::ZERO);
        }
        (0..10).for_each(|_| tally.count(Outcome::TimedOut, Duration::ZERO, Duration::ZERO));
        let latency = Latency::of(&tally).unwrap();
        assert!((latency.p50 - 50.0).abs() < 0.1 && (latency.p90 - 90.0).abs() < 0.2, "{latency:?}");
        assert!(latency.p99.is_infinite() && latency.max.is_infinite());
    }
}
