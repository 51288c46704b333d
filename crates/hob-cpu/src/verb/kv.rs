//! Writing KV pages: appending rows and copying the head of a page. f32 becomes f16, rounded to nearest even.

use half::f16;

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS, PageSpec};

use super::{ALONE, Parts, each_unit};
use crate::isa::Isa;
use crate::pool::Pool;

/// K and V of consecutive positions of one page, `[rows, kv_heads * head_dim]` each.
#[derive(Copy, Clone)]
pub struct Rows<'a> {
    pub k: &'a [f32],
    pub v: &'a [f32],
    /// Position of the first row within the page.
    pub at: usize,
}

/// Writes rows into a page of `spec`; they end within it.
pub fn append(pool: &Pool, isa: Isa, spec: &PageSpec, page: &mut [u16], rows: Rows) {
    let page = Parts::new(page);
    let width = spec.kv_heads * spec.head_dim;
    let head = |_: usize, kv_head: usize| {
        let start = kv_head * spec.head_values();
        // SAFETY: every unit is another KV head, whose values are its own.
        let values = unsafe { page.part(start..start + spec.head_values()) };
        let dims = kv_head * spec.head_dim..(kv_head + 1) * spec.head_dim;
        let pairs = rows.k.chunks_exact(width).zip(rows.v.chunks_exact(width));
        for (at, (k, v)) in (rows.at..).zip(pairs) {
            append_position(isa, spec, values, at, (&k[dims.clone()], &v[dims.clone()]));
        }
    };
    if rows.k.len() < ALONE {
        (0..spec.kv_heads).for_each(|kv_head| head(0, kv_head));
    } else {
        each_unit(pool, spec.kv_heads, &head);
    }
}

/// Writes K and V (`head_dim` floats each) of position `at` into the values of their KV head.
fn append_position(isa: Isa, spec: &PageSpec, values: &mut [u16], at: usize, (k, v): (&[f32], &[f32])) {
    let (k_at, v_at) = (spec.k_at(0, at, 0), spec.v_at(0, at));
    let v_out = &mut values[v_at..v_at + spec.head_dim];
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        // SAFETY: the ISA class was detected; the slices check their lengths.
        unsafe {
            f16c::contiguous(v, v_out);
            f16c::strided(k, &mut values[k_at..]);
        }
        return;
    }
    let _ = isa;
    v_out.iter_mut().zip(v).for_each(|(o, &x)| *o = f16::from_f32(x).to_bits());
    for (o, &x) in values[k_at..].iter_mut().step_by(BLOCK_POSITIONS).zip(k) {
        *o = f16::from_f32(x).to_bits();
    }
}

/// Copies the first `positions` positions of a page of `spec`.
pub fn copy_page(spec: &PageSpec, from: &[u16], to: &mut [u16], positions: usize) {
    for head in 0..spec.kv_heads {
        for block in 0..positions.min(PAGE_POSITIONS).div_ceil(BLOCK_POSITIONS) {
            let n = (positions - block * BLOCK_POSITIONS).min(BLOCK_POSITIONS);
            let k = spec.k_block(head, block);
            for row in (k..).step_by(BLOCK_POSITIONS).take(spec.head_dim) {
                to[row..row + n].copy_from_slice(&from[row..row + n]);
            }
            let v = k + BLOCK_POSITIONS * spec.head_dim;
            to[v..v + n * spec.head_dim].copy_from_slice(&from[v..v + n * spec.head_dim]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod f16c {
    use std::arch::x86_64::*;

    use half::f16;
    use hob_compute::BLOCK_POSITIONS;

    /// # Safety
    /// Needs AVX2 and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn contiguous(x: &[f32], out: &mut [u16]) {
        let n = x.len().min(out.len());
        for i in (0..n / 8 * 8).step_by(8) {
            // SAFETY: i + 8 <= n.
            unsafe {
                let h = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr().add(i)));
                _mm_storeu_si128(out.as_mut_ptr().add(i).cast(), h);
            }
        }
        for i in n / 8 * 8..n {
            out[i] = f16::from_f32(x[i]).to_bits();
        }
    }

    /// Value `i` goes to `out[64 * i]`.
    ///
    /// # Safety
    /// Needs AVX2 and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn strided(x: &[f32], out: &mut [u16]) {
        let mut halves = [0u16; 8];
        for (i, chunk) in x.chunks(8).enumerate() {
            // SAFETY: exactly 8 values at both ends.
            unsafe { contiguous(chunk, &mut halves[..chunk.len()]) };
            for (j, &h) in halves[..chunk.len()].iter().enumerate() {
                out[(8 * i + j) * BLOCK_POSITIONS] = h;
            }
        }
    }
}
