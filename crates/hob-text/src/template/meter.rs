//! The budget of one rendering. A rendering has a thread of its own, and so its meter is that thread's: every
//! operator, filter and method charges it before it makes anything. Knows no template syntax.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use minijinja::{Error, ErrorKind};

use super::namespace::Namespace;
use crate::error::TextError;
use crate::limits::TemplateLimits;

/// Bytes that a list, tuple or namespace costs beyond its elements.
const CONTAINER_BYTES: u64 = 64;
/// Stack that one level of nesting is granted. Dropping a value takes 105 to 210 bytes a level (measured: maps, the
/// deepest kind, at opt-level 2), and no value can be nested deeper than containers were made.
const STACK_PER_CONTAINER: usize = 600;
/// Bytes per element of a list.
const ELEMENT_BYTES: u64 = 24;
/// Bytes per entry of a map: key, value, hash and index.
const ENTRY_BYTES: u64 = 96;

struct Meter {
    work_left: Cell<u64>,
    work_limit: Cell<u64>,
    containers_left: Cell<u64>,
    depth: Cell<usize>,
    /// Why the rendering was stopped, in this crate's words; the engine only learns that it failed.
    stopped: RefCell<Option<TextError>>,
    /// Everything that can hold a reference to itself, emptied at the end.
    namespaces: RefCell<Vec<Arc<Namespace>>>,
}

thread_local! {
    static METER: Meter = const {
        Meter {
            work_left: Cell::new(0),
            work_limit: Cell::new(0),
            containers_left: Cell::new(0),
            depth: Cell::new(0),
            stopped: RefCell::new(None),
            namespaces: RefCell::new(Vec::new()),
        }
    };
}

/// Starts the budget of this thread's rendering: `input_bytes` and `messages` are those of the conversation.
pub(super) fn start(limits: &TemplateLimits, input_bytes: u64, messages: u64) {
    let work = limits.work_bytes.saturating_add(input_bytes.saturating_mul(limits.work_per_input_byte));
    METER.with(|meter| {
        meter.work_left.set(work);
        meter.work_limit.set(work);
        let containers = limits.containers.saturating_add(messages.saturating_mul(16));
        meter.containers_left.set(containers.min((limits.stack_bytes / STACK_PER_CONTAINER) as u64));
        meter.depth.set(limits.depth);
        meter.stopped.take();
    });
}

/// Ends it: breaks reference cycles and says why the rendering was stopped, if it was.
pub(super) fn finish() -> Option<TextError> {
    METER.with(|meter| {
        meter.namespaces.take().iter().for_each(|namespace| namespace.clear());
        meter.stopped.take()
    })
}

/// The nesting at which values are compared, printed and converted.
pub(super) fn depth() -> usize {
    METER.with(|meter| meter.depth.get())
}

/// Stops the rendering with a reason of this crate.
pub(super) fn stop(reason: TextError) -> Error {
    METER.with(|meter| *meter.stopped.borrow_mut() = Some(reason));
    Error::new(ErrorKind::InvalidOperation, "stopped")
}

/// Charges `bytes` about to be made or looked at.
pub(super) fn charge(bytes: usize) -> Result<(), Error> {
    METER.with(|meter| match meter.work_left.get().checked_sub(bytes as u64) {
        Some(left) => {
            meter.work_left.set(left);
            Ok(())
        }
        None => {
            let what = format!("more than {} bytes of text and lists would be made", meter.work_limit.get());
            Err(stop(TextError::Budget { what, field: "work_bytes" }))
        }
    })
}

/// Charges a list or tuple that becomes an element of one that is charged too: many of them nest no deeper than one.
pub(super) fn charge_inner(len: usize) -> Result<(), Error> {
    charge(len.saturating_mul(ELEMENT_BYTES as usize).saturating_add(CONTAINER_BYTES as usize))
}

/// Charges a list or tuple of `len` elements about to be made.
pub(super) fn charge_list(len: usize) -> Result<(), Error> {
    charge_container(len as u64, ELEMENT_BYTES)
}

/// Charges a map of `len` entries about to be made.
pub(super) fn charge_map(len: usize) -> Result<(), Error> {
    charge_container(len as u64, ENTRY_BYTES)
}

fn charge_container(len: u64, each: u64) -> Result<(), Error> {
    METER.with(|meter| match meter.containers_left.get().checked_sub(1) {
        Some(left) => {
            meter.containers_left.set(left);
            Ok(())
        }
        None => {
            let what = "too many lists, maps and macros are made".to_owned();
            Err(stop(TextError::Budget { what, field: "containers" }))
        }
    })?;
    charge(usize::try_from(len.saturating_mul(each).saturating_add(CONTAINER_BYTES)).unwrap_or(usize::MAX))
}

/// Remembers a namespace, to be emptied at the end.
pub(super) fn remember(namespace: Arc<Namespace>) {
    METER.with(|meter| meter.namespaces.borrow_mut().push(namespace));
}

/// The error of a value nested deeper than [`depth`].
pub(super) fn too_deep() -> Error {
    let what = format!("a value is nested deeper than {} levels", depth());
    stop(TextError::Budget { what, field: "depth" })
}
