//! KV in every format against the oracle, bit by bit: attention, images of positions, copies.

mod common;

use common::{agree, buffer, classes, contents, cpu, same_bits, weight};
use hob_compute::reference::Reference;
use hob_compute::{
    AppendKv, Attend, Compute, ComputeError, PAGE_POSITIONS, Page, PageSpec, Pool, SeqRows, WeightKind,
};
use hob_quant::{Format, KvFormat};
use hob_testkit::rng::Rng;

#[derive(Copy, Clone, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    k: KvFormat,
    v: KvFormat,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    latent: Option<usize>,
}

impl Shape {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, k: KvFormat, v: KvFormat) -> Shape {
        Shape { heads, kv_heads, head_dim, k, v, window: None, softcap: None, sinks: false, latent: None }
    }

    fn spec(&self) -> PageSpec {
        let Shape { kv_heads, head_dim, k, v, latent, .. } = *self;
        PageSpec { kv_heads, head_dim, k, v, first: false, latent }
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// Every pair of formats.
fn pairs() -> impl Iterator<Item = (KvFormat, KvFormat)> {
    KvFormat::ALL.into_iter().flat_map(|k| KvFormat::ALL.into_iter().map(move |v| (k, v)))
}

/// One sequence: its pages, and q, k and v of every position, with the outliers that real keys have.
struct World {
    of: Shape,
    pools: Vec<Pool>,
    pages: Vec<Page>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl World {
    fn new(dev: &mut dyn Compute, of: Shape, positions: usize) -> World {
        let count = positions.div_ceil(PAGE_POSITIONS);
        let rest = dev.alloc_pages(&of.spec(), count + 1).unwrap();
        let first = dev.alloc_pages(&of.spec().of_page(0), 2).unwrap();
        // Neither pool's pages are taken in order.
        let page = |index: usize| match index {
            0 => Page { pool: first, index: 1 },
            _ => Page { pool: rest, index: (count - index) as u32 },
        };
        let mut rng = Rng::new(7);
        let mut side = |width: usize, loud: usize| {
            let mut values = rng.normal_vec(positions * width, 1.0);
            values.iter_mut().skip(loud).step_by(width).for_each(|x| *x *= 20.0);
            values
        };
        let kv = of.kv_width();
        let (q, k, v) = (side(of.heads * of.head_dim, 2), side(kv, 5), side(kv, kv - 1));
        World { of, pools: vec![rest, first], pages: (0..count).map(page).collect(), q, k, v }
    }

    fn append(&self, dev: &mut dyn Compute, range: std::ops::Range<usize>) {
        let width = self.of.kv_width();
        let rows = |x: &[f32]| x[range.start * width..range.end * width].to_vec();
        let (k, v) = (buffer(dev, width, &rows(&self.k)), buffer(dev, width, &rows(&self.v)));
        let values = if self.of.latent.is_some() { k } else { v };
        dev.append_kv(&AppendKv { k, v: values, seqs: &[self.seq(range)] }).unwrap();
        dev.free(k).unwrap();
        dev.free(v).unwrap();
    }

    fn seq(&self, range: std::ops::Range<usize>) -> SeqRows<'_> {
        SeqRows { row: 0, rows: range.len(), position: range.start, pages: &self.pages }
    }

    fn attend(&self, dev: &mut dyn Compute, range: std::ops::Range<usize>) -> Vec<f32> {
        let Shape { heads, kv_heads, head_dim, window, softcap, sinks, .. } = self.of;
        let width = heads * head_dim;
        let q = buffer(dev, width, &self.q[range.start * width..range.end * width]);
        let width = heads * self.of.spec().value_dim();
        let out = dev.alloc(range.len(), width).unwrap();
        let sinks = sinks.then(|| weight(dev, 77, WeightKind::Vector, Format::F32, 1, heads));
        let seqs = [self.seq(range.clone())];
        let scale = 0.3 / (head_dim as f32).sqrt();
        let args = Attend { q, out, heads, kv_heads, head_dim, scale, window, softcap, sinks, seqs: &seqs };
        dev.attend(&args).unwrap();
        let found = contents(dev, out, range.len() * width);
        dev.free(q).unwrap();
        dev.free(out).unwrap();
        sinks.map_or(Ok(()), |w| dev.unload(w)).unwrap();
        found
    }

    fn free(self, dev: &mut dyn Compute) {
        self.pools.into_iter().for_each(|pool| dev.free_pages(pool).unwrap());
    }

    /// Images of all pages up to `end`.
    fn images(&self, dev: &mut dyn Compute, end: usize) -> Vec<Vec<u8>> {
        let mut image = |(index, &page): (usize, &Page)| {
            let mut out = Vec::new();
            let range = 0..(end - index * PAGE_POSITIONS).min(PAGE_POSITIONS);
            dev.read_positions(page, range, &mut out).unwrap();
            out
        };
        self.pages.iter().enumerate().map(&mut image).collect()
    }
}

#[test]
fn a_v_within_k_has_the_bits_of_the_oracle() {
    for format in KvFormat::ALL {
        let of = |heads, head_dim| Shape::new(heads, 1, head_dim, format, format);
        agrees(Shape { latent: Some(64), ..of(20, 96) });
        agrees(Shape { latent: Some(32), window: Some(100), sinks: true, ..of(5, 96) });
    }
    let narrow = Shape::new(4, 1, 24, KvFormat::F16, KvFormat::F16);
    agrees(Shape { latent: Some(16), ..narrow });
    agrees(Shape { latent: Some(20), ..narrow });
}

/// Rows at the edges of blocks and pages: one, several, a tile's worth.
const RUNS: [std::ops::Range<usize>; 7] = [0..1, 0..40, 63..66, 127..128, 250..258, 319..320, 290..330];

fn agrees(of: Shape) {
    agree(&format!("{of:?}"), false, |dev| {
        let world = World::new(dev, of, 330);
        world.append(dev, 0..330);
        let found = RUNS.iter().flat_map(|run| world.attend(dev, run.clone())).collect();
        world.free(dev);
        found
    });
}

#[test]
fn every_pair_of_formats_has_the_bits_of_the_oracle() {
    for (k, v) in pairs() {
        agrees(Shape::new(3, 1, 64, k, v));
        agrees(Shape { window: Some(100), softcap: Some(20.0), sinks: true, ..Shape::new(4, 2, 32, k, v) });
    }
}

#[test]
fn every_head_dim_has_the_bits_of_the_oracle() {
    for head_dim in [32, 96, 128, 256] {
        for (k, v) in [
            (KvFormat::Q8, KvFormat::Q8),
            (KvFormat::Q4, KvFormat::Q4),
            (KvFormat::Q8, KvFormat::Q4),
            (KvFormat::Bf16, KvFormat::Q8),
            (KvFormat::Asym4, KvFormat::Asym4),
        ] {
            agrees(Shape::new(4, 2, head_dim, k, v));
        }
    }
    // What no packed format takes.
    agrees(Shape::new(2, 1, 80, KvFormat::Bf16, KvFormat::F16));
    agrees(Shape::new(2, 1, 20, KvFormat::F16, KvFormat::Bf16));
}

#[test]
fn every_group_has_the_bits_of_the_oracle() {
    for group in 1..=9 {
        for (k, v) in
            [(KvFormat::Q8, KvFormat::Q8), (KvFormat::Q4, KvFormat::Q4), (KvFormat::Bf16, KvFormat::Q4)]
        {
            agrees(Shape::new(group, 1, 64, k, v));
        }
    }
}

#[test]
fn windows_caps_and_sinks_have_the_bits_of_the_oracle() {
    for (window, softcap, sinks) in [
        (Some(1), None, true),
        (Some(5), Some(1.0), false),
        (Some(64), None, false),
        (Some(256), None, true),
        (None, Some(30.0), true),
    ] {
        for (k, v) in [(KvFormat::Q8, KvFormat::Q4), (KvFormat::Q4, KvFormat::Q8)] {
            agrees(Shape { window, softcap, sinks, ..Shape::new(7, 1, 64, k, v) });
        }
    }
}

#[test]
fn long_contexts_are_folded_alike() {
    for (k, v) in [(KvFormat::Q8, KvFormat::Q8), (KvFormat::Q4, KvFormat::Q4)] {
        agree(&format!("{k}/{v}"), false, |dev| {
            let world = World::new(dev, Shape::new(4, 2, 32, k, v), 5000);
            world.append(dev, 0..5000);
            let mut all = world.attend(dev, 4999..5000);
            all.extend(world.attend(dev, 4700..4704));
            all
        });
    }
}

#[test]
fn one_by_one_in_chunks_and_in_one_go_are_the_same() {
    let n = 300;
    for (k, v) in [(KvFormat::Q8, KvFormat::Q4), (KvFormat::Q4, KvFormat::Asym4)] {
        let of = Shape::new(6, 2, 64, k, v);
        for isa in classes() {
            for threads in [1, 2] {
                let run = |step: usize| {
                    let mut dev = cpu(isa, threads, false);
                    let world = World::new(&mut dev, of, n);
                    let steps = (0..n).step_by(step).map(|at| at..(at + step).min(n));
                    let rows = |rows: std::ops::Range<usize>| {
                        world.append(&mut dev, rows.clone());
                        world.attend(&mut dev, rows)
                    };
                    steps.flat_map(rows).collect::<Vec<f32>>()
                };
                let whole = run(n);
                for step in [1, 3, 64, 100, 257] {
                    same_bits(&format!("{of:?}, {isa}, {threads} threads, {step}"), &whole, &run(step));
                }
            }
        }
    }
}

#[test]
fn what_a_page_held_before_never_shows() {
    for (k, v) in pairs() {
        let run = |dev: &mut dyn Compute, dirty: bool| {
            let mut world = World::new(dev, Shape::new(3, 1, 64, k, v), 300);
            if dirty {
                let poison: Vec<f32> =
                    (0..300 * 64).map(|i| [1e30, -1e30, f32::NAN, f32::INFINITY][i % 4]).collect();
                let clean = (
                    std::mem::replace(&mut world.k, poison.clone()),
                    std::mem::replace(&mut world.v, poison),
                );
                world.append(dev, 0..300);
                (world.k, world.v) = clean;
            }
            let steps = [0..3, 3..40, 40..41, 41..270];
            let rows = |rows: std::ops::Range<usize>| {
                world.append(dev, rows.clone());
                world.attend(dev, rows)
            };
            steps.into_iter().flat_map(rows).collect::<Vec<f32>>()
        };
        for isa in classes() {
            let clean = run(&mut cpu(isa, 2, false), false);
            assert!(clean.iter().all(|v| v.is_finite()));
            same_bits(&format!("{k}/{v}, {isa}"), &clean, &run(&mut cpu(isa, 2, false), true));
        }
    }
}

#[test]
fn keys_and_values_that_are_not_finite_are_stored_alike() {
    for (k, v) in pairs() {
        let odd = |dev: &mut dyn Compute| {
            let mut world = World::new(dev, Shape::new(2, 1, 64, k, v), 300);
            let values =
                [f32::NAN, f32::INFINITY, -f32::INFINITY, 1e38, -1e38, 1e-38, -1e-42, 0.0, -0.0, 7e4];
            // Behind the first block: a rotated NaN stored as f16 has a sign that no rule gives.
            for side in [&mut world.k, &mut world.v] {
                for (i, x) in side[64 * 64..].iter_mut().step_by(37).enumerate() {
                    *x = values[i % values.len()];
                }
            }
            world.append(dev, 0..300);
            world.images(dev, 300)
        };
        let expected = odd(&mut Reference::new(false));
        for isa in classes() {
            assert!(expected == odd(&mut cpu(isa, 2, false)), "{k}/{v}, {isa}");
        }
    }
}

#[test]
fn images_are_the_same_on_every_device_and_restore_any_range() {
    for (k, v) in pairs() {
        let of = Shape::new(4, 2, 64, k, v);
        let mut oracle = Reference::new(false);
        let world = World::new(&mut oracle, of, 300);
        world.append(&mut oracle, 0..300);
        let expected = world.images(&mut oracle, 300);
        for isa in classes() {
            for threads in [1, 3] {
                let mut dev = cpu(isa, threads, false);
                let world = World::new(&mut dev, of, 300);
                world.append(&mut dev, 0..300);
                assert!(expected == world.images(&mut dev, 300), "{k}/{v}, {isa}, {threads} threads");
                let wanted = world.attend(&mut dev, 255..300);
                let mut copy = World::new(&mut dev, of, 300);
                restore(&mut dev, &world, &mut copy);
                same_bits(&format!("{k}/{v}, {isa} restored"), &wanted, &copy.attend(&mut dev, 255..300));
                assert!(expected == copy.images(&mut dev, 300), "{k}/{v}, {isa} restored");
            }
        }
    }
}

/// Writes what `from` holds into the fresh pages of `to`, cut at awkward places.
fn restore(dev: &mut dyn Compute, from: &World, to: &mut World) {
    for (index, cuts) in [(0, &[0, 1, 63, 64, 65, 130, 256][..]), (1, &[0, 7, 44])] {
        for cut in cuts.windows(2) {
            let (range, mut image) = (cut[0]..cut[1], vec![9]);
            dev.read_positions(from.pages[index], range.clone(), &mut image).unwrap();
            let bytes = dev.position_bytes(from.pages[index].pool, range.clone()).unwrap();
            assert_eq!((image[0], image.len()), (9, 1 + bytes), "appended behind what was there");
            dev.write_positions(to.pages[index], range, &image[1..]).unwrap();
        }
    }
}

#[test]
fn a_fork_copies_exactly_the_head_of_a_page() {
    for (k, v) in pairs() {
        for positions in [0, 1, 63, 64, 100, 131, 256] {
            agree(&format!("{k}/{v}, {positions} positions"), false, |dev| {
                let world = World::new(dev, Shape::new(2, 2, 32, k, v), 512);
                world.append(dev, 0..512);
                let (mut all, mut expected, mut found) = (Vec::new(), Vec::new(), Vec::new());
                for from in [world.pages[0], world.pages[1]] {
                    let to = Page { index: if from == world.pages[0] { 0 } else { 2 }, ..from };
                    // What lies behind the copied positions stays.
                    dev.read_positions(from, 0..positions, &mut expected).unwrap();
                    dev.read_positions(to, positions..256, &mut expected).unwrap();
                    dev.copy_page(from, to, positions).unwrap();
                    dev.read_positions(to, 0..256, &mut found).unwrap();
                }
                assert!(expected == found, "{k}/{v}, {positions} positions");
                all.extend(found.iter().map(|&b| f32::from(b)));
                world.free(dev);
                all
            });
        }
    }
}

#[test]
fn exact_devices_keep_f32_whatever_the_format() {
    let run = |dev: &mut dyn Compute, k, v| {
        let world = World::new(dev, Shape::new(4, 2, 32, k, v), 300);
        world.append(dev, 0..300);
        let mut copy = World::new(dev, world.of, 300);
        restore(dev, &world, &mut copy);
        copy.attend(dev, 250..300)
    };
    let plain = run(&mut Reference::new(true), KvFormat::F16, KvFormat::F16);
    for (k, v) in pairs() {
        same_bits("oracle", &plain, &run(&mut Reference::new(true), k, v));
        same_bits("cpu", &plain, &run(&mut cpu(hob_cpu::Isa::best(), 2, true), k, v));
    }
}

#[test]
fn packed_attention_is_close_to_exact_attention() {
    let run = |dev: &mut dyn Compute, k, v| {
        let world = World::new(dev, Shape::new(4, 2, 128, k, v), 600);
        world.append(dev, 0..600);
        world.attend(dev, 500..600)
    };
    let exact = run(&mut Reference::new(true), KvFormat::F16, KvFormat::F16);
    for (k, v, most) in [
        (KvFormat::F16, KvFormat::F16, 1e-3),
        (KvFormat::Bf16, KvFormat::Bf16, 1e-2),
        (KvFormat::Q8, KvFormat::Q8, 0.03),
        (KvFormat::Q4, KvFormat::Q4, 0.13),
        (KvFormat::F16, KvFormat::Asym4, 0.13),
    ] {
        let found = run(&mut cpu(hob_cpu::Isa::best(), 2, false), k, v);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = exact.iter().zip(&found).map(|(e, f)| square(e - f)).sum();
        let error = (error / exact.iter().map(|&e| square(e)).sum::<f64>()).sqrt();
        println!("{k}/{v}: relative error {error:.5}");
        assert!(error < most, "{k}/{v}: {error}");
    }
}

/// K and V of every position of the only KV head, decoded from images and turned back.
fn decoded(world: &World, images: &[Vec<u8>]) -> [Vec<Vec<f32>>; 2] {
    let mut sides = [Vec::new(), Vec::new()];
    for (index, image) in images.iter().enumerate() {
        let (spec, mut rest) = (world.of.spec().of_page(index), &image[..]);
        for at in 0..PAGE_POSITIONS {
            let formats = [spec.k_format(at / 64), spec.v_format(at / 64)];
            for ((side, format), whole) in sides.iter_mut().zip(formats).zip([spec.k, spec.v]) {
                let Some((bytes, next)) = rest.split_at_checked(format.vector_bytes(spec.head_dim)) else {
                    return sides;
                };
                rest = next;
                let mut x = vec![0f32; spec.head_dim];
                hob_quant::decode_kv(format, bytes, &mut x);
                if whole.is_rotated() {
                    hob_quant::hadamard(&mut x);
                }
                side.push(x);
            }
        }
    }
    sides
}

#[test]
fn attention_is_a_softmax_weighted_mean_of_what_is_stored() {
    // Against f64 on the decoded values: what is left is the error of the integers that queries and weights become.
    for (k, v) in pairs() {
        let mut dev = cpu(hob_cpu::Isa::best(), 2, false);
        let world = World::new(&mut dev, Shape::new(2, 1, 64, k, v), 400);
        world.append(&mut dev, 0..400);
        let [keys, values] = decoded(&world, &world.images(&mut dev, 400));
        let found = world.attend(&mut dev, 350..400);
        let (mut error, mut size) = (0f64, 0f64);
        for (i, out) in found.chunks(64).enumerate() {
            let (position, q) = (350 + i / 2, &world.q[(350 * 2 + i) * 64..][..64]);
            let dot =
                |k: &[f32]| -> f64 { q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum() };
            let weights: Vec<f64> =
                keys[..=position].iter().map(|k| (dot(k) * f64::from(0.3f32 / 8.0)).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (d, &out) in out.iter().enumerate() {
                let mean: f64 =
                    weights.iter().zip(&values).map(|(w, v)| w * f64::from(v[d])).sum::<f64>() / total;
                error += (mean - f64::from(out)).powi(2);
                size += mean * mean;
            }
        }
        let error = (error / size).sqrt();
        let most = match (k, v) {
            // Steps of weights meet codes that have no mean of 0.
            (KvFormat::Asym4, _) | (_, KvFormat::Asym4) => 0.1,
            (KvFormat::Q4, _) | (_, KvFormat::Q4) => 3e-2,
            _ => 5e-4,
        };
        println!("{k}/{v}: {error:.6}");
        assert!(error < most, "{k}/{v}: {error}");
    }
}

#[test]
fn pools_and_images_that_do_not_fit_are_refused() {
    for dev in [&mut Reference::new(false) as &mut dyn Compute, &mut cpu(hob_cpu::Isa::best(), 2, false)] {
        let mentions = |found: Result<(), ComputeError>, what: &str| match found {
            Err(e @ ComputeError::Shape { .. }) if e.to_string().contains(what) => {}
            other => panic!("expected a shape error that mentions '{what}', found {other:?}"),
        };
        let of = Shape::new(2, 1, 32, KvFormat::Q8, KvFormat::Q4);
        let narrow = PageSpec { head_dim: 80, ..of.spec() };
        mentions(dev.alloc_pages(&narrow, 1).map(drop), "head_dim 80");
        mentions(dev.alloc_pages(&PageSpec { first: true, ..PageSpec::f16(1, 32) }, 1).map(drop), "packed");
        let mut world = World::new(dev, of, 300);
        world.append(dev, 0..300);
        // Page 0 must be one with a block of f16, no other may.
        for swap in [[1, 1], [0, 0]] {
            let right = std::mem::take(&mut world.pages);
            world.pages = swap.map(|i| right[i]).to_vec();
            let x = buffer(dev, 32, &vec![1.0; 300 * 32]);
            let seqs = [world.seq(0..300)];
            let wrong = if swap == [1, 1] { "page 0 of a sequence" } else { "page 1 of a sequence" };
            mentions(dev.append_kv(&AppendKv { k: x, v: x, seqs: &seqs }), wrong);
            let (q, out) = (buffer(dev, 64, &vec![1.0; 300 * 64]), dev.alloc(300, 64).unwrap());
            let (heads, kv_heads, head_dim, scale) = (2, 1, 32, 1.0);
            let (window, softcap, sinks) = (None, None, None);
            mentions(
                dev.attend(&Attend {
                    q,
                    out,
                    heads,
                    kv_heads,
                    head_dim,
                    scale,
                    window,
                    softcap,
                    sinks,
                    seqs: &seqs,
                }),
                wrong,
            );
            world.pages = right;
        }
        let mut image = Vec::new();
        dev.read_positions(world.pages[1], 0..3, &mut image).unwrap();
        mentions(dev.write_positions(world.pages[1], 0..4, &image), "image of");
        mentions(dev.write_positions(world.pages[1], 254..257, &image), "0..256");
        for scale in [0x7C00u16, 0x7E00, 0x8001] {
            image[..2].copy_from_slice(&scale.to_le_bytes());
            mentions(dev.write_positions(world.pages[1], 0..3, &image), "finite and not negative");
        }
    }
}
