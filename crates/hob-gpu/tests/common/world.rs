//! Sequences with pages on two devices, and attention over them.

#![allow(dead_code, reason = "the tests of pages use some of it")]

use crate::common::floats::vector;
use crate::common::{buffer, contents};
use hob_compute::*;
use hob_quant::KvFormat;
use hob_testkit::rng::Rng;

/// Shape, formats and rules of a layer's attention.
#[derive(Copy, Clone, Debug)]
pub struct Of {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub k: KvFormat,
    pub v: KvFormat,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    /// How much larger scores are than usual.
    pub loud: f32,
    pub sinks: bool,
    pub latent: Option<usize>,
}

impl Of {
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize, k: KvFormat, v: KvFormat) -> Of {
        Of {
            heads,
            kv_heads,
            head_dim,
            k,
            v,
            window: None,
            softcap: None,
            loud: 1.0,
            sinks: false,
            latent: None,
        }
    }

    pub fn spec(&self) -> PageSpec {
        let Of { kv_heads, head_dim, k, v, latent, .. } = *self;
        PageSpec { kv_heads, head_dim, k, v, first: false, latent }
    }
}

/// Sequences with the values of all their positions; the loud dimensions are those that real keys have.
pub struct World {
    pub of: Of,
    pub pages: Vec<Vec<Page>>,
    pub pools: Vec<Pool>,
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl World {
    /// One sequence per length, with pages that are not in order.
    pub fn new(dev: &mut dyn Compute, of: Of, lengths: &[usize]) -> World {
        let counts: Vec<usize> = lengths.iter().map(|n| n.div_ceil(PAGE_POSITIONS)).collect();
        let total: usize = counts.iter().sum();
        let rest = dev.alloc_pages(&of.spec(), total + 1).unwrap();
        let first = match of.spec().has_first() {
            true => dev.alloc_pages(&of.spec().of_page(0), lengths.len() + 1).unwrap(),
            false => rest,
        };
        let mut free = (0..=total as u32).rev();
        let page = |seq: usize, index: usize, free: &mut dyn Iterator<Item = u32>| match index {
            0 if first != rest => Page { pool: first, index: (lengths.len() - seq) as u32 },
            _ => Page { pool: rest, index: free.next().unwrap() },
        };
        let pages = counts.iter().enumerate();
        let pages = pages.map(|(seq, &n)| (0..n).map(|i| page(seq, i, &mut free)).collect()).collect();
        let side = |seed: u64, width: usize, loud: usize| -> Vec<Vec<f32>> {
            let make = |(seq, &n): (usize, &usize)| {
                let mut values = Rng::new(seed + 10 * seq as u64).normal_vec(n * width, 1.0);
                values.iter_mut().skip(loud).step_by(width).for_each(|x| *x *= 20.0);
                values
            };
            lengths.iter().enumerate().map(make).collect()
        };
        let kv = of.kv_heads * of.head_dim;
        let (q, k, v) = (side(1, of.heads * of.head_dim, 2), side(2, kv, 5), side(3, kv, kv - 1));
        let pools = if first == rest { vec![rest] } else { vec![rest, first] };
        World { of, pages, pools, q, k, v }
    }

    fn rows(values: &[Vec<f32>], width: usize, runs: &[(usize, std::ops::Range<usize>)]) -> Vec<f32> {
        runs.iter().flat_map(|(seq, r)| &values[*seq][r.start * width..r.end * width]).copied().collect()
    }

    fn seqs(&self, runs: &[(usize, std::ops::Range<usize>)]) -> Vec<SeqRows<'_>> {
        let mut row = 0;
        let each = |(seq, range): &(usize, std::ops::Range<usize>)| {
            row += range.len();
            let (rows, position) = (range.len(), range.start);
            SeqRows { row: row - rows, rows, position, pages: &self.pages[*seq] }
        };
        runs.iter().map(each).collect()
    }

    pub fn append(&self, dev: &mut dyn Compute, runs: &[(usize, std::ops::Range<usize>)]) {
        let kv = self.of.kv_heads * self.of.head_dim;
        let count = runs.iter().map(|(_, r)| r.len()).sum();
        let k = buffer(dev, count, kv, &Self::rows(&self.k, kv, runs));
        let v = buffer(dev, count, kv, &Self::rows(&self.v, kv, runs));
        let values = if self.of.latent.is_some() { k } else { v };
        dev.append_kv(&AppendKv { k, v: values, seqs: &self.seqs(runs) }).unwrap();
        dev.free(k).unwrap();
        dev.free(v).unwrap();
    }

    /// Attention of rows that were appended before.
    pub fn attend(&self, dev: &mut dyn Compute, runs: &[(usize, std::ops::Range<usize>)]) -> Vec<f32> {
        self.with_buffers(dev, runs, |dev, args, _| dev.attend(args).unwrap())
    }

    /// Attention of rows that were not.
    pub fn attend_new(
        &self,
        dev: &mut dyn Compute,
        runs: &[(usize, std::ops::Range<usize>)],
        norms: Option<[HeadNorm; 2]>,
        rotation: Option<Rotation>,
    ) -> Vec<f32> {
        let positions: Vec<u32> = runs.iter().flat_map(|(_, r)| r.clone()).map(|p| p as u32).collect();
        self.with_buffers(dev, runs, |dev, args, [k, v]| {
            let attend = Attend { seqs: args.seqs, ..*args };
            dev.attend_new(&AttendNew { attend, k, v, norms, rotation, positions: &positions }).unwrap();
        })
    }

    fn with_buffers(
        &self,
        dev: &mut dyn Compute,
        runs: &[(usize, std::ops::Range<usize>)],
        work: impl FnOnce(&mut dyn Compute, &Attend, [Buf; 2]),
    ) -> Vec<f32> {
        let Of { heads, kv_heads, head_dim, window, softcap, loud, sinks, .. } = self.of;
        let (width, kv) = (heads * head_dim, kv_heads * head_dim);
        let count = runs.iter().map(|(_, r)| r.len()).sum();
        let q = buffer(dev, count, width, &Self::rows(&self.q, width, runs));
        let k = buffer(dev, count, kv, &Self::rows(&self.k, kv, runs));
        let v = buffer(dev, count, kv, &Self::rows(&self.v, kv, runs));
        let wide = heads * self.of.spec().value_dim();
        let out = dev.alloc(count, wide).unwrap();
        let sinks = sinks.then(|| vector(dev, &Rng::new(77).normal_vec(heads, 2.0)));
        let scale = loud * 0.3 / (head_dim as f32).sqrt();
        let seqs = self.seqs(runs);
        let args = Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs: &seqs };
        work(dev, &args, [k, if self.of.latent.is_some() { k } else { v }]);
        let found = contents(dev, out, count * wide);
        [q, k, v, out].into_iter().for_each(|buf| dev.free(buf).unwrap());
        sinks.map_or(Ok(()), |w| dev.unload(w)).unwrap();
        found
    }

    /// Images of all pages of a sequence up to position `end`.
    pub fn images(&self, dev: &mut dyn Compute, seq: usize, end: usize) -> Vec<Vec<u8>> {
        let mut image = |(index, &page): (usize, &Page)| {
            let mut out = Vec::new();
            let range = 0..(end - index * PAGE_POSITIONS).min(PAGE_POSITIONS);
            dev.read_positions(page, range, &mut out).unwrap();
            out
        };
        self.pages[seq].iter().enumerate().map(&mut image).collect()
    }

    pub fn free(self, dev: &mut dyn Compute) {
        self.pools.into_iter().for_each(|pool| dev.free_pages(pool).unwrap());
    }
}

/// How many bytes of images differ, and of how many; scales may differ in their last bit where a division does, and then
/// codes at ties.
pub fn differences(a: &[Vec<u8>], b: &[Vec<u8>]) -> (usize, usize) {
    assert_eq!(a.iter().map(Vec::len).collect::<Vec<_>>(), b.iter().map(Vec::len).collect::<Vec<_>>());
    let (a, b) = (a.concat(), b.concat());
    (a.iter().zip(&b).filter(|(a, b)| a != b).count(), a.len())
}
