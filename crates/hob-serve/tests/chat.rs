//! Replies, streams, usage, errors, the line, and clients that leave.

mod common;

use std::time::Duration;

use common::*;
use hob_serve::{Limits, ServeOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn an_ordinary_reply() {
    let server = start(options()).await;
    let answer = server.post(&chat("hello", json!({"ignore_eos": true}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json();
    assert_eq!((&json["object"], &json["model"]), (&json!("chat.completion"), &json!("tiny")));
    assert!(json["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &json["choices"][0];
    assert_eq!((&choice["index"], &choice["message"]["role"]), (&json!(0), &json!("assistant")));
    assert_eq!(choice["finish_reason"], "length");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    let usage = &json["usage"];
    assert_eq!(usage["completion_tokens"], 16);
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert!(prompt > 5);
    assert_eq!(usage["total_tokens"], prompt + 16);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    // The same again: the same text, from the kept prefix.
    let again = server.post(&chat("hello", json!({"ignore_eos": true}))).await.json();
    assert_eq!(again["choices"], json["choices"]);
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], prompt - 1);
    assert_ne!(again["id"], json["id"]);
    server.stop().await;
}

/// The parsed chunks of a stream, which must end with `[DONE]`.
fn chunks(answer: &Answer) -> Vec<Value> {
    let (mut data, _) = answer.events();
    assert_eq!(data.pop().as_deref(), Some("[DONE]"), "{}", answer.text());
    data.iter().map(|d| serde_json::from_str(d).unwrap()).collect()
}

#[tokio::test]
async fn a_stream_concatenates_to_the_whole_reply() {
    let server = start(options()).await;
    for fields in [
        json!({"ignore_eos": true}),
        json!({"temperature": 1.1, "seed": 3, "ignore_eos": true, "max_tokens": 40}),
        json!({"temperature": 1.0, "top_k": 0, "seed": 4, "frequency_penalty": 0.5, "stop": ["e", "\u{fffd}\u{fffd}"]}),
        json!({"logit_bias": {"3": 100}}),
    ] {
        let whole = server.post(&chat("tell", fields.clone())).await.json();
        let mut streaming = fields.clone();
        streaming["stream"] = json!(true);
        let answer = server.post(&chat("tell", streaming.clone())).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        let parts = chunks(&answer);
        let text: String =
            parts.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(json!(text), whole["choices"][0]["message"]["content"], "{fields}");
        assert_eq!(parts[0]["choices"][0]["delta"]["role"], "assistant");
        let (last, before) = parts.split_last().unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
        assert!(before.iter().all(|c| c["choices"][0]["finish_reason"].is_null()));
        assert!(parts.iter().all(|c| c["object"] == "chat.completion.chunk" && c["id"] == parts[0]["id"]));
        assert!(parts.iter().all(|c| c.get("usage").is_none()));

        streaming["stream_options"] = json!({"include_usage": true});
        let parts = chunks(&server.post(&chat("tell", streaming)).await);
        let (usage, before) = parts.split_last().unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        assert!(before.iter().all(|c| c["usage"].is_null() && c.get("usage").is_some()));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_conversation_that_goes_on_reuses_its_prefix() {
    let server = start(options()).await;
    let first =
        server.post(&chat("hello", json!({"ignore_eos": true, "seed": 1, "temperature": 0.8}))).await.json();
    let used = first["usage"]["total_tokens"].as_u64().unwrap();
    let reply = &first["choices"][0]["message"]["content"];
    let next = json!({"messages": [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "more"},
    ]});
    let second = server.post(&next).await.json();
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached, used - 1, "the prompt and all sampled tokens but the last");
    server.stop().await;
}

#[tokio::test]
async fn conversations_that_take_turns_lose_no_prefix() {
    let server = start(options()).await;
    let mut talks: Vec<Vec<Value>> = ["one", "another", "a third"]
        .map(|topic| {
            vec![json!({"role": "user", "content": format!("{topic}: {}", "tell me more ".repeat(12))})]
        })
        .into();
    let mut known = [0; 3];
    for turn in 0..3 {
        for (talk, known) in talks.iter_mut().zip(&mut known) {
            let reply =
                server.post(&json!({"messages": talk, "ignore_eos": true, "max_tokens": 8})).await.json();
            let usage = &reply["usage"];
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
            // The first turns share how a conversation begins; later ones find all they ran.
            assert!(cached >= *known && (turn > 0 || cached < 10), "turn {turn}: {usage}, known {known}");
            *known = usage["total_tokens"].as_u64().unwrap() - 1;
            talk.push(json!({"role": "assistant", "content": reply["choices"][0]["message"]["content"]}));
            talk.push(json!({"role": "user", "content": "go on"}));
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn errors_have_openai_shape_and_name_the_field() {
    let server = start_with(options(), 64).await;
    for (body, param) in [
        (chat("x", json!({"temperature": 11})), json!("temperature")),
        (chat("x", json!({"max_tokens": 0})), json!("max_tokens")),
        (chat("x", json!({"logit_bias": {"320": 1}})), json!("logit_bias")),
        (chat("x", json!({"n": 2})), json!("n")),
        (chat("x", json!({"stream": "yes"})), json!("stream")),
        (chat(&"long ".repeat(100), json!({})), json!("messages")),
        (json!({}), json!("messages")),
    ] {
        for stream in [false, true] {
            let mut body = body.clone();
            if body.get("stream").is_none() {
                body["stream"] = json!(stream);
            }
            let answer = server.post(&body).await;
            assert_eq!(answer.status, 400, "{body}");
            assert!(!answer.error().is_empty());
            assert_eq!(answer.json()["error"]["param"], param);
            assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
        }
    }
    let long = server.post(&chat(&"long ".repeat(100), json!({}))).await;
    assert_eq!(long.json()["error"]["code"], "context_length_exceeded");
    assert!(long.error().contains("64"), "{}", long.error());
    for bad in ["", "{", "[1]", "nonsense", "{\"messages\": 5}"] {
        let answer = server.ask(&post(bad, "")).await;
        assert_eq!(answer.status, 400, "{bad}");
        answer.error();
    }
    // After all that the engine still serves.
    assert_eq!(server.post(&chat("x", json!({}))).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn models_health_and_the_rest() {
    let server = start(options()).await;
    let models = server.get("/v1/models").await.json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(models["data"][0]["object"], "model");
    let health = server.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
    assert_eq!(server.get("/").await.status, 200);
    let head = server.ask("HEAD / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let mut stream = server.connect().await;
    stream.write_all(b"HEAD / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let raw = until_closed(&mut stream).await;
    drop(head);
    assert!(raw.starts_with(b"HTTP/1.1 200") && raw.ends_with(b"\r\n\r\n"), "no body");
    let missing = server.get("/v1/nothing").await;
    assert_eq!(missing.status, 404);
    missing.error();
    let wrong = server.get("/v1/chat/completions").await;
    assert_eq!(wrong.status, 405);
    wrong.error();
    server.stop().await;
}

/// An engine that is busy for long: a context to fill.
async fn patient(queue: usize, keep_alive: Duration) -> Running {
    let limits = Limits { keep_alive, ..Limits::default() };
    start_with(ServeOptions { queue, limits, ..options() }, 400_000).await
}

#[tokio::test]
async fn the_second_waits_its_turn_and_one_too_many_is_told() {
    let server = patient(1, Duration::from_millis(20)).await;
    let mut first = server.connect().await;
    first.write_all(post(&endless(json!({"stream": true})).to_string(), "").as_bytes()).await.unwrap();
    server.until_load(1, 0).await;
    let mut second = server.connect().await;
    second.write_all(post(&chat("hi", json!({"stream": true})).to_string(), "").as_bytes()).await.unwrap();
    server.until_load(1, 1).await;
    let third = server.post(&chat("hi", json!({}))).await;
    assert_eq!(third.status, 429);
    assert!(third.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(third.json()["error"]["type"], "rate_limit_error");
    third.error();
    assert_eq!(server.get("/health").await.status, 200, "health answers under load");
    // The one in line hears that it waits.
    let mut seen = Vec::new();
    while !seen.windows(18).any(|w| w == b": waiting, 1 ahead") {
        let mut part = [0u8; 512];
        let n = tokio::time::timeout(PATIENCE, second.read(&mut part)).await.unwrap().unwrap();
        assert!(n > 0);
        seen.extend_from_slice(&part[..n]);
    }
    // The first client leaves; the second is served.
    drop(first);
    let rest = until_closed(&mut second).await;
    assert!(String::from_utf8_lossy(&rest).contains("[DONE]"));
    server.until_load(0, 0).await;
    server.stop().await;
}

/// Streaming or not, decoding or queued: when the client goes, the slot is free.
#[tokio::test]
async fn a_client_that_leaves_frees_its_slot() {
    let server = patient(4, Duration::from_secs(10)).await;
    for stream in [true, false] {
        let body = post(&endless(json!({"stream": stream})).to_string(), "");
        let mut running = server.connect().await;
        running.write_all(body.as_bytes()).await.unwrap();
        server.until_load(1, 0).await;
        let mut queued = server.connect().await;
        queued.write_all(body.as_bytes()).await.unwrap();
        server.until_load(1, 1).await;
        drop(queued);
        server.until_load(1, 0).await;
        drop(running);
        server.until_load(0, 0).await;
    }
    // A long prompt: left while it is being prefilled.
    let long = chat(&"the other ".repeat(30_000), json!({"stream": true}));
    let mut prefilling = server.connect().await;
    prefilling.write_all(post(&long.to_string(), "").as_bytes()).await.unwrap();
    server.until_load(1, 0).await;
    drop(prefilling);
    server.until_load(0, 0).await;
    assert_eq!(server.post(&chat("hi", json!({}))).await.status, 200);
    server.stop().await;
}

/// Clients that leave at random moments, many at once: nothing is left behind and nothing is changed.
#[tokio::test]
async fn a_storm_of_leavers_leaves_nothing_behind() {
    let server = patient(3, Duration::from_millis(5)).await;
    let asked = chat("calm", json!({"ignore_eos": true}));
    let before = server.post(&asked).await.json();
    let mut rng = hob_testkit::rng::Rng::new(21);
    let mut storm = tokio::task::JoinSet::new();
    for _ in 0..80 {
        let (addr, wait) = (server.addr, Duration::from_micros(rng.below(40_000) as u64));
        let body = post(&endless(json!({"stream": rng.below(2) == 0})).to_string(), "");
        let sent = if rng.below(4) == 0 { rng.below(body.len()) } else { body.len() };
        storm.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            let _ = stream.write_all(&body.as_bytes()[..sent]).await;
            tokio::time::sleep(wait).await;
        });
        tokio::time::sleep(Duration::from_millis(rng.below(10) as u64)).await;
    }
    while storm.join_next().await.is_some() {}
    server.until_load(0, 0).await;
    let after = server.post(&asked).await.json();
    assert_eq!(after["choices"], before["choices"]);
    server.stop().await;
}

#[tokio::test]
async fn prefill_is_reported_while_it_lasts() {
    let server = patient(1, Duration::from_millis(1)).await;
    let long = chat(&"the other ".repeat(2000), json!({"stream": true, "max_tokens": 2}));
    let answer = server.post(&long).await;
    let (_, comments) = answer.events();
    assert!(comments.iter().any(|c| c.starts_with("prefill ")), "{comments:?}");
    server.stop().await;
}

#[tokio::test]
async fn stopping_tells_the_waiting_and_ends_the_running() {
    let limits = Limits { grace: Duration::from_millis(100), ..Limits::default() };
    let mut server = start_with(ServeOptions { queue: 4, limits, ..options() }, 400_000).await;
    let mut running = server.connect().await;
    running.write_all(post(&endless(json!({"stream": true})).to_string(), "").as_bytes()).await.unwrap();
    server.until_load(1, 0).await;
    let mut waiting = server.connect().await;
    waiting.write_all(post(&chat("hi", json!({})).to_string(), "").as_bytes()).await.unwrap();
    server.until_load(1, 1).await;
    server.order_stop();
    let told = read_answer(&mut waiting).await;
    assert_eq!(told.status, 503);
    assert!(told.error().contains("shutting down"));
    let cut = until_closed(&mut running).await;
    assert!(String::from_utf8_lossy(&cut).contains("shutting down"), "the stream ends with an error");
    server.ended().await;
}
