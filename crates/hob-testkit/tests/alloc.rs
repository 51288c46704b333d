//! The counting allocator, installed: what it says of one thread.

use std::hint::black_box;

use hob_testkit::alloc::{CountingAllocator, Usage, measure_thread};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn nothing_allocated_counts_as_nothing() {
    let (sum, usage) = measure_thread(|| (0..100u64).sum::<u64>());
    assert_eq!((sum, usage), (4950, Usage::default()));
}

#[test]
fn thread_counts_requests_bytes_largest_and_peak() {
    let (_, usage) = measure_thread(|| {
        drop(black_box(vec![0u8; 3000]));
        drop(black_box(Vec::<u8>::with_capacity(2000)));
    });
    assert_eq!(usage, Usage { allocations: 2, bytes: 5000, largest: 3000, peak_bytes: 3000 });
    let (_, usage) = measure_thread(|| {
        let first = black_box(vec![1u8; 3000]);
        let second = black_box(vec![1u8; 2000]);
        drop((first, second));
    });
    assert_eq!(usage, Usage { allocations: 2, bytes: 5000, largest: 3000, peak_bytes: 5000 });
}

#[test]
fn a_realloc_counts_once_and_grows_by_the_difference() {
    let mut v = Vec::<u8>::with_capacity(100);
    let (_, usage) = measure_thread(|| v.reserve_exact(400));
    assert_eq!(usage, Usage { allocations: 1, bytes: 400, largest: 400, peak_bytes: 300 });
}

#[test]
fn freeing_more_than_allocating_is_no_peak() {
    let old = black_box(vec![0u8; 10_000]);
    let (_, usage) = measure_thread(|| {
        drop(old);
        drop(black_box(vec![0u8; 10]));
    });
    assert_eq!(usage, Usage { allocations: 1, bytes: 10, largest: 10, peak_bytes: 0 });
}

#[test]
fn other_threads_do_not_count_and_nesting_adds_up() {
    let (inner, outer) = measure_thread(|| {
        std::thread::scope(|s| {
            s.spawn(|| drop(black_box(vec![0u8; 1 << 20])));
        });
        drop(black_box(vec![0u8; 5000]));
        let (_, inner) = measure_thread(|| drop(black_box(vec![0u8; 70])));
        inner
    });
    assert_eq!((inner.bytes, inner.largest, inner.peak_bytes), (70, 70, 70));
    assert_eq!(outer.largest, 5000, "the spawned thread's MiB is not ours, the inner 70 are smaller");
    assert!(outer.bytes < 1 << 20, "{outer:?}");
}
