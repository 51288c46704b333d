//! Routing, experts and short convolution, row by row: the order of every operation is fixed here.

use super::{Reference, Tensor, activate, rows};
use crate::check::mixture::{self as check, ExpertBufs};
use crate::math;
use crate::{Experts, Gating, GroupScore, Result, Route, Routing, ShortConv, SlotRows, WeightKind};

/// Working memory of [`route_row`], reused between rows.
#[derive(Clone, Debug, Default)]
pub struct RouteScratch {
    p: Vec<f32>,
    /// What experts are ranked by; NaN once an expert is out of the running.
    rank: Vec<f32>,
    groups: Vec<f32>,
}

/// Routes one row of logits into `out`, `top_k` ids and `top_k` weights. `exps` replaces every value by its
/// [`math::exp`]; vector forms are free to do that in lanes.
pub fn route_row(
    rule: &Routing,
    logits: &[f32],
    bias: Option<&[f32]>,
    exps: impl Fn(&mut [f32]),
    scratch: &mut RouteScratch,
    out: &mut [f32],
) {
    let RouteScratch { p, rank, groups } = scratch;
    p.clear();
    p.extend_from_slice(logits);
    probabilities(rule.gating, p, logits, exps);
    rank.clear();
    rank.extend(logits.iter().zip(p.iter()).enumerate().map(|(i, (&z, &p))| {
        let rank = bias.map_or(p, |b| p + b[i]);
        if z.is_nan() || rank.is_nan() { f32::NEG_INFINITY } else { rank }
    }));
    keep_groups(rule, rank, groups);
    let (ids, weights) = out.split_at_mut(rule.top_k);
    for n in 0..rule.top_k {
        let best = best(rank);
        rank[best] = f32::NAN;
        // Insertion keeps the ids ascending.
        let at = ids[..n].iter().take_while(|&&id| id < best as f32).count();
        ids.copy_within(at..n, at + 1);
        ids[at] = best as f32;
    }
    for (w, &id) in weights.iter_mut().zip(ids.iter()) {
        let id = id as usize;
        *w = if logits[id].is_nan() { f32::NAN } else { p[id] };
    }
    if rule.gating == Gating::SoftmaxSelected {
        let m = weights.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
        weights.iter_mut().filter(|w| !w.is_nan()).for_each(|w| *w = math::exp(*w - m));
        divide(weights, 0.0);
    }
    if let Some(eps) = rule.normalize {
        divide(weights, eps);
    }
    weights.iter_mut().for_each(|w| *w *= rule.scale);
}

/// Divides by `sum + eps`, the sum in ascending order.
fn divide(weights: &mut [f32], eps: f32) {
    let sum = weights.iter().fold(0f32, |sum, w| sum + w) + eps;
    weights.iter_mut().for_each(|w| *w /= sum);
}

/// `p` holds the logits and receives the probabilities. NaN counts as `-inf`.
fn probabilities(gating: Gating, p: &mut [f32], logits: &[f32], exps: impl Fn(&mut [f32])) {
    match gating {
        Gating::Softmax => {
            let m = p.iter().fold(f32::NEG_INFINITY, |m, &z| m.max(rows::logit(z)));
            p.iter_mut().for_each(|z| *z = rows::logit(*z) - m);
            exps(p);
            let sum = math::sum16(p);
            p.iter_mut().for_each(|p| *p /= sum);
        }
        Gating::Sigmoid => {
            p.iter_mut().for_each(|z| *z = -rows::logit(*z));
            exps(p);
            p.iter_mut().for_each(|e| *e = 1.0 / (1.0 + *e));
        }
        Gating::SoftmaxSelected => p.iter_mut().for_each(|z| *z = rows::logit(*z)),
        Gating::SqrtSoftplus => {
            p.iter_mut().for_each(|z| *z = -rows::logit(*z).abs());
            exps(p);
            p.iter_mut().zip(logits).for_each(|(e, &z)| *e = (rows::logit(z).max(0.0) + e.ln_1p()).sqrt());
        }
    }
}

/// Takes the experts of all but the best groups out of the running; equal groups: the lowest stays.
fn keep_groups(rule: &Routing, rank: &mut [f32], scores: &mut Vec<f32>) {
    let Some(groups) = rule.groups else { return };
    let size = rank.len() / groups.count;
    scores.clear();
    scores.extend(rank.chunks_exact(size).map(|group| {
        let two = group.iter().fold([f32::NEG_INFINITY; 2], |[a, b], &r| match r > a {
            true => [r, a],
            false => [a, b.max(r)],
        });
        if groups.score == GroupScore::BestTwo && size > 1 { two[0] + two[1] } else { two[0] }
    }));
    for _ in 0..groups.top {
        let kept = best(scores);
        scores[kept] = f32::NAN;
    }
    for (group, score) in rank.chunks_exact_mut(size).zip(scores.iter()) {
        if !score.is_nan() {
            group.fill(f32::NAN);
        }
    }
}

/// The lowest of the highest ranks that are still in the running.
fn best(rank: &[f32]) -> usize {
    let mut best = usize::MAX;
    let mut value = f32::NEG_INFINITY;
    for (i, &r) in rank.iter().enumerate() {
        if r > value || (best == usize::MAX && r == value) {
            (best, value) = (i, r);
        }
    }
    best
}

/// Where a tap finds its value of v; nowhere, which counts as zero, when both are `None`.
#[derive(Copy, Clone, Debug)]
pub struct History {
    /// Batch row of the value, if it is of this batch.
    pub row: Option<usize>,
    /// Row of v in the slot's state, if it is there.
    pub column: Option<usize>,
}

/// Where tap `j` of `taps` finds v for row `i` of a sequence: in the batch, in the state, or nowhere (before 0).
pub fn history(seq: &SlotRows, i: usize, j: usize, taps: usize) -> History {
    let behind = taps - 1 - j;
    if behind <= i {
        return History { row: Some(seq.row + i - behind), column: None };
    }
    if behind > seq.position + i {
        return History { row: None, column: None };
    }
    // Row c of the state lies `taps - 1 - c` positions before the sequence's first row.
    History { row: None, column: Some(i + j) }
}

impl Reference {
    pub(super) fn run_route(&mut self, args: &Route) -> Result<()> {
        let bias = args.bias.map(|b| self.weight("route", b, WeightKind::Vector)).transpose()?;
        let (logits, out) = (self.shape("route", args.logits)?, self.shape("route", args.out)?);
        check::route(args, logits, bias.map(|b| b.spec.cols), out)?;
        let bias = bias.map(|b| b.row(0)).transpose()?;
        let mut scratch = RouteScratch::default();
        for r in 0..args.rows {
            let logits = self.buffers.get("route", args.logits)?.row(r).to_vec();
            let out = self.buffers.get_mut("route", args.out)?.row_mut(r);
            let exps = |x: &mut [f32]| x.iter_mut().for_each(|x| *x = math::exp(*x));
            route_row(&args.rule, &logits, bias.as_deref(), exps, &mut scratch, out);
        }
        Ok(())
    }

    pub(super) fn run_experts(&mut self, args: &Experts) -> Result<()> {
        const VERB: &str = "experts";
        let weight = |w| self.weights.get(VERB, w);
        let (gate, up, down) = (weight(args.gate)?, weight(args.up)?, weight(args.down)?);
        let shapes = check::expert_weights([&gate.spec, &up.spec, &down.spec])?;
        let [x, routes, hidden, out] =
            [args.x, args.routes, args.hidden, args.out].map(|b| self.shape(VERB, b));
        check::experts(args, &shapes, &ExpertBufs { x: x?, routes: routes?, hidden: hidden?, out: out? })?;
        let mut sums: Vec<Vec<f32>> = Vec::with_capacity(args.rows);
        for r in 0..args.rows {
            let (x, route) =
                (self.buffers.get(VERB, args.x)?.row(r), self.buffers.get(VERB, args.routes)?.row(r));
            let (ids, weights) = route.split_at(args.top_k);
            let mut terms = Vec::with_capacity(args.top_k);
            for (&id, &w) in ids.iter().zip(weights) {
                terms.push((check::expert_id(id, shapes.count)?, w));
            }
            terms.sort_by_key(|term| term.0);
            let out = self.buffers.get(VERB, args.out)?.row(r);
            let mut sum = if args.add { out.to_vec() } else { vec![0f32; out.len()] };
            for (e, w) in terms {
                let product = |weight: &Tensor, x: &[f32], rows: usize| -> Result<Vec<f32>> {
                    Ok(weight.products(e * rows..(e + 1) * rows, &[x], self.info.exact)?.remove(0))
                };
                let (g, u) = (product(gate, x, shapes.gate.rows)?, product(up, x, shapes.up.rows)?);
                let h: Vec<f32> = g.iter().zip(u).map(|(&g, u)| activate(args.activation, g) * u).collect();
                let y = product(down, &h, shapes.down.rows)?;
                sum.iter_mut().zip(y).for_each(|(o, y)| *o += w * y);
            }
            sums.push(sum);
        }
        let out = self.buffers.get_mut(VERB, args.out)?;
        sums.iter().enumerate().for_each(|(r, sum)| out.row_mut(r).copy_from_slice(sum));
        Ok(())
    }

    pub(super) fn run_short_conv(&mut self, args: &ShortConv) -> Result<()> {
        const VERB: &str = "short_conv";
        let taps = self.weight(VERB, args.taps, WeightKind::Vector)?;
        let (bcu, state) = (self.shape(VERB, args.bcu)?, self.shape(VERB, args.state)?);
        let out = self.shape(VERB, args.out)?;
        let count = check::short_conv(args, bcu, taps.spec.cols, state, out)?;
        let (taps, dim) = (taps.row(0)?, out.width);
        for seq in args.seqs {
            let bcu = self.buffers.get(VERB, args.bcu)?;
            let v = |row: usize, c: usize| bcu.row(row)[c] * bcu.row(row)[2 * dim + c];
            let old = self.buffers.get(VERB, args.state)?.row(seq.slot);
            let at = |i: usize, j: usize, c: usize| match history(seq, i, j, count) {
                History { row: Some(row), .. } => v(row, c),
                History { column: Some(column), .. } => old[column * dim + c],
                _ => 0.0,
            };
            let mut rows = vec![vec![0f32; dim]; seq.rows];
            for (i, out) in rows.iter_mut().enumerate() {
                for (c, out) in out.iter_mut().enumerate() {
                    let taps = &taps[c * count..(c + 1) * count];
                    let first = taps[0] * at(i, 0, c);
                    let sum = (1..count).fold(first, |sum, j| taps[j].mul_add(at(i, j, c), sum));
                    *out = bcu.row(seq.row + i)[dim + c] * sum;
                }
            }
            // What tap j of the next row would find, the newest tap aside.
            let state: Vec<f32> = (0..count - 1)
                .flat_map(|j| (0..dim).map(move |c| (j, c)))
                .map(|(j, c)| at(seq.rows, j, c))
                .collect();
            let out = self.buffers.get_mut(VERB, args.out)?;
            rows.iter().enumerate().for_each(|(i, row)| out.row_mut(seq.row + i).copy_from_slice(row));
            self.buffers.get_mut(VERB, args.state)?.row_mut(seq.slot).copy_from_slice(&state);
        }
        Ok(())
    }
}
