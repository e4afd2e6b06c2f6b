//! One self-contained HTML page: no script, nothing loaded from anywhere.

use std::fmt::Write;

use super::chart::{Chart, Line, Scale, escape};
use super::table::{self, HEAD, cells, figure};
use crate::run::{Report, Row};

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 3px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.invalid td { background: #d003; } .invalid { color: #c00; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: currentColor; } svg .label { font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; }
.legend { list-style: none; padding: 0; margin: 0; font-size: 13px; display: flex; flex-wrap: wrap; gap: 0 1rem; }
.legend span { display: inline-block; width: 12px; height: 12px; margin-right: 5px; border-radius: 2px; }
.note { background: var(--soft); padding: .6rem .9rem; border-radius: 6px; }
";

/// The whole report as a page.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    let _ = write!(
        out,
        "<meta name=\"viewport\" content=\"width=device-width\"><title>Load test</title><style>{STYLE}</style></head><body>\
         <h1>Load test of Matrix homeservers</h1>"
    );
    for note in &report.notes {
        let _ = write!(out, "<p class=\"note\">{}</p>", escape(note));
    }
    for failure in &report.failures {
        let _ = write!(out, "<p class=\"note invalid\">Not measured: {}</p>", escape(failure));
    }
    if let Some(floor) = &report.floor {
        let _ = write!(out, "<p class=\"note\">{}</p>", escape(&table::floors(floor)));
    }
    let mut scenarios: Vec<&str> = Vec::new();
    for row in &report.rows {
        if !scenarios.contains(&row.scenario) {
            scenarios.push(row.scenario);
        }
    }
    for scenario in scenarios {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.scenario == scenario).collect();
        let _ = write!(out, "<h2>{}</h2>", escape(scenario));
        out.push_str(&rows_of(&rows));
        out.push_str("<div class=\"charts\">");
        for chart in [growth(report, &rows), figures(&rows), latency(&rows), throughput(&rows)].iter().flatten() {
            let svg = chart.svg();
            if !svg.is_empty() {
                let title = escape(&chart.title);
                let _ = write!(out, "<figure><figcaption>{title}</figcaption>{svg}{}</figure>", chart.legend());
            }
        }
        out.push_str("</div>");
    }
    out.push_str("</body></html>\n");
    out
}

fn rows_of(rows: &[&Row]) -> String {
    let head: String = HEAD.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    let mut out = format!("<div class=\"scroll\"><table><tr>{head}</tr>");
    for row in rows {
        let class = if row.invalid.is_some() { " class=\"invalid\"" } else { "" };
        let cells: String = cells(row).iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        let _ = write!(out, "<tr{class}>{cells}</tr>");
    }
    out.push_str("</table></div>");
    for row in rows {
        let what = format!("{}, {}, {} {}", row.target, row.case.series, row.case.size, row.case.variable);
        if let Some(why) = &row.invalid {
            let _ = write!(out, "<p class=\"invalid\">Invalid: {}: {}</p>", escape(&what), escape(why));
        }
        if let Some(why) = &row.void {
            let _ = write!(out, "<p>Latencies and rates are void: {}: {}</p>", escape(&what), escape(why));
        }
        for (kind, count) in &row.failed {
            let _ = write!(out, "<p>Failed: {}: {count} × {}</p>", escape(&what), escape(kind));
        }
        if !row.figures.is_empty() {
            let all: Vec<String> =
                row.figures.iter().map(|(name, value)| format!("{name} {}", figure(*value))).collect();
            let _ = write!(out, "<p>{}: {}</p>", escape(&what), escape(&all.join(", ")));
        }
    }
    out
}

/// Cost against size with the fitted law, targets side by side.
fn growth(report: &Report, rows: &[&Row]) -> Vec<Chart> {
    let mut lines = Vec::new();
    let of_rows = |target: &str, series: &str| rows.iter().any(|row| row.target == target && row.case.series == series);
    for law in report.laws.iter().filter(|law| of_rows(&law.target, &law.series)) {
        let name = format!("{}: {} ~ {}^{:.2}", law.target, law.series, law.variable, law.growth.exponent);
        let fitted = law.points.iter().map(|(size, _)| (*size, law.growth.cost(*size))).collect();
        lines.push(Line { name, points: law.points.clone(), law: false });
        lines.push(Line { name: String::new(), points: fitted, law: true });
    }
    let variable = rows.first().map_or("size", |row| row.case.variable);
    vec![Chart {
        title: "CPU time of the server for each operation".to_owned(),
        across: (variable.to_owned(), Scale::Log),
        up: ("µs".to_owned(), Scale::Log),
        lines,
    }]
}

/// The other figures of a scenario against size, one chart for each.
fn figures(rows: &[&Row]) -> Vec<Chart> {
    let mut names: Vec<&str> = rows.iter().flat_map(|row| row.figures.keys().copied()).collect();
    names.sort_unstable();
    names.dedup();
    let chart = |name: &str| {
        let mut lines: Vec<Line> = Vec::new();
        for row in rows {
            let Some(value) = row.figures.get(name) else { continue };
            #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
            let point = (row.case.size as f64, *value);
            let line = format!("{}: {}", row.target, row.case.series);
            match lines.iter_mut().find(|known| known.name == line) {
                Some(known) => known.points.push(point),
                None => lines.push(Line { name: line, points: vec![point], law: false }),
            }
        }
        let variable = rows.first().map_or("size", |row| row.case.variable);
        let (across, up) = ((variable.to_owned(), Scale::Log), (name.to_owned(), Scale::Log));
        Chart { title: name.to_owned(), across, up, lines }
    };
    names.into_iter().map(chart).collect()
}

/// Latency against percentile.
fn latency(rows: &[&Row]) -> Vec<Chart> {
    let line = |row: &&Row| {
        let latency = row.latency_ms.as_ref()?;
        let name = format!("{}: {}, {} {}", row.target, row.case.series, row.case.size, row.case.variable);
        Some(Line { name, points: latency.curve.clone(), law: false })
    };
    vec![Chart {
        title: "Latency from the intended start, open arrivals".to_owned(),
        across: ("percentile".to_owned(), Scale::Percentile),
        up: ("ms".to_owned(), Scale::Log),
        lines: rows.iter().filter_map(line).collect(),
    }]
}

/// Operations done in each second.
fn throughput(rows: &[&Row]) -> Vec<Chart> {
    #[expect(clippy::cast_precision_loss, reason = "seconds and counts far below 2^52")]
    let line = |row: &&Row| {
        if row.by_second.is_empty() {
            return None;
        }
        let points = row.by_second.iter().enumerate().map(|(second, done)| (second as f64, *done as f64)).collect();
        let name = format!("{}: {}, {} {}", row.target, row.case.series, row.case.size, row.case.variable);
        Some(Line { name, points, law: false })
    };
    vec![Chart {
        title: "Done in each second, open arrivals, rounds one after another".to_owned(),
        across: ("s".to_owned(), Scale::Linear),
        up: ("operations".to_owned(), Scale::Linear),
        lines: rows.iter().filter_map(line).collect(),
    }]
}
