//! Short convolutions, row by row, and what finds a sequence's earlier rows: the order of every operation is fixed here.

use super::Reference;
use super::delta::take_up_heads;
use crate::check::recurrent::{self as check, MemoryShape};
use crate::{CatchUp, ConvForm, Memory, Recurrence, Result, ShortConv, SlotRows, WeightKind, math};

/// Where a tap finds its value of v.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum History {
    /// This batch row.
    Row(usize),
    /// This record of the rows held before.
    Record(usize),
    /// This row of v in the slot's state.
    Column(usize),
    /// Before position 0, where it counts as zero.
    Nowhere,
}

/// Where tap `j` of `taps` finds v for row `i` of a sequence.
pub fn history(seq: &SlotRows, i: usize, j: usize, taps: usize) -> History {
    let behind = taps - 1 - j;
    if behind <= i {
        return History::Row(seq.row + i - behind);
    }
    // Positions before the sequence's first row.
    let before = behind - i;
    if before <= seq.accepted {
        return History::Record(seq.accepted - before);
    }
    if before > seq.position {
        return History::Nowhere;
    }
    // Column c of the state lies `taps - 1 - c` positions before the end of what it has seen.
    History::Column(i + j + seq.accepted)
}

impl Reference {
    pub(super) fn run_short_conv(&mut self, args: &ShortConv) -> Result<()> {
        const VERB: &str = "short_conv";
        let taps = self.weight(VERB, args.taps, WeightKind::Vector)?;
        let memory = MemoryShape::of(&args.memory, |buf| self.shape(VERB, buf))?;
        let (x, out) = (self.shape(VERB, args.x)?, self.shape(VERB, args.out)?);
        let bias = args.bias.map(|w| self.weight(VERB, w, WeightKind::Vector)?.row(0)).transpose()?;
        let lengths = (taps.spec.cols, bias.as_ref().map(Vec::len));
        let count = check::short_conv(args, x, lengths, memory, out)?;
        let (taps, dim, gated) = (taps.row(0)?, out.width, args.form == ConvForm::Gated);
        for seq in args.seqs {
            let x = self.buffers.get(VERB, args.x)?;
            let v = |row: usize, c: usize| match gated {
                true => x.row(row)[c] * x.row(row)[2 * dim + c],
                false => x.row(row)[c],
            };
            let (old, records) = self.memory_of(VERB, &args.memory, seq.slot)?;
            let at = |i: usize, j: usize, c: usize| match history(seq, i, j, count) {
                History::Row(row) => v(row, c),
                History::Record(record) => records[record * dim + c],
                History::Column(column) => old[column * dim + c],
                History::Nowhere => 0.0,
            };
            let mut rows = vec![vec![0f32; dim]; seq.rows];
            for (i, out) in rows.iter_mut().enumerate() {
                for (c, out) in out.iter_mut().enumerate() {
                    let taps = &taps[c * count..(c + 1) * count];
                    let first = taps[0] * at(i, 0, c);
                    let sum = (1..count).fold(first, |sum, j| taps[j].mul_add(at(i, j, c), sum));
                    let sum = bias.as_ref().map_or(sum, |bias| sum + bias[c]);
                    *out = if gated { x.row(seq.row + i)[dim + c] * sum } else { math::silu(sum) };
                }
            }
            // What tap j of the row behind the state would find, the newest tap aside.
            let end = if seq.holds() { 0 } else { seq.rows };
            let state: Vec<f32> = (0..count - 1)
                .flat_map(|j| (0..dim).map(move |c| (j, c)))
                .map(|(j, c)| at(end, j, c))
                .collect();
            let held: Vec<f32> = (0..seq.rows * dim).map(|n| v(seq.row + n / dim, n % dim)).collect();
            let out = self.buffers.get_mut(VERB, args.out)?;
            rows.iter().enumerate().for_each(|(i, row)| out.row_mut(seq.row + i).copy_from_slice(row));
            self.buffers.get_mut(VERB, args.memory.state)?.row_mut(seq.slot).copy_from_slice(&state);
            if let (true, Some(records)) = (seq.holds(), args.memory.records) {
                self.buffers.get_mut(VERB, records)?.row_mut(seq.slot)[..held.len()].copy_from_slice(&held);
            }
        }
        Ok(())
    }

    /// State and records of a slot; no records where there is no room for any.
    pub(super) fn memory_of(
        &self,
        verb: &'static str,
        memory: &Memory,
        slot: usize,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let row = |buf| Ok(self.buffers.get(verb, buf)?.row(slot).to_vec());
        Ok((row(memory.state)?, memory.records.map_or(Ok(Vec::new()), row)?))
    }

    pub(super) fn run_catch_up(&mut self, args: &CatchUp) -> Result<()> {
        const VERB: &str = "catch_up";
        let memory = MemoryShape::of(&args.memory, |buf| self.shape(VERB, buf))?;
        check::catch_up(args, memory)?;
        for seq in args.seqs.iter().filter(|s| s.accepted > 0) {
            let (mut state, records) = self.memory_of(VERB, &args.memory, seq.slot)?;
            match args.recurrence {
                Recurrence::Conv { channels, taps } => {
                    let old = state.clone();
                    for (n, value) in state.iter_mut().enumerate() {
                        let (j, c) = (n / channels, n % channels);
                        *value = match history(seq, 0, j, taps) {
                            History::Record(record) => records[record * channels + c],
                            History::Column(column) => old[column * channels + c],
                            History::Row(_) | History::Nowhere => 0.0,
                        };
                    }
                }
                Recurrence::Delta(shape) => {
                    let held = memory.held(&args.recurrence);
                    take_up_heads(&shape.products(), seq, (&mut state, &records, held));
                }
                Recurrence::Ssm(shape) => {
                    let held = memory.held(&args.recurrence);
                    take_up_heads(&shape.products(), seq, (&mut state, &records, held));
                }
            }
            self.buffers.get_mut(VERB, args.memory.state)?.row_mut(seq.slot).copy_from_slice(&state);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Commit;

    /// Four taps; the state has seen 7 positions, of 5 held rows 2 count.
    #[test]
    fn taps_reach_through_records_into_the_state() {
        let seq = SlotRows { row: 10, rows: 2, position: 9, slot: 0, accepted: 2, commit: Commit::Hold };
        let of = |i| [0, 1, 2, 3].map(|j| history(&seq, i, j, 4));
        use History::{Column, Nowhere, Record, Row};
        assert_eq!(of(0), [Column(2), Record(0), Record(1), Row(10)]);
        assert_eq!(of(1), [Record(0), Record(1), Row(10), Row(11)]);
        let start = SlotRows { position: 2, ..seq };
        assert_eq!([0, 1, 2, 3].map(|j| history(&start, 0, j, 4)), [Nowhere, Record(0), Record(1), Row(10)]);
        let plain = SlotRows::new(10, 2, 9, 0);
        assert_eq!(
            [0, 1, 2, 3].map(|j| history(&plain, 0, j, 4)),
            [Column(0), Column(1), Column(2), Row(10)]
        );
    }
}
