//! Pages of the oracle: images of their positions, or f32 values on an exact device. It must not know attention.

use std::ops::Range;

use hob_quant::{encode_kv, hadamard};

use super::attention::Held;
use super::zeroed;
use crate::{BLOCK_POSITIONS, PAGE_POSITIONS, PageSpec, Result, check};

/// A pool of pages.
pub(super) struct Pages {
    pub spec: PageSpec,
    pub count: usize,
    held: Storage,
}

enum Storage {
    Exact(Vec<f32>),
    Images(Vec<u8>),
}

impl Pages {
    pub fn new(spec: &PageSpec, count: usize, exact: bool) -> Result<Pages> {
        let values = check::alloc_pages(spec, count)?;
        let held = match exact {
            true => Storage::Exact(zeroed(values, 0f32)?),
            false => Storage::Images(zeroed(spec.page_bytes() * count, 0u8)?),
        };
        Ok(Pages { spec: *spec, count, held })
    }

    pub fn bytes(&self) -> u64 {
        match &self.held {
            Storage::Exact(values) => values.len() as u64 * 4,
            Storage::Images(bytes) => bytes.len() as u64,
        }
    }

    /// What page `index` holds.
    pub fn held(&self, index: u32) -> Held<'_> {
        match &self.held {
            Storage::Exact(values) => Held::Exact(&values[self.span(index, values.len())]),
            Storage::Images(bytes) => Held::Image(&bytes[self.span(index, bytes.len())]),
        }
    }

    fn span(&self, index: u32, len: usize) -> Range<usize> {
        let each = len / self.count;
        index as usize * each..(index as usize + 1) * each
    }

    /// Bytes of an image of some positions.
    pub fn image_bytes(&self, range: Range<usize>) -> usize {
        match self.held {
            Storage::Exact(_) => 4 * self.spec.position_values() * range.len(),
            Storage::Images(_) => self.spec.image_bytes(range),
        }
    }

    pub fn read(&self, index: u32, range: Range<usize>, out: &mut Vec<u8>) {
        match self.held(index) {
            Held::Exact(values) => {
                self.spec.values_of(range).for_each(|i| out.extend(values[i].to_le_bytes()));
            }
            Held::Image(image) => out.extend(&image[self.in_image(range)]),
        }
    }

    pub fn write(&mut self, index: u32, range: Range<usize>, bytes: &[u8]) {
        let (spec, within) = (self.spec, self.in_image(range.clone()));
        match &mut self.held {
            Storage::Exact(values) => {
                let start = index as usize * (values.len() / self.count);
                let floats = bytes.as_chunks::<4>().0;
                spec.values_of(range)
                    .zip(floats)
                    .for_each(|(i, &b)| values[start + i] = f32::from_le_bytes(b));
            }
            Storage::Images(images) => {
                let start = index as usize * (images.len() / self.count);
                images[start..][within].copy_from_slice(bytes);
            }
        }
    }

    /// Where positions lie in a page's image.
    fn in_image(&self, range: Range<usize>) -> Range<usize> {
        let start = self.spec.image_bytes(0..range.start);
        start..start + self.spec.image_bytes(range)
    }

    /// Writes K and V, `[kv_heads * head_dim]` each, of position `at` within page `index`.
    pub fn append(&mut self, index: u32, at: usize, (k, v): (&[f32], &[f32])) {
        debug_assert!(at < PAGE_POSITIONS);
        let spec = self.spec;
        let mut image = Vec::new();
        for (k, v) in k.chunks(spec.head_dim).zip(v.chunks(spec.head_dim)) {
            for (x, side, format) in [
                (k, spec.k, spec.k_format(at / BLOCK_POSITIONS)),
                (v, spec.v, spec.v_format(at / BLOCK_POSITIONS)),
            ]
            .into_iter()
            .take(spec.stored_vectors())
            {
                if let Storage::Exact(_) = self.held {
                    image.extend(x.iter().flat_map(|x| x.to_le_bytes()));
                    continue;
                }
                let mut x = x.to_vec();
                if side.is_rotated() {
                    hadamard(&mut x);
                }
                let start = image.len();
                image.resize(start + format.vector_bytes(spec.head_dim), 0);
                encode_kv(format, &x, &mut image[start..]);
            }
        }
        self.write(index, at..at + 1, &image);
    }
}
