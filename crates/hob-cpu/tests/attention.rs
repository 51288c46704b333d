//! KV pages and attention against the oracle, bit by bit, for any division of the same rows.

mod common;

use common::{agree, buffer, classes, contents, cpu, same_bits, weight};
use hob_compute::reference::Reference;
use hob_compute::{
    AppendKv, Attend, Compute, ComputeError, PAGE_POSITIONS, Page, PageSpec, Pool, SeqRows, WeightKind,
};
use hob_quant::Format;
use hob_testkit::rng::Rng;

#[derive(Copy, Clone, Debug)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// What an `attend` does beside the plain softmax.
#[derive(Copy, Clone, Debug, Default)]
struct Rules {
    window: Option<usize>,
    softcap: Option<f32>,
    /// A sink per head, of seeded values.
    sinks: bool,
}

/// Windows within a block, of one page, across pages; caps that bend and that flatten; and sinks, mixed.
const RULES: [Rules; 7] = [
    Rules { window: Some(1), softcap: None, sinks: false },
    Rules { window: Some(5), softcap: None, sinks: true },
    Rules { window: Some(100), softcap: Some(30.0), sinks: true },
    Rules { window: Some(256), softcap: None, sinks: false },
    Rules { window: Some(300), softcap: Some(0.5), sinks: false },
    Rules { window: None, softcap: Some(5.0), sinks: false },
    Rules { window: None, softcap: None, sinks: true },
];

/// A sequence's whole timeline: q, k and v of every position, and its pages.
struct Timeline {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    pages: Vec<Page>,
}

struct World {
    of: Heads,
    rules: Rules,
    pool: Pool,
    timelines: Vec<Timeline>,
}

/// A run of consecutive positions of one timeline.
type Run = (usize, std::ops::Range<usize>);

impl World {
    /// Timelines of these lengths, their pages scattered over the pool.
    fn new(dev: &mut dyn Compute, of: Heads, lengths: &[usize]) -> World {
        World::with(dev, of, Rules::default(), lengths)
    }

    fn with(dev: &mut dyn Compute, of: Heads, rules: Rules, lengths: &[usize]) -> World {
        let spec = PageSpec::f16(of.kv_heads, of.head_dim);
        let counts: Vec<usize> = lengths.iter().map(|n| n.div_ceil(PAGE_POSITIONS)).collect();
        let total: usize = counts.iter().sum();
        let pool = dev.alloc_pages(&spec, total + 1).unwrap();
        let mut free: Vec<u32> = (0..total as u32 + 1).collect();
        let mut rng = Rng::new(99);
        rng.shuffle(&mut free);
        let timelines = lengths.iter().zip(counts).map(|(&n, pages)| Timeline {
            q: rng.normal_vec(n * of.heads * of.head_dim, 1.0),
            k: rng.normal_vec(n * of.kv_heads * of.head_dim, 1.0),
            v: rng.normal_vec(n * of.kv_heads * of.head_dim, 1.0),
            pages: free.split_off(free.len() - pages).into_iter().map(|index| Page { pool, index }).collect(),
        });
        World { of, rules, pool, timelines: timelines.collect() }
    }

    fn rows(&self, runs: &[Run], of: impl Fn(&Timeline) -> &[f32], width: usize) -> Vec<f32> {
        runs.iter()
            .flat_map(|(t, r)| of(&self.timelines[*t])[r.start * width..r.end * width].to_vec())
            .collect()
    }

    fn seqs(&self, runs: &[Run]) -> Vec<SeqRows<'_>> {
        let mut row = 0;
        runs.iter()
            .map(|(t, range)| {
                let seq = SeqRows {
                    row,
                    rows: range.len(),
                    position: range.start,
                    pages: &self.timelines[*t].pages,
                };
                row += range.len();
                seq
            })
            .collect()
    }

    fn append(&self, dev: &mut dyn Compute, runs: &[Run]) {
        let width = self.of.kv_heads * self.of.head_dim;
        let k = buffer(dev, width, &self.rows(runs, |t| &t.k, width));
        let v = buffer(dev, width, &self.rows(runs, |t| &t.v, width));
        dev.append_kv(&AppendKv { k, v, seqs: &self.seqs(runs) }).unwrap();
        dev.free(k).unwrap();
        dev.free(v).unwrap();
    }

    /// Gives up the pages that rows from `position` on do not need.
    fn release(&mut self, position: usize) {
        for t in &mut self.timelines {
            let first = SeqRows { row: 0, rows: 0, position, pages: &[] }.first_page(self.rules.window);
            t.pages[..first].fill(Page::RELEASED);
        }
    }

    fn attend(&self, dev: &mut dyn Compute, runs: &[Run]) -> Vec<f32> {
        self.try_attend(dev, runs).unwrap()
    }

    fn try_attend(&self, dev: &mut dyn Compute, runs: &[Run]) -> Result<Vec<f32>, ComputeError> {
        let Heads { heads, kv_heads, head_dim } = self.of;
        let Rules { window, softcap, sinks } = self.rules;
        let data = self.rows(runs, |t| &t.q, heads * head_dim);
        let q = buffer(dev, heads * head_dim, &data);
        let out = dev.alloc(data.len() / (heads * head_dim), heads * head_dim).unwrap();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let sinks = sinks.then(|| weight(dev, 77, WeightKind::Vector, Format::F32, 1, heads));
        let seqs = &self.seqs(runs);
        let args = Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs };
        dev.attend(&args)?;
        let found = contents(dev, out, data.len());
        dev.free(q).unwrap();
        dev.free(out).unwrap();
        sinks.map_or(Ok(()), |w| dev.unload(w)).unwrap();
        Ok(found)
    }

    /// One step of a model: the rows are appended, then attend.
    fn step(&self, dev: &mut dyn Compute, runs: &[Run]) -> Vec<f32> {
        self.append(dev, runs);
        self.attend(dev, runs)
    }
}

/// Windows whose rows straddle the edges of blocks and pages, few and many rows.
const WINDOWS: [std::ops::Range<usize>; 8] =
    [0..1, 0..5, 15..16, 60..68, 255..256, 250..263, 511..514, 590..600];

fn windows(of: Heads) {
    agree(&format!("{of:?}"), false, |dev| {
        let world = World::new(dev, of, &[600]);
        world.append(dev, &[(0, 0..600)]);
        WINDOWS.iter().flat_map(|w| world.attend(dev, &[(0, w.clone())])).collect()
    });
}

#[test]
fn every_group_size() {
    for group in 1..=8 {
        windows(Heads { heads: 2 * group, kv_heads: 2, head_dim: 16 });
    }
    windows(Heads { heads: 13, kv_heads: 1, head_dim: 16 });
}

#[test]
fn every_head_width() {
    for head_dim in [64, 80, 128, 24, 40, 20, 5] {
        windows(Heads { heads: 3, kv_heads: 1, head_dim });
    }
    windows(Heads { heads: 2, kv_heads: 1, head_dim: 256 });
    windows(Heads { heads: 1, kv_heads: 1, head_dim: 576 });
}

#[test]
fn the_models_own_shapes() {
    windows(Heads { heads: 9, kv_heads: 3, head_dim: 64 });
    windows(Heads { heads: 16, kv_heads: 8, head_dim: 128 });
}

#[test]
fn a_large_tile_that_ends_in_the_middle_of_everything() {
    for of in [Heads { heads: 9, kv_heads: 3, head_dim: 64 }, Heads { heads: 4, kv_heads: 4, head_dim: 80 }] {
        agree(&format!("141 rows of {of:?}"), false, |dev| {
            let world = World::new(dev, of, &[400]);
            world.append(dev, &[(0, 0..400)]);
            world.attend(dev, &[(0, 199..340)])
        });
    }
}

#[test]
fn exact_devices_keep_keys_and_values_unrounded() {
    let of = Heads { heads: 4, kv_heads: 2, head_dim: 24 };
    let scenario = |dev: &mut dyn Compute| {
        let world = World::new(dev, of, &[300, 256]);
        let mut all = world.step(dev, &[(0, 0..260), (1, 0..100)]);
        dev.copy_page(world.timelines[0].pages[0], world.timelines[1].pages[0], 100).unwrap();
        all.extend(world.step(dev, &[(0, 260..261), (1, 100..103)]));
        all
    };
    agree("exact attention", true, scenario);
    let rounded = scenario(&mut cpu(hob_cpu::Isa::best(), 1, false));
    let exact = scenario(&mut cpu(hob_cpu::Isa::best(), 1, true));
    assert_ne!(rounded, exact);
    assert!(rounded.iter().zip(&exact).all(|(r, e)| (r - e).abs() < 5e-3), "f16 changes little");
}

#[test]
fn long_contexts_in_windows_of_pages() {
    let of = Heads { heads: 4, kv_heads: 2, head_dim: 16 };
    agree("9000 positions", false, |dev| {
        let world = World::new(dev, of, &[9000]);
        world.append(dev, &[(0, 0..9000)]);
        let mut all = world.attend(dev, &[(0, 8999..9000)]);
        all.extend(world.attend(dev, &[(0, 8700..8704)]));
        all
    });
}

#[test]
fn one_by_one_in_chunks_and_in_one_go_are_the_same() {
    let n = 300;
    for of in [Heads { heads: 6, kv_heads: 2, head_dim: 64 }, Heads { heads: 8, kv_heads: 1, head_dim: 24 }] {
        for isa in classes() {
            for threads in [1, 2] {
                let run = |step: usize| {
                    let mut dev = cpu(isa, threads, false);
                    let world = World::new(&mut dev, of, &[n]);
                    let runs = (0..n).step_by(step).map(|at| (0, at..(at + step).min(n)));
                    runs.flat_map(|run| world.step(&mut dev, &[run])).collect::<Vec<f32>>()
                };
                let whole = run(n);
                for step in [1, 3, 64, 100, 257] {
                    same_bits(
                        &format!("{of:?}, {isa}, {threads} threads, steps of {step}"),
                        &whole,
                        &run(step),
                    );
                }
            }
        }
    }
}

#[test]
fn company_changes_nothing() {
    let of = Heads { heads: 6, kv_heads: 2, head_dim: 64 };
    let lengths = [300, 40, 530];
    for isa in classes() {
        for threads in [1, 3] {
            let mut dev = cpu(isa, threads, false);
            let world = World::new(&mut dev, of, &lengths);
            let alone: Vec<Vec<f32>> = (0..3).map(|t| world.step(&mut dev, &[(t, 0..lengths[t])])).collect();
            let mut dev = cpu(isa, threads, false);
            let world = World::new(&mut dev, of, &lengths);
            let steps: [&[Run]; 5] = [
                &[(0, 0..299), (1, 0..30), (2, 0..255)],
                &[(1, 30..31), (2, 255..480)],
                &[(0, 299..300), (1, 31..32), (2, 480..481)],
                &[(2, 481..514), (1, 32..39)],
                &[(1, 39..40), (2, 514..530)],
            ];
            let mut together = [const { Vec::new() }; 3];
            for runs in steps {
                let found = world.step(&mut dev, runs);
                let mut rest = &found[..];
                for (t, range) in runs {
                    let (own, others) = rest.split_at(range.len() * of.heads * of.head_dim);
                    together[*t].extend_from_slice(own);
                    rest = others;
                }
            }
            for (t, (a, b)) in alone.iter().zip(&together).enumerate() {
                same_bits(&format!("sequence {t}, {isa}, {threads} threads"), a, b);
            }
        }
    }
}

#[test]
fn a_mixed_batch_agrees_with_the_oracle() {
    let of = Heads { heads: 4, kv_heads: 2, head_dim: 64 };
    agree("prefill beside decode", false, |dev| {
        let world = World::new(dev, of, &[200, 300, 20]);
        world.append(dev, &[(0, 0..150), (1, 0..299)]);
        world.step(dev, &[(0, 150..200), (1, 299..300), (2, 0..20)])
    });
}

#[test]
fn what_a_page_held_before_never_shows() {
    // The worst a reused page can hold: infinities, and NaN through infinity minus infinity.
    let of = Heads { heads: 3, kv_heads: 1, head_dim: 64 };
    let run = |dev: &mut dyn Compute, dirty: bool| {
        let mut world = World::new(dev, of, &[300]);
        if dirty {
            let poison: Vec<f32> = (0..300 * 64).map(|i| [1e30, -1e30, f32::NAN][i % 3]).collect();
            let t = &mut world.timelines[0];
            let clean = (std::mem::replace(&mut t.k, poison.clone()), std::mem::replace(&mut t.v, poison));
            world.append(dev, &[(0, 0..300)]);
            (world.timelines[0].k, world.timelines[0].v) = clean;
        }
        let mut all = world.step(dev, &[(0, 0..3)]);
        all.extend(world.step(dev, &[(0, 3..40)]));
        all.extend(world.step(dev, &[(0, 40..41)]));
        all.extend(world.step(dev, &[(0, 41..270)]));
        all
    };
    for isa in classes() {
        let clean = run(&mut cpu(isa, 2, false), false);
        assert!(clean.iter().all(|v| v.is_finite()));
        same_bits(&format!("dirty pages, {isa}"), &clean, &run(&mut cpu(isa, 2, false), true));
    }
}

#[test]
fn a_fork_copies_the_head_of_a_page() {
    let of = Heads { heads: 4, kv_heads: 2, head_dim: 24 };
    agree("fork", false, |dev| {
        let mut all = Vec::new();
        for positions in [0, 1, 64, 100, 256] {
            let mut world = World::new(dev, of, &[256, 256]);
            world.append(dev, &[(0, 0..256)]);
            let (from, to) = (world.timelines[0].pages[0], world.timelines[1].pages[0]);
            dev.copy_page(from, to, positions).unwrap();
            // A copy within one pool and one to another pool must agree.
            let spec = PageSpec::f16(of.kv_heads, of.head_dim);
            let other = dev.alloc_pages(&spec, 1).unwrap();
            dev.copy_page(from, Page { pool: other, index: 0 }, positions).unwrap();
            if positions < 256 {
                world.append(dev, &[(1, positions..256)]);
            }
            let found = world.attend(dev, &[(1, 200..256)]);
            dev.copy_page(Page { pool: other, index: 0 }, to, positions).unwrap();
            same_bits("copied twice", &found, &world.attend(dev, &[(1, 200..256)]));
            world.timelines[1].pages[0] = from;
            dev.copy_page(from, from, positions).unwrap();
            dev.free_pages(other).unwrap();
            all.extend(found);
            dev.free_pages(world.pool).unwrap();
        }
        all
    });
}

#[test]
fn attention_is_a_softmax_weighted_mean() {
    // Against f64, on f16-rounded K and V.
    let of = Heads { heads: 2, kv_heads: 1, head_dim: 64 };
    let mut dev = cpu(hob_cpu::Isa::best(), 2, false);
    let world = World::new(&mut dev, of, &[700]);
    world.append(&mut dev, &[(0, 0..700)]);
    let found = world.attend(&mut dev, &[(0, 640..700)]);
    let t = &world.timelines[0];
    let f16 = |x: f32| f64::from(half::f16::from_f32(x).to_f32());
    for (row, out) in found.chunks(128).enumerate() {
        let position = 640 + row;
        for head in 0..2 {
            let q = &t.q[(position * 2 + head) * 64..][..64];
            let score = |p: usize| -> f64 {
                let dot: f64 = q.iter().zip(&t.k[p * 64..]).map(|(&q, &k)| f64::from(q) * f16(k)).sum();
                dot / 8.0
            };
            let weights: Vec<f64> = (0..=position).map(|p| score(p).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..64 {
                let mean: f64 =
                    weights.iter().enumerate().map(|(p, w)| w * f16(t.v[p * 64 + d])).sum::<f64>() / total;
                let got = f64::from(out[head * 64 + d]);
                assert!(
                    (mean - got).abs() < 1e-5,
                    "row {row} head {head} dim {d}: expected {mean}, found {got}"
                );
            }
        }
    }
}

/// Rows at the edges of blocks, pages and of the windows in [`RULES`]; one row, several, and a tile's worth.
const EDGES: [std::ops::Range<usize>; 8] =
    [0..1, 0..33, 63..66, 99..101, 254..258, 299..302, 511..514, 567..600];

fn rules(of: Heads) {
    for rules in RULES {
        let run = |dev: &mut dyn Compute| -> Vec<f32> {
            let world = World::with(dev, of, rules, &[600]);
            world.append(dev, &[(0, 0..600)]);
            EDGES.iter().flat_map(|rows| world.attend(dev, &[(0, rows.clone())])).collect()
        };
        let expected = run(&mut Reference::new(false));
        for isa in classes() {
            for threads in [1, 2, 3] {
                let what = format!("{of:?}, {rules:?}, {isa}, {threads} threads");
                same_bits(&what, &expected, &run(&mut cpu(isa, threads, false)));
            }
        }
    }
}

#[test]
fn windows_caps_and_sinks_of_narrow_heads() {
    for head_dim in [16, 64] {
        for group in [1, 3, 4, 8] {
            rules(Heads { heads: group, kv_heads: 1, head_dim });
        }
    }
}

#[test]
fn windows_caps_and_sinks_of_wide_heads() {
    rules(Heads { heads: 3, kv_heads: 1, head_dim: 80 });
    rules(Heads { heads: 8, kv_heads: 2, head_dim: 128 });
    rules(Heads { heads: 4, kv_heads: 1, head_dim: 256 });
    rules(Heads { heads: 2, kv_heads: 1, head_dim: 20 });
}

#[test]
fn exact_devices_know_windows_caps_and_sinks() {
    for rules in RULES {
        agree(&format!("exact, {rules:?}"), true, |dev| {
            let world = World::with(dev, Heads { heads: 4, kv_heads: 2, head_dim: 24 }, rules, &[300]);
            let mut all = world.step(dev, &[(0, 0..270)]);
            all.extend(world.step(dev, &[(0, 270..300)]));
            all
        });
    }
}

#[test]
fn rows_of_one_tile_with_windows_far_apart() {
    // Tiles of many rows whose first and last see no page together.
    for window in [1, 40, 200, 260] {
        let rules = Rules { window: Some(window), ..Rules::default() };
        agree(&format!("window {window}"), false, |dev| {
            let of = Heads { heads: 2, kv_heads: 2, head_dim: 64 };
            let world = World::with(dev, of, rules, &[900, 70]);
            world.append(dev, &[(0, 0..900), (1, 0..70)]);
            world.attend(dev, &[(0, 200..900), (1, 3..70)])
        });
    }
}

#[test]
fn released_pages_are_never_looked_at_in_one_go_in_chunks_or_token_by_token() {
    let (n, of) = (700, Heads { heads: 6, kv_heads: 2, head_dim: 64 });
    let rules = Rules { window: Some(130), softcap: Some(20.0), sinks: true };
    for isa in classes() {
        for threads in [1, 2, 3] {
            let run = |step: usize| {
                let mut dev = cpu(isa, threads, false);
                let mut world = World::with(&mut dev, of, rules, &[n]);
                let steps = (0..n).step_by(step).map(|at| at..(at + step).min(n));
                let rows = |rows: std::ops::Range<usize>| {
                    world.release(rows.start);
                    world.step(&mut dev, &[(0, rows)])
                };
                steps.flat_map(rows).collect::<Vec<f32>>()
            };
            let whole = run(n);
            for step in [1, 7, 64, 100, 257] {
                same_bits(&format!("{isa}, {threads} threads, steps of {step}"), &whole, &run(step));
            }
        }
    }
}

#[test]
fn a_released_page_that_is_needed_is_an_error() {
    for dev in [&mut Reference::new(false) as &mut dyn Compute, &mut cpu(hob_cpu::Isa::best(), 2, false)] {
        let of = Heads { heads: 2, kv_heads: 1, head_dim: 16 };
        let rules = Rules { window: Some(10), ..Rules::default() };
        let mut world = World::with(dev, of, rules, &[600]);
        world.append(dev, &[(0, 0..600)]);
        world.release(521);
        assert!(matches!(world.try_attend(dev, &[(0, 520..521)]), Err(ComputeError::Handle { .. })));
        world.attend(dev, &[(0, 521..600)]);
    }
}

#[test]
fn nothing_outside_the_window_reaches_a_row() {
    let of = Heads { heads: 3, kv_heads: 1, head_dim: 64 };
    for (window, position) in [(1, 300), (40, 300), (100, 355), (256, 511), (300, 599)] {
        let rules = Rules { window: Some(window), softcap: None, sinks: true };
        for isa in classes() {
            let run = |poisoned: bool| {
                let mut dev = cpu(isa, 2, false);
                let mut world = World::with(&mut dev, of, rules, &[600]);
                if poisoned {
                    let t = &mut world.timelines[0];
                    t.k[..(position + 1 - window) * 64].fill(f32::NAN);
                    t.v[..(position + 1 - window) * 64].fill(f32::NAN);
                }
                world.append(&mut dev, &[(0, 0..600)]);
                world.attend(&mut dev, &[(0, position..position + 1)])
            };
            let clean = run(false);
            assert!(clean.iter().all(|v| v.is_finite()));
            same_bits(&format!("window {window} at {position}, {isa}"), &clean, &run(true));
        }
    }
}

#[test]
fn windows_caps_and_sinks_mean_what_they_say() {
    // Against f64, on f16-rounded K and V.
    let of = Heads { heads: 2, kv_heads: 1, head_dim: 64 };
    let f16 = |x: f32| f64::from(half::f16::from_f32(x).to_f32());
    let sinks = Rng::new(77).normal_vec(2, 0.5);
    for rules in RULES {
        let mut dev = cpu(hob_cpu::Isa::best(), 2, false);
        let world = World::with(&mut dev, of, rules, &[400]);
        world.append(&mut dev, &[(0, 0..400)]);
        let t = &world.timelines[0];
        for position in [0, 77, 399] {
            let found = world.attend(&mut dev, &[(0, position..position + 1)]);
            for head in 0..2 {
                let q = &t.q[(position * 2 + head) * 64..][..64];
                let score = |p: usize| -> f64 {
                    let dot: f64 = q.iter().zip(&t.k[p * 64..]).map(|(&q, &k)| f64::from(q) * f16(k)).sum();
                    let cap = rules.softcap.map(f64::from);
                    cap.map_or(dot / 8.0, |cap| cap * (dot / 8.0 / cap).tanh())
                };
                let first = rules.window.map_or(0, |w| (position + 1).saturating_sub(w));
                let weights: Vec<f64> = (first..=position).map(|p| score(p).exp()).collect();
                let sink = if rules.sinks { f64::from(sinks[head]).exp() } else { 0.0 };
                let total = weights.iter().sum::<f64>() + sink;
                for d in 0..64 {
                    let v = |i: usize| f16(t.v[(first + i) * 64 + d]);
                    let mean: f64 = weights.iter().enumerate().map(|(i, w)| w * v(i)).sum::<f64>() / total;
                    let got = f64::from(found[head * 64 + d]);
                    assert!(
                        (mean - got).abs() < 1e-5,
                        "{rules:?} at {position}: expected {mean}, found {got}"
                    );
                }
            }
        }
    }
}
