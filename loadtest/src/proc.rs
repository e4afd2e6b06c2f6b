//! What the kernel says of the processes of a server: CPU time, memory, writes. Linux only; elsewhere nothing is found.
//!
//! A server is its given process ids and all their descendants, so the parent of a database's backends is enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Serialize;

/// One clock tick of `/proc/PID/stat`, in ns: user-visible ticks are 100 a second on every Linux port.
const TICK_NS: u64 = 10_000_000;
/// One page of `/proc/PID/statm`, in bytes, where `smaps_rollup` cannot be read.
const PAGE_BYTES: u64 = 4096;

/// The counters of a server at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// ns on a CPU of each thread that lives, by (process, thread).
    threads: BTreeMap<(u32, u32), u64>,
    /// ns on a CPU of each process with its dead threads and reaped children, rounded to ticks.
    ticks: BTreeMap<u32, u64>,
    /// Resident bytes, all processes together.
    pub resident_bytes: u64,
    written: BTreeMap<u32, Written>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Written {
    bytes: u64,
    calls: u64,
}

/// What a server used between two moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// CPU time, user and system, in ns.
    pub cpu_ns: u64,
    /// Bytes that it caused to be written to storage.
    pub written_bytes: u64,
    /// Calls that write, to sockets and files.
    pub write_calls: u64,
    /// Growth of the resident memory in bytes.
    pub resident_growth_bytes: i64,
}

impl Usage {
    /// Adds what another span of time used.
    pub fn add(&mut self, other: &Self) {
        self.cpu_ns += other.cpu_ns;
        self.written_bytes += other.written_bytes;
        self.write_calls += other.write_calls;
        self.resident_growth_bytes += other.resident_growth_bytes;
    }
}

impl Snapshot {
    /// Reads the counters of these processes and their descendants.
    #[must_use]
    pub fn of(pids: &[u32]) -> Self {
        let mut snapshot = Self::default();
        for pid in with_descendants(pids) {
            snapshot.add_process(pid);
        }
        snapshot
    }

    /// Reads the counters of this process: what the generator itself uses.
    #[must_use]
    pub fn of_myself() -> Self {
        let mut snapshot = Self::default();
        snapshot.add_process(std::process::id());
        snapshot
    }

    fn add_process(&mut self, pid: u32) {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return };
        for task in tasks.flatten() {
            let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(ns) = first_number(&format!("/proc/{pid}/task/{tid}/schedstat")) {
                self.threads.insert((pid, tid), ns);
            }
        }
        if let Some(stat) = Stat::of(pid) {
            self.ticks.insert(pid, stat.ticks * TICK_NS);
        }
        self.resident_bytes += resident(pid);
        self.written.insert(pid, written(pid));
    }

    /// What was used from this moment until a later one.
    ///
    /// Threads that ended in between take their exact counters with them. The ticks of the process keep the dead, to
    /// 10 ms: when they say more than the living threads do, they count.
    #[must_use]
    pub fn until(&self, later: &Self) -> Usage {
        let mut cpu_ns = 0;
        for (pid, ticks) in &later.ticks {
            let living = later.threads.range((*pid, 0)..=(*pid, u32::MAX));
            let exact: u64 =
                living.map(|(thread, ns)| ns.saturating_sub(self.threads.get(thread).copied().unwrap_or(0))).sum();
            let rounded = ticks.saturating_sub(self.ticks.get(pid).copied().unwrap_or(0));
            cpu_ns += if rounded > exact + 2 * TICK_NS { rounded - TICK_NS } else { exact };
        }
        let mut usage = Usage { cpu_ns, ..Usage::default() };
        for (pid, after) in &later.written {
            let before = self.written.get(pid).copied().unwrap_or_default();
            usage.written_bytes += after.bytes.saturating_sub(before.bytes);
            usage.write_calls += after.calls.saturating_sub(before.calls);
        }
        usage.resident_growth_bytes = later.resident_bytes.cast_signed() - self.resident_bytes.cast_signed();
        usage
    }
}

/// ns that the calling thread has spent on a CPU.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    first_number("/proc/thread-self/schedstat").unwrap_or(0)
}

/// Whether a process exists and its counters can be read.
#[must_use]
pub fn readable(pid: u32) -> bool {
    first_number(&format!("/proc/{pid}/schedstat")).is_some() && fs::read_to_string(format!("/proc/{pid}/io")).is_ok()
}

fn first_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

struct Stat {
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Fields are counted from behind the name, which may hold blanks and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self { parent: fields.get(1)?.parse().ok()?, ticks: number(11)? + number(12)? })
    }
}

fn with_descendants(pids: &[u32]) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(stat) = Stat::of(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = BTreeSet::new();
    let mut next = pids.to_vec();
    while let Some(pid) = next.pop() {
        if found.insert(pid) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

fn resident(pid: u32) -> u64 {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or_else(
        || {
            let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
            statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * PAGE_BYTES
        },
        |kib| kib * 1024,
    )
}

fn written(pid: u32) -> Written {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    Written { bytes: field("write_bytes:"), calls: field("syscw:") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        let stat = Stat::parse("7 (a) b (c)) S 3 7 7 0 -1 4194560 1 0 0 0 12 30 0 0 20 0 1 0 5 0 0").unwrap();
        assert_eq!((stat.parent, stat.ticks), (3, 42));
        assert!(Stat::parse("7 (a").is_none());
    }

    #[test]
    fn what_a_thread_did_before_it_ended_is_not_lost() {
        const WORK_NS: u64 = 100_000_000;
        let me = [std::process::id()];
        let before = Snapshot::of(&me);
        assert!(readable(me[0]) && before.resident_bytes > 0);
        let work = || {
            while thread_cpu_ns() < WORK_NS {
                std::hint::black_box((0..10_000_u64).fold(1, |product: u64, n| product.wrapping_mul(n)));
            }
        };
        std::thread::spawn(work).join().unwrap();
        let usage = before.until(&Snapshot::of(&me));
        assert!(usage.cpu_ns >= WORK_NS - 3 * TICK_NS, "{usage:?}");
    }

    #[test]
    fn the_exact_counters_count_unless_the_ticks_say_that_threads_ended() {
        let mut before = Snapshot::default();
        before.threads.insert((1, 1), 5_000_000);
        before.threads.insert((1, 2), 900_000_000);
        before.ticks.insert(1, 900_000_000);
        let mut after = before.clone();
        after.threads.insert((1, 1), 25_000_007);
        after.ticks.insert(1, 930_000_000);
        assert_eq!(before.until(&after).cpu_ns, 20_000_007);
        after.threads.remove(&(1, 2));
        after.ticks.insert(1, 1_400_000_000);
        assert_eq!(before.until(&after).cpu_ns, 490_000_000);
    }
}
