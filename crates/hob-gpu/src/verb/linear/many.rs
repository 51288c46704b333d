//! Many rows times matrices: which tile, on which form of the activations, and its dispatches. It must not know how rows
//! become a form, nor how formats are packed.
//!
//! A dispatch is one weight (or a gated pair) as far as one binding shows it. Dispatches of one call have no output in
//! common, so the device runs them side by side: q, k and v need not be one.

mod coop;
#[cfg(test)]
pub(crate) mod tests;
mod verdict;

use hob_compute::{Activation, Buf, Combine, Compute, Linear, Result, WeightKind};
use hob_quant::Format;

use super::Segment;
use crate::Gpu;
use crate::format;
use crate::stream::{Access, Bounds, BufferId, Call, KernelKey, Source};
use crate::template::Template;
use crate::verb::half::FINITE_HALF;
use crate::verb::tanh::tanh;

pub(crate) use coop::Tile;

const VERB: &str = "linear";
const FINISH: &str = include_str!("../../wgsl/gemm_finish.wgsl");
/// Rows and columns of the plain tiles.
const PLAIN: usize = 64;

/// How a product is computed.
#[derive(Copy, Clone, Debug, PartialEq)]
pub(crate) enum Way {
    /// Cooperative matrices on the f16 form.
    Coop,
    /// The same tiles lane by lane, so that devices without such matrices test their text.
    #[cfg(test)]
    Lanes,
    /// Integer dot products on the int8 form.
    Int8,
    /// f32 throughout.
    Float,
}

impl Way {
    /// Whether there are tiles of several kinds.
    fn tiled(self) -> bool {
        !matches!(self, Way::Int8 | Way::Float)
    }
}

/// What a kernel's text depends on, its tile apart.
#[derive(Copy, Clone, Debug, PartialEq)]
pub(crate) struct Spec {
    /// Of the weight, or of gate and up.
    pub formats: [Format; 2],
    pub combine: Combine,
    pub bias: [bool; 2],
    /// Whether the output's f16 form is written too.
    pub half_out: bool,
    /// Whether rows and parts of the output are whole vectors of 4.
    pub vectors: bool,
    /// Whether the input width is no multiple of the tile's step.
    pub tail: bool,
    /// Whether rows are pairs of a row and an expert: those of `experts`, who brings the piece `finish`.
    pub routed: bool,
}

impl Spec {
    pub fn gated(&self) -> bool {
        matches!(self.combine, Combine::Gated(_))
    }

    fn weights(&self) -> &[Format] {
        &self.formats[..if self.gated() { 2 } else { 1 }]
    }

    fn key(&self, way: Way, tile: u32) -> KernelKey {
        let name = match way {
            Way::Coop => "gemm coop",
            #[cfg(test)]
            Way::Lanes => "gemm lanes",
            Way::Int8 => "gemm int8",
            Way::Float => "gemm float",
        };
        let combine = match self.combine {
            Combine::Store => 0,
            Combine::Add => 1,
            Combine::Gated(Activation::Silu) => 2,
            Combine::Gated(_) => 3,
        };
        let flags = [self.bias[0], self.bias[1], self.half_out, self.vectors, self.tail];
        let flags = flags.iter().fold(0, |bits, &flag| 2 * bits + u32::from(flag));
        KernelKey {
            name,
            params: [self.formats[0] as u32, self.formats[1] as u32, combine, flags, tile, 0, 0, 0],
        }
    }

    /// What every tile's template needs: flags, bindings and pieces.
    pub fn template(&self, way: Way) -> (Template, Vec<Access>) {
        let (declared, bindings) = self.bindings(way);
        let names = ["a", "b"];
        let weights: Vec<_> = self.weights().iter().copied().zip(names).collect();
        let mut template = Template::new()
            .flag("GATED", self.gated())
            .flag("GELU", self.combine == Combine::Gated(Activation::GeluTanh))
            .flag("ADD", self.combine == Combine::Add)
            .flag("BIAS_A", self.bias[0])
            .flag("BIAS_B", self.bias[1])
            .flag("HALF_OUT", self.half_out)
            .flag("VECTORS", self.vectors)
            .flag("TAIL", self.tail)
            .flag("ROUTED", self.routed)
            .value("ROW_A", if self.routed { "row_a" } else { "sizes.row_a" })
            .value("ROW_B", if self.routed { "row_b" } else { "sizes.row_b" })
            .flag("FLOATS", format::is_float(self.formats[0]))
            .flag("HALVES", self.weights().iter().any(|&f| format::has_halves(f)))
            .value("BINDINGS", declared)
            .piece("finish", FINISH)
            .piece("tanh", tanh("vec4<f32>"))
            .piece("finite_half", FINITE_HALF)
            .piece("unpack", format::unpack(&weights));
        for (_, name) in weights {
            let of = |text| Template::new().value("W", name).flag("TAIL", self.tail).render(text);
            template =
                template.piece(format!("sums_{name}"), of(include_str!("../../wgsl/gemm_int8_sums.wgsl")));
        }
        (template, bindings)
    }

    fn bindings(&self, way: Way) -> (String, Vec<Access>) {
        let (x, two) =
            (if way == Way::Float { "x: array<f32>" } else { "x: array<vec4<u32>>" }, self.gated());
        let out = if self.vectors { "out: array<vec4<f32>>" } else { "out: array<f32>" };
        let all = [
            // Hidden rows of experts are nowhere but in the f16 form.
            (!(self.routed && self.half_out), Access::Write, out),
            (true, Access::Read, x),
            (way == Way::Int8, Access::Read, "x_meta: array<vec2<u32>>"),
            (true, Access::Read, "w_a: array<vec4<u32>>"),
            (two, Access::Read, "w_b: array<vec4<u32>>"),
            (self.bias[0], Access::Read, "bias_a: array<f32>"),
            (self.bias[1], Access::Read, "bias_b: array<f32>"),
            (self.half_out, Access::Write, "half_out: array<vec2<u32>>"),
            (self.routed, Access::Read, "order: array<u32>"),
            (self.routed, Access::Read, "tiles: array<vec4<u32>>"),
        ];
        let present: Vec<_> = all.into_iter().filter(|(on, ..)| *on).collect();
        let line = |(i, (_, access, what)): (usize, &(bool, Access, &str))| {
            let mode = if *access == Access::Write { "read_write" } else { "read" };
            format!("@group(0) @binding({i}) var<storage, {mode}> {what};\n")
        };
        (
            present.iter().enumerate().map(line).collect(),
            present.iter().map(|(_, access, _)| *access).collect(),
        )
    }

    /// The kernel's text.
    pub fn source(&self, way: Way, tile: Tile) -> Source {
        let (template, bindings) = self.template(way);
        let wgsl = match way {
            Way::Coop => tile.text(self, true, template),
            #[cfg(test)]
            Way::Lanes => tile.text(self, false, template),
            Way::Int8 => template.render(include_str!("../../wgsl/gemm_int8.wgsl")),
            Way::Float => template.render(include_str!("../../wgsl/gemm_float.wgsl")),
        };
        Source { wgsl, bindings }
    }
}

/// A weight, or a gated pair, ready to be dispatched.
struct Job {
    spec: Spec,
    /// The segments of the weight, or pairs of those of gate and up.
    segments: Vec<[Segment; 2]>,
    biases: [Option<BufferId>; 2],
    out: Buf,
}

impl Gpu {
    /// A `linear` of many rows whose arguments are checked.
    ///
    /// # Errors
    /// A stale handle, no room for a form, or what the device says.
    pub(super) fn run_many(&mut self, args: &Linear) -> Result<()> {
        let jobs = match args.combine {
            Combine::Gated(_) => 1,
            Combine::Store | Combine::Add => args.products.len(),
        };
        for index in 0..jobs {
            let job = self.job(args, index)?;
            let way = self.way(&job.spec)?;
            self.run_job(args, &job, way)?;
        }
        Ok(())
    }

    /// Product `index`, or the gated pair.
    fn job(&self, args: &Linear, index: usize) -> Result<Job> {
        let gated = matches!(args.combine, Combine::Gated(_));
        let products = if gated { args.products } else { &args.products[index..=index] };
        let mut biases = [None; 2];
        for (slot, product) in biases.iter_mut().zip(products) {
            if let Some(bias) = product.bias {
                *slot = Some(self.weight(VERB, bias, WeightKind::Vector)?.parts[0].buffer);
            }
        }
        let segments = match gated {
            true => self.gated_segments(args)?,
            false => self.segments(args, index)?.into_iter().map(|s| [s, s]).collect(),
        };
        let (a, b) = (products[0], products[products.len() - 1]);
        let formats = [self.weights.get(VERB, a.weight)?.format, self.weights.get(VERB, b.weight)?.format];
        let out = self.acts.get(VERB, a.out)?;
        // The f16 form is written in pieces of 4.
        let aligned = segments.iter().all(|[s, _]| s.first.is_multiple_of(4));
        let spec = Spec {
            formats,
            combine: args.combine,
            bias: biases.map(|b| b.is_some()),
            half_out: aligned && out.half.is_some(),
            vectors: aligned && out.shape.width.is_multiple_of(4),
            tail: false,
            routed: false,
        };
        Ok(Job { spec, segments, biases, out: a.out })
    }

    /// The way for a kind of product on this device.
    fn way(&mut self, spec: &Spec) -> Result<Way> {
        let floats = spec.weights().iter().map(|&f| format::is_float(f));
        let mixed = floats.clone().any(|f| f) && floats.clone().any(|f| !f);
        if self.info().exact {
            return Ok(Way::Float);
        }
        if !mixed && self.coop_pays()? {
            return Ok(Way::Coop);
        }
        let int8 = self.stream.context.tier().dot && !floats.clone().any(|f| f);
        Ok(if int8 { Way::Int8 } else { Way::Float })
    }

    /// Dispatches a job.
    fn run_job(&mut self, args: &Linear, job: &Job, way: Way) -> Result<()> {
        // All tiles that fewer or more rows would take are made in rehearsal.
        if way == Way::Coop && self.stream.rehearsing {
            return Tile::ALL.iter().try_for_each(|tile| self.run_tiles(args, job, way, *tile));
        }
        let width = self.shape(VERB, job.out)?.width;
        self.run_tiles(args, job, way, Tile::of(args.rows, width, job.spec.gated()))
    }

    /// Dispatches a job in tiles of one kind, where the way has kinds.
    fn run_tiles(&mut self, args: &Linear, job: &Job, way: Way, tile: Tile) -> Result<()> {
        let x = self.operand(args, way)?;
        let cols = self.shape(VERB, args.x)?.width;
        let out = self.acts.get_mut(VERB, job.out)?;
        out.written();
        let half_out = out.half.filter(|_| job.spec.half_out);
        if half_out.is_some() && !self.stream.rehearsing {
            out.half_rows = args.rows;
        }
        let (rows, width) = (out.rows, out.shape.width);
        let gated = job.spec.gated();
        let step = if way.tiled() { tile.step } else { 32 };
        let spec = Spec { tail: !cols.next_multiple_of(32).is_multiple_of(step), ..job.spec };
        // Every index of the cooperative tiles is clamped where it could leave its buffer.
        let bounds = if way.tiled() { Bounds::Trusted } else { Bounds::Checked };
        let key = spec.key(way, if way.tiled() { tile.code() } else { 0 });
        let kernel = self.stream.kernel_with(key, bounds, || spec.source(way, tile))?;
        let [high, wide] = if way.tiled() { tile.outputs(gated) } else { [PLAIN; 2] };
        for &[a, b] in &job.segments {
            let mut bindings = vec![rows];
            bindings.extend(&x);
            bindings.push(a.weights);
            bindings.extend(gated.then_some(b.weights));
            bindings.extend(job.biases.iter().flatten());
            bindings.extend(half_out);
            let weights = a.rows * format::row_bytes(spec.formats[0], cols) * spec.weights().len();
            let words = [
                args.rows,
                args.first_row,
                cols,
                cols.div_ceil(32),
                a.rows,
                a.first,
                width,
                width.div_ceil(32) * 8,
                a.at,
                b.at,
            ];
            self.stream.dispatch(&Call {
                kernel,
                bindings: &bindings,
                immediates: &words.map(|w| w as u32),
                groups: [args.rows.div_ceil(high) as u32, a.rows.div_ceil(wide) as u32, 1],
                verb: VERB,
                bytes: (weights + 4 * args.rows * (cols + a.rows)) as u64,
            })?;
        }
        Ok(())
    }

    /// The activations in the form that a way multiplies.
    fn operand(&mut self, args: &Linear, way: Way) -> Result<Vec<BufferId>> {
        let end = args.first_row + args.rows;
        Ok(match way {
            Way::Int8 => {
                let form = self.quantized(VERB, args.x, end)?;
                vec![form.codes, form.meta]
            }
            Way::Float => vec![self.acts.get(VERB, args.x)?.rows],
            _ => vec![self.halved(VERB, args.x, end)?],
        })
    }
}
