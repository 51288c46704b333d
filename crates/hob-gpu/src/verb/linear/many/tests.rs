//! Every text of the cooperative tiles through the compiler's front and back end (software adapters have no such
//! matrices), and weights in several parts.

use std::sync::Arc;

use hob_compute::{Activation, Buf, Combine, Compute, Linear, Product, Weight, WeightKind, WeightSpec};
use hob_quant::Format;
use wgpu::naga;

use super::{Spec, Tile, Way};
use crate::weights::Part;
use crate::{Gpu, GpuConfig};

/// A text that only devices with cooperative matrices compile, through the compiler's front and back end.
pub(crate) fn translate(text: &str) -> Result<Vec<u32>, String> {
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
            let spec = Spec {
                formats: [format; 2],
                combine,
                bias,
                half_out: i > 1,
                vectors: i > 0,
                tail: i % 2 == 1,
                routed: false,
            };
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
    let spec = Spec {
        formats,
        combine,
        bias: [false; 2],
        half_out: true,
        vectors: true,
        tail: false,
        routed: false,
    };
    for tile in Tile::ALL {
        translate(&spec.source(Way::Coop, tile).wgsl).unwrap_or_else(|e| panic!("{tile:?}: {e}"));
    }
}

#[test]
fn few_workgroups_take_smaller_tiles() {
    for (rows, outputs, gated, tile) in [
        (1024, 4096, false, Tile::LARGE),
        (128, 12288, true, Tile::LARGE),
        (512, 4096, false, Tile::MIDDLE),
        (128, 12288, false, Tile::MIDDLE),
        (512, 2048, true, Tile::MIDDLE),
        (64, 1 << 20, false, Tile::SMALL),
        (128, 4096, false, Tile::SMALL),
        (512, 1024, false, Tile::SMALL),
    ] {
        assert_eq!(Tile::of(rows, outputs, gated), tile, "{rows} x {outputs} {gated}");
    }
}

const COLS: usize = 64;

/// Rows `first..end` of an f16 matrix with varied values.
fn load(gpu: &mut Gpu, first: usize, end: usize) -> Weight {
    let value = |i: usize| half::f16::from_f32((i * 31 % 97) as f32 / 97.0 - 0.5).to_le_bytes();
    let bytes: Vec<u8> = (first * COLS..end * COLS).flat_map(value).collect();
    let (name, kind) = ("w".to_string(), WeightKind::Matrix);
    let spec = WeightSpec { name, kind, format: Format::F16, rows: end - first, cols: COLS };
    gpu.load(&spec, Arc::new(bytes)).unwrap()
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

fn open() -> Option<Gpu> {
    Some(Gpu::open(&GpuConfig { adapter: crate::test_adapter()?, ..Default::default() }).unwrap())
}

fn uploaded(gpu: &mut Gpu, seed: usize, rows: usize, cols: usize) -> Buf {
    let buf = gpu.alloc(rows, cols).unwrap();
    let value = |i: usize| ((i + seed) * 17 % 101) as f32 / 50.0 - 1.0;
    gpu.upload(buf, 0, &(0..rows * cols).map(value).collect::<Vec<_>>()).unwrap();
    buf
}

/// Codes of any bits under scales of 2^-5: `cols` is a multiple of a block.
fn packed(gpu: &mut Gpu, format: Format, rows: usize, cols: usize) -> Weight {
    let bytes = format.row_bytes(cols).unwrap();
    let mut all: Vec<u8> = (0..rows * bytes).map(|i| (i.wrapping_mul(0x9E37_79B1) >> 13) as u8).collect();
    for block in all.chunks_mut(format.block_bytes()) {
        let scales: &[usize] = match format {
            Format::Q4K => &[0, 2],
            Format::Q6K => &[208],
            _ => &[0],
        };
        scales.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&[0, 0x28]));
    }
    let (name, kind) = ("w".to_string(), WeightKind::Matrix);
    gpu.load(&WeightSpec { name, kind, format, rows, cols }, Arc::new(all)).unwrap()
}

/// One product of `rows` rows in one way, all rows of the output.
fn computed(gpu: &mut Gpu, case: &Case, weights: [Weight; 2], way: Way, tile: Tile) -> Vec<f32> {
    let &Case { rows, outputs, cols, combine, .. } = case;
    let x = uploaded(gpu, 3, rows + 1, cols);
    let out = uploaded(gpu, 5, rows, outputs);
    let products = weights.map(|weight| Product { weight, bias: None, out });
    let args = Linear { x, first_row: 1, rows, products: &products, combine };
    let job = gpu.job(&args, 0).unwrap();
    gpu.run_tiles(&args, &job, way, tile).unwrap();
    let mut y = vec![0.0; rows * outputs];
    gpu.download(out, 0, &mut y).unwrap();
    y
}

struct Case {
    formats: [Format; 2],
    combine: Combine,
    rows: usize,
    outputs: usize,
    cols: usize,
}

/// What no driver of a software adapter can run, spelled in plain arithmetic: staging, unpacking and writing are the same
/// text.
#[test]
fn a_tile_computed_lane_by_lane_gives_what_the_plain_kernel_gives() {
    let Some(mut gpu) = open() else { return };
    // As little text as has all there is: software adapters compile slowly.
    let narrow = Tile { rows: 16, cols: 32, step: 32, sub_rows: 16, sub_cols: 32 };
    let wide = Tile { rows: 32, cols: 64, step: 64, ..narrow };
    let case =
        |format, combine, rows, outputs, cols| Case { formats: [format; 2], combine, rows, outputs, cols };
    let gated = Combine::Gated(Activation::Silu);
    let mixed = Case { formats: [Format::Q4K, Format::Q6K], ..case(Format::Q4K, gated, 17, 40, 256) };
    let cases = [
        (case(Format::Q4_0, Combine::Store, 32, 32, 96), narrow),
        (case(Format::Q4_0, gated, 20, 36, 96), narrow),
        (case(Format::Q4K, Combine::Add, 35, 68, 256), narrow),
        (case(Format::IQ4NL, Combine::Store, 17, 35, 64), narrow),
        (mixed, narrow),
        (case(Format::Q8_0, Combine::Add, 64, 64, 96), wide),
    ];
    for (case, tile) in cases {
        let weights = case.formats.map(|f| packed(&mut gpu, f, case.outputs, case.cols));
        let expected = computed(&mut gpu, &case, weights, Way::Float, tile);
        let found = computed(&mut gpu, &case, weights, Way::Lanes, tile);
        let square: f32 = expected.iter().map(|v| v * v).sum();
        let limit = 5e-3 * (square / expected.len() as f32).sqrt();
        let Case { formats, combine, rows, outputs, .. } = case;
        for (i, (e, f)) in expected.iter().zip(&found).enumerate() {
            assert!(
                (e - f).abs() <= limit,
                "{formats:?} {combine:?} {rows} x {outputs} {tile:?}, {i}: {e} but {f}"
            );
        }
    }
}

#[test]
fn weights_in_parts_give_what_whole_ones_give() {
    let Some(mut gpu) = open() else { return };
    let rows = 21;
    let x = uploaded(&mut gpu, 0, rows, COLS);
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
