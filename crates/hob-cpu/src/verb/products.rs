//! States that fade and get a product of two vectors added in every row: how they stand where a sequence begins, behind
//! held rows that count. Shared by the delta rule and state spaces, whose rows do the same with the same operations.

use std::ops::Range;

use hob_compute::{Products, SlotRows};

use super::delta::recurrent::{BLOCK, update};
use super::{Parts, each_unit};
use crate::isa::Isa;
use crate::pool::Pool;

/// What is remembered of all slots.
pub struct States<'a> {
    /// `[slots, heads, key_dim, value_dim]`
    pub state: &'a mut [f32],
    /// `[slots, heads, held, record]`: a, k and u of held rows.
    pub records: &'a mut [f32],
    pub held: usize,
}

/// The same as threads see it.
#[derive(Copy, Clone)]
pub(super) struct SharedStates<'a> {
    state: Parts<'a, f32>,
    records: Parts<'a, f32>,
    held: usize,
}

impl<'a> States<'a> {
    /// Nothing.
    pub fn none() -> States<'static> {
        States { state: &mut [], records: &mut [], held: 0 }
    }

    pub(super) fn share(self) -> SharedStates<'a> {
        SharedStates { state: Parts::new(self.state), records: Parts::new(self.records), held: self.held }
    }
}

/// The state of head `h` where `seq` begins, behind accepted records, and the head's records.
///
/// # Safety
/// Nobody else has this head of this slot.
pub(super) unsafe fn caught_up<'a>(
    isa: Isa,
    shape: &Products,
    memory: &SharedStates<'a>,
    seq: &SlotRows,
    h: usize,
) -> (&'a mut [f32], &'a mut [f32]) {
    // SAFETY: by this function's contract.
    let (s, records) = unsafe { memory.heads(shape, seq.slot, h..h + 1) };
    if seq.base() == 0 && seq.rows + seq.accepted > 0 {
        s.fill(0.0);
    }
    for record in records.chunks_exact(shape.record()).take(seq.accepted) {
        let (head, u) = record.split_at(1 + shape.key_dim);
        let blocks = s.chunks_exact_mut(BLOCK * u.len()).zip(head[1..].as_chunks::<BLOCK>().0);
        for (s, k) in blocks {
            #[cfg(target_arch = "x86_64")]
            if isa >= Isa::Avx2 {
                update::<true>(s, k, head[0], u);
                continue;
            }
            update::<false>(s, k, head[0], u);
        }
    }
    (s, records)
}

impl<'a> SharedStates<'a> {
    /// Floats of a head's records.
    pub fn room(&self, shape: &Products) -> usize {
        self.held * shape.record()
    }

    /// The states and the records of neighbouring heads of a slot.
    ///
    /// # Safety
    /// Nobody else has these heads of this slot.
    pub unsafe fn heads(
        &self,
        shape: &Products,
        slot: usize,
        heads: Range<usize>,
    ) -> (&'a mut [f32], &'a mut [f32]) {
        let (first, end) = (slot * shape.heads + heads.start, slot * shape.heads + heads.end);
        let (len, room) = (shape.head(), self.room(shape));
        // SAFETY: by this function's contract.
        unsafe { (self.state.part(first * len..end * len), self.records.part(first * room..end * room)) }
    }
}

/// Moves the states of slots past accepted records.
pub fn catch_up(pool: &Pool, isa: Isa, shape: &Products, memory: States, seqs: &[SlotRows]) {
    let memory = memory.share();
    each_unit(pool, seqs.len() * shape.heads, &|_, unit| {
        // SAFETY: no two units have the same head of the same slot.
        unsafe { caught_up(isa, shape, &memory, &seqs[unit / shape.heads], unit % shape.heads) };
    });
}
