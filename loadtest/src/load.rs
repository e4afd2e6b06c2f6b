//! Drives operations: so many at a time, or at arrival times that do not wait for the server.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Semaphore, mpsc};

use crate::client::{Answer, Failure};

/// The longest latency that a histogram holds, in µs; a longer one counts as this.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// An arrival that started later than this after its time is the generator's fault, and is counted.
const LATE: Duration = Duration::from_millis(2);
/// Arrivals between the pacing thread and the runtime.
const ARRIVALS_QUEUED_MAX: usize = 65_536;

/// How one operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Done,
    /// The server refused, or the connection broke; the text names the kind.
    Failed(String),
    /// No answer in time.
    TimedOut,
}

impl From<Result<Answer, Failure>> for Outcome {
    fn from(answer: Result<Answer, Failure>) -> Self {
        match answer {
            Ok(Answer { status: 200, .. }) => Self::Done,
            Ok(Answer { status, .. }) => Self::Failed(format!("status {status}")),
            Err(Failure::TimedOut) => Self::TimedOut,
            Err(Failure::Broken(why)) => Self::Failed(why),
        }
    }
}

/// An operation that can be started again and again; it is given a number that is its own.
pub type Operation = Arc<dyn Fn(u64) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

/// Makes an [`Operation`] of a function.
pub fn operation<F, Fut>(function: F) -> Operation
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    Arc::new(move |number| Box::pin(function(number)))
}

/// What came of many operations.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Latencies in µs, of those done.
    pub latency: Histogram<u64>,
    /// How many were done.
    pub done: u64,
    /// How many failed, by kind.
    pub failed: BTreeMap<String, u64>,
    /// How many got no answer in time.
    pub timed_out: u64,
    /// From the first start to the last end.
    pub elapsed: Duration,
    /// How many were done in each second.
    pub by_second: Vec<u64>,
    /// How many started more than 2 ms after their time, because the generator could not keep up.
    pub late: u64,
    /// The most that one started after its time.
    pub late_max: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            latency: histogram(),
            done: 0,
            failed: BTreeMap::new(),
            timed_out: 0,
            elapsed: Duration::ZERO,
            by_second: Vec::new(),
            late: 0,
            late_max: Duration::ZERO,
        }
    }
}

/// An empty histogram of latencies in µs, exact to three digits.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, LATENCY_US_MAX, 3) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("the bounds are constants that the library accepts: {error}"),
    }
}

impl Tally {
    /// How many were tried.
    #[must_use]
    pub fn tried(&self) -> u64 {
        self.done + self.timed_out + self.failed.values().sum::<u64>()
    }

    /// Operations done each second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Counts one operation that took `latency` and ended `at` after the start of the run.
    pub fn count(&mut self, outcome: Outcome, latency: Duration, at: Duration) {
        match outcome {
            Outcome::Done => {
                self.done += 1;
                self.latency.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
                let second = usize::try_from(at.as_secs()).unwrap_or(usize::MAX);
                if self.by_second.len() <= second {
                    self.by_second.resize(second + 1, 0);
                }
                self.by_second[second] += 1;
            }
            Outcome::Failed(kind) => *self.failed.entry(kind).or_default() += 1,
            Outcome::TimedOut => self.timed_out += 1,
        }
        self.elapsed = self.elapsed.max(at);
    }

    /// Adds another tally of the same run, counted at the same time.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same bounds, so the addition cannot fail.
        let _ = self.latency.add(&other.latency);
        self.done += other.done;
        self.timed_out += other.timed_out;
        for (kind, count) in &other.failed {
            *self.failed.entry(kind.clone()).or_default() += count;
        }
        self.elapsed = self.elapsed.max(other.elapsed);
        if self.by_second.len() < other.by_second.len() {
            self.by_second.resize(other.by_second.len(), 0);
        }
        for (sum, more) in self.by_second.iter_mut().zip(&other.by_second) {
            *sum += more;
        }
        self.late += other.late;
        self.late_max = self.late_max.max(other.late_max);
    }

    /// Adds the tally of a later round.
    pub fn append(&mut self, later: &Self) {
        let (elapsed, mut seconds) = (self.elapsed, std::mem::take(&mut self.by_second));
        seconds.extend(&later.by_second);
        self.merge(&Self { by_second: Vec::new(), ..later.clone() });
        self.elapsed = elapsed + later.elapsed;
        self.by_second = seconds;
    }
}

/// Keeps `in_flight` operations under way until `requests` were started or `time_max` is over, whichever is first.
///
/// Latencies of such a run hide what the server does while nobody can ask (coordinated omission): they are good for
/// capacity and for cost, never for publication.
pub async fn closed(in_flight: usize, requests: u64, time_max: Duration, operation: &Operation) -> Tally {
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let workers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (next, operation) = (Arc::clone(&next), Arc::clone(operation));
            tokio::spawn(async move {
                let mut tally = Tally::default();
                while start.elapsed() < time_max {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        break;
                    }
                    let began = Instant::now();
                    let outcome = operation(number).await;
                    tally.count(outcome, began.elapsed(), start.elapsed());
                }
                tally
            })
        })
        .collect();
    let mut tally = Tally::default();
    for worker in workers {
        match worker.await {
            Ok(part) => tally.merge(&part),
            Err(panic) => *tally.failed.entry(panic.to_string()).or_default() += 1,
        }
    }
    tally
}

/// Arrivals that do not wait for answers.
#[derive(Debug, Clone, Copy)]
pub struct Arrivals {
    /// The mean of arrivals each second, exponentially distributed in time.
    pub rate: f64,
    /// What arrives in this time is not counted.
    pub warm_up: Duration,
    /// How long arrivals are counted, after the warm-up.
    pub counted: Duration,
    /// At most so many operations are under way; one that must wait for a place is counted from its time all the same.
    pub in_flight_max: usize,
    /// The seed of the arrival times.
    pub seed: u64,
}

impl Arrivals {
    /// The times of arrival, from the start of the run.
    fn times(self) -> impl Iterator<Item = Duration> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut at = 0.0;
        let end = (self.warm_up + self.counted).as_secs_f64();
        let rate = self.rate.max(1e-3);
        std::iter::from_fn(move || {
            let uniform: f64 = random.random();
            at -= (1.0 - uniform).ln() / rate;
            (at < end).then(|| Duration::from_secs_f64(at))
        })
    }
}

/// Starts operations at their times, whatever the server does, and counts each latency from its time of arrival.
///
/// # Errors
/// When the thread that keeps the time cannot be started.
pub async fn open(arrivals: Arrivals, operation: &Operation) -> Result<Tally> {
    let (sender, mut due) = mpsc::channel::<(u64, Instant)>(ARRIVALS_QUEUED_MAX);
    let start = Instant::now();
    // Timers of the runtime are exact to a millisecond, a sleeping thread to some 60 µs.
    let pacer = std::thread::Builder::new().name("pacer".to_owned()).spawn(move || {
        for (number, at) in (0..).zip(arrivals.times()) {
            let due = start + at;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.blocking_send((number, due)).is_err() {
                return;
            }
        }
    });
    let pacer = pacer.context("cannot start the thread that keeps the time")?;
    let places = Arc::new(Semaphore::new(arrivals.in_flight_max));
    let (finished, mut results) = mpsc::channel::<(Outcome, Duration, Duration)>(ARRIVALS_QUEUED_MAX);
    let collector = tokio::spawn(async move {
        let mut tally = Tally::default();
        while let Some((outcome, latency, at)) = results.recv().await {
            tally.count(outcome, latency, at);
        }
        tally
    });
    let counted_from = start + arrivals.warm_up;
    let (mut late, mut late_max) = (0, Duration::ZERO);
    while let Some((number, due)) = due.recv().await {
        let lateness = due.elapsed();
        if due >= counted_from {
            late += u64::from(lateness > LATE);
            late_max = late_max.max(lateness);
        }
        let (places, operation, finished) = (Arc::clone(&places), Arc::clone(operation), finished.clone());
        tokio::spawn(async move {
            let Ok(_place) = places.acquire().await else { return };
            let outcome = operation(number).await;
            if due >= counted_from {
                let at = Instant::now().saturating_duration_since(counted_from);
                // The collector goes only when every operation has.
                drop(finished.send((outcome, due.elapsed(), at)).await);
            }
        });
    }
    drop(finished);
    let mut tally = collector.await.context("the collector of latencies")?;
    drop(pacer.join());
    (tally.late, tally.late_max) = (late, late_max);
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_the_asked_rate_and_are_the_same_for_the_same_seed() {
        let second = Duration::from_secs(1);
        let arrivals = Arrivals { rate: 2000.0, warm_up: second, counted: 9 * second, in_flight_max: 1, seed: 7 };
        let times: Vec<Duration> = arrivals.times().collect();
        assert!((19_000..21_000).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted() && times.iter().all(|at| *at < 10 * second));
        assert_eq!(times, arrivals.times().collect::<Vec<_>>());
        assert_ne!(times, Arrivals { seed: 8, ..arrivals }.times().collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_closed_run_does_what_it_was_asked_and_counts_apart_what_went_wrong() {
        let work = operation(|number| async move {
            match number % 10 {
                0 => Outcome::TimedOut,
                1 => Outcome::Failed("status 500".to_owned()),
                _ => Outcome::Done,
            }
        });
        let tally = closed(7, 1000, Duration::from_secs(60), &work).await;
        assert_eq!((tally.done, tally.timed_out, tally.failed["status 500"]), (800, 100, 100));
        assert_eq!((tally.tried(), tally.latency.len()), (1000, 800));
    }

    #[tokio::test]
    async fn a_stall_of_the_server_is_in_the_latency_of_everybody_who_arrived_meanwhile() {
        // One place, and the first operation holds it for 200 ms: whoever arrives meanwhile has waited.
        let work = operation(|number| async move {
            if number == 0 {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Outcome::Done
        });
        let counted = Duration::from_millis(400);
        let arrivals = Arrivals { rate: 500.0, warm_up: Duration::ZERO, counted, in_flight_max: 1, seed: 3 };
        let tally = open(arrivals, &work).await.unwrap();
        let waited = tally.latency.iter_recorded().filter(|step| step.value_iterated_to() > 50_000);
        let waited: u64 = waited.map(|step| step.count_at_value()).sum();
        assert!(waited >= 40, "{waited} of {} waited", tally.done);
        assert!(tally.done > 120);
    }

    #[test]
    fn rounds_follow_one_another_and_workers_run_side_by_side() {
        let mut first = Tally::default();
        first.count(Outcome::Done, Duration::from_millis(1), Duration::from_millis(1500));
        let mut side = first.clone();
        side.merge(&first);
        assert_eq!((side.done, side.by_second.clone(), side.elapsed), (2, vec![0, 2], Duration::from_millis(1500)));
        first.append(&side);
        assert_eq!((first.done, first.by_second.clone(), first.elapsed), (3, vec![0, 1, 0, 2], Duration::from_secs(3)));
    }
}
