//! Scales of two levels: small integers per group under one or two f16 factors per superblock, chosen together for the
//! least weighted error. It must not know how a format packs the integers.

use half::f16;

use super::f16_to_f32;
use super::search::{
    Affine, Grid, affine_error, affine_products, fit_affine, fit_scale, inverse_of, nearest, products,
    scale_error,
};

/// Times that integers and outer factors are fitted to each other.
const ROUNDS: usize = 3;

/// An f16 as it is stored, and what it stands for.
#[derive(Clone, Copy, Default)]
pub(super) struct Half {
    pub bits: u16,
    pub value: f32,
}

impl Half {
    /// `None` if it overflows.
    pub(super) fn of(value: f32) -> Option<Half> {
        let half = f16::from_f32(value);
        let bits = half.to_bits();
        half.is_finite().then(|| Half { bits, value: f16_to_f32(bits) })
    }

    /// As [`Half::of`], but a factor under integers is never lost: it ends at the smallest there is.
    fn factor(value: f32) -> Option<Half> {
        let half = Half::of(value)?;
        let smallest = Half { bits: half.bits | 1, value: f16_to_f32(half.bits | 1) };
        Some(if half.value == 0.0 && value != 0.0 { smallest } else { half })
    }

    pub(super) fn put(self, block: &mut [u8], at: usize) {
        block[at..at + 2].copy_from_slice(&self.bits.to_le_bytes());
    }
}

/// Scales of a superblock without minima: group `g` is scaled by `d * scales[g]`.
pub(super) struct Signed<const S: usize> {
    pub d: Half,
    pub scales: [i32; S],
}

impl<const S: usize> Signed<S> {
    pub(super) fn scale(&self, group: usize) -> f32 {
        self.d.value * self.scales[group] as f32
    }
}

/// `range` is what a scale's bits hold, the lower end the larger one. `None` if `d` overflows f16.
pub(super) fn signed<G: Grid, const L: usize, const N: usize, const S: usize>(
    grid: &G,
    x: &[f32; L],
    w: &[f32; L],
    range: (i32, i32),
) -> Option<Signed<S>> {
    let groups = || x.as_chunks::<N>().0.iter().zip(w.as_chunks::<N>().0).enumerate();
    let mut wanted = [0f32; S];
    for (g, (x, w)) in groups() {
        wanted[g] = fit_scale(grid, x, w);
    }
    let largest = wanted.iter().fold(0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
    let mut best = Signed { d: Half::default(), scales: [0; S] };
    let mut least = f32::INFINITY;
    let mut d = Half::factor(largest / range.0 as f32)?;
    for _ in 0..ROUNDS {
        let inverse = inverse_of(d.value);
        let mut found = Signed { d, scales: [0; S] };
        let mut error = 0.0;
        for (g, (x, w)) in groups() {
            let near = nearest((wanted[g] * inverse).max(range.0 as f32).min(range.1 as f32)) as i32;
            let tries = (near - 1).max(range.0)..=(near + 1).min(range.1);
            let (cost, scale) = tries
                .map(|s| (scale_error(grid, x, w, d.value * s as f32), s))
                .fold((f32::INFINITY, 0), |best, next| if next.0 < best.0 { next } else { best });
            found.scales[g] = scale;
            error += cost;
        }
        let (mut xq, mut qq) = (0.0, 0.0);
        for (g, (x, w)) in groups() {
            let s = found.scales[g] as f32;
            let sums = products(grid, x, w, inverse_of(d.value * s));
            (xq, qq) = (xq + s * sums[0], qq + s * s * sums[1]);
        }
        if error < least {
            (least, best) = (error, found);
        }
        let next = Half::factor(xq * inverse_of(qq))?;
        if next.bits == d.bits {
            break;
        }
        d = next;
    }
    Some(best)
}

/// Scales of a superblock with minima: group `g` is `d * scales[g] * q - dmin * mins[g]`.
pub(super) struct WithMinima<const S: usize> {
    pub d: Half,
    pub dmin: Half,
    pub scales: [u8; S],
    pub mins: [u8; S],
}

impl<const S: usize> WithMinima<S> {
    pub(super) fn pair(&self, group: usize) -> Affine {
        let min = -(self.dmin.value * f32::from(self.mins[group]));
        Affine { scale: self.d.value * f32::from(self.scales[group]), min }
    }
}

/// Codes run to `top`, scales and minima to `most`. `None` if a factor overflows f16.
pub(super) fn with_minima<const L: usize, const N: usize, const S: usize>(
    x: &[f32; L],
    w: &[f32; L],
    top: f32,
    most: u8,
) -> Option<WithMinima<S>> {
    let groups = || x.as_chunks::<N>().0.iter().zip(w.as_chunks::<N>().0).enumerate();
    let mut wanted = [Affine::default(); S];
    for (g, (x, w)) in groups() {
        wanted[g] = fit_affine(x, w, top, true);
    }
    let largest = |part: fn(&Affine) -> f32| wanted.iter().map(part).fold(0f32, f32::max) / f32::from(most);
    let (mut d, mut dmin) = (Half::factor(largest(|a| a.scale))?, Half::factor(largest(|a| -a.min))?);
    let mut best = WithMinima { d, dmin, scales: [0; S], mins: [0; S] };
    let mut least = f32::INFINITY;
    for _ in 0..ROUNDS {
        let mut found = WithMinima { d, dmin, scales: [0; S], mins: [0; S] };
        let mut error = 0.0;
        for (g, (x, w)) in groups() {
            let near = [(wanted[g].scale, d), (-wanted[g].min, dmin)].map(|(v, factor)| {
                nearest((v * inverse_of(factor.value)).max(0.0).min(f32::from(most))) as u8
            });
            let around = |v: u8| v.saturating_sub(1)..=(v + 1).min(most);
            let mut cost = f32::INFINITY;
            for scale in around(near[0]) {
                for min in around(near[1]) {
                    let pair =
                        Affine { scale: d.value * f32::from(scale), min: -(dmin.value * f32::from(min)) };
                    let error = affine_error(x, w, pair, top);
                    if error < cost {
                        (cost, found.scales[g], found.mins[g]) = (error, scale, min);
                    }
                }
            }
            error += cost;
        }
        let next = outer_factors(groups(), &found, top);
        if error < least {
            (least, best) = (error, found);
        }
        let (next_d, next_dmin) = (Half::factor(next.0)?, Half::factor(next.1)?);
        if (next_d.bits, next_dmin.bits) == (d.bits, dmin.bits) || next.0 <= 0.0 {
            break;
        }
        (d, dmin) = (next_d, next_dmin);
    }
    Some(best)
}

/// The least-squares `d` and `dmin` under given integers and their codes.
fn outer_factors<'a, const N: usize, const S: usize>(
    groups: impl Iterator<Item = (usize, (&'a [f32; N], &'a [f32; N]))>,
    found: &WithMinima<S>,
    top: f32,
) -> (f32, f32) {
    // x = d a - dmin m, with a = s q.
    let (mut aa, mut am, mut mm, mut xa, mut xm) = (0f32, 0f32, 0f32, 0f32, 0f32);
    for (g, (x, w)) in groups {
        let (s, m) = (f32::from(found.scales[g]), f32::from(found.mins[g]));
        let [w, wx, wq, wqq, wxq] = affine_products(x, w, found.pair(g), top);
        (aa, am, mm) = (aa + s * s * wqq, am + s * m * wq, mm + m * m * w);
        (xa, xm) = (xa + s * wxq, xm + m * wx);
    }
    let spread = aa * mm - am * am;
    if spread <= 1e-6 * aa * mm {
        return (xa * inverse_of(aa), found.dmin.value);
    }
    let inverse = inverse_of(spread);
    let (d, dmin) = ((xa * mm - xm * am) * inverse, (xa * am - xm * aa) * inverse);
    if dmin < 0.0 { (xa * inverse_of(aa), 0.0) } else { (d, dmin) }
}
