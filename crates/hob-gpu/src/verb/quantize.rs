//! The int8 form of activations, where their producer did not write it. It must not know weights.

use hob_compute::{Buf, Result};

use crate::Gpu;
use crate::act::Int8;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::template::Template;

/// Piece `quantize_block` of a template: functions that make the int8 form of 32 values of the workgroup array that
/// value `VALUES` names. `quantize_word(at, word) -> u32` gives one of 8 words of codes, `quantize_meta(at)` the pair of
/// [`Int8`]'s `meta`.
pub(crate) const QUANTIZE_BLOCK: &str = include_str!("../wgsl/quantize_block.wgsl");

impl Gpu {
    /// The int8 form of the first `rows` rows of a buffer, made now unless it is up to date.
    ///
    /// # Errors
    /// A stale handle, no room for the form, or what the device says.
    pub(crate) fn quantized(&mut self, verb: &'static str, x: Buf, rows: usize) -> Result<Int8> {
        let act = self.acts.get_mut(verb, x)?;
        let form = act.int8(&mut self.stream)?;
        let (cols, groups, from) = (act.shape.width, act.groups(), act.rows);
        let key = KernelKey { name: "quantize", params: [0; 8] };
        let kernel = self.stream.kernel(key, source)?;
        if act.int8_rows >= rows {
            return Ok(form);
        }
        if !self.stream.rehearsing {
            act.int8_rows = rows;
        }
        self.stream.dispatch(&Call {
            kernel,
            bindings: &[form.codes, form.meta, from],
            immediates: &[cols as u32, groups as u32],
            groups: [groups.div_ceil(32) as u32, rows as u32, 1],
            verb: "quantize",
            bytes: (4 * rows * cols + 40 * rows * groups) as u64,
        })?;
        Ok(form)
    }
}

fn source() -> Source {
    let template = Template::new()
        .value("VALUES", "values")
        .flag("SHARED", false)
        .piece("quantize_block", QUANTIZE_BLOCK);
    Source {
        wgsl: template.render(include_str!("../wgsl/quantize.wgsl")),
        bindings: vec![Access::Write, Access::Write, Access::Read],
    }
}
