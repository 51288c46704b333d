//! The sizes of a cooperative-matrix tile and the text they give. It must not know weights or dispatches.

use super::Spec;
use crate::template::Template;

/// Lanes of a subgroup: a device with other subgroups has no use for these tiles.
pub(super) const SUBGROUP: usize = 32;

/// Workgroups of the large tile that keep a large device as busy as more workgroups of the small one would.
const ENOUGH: usize = 96;

/// Sizes of a tile.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    /// Activation rows and weight rows of a workgroup.
    pub rows: usize,
    pub cols: usize,
    /// Input values of a step: a multiple of 32.
    pub step: usize,
    /// Activation rows and weight rows of a subgroup.
    pub sub_rows: usize,
    pub sub_cols: usize,
}

impl Tile {
    pub const LARGE: Tile = Tile { rows: 128, cols: 128, step: 64, sub_rows: 64, sub_cols: 32 };
    pub const SMALL: Tile = Tile { rows: 64, cols: 64, step: 64, sub_rows: 32, sub_cols: 32 };
    pub const ALL: [Tile; 2] = [Tile::SMALL, Tile::LARGE];

    /// The tile for some rows and outputs: the large one where it gives enough workgroups for a large device.
    pub fn of(rows: usize, outputs: usize, gated: bool) -> Tile {
        let [high, wide] = Tile::LARGE.outputs(gated);
        let enough = rows.div_ceil(high) * outputs.div_ceil(wide) >= ENOUGH;
        if enough && rows > Tile::SMALL.rows { Tile::LARGE } else { Tile::SMALL }
    }

    /// A number that no other tile has.
    pub fn code(&self) -> u32 {
        let parts = [self.rows / 16, self.cols / 16, self.step / 16, self.sub_rows / 16, self.sub_cols / 16];
        parts.iter().fold(0, |code, &part| 64 * code + part as u32)
    }

    fn subgroups(&self) -> usize {
        (self.rows / self.sub_rows) * (self.cols / self.sub_cols)
    }

    /// Rows and columns of the output that a workgroup computes.
    pub fn outputs(&self, gated: bool) -> [usize; 2] {
        [self.rows, if gated { self.cols / 2 } else { self.cols }]
    }

    /// Bytes of workgroup memory.
    pub fn bytes(&self) -> usize {
        let sums = 64 * self.subgroups();
        16 * ((self.rows + self.cols) * (self.step / 8 + 1) + sums)
    }

    pub(super) fn text(&self, spec: &Spec, template: Template) -> String {
        let stride = 2 * (self.step / 8 + 1);
        let threads = SUBGROUP * self.subgroups();
        let sides = if spec.gated() { 2 } else { 1 };
        let units = |count: usize| {
            assert!(count.is_multiple_of(threads), "{self:?}: {count} units for {threads} threads");
            count / threads
        };
        let mut template = template
            .value("BM", self.rows)
            .value("BN", self.cols)
            .value("BK", self.step)
            .value("COLS", self.cols / sides)
            .value("WM", self.sub_rows)
            .value("WN", self.sub_cols)
            .value("WARP_COLS", self.sub_cols / sides)
            .value("WARPS_N", self.cols / self.sub_cols)
            .value("S", stride)
            .value("PIECES", self.step / 8)
            .value("PER_ROW", self.step / 32)
            .value("THREADS", threads)
            .value("SIZE_X", self.rows * stride)
            .value("SIZE_W", self.cols * stride)
            .value("SUMS", 64 * self.subgroups())
            .value("SIDES", sides)
            .value("XU", units(self.rows * self.step / 8))
            .value("WU", units(self.cols * self.step / 32))
            .value("MF", self.sub_rows / 16)
            .value("NF", self.sub_cols / 16 / sides)
            .value("KF", self.step / 16);
        for (name, format) in ["a", "b"].into_iter().zip(spec.weights()) {
            let fetch = Template::new()
                .value("W", name)
                .flag("TAIL", spec.tail)
                .flag("FLOATS", crate::format::is_float(*format))
                .render(include_str!("../../../wgsl/gemm_coop_fetch.wgsl"));
            template = template.piece(format!("fetch_{name}"), fetch);
        }
        template.render(include_str!("../../../wgsl/gemm_coop.wgsl"))
    }
}
