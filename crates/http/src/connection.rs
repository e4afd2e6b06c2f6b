//! A connection with deadlines of its own.
//!
//! actix-http bounds the time of the first head and the time without any byte. It bounds neither a later head that comes
//! byte by byte, nor what it throws away of a refused body, nor how long a client may leave an answer unread; a few
//! thousand connections that do so would keep everybody else out. Here bytes that come while no request is under way must
//! soon become one, and an answer must keep moving.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::Options;

/// Deadlines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the first byte of a head to the request.
    pub(crate) head: Duration,
    /// Without the client taking a byte.
    pub(crate) write: Duration,
}

impl Limits {
    pub(crate) fn of(options: &Options) -> Self {
        Self {
            head: Duration::from_millis(options.head_timeout_ms),
            write: Duration::from_millis(options.write_timeout_ms),
        }
    }
}

/// The requests of one connection, counted by those who answer them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    begun: Cell<u64>,
    ended: Cell<u64>,
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(Rc<Counts>);

impl Requests {
    pub(crate) fn begin(&self) -> UnderWay {
        self.0.begun.set(self.0.begun.get() + 1);
        UnderWay(Rc::clone(&self.0))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.set(self.0.ended.get() + 1);
    }
}

/// Connections of a server that are open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Open(Arc<AtomicUsize>);

/// One of them, until it is dropped.
#[derive(Debug)]
struct OneOpen(Arc<AtomicUsize>);

impl Open {
    fn one(&self) -> OneOpen {
        self.0.fetch_add(1, Ordering::Relaxed);
        OneOpen(Arc::clone(&self.0))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for OneOpen {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A deadline that may be set.
type Deadline = Option<Pin<Box<Sleep>>>;

fn is_over(deadline: &mut Deadline, cx: &mut Context<'_>) -> bool {
    deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready())
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    limits: Limits,
    requests: Requests,
    /// Requests begun when the head deadline was last looked at.
    begun: u64,
    head: Deadline,
    write: Deadline,
    _open: OneOpen,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, limits: Limits, open: &Open) -> Self {
        Self { stream, limits, requests: Requests::default(), begun: 0, head: None, write: None, _open: open.one() }
    }

    /// For those who answer its requests.
    pub(crate) fn requests(&self) -> Requests {
        self.requests.clone()
    }

    fn wrote(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(_) => {
                self.write = None;
                // Whoever takes an answer may meanwhile send what comes next.
                self.head = None;
            }
            Poll::Pending => {
                self.write.get_or_insert_with(|| Box::pin(sleep(self.limits.write)));
                if is_over(&mut self.write, cx) {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the answer was not read")));
                }
            }
        }
        written
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (begun, ended) = (this.requests.0.begun.get(), this.requests.0.ended.get());
        if begun != ended || begun != this.begun {
            this.begun = begun;
            this.head = None;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let came = buffer.filled().len() > before;
        if came && begun == ended {
            this.head.get_or_insert_with(|| Box::pin(sleep(this.limits.head)));
        }
        if is_over(&mut this.head, cx) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "what came became no request")));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.wrote(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, pieces);
        this.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
