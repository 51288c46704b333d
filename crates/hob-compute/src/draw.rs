//! From the largest logits of a row to one token: top-k, typical, top-p, min-p, temperature, draw, in this order.
//!
//! This is the rule that every device follows in [`crate::Compute::pick`], and that a host follows where it looks at
//! whole rows. It is fixed bit for bit: probabilities are f64 made by [`exp`] (plain operations, no library call), sums
//! run over ascending token ids, ties go to the lowest id; the token is the first, in ascending id, whose cumulative
//! weight exceeds `u * total`. A device that computes in f32 gives the same token unless `u`, or a threshold of the
//! chain, lies within 1e-5 of a boundary between two tokens. It must not know where `u` comes from.

use std::cmp::Ordering;

/// How a token is drawn from the largest logits of a row. A row whose largest logit is not a finite number gives the
/// first of its list.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Draw {
    /// Divides the logits of those left, at least 0; 0 takes the largest (ties: lowest id), and nothing else matters.
    pub temperature: f32,
    /// How many of the list take part: 1 to [`crate::Pick::k`].
    pub top_k: usize,
    /// Of those: the smallest set that reaches this share of their probability, those first whose `-ln p` is closest to
    /// its expectation (ties: lowest id); 1 is off.
    pub typical_p: f32,
    /// Of those: the smallest set of largest that reaches this share of their probability; 1 is off.
    pub top_p: f32,
    /// Of those: not below this share of the probability of the largest left; 0 is off.
    pub min_p: f32,
    /// Uniform, at least 0 and below 1.
    pub u: f64,
}

impl Draw {
    /// The largest logit, of equals the lowest id.
    pub const GREEDY: Draw =
        Draw { temperature: 0.0, top_k: 1, typical_p: 1.0, top_p: 1.0, min_p: 0.0, u: 0.0 };
}

/// A token that is still in the running.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Candidate {
    pub token: u32,
    pub logit: f32,
}

/// Work memory; sized at first use, then kept.
#[derive(Debug, Default)]
pub struct Scratch {
    pub candidates: Vec<Candidate>,
    pub weights: Vec<f64>,
}

/// The token of a row of `pick`: its largest logits, descending, at least one.
pub fn from_top(tokens: &[u32], logits: &[f32], draw: &Draw, scratch: &mut Scratch) -> u32 {
    if draw.temperature == 0.0 || !logits[0].is_finite() {
        return tokens[0];
    }
    let pairs = tokens.iter().zip(logits).map(|(&token, &logit)| Candidate { token, logit });
    scratch.candidates.clear();
    scratch.candidates.extend(pairs);
    from_candidates(draw, draw.top_k, scratch)
}

/// The token of all candidates in `scratch`, of which at least one is finite and none +inf or NaN; `top_k` 0 is off.
pub fn from_candidates(draw: &Draw, top_k: usize, scratch: &mut Scratch) -> u32 {
    narrow(draw, top_k, scratch);
    let total = weigh(&scratch.candidates, draw.temperature, &mut scratch.weights);
    scratch.candidates[choose(&scratch.weights, draw.u * total)].token
}

/// Larger logit first; ties: lower id first.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    // As the device orders them: -0 equals +0.
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// Leaves the candidates that pass top-k (0: all), typical, top-p and min-p, in ascending id.
pub fn narrow(draw: &Draw, top_k: usize, scratch: &mut Scratch) {
    let Scratch { candidates, weights } = scratch;
    if top_k > 0 && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, by_logit);
        candidates.truncate(top_k);
    }
    candidates.sort_unstable_by_key(|c| c.token);
    if draw.typical_p < 1.0 {
        typical(candidates, weights, draw.typical_p);
    }
    if draw.top_p < 1.0 {
        nucleus(candidates, weights, draw.top_p);
    }
    if draw.min_p > 0.0 {
        let top = largest(candidates);
        candidates.retain(|c| exp(f64::from(c.logit) - top) >= f64::from(draw.min_p));
    }
}

/// Keeps the smallest set of largest candidates whose probability reaches `top_p` (at least one), in ascending id.
fn nucleus(candidates: &mut Vec<Candidate>, weights: &mut Vec<f64>, top_p: f32) {
    let goal = f64::from(top_p) * weigh(candidates, 1.0, weights);
    keep_until(candidates, goal, by_logit);
}

/// Keeps the smallest set of typical candidates whose probability reaches `typical_p` (at least one), in ascending id.
///
/// Typical is whose `-ln p` is close to the expected one. With `s = largest - logit`, `-ln p = s + c` for one `c`, which
/// cancels: the distance is `|s - E[s]|`, and no logarithm is needed. Ties: lowest id.
fn typical(candidates: &mut Vec<Candidate>, weights: &mut Vec<f64>, typical_p: f32) {
    let total = weigh(candidates, 1.0, weights);
    let top = largest(candidates);
    let surprise = |c: &Candidate| top - f64::from(c.logit);
    // A masked token (-inf) weighs nothing and is infinitely far.
    let weighted =
        candidates.iter().zip(&*weights).map(|(c, &w)| if w > 0.0 { w * surprise(c) } else { 0.0 });
    let expected = weighted.sum::<f64>() / total;
    let distance = |c: &Candidate| (surprise(c) - expected).abs();
    let nearer =
        |a: &Candidate, b: &Candidate| distance(a).total_cmp(&distance(b)).then(a.token.cmp(&b.token));
    keep_until(candidates, f64::from(typical_p) * total, nearer);
}

/// Keeps the first candidates in `order` until their weights reach `goal` (at least one), in ascending id.
fn keep_until(
    candidates: &mut Vec<Candidate>,
    goal: f64,
    mut order: impl FnMut(&Candidate, &Candidate) -> Ordering,
) {
    let top = largest(candidates);
    // They are nearly always few: order only as many as turn out to be needed.
    let mut ordered = 64;
    loop {
        if ordered < candidates.len() {
            candidates.select_nth_unstable_by(ordered - 1, &mut order);
        } else {
            ordered = candidates.len();
        }
        candidates[..ordered].sort_unstable_by(&mut order);
        let mut sum = 0.0;
        let reached = candidates[..ordered].iter().position(|c| {
            sum += exp(f64::from(c.logit) - top);
            sum >= goal
        });
        if let Some(last) = reached {
            candidates.truncate(last + 1);
            break;
        }
        if ordered == candidates.len() {
            break;
        }
        ordered *= 8;
    }
    candidates.sort_unstable_by_key(|c| c.token);
}

fn largest(candidates: &[Candidate]) -> f64 {
    f64::from(candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max))
}

/// Fills `weights` with `exp((logit - largest) / temperature)` and returns their sum, in the order given.
pub fn weigh(candidates: &[Candidate], temperature: f32, weights: &mut Vec<f64>) -> f64 {
    let top = largest(candidates);
    let t = f64::from(temperature);
    weights.clear();
    weights.extend(candidates.iter().map(|c| exp((f64::from(c.logit) - top) / t)));
    weights.iter().sum()
}

/// The first index whose cumulative weight exceeds `target`; the last one with any weight if rounding passes them all.
fn choose(weights: &[f64], target: f64) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for (i, &w) in weights.iter().enumerate() {
        sum += w;
        if w > 0.0 {
            last = i;
        }
        if sum > target {
            return i;
        }
    }
    last
}

/// `exp(x)` for `x <= 0`, relative error below 1e-14; exactly 0 below -700.
///
/// Plain multiplications and additions in a fixed order, so every platform gives the same bits: reduction by ln 2 in
/// two parts, then the Taylor polynomial of degree 13 on |r| <= ln 2 / 2.
pub fn exp(x: f64) -> f64 {
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    /// Adding it rounds to a whole number.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const COEFFICIENTS: [f64; 14] = inverse_factorials();
    // Also catches -inf.
    if x < -700.0 {
        return 0.0;
    }
    let n = (x * std::f64::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let p = COEFFICIENTS.iter().fold(0.0, |p, c| p * r + c);
    p * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// 1/13!, 1/12!, .., 1/0!
const fn inverse_factorials() -> [f64; 14] {
    let mut c = [1.0; 14];
    let mut factorial = 1.0;
    let mut k = 1;
    while k < 14 {
        factorial *= k as f64;
        c[13 - k] = 1.0 / factorial;
        k += 1;
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use hob_testkit::rng::Rng;

    #[test]
    fn exp_is_accurate_and_monotone_enough() {
        let mut rng = Rng::new(15);
        for _ in 0..100_000 {
            let x = -f64::from(rng.f32()) * 690.0;
            let (got, want) = (exp(x), x.exp());
            assert!((got - want).abs() <= want * 1e-14, "exp({x}) = {got}, expected {want}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(-701.0), 0.0);
    }

    /// The boundaries of a draw are those of the cumulated probabilities, in ascending id, of what the chain leaves.
    #[test]
    fn u_walks_the_cumulated_probabilities() {
        // 1/2, 1/4, 1/8, 1/16, 1/16; the list is by logit, the draw by id.
        let (tokens, logits) = ([7, 2, 9, 1, 5], [0.5f32, 0.25, 0.125, 0.0625, 0.0625].map(f32::ln));
        let base = Draw { temperature: 1.0, top_k: 5, ..Draw::GREEDY };
        let at =
            |draw: Draw, u: f64| from_top(&tokens, &logits, &Draw { u, ..draw }, &mut Scratch::default());
        let walk = |draw: Draw, steps: &[(f64, u32)]| {
            let mut before = 0.0;
            for &(end, token) in steps {
                assert_eq!(at(draw, before + 1e-6), token, "{draw:?} above {before}");
                assert_eq!(at(draw, end - 1e-6), token, "{draw:?} below {end}");
                before = end;
            }
        };
        walk(base, &[(0.0625, 1), (0.3125, 2), (0.375, 5), (0.875, 7), (1.0, 9)]);
        walk(Draw { top_k: 2, ..base }, &[(1.0 / 3.0, 2), (1.0, 7)]);
        walk(Draw { top_p: 0.8, ..base }, &[(2.0 / 7.0, 2), (6.0 / 7.0, 7), (1.0, 9)]);
        walk(Draw { min_p: 0.2, ..base }, &[(2.0 / 7.0, 2), (6.0 / 7.0, 7), (1.0, 9)]);
        walk(Draw { top_p: 0.8, min_p: 0.3, ..base }, &[(1.0 / 3.0, 2), (1.0, 7)]);
        walk(Draw { temperature: 0.5, top_k: 2, ..base }, &[(0.2, 2), (1.0, 7)]);
        assert_eq!(at(Draw::GREEDY, 0.9), 7);
    }

    #[test]
    fn a_row_without_a_number_gives_its_first() {
        let draw = Draw { temperature: 1.0, top_k: 2, u: 0.7, ..Draw::GREEDY };
        for top in [f32::INFINITY, f32::NEG_INFINITY] {
            let token = from_top(&[4, 3], &[top, f32::NEG_INFINITY], &draw, &mut Scratch::default());
            assert_eq!(token, 4);
        }
    }
}
