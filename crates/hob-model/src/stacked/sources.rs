//! Experts' rows as one run of bytes, row by row in a format that products read, whatever layout the file has. It must not
//! know names.

use std::sync::{Arc, Mutex};

use hob_compute::ByteSource;
use hob_quant::Format;

/// A run of bytes somewhere.
pub(super) struct Link {
    pub bytes: Arc<dyn ByteSource>,
    /// Where the run starts in `bytes`.
    pub start: u64,
    /// Where it ends in the chain.
    pub end: u64,
}

/// Runs of bytes, one after the other.
pub(super) struct Chain(pub Vec<Link>);

impl ByteSource for Chain {
    fn len(&self) -> u64 {
        self.0.last().map_or(0, |l| l.end)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let mut at = offset;
        let mut rest = buf;
        let first = self.0.partition_point(|l| l.end <= offset);
        let mut begin = if first == 0 { 0 } else { self.0[first - 1].end };
        for link in &self.0[first..] {
            if rest.is_empty() {
                return Ok(());
            }
            let take = usize::try_from(link.end - at).unwrap_or(usize::MAX).min(rest.len());
            let (here, later) = rest.split_at_mut(take);
            link.bytes.read_at(link.start + (at - begin), here)?;
            (at, begin, rest) = (at + take as u64, link.end, later);
        }
        if rest.is_empty() { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Bytes of a block of 32 MXFP4 weights: a scale and 16 bytes of codes.
const BLOCK: usize = 17;

/// MXFP4 weights whose codes and scales are two tensors (gpt-oss): rows of blocks of 32, 16 bytes of codes and one of
/// scale each. There neighbours share a byte, the even one in its low nibble; here a block's halves do.
pub(super) struct Blocks {
    pub codes: Arc<dyn ByteSource>,
    pub scales: Arc<dyn ByteSource>,
    /// The first row, and how many rows lie between one and the next.
    pub first: usize,
    pub step: usize,
    pub rows: usize,
    /// Blocks of a row.
    pub blocks: usize,
}

impl Blocks {
    fn block(&self, at: usize) -> std::io::Result<[u8; BLOCK]> {
        let row = self.first + at / self.blocks * self.step;
        let from = (row * self.blocks + at % self.blocks) as u64;
        let (mut block, mut codes) = ([0u8; BLOCK], [0u8; 16]);
        self.scales.read_at(from, &mut block[..1])?;
        self.codes.read_at(16 * from, &mut codes)?;
        repack(&codes, &mut block[1..]);
        Ok(block)
    }

    /// Whole blocks of one row, from block `at` on.
    fn blocks(&self, at: usize, out: &mut [u8]) -> std::io::Result<()> {
        let count = out.len() / BLOCK;
        let row = self.first + at / self.blocks * self.step;
        let from = (row * self.blocks + at % self.blocks) as u64;
        let (mut scales, mut codes) = (vec![0u8; count], vec![0u8; 16 * count]);
        self.scales.read_at(from, &mut scales)?;
        self.codes.read_at(16 * from, &mut codes)?;
        let parts = out.chunks_exact_mut(BLOCK).zip(codes.as_chunks::<16>().0).zip(scales);
        parts.for_each(|((block, codes), scale)| {
            block[0] = scale;
            repack(codes, &mut block[1..]);
        });
        Ok(())
    }
}

/// Weights 2i and 2i + 1 share a byte of `codes`; weights i and i + 16 one of `out`.
fn repack(codes: &[u8; 16], out: &mut [u8]) {
    let code = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
    out.iter_mut().enumerate().for_each(|(i, byte)| *byte = code(i) | code(i + 16) << 4);
}

impl ByteSource for Blocks {
    fn len(&self) -> u64 {
        (self.rows * self.blocks * BLOCK) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (offset as usize, buf);
        while !rest.is_empty() {
            let (block, inside) = (at / BLOCK, at % BLOCK);
            let whole = (rest.len() / BLOCK).min(self.blocks - block % self.blocks);
            let take = if inside > 0 || whole == 0 {
                let take = rest.len().min(BLOCK - inside);
                rest[..take].copy_from_slice(&self.block(block)?[inside..inside + take]);
                take
            } else {
                self.blocks(block, &mut rest[..whole * BLOCK])?;
                whole * BLOCK
            };
            at += take;
            rest = &mut rest[take..];
        }
        Ok(())
    }
}

/// A matrix stored with rows and columns swapped: `[cols, width]`, of which every `step`-th column from `first` on is a
/// row here. It is turned in one go when its first byte is read, and forgotten when its last one was. What is stored in
/// blocks is decoded, and kept as f16: finer than any format of blocks.
pub(super) struct Columns {
    pub bytes: Arc<dyn ByteSource>,
    /// Where the matrix starts.
    pub start: u64,
    /// Of what is stored, and of what becomes of it.
    pub formats: [Format; 2],
    pub width: usize,
    pub first: usize,
    pub step: usize,
    pub rows: usize,
    pub cols: usize,
    pub turned: Mutex<Option<Vec<u8>>>,
}

impl Columns {
    /// Bytes of a value.
    fn value(&self) -> usize {
        self.formats[1].block_bytes()
    }

    fn turn(&self) -> std::io::Result<Vec<u8>> {
        let stored = self.stored()?;
        let value = self.value();
        let mut out = Vec::with_capacity(self.rows * self.cols * value);
        for row in 0..self.rows {
            let column = self.first + row * self.step;
            for col in 0..self.cols {
                let at = (col * self.width + column) * value;
                out.extend_from_slice(&stored[at..at + value]);
            }
        }
        Ok(out)
    }

    /// The rows as they are stored, every value by itself.
    fn stored(&self) -> std::io::Result<Vec<u8>> {
        let [from, to] = self.formats;
        let row_bytes = from.row_bytes(self.width).ok_or(std::io::ErrorKind::InvalidData)?;
        let mut stored = vec![0u8; self.cols * row_bytes];
        self.bytes.read_at(self.start, &mut stored)?;
        if from == to {
            return Ok(stored);
        }
        let mut values = vec![0f32; self.width];
        let mut out = Vec::with_capacity(self.cols * self.width * self.value());
        for row in stored.chunks_exact(row_bytes) {
            hob_quant::decode_row(from, row, &mut values).map_err(std::io::Error::other)?;
            let start = out.len();
            out.resize(start + self.width * self.value(), 0);
            hob_quant::encode_row(to, &values, &mut out[start..]).map_err(std::io::Error::other)?;
        }
        Ok(out)
    }
}

impl ByteSource for Columns {
    fn len(&self) -> u64 {
        (self.rows * self.cols * self.value()) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        // A thread that panicked while it turned left nothing behind.
        let mut turned = self.turned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes = match turned.take() {
            Some(bytes) => bytes,
            None => self.turn()?,
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.checked_add(buf.len()).filter(|&end| end <= bytes.len());
        let Some(end) = end else { return Err(std::io::ErrorKind::UnexpectedEof.into()) };
        buf.copy_from_slice(&bytes[start..end]);
        if end < bytes.len() {
            *turned = Some(bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_reads_across_its_links() {
        let bytes: Arc<dyn ByteSource> = Arc::new((0..100).collect::<Vec<u8>>());
        let link = |start, end| Link { bytes: bytes.clone(), start, end };
        // 10..13, 50..50 (nothing), 0..4, 90..95
        let chain = Chain(vec![link(10, 3), link(50, 3), link(0, 7), link(90, 12)]);
        let all = [10, 11, 12, 0, 1, 2, 3, 90, 91, 92, 93, 94];
        assert_eq!(chain.len(), 12);
        for from in 0..=12 {
            for to in from..=12 {
                let mut out = vec![0; to - from];
                chain.read_at(from as u64, &mut out).expect("inside");
                assert_eq!(out, all[from..to]);
            }
        }
        assert!(chain.read_at(5, &mut [0; 8]).is_err());
        assert!(chain.read_at(13, &mut [0; 1]).is_err());
    }

    #[test]
    fn blocks_are_put_together_from_codes_and_scales() {
        // 6 rows of 2 blocks; code i of block b of row r is (r + b + i) % 16, its scale 10 r + b.
        let code = |r: usize, b: usize, i: usize| ((r + b + i) % 16) as u8;
        let all = || (0..6).flat_map(|r| (0..2).map(move |b| (r, b)));
        let codes =
            all().flat_map(|(r, b)| (0..16).map(move |j| code(r, b, 2 * j) | code(r, b, 2 * j + 1) << 4));
        let scales = all().map(|(r, b)| (10 * r + b) as u8);
        let (codes, scales): (Vec<u8>, Vec<u8>) = (codes.collect(), scales.collect());
        let (codes, scales): (Arc<dyn ByteSource>, Arc<dyn ByteSource>) = (Arc::new(codes), Arc::new(scales));
        let odd = Blocks { codes, scales, first: 1, step: 2, rows: 3, blocks: 2 };
        let expected: Vec<u8> = [1, 3, 5]
            .into_iter()
            .flat_map(|r| (0..2).map(move |b| (r, b)))
            .flat_map(|(r, b)| {
                let both = (0..16).map(move |i| code(r, b, i) | code(r, b, i + 16) << 4);
                std::iter::once((10 * r + b) as u8).chain(both)
            })
            .collect();
        assert_eq!(odd.len(), expected.len() as u64);
        for (from, to) in [(0, 102), (0, 17), (3, 40), (16, 17), (34, 68), (50, 102), (7, 7)] {
            let mut out = vec![0; to - from];
            odd.read_at(from as u64, &mut out).expect("inside");
            assert_eq!(out, expected[from..to], "{from}..{to}");
        }
        assert!(odd.read_at(100, &mut [0; 3]).is_err());
    }

    #[test]
    fn columns_become_rows() {
        // Two values of 2 bytes to skip, then [3, 4]: value (c, k) is 10 c + k.
        let values = [99u16, 99].into_iter().chain((0..3).flat_map(|c| (0..4).map(move |k| 10 * c + k)));
        let bytes: Arc<dyn ByteSource> = Arc::new(values.flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
        let odd = Columns {
            bytes,
            start: 4,
            formats: [Format::F16; 2],
            width: 4,
            first: 1,
            step: 2,
            rows: 2,
            cols: 3,
            turned: Mutex::new(None),
        };
        let expected: Vec<u8> = [1u16, 11, 21, 3, 13, 23].into_iter().flat_map(u16::to_le_bytes).collect();
        for (from, to) in [(0, 5), (5, 12), (0, 12), (2, 2)] {
            let mut out = vec![0; to - from];
            odd.read_at(from as u64, &mut out).expect("inside");
            assert_eq!(out, expected[from..to]);
        }
        assert!(odd.turned.lock().expect("no panic").is_some(), "kept until its end is read");
        assert!(odd.read_at(11, &mut [0; 2]).is_err());
    }
}
