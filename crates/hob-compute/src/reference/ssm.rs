//! Selective state spaces in their two forms, operation by operation. Where the columns of a head stand, and what a step
//! is, other devices use as it stands.

use super::Reference;
use super::delta::{Piece, pieces, take_up_heads};
use crate::check::recurrent::{self as check, MemoryShape, SsmBufs};
use crate::{Recurrence, Result, SsmScan, SsmShape, WeightKind, math};

/// The step of a row, and the logarithm of how much of the state stays: see [`SsmScan`].
pub fn step(dt: f32, rate: f32, bias: f32, [least, most]: [f32; 2]) -> (f32, f32) {
    let step = math::softplus(dt + bias).max(least).min(most);
    (step, rate * step)
}

/// Where a head's x, and the B and C of its group, begin in a row.
pub fn columns(shape: &SsmShape, head: usize) -> [usize; 3] {
    let (width, at) = (shape.width(), head / shape.group_heads() * shape.state_dim);
    [head * shape.head_dim, width + at, width + shape.groups * shape.state_dim + at]
}

/// Rows of one head, ready for the rule.
pub struct Head<'a> {
    /// `[rows, head_dim]`
    pub x: &'a [f32],
    /// `[rows, state_dim]`
    pub b: &'a [f32],
    /// `[rows, state_dim]`
    pub c: &'a [f32],
    /// `[rows]`: see [`step`].
    pub step: &'a [f32],
    /// `[rows]`
    pub log_decay: &'a [f32],
    pub skip: f32,
    pub head_dim: usize,
    pub state_dim: usize,
}

impl Head<'_> {
    /// Row by row: `u = step * x`; for ascending state dimension `S = fma(B, u, a * S)` and `y = fma(C, S, y)` from 0 on;
    /// `out = fma(skip, x, y)`. Fills `out`, `[rows, head_dim]`, and moves `s` on; `records` gets a, B and u of every row,
    /// as far as it goes.
    pub fn recurrent(&self, s: &mut [f32], out: &mut [f32], records: &mut [f32]) {
        let (width, n) = (self.head_dim, self.state_dim);
        for i in 0..self.step.len() {
            let (b, c) = (&self.b[i * n..][..n], &self.c[i * n..][..n]);
            let a = math::exp(self.log_decay[i]);
            let mut record = vec![a];
            record.extend_from_slice(b);
            for p in 0..width {
                let x = self.x[i * width + p];
                let u = self.step[i] * x;
                record.push(u);
                let mut y = 0f32;
                for (n, (b, c)) in b.iter().zip(c).enumerate() {
                    let s = &mut s[n * width + p];
                    *s = b.mul_add(u, a * *s);
                    y = c.mul_add(*s, y);
                }
                out[i * width + p] = self.skip.mul_add(x, y);
            }
            if let Some(place) = records.chunks_exact_mut(record.len()).nth(i) {
                place.copy_from_slice(&record);
            }
        }
    }

    /// All rows at once (Dao and Gu 2024, section 6), with `G` the running sum of the logarithms, `E = exp(G)`,
    /// `D[i][j] = exp(G[i] - G[j])` and `u = step * x`: `y[i] = E[i] * (S^T C[i])`, then for ascending j <= i
    /// `y[i] = fma(D[i][j] * (C[i] . B[j]), u[j], y[i])`; `out[i] = fma(skip, x[i], y[i])`; then `S = E[last] * S`, and for
    /// ascending i `S = fma(B[i] * D[last][i], u[i], S)`. Products of vectors are fma over ascending dimension.
    pub fn chunked(&self, s: &mut [f32], out: &mut [f32]) {
        let (width, n, rows) = (self.head_dim, self.state_dim, self.step.len());
        let mut sums = self.log_decay.to_vec();
        (1..rows).for_each(|i| sums[i] += sums[i - 1]);
        let faded = |i: usize, j: usize| math::exp(sums[i] - sums[j]);
        let (b, c) = (|i: usize| &self.b[i * n..][..n], |i: usize| &self.c[i * n..][..n]);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |sum, (a, b)| a.mul_add(*b, sum));
        let u: Vec<f32> = self.x.iter().enumerate().map(|(i, x)| self.step[i / width] * x).collect();
        for i in 0..rows {
            let e = math::exp(sums[i]);
            let out = &mut out[i * width..][..width];
            for (p, y) in out.iter_mut().enumerate() {
                *y = e * c(i).iter().enumerate().fold(0f32, |sum, (n, c)| c.mul_add(s[n * width + p], sum));
            }
            for j in 0..=i {
                let to = faded(i, j) * dot(c(i), b(j));
                out.iter_mut().zip(&u[j * width..]).for_each(|(y, u)| *y = to.mul_add(*u, *y));
            }
            out.iter_mut().zip(&self.x[i * width..]).for_each(|(y, x)| *y = self.skip.mul_add(*x, *y));
        }
        let last = rows - 1;
        for s in s.iter_mut() {
            *s *= math::exp(sums[last]);
        }
        for i in 0..rows {
            for (s, b) in s.chunks_mut(width).zip(b(i)) {
                let by = b * faded(last, i);
                s.iter_mut().zip(&u[i * width..]).for_each(|(s, u)| *s = by.mul_add(*u, *s));
            }
        }
    }
}

/// The weights of a layer.
struct Vectors {
    rate: Vec<f32>,
    bias: Vec<f32>,
    skip: Vec<f32>,
    norm: Vec<f32>,
}

impl Reference {
    pub(super) fn run_ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        const VERB: &str = "ssm_scan";
        let vector = |w| self.weight(VERB, w, WeightKind::Vector)?.row(0);
        let vectors = Vectors {
            rate: vector(args.rate)?,
            bias: vector(args.bias)?,
            skip: vector(args.skip)?,
            norm: vector(args.norm)?,
        };
        let shape = |buf| self.shape(VERB, buf);
        let bufs = SsmBufs {
            xbc: shape(args.xbc)?,
            z: shape(args.z)?,
            dt: shape(args.dt)?,
            memory: MemoryShape::of(&args.memory, shape)?,
            out: shape(args.out)?,
        };
        let lengths = [&vectors.rate, &vectors.bias, &vectors.skip, &vectors.norm].map(Vec::len);
        check::ssm_scan(args, &bufs, lengths)?;
        let held = bufs.memory.held(&Recurrence::Ssm(args.shape));
        let products = args.shape.products();
        for seq in args.seqs {
            let (mut state, mut records) = self.memory_of(VERB, &args.memory, seq.slot)?;
            take_up_heads(&products, seq, (&mut state, &records, held));
            let kept = seq.holds().then(|| state.clone());
            for (h, s) in state.chunks_mut(products.head()).enumerate() {
                let mut recorded = match kept {
                    Some(_) => &mut records[h * held * products.record()..],
                    None => &mut [],
                };
                for piece in pieces(seq) {
                    self.ssm_piece(args, h, &vectors, piece, (s, recorded))?;
                    recorded = recorded.get_mut(piece.rows * products.record()..).unwrap_or_default();
                }
            }
            let state = kept.unwrap_or(state);
            self.buffers.get_mut(VERB, args.memory.state)?.row_mut(seq.slot).copy_from_slice(&state);
            if let Some(buf) = args.memory.records {
                self.buffers.get_mut(VERB, buf)?.row_mut(seq.slot).copy_from_slice(&records);
            }
            for row in seq.row..seq.row + seq.rows {
                self.ssm_finish(args, &vectors.norm, row)?;
            }
        }
        Ok(())
    }

    /// One piece of head `h`, without gate and norm.
    fn ssm_piece(
        &mut self,
        args: &SsmScan,
        h: usize,
        vectors: &Vectors,
        piece: Piece,
        (s, records): (&mut [f32], &mut [f32]),
    ) -> Result<()> {
        const VERB: &str = "ssm_scan";
        let (width, n) = (args.shape.head_dim, args.shape.state_dim);
        let [at_x, at_b, at_c] = columns(&args.shape, h);
        let Piece { row, rows, chunked } = piece;
        let (mut x, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        let (mut steps, mut log_decay) = (Vec::new(), Vec::new());
        for i in row..row + rows {
            let of = self.buffers.get(VERB, args.xbc)?.row(i);
            x.extend_from_slice(&of[at_x..][..width]);
            b.extend_from_slice(&of[at_b..][..n]);
            c.extend_from_slice(&of[at_c..][..n]);
            let dt = self.buffers.get(VERB, args.dt)?.row(i)[h];
            let (d, g) = step(dt, vectors.rate[h], vectors.bias[h], args.limit);
            steps.push(d);
            log_decay.push(g);
        }
        let skip = vectors.skip[h];
        let (head_dim, state_dim) = (width, n);
        let head =
            Head { x: &x, b: &b, c: &c, step: &steps, log_decay: &log_decay, skip, head_dim, state_dim };
        let mut y = vec![0f32; rows * width];
        match chunked {
            true => head.chunked(s, &mut y),
            false => head.recurrent(s, &mut y, records),
        }
        for (i, y) in y.chunks(width).enumerate() {
            self.buffers.get_mut(VERB, args.out)?.row_mut(row + i)[at_x..][..width].copy_from_slice(y);
        }
        Ok(())
    }

    /// `y * silu(z)`, then the norm of every group.
    fn ssm_finish(&mut self, args: &SsmScan, norm: &[f32], row: usize) -> Result<()> {
        const VERB: &str = "ssm_scan";
        let group = args.shape.width() / args.shape.groups;
        let z = self.buffers.get(VERB, args.z)?.row(row).to_vec();
        let out = self.buffers.get_mut(VERB, args.out)?.row_mut(row);
        out.iter_mut().zip(z).for_each(|(y, z)| *y *= math::silu(z));
        for (out, norm) in out.chunks_mut(group).zip(norm.chunks(group)) {
            let gated = out.to_vec();
            super::rows::norm_group(&gated, norm, args.eps, out);
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

    #[test]
    fn both_forms_agree() {
        for (rows, head_dim, state_dim) in [(1, 16, 16), (64, 16, 32), (64, 64, 128), (17, 32, 16)] {
            // From nothing forgotten to nothing remembered, where the exponents underflow.
            for fade in [0.0, 0.02, 1.0, 60.0] {
                let (x, b, c) =
                    (values(1, rows * head_dim), values(2, rows * state_dim), values(3, rows * state_dim));
                let step: Vec<f32> = values(4, rows).iter().map(|x| 0.5 + 0.49 * x).collect();
                let log_decay: Vec<f32> = step.iter().map(|d| -fade * d).collect();
                let (step, log_decay) = (&step, &log_decay);
                let head = Head { x: &x, b: &b, c: &c, step, log_decay, skip: 0.3, head_dim, state_dim };
                let start = values(6, head_dim * state_dim);
                let run = |chunked: bool| {
                    let (mut s, mut out) = (start.clone(), vec![0f32; rows * head_dim]);
                    match chunked {
                        true => head.chunked(&mut s, &mut out),
                        false => head.recurrent(&mut s, &mut out, &mut []),
                    }
                    out.extend(s);
                    out
                };
                let (a, b) = (run(true), run(false));
                let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let size = b.iter().fold(0f32, |m, b| m.max(b.abs()));
                let what = format!("{rows} rows of {head_dim} x {state_dim}, fading {fade}");
                assert!(apart < 2e-5 * size.max(1.0), "{what}: {apart} of {size}");
                assert!(a.iter().all(|x| x.is_finite()));
            }
        }
    }

    #[test]
    fn the_rule_by_hand() {
        // One dimension of the state in use: B = C = e0. S starts at 2; half fades; x = 3 is written with step 0.5.
        let (mut e, mut s) = (vec![0f32; 16], vec![0f32; 256]);
        (e[0], s[0]) = (1.0, 2.0);
        let x = [3f32; 16];
        let (step, log_decay) = (&[0.5][..], &[0.5f32.ln()][..]);
        let (b, c, x) = (&e[..], &e[..], &x[..]);
        let head = Head { x, b, c, step, log_decay, skip: 0.1, head_dim: 16, state_dim: 16 };
        let mut out = vec![0f32; 16];
        head.recurrent(&mut s, &mut out, &mut []);
        // a S = 1; u = 1.5; S = 2.5; out = S + 0.3. Column 1 had nothing.
        for (p, expected) in [(0, 2.5), (1, 1.5)] {
            assert!(
                (s[p] - expected).abs() < 1e-6 && (out[p] - expected - 0.3).abs() < 1e-6,
                "{p}: {}",
                s[p]
            );
        }
        assert_eq!(s[16..], [0f32; 240]);
    }

    #[test]
    fn steps_stay_within_their_limits() {
        let free = [0.0, f32::INFINITY];
        let (d, g) = step(1.0, -2.0, -1.0, free);
        assert!((d - 2f32.ln()).abs() < 1e-6 && (g + 2.0 * 2f32.ln()).abs() < 1e-6);
        assert_eq!(step(200.0, -1.0, 0.0, free), (200.0, -200.0));
        assert_eq!(step(200.0, -1.0, 0.0, [0.0, 0.1]), (0.1, -0.1));
        assert_eq!(step(-200.0, -2.0, 0.0, [0.25, 1.0]), (0.25, -0.5));
    }

    #[test]
    fn heads_find_their_group() {
        let shape = SsmShape { heads: 6, head_dim: 16, state_dim: 32, groups: 3 };
        assert_eq!(columns(&shape, 0), [0, 96, 192]);
        assert_eq!(columns(&shape, 3), [48, 128, 224]);
        assert_eq!((shape.channels(), shape.state()), (96 + 192, 6 * 512));
    }
}
