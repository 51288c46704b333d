//! The packed kernels of every class between inaccessible pages, against the portable ones, bit by bit.

use hob_compute::{PAGE_POSITIONS, PageSpec};
use hob_testkit::guard::{Edge, GuardedBuf};
use hob_testkit::rng::Rng;

use super::*;
use crate::pool::Pool;
use crate::verb::kv;

const PACKED: [KvFormat; 3] = [KvFormat::Q8, KvFormat::Q4, KvFormat::Asym4];

fn classes() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available() || (eprintln!("skipped: no {isa}"), false).1)
}

/// K part and V part of a block of seeded vectors, some of them 0.
fn parts(format: KvFormat, head_dim: usize, edge: Edge) -> [GuardedBuf; 2] {
    let spec = PageSpec { kv_heads: 1, head_dim, k: format, v: format, first: false, latent: None };
    let mut page = vec![0u8; spec.page_bytes()];
    let mut values = Rng::new(11).normal_vec(BLOCK_POSITIONS * head_dim, 3.0);
    values[5 * head_dim..6 * head_dim].fill(0.0);
    let rows = kv::Rows { k: &values, v: &values, at: 0 };
    kv::append(&Pool::new(1, false), Isa::Scalar, &spec, &mut page, rows);
    spec.parts(0, 0).map(|part| GuardedBuf::from_bytes(&page[part], edge))
}

/// What a kernel's classes, formats, widths, rows and edges are tested with.
fn each(mut test: impl FnMut(Isa, KvFormat, (usize, usize), Edge)) {
    for isa in classes() {
        for format in PACKED {
            for head_dim in [32, 64, 96, 128, 256] {
                for rows in 1..=Kernels::choose(isa).rows {
                    for edge in [Edge::Start, Edge::End] {
                        test(isa, format, (head_dim, rows), edge);
                    }
                }
            }
        }
    }
}

#[test]
fn scores_stay_inside_and_have_the_portable_bits() {
    each(|isa, format, (head_dim, rows), edge| {
        let mut q = Rng::new(3).normal_vec(rows * head_dim, 1.0);
        q[..KV_GROUP].fill(0.0);
        let from = QueryRows { q: &q, rows, head_dim, step: rows, format };
        let run = |kernels: &Kernels, edge: Edge| {
            let mut memory = GuardedBuf::new(4 * Queries::floats(rows, head_dim), edge);
            let mut queries = Queries::new(memory.as_mut_f32(), rows, head_dim);
            let [k, _] = parts(format, head_dim, edge);
            let mut out = GuardedBuf::new(4 * ((rows - 1) * PAGE_POSITIONS + BLOCK_POSITIONS), edge);
            let ahead = GuardedBuf::new(100, edge);
            // SAFETY: the kernels were chosen for a class that is available.
            unsafe { (kernels.quantize)(&mut queries, from) };
            let (words, scales, sums) = queries.chunk(format, head_dim, 0, rows);
            let mut args = ScoreArgs {
                k: k.as_bytes(),
                head_dim,
                rows,
                words,
                scales,
                sums,
                factor: 0.7,
                out: out.as_mut_f32(),
                ahead: ahead.as_bytes(),
            };
            // SAFETY: as above.
            unsafe { kernels.scores(format, &mut args) };
            out
        };
        let (found, expected) = (run(Kernels::choose(isa), edge), run(&portable::BASE, edge));
        assert!(found.as_bytes() == expected.as_bytes(), "{isa} {format} {head_dim} {rows} rows");
        // The first group of the first query is 0; all else has scores.
        let scores = expected.as_f32()[..BLOCK_POSITIONS].iter().filter(|&&s| s != 0.0).count();
        assert!(head_dim == KV_GROUP || scores > 40, "{scores} scores");
    });
}

#[test]
fn weighted_values_stay_inside_and_have_the_portable_bits() {
    each(|isa, format, (head_dim, rows), edge| {
        let mut p = Rng::new(4).uniform_vec((rows - 1) * PAGE_POSITIONS + BLOCK_POSITIONS, 0.0, 1.0);
        // Weights as a softmax leaves them: one of 1, many that vanish, some unseen.
        p.iter_mut().for_each(|p| *p = p.powi(30));
        (p[0], p[63]) = (1.0, 0.0);
        if rows > 1 {
            p[PAGE_POSITIONS..][..BLOCK_POSITIONS].fill(0.0);
        }
        if rows > 2 {
            p[2 * PAGE_POSITIONS..][..BLOCK_POSITIONS].fill(1e-38);
        }
        let run = |kernels: &Kernels| {
            let [_, v] = parts(format, head_dim, edge);
            let p = GuardedBuf::from_f32(&p, edge);
            let mut acc = GuardedBuf::from_f32(&Rng::new(5).normal_vec(rows * head_dim, 1.0), edge);
            let ahead = GuardedBuf::new(100, edge);
            let (v, ahead) = (v.as_bytes(), ahead.as_bytes());
            let mut args = WeighArgs { v, head_dim, rows, p: p.as_f32(), acc: acc.as_mut_f32(), ahead };
            // SAFETY: the kernels were chosen for a class that is available.
            unsafe { kernels.weigh(format, &mut args) };
            acc
        };
        let (found, expected) = (run(Kernels::choose(isa)), run(&portable::BASE));
        assert!(found.as_bytes() == expected.as_bytes(), "{isa} {format} {head_dim} {rows} rows");
    });
}

#[test]
fn queries_have_the_codes_of_the_oracle_whatever_they_are() {
    let odd = [f32::NAN, f32::INFINITY, f32::MAX, -f32::MAX, 1e-38, -1e-45, 0.0, 1.0, -2.5];
    let mut rng = Rng::new(6);
    for isa in classes() {
        for format in PACKED {
            for case in 0..400 {
                let mut q = rng.normal_vec(64, 1.0);
                (0..case % 5).for_each(|_| q[rng.below(64)] = odd[rng.below(odd.len())]);
                let (mut words, mut scales, mut sums) = ([0u32; 32], [0f32; 2], [0i32; 2]);
                let mut queries = Queries { words: &mut words, scales: &mut scales, sums: &mut sums };
                let from = QueryRows { q: &q, rows: 1, head_dim: 64, step: 1, format };
                // SAFETY: the kernels were chosen for a class that is available.
                unsafe { (Kernels::choose(isa).quantize)(&mut queries, from) };
                let per = dims_per_word(format);
                let code = |dim: usize| -> i32 {
                    let word = words[dim / per];
                    if per == 2 {
                        i32::from((word >> (16 * (dim % 2))) as i16)
                    } else {
                        i32::from(word.to_le_bytes()[dim % 4] as i8)
                    }
                };
                let most = if format == KvFormat::Q8 { 32767.0 } else { 127.0 };
                for (g, x) in q.as_chunks::<KV_GROUP>().0.iter().enumerate() {
                    let expected = hob_compute::reference::QueryGroup::new(x, most);
                    assert!(
                        scales[g].to_bits() == expected.scale.to_bits()
                            || scales[g].is_nan() && expected.scale.is_nan()
                    );
                    assert_eq!(
                        std::array::from_fn(|i| code(g * KV_GROUP + i)),
                        expected.codes,
                        "{isa} {x:?}"
                    );
                    assert_eq!(sums[g], expected.codes.iter().sum::<i32>());
                }
            }
        }
    }
}
