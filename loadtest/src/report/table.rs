//! The table for a terminal.

use std::fmt::Write;

use crate::probes::Floor;
use crate::run::{Report, Row};

/// The whole report as text.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    if let Some(floor) = &report.floor {
        out.push_str(&floors(floor));
        out.push('\n');
    }
    out.push_str(&rows(&report.rows));
    if !report.laws.is_empty() {
        out.push_str("\nhow the CPU time grows\n");
    }
    for law in &report.laws {
        let growth = &law.growth;
        let _ = writeln!(
            out,
            "  {}: {}: {:.0} µs × {}^{:.3} (± {:.3})",
            law.target, law.series, growth.at_one, law.variable, growth.exponent, growth.error
        );
    }
    for row in &report.rows {
        for (kind, count) in &row.failed {
            let _ = writeln!(
                out,
                "failed: {}: {} with {} {}: {count} × {kind}",
                row.target, row.case.series, row.case.size, row.case.variable
            );
        }
        let what = format!("{}: {} with {} {}", row.target, row.case.series, row.case.size, row.case.variable);
        if let Some(why) = &row.invalid {
            let _ = writeln!(out, "INVALID: {what}: {why}");
        }
        if let Some(why) = &row.void {
            let _ = writeln!(out, "VOID, latencies and rates: {what}: {why}");
        }
        for example in row.findings.iter().flat_map(|findings| &findings.examples) {
            let _ = writeln!(out, "  {example}");
        }
    }
    for failure in &report.failures {
        let _ = writeln!(out, "NOT MEASURED: {failure}");
    }
    for note in &report.notes {
        let _ = writeln!(out, "{note}");
    }
    out
}

/// The floors as text.
#[must_use]
pub fn floors(floor: &Floor) -> String {
    format!(
        "floors of this machine, µs of CPU: sign {:.1}, hash and JSON {:.1}, PUT {:.1}, GET {:.1}, hop {:.1}, durable \
         append {:.1}; a send {:.1}, an empty sync {:.1}\n",
        floor.sign_us,
        floor.json_us,
        floor.put_us,
        floor.get_us,
        floor.hop_us,
        floor.append_us,
        floor.send_us(),
        floor.sync_us()
    )
}

pub(super) const HEAD: [&str; 14] = [
    "target",
    "what",
    "size",
    "CPU µs",
    "min–max",
    "/floor",
    "per s",
    "offered/s",
    "p50 ms",
    "p99 ms",
    "p99.9",
    "max ms",
    "written B",
    "bad",
];

fn rows(rows: &[Row]) -> String {
    let mut lines: Vec<Vec<String>> = vec![HEAD.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(cells));
    let mut widths = vec![0; HEAD.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let padding = " ".repeat(width - cell.chars().count());
            // Words to the left, figures to the right.
            let _ = if column < 2 { write!(out, "{gap}{cell}{padding}") } else { write!(out, "{gap}{padding}{cell}") };
        }
        out.push('\n');
        for (name, value) in number.checked_sub(1).into_iter().flat_map(|at| &rows[at].figures) {
            let _ = writeln!(out, "      {name}: {}", figure(*value));
        }
        for (name, value) in number.checked_sub(1).into_iter().flat_map(|at| &rows[at].counters) {
            let _ = writeln!(out, "      {name}: {} for each", figure(*value));
        }
    }
    out
}

pub(super) fn cells(row: &Row) -> Vec<String> {
    let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), figure);
    let latency = row.latency_ms.as_ref();
    let bad = row.failed.values().sum::<u64>() + row.timed_out;
    vec![
        row.target.clone(),
        row.case.series.clone(),
        format!("{} {}", row.case.size, row.case.variable),
        show(row.cpu_us),
        row.cpu_us_range.map_or_else(|| "-".to_owned(), |(least, most)| format!("{}–{}", figure(least), figure(most))),
        row.over_floor.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}×")),
        show(row.capacity),
        show(row.offered),
        show(latency.map(|it| it.p50)),
        show(latency.map(|it| it.p99)),
        show(latency.map(|it| it.p999)),
        show(latency.map(|it| it.max)),
        show(row.written_bytes),
        match (&row.invalid, &row.void) {
            (Some(_), _) => format!("{bad} INVALID"),
            (None, Some(_)) => format!("{bad} VOID"),
            (None, None) => bad.to_string(),
        },
    ]
}

/// Three digits that count.
#[must_use]
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size.is_infinite() => "∞".to_owned(),
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
