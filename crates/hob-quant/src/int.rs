//! The integer view of quantized weights: 32 at a time, small codes with integer sub-scales and float factors. Products
//! with int8 activations are specified on it. It must not know how any format packs its bits, nor activations.

use crate::Format;

/// Weights per integer block.
pub const INT_BLOCK: usize = 32;

/// 32 consecutive weights of a row; weight `k` is `d * scales[k / 16] * codes[k]` plus the minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntBlock {
    /// Signed codes, the format's offset already removed.
    pub codes: [i8; INT_BLOCK],
    /// Integer sub-scales of weights 0..16 and 16..32; 1 in formats with one scale per 32.
    pub scales: [i16; 2],
    /// The exact product of the format's float factors (and of its integer scale per 32).
    pub d: f32,
    pub minima: Minima,
}

/// What a format adds to its scaled codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Minima {
    None,
    /// One addend for all 32 weights.
    Block(f32),
    /// `m * scales[k / 16]`.
    Halves {
        m: f32,
        scales: [i16; 2],
    },
}

impl IntBlock {
    /// A block without sub-scales and minima.
    pub(crate) fn plain(d: f32, codes: [i8; INT_BLOCK]) -> Self {
        Self { codes, scales: [1; 2], d, minima: Minima::None }
    }

    /// The weights in f32, each factor rounded in turn; differs from [`crate::decode_row`] by roundings only.
    pub fn weight(&self, k: usize) -> f32 {
        let scaled = self.d * f32::from(self.scales[k / 16]) * f32::from(self.codes[k]);
        match self.minima {
            Minima::None => scaled,
            Minima::Block(m) => scaled + m,
            Minima::Halves { m, scales } => scaled + m * f32::from(scales[k / 16]),
        }
    }
}

/// The integer form of the weights `32 * block..32 * block + 32` of a row.
///
/// `row` holds whole blocks of the format; `None` where it ends before these weights, or where the format has no
/// integer form ([`Format::has_int_blocks`]).
pub fn int_block(format: Format, row: &[u8], block: usize) -> Option<IntBlock> {
    let decode = format.spec().int?;
    let per_block = format.block_len() / INT_BLOCK;
    let start = (block / per_block).checked_mul(format.block_bytes())?;
    let bytes = row.get(start..start.checked_add(format.block_bytes())?)?;
    Some(decode(bytes, block % per_block))
}

/// 16 bytes of nibbles: low ones are codes 0..16, high ones 16..32; each through `code`.
pub(crate) fn nibbles(packed: &[u8], code: impl Fn(u8) -> i8) -> [i8; INT_BLOCK] {
    let mut codes = [0; INT_BLOCK];
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), both) in low.iter_mut().zip(high).zip(packed) {
        (*low, *high) = (code(both & 15), code(both >> 4));
    }
    codes
}
