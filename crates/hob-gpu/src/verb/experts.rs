//! Mixtures of experts: checks, what is multiplied in which form, and which kernels run. Few rows read the experts of
//! every row (`few`); many rows are grouped by expert first (`many`). It must not know how rows were routed.

mod few;
pub(crate) mod many;
#[cfg(test)]
mod tests;

use hob_compute::check::mixture::{self as check, ExpertBufs, ExpertShapes};
use hob_compute::{Activation, Experts, Result, Route, WeightKind};
use hob_quant::Format;

use crate::Gpu;
use crate::act::FEW_ROWS;
use crate::format;
use crate::stream::BufferId;
use crate::template::Template;
use crate::verb::linear::many::Way;

const VERB: &str = "experts";
/// Most workgroups along one side of a grid; the kernels count on.
const GRID: usize = 65_535;

/// Experts of a weight in one buffer.
#[derive(Copy, Clone, Debug)]
struct Part {
    weights: BufferId,
    first: usize,
    end: usize,
}

/// A call whose arguments were checked, with buffers instead of handles.
struct Mixture<'a> {
    args: &'a Experts,
    shapes: ExpertShapes,
    /// Of gate, up and down.
    formats: [Format; 3],
    routes: BufferId,
    /// Of gate, up and down.
    biases: Option<[BufferId; 3]>,
    /// Whether experts have no gate; `up` stands in for it then.
    alone: bool,
    out: BufferId,
    /// What gate and up multiply, and what down does.
    x: Input,
    hidden: Input,
    /// The sums of squares that tell what factor the rows of `x` lack, if they do, and what its norm adds to their mean.
    squares: Option<BufferId>,
    norm_eps: f32,
}

impl Mixture<'_> {
    fn gate(&self) -> hob_compute::Weight {
        self.args.gate.unwrap_or(self.args.up)
    }
}

/// Shapes, formats and biases of experts whose arguments were checked.
type Checked = (ExpertShapes, [Format; 3], Option<[BufferId; 3]>);

/// The forms of an input that are multiplied: codes and scales, rows, or both; or the f16 form.
#[derive(Copy, Clone, Debug, Default)]
struct Input {
    int8: Option<[BufferId; 2]>,
    rows: Option<BufferId>,
    half: Option<BufferId>,
}

/// Of what tiles of many rows are made.
#[derive(Copy, Clone, Debug, PartialEq)]
enum Tiling {
    Int8,
    Coop,
    /// What cooperative matrices do, lane by lane, so that devices without them test their text.
    #[cfg(test)]
    Lanes,
}

impl Tiling {
    fn way(self) -> Way {
        match self {
            #[cfg(test)]
            Tiling::Lanes => Way::Lanes,
            _ => Way::Coop,
        }
    }
}

impl Input {
    fn buffers(&self) -> impl Iterator<Item = BufferId> {
        self.int8.into_iter().flatten().chain(self.rows)
    }
}

/// Which forms of an input a kernel binds, in this order: codes and scales, rows.
#[derive(Copy, Clone, Debug)]
struct Forms {
    int8: bool,
    rows: bool,
}

impl Gpu {
    /// Experts whose rows `route` routes, if it was not done yet.
    pub(crate) fn run_experts(&mut self, args: &Experts, route: Option<&Route>) -> Result<()> {
        let (shapes, formats, biases) = self.checked_experts(args)?;
        let tiling = self.tiling(args, &shapes, formats)?;
        let mixture = self.mixture(args, (shapes, formats), biases, tiling)?;
        match tiling {
            Some(tiling) => self.run_many_experts(&mixture, tiling),
            None => self.run_few_experts(&mixture, route),
        }
    }

    fn checked_experts(&self, args: &Experts) -> Result<Checked> {
        let weight = |w| self.weights.get(VERB, w);
        let (gate, up, down) = (args.gate.map(weight).transpose()?, weight(args.up)?, weight(args.down)?);
        let shapes = check::expert_weights(gate.map(|gate| &gate.spec), [&up.spec, &down.spec])?;
        let formats = [gate.unwrap_or(up).format, up.format, down.format];
        let [x, routes, hidden, out] =
            [args.x, args.routes, args.hidden, args.out].map(|b| self.shape(VERB, b));
        check::experts(args, &shapes, &ExpertBufs { x: x?, routes: routes?, hidden: hidden?, out: out? })?;
        Ok((shapes, formats, self.expert_biases(args, &shapes)?))
    }

    /// What the second half of experts needs of a mixture whose first half has run.
    fn second_half<'a>(&mut self, args: &'a Experts) -> Result<Mixture<'a>> {
        let (shapes, formats, biases) = self.checked_experts(args)?;
        self.behind_input(args, (shapes, formats), biases, false)
    }

    /// The tiles for many rows; none where every row reads its experts by itself.
    fn tiling(
        &mut self,
        args: &Experts,
        shapes: &ExpertShapes,
        formats: [Format; 3],
    ) -> Result<Option<Tiling>> {
        if args.rows <= FEW_ROWS || self.info.exact || shapes.count > many::MOST_EXPERTS {
            return Ok(None);
        }
        let [gate, up, down] = formats.map(format::is_float);
        #[cfg(test)]
        if self.expert_lanes && gate == up {
            return Ok(Some(Tiling::Lanes));
        }
        if gate == up && self.coop_pays()? {
            return Ok(Some(Tiling::Coop));
        }
        Ok((!(gate || up || down)).then_some(Tiling::Int8))
    }

    /// The forms that are multiplied, and the buffers.
    fn mixture<'a>(
        &mut self,
        args: &'a Experts,
        (shapes, formats): (ExpertShapes, [Format; 3]),
        biases: Option<[BufferId; 3]>,
        tiling: Option<Tiling>,
    ) -> Result<Mixture<'a>> {
        let [int8_gate, int8_up, _] = formats.map(|f| self.is_int8(f));
        let mut x = Input::default();
        let halves = tiling.is_some_and(|tiling| tiling != Tiling::Int8);
        let unscaled = self.acts.lacks(args.x);
        if halves {
            x.half = Some(self.halved(VERB, args.x, args.rows)?);
        } else {
            if int8_gate || int8_up {
                let form = match unscaled {
                    Some(_) => self.acts.any_mut(VERB, args.x)?.int8(&mut self.stream)?,
                    None => self.quantized(VERB, args.x, args.rows)?,
                };
                x.int8 = Some([form.codes, form.meta]);
            }
            if !(int8_gate && int8_up) {
                x.rows = Some(self.acts.any(VERB, args.x)?.rows);
            }
        }
        let mut mixture = self.behind_input(args, (shapes, formats), biases, halves)?;
        mixture.x = x;
        if let Some(unscaled) = unscaled {
            mixture.norm_eps = unscaled.eps;
            mixture.squares = Some(self.acts.any_mut(VERB, args.x)?.squares(&mut self.stream)?);
        }
        Ok(mixture)
    }

    fn is_int8(&self, format: Format) -> bool {
        !self.info.exact && !format::is_float(format)
    }

    /// A mixture, but for what its first half multiplies.
    fn behind_input<'a>(
        &mut self,
        args: &'a Experts,
        (shapes, formats): (ExpertShapes, [Format; 3]),
        biases: Option<[BufferId; 3]>,
        halves: bool,
    ) -> Result<Mixture<'a>> {
        let int8 = self.is_int8(formats[2]);
        let mut hidden = Input::default();
        let act = self.acts.get_mut(VERB, args.hidden)?;
        act.written();
        if halves {
            hidden.half = Some(act.half(&mut self.stream)?);
        } else if int8 {
            let form = act.int8(&mut self.stream)?;
            hidden.int8 = Some([form.codes, form.meta]);
        } else {
            hidden.rows = Some(act.rows);
        }
        let act = self.acts.get_mut(VERB, args.out)?;
        act.written();
        let out = act.rows;
        let act = self.acts.get_mut(VERB, args.routes)?;
        let routes = act.rows;
        let (x, squares, norm_eps) = (Input::default(), None, 0.0);
        let alone = args.gate.is_none();
        Ok(Mixture { args, shapes, formats, routes, biases, alone, out, x, squares, norm_eps, hidden })
    }

    fn expert_biases(&self, args: &Experts, shapes: &ExpertShapes) -> Result<Option<[BufferId; 3]>> {
        let Some(given) = args.biases else { return Ok(None) };
        let [a, b, c] = given.map(|w| self.weight(VERB, w, WeightKind::Vector));
        let loaded = [a?, b?, c?];
        check::expert_biases(shapes, loaded.map(|w| w.spec.cols))?;
        Ok(Some(loaded.map(|w| w.parts[0].buffer)))
    }

    fn expert_parts(&self, weight: hob_compute::Weight, rows: usize) -> Result<Vec<Part>> {
        let parts = &self.weights.get(VERB, weight)?.parts;
        let part = |p: &crate::weights::Part| Part {
            weights: p.buffer,
            first: p.first_row / rows,
            end: (p.first_row + p.rows) / rows,
        };
        Ok(parts.iter().map(part).collect())
    }

    /// Parts of gate and of up that have experts in common: these experts, and where the parts begin.
    fn gate_parts(&self, mixture: &Mixture) -> Result<Vec<([Part; 2], std::ops::Range<usize>)>> {
        let rows = mixture.shapes.gate.rows;
        let (gate, up) =
            (self.expert_parts(mixture.gate(), rows)?, self.expert_parts(mixture.args.up, rows)?);
        let pairs = gate.iter().flat_map(|&g| up.iter().map(move |&u| [g, u]));
        let common = pairs.map(|[g, u]| ([g, u], g.first.max(u.first)..g.end.min(u.end)));
        Ok(common.filter(|(_, experts)| !experts.is_empty()).collect())
    }
}

/// What a kernel's key says of an activation.
pub(super) fn activation_key(activation: Activation) -> [u32; 3] {
    match activation {
        Activation::Silu => [0; 3],
        Activation::GeluTanh => [1, 0, 0],
        Activation::ReluSquared => [4, 0, 0],
        Activation::ClampedSwiglu { alpha, limit, plus_one } => {
            [2 + u32::from(plus_one), alpha.to_bits(), limit.to_bits()]
        }
    }
}

/// The piece `activate`, with `gated(gate, up)` and `alone(x)`.
pub(super) fn activate(activation: Activation) -> String {
    let (alpha, limit) = match activation {
        Activation::ClampedSwiglu { alpha, limit, .. } => (alpha, limit),
        Activation::Silu | Activation::GeluTanh | Activation::ReluSquared => (1.0, f32::MAX),
    };
    Template::new()
        .flag("CLAMPED", matches!(activation, Activation::ClampedSwiglu { .. }))
        .flag("PLUS_ONE", matches!(activation, Activation::ClampedSwiglu { plus_one: true, .. }))
        .flag("GELU", activation == Activation::GeluTanh)
        .flag("RELU_SQUARED", activation == Activation::ReluSquared)
        .value("ALPHA", format!("{alpha:e}"))
        .value("LIMIT", format!("{limit:e}"))
        .render(include_str!("../wgsl/activate.wgsl"))
}

/// The pieces `unpack`, `product_S` and `activate` for some weights, each with its name and whether it multiplies int8.
fn products(weights: &[(Format, &str, bool)], activation: Activation) -> Template {
    let formats: Vec<_> = weights.iter().map(|&(format, name, _)| (format, name)).collect();
    let mut template = Template::new()
        .piece("unpack", format::unpack(&formats))
        .flag("INT8", weights.iter().any(|w| w.2))
        .flag("ROWS", weights.iter().any(|w| !w.2))
        .piece("activate", activate(activation));
    for &(_, name, int8) in weights {
        let product = Template::new().flag("INT8", int8).value("S", name);
        template = template
            .piece(format!("product_{name}"), product.render(include_str!("../wgsl/expert_product.wgsl")));
    }
    template
}
