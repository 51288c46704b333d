//! Who may call, and what a connection may take.

mod common;

use std::time::Duration;

use common::*;
use hob_serve::{Limits, ServeError, ServeOptions, Server};
use hob_testkit::temp::TempDir;
use serde_json::json;
use tokio::io::AsyncWriteExt;

fn body() -> String {
    chat("hi", json!({})).to_string()
}

/// A post with these headers instead of the usual ones.
fn raw_post(headers: &str) -> String {
    let body = body();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused_before_the_body() {
    let server = start(options()).await;
    let json = "content-type: application/json\r\n";
    let port = server.addr.port();
    for (headers, status) in [
        (format!("host: localhost:{port}\r\n{json}"), 200),
        (format!("host: 127.0.0.1:{port}\r\n{json}origin: http://127.0.0.1:{port}\r\n"), 200),
        (format!("host: evil.example\r\n{json}"), 403),
        (json.to_owned(), 403),
        (format!("host: localhost\r\n{json}origin: http://evil.example\r\n"), 403),
        (format!("host: localhost\r\n{json}origin: null\r\n"), 403),
        (format!("host: localhost\r\n{json}origin: http://localhost:1\r\n"), 403),
        // What a page of another site may send without asking.
        ("host: localhost\r\ncontent-type: text/plain\r\n".to_owned(), 415),
        ("host: localhost\r\n".to_owned(), 415),
        ("host: localhost\r\ncontent-type: application/json; charset=utf-8\r\n".to_owned(), 200),
    ] {
        let answer = server.ask(&raw_post(&headers)).await;
        assert_eq!(answer.status, status, "{headers}");
        if status != 200 {
            answer.error();
        }
    }
    // The answer comes although the body never does.
    let unsent = "POST /v1/chat/completions HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 1000\r\n\r\n";
    assert_eq!(server.ask(unsent).await.status, 403);
    let preflight =
        "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.example\r\n\r\n";
    let answer = server.ask(preflight).await;
    assert_eq!(answer.status, 403);
    assert!(!answer.head.to_lowercase().contains("access-control"), "no permission is given");
    server.stop().await;
}

#[tokio::test]
async fn a_key_is_demanded_where_one_is_set() {
    let server = start(ServeOptions { api_key: Some("s3cret".into()), ..options() }).await;
    let base = "host: localhost\r\ncontent-type: application/json\r\n";
    for (header, status) in [
        ("", 401),
        ("authorization: Bearer wrong\r\n", 401),
        ("authorization: s3cret\r\n", 401),
        ("authorization: Bearer s3cret\r\n", 200),
        ("x-api-key: s3cret\r\n", 200),
    ] {
        let answer = server.ask(&raw_post(&format!("{base}{header}"))).await;
        assert_eq!(answer.status, status, "{header}");
        if status == 401 {
            assert_eq!(answer.json()["error"]["type"], "authentication_error");
            answer.error();
        }
    }
    assert_eq!(server.get("/v1/models").await.status, 401);
    assert_eq!(server.get("/health").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn leaving_loopback_without_a_key_does_not_start() {
    let dir = TempDir::new("serve");
    let open = ServeOptions { addr: "0.0.0.0:0".parse().unwrap(), ..options() };
    let error = Server::bind(engine(&dir, 64), open.clone()).await.err().unwrap();
    assert!(matches!(error, ServeError::KeyRequired { .. }), "{error}");
    let keyed = ServeOptions { api_key: Some("k".into()), ..open };
    assert!(Server::bind(engine(&dir, 64), keyed).await.is_ok());
}

#[tokio::test]
async fn a_taken_port_is_an_error_with_the_way_out() {
    let server = start(options()).await;
    let dir = TempDir::new("serve");
    let taken = ServeOptions { addr: server.addr, ..options() };
    let error = Server::bind(engine(&dir, 64), taken).await.err().unwrap().to_string();
    assert!(error.contains(&server.addr.to_string()) && error.contains("another port"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn connections_without_progress_are_closed() {
    let server = start(ServeOptions { limits: hasty(), ..options() }).await;
    // Nothing at all.
    let mut silent = server.connect().await;
    assert!(until_closed(&mut silent).await.is_empty());
    // A head that drips: every byte is progress, the head is not.
    let mut slow = server.connect().await;
    let head = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-slow: ";
    slow.write_all(head).await.unwrap();
    let mut refused = false;
    for _ in 0..2000 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if slow.write_all(b"x").await.is_err() {
            refused = true;
            break;
        }
    }
    assert!(refused, "a dripping head must be cut off");
    // A body that does not come.
    let mut half = server.connect().await;
    let post = raw_post("host: localhost\r\ncontent-type: application/json\r\n");
    half.write_all(&post.as_bytes()[..post.len() - 5]).await.unwrap();
    let answer = read_answer(&mut half).await;
    assert_eq!(answer.status, 408);
    answer.error();
    until_closed(&mut half).await;
    // An idle connection after a good answer.
    let mut idle = server.connect().await;
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut idle).await.status, 200);
    assert!(until_closed(&mut idle).await.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn kept_connections_serve_several_requests() {
    let server = start(options()).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 200);
        let body = body();
        let post = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(post.as_bytes()).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 200);
    }
    server.stop().await;
}

/// Long answers are not cut by the read deadlines.
#[tokio::test]
async fn deadlines_do_not_touch_a_request_that_is_served() {
    let short = Duration::from_millis(40);
    let limits = Limits { head: short, body: short, idle: short, ..Limits::default() };
    let server = start_with(ServeOptions { limits, ..options() }, 4000).await;
    let body = chat("hi", json!({"ignore_eos": true, "max_tokens": 3000}));
    let answer = server.post(&body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3000);
    server.stop().await;
}

#[tokio::test]
async fn oversized_bodies_and_heads_are_refused() {
    let server =
        start(ServeOptions { limits: Limits { body_bytes: 10_000, ..Limits::default() }, ..options() }).await;
    let base = "host: localhost\r\ncontent-type: application/json\r\n";
    // Declared.
    let declared = format!("POST /v1/chat/completions HTTP/1.1\r\n{base}content-length: 10001\r\n\r\n");
    let answer = server.ask(&declared).await;
    assert_eq!(answer.status, 413);
    answer.error();
    // Undeclared, in chunks.
    let mut chunked =
        format!("POST /v1/chat/completions HTTP/1.1\r\n{base}transfer-encoding: chunked\r\n\r\n");
    for _ in 0..11 {
        chunked.push_str("400\r\n");
        chunked.push_str(&" ".repeat(1024));
        chunked.push_str("\r\n");
    }
    let mut stream = server.connect().await;
    stream.write_all(chunked.as_bytes()).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.status, 413);
    // A small one in chunks is fine.
    let body = body();
    let small = format!(
        "POST /v1/chat/completions HTTP/1.1\r\n{base}connection: close\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    assert_eq!(server.ask(&small).await.status, 200);
    // A head without end.
    let mut stream = server.connect().await;
    let huge = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(70_000));
    let _ = stream.write_all(huge.as_bytes()).await;
    let raw = until_closed(&mut stream).await;
    assert!(raw.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&raw));
    server.stop().await;
}

#[tokio::test]
async fn connections_are_counted() {
    let limits = Limits { connections: 3, ..Limits::default() };
    let server = start(ServeOptions { limits, ..options() }).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = server.connect().await;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(read_answer(&mut stream).await.status, 200);
        held.push(stream);
    }
    let mut extra = server.connect().await;
    let told = until_closed(&mut extra).await;
    assert!(told.starts_with(b"HTTP/1.1 503"), "{}", String::from_utf8_lossy(&told));
    held.pop();
    let room = async {
        loop {
            let mut stream = server.connect().await;
            let _ = stream
                .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                .await;
            if until_closed(&mut stream).await.starts_with(b"HTTP/1.1 200") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, room).await.expect("a closed connection makes room");
    server.stop().await;
}

/// A reader that stalls is given up, and its work stops.
#[tokio::test]
async fn a_stalled_reader_frees_the_engine() {
    let limits = Limits {
        write_stall: Duration::from_millis(200),
        keep_alive: Duration::from_millis(1),
        ..Limits::default()
    };
    let server = start_with(ServeOptions { limits, ..options() }, 400_000).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stalled = socket.connect(server.addr).await.unwrap();
    let body = endless(json!({"stream": true}));
    stalled.write_all(post(&body.to_string(), "").as_bytes()).await.unwrap();
    server.until_load(1, 0).await;
    server.until_load(0, 0).await;
    drop(stalled);
    server.stop().await;
}
