//! A small HTTP/1.1 server on loopback that plays the hub: HEAD and GET of
//! `/OWNER/NAME/resolve/REVISION/FILE`, with ranges, and with every way of failing that the tests want.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::sha256;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Start of the range that was asked for.
    pub fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }
}

/// What to answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Content-Length, where it is not the body's: a larger one makes a truncated answer.
    pub declared: Option<usize>,
    /// Say nothing and keep the connection open.
    pub hang: bool,
    /// Send this many bytes of the body, then say nothing more and keep the connection open.
    pub stall_after: Option<usize>,
    /// Send the body in pieces of 16 KiB with this pause in between.
    pub drip: Option<Duration>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

pub struct FakeHub {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    acceptor: Option<std::thread::JoinHandle<()>>,
}

impl FakeHub {
    /// Serves until dropped; every connection carries one request.
    pub fn serve(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let answer = Arc::new(answer);
        let (log, halt) = (Arc::clone(&seen), Arc::clone(&stop));
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if halt.load(Ordering::SeqCst) {
                    return;
                }
                let (answer, log, halt) = (Arc::clone(&answer), Arc::clone(&log), Arc::clone(&halt));
                std::thread::spawn(move || {
                    // A client that went away is part of the tests.
                    let _ = serve_one(stream, &*answer, &log, &halt);
                });
            }
        });
        Self { url, seen, stop, acceptor: Some(acceptor) }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests with this method.
    pub fn count(&self, method: &str) -> usize {
        self.seen().iter().filter(|r| r.method == method).count()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor so that it sees the flag.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn serve_one(
    mut stream: TcpStream,
    answer: &(impl Fn(&Seen) -> Reply + ?Sized),
    log: &Mutex<Vec<Seen>>,
    halt: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let Some(seen) = read_head(&mut stream)? else { return Ok(()) };
    log.lock().unwrap().push(seen.clone());
    let reply = answer(&seen);
    let wait = || {
        for _ in 0..400 {
            if halt.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    };
    if reply.hang {
        wait();
        return Ok(());
    }
    let length = reply.declared.unwrap_or(reply.body.len());
    let mut head =
        format!("HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {length}\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if seen.method == "HEAD" {
        return stream.flush();
    }
    if let Some(n) = reply.stall_after {
        stream.write_all(&reply.body[..n.min(reply.body.len())])?;
        stream.flush()?;
        wait();
        return Ok(());
    }
    let piece = if reply.drip.is_some() { 16 << 10 } else { usize::MAX };
    for bytes in reply.body.chunks(piece) {
        stream.write_all(bytes)?;
        if let Some(pause) = reply.drip {
            std::thread::sleep(pause);
        }
    }
    stream.flush()
}

fn read_head(stream: &mut TcpStream) -> std::io::Result<Option<Seen>> {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 || head.len() > 64 << 10 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers =
        lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    Ok(Some(Seen { method, target, headers }))
}

/// The commit that the fake hub resolves every revision to.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The hub's announcement of `bytes` on a HEAD, and the bytes (or the range asked for) on a GET.
pub fn file(bytes: &[u8], seen: &Seen) -> Reply {
    let announced = |reply: Reply| {
        reply
            .with("X-Repo-Commit", COMMIT)
            .with("X-Linked-Etag", format!("\"{}\"", sha256(bytes)))
            .with("X-Linked-Size", bytes.len().to_string())
            .with("ETag", "\"of-the-pointer\"")
    };
    if seen.method == "HEAD" {
        return announced(Reply { declared: Some(bytes.len()), ..Reply::status(200) });
    }
    match seen.range_start() {
        None => Reply { body: bytes.to_vec(), ..Reply::status(200) },
        Some(start) if start < bytes.len() => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Reply { body: bytes[start..].to_vec(), ..Reply::status(206) }.with("Content-Range", range)
        }
        Some(_) => Reply::status(416),
    }
}
