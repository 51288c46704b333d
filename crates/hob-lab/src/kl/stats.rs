//! The figures of a comparison, from one token's two rows to the report. It must not know models.

use std::fmt;

use serde::Serialize;

use crate::eval::{LogSum, mean_and_error};

/// Lead of A's best token over its second, in probability, from which on the choice counts as decided.
pub const DECIDED: f64 = 0.1;

/// Two models at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// Sum of p_A (log p_A - log p_B), in nats.
    pub kl: f64,
    /// Negative log-probabilities of the token that follows.
    pub nll_a: f64,
    pub nll_b: f64,
    /// p_B - p_A of that token.
    pub p_difference: f64,
    /// Whether both prefer the same token.
    pub same_top: bool,
    /// p_A of A's best token less that of its second.
    pub lead: f64,
}

impl Token {
    /// Compares two rows of equal length; `target` is the token that follows.
    pub(crate) fn of(a: &[f32], b: &[f32], target: u32) -> Self {
        let (sum_a, sum_b) = (LogSum::of(a), LogSum::of(b));
        let mut kl = 0.0;
        for (&a, &b) in a.iter().zip(b) {
            let log_p = sum_a.log_p(a);
            let p = log_p.exp();
            // The limit of p log p is 0.
            if p > 0.0 {
                kl += p * (log_p - sum_b.log_p(b));
            }
        }
        let of = |row: &[f32], sum: LogSum| {
            row.get(target as usize).map_or(f64::NEG_INFINITY, |&logit| sum.log_p(logit))
        };
        let (log_a, log_b) = (of(a, sum_a), of(b, sum_b));
        let (best, second) = best_two(a);
        Self {
            // Rounding can leave a hair below zero.
            kl: kl.max(0.0),
            nll_a: -log_a,
            nll_b: -log_b,
            p_difference: log_b.exp() - log_a.exp(),
            same_top: best == best_two(b).0,
            lead: sum_a.log_p(a[best]).exp() - second.map_or(0.0, |at| sum_a.log_p(a[at]).exp()),
        }
    }
}

/// Positions of the largest and second largest value, the first of equals.
fn best_two(row: &[f32]) -> (usize, Option<usize>) {
    let mut best = 0;
    let mut second: Option<usize> = None;
    for (i, &value) in row.iter().enumerate().skip(1) {
        if value > row[best] {
            (best, second) = (i, Some(best));
        } else if second.is_none_or(|at| value > row[at]) {
            second = Some(i);
        }
    }
    (best, second)
}

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub error: f64,
}

impl Estimate {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut sum, mut squares, mut count) = (0.0, 0.0, 0);
        for v in values {
            sum += v;
            squares += v * v;
            count += 1;
        }
        let (value, error) = mean_and_error(sum, squares, count);
        Self { value, error }
    }

    /// exp of a mean logarithm.
    fn exp(self) -> Self {
        Self { value: self.value.exp(), error: self.value.exp() * self.error }
    }
}

/// The result.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The reference.
    pub a: String,
    pub b: String,
    pub ctx: usize,
    pub stride: Option<usize>,
    /// Windows compared, and windows there were.
    pub chunks: usize,
    pub chunks_planned: usize,
    pub scored_tokens: usize,
    /// KL(A||B) of a token, in nats.
    pub kl_mean: Estimate,
    pub kl_median: f64,
    pub kl_p90: f64,
    pub kl_p99: f64,
    pub kl_p999: f64,
    pub kl_max: f64,
    /// Share of tokens whose most likely successor is the same.
    pub same_top: Estimate,
    /// The same where A's best leads its second by at least [`DECIDED`], and how many tokens those are.
    pub same_top_decided: Estimate,
    pub decided_tokens: usize,
    /// Root mean square of p_B - p_A of the token that follows.
    pub p_difference_rms: Estimate,
    pub p_difference_mean: Estimate,
    pub ppl_a: Estimate,
    pub ppl_b: Estimate,
    /// ppl_b / ppl_a; its error knows that both read the same text.
    pub ppl_ratio: Estimate,
    pub seconds: f64,
}

impl Report {
    /// The figures of some tokens, at least one.
    pub(crate) fn of(tokens: &[Token]) -> Self {
        let mut kl: Vec<f64> = tokens.iter().map(|t| t.kl).collect();
        kl.sort_by(f64::total_cmp);
        let mean = |value: fn(&Token) -> f64| Estimate::of(tokens.iter().map(value));
        let same = |t: &Token| f64::from(u8::from(t.same_top));
        let decided = || tokens.iter().filter(|t| t.lead >= DECIDED);
        let decided_tokens = decided().count();
        let square = mean(|t| t.p_difference * t.p_difference);
        let rms = square.value.sqrt();
        Self {
            scored_tokens: tokens.len(),
            kl_mean: mean(|t| t.kl),
            kl_median: percentile(&kl, 0.5),
            kl_p90: percentile(&kl, 0.9),
            kl_p99: percentile(&kl, 0.99),
            kl_p999: percentile(&kl, 0.999),
            kl_max: percentile(&kl, 1.0),
            same_top: Estimate::of(tokens.iter().map(same)),
            same_top_decided: if decided_tokens == 0 {
                Estimate { value: 1.0, error: 0.0 }
            } else {
                Estimate::of(decided().map(same))
            },
            decided_tokens,
            p_difference_rms: Estimate {
                value: rms,
                error: if rms > 0.0 { 0.5 / rms * square.error } else { 0.0 },
            },
            p_difference_mean: mean(|t| t.p_difference),
            ppl_a: mean(|t| t.nll_a).exp(),
            ppl_b: mean(|t| t.nll_b).exp(),
            // The error of the mean difference is the pair's covariance taken into account.
            ppl_ratio: mean(|t| t.nll_b - t.nll_a).exp(),
            ..Self::default()
        }
    }
}

/// The value below which `share` of the ascending `values` lie, between two neighbours in proportion.
fn percentile(values: &[f64], share: f64) -> f64 {
    let at = share * (values.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = values[(low + 1).min(values.len() - 1)];
    if part == 0.0 { values[low] } else { values[low] * (1.0 - part) + high * part }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "A {}\nB {}", self.a, self.b)?;
        let of = if self.chunks < self.chunks_planned {
            format!(" of {} (interrupted)", self.chunks_planned)
        } else {
            String::new()
        };
        let step = self.stride.map_or(String::new(), |s| format!(" every {s}"));
        let (chunks, ctx, scored) = (self.chunks, self.ctx, self.scored_tokens);
        writeln!(f, "{chunks} windows{of} of {ctx} tokens{step}, {scored} tokens compared\n")?;
        let line = |f: &mut fmt::Formatter<'_>, name: &str, e: Estimate, scale: f64, unit: &str| {
            writeln!(f, "  {name:<26}{:>11.5} +/- {:.5}{unit}", e.value * scale, e.error * scale)
        };
        line(f, "KL(A||B) mean", self.kl_mean, 1.0, "")?;
        for (name, value) in [
            ("median", self.kl_median),
            ("90 %", self.kl_p90),
            ("99 %", self.kl_p99),
            ("99.9 %", self.kl_p999),
            ("max", self.kl_max),
        ] {
            writeln!(f, "  {:<26}{value:>11.5}", format!("         {name}"))?;
        }
        line(f, "same top token", self.same_top, 100.0, " %")?;
        let decided = format!(" % ({} tokens)", self.decided_tokens);
        line(f, "  where A leads by 10 %", self.same_top_decided, 100.0, &decided)?;
        line(f, "probability, RMS change", self.p_difference_rms, 100.0, " %")?;
        line(f, "probability, mean change", self.p_difference_mean, 100.0, " %")?;
        line(f, "perplexity of A", self.ppl_a, 1.0, "")?;
        line(f, "perplexity of B", self.ppl_b, 1.0, "")?;
        line(f, "perplexity B / A", self.ppl_ratio, 1.0, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_do_not_diverge() {
        let row = [1.0, 2.0, 0.5, f32::NEG_INFINITY];
        let token = Token::of(&row, &row, 1);
        assert_eq!((token.kl, token.p_difference, token.same_top), (0.0, 0.0, true));
        assert_eq!(token.nll_a, token.nll_b);
        // Logits that differ by a constant are the same probabilities.
        let shifted = row.map(|l| l + 3.0);
        assert!(Token::of(&row, &shifted, 1).kl < 1e-12);
    }

    #[test]
    fn a_known_divergence() {
        let (p, q) = ([0.5f64, 0.25, 0.25], [0.25f64, 0.5, 0.25]);
        let logits = |p: [f64; 3]| p.map(|p| p.ln() as f32);
        let token = Token::of(&logits(p), &logits(q), 0);
        let expected = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
        assert!((token.kl - expected).abs() < 1e-7, "{}", token.kl);
        assert!((token.p_difference + 0.25).abs() < 1e-7);
        assert!((token.lead - 0.25).abs() < 1e-7);
        assert!(!token.same_top);
        let report = Report::of(&[token, Token::of(&logits(p), &logits(p), 0)]);
        assert_eq!((report.scored_tokens, report.decided_tokens), (2, 2));
        assert_eq!((report.same_top.value, report.same_top_decided.value), (0.5, 0.5));
        assert!((report.kl_median - expected / 2.0).abs() < 1e-7);
        assert!((report.kl_max - expected).abs() < 1e-7);
        assert!((report.ppl_ratio.value - report.ppl_b.value / report.ppl_a.value).abs() < 1e-9);
        assert!((report.ppl_a.value - 2.0).abs() < 1e-6);
    }

    #[test]
    fn certainty_that_the_other_excludes_is_infinite() {
        let token = Token::of(&[0.0, f32::NEG_INFINITY], &[f32::NEG_INFINITY, 0.0], 0);
        assert_eq!(token.kl, f64::INFINITY);
        assert_eq!(token.lead, 1.0);
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let values = [0.0, 1.0, 2.0, 3.0, f64::INFINITY];
        assert_eq!(percentile(&values, 0.0), 0.0);
        assert_eq!(percentile(&values, 0.5), 2.0);
        assert_eq!(percentile(&values, 0.625), 2.5);
        assert_eq!(percentile(&values, 1.0), f64::INFINITY);
        assert_eq!(percentile(&[7.0], 0.999), 7.0);
    }

    #[test]
    fn ties_go_to_the_first() {
        assert_eq!(best_two(&[1.0, 3.0, 3.0]), (1, Some(2)));
        assert_eq!(best_two(&[3.0, 1.0, 2.0]), (0, Some(2)));
        assert_eq!(best_two(&[3.0]), (0, None));
    }
}
