//! Short convolutions, row by row, and what finds a sequence's earlier rows: the order of every operation is fixed here.

use super::Reference;
use crate::check::recurrent as check;
use crate::{ConvForm, Result, ShortConv, SlotRows, WeightKind, math};

/// Where a tap finds its value of v; nowhere, which counts as zero, when both are `None`.
#[derive(Copy, Clone, Debug)]
pub struct History {
    /// Batch row of the value, if it is of this batch.
    pub row: Option<usize>,
    /// Row of v in the slot's state, if it is there.
    pub column: Option<usize>,
}

/// Where tap `j` of `taps` finds v for row `i` of a sequence: in the batch, in the state, or nowhere (before 0).
pub fn history(seq: &SlotRows, i: usize, j: usize, taps: usize) -> History {
    let behind = taps - 1 - j;
    if behind <= i {
        return History { row: Some(seq.row + i - behind), column: None };
    }
    if behind > seq.position + i {
        return History { row: None, column: None };
    }
    // Row c of the state lies `taps - 1 - c` positions before the sequence's first row.
    History { row: None, column: Some(i + j) }
}

impl Reference {
    pub(super) fn run_short_conv(&mut self, args: &ShortConv) -> Result<()> {
        const VERB: &str = "short_conv";
        let taps = self.weight(VERB, args.taps, WeightKind::Vector)?;
        let (x, state) = (self.shape(VERB, args.x)?, self.shape(VERB, args.state)?);
        let out = self.shape(VERB, args.out)?;
        let bias = args.bias.map(|w| self.weight(VERB, w, WeightKind::Vector)?.row(0)).transpose()?;
        let lengths = (taps.spec.cols, bias.as_ref().map(Vec::len));
        let count = check::short_conv(args, x, lengths, state, out)?;
        let (taps, dim, gated) = (taps.row(0)?, out.width, args.form == ConvForm::Gated);
        for seq in args.seqs {
            let x = self.buffers.get(VERB, args.x)?;
            let v = |row: usize, c: usize| match gated {
                true => x.row(row)[c] * x.row(row)[2 * dim + c],
                false => x.row(row)[c],
            };
            let old = self.buffers.get(VERB, args.state)?.row(seq.slot);
            let at = |i: usize, j: usize, c: usize| match history(seq, i, j, count) {
                History { row: Some(row), .. } => v(row, c),
                History { column: Some(column), .. } => old[column * dim + c],
                _ => 0.0,
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
            // What tap j of the next row would find, the newest tap aside.
            let state: Vec<f32> = (0..count - 1)
                .flat_map(|j| (0..dim).map(move |c| (j, c)))
                .map(|(j, c)| at(seq.rows, j, c))
                .collect();
            let out = self.buffers.get_mut(VERB, args.out)?;
            rows.iter().enumerate().for_each(|(i, row)| out.row_mut(seq.row + i).copy_from_slice(row));
            self.buffers.get_mut(VERB, args.state)?.row_mut(seq.slot).copy_from_slice(&state);
        }
        Ok(())
    }
}
