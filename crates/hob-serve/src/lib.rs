//! HTTP in front of an engine: OpenAI shapes, guards, limits, server-sent events.
//!
//! The way of a request: `server` accepts, `stream` keeps the deadlines of the connection, `guard` lets only own names
//! and keys through, `chat` reads and checks the body with `openai`, waits in `queue` for the engine's thread
//! (`worker`), and answers in one piece or through `sse`. This crate must not know tensors.
#![forbid(unsafe_code)]

mod api_error;
mod chat;
mod error;
mod guard;
mod json;
mod openai;
mod options;
mod queue;
mod reply;
mod routes;
mod server;
mod sse;
mod stream;
mod worker;

pub use error::{Result, ServeError};
pub use options::{Limits, ServeOptions};
pub use server::{Server, serve};
