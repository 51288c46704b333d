//! Every kernel that works on raw slices, between inaccessible pages: one byte too far ends the test.

use hob_compute::reference::{attention::Scoring, rows};
use hob_compute::{
    Commit, DeltaShape, KeyHeads, PAGE_POSITIONS, Page, PageSpec, Picked, Pool as PageHandle, RopePairs,
    SeqRows, SlotRows, SsmShape,
};
use hob_quant::KvFormat;
use hob_testkit::guard::{Edge, GuardedBuf};
use hob_testkit::rng::Rng;

use super::{attend, delta, kv, map, norm, pick, rope, ssm};
use crate::Isa;
use crate::pool::Pool;

const EDGES: [Edge; 2] = [Edge::Start, Edge::End];

fn classes() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| {
        let there = isa.available();
        if !there {
            eprintln!("skipped: no {isa}");
        }
        there
    })
}

/// Guarded normal values.
fn random(rng: &mut Rng, n: usize, edge: Edge) -> GuardedBuf {
    GuardedBuf::from_f32(&rng.normal_vec(n, 1.0), edge)
}

#[test]
fn norm_stays_inside() {
    let mut rng = Rng::new(1);
    for isa in classes() {
        for edge in EDGES {
            for n in [1, 7, 8, 9, 15, 16, 17, 31, 64, 80, 129] {
                let weight = random(&mut rng, n, edge);
                let mut x = random(&mut rng, n, edge);
                let mut expected = vec![0f32; n];
                rows::norm_group(x.as_f32(), weight.as_f32(), 1e-5, &mut expected);
                norm::group_in_place(isa, x.as_mut_f32(), weight.as_f32(), 1e-5);
                assert_eq!(x.as_f32(), expected, "{isa} {edge:?} {n}");
            }
        }
    }
}

#[test]
fn rope_stays_inside() {
    let mut rng = Rng::new(2);
    for isa in classes() {
        for edge in EDGES {
            for (n, extra) in [(1, 0), (3, 0), (4, 1), (5, 0), (8, 0), (9, 3), (32, 0), (33, 0)] {
                for pairs in [RopePairs::Half, RopePairs::Interleaved] {
                    let (cos, sin) = (random(&mut rng, n, edge), random(&mut rng, n, edge));
                    let mut head = random(&mut rng, 2 * n + extra, edge);
                    let mut expected = head.as_f32().to_vec();
                    rows::rotate_head(&mut expected, cos.as_f32(), sin.as_f32(), pairs);
                    rope::rotate(isa, head.as_mut_f32(), cos.as_f32(), sin.as_f32(), pairs);
                    assert_eq!(head.as_f32(), expected, "{isa} {edge:?} {n} {pairs:?}");
                }
            }
        }
    }
}

#[test]
fn map_stays_inside() {
    let (mut rng, pool) = (Rng::new(3), Pool::new(2, false));
    for edge in EDGES {
        for n in [1, 5, 63, 20_001] {
            let (a, b) = (random(&mut rng, n, edge), random(&mut rng, n, edge));
            let mut out = GuardedBuf::new(4 * n, edge);
            map::add(&pool, Some(a.as_f32()), Some(b.as_f32()), out.as_mut_f32());
            let expected: Vec<f32> = a.as_f32().iter().zip(b.as_f32()).map(|(a, b)| a + b).collect();
            assert_eq!(out.as_f32(), expected);
            map::scale(&pool, None, 0.5, out.as_mut_f32());
            assert!(out.as_f32().iter().zip(expected).all(|(o, e)| *o == e * 0.5));
        }
    }
}

#[test]
fn append_stays_inside_the_page() {
    let (mut rng, pool) = (Rng::new(4), Pool::new(1, false));
    for isa in classes() {
        for edge in EDGES {
            for head_dim in [1, 5, 8, 20, 64] {
                let spec = PageSpec::f16(2, head_dim);
                let mut page = GuardedBuf::new(spec.page_bytes(), edge);
                for at in [0, 63, 64, 255] {
                    let (k, v) = (random(&mut rng, 2 * head_dim, edge), random(&mut rng, 2 * head_dim, edge));
                    let (k, v) = (k.as_f32(), v.as_f32());
                    kv::append(&pool, isa, &spec, page.as_mut_bytes(), kv::Rows { k, v, at });
                    for i in 0..2 * head_dim {
                        let (kv_head, dim) = (i / head_dim, i % head_dim);
                        let bits = |x: f32| half::f16::from_f32(x).to_bits();
                        assert_eq!(page.as_u16()[spec.k_at(kv_head, at, dim)], bits(k[i]), "{isa} k {i}");
                        assert_eq!(page.as_u16()[spec.v_at(kv_head, at, dim)], bits(v[i]), "{isa} v {i}");
                    }
                }
                let written = page.as_u16().iter().filter(|&&h| h != 0).count();
                assert!(written <= 2 * 4 * 2 * head_dim, "{isa}: values outside the slots were written");
            }
        }
    }
}

#[test]
fn packed_pages_are_written_copied_and_imaged_inside() {
    let (mut rng, pool) = (Rng::new(8), Pool::new(2, false));
    for isa in classes() {
        for edge in EDGES {
            for (k, v) in [
                (KvFormat::Q8, KvFormat::Q4),
                (KvFormat::Q4, KvFormat::Q8),
                (KvFormat::Asym4, KvFormat::Bf16),
            ] {
                for (first, head_dim) in [(false, 32), (true, 96)] {
                    let spec = PageSpec { kv_heads: 2, head_dim, k, v, first, latent: None };
                    let mut page = GuardedBuf::new(spec.page_bytes(), edge);
                    let rows = rng.normal_vec(PAGE_POSITIONS * 2 * head_dim, 1.0);
                    let rows = GuardedBuf::from_f32(&rows, edge);
                    let (k, v) = (rows.as_f32(), rows.as_f32());
                    kv::append(&pool, isa, &spec, page.as_mut_bytes(), kv::Rows { k, v, at: 0 });
                    let mut plain = vec![0u8; spec.page_bytes()];
                    kv::append(&pool, Isa::Scalar, &spec, &mut plain, kv::Rows { k, v, at: 0 });
                    assert!(page.as_bytes() == plain, "{isa} {spec:?}");
                    for range in [0..256, 63..65, 255..256] {
                        let mut image = GuardedBuf::new(spec.image_bytes(range.clone()), edge);
                        kv::read(&pool, isa, &spec, range.clone(), (page.as_bytes(), image.as_mut_bytes()));
                        let mut copy = GuardedBuf::from_bytes(page.as_bytes(), edge);
                        kv::write(&pool, isa, &spec, range, (copy.as_mut_bytes(), image.as_bytes()));
                        assert!(copy.as_bytes() == page.as_bytes(), "{isa} {spec:?}");
                    }
                    let mut copy = GuardedBuf::new(spec.page_bytes(), edge);
                    kv::copy_page(&spec, page.as_bytes(), copy.as_mut_bytes(), 255);
                    kv::append(
                        &pool,
                        isa,
                        &spec,
                        copy.as_mut_bytes(),
                        kv::Rows { k: &k[255 * 2 * head_dim..], v: &v[255 * 2 * head_dim..], at: 255 },
                    );
                    assert!(copy.as_bytes() == page.as_bytes(), "{isa} {spec:?}");
                }
            }
        }
    }
}

#[test]
fn hadamard_stays_inside() {
    let mut rng = Rng::new(9);
    for isa in classes() {
        for edge in EDGES {
            for n in [1, 4, 8, 20, 32, 80, 96, 128, 256, 512] {
                let mut x = random(&mut rng, n, edge);
                let mut expected = x.as_f32().to_vec();
                hob_quant::hadamard(&mut expected);
                kv::hadamard(isa, x.as_mut_f32());
                assert_eq!(x.as_f32(), expected, "{isa} {n}");
            }
        }
    }
}

#[test]
fn pick_stays_inside() {
    let (mut rng, pool) = (Rng::new(5), Pool::new(2, false));
    for isa in classes() {
        for edge in EDGES {
            for vocab in [1, 8, 31, 33, 256, 4096, 4097, 20_011] {
                let logits = random(&mut rng, vocab, edge);
                let (mut out, mut best) = (Picked::default(), Vec::new());
                let mut scratch = pick::Scratch::default();
                let k = vocab.min(5);
                pick::pick(&pool, isa, logits.as_f32(), (vocab, k, &[]), &mut scratch, (&mut out, &mut best));
                let expected = rows::top_k(logits.as_f32(), k);
                assert_eq!(out.tokens, expected.iter().map(|t| t.1).collect::<Vec<_>>(), "{isa} {vocab}");
                assert_eq!(best, [expected[0].1]);
                assert_eq!(out.log_sum_exp[0].to_bits(), rows::log_sum_exp(logits.as_f32()).to_bits());
            }
        }
    }
}

#[test]
fn attention_stays_inside_queries_pages_and_outputs() {
    let mut rng = Rng::new(6);
    for isa in classes() {
        for edge in EDGES {
            for (heads, kv_heads, head_dim, k, v, latent) in [
                (1, 1, 8, KvFormat::F16, KvFormat::F16, None),
                (3, 1, 16, KvFormat::Bf16, KvFormat::F16, None),
                (4, 2, 24, KvFormat::F16, KvFormat::Bf16, None),
                (7, 1, 64, KvFormat::F16, KvFormat::F16, None),
                (10, 2, 80, KvFormat::F16, KvFormat::F16, None),
                (2, 1, 7, KvFormat::F16, KvFormat::F16, None),
                (7, 1, 64, KvFormat::Q8, KvFormat::Q4, None),
                (6, 2, 96, KvFormat::Q4, KvFormat::Q8, None),
                (3, 1, 32, KvFormat::Asym4, KvFormat::Asym4, None),
                (5, 1, 24, KvFormat::F16, KvFormat::F16, Some(16)),
                (16, 1, 40, KvFormat::Bf16, KvFormat::Bf16, Some(36)),
                (4, 1, 96, KvFormat::Q8, KvFormat::Q8, Some(64)),
                (7, 1, 64, KvFormat::Q4, KvFormat::Q4, Some(64)),
            ] {
                let spec = PageSpec { kv_heads, head_dim, k, v, first: false, latent };
                let pool = PageHandle { device: 0, index: 0, generation: 0 };
                // Page 0 of a window that has left it is no page at all.
                let handles: Vec<Page> = (0..2).map(|index| Page { pool, index }).collect();
                let released = [Page::RELEASED, handles[1]];
                let sinks = random(&mut rng, heads, edge);
                let window = |position: usize| if position >= 455 { Some(200) } else { None };
                let pages: Vec<GuardedBuf> = (0..2)
                    .map(|index| {
                        let spec = spec.of_page(index);
                        let values = rng.normal_vec(PAGE_POSITIONS * kv_heads * head_dim, 1.0);
                        let mut page = GuardedBuf::new(spec.page_bytes(), edge);
                        let rows = kv::Rows { k: &values, v: &values, at: 0 };
                        kv::append(&Pool::new(1, false), isa, &spec, page.as_mut_bytes(), rows);
                        page
                    })
                    .collect();
                let runs =
                    [(0, 1), (70, 3), (255, 2), (300, 1), (0, 40), (250, 33), (455, 1), (470, 40), (511, 1)];
                for (position, rows) in runs {
                    let window = window(position);
                    let handles = if window.is_some() { &released[..] } else { &handles[..] };
                    let width = heads * head_dim;
                    let q = random(&mut rng, rows * width, edge);
                    let seqs = [SeqRows { row: 0, rows, position, pages: handles }];
                    let run = |threads: usize, q: &[f32], out: &mut [f32]| {
                        let job = attend::Job {
                            q,
                            out,
                            heads,
                            spec,
                            scoring: Scoring::new(0.3, window.map(|_| 20.0)),
                            window,
                            sinks: window.map(|_| sinks.as_f32()),
                            seqs: &seqs,
                            page: &|page| pages[page.index as usize].as_bytes(),
                        };
                        let mut scratch = attend::Scratch::default();
                        attend::attend(&Pool::new(threads, false), isa, job, &mut scratch).unwrap();
                    };
                    let width = heads * spec.value_dim();
                    let mut guarded = GuardedBuf::new(rows * width * 4, edge);
                    run(2, q.as_f32(), guarded.as_mut_f32());
                    let mut plain = vec![0f32; rows * width];
                    run(1, q.as_f32(), &mut plain);
                    assert_eq!(guarded.as_f32(), plain, "{isa} {spec:?} {rows} rows from {position}");
                    assert!(plain.iter().all(|v| v.is_finite() && *v != 0.0));
                }
            }
        }
    }
    assert_eq!(PAGE_POSITIONS, 256, "the positions above are chosen for pages of 256");
}

#[test]
fn delta_rules_stay_inside() {
    let mut rng = Rng::new(9);
    let pool = Pool::new(1, false);
    for isa in classes() {
        for edge in EDGES {
            for (key_dim, value_dim) in [(16, 16), (32, 48)] {
                let sharing = KeyHeads::Grouped;
                let shape = DeltaShape { key_heads: 1, value_heads: 2, key_dim, value_dim, sharing };
                // Row by row, and in chunks whose last tile is not full; heads that fade as a whole, and by channel.
                let cases = [(1, 5), (15, 0), (70, 3)].into_iter().flat_map(|c| [(c, 1), (c, key_dim)]);
                for ((rows, position), decays) in cases {
                    let mut normal = |n| random(&mut rng, n, edge);
                    let (qkv, z) = (normal(rows * shape.channels()), normal(rows * shape.width()));
                    let (beta, decay) = (normal(rows * 2), normal(rows * 2 * decays));
                    let (bias, norm) = (normal(2 * decays), normal(value_dim));
                    let (mut state, mut out) = (normal(shape.state()), normal(rows * shape.width()));
                    let held = if rows < 16 { rows } else { 1 };
                    let mut records = normal(held * 2 * shape.products().record());
                    // The first row is taken up from a record, and few rows are held.
                    let commit = if rows < 16 { Commit::Hold } else { Commit::Now };
                    let accepted = position.min(1);
                    let rate = GuardedBuf::from_f32(&[-0.1, -2.0], edge);
                    let job = delta::Job {
                        shape,
                        qkv: qkv.as_f32(),
                        z: z.as_f32(),
                        beta: beta.as_f32(),
                        decay: decay.as_f32(),
                        rate: rate.as_f32(),
                        bias: bias.as_f32(),
                        norm: norm.as_f32(),
                        eps: 1e-6,
                        memory: super::products::States {
                            state: state.as_mut_f32(),
                            records: records.as_mut_f32(),
                            held,
                        },
                        seqs: &[SlotRows { accepted, commit, ..SlotRows::new(0, rows, position, 0) }],
                        out: out.as_mut_f32(),
                    };
                    delta::delta_net(&pool, isa, job);
                    assert!(out.as_f32().iter().chain(state.as_f32()).all(|x| x.is_finite()));
                }
            }
        }
    }
}

#[test]
fn state_spaces_stay_inside() {
    let mut rng = Rng::new(10);
    let pool = Pool::new(1, false);
    for isa in classes() {
        for edge in EDGES {
            for (head_dim, state_dim) in [(16, 16), (48, 32)] {
                let shape = SsmShape { heads: 2, head_dim, state_dim, groups: 1 };
                // Row by row, and in chunks whose last tile is not full.
                for (rows, position) in [(1, 5), (15, 0), (70, 3)] {
                    let mut normal = |n| random(&mut rng, n, edge);
                    let (xbc, z) = (normal(rows * shape.channels()), normal(rows * shape.width()));
                    let (dt, bias, skip) = (normal(rows * 2), normal(2), normal(2));
                    let norm = normal(shape.width());
                    let (mut state, mut out) = (normal(shape.state()), normal(rows * shape.width()));
                    let held = if rows < 16 { rows } else { 1 };
                    let mut records = normal(held * 2 * shape.products().record());
                    let commit = if rows < 16 { Commit::Hold } else { Commit::Now };
                    let accepted = position.min(1);
                    let rate = GuardedBuf::from_f32(&[-0.1, -2.0], edge);
                    let job = ssm::Job {
                        shape,
                        xbc: xbc.as_f32(),
                        z: z.as_f32(),
                        dt: dt.as_f32(),
                        rate: rate.as_f32(),
                        bias: bias.as_f32(),
                        skip: skip.as_f32(),
                        norm: norm.as_f32(),
                        eps: 1e-5,
                        limit: [0.0, f32::INFINITY],
                        memory: super::products::States {
                            state: state.as_mut_f32(),
                            records: records.as_mut_f32(),
                            held,
                        },
                        seqs: &[SlotRows { accepted, commit, ..SlotRows::new(0, rows, position, 0) }],
                        out: out.as_mut_f32(),
                    };
                    ssm::ssm_scan(&pool, isa, job);
                    assert!(out.as_f32().iter().chain(state.as_f32()).all(|x| x.is_finite()));
                }
            }
        }
    }
}
