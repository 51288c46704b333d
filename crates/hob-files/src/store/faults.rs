//! Tests fail the system here: every durable step (create, write, fsync, rename, ...) asks this module first.
//! Compiled for tests only (this crate's own, and others' through the feature `faults`). It must not know what is
//! stored.

use std::cell::RefCell;
use std::io;
use std::path::Path;

/// Sees the name of a step and the file it is about, before it happens; an error takes the step's place.
pub type Hook = Box<dyn FnMut(&'static str, &Path) -> io::Result<()>>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Installs `hook` for this thread, or removes it.
pub fn set(hook: Option<Hook>) {
    HOOK.set(hook);
}

pub(super) fn step(name: &'static str, path: &Path) -> io::Result<()> {
    HOOK.with_borrow_mut(|hook| hook.as_mut().map_or(Ok(()), |hook| hook(name, path)))
}
