//! What waits for being published.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::RedisOptions;

/// A frame and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) channel: Arc<str>,
    pub(crate) frame: Vec<u8>,
}

/// What goes out in one round trip.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Something before these frames was not said, and the listeners must be told so first.
    pub(crate) gap: bool,
    pub(crate) frames: Vec<Outgoing>,
}

/// A bounded queue that never keeps a speaker waiting: what it cannot hold, and what it holds when the connection is
/// lost, becomes a gap ahead of what comes next. A gap makes all that was before it worthless, so that nothing is kept
/// then.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
    frames_max: usize,
    bytes_max: usize,
    batch_bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    /// There is a connection to send by.
    open: bool,
    gap: bool,
    in_flight: bool,
    frames: VecDeque<Outgoing>,
    bytes: usize,
}

impl State {
    fn miss(&mut self) {
        self.gap = true;
        self.frames.clear();
        self.bytes = 0;
    }
}

impl Queue {
    pub(crate) fn new(options: &RedisOptions) -> Self {
        Self {
            state: Mutex::default(),
            filled: Notify::new(),
            emptied: Notify::new(),
            frames_max: options.queue_frames_max,
            bytes_max: options.queue_bytes_max,
            batch_bytes_max: options.batch_bytes_max,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame, if there is a connection. `make` is called only then.
    pub(crate) fn push(&self, make: impl FnOnce() -> Option<Outgoing>) {
        if !self.state().open {
            self.state().gap = true;
            return;
        }
        let made = make();
        let mut state = self.state();
        match made {
            Some(outgoing) if state.open => {
                let len = outgoing.frame.len();
                if state.frames.len() >= self.frames_max || state.bytes + len > self.bytes_max {
                    state.miss();
                }
                state.bytes += len;
                state.frames.push_back(outgoing);
            }
            Some(_) | None => state.miss(),
        }
        drop(state);
        self.filled.notify_one();
    }

    /// A connection is there.
    pub(crate) fn open(&self) {
        self.state().open = true;
        self.filled.notify_one();
    }

    /// The connection is lost, and with it what was on its way.
    pub(crate) fn shut(&self) {
        let mut state = self.state();
        state.open = false;
        if state.in_flight || !state.frames.is_empty() {
            state.miss();
        }
        state.in_flight = false;
        drop(state);
        self.emptied.notify_waiters();
    }

    /// Waits for something to send. It is on its way until [`Self::sent`] or [`Self::shut`].
    pub(crate) async fn take(&self) -> Batch {
        loop {
            if let Some(batch) = self.try_take() {
                return batch;
            }
            self.filled.notified().await;
        }
    }

    fn try_take(&self) -> Option<Batch> {
        let mut state = self.state();
        if !state.open || (!state.gap && state.frames.is_empty()) {
            return None;
        }
        let gap = std::mem::take(&mut state.gap);
        let mut frames = Vec::with_capacity(state.frames.len());
        let mut bytes = 0;
        while let Some(outgoing) = state.frames.pop_front() {
            if !frames.is_empty() && bytes + outgoing.frame.len() > self.batch_bytes_max {
                state.frames.push_front(outgoing);
                break;
            }
            bytes += outgoing.frame.len();
            frames.push(outgoing);
        }
        state.bytes -= bytes;
        state.in_flight = true;
        Some(Batch { gap, frames })
    }

    /// What was taken has arrived.
    pub(crate) fn sent(&self) {
        self.state().in_flight = false;
        self.emptied.notify_waiters();
    }

    /// Waits until nothing waits any more, or the connection is lost.
    pub(crate) async fn drained(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            {
                let state = self.state();
                if !state.open || (!state.in_flight && state.frames.is_empty()) {
                    return;
                }
            }
            emptied.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(queue_frames_max: usize, queue_bytes_max: usize, batch_bytes_max: usize) -> Queue {
        Queue::new(&RedisOptions { queue_frames_max, queue_bytes_max, batch_bytes_max, ..Default::default() })
    }

    fn push(queue: &Queue, text: &str) {
        queue.push(|| Some(Outgoing { channel: "c".into(), frame: text.into() }));
    }

    fn texts(batch: &Batch) -> Vec<&str> {
        batch.frames.iter().map(|outgoing| str::from_utf8(&outgoing.frame).expect("text")).collect()
    }

    #[tokio::test]
    async fn what_waits_goes_out_in_order_and_in_batches() {
        let queue = queue(10, 100, 6);
        queue.open();
        ["one", "two", "three", "a longer one"].iter().for_each(|text| push(&queue, text));
        for expected in [vec!["one", "two"], vec!["three"], vec!["a longer one"]] {
            let batch = queue.take().await;
            assert_eq!((batch.gap, texts(&batch)), (false, expected));
            queue.sent();
        }
        assert_eq!(queue.try_take(), None);
        queue.drained().await;
    }

    #[tokio::test]
    async fn what_does_not_fit_becomes_a_gap_ahead_of_the_newest() {
        let by_count = queue(3, 100, 100);
        by_count.open();
        ["1", "2", "3", "4", "5"].iter().for_each(|text| push(&by_count, text));
        let batch = by_count.take().await;
        assert_eq!((batch.gap, texts(&batch)), (true, vec!["4", "5"]));
        let by_bytes = queue(100, 5, 100);
        by_bytes.open();
        ["123", "456"].iter().for_each(|text| push(&by_bytes, text));
        let batch = by_bytes.take().await;
        assert_eq!((batch.gap, texts(&batch)), (true, vec!["456"]));
        by_bytes.sent();
        assert_eq!(by_bytes.try_take(), None, "a gap is told once");
    }

    #[tokio::test]
    async fn what_is_said_without_a_connection_or_lost_with_it_becomes_a_gap() {
        let queue = queue(10, 100, 100);
        push(&queue, "before");
        queue.open();
        push(&queue, "a");
        let batch = queue.take().await;
        assert_eq!((batch.gap, texts(&batch)), (true, vec!["a"]));
        queue.shut();
        queue.open();
        push(&queue, "b");
        let batch = queue.take().await;
        assert_eq!((batch.gap, texts(&batch)), (true, vec!["b"]), "what was on its way may be lost");
        queue.sent();
        queue.shut();
        queue.open();
        push(&queue, "c");
        let batch = queue.take().await;
        assert_eq!((batch.gap, texts(&batch)), (false, vec!["c"]), "nothing was said meanwhile");
    }

    #[tokio::test]
    async fn nothing_is_encoded_while_nobody_can_hear_it() {
        let queue = queue(10, 100, 100);
        queue.push(|| panic!("made for nothing"));
        assert_eq!(queue.try_take(), None);
        queue.drained().await;
    }
}
