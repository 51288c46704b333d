//! How products of few rows are cut: lanes, teams, weight rows at a time, from what is known of the device.
//! It must not know what a kernel looks like.

use hob_compute::{ComputeError, Result};

use super::kernel::Kind;
use crate::{AdapterFacts, Gpu, format};

/// Bytes of workgroup memory that the sums may take.
const SUM_BYTES: usize = 16 << 10;
/// Outputs of a block of the int8 form.
const BLOCK: usize = 32;

/// How the work is cut; all are powers of two.
#[derive(Copy, Clone, Debug)]
pub(super) struct Cut {
    /// Class of rows of activations.
    pub columns: usize,
    /// Lanes of a workgroup, of a team.
    pub lanes: usize,
    pub team: usize,
    /// Weight rows that a team multiplies at once, and those that it asks for before it multiplies the first.
    pub rows: usize,
    pub batch: usize,
    /// Weight rows of a workgroup.
    pub group_rows: usize,
    /// Sums of one value that subgroups leave, at most.
    pub parts: usize,
    /// Lanes of which one knows another's values, at least: those of the smallest subgroup, or 1.
    pub spans: usize,
}

/// A cut that somebody wants to measure, in place of the rule's. All are powers of two. Hidden: only `examples/gemv.rs`,
/// which the rule's figures come from, and a test of all cuts have a use for it.
#[doc(hidden)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FewCut {
    /// Lanes of a workgroup, and of the team that makes an output.
    pub lanes: usize,
    pub team: usize,
    /// Weight rows that a team multiplies at once.
    pub rows: usize,
    /// Those of them that it asks for before it multiplies the first.
    pub batch: usize,
}

/// What was chosen for the last product, and what is wanted for all of them.
#[derive(Default)]
pub(crate) struct Cuts {
    wanted: Option<FewCut>,
    last: Option<FewCut>,
}

impl Gpu {
    /// Cuts all products of few rows so from now on, or by the rule again: to measure what the rule should say.
    ///
    /// # Errors
    /// A cut that this device cannot run.
    #[doc(hidden)]
    pub fn want_few_cut(&mut self, cut: Option<FewCut>) -> Result<()> {
        if let Some(cut) = cut {
            let facts = self.facts();
            let (most, subgroups) = (facts.group_lanes, facts.tier.subgroups);
            let whole = [cut.lanes, cut.team, cut.rows, cut.batch].iter().all(|n| n.is_power_of_two());
            let fits = cut.team <= cut.lanes && cut.lanes <= most && cut.rows <= 16 && cut.batch <= cut.rows;
            let parts = if subgroups { cut.team / cut.team.min(facts.least_subgroup) } else { cut.team };
            let sums = 2 * BLOCK.max(cut.lanes / cut.team.max(1) * cut.rows);
            if !whole || !fits || cut.team < 8 || 4 * sums * parts > SUM_BYTES {
                let expected = format!(
                    "powers of two, 8 <= team <= lanes <= {most}, batch <= rows <= 16, sums of {SUM_BYTES} bytes"
                );
                return Err(ComputeError::shape("linear", expected, format!("{cut:?}")));
            }
        }
        self.few_cuts.wanted = cut;
        Ok(())
    }

    /// How the last product of few rows was cut.
    #[doc(hidden)]
    pub fn last_few_cut(&self) -> Option<FewCut> {
        self.few_cuts.last
    }

    /// How to cut products of `height` weight rows in all for the next of `rows` rows.
    pub(super) fn few_cut(&mut self, kind: &Kind, height: usize, rows: usize) -> Cut {
        let facts = &self.stream.context.facts;
        let columns = columns(kind, rows);
        let chosen = self.few_cuts.wanted.unwrap_or_else(|| by_rule(kind, height, columns, facts));
        self.few_cuts.last = Some(chosen);
        chosen.whole(kind, columns, facts)
    }
}

impl FewCut {
    fn whole(self, kind: &Kind, mut columns: usize, facts: &AdapterFacts) -> Cut {
        let FewCut { lanes, team, rows, batch } = self;
        let spans = if kind.subgroups { facts.least_subgroup } else { 1 };
        let parts = team / team.min(spans);
        let at_once = lanes / team * rows;
        let group_rows = if kind.blocks_out { at_once.max(BLOCK) } else { at_once };
        let sums = if kind.gated() { 2 * group_rows } else { group_rows };
        while columns > 1 && 4 * sums * columns * parts > SUM_BYTES {
            columns /= 2;
        }
        Cut { columns, lanes, team, rows, batch, group_rows, parts, spans }
    }
}

/// The class of rows of activations of a dispatch.
fn columns(kind: &Kind, rows: usize) -> usize {
    let most = if kind.exact || !kind.subgroups { 4 } else { 16 };
    rows.min(most).next_power_of_two()
}

/// What keeps a device's memory busy: outputs times the lanes of a team, and workgroups.
struct Busy {
    lanes: usize,
    groups: usize,
}

const LARGE: Busy = Busy { lanes: 3 << 15, groups: 192 };
const SMALL: Busy = Busy { lanes: 1 << 14, groups: 16 };

/// Blocks of a row of gate and up from which a whole workgroup shares it, eight rows of each at a time, asked for in fours: a
/// layer of 28672 x 8192 takes an H100 0.9 us less so than with 128/128 x 4, gate and up alone 104.7 us with that, 108.1 with
/// 128/16 x 2, 115.1 with 512/16 x 1.
const LONG_BLOCKS: usize = 256;
/// Blocks of a row from which the other cuts of [`of_long_rows`] were seen to gain: those of the 8B.
const ROW_BLOCKS: usize = 128;

/// Figures behind it are of an H100 (Q4_0, one column, the pause of 2.4 us between dispatches in it; lanes/team x rows).
/// Teams of 16 are best where they are enough lanes: gate and up of 12288 x 4096 take 26.9 us with 512/16 x 1, 28.3 with
/// 256/16 x 2, 29.8 with 512/32 x 1; three products of 6144 x 4096 at best 10.3 us with teams of 16, 10.7 of 32, 14.0 of
/// 8. Several columns share what several rows read of the input: the same gate and up take 2 columns 27.5 us with
/// 256/16 x 4 (x 1: 34.7), 4 columns 36.0 with 256/16 x 2 (x 1: 47), 8 columns 41.8 with 256/16 x 2 (x 4: 51). Neither
/// several blocks a lane at a time nor weights read a block ahead gained anything at one column.
fn by_rule(kind: &Kind, height: usize, columns: usize, facts: &AdapterFacts) -> FewCut {
    let (outputs, matrices) = if kind.gated() { (height / 2, 2) } else { (height, 1) };
    let shared = match columns {
        1 => 1,
        2 => 8,
        _ => 4,
    };
    let mut rows = (shared / matrices).max(1);
    // A software adapter's compiler takes long over long kernels.
    if facts.software || kind.exact {
        rows = rows.min((4 / columns).max(1));
    }
    if !kind.subgroups {
        return FewCut { lanes: 64, team: 8, rows, batch: rows };
    }
    let most = 1 << facts.group_lanes.min(512).ilog2();
    if kind.blocks_out && !kind.gated() && !facts.software {
        return of_whole_blocks(kind, outputs, columns, facts);
    }
    let small = facts.integrated || facts.software;
    if columns == 1
        && !small
        && !kind.exact
        && let Some(cut) = of_long_rows(kind, outputs)
    {
        return cut;
    }
    let busy = if small { SMALL } else { LARGE };
    let mut team = 16;
    while team < 64 && outputs * team < busy.lanes && 4 * team <= kind.blocks() {
        team *= 2;
    }
    let lanes = most.min(256);
    while rows > 1 && outputs < busy.groups * (lanes / team * rows) {
        rows /= 2;
    }
    if !kind.gated() {
        return FewCut { lanes, team, rows, batch: rows };
    }
    // All rows of a workgroup at once, as far as lanes go.
    let lanes = (BLOCK / rows * team).clamp(lanes, most);
    FewCut { lanes, team: team.min(lanes / (BLOCK / rows)), rows, batch: rows }
}

/// Cuts of one column where rows are long. Of the steps of the 8B in Q4_0 (2.654 ms) gate and up take 0.052 ms less with
/// 256/64 x 8 by 4 than with 512/16 x 1 (fewer lanes begin: 1.7 us a layer where nothing is read), q, k and v 0.020 less with
/// 128/128 x 2 than with 256/16 x 1. Scales that eight blocks share (Q4_K) gain nothing by either, nor does a single product
/// as large as the head: 11 us more.
fn of_long_rows(kind: &Kind, outputs: usize) -> Option<FewCut> {
    let (blocks, several) = (kind.blocks(), kind.formats.iter().flatten().count() > 1);
    let own_scales = kind.formats.into_iter().flatten().all(format::has_half_scales);
    if kind.gated() && outputs < LARGE.groups * BLOCK {
        return None;
    }
    match kind.gated() {
        true if blocks >= LONG_BLOCKS => {
            Some(FewCut { lanes: 128, team: 128, rows: if own_scales { 8 } else { 4 }, batch: 4 })
        }
        true if blocks >= ROW_BLOCKS && own_scales => {
            Some(FewCut { lanes: 256, team: 64, rows: 8, batch: 4 })
        }
        false if blocks >= ROW_BLOCKS && own_scales && several => {
            Some(FewCut { lanes: 128, team: 128, rows: 2, batch: 2 })
        }
        _ => None,
    }
}

/// Outputs up to which a large device has one workgroup of whole blocks for each of its parts, or fewer.
const FEW_OUTPUTS: usize = 4096;

/// A block of outputs at once. One workgroup in each part of a device wants many lanes: 4096 x 4096 and 4096 x 12288 in Q4_K
/// take a step of the 8B 0.08 of 2.75 ms less with 1024/32 x 1 and 1024/64 x 2 than with 512/128 x 8, in Q4_0 0.02 less; 1024
/// x 3072 takes 2.8 us less with 1024/32 x 1. Where there are more, many rows a lane share what it reads of the input:
/// 8192 x 28672 takes 8 us less with 512/128 x 8 than with 1024/128 x 4, 8192 x 8192 5 less than with 1024/64 x 2.
fn of_whole_blocks(kind: &Kind, outputs: usize, columns: usize, facts: &AdapterFacts) -> FewCut {
    let usual = 1 << facts.group_lanes.min(512).ilog2();
    let wide = facts.group_lanes >= 1024;
    let (lanes, mut rows) = match columns {
        1 if wide && outputs <= FEW_OUTPUTS => (1024, if kind.blocks() < LONG_BLOCKS { 1 } else { 2 }),
        1 => (usual, 8),
        4 if wide => (1024, 2),
        2..=8 => (usual, 4),
        _ => (usual, 2),
    };
    while rows > 1 && lanes / BLOCK * rows > kind.blocks() {
        rows /= 2;
    }
    FewCut { lanes, team: lanes / BLOCK * rows, rows, batch: rows }
}
