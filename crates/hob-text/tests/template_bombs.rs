//! Hostile chat templates: each must be refused (or be harmless) without taking memory or the stack with it.
//! One test in a binary of its own, because memory is counted for the whole process.

use hob_testkit::alloc::{CountingAllocator, measure_process};
use hob_text::{ChatInput, ChatTemplate, Message, TemplateLimits, TextError};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What the limits promise.
const PEAK_BYTES: u64 = 64 << 20;

/// The longest source that is accepted.
const SOURCE: usize = 64 << 10;

fn render(source: &str) -> Result<String, TextError> {
    let messages = [Message::user("hello"), Message::assistant("well")];
    let input = ChatInput { messages: &messages, add_generation_prompt: true, ..Default::default() };
    ChatTemplate::new(source, &TemplateLimits::default())?.render(&input)
}

/// Templates that must be refused.
fn bombs() -> Vec<(&'static str, String)> {
    let twice = |step: &str| {
        format!(
            "{{% set ns = namespace(x='xxxxxxxx') %}}{{% for i in range(200) %}}{{% set ns.x = {step} %}}{{% endfor %}}{{{{ ns.x|length }}}}"
        )
    };
    // A value of 100 lists that prints as 2^100 elements.
    let shared = |used: &str| {
        format!(
            "{{% set ns = namespace(x=[1], y=[1]) %}}{{% for i in range(100) %}}{{% set ns.x = [ns.x, ns.x] %}}{{% set ns.y = [ns.y, ns.y] %}}{{% endfor %}}{used}"
        )
    };
    let wide = |used: &str| {
        format!(
            "{{% set ns = namespace(x=[1], y=[1]) %}}{{% for i in range(40) %}}{{% set ns.x = [ns.x, ns.x] %}}{{% set ns.y = [ns.y, ns.y] %}}{{% endfor %}}{used}"
        )
    };
    let big = |used: &str| format!("{{% set s = 'x' * 4000000 %}}{used}");
    let raw = "y".repeat(50_000);
    vec![
        ("chained replace", format!("{{{{ 'a'{} }}}}", "|replace('a', 'aaaaaaaaaaaaaaaaaaaa')".repeat(20))),
        ("chained replace method", format!("{{{{ 'a'{} }}}}", ".replace('a', 'aaaaaaaaaaaaaaaaaaaa')".repeat(20))),
        ("replace of nothing", format!("{{{{ 'a'{} }}}}", "|replace('', 'aaaaaaaa')".repeat(20))),
        ("list times n", "{{ ([1] * 30000000)|length }}".into()),
        ("list times n, lazily used", "{% for x in [1] * 100000000 %}{% break %}{% endfor %}".into()),
        ("tuple times n", "{{ ((1,) * 100000000)|length }}".into()),
        ("lists of lists", "{{ ([[1] * 1000000] * 1000000)|length }}".into()),
        ("string times n", "{{ 'x' * 300000000 }}".into()),
        ("constants folded by a compiler", "{{ ('x' * 99999999) ~ ('y' * 99999999) }}".into()),
        ("constants folded, compared", "{{ [1] * 99999999 == [1] * 99999999 }}".into()),
        ("times huge n", "{{ 'x' * (2 ** 120) }}".into()),
        ("doubling with ~", twice("ns.x ~ ns.x")),
        ("doubling with +", twice("ns.x + ns.x")),
        ("doubling with join", twice("[ns.x, ns.x]|join")),
        ("doubling with the method join", twice("ns.x.join(['', '', ''])")),
        ("doubling with format", twice("'%s%s'|format(ns.x, ns.x)")),
        ("doubling with %", twice("'%s%s' % (ns.x, ns.x)")),
        ("doubling with str.format", twice("'{0}{0}'.format(ns.x)")),
        ("doubling with replace", twice("ns.x|replace('x', 'xx')")),
        ("doubling with indent", twice("ns.x|indent(ns.x|length, true)")),
        ("doubling with center", twice("ns.x|center(2 * ns.x|length)")),
        ("doubling with ljust", twice("ns.x.ljust(2 * ns.x|length)")),
        ("doubling with zfill", twice("ns.x.zfill(2 * ns.x|length)")),
        ("doubling with tojson", twice("[ns.x, ns.x]|tojson")),
        ("doubling with string", twice("[ns.x, ns.x]|string")),
        ("doubling with escape", twice("(ns.x ~ '&&&&')|e ~ ns.x")),
        ("doubling with map", twice("[ns.x, ns.x]|map('upper')|join")),
        ("doubling with a list", twice("ns.x|list + ns.x|list")),
        ("doubling with a capture", "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}".into()),
        ("doubling with a macro", "{% macro m(n) %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}xxxxxxxx{% endif %}{% endmacro %}{{ m(40) }}".into()),
        ("doubling with a filter block", "{% macro m(n) %}{% filter upper %}{% if n > 0 %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}x{% endif %}{% endfilter %}{% endmacro %}{{ m(40) }}".into()),
        ("doubling with caller", "{% macro m(n) %}{% if n > 0 %}{% call m(n - 1) %}{{ caller() }}{{ caller() }}{% endcall %}{% else %}{{ caller() }}{% endif %}{% endmacro %}{% call m(40) %}xx{% endcall %}".into()),
        ("shared parts printed", shared("{{ ns.x }}")),
        ("shared parts printed, 40 deep", wide("{{ ns.x }}")),
        ("shared parts as JSON", wide("{{ ns.x|tojson }}")),
        ("shared parts concatenated", wide("{{ ns.x ~ '' }}")),
        ("shared parts compared", wide("{{ ns.x == ns.y }}")),
        ("shared parts ordered", wide("{{ ns.x < ns.y }}")),
        ("shared parts compared in a chain", wide("{{ ns.x <= ns.y <= ns.x }}")),
        ("shared parts searched", wide("{{ ns.x in [ns.y] }}")),
        ("shared parts tested", wide("{{ ns.x is eq(ns.y) }}")),
        ("shared parts sameas", wide("{{ ns.x is sameas(ns.y) }}")),
        ("shared parts unique", wide("{{ [ns.x, ns.y]|unique|list|length }}")),
        ("shared parts sorted", wide("{{ [ns.x, ns.y]|sort|length }}")),
        ("shared parts joined", wide("{{ [ns.x]|join }}")),
        ("shared parts counted", wide("{{ [ns.x].count(ns.y) }}")),
        ("shared parts as a key", wide("{{ {ns.x: 1} }}")),
        ("shared parts as an index", wide("{{ {'a': 1}[ns.x] }}")),
        ("shared parts as a default index", wide("{{ {'a': 1}.get(ns.x) }}")),
        ("shared parts formatted", wide("{{ '%s'|format(ns.x) }}")),
        ("shared parts raised", wide("{{ raise_exception(ns.x) }}")),
        ("shared parts in a map", "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x|string|length }}".into()),
        ("deep list", "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|length }}".into()),
        ("deep map", "{% set ns = namespace(x={}) %}{% for i in range(90000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}".into()),
        ("deep list printed", "{% set ns = namespace(x=[]) %}{% for i in range(10000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".into()),
        ("deep namespaces", "{% set ns = namespace(x=1) %}{% for i in range(90000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}".into()),
        ("a namespace in itself, printed", "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".into()),
        ("a namespace in itself, compared", "{% set a = namespace() %}{% set a.x = a %}{% set b = namespace() %}{% set b.x = b %}{{ a == b }}".into()),
        ("range", "{{ range(1000000000)|length }}".into()),
        ("range over everything", "{{ range(-(10 ** 30), 10 ** 30, 1)|length }}".into()),
        ("nested loops", "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}".into()),
        ("endless output", "{% for a in range(100000) %}0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789{% endfor %}".into()),
        ("endless macro", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into()),
        ("endless recursive loop", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".into()),
        ("raw text in a loop", format!("{{% set ns = namespace(x=[]) %}}{{% for i in range(10000) %}}{{% set c %}}{raw}{{% endset %}}{{% set ns.x = ns.x + [c] %}}{{% endfor %}}")),
        ("closures in a loop", "{% set v = 1 %}{% for i in range(100000) %}{% macro m() %}{{ v }}{{ i }}{% endmacro %}{% endfor %}".into()),
        ("many lists", "{% for i in range(100000) %}{% set x = [] %}{% endfor %}".into()),
        ("indent by a billion", "{{ 'a\nb'|indent(1000000000) }}".into()),
        ("center on a billion", "{{ 'a'|center(1000000000) }}".into()),
        ("rjust on a billion", "{{ 'a'.rjust(1000000000) }}".into()),
        ("zfill to a billion", "{{ '1'.zfill(1000000000) }}".into()),
        ("batches of a billion", "{{ [1]|batch(1000000000, 'x')|list }}".into()),
        ("a billion columns", "{{ [1]|slice(1000000000, 'x')|list }}".into()),
        ("format width", "{{ '%999999999d'|format(1) }}".into()),
        ("format width from an argument", "{{ '%*d'|format(999999999, 1) }}".into()),
        ("format precision", "{{ '{:.99999999f}'.format(1.0) }}".into()),
        ("JSON indent", "{{ [1]|tojson(indent=1000000000) }}".into()),
        ("JSON indent, many levels", format!("{{{{ {}1{}|tojson(indent=64) }}}}", "[1,".repeat(60), "]".repeat(60)) + "{% for i in range(100000) %}{{ [[[[[1]]]]]|tojson(indent=64) }}{% endfor %}"),
        ("loops over a long text", big("{% for i in range(100000) %}{% for c in s %}{% break %}{% endfor %}{% endfor %}")),
        ("searches in a long text", big("{% for i in range(100000) %}{% set x = 'y' in s %}{% endfor %}")),
        ("lengths of a long text", big("{% for i in range(100000) %}{% set x = s|length %}{% endfor %}")),
        ("indexing a long text", big("{% for i in range(100000) %}{% set x = s[3] %}{% endfor %}")),
        ("slicing a long text", big("{% for i in range(100000) %}{% set x = s[1:2] %}{% endfor %}")),
        ("stripping a long text", big("{% for i in range(100000) %}{% set x = s.strip('y') %}{% endfor %}")),
        ("comparing long texts", big("{% set t = s ~ '' %}{% for i in range(100000) %}{% set x = s == t %}{% endfor %}")),
        ("counting in a long text", big("{% for i in range(100000) %}{% set x = s.count('xx') %}{% endfor %}")),
        ("testing a long text", big("{% for i in range(100000) %}{% set x = s is lower %}{% endfor %}")),
        ("splitting a long text", big("{{ s.split('x')|length }}")),
        ("unique over many", "{{ range(100000)|unique|list|length }}".into()),
        ("splats", "{{ dict(*[1], **{'a': 1}) }}".into()),
        ("loop.changed", "{% for x in [1] %}{{ loop.changed(x) }}{% endfor %}".into()),
        ("cycle of nothing", "{% for x in [1] %}{{ loop.cycle() }}{% endfor %}".into()),
        ("include", "{% include 'other' %}".into()),
        ("import", "{% import 'other' as o %}".into()),
        ("extends", "{% extends 'other' %}".into()),
        ("block", "{% block b %}{{ self.b() }}{% endblock %}".into()),
        ("an operator by its inner name", "{{ op:+(1, 2) }}".into()),
        ("strftime of codes", "{% for i in range(10000) %}{% set x = strftime_now('%c' * 5000) %}{% endfor %}".into()),
        ("integer overflow", "{{ 2 ** 127 * 2 }}".into()),
        ("deep parentheses", "{{ ".to_owned() + &"(".repeat(30_000)),
        ("deep lists", "{{ ".to_owned() + &"[".repeat(30_000)),
        ("deep ifs", "{% if x %}".repeat(5_000)),
        ("flat plus", format!("{{{{ 1{} }}}}", "+1".repeat(30_000))),
        ("flat tilde", format!("{{{{ 1{} }}}}", "~1".repeat(30_000))),
        ("flat minus signs", format!("{{{{ {}1 }}}}", "-".repeat(60_000))),
        ("flat nots", format!("{{{{ {}1 }}}}", "not ".repeat(16_000))),
        ("flat ands", format!("{{{{ 1{} }}}}", " and 1".repeat(10_000))),
        ("flat ternaries", format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(5_000))),
        ("flat attributes", format!("{{{{ x{} }}}}", ".a".repeat(30_000))),
        ("flat calls", format!("{{{{ x{} }}}}", "()".repeat(30_000))),
        ("flat indices", format!("{{{{ x{} }}}}", "[0]".repeat(20_000))),
        ("flat filters", format!("{{{{ x{} }}}}", "|e".repeat(30_000))),
        ("flat tests", format!("{{{{ x{} }}}}", " is odd".repeat(9_000))),
        ("flat elifs", format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(5_000))),
        ("too long a source", "x".repeat(SOURCE + 1)),
    ]
}

/// Long sources that may succeed, but cheaply.
fn harmless() -> Vec<(&'static str, String)> {
    vec![
        ("flat comparisons", format!("{{{{ 1{} }}}}", "<1".repeat(30_000))),
        ("long list", format!("{{{{ [1{}]|length }}}}", ",1".repeat(30_000))),
        ("long map", format!("{{{{ {{1:1{}}}|length }}}}", ",1:1".repeat(15_000))),
        ("many statements", "{% set x = 1 %}".repeat(4_000)),
        ("many prints", "{{ 1 }}".repeat(9_000)),
        ("unfinished tags", "{%".repeat(30_000)),
        ("unfinished prints", "{{".repeat(30_000)),
        ("unfinished comments", "{#".repeat(30_000)),
        ("a long string", format!("{{{{ '{}' }}}}", "\\n".repeat(30_000))),
        ("a long number", format!("{{{{ {} }}}}", "9".repeat(60_000))),
        ("a long name", format!("{{{{ {} }}}}", "a".repeat(60_000))),
        ("many unknown methods", "{{ x is defined and x.y() }}".repeat(2_000)),
        ("a namespace in itself", "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a|length }}".into()),
    ]
}

#[test]
fn every_bomb_is_refused_within_the_promised_memory() {
    let mut failures = Vec::new();
    let mut slowest = (std::time::Duration::ZERO, "");
    let mut largest = (0, "");
    let named = bombs().into_iter().map(|(name, source)| (name, source, true));
    for (name, source, must_fail) in
        named.chain(harmless().into_iter().map(|(name, source)| (name, source, false)))
    {
        assert!(source.len() <= SOURCE + 1, "{name} is too long to test anything but its length");
        let start = std::time::Instant::now();
        let (result, usage) = measure_process(|| render(&source));
        slowest = slowest.max((start.elapsed(), name));
        if std::env::var_os("HOB_TEST_TIMES").is_some() {
            println!("{:?} {} KiB {name}", start.elapsed(), usage.peak_bytes >> 10);
        }
        largest = largest.max((usage.peak_bytes, name));
        if usage.peak_bytes > PEAK_BYTES {
            failures.push(format!("{name}: {} MiB", usage.peak_bytes >> 20));
        }
        match result {
            Ok(text) if must_fail => failures.push(format!("{name}: rendered {} bytes", text.len())),
            Err(TextError::Template(text)) if text.contains("panic") => {
                failures.push(format!("{name}: {text}"))
            }
            _ => {}
        }
    }
    println!("slowest {:?}, largest {} KiB ({})", slowest, largest.0 >> 10, largest.1);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
