//! Mapped buffers, used again and again, through which bytes go to the device. It must not know what they are.
//!
//! `Queue::write_buffer` makes such a buffer at every call; that costs a device allocation per step and two thirds of
//! the speed of large writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use hob_compute::Result;

use super::mapping::{self, MAPPED, WAITING};
use crate::context::Context;

struct Slot {
    buffer: wgpu::Buffer,
    state: Arc<AtomicU8>,
    /// The submit that reads it.
    index: Option<wgpu::SubmissionIndex>,
}

/// Slots in a circle: the next one is always the one that was used longest ago.
pub(super) struct Ring {
    slots: Vec<Slot>,
    next: usize,
    /// Slots filled since the last submit.
    filled: usize,
}

impl Ring {
    /// `count` slots of `bytes` bytes each.
    pub fn new(context: &Context, count: usize, bytes: usize) -> Result<Ring> {
        let slot = || {
            let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
            let buffer = mapping::buffer(context, "staging", bytes as u64, usage, true)?;
            Ok(Slot { buffer, state: Arc::new(AtomicU8::new(MAPPED)), index: None })
        };
        let slots = (0..count).map(|_| slot()).collect::<Result<Vec<_>>>()?;
        Ok(Ring { slots, next: 0, filled: 0 })
    }

    /// Whether half of the slots wait for a submit: time for one, as a slot is free again only after it.
    pub fn wants_submit(&self) -> bool {
        self.filled >= self.slots.len().div_ceil(2)
    }

    /// Puts at most a slot of bytes, a multiple of 4, into the next slot; gives the buffer to copy from.
    pub fn fill(&mut self, context: &Context, bytes: &[u8]) -> Result<&wgpu::Buffer> {
        let slot = &self.slots[self.next];
        mapping::wait(context, &slot.state, slot.index.clone())?;
        let view = slot.buffer.slice(..bytes.len() as u64).get_mapped_range_mut();
        let mut view = view.map_err(|e| context.failure(format!("a staging buffer is not mapped: {e}")))?;
        view.copy_from_slice(bytes);
        drop(view);
        slot.buffer.unmap();
        slot.state.store(WAITING, Ordering::Release);
        let at = self.next;
        self.next = (self.next + 1) % self.slots.len();
        self.filled += 1;
        Ok(&self.slots[at].buffer)
    }

    /// What was filled has been submitted: the slots are mapped again once the device has read them.
    pub fn submitted(&mut self, index: &wgpu::SubmissionIndex) {
        let count = self.slots.len();
        for back in 1..=std::mem::take(&mut self.filled) {
            let slot = &mut self.slots[(self.next + count - back) % count];
            slot.index = Some(index.clone());
            mapping::ask(&slot.buffer, wgpu::MapMode::Write, &slot.state);
        }
    }
}
