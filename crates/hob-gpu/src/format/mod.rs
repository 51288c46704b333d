//! Weights as the kernels read them: every block format of the file taken apart into planes, row after row, and the WGSL
//! that puts 32 weights together again. It must not know verbs, nor where rows come from.
//!
//! A packed row is a few planes one after the other, each padded to 16 bytes. A plane has `pieces` of a few bytes for
//! every block of 32 weights (or superblock of 256), `[pieces][blocks]`: neighbouring lanes, each with its own block,
//! read neighbouring pieces. Codes come first, scales behind them. Bits stay as many as in the file, but for Q3_K (2 %
//! more). Formats without planes of their own are decoded to f16, clamped to finite values, when they are loaded.

mod bits;
mod pack;

use hob_quant::Format;

use crate::template::Template;

pub(crate) use pack::pack_rows;

/// What a plane has an entry for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Per {
    /// 32 weights
    Block,
    /// 256 weights
    Super,
}

/// `[pieces][blocks]` entries of `bytes`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Plane {
    per: Per,
    bytes: usize,
    pieces: usize,
}

const fn per_block(bytes: usize, pieces: usize) -> Plane {
    Plane { per: Per::Block, bytes, pieces }
}

const fn per_super(bytes: usize) -> Plane {
    Plane { per: Per::Super, bytes, pieces: 1 }
}

/// Codes: 4 bits (low nibbles are weights 0..16), 2 bits (piece h has half h; weight `16h + 4j + i` in bit pair j of
/// byte i), 1 bit (weight `4j + i` in bit j of byte i), 8 bits (piece h has half h).
const FOUR: Plane = per_block(16, 1);
const TWO: Plane = per_block(4, 2);
const ONE: Plane = per_block(4, 1);
const EIGHT: Plane = per_block(16, 2);

/// How a format lies on the device.
pub(super) struct Packing {
    planes: &'static [Plane],
    /// Names of the flags of `unpack.wgsl`: of the codes, then of the scales.
    flags: &'static [&'static str],
    /// What is taken from the stored codes.
    offset: i32,
    /// Where the bits of plane `ONE` belong in a code.
    shift: u32,
}

const fn packing(planes: &'static [Plane], flags: &'static [&'static str], offset: i32) -> Packing {
    Packing { planes, flags, offset, shift: 4 }
}

/// The flags that exist.
const FLAGS: [&str; 18] = [
    "FOUR", "TWO", "HIGH_TWO", "ONE", "EIGHT", "LEVELS", "FP4", "HALF", "PAIR", "Q2K", "Q3K", "Q4K", "Q6K",
    "IQ4XS", "E8M0", "F16", "BF16", "F32",
];

/// The planes of a format that has some.
pub(super) fn packing_of(format: Format) -> Option<Packing> {
    const BYTE: Plane = per_block(1, 1);
    const SCALE: Plane = per_block(2, 1);
    const BOTH: Plane = per_block(4, 1);
    const WIDE: Plane = per_super(16);
    const NARROW: [Plane; 3] = [per_super(2), per_super(4), per_super(8)];
    const HALVES: Plane = per_block(64, 1);
    const FLOATS: Plane = per_block(128, 1);
    Some(match format {
        Format::Q4_0 => packing(&[FOUR, SCALE], &["FOUR", "HALF"], 8),
        Format::Q4_1 => packing(&[FOUR, BOTH], &["FOUR", "PAIR"], 0),
        Format::Q5_0 => packing(&[FOUR, ONE, SCALE], &["FOUR", "ONE", "HALF"], 16),
        Format::Q5_1 => packing(&[FOUR, ONE, BOTH], &["FOUR", "ONE", "PAIR"], 0),
        Format::Q8_0 => packing(&[EIGHT, SCALE], &["EIGHT", "HALF"], 0),
        Format::Q2K => packing(&[TWO, SCALE, NARROW[1]], &["TWO", "Q2K"], 0),
        Format::Q3K => Packing { shift: 2, ..packing(&[TWO, ONE, WIDE], &["TWO", "ONE", "Q3K"], 4) },
        Format::Q4K => packing(&[FOUR, WIDE], &["FOUR", "Q4K"], 0),
        Format::Q5K => packing(&[FOUR, ONE, WIDE], &["FOUR", "ONE", "Q4K"], 0),
        Format::Q6K => packing(&[FOUR, TWO, SCALE, NARROW[0]], &["FOUR", "HIGH_TWO", "Q6K"], 32),
        Format::IQ4NL => packing(&[FOUR, SCALE], &["FOUR", "LEVELS", "HALF"], 0),
        Format::IQ4XS => packing(&[FOUR, NARROW[2]], &["FOUR", "LEVELS", "IQ4XS"], 0),
        Format::MXFP4 => packing(&[FOUR, BYTE], &["FOUR", "FP4", "E8M0"], 12),
        Format::F16 => packing(&[HALVES], &["F16"], 0),
        Format::BF16 => packing(&[HALVES], &["BF16"], 0),
        Format::F32 => packing(&[FLOATS], &["F32"], 0),
        _ => return None,
    })
}

/// The format in which the device keeps weights of a file's format.
pub(crate) fn device_format(format: Format) -> Format {
    if packing_of(format).is_some() { format } else { Format::F16 }
}

/// Whether a device format's weights are floats: no codes, no scales.
pub(crate) fn is_float(format: Format) -> bool {
    matches!(format, Format::F16 | Format::BF16 | Format::F32)
}

/// Whether blocks of a device format have two scales, one per 16 weights.
pub(crate) fn has_halves(format: Format) -> bool {
    matches!(format, Format::Q2K | Format::Q3K | Format::Q6K)
}

/// Whether the scales of a device format are f16 numbers, so that a weight is one product in f16, rounded once.
pub(crate) fn has_half_scales(format: Format) -> bool {
    packing_of(format).is_some_and(|packing| packing.flags.contains(&"HALF"))
}

/// Blocks that have the bits of scales of their own in one word, in plane `own_plane`.
fn own_blocks(format: Format) -> Option<usize> {
    match format {
        Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::IQ4NL | Format::Q2K | Format::Q6K => Some(2),
        Format::MXFP4 => Some(4),
        _ => None,
    }
}

fn own_plane(format: Format) -> &'static str {
    if matches!(format, Format::Q5_0 | Format::Q6K) { "P2" } else { "P1" }
}

/// Blocks whose scales the device reads at once: see `scale_words_S`.
pub(crate) fn scale_run(format: Format) -> usize {
    if matches!(format, Format::Q4_1 | Format::Q5_1) { 1 } else { 8 }
}

/// Whether codes are signed bytes. The others are below 128.
pub(crate) fn is_signed(format: Format) -> bool {
    matches!(format, Format::Q8_0 | Format::IQ4NL | Format::IQ4XS)
}

/// What is taken from the codes of a device format.
pub(crate) fn offset(format: Format) -> i32 {
    packing_of(format).map_or(0, |packing| packing.offset)
}

/// Whether a device format adds minima.
pub(crate) fn has_minima(format: Format) -> bool {
    matches!(format, Format::Q4_1 | Format::Q5_1 | Format::Q2K | Format::Q4K | Format::Q5K)
}

/// Where the planes of a row of `blocks` blocks start, in bytes, and behind them where it ends; multiples of 16.
fn starts(packing: &Packing, blocks: usize) -> [usize; 5] {
    let mut starts = [0; 5];
    for (i, plane) in packing.planes.iter().enumerate() {
        let count = if plane.per == Per::Block { blocks } else { blocks / 8 };
        starts[i + 1] = starts[i] + (plane.bytes * plane.pieces * count).next_multiple_of(16);
    }
    let end = starts[packing.planes.len()];
    starts[packing.planes.len()..].fill(end);
    starts
}

/// Bytes of a packed row of `cols` weights in a device format.
pub(crate) fn row_bytes(format: Format, cols: usize) -> usize {
    let packing = packing_of(format).expect("a device format has planes");
    starts(&packing, cols.div_ceil(32))[4]
}

/// The WGSL of the weights bound as `var<storage, read> w_S: array<vec4<u32>>`, for every format and name S: piece
/// `unpack` of a template. Row `row` of the binding has `blocks = ceil(cols / 32)` blocks, whose weights are
///
/// - `weights_S(row, blocks, block) -> array<vec4<f32>, 8>`, every format; those past `cols` are 0;
/// - integer formats: `scales.s[k / 16] * (code[k] - OFFSET_S) + scales.m[k / 16]`, with `codes_S(row, blocks, block) ->
///   Codes { lo, hi }` (16 int8 each, in order, as [`crate::act::Int8`] has its codes) and `scales_S(row, blocks, block)
///   -> Scales { s, m }`, and `const OFFSET_S: i32`; either in two steps, reading and unpacking:
///   `codes_of_S(code_words_S(row, blocks, block))`, `scales_of_S(scale_words_S(row, blocks, block), block)`;
/// - float formats: `piece_S(row, blocks, piece) -> array<vec4<f32>, 2>`, weights `8 * piece..8 * piece + 8` of the row.
pub(crate) fn unpack(weights: &[(Format, &str)]) -> String {
    let mut text = include_str!("../wgsl/unpack_common.wgsl").to_string();
    for &(format, name) in weights {
        let packing = packing_of(format).expect("a device format has planes");
        let mut template = Template::new()
            .value("S", name)
            .value("OFFSET", packing.offset)
            .value("RUN", scale_run(format))
            .value("OWN_BLOCKS", own_blocks(format).unwrap_or(1))
            .flag("OWN", own_blocks(format).is_some())
            .value("SHIFT", format!("{}u", packing.shift))
            .flag("FLOATS", is_float(format));
        for flag in FLAGS {
            template = template.flag(flag, packing.flags.contains(&flag));
        }
        let mut start = String::from("0u");
        for (plane, name) in packing.planes.iter().zip(["P0", "P1", "P2", "P3"]) {
            template = template.value(name, &start).value("LAST", &start);
            if own_blocks(format).is_some() && name == own_plane(format) {
                template = template.value("OWN_PLANE", &start);
            }
            let count = if plane.per == Per::Block { "blocks" } else { "(blocks / 8u)" };
            start += &format!(" + ({}u * {count} + 15u) / 16u", plane.bytes * plane.pieces);
        }
        text += &template.value("STRIDE", start).render(include_str!("../wgsl/unpack.wgsl"));
    }
    text
}

#[cfg(test)]
mod tests;
