//! Helpers for tests, used as a dev-dependency only: guard-page buffers, a counting allocator, a seeded generator,
//! files that fail on cue, temporary folders and tiny models. It must not depend on any other crate of the workspace,
//! so that all of them can depend on it.

pub mod alloc;
pub mod faulty;
#[cfg(unix)]
pub mod guard;
pub mod rng;
pub mod temp;
pub mod tiny;
