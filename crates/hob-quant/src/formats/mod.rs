//! One file per format (small relatives share one) and the few helpers they all need. Each decoder and encoder takes
//! whole blocks only; `row.rs` has checked the lengths. Nothing here knows ids or names; those stand in the registry.

pub(crate) mod fp4;
pub mod grids;
pub(crate) mod iq1;
pub(crate) mod iq2;
pub(crate) mod iq3;
pub(crate) mod iq4;
pub(crate) mod legacy;
pub(crate) mod low_bit;
pub(crate) mod plain;
pub(crate) mod q2k;
pub(crate) mod q3k;
pub(crate) mod q4k;
pub(crate) mod q5k;
pub(crate) mod q6k;
pub(crate) mod q8k;
mod search;
mod superblock;
pub(crate) mod tables;
pub(crate) mod ternary;

/// Weights in a superblock of the k-, i- and t-quants.
pub(crate) const QK: usize = 256;

/// An encoder's refusal: the index of the first block it cannot represent.
pub(crate) struct BadBlock(pub usize);

/// Calls `decode` for every block of `B` bytes and its `L` weights; the constant sizes let the compiler drop every
/// bounds check in the block bodies.
pub(super) fn each_block<const B: usize, const L: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; L]),
) {
    for (block, weights) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<L>().0) {
        decode(block, weights);
    }
}

/// Calls `encode` for every block of `L` weights and its `B` bytes; `encode` says `false` where the block's weights
/// cannot be represented.
pub(super) fn each_block_out<const L: usize, const B: usize>(
    x: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; L], &mut [u8; B]) -> bool,
) -> Result<(), BadBlock> {
    for (i, (weights, block)) in x.as_chunks::<L>().0.iter().zip(out.as_chunks_mut::<B>().0).enumerate() {
        if !(weights.iter().all(|v| v.is_finite()) && encode(weights, block)) {
            return Err(BadBlock(i));
        }
    }
    Ok(())
}

/// The little-endian `u16` at byte `at`.
pub(super) fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// The little-endian `u32` at byte `at`.
pub(super) fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The f16 scale at byte `at`.
pub(super) fn f16_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16_at(block, at))
}

/// IEEE binary16 bits to f32, exact for every finite value and infinity; a NaN stays a NaN.
///
/// Branch-free so that row loops vectorize: normals are rebased by a power of two, subnormals are made by a magic
/// subtraction, and neither path touches an f32 subnormal (so a flush-to-zero mode cannot change the result).
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    let shifted = u32::from(half) << 16;
    let sign = shifted & 0x8000_0000;
    let twice = shifted << 1; // the sign has left at the top
    let normal = f32::from_bits((twice >> 4) + (0xE0 << 23)) * f32::from_bits(0x0780_0000); // * 2^-112
    let subnormal = f32::from_bits((twice >> 17) | (126 << 23)) - 0.5;
    let magnitude = if twice < (1 << 27) { subnormal } else { normal };
    f32::from_bits(sign | magnitude.to_bits())
}

/// Reinterprets a byte as the signed byte that it stores.
pub(super) const fn signed(byte: u8) -> i8 {
    i8::from_le_bytes([byte])
}

#[cfg(test)]
mod tests {
    use super::f16_to_f32;

    #[test]
    fn f16_to_f32_agrees_with_half_on_every_bit_pattern() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            let found = f16_to_f32(bits);
            if expected.is_nan() {
                assert!(found.is_nan(), "{bits:#06x} must be NaN, found {found}");
            } else {
                assert_eq!(found.to_bits(), expected.to_bits(), "{bits:#06x}");
            }
        }
    }
}
