//! A whole bench of a tiny synthesized model: what is measured where, and that nothing asserts a speed.

use std::path::Path;

use hob_compute::{Compute, Pick, Picked, Token};
use hob_cpu::{Cpu, CpuConfig};
use hob_engine::TraceSummary;
use hob_lab::bench::{self, BenchConfig, BenchError, Kv, KvFormats, Row, Subject, Test, Watch};
use hob_lab::synth::{Mix, Shape, Synth};
use hob_model::{Batch, KvLayout, KvPair, Layout, Model};
use hob_quant::Format;

const TINY: Shape = Shape {
    name: "tiny",
    arch: "qwen2",
    dim: 64,
    layers: 2,
    ffn: 128,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    vocab: 320,
    ctx_train: 2048,
    rope_base: 1e4,
    rms_eps: 1e-5,
    ..Shape::DENSE
};

fn synth() -> Synth {
    Synth::new(TINY, Mix::Plain(Format::Q4_0), Some(Format::Q8_0)).expect("tiny")
}

fn subject(synth: &Synth) -> Subject<'_> {
    let info = synth.info().expect("info");
    Subject { name: synth.name(), description: synth.description(), source: synth, info }
}

fn config() -> BenchConfig {
    BenchConfig {
        threads: vec![1, 2],
        prompt: 20,
        tokens: 4,
        rows: vec![3],
        repeat: 2,
        depths: vec![0, 300, 5000],
        ctx_tokens: 400,
        kv: vec![KvFormats::f16()],
        fill_seconds: 60.0,
        gpu: None,
        profile: None,
    }
}

#[derive(Default)]
struct Seen {
    rows: usize,
    phases: usize,
}

impl Watch for Seen {
    fn phase(&mut self, _what: &str) {
        self.phases += 1;
    }

    fn row(&mut self, _row: &Row) {
        self.rows += 1;
    }
}

#[test]
fn every_thread_count_depth_and_kind_gives_a_row() {
    let synth = synth();
    let mut seen = Seen::default();
    let report = bench::run(&config(), &subject(&synth), &mut seen).expect("bench");
    let rows: Vec<_> = report.rows.iter().map(|r| (r.threads, r.test, r.depth)).collect();
    let pp = Test::Prefill { tokens: 20 };
    let tests = [pp, Test::Decode { tokens: 4 }, Test::Check { rows: 3, steps: 8 }];
    let each = |threads| [0, 300].map(|depth| tests.map(|test| (threads, test, depth))).concat();
    assert_eq!(rows, [each(1), each(2)].concat());
    assert_eq!(report.left_out, [5000]);
    assert_eq!(seen.rows, rows.len());
    assert!(seen.phases > 0);
    for row in &report.rows {
        assert_eq!(row.samples.len(), 2);
        assert_eq!(row.kv, Kv { prefilled: row.depth, synthetic: 0 });
        assert_eq!(row.gb_per_s.is_some(), row.test != pp);
        assert!(row.tokens_per_s.p50.is_finite() && row.tokens_per_s.p50 > 0.0);
        assert!(row.samples.iter().all(|s| s.limit.gb_per_s() > 0.0));
    }
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["rows"][0]["test"]["kind"], "prefill");
    assert!(json["rows"][1]["percent_of_limit"]["p50"].is_number());
    assert_eq!(json["model"], "tiny:q4_0:q8_0");
}

#[test]
fn without_time_to_fill_the_context_is_synthetic_and_says_so() {
    let synth = synth();
    let config = BenchConfig { threads: vec![1], repeat: 1, fill_seconds: 0.0, prompt: 0, ..config() };
    let report = bench::run(&config, &subject(&synth), &mut Seen::default()).expect("bench");
    assert_eq!(report.rows.len(), 4);
    assert_eq!(report.rows[2].kv, Kv { prefilled: 0, synthetic: 300 });
    assert!(report.rows[2].to_string().contains("synthetic"));
}

#[test]
fn a_depth_that_does_not_fit_is_an_error_with_the_numbers() {
    let synth = synth();
    let config = BenchConfig { ctx_tokens: 10, ..config() };
    let error = bench::run(&config, &subject(&synth), &mut Seen::default()).expect_err("too small");
    assert!(matches!(error, BenchError::NoDepth { ctx_tokens: 10, needed: 24, .. }), "{error:?}");
}

/// The synthesized weights must behave: finite logits that differ between tokens.
#[test]
fn a_synthesized_model_computes() {
    for (format, head) in
        [(Format::Q4_0, Format::Q4_0), (Format::F16, Format::Q8_0), (Format::BF16, Format::F32)]
    {
        let synth = Synth::new(TINY, Mix::Plain(format), Some(head)).expect("tiny");
        let info = synth.info().expect("info");
        let mut dev = Cpu::new(&CpuConfig { threads: 1, ..CpuConfig::default() }).expect("cpu");
        let mut model =
            Model::load_from(&synth, info, &mut dev, &Layout::new(64), &mut |_, _| {}).expect("loads");
        let sequence = model.new_sequence().expect("a sequence");
        let mut picks = Vec::new();
        for position in 0..3u32 {
            let token = Token::Host(position * 7);
            let rows = vec![hob_model::Row { sequence, position, token, logits: true, draft: false }];
            let n = model.step(&mut dev, &Batch { rows }).expect("step");
            dev.pick(&Pick { logits: model.logits(), rows: n, k: 2, draws: &[] }).expect("pick");
            let ticket = dev.submit().expect("submit");
            let mut picked = Picked::default();
            dev.picked(ticket, &mut picked).expect("picked");
            assert!(picked.logits.iter().all(|l| l.is_finite()), "{format}: {picked:?}");
            assert!(picked.logits[0] > picked.logits[1], "{format}: {picked:?}");
            picks.push(picked.logits[0].to_bits());
        }
        picks.dedup();
        assert_eq!(picks.len(), 3, "{format}");
        model.unload(&mut dev).expect("unload");
    }
}

#[test]
fn formats_of_kv_stand_side_by_side_with_their_own_bytes() {
    let synth = synth();
    let of = |name: &str| {
        let pair = KvPair::both(name.parse().expect(name));
        KvFormats { name: name.to_string(), layout: KvLayout::uniform(pair) }
    };
    // Without time to prefill, all of the context is made up, in packed pages too.
    let config = BenchConfig {
        threads: vec![1],
        rows: vec![],
        depths: vec![0, 300],
        kv: vec![of("q8"), of("f16"), of("q4")],
        fill_seconds: 0.0,
        ..config()
    };
    let subject = subject(&synth);
    let report = bench::run(&config, &subject, &mut Seen::default()).expect("a report");
    let names: Vec<&str> = report.rows.iter().map(|r| r.kv_format.as_str()).collect();
    assert_eq!(names, [["q8"; 4], ["f16"; 4], ["q4"; 4]].concat());
    // 2 layers x 2 heads x (K and V) x 1 group of 32.
    let bytes = |name: &str| report.rows.iter().find(|r| r.kv_format == name).expect(name).kv_bytes_per_token;
    assert_eq!((bytes("f16"), bytes("q8"), bytes("q4")), (8 * 64, 8 * 34, 8 * 18));
    for row in report.rows.iter().filter(|r| r.depth == 300) {
        assert_eq!(row.kv, Kv { prefilled: 0, synthetic: 300 }, "{}", row.kv_format);
        let Some(gb) = row.samples[0].gb_per_s else { continue };
        // The bytes behind the figure are those of this format.
        let layout = &config.kv.iter().find(|kv| kv.name == row.kv_format).expect("a format").layout;
        let per_token = subject.info.bytes_per_token(300 + 2, layout) as f64;
        let found = gb * 1e9 / row.samples[0].tokens_per_s;
        assert!((found / per_token - 1.0).abs() < 1e-6, "{}: {found} of {per_token}", row.kv_format);
    }
}

/// A timeline of a bench has every step and every verb, in one JSON file.
#[test]
fn a_bench_leaves_a_timeline() {
    #[derive(Default)]
    struct Timeline(String);
    impl Watch for Timeline {
        fn phase(&mut self, _what: &str) {}
        fn row(&mut self, _row: &Row) {}
        fn profile(&mut self, path: &Path, result: std::io::Result<TraceSummary>) {
            assert!(result.expect("complete").to_string().contains("linear"));
            self.0 = std::fs::read_to_string(path).expect("a file");
        }
    }
    let (synth, dir) = (synth(), hob_testkit::temp::TempDir::new("bench-trace"));
    let config = BenchConfig { depths: vec![0], repeat: 1, profile: Some(dir.join("t.json")), ..config() };
    let mut timeline = Timeline::default();
    bench::run(&config, &subject(&synth), &mut timeline).expect("bench");
    let events: Vec<serde_json::Value> = serde_json::from_str(&timeline.0).expect("JSON");
    let count = |cat: &str, name: &str| {
        events
            .iter()
            .filter(|e| e["cat"] == cat && e["name"].as_str().unwrap_or("").starts_with(name))
            .count()
    };
    // Two thread counts, each with a first sample that is not kept.
    assert_eq!(["prefill", "decode", "check"].map(|kind| count("engine", kind)), [4, 16, 32]);
    assert_eq!(count("embed", "embed"), 4 + 16 + 32);
    assert!(count("linear", "linear blk.") > 0 && count("attend", "attend") > 0);
    let missing = BenchConfig { profile: Some(dir.join("no/such/folder")), ..config };
    let error = bench::run(&missing, &subject(&synth), &mut timeline).expect_err("no folder").to_string();
    assert!(error.contains("timeline") && error.contains("no/such/folder"), "{error}");
}
