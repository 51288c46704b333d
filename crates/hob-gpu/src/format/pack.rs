//! Packing rows on the host, on all cores. It must not know WGSL.

use half::f16;
use hob_quant::{Format, QuantError, decode_row};

use super::bits::{four, half, one, one_of_word, two, word, words};
use super::{Packing, device_format, packing_of, starts};

/// A packed row being written.
struct Row<'a> {
    bytes: &'a mut [u8],
    starts: [usize; 5],
    blocks: usize,
}

impl Row<'_> {
    /// The entry of a plane that has one per block, or per superblock.
    fn put<const N: usize>(&mut self, plane: usize, at: usize, entry: [u8; N]) {
        let at = self.starts[plane] + N * at;
        self.bytes[at..at + N].copy_from_slice(&entry);
    }

    /// The entry of a block in piece `piece` of a plane.
    fn put_piece<const N: usize>(&mut self, plane: usize, piece: usize, block: usize, entry: [u8; N]) {
        self.put(plane, piece * self.blocks + block, entry);
    }
}

/// Packs whole rows of a file: `rows` holds some rows of `row_bytes` bytes in `format`, `out` as many packed rows of
/// [`super::row_bytes`].
///
/// # Errors
/// Rows that are not whole blocks.
pub(crate) fn pack_rows(format: Format, cols: usize, rows: &[u8], out: &mut [u8]) -> Result<(), QuantError> {
    let (from, to) =
        (format.row_bytes(cols).unwrap_or(rows.len()), super::row_bytes(device_format(format), cols));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let each = (rows.len() / from.max(1)).div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let parts = rows.chunks(each * from).zip(out.chunks_mut(each * to));
        let work: Vec<_> = parts
            .map(|(rows, out)| {
                scope.spawn(move || {
                    rows.chunks_exact(from)
                        .zip(out.chunks_exact_mut(to))
                        .try_for_each(|(row, out)| pack_row(format, cols, row, out))
                })
            })
            .collect();
        work.into_iter().try_for_each(|w| w.join().expect("packing does not panic"))
    })
}

fn pack_row(format: Format, cols: usize, row: &[u8], out: &mut [u8]) -> Result<(), QuantError> {
    let Some(packing) = packing_of(format) else { return decoded(format, cols, row, out) };
    if super::is_float(format) {
        out[..row.len()].copy_from_slice(row);
        out[row.len()..].fill(0);
        return Ok(());
    }
    blocks(format, &packing, row, out);
    Ok(())
}

/// Decodes a row to finite f16; what is not a number stays so.
fn decoded(format: Format, cols: usize, row: &[u8], out: &mut [u8]) -> Result<(), QuantError> {
    let mut values = vec![0f32; cols];
    decode_row(format, row, &mut values)?;
    out.fill(0);
    for (o, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *o = f16::from_f32(v.clamp(-65504.0, 65504.0)).to_le_bytes();
    }
    Ok(())
}

/// Packs the blocks of a row of an integer format.
fn blocks(format: Format, packing: &Packing, row: &[u8], out: &mut [u8]) {
    let blocks = row.len() / format.block_bytes() * format.block_len() / 32;
    let mut out = Row { starts: starts(packing, blocks), bytes: out, blocks };
    let pack: fn(&[u8], usize, &mut Row) = match format {
        Format::Q4_0 | Format::IQ4NL => |b, i, out| {
            out.put::<16>(0, i, bytes(&b[2..]));
            out.put::<2>(1, i, bytes(b));
        },
        Format::Q4_1 => |b, i, out| {
            out.put::<16>(0, i, bytes(&b[4..]));
            out.put::<4>(1, i, bytes(b));
        },
        Format::Q5_0 => |b, i, out| {
            out.put::<16>(0, i, bytes(&b[6..]));
            out.put(1, i, one_of_word(word(b, 2)));
            out.put::<2>(2, i, bytes(b));
        },
        Format::Q5_1 => |b, i, out| {
            out.put::<16>(0, i, bytes(&b[8..]));
            out.put(1, i, one_of_word(word(b, 4)));
            out.put::<4>(2, i, bytes(b));
        },
        Format::Q8_0 => |b, i, out| {
            out.put_piece::<16>(0, 0, i, bytes(&b[2..]));
            out.put_piece::<16>(0, 1, i, bytes(&b[18..]));
            out.put::<2>(1, i, bytes(b));
        },
        Format::MXFP4 => |b, i, out| {
            out.put::<16>(0, i, bytes(&b[1..]));
            out.put(1, i, [b[0]]);
        },
        Format::Q2K => q2k,
        Format::Q3K => q3k,
        Format::Q4K => q4k,
        Format::Q5K => q5k,
        Format::Q6K => q6k,
        Format::IQ4XS => iq4xs,
        _ => unreachable!("floats and decoded formats have no blocks"),
    };
    row.chunks_exact(format.block_bytes()).enumerate().for_each(|(i, b)| pack(b, i, &mut out));
    // Planes end with a few unused bytes, which are written too: the buffer may have held something else.
    for (i, plane) in packing.planes.iter().enumerate() {
        let count = if plane.per == super::Per::Block { blocks } else { blocks / 8 };
        out.bytes[out.starts[i] + plane.bytes * plane.pieces * count..out.starts[i + 1]].fill(0);
    }
}

/// The first bytes of a slice.
fn bytes<const N: usize>(b: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| b[i])
}

/// Words as bytes.
fn quad(words: [u32; 4]) -> [u8; 16] {
    let mut out = [0; 16];
    words.iter().zip(out.as_chunks_mut::<4>().0).for_each(|(w, o)| *o = w.to_le_bytes());
    out
}

/// Scale and minimum of every half block as in the file; `d`, `dmin`.
fn q2k(b: &[u8], i: usize, out: &mut Row) {
    for block in 0..8 {
        let [low, high] = two(words(&b[16 + 32 * (block / 4)..], 2 * (block as u32 % 4)));
        out.put_piece(0, 0, 8 * i + block, low);
        out.put_piece(0, 1, 8 * i + block, high);
        out.put(1, 8 * i + block, [b[2 * block], b[2 * block + 1]]);
    }
    out.put::<4>(2, i, bytes(&b[80..]));
}

/// Per superblock `d` in the first word, low nibbles of the scales of 16 half blocks in two, their bit pairs in one.
fn q3k(b: &[u8], i: usize, out: &mut Row) {
    let mut scales = [half(b, 108), 0, 0, 0];
    for s in 0..16usize {
        let low = u32::from(b[96 + s % 8] >> (4 * (s / 8)) & 15);
        let high = u32::from(b[104 + s % 4] >> (2 * (s / 4)) & 3);
        scales[1 + s / 8] |= low << (4 * (s % 8));
        scales[3] |= high << (2 * s);
    }
    for block in 0..8 {
        let [low, high] = two(words(&b[32 + 32 * (block / 4)..], 2 * (block as u32 % 4)));
        out.put_piece(0, 0, 8 * i + block, low);
        out.put_piece(0, 1, 8 * i + block, high);
        out.put(1, 8 * i + block, one(words(b, block as u32)));
    }
    out.put(2, i, quad(scales));
}

/// Per superblock `d` and `dmin`, low nibbles of eight scales, of eight minima, and the bit pairs of both.
fn scales_k(b: &[u8]) -> [u8; 16] {
    let mut out = [word(b, 0), 0, 0, 0];
    let packed = &b[4..16];
    for s in 0..8 {
        let (scale, min) = if s < 4 {
            (packed[s] & 63, packed[s + 4] & 63)
        } else {
            let both = packed[s + 4];
            (both & 15 | packed[s - 4] >> 6 << 4, both >> 4 | packed[s] >> 6 << 4)
        };
        let (scale, min) = (u32::from(scale), u32::from(min));
        out[1] |= (scale & 15) << (4 * s);
        out[2] |= (min & 15) << (4 * s);
        out[3] |= (scale >> 4) << (2 * s) | (min >> 4) << (16 + 2 * s);
    }
    quad(out)
}

fn q4k(b: &[u8], i: usize, out: &mut Row) {
    for block in 0..8 {
        out.put(0, 8 * i + block, four(words(&b[16 + 32 * (block / 2)..], 4 * (block as u32 % 2))));
    }
    out.put(1, i, scales_k(b));
}

fn q5k(b: &[u8], i: usize, out: &mut Row) {
    for block in 0..8 {
        out.put(0, 8 * i + block, four(words(&b[48 + 32 * (block / 2)..], 4 * (block as u32 % 2))));
        out.put(1, 8 * i + block, one(words(&b[16..], block as u32)));
    }
    out.put(2, i, scales_k(b));
}

/// The int8 scales of every half block; `d`.
fn q6k(b: &[u8], i: usize, out: &mut Row) {
    for block in 0..8 {
        let (part, run) = (block / 4, block % 4);
        out.put(0, 8 * i + block, four(words(&b[64 * part + 32 * (run % 2)..], 4 * (run as u32 / 2))));
        let [low, high] = two(words(&b[128 + 32 * part..], 2 * run as u32));
        out.put_piece(1, 0, 8 * i + block, low);
        out.put_piece(1, 1, 8 * i + block, high);
        out.put(2, 8 * i + block, [b[192 + 2 * block], b[193 + 2 * block]]);
    }
    out.put::<2>(3, i, bytes(&b[208..]));
}

/// Per superblock the 8 bytes of the file: `d`, bit pairs of eight scales, their low nibbles.
fn iq4xs(b: &[u8], i: usize, out: &mut Row) {
    for block in 0..8 {
        out.put::<16>(0, 8 * i + block, bytes(&b[8 + 16 * block..]));
    }
    out.put::<8>(1, i, bytes(b));
}
