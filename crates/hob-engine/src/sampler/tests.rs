//! The chain against a slow, literal oracle; the draw against its distribution.

use super::*;
use hob_testkit::rng::Rng;

/// What the engine makes of a device's pick that found `tokens`.
fn sample_top(
    sampler: &mut Sampler,
    tokens: &[u32],
    logits: &[f32],
    log_sum_exp: f32,
) -> Result<u32, NotFinite> {
    check_top(logits[0], log_sum_exp)?;
    Ok(draw::from_top(tokens, logits, &sampler.draw(tokens.len()), &mut draw::Scratch::default()))
}

/// The definition of the chain, written for reading: every stage sorts and sums everything.
fn oracle(chain: &Sampling, row: &[f32], recent: &[u32]) -> Vec<(u32, f64)> {
    let mut logits: Vec<f32> = row.to_vec();
    let window: Vec<u32> = recent.iter().rev().take(chain.repeat_last_n).copied().collect();
    for (id, l) in logits.iter_mut().enumerate() {
        let count = window.iter().filter(|&&t| t as usize == id).count();
        if count > 0 && chain.penalizes() {
            *l = if *l > 0.0 { *l / chain.repeat_penalty } else { *l * chain.repeat_penalty };
            *l -= count as f32 * chain.frequency_penalty + chain.presence_penalty;
        }
    }
    for &(id, bias) in &chain.logit_bias {
        logits[id as usize] += bias;
    }
    let mut order: Vec<(u32, f64)> =
        logits.iter().enumerate().map(|(i, &l)| (i as u32, f64::from(l))).collect();
    order.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    if chain.temperature == 0.0 {
        return vec![(order[0].0, 1.0)];
    }
    if chain.top_k > 0 {
        order.truncate(chain.top_k);
    }
    let softmax = |o: &[(u32, f64)], t: f64| -> Vec<f64> {
        let w: Vec<f64> = o.iter().map(|x| ((x.1 - o[0].1) / t).exp()).collect();
        let sum: f64 = w.iter().sum();
        w.iter().map(|x| x / sum).collect()
    };
    if chain.typical_p < 1.0 {
        let p = softmax(&order, 1.0);
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        // Equal logits are equally typical, whatever rounding says: compare at 1e-9.
        let key = |i: usize| (((-p[i].ln() - entropy).abs() * 1e9).round() as i64, order[i].0);
        let mut by_distance: Vec<usize> = (0..p.len()).collect();
        by_distance.sort_by_key(|&i| key(i));
        let mut sum = 0.0;
        let reached = by_distance.iter().position(|&i| {
            sum += p[i];
            sum >= f64::from(chain.typical_p)
        });
        by_distance.truncate(reached.map_or(p.len(), |last| last + 1));
        order = order.iter().enumerate().filter(|(i, _)| by_distance.contains(i)).map(|(_, o)| *o).collect();
    }
    if chain.top_p < 1.0 {
        let p = softmax(&order, 1.0);
        let mut sum = 0.0;
        let mut keep = 0;
        while keep < p.len() {
            sum += p[keep];
            keep += 1;
            if sum >= f64::from(chain.top_p) {
                break;
            }
        }
        order.truncate(keep);
    }
    let p = softmax(&order, 1.0);
    let order: Vec<(u32, f64)> =
        order.iter().zip(&p).filter(|(_, q)| **q >= f64::from(chain.min_p) * p[0]).map(|(o, _)| *o).collect();
    let p = softmax(&order, f64::from(chain.temperature));
    let mut out: Vec<(u32, f64)> = order.iter().zip(p).map(|(o, q)| (o.0, q)).collect();
    out.sort_by_key(|o| o.0);
    out
}

fn distribution(chain: &Sampling, row: &[f32], recent: &[u32]) -> Vec<(u32, f64)> {
    let mut sampler = Sampler::new(chain);
    let mut scratch = Scratch::default();
    let mut row = row.to_vec();
    sampler.edit(&mut row, recent, &mut scratch);
    assert!(scratch.counts.iter().all(|&c| c == 0), "counts are left at zero");
    let all = row.iter().enumerate().map(|(i, &logit)| Candidate { token: i as u32, logit });
    let mut drawing = scratch.drawing;
    drawing.candidates.extend(all);
    draw::narrow(&sampler.draw(row.len()), chain.top_k, &mut drawing);
    let total = draw::weigh(&drawing.candidates, chain.temperature, &mut drawing.weights);
    drawing.candidates.iter().zip(&drawing.weights).map(|(c, w)| (c.token, w / total)).collect()
}

fn random_chain(rng: &mut Rng, vocab: usize) -> Sampling {
    let mut chain = Sampling { temperature: rng.range_f32(0.05, 2.0), ..Sampling::default() };
    chain.repeat_penalty = [1.0, 1.3, 0.8][rng.below(3)];
    chain.repeat_last_n = [0, 3, 64][rng.below(3)];
    chain.frequency_penalty = [0.0, 0.5, -0.3][rng.below(3)];
    chain.presence_penalty = [0.0, 0.7][rng.below(2)];
    chain.top_k = [0, 1, 3, 40, 100, vocab, vocab + 5][rng.below(7)];
    chain.typical_p = [1.0, 1.0, 0.9, 0.37, 0.0][rng.below(5)];
    chain.top_p = [1.0, 0.95, 0.5, 0.0][rng.below(4)];
    chain.min_p = [0.0, 0.05, 0.3, 1.0][rng.below(4)];
    if rng.below(2) == 0 {
        chain.logit_bias =
            (0..rng.below(4)).map(|_| (rng.below(vocab) as u32, rng.range_f32(-9.0, 9.0))).collect();
    }
    chain
}

/// Coarse logits, so that there are many ties.
fn random_row(rng: &mut Rng, vocab: usize) -> Vec<f32> {
    (0..vocab).map(|_| (rng.normal() * 12.0).round() / 4.0).collect()
}

#[test]
fn the_chain_leaves_what_the_oracle_leaves() {
    let mut rng = Rng::new(11);
    for case in 0..3000 {
        let vocab = [1, 2, 50, 700][rng.below(4)];
        let chain = random_chain(&mut rng, vocab);
        let row = random_row(&mut rng, vocab);
        let recent: Vec<u32> = (0..rng.below(80)).map(|_| rng.below(vocab) as u32).collect();
        let (got, want) = (distribution(&chain, &row, &recent), oracle(&chain, &row, &recent));
        let ids = |d: &[(u32, f64)]| d.iter().map(|x| x.0).collect::<Vec<_>>();
        assert_eq!(ids(&got), ids(&want), "case {case}: {chain:?}");
        for (g, w) in got.iter().zip(&want) {
            assert!((g.1 - w.1).abs() < 1e-12, "case {case}: token {} {} {}", g.0, g.1, w.1);
        }
    }
}

/// Probabilities 1/2, 1/4, 1/8, 1/8 have an entropy of 1.75 bits; the tokens are 0.75, 0.25, 1.25 and 1.25 bits away
/// from it. So token 1 comes first, then 0, then 2 and 3.
#[test]
fn typical_keeps_what_is_closest_to_the_entropy() {
    let row: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln).to_vec();
    for (typical_p, kept) in [
        (0.0, &[1][..]),
        (0.2, &[1]),
        (0.3, &[0, 1]),
        (0.74, &[0, 1]),
        (0.76, &[0, 1, 2]),
        (0.9, &[0, 1, 2, 3]),
        (1.0, &[0, 1, 2, 3]),
    ] {
        let chain =
            Sampling { typical_p, top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Sampling::default() };
        let ids: Vec<u32> = distribution(&chain, &row, &[]).iter().map(|x| x.0).collect();
        assert_eq!(ids, kept, "typical_p {typical_p}");
    }
    // After top-k (over {0, 1}: 2/3 and 1/3, entropy 0.92 bits, 0.33 and 0.67 away) and before top-p.
    let chain = Sampling { typical_p: 0.5, top_k: 2, top_p: 0.5, min_p: 0.0, ..Sampling::default() };
    assert_eq!(distribution(&chain, &row, &[]), [(0, 1.0)]);
    // Masked tokens are never typical.
    let masked = [f32::NEG_INFINITY, 0.0, 0.0, f32::NEG_INFINITY];
    let chain = Sampling { typical_p: 0.999, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
    assert_eq!(distribution(&chain, &masked, &[]), [(1, 0.5), (2, 0.5)]);
}

#[test]
fn greedy_takes_the_largest_and_of_equals_the_lowest() {
    let mut rng = Rng::new(12);
    let mut scratch = Scratch::default();
    for _ in 0..500 {
        let vocab = 1 + rng.below(300);
        let mut chain = random_chain(&mut rng, vocab);
        chain.temperature = 0.0;
        let mut row = random_row(&mut rng, vocab);
        let recent: Vec<u32> = (0..rng.below(80)).map(|_| rng.below(vocab) as u32).collect();
        let want = oracle(&chain, &row, &recent)[0].0;
        let got = Sampler::new(&chain).sample_row(&mut row, &recent, &mut scratch);
        assert_eq!(got, Ok(want));
    }
    let top = sample_top(&mut Sampler::new(&Sampling::greedy()), &[3, 4], &[1.0, 1.0], 2.0);
    assert_eq!(top, Ok(3));
}

/// The device's top-k and the whole row lead to the same token, draw by draw.
#[test]
fn top_k_of_the_device_equals_the_whole_row() {
    let mut rng = Rng::new(13);
    let mut scratch = Scratch::default();
    for seed in 0..400 {
        let row = random_row(&mut rng, 500);
        let mut chain = random_chain(&mut rng, 500);
        chain.top_k = 1 + rng.below(256);
        chain.seed = Some(seed);
        chain.repeat_last_n = 0;
        chain.logit_bias.clear();
        assert_eq!(Sampler::new(&chain).need(), Need::Top(chain.top_k));
        let mut order: Vec<u32> = (0..500).collect();
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        order.truncate(chain.top_k);
        let logits: Vec<f32> = order.iter().map(|&i| row[i as usize]).collect();
        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        let (mut a, mut b) = (Sampler::new(&chain), Sampler::new(&chain));
        for _ in 0..5 {
            let top = sample_top(&mut a, &order, &logits, sum.ln() as f32);
            assert_eq!(top, b.sample_row(&mut row.clone(), &[], &mut scratch));
        }
    }
}

#[test]
fn what_a_chain_needs_to_see() {
    let need = |s: Sampling| Sampler::new(&s).need();
    let base = Sampling::default;
    assert_eq!(need(Sampling::greedy()), Need::Top(1));
    assert_eq!(need(base()), Need::Top(40));
    assert_eq!(need(Sampling { top_k: 256, ..base() }), Need::Top(256));
    assert_eq!(need(Sampling { top_k: 257, ..base() }), Need::Row);
    assert_eq!(need(Sampling { top_k: 0, ..base() }), Need::Row);
    assert_eq!(need(Sampling { repeat_penalty: 1.1, ..Sampling::greedy() }), Need::Row);
    assert_eq!(need(Sampling { repeat_penalty: 1.1, repeat_last_n: 0, ..base() }), Need::Top(40));
    assert_eq!(need(Sampling { logit_bias: vec![(0, 1.0)], ..base() }), Need::Row);
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    let mut scratch = Scratch::default();
    let mut draw = |chain: Sampling, row: &[f32]| {
        Sampler::new(&Sampling { seed: Some(1), ..chain }).sample_row(&mut row.to_vec(), &[], &mut scratch)
    };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for chain in
        [Sampling::greedy(), Sampling::default(), Sampling { top_k: 0, top_p: 1.0, ..Sampling::default() }]
    {
        for row in [&[0.0, nan, 1.0][..], &[nan; 4], &[inf, 0.0], &[-inf, -inf], &[]] {
            assert_eq!(draw(chain.clone(), row), Err(NotFinite), "{row:?}");
        }
        assert_eq!(draw(chain, &[-inf, -3.0, -inf]), Ok(1), "masked logits are fine");
    }
    for (top, sum) in [(1.0, nan), (1.0, inf), (1.0, 89.0), (nan, 1.0), (-inf, -inf), (inf, inf)] {
        assert_eq!(check_top(top, sum), Err(NotFinite), "{top} {sum}");
    }
    assert_eq!(check_top(1.0, 12.0), Ok(()));
}

/// Chi-square of 200,000 draws against the oracle's distribution: below the 99.9 % quantile of its degrees of freedom.
#[test]
fn draws_follow_the_distribution() {
    let mut rng = Rng::new(14);
    for (seed, temperature, top_k, top_p) in [(1, 1.0, 0, 1.0), (2, 0.6, 12, 1.0), (3, 1.5, 0, 0.8)] {
        let row: Vec<f32> = (0..40).map(|_| rng.normal() * 1.5).collect();
        let base = Sampling { seed: Some(seed), min_p: 0.0, ..Sampling::default() };
        let chain = Sampling { temperature, top_k, top_p, ..base };
        let want = oracle(&chain, &row, &[]);
        let mut sampler = Sampler::new(&chain);
        let mut scratch = Scratch::default();
        let mut seen = vec![0u32; row.len()];
        let n = 200_000;
        for _ in 0..n {
            let t = sampler.sample_row(&mut row.clone(), &[], &mut scratch).unwrap();
            seen[t as usize] += 1;
        }
        let chi: f64 = want
            .iter()
            .map(|&(t, p)| {
                let expected = p * f64::from(n);
                (f64::from(seen[t as usize]) - expected).powi(2) / expected
            })
            .sum();
        assert_eq!(want.iter().map(|w| seen[w.0 as usize]).sum::<u32>(), n, "only survivors are drawn");
        // Wilson-Hilferty approximation of the quantile; 3.09 is the normal one.
        let df = want.len() as f64 - 1.0;
        let limit = df * (1.0 - 2.0 / (9.0 * df) + 3.09 * (2.0 / (9.0 * df)).sqrt()).powi(3);
        assert!(chi < limit, "seed {seed}: chi-square {chi:.1}, limit {limit:.1}, {df} degrees of freedom");
    }
}

/// The stream of draws is part of the promise: it may not change with a release.
#[test]
fn the_draws_of_a_seed_are_fixed() {
    let chain =
        |seed| Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, seed, ..Sampling::default() };
    let draws = |seed| {
        let mut sampler = Sampler::new(&chain(seed));
        let mut scratch = Scratch::default();
        (0..12)
            .map(|_| sampler.sample_row(&mut [0.0; 1000], &[], &mut scratch).unwrap())
            .collect::<Vec<u32>>()
    };
    assert_eq!(draws(Some(42)), FIXED_DRAWS_OF_42);
    assert_eq!(draws(Some(42)), draws(Some(42)));
    assert_ne!(draws(Some(42)), draws(Some(43)));
    let fresh = Sampler::new(&chain(None));
    let again = draws(Some(fresh.seed()));
    let mut fresh = fresh;
    let mut scratch = Scratch::default();
    let first = fresh.sample_row(&mut [0.0; 1000], &[], &mut scratch).unwrap();
    assert_eq!(first, again[0], "the reported seed repeats the draws");
}

const FIXED_DRAWS_OF_42: [u32; 12] = [432, 161, 672, 686, 68, 143, 272, 78, 731, 131, 879, 231];
