//! From logits to one token: penalties, logit bias, top-k, typical, top-p, min-p, temperature, seeded draw, in this order.
//!
//! It must not know models or text. What it computes is fixed bit for bit: probabilities are f64 made by [`exp`] (plain
//! operations, no library call), sums run over ascending token ids, ties go to the lowest id. The draw is one `u64`
//! of ChaCha12 per sampled token (key = the seed, little-endian, followed by 24 zero bytes; nonce 0): `u = (x >> 11) *
//! 2^-53`, and the token is the first, in ascending id, whose cumulative weight exceeds `u * total`. Greedy decoding
//! draws nothing.

use std::cmp::Ordering;

use hob_compute::Pick;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::request::Sampling;

/// What a sampler must see of a row of logits.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The device's `k` largest.
    Top(usize),
    /// All of them.
    Row,
}

/// A logit was NaN (in a row that was read whole; the device's pick passes single ones over) or +inf, or all were -inf.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotFinite;

/// A token that is still in the running.
#[derive(Copy, Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub token: u32,
    pub logit: f32,
}

/// Work memory shared by all samplers of an engine; sized at first use, then kept.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub candidates: Vec<Candidate>,
    pub weights: Vec<f64>,
    /// Occurrences of every token among the recent ones; all zero between calls.
    counts: Vec<u32>,
}

/// One reply's chain: settings, seed and generator.
#[derive(Debug)]
pub(crate) struct Sampler {
    chain: Sampling,
    seed: u64,
    rng: ChaCha12Rng,
}

impl Sampler {
    /// The settings have been validated.
    pub fn new(chain: &Sampling) -> Self {
        let seed = chain.seed.unwrap_or_else(rand::random);
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Sampler { chain: chain.clone(), seed, rng: ChaCha12Rng::from_seed(key) }
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn need(&self) -> Need {
        let edited = self.chain.penalizes() || !self.chain.logit_bias.is_empty();
        match self.chain.top_k {
            _ if edited => Need::Row,
            _ if self.chain.temperature == 0.0 => Need::Top(1),
            1..=Pick::MAX_K => Need::Top(self.chain.top_k),
            _ => Need::Row,
        }
    }

    /// Samples from the device's largest logits, descending, and the log-sum-exp of the whole row.
    pub fn sample_top(
        &mut self,
        tokens: &[u32],
        logits: &[f32],
        log_sum_exp: f32,
        scratch: &mut Scratch,
    ) -> Result<u32, NotFinite> {
        let (Some(&token), Some(&top)) = (tokens.first(), logits.first()) else { return Err(NotFinite) };
        // The device counts NaN as -inf, so a row without a number comes as -inf. A sum over n <= 2^32 finite logits
        // exceeds the largest by at most ln n < 23.
        if !top.is_finite() || !log_sum_exp.is_finite() || log_sum_exp - top > 23.0 {
            return Err(NotFinite);
        }
        if self.chain.temperature == 0.0 {
            return Ok(token);
        }
        let pairs = tokens.iter().zip(logits).map(|(&token, &logit)| Candidate { token, logit });
        scratch.candidates.clear();
        scratch.candidates.extend(pairs);
        Ok(self.sample(scratch))
    }

    /// Samples from a whole row, which is changed by penalties and bias. `recent` ends with the newest token.
    pub fn sample_row(
        &mut self,
        row: &mut [f32],
        recent: &[u32],
        scratch: &mut Scratch,
    ) -> Result<u32, NotFinite> {
        self.edit(row, recent, scratch);
        if row.iter().any(|l| l.is_nan() || *l == f32::INFINITY) {
            return Err(NotFinite);
        }
        let best = argmax(row).ok_or(NotFinite)?;
        if self.chain.temperature == 0.0 {
            return Ok(best);
        }
        let all = row.iter().enumerate().map(|(i, &logit)| Candidate { token: i as u32, logit });
        scratch.candidates.clear();
        scratch.candidates.extend(all);
        Ok(self.sample(scratch))
    }

    /// Penalties, then bias.
    fn edit(&self, row: &mut [f32], recent: &[u32], scratch: &mut Scratch) {
        let c = &self.chain;
        if c.penalizes() {
            let window = &recent[recent.len().saturating_sub(c.repeat_last_n)..];
            scratch.counts.resize(row.len(), 0);
            for &t in window {
                if let Some(n) = scratch.counts.get_mut(t as usize) {
                    *n += 1;
                }
            }
            for &t in window {
                let Some(n) = scratch.counts.get_mut(t as usize) else { continue };
                // The first visit handles the token and clears its count, later ones find nothing to do.
                let count = std::mem::take(n);
                if count > 0 {
                    let l = &mut row[t as usize];
                    *l = if *l > 0.0 { *l / c.repeat_penalty } else { *l * c.repeat_penalty };
                    *l -= count as f32 * c.frequency_penalty + c.presence_penalty;
                }
            }
        }
        for &(token, bias) in &c.logit_bias {
            if let Some(l) = row.get_mut(token as usize) {
                *l += bias;
            }
        }
    }

    /// top-k, typical, top-p, min-p, temperature, draw. There is at least one candidate with a finite logit.
    fn sample(&mut self, scratch: &mut Scratch) -> u32 {
        narrow(&self.chain, scratch);
        let total = weigh(&scratch.candidates, self.chain.temperature, &mut scratch.weights);
        let u = (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        scratch.candidates[choose(&scratch.weights, u * total)].token
    }
}

/// Larger logit first; ties: lower id first.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    // As the device orders them: -0 equals +0.
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// Index of the largest logit, the lowest of equals; `None` if all are -inf or there is none.
fn argmax(row: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut top = f32::NEG_INFINITY;
    for (i, &l) in row.iter().enumerate() {
        if l > top {
            top = l;
            best = Some(i as u32);
        }
    }
    best
}

/// Leaves the candidates that pass top-k, typical, top-p and min-p, in ascending id.
fn narrow(chain: &Sampling, scratch: &mut Scratch) {
    let Scratch { candidates, weights, .. } = scratch;
    if chain.top_k > 0 && chain.top_k < candidates.len() {
        candidates.select_nth_unstable_by(chain.top_k - 1, by_logit);
        candidates.truncate(chain.top_k);
    }
    candidates.sort_unstable_by_key(|c| c.token);
    if chain.typical_p < 1.0 {
        typical(candidates, weights, chain.typical_p);
    }
    if chain.top_p < 1.0 {
        nucleus(candidates, weights, chain.top_p);
    }
    if chain.min_p > 0.0 {
        let top = largest(candidates);
        candidates.retain(|c| exp(f64::from(c.logit) - top) >= f64::from(chain.min_p));
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
fn weigh(candidates: &[Candidate], temperature: f32, weights: &mut Vec<f64>) -> f64 {
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
fn exp(x: f64) -> f64 {
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
mod tests;
