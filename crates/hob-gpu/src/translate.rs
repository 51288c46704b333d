//! A test: the text of every kernel in the languages of Metal and DX12, which no machine here runs. It drives every verb
//! in rehearsal, for every format and with and without the features of the tiers, and translates what was compiled.

use std::collections::BTreeSet;
use std::sync::Arc;

use hob_compute::*;
use hob_quant::{Format, KvFormat};
use naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::{Gpu, GpuConfig};

struct Zeros(u64);

impl ByteSource for Zeros {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        buf.fill(0);
        Ok(())
    }
}

/// Classes of rows: few, and many.
const ROWS: [usize; 3] = [1, 16, 48];
const WIDTH: usize = 256;

fn load(gpu: &mut Gpu, kind: WeightKind, format: Format, rows: usize, cols: usize) -> Weight {
    let spec = WeightSpec { name: "w".into(), kind, format, rows, cols };
    let bytes = spec.file_bytes().expect("whole blocks");
    gpu.load(&spec, Arc::new(Zeros(bytes))).expect("it loads")
}

fn vector(gpu: &mut Gpu, cols: usize) -> Weight {
    load(gpu, WeightKind::Vector, Format::F32, 1, cols)
}

/// What two slots remember: without and with records.
fn memories(gpu: &mut Gpu, recurrence: &Recurrence) -> Result<[Memory; 2]> {
    let plain = Memory::plain(gpu.alloc(2, recurrence.state())?);
    Ok([plain, Memory { records: Some(gpu.alloc(2, 8 * recurrence.record())?), ..plain }])
}

/// Formats with a form of their own on the device.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|&f| f.can_decode() && crate::format::device_format(f) == f)
}

fn rows_verbs(gpu: &mut Gpu) -> Result<()> {
    for cols in [WIDTH, 33, 8192] {
        let (weight, x, out) = (vector(gpu, cols), gpu.alloc(48, cols)?, gpu.alloc(48, cols)?);
        let narrow = gpu.alloc(48, cols)?;
        for rows in [1, 48] {
            for target in [x, out] {
                gpu.norm(&Norm { x, rows, groups: 1, weight, eps: 1e-6, out: target })?;
                gpu.map(&Map::Add { a: x, b: target, out, rows })?;
            }
            gpu.map(&Map::Scale { a: x, factor: 2.0, out, rows })?;
            let gate = |a, activation| Map::Gate { a, b: x, first: 0, activation, out, rows };
            gpu.map(&gate(narrow, Activation::GeluTanh))?;
            gpu.map(&gate(out, Activation::Silu))?;
            gpu.map(&Map::Softcap { a: x, cap: 2.0, out: x, rows })?;
            for (out, activation) in
                [(x, Activation::ReluSquared), (out, Activation::GeluTanh), (out, Activation::Silu)]
            {
                gpu.map(&Map::Activate { a: x, activation, out, rows })?;
            }
        }
        gpu.map(&Map::CopyRow { a: x, from: 0, out, to: 1 })?;
        let gate = gpu.alloc(48, 1)?;
        for (a, out, add) in [(x, out, true), (x, out, false), (x, x, false)] {
            gpu.map(&Map::SigmoidGate { a, gate, out, add, rows: 48 })?;
        }
    }
    let (x, freqs) = (gpu.alloc(4, WIDTH)?, gpu.alloc(1, 16)?);
    for pairs in [RopePairs::Half, RopePairs::Interleaved] {
        let positions = &[1, 2];
        gpu.rope(&Rope {
            x,
            first: 0,
            back: false,
            heads: 4,
            head_dim: 64,
            positions,
            freqs,
            pairs,
            magnitude: 1.0,
        })?;
    }
    for taps in [2, 3, 4] {
        let (weight, bcu, x) = (vector(gpu, taps * 64), gpu.alloc(2, 192)?, gpu.alloc(2, 64)?);
        let recurrence = Recurrence::Conv { channels: 64, taps };
        for memory in memories(gpu, &recurrence)? {
            let (plain, bias) = (gpu.alloc(2, 64)?, Some(vector(gpu, 64)));
            for (form, x, bias, out) in [
                (ConvForm::Gated, bcu, None, x),
                (ConvForm::Silu, x, None, plain),
                (ConvForm::Silu, x, bias, plain),
            ] {
                let seqs = &[SlotRows::new(0, 2, 0, 1)];
                gpu.short_conv(&ShortConv { form, x, taps: weight, bias, memory, seqs, out })?;
            }
            gpu.catch_up(&CatchUp { recurrence, memory, seqs: &[SlotRows::new(0, 0, 0, 1)] })?;
        }
    }
    for (vocab, k) in [(3000, 1), (3000, 40), (100, 1), (100, 40)] {
        let logits = gpu.alloc(2, vocab)?;
        gpu.pick(&Pick { logits, rows: 2, k, draws: &[] })?;
        gpu.submit()?;
    }
    Ok(())
}

fn embeds(gpu: &mut Gpu) -> Result<()> {
    for format in formats() {
        let table = load(gpu, WeightKind::Table, format, 8, WIDTH);
        let out = gpu.alloc(2, WIDTH)?;
        gpu.embed(&Embed { table, tokens: &[Token::Host(1)], out, scale: 1.0 })?;
    }
    Ok(())
}

fn linears(gpu: &mut Gpu) -> Result<()> {
    let bias = vector(gpu, 64);
    for format in formats() {
        let usual = matches!(format, Format::Q4_0 | Format::Q4K | Format::F16);
        let weights = [0; 3].map(|_| load(gpu, WeightKind::Matrix, format, 64, WIDTH));
        let (x, outs) = (gpu.alloc(48, WIDTH)?, [gpu.alloc(48, 64)?, gpu.alloc(48, 64)?, gpu.alloc(48, 64)?]);
        let product = |i: usize, bias| Product { weight: weights[i], bias, out: outs[i] };
        let all = [product(0, None), product(1, Some(bias)), product(2, None)];
        for rows in ROWS.into_iter().filter(|&rows| usual || rows == 1 || rows == 48) {
            let mut run = |products: &[Product], combine| {
                gpu.linear(&Linear { x, first_row: 0, rows, products, combine })
            };
            run(&all[..2], Combine::Gated(Activation::Silu))?;
            if usual {
                run(&all[..1], Combine::Add)?;
                run(&all, Combine::Store)?;
                run(&all[..2], Combine::Gated(Activation::GeluTanh))?;
            }
        }
    }
    Ok(())
}

/// Norms folded into the product before them, and what reads them.
fn folds(gpu: &mut Gpu) -> Result<()> {
    let norm = vector(gpu, WIDTH);
    gpu.look_ahead(true);
    for format in [Format::Q4_0, Format::Q4K, Format::F16] {
        let [o, gate, up] = [0; 3].map(|_| load(gpu, WeightKind::Matrix, format, WIDTH, WIDTH));
        let [x, h, n, out] =
            [gpu.alloc(16, WIDTH)?, gpu.alloc(16, WIDTH)?, gpu.alloc(16, WIDTH)?, gpu.alloc(16, WIDTH)?];
        for rows in [1, 4] {
            let linear = |gpu: &mut Gpu, x, products: &[Product], combine| {
                gpu.linear(&Linear { x, first_row: 0, rows, products, combine })
            };
            let product = |weight, out| Product { weight, bias: None, out };
            // The second time, n has the form that its readers multiply.
            for _ in 0..2 {
                linear(gpu, x, &[product(o, h)], Combine::Add)?;
                gpu.norm(&Norm { x: h, rows, groups: 1, weight: norm, eps: 1e-6, out: n })?;
                linear(gpu, n, &[product(gate, out)], Combine::Store)?;
                linear(gpu, n, &[product(gate, out), product(up, out)], Combine::Gated(Activation::Silu))?;
            }
        }
    }
    gpu.look_ahead(false);
    Ok(())
}

fn mixtures(gpu: &mut Gpu) -> Result<()> {
    let groups = |score| Some(Groups { count: 4, top: 2, score });
    let (logits, routes, given) = (gpu.alloc(48, 8)?, gpu.alloc(48, 4)?, gpu.alloc(48, 2)?);
    let (bias, biases) = (vector(gpu, 8), vector(gpu, 8 * WIDTH));
    for gating in [Gating::Softmax, Gating::Sigmoid, Gating::SoftmaxSelected, Gating::SqrtSoftplus] {
        for (normalize, groups, bias) in [
            (None, None, None),
            (Some(0.0), groups(GroupScore::Best), Some(bias)),
            (Some(0.0), groups(GroupScore::BestTwo), None),
        ] {
            let rule = Routing { top_k: 2, gating, normalize, scale: 1.0, groups };
            for chosen in [None, Some(given)] {
                gpu.route(&Route { logits, rows: 2, rule, bias, scales: bias, chosen, out: routes })?;
            }
        }
    }
    for format in formats() {
        let kind = WeightKind::Experts { count: 8 };
        let [gate, up, down] = [0; 3].map(|_| load(gpu, kind, format, 8 * WIDTH, WIDTH));
        let (x, hidden, out) = (gpu.alloc(48, WIDTH)?, gpu.alloc(96, WIDTH)?, gpu.alloc(48, WIDTH)?);
        let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0, plus_one: true };
        for (rows, activation, biases) in [
            (1, Activation::ReluSquared, None),
            (48, Activation::ReluSquared, None),
            (1, Activation::Silu, None),
            (48, Activation::Silu, None),
            (1, Activation::GeluTanh, None),
            (1, clamped, Some([biases; 3])),
            (48, clamped, Some([biases; 3])),
            (1, Activation::ClampedSwiglu { alpha: 1.0, limit: 10.0, plus_one: false }, None),
        ] {
            let (top_k, add) = (2, true);
            let gate = (activation != Activation::ReluSquared).then_some(gate);
            let args =
                Experts { x, rows, routes, top_k, gate, up, down, biases, activation, hidden, out, add };
            gpu.experts(&args)?;
        }
    }
    Ok(())
}

fn compressed(gpu: &mut Gpu) -> Result<()> {
    let pairs = [RopePairs::Half, RopePairs::Interleaved];
    for (overlapped, dim, pairs) in [(true, 64, pairs[1]), (false, 512, pairs[0])] {
        let (shape, heads) = (CompressShape { ratio: 4, overlapped, dim }, 5);
        let (width, rows) = (shape.width(), 20);
        let (kv, gate, freqs) = (gpu.alloc(rows, width)?, gpu.alloc(rows, width)?, gpu.alloc(1, 16)?);
        let (recent, entries) = (gpu.alloc(2, 10 * 2 * width)?, gpu.alloc(20, dim)?);
        let (bias, norm, sinks) = (vector(gpu, 4 * width), vector(gpu, dim), vector(gpu, heads));
        let rotation = Rotation { freqs, pairs, magnitude: 1.0 };
        let (eps, seqs) = (1e-6, &[SlotRows::new(0, rows, 3, 1)]);
        gpu.compress(&Compress { shape, kv, gate, bias, norm, eps, rotation, recent, entries, seqs })?;
        let (q, own, weights) =
            (gpu.alloc(rows, heads * dim)?, gpu.alloc(rows, dim)?, gpu.alloc(rows, heads)?);
        let (out, picked) = (gpu.alloc(rows, heads * dim)?, gpu.alloc(rows, 3)?);
        let (scale, capacity, ratio) = (0.1, 10, 4);
        gpu.select(&Select { q, weights, heads, scale, entries, capacity, ratio, seqs, out: picked })?;
        let window = gpu.alloc(2, 8 * dim)?;
        let far = |chosen| Some(Entries { entries, ratio, chosen });
        for entries in [None, far(None), far(Some(picked))] {
            let (head_dim, recent) = (dim, window);
            let args = AttendEntries {
                q,
                kv: own,
                heads,
                head_dim,
                scale,
                window: 8,
                sinks,
                recent,
                entries,
                seqs,
                out,
            };
            gpu.attend_entries(&args)?;
        }
    }
    let (streams, rows) = (4, 2);
    let (x, y, logits) = (gpu.alloc(2, 256)?, gpu.alloc(2, 64)?, gpu.alloc(2, 24)?);
    let (few, weights, out) = (gpu.alloc(2, 4)?, gpu.alloc(2, 20)?, gpu.alloc(2, 64)?);
    let (eps, iterations) = (1e-6, 20);
    for (logits, weights, wide) in [(logits, Some(weights), true), (few, None, false)] {
        let (base, scale) = (vector(gpu, if wide { 24 } else { 4 }), vector(gpu, if wide { 3 } else { 1 }));
        gpu.hyper_mix(&HyperMix { x, rows, streams, logits, base, scale, eps, iterations, out, weights })?;
        gpu.hyper_expand(&HyperExpand { y, rows, streams, weights, x })?;
    }
    Ok(())
}

/// Mixtures of one row between norms: routed on the way, on rows that lack their factor, ending with the next norm.
fn mixed_layers(gpu: &mut Gpu) -> Result<()> {
    let (norm, rows, top_k) = (vector(gpu, WIDTH), 1, 2);
    let [x, h, n] = [gpu.alloc(16, WIDTH)?, gpu.alloc(16, WIDTH)?, gpu.alloc(16, WIDTH)?];
    let (logits, routes, hidden) = (gpu.alloc(16, 8)?, gpu.alloc(16, 4)?, gpu.alloc(32, WIDTH)?);
    for format in [Format::Q4_0, Format::Q4K, Format::F16] {
        let [o, router] = [WIDTH, 8].map(|rows| load(gpu, WeightKind::Matrix, format, rows, WIDTH));
        let kind = WeightKind::Experts { count: 8 };
        let [gate, up, down] = [0; 3].map(|_| load(gpu, kind, format, 8 * WIDTH, WIDTH));
        let all = [Gating::Softmax, Gating::Sigmoid, Gating::SoftmaxSelected, Gating::SqrtSoftplus];
        for gating in all.into_iter().take(if format == Format::Q4_0 { 4 } else { 1 }) {
            let rule = Routing { top_k, gating, normalize: Some(0.0), scale: 1.0, groups: None };
            // The second time, n has the form that its readers multiply.
            for _ in 0..2 {
                let linear = |gpu: &mut Gpu, x, weight, out, combine| {
                    let products = &[Product { weight, bias: None, out }];
                    gpu.linear(&Linear { x, first_row: 0, rows, products, combine })
                };
                let norm = Norm { x: h, rows, groups: 1, weight: norm, eps: 1e-6, out: n };
                linear(gpu, x, o, h, Combine::Add)?;
                gpu.norm(&norm)?;
                linear(gpu, n, router, logits, Combine::Store)?;
                gpu.route(&Route {
                    logits,
                    rows,
                    rule,
                    bias: None,
                    scales: None,
                    chosen: None,
                    out: routes,
                })?;
                let (biases, add, out) = (None, true, h);
                let gated = format != Format::Q4K;
                let activation = if gated { Activation::Silu } else { Activation::ReluSquared };
                let gate = gated.then_some(gate);
                let args = Experts {
                    x: n,
                    rows,
                    routes,
                    top_k,
                    gate,
                    up,
                    down,
                    biases,
                    activation,
                    hidden,
                    out,
                    add,
                };
                gpu.experts(&args)?;
                gpu.norm(&norm)?;
                linear(gpu, n, router, logits, Combine::Store)?;
            }
        }
    }
    Ok(())
}

fn deltas(gpu: &mut Gpu) -> Result<()> {
    for (key_dim, value_dim, sharing) in
        [(128, 128, KeyHeads::Tiled), (16, 48, KeyHeads::Grouped), (256, 64, KeyHeads::Tiled)]
    {
        let shape = DeltaShape { key_heads: 2, value_heads: 4, key_dim, value_dim, sharing };
        let (rate, norm) = (vector(gpu, 4), vector(gpu, value_dim));
        let (qkv, z) = (gpu.alloc(80, shape.channels())?, gpu.alloc(80, shape.width())?);
        let beta = gpu.alloc(80, 4)?;
        let (eps, out, recurrence) = (1e-6, gpu.alloc(80, shape.width())?, Recurrence::Delta(shape));
        for memory in memories(gpu, &recurrence)? {
            let seqs = &[SlotRows::new(0, 80, 0, 1)];
            for width in [4, 4 * key_dim] {
                let (decay, bias) = (gpu.alloc(80, width)?, vector(gpu, width));
                let args = DeltaNet { shape, qkv, z, beta, decay, rate, bias, norm, eps, memory, seqs, out };
                gpu.delta_net(&args)?;
            }
            gpu.catch_up(&CatchUp { recurrence, memory, seqs: &[SlotRows::new(0, 0, 0, 1)] })?;
        }
    }
    Ok(())
}

fn state_spaces(gpu: &mut Gpu) -> Result<()> {
    for (heads, head_dim, state_dim, groups) in [(4, 64, 128, 2), (3, 16, 48, 1), (2, 48, 256, 2)] {
        let shape = SsmShape { heads, head_dim, state_dim, groups };
        let (rate, bias, skip) = (vector(gpu, heads), vector(gpu, heads), vector(gpu, heads));
        let norm = vector(gpu, shape.width());
        let (xbc, z) = (gpu.alloc(80, shape.channels())?, gpu.alloc(80, shape.width())?);
        let (dt, out) = (gpu.alloc(80, heads)?, gpu.alloc(80, shape.width())?);
        for rows in [1, 80] {
            let seqs = &[SlotRows::new(0, rows, 0, 1)];
            let (eps, limit) = (1e-5, [0.0, f32::INFINITY]);
            for memory in memories(gpu, &Recurrence::Ssm(shape))? {
                let args =
                    SsmScan { shape, xbc, z, dt, rate, bias, skip, norm, eps, limit, memory, seqs, out };
                gpu.ssm_scan(&args)?;
            }
        }
    }
    Ok(())
}

fn attentions(gpu: &mut Gpu) -> Result<()> {
    let (heads, kv_heads) = (4, 2);
    for head_dim in [64, 128] {
        let [q, out] = [gpu.alloc(48, heads * head_dim)?, gpu.alloc(48, heads * head_dim)?];
        let [k, v] = [gpu.alloc(48, kv_heads * head_dim)?, gpu.alloc(48, kv_heads * head_dim)?];
        let (weight, sinks, freqs) = (vector(gpu, head_dim), vector(gpu, heads), gpu.alloc(1, head_dim / 2)?);
        for format in KvFormat::ALL {
            let spec = PageSpec { k: format, v: format, ..PageSpec::f16(kv_heads, head_dim) };
            let pool = gpu.alloc_pages(&spec, 3)?;
            // Packed formats have pages for position 0 in a pool of their own.
            let firsts = match spec.has_first() {
                true => gpu.alloc_pages(&PageSpec { first: true, ..spec }, 3)?,
                false => pool,
            };
            let pages = [Page { pool: firsts, index: 2 }, Page { pool, index: 0 }, Page { pool, index: 1 }];
            for (rows, window, softcap, sinks) in
                [(1, None, None, None), (4, Some(100), Some(30.0), Some(sinks)), (48, None, None, None)]
            {
                let seqs = &[SeqRows { row: 0, rows, position: 300, pages: &pages }];
                let scale = 0.1;
                let attend =
                    Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs };
                gpu.attend(&attend)?;
                let positions: Vec<u32> = (300..300 + rows as u32).collect();
                let norm = |groups| HeadNorm { weight, groups, eps: 1e-6 };
                let norms = Some([norm(heads), norm(kv_heads)]);
                let rotation = Some(Rotation { freqs, pairs: RopePairs::Half, magnitude: 1.0 });
                gpu.attend_new(&AttendNew { attend, k, v, norms, rotation, positions: &positions })?;
            }
            gpu.copy_page(pages[1], pages[2], 64)?;
        }
    }
    Ok(())
}

/// Attention to pages that store V within K, and what stands around it.
fn latents(gpu: &mut Gpu) -> Result<()> {
    let (heads, head_dim, dims) = (20, 576, 512);
    let [q, out] = [gpu.alloc(48, heads * head_dim)?, gpu.alloc(48, heads * dims)?];
    let (k, sinks) = (gpu.alloc(48, head_dim)?, vector(gpu, heads));
    for format in KvFormat::ALL {
        let spec = PageSpec { k: format, v: format, latent: Some(dims), ..PageSpec::f16(1, head_dim) };
        let pool = gpu.alloc_pages(&spec, 3)?;
        let first = match spec.has_first() {
            true => gpu.alloc_pages(&spec.of_page(0), 1)?,
            false => pool,
        };
        let pages = [Page { pool: first, index: 0 }, Page { pool, index: 1 }];
        for (rows, window, softcap, sinks) in
            [(1, None, None, None), (4, Some(100), Some(30.0), Some(sinks)), (48, None, None, Some(sinks))]
        {
            let seqs = &[SeqRows { row: 0, rows, position: 300, pages: &pages }];
            let (kv_heads, scale) = (1, 0.1);
            let attend = Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs };
            let positions: Vec<u32> = (300..300 + rows as u32).collect();
            let (norms, rotation) = (None, None);
            gpu.attend_new(&AttendNew { attend, k, v: k, norms, rotation, positions: &positions })?;
        }
        gpu.copy_page(pages[1], pages[1], 64)?;
    }
    let (x, y) = (gpu.alloc(48, 4 * WIDTH)?, gpu.alloc(48, 4 * 64)?);
    // What unpacks other formats is the same as for matrices.
    for format in [Format::Q4_0, Format::Q5_0, Format::F16] {
        let weight = load(gpu, WeightKind::Heads { count: 4 }, format, 4 * 64, WIDTH);
        for rows in [1, 48] {
            gpu.heads(&Heads { x, rows, weight, out: y })?;
        }
    }
    let (norm, freqs) = (vector(gpu, 512), gpu.alloc(1, 32)?);
    let [wide, rotated] = [gpu.alloc(48, heads * dims)?, gpu.alloc(48, heads * 64)?];
    let [latent, key] = [gpu.alloc(48, dims)?, gpu.alloc(48, 64)?];
    let turn = |pairs| Rotation { freqs, pairs, magnitude: 1.0 };
    for rotation in [None, Some(turn(RopePairs::Half)), Some(turn(RopePairs::Interleaved))] {
        let norm = HeadNorm { weight: norm, groups: 1, eps: 1e-6 };
        let (rotary, positions) = (64, &[5, 6, 7]);
        gpu.latent_rows(&LatentRows {
            wide,
            rotated,
            latent,
            key,
            heads,
            rotary,
            norm,
            rotation,
            positions,
            q,
            k,
        })?;
    }
    let joined = gpu.alloc(48, 5 * WIDTH)?;
    gpu.map(&Map::Join { a: x, b: y, groups: 4, out: joined, rows: 48 })
}

/// What is wrong with a kernel in the other languages.
fn translated(text: &str) -> std::result::Result<(), String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|e| format!("{e:?}"))?;
    let metal = naga::back::msl::Options { lang_version: (3, 0), ..Default::default() };
    let (text, _) = naga::back::msl::write_string(&module, &info, &metal, &Default::default())
        .map_err(|e| format!("Metal: {e}"))?;
    assert!(text.contains("kernel void"), "Metal: no entry point");
    let (options, pipeline) = (
        naga::back::hlsl::Options {
            shader_model: naga::back::hlsl::ShaderModel::V6_4,
            immediates_target: Some(Default::default()),
            special_constants_binding: Some(Default::default()),
            ..Default::default()
        },
        Default::default(),
    );
    let mut out = String::new();
    let mut writer = naga::back::hlsl::Writer::new(&mut out, &options, &pipeline);
    writer.write(&module, &info, None).map_err(|e| format!("DX12: {e}"))?;
    Ok(())
}

#[test]
fn every_kernel_translates_to_metal_and_dx12() {
    let Some(adapter) = crate::test_adapter() else {
        return;
    };
    let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (off, exact) in [("", false), ("subgroups,f16,dot,coop", false), ("", true)] {
        let config = GpuConfig { adapter, off: off.to_string(), exact, cache: None };
        let mut gpu = Gpu::open(&config).expect("the adapter opens");
        gpu.rehearse(true);
        // Twice: producers write the forms that readers asked for the first time.
        for _ in 0..2 {
            for verbs in [
                rows_verbs,
                embeds,
                linears,
                folds,
                mixtures,
                mixed_layers,
                deltas,
                state_spaces,
                compressed,
                attentions,
                latents,
            ] {
                verbs(&mut gpu).expect("a rehearsal");
            }
        }
        for (key, text) in gpu.stream.texts() {
            // Only Vulkan has matrices of 16 x 16: the plain tiles stand in for these kernels elsewhere.
            if text.contains("enable wgpu_cooperative_matrix") || !seen.insert(text.clone()) {
                continue;
            }
            names.insert(key.name);
            if let Err(problem) = translated(text) {
                panic!("{} {:?}: {problem}\n{text}", key.name, key.params);
            }
        }
    }
    println!("{} kernels of {names:?}", seen.len());
    // Every verb took part.
    for name in [
        "norm",
        "map",
        "settle",
        "sigmoid gate",
        "rope",
        "norm rope",
        "route",
        "pick",
        "embed",
        "short conv",
        "delta recurrent",
        "delta scores",
        "delta walk",
        "delta finish",
        "delta fade",
        "ssm recurrent",
        "ssm scores",
        "ssm walk",
        "ssm finish",
        "activate",
        "expert gate",
        "expert down",
        "compress",
        "remember",
        "score entries",
        "choose entries",
        "attend entries",
        "hyper mix",
        "hyper expand",
        "attend latent",
        "turn queries",
        "heads",
        "join",
        "latent rows",
        "expert down, norm",
        "expert sort",
    ] {
        assert!(names.contains(name), "no kernel {name} among {names:?}");
    }
}
