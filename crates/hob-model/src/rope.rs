//! Angular frequencies of a rotary table: `theta_i = base^(-2i / rotary)`, then the scaling.
//!
//! Computed in f64 and rounded once. Sources: RoFormer (Su et al. 2021), Llama 3.1's `rope_scaling`, and the GGUF
//! convention of divisors in `rope_freqs.weight`.

use std::f64::consts::TAU;

use crate::{RopeConfig, RopeScaling};

/// `[rotary / 2]` radians per position. `divisors` is read for [`RopeScaling::Divisors`]; missing ones count as 1.
pub(crate) fn frequencies(rope: &RopeConfig, divisors: &[f32]) -> Vec<f32> {
    let pairs = rope.rotary / 2;
    let plain = (0..pairs).map(|i| rope.base.powf(-2.0 * i as f64 / rope.rotary as f64));
    let scaled = plain.enumerate().map(|(i, theta)| match rope.scaling {
        RopeScaling::None => theta,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_ctx } => {
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
        RopeScaling::Divisors => theta / f64::from(divisors.get(i).copied().unwrap_or(1.0)),
    });
    scaled.map(|theta| theta as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hob_compute::RopePairs;

    fn table(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { base: 500_000.0, rotary: 16, pairs: RopePairs::Half, scaling }
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
}
