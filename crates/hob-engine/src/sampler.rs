//! From logits to one token: penalties and logit bias here, then the rule of [`hob_compute::draw`], on the device where its
//! largest logits suffice and here where whole rows are looked at.
//!
//! It must not know models or text. What it computes is fixed bit for bit. The draw is one `u64` of ChaCha12 per sampled
//! token (key = the seed, little-endian, followed by 24 zero bytes; nonce 0): `u = (x >> 11) * 2^-53`. Greedy decoding
//! draws nothing.

use hob_compute::draw::{self, Candidate};
use hob_compute::{Draw, Pick};
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

/// Work memory shared by all samplers of an engine; sized at first use, then kept.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub drawing: draw::Scratch,
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

    /// What the device is to do with its `k` largest logits of the next row; uses up one random number.
    pub fn draw(&mut self, k: usize) -> Draw {
        let Sampling { temperature, top_k, typical_p, top_p, min_p, .. } = self.chain;
        if temperature == 0.0 {
            return Draw::GREEDY;
        }
        let u = (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        Draw { temperature, top_k: top_k.clamp(1, k), typical_p, top_p, min_p, u }
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
        scratch.drawing.candidates.clear();
        scratch.drawing.candidates.extend(all);
        Ok(draw::from_candidates(&self.draw(row.len()), self.chain.top_k, &mut scratch.drawing))
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
}

/// Whether a row of which the device gave the largest logit and the log-sum-exp was one of numbers.
pub(crate) fn check_top(top: f32, log_sum_exp: f32) -> Result<(), NotFinite> {
    // The device counts NaN as -inf, so a row without a number comes as -inf. A sum over n <= 2^32 finite logits
    // exceeds the largest by at most ln n < 23.
    let good = top.is_finite() && log_sum_exp.is_finite() && log_sum_exp - top <= 23.0;
    if good { Ok(()) } else { Err(NotFinite) }
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

#[cfg(test)]
mod tests;
