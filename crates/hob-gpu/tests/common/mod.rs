//! The oracle and a GPU side by side. Without an adapter every test says 'skipped'.
#![allow(dead_code)] // each test file uses some of it

#[path = "../../../hob-compute/tests/common/floats.rs"]
pub mod floats;

use hob_compute::reference::Reference;
use hob_compute::{Buf, Compute};
use hob_gpu::{Gpu, GpuConfig};

/// Sets of features to do without: all forms of a kernel are reached by some.
pub const TIERS: [&str; 4] = ["", "subgroups", "dot,coop", "subgroups,f16,dot,coop"];

/// A GPU for tests: the software adapter where there is one, unless `HOB_TEST_ADAPTER` names another by its index.
pub fn gpu(exact: bool, off: &str) -> Option<Gpu> {
    let adapter = hob_gpu::test_adapter()?;
    Some(
        Gpu::open(&GpuConfig { adapter, off: off.to_string(), exact, cache: None })
            .expect("the adapter opens"),
    )
}

/// The oracle beside it.
pub fn reference(exact: bool) -> Reference {
    Reference::new(exact)
}

/// Seeded values, mostly within -1..1 with a few louder ones.
pub fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..count)
        .map(|_| {
            let x = (next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
            if next() % 64 == 0 { x * 4.0 } else { x }
        })
        .collect()
}

/// A buffer that holds `data`.
pub fn buffer(dev: &mut dyn Compute, rows: usize, width: usize, data: &[f32]) -> Buf {
    let buf = dev.alloc(rows, width).expect("room");
    dev.upload(buf, 0, data).expect("it fits");
    buf
}

/// The first `count` floats of a buffer.
pub fn contents(dev: &mut dyn Compute, buf: Buf, count: usize) -> Vec<f32> {
    let mut out = vec![0.0; count];
    dev.download(buf, 0, &mut out).expect("it is there");
    out
}

/// Largest difference relative to the root mean square of what is expected; 0 where both are 0, infinite where one is
/// not a number and the other is.
pub fn distance(expected: &[f32], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let square: f64 = expected.iter().map(|&x| f64::from(x).powi(2)).sum();
    let scale = (square / expected.len().max(1) as f64).sqrt().max(1e-30);
    let each = expected.iter().zip(found).map(|(&e, &f)| match (e.is_finite(), f.is_finite()) {
        (true, true) => (f64::from(e) - f64::from(f)).abs() / scale,
        _ if e.is_nan() && f.is_nan() || e == f => 0.0,
        _ => f64::INFINITY,
    });
    each.fold(0.0, f64::max)
}
