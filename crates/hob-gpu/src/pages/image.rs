//! Images of positions, made of a page's bytes on the host. It must not know devices.

use std::ops::Range;

use hob_compute::{BLOCK_POSITIONS, PageSpec};
use hob_quant::{KV_GROUP, KvFormat};

/// Appends the image of positions `range` of `page` to `out`.
pub fn read(spec: &PageSpec, exact: bool, range: Range<usize>, page: &[u8], out: &mut Vec<u8>) {
    if exact {
        for at in spec.values_of(range) {
            out.extend(&page[4 * at..4 * at + 4]);
        }
        return;
    }
    for at in range {
        each_vector(spec, at, |vector| {
            let start = out.len();
            out.resize(start + vector.format.vector_bytes(spec.head_dim), 0);
            vector.move_bytes(&mut Reading { page: &page[vector.part.clone()], image: &mut out[start..] });
        });
    }
}

/// Puts the image of positions `range` into `page`.
pub fn write(spec: &PageSpec, exact: bool, range: Range<usize>, image: &[u8], page: &mut [u8]) {
    if exact {
        for (at, value) in spec.values_of(range).zip(image.as_chunks::<4>().0) {
            page[4 * at..4 * at + 4].copy_from_slice(value);
        }
        return;
    }
    let mut rest = image;
    for at in range {
        each_vector(spec, at, |vector| {
            let (here, after) = rest.split_at(vector.format.vector_bytes(spec.head_dim));
            rest = after;
            vector.move_bytes(&mut Writing { page: &mut page[vector.part.clone()], image: here });
        });
    }
}

/// A vector of one position within its part of a page.
struct Vector {
    part: Range<usize>,
    format: KvFormat,
    is_key: bool,
    /// Position within the block.
    at: usize,
    head_dim: usize,
}

/// Calls `work` for K and V of every KV head at position `at`.
fn each_vector(spec: &PageSpec, at: usize, mut work: impl FnMut(Vector)) {
    let block = at / BLOCK_POSITIONS;
    let formats = [spec.k_format(block), spec.v_format(block)];
    for head in 0..spec.kv_heads {
        let parts = spec.parts(head, block).into_iter().zip(formats).zip([true, false]);
        for ((part, format), is_key) in parts.take(spec.stored_vectors()) {
            work(Vector { part, format, is_key, at: at % BLOCK_POSITIONS, head_dim: spec.head_dim });
        }
    }
}

/// A direction: bytes, or nibbles (shift 0 or 4 in either), from a place in the page to one in the image or back.
trait Direction {
    fn byte(&mut self, page: usize, image: usize);
    fn nibble(&mut self, page: (usize, u32), image: (usize, u32));
}

struct Reading<'a> {
    page: &'a [u8],
    image: &'a mut [u8],
}

impl Direction for Reading<'_> {
    fn byte(&mut self, page: usize, image: usize) {
        self.image[image] = self.page[page];
    }

    fn nibble(&mut self, page: (usize, u32), image: (usize, u32)) {
        put(&mut self.image[image.0], image.1, self.page[page.0] >> page.1 & 15);
    }
}

struct Writing<'a> {
    page: &'a mut [u8],
    image: &'a [u8],
}

impl Direction for Writing<'_> {
    fn byte(&mut self, page: usize, image: usize) {
        self.page[page] = self.image[image];
    }

    fn nibble(&mut self, page: (usize, u32), image: (usize, u32)) {
        put(&mut self.page[page.0], page.1, self.image[image.0] >> image.1 & 15);
    }
}

fn put(byte: &mut u8, shift: u32, nibble: u8) {
    *byte = *byte & !(15 << shift) | nibble << shift;
}

impl Vector {
    fn move_bytes(&self, to: &mut impl Direction) {
        let Vector { format, is_key, at, head_dim, .. } = *self;
        let groups = head_dim / KV_GROUP;
        if !format.is_packed() {
            for dim in 0..head_dim {
                let value = if is_key { dim * BLOCK_POSITIONS + at } else { at * head_dim + dim };
                (0..2).for_each(|i| to.byte(2 * value + i, 2 * dim + i));
            }
            return;
        }
        let size = format.vector_bytes(KV_GROUP);
        let scales = if format == KvFormat::Asym4 { 2 } else { 1 };
        let codes = 2 * BLOCK_POSITIONS * groups * scales;
        for g in 0..groups {
            for s in 0..scales {
                let page = 2 * ((s * groups + g) * BLOCK_POSITIONS + at);
                (0..2).for_each(|i| to.byte(page + i, g * size + 2 * s + i));
            }
            for i in 0..KV_GROUP {
                let (dim, image) = (g * KV_GROUP + i, g * size + 2 * scales);
                if format == KvFormat::Q8 {
                    let pair = if is_key {
                        (dim / 2 * BLOCK_POSITIONS + at) * 2 + dim % 2
                    } else {
                        (at / 2 * head_dim + dim) * 2 + at % 2
                    };
                    to.byte(codes + pair, image + i);
                    continue;
                }
                let (byte, high) = if is_key {
                    (((g * 4 + i / 8) * BLOCK_POSITIONS + at) * 4 + i % 4, i % 8 / 4)
                } else {
                    ((at / 8 * head_dim + dim) * 4 + at % 4, at % 8 / 4)
                };
                to.nibble((codes + byte, 4 * high as u32), (image + i % 16, 4 * (i / 16) as u32));
            }
        }
    }
}
