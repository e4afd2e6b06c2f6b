//! One line on standard error that says how far a run is.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The line is drawn at most so often.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// The width of the bar, in characters.
const BAR: usize = 30;

/// Where progress is shown.
pub struct Progress {
    mode: Mode,
    drawn: Mutex<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A bar that is drawn over itself.
    Bar,
    /// A line for each step, for logs.
    Lines,
    Silent,
}

impl Progress {
    /// A bar on a terminal, a line for each step elsewhere.
    #[must_use]
    pub fn on_stderr() -> Self {
        let mode = if std::io::stderr().is_terminal() { Mode::Bar } else { Mode::Lines };
        Self { mode, drawn: Mutex::new(Instant::now()) }
    }

    /// Shows nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self { mode: Mode::Silent, drawn: Mutex::new(Instant::now()) }
    }

    /// Begins a step of `total` parts.
    #[must_use]
    pub fn step(&self, name: &str, total: usize) -> Step<'_> {
        if self.mode == Mode::Lines {
            write(&format!("{name} ({total})\n"));
        }
        Step { progress: self, name: name.to_owned(), total, done: AtomicUsize::new(0) }
    }

    /// Says one thing.
    pub fn say(&self, text: &str) {
        match self.mode {
            Mode::Bar => write(&format!("\r\x1b[K{text}\n")),
            Mode::Lines => write(&format!("{text}\n")),
            Mode::Silent => {}
        }
    }
}

/// A step under way; the line goes when it is dropped.
pub struct Step<'a> {
    progress: &'a Progress,
    name: String,
    total: usize,
    done: AtomicUsize,
}

impl Step<'_> {
    /// One part more is done.
    pub fn tick(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if self.progress.mode != Mode::Bar {
            return;
        }
        let Ok(mut drawn) = self.progress.drawn.lock() else { return };
        if drawn.elapsed() < DRAW_EVERY && done < self.total {
            return;
        }
        *drawn = Instant::now();
        let filled = (BAR * done).checked_div(self.total).unwrap_or(BAR).min(BAR);
        let bar = "#".repeat(filled) + &"-".repeat(BAR - filled);
        write(&format!("\r\x1b[K[{bar}] {done}/{} {}", self.total, self.name));
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if self.progress.mode == Mode::Bar {
            write("\r\x1b[K");
        }
    }
}

/// Progress that cannot be shown is not worth a failure.
fn write(text: &str) {
    let mut stderr = std::io::stderr().lock();
    drop(stderr.write_all(text.as_bytes()));
    drop(stderr.flush());
}
