//! From a prompt to a reply: `Runtime` (the process and its device), `Engine` (one loaded model), `Session` (one timeline).
//!
//! A request's life is three verbs: *schedule* chooses the rows of the next batch, *run* makes one forward pass, *settle*
//! samples, finds ends and emits text. This crate must not know HTTP, terminals, nor any architecture.
#![forbid(unsafe_code)]

mod cache;
mod calibrate;
mod chains;
mod engine;
mod error;
mod flight;
mod job;
mod outcome;
mod persist;
mod recall;
mod request;
mod runtime;
mod sampler;
mod session;
mod step;
mod stop;
mod stops;
mod trace;
mod transcript;
mod writer;

pub use cache::CacheConfig;
pub use calibrate::{CALIBRATION_TOKENS, Calibration, calibrate, calibration_tokens, load_measured};
pub use engine::{Engine, Rejected};
pub use error::{EngineError, Result};
pub use job::{Event, Finished, JobId};
pub use outcome::{Figures, Finish, Outcome};
pub use request::{Cancel, MAX_BIASES, MAX_STOP_BYTES, MAX_STOPS, Prompt, Request, Sampling, Segment};
pub use runtime::{Runtime, RuntimeConfig, RuntimeGpu};
pub use session::{Front, Session};
pub use trace::{Trace, TraceSummary};
pub use transcript::{Transcript, TranscriptError, TranscriptFile, Transcripts};
