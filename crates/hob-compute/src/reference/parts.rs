//! One vector of K and one block of V in every format, for [`super::attention`], where the rules stand.

use hob_quant::{KV_GROUP, KvFormat, decode_kv, hadamard, kv_groups};

use crate::math;

/// A group of a query made of integers.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct QueryGroup {
    pub scale: f32,
    pub codes: [i32; KV_GROUP],
}

impl QueryGroup {
    /// The codes' largest magnitude is `most`, 127 or 32767.
    pub fn new(q: &[f32; KV_GROUP], most: f32) -> QueryGroup {
        // In bits a NaN is larger than any number.
        let largest = q.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).fold(0, u32::max);
        let largest = f32::from_bits(largest);
        let factor = most / largest;
        let usable = factor.is_finite() && largest.is_finite();
        let code = |x: f32| if usable { (x * factor).round_ties_even() as i32 } else { 0 };
        QueryGroup { scale: largest / most, codes: q.map(code) }
    }
}

/// A query head in the forms that K of one side is multiplied by.
pub(super) struct Prepared {
    /// `[head_dim]`, rotated where K is.
    q: Vec<f32>,
    groups: Vec<QueryGroup>,
}

impl Prepared {
    pub fn new(q: &[f32], k: KvFormat) -> Prepared {
        let mut q = q.to_vec();
        if k.is_rotated() {
            hadamard(&mut q);
        }
        let most = if k == KvFormat::Q8 { 32767.0 } else { 127.0 };
        let groups = q.as_chunks().0.iter().map(|q| QueryGroup::new(q, most)).collect();
        Prepared { q, groups }
    }

    /// `q . k` for a K vector stored in `format`.
    pub fn dot(&self, format: KvFormat, k: &[u8]) -> f32 {
        if !format.is_packed() {
            let mut wide = vec![0f32; self.q.len()];
            decode_kv(format, k, &mut wide);
            return self.q.iter().zip(&wide).fold(0f32, |acc, (x, &k)| x.mul_add(k, acc));
        }
        let mut dot = 0f32;
        for (q, k) in self.groups.iter().zip(kv_groups(format, k)) {
            let int: i32 = q.codes.iter().zip(k.codes).map(|(q, k)| q * i32::from(k)).sum();
            dot = (int as f32).mul_add(q.scale * k.scale, dot);
            if format == KvFormat::Asym4 {
                let sum: i32 = q.codes.iter().sum();
                dot = (sum as f32).mul_add(q.scale * k.minimum, dot);
            }
        }
        dot
    }
}

/// Adds the V vectors of a block's visible positions, stored in `format` and weighted by `p`.
pub(super) fn weigh(format: KvFormat, p: &[f32], v: &[&[u8]], acc: &mut [f32]) {
    if !format.is_packed() {
        let mut wide = vec![0f32; acc.len()];
        for (p, v) in p.iter().zip(v) {
            decode_kv(format, v, &mut wide);
            acc.iter_mut().zip(&wide).for_each(|(a, v)| *a = p.mul_add(*v, *a));
        }
        return;
    }
    let most = if format == KvFormat::Q8 { 32767.0 } else { 255.0 };
    let v: Vec<Vec<_>> = v.iter().map(|v| kv_groups(format, v).collect()).collect();
    for (g, acc) in acc.as_chunks_mut::<KV_GROUP>().0.iter_mut().enumerate() {
        let x: Vec<f32> = p.iter().zip(&v).map(|(p, v)| p * v[g].scale).collect();
        let m = math::max(&x);
        let factor = most / m;
        if factor.is_finite() {
            let w = x.iter().map(|x| (x * factor).round_ties_even() as i32);
            let mut int = [0i32; KV_GROUP];
            for (w, v) in w.zip(&v) {
                int.iter_mut().zip(v[g].codes).for_each(|(i, code)| *i += w * i32::from(code));
            }
            acc.iter_mut().zip(int).for_each(|(a, i)| *a = (i as f32).mul_add(m / most, *a));
        }
        let minima = p.iter().zip(&v).fold(0f32, |sum, (p, v)| p.mul_add(v[g].minimum, sum));
        if format == KvFormat::Asym4 && minima != 0.0 {
            acc.iter_mut().for_each(|a| *a += minima);
        }
    }
}
