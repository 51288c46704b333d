//! Every text of the cooperative tiles through the compiler's front and back end (software adapters have no such
//! matrices), and weights in several parts.

use std::sync::Arc;

use hob_compute::{
    Activation, ByteSource, Combine, Compute, Linear, Product, Weight, WeightKind, WeightSpec,
};
use hob_quant::Format;
use wgpu::naga;

use super::{Spec, Tile, Way};
use crate::context::adapters;
use crate::weights::Part;
use crate::{Gpu, GpuConfig};

fn translate(text: &str) -> Result<Vec<u32>, String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    let (flags, all) = (naga::valid::ValidationFlags::all(), naga::valid::Capabilities::all());
    let info =
        naga::valid::Validator::new(flags, all).validate(&module).map_err(|e| e.emit_to_string(text))?;
    let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    naga::back::spv::write_vec(&module, &info, &options, None).map_err(|e| e.to_string())
}

#[test]
fn every_cooperative_tile_of_every_format_is_valid_and_translates() {
    let combines = [
        Combine::Store,
        Combine::Add,
        Combine::Gated(Activation::Silu),
        Combine::Gated(Activation::GeluTanh),
    ];
    let formats = Format::ALL.iter().filter(|&&f| crate::format::device_format(f) == f);
    for (&format, tile) in formats.flat_map(|f| Tile::ALL.map(|t| (f, t))) {
        for (i, combine) in combines.into_iter().enumerate() {
            let bias = [i != 1, i == 2];
            let spec = Spec { formats: [format; 2], combine, bias, half_out: i > 1, tail: i % 2 == 1 };
            let source = spec.source(Way::Coop, tile);
            let words = translate(&source.wgsl).unwrap_or_else(|e| panic!("{spec:?} {tile:?}: {e}"));
            assert!(words.len() > 1000 && tile.bytes() <= 48 << 10, "{tile:?}");
        }
    }
}

#[test]
fn a_gated_pair_of_two_formats_is_valid() {
    let combine = Combine::Gated(Activation::Silu);
    let formats = [Format::Q4K, Format::Q6K];
    let spec = Spec { formats, combine, bias: [false; 2], half_out: true, tail: false };
    for tile in Tile::ALL {
        translate(&spec.source(Way::Coop, tile).wgsl).unwrap_or_else(|e| panic!("{tile:?}: {e}"));
    }
}

#[test]
fn few_workgroups_take_the_small_tile() {
    let large = |rows, outputs, gated| Tile::of(rows, outputs, gated) == Tile::LARGE;
    assert!(large(512, 4096, false) && large(128, 12288, false) && large(512, 2048, true));
    assert!(!large(64, 1 << 20, false) && !large(128, 4096, false) && !large(512, 1024, false));
}

struct Bytes(Vec<u8>);

impl ByteSource for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }
}

const COLS: usize = 64;

/// Rows `first..end` of an f16 matrix with varied values.
fn load(gpu: &mut Gpu, first: usize, end: usize) -> Weight {
    let value = |i: usize| half::f16::from_f32((i * 31 % 97) as f32 / 97.0 - 0.5).to_le_bytes();
    let bytes = (first * COLS..end * COLS).flat_map(value).collect();
    let (name, kind) = ("w".to_string(), WeightKind::Matrix);
    let spec = WeightSpec { name, kind, format: Format::F16, rows: end - first, cols: COLS };
    gpu.load(&spec, Arc::new(Bytes(bytes))).unwrap()
}

/// A matrix of 70 rows in parts that end at `cuts` and 70.
fn in_parts(gpu: &mut Gpu, cuts: &[usize]) -> Weight {
    let whole = load(gpu, 0, 70);
    let edges = [&[0], cuts, &[70]].concat();
    let parts: Vec<Part> = edges
        .windows(2)
        .map(|edge| {
            let part = load(gpu, edge[0], edge[1]);
            let buffer = gpu.weights.get("test", part).unwrap().parts[0].buffer;
            Part { buffer, first_row: edge[0], rows: edge[1] - edge[0] }
        })
        .collect();
    gpu.weights.get_mut("test", whole).unwrap().parts = parts;
    whole
}

#[test]
fn weights_in_parts_give_what_whole_ones_give() {
    let software = adapters().iter().position(|a| a.software);
    let chosen = std::env::var("HOB_TEST_ADAPTER").ok().and_then(|v| v.parse().ok()).or(software);
    let Some(adapter) = chosen else {
        println!("skipped: no GPU adapter here, not even a software one (Debian: mesa-vulkan-drivers)");
        return;
    };
    let mut gpu = Gpu::open(&GpuConfig { adapter, ..Default::default() }).unwrap();
    let rows = 21;
    let x = gpu.alloc(rows, COLS).unwrap();
    let values: Vec<f32> = (0..rows * COLS).map(|i| (i * 17 % 101) as f32 / 50.0 - 1.0).collect();
    gpu.upload(x, 0, &values).unwrap();
    let mut found = Vec::new();
    for cuts in [[&[][..], &[]], [&[33], &[8, 40]]] {
        for combine in [Combine::Store, Combine::Gated(Activation::Silu)] {
            let out = gpu.alloc(rows, 70).unwrap();
            let products = cuts.map(|cuts| Product { weight: in_parts(&mut gpu, cuts), bias: None, out });
            gpu.linear(&Linear { x, first_row: 0, rows, products: &products, combine }).unwrap();
            let mut y = vec![0.0; rows * 70];
            gpu.download(out, 0, &mut y).unwrap();
            found.push(y);
        }
    }
    assert!(found[0] == found[2] && found[1] == found[3]);
    assert!(found[0].iter().chain(&found[1]).any(|v| *v != 0.0));
}
