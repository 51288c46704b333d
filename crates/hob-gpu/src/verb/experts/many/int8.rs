//! Tiles of integer products, where there are no cooperative matrices. It must not know how pairs were grouped.

use hob_compute::{Activation, Result};
use hob_quant::Format;

use super::super::{Input, activation_key, products};
use super::{Mixture, Part, Slab, Tiles};
use crate::Gpu;
use crate::stream::{Access, BufferId, KernelKey, Source};
use crate::verb::quantize::QUANTIZE_BLOCK;

/// Pairs of a tile, as the kernel has it.
pub(super) const TILE: usize = 32;
/// Blocks of 32 in workgroup memory.
const DEEP: usize = 2;

/// What tiles multiply with: two weights or one, into hidden rows in int8 form or into products.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Role {
    Down,
    GateUp,
    Up,
}

/// The weights of a dispatch (of gate and up, or of down) and what they multiply and give.
struct Side<'a> {
    input: Input,
    parts: &'a [Part],
    biases: &'a [BufferId],
    out: &'a [BufferId],
    experts: std::ops::Range<usize>,
    cols: usize,
    outputs: usize,
    /// Outputs of a workgroup.
    wide: usize,
}

impl Gpu {
    pub(super) fn int8_slab(&mut self, mixture: &Mixture, slab: &Slab) -> Result<()> {
        self.sort_slab(mixture, slab, TILE)?;
        self.int8_gate(mixture, slab)?;
        self.int8_down(mixture, slab)
    }

    fn int8_gate(&mut self, mixture: &Mixture, slab: &Slab) -> Result<()> {
        let [gate, up, _] = mixture.formats;
        let activation = mixture.args.activation;
        let role = if mixture.alone { Role::Up } else { Role::GateUp };
        let (biased, [kind, alpha, limit]) = (mixture.biases.is_some(), activation_key(activation));
        let params = [gate.ggml_id(), up.ggml_id(), kind, role as u32, alpha, limit, biased.into(), 0];
        let key = KernelKey { name: "expert tile", params };
        let weights = [(gate, "a"), (up, "b")];
        let weights = if mixture.alone { &weights[..1] } else { &weights };
        let kernel = self.stream.kernel(key, || source(weights, role, activation, biased))?;
        let biases: Vec<BufferId> = mixture.biases.iter().flat_map(|&[gate, up, _]| [gate, up]).collect();
        let shape = mixture.shapes.gate;
        let out: Vec<BufferId> = mixture.hidden.buffers().collect();
        let wide = if mixture.alone { 64 } else { 32 };
        for (parts, experts) in self.gate_parts(mixture)? {
            let (input, parts, biases, out) = (mixture.x, &parts[..weights.len()], &biases, &out);
            let side =
                Side { input, parts, biases, out, experts, cols: shape.width, outputs: shape.rows, wide };
            self.int8_tiles(mixture, slab, kernel, &side)?;
        }
        Ok(())
    }

    fn int8_down(&mut self, mixture: &Mixture, slab: &Slab) -> Result<()> {
        let down = mixture.formats[2];
        let biased = mixture.biases.is_some();
        let params = [down.ggml_id(), 0, 0, Role::Down as u32, 0, 0, biased.into(), 0];
        let key = KernelKey { name: "expert tile", params };
        let kernel =
            self.stream.kernel(key, || source(&[(down, "a")], Role::Down, Activation::Silu, biased))?;
        let biases: Vec<BufferId> = mixture.biases.iter().map(|&[.., down]| down).collect();
        let shape = mixture.shapes.down;
        for part in self.expert_parts(mixture.args.down, shape.rows)? {
            let (input, out, experts) = (mixture.hidden, &[slab.buffers.products], part.first..part.end);
            let (parts, biases) = (&[part], &biases);
            let side =
                Side { input, parts, biases, out, experts, cols: shape.width, outputs: shape.rows, wide: 64 };
            self.int8_tiles(mixture, slab, kernel, &side)?;
        }
        Ok(())
    }

    fn int8_tiles(
        &mut self,
        mixture: &Mixture,
        slab: &Slab,
        kernel: crate::stream::Kernel,
        side: &Side,
    ) -> Result<()> {
        let &Side { ref experts, cols, outputs, wide, .. } = side;
        let mut bindings = vec![slab.buffers.order, slab.buffers.tiles];
        bindings.extend(side.input.buffers());
        bindings.extend(side.parts.iter().map(|part| part.weights));
        bindings.extend(side.biases);
        bindings.extend(side.out);
        let (top_k, last) = (mixture.args.top_k, &side.parts[side.parts.len() - 1]);
        let first_pair = slab.rows.start * top_k;
        let (blocks, first) = (cols.div_ceil(32), side.parts[0].first);
        let sizes = [blocks, outputs, top_k, first_pair, experts.start, experts.end, first, last.first];
        self.dispatch_expert_tiles(&Tiles {
            kernel,
            bindings,
            immediates: &sizes,
            groups: [outputs.div_ceil(wide), slab.tiles],
            bytes: slab.rows.len() * top_k * (blocks * 40 + outputs * 4),
        })
    }
}

fn source(weights: &[(Format, &str)], role: Role, activation: Activation, biased: bool) -> Source {
    let bias = 4 + weights.len();
    let out = if biased { bias + weights.len() } else { bias };
    let weights: Vec<_> = weights.iter().map(|&(format, name)| (format, name, true)).collect();
    let wgsl = products(&weights, activation)
        .flag("GATED", role == Role::GateUp)
        .flag("HIDDEN", role != Role::Down)
        .flag("BIASED", biased)
        .value("BIAS_A", bias)
        .value("BIAS_B", bias + 1)
        .value("OUT", out)
        .value("META", out + 1)
        .value("DEEP", DEEP)
        .value("VALUES", "values")
        .flag("SHARED", false)
        .piece("quantize_block", QUANTIZE_BLOCK)
        .render(include_str!("../../../wgsl/expert_tile.wgsl"));
    let mut bindings = vec![Access::Read; out];
    bindings.extend(vec![Access::Write; if role == Role::Down { 1 } else { 2 }]);
    Source { wgsl, bindings }
}
