//! A global allocator that counts, for tests of the form "a decode step allocates nothing" and "a hostile file makes no
//! large allocation". Counts are kept per thread and per process. It must not know what is measured.
//!
//! ```
//! use hob_testkit::alloc::{CountingAllocator, measure_thread};
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator;
//!
//! let (_, usage) = measure_thread(|| vec![0u8; 1000]);
//! assert_eq!((usage.allocations, usage.bytes, usage.largest), (1, 1000, 1000));
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// The system allocator with counters; declare it with `#[global_allocator]` in the test file.
#[derive(Debug, Clone, Copy, Default)]
pub struct CountingAllocator;

/// What was allocated between two points in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Calls that asked for memory: alloc, alloc_zeroed and realloc.
    pub allocations: u64,
    /// Bytes asked for by these calls, in sum; a realloc counts with its whole new size.
    pub bytes: u64,
    /// The largest single request in bytes.
    pub largest: u64,
    /// The highest growth of live bytes over the start of the measurement. Memory is charged to the thread that
    /// allocates and credited to the thread that frees, so a thread's figure is exact if it frees what it allocates.
    pub peak_bytes: u64,
}

struct ThreadCounts {
    allocations: Cell<u64>,
    bytes: Cell<u64>,
    largest: Cell<u64>,
    live: Cell<i64>,
    peak: Cell<i64>,
}

thread_local! {
    // Constant and without a destructor: reading it never allocates, even while a thread starts or ends.
    static THREAD: ThreadCounts = const {
        ThreadCounts {
            allocations: Cell::new(0),
            bytes: Cell::new(0),
            largest: Cell::new(0),
            live: Cell::new(0),
            peak: Cell::new(0),
        }
    };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static LARGEST: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

fn count(requested: usize, freed: usize) {
    let bytes = requested as u64; // usize has at most 64 bits
    let growth = requested as i64 - freed as i64; // a request is at most isize::MAX
    ALLOCATIONS.fetch_add(1, Relaxed);
    BYTES.fetch_add(bytes, Relaxed);
    LARGEST.fetch_max(bytes, Relaxed);
    PEAK.fetch_max(LIVE.fetch_add(growth, Relaxed) + growth, Relaxed);
    THREAD.with(|t| {
        t.allocations.set(t.allocations.get() + 1);
        t.bytes.set(t.bytes.get() + bytes);
        t.largest.set(t.largest.get().max(bytes));
        t.live.set(t.live.get() + growth);
        t.peak.set(t.peak.get().max(t.live.get()));
    });
}

fn uncount(freed: usize) {
    LIVE.fetch_sub(freed as i64, Relaxed);
    THREAD.with(|t| t.live.set(t.live.get() - freed as i64));
}

// SAFETY: every call is passed on to System unchanged; the counters neither allocate nor unwind.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size, layout.size());
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.realloc(old, layout, new_size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        uncount(layout.size());
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.dealloc(old, layout) }
    }
}

/// Refuses to measure where nothing would be counted, lest a test pass for that reason.
fn demand_installed() {
    let before = ALLOCATIONS.load(Relaxed);
    drop(std::hint::black_box(Box::new(0u8)));
    assert_ne!(
        ALLOCATIONS.load(Relaxed),
        before,
        "CountingAllocator is not the #[global_allocator] of this test binary"
    );
}

/// Runs `work` and says what this thread allocated meanwhile. May be nested.
///
/// # Panics
/// If [`CountingAllocator`] is not the global allocator.
pub fn measure_thread<R>(work: impl FnOnce() -> R) -> (R, Usage) {
    demand_installed();
    let (allocations, bytes, live, outer_largest, outer_peak) = THREAD.with(|t| {
        let live = t.live.get();
        (t.allocations.get(), t.bytes.get(), live, t.largest.replace(0), t.peak.replace(live))
    });
    let result = work();
    let usage = THREAD.with(|t| {
        let usage = Usage {
            allocations: t.allocations.get() - allocations,
            bytes: t.bytes.get() - bytes,
            largest: t.largest.get(),
            peak_bytes: (t.peak.get() - live).max(0).unsigned_abs(),
        };
        t.largest.set(t.largest.get().max(outer_largest));
        t.peak.set(t.peak.get().max(outer_peak));
        usage
    });
    (result, usage)
}

/// Runs `work` and says what the whole process allocated meanwhile, other tests' threads included: use it in a test
/// binary with one test, or for work done by threads of its own. Not to be nested or run twice at once.
///
/// # Panics
/// If [`CountingAllocator`] is not the global allocator.
pub fn measure_process<R>(work: impl FnOnce() -> R) -> (R, Usage) {
    demand_installed();
    let (allocations, bytes, live) = (ALLOCATIONS.load(Relaxed), BYTES.load(Relaxed), LIVE.load(Relaxed));
    LARGEST.store(0, Relaxed);
    PEAK.store(live, Relaxed);
    let result = work();
    let usage = Usage {
        allocations: ALLOCATIONS.load(Relaxed) - allocations,
        bytes: BYTES.load(Relaxed) - bytes,
        largest: LARGEST.load(Relaxed),
        peak_bytes: (PEAK.load(Relaxed) - live).max(0).unsigned_abs(),
    };
    (result, usage)
}

#[cfg(test)]
mod tests {
    use super::measure_thread;

    // The counting tests stand in tests/alloc.rs, which installs the allocator; this binary does not.
    #[test]
    #[should_panic(expected = "is not the #[global_allocator]")]
    fn measuring_without_the_allocator_is_refused() {
        measure_thread(|| ());
    }
}
