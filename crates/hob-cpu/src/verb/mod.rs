//! One folder or file per verb family. A verb takes plain slices and the pool; handles and buffers are the device's.
//!
//! Portable forms are the oracle's own loops or ones that LLVM vectorizes; ISA forms stand beside them and repeat the
//! same operations lane by lane.

pub mod attend;
pub mod compressed;
pub mod delta;
pub mod embed;
#[cfg(all(test, unix))]
mod guarded;
pub mod hyper;
pub mod kv;
#[cfg(target_arch = "x86_64")]
pub(crate) mod lanes;
pub mod map;
pub mod norm;
pub mod pick;
pub mod products;
pub mod rope;
pub mod route;
pub mod short_conv;
pub mod sigmoid;
pub mod ssm;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::pool::Pool;

/// Floats below which a row verb stays on the calling thread: waking the pool costs as much as this work.
pub(crate) const ALONE: usize = 16 << 10;

/// Calls `work(thread, unit)` for every unit, units claimed one by one; on the calling thread when there is only one.
pub(crate) fn each_unit(pool: &Pool, units: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    if units <= 1 || pool.threads() == 1 {
        return (0..units).for_each(|u| work(0, u));
    }
    let next = AtomicUsize::new(0);
    pool.run(&|thread| {
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                return;
            }
            work(thread, unit);
        }
    });
}

/// Calls `work(rows)` on contiguous ranges of rows, of about `ALONE / 4` floats each.
pub(crate) fn each_rows(pool: &Pool, rows: usize, width: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
    if rows * width < ALONE || pool.threads() == 1 {
        return work(0..rows);
    }
    let step = (ALONE / 4 / width.max(1)).max(1);
    each_unit(pool, rows.div_ceil(step), &|_, u| work(u * step..((u + 1) * step).min(rows)));
}

/// A mutable slice whose disjoint parts are handed to different threads.
pub(crate) struct Parts<'a, T> {
    ptr: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Parts<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Parts<'_, T> {}

// SAFETY: it stands for a `&mut [T]`, which may be sent; `part` makes the caller vouch for disjointness.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Parts { ptr: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The part `range`.
    ///
    /// # Safety
    /// No two parts that are alive at once may overlap.
    #[allow(clippy::mut_from_ref, reason = "that is what this type is for; see the safety section")]
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part {range:?} of {}", self.len);
        // SAFETY: inside the slice; disjointness is the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn rows_are_covered_once_for_any_thread_count() {
        for threads in 1..4 {
            let pool = Pool::new(threads, false);
            for (rows, width) in [(0, 8), (1, 1), (7, 100_000), (513, 576), (3, 2)] {
                let seen = Mutex::new(vec![0u8; rows]);
                each_rows(&pool, rows, width, &|range| range.for_each(|r| seen.lock().unwrap()[r] += 1));
                assert!(
                    seen.into_inner().unwrap().iter().all(|&n| n == 1),
                    "{rows} x {width}, {threads} threads"
                );
            }
        }
    }
}
