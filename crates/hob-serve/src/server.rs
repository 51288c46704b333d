//! The accept loop: bounded connections with deadlines, and an orderly end. It must not know what is asked for.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response};
use hob_engine::Engine;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::error::{Result, ServeError};
use crate::guard::Local;
use crate::options::{Limits, ServeOptions};
use crate::queue::Queue;
use crate::routes::{App, router};
use crate::stream::{Progress, TimedStream};
use crate::worker;

/// A bound server: the address is known, nothing is served yet.
pub struct Server {
    listener: TcpListener,
    local: SocketAddr,
    engine: Engine,
    options: ServeOptions,
}

/// Binds and serves until `shutdown` is ready.
///
/// # Errors
/// As [`Server::bind`] and [`Server::run`].
pub async fn serve(engine: Engine, options: ServeOptions, shutdown: impl Future<Output = ()>) -> Result<()> {
    Server::bind(engine, options).await?.run(shutdown).await
}

impl Server {
    /// Checks the options and binds the address.
    ///
    /// # Errors
    /// Options outside their ranges, an address other than loopback without a key, an address that cannot be bound.
    pub async fn bind(engine: Engine, options: ServeOptions) -> Result<Server> {
        options.check()?;
        let addr = options.addr;
        let bound = TcpListener::bind(addr).await.and_then(|l| Ok((l.local_addr()?, l)));
        let (local, listener) = bound.map_err(|source| ServeError::Bind { addr, source })?;
        Ok(Server { listener, local, engine, options })
    }

    /// The bound address, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `shutdown` is ready. Then nothing new is taken, waiting requests are told, the reply being made has
    /// [`Limits::grace`] to end, and everything is closed.
    ///
    /// # Errors
    /// When the engine's thread cannot start or dies.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let Server { listener, engine, options, .. } = self;
        let queue = Queue::new(options.queue);
        let app = App::new(engine.front(), Arc::clone(&queue), &options);
        let worker = worker::start(engine, Arc::clone(&queue))?;
        let (stop, stopping) = watch::channel(false);
        let service = Connections {
            router: router(app, &options),
            limits: options.limits.clone(),
            room: Arc::new(Semaphore::new(options.limits.connections)),
            stopping,
        };
        let mut tasks = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        let mut watchdog = tokio::time::interval(Duration::from_millis(500));
        let mut lost = false;
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                _ = watchdog.tick() => {
                    lost = worker.is_finished();
                    if lost {
                        break;
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => service.admit(stream, &mut tasks),
                    // Out of descriptors, most likely: those in use will come back.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                Some(_) = tasks.join_next() => {}
            }
        }
        drop(listener);
        queue.close();
        let _ = stop.send(true);
        wind_down(tasks, &queue, worker, options.limits.grace).await?;
        if lost { Err(ServeError::EngineLost) } else { Ok(()) }
    }
}

/// Waits for connections and engine, first kindly, then not.
async fn wind_down(
    mut tasks: JoinSet<()>,
    queue: &Queue,
    worker: JoinHandle<()>,
    grace: Duration,
) -> Result<()> {
    let all_done = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, all_done).await.is_err() {
        queue.cancel_running();
        let rest = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WORDS, rest).await.is_err() {
            tasks.shutdown().await;
        }
    }
    queue.cancel_running();
    let ended = tokio::task::spawn_blocking(move || worker.join()).await;
    match ended {
        Ok(Ok(())) => Ok(()),
        _ => Err(ServeError::EngineLost),
    }
}

/// After the grace: time to tell clients why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What every connection needs.
struct Connections {
    router: Router,
    limits: Limits,
    room: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

impl Connections {
    /// Serves a connection in a task of its own, or turns it away when there are too many.
    fn admit(&self, stream: TcpStream, tasks: &mut JoinSet<()>) {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            // Best effort, without waiting: the socket does not block.
            if let Ok(mut stream) = stream.into_std() {
                let _ = stream.write(TURNED_AWAY);
            }
            return;
        };
        let _ = stream.set_nodelay(true);
        let Ok(local) = stream.local_addr() else { return };
        let router = self.router.clone();
        let limits = self.limits.clone();
        let stopping = self.stopping.clone();
        tasks.spawn(connection(Accepted { stream, local, permit }, router, limits, stopping));
    }
}

const TURNED_AWAY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n";

/// An accepted connection and its share of the limit.
struct Accepted {
    stream: TcpStream,
    local: SocketAddr,
    permit: OwnedSemaphorePermit,
}

async fn connection(accepted: Accepted, router: Router, limits: Limits, mut stopping: watch::Receiver<bool>) {
    let Accepted { stream, local, permit } = accepted;
    let stream = TimedStream::new(stream, &limits);
    let progress = stream.progress();
    let timed = progress.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        progress.busy();
        let finished = IdleAtEnd(progress.clone());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Local(local));
        let answer = router.clone().oneshot(request);
        // Boxed because the connection wants a future that can be moved.
        Box::pin(async move {
            let answer = answer.await?;
            Ok::<Response<Answer>, Infallible>(answer.map(|body| Answer { body, _finished: finished }))
        })
    });
    let mut http = http1::Builder::new();
    // The deadlines are the stream's.
    http.header_read_timeout(None).max_buf_size(limits.head_bytes).max_header_size(limits.head_bytes);
    let mut http = http.serve_connection(TokioIo::new(stream), service);
    let mut told = false;
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|cx| http.poll_without_shutdown(cx)) => break ended,
            _ = stopping.wait_for(|&stop| stop), if !told => {
                told = true;
                Pin::new(&mut http).graceful_shutdown();
            }
            () = timed.became_idle() => {}
        }
    };
    if ended.is_ok() {
        http.into_parts().io.into_inner().linger().await;
    }
    drop(permit);
}

/// Tells the connection that the answer is over, whichever way it ended.
struct IdleAtEnd(Progress);

impl Drop for IdleAtEnd {
    fn drop(&mut self) {
        self.0.idle();
    }
}

/// An answer's body that knows when it is over.
struct Answer {
    body: Body,
    _finished: IdleAtEnd,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
