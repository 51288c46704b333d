//! KV pages in memory: appending rows, copying the head of a page, images of positions. Where a value lies is
//! `hob_compute`'s `page.rs`; what it becomes is `hob_quant::KvFormat`. It must not know attention.

/// Calls `$f($args)` compiled for the ISA class.
macro_rules! compiled {
    ($isa:expr, $f:path, $($name:ident: $type:ty),*) => {{
        #[cfg(target_arch = "x86_64")]
        {
            /// # Safety
            /// Needs AVX2, FMA, F16C.
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($name: $type),*) {
                $f($($name),*)
            }
            if $isa >= Isa::Avx2 {
                // SAFETY: the ISA class was detected.
                return unsafe { avx2($($name),*) };
            }
        }
        let _ = $isa;
        $f($($name),*)
    }};
}

#[cfg(target_arch = "x86_64")]
mod avx2;
mod image;
mod lay;
mod turn;

use hob_compute::{BLOCK_POSITIONS, PAGE_POSITIONS, PageSpec};
use hob_quant::{KV_GROUP, KvFormat, asym4_group, encode_kv, q4_group, q8_group};

use super::{ALONE, Parts, each_unit};
use crate::isa::Isa;
use crate::pool::Pool;
pub use image::{read, write};
use lay::{Group, Place, Side, by_layout};
pub use turn::turn;

/// K and V of consecutive positions of one page, `[rows, kv_heads * head_dim]` each.
#[derive(Copy, Clone)]
pub struct Rows<'a> {
    pub k: &'a [f32],
    pub v: &'a [f32],
    /// Position of the first row within the page.
    pub at: usize,
}

/// [`hob_quant::hadamard`]
pub fn hadamard(isa: Isa, x: &mut [f32]) {
    rotate(isa >= Isa::Avx2, x);
}

/// Writes rows into a page of `spec`; they end within it.
pub fn append(pool: &Pool, isa: Isa, spec: &PageSpec, page: &mut [u8], rows: Rows) {
    let page = Parts::new(page);
    let head = |_: usize, kv_head: usize| {
        let start = kv_head * spec.head_bytes();
        // SAFETY: every unit is another KV head, whose bytes are its own.
        let bytes = unsafe { page.part(start..start + spec.head_bytes()) };
        append_head(isa, Head { spec, kv_head, bytes }, rows);
    };
    if rows.k.len() < ALONE {
        (0..spec.kv_heads).for_each(|kv_head| head(0, kv_head));
    } else {
        each_unit(pool, spec.kv_heads, &head);
    }
}

/// A KV head of a page.
struct Head<'a> {
    spec: &'a PageSpec,
    kv_head: usize,
    bytes: &'a mut [u8],
}

fn append_head(isa: Isa, head: Head, rows: Rows) {
    #[cfg(target_arch = "x86_64")]
    {
        /// # Safety
        /// Needs AVX2, FMA, F16C.
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2(head: Head, rows: Rows) {
            append_sides::<true>(head, rows);
        }
        if isa >= Isa::Avx2 {
            // SAFETY: the ISA class was detected.
            return unsafe { avx2(head, rows) };
        }
    }
    let _ = isa;
    append_sides::<false>(head, rows);
}

/// `AVX2` says that there is, and that the caller is compiled for it.
#[inline(always)]
fn append_sides<const AVX2: bool>(head: Head, rows: Rows) {
    let Head { spec, kv_head, bytes } = head;
    let (dim, width) = (spec.head_dim, spec.kv_heads * spec.head_dim);
    for (x, side) in [(rows.k, Side::K), (rows.v, Side::V)].into_iter().take(spec.stored_vectors()) {
        let count = x.len() / width;
        let mut done = 0;
        while done < count {
            let (block, at) = ((rows.at + done) / BLOCK_POSITIONS, (rows.at + done) % BLOCK_POSITIONS);
            let here = (BLOCK_POSITIONS - at).min(count - done);
            let x = &x[done * width + kv_head * dim..];
            let [k, v] = spec.parts(0, block);
            let (format, stored, part) = match side {
                Side::K => (spec.k, spec.k_format(block), k),
                Side::V => (spec.v, spec.v_format(block), v),
            };
            let vectors = Vectors { x, width, count: here, rotated: format.is_rotated() };
            let (part, place) = (&mut bytes[part], Place { dim, at });
            by_layout!(side, stored, store_vectors(&vectors, part, place, AVX2));
            done += here;
        }
    }
}

/// One side of neighboring rows of a KV head.
struct Vectors<'a> {
    /// The first vector begins here, each following one `width` later.
    x: &'a [f32],
    width: usize,
    count: usize,
    rotated: bool,
}

/// Dimensions for which the stack has room; wider heads take memory.
const STACK: usize = 1024;

/// Encodes vectors into their places of a part, the first at `place`.
#[inline(always)]
fn store_vectors(side: Side, format: KvFormat, vectors: &Vectors, part: &mut [u8], first: Place, avx2: bool) {
    let (mut stack, mut heap) = ([0f32; STACK], Vec::new());
    let rotated = if first.dim <= STACK {
        &mut stack[..first.dim]
    } else {
        heap.resize(first.dim, 0f32);
        &mut heap[..]
    };
    for i in 0..vectors.count {
        let mut x = &vectors.x[i * vectors.width..][..first.dim];
        if vectors.rotated {
            rotated.copy_from_slice(x);
            rotate(avx2, rotated);
            x = rotated;
        }
        let place = Place { at: first.at + i, ..first };
        if format.is_packed() {
            for (g, x) in x.as_chunks::<KV_GROUP>().0.iter().enumerate() {
                lay::put_group(side, format, part, place, g, &encode(avx2, format, x));
            }
            continue;
        }
        for (g, x) in x.chunks(KV_GROUP).enumerate() {
            let mut halves = [0u8; 2 * KV_GROUP];
            let halves = &mut halves[..2 * x.len()];
            encode_halves(avx2, format, x, halves);
            lay::put_halves(side, part, place, g * KV_GROUP, halves);
        }
    }
}

#[inline(always)]
fn rotate(avx2: bool, x: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if avx2 {
        // SAFETY: the caller's word.
        return unsafe { avx2::hadamard(x) };
    }
    let _ = avx2;
    hob_quant::hadamard(x);
}

#[inline(always)]
fn encode_halves(avx2: bool, format: KvFormat, x: &[f32], halves: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if avx2 && format == KvFormat::F16 {
        // SAFETY: the caller's word.
        return unsafe { avx2::halves(x, halves) };
    }
    let _ = avx2;
    encode_kv(format, x, halves);
}

/// A group of a packed format.
#[inline(always)]
fn encode(avx2: bool, format: KvFormat, x: &[f32; KV_GROUP]) -> Group {
    #[cfg(target_arch = "x86_64")]
    if avx2 && format != KvFormat::Asym4 {
        // SAFETY: the caller's word.
        let (d, codes) = unsafe { if format == KvFormat::Q8 { avx2::q8(x) } else { avx2::q4(x) } };
        return Group { d, m: None, codes };
    }
    let _ = avx2;
    match format {
        KvFormat::Q8 => {
            let (d, codes) = q8_group(x);
            Group { d, m: None, codes: codes.map(|c| c as u8) }
        }
        KvFormat::Asym4 => {
            let (d, m, codes) = asym4_group(x);
            Group { d, m: Some(m), codes }
        }
        _ => {
            let (d, codes) = q4_group(x);
            Group { d, m: None, codes: codes.map(|c| (c + 8) as u8) }
        }
    }
}

/// Copies the first `positions` positions of a page of `spec`.
pub fn copy_page(spec: &PageSpec, from: &[u8], to: &mut [u8], positions: usize) {
    for head in 0..spec.kv_heads {
        for block in 0..positions.min(PAGE_POSITIONS).div_ceil(BLOCK_POSITIONS) {
            let n = (positions - block * BLOCK_POSITIONS).min(BLOCK_POSITIONS);
            let [k, v] = spec.parts(head, block);
            let sides = [(Side::K, k, spec.k_format(block)), (Side::V, v, spec.v_format(block))];
            for (side, part, format) in sides.into_iter().take(spec.stored_vectors()) {
                let (from, to) = (&from[part.clone()], &mut to[part]);
                if n == BLOCK_POSITIONS {
                    to.copy_from_slice(from);
                } else {
                    (0..n).for_each(|at| lay::copy(side, format, from, to, Place { dim: spec.head_dim, at }));
                }
            }
        }
    }
}
