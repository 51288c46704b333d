//! Buffers that the host maps, and waiting for it. It must not know what is in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hob_compute::{ComputeError, Result};

use crate::context::Context;

/// The device may use the buffer.
pub(super) const WAITING: u8 = 0;
/// The host may.
pub(super) const MAPPED: u8 = 1;
/// Mapping was refused.
const REFUSED: u8 = 2;

/// How long the host looks again and again before it sleeps until the device is done: where a layer's rows cross to the
/// host and back, being woken takes as long as all the rest.
const SPIN: Duration = Duration::from_micros(300);

/// A buffer with a usage of its own.
///
/// # Errors
/// [`ComputeError::Memory`] when the device has no room; what went wrong on it since the last call.
pub(super) fn buffer(
    context: &Context,
    what: &str,
    size: u64,
    usage: wgpu::BufferUsages,
    mapped: bool,
) -> Result<wgpu::Buffer> {
    context.check()?;
    let scope = context.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let descriptor = wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation: mapped };
    let buffer = context.device.create_buffer(&descriptor);
    let refused = pollster::block_on(scope.pop()).is_some();
    context.check()?;
    match refused {
        true => Err(ComputeError::Memory { what: format!("{what} on {}", context.facts.name), bytes: size }),
        false => Ok(buffer),
    }
}

/// Asks for a buffer to be mapped once the device is done with it; `state` says when it is.
pub(super) fn ask(buffer: &wgpu::Buffer, mode: wgpu::MapMode, state: &Arc<AtomicU8>) {
    state.store(WAITING, Ordering::Release);
    let state = Arc::clone(state);
    buffer.slice(..).map_async(mode, move |result| {
        state.store(if result.is_ok() { MAPPED } else { REFUSED }, Ordering::Release);
    });
}

/// Waits until a buffer is mapped, of which submit `index` is the last user; later submits are not waited for.
///
/// # Errors
/// What went wrong on the device.
pub(super) fn wait(context: &Context, state: &AtomicU8, index: Option<wgpu::SubmissionIndex>) -> Result<()> {
    if state.load(Ordering::Acquire) == MAPPED {
        return Ok(());
    }
    let start = Instant::now();
    while start.elapsed() < SPIN {
        context.poll(wgpu::PollType::Poll)?;
        if state.load(Ordering::Acquire) != WAITING {
            break;
        }
        std::hint::spin_loop();
    }
    if state.load(Ordering::Acquire) == MAPPED {
        return Ok(());
    }
    context.poll(wgpu::PollType::Wait { submission_index: index, timeout: None })?;
    match state.load(Ordering::Acquire) {
        MAPPED => Ok(()),
        _ => Err(context.failure("a buffer could not be mapped".into())),
    }
}
