//! Which device holds the current form of which row of a buffer. It must not move anything.

use std::ops::Range;

use crate::Buf;
use crate::check::Shape;

/// A buffer: its copies, and who of them is right.
pub(super) struct Rows {
    pub shape: Shape,
    /// By device; none where it was not used yet.
    pub on: Vec<Option<Buf>>,
    /// Of every row, a bit for each device that holds what was last written. Never none.
    fresh: Vec<u8>,
}

impl Rows {
    /// All zeros, as every device allocates them.
    pub fn new(shape: Shape, devices: usize) -> Self {
        let all = ((1u16 << devices) - 1) as u8;
        Rows { shape, on: vec![None; devices], fresh: vec![all; shape.rows] }
    }

    /// The rows there are of those asked for; the device says what is wrong with the others.
    fn within(&self, rows: Range<usize>) -> Range<usize> {
        let end = rows.end.min(self.shape.rows);
        rows.start.min(end)..end
    }

    /// Calls `found(from, rows)` for each run of `rows` that device `at` lacks and device `from` holds.
    pub fn stale(&self, rows: Range<usize>, at: usize, mut found: impl FnMut(usize, Range<usize>)) {
        let Range { start: mut row, end } = self.within(rows);
        while row < end {
            let held = self.fresh[row];
            if held & 1 << at != 0 {
                row += 1;
                continue;
            }
            let from = held.trailing_zeros();
            let lacks = |&held: &u8| held & 1 << at == 0 && held & 1 << from != 0;
            let run = self.fresh[row..end].iter().take_while(|h| lacks(h)).count();
            found(from as usize, row..row + run);
            row += run;
        }
    }

    /// Whether device `at` holds all of `rows`.
    pub fn is_current(&self, rows: Range<usize>, at: usize) -> bool {
        self.fresh[self.within(rows)].iter().all(|held| held & 1 << at != 0)
    }

    /// A device that holds a row, if it is one that has the buffer.
    pub fn holder(&self, row: usize) -> Option<usize> {
        let held = *self.fresh.get(row)?;
        (0..self.on.len()).find(|&at| held & 1 << at != 0 && self.on[at].is_some())
    }

    /// Device `at` holds `rows` too from now on.
    pub fn copied(&mut self, rows: Range<usize>, at: usize) {
        let rows = self.within(rows);
        self.fresh[rows].iter_mut().for_each(|held| *held |= 1 << at);
    }

    /// Device `at` alone holds `rows` from now on.
    pub fn written(&mut self, rows: Range<usize>, at: usize) {
        let rows = self.within(rows);
        self.fresh[rows].fill(1 << at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stale(rows: &Rows, range: Range<usize>, at: usize) -> Vec<(usize, Range<usize>)> {
        let mut found = Vec::new();
        rows.stale(range, at, |from, rows| found.push((from, rows)));
        found
    }

    #[test]
    fn only_what_was_written_elsewhere_is_stale() {
        let mut rows = Rows::new(Shape { rows: 8, width: 3 }, 3);
        assert_eq!(stale(&rows, 0..8, 2), []);
        rows.written(1..4, 0);
        rows.written(4..5, 1);
        assert_eq!(stale(&rows, 0..8, 0), [(1, 4..5)]);
        assert_eq!(stale(&rows, 0..8, 2), [(0, 1..4), (1, 4..5)]);
        assert_eq!(stale(&rows, 2..3, 2), [(0, 2..3)]);
        rows.copied(2..3, 2);
        assert_eq!(stale(&rows, 0..4, 2), [(0, 1..2), (0, 3..4)]);
        assert!(rows.is_current(0..1, 2) && rows.is_current(2..3, 2) && !rows.is_current(0..4, 2));
        // What a copy holds counts until the row is written again.
        rows.written(2..3, 1);
        assert_eq!(stale(&rows, 0..4, 2), [(0, 1..2), (1, 2..3), (0, 3..4)]);
    }

    #[test]
    fn rows_that_are_not_there_are_nobodys() {
        let mut rows = Rows::new(Shape { rows: 2, width: 1 }, 2);
        rows.written(1..9, 1);
        assert_eq!(stale(&rows, 0..usize::MAX, 0), [(1, 1..2)]);
        assert_eq!(stale(&rows, 7..9, 0), []);
        assert_eq!(rows.holder(5), None);
    }
}
