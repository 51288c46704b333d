//! Kernels of both widths against a scalar form of the rules, bit by bit: on arrays everywhere, and on registers where
//! this CPU has the instructions.

use half::f16;
use hob_compute::PageSpec;
use hob_compute::reference::QueryGroup;
use hob_compute::reference::attention::Scoring;
use hob_quant::KvFormat;
use hob_testkit::guard::{Edge, GuardedBuf};
use hob_testkit::rng::Rng;

use super::super::{dims_per_word, part_bytes};
use super::*;
use crate::isa::Isa;
use crate::verb::attend::tile::{Asked, Form, Lay, Memory, Tile, View};

fn tables() -> Vec<(&'static str, &'static Kernels)> {
    let mut all: Vec<(&'static str, &'static Kernels)> = vec![
        ("512 bits on arrays", &emulated::of_512::KERNELS),
        ("256 bits on arrays", &emulated::of_256::KERNELS),
    ];
    for isa in [Isa::AvxVnni, Isa::Avx512] {
        if isa.available() {
            all.push((isa.name(), Kernels::choose(isa)));
        } else {
            eprintln!("skipped: this CPU has no {isa}");
        }
    }
    all
}

const FORMATS: [KvFormat; 3] = [KvFormat::Q8, KvFormat::Q4, KvFormat::Asym4];

/// A part of a page, of random codes and scales: some 0, some tiny, some as large as they get.
struct Part {
    bytes: GuardedBuf,
    format: KvFormat,
    dim: usize,
    of_k: bool,
}

impl Part {
    fn new(rng: &mut Rng, format: KvFormat, dim: usize, of_k: bool, edge: Edge) -> Part {
        let mut bytes = GuardedBuf::from_bytes(&rng.bytes(part_bytes(format, dim)), edge);
        let scales = dim / KV_GROUP * BLOCK_POSITIONS;
        let minima = if format == KvFormat::Asym4 { scales } else { 0 };
        for i in 0..scales + minima {
            let d = match rng.below(40) {
                0 => f16::from_bits(0),
                1 => f16::from_bits(1),
                2 => f16::MAX,
                _ if i < scales => f16::from_f32(rng.range_f32(0.0, 0.1)),
                _ => f16::from_f32(rng.normal()),
            };
            bytes.as_mut_bytes()[2 * i..2 * i + 2].copy_from_slice(&d.to_le_bytes());
        }
        Part { bytes, format, dim, of_k }
    }

    fn half(&self, index: usize) -> f32 {
        let b = &self.bytes.as_bytes()[2 * index..];
        f16::from_le_bytes([b[0], b[1]]).to_f32()
    }

    fn scale(&self, group: usize, position: usize) -> f32 {
        self.half(group * BLOCK_POSITIONS + position)
    }

    fn minimum(&self, group: usize, position: usize) -> f32 {
        self.half((self.dim / KV_GROUP + group) * BLOCK_POSITIONS + position)
    }

    /// The code of a dimension of a position, by the layout that `hob_compute`'s `page.rs` describes.
    fn code(&self, position: usize, dim: usize) -> i32 {
        let parts = if self.format == KvFormat::Asym4 { 2 } else { 1 };
        let codes = &self.bytes.as_bytes()[parts * self.dim / KV_GROUP * SCALE_BYTES..];
        let (g, d) = (dim / KV_GROUP, dim % KV_GROUP);
        let (at, high) = match (self.format, self.of_k) {
            (KvFormat::Q8, true) => (((dim / 2) * 64 + position) * 2 + dim % 2, None),
            (KvFormat::Q8, false) => (((position / 2) * self.dim + dim) * 2 + position % 2, None),
            (_, true) => (((g * 4 + d / 8) * 64 + position) * 4 + d % 4, Some(d % 8 >= 4)),
            (_, false) => ((position / 8 * self.dim + dim) * 4 + position % 4, Some(position % 8 >= 4)),
        };
        match high {
            None => i32::from(codes[at] as i8),
            Some(high) => {
                let nibble = i32::from(codes[at] >> if high { 4 } else { 0 } & 15);
                nibble - if self.format == KvFormat::Q4 { 8 } else { 0 }
            }
        }
    }
}

fn same(what: &str, expected: &[f32], found: &[f32]) {
    for (i, (e, f)) in expected.iter().zip(found).enumerate() {
        assert_eq!(e.to_bits(), f.to_bits(), "{what}: value {i}: expected {e}, found {f}");
    }
}

/// Queries of a chunk as a kernel's table packs them, in buffers that end where they must not be read on.
struct Packed {
    words: GuardedBuf,
    scales: GuardedBuf,
    sums: GuardedBuf,
    /// Scale and codes by row and group.
    plain: Vec<Vec<QueryGroup>>,
}

impl Packed {
    fn new(
        rng: &mut Rng,
        kernels: &Kernels,
        format: KvFormat,
        (rows, dim): (usize, usize),
        edge: Edge,
    ) -> Packed {
        let (groups, most) = (rows * dim / KV_GROUP, if format == KvFormat::Q8 { 32767.0 } else { 127.0 });
        let q = rng.normal_vec(rows * dim, 1.0);
        let mut words = vec![0u32; rows * dim / dims_per_word(format)];
        let [mut scales, mut sums] = [(); 2].map(|()| GuardedBuf::new(4 * groups, edge));
        let mut queries = Queries { words: &mut words, scales: scales.as_mut_f32(), sums: sums.as_mut_i32() };
        // SAFETY: the kernels were found available.
        unsafe {
            (kernels.quantize)(&mut queries, QueryRows { q: &q, rows, head_dim: dim, step: rows, format })
        };
        let words: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let plain =
            q.chunks(dim).map(|row| row.as_chunks().0.iter().map(|x| QueryGroup::new(x, most)).collect());
        Packed { words: GuardedBuf::from_bytes(&words, edge), scales, sums, plain: plain.collect() }
    }

    fn words(&self) -> &[u32] {
        // SAFETY: any bits are a u32.
        unsafe { self.words.as_i32().align_to().1 }
    }
}

/// Rows, head_dim, edges of memory: what all kernels are run with.
fn cases(kernels: &Kernels) -> Vec<(usize, usize, Edge)> {
    let sizes = (1..=kernels.rows).flat_map(|rows| [(rows, 32), (rows, 160)]);
    sizes.map(|(rows, dim)| (rows, dim, if rows % 2 == 0 { Edge::Start } else { Edge::End })).collect()
}

#[test]
fn scores_are_the_specification() {
    let mut rng = Rng::new(41);
    for (name, kernels) in tables() {
        for format in FORMATS {
            for (rows, dim, edge) in cases(kernels) {
                let part = Part::new(&mut rng, format, dim, true, edge);
                let packed = Packed::new(&mut rng, kernels, format, (rows, dim), edge);
                let mut out = GuardedBuf::new(4 * ((rows - 1) * PAGE_POSITIONS + BLOCK_POSITIONS), edge);
                let mut args = ScoreArgs {
                    k: part.bytes.as_bytes(),
                    head_dim: dim,
                    rows,
                    words: packed.words(),
                    scales: packed.scales.as_f32(),
                    sums: packed.sums.as_i32(),
                    factor: 0.3,
                    out: out.as_mut_f32(),
                    ahead: &[],
                };
                // SAFETY: the kernels were found available.
                unsafe { kernels.scores(format, &mut args) };
                for (r, groups) in packed.plain.iter().enumerate() {
                    let score = |i: usize| {
                        let mut dot = 0f32;
                        for (g, q) in groups.iter().enumerate() {
                            let product = |d: usize| q.codes[d] * part.code(i, g * KV_GROUP + d);
                            let int: i32 = (0..KV_GROUP).map(product).sum();
                            dot = (int as f32).mul_add(q.scale * part.scale(g, i), dot);
                            if format == KvFormat::Asym4 {
                                let sum: i32 = q.codes.iter().sum();
                                dot = (sum as f32).mul_add(q.scale * part.minimum(g, i), dot);
                            }
                        }
                        dot * 0.3
                    };
                    let expected: Vec<f32> = (0..BLOCK_POSITIONS).map(score).collect();
                    let what = format!("{name} {format}, row {r} of {rows}, head_dim {dim}");
                    same(&what, &expected, &out.as_f32()[r * PAGE_POSITIONS..]);
                }
            }
        }
    }
}

/// Adds a block to `acc`, `[head_dim]`.
fn add(part: &Part, p: &[f32], acc: &mut [f32]) {
    let top = if part.format == KvFormat::Q8 { 32767f32 } else { 255.0 };
    for g in 0..part.dim / KV_GROUP {
        let x: Vec<f32> = (0..BLOCK_POSITIONS).map(|i| p[i] * part.scale(g, i)).collect();
        let m = x.iter().fold(0f32, |m, &x| m.max(x));
        let dims = g * KV_GROUP..(g + 1) * KV_GROUP;
        if m > 0.0 && (top / m).is_finite() {
            let w: Vec<i32> = x.iter().map(|x| (x * (top / m)).round_ties_even() as i32).collect();
            for dim in dims.clone() {
                let int: i32 = w.iter().enumerate().map(|(i, w)| w * part.code(i, dim)).sum();
                acc[dim] = (int as f32).mul_add(m / top, acc[dim]);
            }
        }
        if part.format == KvFormat::Asym4 {
            let sum = (0..BLOCK_POSITIONS).fold(0f32, |sum, i| p[i].mul_add(part.minimum(g, i), sum));
            acc[dims].iter_mut().for_each(|a| *a += sum);
        }
    }
}

#[test]
fn weighted_values_are_the_specification() {
    let mut rng = Rng::new(42);
    // What weights are multiplied by: ordinary ones, tiny ones, ones too small to be divided by, and none at all.
    let factors = [1.0, 1e-9, f32::MIN_POSITIVE, 0.0];
    for (name, kernels) in tables() {
        for format in FORMATS {
            for (rows, dim, edge) in cases(kernels) {
                let part = Part::new(&mut rng, format, dim, false, edge);
                for first in 0..factors.len() {
                    let mut p = GuardedBuf::new(4 * ((rows - 1) * PAGE_POSITIONS + BLOCK_POSITIONS), edge);
                    for (i, p) in p.as_mut_f32().iter_mut().enumerate() {
                        let factor = factors[(first + i / PAGE_POSITIONS) % factors.len()];
                        *p = rng.range_f32(-12.0, 0.0).exp2() * factor;
                        // Positions that nobody sees.
                        if i % PAGE_POSITIONS >= 60 - first {
                            *p = 0.0;
                        }
                    }
                    let start = rng.normal_vec(rows * dim, 1.0);
                    let mut acc = GuardedBuf::from_f32(&start, edge);
                    let mut args = WeighArgs {
                        v: part.bytes.as_bytes(),
                        head_dim: dim,
                        rows,
                        p: p.as_f32(),
                        acc: acc.as_mut_f32(),
                        ahead: &[],
                    };
                    // SAFETY: the kernels were found available.
                    unsafe { kernels.weigh(format, &mut args) };
                    for (r, start) in start.chunks(dim).enumerate() {
                        let mut expected = start.to_vec();
                        add(&part, &p.as_f32()[r * PAGE_POSITIONS..], &mut expected);
                        let what = format!("{name} {format}, row {r} of {rows}, head_dim {dim}, {first}");
                        same(&what, &expected, &acc.as_f32()[r * dim..(r + 1) * dim]);
                    }
                }
            }
        }
    }
}

/// Maxima, sums and weighted V of one page, of rows that see any of it.
fn page(
    kernels: &'static Kernels,
    tile: &Tile,
    spec: &PageSpec,
    kv: &[u8],
    q: &[f32],
    index: usize,
) -> Vec<f32> {
    let (isa, dim) = (Isa::best(), tile.head_dim);
    let mut memory = vec![0f32; Memory::floats(tile.rows, spec)];
    let mut memory = Memory::split(&mut memory, tile, spec.latent);
    tile.ask(isa, kernels, spec, |t| &q[t * dim..][..dim], &mut memory);
    let view = View {
        kv,
        next: &kv[..kv.len() / 2],
        lay: &Lay::new(*spec),
        page: index,
        scoring: Scoring::new(0.05, None),
        packed: kernels,
    };
    let cuts = tile.cuts(Form::choose(isa, dim));
    let asked = Asked { floats: memory.q, packed: &memory.queries, cuts: &cuts };
    tile.page(Form::choose(isa, dim), asked, &view, &mut memory.room, memory.part);
    let part = tile.partial(memory.part);
    let rows = (0..tile.rows).filter(|&t| !tile.seen(t, index).is_empty());
    rows.flat_map(|t| [&part.max[t..t + 1], &part.sum[t..t + 1], &part.acc[t * dim..(t + 1) * dim]].concat())
        .collect()
}

#[test]
fn pages_are_those_of_the_portable_kernels_for_any_rows_and_windows() {
    let mut rng = Rng::new(43);
    let pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)].map(|(k, v)| (FORMATS[k], FORMATS[v]));
    for (k, v) in pairs.into_iter().chain([(KvFormat::F16, KvFormat::Q4), (KvFormat::Q4, KvFormat::Bf16)]) {
        for (rows, group, position, window) in [
            (1, 1, 255, None),
            (2, 2, 300, None),
            (7, 7, 100, None),
            (8, 8, 511, None),
            (9, 3, 70, Some(40)),
            (40, 2, 250, Some(100)),
            (96, 8, 256, None),
        ] {
            let spec = PageSpec { kv_heads: 1, head_dim: 64, k, v, first: false, latent: None };
            let tile = Tile { rows, group, position, window, head_dim: 64, value_dim: 64 };
            let q = rng.normal_vec(rows * 64, 1.0);
            let kv = parts(&mut rng, &spec);
            for index in tile.pages() {
                let expected = page(Kernels::choose(Isa::Scalar), &tile, &spec, &kv, &q, index);
                for (name, kernels) in tables() {
                    let what = format!("{name} {k}/{v}, {tile:?}, page {index}");
                    same(&what, &expected, &page(kernels, &tile, &spec, &kv, &q, index));
                }
            }
        }
    }
}

/// A page of one KV head.
fn parts(rng: &mut Rng, spec: &PageSpec) -> Vec<u8> {
    let mut bytes = Vec::new();
    for format in (0..4).flat_map(|block| [spec.k_format(block), spec.v_format(block)]) {
        if format.is_packed() {
            bytes.extend(Part::new(rng, format, spec.head_dim, true, Edge::End).bytes.as_bytes());
        } else {
            let values = rng.normal_vec(BLOCK_POSITIONS * spec.head_dim, 1.0);
            let bits = |x: f32| {
                if format == KvFormat::F16 { f16::from_f32(x).to_bits() } else { (x.to_bits() >> 16) as u16 }
            };
            bytes.extend(values.into_iter().flat_map(|x| bits(x).to_le_bytes()));
        }
    }
    bytes
}

#[test]
fn a_kernel_asks_for_all_of_what_comes_next_and_little_else() {
    for bytes in [4608usize, 8704, 5120] {
        for steps in [72, 80, 96, 144, 160] {
            let next = vec![0u8; bytes];
            let mut ahead = Ahead::over(&next, steps, &[]);
            let first = ahead.at as usize;
            let mut lines = std::collections::BTreeSet::new();
            for _ in 0..steps {
                let at = ahead.at as usize - first;
                lines.insert(at / LINE);
                lines.insert((at + ahead.more) / LINE);
                ahead.fetch::<1>();
            }
            let all = bytes.div_ceil(LINE);
            assert!(ahead.step <= 2 * LINE, "{bytes} bytes in {steps} steps");
            assert!((0..all).all(|line| lines.contains(&line)), "{bytes} bytes in {steps} steps");
            assert!(lines.len() <= all + 3, "{bytes} bytes in {steps} steps");
        }
    }
}
