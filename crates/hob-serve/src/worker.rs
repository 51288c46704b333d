//! The engine's own thread: takes jobs from the queue, one at a time, and keeps one session between them so that a
//! conversation that goes on finds its prefix. It must not know HTTP.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use hob_engine::{Engine, EngineError, Event, Outcome, Prompt, Session};

use crate::error::{Result, ServeError};
use crate::queue::{Job, Queue, Update};

/// Starts the thread. It ends when the queue is closed.
pub(crate) fn start(mut engine: Engine, queue: Arc<Queue>) -> Result<JoinHandle<()>> {
    let session = engine.session()?;
    std::thread::Builder::new()
        .name("hob-engine".to_owned())
        .spawn(move || serve_jobs(&mut engine, session, &queue))
        .map_err(ServeError::Thread)
}

fn serve_jobs(engine: &mut Engine, session: Session, queue: &Queue) {
    let mut session = Some(session);
    while let Some(job) = queue.next() {
        if job.cancel.is_cancelled() {
            continue;
        }
        // The engine catches panics of its steps; this one is for everything around them.
        let result = catch_unwind(AssertUnwindSafe(|| serve_one(engine, &mut session, &job)));
        let result = result.unwrap_or_else(|_| {
            session = None;
            Err(EngineError::Panic("while a request was served".to_owned()))
        });
        // Nobody listens any more: the work is simply over.
        let _ = job.updates.send(Update::Done(result.map(Box::new)));
    }
}

fn serve_one(
    engine: &mut Engine,
    session: &mut Option<Session>,
    job: &Job,
) -> std::result::Result<Outcome, EngineError> {
    if session.is_none() {
        *session = Some(engine.session()?);
    }
    let Some(session) = session else { return Err(EngineError::ForeignSession) };
    let mut request = job.request.clone();
    request.prompt = Prompt::text(job.rendered.as_str());
    engine.generate_events(session, &request, &job.cancel, &mut |event| {
        let update = match event {
            Event::Prefill { ready, of } => Update::Prefill { ready, of },
            Event::Text(text) => Update::Text(text.to_owned()),
            Event::Done(_) => return,
        };
        if job.updates.send(update).is_err() {
            job.cancel.cancel();
        }
    })
}
