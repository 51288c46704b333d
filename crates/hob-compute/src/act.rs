//! The int8 form of an activation row: the specification all kernels share.
//!
//! A row is cut into blocks of 32. Each block has a scale `d = amax / 127` (f32) and codes
//! `q = round_ties_even(x * (127 / amax))`; an all-zero block has `d = 0` and zero codes.

use hob_quant::{Format, IntBlock, Minima, int_block};

/// Values per quantised activation block.
pub const BLOCK: usize = 32;

/// Magnitudes at most this are zero.
pub const TINY: f32 = 1e-30;

/// One quantised block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActBlock {
    pub d: f32,
    /// Sums of the codes 0..16 and 16..32.
    pub sums: [i16; 2],
    pub q: [i8; BLOCK],
}

impl ActBlock {
    /// Sum of all codes.
    pub fn sum(&self) -> i32 {
        i32::from(self.sums[0]) + i32::from(self.sums[1])
    }
}

/// Quantises one block of at most 32 values; missing values are zeros.
///
/// Codes lie in -127..=127. A block whose largest magnitude is at most [`TINY`] is all zero: its reciprocal would
/// overflow. A block with a value that is not finite has a NaN scale and zero codes, so that the damage shows.
pub fn quantize_block(x: &[f32]) -> ActBlock {
    if x.iter().any(|v| !v.is_finite()) {
        return ActBlock { d: f32::NAN, sums: [0; 2], q: [0; BLOCK] };
    }
    let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let (d, id) = if amax > TINY { (amax / 127.0, 127.0 / amax) } else { (0.0, 0.0) };
    let mut q = [0i8; BLOCK];
    for (c, v) in q.iter_mut().zip(x) {
        *c = (v * id).round_ties_even() as i8;
    }
    let sums = [0, 16].map(|at| q[at..at + 16].iter().map(|&c| i16::from(c)).sum());
    ActBlock { d, sums, q }
}

/// Quantises a row; the last block is padded with zeros.
pub fn quantize_row(x: &[f32]) -> Vec<ActBlock> {
    x.chunks(BLOCK).map(quantize_block).collect()
}

/// Formats whose products run on int8 activations (outside exact mode): those with an integer form of weights.
pub fn uses_int8(format: Format) -> bool {
    format.has_int_blocks()
}

/// One weight row times one quantised activation row: the specification of every int8 kernel.
///
/// Weights are taken as [`hob_quant::IntBlock`]s. Per block of 32, ascending, with `dot[h]` the exact dot of the codes in
/// half h and `i = scales[0] * dot[0] + scales[1] * dot[1]` (exact): `acc = fma(i, d_w * d_x, acc)`. Then the minima: per
/// 32, `acc = fma(m, d_x * (sums[0] + sums[1]), acc)`; per 16, with the exact `j = scales[0] * sums[0] + scales[1] *
/// sums[1]`, `acc = fma(j, m * d_x, acc)`. Products of two floats are rounded once; integers become f32 once.
/// `None` when the format has no int8 form or the lengths disagree.
pub fn dot_row(format: Format, row: &[u8], x: &[ActBlock]) -> Option<f32> {
    continue_row(format, row, x, 0.0)
}

/// [`dot_row`] over a further part of a row, continuing its accumulator.
pub fn continue_row(format: Format, row: &[u8], x: &[ActBlock], acc: f32) -> Option<f32> {
    if !uses_int8(format) || format.row_bytes(x.len() * BLOCK) != Some(row.len()) {
        return None;
    }
    x.iter().enumerate().try_fold(acc, |acc, (b, x)| Some(add_block(&int_block(format, row, b)?, x, acc)))
}

/// `acc` plus the product of one block.
pub fn add_block(w: &IntBlock, x: &ActBlock, acc: f32) -> f32 {
    let dot = |half: usize| -> i32 {
        let range = 16 * half..16 * half + 16;
        w.codes[range.clone()].iter().zip(&x.q[range]).map(|(&w, &q)| i32::from(w) * i32::from(q)).sum()
    };
    let scaled = |scales: [i16; 2], values: [i32; 2]| -> i32 {
        i32::from(scales[0]) * values[0] + i32::from(scales[1]) * values[1]
    };
    let i = scaled(w.scales, [dot(0), dot(1)]);
    let acc = (i as f32).mul_add(w.d * x.d, acc);
    match w.minima {
        Minima::None => acc,
        Minima::Block(m) => m.mul_add(x.d * x.sum() as f32, acc),
        Minima::Halves { m, scales } => (scaled(scales, x.sums.map(i32::from)) as f32).mul_add(m * x.d, acc),
    }
}
