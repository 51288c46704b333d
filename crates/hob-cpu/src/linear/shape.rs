//! The packed form of each format: which planes its codes lie in and what stands in front of them. Kernels, packing and
//! unpacking all read it here. It must not know matrices or instruction sets.
//!
//! 16 rows are interleaved. A *superblock* holds 64 columns (formats with scales per 32) or 256 (K formats): a header,
//! then the codes of its blocks of 32 columns, one after the other. Planes are made of chunks of 64 bytes, one dword
//! per row; byte j of the dwords of *step* t (t = 0..8) belongs to column k = 4t + j:
//!
//! * nibbles, 256 bytes: chunk c holds step c in the low nibbles and step c + 4 in the high ones;
//! * bytes, 512 bytes: chunk t holds step t;
//! * one bit, 64 bytes: bit t belongs to step t;
//! * two bits, 128 bytes: bits 2i, 2i + 1 of chunk u belong to step 4u + i;
//! * three bits, 192 bytes: chunk u holds step 2u in bits 0 to 2 and step 2u + 1 in bits 3 to 5; bits 6 and 7 of the
//!   three chunks, one after the other from the lowest, are the six bits of steps 6 and 7.
//!
//! Codes are stored unsigned, as code + offset, or as an index into a table; Q8_0 as it is, but biased by 128 for
//! AVX-512.

use hob_quant::Format;

/// Rows interleaved: one AVX-512 register of dwords, or two AVX2 registers that share every activation broadcast.
pub const LANES: usize = 16;

/// The planes of one block, in their order in memory. The second plane holds the higher bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planes {
    Nibbles,
    NibblesBit,
    NibblesPair,
    Triples,
    Pair,
    Bytes,
}

/// What stands in front of a superblock's codes. Every item is an array over the 16 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// f16 d of block 0, of block 1.
    Scales,
    /// f16 d of block 0, of block 1, then f16 m of both.
    ScalesMinima,
    /// e8m0 byte of block 0, of block 1.
    Exponents,
    /// f16 d, then i8 scales of the 8 blocks.
    Signed,
    /// f16 d, f16 dmin, then u8 scales of the 8 blocks, then u8 minima.
    Minima,
    /// f16 d, then the 8 blocks' pairs of i8 scales, one per 16 columns.
    Pairs,
    /// f16 d, f16 dmin, then the 8 blocks' pairs of bytes: scale in the low nibble, minimum in the high one.
    PairsMinima,
}

/// The packed form of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub planes: Planes,
    pub header: Header,
    /// What a stored code exceeds the code by; 0 for tables and Q8_0.
    pub offset: i8,
}

impl Planes {
    /// Bytes of one block.
    pub const fn bytes(self) -> usize {
        match self {
            Planes::Nibbles => 256,
            Planes::NibblesBit => 256 + 64,
            Planes::NibblesPair => 256 + 128,
            Planes::Triples => 3 * 64,
            Planes::Pair => 128,
            Planes::Bytes => 512,
        }
    }
}

impl Header {
    /// Bytes in front of the codes.
    pub const fn bytes(self) -> usize {
        LANES
            * match self {
                Header::Scales => 4,
                Header::ScalesMinima => 8,
                Header::Exponents => 2,
                Header::Signed => 2 + 8,
                Header::Minima => 4 + 16,
                Header::Pairs => 2 + 16,
                Header::PairsMinima => 4 + 16,
            }
    }

    /// Blocks of 32 columns in a superblock.
    pub const fn blocks(self) -> usize {
        match self {
            Header::Scales | Header::ScalesMinima | Header::Exponents => 2,
            _ => 8,
        }
    }
}

impl Shape {
    /// The packed form of `format`; `None` for formats that are not packed.
    pub const fn of(format: Format) -> Option<Shape> {
        use Format as F;
        let (planes, header, offset) = match format {
            F::Q4_0 => (Planes::Nibbles, Header::Scales, 8),
            F::Q4_1 => (Planes::Nibbles, Header::ScalesMinima, 0),
            F::Q5_0 => (Planes::NibblesBit, Header::Scales, 16),
            F::Q5_1 => (Planes::NibblesBit, Header::ScalesMinima, 0),
            F::Q8_0 => (Planes::Bytes, Header::Scales, 0),
            F::IQ4NL => (Planes::Nibbles, Header::Scales, 0),
            F::MXFP4 => (Planes::Nibbles, Header::Exponents, 0),
            F::Q2K => (Planes::Pair, Header::PairsMinima, 0),
            F::Q3K => (Planes::Triples, Header::Pairs, 4),
            F::Q4K => (Planes::Nibbles, Header::Minima, 0),
            F::Q5K => (Planes::NibblesBit, Header::Minima, 0),
            F::Q6K => (Planes::NibblesPair, Header::Pairs, 32),
            F::IQ4XS => (Planes::Nibbles, Header::Signed, 0),
            _ => return None,
        };
        Some(Shape { planes, header, offset })
    }

    /// Blocks of 32 columns in a superblock.
    pub const fn blocks(self) -> usize {
        self.header.blocks()
    }

    /// Bytes of a superblock of 16 rows.
    pub const fn bytes(self) -> usize {
        self.header.bytes() + self.blocks() * self.planes.bytes()
    }

    /// Superblocks over `cols` columns.
    pub const fn superblocks(self, cols: usize) -> usize {
        cols.div_ceil(32 * self.blocks())
    }

    /// Bytes of a group: 16 rows of `cols` columns.
    pub const fn group_bytes(self, cols: usize) -> usize {
        self.superblocks(cols) * self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_footprints_are_computed_with() {
        for &format in Format::ALL {
            for cols in [32, 96, 256, 2048].into_iter().filter(|c| c % format.block_len() == 0) {
                let packed = Shape::of(format).map(|s| 3 * s.group_bytes(cols) as u64);
                assert_eq!(hob_quant::packed_bytes(format, 33, cols), packed, "{format} {cols}");
            }
        }
    }
}
