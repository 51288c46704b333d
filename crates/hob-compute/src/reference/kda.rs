//! The gated delta rule where every channel of the key fades by itself (Kimi Team 2025, "Kimi Linear": Kimi Delta
//! Attention) in its two forms, operation by operation.
//!
//! No exponent is ever above 0, so nothing overflows however strong the decay: a score of two rows is made of what fades
//! between them, by way of a row between the two where that lets products be shared.

use super::delta::Head;
use crate::math;

/// Rows between which every pair of rows has exponentials of its own.
pub const BLOCK: usize = 16;

impl Head<'_> {
    /// Whether every channel of the key fades by itself.
    pub(super) fn by_channel(&self) -> bool {
        self.log_decay.len() != self.beta.len()
    }

    /// Row by row: `S[d] = a[d] * S[d]`; `p = S^T k` and `w = S^T q` by fma over ascending key dimension;
    /// `u = b * (v - p)`; `S = fma(k, u, S)`; `o = fma(k . q, u, w)`.
    pub(super) fn recurrent_by_channel(&self, s: &mut [f32], out: &mut [f32]) {
        let (dk, dv) = (self.key_dim, self.value_dim);
        for i in 0..self.beta.len() {
            let (q, k) = (&self.q[i * dk..][..dk], &self.k[i * dk..][..dk]);
            let kq = math::dot16(k, q);
            for (s, g) in s.chunks_mut(dv).zip(&self.log_decay[i * dk..]) {
                let a = math::exp(*g);
                s.iter_mut().for_each(|s| *s *= a);
            }
            for c in 0..dv {
                let column =
                    |x: &[f32]| x.iter().enumerate().fold(0f32, |sum, (d, x)| x.mul_add(s[d * dv + c], sum));
                let (p, w) = (column(k), column(q));
                let u = self.beta[i] * (self.v[i * dv + c] - p);
                out[i * dv + c] = kq.mul_add(u, w);
                for (d, k) in k.iter().enumerate() {
                    s[d * dv + c] = k.mul_add(u, s[d * dv + c]);
                }
            }
        }
    }

    /// All rows at once, with `G[i][d]` the running sums of the logarithms: as [`Head::chunked`], but that rows of k and q
    /// that meet the state are `k[i][d] * exp(G[i][d])`, those that are added to it `k[i][d] * exp(G[last][d] - G[i][d])`,
    /// and a score is the fma over ascending d of `(x[d] * exp(G[i][d] - G[j][d])) * k[j][d]`, or of
    /// `(x[d] * exp(G[i][d] - G[r][d])) * (k[j][d] * exp(G[r][d] - G[j][d]))` where j comes before r, the first row of the
    /// [`BLOCK`] of i.
    pub(super) fn chunked_by_channel(&self, s: &mut [f32], out: &mut [f32]) {
        let (dk, dv, rows) = (self.key_dim, self.value_dim, self.beta.len());
        let mut sums = self.log_decay.to_vec();
        (dk..rows * dk).for_each(|i| sums[i] += sums[i - dk]);
        let faded = |i: usize, j: usize, d: usize| math::exp(sums[i * dk + d] - sums[j * dk + d]);
        let kept = |i: usize, d: usize| math::exp(sums[i * dk + d]);
        let (q, k) = (|i: usize| &self.q[i * dk..][..dk], |i: usize| &self.k[i * dk..][..dk]);
        let score = |x: &[f32], i: usize, j: usize| {
            let first = i / BLOCK * BLOCK;
            x.iter().zip(k(j)).enumerate().fold(0f32, |sum, (d, (x, k))| match j >= first {
                true => (x * faded(i, j, d)).mul_add(*k, sum),
                false => (x * faded(i, first, d)).mul_add(k * faded(first, j, d), sum),
            })
        };
        let mut u = vec![0f32; rows * dv];
        for i in 0..rows {
            let b = self.beta[i];
            for c in 0..dv {
                let column = |x: &[f32]| {
                    let terms = x.iter().enumerate();
                    terms.fold(0f32, |sum, (d, x)| (x * kept(i, d)).mul_add(s[d * dv + c], sum))
                };
                u[i * dv + c] = b * (self.v[i * dv + c] - column(k(i)));
                out[i * dv + c] = column(q(i));
            }
            for j in 0..=i {
                let (to_k, to_q) = (-(b * score(k(i), i, j)), score(q(i), i, j));
                for c in 0..dv {
                    if j < i {
                        u[i * dv + c] = to_k.mul_add(u[j * dv + c], u[i * dv + c]);
                    }
                    out[i * dv + c] = to_q.mul_add(u[j * dv + c], out[i * dv + c]);
                }
            }
        }
        let last = rows - 1;
        for (d, s) in s.chunks_mut(dv).enumerate() {
            s.iter_mut().for_each(|s| *s *= kept(last, d));
        }
        for i in 0..rows {
            for (d, k) in k(i).iter().enumerate() {
                let by = k * faded(last, i, d);
                for c in 0..dv {
                    s[d * dv + c] = by.mul_add(u[i * dv + c], s[d * dv + c]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::delta::unit;

    /// A simple seeded generator of values in -1..1.
    fn values(seed: u64, n: usize) -> Vec<f32> {
        let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn run(head: &Head, chunked: bool) -> Vec<f32> {
        let mut s = values(6, head.key_dim * head.value_dim);
        let mut out = vec![0f32; head.beta.len() * head.value_dim];
        match chunked {
            true => head.chunked(&mut s, &mut out),
            false => head.recurrent(&mut s, &mut out, &mut []),
        }
        out.extend(s);
        out
    }

    fn close(a: &[f32], b: &[f32], what: &str) {
        let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let size = b.iter().fold(1f32, |m, b| m.max(b.abs()));
        assert!(a.iter().all(|x| x.is_finite()) && apart < 2e-5 * size, "{what}: {apart} of {size}");
    }

    /// From channels that keep everything to channels that keep nothing, also side by side; and channels that are alike
    /// are a head.
    #[test]
    fn both_forms_agree_and_equal_channels_are_a_head() {
        for (rows, dk, dv) in [(1, 16, 16), (64, 16, 32), (64, 128, 16), (37, 32, 16)] {
            let [mut q, mut k] = [1, 2].map(|seed| values(seed, rows * dk));
            (dk..rows * dk).for_each(|i| k[i] = 0.7 * k[i - dk] + 0.7 * k[i]);
            for x in q.chunks_mut(dk).chain(k.chunks_mut(dk)) {
                let given = x.to_vec();
                unit(&given, 1.0, x);
            }
            let (v, beta) =
                (values(3, rows * dv), values(4, rows).iter().map(|x| 0.5 + 0.49 * x).collect::<Vec<_>>());
            for fades in [[0.0, 0.0], [0.02, 0.02], [3.0, 3.0], [0.01, 90.0], [200.0, 200.0]] {
                let noise = values(5, rows * dk);
                let decay = |i: usize| -fades[i % 2] * (1.0 + noise[i]);
                let by_channel: Vec<f32> = (0..rows * dk).map(decay).collect();
                let head = |log_decay| Head {
                    q: &q,
                    k: &k,
                    v: &v,
                    beta: &beta,
                    log_decay,
                    key_dim: dk,
                    value_dim: dv,
                };
                let what = format!("{rows} rows of {dk} x {dv}, fading {fades:?}");
                close(&run(&head(&by_channel), true), &run(&head(&by_channel), false), &what);
                let whole: Vec<f32> = by_channel.iter().step_by(dk).copied().collect();
                let alike: Vec<f32> = whole.iter().flat_map(|&g| vec![g; dk]).collect();
                for chunked in [false, true] {
                    close(
                        &run(&head(&alike), chunked),
                        &run(&head(&whole), chunked),
                        &format!("{what}, alike"),
                    );
                }
            }
        }
    }
}
