//! A chunk of rows at once: products of matrices, 16 columns of the state at a time.

use super::{ROWS, Rows};
use crate::isa::Isa;
use crate::verb::sigmoid;

/// Columns at once.
pub(in crate::verb) const WIDE: usize = 16;
/// Rows of a tile.
pub(in crate::verb) const TALL: usize = 4;

/// One thread's matrices. Rows behind those of a piece are 0, and change nothing.
#[derive(Default)]
pub(super) struct Scratch {
    /// k as columns, `[key_dim, ROWS]`.
    pub kt: Vec<f32>,
    /// The same, faded until the end of the chunk.
    pub faded: Vec<f32>,
    /// `[ROWS, ROWS]`: what earlier rows take from a row's u.
    pub to_u: Vec<f32>,
    /// `[ROWS, ROWS]`: what u gives to rows of the output.
    pub to_o: Vec<f32>,
    /// What is left of the state after each row.
    pub kept: Vec<f32>,
    /// What is left of its channels in the end, `[key_dim]`.
    pub last: Vec<f32>,
    /// `[key_dim, WIDE]`: columns of the state.
    panel: Vec<f32>,
    /// `[ROWS, WIDE]`
    u: Vec<f32>,
    /// `[ROWS, WIDE]`
    o: Vec<f32>,
}

/// Rows of `a`, or columns of `b`, `stride` apart.
#[derive(Copy, Clone)]
pub(in crate::verb) struct Side<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

pub(in crate::verb) type Tile = [[f32; WIDE]; TALL];

/// `tile += a[..TALL, ..depth] * b[..depth, ..WIDE]`, by fma over ascending depth.
#[inline(always)]
pub(in crate::verb) fn multiply<const AVX2: bool>(a: Side, b: Side, depth: usize, tile: &mut Tile) {
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: only the form compiled for AVX2 says so.
        return unsafe { super::avx2::multiply(a, b, depth, tile) };
    }
    for k in 0..depth {
        let b = &b.data[k * b.stride..][..WIDE];
        for (r, row) in tile.iter_mut().enumerate() {
            let x = a.data[r * a.stride + k];
            for (t, b) in row.iter_mut().zip(b) {
                *t = x.mul_add(*b, *t);
            }
        }
    }
}

/// Rows `at..at + TALL` of a `[_, WIDE]` matrix.
#[inline(always)]
pub(in crate::verb) fn tile(of: &[f32], at: usize) -> Tile {
    let mut tile = [[0f32; WIDE]; TALL];
    for (row, of) in tile.iter_mut().zip(of[at * WIDE..].chunks_exact(WIDE)) {
        row.copy_from_slice(of);
    }
    tile
}

#[inline(always)]
fn store(tile: &Tile, into: &mut [f32], at: usize) {
    for (row, into) in tile.iter().zip(into[at * WIDE..].chunks_exact_mut(WIDE)) {
        into.copy_from_slice(row);
    }
}

impl Scratch {
    /// Makes room for heads of `dk` dimensions.
    #[inline(always)]
    pub(super) fn resize(&mut self, dk: usize) {
        for (matrix, len) in [
            (&mut self.kt, dk * ROWS),
            (&mut self.faded, dk * ROWS),
            (&mut self.to_u, ROWS * ROWS),
            (&mut self.to_o, ROWS * ROWS),
            (&mut self.kept, ROWS),
            (&mut self.last, dk),
            (&mut self.panel, dk * WIDE),
            (&mut self.u, ROWS * WIDE),
            (&mut self.o, ROWS * WIDE),
        ] {
            matrix.resize(len, 0.0);
        }
    }

    /// Takes up the rows of a piece of a head that fades as a whole; k and q themselves then meet the state.
    #[inline(always)]
    pub(super) fn prepare<const AVX2: bool>(&mut self, isa: Isa, rows: &Rows, dk: usize) {
        self.resize(dk);
        let count = rows.rows;
        // Running sums, what is left of the state after each row, and of each row at the end.
        let mut sums = rows.gates.log_decay;
        for i in 1..ROWS {
            sums[i] += sums[i - 1];
        }
        let mut left = sums;
        for left in &mut left {
            *left = sums[count - 1] - *left;
        }
        self.kept.copy_from_slice(&sums);
        sigmoid::exps(isa, &mut self.kept);
        sigmoid::exps(isa, &mut left[..count]);
        self.last.fill(self.kept[count - 1]);
        let columns = self.kt.chunks_exact_mut(ROWS).zip(self.faded.chunks_exact_mut(ROWS));
        for (d, (kt, faded)) in columns.enumerate() {
            for i in 0..count {
                kt[i] = rows.k[i * dk + d];
                faded[i] = kt[i] * left[i];
            }
            kt[count..].fill(0.0);
            faded[count..].fill(0.0);
        }
        scores::<AVX2>(isa, rows, &sums, &self.kt, (&mut self.to_u, &mut self.to_o));
    }
}

/// As [`super::recurrent::run`], all rows at once, with scores and fading that were prepared. `k` and `q` are what meets
/// the state, `[ROWS, dk]`.
#[inline(always)]
pub(super) fn run<'o, const AVX2: bool>(
    rows: &Rows,
    (k, q): (&[f32], &[f32]),
    (s, dk, dv): (&mut [f32], usize, usize),
    scratch: &mut Scratch,
    out: impl Fn(usize) -> &'o mut [f32],
) {
    let count = rows.rows;
    let tall = count.next_multiple_of(TALL);
    let Scratch { faded, to_u, to_o, kept, last, panel, u, o, .. } = scratch;
    for c in (0..dv).step_by(WIDE) {
        for (panel, s) in panel.chunks_exact_mut(WIDE).zip(s.chunks_exact(dv)) {
            panel.copy_from_slice(&s[c..c + WIDE]);
        }
        let side = Side { data: panel, stride: WIDE };
        for i in (0..tall).step_by(TALL) {
            let [mut x, mut y] = [[[0f32; WIDE]; TALL]; 2];
            multiply::<AVX2>(Side { data: &k[i * dk..], stride: dk }, side, dk, &mut x);
            multiply::<AVX2>(Side { data: &q[i * dk..], stride: dk }, side, dk, &mut y);
            for r in 0..TALL {
                let (e, b) = (kept[i + r], rows.gates.beta[i + r]);
                let v: &[f32] =
                    if i + r < count { &rows.v[(i + r) * rows.stride + c..][..WIDE] } else { &[0.0; WIDE] };
                for n in 0..WIDE {
                    x[r][n] = b * (v[n] - e * x[r][n]);
                    y[r][n] *= e;
                }
            }
            // Earlier rows of this chunk: those of other tiles, then those of this one.
            multiply::<AVX2>(
                Side { data: &to_u[i * ROWS..], stride: ROWS },
                Side { data: u, stride: WIDE },
                i,
                &mut x,
            );
            for r in 1..TALL {
                for j in 0..r {
                    let by = to_u[(i + r) * ROWS + i + j];
                    let earlier = x[j];
                    for n in 0..WIDE {
                        x[r][n] = by.mul_add(earlier[n], x[r][n]);
                    }
                }
            }
            store(&x, u, i);
            multiply::<AVX2>(
                Side { data: &to_o[i * ROWS..], stride: ROWS },
                Side { data: u, stride: WIDE },
                i + TALL,
                &mut y,
            );
            store(&y, o, i);
        }
        for (i, o) in o.chunks_exact(WIDE).take(count).enumerate() {
            out(i)[c..c + WIDE].copy_from_slice(o);
        }
        for d in (0..dk).step_by(TALL) {
            let mut x = tile(panel, d);
            for (row, last) in x.iter_mut().zip(&last[d..]) {
                row.iter_mut().for_each(|x| *x *= last);
            }
            let from = Side { data: &faded[d * ROWS..], stride: ROWS };
            multiply::<AVX2>(from, Side { data: u, stride: WIDE }, count, &mut x);
            for (r, x) in x.iter().enumerate() {
                s[(d + r) * dv + c..][..WIDE].copy_from_slice(x);
            }
        }
    }
}

/// Fills what earlier rows take from u and what u gives to the output: k and q times k, faded; 0 for later rows.
#[inline(always)]
fn scores<const AVX2: bool>(
    isa: Isa,
    rows: &Rows,
    sums: &[f32; ROWS],
    kt: &[f32],
    (to_u, to_o): (&mut [f32], &mut [f32]),
) {
    let dk = kt.len() / ROWS;
    for i in (0..rows.rows).step_by(TALL) {
        for j in (0..i + TALL).step_by(WIDE) {
            let side = Side { data: &kt[j..], stride: ROWS };
            for (of, to) in [(rows.k, &mut *to_u), (rows.q, &mut *to_o)] {
                let mut x = [[0f32; WIDE]; TALL];
                multiply::<AVX2>(Side { data: &of[i * dk..], stride: dk }, side, dk, &mut x);
                for (r, x) in x.iter().enumerate() {
                    to[(i + r) * ROWS + j..][..WIDE].copy_from_slice(x);
                }
            }
        }
    }
    let mut fading = [0f32; ROWS];
    for i in 0..rows.rows.next_multiple_of(TALL) {
        let (u, o) = (&mut to_u[i * ROWS..][..ROWS], &mut to_o[i * ROWS..][..ROWS]);
        let (before, behind) = if i < rows.rows { (i, i + 1) } else { (0, 0) };
        let fading = &mut fading[..behind];
        fading.iter_mut().zip(sums).for_each(|(f, g)| *f = sums[i] - g);
        sigmoid::exps(isa, fading);
        for (j, f) in fading.iter().enumerate() {
            u[j] = -(rows.gates.beta[i] * (f * u[j]));
            o[j] *= f;
        }
        u[before..].fill(0.0);
        o[behind..].fill(0.0);
    }
}
