//! Plans for machines and models of known sizes: what is chosen, what is refused, what history changes.

use hob_model::{Footprint, Layout, Line};
use hob_plan::history::{History, Run};
use hob_plan::units::Size;
use hob_plan::{
    Basis, CpuFacts, Machine, MemoryFacts, Observed, Plan, PlanError, Probe, Quantiles, ReadRate, Sizes,
    Subject, Wish,
};

const GIB: u64 = 1 << 30;
const KIB: u64 = 1 << 10;

/// Weights of 1 GiB, KV of 64 KiB a token, 10 MiB of scratch.
struct Known {
    trained: usize,
}

impl Sizes for Known {
    fn footprint(&self, layout: &Layout) -> Footprint {
        let kv = 64 * KIB * (layout.ctx_tokens * layout.sequences) as u64;
        let scratch = 10 << 20;
        let line = |name: &str, bytes| Line { name: name.to_string(), bytes };
        Footprint {
            lines: vec![line("weights", GIB), line("KV", kv), line("scratch", scratch)],
            weights: GIB,
            kv,
            state: 0,
            scratch,
            total: GIB + kv + scratch,
            mapped: 0,
        }
    }

    fn bytes_per_token(&self, position: usize) -> u64 {
        GIB + 64 * KIB * position as u64
    }

    fn macs_per_token(&self, position: usize) -> u64 {
        2_000_000_000 + 1000 * position as u64
    }

    fn ctx_train(&self) -> usize {
        self.trained
    }

    fn layers(&self) -> usize {
        20
    }
}

fn machine(free: u64) -> Machine {
    let rate = |threads, gb| ReadRate { threads, best_gb_per_s: gb, median_gb_per_s: gb, spread: 0.1 };
    Machine {
        hob: "0".into(),
        cpu: CpuFacts {
            model: "Imaginary".into(),
            isa: "avx2".into(),
            features: vec![],
            threads: 4,
            cores: 2,
            logical: 4,
            numa_nodes: 1,
            l2_bytes: None,
            l3_bytes: None,
        },
        memory: MemoryFacts {
            total_bytes: Some(2 * free),
            available_bytes: Some(free),
            limits: vec![],
            huge_pages: None,
        },
        probe: Probe {
            read: vec![rate(1, 10.0), rate(2, 20.0), rate(4, 20.0)],
            ping_pong_nanos: None,
            others_cpus: None,
            busy: false,
            measured_unix: 0,
        },
        tuning: None,
        notes: vec![],
    }
}

fn plan_with(free: u64, trained: usize, wish: &Wish) -> Plan {
    let known = Known { trained };
    let subject = Subject { name: "known", id: "id", sizes: &known };
    Plan::make(&machine(free), &subject, wish, &History::default())
}

fn ctx(n: usize) -> Wish {
    Wish { ctx_tokens: Some(n), ..Wish::default() }
}

#[test]
fn the_default_context_follows_training_memory_and_a_quarter() {
    // 64 KiB a token: 32k tokens are 2 GiB.
    for (free, trained, want) in [
        (16 * GIB, 131_072, 32_768), // 2 GiB are less than a quarter of 15 GiB
        (16 * GIB, 2_048, 2_048),    // training is the bound
        (6 * GIB, 131_072, 16_384),  // 1 GiB of 5.6
        (2 * GIB, 131_072, 8_192),   // 0.5 GiB is more than a quarter of 1.9, but it fits
    ] {
        let plan = plan_with(free, trained, &Wish::default());
        assert!(plan.fits, "{free} {trained}: {:?}", plan.accept().err());
        assert_eq!(plan.context.tokens, want, "{free} {trained}");
        assert_eq!(plan.accept().expect("fits").ctx_tokens, want);
        assert!(plan.reasons.iter().any(|r| r.starts_with("context")), "{:?}", plan.reasons);
    }
    // 1.3 GiB less the reserve of a sixteenth: less than 8k tokens fit, so all that fits is taken.
    let tight = plan_with(GIB + 320 * 1024 * KIB, 131_072, &Wish::default());
    assert!(tight.fits);
    assert_eq!(tight.context.tokens, tight.context.fits_tokens);
    assert!(tight.context.tokens < 8_192 && tight.context.tokens >= 512, "{:?}", tight.context);
}

#[test]
fn beyond_training_is_refused_with_both_numbers() {
    let plan = plan_with(16 * GIB, 8_192, &ctx(10_000));
    assert!(!plan.fits);
    let error = plan.accept().expect_err("beyond training");
    assert_eq!(error, PlanError::ContextBeyondTraining { asked: 10_000, trained: 8_192 });
    let text = error.to_string();
    assert!(text.contains("10,000") && text.contains("8,192") && text.contains("--ctx 8192"), "{text}");
}

#[test]
fn beyond_memory_is_refused_with_what_fits() {
    let plan = plan_with(4 * GIB, 131_072, &ctx(100_000));
    let error = plan.accept().expect_err("does not fit");
    let PlanError::ContextDoesNotFit { asked, fits, needs_bytes, limit_bytes, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*asked, 100_000);
    assert!(needs_bytes > limit_bytes);
    let way_out = *fits;
    assert!(error.to_string().contains(&format!("--ctx {way_out}")), "{error}");
    assert!(plan_with(4 * GIB, 131_072, &ctx(way_out)).fits);
    assert!(!plan_with(4 * GIB, 131_072, &ctx(way_out + 512)).fits);
    assert!(plan.table().contains("REFUSED"), "{}", plan.table());
}

#[test]
fn a_model_larger_than_memory_is_refused() {
    let plan = plan_with(GIB, 8_192, &Wish::default());
    let error = plan.accept().expect_err("too large");
    assert!(matches!(error, PlanError::ModelDoesNotFit { ctx_tokens: 512, .. }), "{error:?}");
    assert!(error.to_string().contains("smaller model"), "{error}");
    assert_eq!(plan.context.fits_tokens, 0);
}

#[test]
fn ram_limits_the_plan() {
    let wish = Wish { ram: Some(Size::Bytes(GIB + GIB / 8)), ..Wish::default() };
    let plan = plan_with(16 * GIB, 131_072, &wish);
    assert!(plan.fits);
    assert!(plan.total_bytes <= GIB + GIB / 8);
    assert!(plan.context.tokens < 8_192);
    let wish = Wish { ram: Some(Size::Bytes(GIB / 2)), ..Wish::default() };
    let text = plan_with(16 * GIB, 131_072, &wish).accept().expect_err("too little").to_string();
    assert!(text.contains("512 MiB") && text.contains("--ram"), "{text}");
}

#[test]
fn nonsense_is_refused_not_repaired() {
    let error = plan_with(16 * GIB, 8_192, &ctx(0)).accept().expect_err("no context").to_string();
    assert!(error.contains("8,192"), "{error}");
    let wish = Wish { threads: Some(0), ..Wish::default() };
    let error = plan_with(16 * GIB, 8_192, &wish).accept().expect_err("no threads").to_string();
    assert!(error.contains("this machine has 4"), "{error}");
}

#[test]
fn threads_are_cores_unless_asked() {
    assert_eq!(plan_with(16 * GIB, 8_192, &Wish::default()).threads, 2);
    let more = plan_with(16 * GIB, 8_192, &Wish { threads: Some(9), ..Wish::default() });
    assert_eq!(more.threads, 9);
    assert!(more.warnings.iter().any(|w| w.contains("--threads 2")), "{:?}", more.warnings);
}

#[test]
fn decode_is_bytes_over_bandwidth_and_falls_with_context() {
    let f = plan_with(16 * GIB, 32_768, &ctx(32_768)).forecast;
    let ceiling = 20e9 / GIB as f64;
    assert!(f.decode_empty.p50 < ceiling && f.decode_empty.p50 > 0.7 * ceiling, "{f:?}");
    assert!(f.decode_empty.p10 < f.decode_empty.p50 && f.decode_empty.p50 < f.decode_empty.p90, "{f:?}");
    assert!(f.decode_empty.p90 <= ceiling * 1.001, "{f:?}");
    // 16k tokens of 64 KiB are another GiB: there decode is half as fast, but for the fixed part.
    let half = f.half_speed_tokens.expect("within the context");
    assert!((16_384..20_000).contains(&half), "{half}");
    assert!(f.decode_full.p50 < f.decode_empty.p50 / 2.0);
    assert_eq!(f.decode_basis, Basis::Estimated);
}

#[test]
fn without_wide_instructions_arithmetic_is_the_bound() {
    let known = Known { trained: 8_192 };
    let subject = Subject { name: "known", id: "id", sizes: &known };
    let mut slow = machine(16 * GIB);
    slow.cpu.isa = "scalar".into();
    let make = |m: &Machine| Plan::make(m, &subject, &Wish::default(), &History::default()).forecast;
    let (fast, slow) = (make(&machine(16 * GIB)), make(&slow));
    assert!(slow.decode_empty.p50 < fast.decode_empty.p50 / 5.0, "{slow:?}");
    assert!(slow.prefill.p50 < fast.prefill.p50 / 5.0, "{slow:?}");
}

#[test]
fn a_measured_run_replaces_the_estimate() {
    let known = Known { trained: 8_192 };
    let subject = Subject { name: "known", id: "id", sizes: &known };
    let machine = machine(16 * GIB);
    let before = Plan::make(&machine, &subject, &Wish::default(), &History::default());
    // A run at half the bandwidth and 40 prompt tokens per second.
    let seconds = 100.0 * known.bytes_per_token(150) as f64 / 10e9;
    let observed = Observed {
        start: 0,
        prompt_tokens: 100,
        prefill_seconds: 2.5,
        decode_tokens: 100,
        decode_seconds: seconds,
    };
    let run = observed.run(&machine, &known, before.threads);
    assert!((run.decode.expect("long enough").actual - 10.0).abs() < 1e-9, "{run:?}");
    // The estimate was a share of 20 GB/s.
    let ratio = run.decode.expect("long enough").ratio();
    assert!(ratio > 0.5 && ratio < 0.7, "{run:?}");
    let mut history = History::default();
    history.add(&before.key(), run);
    let after = Plan::make(&machine, &subject, &Wish::default(), &history);
    assert_eq!(after.forecast.decode_basis, Basis::Measured { runs: 1, ratio });
    assert!((after.forecast.decode_empty.p50 - 10e9 / GIB as f64).abs() < 1e-6);
    assert!((after.forecast.prefill.p50 / 40.0 - 1.0).abs() < 0.01, "{:?}", after.forecast.prefill);
    assert!(after.short().contains("measured in 1 run"), "{}", after.short());
    assert!(after.table().contains("x the estimate"), "{}", after.table());
    // Measuring the machine again changes what is possible, not what was reached.
    let mut faster = machine.clone();
    faster.probe.read.iter_mut().for_each(|r| r.best_gb_per_s *= 3.0);
    let again = Plan::make(&faster, &subject, &Wish::default(), &history);
    assert_eq!(again.forecast.decode_empty, after.forecast.decode_empty);
    // Runs of another model or thread count change nothing.
    let other = Plan::make(&machine, &subject, &Wish { threads: Some(1), ..Wish::default() }, &history);
    assert_eq!(other.forecast.decode_basis, Basis::Estimated);
}

#[test]
fn short_runs_teach_nothing() {
    let observed =
        Observed { start: 0, prompt_tokens: 3, prefill_seconds: 0.1, decode_tokens: 2, decode_seconds: 0.1 };
    let run = observed.run(&machine(GIB), &Known { trained: 8_192 }, 2);
    assert_eq!(run, Run::default());
}

#[test]
fn quantiles_of_runs() {
    assert_eq!(Quantiles::of(&[]), None);
    let one = Quantiles::of(&[2.0]).expect("one");
    assert!(one.p10 < 2.0 && one.p50 == 2.0 && one.p90 > 2.0);
    let many: Vec<f64> = (1..=10).rev().map(f64::from).collect();
    assert_eq!(Quantiles::of(&many), Some(Quantiles { p10: 2.0, p50: 6.0, p90: 10.0 }));
}

#[test]
fn people_and_programs_can_read_it() {
    let plan = plan_with(16 * GIB, 8_192, &Wish::default());
    let short = plan.short();
    assert_eq!(short.lines().count(), 2, "{short}");
    assert!(
        short.contains("1.00 GiB") && short.contains("8,192 tokens") && short.contains("tok/s"),
        "{short}"
    );
    let table = plan.table();
    for part in ["weights", "KV", "scratch", "total", "limit", "fits", "decode, empty context", "first token"]
    {
        assert!(table.contains(part), "{part} missing in\n{table}");
    }
    let json = serde_json::to_value(&plan).expect("JSON");
    assert_eq!(json["context"]["tokens"], 8_192);
    assert_eq!(json["fits"], true);
    assert_eq!(json["weights_bytes"], GIB);
    assert_eq!(json["forecast"]["decode_basis"]["kind"], "estimated");
}
