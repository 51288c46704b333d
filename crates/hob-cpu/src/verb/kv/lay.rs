//! Where one vector lies in a K part or V part, for every format. Knows bytes and codes, not what they mean.

use hob_compute::BLOCK_POSITIONS;
use hob_quant::{KV_GROUP, KvFormat};

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Side {
    K,
    V,
}

/// Calls `$f(side, format, ..)` with both as constants, so that what is inlined there has neither tests nor lengths that
/// vary.
macro_rules! by_layout {
    ($side:expr, $format:expr, $f:ident($($arg:expr),*)) => {{
        use hob_quant::KvFormat::*;
        use $crate::verb::kv::lay::Side::*;
        match ($side, $format) {
            (K, F16) => $f(K, F16, $($arg),*),
            (V, F16) => $f(V, F16, $($arg),*),
            (K, Bf16) => $f(K, Bf16, $($arg),*),
            (V, Bf16) => $f(V, Bf16, $($arg),*),
            (K, Q8) => $f(K, Q8, $($arg),*),
            (V, Q8) => $f(V, Q8, $($arg),*),
            (K, Q4) => $f(K, Q4, $($arg),*),
            (V, Q4) => $f(V, Q4, $($arg),*),
            (K, Asym4) => $f(K, Asym4, $($arg),*),
            (V, Asym4) => $f(V, Asym4, $($arg),*),
        }
    }};
}
pub(super) use by_layout;

/// A vector's place.
#[derive(Copy, Clone)]
pub struct Place {
    /// head_dim
    pub dim: usize,
    /// Position within the block.
    pub at: usize,
}

/// A packed group: scale and minimum as f16 bits, codes as bytes (nibbles above 0 for 4 bits).
pub struct Group {
    pub d: u16,
    /// Where the format has one.
    pub m: Option<u16>,
    pub codes: [u8; KV_GROUP],
}

/// Bytes of all scales of a part.
fn plane(dim: usize) -> usize {
    dim / KV_GROUP * BLOCK_POSITIONS * 2
}

/// Where the codes of a packed part begin.
#[inline(always)]
fn codes_at(format: KvFormat, dim: usize) -> usize {
    plane(dim) * if format == KvFormat::Asym4 { 2 } else { 1 }
}

/// Where the scale of group `g` is.
#[inline(always)]
fn scale_at(place: Place, g: usize) -> usize {
    2 * (g * BLOCK_POSITIONS + place.at)
}

/// Distance of neighboring dimensions' f16 or bf16 values, and where dimension 0 is.
#[inline(always)]
fn halves_at(side: Side, place: Place) -> (usize, usize) {
    match side {
        Side::K => (2 * BLOCK_POSITIONS, 2 * place.at),
        Side::V => (2, 2 * place.at * place.dim),
    }
}

/// Writes f16 or bf16 values of the dimensions from `first` on.
#[inline(always)]
pub fn put_halves(side: Side, part: &mut [u8], place: Place, first: usize, halves: &[u8]) {
    let (step, start) = halves_at(side, place);
    let to = &mut part[start + first * step..];
    if side == Side::V {
        return to[..halves.len()].copy_from_slice(halves);
    }
    for (to, half) in to.chunks_mut(step).zip(halves.as_chunks::<2>().0) {
        to[..2].copy_from_slice(half);
    }
}

/// Reads them.
#[inline(always)]
pub fn get_halves(side: Side, part: &[u8], place: Place, first: usize, halves: &mut [u8]) {
    let (step, start) = halves_at(side, place);
    let from = &part[start + first * step..];
    if side == Side::V {
        return halves.copy_from_slice(&from[..halves.len()]);
    }
    for (from, half) in from.chunks(step).zip(halves.as_chunks_mut::<2>().0) {
        half.copy_from_slice(&from[..2]);
    }
}

/// Writes group `g`.
#[inline(always)]
pub fn put_group(side: Side, format: KvFormat, part: &mut [u8], place: Place, g: usize, group: &Group) {
    let (base, at) = (codes_at(format, place.dim), scale_at(place, g));
    part[at..at + 2].copy_from_slice(&group.d.to_le_bytes());
    if let Some(m) = group.m {
        part[plane(place.dim)..][at..at + 2].copy_from_slice(&m.to_le_bytes());
    }
    let codes = &mut part[base..];
    match (side, format) {
        (Side::K, KvFormat::Q8) => {
            let to = &mut codes[(g * KV_GROUP / 2 * BLOCK_POSITIONS + place.at) * 2..];
            for (to, pair) in to.chunks_mut(2 * BLOCK_POSITIONS).zip(group.codes.as_chunks::<2>().0) {
                to[..2].copy_from_slice(pair);
            }
        }
        (Side::K, _) => {
            let to = &mut codes[(g * KV_GROUP / 8 * BLOCK_POSITIONS + place.at) * 4..];
            for (to, eight) in to.chunks_mut(4 * BLOCK_POSITIONS).zip(group.codes.as_chunks::<8>().0) {
                let eight = u64::from_le_bytes(*eight);
                to[..4].copy_from_slice(&(eight as u32 | ((eight >> 32) as u32) << 4).to_le_bytes());
            }
        }
        (Side::V, KvFormat::Q8) => {
            let to = codes[(place.at / 2 * place.dim + g * KV_GROUP) * 2..].as_chunks_mut::<2>().0;
            let shift = place.at % 2 * 8;
            for (to, &code) in to.iter_mut().zip(&group.codes) {
                let kept = u16::from_le_bytes(*to) & !(0xFF << shift);
                *to = (kept | u16::from(code) << shift).to_le_bytes();
            }
        }
        (Side::V, _) => {
            let to = codes[(place.at / 8 * place.dim + g * KV_GROUP) * 4..].as_chunks_mut::<4>().0;
            let shift = place.at % 4 * 8 + place.at % 8 / 4 * 4;
            for (to, &code) in to.iter_mut().zip(&group.codes) {
                let kept = u32::from_le_bytes(*to) & !(0xF << shift);
                *to = (kept | u32::from(code) << shift).to_le_bytes();
            }
        }
    }
}

/// Reads group `g`.
#[inline(always)]
pub fn get_group(side: Side, format: KvFormat, part: &[u8], place: Place, g: usize) -> Group {
    let (base, at) = (codes_at(format, place.dim), scale_at(place, g));
    let half = |part: &[u8]| u16::from_le_bytes([part[at], part[at + 1]]);
    let m = (format == KvFormat::Asym4).then(|| half(&part[plane(place.dim)..]));
    let mut group = Group { d: half(part), m, codes: [0; KV_GROUP] };
    let codes = &part[base..];
    match (side, format) {
        (Side::K, KvFormat::Q8) => {
            let from = &codes[(g * KV_GROUP / 2 * BLOCK_POSITIONS + place.at) * 2..];
            for (from, pair) in from.chunks(2 * BLOCK_POSITIONS).zip(group.codes.as_chunks_mut::<2>().0) {
                pair.copy_from_slice(&from[..2]);
            }
        }
        (Side::K, _) => {
            let from = &codes[(g * KV_GROUP / 8 * BLOCK_POSITIONS + place.at) * 4..];
            for (from, eight) in from.chunks(4 * BLOCK_POSITIONS).zip(group.codes.as_chunks_mut::<8>().0) {
                let word = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
                let (low, high) = (word & 0x0F0F_0F0F, word >> 4 & 0x0F0F_0F0F);
                *eight = (u64::from(low) | u64::from(high) << 32).to_le_bytes();
            }
        }
        (Side::V, KvFormat::Q8) => {
            let from = codes[(place.at / 2 * place.dim + g * KV_GROUP) * 2..].as_chunks::<2>().0;
            let shift = place.at % 2 * 8;
            for (code, &from) in group.codes.iter_mut().zip(from) {
                *code = (u16::from_le_bytes(from) >> shift) as u8;
            }
        }
        (Side::V, _) => {
            let from = codes[(place.at / 8 * place.dim + g * KV_GROUP) * 4..].as_chunks::<4>().0;
            let shift = place.at % 4 * 8 + place.at % 8 / 4 * 4;
            for (code, &from) in group.codes.iter_mut().zip(from) {
                *code = (u32::from_le_bytes(from) >> shift) as u8 & 15;
            }
        }
    }
    group
}

/// Copies one vector to the same place of another part.
pub fn copy(side: Side, format: KvFormat, from: &[u8], to: &mut [u8], place: Place) {
    if format.is_packed() {
        for g in 0..place.dim / KV_GROUP {
            put_group(side, format, to, place, g, &get_group(side, format, from, place, g));
        }
        return;
    }
    let mut halves = [0u8; 2 * KV_GROUP];
    for first in (0..place.dim).step_by(KV_GROUP) {
        let halves = &mut halves[..2 * KV_GROUP.min(place.dim - first)];
        get_halves(side, from, place, first, halves);
        put_halves(side, to, place, first, halves);
    }
}
