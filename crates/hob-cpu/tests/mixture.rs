//! Routing, experts and short convolution against the oracle, bit by bit, and against themselves in other batches.

mod common;

use common::{agree, buffer, classes, contents, cpu, random, same_bits, weight};
use hob_compute::reference::Reference;
use hob_compute::{
    Activation, Buf, Compute, ComputeError, ConvForm, Experts, Gating, GroupScore, Groups, Memory, Route,
    Routing, ShortConv, SlotRows, Weight, WeightKind, WeightSpec,
};
use hob_cpu::arena::Arena;
use hob_cpu::linear::{LoadCtx, Matrix, experts};
use hob_cpu::pool::Pool;
use hob_quant::Format;
use hob_testkit::guard::{Edge, GuardedBuf};
use hob_testkit::rng::Rng;

fn plain(top_k: usize, gating: Gating) -> Routing {
    Routing { top_k, gating, normalize: None, scale: 1.0, groups: None }
}

/// Routes of `logits`, `[rows, experts]`; NaN is replaced, since its bits mean nothing.
fn routes(dev: &mut dyn Compute, rule: Routing, experts: usize, logits: &[f32], biased: bool) -> Vec<f32> {
    let rows = logits.len() / experts;
    let bias = biased.then(|| weight(dev, 5, WeightKind::Vector, Format::F32, 1, experts));
    let scaled = biased && rule.normalize.is_none();
    let scales = scaled.then(|| weight(dev, 6, WeightKind::Vector, Format::F32, 1, experts));
    let logits = buffer(dev, experts, logits);
    let out = dev.alloc(rows, 2 * rule.top_k).unwrap();
    dev.route(&Route { logits, rows, rule, bias, scales, chosen: None, out }).unwrap();
    let found = contents(dev, out, rows * 2 * rule.top_k);
    found.into_iter().map(|x| if x.is_nan() { -7.0 } else { x }).collect()
}

const GATINGS: [Gating; 4] =
    [Gating::Softmax, Gating::Sigmoid, Gating::SoftmaxSelected, Gating::SqrtSoftplus];

#[test]
fn routes_are_the_oracles() {
    let groups = |score| Some(Groups { count: 4, top: 2, score });
    for gating in GATINGS {
        for (experts, top_k, groups) in [
            (128, 8, None),
            (60, 6, groups(GroupScore::BestTwo)),
            (44, 3, groups(GroupScore::Best)),
            (3, 3, None),
        ] {
            for (rows, normalize, biased) in [(1, Some(0.0), false), (70, Some(1e-20), true), (3, None, true)]
            {
                let logits = Rng::new(rows as u64).normal_vec(rows * experts, 2.0);
                let rule = Routing { normalize, scale: 2.5, groups, ..plain(top_k, gating) };
                agree(&format!("{rule:?}, {rows} x {experts}"), false, |dev| {
                    routes(dev, rule, experts, &logits, biased)
                });
            }
        }
    }
}

#[test]
fn routes_by_hand() {
    let mut dev = Reference::new(false);
    let mut route = |rule, logits: &[f32]| routes(&mut dev, rule, logits.len(), logits, false);
    let ln = |x: f32| x.ln();
    // Probabilities 1/8, 4/8, 1/8, 2/8.
    let logits = [ln(1.0), ln(4.0), ln(1.0), ln(2.0)];
    let near = |found: &[f32], expected: &[f32]| {
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?}, {expected:?}")
    };
    near(&route(plain(2, Gating::Softmax), &logits), &[1.0, 3.0, 0.5, 0.25]);
    near(
        &route(Routing { normalize: Some(0.0), ..plain(2, Gating::Softmax) }, &logits),
        &[1.0, 3.0, 2.0 / 3.0, 1.0 / 3.0],
    );
    near(&route(Routing { scale: 3.0, ..plain(2, Gating::SoftmaxSelected) }, &logits), &[1.0, 3.0, 2.0, 1.0]);
    near(&route(plain(1, Gating::Sigmoid), &logits), &[1.0, 0.8]);
    near(&route(plain(1, Gating::SqrtSoftplus), &logits), &[1.0, ln(5.0).sqrt()]);
    // Ties go to the lowest id, ids come in ascending order.
    near(&route(plain(3, Gating::Sigmoid), &[0.0, 1.0, 0.0, 0.0, 1.0])[..3], &[0.0, 1.0, 4.0]);
    // The best expert stands in a group that loses by the sum of two.
    let groups = |score| Some(Groups { count: 2, top: 1, score });
    let logits = [9.0, -9.0, 8.0, 8.0];
    let rule = |score| Routing { groups: groups(score), ..plain(2, Gating::Sigmoid) };
    near(&route(rule(GroupScore::BestTwo), &logits)[..2], &[2.0, 3.0]);
    near(&route(rule(GroupScore::Best), &logits)[..2], &[0.0, 1.0]);
}

#[test]
fn scales_and_the_clamped_gate_by_hand() {
    let mut dev = Reference::new(false);
    let logits = buffer(&mut dev, 4, &[1f32.ln(), 4f32.ln(), 1f32.ln(), 2f32.ln()]);
    let spec =
        |cols| WeightSpec { name: "s".into(), kind: WeightKind::Vector, format: Format::F32, rows: 1, cols };
    let bytes: Vec<u8> = [9.0f32, 0.5, 9.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let scales = Some(dev.load(&spec(4), std::sync::Arc::new(bytes)).unwrap());
    let out = dev.alloc(1, 4).unwrap();
    let rule = Routing { normalize: Some(0.0), ..plain(2, Gating::Softmax) };
    dev.route(&Route { logits, rows: 1, rule, bias: None, scales, chosen: None, out }).unwrap();
    let found = contents(&mut dev, out, 4);
    let expected = [1.0, 3.0, 2.0 / 3.0 * 0.5, 1.0 / 3.0 * 3.0];
    assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?}");
    let gate = Activation::ClampedSwiglu { alpha: 2.0, limit: 3.0, plus_one: true };
    let near = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-6, "{found}, {expected}");
    near(gate.gated(1.0, 0.5), 1.5 / (1.0 + (-2f32).exp()));
    // The gate is bounded above only, the value on both sides.
    near(gate.gated(5.0, 9.0), 4.0 * 3.0 / (1.0 + (-6f32).exp()));
    near(gate.gated(-5.0, -9.0), -2.0 * -5.0 / (1.0 + 10f32.exp()));
    assert!(gate.gated(f32::NAN, 1.0).is_nan() && gate.gated(1.0, f32::NAN).is_nan());
}

#[test]
fn logits_that_are_no_numbers_end_in_valid_ids() {
    let nan = f32::NAN;
    for gating in GATINGS {
        for logits in [
            [nan; 5],
            [f32::NEG_INFINITY; 5],
            [f32::INFINITY; 5],
            [nan, 1.0, nan, f32::NEG_INFINITY, 2.0],
            [f32::INFINITY, nan, 0.0, f32::INFINITY, -1.0],
        ] {
            for normalize in [None, Some(0.0)] {
                let rule = Routing { normalize, ..plain(3, gating) };
                agree(&format!("{gating:?} of {logits:?}"), false, |dev| {
                    let found = routes(dev, rule, 5, &logits, false);
                    let ids = &found[..3];
                    assert!(ids.is_sorted_by(|a, b| a < b) && ids.iter().all(|&id| id < 5.0), "{found:?}");
                    found
                });
            }
        }
    }
    // NaN ranks last.
    let mut dev = Reference::new(false);
    let found = routes(&mut dev, plain(2, Gating::Softmax), 4, &[nan, 1.0, nan, 0.0], false);
    assert_eq!(found[..2], [1.0, 3.0]);
    // Chosen all the same, it shows.
    let found = routes(&mut dev, plain(3, Gating::Sigmoid), 4, &[nan, 1.0, nan, 0.0], false);
    assert_eq!((found[0], found[3]), (0.0, -7.0));
}

struct Mixture {
    format: Format,
    count: usize,
    dim: usize,
    ff: usize,
    top_k: usize,
    activation: Activation,
    biased: bool,
}

impl Mixture {
    fn weights(&self, dev: &mut dyn Compute) -> [Weight; 3] {
        let &Mixture { format, count, dim, ff, .. } = self;
        let mut load =
            |seed, rows, cols| weight(dev, seed, WeightKind::Experts { count }, format, count * rows, cols);
        [load(1, ff, dim), load(2, ff, dim), load(3, dim, ff)]
    }

    /// Experts of this activation have no gate.
    fn gated(&self) -> bool {
        self.activation != Activation::ReluSquared
    }

    fn biases(&self, dev: &mut dyn Compute) -> Option<[Weight; 3]> {
        let &Mixture { count, dim, ff, biased, .. } = self;
        let mut load = |seed, width| weight(dev, seed, WeightKind::Vector, Format::F32, 1, count * width);
        biased.then(|| [load(11, ff), load(12, ff), load(13, dim)])
    }

    /// `out` after the mixture was added to what was there.
    fn run(&self, dev: &mut dyn Compute, x: &[f32], routes: &[f32]) -> Vec<f32> {
        let ([gate, up, down], biases) = (self.weights(dev), self.biases(dev));
        let rows = x.len() / self.dim;
        let x = buffer(dev, self.dim, x);
        let routes = buffer(dev, 2 * self.top_k, routes);
        let hidden = dev.alloc(rows * self.top_k, self.ff).unwrap();
        let out = random(dev, 9, 1, self.dim);
        let start = contents(dev, out, self.dim);
        let out = buffer(dev, self.dim, &start.repeat(rows));
        let &Mixture { top_k, activation, .. } = self;
        let (gate, add) = (self.gated().then_some(gate), true);
        dev.experts(&Experts {
            x,
            rows,
            routes,
            top_k,
            gate,
            up,
            down,
            biases,
            activation,
            hidden,
            out,
            add,
        })
        .unwrap();
        contents(dev, out, rows * self.dim)
    }
}

/// Rows of ids and weights, by what `ids` says.
fn made(rows: usize, top_k: usize, mut ids: impl FnMut(usize) -> Vec<usize>) -> Vec<f32> {
    let mut rng = Rng::new(4);
    let row = |r| {
        let ids: Vec<usize> = ids(r);
        assert_eq!(ids.len(), top_k);
        ids.into_iter().map(|id| id as f32).chain(rng.normal_vec(top_k, 1.0)).collect::<Vec<f32>>()
    };
    (0..rows).flat_map(row).collect()
}

/// Distinct ids in no order; rarely the last ones.
fn some_ids(rng: &mut Rng, top_k: usize, count: usize) -> Vec<usize> {
    let mut ids: Vec<usize> = Vec::new();
    while ids.len() < top_k {
        let id = rng.below(count).min(rng.below(count));
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

fn mixtures() -> Vec<Mixture> {
    let quantised = [Format::Q4_0, Format::Q8_0, Format::Q4_1, Format::Q5_0].map(|format| Mixture {
        format,
        count: 7,
        dim: 160,
        ff: 96,
        top_k: 3,
        activation: Activation::Silu,
        biased: format == Format::Q8_0,
    });
    // Rows that fill no group of 16, in the float family.
    let floats = [Format::F16, Format::F32].map(|format| Mixture {
        format,
        count: 5,
        dim: 37,
        ff: 21,
        top_k: 2,
        activation: Activation::GeluTanh,
        biased: format == Format::F32,
    });
    let clamped = Mixture {
        format: Format::MXFP4,
        count: 6,
        dim: 96,
        ff: 64,
        top_k: 4,
        // A limit that many values reach.
        activation: Activation::ClampedSwiglu { alpha: 1.702, limit: 0.7, plus_one: true },
        biased: true,
    };
    let gateless = [Format::Q8_0, Format::F16].map(|format| Mixture {
        format,
        count: 7,
        dim: 96,
        ff: 160,
        top_k: 3,
        activation: Activation::ReluSquared,
        biased: false,
    });
    quantised.into_iter().chain(floats).chain([clamped]).chain(gateless).collect()
}

#[test]
fn experts_are_the_oracles() {
    for mixture in mixtures() {
        for exact in [false, true] {
            for rows in [1, 2, 5, 9, 40] {
                let mut rng = Rng::new(rows as u64);
                let x = rng.normal_vec(rows * mixture.dim, 1.0);
                let k = mixture.top_k;
                let routes = made(rows, k, |_| some_ids(&mut rng, k, mixture.count));
                let what = format!("{}, exact {exact}, {rows} rows", mixture.format);
                agree(&what, exact, |dev| mixture.run(dev, &x, &routes));
            }
        }
    }
}

#[test]
fn all_rows_to_the_same_experts_and_rows_that_share_none() {
    for mixture in mixtures() {
        let (rows, k) = (19, mixture.top_k);
        let x = Rng::new(3).normal_vec(rows * mixture.dim, 1.0);
        let same = made(rows, k, |_| (mixture.count - k..mixture.count).collect());
        agree("all to the last", false, |dev| mixture.run(dev, &x, &same));
        let turned = made(rows, k, |r| (0..k).map(|i| (r + i) % mixture.count).collect());
        agree("in turn", false, |dev| mixture.run(dev, &x, &turned));
    }
}

#[test]
fn company_and_threads_do_not_change_a_bit() {
    for mixture in mixtures() {
        let (rows, k) = (33, mixture.top_k);
        let mut rng = Rng::new(11);
        let x = rng.normal_vec(rows * mixture.dim, 1.0);
        let routes = made(rows, k, |_| some_ids(&mut rng, k, mixture.count));
        for isa in classes() {
            let together = mixture.run(&mut cpu(isa, 2, false), &x, &routes);
            for r in [0, 7, 32] {
                let (x, route) = (&x[r * mixture.dim..][..mixture.dim], &routes[r * 2 * k..][..2 * k]);
                let alone = mixture.run(&mut cpu(isa, 1, false), x, route);
                let here = &together[r * mixture.dim..][..mixture.dim];
                same_bits(&format!("{} {isa} row {r}", mixture.format), here, &alone);
            }
        }
    }
}

#[test]
fn products_stay_inside_hidden_and_output() {
    let pool = Pool::new(2, false);
    let arena = Arena::new();
    for isa in classes() {
        for (format, dim, ff) in [(Format::Q8_0, 96, 32), (Format::F32, 21, 37), (Format::Q4_0, 32, 160)] {
            let ctx = LoadCtx { isa, exact: false, pool: &pool, arena: &arena };
            let matrices = |rows: usize, cols: usize| -> Vec<Matrix> {
                let one = |seed| {
                    let name = "guarded".into();
                    let spec = WeightSpec { name, kind: WeightKind::Matrix, format, rows, cols };
                    let mut bytes = vec![0; spec.file_bytes().unwrap() as usize];
                    let values = Rng::new(seed).normal_vec(rows * cols, 1.0);
                    hob_quant::encode_row(format, &values, &mut bytes).unwrap();
                    Matrix::load(&spec, &bytes, &ctx).unwrap()
                };
                (0..4).map(one).collect()
            };
            let (gate, up, down) = (matrices(ff, dim), matrices(ff, dim), matrices(dim, ff));
            for rows in [1, 3, 11, 30] {
                for edge in [Edge::Start, Edge::End] {
                    let x = GuardedBuf::from_f32(&Rng::new(1).normal_vec(rows * dim, 1.0), edge);
                    let routes = made(rows, 2, |r| vec![r % 4, (r + 1) % 4]);
                    let routes = GuardedBuf::from_f32(&routes, edge);
                    let mut hidden = GuardedBuf::new(rows * 2 * ff * 4, edge);
                    let mut out = GuardedBuf::new(rows * dim * 4, edge);
                    let job = experts::Job {
                        x: x.as_f32(),
                        rows,
                        routes: routes.as_f32(),
                        top_k: 2,
                        gate: &gate,
                        up: &up,
                        down: &down,
                        biases: [None; 3],
                        activation: Activation::Silu,
                        hidden: hidden.as_mut_f32(),
                        out: out.as_mut_f32(),
                        add: true,
                    };
                    experts::run(&pool, isa, job, &mut experts::Scratch::default()).unwrap();
                    assert!(out.as_f32().iter().all(|v| v.is_finite()));
                }
            }
        }
    }
}

const DIM: usize = 72;

/// A device with a short convolution and three slots.
struct Conv {
    dev: Box<dyn Compute>,
    taps: Weight,
    count: usize,
    state: Buf,
}

impl Conv {
    fn new(mut dev: impl Compute + 'static, count: usize) -> Self {
        let taps = weight(&mut dev, 6, WeightKind::Vector, Format::F32, 1, DIM * count);
        // Slots begin with anything.
        let state = random(&mut dev, 7, 3, DIM * (count - 1));
        Conv { dev: Box::new(dev), taps, count, state }
    }

    /// Rows of `x`, `3 * DIM` each, cut into sequences.
    fn run(&mut self, x: &[f32], seqs: &[SlotRows]) -> Vec<f32> {
        let dev = self.dev.as_mut();
        let rows = x.len() / (3 * DIM);
        let bcu = buffer(dev, 3 * DIM, x);
        let out = dev.alloc(rows, DIM).unwrap();
        dev.short_conv(&ShortConv {
            form: ConvForm::Gated,
            x: bcu,
            taps: self.taps,
            bias: None,
            memory: Memory::plain(self.state),
            seqs,
            out,
        })
        .unwrap();
        contents(dev, out, rows * DIM)
    }

    fn state(&mut self) -> Vec<f32> {
        contents(self.dev.as_mut(), self.state, 3 * DIM * (self.count - 1))
    }
}

#[test]
fn short_conv_is_the_oracles_also_in_ragged_batches() {
    let seq = |row, rows, position, slot| SlotRows::new(row, rows, position, slot);
    let batches = [
        vec![seq(0, 300, 0, 1)],
        vec![seq(0, 1, 0, 0), seq(1, 7, 300, 1), seq(8, 2, 0, 2)],
        vec![seq(0, 1, 1, 0), seq(1, 1, 307, 1), seq(2, 1, 2, 2)],
        // A gap in the rows, and a slot that starts anew.
        vec![seq(1, 2, 0, 1), seq(4, 0, 3, 2), seq(5, 2, 3, 2)],
    ];
    for count in [2, 3, 4] {
        let scenario = |dev: Conv| {
            let mut dev = dev;
            let mut all = Vec::new();
            for (i, seqs) in batches.iter().enumerate() {
                let rows = seqs.iter().map(|s| s.row + s.rows).max().unwrap();
                all.extend(dev.run(&Rng::new(i as u64).normal_vec(rows * 3 * DIM, 1.0), seqs));
                all.extend(dev.state());
            }
            all
        };
        let expected = scenario(Conv::new(Reference::new(false), count));
        for isa in classes() {
            for threads in [1, 3] {
                let found = scenario(Conv::new(cpu(isa, threads, false), count));
                same_bits(&format!("{count} taps, {isa}, {threads} threads"), &expected, &found);
            }
        }
    }
}

#[test]
fn chunks_of_a_convolution_do_not_change_a_bit() {
    const ROWS: usize = 50;
    let x = Rng::new(1).normal_vec(ROWS * 3 * DIM, 1.0);
    for isa in classes() {
        let new = || Conv::new(cpu(isa, 2, false), 4);
        let whole = new().run(&x, &[SlotRows::new(0, ROWS, 0, 2)]);
        for chunk in [1, 2, 3, 7, 49] {
            let (mut conv, mut cut) = (new(), Vec::new());
            for (i, part) in x.chunks(chunk * 3 * DIM).enumerate() {
                let rows = part.len() / (3 * DIM);
                cut.extend(conv.run(part, &[SlotRows::new(0, rows, i * chunk, 2)]));
            }
            same_bits(&format!("{isa}, chunks of {chunk}"), &whole, &cut);
        }
    }
}

#[test]
fn a_convolution_by_hand() {
    let mut conv = Conv::new(Reference::new(false), 3);
    let taps = Rng::new(6).normal_vec(DIM * 3, 0.5);
    // B = 2, C = 3, u = 1: v is 2 everywhere; the first position sees one tap, the second two.
    let row: Vec<f32> = [2.0, 3.0, 1.0].into_iter().flat_map(|v| [v; DIM]).collect();
    let out = conv.run(&row.repeat(3), &[SlotRows::new(0, 3, 0, 0)]);
    for c in 0..DIM {
        let w = &taps[c * 3..][..3];
        let expected = [w[2], w[1] + w[2], w[0] + w[1] + w[2]].map(|sum| 6.0 * sum);
        for (t, e) in expected.into_iter().enumerate() {
            assert!((out[t * DIM + c] - e).abs() < 1e-4, "channel {c}, position {t}");
        }
    }
}

/// Runs on the oracle and the CPU, which must refuse alike.
fn refused(what: &str, attempt: impl Fn(&mut dyn Compute) -> Result<(), ComputeError>) {
    let devices: [Box<dyn Compute>; 2] =
        [Box::new(Reference::new(false)), Box::new(cpu(classes()[0], 1, false))];
    let messages = devices.map(|mut dev| attempt(dev.as_mut()).expect_err(what).to_string());
    assert_eq!(messages[0], messages[1], "{what}");
    assert!(!messages[0].is_empty());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mixture = || Mixture {
        format: Format::Q8_0,
        count: 3,
        dim: 64,
        ff: 32,
        top_k: 2,
        activation: Activation::Silu,
        biased: false,
    };
    for (id, what) in
        [(3.0, "an expert too many"), (-1.0, "below"), (0.5, "no whole number"), (f32::NAN, "no number")]
    {
        refused(what, |dev| {
            let m = mixture();
            let [gate, up, down] = m.weights(dev);
            let x = random(dev, 1, 1, 64);
            let routes = buffer(dev, 4, &[0.0, id, 1.0, 1.0]);
            let (hidden, out) = (dev.alloc(2, 32)?, dev.alloc(1, 64)?);
            let (rows, top_k, activation) = (1, 2, m.activation);
            dev.experts(&Experts {
                x,
                rows,
                routes,
                top_k,
                gate: Some(gate),
                up,
                down,
                biases: None,
                activation,
                hidden,
                out,
                add: true,
            })
        });
    }
    refused("a matrix as experts, or a hidden buffer too small", |dev| {
        let m = mixture();
        let [gate, up, down] = m.weights(dev);
        let (x, routes) = (random(dev, 1, 2, 64), buffer(dev, 4, &[0.0, 1.0, 1.0, 1.0].repeat(2)));
        let (hidden, out) = (dev.alloc(3, 32)?, dev.alloc(2, 64)?);
        let (rows, top_k, activation) = (2, 2, m.activation);
        let (biases, add) = (None, true);
        let gate = Some(gate);
        dev.experts(&Experts { x, rows, routes, top_k, gate, up, down, biases, activation, hidden, out, add })
    });
    refused("a matrix", |dev| {
        let m = mixture();
        let [gate, up, _] = m.weights(dev);
        let down = weight(dev, 3, WeightKind::Matrix, Format::Q8_0, 64, 32);
        let (x, routes) = (random(dev, 1, 1, 64), buffer(dev, 4, &[0.0, 1.0, 1.0, 1.0]));
        let (hidden, out) = (dev.alloc(2, 32)?, dev.alloc(1, 64)?);
        let (rows, top_k, activation) = (1, 2, m.activation);
        let (biases, add) = (None, true);
        let gate = Some(gate);
        dev.experts(&Experts { x, rows, routes, top_k, gate, up, down, biases, activation, hidden, out, add })
    });
    refused("biases of one expert less", |dev| {
        let m = mixture();
        let [gate, up, down] = m.weights(dev);
        let mut vector = |width| weight(dev, 5, WeightKind::Vector, Format::F32, 1, width);
        let biases = Some([vector(3 * 32), vector(2 * 32), vector(3 * 64)]);
        let (x, routes) = (random(dev, 1, 1, 64), buffer(dev, 4, &[0.0, 1.0, 1.0, 1.0]));
        let (hidden, out) = (dev.alloc(2, 32)?, dev.alloc(1, 64)?);
        let (rows, top_k, activation, add) = (1, 2, m.activation, true);
        let gate = Some(gate);
        dev.experts(&Experts { x, rows, routes, top_k, gate, up, down, biases, activation, hidden, out, add })
    });
    refused("biases of experts without a gate", |dev| {
        let m = mixture();
        let [_, up, down] = m.weights(dev);
        let mut vector = |width| weight(dev, 5, WeightKind::Vector, Format::F32, 1, width);
        let biases = Some([vector(3 * 32), vector(3 * 32), vector(3 * 64)]);
        let (x, routes) = (random(dev, 1, 1, 64), buffer(dev, 4, &[0.0, 1.0, 1.0, 1.0]));
        let (hidden, out) = (dev.alloc(2, 32)?, dev.alloc(1, 64)?);
        let (rows, top_k, activation, add, gate) = (1, 2, m.activation, true, None);
        dev.experts(&Experts { x, rows, routes, top_k, gate, up, down, biases, activation, hidden, out, add })
    });
    refused("rows that make no whole experts", |dev| {
        let spec = WeightSpec {
            name: "w".into(),
            kind: WeightKind::Experts { count: 3 },
            format: Format::F32,
            rows: 4,
            cols: 2,
        };
        dev.load(&spec, std::sync::Arc::new(vec![0; 32])).map(|_| ())
    });
    let groups = Some(Groups { count: 3, top: 1, score: GroupScore::Best });
    for rule in [
        plain(0, Gating::Softmax),
        plain(9, Gating::Softmax),
        Routing { groups, ..plain(2, Gating::Sigmoid) },
        Routing {
            groups: Some(Groups { count: 0, top: 0, score: GroupScore::Best }),
            ..plain(1, Gating::Sigmoid)
        },
    ] {
        refused("a rule that cannot be", |dev| {
            let (logits, out) = (random(dev, 1, 1, 8), dev.alloc(1, (2 * rule.top_k).max(1))?);
            dev.route(&Route { logits, rows: 1, rule, bias: None, scales: None, chosen: None, out })
        });
    }
    for (slot, rows, what) in [(3, 1, "a slot too many"), (0, 5, "rows beyond the batch")] {
        refused(what, |dev| {
            let taps = weight(dev, 6, WeightKind::Vector, Format::F32, 1, DIM * 3);
            let (bcu, state) = (random(dev, 1, 4, 3 * DIM), random(dev, 2, 3, 2 * DIM));
            let out = dev.alloc(4, DIM)?;
            let (form, bias, memory) = (ConvForm::Gated, None, Memory::plain(state));
            let seqs = [SlotRows::new(0, rows, 0, slot)];
            dev.short_conv(&ShortConv { form, x: bcu, taps, bias, memory, seqs: &seqs, out })
        });
    }
}
