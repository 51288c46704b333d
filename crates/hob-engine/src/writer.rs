//! The one thread that writes to the store: the engine hands it images and goes on. It must not know models.
//!
//! What waits is bounded in bytes. Whatever goes wrong on disk costs no reply: the writer leaves off for a while and
//! begins a new *epoch*, in which sessions look up what is really stored before they hand over more.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hob_model::disk::{DiskStore, Identity, Refusal};

use crate::error::{EngineError, Result};

/// Longest time that what was appended waits for its fsync.
const SYNC_EVERY: Duration = Duration::from_secs(2);
/// After an error of the disk, or a budget that is used up.
const REST: Duration = Duration::from_secs(10);

/// Something to be stored.
pub(crate) struct Entry {
    /// The chain from position 0 to the entry's end.
    pub tokens: Vec<u32>,
    pub what: What,
}

pub(crate) enum What {
    /// Image of the positions from here to the chain's end.
    Fragment { from: usize, image: Vec<u8> },
    /// Recurrent state at the chain's end.
    Snapshot { state: Vec<u8>, turn_end: bool },
}

impl Entry {
    fn bytes(&self) -> usize {
        let payload = match &self.what {
            What::Fragment { image, .. } => image.len(),
            What::Snapshot { state, .. } => state.len(),
        };
        payload + self.tokens.len() * size_of::<u32>()
    }
}

/// See the module. Dropping it writes what waits, for [`LAST_WORDS`] at most.
pub(crate) struct Writer {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

/// How long the end may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

struct Desk {
    inner: Mutex<Inner>,
    /// Something came, or is to end.
    wake: Condvar,
    /// Something was taken away.
    space: Condvar,
    most_bytes: usize,
}

struct Inner {
    queue: VecDeque<Entry>,
    /// Of the queue and of the entry in hand.
    bytes: usize,
    busy: bool,
    epoch: u64,
    /// Nothing is taken until then.
    resting: Option<Instant>,
    closing: bool,
}

impl Writer {
    /// Starts the thread.
    pub fn start(store: Arc<DiskStore>, identity: Identity, most_bytes: usize) -> Result<Writer> {
        let inner =
            Inner { queue: VecDeque::new(), bytes: 0, busy: false, epoch: 0, resting: None, closing: false };
        let desk = Desk { inner: Mutex::new(inner), wake: Condvar::new(), space: Condvar::new(), most_bytes };
        let desk = Arc::new(desk);
        let work = Arc::clone(&desk);
        let thread = std::thread::Builder::new()
            .name("hob-cache".to_owned())
            .spawn(move || work.run(&store, &identity))
            .map_err(|e| EngineError::Internal(format!("the cache's thread did not start: {e}")))?;
        Ok(Writer { desk, thread: Some(thread) })
    }

    /// Whether `bytes` more may wait, if need be after waiting for room.
    pub fn has_room(&self, bytes: usize, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut inner = self.desk.lock();
        loop {
            let now = Instant::now();
            if inner.resting.is_some_and(|until| now < until) {
                return false;
            }
            // One entry is always taken, however large.
            if inner.bytes == 0 || inner.bytes + bytes <= self.desk.most_bytes {
                return true;
            }
            if now >= until {
                return false;
            }
            let waited = self.desk.space.wait_timeout(inner, until - now);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Hands an entry over; ask [`Writer::has_room`] first.
    pub fn push(&self, entry: Entry) {
        let mut inner = self.desk.lock();
        inner.bytes += entry.bytes();
        inner.queue.push_back(entry);
        drop(inner);
        self.desk.wake.notify_one();
    }

    /// Changes when something handed over was not stored.
    pub fn epoch(&self) -> u64 {
        self.desk.lock().epoch
    }

    /// Waits until everything handed over is on disk; false if that takes longer than `wait`.
    pub fn settle(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut inner = self.desk.lock();
        while inner.busy || !inner.queue.is_empty() {
            let now = Instant::now();
            if now >= until {
                return false;
            }
            inner =
                self.desk.space.wait_timeout(inner, until - now).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.desk.lock().closing = true;
        self.desk.wake.notify_all();
        if self.settle(LAST_WORDS)
            && let Some(thread) = self.thread.take()
        {
            // It has nothing left to do but to end.
            let _ = thread.join();
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, store: &DiskStore, identity: &Identity) {
        let mut unsynced: Option<Instant> = None;
        while let Some(entry) = self.next(&mut unsynced, store) {
            let bytes = entry.bytes();
            // A panic must not leave the engine waiting for room.
            let wrote =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| write(store, identity, &entry)));
            let wrote = wrote.unwrap_or(Wrote::Failed);
            drop(entry);
            if wrote == Wrote::Stored {
                unsynced.get_or_insert_with(Instant::now);
            }
            let mut inner = self.lock();
            inner.bytes -= bytes;
            match wrote {
                Wrote::Stored | Wrote::Nothing => {}
                Wrote::Astray => inner.epoch += 1,
                Wrote::Failed => {
                    inner.epoch += 1;
                    inner.resting = Some(Instant::now() + REST);
                    let gone: usize = inner.queue.drain(..).map(|e| e.bytes()).sum();
                    inner.bytes -= gone;
                }
            }
            drop(inner);
            self.space.notify_all();
        }
    }

    /// The next entry; makes durable what was appended when nothing waits, or for too long. `None` is the end.
    fn next(&self, unsynced: &mut Option<Instant>, store: &DiskStore) -> Option<Entry> {
        let mut inner = self.lock();
        loop {
            let due = unsynced.is_some_and(|since| inner.queue.is_empty() || since.elapsed() >= SYNC_EVERY);
            if due {
                *unsynced = None;
                inner.busy = true;
                drop(inner);
                let flushed =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| store.flush().is_ok()));
                inner = self.lock();
                if !flushed.unwrap_or(false) {
                    inner.resting = Some(Instant::now() + REST);
                }
                continue;
            }
            if let Some(entry) = inner.queue.pop_front() {
                inner.busy = true;
                return Some(entry);
            }
            inner.busy = false;
            self.space.notify_all();
            if inner.closing {
                return None;
            }
            inner = self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[derive(Copy, Clone, PartialEq, Eq)]
enum Wrote {
    Stored,
    /// All of it was there.
    Nothing,
    /// What is stored is not what was thought; the disk is well.
    Astray,
    Failed,
}

fn write(store: &DiskStore, identity: &Identity, entry: &Entry) -> Wrote {
    let appended = match &entry.what {
        What::Fragment { from, image } => store.append(identity, &entry.tokens, *from, image),
        What::Snapshot { state, turn_end } => {
            store.append_snapshot(identity, &entry.tokens, state, *turn_end)
        }
    };
    match appended {
        Err(_) => Wrote::Failed,
        Ok(done) => match done.refused {
            None if done.bytes_written > 0 => Wrote::Stored,
            None => Wrote::Nothing,
            // Snapshots have a budget of their own; pages go on without.
            Some(Refusal::SnapshotBudget) => Wrote::Nothing,
            Some(Refusal::Gap | Refusal::Overlap) => Wrote::Astray,
            Some(_) => Wrote::Failed,
        },
    }
}
