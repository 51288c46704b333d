//! The gated delta rule in its two forms, operation by operation. What both share (pieces, unit vectors, gates) is used
//! by other devices as it stands.

use super::{Reference, rows};
use crate::check::recurrent::{self as check, DeltaBufs, MemoryShape};
use crate::{DeltaNet, DeltaShape, Products, Recurrence, Result, SlotRows, WeightKind, math};

/// Added to the square of a vector's length before it becomes a unit vector.
pub const UNIT_EPS: f32 = 1e-6;

/// Rows of a sequence within one absolute chunk.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First batch row.
    pub row: usize,
    pub rows: usize,
    /// Whether it is computed as a chunk.
    pub chunked: bool,
}

/// The pieces of a sequence's rows, in order.
pub fn pieces(seq: &SlotRows) -> impl Iterator<Item = Piece> + use<> {
    let SlotRows { row, rows, position, .. } = *seq;
    let (mut done, holds) = (0, seq.holds());
    std::iter::from_fn(move || {
        let count = (DeltaNet::CHUNK - (position + done) % DeltaNet::CHUNK).min(rows - done);
        let piece = Piece { row: row + done, rows: count, chunked: count >= DeltaNet::CHUNKED && !holds };
        done += count;
        (count > 0).then_some(piece)
    })
}

/// `out = x * (scale / sqrt(x . x + eps))`.
pub fn unit(x: &[f32], scale: f32, out: &mut [f32]) {
    let r = scale / (math::dot16(x, x) + UNIT_EPS).sqrt();
    out.iter_mut().zip(x).for_each(|(o, x)| *o = x * r);
}

/// How strongly a row is written, and the logarithm of how much of the state stays.
pub fn gates(beta: f32, decay: f32, rate: f32, bias: f32) -> (f32, f32) {
    (math::sigmoid(beta), rate * math::softplus(decay + bias))
}

/// Rows of one value head, ready for the rule.
pub struct Head<'a> {
    /// `[rows, key_dim]`, unit vectors, scaled.
    pub q: &'a [f32],
    /// `[rows, key_dim]`, unit vectors.
    pub k: &'a [f32],
    /// `[rows, value_dim]`
    pub v: &'a [f32],
    /// `[rows]`: see [`gates`].
    pub beta: &'a [f32],
    /// `[rows]`, or `[rows, key_dim]` where every channel of the key fades by itself: see [`super::kda`].
    pub log_decay: &'a [f32],
    pub key_dim: usize,
    pub value_dim: usize,
}

impl Head<'_> {
    /// Row by row: `p = S^T k` and `w = S^T q` by fma over ascending key dimension; `u = b * (v - a * p)`;
    /// `S = fma(k, u, a * S)`; `o = fma(k . q, u, a * w)`. Fills `out`, `[rows, value_dim]`, and moves `s` on; `records`
    /// gets a, k and u of every row, as far as it goes.
    pub fn recurrent(&self, s: &mut [f32], out: &mut [f32], records: &mut [f32]) {
        if self.by_channel() {
            return self.recurrent_by_channel(s, out);
        }
        let (dk, dv) = (self.key_dim, self.value_dim);
        for i in 0..self.beta.len() {
            let (q, k) = (&self.q[i * dk..][..dk], &self.k[i * dk..][..dk]);
            let (a, kq) = (math::exp(self.log_decay[i]), math::dot16(k, q));
            let mut record = vec![a];
            record.extend_from_slice(k);
            for c in 0..dv {
                let column =
                    |x: &[f32]| x.iter().enumerate().fold(0f32, |sum, (i, x)| x.mul_add(s[i * dv + c], sum));
                let (p, w) = (column(k), column(q));
                let u = self.beta[i] * (self.v[i * dv + c] - a * p);
                out[i * dv + c] = kq.mul_add(u, a * w);
                record.push(u);
            }
            take_up(&record, dk, s);
            if let Some(place) = records.chunks_exact_mut(record.len()).nth(i) {
                place.copy_from_slice(&record);
            }
        }
    }

    /// All rows at once (Yang et al. 2024, section 3.3), with `G` the running sum of the logarithms, `E = exp(G)` and
    /// `D[i][j] = exp(G[i] - G[j])`: `u[i] = b[i] * (v[i] - E[i] * (S^T k[i]))`, then for ascending j < i
    /// `u[i] = fma(-(b[i] * (D[i][j] * (k[i] . k[j]))), u[j], u[i])`; `o[i] = E[i] * (S^T q[i])`, then for ascending
    /// j <= i `o[i] = fma(D[i][j] * (q[i] . k[j]), u[j], o[i])`; `S = E[last] * S`, then for ascending i
    /// `S = fma(k[i] * D[last][i], u[i], S)`. Products of vectors are fma over ascending dimension.
    pub fn chunked(&self, s: &mut [f32], out: &mut [f32]) {
        if self.by_channel() {
            return self.chunked_by_channel(s, out);
        }
        let (dk, dv, rows) = (self.key_dim, self.value_dim, self.beta.len());
        let mut sums = self.log_decay.to_vec();
        (1..rows).for_each(|i| sums[i] += sums[i - 1]);
        let faded = |i: usize, j: usize| math::exp(sums[i] - sums[j]);
        let (q, k) = (|i: usize| &self.q[i * dk..][..dk], |i: usize| &self.k[i * dk..][..dk]);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |sum, (a, b)| a.mul_add(*b, sum));
        let mut u = vec![0f32; rows * dv];
        for i in 0..rows {
            let (e, b) = (math::exp(sums[i]), self.beta[i]);
            for c in 0..dv {
                let column =
                    |x: &[f32]| x.iter().enumerate().fold(0f32, |sum, (d, x)| x.mul_add(s[d * dv + c], sum));
                u[i * dv + c] = b * (self.v[i * dv + c] - e * column(k(i)));
                out[i * dv + c] = e * column(q(i));
            }
            for j in 0..=i {
                let (to_k, to_q) = (-(b * (faded(i, j) * dot(k(i), k(j)))), faded(i, j) * dot(q(i), k(j)));
                for c in 0..dv {
                    if j < i {
                        u[i * dv + c] = to_k.mul_add(u[j * dv + c], u[i * dv + c]);
                    }
                    out[i * dv + c] = to_q.mul_add(u[j * dv + c], out[i * dv + c]);
                }
            }
        }
        let kept = math::exp(sums[rows - 1]);
        s.iter_mut().for_each(|s| *s *= kept);
        for i in 0..rows {
            let left = faded(rows - 1, i);
            for (d, k) in k(i).iter().enumerate() {
                for c in 0..dv {
                    s[d * dv + c] = (k * left).mul_add(u[i * dv + c], s[d * dv + c]);
                }
            }
        }
    }
}

/// A row's effect on a head's state, from its record (a, k, u): `S = fma(k, u, a * S)`.
pub fn take_up(record: &[f32], key_dim: usize, s: &mut [f32]) {
    let Some((a, rest)) = record.split_first() else { return };
    let (k, u) = rest.split_at(key_dim);
    for (s, k) in s.chunks_mut(u.len()).zip(k) {
        s.iter_mut().zip(u).for_each(|(s, u)| *s = k.mul_add(*u, a * *s));
    }
}

/// Brings the state of every head of a slot to where `seq` begins. `records` has room for `held` rows of each.
pub(super) fn take_up_heads(
    shape: &Products,
    seq: &SlotRows,
    (state, records, held): (&mut [f32], &[f32], usize),
) {
    if seq.base() == 0 && seq.rows + seq.accepted > 0 {
        state.fill(0.0);
    }
    for (h, s) in state.chunks_mut(shape.head()).enumerate() {
        let records = records.chunks_exact(shape.record()).skip(h * held).take(seq.accepted);
        records.for_each(|record| take_up(record, shape.key_dim, s));
    }
}

/// Where the parts of a head lie in a row of q, k and v: q, k, v.
pub fn columns(shape: &DeltaShape, value_head: usize) -> [usize; 3] {
    let (keys, head) = (shape.key_heads * shape.key_dim, shape.key_head(value_head) * shape.key_dim);
    [head, keys + head, 2 * keys + value_head * shape.value_dim]
}

impl Reference {
    pub(super) fn run_delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        const VERB: &str = "delta_net";
        let vector = |w| self.weight(VERB, w, WeightKind::Vector)?.row(0);
        let (rate, bias, norm) = (vector(args.rate)?, vector(args.bias)?, vector(args.norm)?);
        let shape = |buf| self.shape(VERB, buf);
        let bufs = DeltaBufs {
            qkv: shape(args.qkv)?,
            z: shape(args.z)?,
            beta: shape(args.beta)?,
            decay: shape(args.decay)?,
            memory: MemoryShape::of(&args.memory, shape)?,
            out: shape(args.out)?,
        };
        let decays = check::delta_net(args, &bufs, [rate.len(), bias.len(), norm.len()])?;
        let held = bufs.memory.held(&Recurrence::Delta(args.shape));
        for seq in args.seqs {
            let len = args.shape.key_dim * args.shape.value_dim;
            let (mut state, mut records) = self.memory_of(VERB, &args.memory, seq.slot)?;
            let products = args.shape.products();
            take_up_heads(&products, seq, (&mut state, &records, held));
            let kept = seq.holds().then(|| state.clone());
            for (h, s) in state.chunks_mut(len).enumerate() {
                let mut recorded = match kept {
                    Some(_) => &mut records[h * held * products.record()..],
                    None => &mut [],
                };
                for piece in pieces(seq) {
                    let values = (h, rate[h], &bias[h * decays..][..decays]);
                    self.delta_piece(args, values, (&norm, args.eps), piece, (s, recorded))?;
                    recorded = recorded.get_mut(piece.rows * products.record()..).unwrap_or_default();
                }
            }
            let state = kept.unwrap_or(state);
            self.buffers.get_mut(VERB, args.memory.state)?.row_mut(seq.slot).copy_from_slice(&state);
            if let Some(buf) = args.memory.records {
                self.buffers.get_mut(VERB, buf)?.row_mut(seq.slot).copy_from_slice(&records);
            }
        }
        Ok(())
    }

    /// One piece of value head `h`.
    fn delta_piece(
        &mut self,
        args: &DeltaNet,
        (h, rate, bias): (usize, f32, &[f32]),
        (norm, eps): (&[f32], f32),
        piece: Piece,
        (s, records): (&mut [f32], &mut [f32]),
    ) -> Result<()> {
        const VERB: &str = "delta_net";
        let (dk, dv) = (args.shape.key_dim, args.shape.value_dim);
        let [at_q, at_k, at_v] = columns(&args.shape, h);
        let Piece { row, rows, chunked } = piece;
        let [mut q, mut k] = [0; 2].map(|_| vec![0f32; rows * dk]);
        let (mut v, mut beta, mut log_decay) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..rows {
            let x = self.buffers.get(VERB, args.qkv)?.row(row + i);
            unit(&x[at_q..][..dk], 1.0 / (dk as f32).sqrt(), &mut q[i * dk..][..dk]);
            unit(&x[at_k..][..dk], 1.0, &mut k[i * dk..][..dk]);
            v.extend_from_slice(&x[at_v..][..dv]);
            let b = self.buffers.get(VERB, args.beta)?.row(row + i)[h];
            let decay = &self.buffers.get(VERB, args.decay)?.row(row + i)[h * bias.len()..][..bias.len()];
            beta.push(math::sigmoid(b));
            log_decay.extend(decay.iter().zip(bias).map(|(decay, bias)| gates(b, *decay, rate, *bias).1));
        }
        let head =
            Head { q: &q, k: &k, v: &v, beta: &beta, log_decay: &log_decay, key_dim: dk, value_dim: dv };
        let mut o = vec![0f32; rows * dv];
        match chunked {
            true => head.chunked(s, &mut o),
            false => head.recurrent(s, &mut o, records),
        }
        for (i, o) in o.chunks(dv).enumerate() {
            let z = self.buffers.get(VERB, args.z)?.row(row + i)[h * dv..][..dv].to_vec();
            let out = &mut self.buffers.get_mut(VERB, args.out)?.row_mut(row + i)[h * dv..][..dv];
            rows::norm_group(o, norm, eps, out);
            out.iter_mut().zip(z).for_each(|(o, z)| *o *= math::silu(z));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A simple seeded generator of values in -1..1.
    fn values(seed: u64, n: usize) -> Vec<f32> {
        let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    struct Owned {
        q: Vec<f32>,
        k: Vec<f32>,
        v: Vec<f32>,
        beta: Vec<f32>,
        log_decay: Vec<f32>,
        dims: (usize, usize),
    }

    impl Owned {
        fn new(rows: usize, (dk, dv): (usize, usize), fade: f32) -> Owned {
            let [mut q, mut k] = [1, 2].map(|seed| values(seed, rows * dk));
            // Neighbouring keys are alike, as trained ones are: the hard case of the triangular solve.
            (dk..rows * dk).for_each(|i| k[i] = 0.7 * k[i - dk] + 0.7 * k[i]);
            for (x, scale) in [(&mut q, 1.0 / (dk as f32).sqrt()), (&mut k, 1.0)] {
                for x in x.chunks_mut(dk) {
                    let given = x.to_vec();
                    unit(&given, scale, x);
                }
            }
            let beta = values(4, rows).iter().map(|x| 0.5 + 0.49 * x).collect();
            let log_decay = values(5, rows).iter().map(|x| -fade * (1.0 + x)).collect();
            Owned { q, k, v: values(3, rows * dv), beta, log_decay, dims: (dk, dv) }
        }

        fn head(&self, from: usize, to: usize) -> Head<'_> {
            let (dk, dv) = self.dims;
            Head {
                q: &self.q[from * dk..to * dk],
                k: &self.k[from * dk..to * dk],
                v: &self.v[from * dv..to * dv],
                beta: &self.beta[from..to],
                log_decay: &self.log_decay[from..to],
                key_dim: dk,
                value_dim: dv,
            }
        }
    }

    #[test]
    fn both_forms_agree() {
        for (rows, dims) in [(1, (16, 16)), (64, (16, 32)), (64, (128, 64)), (17, (32, 16))] {
            // From nothing forgotten to nothing remembered, where the exponents underflow.
            for fade in [0.0, 0.02, 1.0, 60.0] {
                let owned = Owned::new(rows, dims, fade);
                let start = values(6, dims.0 * dims.1);
                let run = |chunked: bool| {
                    let (mut s, mut out) = (start.clone(), vec![0f32; rows * dims.1]);
                    match chunked {
                        true => owned.head(0, rows).chunked(&mut s, &mut out),
                        false => owned.head(0, rows).recurrent(&mut s, &mut out, &mut []),
                    }
                    out.extend(s);
                    out
                };
                let (a, b) = (run(true), run(false));
                let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let size = b.iter().fold(0f32, |m, b| m.max(b.abs()));
                assert!(
                    apart < 2e-5 * size.max(1.0),
                    "{rows} rows of {dims:?}, fading {fade}: {apart} of {size}"
                );
                assert!(a.iter().all(|x| x.is_finite()));
            }
        }
    }

    #[test]
    fn the_rule_by_hand() {
        // One dimension in use: k = q = e0. S starts at 2; half fades; v = 3 is written at strength 0.5.
        let (mut q, mut s) = (vec![0f32; 16], vec![0f32; 256]);
        (q[0], s[0]) = (1.0, 2.0);
        let v = vec![3f32; 16];
        let head =
            Head { q: &q, k: &q, v: &v, beta: &[0.5], log_decay: &[0.5f32.ln()], key_dim: 16, value_dim: 16 };
        let mut out = vec![0f32; 16];
        head.recurrent(&mut s, &mut out, &mut []);
        // a S = 1; u = 0.5 (3 - 1) = 1; S = 2; column 1 had nothing: u = 1.5.
        for (c, expected) in [(0, 2.0), (1, 1.5)] {
            assert!((s[c] - expected).abs() < 1e-6 && (out[c] - expected).abs() < 1e-6, "{c}: {}", s[c]);
        }
        assert_eq!(s[16..], [0f32; 240]);
    }

    #[test]
    fn pieces_end_at_absolute_multiples() {
        let all = |position, rows| {
            let seq = SlotRows::new(3, rows, position, 0);
            pieces(&seq).map(|p| (p.row, p.rows, p.chunked)).collect::<Vec<_>>()
        };
        assert_eq!(all(0, 64), [(3, 64, true)]);
        assert_eq!(all(60, 140), [(3, 4, false), (7, 64, true), (71, 64, true), (135, 8, false)]);
        assert_eq!(all(50, 16), [(3, 14, false), (17, 2, false)]);
        assert_eq!(all(128, 1), [(3, 1, false)]);
        assert_eq!(all(5, 0), []);
    }

    #[test]
    fn gates_are_what_they_say() {
        let (b, g) = gates(0.0, 1.0, -2.0, -1.0);
        assert!((b - 0.5).abs() < 1e-6 && (g + 2.0 * 2f32.ln()).abs() < 1e-6);
        // Far out nothing overflows.
        assert_eq!(gates(-200.0, 200.0, -1.0, 0.0), (1.0 / (1.0 + math::exp(200.0)), -200.0));
        assert_eq!(gates(200.0, -200.0, -1.0, 0.0), (1.0, 0.0));
    }
}
