//! The texts of attention of many rows: every one through the compiler's front and back end, and those on cooperative
//! matrices, which software adapters lack, also run, with the matrices spelled out.

use std::sync::Arc;

use hob_compute::*;
use hob_quant::{Format, KvFormat};
use wgpu::naga::{AddressSpace, Module, back::spv, front::wgsl, valid};

use super::kernel::{Cut, Variant};
use super::*;
use crate::pages::Layout;
use crate::stream::Source;
use crate::{Gpu, GpuConfig, adapters};

/// The plain variant and the cuts of the cooperative form.
fn with_cuts(plain: Variant) -> Vec<Variant> {
    let cuts = plain.cuts().into_iter().map(|cut| Variant { cut: Some(cut), ..plain });
    std::iter::once(plain).chain(cuts).collect()
}

/// Every variant of a shape, as a device with everything or with nothing would run it.
fn variants(head_dim: usize, group: usize, k: KvFormat, v: KvFormat) -> Vec<Variant> {
    let spec = PageSpec { kv_heads: 2, head_dim, k, v, first: false, latent: None };
    let mut all = Vec::new();
    for exact in [false, true] {
        for (capped, sinks, half) in [(false, false, true), (true, true, false), (true, true, true)] {
            let layout = Layout::new(&spec, exact);
            all.extend(with_cuts(Variant { layout, group, capped, sinks, half, cut: None }));
        }
    }
    all
}

#[test]
fn every_variant_is_valid_wgsl_and_becomes_spirv_and_fits_into_workgroup_memory() {
    let (mut count, mut fit) = (0, 0);
    let formats = KvFormat::ALL.into_iter().flat_map(|k| KvFormat::ALL.map(|v| (k, v)));
    let few = [(KvFormat::F16, KvFormat::F16), (KvFormat::Q8, KvFormat::Q4)];
    let shapes = [(64, 1), (96, 3), (256, 16)].into_iter().flat_map(|s| few.map(|f| (s, f)));
    let odd = [((80, 5), few[0]), ((8, 2), few[0]), ((512, 2), few[0])];
    for ((dim, group), (k, v)) in formats.map(|f| ((128, 4), f)).chain(shapes).chain(odd) {
        for variant in variants(dim, group, k, v) {
            let text = variant.source().wgsl;
            let module =
                wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&text)));
            let info = valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all())
                .validate(&module)
                .unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&text)));
            let options = spv::Options { lang_version: (1, 4), ..Default::default() };
            spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
            let used = workgroup_bytes(&module);
            match variant.cut {
                Some(_) => assert_eq!(used as usize, variant.memory(), "{variant:?}"),
                None => assert!(used <= 32 << 10, "{variant:?} uses {used} bytes"),
            }
            fit += usize::from(variant.cut.is_some_and(|_| used <= 48 << 10));
            count += 1;
        }
    }
    // Cards with such matrices have 48 KiB.
    assert!(count > 100 && fit > 50, "{count}, {fit}");
}

fn workgroup_bytes(module: &Module) -> u32 {
    let globals = module.global_variables.iter().map(|(_, global)| global);
    let ours = globals.filter(|g| g.space == AddressSpace::WorkGroup);
    ours.map(|g| module.types[g.ty].inner.size(module.to_ctx()).next_multiple_of(16)).sum()
}

/// The text with cooperative matrices spelled out.
fn spelled_out(text: &str) -> String {
    let line = |line: &str| {
        if line.starts_with("enable wgpu_cooperative_matrix") {
            return include_str!("../../../wgsl/flash_spelled_out.wgsl").to_string();
        }
        let line = match line.contains("coop") {
            // The index is no longer that of an array.
            true => line.replace("&scores[", "(").replace("&stage[", "(").replace(']', ")"),
            false => line.to_string(),
        };
        line.replace("coop_mat16x16<f32, C>()", "mat2x4<f32>()")
            .replace("coopStoreT(", "put_c(lane, ")
            .replace("coopLoadT<coop_mat16x16<f32, C>>(", "get_c(lane, ")
            .replace("coopLoadT<coop_mat16x16<f16, A>>(", "get_a(lane, ")
            .replace("coopLoadT<coop_mat16x16<f16, B>>(", "vec2<u32>(")
            .replace("coopMultiplyAdd(", "multiply_add(lane, ")
            + "\n"
    };
    let text: String = text.lines().map(line).collect();
    assert!(!text.contains("coop_") && !text.contains("coopM"), "all matrices are spelled out");
    text
}

#[derive(Clone, Debug)]
struct Case {
    head_dim: usize,
    group: usize,
    k: KvFormat,
    v: KvFormat,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    /// Position of the first row, and rows.
    seqs: &'static [(usize, usize)],
    /// What queries are multiplied by: louder ones make maxima grow.
    loud: f32,
}

const F16: Case = Case {
    head_dim: 32,
    group: 2,
    k: KvFormat::F16,
    v: KvFormat::F16,
    window: None,
    softcap: None,
    sinks: false,
    seqs: &[(0, 30), (90, 70)],
    loud: 1.0,
};
const KV_HEADS: usize = 2;

/// Seeded values within -1..1.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn filled(gpu: &mut Gpu, rows: usize, width: usize, seed: u64, loud: f32) -> Result<Buf> {
    let buf = gpu.alloc(rows, width)?;
    let values: Vec<f32> = values(seed, rows * width).iter().map(|x| x * loud).collect();
    gpu.upload(buf, 0, &values)?;
    Ok(buf)
}

impl Case {
    /// The pages of every sequence, filled.
    fn tables(&self, gpu: &mut Gpu) -> Result<Vec<Vec<Page>>> {
        let Case { head_dim, k, v, .. } = *self;
        let spec = PageSpec { kv_heads: KV_HEADS, head_dim, k, v, first: false, latent: None };
        let rest = gpu.alloc_pages(&spec, 4)?;
        let first = if spec.has_first() { gpu.alloc_pages(&spec.of_page(0), 2)? } else { rest };
        let (mut tables, mut next) = (Vec::new(), 4);
        for (s, &(position, rows)) in self.seqs.iter().enumerate() {
            let total = position + rows;
            let page = |index: usize| {
                next -= 1;
                match spec.of_page(index).first {
                    true => Page { pool: first, index: s as u32 },
                    false => Page { pool: rest, index: next },
                }
            };
            let pages: Vec<Page> = (0..total.div_ceil(PAGE_POSITIONS)).map(page).collect();
            let [k, v] = [3, 5].map(|seed| filled(gpu, total, KV_HEADS * head_dim, seed + s as u64, 1.0));
            let seqs = [SeqRows { row: 0, rows: total, position: 0, pages: &pages }];
            gpu.append_kv(&AppendKv { k: k?, v: v?, seqs: &seqs })?;
            tables.push(pages);
        }
        Ok(tables)
    }

    /// What the plain form gives, and every cut of the other one.
    fn outputs(&self, gpu: &mut Gpu) -> Result<Vec<(Option<Cut>, Vec<f32>)>> {
        let Case { head_dim, group, window, softcap, loud, .. } = *self;
        let heads = group * KV_HEADS;
        let tables = self.tables(gpu)?;
        let (mut seqs, mut row) = (Vec::new(), 0);
        for (pages, &(position, rows)) in tables.iter().zip(self.seqs) {
            seqs.push(SeqRows { row, rows, position, pages });
            row += rows;
        }
        let (q, out) = (filled(gpu, row, heads * head_dim, 1, loud)?, gpu.alloc(row, heads * head_dim)?);
        let spec = WeightSpec {
            name: "sinks".into(),
            kind: WeightKind::Vector,
            format: Format::F32,
            rows: 1,
            cols: heads,
        };
        let logits: Vec<u8> = values(2, heads).iter().flat_map(|x| x.to_le_bytes()).collect();
        let sinks = if self.sinks { Some(gpu.load(&spec, Arc::new(logits))?) } else { None };
        let (scale, kv_heads) = (1.0 / (head_dim as f32).sqrt(), KV_HEADS);
        let seqs = &seqs;
        let args = Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs };
        let bound = gpu.bound(VERB, seqs, |seq| seq.first_page(window))?.expect("there are rows");
        let tier = Tier { coop: false, ..gpu.stream.context.tier() };
        let plain = Variant::choose(&tier, 32 << 10, &args, bound.layout, false).expect("it fits");
        let mut all = Vec::new();
        for variant in with_cuts(plain) {
            let source = || match variant.source() {
                source if variant.cut.is_none() => source,
                Source { wgsl, bindings } => Source { wgsl: spelled_out(&wgsl), bindings },
            };
            gpu.run_variant(&args, &bound, seqs, &variant, source)?;
            let mut found = vec![0f32; row * heads * head_dim];
            gpu.download(out, 0, &mut found)?;
            all.push((variant.cut, found));
        }
        Ok(all)
    }

    fn check(&self) {
        let Some(adapter) = adapters().iter().position(|a| a.software) else {
            println!("skipped: no software adapter here (Debian: mesa-vulkan-drivers)");
            return;
        };
        let config = GpuConfig { adapter, off: String::new(), exact: false, cache: None };
        let mut gpu = Gpu::open(&config).expect("the adapter opens");
        let tier = gpu.stream.context.tier();
        if !(tier.f16 && tier.subgroups) {
            println!("skipped: the software adapter has {tier}, the test needs f16 and subgroups");
            return;
        }
        let outputs = self.outputs(&mut gpu).unwrap_or_else(|e| panic!("{self:?}: {e}"));
        let expected = &outputs[0].1;
        let square: f32 = expected.iter().map(|x| x * x).sum();
        let scale = (square / expected.len() as f32).sqrt();
        assert!(outputs.len() > 1 && scale > 0.0);
        for (cut, found) in &outputs[1..] {
            let differences = expected.iter().zip(found).map(|(e, f)| (e - f).abs() / scale);
            let worst =
                differences.fold(0f32, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) });
            println!("{worst:.1e} {cut:?}: {self:?}");
            // Queries and weights are f16, and so is what packed pages become.
            assert!(worst <= 5e-3, "{worst} {cut:?}: {self:?}");
        }
    }
}

#[test]
fn cooperative_tiles_agree_with_the_plain_form_also_where_maxima_grow() {
    Case { loud: 16.0, seqs: &[(0, 20), (150, 40)], ..F16 }.check();
}

#[test]
fn cooperative_tiles_read_packed_pages_also_behind_a_first_block_of_f16() {
    let (k, v, seqs) = (KvFormat::Q8, KvFormat::Q4, &[(0, 20), (240, 40)]);
    Case { k, v, seqs, sinks: true, softcap: Some(5.0), window: Some(70), ..F16 }.check();
}

#[test]
fn cooperative_tiles_of_large_heads_take_half_a_block_at_a_time() {
    let (k, v) = (KvFormat::Asym4, KvFormat::Q8);
    Case { k, v, head_dim: 160, group: 1, seqs: &[(30, 60)], ..F16 }.check();
}
