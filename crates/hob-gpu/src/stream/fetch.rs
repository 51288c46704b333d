//! Read-backs under way: buffers that the device fills and the host reads later, used again and again. It must not know
//! what is in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use hob_compute::Result;

use super::mapping::{self, WAITING};
use crate::context::Context;

/// Bytes on their way to the host. Give it to [`super::Stream::wait`] or [`super::Stream::forget`]: until then it
/// keeps a buffer.
#[must_use]
#[derive(Debug)]
pub struct Fetch {
    slot: usize,
    bytes: usize,
    /// Dispatches that are done when it has come.
    pub(super) sent: usize,
}

struct Slot {
    buffer: wgpu::Buffer,
    size: u64,
    state: Arc<AtomicU8>,
    index: Option<wgpu::SubmissionIndex>,
    owner: Owner,
}

#[derive(Copy, Clone, PartialEq, Eq)]
enum Owner {
    None,
    /// A [`Fetch`] names it.
    Fetch,
    /// The fetch was forgotten while the device may still write; free once it is mapped. (A buffer that is asked for
    /// again before the first wish came true could be mapped too early.)
    Device,
}

/// As many buffers as were ever under way at once.
#[derive(Default)]
pub(super) struct Fetches {
    slots: Vec<Slot>,
    /// Buffers made so far.
    pub made: u64,
}

/// Read-back buffers are at least this large, so that small reads share them.
const LEAST: u64 = 64 << 10;

impl Fetches {
    /// Takes a buffer of at least `bytes` bytes to copy into; makes one only when no free one is large enough, in the
    /// place of a free one where there is any.
    pub fn take(&mut self, context: &Context, bytes: usize) -> Result<(Fetch, &wgpu::Buffer)> {
        let needed = bytes as u64;
        for slot in self.slots.iter_mut().filter(|s| s.owner == Owner::Device) {
            slot.give_back();
        }
        let fits = |(_, s): &(usize, &Slot)| s.owner == Owner::None && s.size >= needed;
        let found = self.slots.iter().enumerate().filter(fits).min_by_key(|(_, s)| s.size).map(|(i, _)| i);
        let slot = match found {
            Some(slot) => slot,
            None => self.make(context, needed.max(LEAST).next_power_of_two())?,
        };
        self.slots[slot].owner = Owner::Fetch;
        Ok((Fetch { slot, bytes, sent: 0 }, &self.slots[slot].buffer))
    }

    fn make(&mut self, context: &Context, size: u64) -> Result<usize> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let buffer = mapping::buffer(context, "read-back", size, usage, false)?;
        self.made += 1;
        let slot =
            Slot { buffer, size, state: Arc::new(AtomicU8::new(WAITING)), index: None, owner: Owner::None };
        match self.slots.iter().position(|s| s.owner == Owner::None) {
            Some(at) => {
                self.slots[at] = slot;
                Ok(at)
            }
            None => {
                self.slots.push(slot);
                Ok(self.slots.len() - 1)
            }
        }
    }

    /// The copy into the buffer was submitted.
    pub fn submitted(&mut self, fetch: &Fetch, index: wgpu::SubmissionIndex) {
        let slot = &mut self.slots[fetch.slot];
        slot.index = Some(index);
        mapping::ask(&slot.buffer, wgpu::MapMode::Read, &slot.state);
    }

    /// Waits for the bytes; `out` has [`Fetch::bytes`] of them.
    pub fn wait(&mut self, context: &Context, fetch: Fetch, out: &mut [u8]) -> Result<()> {
        let slot = &self.slots[fetch.slot];
        let arrived = mapping::wait(context, &slot.state, slot.index.clone()).and_then(|()| {
            let view = slot.buffer.slice(..fetch.bytes.next_multiple_of(4) as u64).get_mapped_range();
            let view = view.map_err(|e| context.failure(format!("a read-back is not mapped: {e}")))?;
            out.copy_from_slice(&view[..fetch.bytes]);
            Ok(())
        });
        self.forget(fetch);
        arrived
    }

    /// Nobody wants the bytes any more.
    pub fn forget(&mut self, fetch: Fetch) {
        self.slots[fetch.slot].give_back();
    }
}

impl Slot {
    fn give_back(&mut self) {
        self.owner = match self.state.load(Ordering::Acquire) {
            WAITING => Owner::Device,
            _ => {
                self.buffer.unmap();
                Owner::None
            }
        };
    }
}
