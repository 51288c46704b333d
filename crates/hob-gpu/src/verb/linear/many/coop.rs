//! The sizes of a cooperative-matrix tile and the text they give. It must not know weights or dispatches.

use hob_quant::Format;

use super::Spec;
use crate::format;
use crate::template::Template;

/// Lanes of a subgroup: a device with other subgroups has no use for these tiles.
pub(super) const SUBGROUP: usize = 32;

/// Workgroups from which a large device is kept as busy as by more of a smaller tile: of the middle tile, one for most
/// multiprocessors of an H100; of the large one, whose workgroups have half the lanes, more.
const ENOUGH: usize = 96;
const MANY: usize = 192;

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
    /// The most products for what is read: sums fill the registers.
    pub const LARGE: Tile = Tile { rows: 128, cols: 128, step: 32, sub_rows: 64, sub_cols: 64 };
    pub const MIDDLE: Tile = Tile { rows: 128, cols: 128, step: 64, sub_rows: 64, sub_cols: 32 };
    pub const SMALL: Tile = Tile { rows: 64, cols: 64, step: 64, sub_rows: 32, sub_cols: 32 };
    pub const ALL: [Tile; 3] = [Tile::SMALL, Tile::MIDDLE, Tile::LARGE];
    /// For few rows of each of many weights.
    pub const FLAT: Tile = Tile { rows: 32, cols: 128, step: 64, sub_rows: 32, sub_cols: 32 };
    pub const BROAD: Tile = Tile { rows: 64, cols: 128, step: 64, sub_rows: 32, sub_cols: 32 };

    /// The tile for some rows and outputs: the largest that gives enough workgroups for a large device.
    pub fn of(rows: usize, outputs: usize, gated: bool) -> Tile {
        let [high, wide] = Tile::LARGE.outputs(gated);
        match rows.div_ceil(high) * outputs.div_ceil(wide) {
            _ if rows <= Tile::SMALL.rows => Tile::SMALL,
            MANY.. => Tile::LARGE,
            ENOUGH.. => Tile::MIDDLE,
            _ => Tile::SMALL,
        }
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

    /// Whether codes of two steps are read together, so that no half of what memory gives at once is read twice. It
    /// pays for gated pairs (H100: 3 % with Q4_0, 13 % with Q4_K) and not for single weights (6 % lost); codes that fill
    /// more than a vector would take too many registers.
    fn pairs(&self, spec: &Spec) -> bool {
        let wide = |&format: &Format| format::is_float(format) || format == Format::Q8_0;
        spec.gated() && self.step == 32 && !spec.weights().iter().any(wide)
    }

    pub fn text(&self, spec: &Spec, coop: bool, template: Template) -> String {
        let stride = 2 * (self.step / 8 + 1);
        let threads = SUBGROUP * self.subgroups();
        let sides = if spec.gated() { 2 } else { 1 };
        let units = |count: usize| {
            assert!(count.is_multiple_of(threads), "{self:?}: {count} units for {threads} threads");
            count / threads
        };
        let sum = if coop { "coop_mat16x16<f32, C>" } else { "array<vec4<f32>, 2>" };
        let run = spec.weights().iter().map(|&f| format::scale_run(f)).min().unwrap_or(1);
        let direct = !spec.routed && spec.vectors && !spec.half_out && !spec.gated() && !spec.bias[0];
        let mut template = template
            .flag("COOP", coop)
            .flag("DIRECT", direct)
            .flag("PAIRS", self.pairs(spec))
            .flag("RUNS", run > 1)
            .value("RUN", run)
            .flag("FLOATS", format::is_float(spec.formats[0]))
            .flag("MIXED", spec.gated() && spec.formats[0] != spec.formats[1])
            .value("SUM", sum)
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
        for (name, &format) in ["a", "b"].into_iter().zip(spec.weights()) {
            let signed = format::is_signed(format);
            let block = Template::new()
                .value("W", name)
                .flag("TAIL", spec.tail)
                .flag("FLOATS", format::is_float(format))
                .flag("EXACT", format::has_half_scales(format))
                .flag("SIGNED", signed)
                .value("TAKEN", format::offset(format) + if signed { 1152 } else { 1024 })
                .render(include_str!("../../../wgsl/gemm_coop_block.wgsl"));
            template = template.piece(format!("block_{name}"), block);
        }
        template.render(include_str!("../../../wgsl/gemm_coop.wgsl"))
    }
}
