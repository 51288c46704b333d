//! A chunk of rows at once: products of matrices, 16 columns of the state at a time. What the heads of a group share, C
//! times B, is computed once for those that follow each other.

use super::{Group, Head, ROWS};
use crate::isa::Isa;
use crate::verb::delta::chunk::{Side, TALL, Tile, WIDE, multiply, tile};
use crate::verb::sigmoid;

/// One thread's matrices. Rows behind those of a piece are 0, and change nothing.
#[derive(Default)]
pub(super) struct Scratch {
    /// B as columns, `[state_dim, ROWS]`.
    bt: Vec<f32>,
    /// `[ROWS, state_dim]`
    c: Vec<f32>,
    /// C times B, `[ROWS, ROWS]`.
    scores: Vec<f32>,
    /// B as columns, faded until the end of the chunk.
    faded: Vec<f32>,
    /// The scores of a head, faded: what x gives to rows of the output.
    to_y: Vec<f32>,
    /// `[state_dim, WIDE]`: columns of the state.
    panel: Vec<f32>,
    /// `[ROWS, WIDE]`
    u: Vec<f32>,
}

impl Scratch {
    /// Takes up B and C of a piece.
    #[inline(always)]
    pub fn prepare<const AVX2: bool>(&mut self, group: &Group) {
        let &Group { b, c, stride, rows, state_dim } = group;
        for (matrix, len) in [
            (&mut self.bt, state_dim * ROWS),
            (&mut self.c, ROWS * state_dim),
            (&mut self.scores, ROWS * ROWS),
            (&mut self.faded, state_dim * ROWS),
            (&mut self.to_y, ROWS * ROWS),
            (&mut self.panel, state_dim * WIDE),
            (&mut self.u, ROWS * WIDE),
        ] {
            matrix.resize(len, 0.0);
        }
        for (d, bt) in self.bt.chunks_exact_mut(ROWS).enumerate() {
            bt[..rows].iter_mut().enumerate().for_each(|(i, to)| *to = b[i * stride + d]);
            bt[rows..].fill(0.0);
        }
        for (i, to) in self.c.chunks_exact_mut(state_dim).take(rows).enumerate() {
            to.copy_from_slice(&c[i * stride..][..state_dim]);
        }
        self.c[rows * state_dim..].fill(0.0);
        for i in (0..rows).step_by(TALL) {
            for j in (0..i + TALL).step_by(WIDE) {
                let mut x = [[0f32; WIDE]; TALL];
                let from = Side { data: &self.c[i * state_dim..], stride: state_dim };
                multiply::<AVX2>(from, Side { data: &self.bt[j..], stride: ROWS }, state_dim, &mut x);
                for (r, x) in x.iter().enumerate() {
                    self.scores[(i + r) * ROWS + j..][..WIDE].copy_from_slice(x);
                }
            }
        }
    }

    /// What a head fades: `to_y` and `faded`. Gives what is left of the state after each row.
    #[inline(always)]
    fn fade(&mut self, isa: Isa, head: &Head) -> [f32; ROWS] {
        let (count, tall) = (head.rows, head.rows.next_multiple_of(TALL));
        let mut sums = head.gates.log_decay;
        for i in 1..ROWS {
            sums[i] += sums[i - 1];
        }
        let (mut kept, mut left, mut fading) = (sums, sums, [0f32; ROWS]);
        left.iter_mut().for_each(|left| *left = sums[count - 1] - *left);
        sigmoid::exps(isa, &mut kept);
        sigmoid::exps(isa, &mut left[..count]);
        left[count..].fill(0.0);
        for (faded, bt) in self.faded.chunks_exact_mut(ROWS).zip(self.bt.chunks_exact(ROWS)) {
            faded.iter_mut().zip(bt.iter().zip(&left)).for_each(|(to, (bt, left))| *to = bt * left);
        }
        let rows = self.to_y.chunks_exact_mut(ROWS).zip(self.scores.chunks_exact(ROWS));
        for (i, (to_y, scores)) in rows.take(tall).enumerate() {
            let seen = if i < count { i + 1 } else { 0 };
            let fading = &mut fading[..seen];
            fading.iter_mut().zip(&sums).for_each(|(f, g)| *f = sums[i] - g);
            sigmoid::exps(isa, fading);
            to_y.iter_mut().zip(fading.iter().zip(scores)).for_each(|(to, (f, s))| *to = f * s);
            to_y[seen..].fill(0.0);
        }
        kept
    }
}

/// As [`super::recurrent::run`], all rows at once, with B and C that [`Scratch::prepare`] took up.
#[inline(always)]
pub(super) fn run<'o, const AVX2: bool>(
    isa: Isa,
    head: &Head,
    (s, width): (&mut [f32], usize),
    scratch: &mut Scratch,
    out: impl Fn(usize) -> &'o mut [f32],
) {
    let kept = scratch.fade(isa, head);
    let Scratch { c, faded, to_y, panel, u, .. } = scratch;
    let (count, state_dim) = (head.rows, panel.len() / WIDE);
    let last = kept[count - 1];
    for at in (0..width).step_by(WIDE) {
        for (panel, s) in panel.chunks_exact_mut(WIDE).zip(s.chunks_exact(width)) {
            panel.copy_from_slice(&s[at..at + WIDE]);
        }
        for (i, u) in u.chunks_exact_mut(WIDE).take(count).enumerate() {
            let x = &head.x[i * head.stride + at..][..WIDE];
            u.iter_mut().zip(x).for_each(|(u, x)| *u = head.gates.step[i] * x);
        }
        u[count * WIDE..].fill(0.0);
        let (states, updates) = (Side { data: panel, stride: WIDE }, Side { data: u, stride: WIDE });
        for i in (0..count).step_by(TALL) {
            let mut y = [[0f32; WIDE]; TALL];
            multiply::<AVX2>(
                Side { data: &c[i * state_dim..], stride: state_dim },
                states,
                state_dim,
                &mut y,
            );
            for (r, y) in y.iter_mut().enumerate() {
                y.iter_mut().for_each(|y| *y *= kept[i + r]);
            }
            multiply::<AVX2>(Side { data: &to_y[i * ROWS..], stride: ROWS }, updates, i + TALL, &mut y);
            for (r, y) in y.iter().enumerate().take(count - i) {
                let x = &head.x[(i + r) * head.stride + at..][..WIDE];
                let to = &mut out(i + r)[at..at + WIDE];
                to.iter_mut().zip(x.iter().zip(y)).for_each(|(to, (x, y))| *to = head.skip.mul_add(*x, *y));
            }
        }
        for d in (0..state_dim).step_by(TALL) {
            let mut x: Tile = tile(panel, d);
            x.iter_mut().flatten().for_each(|x| *x *= last);
            let from = Side { data: &faded[d * ROWS..], stride: ROWS };
            multiply::<AVX2>(from, updates, count, &mut x);
            for (r, x) in x.iter().enumerate() {
                s[(d + r) * width + at..][..WIDE].copy_from_slice(x);
            }
        }
    }
}
