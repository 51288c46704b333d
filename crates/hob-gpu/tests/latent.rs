//! Pages that store V within K, and what stands around them: attention of few and of many rows, images, products and joins
//! head by head, all against the oracle.

mod common;
#[path = "common/weights.rs"]
#[allow(dead_code)] // this file uses one of its functions
mod weights;
#[path = "common/world.rs"]
mod world;

use std::sync::Arc;

use common::floats::vector;
use common::{TIERS, buffer, contents, distance, gpu, reference, values};
use hob_compute::reference::Reference;
use hob_compute::*;
use hob_gpu::Gpu;
use hob_quant::{Format, KvFormat, decode_kv, hadamard};
use world::{Of, World, differences};

type Runs = Vec<(usize, std::ops::Range<usize>)>;

const LENGTHS: [usize; 2] = [530, 70];

/// Few rows, rows at the edges of blocks and pages, several of a sequence, and as many as a prefill has.
fn runs() -> Vec<Runs> {
    vec![
        vec![(0, 0..1)],
        vec![(0, 255..256), (1, 63..64)],
        vec![(0, 529..530), (1, 66..70)],
        vec![(0, 250..258)],
        vec![(0, 0..40), (1, 20..70)],
        vec![(0, 490..530)],
    ]
}

/// A layer of one KV head whose first `dims` dimensions are V.
fn latent(heads: usize, head_dim: usize, dims: usize, format: KvFormat) -> Of {
    Of { latent: Some(dims), ..Of::new(heads, 1, head_dim, format, format) }
}

/// The pages of a device on an exact oracle, every vector as its format gives it back: the device multiplies floats by what
/// is stored, where the oracle's rule for packed formats rounds queries and weights to integers.
fn given_back(world: &World, dev: &mut dyn Compute) -> (Reference, World) {
    let (of, mut exact) = (world.of, reference(true));
    let twin = World::new(&mut exact, of, &LENGTHS);
    for (seq, end) in LENGTHS.into_iter().enumerate() {
        for (index, image) in world.images(dev, seq, end).into_iter().enumerate() {
            let spec = of.spec().of_page(index);
            let (mut rest, mut floats, mut at) = (&image[..], Vec::new(), 0);
            while !rest.is_empty() {
                let format = spec.k_format(at / BLOCK_POSITIONS);
                let (vector, behind) = rest.split_at(format.vector_bytes(of.head_dim));
                let mut values = vec![0f32; of.head_dim];
                decode_kv(format, vector, &mut values);
                if of.k.is_rotated() {
                    hadamard(&mut values);
                }
                floats.extend(values.iter().flat_map(|v| v.to_le_bytes()));
                (rest, at) = (behind, at + 1);
            }
            exact.write_positions(twin.pages[seq][index], 0..at, &floats).unwrap();
        }
    }
    (exact, twin)
}

fn agree(dev: &mut Gpu, of: Of, exact: bool, runs: &[Runs]) {
    let mut oracle = reference(exact);
    let world = World::new(&mut oracle, of, &LENGTHS);
    world.append(&mut oracle, &[(0, 0..LENGTHS[0]), (1, 0..LENGTHS[1])]);
    let twin = World::new(dev, of, &LENGTHS);
    // Page by page, from the middle of one on.
    twin.append(dev, &[(0, 0..100), (1, 0..7)]);
    twin.append(dev, &[(0, 100..LENGTHS[0]), (1, 7..LENGTHS[1])]);
    for (seq, end) in LENGTHS.into_iter().enumerate() {
        let images = world.images(&mut oracle, seq, end);
        let (wrong, of_all) = differences(&images, &twin.images(dev, seq, end));
        // A device that does not round divisions correctly may find another of two equal codes the best by a hair.
        let most = if of.k.is_packed() { of_all / 200 } else { 0 };
        assert!(wrong <= most, "{of:?} exact {exact}: {wrong} of {of_all} bytes of sequence {seq} differ");
    }
    let (mut judge, given) = match exact {
        true => (oracle, world),
        false => given_back(&twin, dev),
    };
    let mut worst = 0f64;
    for runs in runs {
        let (expected, found) = (given.attend(&mut judge, runs), twin.attend(dev, runs));
        let here = distance(&expected, &found);
        // Loud dimensions make large scores, whose last bits the exponential magnifies.
        assert!(here < 2e-4, "{of:?} exact {exact}, {runs:?}: {here}");
        worst = worst.max(here);
    }
    println!("{} {} of {} x {}: {worst:.1e}", of.k, of.spec().value_dim(), of.head_dim, of.heads);
    twin.free(dev);
}

#[test]
fn every_format_agrees_with_the_oracle() {
    let Some(mut dev) = gpu(false, "") else { return };
    agree(&mut dev, latent(20, 96, 64, KvFormat::F16), false, &runs());
    // Few rows and many are kernels of their own, which a software adapter compiles slowly: each format has one of them.
    agree(&mut dev, latent(20, 96, 64, KvFormat::Bf16), false, &runs()[2..3]);
    agree(&mut dev, latent(20, 96, 64, KvFormat::Q8), false, &runs()[2..3]);
    agree(&mut dev, latent(20, 96, 64, KvFormat::Q4), false, &runs()[4..5]);
    agree(&mut dev, latent(5, 64, 64, KvFormat::Asym4), false, &runs()[1..3]);
}

#[test]
fn sizes_of_models_windows_caps_and_sinks_agree() {
    let Some(mut dev) = gpu(false, "") else { return };
    // DeepSeek's own, and DeepSeek-V4's, whose K is V.
    agree(&mut dev, latent(16, 576, 512, KvFormat::F16), false, &runs()[2..3]);
    agree(&mut dev, latent(8, 576, 512, KvFormat::Q4), false, &runs()[1..2]);
    agree(&mut dev, latent(64, 512, 512, KvFormat::F16), false, &runs()[1..2]);
    agree(&mut dev, latent(3, 24, 16, KvFormat::F16), false, &runs()[2..5]);
    let windowed = Of { window: Some(100), sinks: true, ..latent(18, 160, 128, KvFormat::Bf16) };
    agree(&mut dev, windowed, false, &runs());
    agree(
        &mut dev,
        Of { softcap: Some(5.0), sinks: true, ..latent(40, 96, 32, KvFormat::F16) },
        false,
        &runs()[2..5],
    );
}

#[test]
fn exact_devices_and_every_tier_agree() {
    let Some(mut dev) = gpu(true, "") else { return };
    agree(&mut dev, latent(20, 40, 32, KvFormat::F16), true, &runs());
    agree(&mut dev, latent(4, 96, 64, KvFormat::Q4), true, &runs()[1..3]);
    for off in ["subgroups", TIERS[3]] {
        let Some(mut dev) = gpu(false, off) else { return };
        agree(&mut dev, latent(20, 64, 32, KvFormat::F16), false, &runs()[2..3]);
    }
}

/// What a page held before, and what lies behind the last position, never shows.
#[test]
fn junk_behind_the_last_position_never_shows() {
    let Some(mut dev) = gpu(false, "") else { return };
    let of = latent(20, 96, 64, KvFormat::F16);
    let (world, clean) = (World::new(&mut dev, of, &[70]), World::new(&mut dev, of, &[70]));
    let junk = vec![0xFFu8; dev.position_bytes(world.pages[0][0].pool, 0..256).unwrap()];
    dev.write_positions(world.pages[0][0], 0..256, &junk).unwrap();
    for world in [&world, &clean] {
        world.append(&mut dev, &[(0, 0..70)]);
    }
    for run in [69..70, 30..70] {
        let runs = vec![(0, run)];
        assert_eq!(world.attend(&mut dev, &runs), clean.attend(&mut dev, &runs));
    }
    let other = World::new(&mut dev, of, &[300]);
    other.append(&mut dev, &[(0, 0..300)]);
    let (from, to) = (other.pages[0][1], other.pages[0][0]);
    dev.copy_page(from, to, 37).unwrap();
    let image = |dev: &mut Gpu, page| {
        let mut image = Vec::new();
        dev.read_positions(page, 0..37, &mut image).unwrap();
        image
    };
    assert_eq!(image(&mut dev, from), image(&mut dev, to));
}

/// Norm, rotations and joins at once are what they are one after the other.
#[test]
fn rows_of_a_latent_agree_with_the_oracle() {
    let Some(mut dev) = gpu(false, "") else { return };
    for (heads, rank, rotary, rows, pairs) in [
        (3, 24, 8, 5, Some(RopePairs::Half)),
        (20, 512, 64, 2, Some(RopePairs::Interleaved)),
        (2, 40, 6, 9, None),
    ] {
        let run = |dev: &mut dyn Compute| {
            let mut of = |seed, width| buffer(dev, rows, width, &values(seed, rows * width));
            let (wide, rotated) = (of(1, heads * rank), of(2, heads * rotary));
            let (latent, key) = (of(3, rank), of(4, rotary));
            let (q, k) = (of(5, heads * (rank + rotary)), of(6, rank + rotary));
            let freqs: Vec<f32> = (0..rotary / 2).map(|i| 10f32.powi(-(i as i32))).collect();
            let freqs = buffer(dev, 1, rotary / 2, &freqs);
            let weight = vector(dev, &values(7, rank));
            let norm = HeadNorm { weight, groups: 1, eps: 1e-5 };
            let rotation = pairs.map(|pairs| Rotation { freqs, pairs, magnitude: 1.25 });
            let positions: Vec<u32> = (0..rows as u32).map(|r| 1000 * r + 3).collect();
            let positions = &positions[..];
            let args =
                LatentRows { wide, rotated, latent, key, heads, rotary, norm, rotation, positions, q, k };
            dev.latent_rows(&args).unwrap();
            let wrong = LatentRows { heads: heads + 1, ..args };
            assert!(dev.latent_rows(&wrong).is_err());
            let width = rank + rotary;
            [contents(dev, q, rows * heads * width), contents(dev, k, rows * width)].concat()
        };
        let here = distance(&run(&mut reference(false)), &run(&mut dev));
        assert!(here < 1e-5, "{heads} heads of {rank} and {rotary}: {here}");
    }
}

/// Products of every head.
fn heads(dev: &mut dyn Compute, format: Format, [count, height, cols]: [usize; 3], rows: usize) -> Vec<f32> {
    let bytes = weights::rows(format, 3, count * height, cols);
    let kind = WeightKind::Heads { count };
    let spec = WeightSpec { name: "w".into(), kind, format, rows: count * height, cols };
    let weight = dev.load(&spec, Arc::new(bytes)).expect("a weight loads");
    let x = buffer(dev, rows, count * cols, &values(4, rows * count * cols));
    let out = dev.alloc(rows, count * height).unwrap();
    dev.heads(&Heads { x, rows, weight, out }).unwrap();
    let found = contents(dev, out, rows * count * height);
    dev.unload(weight).unwrap();
    found
}

#[test]
fn products_of_heads_agree_with_the_oracle() {
    let Some(mut dev) = gpu(false, "") else { return };
    for format in
        [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q5_1, Format::Q4K]
    {
        let cols = format.block_len().max(64);
        for (shape, rows) in [([3, 40, cols], 1), ([2, 96, cols], 16), ([3, 72, 2 * cols], 70)] {
            let expected = heads(&mut reference(true), format, shape, rows);
            let here = distance(&expected, &heads(&mut dev, format, shape, rows));
            assert!(here < 3e-5, "{format} {shape:?} x {rows}: {here}");
        }
    }
    // Heads whose width is no whole number of blocks of 32.
    let expected = heads(&mut reference(true), Format::F32, [4, 16, 24], 70);
    assert!(distance(&expected, &heads(&mut dev, Format::F32, [4, 16, 24], 70)) < 3e-5);
}

#[test]
fn parts_are_joined_and_what_does_not_fit_is_refused() {
    let Some(mut dev) = gpu(false, "") else { return };
    let (mut oracle, rows) = (reference(false), 7);
    let joined = |dev: &mut dyn Compute| {
        let (a, b) =
            (buffer(dev, rows, 60, &values(1, rows * 60)), buffer(dev, rows, 6, &values(2, rows * 6)));
        let out = dev.alloc(rows, 66).unwrap();
        dev.map(&Map::Join { a, b, groups: 3, out, rows }).unwrap();
        for refused in [
            Map::Join { a, b, groups: 4, out, rows },
            Map::Join { a, b: a, groups: 3, out, rows },
            Map::Join { a, b: out, groups: 3, out, rows },
            Map::Join { a, b, groups: 3, out, rows: 8 },
        ] {
            assert!(matches!(dev.map(&refused), Err(ComputeError::Shape { .. })), "{refused:?}");
        }
        contents(dev, out, rows * 66)
    };
    assert_eq!(joined(&mut oracle), joined(&mut dev));
    let spec = PageSpec { latent: Some(48), k: KvFormat::Q8, v: KvFormat::Q8, ..PageSpec::f16(1, 96) };
    assert!(dev.alloc_pages(&spec, 1).unwrap_err().to_string().contains("48 dimensions"));
}
