//! The probe gives usable figures on any adapter and leaves nothing behind.

mod common;

use common::gpu;
use hob_compute::Compute;

#[test]
fn rates_are_positive_and_the_working_set_is_given_back() {
    let Some(mut dev) = gpu(false, "") else { return };
    let before = dev.held_bytes();
    let rates = dev.probe().expect("the probe runs");
    println!("{rates:?}");
    let all = [
        rates.read_gb_per_s,
        rates.tflops,
        rates.round_trip_micros,
        rates.dispatch_micros,
        rates.upload_gb_per_s,
        rates.download_gb_per_s,
    ];
    // A dispatch may be quicker than the clock can tell.
    assert!(all.iter().all(|r| r.is_finite() && *r >= 0.0), "{rates:?}");
    assert!(rates.read_gb_per_s > 0.0 && rates.tflops > 0.0 && rates.round_trip_micros > 0.0, "{rates:?}");
    assert_eq!(dev.held_bytes(), before);
}
