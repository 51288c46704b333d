//! The one CPU pool: workers that spin briefly and then park, with a fixed number of threads and no queue.
//!
//! A verb is a closure run by every thread with its index; `run` returns when all are done. It must not know verbs.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Pauses before a waiting worker parks: tens of microseconds, longer than the gap between two verbs.
const SPINS: u32 = 2000;

type Job = dyn Fn(usize) + Sync + 'static;

struct Shared {
    /// Incremented for every job; workers wait for it to change.
    epoch: AtomicU32,
    /// Points to the caller's `&Job` while a job runs.
    job: AtomicPtr<()>,
    /// Workers still inside the current job.
    pending: AtomicUsize,
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A fixed set of threads. The calling thread is thread 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    gate: Mutex<()>,
}

impl Pool {
    /// Starts `threads - 1` workers; with `pin`, worker `i` asks for the i-th CPU it is allowed to use.
    pub fn new(threads: usize, pin: bool) -> Pool {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            pending: AtomicUsize::new(0),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("hob-cpu-{index}"))
                    .spawn(move || {
                        if pin {
                            crate::affinity::pin_to_nth(index);
                        }
                        worker(&shared, index);
                    })
                    .expect("the system refused to start a thread")
            })
            .collect();
        Pool { shared, workers, gate: Mutex::new(()) }
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread)` on every thread, the caller included, and returns when all have finished.
    /// A panic in any of them is resumed here after the others are done; the pool stays usable.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; workers are done with it when `pending` reaches 0, before this returns.
        let job_ref: &'static Job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Job>(job) };
        let fat: *const &'static Job = &raw const job_ref;
        shared.job.store(fat.cast_mut().cast(), Ordering::Relaxed);
        shared.pending.store(self.workers.len(), Ordering::Relaxed);
        // SeqCst pairs with the worker's parked store and epoch load: one of the two sees the other.
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (index, worker) in self.workers.iter().enumerate() {
            if shared.parked[index + 1].swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        let mut spins = 0u32;
        while shared.pending.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS * 4 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let worker_panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        if let Some(payload) = worker_panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn worker(shared: &Shared, index: usize) {
    let mut seen = 0u32;
    loop {
        seen = wait(shared, index, seen);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let fat: *const &'static Job = shared.job.load(Ordering::Relaxed).cast_const().cast();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: `run` keeps the reference alive until `pending` reaches 0, which happens after this call.
            let job: &'static Job = unsafe { *fat };
            job(index);
        }));
        if let Err(payload) = outcome {
            *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
        }
        shared.pending.fetch_sub(1, Ordering::Release);
    }
}

/// Waits for an epoch other than `seen` and returns it.
fn wait(shared: &Shared, index: usize, seen: u32) -> u32 {
    let mut spins = 0u32;
    loop {
        let now = shared.epoch.load(Ordering::SeqCst);
        if now != seen {
            return now;
        }
        spins += 1;
        if spins < SPINS {
            std::hint::spin_loop();
            continue;
        }
        shared.parked[index].store(true, Ordering::SeqCst);
        if shared.epoch.load(Ordering::SeqCst) == seen && !shared.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        shared.parked[index].store(false, Ordering::SeqCst);
        spins = 0;
    }
}

/// Splits `units` of work: a static contiguous first share per thread, then leftovers claimed in small chunks, so that
/// a slow thread does not hold up the others while each still streams its own memory in order.
pub struct Shares {
    units: usize,
    first: usize,
    chunk: usize,
    next: AtomicUsize,
}

impl Shares {
    pub fn new(units: usize, threads: usize) -> Shares {
        // Seven eighths are fixed: enough to keep streams long, the rest evens out.
        let first = if threads <= 1 { units } else { units * 7 / 8 / threads };
        let chunk = (units / (threads * 16)).max(1);
        Shares { units, first, chunk, next: AtomicUsize::new(first * threads.max(1)) }
    }

    /// Calls `work(range)` for this thread's share and every leftover it claims.
    pub fn each(&self, thread: usize, mut work: impl FnMut(std::ops::Range<usize>)) {
        let start = (thread * self.first).min(self.units);
        let end = (start + self.first).min(self.units);
        if start < end {
            work(start..end);
        }
        loop {
            let at = self.next.fetch_add(self.chunk, Ordering::Relaxed);
            if at >= self.units {
                return;
            }
            work(at..(at + self.chunk).min(self.units));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_done_exactly_once() {
        for threads in 1..=4 {
            let pool = Pool::new(threads, false);
            for units in [0, 1, 2, 3, 7, 64, 1000] {
                let shares = Shares::new(units, threads);
                let counts: Vec<AtomicUsize> = (0..units).map(|_| AtomicUsize::new(0)).collect();
                pool.run(&|t| {
                    shares.each(t, |r| {
                        r.for_each(|u| {
                            counts[u].fetch_add(1, Ordering::Relaxed);
                        })
                    });
                });
                assert!(
                    counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {units} units"
                );
            }
        }
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = Pool::new(3, false);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            let hits = AtomicUsize::new(0);
            pool.run(&|_| {
                hits.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(hits.load(Ordering::Relaxed), 3);
        }
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2, false);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(&|t| assert!(t != 1, "worker one fails"))));
        assert!(result.is_err());
        let hits = AtomicUsize::new(0);
        pool.run(&|_| {
            hits.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(hits.load(Ordering::Relaxed), 2);
    }
}
