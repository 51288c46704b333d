//! What packed KV is compared with: the whole cache decoded to f32, then attended to. A decent implementation: decoded
//! with vectors, read once per KV head for all of its query heads, one KV head per thread at a time. It works on the
//! image of positions, which is how caches in other engines lie: vector after vector.

use hob_compute::math;
use hob_cpu::pool::Pool;
use hob_quant::{KV_GROUP, KvFormat};

/// Whether this CPU has what [`Cache::attend`] needs.
pub fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// A cache as an image of positions, and room for it as f32.
pub struct Cache {
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Formats of K and V at every position.
    pub formats: Vec<[KvFormat; 2]>,
    /// Of each position, for every KV head K then V.
    pub image: Vec<u8>,
    /// `[2, kv_heads, positions, head_dim]`
    pub wide: Vec<f32>,
}

/// Memory that threads write to in disjoint parts.
#[derive(Copy, Clone)]
struct Shared(*mut f32);

// SAFETY: every KV head has its own part.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// Inside, and nobody else's.
    #[allow(clippy::mut_from_ref, reason = "that is what this type is for; see the safety section")]
    unsafe fn part(&self, at: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

impl Cache {
    fn positions(&self) -> usize {
        self.formats.len()
    }

    /// Decodes everything, then attends with one row: `q` and `out` are `[heads, head_dim]`, both as K and V are
    /// stored, rotated or not; `q` is scaled so that scores count in powers of 2.
    ///
    /// # Safety
    /// It must be [`available`].
    pub unsafe fn attend(&mut self, pool: &Pool, q: &[f32], out: &mut [f32]) {
        let (dim, positions) = (self.head_dim, self.positions());
        let group = q.len() / dim / self.kv_heads;
        let mut scores = vec![0f32; q.len() / dim * positions];
        let (wide, all) = (Shared(self.wide.as_mut_ptr()), self.wide.len());
        let (scores, out) = (Shared(scores.as_mut_ptr()), Shared(out.as_mut_ptr()));
        let heads = std::sync::atomic::AtomicUsize::new(0);
        let cache = &*self;
        pool.run(&|_| {
            loop {
                let head = heads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if head >= cache.kv_heads {
                    break;
                }
                // SAFETY: parts of this KV head; the features are the caller's word.
                unsafe {
                    let values = positions * dim;
                    let k = wide.part(head * values, values);
                    let v = wide.part(all / 2 + head * values, values);
                    decode(cache, head, k, v);
                    let q = &q[head * group * dim..][..group * dim];
                    let scores = scores.part(head * group * positions, group * positions);
                    plain(dim, q, [k, v], scores, out.part(head * group * dim, group * dim));
                }
            }
        });
    }
}

/// Decodes a KV head.
///
/// # Safety
/// Needs AVX2, FMA, F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode(cache: &Cache, head: usize, k: &mut [f32], v: &mut [f32]) {
    let dim = cache.head_dim;
    let mut at = 0;
    let rows = k.chunks_exact_mut(dim).zip(v.chunks_exact_mut(dim));
    for (formats, (k, v)) in cache.formats.iter().zip(rows) {
        let [kb, vb] = formats.map(|f| f.vector_bytes(dim));
        let from = at + head * (kb + vb);
        vector(formats[0], &cache.image[from..][..kb], k);
        vector(formats[1], &cache.image[from + kb..][..vb], v);
        at += cache.kv_heads * (kb + vb);
    }
}

/// Decodes one vector, in loops that become vector code.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn vector(format: KvFormat, bytes: &[u8], out: &mut [f32]) {
    use std::arch::x86_64::*;
    let half = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]).to_f32();
    match format {
        KvFormat::Q8 => {
            for (b, out) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<KV_GROUP>().0) {
                let d = half(b);
                for (o, &code) in out.iter_mut().zip(&b[2..]) {
                    *o = f32::from(code as i8) * d;
                }
            }
        }
        KvFormat::Q4 => {
            for (b, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<KV_GROUP>().0) {
                let d = half(b);
                let (low, high) = out.split_at_mut(KV_GROUP / 2);
                for ((l, h), &byte) in low.iter_mut().zip(high).zip(&b[2..]) {
                    *l = (i32::from(byte & 15) - 8) as f32 * d;
                    *h = (i32::from(byte >> 4) - 8) as f32 * d;
                }
            }
        }
        KvFormat::F16 => {
            for (b, out) in bytes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<8>().0) {
                // SAFETY: 16 bytes and 8 floats.
                unsafe {
                    let halves = _mm_loadu_si128(b.as_ptr().cast());
                    _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(halves));
                }
            }
        }
        KvFormat::Bf16 | KvFormat::Asym4 => hob_quant::decode_kv(format, bytes, out),
    }
}

/// Plain attention of the query heads of a KV head over f32 K and V, in blocks that stay in the cache for all of them.
/// `scores` is `[heads, positions]`.
///
/// # Safety
/// Needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn plain(dim: usize, q: &[f32], [k, v]: [&[f32]; 2], scores: &mut [f32], out: &mut [f32]) {
    const BLOCK: usize = 32;
    let positions = k.len() / dim;
    for (block, k) in k.chunks(BLOCK * dim).enumerate() {
        for (q, scores) in q.chunks_exact(dim).zip(scores.chunks_exact_mut(positions)) {
            for (score, k) in scores[block * BLOCK..].iter_mut().zip(k.chunks_exact(dim)) {
                *score = dot(q, k);
            }
        }
    }
    for scores in scores.chunks_exact_mut(positions) {
        let most = math::max(scores);
        scores.iter_mut().for_each(|s| *s = math::exp2(*s - most));
        let sum = math::sum16(scores);
        scores.iter_mut().for_each(|s| *s /= sum);
    }
    out.fill(0.0);
    for (block, v) in v.chunks(BLOCK * dim).enumerate() {
        for (out, p) in out.chunks_exact_mut(dim).zip(scores.chunks_exact(positions)) {
            for (p, v) in p[block * BLOCK..].iter().zip(v.chunks_exact(dim)) {
                out.iter_mut().zip(v).for_each(|(o, v)| *o = p.mul_add(*v, *o));
            }
        }
    }
}

/// In four vectors of sums.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 32];
    for (a, b) in a.as_chunks::<32>().0.iter().zip(b.as_chunks::<32>().0) {
        for i in 0..32 {
            sums[i] = a[i].mul_add(b[i], sums[i]);
        }
    }
    sums.iter().sum()
}
