//! Products of both register widths are the specification's, bit by bit, where this CPU has the instructions.

use hob_compute::act::{dot_row, quantize_row};
use hob_quant::Format;
use hob_testkit::rng::Rng;

use super::*;
use crate::isa::Isa;
use crate::linear::act::{ActCache, Source};
use crate::linear::pack;
use crate::pool::Pool;

/// Runs kernels of one width over a packed group: decode for up to 4 rows, and prefill.
type Run = fn(Format, [&[u8]; 2], Packed) -> [Vec<f32>; 2];

fn run_wide(format: Format, groups: [&[u8]; 2], acts: Packed) -> [Vec<f32>; 2] {
    let mut few = vec![f32::NAN; acts.rows * 32];
    let mut gemm = vec![f32::NAN; acts.rows * 32];
    // SAFETY: called only where the CPU has the instructions; groups and activations have one width.
    unsafe {
        for (g, group) in groups.into_iter().enumerate().filter(|(_, g)| !g.is_empty()) {
            for tile in acts.tiles() {
                let stream = Stream { group, next: group.as_ptr() };
                wide::few(format, stream, 1024, tile, &mut few[tile.row * 32 + g * 16..], 32);
            }
        }
        wide::gemm(format, groups, acts, &mut wide::Scratch::new(), &mut gemm);
    }
    [few, gemm]
}

fn run_narrow(format: Format, groups: [&[u8]; 2], acts: Packed) -> [Vec<f32>; 2] {
    let mut few = vec![f32::NAN; acts.rows * 32];
    let mut gemm = vec![f32::NAN; acts.rows * 32];
    let mut half = vec![f32::NAN; acts.rows * 16];
    // SAFETY: as above.
    unsafe {
        for (g, group) in groups.into_iter().enumerate().filter(|(_, g)| !g.is_empty()) {
            for tile in acts.tiles() {
                let stream = Stream { group, next: group.as_ptr() };
                narrow::few(format, stream, 0, tile, &mut few[tile.row * 32 + g * 16..], 32);
            }
            narrow::gemm(format, [group, &[]], acts, &mut narrow::Scratch::new(), &mut half);
            for (to, from) in gemm.chunks_mut(32).zip(half.chunks(16)) {
                to[g * 16..][..16].copy_from_slice(from);
            }
        }
    }
    [few, gemm]
}

fn check(isa: Isa, run: Run) {
    if !isa.available() {
        eprintln!("skipped: this CPU has no {isa}");
        return;
    }
    let (mut rng, pool) = (Rng::new(77), Pool::new(1, false));
    for id in id::Q4_0..=id::Q2_K {
        let format = format_of(id);
        let shape = shape_of(id);
        for (units, rows, n) in [(1, 16, 1), (1, 5, 2), (3, 32, 3), (2, 17, 4), (9, 32, 5), (2, 32, 33)] {
            let cols = units * format.block_len();
            let row_bytes = format.row_bytes(cols).unwrap();
            let file = rng.bytes(rows * row_bytes);
            let mut groups = vec![vec![0u8; shape.group_bytes(cols)]; rows.div_ceil(16)];
            for (g, group) in groups.iter_mut().enumerate() {
                let part = &file[g * 16 * row_bytes..((g + 1) * 16 * row_bytes).min(file.len())];
                assert!(pack::group(format, part, row_bytes, group, true));
            }
            let x: Vec<f32> = rng.uniform_vec(n * cols, -3.0, 3.0);
            let mut cache = ActCache::default();
            let source = Source { x: &x, stride: cols, rows: n, cols, first_row: 0 };
            let acts = cache.derive(&pool, Isa::Scalar, source);
            let second: &[u8] = groups.get(1).map_or(&[], Vec::as_slice);
            for (kind, y) in ["few", "gemm"].into_iter().zip(run(format, [&groups[0], second], acts)) {
                for (r, x) in x.chunks(cols).enumerate() {
                    let x = quantize_row(x);
                    for (i, row) in file.chunks(row_bytes).enumerate() {
                        let expected = dot_row(format, row, &x).unwrap();
                        let found = y[r * 32 + i];
                        assert!(
                            expected.to_bits() == found.to_bits() || expected.is_nan() && found.is_nan(),
                            "{isa} {kind} {format} {cols} columns, row {i}, activation {r} of {n}: {found}, not {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_512_bits_are_the_specification() {
    check(Isa::Avx512, run_wide);
}

#[test]
fn products_of_256_bits_are_the_specification() {
    check(Isa::AvxVnni, run_narrow);
}
