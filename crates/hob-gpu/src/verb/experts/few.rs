//! Mixtures of few rows: bound by reading the experts' weights, two dispatches. The first routes the rows as well, where
//! the router's logits are all there is, and takes rows whose norm left out their factor; the second may end with the
//! norm that follows. It must not know how weights are packed.

use hob_compute::{Activation, Experts, Result, Route};
use hob_quant::Format;

use super::{Forms, GRID, Mixture, VERB, activation_key, products};
use crate::Gpu;
use crate::act::FOLDED_ROWS;
use crate::format;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::template::Template;
use crate::verb::fold::{Fold, Held};
use crate::verb::quantize::QUANTIZE_BLOCK;
use crate::verb::route::{self, Router};

/// Outputs of a block of the int8 form.
const BLOCK: usize = 32;
/// Most lanes of a workgroup: of gate and up (an H100, one row, one run each: 21.8 us with 512, timestamps in, and 23.9 with
/// 256 in loops that were not written out), of down, of down that ends with a norm.
const GATE_LANES: usize = 512;
const DOWN_LANES: usize = 256;
const FOLD_LANES: usize = 1024;
/// Lanes that share an output of down.
const DOWN_TEAM: usize = 32;
/// Most turns of a loop that are written one after the other.
const STRAIGHT: usize = 8;
/// Most rows that workgroups route beside their own work: of more rows there are more workgroups than run at once, and
/// each would route anew.
const ROUTED_ROWS: usize = 1;
/// Experts that a workgroup routes so.
const MOST_ROUTED: usize = 1024;

/// Lanes of a workgroup, and of a team that makes an output.
#[derive(Copy, Clone)]
struct Cut {
    lanes: usize,
    team: usize,
    /// Sums of one value that subgroups leave, at most.
    parts: usize,
    subgroups: bool,
    /// Lanes that are in one subgroup at least.
    spans: usize,
    /// Whether a subgroup has the eight lanes that make a block of the int8 form together.
    shared: bool,
}

/// What the kernel of gate and up is specialised by.
#[derive(Copy, Clone)]
struct Gate {
    formats: [Format; 2],
    /// Whether they multiply int8, and whether the result is written so.
    int8: [bool; 2],
    hidden8: bool,
    biased: bool,
    /// The rows lack a factor that their sums of squares tell.
    scaled: bool,
    /// Whether there is no gate.
    alone: bool,
    activation: Activation,
    cols: usize,
    outputs: usize,
    top_k: usize,
    /// The routing that is done on the way.
    router: Option<Router>,
}

/// What the kernel of down is specialised by.
#[derive(Copy, Clone)]
struct Down {
    format: Format,
    int8: bool,
    biased: bool,
    /// Whether experts lie in several buffers.
    parted: bool,
    fold: bool,
    cols: usize,
    outputs: usize,
    top_k: usize,
}

impl Gpu {
    /// Whether a checked routing may wait for the experts behind it. One whose experts are given may not: gate
    /// and up do not read those.
    pub(crate) fn hold_route(&mut self, args: &Route, experts: usize) -> bool {
        let fits =
            args.chosen.is_none() && args.rows <= ROUTED_ROWS && experts + args.rule.top_k <= MOST_ROUTED;
        if fits {
            self.held = Some(Held::Route(*args));
        }
        fits
    }

    /// Takes the routing that waits for these experts.
    pub(crate) fn take_route(&mut self, args: &Experts) -> Option<Route> {
        match self.held {
            Some(Held::Route(route)) if route.out == args.routes && route.rows == args.rows => {
                self.held = None;
                Some(route)
            }
            _ => None,
        }
    }

    pub(super) fn run_few_experts(&mut self, mixture: &Mixture, route: Option<&Route>) -> Result<()> {
        self.few_gate(mixture, route)?;
        let Mixture { args, shapes, formats: [.., down], .. } = *mixture;
        let whole = self.weights.get(VERB, args.down)?.parts.len() == 1;
        let fits = args.add && whole && shapes.down.rows.is_multiple_of(BLOCK) && args.rows <= FOLDED_ROWS;
        if fits && !self.info.exact && !format::is_float(down) {
            self.held = Some(Held::Down(*args));
            return Ok(());
        }
        self.few_down(mixture, None)
    }

    /// The second half of `experts`, with the norm that follows.
    pub(crate) fn run_down(&mut self, args: &Experts, fold: Option<&Fold>) -> Result<()> {
        let mixture = self.second_half(args)?;
        self.few_down(&mixture, fold)
    }

    fn cut(&self, lanes: usize, team: Option<usize>) -> Cut {
        let facts = &self.stream.context.facts;
        // A software adapter's compiler takes long over wide workgroups.
        let most = if facts.software { lanes.min(256) } else { lanes };
        let lanes = 1 << most.min(facts.group_lanes).ilog2();
        let team = team.unwrap_or(lanes / BLOCK);
        let subgroups = facts.tier.subgroups;
        let spans = if subgroups { facts.least_subgroup } else { 1 };
        Cut { lanes, team, parts: team / team.min(spans), subgroups, spans, shared: spans >= 8 }
    }

    fn few_gate(&mut self, mixture: &Mixture, route: Option<&Route>) -> Result<()> {
        let Mixture { args, shapes, formats: [gate, up, _], squares, .. } = *mixture;
        let int8 = |f| mixture.x.int8.is_some() && !format::is_float(f);
        let router = route.map(|route| self.router(route)).transpose()?;
        let kind = Gate {
            formats: [gate, up],
            int8: [gate, up].map(int8),
            hidden8: mixture.hidden.int8.is_some(),
            biased: mixture.biases.is_some(),
            scaled: squares.is_some(),
            alone: mixture.alone,
            activation: args.activation,
            cols: shapes.gate.width,
            outputs: shapes.gate.rows,
            top_k: args.top_k,
            router: router.as_ref().map(|found| found.0),
        };
        let cut = self.cut(GATE_LANES, None);
        let kernel = self.stream.kernel(kind.key(), || kind.source(&cut))?;
        let (pairs, outputs) = (args.rows * args.top_k, kind.outputs);
        let rule = route.map(|route| route.rule);
        let eps =
            [mixture.norm_eps, rule.and_then(|r| r.normalize).unwrap_or(0.0), rule.map_or(1.0, |r| r.scale)];
        for ([gate, up], experts) in self.gate_parts(mixture)? {
            let mut bindings = vec![mixture.routes, gate.weights, up.weights];
            bindings.extend(mixture.x.buffers());
            bindings.extend(squares);
            bindings.extend(mixture.biases.into_iter().flat_map(|[gate, up, _]| [gate, up]));
            bindings.extend(router.iter().flat_map(|found| found.1.iter().copied()));
            bindings.extend(mixture.hidden.buffers());
            let sizes = [pairs, shapes.count, experts.start, experts.end, gate.first, up.first];
            let mut words = [0; 9];
            words.iter_mut().zip(sizes).for_each(|(word, n)| *word = n as u32);
            words[6..].iter_mut().zip(eps).for_each(|(word, x)| *word = x.to_bits());
            let across = outputs.div_ceil(BLOCK) + usize::from(route.is_some());
            let groups = [across, pairs.min(GRID), pairs.div_ceil(GRID)];
            self.stream.dispatch(&Call {
                kernel,
                bindings: &bindings,
                immediates: &words,
                groups: groups.map(|n| n as u32),
                verb: VERB,
                bytes: self.expert_bytes(mixture, [mixture.gate(), args.up])?
                    / if mixture.alone { 2 } else { 1 },
            })?;
        }
        Ok(())
    }

    fn few_down(&mut self, mixture: &Mixture, fold: Option<&Fold>) -> Result<()> {
        let Mixture { args, shapes, formats: [_, _, down], .. } = *mixture;
        let parts = self.expert_parts(args.down, shapes.down.rows)?;
        let kind = Down {
            format: down,
            int8: mixture.hidden.int8.is_some(),
            biased: mixture.biases.is_some(),
            parted: parts.len() > 1,
            fold: fold.is_some(),
            cols: shapes.down.width,
            outputs: shapes.down.rows,
            top_k: args.top_k,
        };
        let cut = match fold {
            Some(_) => self.cut(FOLD_LANES, None),
            None => self.cut(DOWN_LANES, Some(DOWN_TEAM)),
        };
        let kernel = self.stream.kernel(kind.key(), || kind.source(&cut))?;
        for (i, part) in parts.into_iter().enumerate() {
            let mut bindings = vec![mixture.routes, part.weights];
            bindings.extend(mixture.hidden.buffers());
            bindings.extend(mixture.biases.map(|[.., down]| down));
            bindings.push(mixture.out);
            if let Some(Fold { weight, rows, int8, squares }) = fold {
                bindings.extend([*weight, *rows, int8.codes, int8.meta, *squares]);
            }
            let add = args.add || i > 0;
            let sizes = [args.rows, shapes.count, part.first, part.end, part.first, add.into()];
            let across = kind.outputs.div_ceil(cut.lanes / cut.team);
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

/// Declarations of buffers, bound in the order in which they are added.
#[derive(Default)]
struct Bindings {
    text: String,
    accesses: Vec<Access>,
}

impl Bindings {
    fn add(&mut self, on: bool, access: Access, name: &str, element: &str) {
        if on {
            let mode = if access == Access::Read { "read" } else { "read_write" };
            let at = self.accesses.len();
            self.text +=
                &format!("@group(0) @binding({at}) var<storage, {mode}> {name}: array<{element}>;\n");
            self.accesses.push(access);
        }
    }

    fn input(&mut self, forms: Forms) {
        self.add(forms.int8, Access::Read, "x_codes", "vec4<u32>");
        self.add(forms.int8, Access::Read, "x_meta", "vec2<u32>");
        self.add(forms.rows, Access::Read, "x", "f32");
    }
}

impl Cut {
    fn template(&self, template: Template) -> Template {
        template
            .flag("SUBGROUPS", self.subgroups)
            .flag("SHARED", self.shared)
            .value("TEAM", self.team)
            .value("LANES", self.lanes)
            .value("PARTS", self.parts)
            .value("VALUES", "values")
            .piece("lanes", include_str!("../../wgsl/lanes.wgsl"))
            .piece("team_sum", include_str!("../../wgsl/expert_team.wgsl"))
            .piece("quantize_block", QUANTIZE_BLOCK)
    }

    /// Whether a team goes over `count` blocks in few whole turns, and in how many.
    fn turns(&self, count: usize, template: Template) -> Template {
        let turns = count / self.team;
        let straight = count.is_multiple_of(self.team) && (1..=STRAIGHT).contains(&turns);
        template.flag("STRAIGHT", straight).value("TURNS", turns)
    }
}

impl Gate {
    fn key(&self) -> KernelKey {
        let [gate, up] = self.formats.map(|f| f.ggml_id());
        let [activation, alpha, limit] = activation_key(self.activation);
        let flags = self.int8.into_iter().chain([self.hidden8, self.biased, self.scaled, self.alone]);
        let flags = flags.fold(activation, |bits, on| bits << 1 | u32::from(on));
        let router = self.router.map_or(0, |router| router.code());
        let params = [
            gate | up << 16,
            flags,
            self.cols as u32,
            self.outputs as u32,
            self.top_k as u32,
            router,
            alpha,
            limit,
        ];
        KernelKey { name: "expert gate", params }
    }

    fn source(&self, cut: &Cut) -> Source {
        let ([gate, up], [gate8, up8]) = (self.formats, self.int8);
        let mut bindings = Bindings::default();
        let routed = if self.router.is_some() { Access::Write } else { Access::Read };
        bindings.add(true, routed, "routes", "f32");
        bindings.add(true, Access::Read, "w_g", "vec4<u32>");
        bindings.add(true, Access::Read, "w_u", "vec4<u32>");
        bindings.input(Forms { int8: gate8 || up8, rows: !(gate8 && up8) });
        bindings.add(self.scaled, Access::Read, "squares", "f32");
        bindings.add(self.biased, Access::Read, "bias_g", "f32");
        bindings.add(self.biased, Access::Read, "bias_u", "f32");
        let [bias, scales] = self.router.map_or([false; 2], |router| router.vectors());
        bindings.add(self.router.is_some(), Access::Read, "logits", "f32");
        bindings.add(bias, Access::Read, "route_bias", "f32");
        bindings.add(scales, Access::Read, "route_scales", "f32");
        bindings.add(self.hidden8, Access::Write, "codes", "u32");
        bindings.add(self.hidden8, Access::Write, "meta_", "vec2<u32>");
        bindings.add(!self.hidden8, Access::Write, "hidden", "f32");
        let template = products(&[(gate, "g", gate8), (up, "u", up8)], self.activation)
            .flag("HIDDEN8", self.hidden8)
            .flag("BIASED", self.biased)
            .flag("SCALED", self.scaled)
            .flag("ALONE", self.alone)
            .flag("ROUTE", self.router.is_some())
            .value("COLS", self.cols)
            .value("BLOCKS", self.cols.div_ceil(32))
            .value("OUTPUTS", self.outputs)
            .value("TOP", self.top_k)
            .piece("bindings", &bindings.text);
        let template = cut.turns(self.cols.div_ceil(32), cut.template(template));
        let template = match self.router {
            Some(router) => router.template(template, cut.lanes, cut.spans),
            None => template,
        };
        Source {
            wgsl: template.render(include_str!("../../wgsl/expert_gate.wgsl")),
            bindings: bindings.accesses,
        }
    }
}

impl Down {
    fn key(&self) -> KernelKey {
        let flags = [self.int8, self.biased, self.parted, self.fold];
        let flags = flags.iter().fold(0, |bits, &on| bits << 1 | u32::from(on));
        let sizes = [self.cols, self.outputs, self.top_k].map(|n| n as u32);
        let params = [self.format.ggml_id(), flags, sizes[0], sizes[1], sizes[2], 0, 0, 0];
        KernelKey { name: if self.fold { "expert down, norm" } else { "expert down" }, params }
    }

    fn source(&self, cut: &Cut) -> Source {
        let mut bindings = Bindings::default();
        let wide = if self.fold { "vec4<f32>" } else { "f32" };
        bindings.add(true, Access::Read, "routes", "f32");
        bindings.add(true, Access::Read, "w_d", "vec4<u32>");
        bindings.input(Forms { int8: self.int8, rows: !self.int8 });
        bindings.add(self.biased, Access::Read, "bias", "f32");
        bindings.add(true, Access::Write, "out", wide);
        bindings.add(self.fold, Access::Read, "norm_weight", wide);
        bindings.add(self.fold, Access::Write, "normed", wide);
        bindings.add(self.fold, Access::Write, "codes", "u32");
        bindings.add(self.fold, Access::Write, "meta_", "vec2<u32>");
        bindings.add(self.fold, Access::Write, "squares", "f32");
        let blocks = self.cols.div_ceil(32);
        let template = products(&[(self.format, "d", self.int8)], Activation::Silu)
            .flag("BIASED", self.biased)
            .flag("PARTED", self.parted)
            .flag("FOLD", self.fold)
            .value("COLS", self.cols)
            .value("BLOCKS", blocks)
            .value("OUTPUTS", self.outputs)
            .value("TOP", self.top_k)
            .piece("bindings", &bindings.text);
        let template = cut.turns(self.top_k * blocks, cut.template(template));
        Source {
            wgsl: template.render(include_str!("../../wgsl/expert_down.wgsl")),
            bindings: bindings.accesses,
        }
    }
}

impl Gpu {
    /// What a kernel is specialised by that routes on its way, and the buffers that it reads for that.
    fn router(&self, args: &Route) -> Result<(Router, Vec<BufferId>)> {
        let (router, vectors) = route::router(self, args)?;
        let mut bindings = vec![self.acts.get(VERB, args.logits)?.rows];
        bindings.extend(vectors.into_iter().flatten());
        Ok((router, bindings))
    }
}
