//! The counting allocator, installed: what it says of the whole process. One test only, so that nobody else allocates.

use std::hint::black_box;

use hob_testkit::alloc::{CountingAllocator, measure_process};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn process_counts_what_other_threads_allocate() {
    const BYTES: usize = 1 << 24;
    let (_, usage) = measure_process(|| {
        std::thread::scope(|s| {
            s.spawn(|| drop(black_box(vec![0u8; BYTES])));
        });
    });
    assert_eq!(usage.largest, BYTES as u64);
    // The thread itself needs a few small allocations; the test harness may free some meanwhile.
    let about = BYTES as u64 - (1 << 16)..BYTES as u64 + (1 << 16);
    assert!(about.contains(&usage.peak_bytes) && usage.bytes >= BYTES as u64, "{usage:?}");
    assert!((2..200).contains(&usage.allocations), "{usage:?}");
}
