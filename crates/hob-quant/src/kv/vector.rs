//! The encoding of one vector: what position images hold, whatever a page looks like. It must not know pages.

use half::{bf16, f16};

use super::{KV_GROUP, KvFormat, asym4_group, q4_group, q8_group};

/// Encodes a vector of `head_dim` values, rotated before where its side is ([`KvFormat::is_rotated`]), into
/// [`KvFormat::vector_bytes`] bytes.
///
/// # Panics
/// If `format` does not fit the vector, or `out` has another length: both are the caller's arithmetic, never input.
#[inline(always)]
pub fn encode_kv(format: KvFormat, x: &[f32], out: &mut [u8]) {
    check(format, x.len(), out.len());
    let groups = x.as_chunks::<KV_GROUP>().0;
    match format {
        KvFormat::F16 => {
            x.iter().zip(out.as_chunks_mut().0).for_each(|(&v, o)| *o = f16::from_f32(v).to_le_bytes());
        }
        KvFormat::Bf16 => {
            x.iter().zip(out.as_chunks_mut().0).for_each(|(&v, o)| *o = bf16::from_f32(v).to_le_bytes());
        }
        KvFormat::Q8 => {
            for (x, out) in groups.iter().zip(out.as_chunks_mut::<34>().0) {
                let (d, codes) = q8_group(x);
                out[..2].copy_from_slice(&d.to_le_bytes());
                out[2..].iter_mut().zip(codes).for_each(|(o, code)| *o = code as u8);
            }
        }
        KvFormat::Q4 => {
            for (x, out) in groups.iter().zip(out.as_chunks_mut::<18>().0) {
                let (d, codes) = q4_group(x);
                out[..2].copy_from_slice(&d.to_le_bytes());
                nibbles(codes.map(|code| (code + 8) as u8), &mut out[2..]);
            }
        }
        KvFormat::Asym4 => {
            for (x, out) in groups.iter().zip(out.as_chunks_mut::<20>().0) {
                let (d, m, codes) = asym4_group(x);
                out[..2].copy_from_slice(&d.to_le_bytes());
                out[2..4].copy_from_slice(&m.to_le_bytes());
                nibbles(codes, &mut out[4..]);
            }
        }
    }
}

/// A group of a packed vector as it is stored: value `i` is `scale * codes[i]`, plus `minimum` for asym4.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct KvGroup {
    pub scale: f32,
    /// 0 but for asym4.
    pub minimum: f32,
    pub codes: [i8; KV_GROUP],
}

/// The groups of an encoded vector; none if its format is not packed.
pub fn kv_groups(format: KvFormat, bytes: &[u8]) -> impl Iterator<Item = KvGroup> {
    let size = if format.is_packed() { format.vector_bytes(KV_GROUP) } else { bytes.len() + 1 };
    bytes.chunks_exact(size).map(move |b| {
        let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        let mut group = KvGroup { scale: half(0), minimum: 0.0, codes: [0; KV_GROUP] };
        match format {
            KvFormat::Q8 => group.codes.iter_mut().zip(&b[2..]).for_each(|(c, &b)| *c = b as i8),
            KvFormat::Asym4 => {
                group.minimum = half(2);
                group.codes.iter_mut().zip(codes(&b[4..])).for_each(|(c, code)| *c = code as i8);
            }
            _ => group.codes.iter_mut().zip(codes(&b[2..])).for_each(|(c, code)| *c = code as i8 - 8),
        }
        group
    })
}

/// Whether a vector is one that [`encode_kv`] can have written, as far as scales go: finite, and not negative but for
/// minima. Attention relies on it.
#[inline]
pub fn scales_are_sound(format: KvFormat, bytes: &[u8]) -> bool {
    let bits = |b: &[u8], at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    let size = format.vector_bytes(KV_GROUP);
    match format {
        KvFormat::F16 | KvFormat::Bf16 => true,
        KvFormat::Q8 | KvFormat::Q4 => bytes.chunks_exact(size).all(|b| bits(b, 0) < 0x7C00),
        KvFormat::Asym4 => {
            bytes.chunks_exact(size).all(|b| bits(b, 0) < 0x7C00 && bits(b, 2) & 0x7FFF < 0x7C00)
        }
    }
}

/// The values of an encoded vector, still rotated where its side is.
///
/// # Panics
/// As [`encode_kv`].
pub fn decode_kv(format: KvFormat, bytes: &[u8], out: &mut [f32]) {
    check(format, out.len(), bytes.len());
    let pairs = bytes.as_chunks::<2>().0.iter().zip(&mut *out);
    match format {
        KvFormat::F16 => pairs.for_each(|(&b, o)| *o = f16::from_le_bytes(b).to_f32()),
        KvFormat::Bf16 => pairs.for_each(|(&b, o)| *o = bf16::from_le_bytes(b).to_f32()),
        KvFormat::Q8 | KvFormat::Q4 | KvFormat::Asym4 => {
            for (group, out) in kv_groups(format, bytes).zip(out.as_chunks_mut::<KV_GROUP>().0) {
                for (o, code) in out.iter_mut().zip(group.codes) {
                    *o = group.scale * f32::from(code) + group.minimum;
                }
            }
        }
    }
}

#[inline(always)]
fn check(format: KvFormat, head_dim: usize, bytes: usize) {
    assert!(
        format.fits(head_dim) && format.vector_bytes(head_dim) == bytes,
        "{format}: {head_dim} values in {bytes} bytes"
    );
}

/// Byte `j` of 16 gets codes `j` and `j + 16`.
#[inline(always)]
fn nibbles(codes: [u8; KV_GROUP], out: &mut [u8]) {
    let (low, high) = codes.split_at(KV_GROUP / 2);
    out.iter_mut().zip(low.iter().zip(high)).for_each(|(o, (low, high))| *o = low | high << 4);
}

/// The inverse of [`nibbles`].
fn codes(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}
