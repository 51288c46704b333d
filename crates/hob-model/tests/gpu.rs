//! Models on a GPU: as on the CPU within rounding, in any chunks, with their state saved and brought back. Without an
//! adapter every test says 'skipped'.

mod common;

use std::sync::Arc;

use common::*;
use hob_compute::{Compute, Pick, Picked, Token};
use hob_files::ModelFile;
use hob_gpu::{Gpu, GpuConfig};
use hob_model::{Batch, Image, KvLayout, KvPair, Layout, Model, Row};
use hob_quant::{Format, KvFormat};
use hob_testkit::tiny::TinySpec;

/// The software adapter where there is one, unless `HOB_TEST_ADAPTER` names another by its index.
fn gpu(exact: bool) -> Option<Gpu> {
    let adapter = hob_gpu::test_adapter()?;
    let config = GpuConfig { adapter, exact, ..GpuConfig::default() };
    Some(Gpu::open(&config).expect("the adapter opens"))
}

/// Fails where two runs are further apart than `most`, as a mean squared error over the mean square.
fn assert_close(found: &[f32], expected: &[f32], most: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let nmse = nmse(found, expected);
    println!("{what}: {nmse:.1e}");
    assert!(nmse < most, "{what}: {nmse:.1e}, expected below {most:.1e}");
}

/// What rounding of activations to int8 or f16 may do to tiny models' logits.
const ROUNDED: f64 = 3e-3;
/// What another order of f32 sums may.
const EXACT: f64 = 1e-9;

#[test]
fn every_architecture_is_as_on_the_cpu_in_any_chunks() {
    let software = gpu(true).is_none_or(|dev| dev.facts().software);
    // 27 tiny layers are many dispatches, and the same kernels as deepseek_v3's 4.
    for name in goldens().into_iter().filter(|name| !(software && name == "deepseek_v2_lite")) {
        let tiny = golden(&name, true);
        let prompt = tokens(1, 90, tiny.vocab);
        // Compiling kernels is what takes long on a software adapter, token by token as well. A shorter context may have
        // other rotary tables. (The golden fixtures run in exact mode in chunks of 64 and token by token.)
        for (exact, count, chunk, most) in
            [(true, 90, 7, EXACT), (false, 90, 90, ROUNDED), (false, 20, 1, ROUNDED)]
        {
            let expected = logits(&tiny, cpu(1, exact), &prompt[..count], count);
            let Some(dev) = gpu(exact) else { return };
            let found = logits(&tiny, dev, &prompt[..count], chunk);
            assert_close(&found, &expected, most, &format!("{name}, chunks of {chunk}, exact {exact}"));
        }
    }
}

#[test]
fn packed_pages_and_weights_are_as_on_the_cpu() {
    let spec = TinySpec::llama();
    for format in [Format::Q4_0, Format::Q5_1, Format::Q8_0, Format::F16] {
        let spec = TinySpec { dim: 256, heads: 4, kv_heads: 2, head_dim: 64, ffn: 512, ..spec.clone() };
        let tiny = gguf(&spec, format);
        let prompt = tokens(2, 300, tiny.vocab);
        for (k, v) in [(KvFormat::Q8, KvFormat::Q4), (KvFormat::F16, KvFormat::F16)] {
            let layout = Layout { kv: KvLayout::uniform(KvPair { k, v }), ..layout(300, 1, 128) };
            let Some(dev) = gpu(false) else { return };
            let devices: [Box<dyn Compute>; 2] = [Box::new(cpu(1, false)), Box::new(dev)];
            let [expected, found] = devices.map(|dev| {
                let mut bench = Bench::of(&tiny, dev, &layout);
                let id = bench.open();
                bench.feed(id, &prompt, 128)
            });
            assert_close(&found, &expected, ROUNDED, &format!("{format}, K {k}, V {v}"));
        }
    }
}

/// What left the device and came back continues as if it had never left.
#[test]
fn images_and_shared_prefixes_continue_bit_by_bit() {
    for kv in [KvLayout::default(), KvLayout::uniform(KvPair { k: KvFormat::Q8, v: KvFormat::Q4 })] {
        let Some(dev) = gpu(false) else { return };
        let tiny = golden("qwen3", true);
        let text = tokens(3, 330, tiny.vocab);
        let layout = Layout { kv, ..cached(400, 3, 800) };
        let mut bench = Bench::new(&tiny, dev, &layout);
        let whole = bench.open();
        bench.feed(whole, &text[..300], 64);
        bench.keep(whole, &text[..300]);
        let (from_image, from_prefix) = (bench.open(), bench.open());
        for range in [0..256, 256..300] {
            let bytes = bench.model.export(bench.dev.as_mut(), whole, range.clone()).expect("positions");
            let take = range.len();
            let image = Image { tokens: &text, range, take, bytes: &bytes };
            bench.model.import(bench.dev.as_mut(), from_image, &image).expect("an image");
        }
        assert_eq!(bench.resume(from_prefix, &text, 300), 300);
        let expected = bench.feed(whole, &text[300..], 1);
        for (id, what) in [(from_image, "an image"), (from_prefix, "a shared prefix")] {
            let found = bench.feed(id, &text[300..], 1);
            assert_same_bits(&found, &expected, tiny.vocab, what);
        }
    }
}

/// The most likely token of every step and its lead over the second, in standard deviations of the logits.
fn greedy(dev: &mut dyn Compute, file: &Arc<ModelFile>, prompt: &[u32], count: usize) -> Vec<(u32, f32)> {
    let layout = Layout { chunk_rows: 64, ..Layout::new(prompt.len() + count) };
    let mut model = Model::load(file.clone(), dev, &layout, &mut |_, _| ()).expect("a model");
    let sequence = model.new_sequence().expect("a free sequence");
    let mut logits = vec![0f32; model.info().config.vocab];
    let (mut batch, mut picked) = (Batch::default(), Picked::default());
    let (mut next, mut out) = (prompt.to_vec(), Vec::new());
    while out.len() < count {
        for part in next.chunks(64) {
            let start = model.seq_len(sequence).expect("a sequence") as u32;
            batch.rows.clear();
            batch.rows.extend(part.iter().zip(start..).map(|(&token, position)| Row {
                sequence,
                position,
                token: Token::Host(token),
                logits: position as usize + 1 == start as usize + part.len(),
                draft: false,
            }));
            model.step(dev, &batch).expect("a step");
        }
        dev.pick(&Pick { logits: model.logits(), rows: 1, k: 2, draws: &[] }).expect("a pick");
        let ticket = dev.submit().expect("a ticket");
        dev.picked(ticket, &mut picked).expect("a result");
        dev.download(model.logits(), 0, &mut logits).expect("logits");
        let mean = logits.iter().sum::<f32>() / logits.len() as f32;
        let deviation = logits.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / logits.len() as f32;
        out.push((picked.tokens[0], (picked.logits[0] - picked.logits[1]) / deviation.sqrt()));
        next = vec![picked.tokens[0]];
    }
    model.unload(dev).expect("it was loaded");
    out
}

/// `HOB_TEST_MODELS` names a folder of GGUF files. On exact devices texts are equal, or part where the CPU itself is
/// undecided. (With int8 activations two devices round apart as far as each is from exact.)
#[test]
fn real_models_write_what_they_write_on_the_cpu() {
    let Ok(folder) = std::env::var("HOB_TEST_MODELS") else {
        println!("skipped: HOB_TEST_MODELS names no folder of models");
        return;
    };
    let Some(mut dev) = gpu(true) else { return };
    let count = if dev.facts().software { 8 } else { 256 };
    let entries = std::fs::read_dir(&folder).expect("a folder").map(|e| e.expect("an entry").path());
    for path in entries.filter(|p| p.extension().is_some_and(|e| e == "gguf")) {
        let file = Arc::new(ModelFile::open(&path).expect("a GGUF"));
        let prompt = tokens(5, 24, 5000);
        let expected = greedy(&mut cpu(2, true), &file, &prompt, count);
        let found = greedy(&mut dev, &file, &prompt, count);
        let differ = expected.iter().zip(&found).position(|(e, f)| e.0 != f.0);
        match differ {
            None => println!("{}: {count} equal tokens", path.display()),
            Some(at) => {
                println!("{}: token {at} differs, the CPU's lead was {}", path.display(), expected[at].1);
                assert!(expected[at].1 < 0.01, "{}: token {at}", path.display());
            }
        }
    }
}
