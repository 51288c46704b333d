//! `hob chat` through a pipe and `hob serve` over a socket.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use common::{Ran, hob_with, model, start};

const CHAT: [&str; 8] = ["chat", "-m", "", "--no-cache", "--temp", "0", "--max-tokens", "12"];

fn chat(input: &str) -> Ran {
    let mut args = CHAT;
    args[2] = model();
    hob_with(input.as_bytes(), &args).expect(0)
}

#[test]
fn each_line_is_a_turn_and_the_conversation_is_remembered() {
    let one = chat("hello\n").stdout;
    let two = chat("hello\nand now\n").stdout;
    assert!(two.starts_with(&one), "{one:?} {two:?}");
    assert!(two.len() > one.len());
    // The same question without the past gets another answer.
    assert_ne!(two[one.len()..], chat("and now\n").stdout);
    assert_eq!(chat("hello\n/clear\nand now\n").stdout[one.len()..], chat("and now\n").stdout);
    assert!(chat("hello\nand now\n/stats\n").stderr.contains("reused"));
}

#[test]
fn commands_answer_and_mistakes_are_told() {
    let ran =
        chat("/help\n/nonsense\n/set temp 99\n/set top-k 5\n/set\n/stats\n/retry\n/system\n\n/exit\nnever\n");
    assert_eq!(ran.stdout, "");
    for part in [
        "/save NAME",
        "/export FILE",
        "no command /nonsense",
        "temperature",
        "top-k 5",
        "no answer yet",
        "no question to answer again",
        "no system message",
    ] {
        assert!(ran.stderr.contains(part), "{part} missing in\n{}", ran.stderr);
    }
}

#[test]
fn retry_asks_the_last_question_again() {
    let once = chat("hello\n").stdout;
    assert_eq!(chat("hello\n/retry\n").stdout, once.repeat(2));
}

#[test]
fn an_exported_conversation_goes_on() {
    let file = common::home().join("talk.json");
    let file = file.to_str().expect("UTF-8");
    let whole = chat(&format!("hello\n/export {file}\nand now\n")).stdout;
    let one = chat("hello\n").stdout;
    let rest = chat(&format!("/import {file}\nand now\n"));
    assert!(rest.stderr.contains("2 messages read"), "{}", rest.stderr);
    assert_eq!(rest.stdout, whole[one.len()..]);
    std::fs::write(file, "{}").expect("write");
    assert!(chat(&format!("/import {file}\n/import nowhere.json\n")).stderr.contains("not a conversation"));
}

#[test]
fn a_full_context_is_told_and_clear_helps() {
    let long = "word ".repeat(400);
    let ran = chat(&format!("{long}\n/clear\nhello\n"));
    assert!(ran.stderr.contains("context holds 512") && ran.stderr.contains("/clear"), "{}", ran.stderr);
    assert_eq!(ran.stdout, chat("hello\n").stdout);
}

#[cfg(unix)]
#[test]
fn serve_answers_until_it_is_interrupted() {
    let mut child = start(&["serve", "-m", model(), "--port", "0", "--ctx", "128"]);
    let mut log = BufReader::new(child.stderr.take().expect("stderr"));
    let mut line = String::new();
    while !line.contains("serving at http://") {
        line.clear();
        assert!(log.read_line(&mut line).expect("stderr") > 0, "the server ended");
    }
    let addr =
        line.split("http://").nth(1).and_then(|t| t.split('/').next()).expect("an address").to_string();
    let ask = |request: String| {
        let mut socket = TcpStream::connect(&addr).expect("connects");
        socket.write_all(request.as_bytes()).expect("writes");
        let mut reply = String::new();
        socket.read_to_string(&mut reply).expect("reads");
        reply
    };
    let models = ask(format!("GET /v1/models HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"));
    assert!(models.starts_with("HTTP/1.1 200") && models.contains("tiny"), "{models}");
    let body = r#"{"messages":[{"role":"user","content":"hello"}],"max_tokens":4,"temperature":0}"#;
    let reply = ask(format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    ));
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("chat.completion"), "{reply}");
    common::interrupt(&child);
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
fn serving_the_world_needs_a_key() {
    let ran = hob_with(b"", &["serve", "-m", model(), "--host", "0.0.0.0", "--port", "0"]).expect(1);
    assert!(ran.stderr.contains("API key"), "{}", ran.stderr);
}
