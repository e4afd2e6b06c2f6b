//! The moment in which a request leaves, made sharp.

use std::sync::atomic::{AtomicU8, Ordering};

const WAITING: u8 = 0;
const GONE: u8 = 1;
const HELD: u8 = 2;

/// Decides between the connection, which wants to send a request, and its caller, who wants to be told that it was
/// never sent. Whoever comes first wins, so that "not sent" stays true.
///
/// Without it a caller that gives up could only guess: its request may stand in a queue of the connection, which takes
/// it out in the same moment.
#[derive(Debug, Default)]
pub(crate) struct Latch(AtomicU8);

impl Latch {
    /// Asked by the connection: may the request leave? Afterwards it counts as sent.
    pub(crate) fn depart(&self) -> bool {
        self.0.compare_exchange(WAITING, GONE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Asked by the caller: is it certain that the request has not left? Afterwards it never will.
    pub(crate) fn hold(&self) -> bool {
        match self.0.compare_exchange(WAITING, HELD, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(state) => state == HELD,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_has_left_cannot_be_held() {
        let latch = Latch::default();
        assert!(latch.depart());
        assert!(!latch.hold());
        assert!(!latch.depart(), "a request leaves once");
    }

    #[test]
    fn a_request_that_is_held_never_leaves() {
        let latch = Latch::default();
        assert!(latch.hold());
        assert!(latch.hold(), "still held");
        assert!(!latch.depart());
    }
}
