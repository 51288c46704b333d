//! Routing and mixtures of experts against the oracle.

mod common;
#[path = "common/weights.rs"]
#[allow(dead_code)] // this file uses one of its functions
mod weights;

use std::sync::Arc;

use common::{TIERS, buffer, contents, distance, gpu, reference, values};
use hob_compute::reference::Reference;
use hob_compute::{
    Activation, Buf, Combine, Compute, ComputeError, Experts, Gating, GroupScore, Groups, Linear, Norm,
    Product, Route, Routing, Weight, WeightKind, WeightSpec,
};
use hob_gpu::Gpu;
use hob_quant::Format;
use weights::rows as encoded;

fn weight(
    dev: &mut dyn Compute,
    seed: u64,
    kind: WeightKind,
    format: Format,
    [rows, cols]: [usize; 2],
) -> Weight {
    let bytes = encoded(format, seed, rows, cols);
    let spec = WeightSpec { name: "w".into(), kind, format, rows, cols };
    dev.load(&spec, Arc::new(bytes)).expect("a weight loads")
}

fn plain(top_k: usize, gating: Gating) -> Routing {
    Routing { top_k, gating, normalize: None, scale: 1.0, groups: None }
}

fn routes(dev: &mut dyn Compute, rule: Routing, experts: usize, logits: &[f32], biased: bool) -> Vec<f32> {
    let rows = logits.len() / experts;
    let bias = biased.then(|| weight(dev, 5, WeightKind::Vector, Format::F32, [1, experts]));
    let scales = (biased && rule.normalize.is_none())
        .then(|| weight(dev, 6, WeightKind::Vector, Format::F32, [1, experts]));
    let logits = buffer(dev, rows, experts, logits);
    let out = dev.alloc(rows, 2 * rule.top_k).unwrap();
    dev.route(&Route { logits, rows, rule, bias, scales, chosen: None, out }).unwrap();
    contents(dev, out, rows * 2 * rule.top_k)
}

/// Ids are the same, weights close, and no numbers in the same places.
fn agree(what: &str, top_k: usize, expected: &[f32], found: &[f32]) {
    for (e, f) in expected.chunks(2 * top_k).zip(found.chunks(2 * top_k)) {
        assert_eq!(e[..top_k], f[..top_k], "{what}");
        weigh_alike(what, &e[top_k..], &f[top_k..]);
    }
}

fn weigh_alike(what: &str, expected: &[f32], found: &[f32]) {
    for (e, f) in expected.iter().zip(found) {
        let near = (e - f).abs() <= 1e-5 * e.abs() + 1e-30 || e == f || (e.is_nan() && f.is_nan());
        assert!(near, "{what}: {e}, found {f}");
    }
}

/// The weight of every expert, 0 of those that were not chosen.
fn by_id(route: &[f32], top_k: usize, experts: usize) -> Vec<f32> {
    let mut weights = vec![0.0; experts];
    let (ids, chosen) = route.split_at(top_k);
    ids.iter().zip(chosen).for_each(|(&id, &weight)| weights[id as usize] = weight);
    weights
}

const GATINGS: [Gating; 4] =
    [Gating::Softmax, Gating::Sigmoid, Gating::SoftmaxSelected, Gating::SqrtSoftplus];

#[test]
fn routes_are_the_oracles() {
    let groups = |score| Some(Groups { count: 4, top: 2, score });
    let Some(mut dev) = gpu(false, "") else { return };
    for gating in GATINGS {
        for (experts, top_k, groups) in [
            (128, 8, None),
            (60, 6, groups(GroupScore::BestTwo)),
            (44, 3, groups(GroupScore::Best)),
            (4, 2, groups(GroupScore::BestTwo)),
            (3, 3, None),
            (260, 22, None),
        ] {
            for (rows, normalize, biased) in [(1, Some(0.0), false), (19, Some(1e-20), true), (3, None, true)]
            {
                let logits: Vec<f32> = values(rows as u64, rows * experts).iter().map(|x| 2.5 * x).collect();
                let rule = Routing { normalize, scale: 2.5, groups, ..plain(top_k, gating) };
                let expected = routes(&mut reference(false), rule, experts, &logits, biased);
                let found = routes(&mut dev, rule, experts, &logits, biased);
                agree(&format!("{rule:?}, {rows} x {experts}"), top_k, &expected, &found);
            }
        }
    }
}

#[test]
fn logits_that_are_no_numbers_end_in_valid_ids() {
    let Some(mut dev) = gpu(false, "") else { return };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for gating in GATINGS {
        for logits in [
            [nan; 5],
            [-inf; 5],
            [inf; 5],
            [0.0; 5],
            [nan, 1.0, nan, -inf, 2.0],
            [inf, nan, 0.0, inf, -1.0],
            [1.0, inf, 0.0, -200.0, 1.0],
            [-120.0, -130.0, -100.0, -140.0, -110.0],
        ] {
            // Here the oracle's weights are below what a GPU tells from 0, or from each other: only ids are promised.
            let tiny = gating == Gating::Sigmoid && logits.iter().all(|&z| z < -87.0);
            // An infinite logit leaves nothing to the others of a softmax; which of them are chosen beside it is open.
            let open = gating == Gating::Softmax && logits.contains(&inf);
            for normalize in [None, Some(0.0)] {
                for top_k in [3, 5] {
                    let rule = Routing { normalize, ..plain(top_k, gating) };
                    let expected = routes(&mut reference(false), rule, 5, &logits, false);
                    let found = routes(&mut dev, rule, 5, &logits, false);
                    if open {
                        let [expected, found] = [&expected, &found].map(|route| by_id(route, top_k, 5));
                        weigh_alike(&format!("{rule:?} of {logits:?}"), &expected, &found);
                    } else if !tiny {
                        agree(&format!("{rule:?} of {logits:?}"), top_k, &expected, &found);
                    }
                    let ids = &found[..top_k];
                    assert!(ids.is_sorted_by(|a, b| a < b) && ids.iter().all(|&id| id < 5.0), "{found:?}");
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Mixture {
    formats: [Format; 3],
    count: usize,
    dim: usize,
    ff: usize,
    top_k: usize,
    activation: Activation,
    biased: bool,
}

impl Mixture {
    /// `out` after the mixture was added to what was there, or put there.
    fn run(&self, dev: &mut dyn Compute, x: &[f32], routes: &[f32], add: bool) -> Vec<f32> {
        let &Mixture { formats, count, dim, ff, top_k, activation, biased } = self;
        let mut load = |seed, i: usize, rows, cols| {
            weight(dev, seed, WeightKind::Experts { count }, formats[i], [count * rows, cols])
        };
        let [gate, up, down] = [load(1, 0, ff, dim), load(2, 1, ff, dim), load(3, 2, dim, ff)];
        let mut vector = |seed, width| weight(dev, seed, WeightKind::Vector, Format::F32, [1, count * width]);
        let biases = biased.then(|| [vector(11, ff), vector(12, ff), vector(13, dim)]);
        let rows = x.len() / dim;
        let (x, routes) = (buffer(dev, rows, dim, x), buffer(dev, rows, 2 * top_k, routes));
        let hidden = dev.alloc(rows * top_k, ff).unwrap();
        let out = buffer(dev, rows, dim, &values(9, rows * dim));
        let gated = activation != Activation::ReluSquared;
        dev.experts(&Experts {
            x,
            rows,
            routes,
            top_k,
            // Experts of this activation have no gate.
            gate: gated.then_some(gate),
            up,
            down,
            biases,
            activation,
            hidden,
            out,
            add,
        })
        .unwrap();
        let found = contents(dev, out, rows * dim);
        for buf in [x, routes, hidden, out] {
            dev.free(buf).unwrap();
        }
        let loaded = [gate, up, down].into_iter().chain(biases.into_iter().flatten());
        loaded.for_each(|w| dev.unload(w).unwrap());
        found
    }

    /// Rows of distinct ids, rarely the last ones, and weights.
    fn routes(&self, rows: usize) -> Vec<f32> {
        let (u, mut all, mut next) = (values(rows as u64, 64 * rows * self.top_k), Vec::new(), 0);
        for _ in 0..rows {
            let mut ids: Vec<usize> = Vec::new();
            while ids.len() < self.top_k {
                let id =
                    (u[next].abs().min(0.999) * u[next + 1].abs().min(0.999) * self.count as f32) as usize;
                next += 2;
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
            ids.sort_unstable();
            all.extend(ids.iter().map(|&id| id as f32));
            all.extend(u[next..next + self.top_k].iter().map(|w| w.abs()));
        }
        all
    }
}

fn mixtures() -> Vec<Mixture> {
    use Format::{F16, F32, MXFP4, Q4_0, Q4_1, Q5_0, Q8_0};
    let mixed = [[Q4_0, Q4_0, Q4_0], [Q8_0, Q4_1, Q5_0], [Q4_0, F16, Q8_0], [Q8_0, Q8_0, F16]];
    let quantised = mixed.map(|formats| Mixture {
        formats,
        count: 7,
        dim: 160,
        ff: 96,
        top_k: 3,
        activation: Activation::Silu,
        biased: formats[0] == Q8_0,
    });
    let floats = [[F16; 3], [F32; 3]].map(|formats| Mixture {
        formats,
        count: 5,
        dim: 37,
        ff: 21,
        top_k: 2,
        activation: Activation::GeluTanh,
        biased: formats[0] == F32,
    });
    let clamped = Mixture {
        formats: [MXFP4; 3],
        count: 6,
        dim: 96,
        ff: 64,
        top_k: 4,
        // A limit that many values reach.
        activation: Activation::ClampedSwiglu { alpha: 1.702, limit: 0.7, plus_one: true },
        biased: true,
    };
    // No multiple of the 64 outputs that a workgroup has.
    let gateless = [[Q8_0, Q4_0, Q8_0], [F16; 3]].map(|formats| Mixture {
        formats,
        count: 6,
        dim: 96,
        ff: 160,
        top_k: 3,
        activation: Activation::ReluSquared,
        biased: false,
    });
    quantised.into_iter().chain(floats).chain([clamped]).chain(gateless).collect()
}

/// What a mixture of `rows` may be held to, and how near: cooperative matrices multiply many rows as f16, which is nearer
/// to f32 than to the oracle's int8, and weights whose formats they do not take together stay with int8.
fn judges(dev: &Gpu, exact: bool, rows: usize) -> (Vec<Reference>, f64) {
    match (exact, rows > 16 && dev.facts().tier.coop) {
        (true, _) => (vec![reference(true)], 2e-5),
        (false, false) => (vec![reference(false)], 4e-3),
        (false, true) => (vec![reference(true), reference(false)], 6e-3),
    }
}

/// How far a mixture is from the nearest of its judges, and how far it may be.
fn apart(
    dev: &mut Gpu,
    mixture: &Mixture,
    (x, routes): (&[f32], &[f32]),
    (exact, rows, add): (bool, usize, bool),
) -> (f64, f64) {
    let found = mixture.run(dev, x, routes, add);
    let (judges, most) = judges(dev, exact, rows);
    let each = judges.into_iter().map(|mut judge| distance(&mixture.run(&mut judge, x, routes, add), &found));
    (each.fold(f64::INFINITY, f64::min), most)
}

#[test]
fn experts_are_the_oracles() {
    for (off, exact, most) in [(TIERS[0], false, 40), (TIERS[3], false, 5), (TIERS[0], true, 17)] {
        let Some(mut dev) = gpu(exact, off) else { return };
        for mixture in mixtures() {
            for rows in [1, 5, 17, 40].into_iter().filter(|&rows| rows <= most) {
                let x = values(rows as u64 + 50, rows * mixture.dim);
                let routes = mixture.routes(rows);
                for add in if rows == 5 { [true, false].iter() } else { [true].iter() }.copied() {
                    let (apart, most) = apart(&mut dev, &mixture, (&x, &routes), (exact, rows, add));
                    assert!(
                        apart < most,
                        "{mixture:?}, exact {exact}, {rows} rows, without '{off}': {apart}"
                    );
                }
            }
        }
    }
}

#[test]
fn all_rows_to_the_same_experts_and_rows_that_share_none() {
    let Some(mut dev) = gpu(false, "") else { return };
    for mixture in mixtures() {
        let (rows, k) = (36, mixture.top_k);
        let x = values(3, rows * mixture.dim);
        let made = |ids: &dyn Fn(usize) -> Vec<usize>| -> Vec<f32> {
            let row = |r| ids(r).into_iter().map(|id| id as f32).chain(values(r as u64 + 1, k));
            (0..rows).flat_map(row).collect()
        };
        let same = made(&|_| (mixture.count - k..mixture.count).collect());
        let turned = made(&|r| (0..k).map(|i| (r + i) % mixture.count).collect());
        for routes in [same, turned] {
            let (apart, most) = apart(&mut dev, &mixture, (&x, &routes), (false, rows, true));
            assert!(apart < most, "{mixture:?}: {apart}");
        }
    }
}

#[test]
fn routes_to_no_expert_harm_nobody_else() {
    let Some(mut dev) = gpu(false, "") else { return };
    for mixture in [mixtures()[0], mixtures()[5]] {
        for rows in [2, 40] {
            let x = values(3, rows * mixture.dim);
            let mut routes = mixture.routes(rows);
            let expected = mixture.run(&mut dev, &x, &routes, false);
            let bad = [f32::NAN, 1e9, -3.0];
            routes[..mixture.top_k].iter_mut().zip(bad).for_each(|(id, bad)| *id = bad);
            let found = mixture.run(&mut dev, &x, &routes, false);
            assert_eq!(expected[mixture.dim..], found[mixture.dim..]);
        }
    }
}

#[test]
fn what_does_not_meet_is_refused() {
    let Some(mut dev) = gpu(false, "") else { return };
    let logits = buffer(&mut dev, 2, 8, &[0.0; 16]);
    let out = dev.alloc(2, 4).unwrap();
    for (rows, top_k) in [(3, 2), (1, 3), (1, 9)] {
        let found = dev.route(&Route {
            logits,
            rows,
            rule: plain(top_k, Gating::Softmax),
            bias: None,
            scales: None,
            chosen: None,
            out,
        });
        assert!(matches!(found, Err(ComputeError::Shape { .. })));
    }
    let (wide, routes) = (dev.alloc(1, 4000).unwrap(), dev.alloc(1, 2).unwrap());
    let rule = plain(1, Gating::Sigmoid);
    let found = dev.route(&Route {
        logits: wide,
        rows: 1,
        rule,
        bias: None,
        scales: None,
        chosen: None,
        out: routes,
    });
    assert!(matches!(found, Err(ComputeError::Shape { .. })));
}

/// A layer's second half and what follows: `h += o x`, norm, router, experts added to `h`, norm, a product of that.
struct Half {
    rule: Routing,
    biased: bool,
    ff: usize,
    o: Weight,
    norm: Weight,
    router: Weight,
    stacks: [Weight; 3],
    vectors: Option<[Weight; 2]>,
    next: Weight,
    x: Buf,
    h: Buf,
    n: Buf,
    logits: Buf,
    routes: Buf,
    hidden: Buf,
    out: Buf,
}

const COUNT: usize = 40;
const DIM: usize = 256;
const ROWS: usize = 20;

impl Half {
    fn new(dev: &mut dyn Compute, rule: Routing, format: Format, biased: bool) -> Half {
        let ff = if biased { 64 } else { 96 };
        let top_k = rule.top_k;
        let mut load = |seed, kind, format, shape| weight(dev, seed, kind, format, shape);
        let stack = WeightKind::Experts { count: COUNT };
        let stacks = [
            load(1, stack, format, [COUNT * ff, DIM]),
            load(2, stack, format, [COUNT * ff, DIM]),
            load(3, stack, format, [COUNT * DIM, ff]),
        ];
        let o = load(4, WeightKind::Matrix, Format::Q4_0, [DIM, DIM]);
        let norm = load(5, WeightKind::Vector, Format::F32, [1, DIM]);
        let router = load(6, WeightKind::Matrix, Format::F32, [COUNT, DIM]);
        let next = load(7, WeightKind::Matrix, Format::Q4_0, [64, DIM]);
        let mut vector = |seed| load(seed, WeightKind::Vector, Format::F32, [1, COUNT]);
        let vectors = biased.then(|| [vector(8), vector(9)]);
        let mut buf = |rows, width| dev.alloc(rows, width).unwrap();
        let (n, logits, routes) = (buf(ROWS, DIM), buf(ROWS, COUNT), buf(ROWS, 2 * top_k));
        let (hidden, out) = (buf(ROWS * top_k, ff), buf(ROWS, 64));
        let x = buffer(dev, ROWS, DIM, &values(10, ROWS * DIM));
        let h = buffer(dev, ROWS, DIM, &values(11, ROWS * DIM));
        let half = Half {
            rule,
            biased,
            ff,
            o,
            norm,
            router,
            stacks,
            vectors,
            next,
            x,
            h,
            n,
            logits,
            routes,
            hidden,
            out,
        };
        // Forms are written once they were asked for.
        dev.rehearse(true);
        (0..2).for_each(|_| half.run(dev, 1));
        dev.rehearse(false);
        half
    }

    fn run(&self, dev: &mut dyn Compute, rows: usize) {
        let &Half { rule, o, norm, router, stacks: [gate, up, down], x, h, n, .. } = self;
        let &Half { logits, routes, hidden, .. } = self;
        let linear = |dev: &mut dyn Compute, x, weight, out, combine| {
            let products = &[Product { weight, bias: None, out }];
            dev.linear(&Linear { x, first_row: 0, rows, products, combine }).unwrap();
        };
        let norm = Norm { x: h, rows, groups: 1, weight: norm, eps: 1e-5, out: n };
        linear(dev, x, o, h, Combine::Add);
        dev.norm(&norm).unwrap();
        linear(dev, n, router, logits, Combine::Store);
        let (bias, scales) = self.vectors.map_or((None, None), |[a, b]| (Some(a), Some(b)));
        dev.route(&Route { logits, rows, rule, bias, scales, chosen: None, out: routes }).unwrap();
        // Where the router has vectors, experts have no gate.
        let activation = if self.biased { Activation::ReluSquared } else { Activation::Silu };
        let (gate, top_k) = ((!self.biased).then_some(gate), rule.top_k);
        dev.experts(&Experts {
            x: n,
            rows,
            routes,
            top_k,
            gate,
            up,
            down,
            biases: None,
            activation,
            hidden,
            out: h,
            add: true,
        })
        .unwrap();
        dev.norm(&norm).unwrap();
        linear(dev, n, self.next, self.out, Combine::Store);
    }

    /// The stream, the norm's rows, the routes and what the next product gives.
    fn results(&self, dev: &mut dyn Compute, rows: usize) -> [Vec<f32>; 4] {
        dev.upload(self.h, 0, &values(11, ROWS * DIM)).unwrap();
        self.run(dev, rows);
        [
            contents(dev, self.h, ROWS * DIM),
            contents(dev, self.n, rows * DIM),
            contents(dev, self.routes, rows * 2 * self.rule.top_k),
            contents(dev, self.out, rows * 64),
        ]
    }
}

#[test]
fn a_layer_in_few_dispatches_is_the_oracles() {
    let groups = Some(Groups { count: 4, top: 2, score: GroupScore::BestTwo });
    let rules = [
        (Routing { normalize: Some(0.0), ..plain(8, Gating::Softmax) }, Format::Q4_0, false),
        (
            Routing { groups, scale: 2.5, normalize: Some(1e-20), ..plain(6, Gating::Sigmoid) },
            Format::Q8_0,
            true,
        ),
        (plain(3, Gating::SoftmaxSelected), Format::F16, false),
    ];
    for off in [TIERS[0], TIERS[3]] {
        // Kernels take long to compile here; without features they differ by format only.
        for (rule, format, biased) in rules.into_iter().take(if off.is_empty() { 3 } else { 1 }) {
            let Some(mut dev) = gpu(false, off) else { return };
            let found = Half::new(&mut dev, rule, format, biased);
            assert_eq!(found.biased, biased);
            assert!(found.ff > 0);
            // Without features many rows are multiplied in f32, which the oracle does not do, and a router tells.
            for rows in [1, 3, 7, 19].into_iter().take(if off.is_empty() { 4 } else { 3 }) {
                let before = dev.counters().dispatches;
                let [h, n, routes, out] = found.results(&mut dev, rows);
                let dispatches = dev.counters().dispatches - before;
                let mut oracle = judges(&dev, false, rows).0.remove(0);
                let expected = Half::new(&mut oracle, rule, format, biased);
                let [eh, en, eroutes, eout] = expected.results(&mut oracle, rows);
                let what = format!("{rule:?} {format:?}, {rows} rows, without '{off}'");
                for (e, f) in eroutes.chunks(2 * rule.top_k).zip(routes.chunks(2 * rule.top_k)) {
                    assert_eq!(e[..rule.top_k], f[..rule.top_k], "{what}");
                    let apart = distance(&e[rule.top_k..], &f[rule.top_k..]);
                    assert!(apart < 5e-2, "{what}: weights {apart}");
                }
                for (name, e, f) in [("stream", eh, h), ("norm", en, n), ("product", eout, out)] {
                    let apart = distance(&e, &f);
                    assert!(apart < 2e-2, "{what}: {name} {apart}");
                }
                // The product with its norm, the router, gate and up with the routing, down with the norm, the product;
                // the int8 form of `x` before, and finishing the norm's rows for the host, are one more each.
                if rows == 1 && format != Format::F16 {
                    assert_eq!(dispatches, 7, "{what}");
                }
            }
        }
    }
}
