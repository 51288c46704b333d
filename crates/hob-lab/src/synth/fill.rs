//! Random weights of any block format, as bytes: block contents are random, scale fields are set so that the decoded
//! weights have a wanted deviation. Owns where each format keeps its scales; it must not know models.

use hob_quant::{Format, decode_row, encode_row};

use super::SynthError;

/// Random-signed, slightly varied copies of each scale field; a power of two.
const VARIANTS: usize = 32;
/// Entries of the value table of the unquantised formats; a power of two.
const VALUES: usize = 4096;
/// Weights per generated unit of an unquantised format.
const PLAIN_UNIT: usize = 64;

/// What a scale field holds, relative to the block's scale `d`.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// An f16 of `d * factor` at this byte.
    Half(usize, f32),
    /// A power of two as an 8-bit exponent (E8M0) at this byte.
    Exponent(usize),
    /// An f16 of `d`, four bits each in the top of four `u16` from this byte on.
    Spread(usize),
}

/// Scale fields of a format, after the block structs of ggml's `ggml-common.h`. Factors of minima are chosen so that the
/// weights' mean is zero. `None`: not a format that can be synthesised.
fn fields(format: Format) -> Option<&'static [Field]> {
    use Field::{Exponent, Half, Spread};
    Some(match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::IQ4NL | Format::IQ4XS => &[Half(0, 1.0)],
        Format::IQ2XXS | Format::IQ2XS | Format::IQ2S | Format::IQ3XXS | Format::IQ3S | Format::IQ1S => {
            &[Half(0, 1.0)]
        }
        Format::IQ1M => &[Spread(48)],
        Format::TQ1_0 => &[Half(52, 1.0)],
        Format::TQ2_0 => &[Half(64, 1.0)],
        Format::Q4_1 => &[Half(0, 1.0), Half(2, -7.5)],
        Format::Q5_1 => &[Half(0, 1.0), Half(2, -15.5)],
        Format::Q2K => &[Half(80, 1.0), Half(82, 1.5)],
        Format::Q3K => &[Half(108, 1.0)],
        Format::Q4K => &[Half(0, 1.0), Half(2, 7.5)],
        Format::Q5K => &[Half(0, 1.0), Half(2, 15.5)],
        Format::Q6K => &[Half(208, 1.0)],
        Format::MXFP4 => &[Exponent(0)],
        _ => return None,
    })
}

fn is_plain(format: Format) -> bool {
    matches!(format, Format::F32 | Format::F16 | Format::BF16)
}

/// Formats that can be synthesised.
pub fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|&f| is_plain(f) || fields(f).is_some())
}

/// Fills bytes of tensors of one format and deviation. Bytes depend on (seed, offset) alone, so any part can be asked
/// for in any order.
#[derive(Clone, Debug)]
pub struct Filler {
    /// Bytes per generated unit: a block, or 64 plain weights.
    unit_bytes: usize,
    /// Every scale field.
    patches: Vec<Patch>,
    /// Encoded values of a plain format.
    values: Vec<u8>,
    /// Bytes per plain value; 0 for block formats.
    width: usize,
}

/// Bytes of a scale field, for each variant.
#[derive(Clone, Debug)]
struct Patch {
    at: usize,
    width: usize,
    /// `VARIANTS * width`
    bytes: Vec<u8>,
    /// Bits of each byte that stay as they are.
    keep: u8,
}

impl Filler {
    /// A filler for weights with standard deviation `deviation`.
    ///
    /// # Errors
    /// A format whose scale fields are not known here, with those that are.
    pub fn new(format: Format, deviation: f32) -> Result<Self, SynthError> {
        if is_plain(format) {
            return Ok(Self::plain(format, deviation));
        }
        let fields = fields(format).ok_or_else(|| SynthError::format(format.name()))?;
        let unit_bytes = format.block_bytes();
        let unit = Self { unit_bytes, patches: patches(fields, &[1.0]), values: Vec::new(), width: 0 };
        let scale = deviation / unit.measured_deviation(format);
        let variants: Vec<f32> = (0..VARIANTS)
            .map(|i| {
                // Magnitudes from 0.75 to 1.25 of the scale, half of them negative.
                let spread = 0.75 + 0.5 * (i / 2) as f32 / (VARIANTS / 2 - 1) as f32;
                if i % 2 == 0 { scale * spread } else { -scale * spread }
            })
            .collect();
        // The mean square of those magnitudes is not exactly 1.
        let correction = (variants.iter().map(|v| (v / scale).powi(2)).sum::<f32>() / VARIANTS as f32).sqrt();
        let variants: Vec<f32> = variants.iter().map(|v| v / correction).collect();
        Ok(Self { patches: patches(fields, &variants), ..unit })
    }

    fn plain(format: Format, deviation: f32) -> Self {
        // Uniform values of the wanted deviation, symmetric about zero.
        let bound = deviation * 3f32.sqrt();
        let grid: Vec<f32> =
            (0..VALUES).map(|i| bound * ((2 * i + 1) as f32 / VALUES as f32 - 1.0)).collect();
        let width = format.block_bytes();
        let mut values = vec![0; VALUES * width];
        let encoded = encode_row(format, &grid, &mut values);
        debug_assert!(encoded.is_ok(), "plain formats take every value");
        Self { unit_bytes: PLAIN_UNIT * width, patches: Vec::new(), values, width }
    }

    /// Root mean square of decoded random blocks.
    fn measured_deviation(&self, format: Format) -> f32 {
        const BLOCKS: usize = 512;
        let mut bytes = vec![0; BLOCKS * self.unit_bytes];
        self.fill(0x5eed, 0, &mut bytes);
        let mut weights = vec![0f32; BLOCKS * format.block_len()];
        if decode_row(format, &bytes, &mut weights).is_err() {
            return 1.0;
        }
        let square: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
        ((square / weights.len() as f64).sqrt() as f32).max(f32::MIN_POSITIVE)
    }

    /// Writes the bytes from `offset` on of the tensor `seed` names.
    pub fn fill(&self, seed: u64, offset: u64, buf: &mut [u8]) {
        let unit = self.unit_bytes as u64;
        let mut index = offset / unit;
        let mut skip = (offset % unit) as usize;
        let mut rest = buf;
        let mut scratch = [0u8; 512];
        while !rest.is_empty() {
            let take = (self.unit_bytes - skip).min(rest.len());
            let (now, later) = rest.split_at_mut(take);
            if take == self.unit_bytes {
                self.unit(seed, index, now);
            } else {
                let whole = &mut scratch[..self.unit_bytes];
                self.unit(seed, index, whole);
                now.copy_from_slice(&whole[skip..skip + take]);
            }
            (rest, skip, index) = (later, 0, index + 1);
        }
    }

    /// One whole unit.
    fn unit(&self, seed: u64, index: u64, out: &mut [u8]) {
        let mut state = mix(seed ^ mix(index));
        let mut word = move || {
            state = state.wrapping_add(STEP);
            mix(state)
        };
        if self.width > 0 {
            return self.plain_unit(&mut word, out);
        }
        let mut chunks = out.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&word().to_le_bytes());
        }
        let last = word().to_le_bytes();
        let tail = chunks.into_remainder();
        let n = tail.len();
        tail.copy_from_slice(&last[..n]);
        // The tail took at most 7 bytes of `last`; the eighth chooses the variant.
        let variant = usize::from(last[7]);
        for Patch { at, width, bytes, keep } in &self.patches {
            let v = variant % (bytes.len() / width) * width;
            for (out, byte) in out[*at..at + width].iter_mut().zip(&bytes[v..v + width]) {
                *out = *out & keep | byte;
            }
        }
    }

    fn plain_unit(&self, word: &mut impl FnMut() -> u64, out: &mut [u8]) {
        let mut bits = 0;
        for (i, value) in out.chunks_exact_mut(self.width).enumerate() {
            if i % 5 == 0 {
                bits = word();
            }
            let at = (bits as usize % VALUES) * self.width;
            value.copy_from_slice(&self.values[at..at + self.width]);
            bits >>= 12;
        }
    }
}

/// SplitMix64's increment and finalizer (Steele, Lea, Flood 2014).
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

pub(crate) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn patches(fields: &[Field], scales: &[f32]) -> Vec<Patch> {
    let whole = |at, width, bytes| Patch { at, width, bytes, keep: 0 };
    let mut patches = Vec::new();
    for field in fields {
        match *field {
            Field::Half(at, factor) => patches.push(whole(at, 2, halves(scales, factor))),
            Field::Exponent(at) => {
                let exponent = |d: f32| (127.0 + d.abs().log2()).round().clamp(1.0, 254.0) as u8;
                patches.push(whole(at, 1, scales.iter().map(|&d| exponent(d)).collect()));
            }
            Field::Spread(at) => {
                let halves = halves(scales, 1.0);
                let halves = halves.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b));
                patches.extend((0..4).map(|i| Patch {
                    at: at + 2 * i + 1,
                    width: 1,
                    bytes: halves.clone().map(|half| ((half >> (4 * i) & 15) << 4) as u8).collect(),
                    keep: 15,
                }));
            }
        }
    }
    patches
}

/// f16 of each scale times `factor`, two bytes each.
fn halves(scales: &[f32], factor: f32) -> Vec<u8> {
    let values: Vec<f32> = scales.iter().map(|d| d * factor).collect();
    let mut bytes = vec![0; values.len() * 2];
    let encoded = encode_row(Format::F16, &values, &mut bytes);
    debug_assert!(encoded.is_ok(), "f16 takes every value");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_the_wanted_deviation_and_no_mean() {
        for format in formats() {
            for deviation in [0.8 / 64f32.sqrt(), 0.8 / 28_672f32.sqrt()] {
                let filler = Filler::new(format, deviation).expect("format");
                let n = 1 << 18;
                let mut bytes = vec![0; format.row_bytes(n).expect("blocks")];
                filler.fill(7, 0, &mut bytes);
                let mut w = vec![0f32; n];
                decode_row(format, &bytes, &mut w).expect("decode");
                assert!(w.iter().all(|v| v.is_finite()), "{format}");
                let mean = w.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
                let square = w.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n as f64;
                let found = square.sqrt() / f64::from(deviation);
                // An exponent of two can only be met within sqrt(2).
                let (low, high) = if format == Format::MXFP4 { (0.6, 1.5) } else { (0.95, 1.05) };
                assert!(found > low && found < high, "{format}: deviation {found} of the wanted");
                assert!(mean.abs() < 0.03 * f64::from(deviation), "{format}: mean {mean}");
            }
        }
    }

    #[test]
    fn any_part_is_the_same_bytes() {
        for format in [Format::Q4_0, Format::Q4K, Format::F16, Format::F32, Format::Q6K] {
            let filler = Filler::new(format, 0.1).expect("format");
            let mut whole = vec![0; 5000];
            filler.fill(3, 0, &mut whole);
            for (offset, len) in [(0, 1), (1, 17), (17, 2), (18, 1000), (209, 211), (4999, 1), (100, 4900)] {
                let mut part = vec![0; len];
                filler.fill(3, offset as u64, &mut part);
                assert_eq!(part, whole[offset..offset + len], "{format} {offset}+{len}");
            }
        }
    }

    #[test]
    fn seeds_and_blocks_differ() {
        let filler = Filler::new(Format::Q8_0, 0.1).expect("format");
        let part = |seed, offset| {
            let mut b = vec![0; 34];
            filler.fill(seed, offset, &mut b);
            b
        };
        assert_ne!(part(1, 0), part(2, 0));
        assert_ne!(part(1, 0), part(1, 34));
        assert_eq!(part(1, 34), part(1, 34));
    }

    #[test]
    fn an_unknown_format_names_the_known_ones() {
        let error = Filler::new(Format::I32, 0.1).expect_err("not weights").to_string();
        assert!(error.contains("I32") && error.contains("q4_0") && error.contains("bf16"), "{error}");
    }
}
