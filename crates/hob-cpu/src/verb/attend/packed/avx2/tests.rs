//! What only these kernels could break: sums of 16 bits, with operands whose products are the largest there are, in pairs
//! of rows and in single ones, unpacked and not, and in one group more than is weighted at once.

use half::f16;
use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS};
use hob_quant::{KV_GROUP, KvFormat};
use hob_testkit::guard::{Edge, GuardedBuf};

use super::super::{Kernels, ScoreArgs, WeighArgs, dims_per_word, part_bytes, portable};
use crate::isa::Isa;

/// A part whose scales are 1 and whose codes are all `code`.
fn part(format: KvFormat, dim: usize, code: u8) -> Vec<u8> {
    let mut part = vec![code; part_bytes(format, dim)];
    let tables = if format == KvFormat::Asym4 { 2 } else { 1 };
    let scales = &mut part[..tables * dim / KV_GROUP * BLOCK_POSITIONS * 2];
    scales.as_chunks_mut().0.iter_mut().for_each(|d| *d = f16::ONE.to_le_bytes());
    part
}

/// Words of 32 bits, of whatever type.
fn words<T>(buf: &GuardedBuf) -> &[T] {
    assert_eq!(size_of::<T>(), 4);
    // SAFETY: the buffer is large and aligned enough for floats, whose bits are valid integers.
    unsafe { std::slice::from_raw_parts(buf.as_f32().as_ptr().cast(), buf.as_f32().len()) }
}

/// Operands of scores: K, and the queries' words, scales and sums.
struct Operands([GuardedBuf; 4], Edge);

impl Operands {
    fn new(k: &[u8], queries: &[Vec<u32>; 3], edge: Edge) -> Operands {
        let [words, scales, sums] = queries.each_ref().map(|words| {
            GuardedBuf::from_bytes(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>(), edge)
        });
        Operands([GuardedBuf::from_bytes(k, edge), words, scales, sums], edge)
    }
}

fn scores(kernels: &Kernels, format: KvFormat, dim: usize, rows: usize, operands: &Operands) -> Vec<u32> {
    let Operands([k, words_of, scales, sums], edge) = operands;
    let edge = *edge;
    let mut out = GuardedBuf::new(4 * ((rows - 1) * PAGE_POSITIONS + BLOCK_POSITIONS), edge);
    out.as_mut_f32().fill(7.0);
    let mut args = ScoreArgs {
        k: k.as_bytes(),
        head_dim: dim,
        rows,
        words: words(words_of),
        scales: scales.as_f32(),
        sums: words(sums),
        factor: 0.3,
        out: out.as_mut_f32(),
        ahead: &[],
    };
    // SAFETY: the caller chose kernels that this CPU can run.
    unsafe { kernels.scores(format, &mut args) };
    out.as_f32().iter().map(|x| x.to_bits()).collect()
}

/// Words, scales and sums of queries whose codes are all `code`.
fn queries(format: KvFormat, dim: usize, rows: usize, code: i16) -> [Vec<u32>; 3] {
    let groups = rows * dim / KV_GROUP;
    let word = match dims_per_word(format) {
        2 => u32::from(code as u16) * 0x0001_0001,
        _ => u32::from(code as u8) * 0x0101_0101,
    };
    let sum = i32::from(code) * KV_GROUP as i32;
    [
        vec![word; rows * dim / dims_per_word(format)],
        vec![0.01f32.to_bits(); groups],
        vec![sum as u32; groups],
    ]
}

/// `acc` of all rows after V was added to what was there.
fn weighed(kernels: &Kernels, format: KvFormat, dim: usize, v: &[u8], p: &[f32], edge: Edge) -> Vec<u32> {
    let rows = (p.len() - BLOCK_POSITIONS) / PAGE_POSITIONS + 1;
    let (v, p) = (GuardedBuf::from_bytes(v, edge), GuardedBuf::from_f32(p, edge));
    let before: Vec<f32> = (0..rows * dim).map(|i| i as f32).collect();
    let mut acc = GuardedBuf::from_f32(&before, edge);
    let (head_dim, v, p) = (dim, v.as_bytes(), p.as_f32());
    let mut args = WeighArgs { v, head_dim, rows, p, acc: acc.as_mut_f32(), ahead: &[] };
    // SAFETY: the caller chose kernels that this CPU can run.
    unsafe { kernels.weigh(format, &mut args) };
    acc.as_f32().iter().map(|x| x.to_bits()).collect()
}

/// Every format, width and number of rows, and the extremes of its codes.
fn each(test: impl Fn(&Kernels, KvFormat, (usize, usize), u8)) {
    if !Isa::Avx2.available() {
        return eprintln!("skipped: no avx2");
    }
    for format in [KvFormat::Q8, KvFormat::Q4, KvFormat::Asym4] {
        for (dim, rows) in [64, 160].into_iter().flat_map(|dim| [1, 2, 3, 4, 5].map(|rows| (dim, rows))) {
            for code in if format == KvFormat::Q8 { [0x7F, 0x81] } else { [0x00, 0xFF] } {
                test(&super::AVX2, format, (dim, rows), code);
            }
        }
    }
}

#[test]
fn the_largest_products_of_scores_do_not_overflow() {
    each(|kernels, format, (dim, rows), code| {
        let most = if format == KvFormat::Q8 { 32767 } else { 127 };
        for q in [most, -most] {
            let queries = queries(format, dim, rows, q);
            let operands = Operands::new(&part(format, dim, code), &queries, Edge::End);
            let expected = scores(&portable::BASE, format, dim, rows, &operands);
            let found = scores(kernels, format, dim, rows, &operands);
            assert!(found == expected, "{format}, {rows} rows of {dim}, {code} times {q}");
        }
    });
}

#[test]
fn the_largest_weights_times_the_largest_codes_do_not_overflow() {
    each(|kernels, format, (dim, rows), code| {
        let (v, p) = (part(format, dim, code), vec![1.0; (rows - 1) * PAGE_POSITIONS + BLOCK_POSITIONS]);
        let expected = weighed(&portable::BASE, format, dim, &v, &p, Edge::End);
        let found = weighed(kernels, format, dim, &v, &p, Edge::End);
        assert!(found == expected, "{format}, {rows} rows of {dim}, {code}");
    });
}
