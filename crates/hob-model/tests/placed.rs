//! A model on several devices is the model on one: same bits, whatever lies where, and rows cross only where they must.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use hob_compute::reference::Reference;
use hob_compute::{Compute, HeldBytes, Pick, Picked, Placed, Token};
use hob_files::ModelFile;
use hob_gpu::{Gpu, GpuConfig};
use hob_model::{Batch, KvLayout, KvPair, Layout, Model, ModelError, ModelInfo, Placement, Row};
use hob_quant::{Format, KvFormat};
use hob_testkit::temp::TempDir;
use hob_testkit::tiny::TinySpec;

const ALL: [&str; 23] = [
    "gemma2",
    "gemma3",
    "gemma4_dense",
    "gemma4_e",
    "gemma4_moe",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "granite",
    "lfm2",
    "lfm2_moe",
    "llama3",
    "llama_tied",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_yarn",
    "smollm3",
];

fn golden(name: &str) -> Tiny {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).join("model.f32.gguf");
    let file = Arc::new(ModelFile::open(&path).expect("a model"));
    let vocab = ModelInfo::read(&file).expect("a model").config.vocab;
    Tiny { dir: TempDir::new("placed"), file, vocab }
}

fn two_cpus() -> Placed {
    Placed::new(vec![Box::new(cpu(1, false)), Box::new(cpu(1, false))]).expect("two devices")
}

/// Every way to split a model that a plan may choose, and some that none would.
fn splits(info: &ModelInfo) -> Vec<(&'static str, Placement)> {
    let layers = info.config.layers.len();
    let half: Vec<usize> = (0..layers).map(|i| usize::from(i >= layers / 2)).collect();
    let back: Vec<usize> = half.iter().map(|d| 1 - d).collect();
    let striped: Vec<usize> = (0..layers).map(|i| i % 2).collect();
    let whole = Placement::whole(layers, 1);
    vec![
        ("all on the other device", whole.clone()),
        ("the last half and the head", Placement { layers: half, head: 1, ..Placement::default() }),
        ("the first half and the table", Placement { layers: back, embed: 1, ..Placement::default() }),
        ("every second layer", Placement { layers: striped, ..Placement::default() }),
        ("the head alone", Placement { head: 1, ..Placement::default() }),
        ("all but the experts", Placement { experts: vec![0; layers], ..whole.clone() }),
        ("all but the table", Placement { embed: 0, ..whole }),
    ]
}

#[test]
fn every_split_of_every_architecture_gives_the_same_bits_and_crosses_where_it_says() {
    for name in ALL {
        let tiny = golden(name);
        let info = ModelInfo::read(&tiny.file).expect("a model");
        let prompt = tokens(3, 40, tiny.vocab);
        let plain = logits(&tiny, cpu(1, false), &prompt, 16);
        for (what, placement) in splits(&info) {
            let crossings = info.crossings(&placement);
            let layout = Layout { placement, ..layout(prompt.len(), 1, 16) };
            let mut dev = two_cpus();
            let mut model =
                Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
            let id = model.new_sequence().expect("a sequence");
            let mut all = Vec::new();
            for (at, part) in prompt.chunks(16).enumerate() {
                let before = dev.crossed();
                let mut batch = Batch::default();
                batch.rows.extend(part.iter().zip(16 * at as u32..).map(|(&token, position)| Row {
                    sequence: id,
                    position,
                    token: Token::Host(token),
                    logits: true,
                    draft: false,
                }));
                let rows = model.step(&mut dev, &batch).expect("a step");
                let after = dev.crossed();
                // The first step also brings rotary tables.
                if at > 0 {
                    let crossed = (after.times - before.times, after.bytes - before.bytes);
                    let floats: usize = crossings.iter().map(|c| c.floats).sum();
                    let wanted = (crossings.len() as u64, 4 * (rows * floats) as u64);
                    assert_eq!(crossed, wanted, "{name}: {what}");
                }
                let mut out = vec![0f32; rows * tiny.vocab];
                dev.download(model.logits(), 0, &mut out).expect("logits");
                all.extend(out);
            }
            assert_same_bits(&all, &plain, tiny.vocab, &format!("{name}: {what}"));
            model.unload(&mut dev).expect("unloaded");
            assert_eq!(
                dev.held_by_device(),
                [HeldBytes::default(); 2],
                "{name}: {what} left something behind"
            );
        }
    }
}

#[test]
fn kv_packed_and_reused_lies_with_its_layer() {
    let tiny = gguf(&TinySpec { head_dim: 32, ctx: 1024, ..TinySpec::llama() }, Format::Q8_0);
    let kv = KvLayout::uniform(KvPair::both(KvFormat::Q8));
    let half = Placement { layers: vec![0, 1], head: 1, ..Placement::default() };
    let base = Layout { kv, cached_tokens: 512, ..layout(600, 2, 64) };
    let prompt = tokens(5, 300, tiny.vocab);
    let run = |dev: Box<dyn Compute>, placement: Placement| {
        let mut bench = Bench::of(&tiny, dev, &Layout { placement, ..base.clone() });
        let id = bench.open();
        let (_, first) = bench.turn(id, &prompt, 64);
        let image = bench.model.export(bench.dev.as_mut(), id, 0..300).expect("an image");
        let other = bench.open();
        let longer: Vec<u32> = prompt.iter().copied().chain([7, 8, 9]).collect();
        let (resumed, rest) = bench.turn(other, &longer, 64);
        (first, image, resumed, rest, bench.model.identity())
    };
    let plain = run(Box::new(cpu(1, false)), Placement::default());
    let split = run(Box::new(two_cpus()), half);
    assert_same_bits(&split.0, &plain.0, tiny.vocab, "a prompt");
    assert!(split.1 == plain.1, "images differ");
    assert_eq!((split.2, plain.2), (300, 300));
    assert_same_bits(&split.3, &plain.3, tiny.vocab, "a prompt that goes on");
    assert_ne!(split.4, plain.4, "who computed which layer is part of the identity");
}

#[test]
fn each_device_holds_what_the_footprint_says() {
    let tiny = golden("qwen3_moe");
    let info = ModelInfo::read(&tiny.file).expect("a model");
    let layers = info.config.layers.len();
    for (what, placement) in splits(&info) {
        let layout = Layout { placement, ..layout(512, 1, 8) };
        let mut dev = Placed::new(vec![Box::new(Reference::new(false)), Box::new(Reference::new(false))])
            .expect("two devices");
        let model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
        let held = dev.held_by_device();
        for (device, held) in held.iter().enumerate() {
            let bill = info.device_footprint(&layout, device);
            // The oracle keeps weights as the file has them; so does a GPU, but for vectors, which are f32 here anyway.
            if device == 1 {
                assert_eq!(held.weights, bill.weights, "{what}");
            }
            assert_eq!(held.pages, bill.kv, "{what}: device {device}");
        }
        let parts = [0, 1].map(|d| info.device_footprint(&layout, d).total);
        assert_eq!(info.footprint(&layout).total, parts[0] + parts[1], "{what}");
        let bytes = [0, 1].map(|d| info.device_bytes_per_token(100, &layout, d));
        assert_eq!(bytes[0] + bytes[1], info.bytes_per_token(100, &layout.kv), "{what}");
        let (split, whole) = (&layout.placement, &Placement::default());
        let macs = [0, 1].map(|d| info.device_expert_macs_per_token(split, d));
        assert_eq!(macs[0] + macs[1], info.device_expert_macs_per_token(whole, 0), "{what}");
        let stages = [0, 1].map(|d| info.device_stages(split, d));
        assert!(stages[0] + stages[1] >= info.device_stages(whole, 0), "{what}");
        model.unload(&mut dev).expect("unloaded");
    }
    assert_eq!(Placement::whole(layers, 1).devices(), 2);
    assert_eq!(Placement::default().devices(), 1);
}

#[test]
fn a_token_picked_elsewhere_is_read_back_for_the_table() {
    let tiny = gguf(&TinySpec::qwen2(), Format::Q8_0);
    let greedy = |dev: &mut dyn Compute, placement: Placement, ahead: bool| {
        let layout = Layout { placement, ..layout(64, 1, 8) };
        let mut model = Model::load(tiny.file.clone(), dev, &layout, &mut |_, _| ()).expect("a model");
        let sequence = model.new_sequence().expect("a sequence");
        let mut batch = Batch::default();
        let (mut found, mut picked) = (Vec::new(), Picked::default());
        let mut token = Token::Host(5);
        let mut waiting = None;
        for position in 0..20 {
            batch.rows.clear();
            batch.rows.push(Row { sequence, position, token, logits: true, draft: false });
            model.step(dev, &batch).expect("a step");
            dev.pick(&Pick { logits: model.logits(), rows: 1, k: 2, draws: &[] }).expect("a pick");
            let ticket = dev.submit().expect("a ticket");
            // Ahead: the next step is recorded before the results of this one are read.
            let ready = if ahead { waiting.replace(ticket) } else { Some(ticket) };
            if let Some(ticket) = ready {
                dev.picked(ticket, &mut picked).expect("results");
                found.push((picked.tokens.clone(), picked.logits.clone()));
            }
            token = Token::Device(0);
        }
        if let Some(ticket) = waiting {
            dev.picked(ticket, &mut picked).expect("results");
            found.push((picked.tokens.clone(), picked.logits.clone()));
        }
        assert!(dev.picked(hob_compute::Ticket(0), &mut picked).is_err(), "a ticket is good once");
        found
    };
    let plain = greedy(&mut cpu(1, false), Placement::default(), false);
    let head = Placement { head: 1, ..Placement::default() };
    for ahead in [false, true] {
        assert_eq!(greedy(&mut two_cpus(), head.clone(), ahead), plain, "head elsewhere, ahead {ahead}");
        assert_eq!(
            greedy(&mut two_cpus(), Placement::whole(2, 1), ahead),
            plain,
            "all elsewhere, ahead {ahead}"
        );
    }
}

#[test]
fn weights_do_not_move_once_they_are_loaded() {
    let tiny = gguf(&TinySpec::llama(), Format::Q8_0);
    let mut dev = two_cpus();
    let layout = layout(64, 1, 8);
    let mut model = Model::load(tiny.file.clone(), &mut dev, &layout, &mut |_, _| ()).expect("a model");
    let moved = Layout { placement: Placement::whole(2, 1), ..layout.clone() };
    let refused = model.relayout(&mut dev, &moved);
    assert!(matches!(refused, Err(ModelError::Layout { .. })), "{refused:?}");
    model.relayout(&mut dev, &Layout { ctx_tokens: 32, ..layout }).expect("the same placement");
}

/// The software adapter where there is one, unless `HOB_TEST_ADAPTER` names another by its index.
fn gpu() -> Option<Gpu> {
    let adapter = hob_gpu::test_adapter()?;
    Some(Gpu::open(&GpuConfig { adapter, exact: true, ..GpuConfig::default() }).expect("the adapter opens"))
}

#[test]
fn a_gpu_beside_the_cpu_computes_its_part_and_no_more() {
    // One split of each kind: the software adapter is slow.
    for (name, what) in [
        ("llama3", "the last half and the head"),
        ("qwen3_moe", "all but the experts"),
        ("lfm2_moe", "every second layer"),
    ] {
        let tiny = golden(name);
        let info = ModelInfo::read(&tiny.file).expect("a model");
        let prompt = tokens(3, 40, tiny.vocab);
        let plain = logits(&tiny, cpu(1, true), &prompt, 16);
        let split = splits(&info).into_iter().find(|(name, _)| *name == what);
        let (_, placement) = split.expect("a split of that name");
        let Some(gpu) = gpu() else { return };
        let dev = Placed::new(vec![Box::new(cpu(1, true)), Box::new(gpu)]).expect("two devices");
        let mut bench = Bench::of(&tiny, Box::new(dev), &Layout { placement, ..layout(40, 1, 16) });
        let id = bench.open();
        let found = bench.feed(id, &prompt, 16);
        let nmse = nmse(&found, &plain);
        assert!(nmse < 1e-9, "{name}: {what}: {nmse:.1e}");
    }
}
