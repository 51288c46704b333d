//! From a prompt to a reply: `Runtime` (the process and its device), `Engine` (one loaded model), `Session` (one timeline).
//!
//! A request's life is three verbs: *schedule* chooses the rows of the next batch, *run* makes one forward pass, *settle*
//! samples, finds ends and emits text. This crate must not know HTTP, terminals, nor any architecture.
#![forbid(unsafe_code)]

mod engine;
mod error;
mod job;
mod outcome;
mod request;
mod runtime;
mod sampler;
mod session;
mod step;
mod stop;

pub use engine::{Engine, Rejected};
pub use error::{EngineError, Result};
pub use job::{Event, Finished, JobId};
pub use outcome::{Figures, Finish, Outcome};
pub use request::{Cancel, MAX_BIASES, MAX_STOP_BYTES, MAX_STOPS, Prompt, Request, Sampling, Segment};
pub use runtime::{Runtime, RuntimeConfig};
pub use session::{Front, Session, Synced};
