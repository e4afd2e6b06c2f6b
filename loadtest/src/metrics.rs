//! What a server counts itself, read from its pages of metrics (Prometheus text format) before and after a phase.
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hyper::Method;
use url::Url;

use crate::client::Ask;
use crate::target::Target;

/// How long a page may take.
const PAGE_TIME_MAX: Duration = Duration::from_secs(10);
/// A counter that grows less than this for one operation is not reported.
const GROWTH_MIN: f64 = 0.001;
/// What processes that use the standard client libraries count of themselves.
const CPU_SECONDS: &str = "process_cpu_seconds_total";

/// Counters of all processes of a server, added up by name and labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counters(BTreeMap<String, f64>);

impl Counters {
    /// Reads the pages of all processes.
    ///
    /// # Errors
    /// When one of them does not answer with such a page.
    pub async fn read(pages: &[Url]) -> Result<Self> {
        let mut sum = Self::default();
        for url in pages {
            let client = Target::parse(url.as_str())?.client(false, 1, PAGE_TIME_MAX)?;
            let ask = Ask { method: Method::GET, path: url.path().to_owned(), token: None, body: None };
            let answer = client.send(ask).await.with_context(|| format!("{url}: no metrics"))?;
            let text = std::str::from_utf8(&answer.body).unwrap_or_default();
            if answer.status != 200 || !text.contains("# TYPE") {
                bail!(
                    "{url} answers {} and no metrics: name the page, such as http://HOST:PORT/metrics",
                    answer.status
                );
            }
            sum.add(text);
        }
        Ok(sum)
    }

    /// Adds the counters of a page: samples whose names end in `_total`, and the `_count` of histograms.
    fn add(&mut self, page: &str) {
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            // Labels may hold blanks; behind the value there may be a time.
            let split = line.find('}').map_or_else(|| line.find(' '), |brace| Some(brace + 1));
            let Some((name, rest)) = split.and_then(|at| line.split_at_checked(at)) else { continue };
            let plain = name.split('{').next().unwrap_or_default();
            let value = rest.split_whitespace().next().and_then(|value| value.parse::<f64>().ok());
            if let (true, Some(value)) = (plain.ends_with("_total") || plain.ends_with("_count"), value) {
                *self.0.entry(name.to_owned()).or_default() += value;
            }
        }
    }

    /// How much each grew until later. One that fell belongs to a process that was started again, and counts from zero.
    #[must_use]
    pub fn until(&self, later: &Self) -> Self {
        let growth = |(name, after): (&String, &f64)| {
            let before = self.0.get(name).copied().unwrap_or_default();
            (name.clone(), if *after < before { *after } else { after - before })
        };
        Self(later.0.iter().map(growth).collect())
    }

    /// The CPU time in ns, user and system, if the processes count it.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of CPU, never negative")]
    pub fn cpu_ns(&self) -> Option<u64> {
        self.0.get(CPU_SECONDS).map(|seconds| (seconds * 1e9) as u64)
    }

    /// What grew, for each of so many operations.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    pub fn for_each_of(self, operations: u64) -> BTreeMap<String, f64> {
        let each = self.0.into_iter().map(|(name, growth)| (name, growth / operations.max(1) as f64));
        each.filter(|(name, growth)| *growth >= GROWTH_MIN && name != CPU_SECONDS).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total{op=\"a b\"} 10\n\
                        calls_total{op=\"c\"} 4 1700000000\n# TYPE took histogram\ntook_bucket{le=\"1\"} 9\ntook_sum 3\n\
                        took_count 9\n# TYPE size gauge\nsize 7\nprocess_cpu_seconds_total 1.5\n";

    #[test]
    fn counters_of_all_processes_are_added_and_their_growth_is_told_for_each_operation() {
        let mut before = Counters::default();
        before.add(PAGE);
        before.add(PAGE);
        let mut after = before.clone();
        after.add("calls_total{op=\"a b\"} 30\ntook_count 1\nprocess_cpu_seconds_total 0.25\n");
        let growth = before.until(&after);
        assert_eq!(growth.cpu_ns(), Some(250_000_000));
        let each = growth.for_each_of(10);
        assert_eq!(each, BTreeMap::from([("calls_total{op=\"a b\"}".into(), 3.0), ("took_count".into(), 0.1)]));
    }

    #[test]
    fn a_counter_that_fell_counts_from_zero() {
        let (mut before, mut after) = (Counters::default(), Counters::default());
        before.add("calls_total 100\n");
        after.add("calls_total 5\n");
        assert_eq!(before.until(&after).for_each_of(1), BTreeMap::from([("calls_total".into(), 5.0)]));
    }
}
