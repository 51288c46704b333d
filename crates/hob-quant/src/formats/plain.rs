//! Unquantized types: one weight per block. Integers and F64 are rounded to the nearest f32, as tables of positions
//! and the like are small. It must not know any scaled format.

use half::f16;

use super::{BadBlock, f16_to_f32, signed};

macro_rules! decode_number {
    ($name:ident, $number:ty) => {
        pub(crate) fn $name(bytes: &[u8], out: &mut [f32]) {
            const B: usize = size_of::<$number>();
            for (b, o) in bytes.as_chunks::<B>().0.iter().zip(out) {
                *o = <$number>::from_le_bytes(*b) as f32;
            }
        }
    };
}

decode_number!(decode_f32, f32);
decode_number!(decode_f64, f64);
decode_number!(decode_i16, i16);
decode_number!(decode_i32, i32);
decode_number!(decode_i64, i64);

pub(crate) fn decode_i8(bytes: &[u8], out: &mut [f32]) {
    for (&b, o) in bytes.iter().zip(out) {
        *o = f32::from(signed(b));
    }
}

pub(crate) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    for (b, o) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *o = f16_to_f32(u16::from_le_bytes(*b));
    }
}

pub(crate) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (b, o) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

pub(crate) fn encode_f32(x: &[f32], out: &mut [u8]) -> Result<(), BadBlock> {
    for (v, o) in x.iter().zip(out.as_chunks_mut::<4>().0) {
        *o = v.to_le_bytes();
    }
    Ok(())
}

/// Rounds to nearest even; what is too large becomes infinity, a NaN stays a NaN.
pub(crate) fn encode_f16(x: &[f32], out: &mut [u8]) -> Result<(), BadBlock> {
    for (&v, o) in x.iter().zip(out.as_chunks_mut::<2>().0) {
        *o = f16::from_f32(v).to_le_bytes();
    }
    Ok(())
}

/// Rounds to nearest even; a NaN stays a (quiet) NaN.
pub(crate) fn encode_bf16(x: &[f32], out: &mut [u8]) -> Result<(), BadBlock> {
    for (&v, o) in x.iter().zip(out.as_chunks_mut::<2>().0) {
        let bits = v.to_bits();
        // Adding just below half a step, plus one where the kept part is odd, carries exactly when it should.
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        *o = (if v.is_nan() { quiet } else { rounded } as u16).to_le_bytes();
    }
    Ok(())
}

/// Refuses values that are, or would become, no finite number.
fn checked(
    x: &[f32],
    out: &mut [u8],
    encode: fn(&[f32], &mut [u8]) -> Result<(), BadBlock>,
    most: f32,
) -> Result<(), BadBlock> {
    match x.iter().position(|v| !v.is_finite() || v.abs() > most) {
        Some(at) => Err(BadBlock(at)),
        None => encode(x, out),
    }
}

pub(crate) fn quantize_f32(x: &[f32], _: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    checked(x, out, encode_f32, f32::MAX)
}

pub(crate) fn quantize_f16(x: &[f32], _: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    checked(x, out, encode_f16, 65_519.0) // larger ones round to infinity
}

pub(crate) fn quantize_bf16(x: &[f32], _: Option<&[f32]>, out: &mut [u8]) -> Result<(), BadBlock> {
    checked(x, out, encode_bf16, f32::from_bits(0x7F7F_7FFF))
}
