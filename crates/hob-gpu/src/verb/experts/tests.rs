//! The text of the cooperative tiles: computed lane by lane it gives what integer tiles give, and every form of it passes
//! the compiler (software adapters have no such matrices).

use std::sync::Arc;

use hob_compute::{Activation, Buf, Compute, Experts, Weight, WeightKind, WeightSpec};
use hob_quant::Format;

use crate::{Gpu, GpuConfig};

/// Codes of any bits under scales of 2^-5.
fn experts(gpu: &mut Gpu, format: Format, seed: usize, count: usize, [rows, cols]: [usize; 2]) -> Weight {
    let row_bytes = format.row_bytes(cols).unwrap();
    let byte = |i: usize| ((i + seed).wrapping_mul(0x9E37_79B1) >> 13) as u8;
    let mut bytes: Vec<u8> = (0..count * rows * row_bytes).map(byte).collect();
    for block in bytes.chunks_mut(format.block_bytes()) {
        let scales: &[usize] = if format == Format::Q4K { &[0, 2] } else { &[0] };
        scales.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&[0, 0x28]));
    }
    let (name, kind) = ("w".to_string(), WeightKind::Experts { count });
    gpu.load(&WeightSpec { name, kind, format, rows: count * rows, cols }, Arc::new(bytes)).unwrap()
}

fn vector(gpu: &mut Gpu, seed: usize, cols: usize) -> Weight {
    let value = |i: usize| (((i + seed) * 31 % 97) as f32 / 97.0 - 0.5).to_le_bytes();
    let bytes: Vec<u8> = (0..cols).flat_map(value).collect();
    let (name, kind, format) = ("b".to_string(), WeightKind::Vector, Format::F32);
    gpu.load(&WeightSpec { name, kind, format, rows: 1, cols }, Arc::new(bytes)).unwrap()
}

fn buffer(gpu: &mut Gpu, rows: usize, cols: usize, value: impl Fn(usize) -> f32) -> Buf {
    let buf = gpu.alloc(rows, cols).unwrap();
    gpu.upload(buf, 0, &(0..rows * cols).map(value).collect::<Vec<_>>()).unwrap();
    buf
}

struct Case {
    formats: [Format; 3],
    count: usize,
    rows: usize,
    dim: usize,
    ff: usize,
    activation: Activation,
    biased: bool,
}

const TOP: usize = 2;

impl Case {
    fn run(&self, gpu: &mut Gpu) -> Vec<f32> {
        let &Case { formats, count, rows, dim, ff, activation, biased } = self;
        let mut stack = |i: usize, shape| experts(gpu, formats[i], 7 * i, count, shape);
        let (gate, up, down) = (stack(0, [ff, dim]), stack(1, [ff, dim]), stack(2, [dim, ff]));
        let biases = biased.then(|| [ff, ff, dim].map(|width| vector(gpu, width, count * width)));
        let x = buffer(gpu, rows, dim, |i| (i * 17 % 101) as f32 / 50.0 - 1.0);
        let routes = buffer(gpu, rows, 2 * TOP, |i| match i % (2 * TOP) {
            // One expert has most rows, and one has none.
            0 => (i / 4 % 3 / 2) as f32,
            1 => (2 + i / 4 % (count - 2)) as f32,
            n => 0.3 * n as f32,
        });
        let (hidden, out) = (gpu.alloc(rows * TOP, ff).unwrap(), buffer(gpu, rows, dim, |i| i as f32 * 1e-3));
        let (top_k, add) = (TOP, true);
        let gate = (activation != Activation::ReluSquared).then_some(gate);
        let args = Experts { x, rows, routes, top_k, gate, up, down, biases, activation, hidden, out, add };
        gpu.experts(&args).unwrap();
        let mut found = vec![0.0; rows * dim];
        gpu.download(out, 0, &mut found).unwrap();
        found
    }
}

#[test]
fn tiles_computed_lane_by_lane_give_what_integer_tiles_give() {
    let Some(adapter) = crate::test_adapter() else { return };
    let off = "coop".to_string();
    let mut gpu = Gpu::open(&GpuConfig { adapter, off, ..Default::default() }).unwrap();
    use Format::{Q4_0, Q4K, Q8_0};
    let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 0.7, plus_one: true };
    let case = |formats, count, rows, activation, biased| Case {
        formats,
        count,
        rows,
        dim: if formats == [Q4_0; 3] { 96 } else { 256 },
        ff: if formats == [Q4_0; 3] { 96 } else { 256 },
        activation,
        biased,
    };
    for case in [
        case([Q4_0; 3], 5, 19, Activation::Silu, false),
        case([Q4K, Q8_0, Q4_0], 4, 40, clamped, true),
        case([Q4K, Q4K, Q8_0], 6, 17, Activation::GeluTanh, false),
        case([Q4K, Q4K, Q8_0], 4, 21, Activation::ReluSquared, false),
    ] {
        gpu.expert_lanes = false;
        let expected = case.run(&mut gpu);
        gpu.expert_lanes = true;
        let found = case.run(&mut gpu);
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
        let apart = square(&mut expected.iter().zip(&found).map(|(e, f)| e - f));
        let apart = (apart / square(&mut expected.iter().copied())).sqrt();
        assert!(apart < 1.5e-2, "{:?}, {} rows: {apart}", case.formats, case.rows);
        let zeros = |rows: &[f32]| rows.iter().filter(|v| **v == 0.0).count();
        assert!(zeros(&found) <= zeros(&expected) + found.len() / 100);
    }
}
