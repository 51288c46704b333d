//! Weights that no single binding shows: cut into parts they give what they give whole.

use std::sync::Arc;

use hob_compute::{
    Activation, Buf, ByteSource, Combine, Compute, Linear, Product, Weight, WeightKind, WeightSpec,
};
use hob_quant::Format;

use crate::{Gpu, GpuConfig};

const COLS: usize = 256;
const ROWS: usize = 300;

/// Codes and scales that are numbers: no byte has its bit 6.
struct Pattern(u64);

impl ByteSource for Pattern {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let byte = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 & 0xAF;
        buf.iter_mut().zip(offset..).for_each(|(b, i)| *b = byte(i));
        Ok(())
    }
}

fn load(gpu: &mut Gpu, format: Format) -> Weight {
    let spec = WeightSpec { name: "w".into(), kind: WeightKind::Matrix, format, rows: ROWS, cols: COLS };
    let bytes = spec.file_bytes().unwrap();
    gpu.load(&spec, Arc::new(Pattern(bytes))).unwrap()
}

fn run(gpu: &mut Gpu, x: Buf, products: &[Product], combine: Combine) -> Vec<f32> {
    gpu.linear(&Linear { x, first_row: 0, rows: 2, products, combine }).unwrap();
    let mut out = vec![0.0; 2 * ROWS];
    gpu.download(products[0].out, 0, &mut out).unwrap();
    out
}

/// What a device gives on which a binding shows at most `limit` bytes, and the parts of its two weights.
fn results(adapter: usize, limit: Option<u64>) -> ([Vec<f32>; 3], [usize; 2]) {
    let mut gpu = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() }).unwrap();
    let [x, h, out] = [COLS, ROWS, ROWS].map(|width| gpu.alloc(2, width).unwrap());
    let values: Vec<f32> = (0..2 * COLS).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    gpu.upload(x, 0, &values).unwrap();
    if let Some(limit) = limit {
        gpu.stream.context.facts.binding_bytes = limit;
    }
    let (gate, up) = (load(&mut gpu, Format::Q4_0), load(&mut gpu, Format::Q8_0));
    let parts = [gate, up].map(|w| gpu.weights.get("test", w).unwrap().parts.len());
    let pair = [gate, up].map(|weight| Product { weight, bias: None, out: h });
    let gated = Combine::Gated(Activation::Silu);
    let first = run(&mut gpu, x, &pair, gated);
    // Both write one buffer: the second stays, and adds itself to itself.
    let both = [gate, up].map(|weight| Product { weight, bias: None, out });
    let stored = run(&mut gpu, x, &both, Combine::Store);
    let added = run(&mut gpu, x, &both[1..], Combine::Add);
    ([first, stored, added], parts)
}

#[test]
fn weights_larger_than_a_binding_are_cut_and_give_the_same() {
    let Some(adapter) = crate::test_adapter() else {
        return;
    };
    let (whole, parts) = results(adapter, None);
    assert_eq!(parts, [1, 1]);
    let (cut, parts) = results(adapter, Some(20 << 10));
    assert_eq!(parts, [3, 5], "20 KiB hold 128 rows of 144 bytes and 64 of 272");
    assert!(whole[0].iter().any(|v| *v != 0.0));
    assert_eq!(whole, cut);
}
