//! Fields, ranges and shapes of a chat request.

use super::*;
use axum::http::StatusCode;
use serde_json::{Value, json};

fn defaults() -> Defaults {
    Defaults { sampling: Sampling::default(), max_tokens: 77 }
}

fn with(fields: Value) -> Result<Chat, ApiError> {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    parse(body.to_string().as_bytes(), &defaults()).and_then(|chat| {
        chat.request.validate(1000)?;
        Ok(chat)
    })
}

fn refused(fields: Value) -> ApiError {
    let error = with(fields.clone()).err().unwrap_or_else(|| panic!("{fields} should be refused"));
    assert_eq!(error.status, StatusCode::BAD_REQUEST, "{fields}");
    error
}

#[test]
fn defaults_apply_where_the_request_is_silent_or_null() {
    for fields in
        [json!({}), json!({"temperature": null, "max_tokens": null, "stop": null, "seed": null, "n": null})]
    {
        let chat = with(fields).unwrap();
        assert_eq!(chat.request.sampling, Sampling::default());
        assert_eq!((chat.request.max_tokens, chat.stream, chat.include_usage), (77, false, false));
        assert!(chat.request.stop.is_empty() && !chat.request.ignore_eos);
        assert_eq!(chat.messages, [Message::user("hi")]);
    }
}

#[test]
fn every_field_arrives() {
    let chat = with(json!({
        "model": "anything", "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true},
        "max_tokens": 5, "max_completion_tokens": 6, "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125,
        "typical_p": 0.75,
        "repeat_penalty": 1.5, "repeat_last_n": 9, "frequency_penalty": -1.0, "presence_penalty": 2,
        "logit_bias": {"3": -100, "4": 1.5}, "seed": 18446744073709551615u64, "stop": ["x", "y"], "ignore_eos": true,
        "n": 1, "logprobs": false, "response_format": {"type": "text"},
    }))
    .unwrap();
    let want = Sampling {
        repeat_penalty: 1.5,
        repeat_last_n: 9,
        frequency_penalty: -1.0,
        presence_penalty: 2.0,
        logit_bias: vec![(3, -100.0), (4, 1.5)],
        top_k: 7,
        typical_p: 0.75,
        top_p: 0.25,
        min_p: 0.125,
        temperature: 0.5,
        seed: Some(u64::MAX),
    };
    assert_eq!(chat.request.sampling, want);
    assert_eq!((chat.request.max_tokens, chat.request.ignore_eos), (6, true));
    assert_eq!(chat.request.stop, ["x", "y"]);
    assert!(chat.stream && chat.include_usage);
    assert_eq!(with(json!({"stop": "one"})).unwrap().request.stop, ["one"]);
    assert_eq!(with(json!({"seed": -1})).unwrap().request.sampling.seed, Some(u64::MAX));
    assert_eq!(with(json!({"top_k": -1})).unwrap().request.sampling.top_k, 0);
    assert_eq!(with(json!({"repetition_penalty": 1.25})).unwrap().request.sampling.repeat_penalty, 1.25);
    assert_eq!(with(json!({"max_tokens": 5})).unwrap().request.max_tokens, 5);
}

#[test]
fn unknown_fields_are_ignored() {
    let chat = with(json!({
        "tools": [{"type": "namespace", "x": {"y": [1, 2, {}]}}], "tool_choice": "auto", "store": false, "user": "me",
        "metadata": {"a": null}, "parallel_tool_calls": true, "service_tier": "auto", "prompt_cache_key": "k",
    }));
    assert!(chat.is_ok());
    let body = json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{}], "name": "x"}]});
    let chat = parse(body.to_string().as_bytes(), &defaults()).unwrap();
    assert_eq!(chat.messages, [Message::assistant("")]);
}

/// Lowest, highest, just outside, and the wrong type, for every numeric field.
#[test]
fn every_numeric_field_has_a_range_and_names_itself() {
    let floats = [
        ("temperature", 0.0, 10.0),
        ("top_p", 0.0, 1.0),
        ("typical_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("frequency_penalty", -2.0, 2.0),
        ("presence_penalty", -2.0, 2.0),
        ("repeat_penalty", 0.01, 10.0),
    ];
    for (name, low, high) in floats {
        for fine in [json!(low), json!(high)] {
            assert!(with(json!({name: fine})).is_ok(), "{name} {fine}");
        }
        for bad in [
            json!(low - 0.001),
            json!(high + 0.001),
            json!(1e300),
            json!(-1e300),
            json!("1"),
            json!([1]),
            json!({}),
            json!(true),
        ] {
            let error = refused(json!({name: bad}));
            assert_eq!(error.param.as_deref(), Some(name), "{bad}");
            assert!(error.message.contains(name), "{}", error.message);
        }
    }
    let wholes: [(&str, &[Value], &[Value]); 6] = [
        ("max_tokens", &[json!(1), json!(u64::MAX)], &[json!(0), json!(-1), json!(1.5), json!("1")]),
        ("max_completion_tokens", &[json!(1)], &[json!(0), json!(-1), json!(1.5), json!([])]),
        (
            "top_k",
            &[json!(-1), json!(0), json!(1 << 30)],
            &[json!(-2), json!((1 << 30) + 1), json!(0.5), json!("a")],
        ),
        ("repeat_last_n", &[json!(0), json!(65536)], &[json!(-1), json!(65537), json!(u64::MAX), json!(2.5)]),
        ("n", &[json!(1)], &[json!(0), json!(2), json!(-1), json!("1")]),
        ("seed", &[json!(0), json!(i64::MIN), json!(u64::MAX)], &[json!(1.5), json!("7"), json!(1e30)]),
    ];
    for (name, fine, bad) in wholes {
        for value in fine {
            assert!(with(json!({name: value})).is_ok(), "{name} {value}");
        }
        for value in bad {
            let error = refused(json!({name: value}));
            assert_eq!(error.param.as_deref(), Some(name), "{value}");
            assert!(error.message.contains(name), "{}", error.message);
        }
    }
}

#[test]
fn biases_and_stops_are_checked() {
    for bad in [
        json!({"1000": 1}),
        json!({"1": 101}),
        json!({"x": 1}),
        json!({"-1": 1}),
        json!({"1": "a"}),
        json!([1]),
    ] {
        assert_eq!(refused(json!({"logit_bias": bad})).param.as_deref(), Some("logit_bias"), "{bad}");
    }
    for bad in [json!([""]), json!(""), json!(1), json!([1]), json!(vec!["x"; 17]), json!("x".repeat(513))] {
        assert_eq!(refused(json!({"stop": bad})).param.as_deref(), Some("stop"), "{bad}");
    }
}

#[test]
fn what_would_change_the_answer_and_is_not_supported_is_named() {
    for (fields, param) in [
        (json!({"logprobs": true}), "logprobs"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"n": 2}), "n"),
    ] {
        assert_eq!(refused(fields).param.as_deref(), Some(param));
    }
}

#[test]
fn roles_and_contents() {
    let messages = |list: Value| parse(json!({"messages": list}).to_string().as_bytes(), &defaults());
    let chat = messages(json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "tool", "content": "42"},
    ]))
    .unwrap();
    assert_eq!(
        chat.messages,
        [Message::system("be brief"), Message::user("one\ntwo"), Message::new("tool", "42")]
    );
    let param = |list: Value| {
        let error = messages(list).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        (error.param.unwrap(), error.message)
    };
    let image = json!([{"role": "user", "content": [
        {"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    ]}]);
    let (name, message) = param(image);
    assert_eq!(name, "messages[0].content[1]");
    assert!(message.contains("image_url"), "{message}");
    assert_eq!(param(json!([{"role": "user", "content": [{"type": "text"}]}])).0, "messages[0].content[0]");
    assert_eq!(
        param(json!([{"role": "user", "content": "x"}, {"role": "boss", "content": "x"}])).0,
        "messages[1].role"
    );
    for bad in [
        json!([]),
        json!("hi"),
        json!([{"content": "x"}]),
        json!([{"role": "user", "content": 5}]),
        json!(null),
        json!([1]),
    ] {
        assert_eq!(param(bad.clone()).0, "messages", "{bad}");
    }
}

#[test]
fn what_is_not_a_request_is_refused() {
    let deep = format!("{{\"x\": {}", "[".repeat(100_000));
    let many = format!("{{\"messages\": [{}]}}", vec!["{\"role\":\"user\"}"; 10_001].join(","));
    for body in [
        "",
        "{",
        "[]",
        "null",
        "7",
        "{\"messages\": [}",
        "{} x",
        "{\"messages\": []}",
        deep.as_str(),
        many.as_str(),
        "\u{feff}{}",
    ] {
        let error = parse(body.as_bytes(), &defaults()).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST, "{}", &body[..body.len().min(40)]);
        assert!(!error.message.is_empty());
    }
    assert!(parse(b"{\"messages\": \"\xff\"}", &defaults()).is_err());
}
