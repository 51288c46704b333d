//! The f16 form of activation rows. It must not know who multiplies with it.

use hob_compute::{Buf, Result};

use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::template::Template;

const HALF: &str = include_str!("../wgsl/half.wgsl");
/// `finite_half(vec2<f32>) -> u32`: the one rule of conversion, for every kernel that writes the form.
pub(crate) const FINITE_HALF: &str = include_str!("../wgsl/finite_half.wgsl");
/// Values per lane, and lanes per workgroup.
const PIECE: usize = 8;
const LANES: usize = 128;
/// Rows of one dispatch: the limit of a grid.
const MOST_ROWS: usize = 65_535;

impl Gpu {
    /// The f16 form of rows `0..end` of a buffer, derived from the f32 rows where it is not up to date.
    pub(crate) fn halved(&mut self, verb: &'static str, buf: Buf, end: usize) -> Result<BufferId> {
        let act = self.acts.get_mut(verb, buf)?;
        let form = act.half(&mut self.stream)?;
        let (rows, width, start) = (act.rows, act.shape.width, act.half_rows);
        let aligned = width.is_multiple_of(PIECE);
        let key = KernelKey { name: "half", params: [aligned.into(), 0, 0, 0, 0, 0, 0, 0] };
        let kernel = self.stream.kernel(key, || source(aligned))?;
        if !self.stream.rehearsing {
            act.half_rows = start.max(end);
        }
        let pieces = width.next_multiple_of(32) / PIECE;
        for first in (start..end).step_by(MOST_ROWS) {
            let count = (end - first).min(MOST_ROWS);
            self.stream.dispatch(&Call {
                kernel,
                bindings: &[form, rows],
                immediates: &[first as u32, width as u32, pieces as u32],
                groups: [pieces.div_ceil(LANES) as u32, count as u32, 1],
                verb,
                bytes: (6 * count * width) as u64,
            })?;
        }
        Ok(form)
    }
}

fn source(aligned: bool) -> Source {
    let wgsl = Template::new().flag("ALIGNED", aligned).piece("finite_half", FINITE_HALF).render(HALF);
    Source { wgsl, bindings: vec![Access::Write, Access::Read] }
}
