//! Plans for machines and models of known sizes: what is chosen, what is refused, what history changes.

use hob_model::noise::{FormatNoise, LayerNoise};
use hob_model::{Crossing, Footprint, KvLayout, KvPair, Layout, Line, Placement};
use hob_plan::history::{History, Run};
use hob_plan::units::Size;
use hob_plan::{
    Basis, CpuFacts, Gpus, Kept, KvBasis, KvNoise, KvWish, Machine, MemoryFacts, Observed, Plan, PlanError,
    Probe, Quantiles, ReadRate, Sizes, Subject, Wish,
};
use hob_quant::KvFormat;

const GIB: u64 = 1 << 30;
const KIB: u64 = 1 << 10;

/// Weights of 1 GiB, 10 MiB of scratch, 16 layers of 8 KV heads of 128: KV of 64 KiB a token in f16, 34 in q8, 18 in q4.
struct Known {
    trained: usize,
    parameters: u64,
}

impl Known {
    fn new(trained: usize) -> Self {
        Self { trained, parameters: 2_000_000_000 }
    }
}

const LAYERS: usize = 16;

impl Sizes for Known {
    fn footprint(&self, layout: &Layout) -> Footprint {
        let tokens = (layout.ctx_tokens * layout.sequences + layout.cached_tokens) as u64;
        let kv = self.kv_bytes_per_token(&layout.kv) * tokens;
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

    fn bytes_per_token(&self, position: usize, kv: &KvLayout) -> u64 {
        GIB + self.kv_bytes_per_token(kv) * position as u64
    }

    fn kv_bytes_per_token(&self, kv: &KvLayout) -> u64 {
        let layer = |i| {
            let KvPair { k, v } = kv.wished(i);
            8 * (k.vector_bytes(128) + v.vector_bytes(128)) as u64
        };
        (0..LAYERS).map(layer).sum()
    }

    fn kv_pair(&self, kv: &KvLayout, layer: usize) -> Option<KvPair> {
        Some(kv.wished(layer))
    }

    fn macs_per_token(&self, position: usize) -> u64 {
        2_000_000_000 + 1000 * position as u64
    }

    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn ctx_train(&self) -> usize {
        self.trained
    }

    fn layers(&self) -> usize {
        LAYERS
    }

    fn device_footprint(&self, layout: &Layout, device: usize) -> Footprint {
        let all = self.footprint(layout);
        let n = (0..LAYERS).filter(|&i| layout.placement.layer(i) == device).count() as u64;
        let part = |bytes: u64| bytes * n / LAYERS as u64;
        let (weights, kv) = (part(all.weights), part(all.kv));
        let scratch = if n > 0 || device == 0 { all.scratch } else { 0 };
        Footprint { weights, kv, scratch, total: weights + kv + scratch, ..all }
    }

    fn device_bytes_per_token(&self, position: usize, layout: &Layout, device: usize) -> u64 {
        let n = (0..LAYERS).filter(|&i| layout.placement.layer(i) == device).count() as u64;
        self.bytes_per_token(position, &layout.kv) * n / LAYERS as u64
    }

    fn device_macs_per_token(&self, position: usize, placement: &Placement, device: usize) -> u64 {
        let n = (0..LAYERS).filter(|&i| placement.layer(i) == device).count() as u64;
        self.macs_per_token(position) * n / LAYERS as u64
    }

    fn device_expert_bytes_per_token(&self, _: &Placement, _: usize) -> u64 {
        0
    }

    fn device_expert_macs_per_token(&self, _: &Placement, _: usize) -> u64 {
        0
    }

    fn device_stages(&self, placement: &Placement, device: usize) -> usize {
        5 * (0..LAYERS).filter(|&i| placement.layer(i) == device).count()
    }

    fn crossings(&self, placement: &Placement) -> Vec<Crossing> {
        let mut at = placement.embed;
        let mut found = Vec::new();
        for to in (0..LAYERS).map(|i| placement.layer(i)).chain([placement.head]) {
            if to != at {
                found.push(Crossing { from: at, to, buffers: 1, floats: 4096 });
                at = to;
            }
        }
        found
    }

    fn largest_pool_bytes(&self, layout: &Layout) -> u64 {
        self.footprint(layout).kv / LAYERS as u64
    }

    fn has_experts(&self) -> bool {
        false
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
        gpus: Gpus::default(),
        notes: vec![],
    }
}

fn plan_with(free: u64, trained: usize, wish: &Wish) -> Plan {
    let known = Known::new(trained);
    let subject = Subject { name: "known", id: "id", sizes: &known, noise: None };
    Plan::make(&machine(free), &subject, wish, &History::default())
}

fn f16() -> Wish {
    kept(KvFormat::F16)
}

fn kept(format: KvFormat) -> Wish {
    Wish { kv: KvWish::Pair(KvPair::both(format)), ..Wish::default() }
}

fn f16_of(known: &Known) -> Kept<'_> {
    static F16: std::sync::LazyLock<Layout> = std::sync::LazyLock::new(|| Layout::new(1));
    Kept { sizes: known, layout: &F16, gpu: None }
}

fn ctx(n: usize) -> Wish {
    Wish { ctx_tokens: Some(n), ..f16() }
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
        let plan = plan_with(free, trained, &f16());
        assert!(plan.fits, "{free} {trained}: {:?}", plan.accept().err());
        assert_eq!(plan.context.tokens, want, "{free} {trained}");
        assert_eq!(plan.accept().expect("fits").ctx_tokens, want);
        assert!(plan.reasons.iter().any(|r| r.starts_with("context")), "{:?}", plan.reasons);
    }
    // 1.3 GiB less the reserve of a sixteenth: less than 8k tokens fit, so all that fits is taken.
    let tight = plan_with(GIB + 320 * 1024 * KIB, 131_072, &f16());
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
    let plan = plan_with(GIB, 8_192, &f16());
    let error = plan.accept().expect_err("too large");
    assert!(matches!(error, PlanError::ModelDoesNotFit { ctx_tokens: 512, .. }), "{error:?}");
    assert!(error.to_string().contains("smaller model"), "{error}");
    assert_eq!(plan.context.fits_tokens, 0);
}

#[test]
fn ram_limits_the_plan() {
    let wish = Wish { ram: Some(Size::Bytes(GIB + GIB / 8)), ..f16() };
    let plan = plan_with(16 * GIB, 131_072, &wish);
    assert!(plan.fits);
    assert!(plan.total_bytes <= GIB + GIB / 8);
    assert!(plan.context.tokens < 8_192);
    let wish = Wish { ram: Some(Size::Bytes(GIB / 2)), ..f16() };
    let text = plan_with(16 * GIB, 131_072, &wish).accept().expect_err("too little").to_string();
    assert!(text.contains("512 MiB") && text.contains("--ram"), "{text}");
}

#[test]
fn nonsense_is_refused_not_repaired() {
    let error = plan_with(16 * GIB, 8_192, &ctx(0)).accept().expect_err("no context").to_string();
    assert!(error.contains("8,192"), "{error}");
    let wish = Wish { threads: Some(0), ..f16() };
    let error = plan_with(16 * GIB, 8_192, &wish).accept().expect_err("no threads").to_string();
    assert!(error.contains("this machine has 4"), "{error}");
}

#[test]
fn threads_are_cores_unless_asked() {
    assert_eq!(plan_with(16 * GIB, 8_192, &f16()).threads, 2);
    let more = plan_with(16 * GIB, 8_192, &Wish { threads: Some(9), ..f16() });
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
    let known = Known::new(8_192);
    let subject = Subject { name: "known", id: "id", sizes: &known, noise: None };
    let mut slow = machine(16 * GIB);
    slow.cpu.isa = "scalar".into();
    let make = |m: &Machine| Plan::make(m, &subject, &f16(), &History::default()).forecast;
    let (fast, slow) = (make(&machine(16 * GIB)), make(&slow));
    assert!(slow.decode_empty.p50 < fast.decode_empty.p50 / 5.0, "{slow:?}");
    assert!(slow.prefill.p50 < fast.prefill.p50 / 5.0, "{slow:?}");
}

#[test]
fn a_measured_run_replaces_the_estimate() {
    let known = Known::new(8_192);
    let subject = Subject { name: "known", id: "id", sizes: &known, noise: None };
    let machine = machine(16 * GIB);
    let before = Plan::make(&machine, &subject, &f16(), &History::default());
    // A run at half the bandwidth and 40 prompt tokens per second.
    let seconds = 100.0 * known.bytes_per_token(150, &KvLayout::default()) as f64 / 10e9;
    let observed = Observed {
        start: 0,
        prompt_tokens: 100,
        prefill_seconds: 2.5,
        decode_tokens: 100,
        decode_seconds: seconds,
    };
    let run = observed.run(&machine, f16_of(&known), before.threads);
    assert!((run.decode.expect("long enough").actual - 10.0).abs() < 1e-9, "{run:?}");
    // The estimate was a share of 20 GB/s.
    let ratio = run.decode.expect("long enough").ratio();
    assert!(ratio > 0.5 && ratio < 0.7, "{run:?}");
    let mut history = History::default();
    history.add(&before.key(), run);
    let after = Plan::make(&machine, &subject, &f16(), &history);
    assert_eq!(after.forecast.decode_basis, Basis::Measured { runs: 1, ratio });
    assert!((after.forecast.decode_empty.p50 - 10e9 / GIB as f64).abs() < 1e-6);
    assert!((after.forecast.prefill.p50 / 40.0 - 1.0).abs() < 0.01, "{:?}", after.forecast.prefill);
    assert!(after.short().contains("measured in 1 run"), "{}", after.short());
    assert!(after.table().contains("x the estimate"), "{}", after.table());
    // Measuring the machine again changes what is possible, not what was reached.
    let mut faster = machine.clone();
    faster.probe.read.iter_mut().for_each(|r| r.best_gb_per_s *= 3.0);
    let again = Plan::make(&faster, &subject, &f16(), &history);
    assert_eq!(again.forecast.decode_empty, after.forecast.decode_empty);
    // Runs of another model or thread count change nothing.
    let other = Plan::make(&machine, &subject, &Wish { threads: Some(1), ..f16() }, &history);
    assert_eq!(other.forecast.decode_basis, Basis::Estimated);
}

#[test]
fn short_runs_teach_nothing() {
    let observed =
        Observed { start: 0, prompt_tokens: 3, prefill_seconds: 0.1, decode_tokens: 2, decode_seconds: 0.1 };
    let run = observed.run(&machine(GIB), f16_of(&Known::new(8_192)), 2);
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
    let plan = plan_with(16 * GIB, 8_192, &f16());
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
    assert_eq!(json["kv"]["basis"], "asked");
    assert_eq!(json["formats"][0]["kv"], "f16");
}

#[test]
fn every_format_has_its_largest_context_and_asking_for_it_fits() {
    // 4 GiB less 1/16 less weights and scratch: 2.74 GiB for KV.
    let free = 4 * GIB;
    let plan = plan_with(free, 131_072, &f16());
    let room = free - free / 16 - GIB - (10 << 20);
    for (kv, bytes) in
        [("f16", 64 * KIB), ("q8", 34 * KIB), ("q8/q4", 26 * KIB), ("asym4", 20 * KIB), ("q4", 18 * KIB)]
    {
        let limit = plan.formats.iter().find(|l| l.kv == kv).expect(kv);
        assert_eq!(limit.bytes_per_token, bytes, "{kv}");
        let want = ((room / bytes) as usize / 256 * 256).min(131_072);
        assert_eq!(limit.fits_tokens, want, "{kv}");
        assert_eq!(limit.planned, kv == "f16");
        let wish = |n| Wish { ctx_tokens: Some(n), kv: KvWish::parse(kv).expect(kv), ..Wish::default() };
        assert!(plan_with(free, 131_072, &wish(want)).fits, "{kv}");
        assert!(want == 131_072 || !plan_with(free, 131_072, &wish(want + 256)).fits, "{kv}");
        let line = plan
            .table()
            .lines()
            .find(|l| l.trim_start().starts_with(&format!("{kv} ")) && l.contains("KiB"))
            .map(str::to_string);
        let line = line.unwrap_or_else(|| panic!("{kv} missing in\n{}", plan.table()));
        assert!(line.contains(&hob_plan::units::show_count(want as u64)), "{line}");
    }
    assert!(plan.formats.windows(2).all(|w| w[0].bytes_per_token >= w[1].bytes_per_token));
    assert_eq!(plan.formats.iter().filter(|l| l.planned).count(), 1);
}

#[test]
fn cheaper_kv_moves_half_speed_further_out() {
    let plan = plan_with(16 * GIB, 131_072, &f16());
    let half = |kv: &str| {
        let limit = plan.formats.iter().find(|l| l.kv == kv).expect(kv);
        limit.half_speed_tokens.expect("within the context")
    };
    assert!(half("q8") > half("f16") * 3 / 2 && half("q4") > half("q8") * 3 / 2);
}

#[test]
fn a_refusal_names_the_format_that_would_hold_it() {
    let wish = |n| Wish { ctx_tokens: Some(n), ..f16() };
    let text = |n| plan_with(4 * GIB, 131_072, &wish(n)).accept().expect_err("too long").to_string();
    // 44,800 fit in f16, 84,480 in q8, 131,072 in asym4 and q4.
    let q8 = text(80_000);
    assert!(q8.contains("80,000") && q8.contains("with f16 KV"), "{q8}");
    assert!(q8.contains("--kv q8, which holds all 80,000"), "{q8}");
    let smaller = text(131_072);
    assert!(smaller.contains("which holds all 131,072") && !smaller.contains("--kv q8,"), "{smaller}");
    // Nothing holds it: the one that gets furthest.
    let wish = Wish { ctx_tokens: Some(131_072), ..f16() };
    let none = plan_with(2 * GIB, 131_072, &wish).accept().expect_err("too long").to_string();
    assert!(none.contains("--kv q4 --ctx ") && none.contains("at most"), "{none}");
    let best = plan_with(4 * GIB, 131_072, &Wish { ctx_tokens: Some(131_072), ..kept(KvFormat::Q4) });
    assert!(best.fits);
}

#[test]
fn a_context_cut_short_by_memory_says_what_cheaper_kv_would_hold() {
    let free = GIB + 320 * 1024 * KIB;
    let tight = plan_with(free, 131_072, &f16());
    let note = tight.warnings.iter().find(|w| w.contains("--kv")).expect("advice").clone();
    assert!(note.contains(&hob_plan::units::show_count(tight.context.tokens as u64)), "{note}");
    let q4 = plan_with(free, 131_072, &kept(KvFormat::Q4));
    assert!(q4.context.tokens > 3 * tight.context.tokens, "{:?} {:?}", q4.context, tight.context);
    let roomy = plan_with(64 * GIB, 8_192, &f16());
    assert!(!roomy.warnings.iter().any(|w| w.contains("--kv")), "{:?}", roomy.warnings);
}

#[test]
fn auto_without_a_measurement_assumes_q8_and_says_so() {
    let plan = plan_with(16 * GIB, 131_072, &Wish::default());
    assert_eq!(plan.kv.basis, KvBasis::Assumed);
    assert_eq!(plan.kv.label(), "q8");
    assert_eq!(plan.layout.kv, KvLayout::uniform(KvPair::both(KvFormat::Q8)));
    let table = plan.table();
    assert!(
        table.contains(
            "kv auto: not measured yet; assuming q8 (hob lab kv MODEL, or the first run, measures)"
        ),
        "{table}"
    );
    // Half the bytes: a longer default context in the same memory.
    let (auto, wide) = (plan_with(6 * GIB, 131_072, &Wish::default()), plan_with(6 * GIB, 131_072, &f16()));
    assert!(auto.context.tokens > wide.context.tokens, "{} {}", auto.context.tokens, wide.context.tokens);
}

/// Noise of 16 layers: 4 bits are harmless but for K of the layers in `loud`.
fn noise(loud: &[usize], parameters: u64) -> KvNoise {
    let format = |format, predicted| FormatNoise {
        format,
        k_error: 0.01,
        v_error: 0.01,
        predicted,
        measured: predicted,
        attention_kl: 0.0,
        k_output: 0.001,
        v_output: 0.001,
    };
    let layer = |layer| {
        let four = if loud.contains(&layer) { 50.0 } else { 0.001 };
        LayerNoise {
            layer,
            heads: 8,
            kv_heads: 8,
            head_dim: 128,
            scale: 0.1,
            softcap: None,
            window: None,
            q_norm: vec![1.0; 8],
            k_norm: vec![1.0; 8],
            formats: vec![format(KvFormat::Q8, 0.0001), format(KvFormat::Q4, four)],
        }
    };
    KvNoise {
        version: KvNoise::VERSION,
        model_id: "id".into(),
        parameters,
        model_layers: LAYERS,
        tokens: 384,
        seconds: 0.5,
        layers: (0..LAYERS).map(layer).collect(),
    }
}

#[test]
fn auto_follows_the_measurement_layer_by_layer_and_shows_its_figures() {
    let known = Known::new(131_072);
    let measured = noise(&[2, 3, 9], known.parameters);
    let subject = Subject { name: "known", id: "id", sizes: &known, noise: Some(&measured) };
    let plan = Plan::make(&machine(6 * GIB), &subject, &Wish::default(), &History::default());
    assert_eq!(plan.kv.basis, KvBasis::Measured);
    assert_eq!(plan.kv.label(), "q4 in 13 layers, q8/q4 in 3");
    assert_eq!(plan.layout.kv.0.len(), LAYERS);
    assert_eq!(plan.layout.kv.wished(9), KvPair { k: KvFormat::Q8, v: KvFormat::Q4 });
    assert_eq!(plan.kv.bytes_per_token, known.kv_bytes_per_token(&plan.layout.kv));
    let table = plan.table();
    for part in ["KV (auto, measured on 384 tokens)", "layers 2-3, 9", "layers 0-1, 4-8, 10-15"] {
        assert!(table.contains(part), "{part} missing in\n{table}");
    }
    let figures = plan.kv_table();
    assert!(figures.contains("50.0000") && figures.lines().count() == LAYERS + 2, "{figures}");
    let row = plan.formats.iter().find(|l| l.planned).expect("a row for the mixture");
    assert_eq!(row.kv, "auto");
    // The same model on a request for one format: the measurement has no say.
    let asked = Plan::make(&machine(6 * GIB), &subject, &f16(), &History::default());
    assert_eq!((asked.kv.basis, asked.kv.label()), (KvBasis::Asked, "f16".to_string()));
}

#[test]
fn a_measured_choice_that_is_one_format_everywhere_is_called_by_its_name() {
    let known = Known { trained: 131_072, parameters: 134_000_000 };
    let measured = noise(&[], known.parameters);
    let subject = Subject { name: "known", id: "id", sizes: &known, noise: Some(&measured) };
    let plan = Plan::make(&machine(6 * GIB), &subject, &Wish::default(), &History::default());
    assert_eq!(plan.kv.label(), "q8", "small models keep 8 bits");
    let planned: Vec<&str> = plan.formats.iter().filter(|l| l.planned).map(|l| l.kv.as_str()).collect();
    assert_eq!(planned, ["q8"]);
    assert!(plan.table().contains("134 M weights"), "{}", plan.table());
}

#[test]
fn four_bits_on_a_small_model_are_honored_with_a_warning() {
    let small = Known { trained: 8_192, parameters: 134_000_000 };
    let subject = Subject { name: "small", id: "id", sizes: &small, noise: None };
    let make = |wish: &Wish| Plan::make(&machine(16 * GIB), &subject, wish, &History::default());
    let plan = make(&kept(KvFormat::Q4));
    assert_eq!(plan.layout.kv, KvLayout::uniform(KvPair::both(KvFormat::Q4)));
    assert!(
        plan.warnings.iter().any(|w| w.contains("134 million") && w.contains("q8")),
        "{:?}",
        plan.warnings
    );
    assert!(make(&kept(KvFormat::Q8)).warnings.is_empty());
    assert!(plan_with(16 * GIB, 8_192, &kept(KvFormat::Q4)).warnings.is_empty(), "2 billion are not small");
}

#[test]
fn spare_memory_keeps_earlier_conversations_and_never_more_than_a_quarter_of_it() {
    let wish = |conversations| Wish { conversations, ..f16() };
    assert_eq!(plan_with(16 * GIB, 32_768, &wish(0)).cached_tokens, 0);
    // Plenty: as many whole contexts as conversations (2 GiB each, 11.9 GiB spare).
    let plan = plan_with(16 * GIB, 32_768, &wish(1));
    assert_eq!((plan.cached_tokens, plan.layout.cached_tokens), (32_768, 32_768));
    assert!(plan.table().contains("prefix cache: 32,768 tokens"), "{}", plan.table());
    let four = plan_with(16 * GIB, 32_768, &wish(4));
    let spare = 16 * GIB - GIB - GIB - 2 * GIB - (10 << 20);
    assert_eq!(four.cached_tokens as u64, spare / 4 / (64 * KIB) / 256 * 256);
    assert!(four.fits && four.budget.holds(four.total_bytes));
    // Nothing to spare: a plan that fits still fits.
    let full = plan_with(4 * GIB, 131_072, &Wish { ctx_tokens: Some(44_800), conversations: 4, ..f16() });
    assert!(full.fits, "{:?}", full.accept().err());
}

#[test]
fn a_prompt_beyond_the_context_hears_what_would_hold_it() {
    let plan = plan_with(4 * GIB, 131_072, &Wish { ctx_tokens: Some(4_096), ..f16() });
    let fits = plan.context.fits_tokens;
    assert_eq!(plan.longer(5_000), format!("up to --ctx {fits} is possible here"));
    assert!(plan.longer(80_000).starts_with("with --kv q8 up to --ctx "), "{}", plan.longer(80_000));
    assert!(plan.longer(131_073).contains("trained for 131,072"), "{}", plan.longer(131_073));
    let tight = plan_with(2 * GIB, 131_072, &Wish { ctx_tokens: Some(4_096), ..f16() });
    assert!(tight.longer(131_072).contains("at most"), "{}", tight.longer(131_072));
}

#[test]
fn on_paper_there_may_be_more_memory_than_here() {
    let wish = Wish { ram: Some(Size::Bytes(64 * GIB)), ctx_tokens: Some(131_072), ..f16() };
    assert!(!plan_with(4 * GIB, 131_072, &wish).fits);
    let paper = plan_with(4 * GIB, 131_072, &Wish { on_paper: true, ..wish });
    assert!(
        paper.fits && paper.warnings.iter().any(|w| w.contains("this machine has 8.00 GiB")),
        "{:?}",
        paper.warnings
    );
    let contexts = paper.contexts();
    for part in ["16,384", "65,536", "131,072", "9.01 GiB", "yes", "the most"] {
        assert!(contexts.contains(part), "{part} missing in\n{contexts}");
    }
}
