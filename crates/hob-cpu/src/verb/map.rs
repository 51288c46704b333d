//! Elementwise verbs. One operation per element, so every form gives the same bits; memory is the limit.

use super::{Parts, each_rows};
use crate::pool::Pool;

/// `out = a + b`; an operand that is `None` is `out` itself. All slices have one length.
pub fn add(pool: &Pool, a: Option<&[f32]>, b: Option<&[f32]>, out: &mut [f32]) {
    let parts = Parts::new(out);
    each_rows(pool, parts.len(), 1, &|range| {
        // SAFETY: ranges are disjoint.
        let out = unsafe { parts.part(range.clone()) };
        let (a, b) = (a.map(|a| &a[range.clone()]), b.map(|b| &b[range]));
        match (a, b) {
            (Some(a), Some(b)) => out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = a + b),
            // Addition commutes bit for bit, except in which NaN it keeps.
            (Some(x), None) | (None, Some(x)) => out.iter_mut().zip(x).for_each(|(o, x)| *o += x),
            (None, None) => out.iter_mut().for_each(|o| *o += *o),
        }
    });
}

/// `out = a * factor`; `a` that is `None` is `out` itself.
pub fn scale(pool: &Pool, a: Option<&[f32]>, factor: f32, out: &mut [f32]) {
    let parts = Parts::new(out);
    each_rows(pool, parts.len(), 1, &|range| {
        // SAFETY: ranges are disjoint.
        let out = unsafe { parts.part(range.clone()) };
        match a {
            Some(a) => out.iter_mut().zip(&a[range]).for_each(|(o, a)| *o = a * factor),
            None => out.iter_mut().for_each(|o| *o *= factor),
        }
    });
}
