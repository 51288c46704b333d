//! Routing and experts, row by row: the order of every operation is fixed here.

use super::{Reference, Tensor, rows};
use crate::check::mixture::{self as check, ExpertBufs};
use crate::math;
use crate::{Experts, Gating, GroupScore, Result, Route, Routing, Weight, WeightKind};

/// Working memory of [`route_row`], reused between rows.
#[derive(Clone, Debug, Default)]
pub struct RouteScratch {
    p: Vec<f32>,
    /// What experts are ranked by; NaN once an expert is out of the running.
    rank: Vec<f32>,
    groups: Vec<f32>,
}

/// The vectors of a router, `[experts]` each.
#[derive(Copy, Clone, Debug, Default)]
pub struct RouteVectors<'a> {
    /// Ids of the row's experts, where they are given.
    pub chosen: Option<&'a [f32]>,
    /// Added for the selection.
    pub bias: Option<&'a [f32]>,
    /// What weights are multiplied by in the end.
    pub scales: Option<&'a [f32]>,
}

/// Routes one row of logits into `out`, `top_k` ids and `top_k` weights. `exps` replaces every value by its
/// [`math::exp`]; vector forms are free to do that in lanes.
pub fn route_row(
    rule: &Routing,
    logits: &[f32],
    vectors: RouteVectors,
    exps: impl Fn(&mut [f32]),
    scratch: &mut RouteScratch,
    out: &mut [f32],
) {
    let RouteScratch { p, rank, groups } = scratch;
    p.clear();
    p.extend_from_slice(logits);
    probabilities(rule.gating, p, logits, exps);
    let (ids, weights) = out.split_at_mut(rule.top_k);
    if let Some(chosen) = vectors.chosen {
        // Ids are checked where tables are loaded; one that no expert has must not leave the row.
        let known = |id: f32| if (0.0..logits.len() as f32).contains(&id) { id.trunc() } else { 0.0 };
        ids.iter_mut().zip(chosen).for_each(|(id, &c)| *id = known(c));
        ids.sort_unstable_by(f32::total_cmp);
    } else {
        rank.clear();
        rank.extend(logits.iter().zip(p.iter()).enumerate().map(|(i, (&z, &p))| {
            let rank = vectors.bias.map_or(p, |b| p + b[i]);
            if z.is_nan() || rank.is_nan() { f32::NEG_INFINITY } else { rank }
        }));
        keep_groups(rule, rank, groups);
        select(rank, ids);
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
    if let Some(scales) = vectors.scales {
        weights.iter_mut().zip(ids.iter()).for_each(|(w, &id)| *w *= scales[id as usize]);
    }
}

/// The ids of the highest ranks, ascending. They leave the running.
fn select(rank: &mut [f32], ids: &mut [f32]) {
    for n in 0..ids.len() {
        let best = best(rank);
        rank[best] = f32::NAN;
        // Insertion keeps the ids ascending.
        let at = ids[..n].iter().take_while(|&&id| id < best as f32).count();
        ids.copy_within(at..n, at + 1);
        ids[at] = best as f32;
    }
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

impl Reference {
    pub(super) fn run_route(&mut self, args: &Route) -> Result<()> {
        let vector =
            |w: Option<Weight>| w.map(|w| self.weight("route", w, WeightKind::Vector)?.row(0)).transpose();
        let (bias, scales) = (vector(args.bias)?, vector(args.scales)?);
        let (logits, out) = (self.shape("route", args.logits)?, self.shape("route", args.out)?);
        let chosen = args.chosen.map(|c| self.shape("route", c)).transpose()?;
        check::route(args, logits, [&bias, &scales].map(|v| v.as_ref().map(Vec::len)), chosen, out)?;
        let mut scratch = RouteScratch::default();
        for r in 0..args.rows {
            let logits = self.buffers.get("route", args.logits)?.row(r).to_vec();
            let chosen = match args.chosen {
                Some(buf) => Some(self.buffers.get("route", buf)?.row(r).to_vec()),
                None => None,
            };
            let vectors =
                RouteVectors { chosen: chosen.as_deref(), bias: bias.as_deref(), scales: scales.as_deref() };
            let out = self.buffers.get_mut("route", args.out)?.row_mut(r);
            let exps = |x: &mut [f32]| x.iter_mut().for_each(|x| *x = math::exp(*x));
            route_row(&args.rule, &logits, vectors, exps, &mut scratch, out);
        }
        Ok(())
    }

    pub(super) fn run_experts(&mut self, args: &Experts) -> Result<()> {
        const VERB: &str = "experts";
        let weight = |w| self.weights.get(VERB, w);
        let (gate, up, down) = (args.gate.map(weight).transpose()?, weight(args.up)?, weight(args.down)?);
        let shapes = check::expert_weights(gate.map(|gate| &gate.spec), [&up.spec, &down.spec])?;
        let [x, routes, hidden, out] =
            [args.x, args.routes, args.hidden, args.out].map(|b| self.shape(VERB, b));
        check::experts(args, &shapes, &ExpertBufs { x: x?, routes: routes?, hidden: hidden?, out: out? })?;
        let mut biases = [None, None, None];
        if let Some(given) = args.biases {
            for (bias, weight) in biases.iter_mut().zip(given) {
                *bias = Some(self.weight(VERB, weight, WeightKind::Vector)?.row(0)?);
            }
            check::expert_biases(&shapes, biases.each_ref().map(|b| b.as_ref().map_or(0, Vec::len)))?;
        }
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
                let product = |weight: &Tensor, x: &[f32], which: usize| -> Result<Vec<f32>> {
                    let rows = [shapes.gate, shapes.up, shapes.down][which].rows;
                    let all = e * rows..(e + 1) * rows;
                    let mut y = weight.products(all.clone(), &[x], self.info.exact)?.remove(0);
                    if let Some(bias) = &biases[which] {
                        y.iter_mut().zip(&bias[all]).for_each(|(y, b)| *y += b);
                    }
                    Ok(y)
                };
                let mut h = product(up, x, 1)?;
                match gate {
                    Some(gate) => {
                        let g = product(gate, x, 0)?;
                        h.iter_mut().zip(g).for_each(|(h, g)| *h = args.activation.gated(g, *h));
                    }
                    None => h.iter_mut().for_each(|h| *h = args.activation.alone(*h)),
                }
                let y = product(down, &h, 2)?;
                sum.iter_mut().zip(y).for_each(|(o, y)| *o += w * y);
            }
            sums.push(sum);
        }
        let out = self.buffers.get_mut(VERB, args.out)?;
        sums.iter().enumerate().for_each(|(r, sum)| out.row_mut(r).copy_from_slice(sum));
        Ok(())
    }
}
