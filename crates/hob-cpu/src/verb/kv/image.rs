//! Images of positions: what a page holds, position-major, each vector as `hob_quant::encode_kv` writes it. These run
//! whenever a conversation is saved or restored, so heads and blocks are divided over the pool.

use std::ops::Range;

use hob_compute::{BLOCK_POSITIONS, PageSpec};
use hob_quant::{KV_GROUP, KvFormat};

use super::lay::{self, Group, Place, Side, by_layout};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::verb::{ALONE, Parts, each_unit};

/// Some positions of a page and their image.
struct Stretch<'a> {
    spec: &'a PageSpec,
    kv_head: usize,
    block: usize,
    /// Positions within the block.
    range: Range<usize>,
    /// Where the first position's image is.
    start: usize,
}

/// One side of a stretch.
struct Vectors {
    format: KvFormat,
    /// Bytes of the part within the page.
    part: Range<usize>,
    /// Where the first vector's image is, and how far the next one's.
    image: usize,
    step: usize,
}

impl Stretch<'_> {
    #[inline(always)]
    fn vectors(&self, side: Side) -> Vectors {
        let (spec, block) = (self.spec, self.block);
        let step = spec.position_bytes(block * BLOCK_POSITIONS);
        let [k, v] = spec.parts(self.kv_head, block);
        let image = self.start + step / spec.kv_heads * self.kv_head;
        let format = spec.k_format(block);
        match side {
            Side::K => Vectors { format, part: k, image, step },
            Side::V => {
                let image = image + format.vector_bytes(spec.head_dim);
                Vectors { format: spec.v_format(block), part: v, image, step }
            }
        }
    }
}

/// Calls `work` for every head and block of `range`.
fn each_stretch(pool: &Pool, spec: &PageSpec, range: Range<usize>, work: &(dyn Fn(Stretch) + Sync)) {
    let blocks = range.start / BLOCK_POSITIONS..range.end.div_ceil(BLOCK_POSITIONS);
    let stretch = |_: usize, unit: usize| {
        let block = blocks.start + unit / spec.kv_heads;
        let start = block * BLOCK_POSITIONS;
        let here = range.start.max(start)..range.end.min(start + BLOCK_POSITIONS);
        let image = spec.image_bytes(range.start..here.start);
        let range = here.start - start..here.end - start;
        work(Stretch { spec, kv_head: unit % spec.kv_heads, block, range, start: image });
    };
    let units = blocks.len() * spec.kv_heads;
    if spec.image_bytes(range.clone()) < 4 * ALONE {
        (0..units).for_each(|unit| stretch(0, unit));
    } else {
        each_unit(pool, units, &stretch);
    }
}

/// Writes the image of positions `range` of a page to `out`, which is as long.
pub fn read(pool: &Pool, isa: Isa, spec: &PageSpec, range: Range<usize>, (page, out): (&[u8], &mut [u8])) {
    let out = Parts::new(out);
    each_stretch(pool, spec, range, &|stretch| read_stretch(isa, stretch, page, out));
}

fn read_stretch(isa: Isa, stretch: Stretch, page: &[u8], out: Parts<u8>) {
    compiled!(isa, read_both, stretch: Stretch, page: &[u8], out: Parts<u8>)
}

#[inline(always)]
fn read_both(stretch: Stretch, page: &[u8], out: Parts<u8>) {
    for side in [Side::K, Side::V].into_iter().take(stretch.spec.stored_vectors()) {
        let vectors = stretch.vectors(side);
        let part = &page[vectors.part.clone()];
        by_layout!(side, vectors.format, read_side(&stretch, &vectors, part, out));
    }
}

#[inline(always)]
fn read_side(side: Side, format: KvFormat, of: &Stretch, vectors: &Vectors, part: &[u8], out: Parts<u8>) {
    let dim = of.spec.head_dim;
    for (i, at) in of.range.clone().enumerate() {
        let (place, image) = (Place { dim, at }, vectors.image + i * vectors.step);
        // SAFETY: every vector of every position is visited once, by one thread.
        let out = unsafe { out.part(image..image + format.vector_bytes(dim)) };
        if !format.is_packed() {
            lay::get_halves(side, part, place, 0, out);
            continue;
        }
        for (g, out) in out.chunks_exact_mut(format.vector_bytes(KV_GROUP)).enumerate() {
            pack(format, &lay::get_group(side, format, part, place, g), out);
        }
    }
}

/// Makes positions `range` of a page what their image says.
pub fn write(pool: &Pool, isa: Isa, spec: &PageSpec, range: Range<usize>, (page, image): (&mut [u8], &[u8])) {
    let page = Parts::new(page);
    each_stretch(pool, spec, range, &|stretch| write_stretch(isa, stretch, page, image));
}

fn write_stretch(isa: Isa, stretch: Stretch, page: Parts<u8>, image: &[u8]) {
    compiled!(isa, write_both, stretch: Stretch, page: Parts<u8>, image: &[u8])
}

#[inline(always)]
fn write_both(stretch: Stretch, page: Parts<u8>, image: &[u8]) {
    for side in [Side::K, Side::V].into_iter().take(stretch.spec.stored_vectors()) {
        let vectors = stretch.vectors(side);
        // SAFETY: the parts of every head and block are visited once, by one thread.
        let part = unsafe { page.part(vectors.part.clone()) };
        by_layout!(side, vectors.format, write_side(&stretch, &vectors, part, image));
    }
}

#[inline(always)]
fn write_side(side: Side, format: KvFormat, of: &Stretch, vectors: &Vectors, part: &mut [u8], image: &[u8]) {
    let dim = of.spec.head_dim;
    for (i, at) in of.range.clone().enumerate() {
        let place = Place { dim, at };
        let vector = &image[vectors.image + i * vectors.step..][..format.vector_bytes(dim)];
        if !format.is_packed() {
            lay::put_halves(side, part, place, 0, vector);
            continue;
        }
        for (g, group) in vector.chunks_exact(format.vector_bytes(KV_GROUP)).enumerate() {
            lay::put_group(side, format, part, place, g, &unpack(format, group));
        }
    }
}

/// A group as an image has it.
#[inline(always)]
fn pack(format: KvFormat, group: &Group, out: &mut [u8]) {
    out[..2].copy_from_slice(&group.d.to_le_bytes());
    let mut at = 2;
    if let Some(m) = group.m {
        out[2..4].copy_from_slice(&m.to_le_bytes());
        at = 4;
    }
    if format == KvFormat::Q8 {
        return out[at..].copy_from_slice(&group.codes);
    }
    let (low, high) = group.codes.split_at(KV_GROUP / 2);
    out[at..].iter_mut().zip(low.iter().zip(high)).for_each(|(o, (low, high))| *o = low | high << 4);
}

/// The inverse of [`pack`].
#[inline(always)]
fn unpack(format: KvFormat, bytes: &[u8]) -> Group {
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let m = (format == KvFormat::Asym4).then(|| half(2));
    let codes = &bytes[if m.is_some() { 4 } else { 2 }..];
    let mut group = Group { d: half(0), m, codes: [0; KV_GROUP] };
    if format == KvFormat::Q8 {
        group.codes.copy_from_slice(codes);
        return group;
    }
    let (low, high) = group.codes.split_at_mut(KV_GROUP / 2);
    for ((low, high), b) in low.iter_mut().zip(high).zip(codes) {
        (*low, *high) = (b & 15, b >> 4);
    }
    group
}
