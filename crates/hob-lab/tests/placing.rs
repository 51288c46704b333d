//! What a plan puts on a GPU, for real shapes on imaginary machines: all, a part, nothing, and what it says about it.

use hob_lab::synth::Synth;
use hob_model::{ModelInfo, Placement};
use hob_plan::units::Size;
use hob_plan::{
    CpuFacts, ExpertsOn, GpuFacts, GpuRates, GpuWish, Gpus, History, KvWish, Machine, MemoryFacts, Plan,
    PlanError, Probe, ReadRate, Subject, Wish,
};

const GIB: u64 = 1 << 30;

fn card(vram: u64, read_gb_per_s: f64) -> GpuFacts {
    GpuFacts {
        index: 0,
        name: "Imaginary 9000".into(),
        backend: "Vulkan".into(),
        driver: "1.0".into(),
        tier: "all".into(),
        integrated: false,
        software: false,
        memory_bytes: Some(vram),
        free_bytes: Some(vram),
        binding_bytes: 2 * GIB,
        rates: Some(GpuRates {
            read_gb_per_s,
            tflops: 200.0,
            round_trip_micros: 75.0,
            dispatch_micros: 2.4,
            upload_gb_per_s: 14.0,
            download_gb_per_s: 20.0,
        }),
        problem: None,
    }
}

fn machine(ram: u64, gpu: Option<GpuFacts>) -> Machine {
    let rate = |threads, gb| ReadRate { threads, best_gb_per_s: gb, median_gb_per_s: gb, spread: 0.1 };
    let gpus = match gpu {
        Some(gpu) => Gpus { all: vec![gpu], chosen: Some(0), none: None },
        None => Gpus::off("this machine shows no graphics device"),
    };
    Machine {
        hob: "0".into(),
        cpu: CpuFacts {
            model: "Imaginary".into(),
            isa: "avx512".into(),
            features: vec![],
            threads: 16,
            cores: 16,
            logical: 16,
            numa_nodes: 1,
            l2_bytes: None,
            l3_bytes: None,
        },
        memory: MemoryFacts {
            total_bytes: Some(ram),
            available_bytes: Some(ram),
            limits: vec![],
            huge_pages: None,
        },
        probe: Probe {
            read: vec![rate(1, 10.0), rate(16, 100.0)],
            ping_pong_nanos: None,
            others_cpus: None,
            busy: false,
            measured_unix: 0,
        },
        tuning: None,
        gpus,
        notes: vec![],
    }
}

fn info(shape: &str) -> ModelInfo {
    Synth::parse(shape).and_then(Synth::runnable).and_then(|s| s.info()).expect("a shape")
}

fn plan(shape: &str, machine: &Machine, wish: &Wish) -> Plan {
    let info = info(shape);
    let subject = Subject { name: shape, id: "id", sizes: &info, noise: None };
    Plan::make(machine, &subject, wish, &History::default())
}

fn q4(ctx: usize) -> Wish {
    Wish { ctx_tokens: Some(ctx), kv: KvWish::parse("q4").expect("a format"), ..Wish::default() }
}

const LLAMA: &str = "llama-3.1-70b:q4_0";
const MIXTURE: &str = "qwen3-30b-a3b:q4_0";

#[test]
fn what_fits_goes_to_the_gpu_whole() {
    let machine = machine(64 * GIB, Some(card(80 * GIB, 3200.0)));
    let plan = plan(LLAMA, &machine, &q4(131_072));
    let gpu = plan.gpu.as_ref().expect("a part");
    assert!(plan.accept().is_ok() && gpu.whole(), "{}", gpu.parts());
    assert_eq!(plan.layout.placement, Placement::whole(80, 1));
    assert!(plan.chunk_rows >= 1024 && gpu.crossings == 0);
    // 37 GiB of weights and 11.3 of KV in at most 50.
    assert!((48 * GIB..50 * GIB).contains(&gpu.total_bytes), "{}", gpu.total_bytes);
    assert!(plan.total_bytes < GIB, "the CPU holds {}", plan.total_bytes);
    // The floor is its bytes over the card's bandwidth; the forecast lies below, not far.
    let floor = 3200e9 / gpu.bytes_per_token as f64;
    let told = plan.forecast.decode_empty.p50;
    assert!(told < floor && told > 0.7 * floor, "{told} of {floor}");
    for text in [plan.table(), plan.short()] {
        assert!(text.contains("Imaginary 9000") && text.contains("80 of 80 layers"), "{text}");
    }
}

#[test]
fn what_does_not_fit_is_split_and_the_forecast_adds_both_parts_up() {
    let machine = machine(64 * GIB, Some(card(24 * GIB, 900.0)));
    let split = plan(LLAMA, &machine, &q4(8192));
    let gpu = split.gpu.as_ref().expect("a part");
    assert!(split.accept().is_ok(), "{:?}", split.accept());
    assert!((30..60).contains(&gpu.layers) && gpu.head && !gpu.embedding, "{}", gpu.parts());
    assert!(gpu.total_bytes <= gpu.budget.bytes.expect("known"));
    assert_eq!(gpu.crossings, 1, "from the CPU's layers to the card's, and the head is there");
    let placement = &split.layout.placement;
    assert_eq!((placement.layer(0), placement.layer(79)), (0, 1));
    // By hand: each part over its own bandwidth.
    let info = info(LLAMA);
    let [cpu, card] = [0, 1].map(|d| info.device_bytes_per_token(0, &split.layout, d) as f64);
    let floor = cpu / 100e9 + card / 900e9;
    let told = 1.0 / split.forecast.decode_empty.p50;
    assert!((1.0..1.3).contains(&(told / floor)), "{told} s, floor {floor} s");
    let alone = plan(LLAMA, &machine, &Wish { gpu: GpuWish::Off, ..q4(8192) });
    assert!(alone.gpu.is_none() && alone.forecast.decode_empty.p50 < split.forecast.decode_empty.p50);
    // History of one does not speak for the other.
    assert_ne!(alone.key(), split.key());
    let fewer = plan(LLAMA, &machine, &Wish { vram: Some(Size::Bytes(8 * GIB)), ..q4(8192) });
    let few = fewer.gpu.as_ref().expect("a part");
    assert!(few.layers < gpu.layers && few.total_bytes <= 8 * GIB, "{}", few.parts());
}

#[test]
fn experts_stay_in_memory_where_that_makes_the_rest_fit() {
    let mut machine = machine(64 * GIB, Some(card(80 * GIB, 900.0)));
    // Memory so slow that a crossing is worth the weights that it saves.
    for rate in &mut machine.probe.read {
        rate.best_gb_per_s = 5.0;
        rate.median_gb_per_s = 5.0;
    }
    let whole = plan(MIXTURE, &machine, &q4(8192));
    assert!(whole.gpu.as_ref().is_some_and(|g| g.whole()));
    let small = Wish { vram: Some(Size::Bytes(8 * GIB)), ..q4(8192) };
    let split = plan(MIXTURE, &machine, &small);
    let gpu = split.gpu.as_ref().expect("a part");
    assert_eq!((gpu.layers, gpu.of_layers, gpu.head), (48, 48, true), "{}", gpu.parts());
    let on_gpu = gpu.expert_layers.expect("a mixture");
    assert!((1..48).contains(&on_gpu) && gpu.total_bytes <= 8 * GIB, "{}", gpu.parts());
    let all = plan(MIXTURE, &machine, &Wish { experts_on: Some(ExpertsOn::Cpu), ..small.clone() });
    assert_eq!(all.gpu.as_ref().expect("a part").expert_layers, Some(0));
    assert_eq!(all.gpu.as_ref().expect("a part").crossings, 1 + 2 * 48);
    let disk = plan(MIXTURE, &machine, &Wish { experts_on: Some(ExpertsOn::Disk), ..small });
    let refused = disk.accept().expect_err("not built");
    assert!(matches!(refused, PlanError::ExpertsOnDisk) && refused.to_string().contains("not built yet"));
}

#[test]
fn no_gpu_or_one_that_does_not_pay_leaves_the_plan_as_it_was() {
    let without = plan(LLAMA, &machine(64 * GIB, None), &q4(8192));
    let software = GpuFacts { software: true, ..card(80 * GIB, 3200.0) };
    let unmeasured = GpuFacts { rates: None, ..card(80 * GIB, 3200.0) };
    for gpu in [software, unmeasured, card(80 * GIB, 90.0), card(GIB, 3200.0)] {
        let plan = plan(LLAMA, &machine(64 * GIB, Some(gpu.clone())), &q4(8192));
        assert!(plan.gpu.is_none(), "{gpu:?}");
        assert_eq!(
            (&plan.layout, &plan.memory, plan.key()),
            (&without.layout, &without.memory, without.key())
        );
        assert_eq!(plan.forecast, without.forecast);
    }
    assert!(!without.table().contains("GPU") && !without.short().contains("GPU"));
    let table = machine(64 * GIB, None).table();
    assert_eq!(table.lines().filter(|l| l.contains("GPU")).count(), 1, "{table}");
}

#[test]
fn what_is_asked_for_and_cannot_be_is_refused_with_the_way_out() {
    let none = machine(64 * GIB, None);
    let refused = |machine: &Machine, wish: &Wish| {
        plan(LLAMA, machine, wish).accept().map(|_| ()).expect_err("refused")
    };
    let error = refused(&none, &Wish { gpu: GpuWish::Layers(10), ..q4(8192) }).to_string();
    assert!(error.contains("no graphics device") && error.contains("--gpu off"), "{error}");
    let small = machine(64 * GIB, Some(card(24 * GIB, 900.0)));
    let wish = Wish { gpu: GpuWish::Layers(80), ..q4(8192) };
    let PlanError::GpuDoesNotFit { layers: 80, fits, .. } = refused(&small, &wish) else { panic!("another") };
    let asked = plan(LLAMA, &small, &Wish { gpu: GpuWish::Layers(fits), ..q4(8192) });
    assert_eq!(asked.gpu.expect("a part").layers, fits);
    assert!(
        refused(&small, &Wish { gpu: GpuWish::Layers(fits + 1), ..q4(8192) }).to_string().contains("--gpu")
    );
    // Neither memory nor card holds it.
    let poor = machine(16 * GIB, Some(card(8 * GIB, 900.0)));
    assert!(matches!(refused(&poor, &q4(8192)), PlanError::ModelDoesNotFit { .. }));
}

#[test]
fn a_pool_of_pages_is_no_larger_than_a_kernel_sees() {
    let machine = machine(64 * GIB, Some(GpuFacts { binding_bytes: GIB / 16, ..card(80 * GIB, 3200.0) }));
    let f16 = |ctx| Wish { kv: KvWish::parse("f16").expect("a format"), ..q4(ctx) };
    // 4 KiB a position and layer: 16,384 positions are 64 MiB.
    assert!(plan(LLAMA, &machine, &f16(16_384)).gpu.is_some());
    let long = plan(LLAMA, &machine, &f16(20_000));
    assert!(long.gpu.is_none(), "{}", long.table());
}
