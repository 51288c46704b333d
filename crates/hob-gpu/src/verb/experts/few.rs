//! Mixtures of few rows: bound by reading the experts' weights, two dispatches. It must not know how weights are packed.

use hob_compute::{Activation, Result};
use hob_quant::Format;

use super::{Forms, GRID, Mixture, VERB, activation_key, products};
use crate::Gpu;
use crate::format;
use crate::stream::{Access, Call, KernelKey, Source};
use crate::verb::quantize::QUANTIZE_BLOCK;

/// Lanes that share an output of gate and up, and one of down; powers of two.
const GATE_TEAM: usize = 8;
const DOWN_TEAM: usize = 32;
/// Lanes of a workgroup of down.
const DOWN_LANES: usize = 256;

/// What the kernel of gate and up is specialised by.
#[derive(Copy, Clone)]
struct Gate {
    formats: [Format; 2],
    /// Whether they multiply int8, and whether the result is written so.
    int8: [bool; 2],
    hidden8: bool,
    biased: bool,
    /// Whether there is no gate.
    alone: bool,
    activation: Activation,
}

impl Gpu {
    pub(super) fn run_few_experts(&mut self, mixture: &Mixture) -> Result<()> {
        self.few_gate(mixture)?;
        self.few_down(mixture)
    }

    fn few_gate(&mut self, mixture: &Mixture) -> Result<()> {
        let Mixture { args, shapes, formats: [gate, up, _], .. } = *mixture;
        let int8 = |f| mixture.x.int8.is_some() && !format::is_float(f);
        let kind = Gate {
            formats: [gate, up],
            int8: [gate, up].map(int8),
            hidden8: mixture.hidden.int8.is_some(),
            biased: mixture.biases.is_some(),
            alone: mixture.alone,
            activation: args.activation,
        };
        let kernel = self.stream.kernel(kind.key(), || kind.source())?;
        let (pairs, outputs, cols) = (args.rows * args.top_k, shapes.gate.rows, shapes.gate.width);
        for ([gate, up], experts) in self.gate_parts(mixture)? {
            let mut bindings = vec![mixture.routes, gate.weights, up.weights];
            bindings.extend(mixture.x.buffers());
            bindings.extend(mixture.biases.into_iter().flat_map(|[gate, up, _]| [gate, up]));
            bindings.extend(mixture.hidden.buffers());
            let sizes = [
                cols,
                cols.div_ceil(32),
                outputs,
                args.top_k,
                pairs,
                shapes.count,
                experts.start,
                experts.end,
                gate.first,
                up.first,
            ];
            let groups = [outputs.div_ceil(32), pairs.min(GRID), pairs.div_ceil(GRID)];
            self.stream.dispatch(&Call {
                kernel,
                bindings: &bindings,
                immediates: &sizes.map(|n| n as u32),
                groups: groups.map(|n| n as u32),
                verb: VERB,
                bytes: self.expert_bytes(mixture, [mixture.gate(), args.up])?
                    / if mixture.alone { 2 } else { 1 },
            })?;
        }
        Ok(())
    }

    fn few_down(&mut self, mixture: &Mixture) -> Result<()> {
        let Mixture { args, shapes, formats: [_, _, down], .. } = *mixture;
        let int8 = mixture.hidden.int8.is_some();
        let biased = mixture.biases.is_some();
        let params = [down.ggml_id(), int8.into(), biased.into(), 0, 0, 0, 0, 0];
        let key = KernelKey { name: "expert down", params };
        let kernel = self.stream.kernel(key, || down_source(down, int8, biased))?;
        let (outputs, cols) = (shapes.down.rows, shapes.down.width);
        for (i, part) in self.expert_parts(args.down, outputs)?.into_iter().enumerate() {
            let mut bindings = vec![mixture.routes, mixture.out, part.weights];
            bindings.extend(mixture.hidden.buffers());
            bindings.extend(mixture.biases.map(|[.., down]| down));
            let add = args.add || i > 0;
            let sizes = [
                cols,
                cols.div_ceil(32),
                outputs,
                args.top_k,
                args.rows,
                shapes.count,
                part.first,
                part.end,
                part.first,
                add.into(),
            ];
            let across = outputs.div_ceil(DOWN_LANES / DOWN_TEAM);
            let groups = [across, args.rows.min(GRID), args.rows.div_ceil(GRID)];
            self.stream.dispatch(&Call {
                kernel,
                bindings: &bindings,
                immediates: &sizes.map(|n| n as u32),
                groups: groups.map(|n| n as u32),
                verb: VERB,
                bytes: self.expert_bytes(mixture, [args.down, args.down])? / 2,
            })?;
        }
        Ok(())
    }

    /// Bytes of the experts that rows choose, of two weights; of different experts as long as there are any.
    fn expert_bytes(&self, mixture: &Mixture, weights: [hob_compute::Weight; 2]) -> Result<u64> {
        let count = mixture.shapes.count;
        let chosen = (mixture.args.rows * mixture.args.top_k).min(count);
        let [a, b] = weights.map(|w| self.weights.get(VERB, w).map(|w| w.bytes));
        Ok((a? + b?) * chosen as u64 / count as u64)
    }
}

impl Gate {
    fn key(self) -> KernelKey {
        let [gate, up] = self.formats.map(|f| f.ggml_id());
        let flags = self.int8.into_iter().chain([self.hidden8, self.biased, self.alone]);
        let flags = flags.fold(0, |bits, on| bits << 1 | u32::from(on));
        let [activation, alpha, limit] = activation_key(self.activation);
        let params = [gate, up, flags, activation, alpha, limit, 0, 0];
        KernelKey { name: "expert gate", params }
    }

    fn source(self) -> Source {
        let [gate, up] = self.formats;
        let [gate8, up8] = self.int8;
        let forms = Forms { int8: gate8 || up8, rows: !(gate8 && up8) };
        let bias = 3 + forms.bindings();
        let out = if self.biased { bias + 2 } else { bias };
        let wgsl = products(&[(gate, "g", gate8), (up, "u", up8)], self.activation)
            .flag("HIDDEN8", self.hidden8)
            .flag("ALONE", self.alone)
            .flag("BIASED", self.biased)
            .value("BIAS_G", bias)
            .value("BIAS_U", bias + 1)
            .value("TEAM", GATE_TEAM)
            .value("LANES", 32 * GATE_TEAM)
            .value("X", bias - 1)
            .value("OUT", out)
            .value("META", out + 1)
            .value("VALUES", "values")
            .flag("SHARED", false)
            .piece("quantize_block", QUANTIZE_BLOCK)
            .render(include_str!("../../wgsl/expert_gate.wgsl"));
        let mut bindings = vec![Access::Read; out];
        bindings.extend(vec![Access::Write; if self.hidden8 { 2 } else { 1 }]);
        Source { wgsl, bindings }
    }
}

fn down_source(down: Format, int8: bool, biased: bool) -> Source {
    let forms = if int8 { 2 } else { 1 };
    let wgsl = products(&[(down, "d", int8)], Activation::Silu)
        .flag("BIASED", biased)
        .value("BIAS", 3 + forms)
        .value("TEAM", DOWN_TEAM)
        .value("LANES", DOWN_LANES)
        .render(include_str!("../../wgsl/expert_down.wgsl"));
    let mut bindings = vec![Access::Read, Access::Write, Access::Read];
    bindings.extend(vec![Access::Read; forms + usize::from(biased)]);
    Source { wgsl, bindings }
}
