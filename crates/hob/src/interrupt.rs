//! Ctrl-C and SIGTERM. Owns the one flag of the process: while something can be stopped with grace, the first signal
//! sets it and the second ends the process; at any other time the first one ends it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit;

/// Shared with the signal handler. Clones are the same.
#[derive(Clone, Default)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    graceful: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs the handler. Without one (a second call in one process) the default handling stays.
    pub fn install() -> Self {
        let this = Self::default();
        let handler = this.clone();
        let installed = ctrlc::set_handler(move || {
            let first = !handler.flag.swap(true, Ordering::Relaxed);
            if !(first && handler.graceful.load(Ordering::Relaxed)) {
                std::process::exit(exit::INTERRUPTED);
            }
        });
        if let Err(problem) = installed {
            crate::term::note(&format!("Ctrl-C ends hob at once here ({problem})"));
        }
        this
    }

    /// The flag, to be looked at by whatever can stop; until the guard is dropped a first signal only sets it.
    pub fn graceful(&self) -> Graceful<'_> {
        self.flag.store(false, Ordering::Relaxed);
        self.graceful.store(true, Ordering::Relaxed);
        Graceful { interrupt: self }
    }
}

/// While it lives, the first signal asks and does not kill.
pub struct Graceful<'a> {
    interrupt: &'a Interrupt,
}

impl Graceful<'_> {
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupt.flag)
    }

    pub fn was_interrupted(&self) -> bool {
        self.interrupt.flag.load(Ordering::Relaxed)
    }
}

impl Drop for Graceful<'_> {
    fn drop(&mut self) {
        self.interrupt.graceful.store(false, Ordering::Relaxed);
        self.interrupt.flag.store(false, Ordering::Relaxed);
    }
}
