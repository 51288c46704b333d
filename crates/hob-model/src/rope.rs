//! Angular frequencies of a rotary table: `theta_i = base^(-2i / rotary)`, then the scaling.
//!
//! Computed in f64 and rounded once. Sources: RoFormer (Su et al. 2021), position interpolation (Chen et al. 2023),
//! YaRN (Peng et al. 2023), LongRoPE (Ding et al. 2024), Llama 3.1's `rope_scaling`, and the GGUF convention of divisors
//! in `rope_freqs.weight`.

use std::f64::consts::TAU;

use crate::config::Yarn;
use crate::{RopeConfig, RopeScaling};

/// `[rotary / 2]` radians per position. `divisors` is read for [`RopeScaling::Divisors`] and [`RopeScaling::Long`];
/// missing ones count as 1.
pub(crate) fn frequencies(rope: &RopeConfig, divisors: &[f32]) -> Vec<f32> {
    let pairs = rope.rotary / 2;
    let plain = (0..pairs).map(|i| rope.base.powf(-2.0 * i as f64 / rope.rotary as f64));
    let scaled = plain.enumerate().map(|(i, theta)| match &rope.scaling {
        RopeScaling::None => theta,
        RopeScaling::Linear { factor } => theta / factor,
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_ctx } => {
            let wavelength = TAU / theta;
            if wavelength < original_ctx / high_freq_factor {
                theta
            } else if wavelength > original_ctx / low_freq_factor {
                theta / factor
            } else {
                let s = (original_ctx / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - s) * theta / factor + s * theta
            }
        }
        RopeScaling::Yarn(yarn) => {
            let ramp = yarn_ramp(yarn, rope, i);
            theta / yarn.factor * ramp + theta * (1.0 - ramp)
        }
        &RopeScaling::Proportional { pairs } => {
            if i < pairs {
                theta
            } else {
                0.0
            }
        }
        RopeScaling::Divisors | RopeScaling::Long { .. } => {
            theta / f64::from(divisors.get(i).copied().unwrap_or(1.0))
        }
    });
    scaled.map(|theta| theta as f32).collect()
}

/// How far pair `i` is interpolated: 0 for pairs that turn more than `beta_fast` times within the original context, 1
/// for those that turn less than `beta_slow` times.
fn yarn_ramp(yarn: &Yarn, rope: &RopeConfig, i: usize) -> f64 {
    let dims = rope.rotary as f64;
    let pair_of = |turns: f64| dims * (yarn.original_ctx / (turns * TAU)).ln() / (2.0 * rope.base.ln());
    let (low, high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
    let (low, high) = if yarn.truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dims - 1.0));
    ((i as f64 - low) / (high - low).max(1e-3)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hob_compute::RopePairs;

    fn table(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { base: 500_000.0, rotary: 16, pairs: RopePairs::Half, scaling, magnitude: 1.0 }
    }

    #[test]
    fn llama3_keeps_short_divides_long_and_blends_between() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_ctx: 64.0,
        };
        let plain = frequencies(&table(RopeScaling::None), &[]);
        let scaled = frequencies(&table(scaling), &[]);
        let ratio: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
        // Wavelengths 2 pi * 500000^(i/8): 6.3, 32.4, 167, ..; kept below 16, divided above 64.
        assert_eq!(ratio[0], 1.0);
        assert!(ratio[1] > 1.0 && ratio[1] < 8.0, "{ratio:?}");
        assert!(ratio[2..].iter().all(|r| (r - 8.0).abs() < 1e-5), "{ratio:?}");
        let s = (64.0 / (TAU * 500_000f64.powf(0.125)) - 1.0) / 3.0;
        assert!((f64::from(ratio[1]) - 1.0 / ((1.0 - s) / 8.0 + s)).abs() < 1e-5);
    }

    #[test]
    fn divisors_divide() {
        let plain = frequencies(&table(RopeScaling::None), &[]);
        let divided = frequencies(&table(RopeScaling::Divisors), &[1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 1e30]);
        assert_eq!(divided[0], plain[0]);
        assert_eq!(divided[2], plain[2] / 4.0);
        assert!(divided[7] < 1e-30);
    }

    #[test]
    fn proportional_keeps_the_first_and_stops_the_rest() {
        let plain = frequencies(&table(RopeScaling::None), &[]);
        let part = frequencies(&table(RopeScaling::Proportional { pairs: 3 }), &[]);
        assert_eq!((&part[..3], &part[3..]), (&plain[..3], &[0.0; 5][..]));
    }

    #[test]
    fn linear_divides_all_alike() {
        let plain = frequencies(&table(RopeScaling::None), &[]);
        let scaled = frequencies(&table(RopeScaling::Linear { factor: 4.0 }), &[]);
        assert!(plain.iter().zip(&scaled).all(|(p, s)| (p / s - 4.0).abs() < 1e-6));
    }

    #[test]
    fn yarn_keeps_what_turns_fast_and_divides_what_turns_slowly() {
        let yarn =
            Yarn { factor: 8.0, original_ctx: 4096.0, beta_fast: 32.0, beta_slow: 1.0, truncate: true };
        let plain = frequencies(&table(RopeScaling::None), &[]);
        let ratios = |truncate| {
            let scaled = frequencies(&table(RopeScaling::Yarn(Yarn { truncate, ..yarn.clone() })), &[]);
            plain.iter().zip(&scaled).map(|(p, s)| p / s).collect::<Vec<_>>()
        };
        // Corners: 8 ln(4096 / (32 tau)) / ln(500000) = 1.84 and 8 ln(4096 / tau) / ln(500000) = 3.95.
        let cut = ratios(true);
        assert!(cut[0] == 1.0 && cut[1] == 1.0 && cut[2] > 1.0 && cut[3] < 8.0, "{cut:?}");
        assert!(cut[4..].iter().all(|r| (r - 8.0).abs() < 1e-5), "{cut:?}");
        let ramp = |ratio: f32| (1.0 - 1.0 / ratio) / (1.0 - 1.0 / 8.0);
        assert!((ramp(cut[2]) - 1.0 / 3.0).abs() < 1e-5 && (ramp(cut[3]) - 2.0 / 3.0).abs() < 1e-5);
        let exact = ratios(false);
        let (low, high) = (1.837_57, 3.950_44);
        assert!((ramp(exact[3]) - (3.0 - low) / (high - low)).abs() < 1e-3, "{exact:?}");
    }
}
