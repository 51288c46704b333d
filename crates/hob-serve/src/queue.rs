//! The line in front of the engine: bounded, first come first served, and a place vanishes the moment its owner goes.
//!
//! It must not know HTTP. A job is owned by the queue, then by the engine's thread; its [`Place`] by whoever waits.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use hob_engine::{Cancel, EngineError, Outcome, Request};
use tokio::sync::mpsc::UnboundedSender;

/// What the engine's thread tells about a job.
#[derive(Debug)]
pub(crate) enum Update {
    /// Prompt positions ready, of all.
    Prefill {
        ready: usize,
        of: usize,
    },
    Text(String),
    Done(Result<Box<Outcome>, EngineError>),
}

/// A request to be served.
pub(crate) struct Job {
    /// The rendered conversation; the request's prompt is made from it by the session that keeps the past.
    pub rendered: String,
    /// All but the prompt.
    pub request: Request,
    pub cancel: Cancel,
    /// At most a context full of text; so the engine never waits for a slow reader.
    pub updates: UnboundedSender<Update>,
}

struct Inner {
    waiting: VecDeque<(u64, Job)>,
    /// The job being served.
    running: Option<Cancel>,
    closed: bool,
    next: u64,
}

/// See the module.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
    places: usize,
}

/// Why a job was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full { waiting: usize },
    Closed,
}

/// How busy the server is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub running: usize,
    pub waiting: usize,
}

impl Queue {
    /// `places` jobs may wait besides the one that is served.
    pub fn new(places: usize) -> Arc<Self> {
        let inner = Inner { waiting: VecDeque::new(), running: None, closed: false, next: 0 };
        Arc::new(Queue { inner: Mutex::new(inner), wake: Condvar::new(), places })
    }

    /// Takes a job in.
    pub fn push(self: &Arc<Self>, job: Job) -> Result<Place, Refused> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(Refused::Closed);
        }
        let waiting = inner.waiting.len();
        if waiting + usize::from(inner.running.is_some()) > self.places {
            return Err(Refused::Full { waiting });
        }
        let id = inner.next;
        inner.next += 1;
        let cancel = job.cancel.clone();
        inner.waiting.push_back((id, job));
        drop(inner);
        self.wake.notify_one();
        Ok(Place { queue: Arc::clone(self), id, cancel })
    }

    /// The engine's thread: ends the last job and waits for the next; `None` when the queue is closed.
    pub fn next(&self) -> Option<Job> {
        let mut inner = self.lock();
        inner.running = None;
        loop {
            if inner.closed {
                return None;
            }
            if let Some((_, job)) = inner.waiting.pop_front() {
                inner.running = Some(job.cancel.clone());
                return Some(job);
            }
            inner = self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// No more jobs: those waiting are dropped, the running one may end by itself.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let dropped = std::mem::take(&mut inner.waiting);
        drop(inner);
        drop(dropped);
        self.wake.notify_all();
    }

    pub fn cancel_running(&self) {
        if let Some(cancel) = &self.lock().running {
            cancel.cancel();
        }
    }

    pub fn load(&self) -> Load {
        let inner = self.lock();
        Load { running: usize::from(inner.running.is_some()), waiting: inner.waiting.len() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line or at the engine. Dropping it stops the work, wherever it stands.
pub(crate) struct Place {
    queue: Arc<Queue>,
    id: u64,
    cancel: Cancel,
}

impl Place {
    /// Jobs in front of this one, counting the one being served; `None` once it is this one's turn.
    pub fn ahead(&self) -> Option<usize> {
        let inner = self.queue.lock();
        let index = inner.waiting.iter().position(|(id, _)| *id == self.id)?;
        Some(index + usize::from(inner.running.is_some()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cancel.cancel();
        let mut inner = self.queue.lock();
        let index = inner.waiting.iter().position(|(id, _)| *id == self.id);
        let job = index.and_then(|i| inner.waiting.remove(i));
        drop(inner);
        drop(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hob_engine::Prompt;
    use tokio::sync::mpsc::unbounded_channel;

    fn job(name: &str) -> Job {
        Job {
            rendered: name.to_owned(),
            request: Request::new(Prompt::default()),
            cancel: Cancel::new(),
            updates: unbounded_channel().0,
        }
    }

    #[test]
    fn jobs_come_in_order_and_the_line_is_bounded() {
        let queue = Queue::new(2);
        let a = queue.push(job("a")).unwrap();
        assert_eq!(queue.next().unwrap().rendered, "a");
        assert_eq!(a.ahead(), None);
        let b = queue.push(job("b")).unwrap();
        let c = queue.push(job("c")).unwrap();
        assert_eq!((b.ahead(), c.ahead()), (Some(1), Some(2)));
        assert_eq!(queue.push(job("d")).err(), Some(Refused::Full { waiting: 2 }));
        assert_eq!(queue.load(), Load { running: 1, waiting: 2 });
        assert_eq!(queue.next().unwrap().rendered, "b");
        assert!(queue.push(job("d")).is_ok());
    }

    #[test]
    fn an_idle_engine_takes_one_even_without_places() {
        let queue = Queue::new(0);
        let a = queue.push(job("a")).unwrap();
        assert!(queue.push(job("b")).is_err());
        drop(a);
        assert!(queue.push(job("b")).is_ok());
    }

    #[test]
    fn leaving_gives_up_the_place_or_stops_the_work() {
        let queue = Queue::new(1);
        let running = queue.push(job("a")).unwrap();
        let taken = queue.next().unwrap();
        let waiting = queue.push(job("b")).unwrap();
        assert!(queue.push(job("c")).is_err());
        drop(waiting);
        assert!(!taken.cancel.is_cancelled());
        let again = queue.push(job("d")).unwrap();
        drop(running);
        assert!(taken.cancel.is_cancelled());
        assert_eq!(again.ahead(), Some(1));
    }

    #[test]
    fn closing_wakes_the_engine_and_drops_the_waiting() {
        let queue = Queue::new(4);
        let waiter = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.next().is_none()
        });
        queue.close();
        assert!(waiter.join().unwrap());
        assert_eq!(queue.push(job("a")).err(), Some(Refused::Closed));

        let queue = Queue::new(4);
        let mut a = job("a");
        let (sender, mut receiver) = unbounded_channel();
        a.updates = sender;
        let _place = queue.push(a).unwrap();
        queue.close();
        assert!(receiver.blocking_recv().is_none(), "the job's sender is gone");
    }
}
