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

/// Templates of published models, where `HOB_TEST_VOCABS` names a folder with `real.templates.json` (the form of
/// templates.json): what Jinja2 renders we render to the byte.
#[test]
fn published_templates_equal_jinja2() {
    let Some(folder) = std::env::var_os("HOB_TEST_VOCABS") else { return };
    let path = std::path::Path::new(&folder).join("real.templates.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    let (mut equal, mut wrong) = (0, Vec::new());
    for case in cases {
        // Known differences: Python escapes HTML when marked text is added to plain text, and its generators are no
        // lists.
        let known = ["meetkai-functionary-medium-v3.1.jinja/tool", "llama-cpp-deepseek-r1.jinja/tool"];
        if known.iter().any(|name| case["name"].as_str().unwrap().starts_with(name)) {
            continue;
        }
        let chat = &fixture["chats"][case["chat"].as_str().unwrap()];
        let found = render(case["template"].as_str().unwrap(), chat);
        match (case.get("output"), found) {
            (Some(expected), Ok(found)) if expected == &found => equal += 1,
            (None, Err(_)) => equal += 1,
            (Some(expected), Ok(found)) => {
                let expected = expected.as_str().unwrap();
                let same = expected.bytes().zip(found.bytes()).take_while(|(a, b)| a == b).count();
                let tail = |text: &str| {
                    String::from_utf8_lossy(&text.as_bytes()[same.saturating_sub(20)..])
                        .chars()
                        .take(90)
                        .collect::<String>()
                };
                wrong.push(format!(
                    "{}\n  expected ..{:?}\n  found    ..{:?}",
                    case["name"],
                    tail(expected),
                    tail(&found)
                ));
            }
            (expected, found) => {
                let found = found.map_or_else(|error| error.to_string(), |_| "a prompt".into());
                wrong.push(format!(
                    "{}\n  expected {:?}\n  found    {found}",
                    case["name"],
                    expected.map_or(&case["error"], |_| &Value::Null)
                ));
            }
        }
    }
    println!("{equal} of {} published cases equal", cases.len());
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// CVE-2024-34359 (llama-cpp-python) and CVE-2026-5760 (SGLang): templates from model files that ran code.
#[test]
fn cve_2024_34359_and_cve_2026_5760_templates_reach_no_code() {
    let chat =
        serde_json::json!({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": false});
    for template in [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__.__builtins__.__import__('os').popen('id').read() }}",
        "{% for c in [].__class__.__base__.__subclasses__() %}{{ c.__name__ }}{% endfor %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].system('id') }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as p %}{{ p }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages[0].content.format.__globals__ }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    ] {
        if let Ok(found) = render(template, &chat) {
            assert!(
                found.trim().is_empty() || !found.contains("__") && !found.contains("root"),
                "{template}: {found}"
            );
        }
    }
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
