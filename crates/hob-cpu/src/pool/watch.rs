//! Judges from the ends of jobs whether another process holds one of the cores, and for how long to do without it.
//!
//! All threads of a job end within a few microseconds of each other unless one was not running: chunks even out
//! smaller differences. A thread that lost its core ends whole time slices later, and all others wait for it. Owns
//! numbers only; it must not know threads or clocks.

/// A difference between the first and the last end that no imbalance of work explains: part of a time slice.
const SLICE_NANOS: u64 = 400_000;
/// Work observed before a verdict.
const WINDOW_NANOS: u64 = 30_000_000;
/// Share of the window spent waiting above which doing without the slow thread is faster. Two threads that wait half of
/// the time are as fast as one.
const LOST_PERCENT: u64 = 20;
/// How long a core is left alone after the first verdict; doubled when it is still taken afterwards.
const REST_NANOS: u64 = 250_000_000;
const LONGEST_REST_NANOS: u64 = 4_000_000_000;

/// One finished job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    /// When it began, and when the first and the last of its threads ended, in nanoseconds of one clock.
    pub start: u64,
    pub first_end: u64,
    pub last_end: u64,
    /// The thread that ended last.
    pub slowest: usize,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Continue,
    /// Leave this thread out.
    Drop(usize),
    /// Use all threads again.
    Restore,
}

/// Everything remembered of past jobs.
#[derive(Debug)]
pub(super) struct Watch {
    total: u64,
    /// Time waited, by the thread waited for.
    lost: Vec<u64>,
    rest: u64,
    /// When to use all threads again.
    resting_until: Option<u64>,
    /// Since when all threads are used.
    restored_at: u64,
}

impl Watch {
    pub fn new(threads: usize) -> Watch {
        Watch { total: 0, lost: vec![0; threads], rest: REST_NANOS, resting_until: None, restored_at: 0 }
    }

    /// Takes note of a job; the verdict holds from the next one on.
    pub fn note(&mut self, job: Job) -> Verdict {
        let (span, gap) = (job.last_end - job.start, job.last_end - job.first_end);
        self.total += span;
        if gap > SLICE_NANOS && gap * 10 > span * 3 {
            self.lost[job.slowest] += gap;
        }
        if self.total >= WINDOW_NANOS {
            let (total, lost) = (self.total, self.lost.iter().sum::<u64>());
            let worst = (0..self.lost.len()).max_by_key(|&t| self.lost[t]).unwrap_or(0);
            self.forget();
            if lost * 100 > total * LOST_PERCENT {
                return self.drop(worst, job.last_end);
            }
        }
        if self.resting_until.is_some_and(|until| job.last_end >= until) {
            self.resting_until = None;
            self.restored_at = job.last_end;
            self.forget();
            return Verdict::Restore;
        }
        Verdict::Continue
    }

    fn drop(&mut self, thread: usize, now: u64) -> Verdict {
        let relapse = self.restored_at > 0 && now - self.restored_at < 4 * WINDOW_NANOS;
        self.rest = if relapse { (self.rest * 2).min(LONGEST_REST_NANOS) } else { REST_NANOS };
        self.resting_until = Some(now + self.rest);
        Verdict::Drop(thread)
    }

    fn forget(&mut self) {
        self.total = 0;
        self.lost.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs jobs of 1 ms in which `slow` ends `late` nanoseconds after the others; gives the first verdict that is not
    /// to continue, and when.
    fn until_verdict(watch: &mut Watch, now: &mut u64, slow: usize, late: u64) -> Verdict {
        for _ in 0..20_000 {
            let job = Job {
                start: *now,
                first_end: *now + 1_000_000,
                last_end: *now + 1_000_000 + late,
                slowest: slow,
            };
            *now = job.last_end;
            match watch.note(job) {
                Verdict::Continue => {}
                verdict => return verdict,
            }
        }
        Verdict::Continue
    }

    #[test]
    fn uneven_work_alone_never_drops_a_thread() {
        let (mut watch, mut now) = (Watch::new(2), 1);
        assert_eq!(until_verdict(&mut watch, &mut now, 1, 300_000), Verdict::Continue);
        // Long jobs may be uneven by more than a slice, as long as it is a small part of them.
        for _ in 0..1000 {
            let job = Job { start: now, first_end: now + 9_000_000, last_end: now + 11_000_000, slowest: 1 };
            now = job.last_end;
            assert_eq!(watch.note(job), Verdict::Continue);
        }
    }

    #[test]
    fn a_thread_that_keeps_losing_its_core_rests_ever_longer_and_comes_back() {
        let (mut watch, mut now) = (Watch::new(4), 1);
        let mut rests = Vec::new();
        for _ in 0..7 {
            assert_eq!(until_verdict(&mut watch, &mut now, 2, 3_000_000), Verdict::Drop(2));
            let dropped = now;
            assert_eq!(until_verdict(&mut watch, &mut now, 0, 0), Verdict::Restore);
            rests.push((now - dropped) / 1_000_000);
        }
        assert_eq!(rests, [250, 500, 1000, 2000, 4000, 4000, 4000]);
        // A quiet time makes the next rest short again.
        for _ in 0..1000 {
            let job = Job { start: now, first_end: now + 1_000_000, last_end: now + 1_000_000, slowest: 0 };
            now = job.last_end;
            assert_eq!(watch.note(job), Verdict::Continue);
        }
        assert_eq!(until_verdict(&mut watch, &mut now, 2, 3_000_000), Verdict::Drop(2));
        let dropped = now;
        assert_eq!(until_verdict(&mut watch, &mut now, 0, 0), Verdict::Restore);
        assert_eq!((now - dropped) / 1_000_000, 250);
    }
}
