//! A TCP connection with deadlines: heads that drip, idle connections and readers that stall end. It knows no HTTP; the
//! service tells it when a head is complete ([`Progress::busy`]) and when an answer is finished ([`Progress::idle`]).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep};

use crate::options::Limits;

/// Where a connection stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// A head is being read, or the connection is new.
    Head,
    /// A request is being served; its body has a deadline elsewhere.
    Busy,
    /// Between two requests.
    Idle,
}

/// The phase, shared between a connection and its service.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Shared>);

struct Shared {
    phase: AtomicU8,
    became_idle: Notify,
}

impl Progress {
    fn new() -> Self {
        Progress(Arc::new(Shared { phase: AtomicU8::new(Phase::Head as u8), became_idle: Notify::new() }))
    }

    pub fn busy(&self) {
        self.set(Phase::Busy);
    }

    pub fn idle(&self) {
        self.set(Phase::Idle);
        self.0.became_idle.notify_one();
    }

    /// Ready after each [`Progress::idle`]. Reads must be polled then, for their timer to start: hyper, which found
    /// nothing to read during the answer, would not.
    pub async fn became_idle(&self) {
        self.0.became_idle.notified().await;
    }

    fn set(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::Release);
    }

    fn get(&self) -> Phase {
        match self.0.phase.load(Ordering::Acquire) {
            0 => Phase::Head,
            1 => Phase::Busy,
            _ => Phase::Idle,
        }
    }
}

/// See the module.
pub(crate) struct TimedStream {
    stream: TcpStream,
    progress: Progress,
    head: Duration,
    idle: Duration,
    write_stall: Duration,
    /// The phase the read timer was set for.
    timed: Phase,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl TimedStream {
    pub fn new(stream: TcpStream, limits: &Limits) -> Self {
        TimedStream {
            stream,
            progress: Progress::new(),
            head: limits.head,
            idle: limits.idle,
            write_stall: limits.write_stall,
            timed: Phase::Head,
            read_timer: Box::pin(sleep(limits.head)),
            write_timer: None,
        }
    }

    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Ends the connection so that the peer can still read the answer: closing with unread bytes would reset it.
    pub async fn linger(mut self) {
        let linger = async {
            self.stream.shutdown().await?;
            let mut sink = [0u8; 8192];
            while self.stream.read(&mut sink).await? > 0 {}
            io::Result::Ok(())
        };
        // A peer that goes on sending, or neither sends nor closes, has had its chance.
        let _ = tokio::time::timeout(LINGER, linger).await;
    }

    fn set_read_timer(&mut self, phase: Phase, after: Duration) {
        self.timed = phase;
        self.read_timer.as_mut().reset(Instant::now() + after);
    }
}

/// How long the last answer may take to be read before the connection is dropped.
const LINGER: Duration = Duration::from_secs(1);

impl AsyncRead for TimedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let phase = this.progress.get();
        if phase != this.timed {
            let after = if phase == Phase::Idle { this.idle } else { this.head };
            this.set_read_timer(phase, after);
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if phase == Phase::Idle && buf.filled().len() > before {
                    this.progress.set(Phase::Head);
                    this.set_read_timer(Phase::Head, this.head);
                }
                // The head's deadline holds even for a client that always has one more byte.
                if phase == Phase::Head && Instant::now() >= this.read_timer.deadline() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Ready(result)
            }
            Poll::Pending if phase == Phase::Busy => Poll::Pending,
            Poll::Pending => match this.read_timer.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl TimedStream {
    /// Lets a pending write fail when it has been pending for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let stall = self.write_stall;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(stall)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.watch(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
