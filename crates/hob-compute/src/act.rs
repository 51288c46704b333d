//! The int8 form of an activation row: the specification all kernels share.
//!
//! A row is cut into blocks of 32. Each block has a scale `d = amax / 127` (f32) and codes
//! `q = round_ties_even(x * (127 / amax))`; an all-zero block has `d = 0` and zero codes.

/// Values per quantised activation block.
pub const BLOCK: usize = 32;

/// Magnitudes at most this are zero.
pub const TINY: f32 = 1e-30;

/// One quantised block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActBlock {
    pub d: f32,
    /// Sum of the codes.
    pub sum: i32,
    pub q: [i8; BLOCK],
}

/// Quantises one block of at most 32 values; missing values are zeros.
///
/// Codes lie in -127..=127. A block whose largest magnitude is at most [`TINY`] is all zero: its reciprocal would
/// overflow. A block with a value that is not finite has a NaN scale and zero codes, so that the damage shows.
pub fn quantize_block(x: &[f32]) -> ActBlock {
    if x.iter().any(|v| !v.is_finite()) {
        return ActBlock { d: f32::NAN, sum: 0, q: [0; BLOCK] };
    }
    let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let (d, id) = if amax > TINY { (amax / 127.0, 127.0 / amax) } else { (0.0, 0.0) };
    let mut q = [0i8; BLOCK];
    for (c, v) in q.iter_mut().zip(x) {
        *c = (v * id).round_ties_even() as i8;
    }
    ActBlock { d, sum: q.iter().map(|&c| i32::from(c)).sum(), q }
}

/// Quantises a row; the last block is padded with zeros.
pub fn quantize_row(x: &[f32]) -> Vec<ActBlock> {
    x.chunks(BLOCK).map(quantize_block).collect()
}

/// Formats whose products run on int8 activations (outside exact mode).
pub fn uses_int8(format: hob_quant::Format) -> bool {
    use hob_quant::Format;
    matches!(format, Format::Q4_0 | Format::Q4_1 | Format::Q8_0)
}

/// One weight row times one quantised activation row: the specification of every int8 kernel.
///
/// Per block of 32, with `idot` the exact integer dot of the codes: `acc = fma(idot, d_w * d_x, acc)`; Q4_0 subtracts
/// `8 * sum` from `idot` first; Q4_1 then adds the minimum, `acc = fma(m_w, d_x * sum, acc)`. Blocks ascend.
/// `None` when the format has no int8 form or the lengths disagree.
pub fn dot_row(format: hob_quant::Format, row: &[u8], x: &[ActBlock]) -> Option<f32> {
    continue_row(format, row, x, 0.0)
}

/// [`dot_row`] over a further part of a row, continuing its accumulator.
pub fn continue_row(format: hob_quant::Format, row: &[u8], x: &[ActBlock], acc: f32) -> Option<f32> {
    use hob_quant::Format;
    if !uses_int8(format) || row.len() != x.len() * format.block_bytes() {
        return None;
    }
    let f16_at = |b: &[u8], i: usize| half::f16::from_bits(u16::from_le_bytes([b[i], b[i + 1]])).to_f32();
    let nibbles = |codes: &[u8], x: &ActBlock| -> i32 {
        codes
            .iter()
            .enumerate()
            .map(|(i, &b)| i32::from(b & 15) * i32::from(x.q[i]) + i32::from(b >> 4) * i32::from(x.q[i + 16]))
            .sum()
    };
    let mut acc = acc;
    for (b, x) in row.chunks_exact(format.block_bytes()).zip(x) {
        let d = f16_at(b, 0) * x.d;
        acc = match format {
            Format::Q4_0 => ((nibbles(&b[2..18], x) - 8 * x.sum) as f32).mul_add(d, acc),
            Format::Q4_1 => {
                let acc = (nibbles(&b[4..20], x) as f32).mul_add(d, acc);
                f16_at(b, 2).mul_add(x.d * x.sum as f32, acc)
            }
            _ => {
                let idot: i32 =
                    b[2..34].iter().zip(&x.q).map(|(&w, &q)| i32::from(w as i8) * i32::from(q)).sum();
                (idot as f32).mul_add(d, acc)
            }
        };
    }
    Some(acc)
}
