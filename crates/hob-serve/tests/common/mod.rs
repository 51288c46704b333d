//! A server on loopback with a tiny model, and a raw HTTP client.
#![allow(dead_code)] // each test file uses a part

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hob_engine::{Engine, Runtime, RuntimeConfig, Sampling};
use hob_files::ModelFile;
use hob_model::Layout;
use hob_serve::{Limits, ServeOptions, Server};
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::{TinySpec, f32_encode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// Nothing here may take longer; a hang fails with this.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Running {
    pub addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<hob_serve::Result<()>>,
    _dir: TempDir,
}

pub fn engine(dir: &TempDir, ctx_tokens: usize) -> Engine {
    let path = dir.join("tiny.gguf");
    TinySpec { ctx: ctx_tokens, ..TinySpec::llama() }.write_gguf(&path, &f32_encode).unwrap();
    let file = Arc::new(ModelFile::open(&path).unwrap());
    let runtime =
        Runtime::new(&RuntimeConfig { threads: Some(1), exact: false, ..RuntimeConfig::default() }).unwrap();
    let layout = Layout { chunk_rows: 16, cached_tokens: 2048, ..Layout::new(ctx_tokens) };
    Engine::load(&runtime, file, layout, &mut |_, _| {}).unwrap()
}

pub fn options() -> ServeOptions {
    ServeOptions {
        addr: "127.0.0.1:0".parse().unwrap(),
        model_name: "tiny".to_owned(),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        max_tokens: 16,
        ..ServeOptions::default()
    }
}

/// Deadlines short enough to wait for.
pub fn hasty() -> Limits {
    let short = Duration::from_millis(300);
    Limits { head: short, body: short, idle: short, ..Limits::default() }
}

pub async fn start(options: ServeOptions) -> Running {
    start_with(options, 512).await
}

pub async fn start_with(options: ServeOptions, ctx_tokens: usize) -> Running {
    let dir = TempDir::new("serve");
    let server = Server::bind(engine(&dir, ctx_tokens), options).await.unwrap();
    let addr = server.local_addr();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(server.run(async move {
        let _ = stopped.await;
    }));
    Running { addr, stop: Some(stop), task, _dir: dir }
}

impl Running {
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, request: &str) -> Answer {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        read_answer(&mut stream).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")).await
    }

    pub async fn post(&self, body: &Value) -> Answer {
        self.ask(&post(&body.to_string(), "")).await
    }

    pub fn order_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    pub async fn ended(self) {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the server must end").unwrap().unwrap();
    }

    /// Stops the server and checks that it ends in order.
    pub async fn stop(mut self) {
        self.order_stop();
        self.ended().await;
    }

    /// Waits until /health says so.
    pub async fn until_load(&self, running: u64, waiting: u64) {
        let wait = async {
            loop {
                let health = self.get("/health").await.json();
                if health["running"] == running && health["waiting"] == waiting {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the load did not come about");
    }
}

pub fn post(body: &str, headers: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": text}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// A request that goes on until somebody stops it (or the context is full).
pub fn endless(more: Value) -> Value {
    let mut body = chat("go on", json!({"ignore_eos": true, "max_tokens": 1_000_000}));
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| {
            let (n, v) = l.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }

    /// The message of an OpenAI error, whose shape is checked.
    pub fn error(&self) -> String {
        let json = self.json();
        let error = json["error"].as_object().unwrap();
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        assert!(error["type"].is_string());
        error["message"].as_str().unwrap().to_owned()
    }

    /// The data of every event, and the comments.
    pub fn events(&self) -> (Vec<String>, Vec<String>) {
        let (mut data, mut comments) = (Vec::new(), Vec::new());
        for event in self.text().split_terminator("\n\n") {
            match (event.strip_prefix("data: "), event.strip_prefix(": ")) {
                (Some(d), _) => data.push(d.to_owned()),
                (_, Some(c)) => comments.push(c.to_owned()),
                _ => panic!("neither data nor comment: {event:?}"),
            }
        }
        (data, comments)
    }
}

/// Reads to the end of the answer: length, chunks, or the end of the connection.
pub async fn read_answer(stream: &mut TcpStream) -> Answer {
    tokio::time::timeout(PATIENCE, read_answer_inner(stream)).await.expect("no answer in time")
}

async fn read_answer_inner(stream: &mut TcpStream) -> Answer {
    let mut raw = Vec::new();
    let head_end = loop {
        if let Some(at) = find(&raw, b"\r\n\r\n") {
            break at + 4;
        }
        assert!(
            read_some(stream, &mut raw).await > 0,
            "closed before the head ended: {:?}",
            String::from_utf8_lossy(&raw)
        );
    };
    let head = String::from_utf8(raw[..head_end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer { status, head, body: raw.split_off(head_end) };
    if answer.header("transfer-encoding").is_some() {
        while find(&answer.body, b"0\r\n\r\n").is_none_or(|at| at + 5 != answer.body.len()) {
            if read_some(stream, &mut answer.body).await == 0 {
                break;
            }
        }
        answer.body = dechunk(&answer.body);
    } else if let Some(length) = answer.header("content-length").map(|l| l.parse::<usize>().unwrap()) {
        while answer.body.len() < length && read_some(stream, &mut answer.body).await > 0 {}
    }
    answer
}

async fn read_some(stream: &mut TcpStream, into: &mut Vec<u8>) -> usize {
    let mut part = [0u8; 4096];
    let n = stream.read(&mut part).await.unwrap_or(0);
    into.extend_from_slice(&part[..n]);
    n
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn dechunk(mut raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(line) = find(raw, b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&raw[..line]).unwrap(), 16).unwrap();
        let start = line + 2;
        if size == 0 || raw.len() < start + size {
            break;
        }
        out.extend_from_slice(&raw[start..start + size]);
        raw = &raw[(start + size + 2).min(raw.len())..];
    }
    out
}

/// Reads until the peer closes; whatever came meanwhile.
pub async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut raw = Vec::new();
    let read = async { while read_some(stream, &mut raw).await > 0 {} };
    tokio::time::timeout(PATIENCE, read).await.expect("the connection must be closed");
    raw
}
