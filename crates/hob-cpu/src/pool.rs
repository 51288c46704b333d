//! The one CPU pool: workers that spin briefly and then park, with a fixed number of threads and no queue.
//!
//! A verb is a closure run by every thread with its index; `run` returns when all are done. It must not know verbs.

mod watch;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use watch::{Verdict, Watch};

/// Pauses before a waiting worker parks: tens of microseconds, longer than the gap between two verbs.
const SPINS: u32 = 2000;
/// The same where jobs were seen to come a while apart, as they do when every layer's rows cross to a GPU and back. What it
/// gains there was not measured by itself.
const PATIENT_SPINS: u32 = 16 * SPINS;
/// A job that comes so soon after a worker parked was worth waiting for.
const SOON: Duration = Duration::from_micros(500);
/// Pools beyond this many threads never do without one: the set of threads is one 32-bit mask.
const MOST_MASKED: usize = 32;

type Job = dyn Fn(usize) + Sync + 'static;

struct Shared {
    /// Changes for every job; workers wait for it to change. High half: number of the job; low half: mask of the threads
    /// that take part in it (all ones beyond [`MOST_MASKED`] threads).
    epoch: AtomicU64,
    /// Points to the caller's `&Job` while a job runs.
    job: AtomicPtr<()>,
    /// Workers still inside the current job.
    pending: AtomicUsize,
    parked: Vec<AtomicBool>,
    /// When each thread ended the last job, in nanoseconds since `base`; kept by adaptive pools only.
    ends: Vec<End>,
    base: Option<Instant>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// On a cache line of its own: every thread writes one at the end of every job.
#[derive(Default)]
#[repr(align(64))]
struct End(AtomicU64);

/// A fixed set of threads. The calling thread is thread 0.
///
/// An adaptive pool does without a thread for a while when another process holds its core: a job then waits for that
/// thread whole time slices long, and fewer threads are faster. Results never depend on the number of threads.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Threads of the next job.
    active: AtomicUsize,
    /// One job at a time; and what past jobs tell, in an adaptive pool.
    gate: Mutex<Option<Watch>>,
}

/// All threads of a pool of `threads`.
fn everyone(threads: usize) -> u32 {
    if threads >= MOST_MASKED { u32::MAX } else { (1 << threads) - 1 }
}

impl Pool {
    /// Starts `threads - 1` workers, all of which take part in every job; with `pin`, worker `i` asks for the i-th CPU it
    /// is allowed to use.
    pub fn new(threads: usize, pin: bool) -> Pool {
        Self::start(threads, pin, false)
    }

    /// As [`Pool::new`], but adaptive.
    pub fn adaptive(threads: usize, pin: bool) -> Pool {
        Self::start(threads, pin, (2..=MOST_MASKED).contains(&threads))
    }

    fn start(threads: usize, pin: bool, adaptive: bool) -> Pool {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(u64::from(everyone(threads))),
            job: AtomicPtr::new(std::ptr::null_mut()),
            pending: AtomicUsize::new(0),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            ends: (0..threads).map(|_| End::default()).collect(),
            base: adaptive.then(Instant::now),
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
        let gate = Mutex::new(adaptive.then(|| Watch::new(threads)));
        Pool { shared, workers, active: AtomicUsize::new(threads), gate }
    }

    /// Threads of the next job: what it should be divided by. Between two jobs the number does not change.
    pub fn threads(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Threads there are, at work or not.
    pub fn capacity(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread)` on every active thread, numbered from 0 (the caller), and returns when all have finished.
    /// A panic in any of them is resumed here after the others are done; the pool stays usable.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let mut watch = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let start = shared.now();
        // SAFETY: only the lifetime changes; workers are done with it when `pending` reaches 0, before this returns.
        let job_ref: &'static Job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Job>(job) };
        let fat: *const &'static Job = &raw const job_ref;
        shared.job.store(fat.cast_mut().cast(), Ordering::Relaxed);
        shared.pending.store(self.threads() - 1, Ordering::Relaxed);
        // SeqCst pairs with the worker's parked store and epoch load: one of the two sees the other.
        let mask = shared.epoch.fetch_add(1 << 32, Ordering::SeqCst) as u32;
        for (index, worker) in self.workers.iter().enumerate() {
            if takes_part(mask, index + 1) && shared.parked[index + 1].swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        shared.ends[0].0.store(shared.now(), Ordering::Relaxed);
        let mut spins = 0u32;
        while shared.pending.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS * 4 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        if let Some(watch) = watch.as_mut() {
            self.learn(watch, start, mask);
        }
        let worker_panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        if let Some(payload) = worker_panic {
            resume_unwind(payload);
        }
    }

    /// Chooses the threads of the next job from how this one ended.
    fn learn(&self, watch: &mut Watch, start: u64, mask: u32) {
        let ends = &self.shared.ends;
        let taking_part = || (0..ends.len()).filter(|&t| takes_part(mask, t));
        let end = |t: usize| ends[t].0.load(Ordering::Relaxed);
        let first_end = taking_part().map(end).min().unwrap_or(start).max(start);
        let slowest = taking_part().max_by_key(|&t| end(t)).unwrap_or(0);
        let last_end = end(slowest).max(first_end);
        let all = everyone(ends.len());
        let next = match watch.note(watch::Job { start, first_end, last_end, slowest }) {
            Verdict::Continue => return,
            Verdict::Restore => all,
            // The caller cannot be left out: when its core is taken, any worker makes room for it to move.
            Verdict::Drop(thread) => {
                let victim = if thread == 0 { taking_part().next_back().unwrap_or(0) } else { thread };
                mask & !(1 << victim) | 1
            }
        };
        // No job runs now, and workers that wait look at the mask only when the job's number changes.
        self.shared.epoch.fetch_xor(u64::from(mask ^ next), Ordering::SeqCst);
        self.active.store((next & all).count_ones() as usize, Ordering::Relaxed);
    }
}

impl Shared {
    /// Nanoseconds on the pool's clock; 0 where nobody asks.
    fn now(&self) -> u64 {
        self.base.map_or(0, |base| base.elapsed().as_nanos() as u64)
    }
}

fn takes_part(mask: u32, thread: usize) -> bool {
    thread >= MOST_MASKED || mask >> thread & 1 == 1
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1 << 32, Ordering::SeqCst);
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
    let mut patience = SPINS;
    loop {
        let now = wait(shared, index, seen, &mut patience);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        seen = (now >> 32) as u32;
        let mask = now as u32;
        if !takes_part(mask, index) {
            continue;
        }
        // Numbers of the threads that take part have no gaps.
        let number =
            if index < MOST_MASKED { (mask & ((1 << index) - 1)).count_ones() as usize } else { index };
        let fat: *const &'static Job = shared.job.load(Ordering::Relaxed).cast_const().cast();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: `run` keeps the reference alive until `pending` reaches 0, which happens after this call.
            let job: &'static Job = unsafe { *fat };
            job(number);
        }));
        if let Err(payload) = outcome {
            *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
        }
        shared.ends[index].0.store(shared.now(), Ordering::Relaxed);
        shared.pending.fetch_sub(1, Ordering::Release);
    }
}

/// Waits for a job other than number `seen` and returns its epoch. A worker that was left out parks at once, others after
/// `patience` pauses, which become more or fewer by what a wait teaches.
fn wait(shared: &Shared, index: usize, seen: u32, patience: &mut u32) -> u64 {
    let mut spins = 0u32;
    loop {
        let now = shared.epoch.load(Ordering::SeqCst);
        if (now >> 32) as u32 != seen {
            return now;
        }
        spins += 1;
        if spins < *patience && takes_part(now as u32, index) {
            std::hint::spin_loop();
            continue;
        }
        let start = Instant::now();
        shared.parked[index].store(true, Ordering::SeqCst);
        if (shared.epoch.load(Ordering::SeqCst) >> 32) as u32 == seen && !shared.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        shared.parked[index].store(false, Ordering::SeqCst);
        *patience = if start.elapsed() < SOON { PATIENT_SPINS } else { SPINS };
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
    fn a_thread_whose_core_is_taken_is_left_out_and_comes_back() {
        let pool = Pool::adaptive(3, false);
        let slow_runs = AtomicUsize::new(0);
        let job = |_: usize| {
            if std::thread::current().name() == Some("hob-cpu-1") {
                slow_runs.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        };
        // Whether the other worker rests too is up to what else runs on this machine.
        let mut fewest = 3;
        for _ in 0..200 {
            pool.run(&job);
            fewest = fewest.min(pool.threads());
        }
        assert!(fewest < 3 && slow_runs.load(Ordering::Relaxed) < 200, "the slow thread is left out");
        let units = AtomicUsize::new(0);
        while pool.threads() < 3 {
            // Threads are numbered without a gap while one is missing.
            pool.run(&|t| {
                assert!(t < pool.threads());
                units.fetch_add(1, Ordering::Relaxed);
            });
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(units.load(Ordering::Relaxed) > 0);
        assert_eq!(pool.capacity(), 3);
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
