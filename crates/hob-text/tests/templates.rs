//! Chat templates against Python's Jinja2 in Hugging Face's setup: fixtures/templates.py wrote the expected
//! strings. What the oracle renders we render to the byte; what it refuses we refuse.

use hob_text::{ChatInput, ChatTemplate, Message, TemplateLimits, TextError};
use serde_json::Value;

fn render(template: &str, variables: &Value) -> Result<String, TextError> {
    let messages: Vec<Message> = serde_json::from_value(variables["messages"].clone()).unwrap();
    let mut extra = variables.as_object().unwrap().clone();
    for known in ["messages", "add_generation_prompt", "tools"] {
        extra.remove(known);
    }
    let input = ChatInput {
        messages: &messages,
        add_generation_prompt: variables["add_generation_prompt"].as_bool().unwrap(),
        bos_token: "<s>",
        eos_token: "</s>",
        tools: variables.get("tools"),
        extra,
    };
    ChatTemplate::new(template, &TemplateLimits::default())?.render(&input)
}

#[test]
fn equal_to_jinja2_as_hugging_face_runs_it() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/templates.json")).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 100, "the fixture is cut short");
    let mut wrong = Vec::new();
    for case in cases {
        let found =
            render(case["template"].as_str().unwrap(), &fixture["chats"][case["chat"].as_str().unwrap()]);
        match (case.get("output"), found) {
            (Some(expected), Ok(found)) if expected == &found => {}
            (None, Err(_)) => {}
            (expected, found) => wrong.push(format!(
                "{}\n  expected {}\n  found    {}",
                case["name"],
                expected.unwrap_or(&case["error"]),
                found.map_or_else(|error| error.to_string(), |text| Value::from(text).to_string()),
            )),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Damaged templates are errors or render something; nothing panics and nothing overflows the stack.
#[test]
fn damaged_sources_never_panic() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/templates.json")).unwrap();
    let sources: Vec<&str> =
        fixture["cases"].as_array().unwrap().iter().map(|case| case["template"].as_str().unwrap()).collect();
    let rounds = std::env::var("HOB_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1500);
    let mut rng = hob_testkit::rng::Rng::new(7);
    for round in 0..rounds {
        let mut source: Vec<char> = sources[rng.below(sources.len())].chars().collect();
        let other: Vec<char> = sources[rng.below(sources.len())].chars().collect();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(source.len() + 1);
            match rng.below(4) {
                0 => drop(source.drain(at..(at + rng.below(30)).min(source.len()))),
                1 => {
                    let from = rng.below(other.len());
                    let piece = other[from..(from + rng.below(40)).min(other.len())].to_vec();
                    source.splice(at..at, piece);
                }
                2 => {
                    let tokens = [
                        "{{",
                        "}}",
                        "{%",
                        "%}",
                        "[",
                        "(",
                        ")",
                        "|",
                        ".",
                        "-1",
                        "*",
                        "**",
                        "~",
                        "9999999999999999999999",
                        "'",
                        "loop",
                        "ns",
                        "%",
                        "/0",
                        "[::-1]",
                        "|format(1,'x')",
                        "|int(base=3)",
                        "|round(-9)",
                        ".split()",
                        "|slice(3)|list",
                        ".format(x, [1])",
                    ];
                    let token: Vec<char> = tokens[rng.below(tokens.len())].chars().collect();
                    source.splice(at..at, token);
                }
                _ => {
                    let copy: Vec<char> = source[at..(at + rng.below(60)).min(source.len())].to_vec();
                    source.splice(at..at, copy);
                }
            }
        }
        let source: String = source.into_iter().collect();
        let chats = ["chat", "tools", "closed"];
        if let Err(TextError::Template(text)) = render(&source, &fixture["chats"][chats[round % 3]]) {
            assert!(!text.contains("panic"), "{text}\n{source}");
        }
    }
}

/// The budgets grow with the conversation: a long one renders, and so does one long message.
#[test]
fn long_conversations_render() {
    let template = "{% set ns = namespace(all='', n=0) %}{% for message in messages %}\
        {% set content = message.content | trim | replace('\\r', '') %}\
        {% if message.role == 'user' and content.startswith('w') and not content.endswith('?') %}{% set ns.n = ns.n + 1 %}{% endif %}\
        {{ '<|im_start|>' + message['role'] + '\\n' + content.split('</think>')[-1].strip() + '<|im_end|>\\n' }}{% endfor %}";
    for (messages, words) in [(5_000, 100), (2, 1_000_000)] {
        let text = "words ".repeat(words);
        let chat: Vec<_> =
            (0..messages).map(|i| Message::new(["user", "assistant"][i % 2], text.as_str())).collect();
        let input = ChatInput { messages: &chat, ..Default::default() };
        let prompt = ChatTemplate::new(template, &TemplateLimits::default()).unwrap().render(&input).unwrap();
        assert!(prompt.len() > messages * (text.len() + 20));
    }
}

#[test]
fn variables_of_the_conversation_cannot_be_replaced() {
    let extra = [
        ("messages", Value::from("fake")),
        ("bos_token", Value::from("fake")),
        ("date", Value::from("today")),
    ];
    let messages = [Message::user("hi")];
    let input = ChatInput {
        messages: &messages,
        bos_token: "<s>",
        extra: extra.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..Default::default()
    };
    let template =
        ChatTemplate::new("{{ bos_token }}{{ messages[0].content }} {{ date }}", &TemplateLimits::default());
    assert_eq!(template.unwrap().render(&input).unwrap(), "<s>hi today");
}

#[test]
fn errors_say_where_and_what() {
    let messages = [Message::user("hi")];
    let input = ChatInput { messages: &messages, ..Default::default() };
    let limits = TemplateLimits::default();
    for (source, part) in [
        ("a\n{{ x.y.z }}", "line 2"),
        ("{{ 1 + 'a' }}", "number + string"),
        ("{{ 'a'|nosuch }}", "nosuch"),
        ("{% for x in 3 %}{% endfor %}", "not iterable"),
        ("{% if %}", "line 1"),
        ("{{ raise_exception('no ' ~ messages[0].role) }}", "refuses this conversation: no user"),
        (
            "{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}",
            "TemplateLimits::fuel",
        ),
        ("{{ 'x' * 10 ** 9 }}", "TemplateLimits::work_bytes"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "TemplateLimits::recursion"),
        ("{% include 'x' %}", "cannot load other templates"),
    ] {
        let error = ChatTemplate::new(source, &limits).and_then(|template| template.render(&input));
        let error = error.expect_err(source).to_string();
        assert!(error.contains(part), "\"{part}\" is not in: {error}");
    }
    let source = "x".repeat(limits.source_bytes + 1);
    assert!(matches!(
        ChatTemplate::new(&source, &limits),
        Err(TextError::Budget { field: "source_bytes", .. })
    ));
}
