//! Products of few rows ("columns" of the kernel): all products of a `linear` in one dispatch, whatever their formats.
//! It must not know how weights are packed.
//!
//! Integer formats multiply the int8 form of the activations, unless the device is exact; floats multiply f32. Where the
//! hardware has no dot product of int8, the compiler spells it out, at about the cost of f32 products. Columns
//! are specialised in classes of 1, 2, 4, 8 and 16; those that a batch does not have repeat its last one unseen.

use hob_compute::{Activation, Combine, Linear, Result};
use hob_quant::Format;

use super::{Segment, VERB};
use crate::format;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::template::Template;
use crate::verb::quantize::QUANTIZE_BLOCK;
use crate::{AdapterFacts, Gpu};

const FEW: &str = include_str!("../../wgsl/few.wgsl");
const ROWS: &str = include_str!("../../wgsl/few_rows.wgsl");
const STEP: &str = include_str!("../../wgsl/few_step.wgsl");
/// Products of one dispatch: three buffers each, and three of the input.
const MOST_PRODUCTS: usize = 4;
/// Bytes of workgroup memory that the sums may take.
const SUM_BYTES: usize = 16 << 10;
/// Workgroups in a row of the grid.
const GRID: u32 = 32_768;

/// How the work is cut; all but `columns` are powers of two.
#[derive(Copy, Clone, Debug)]
struct Cut {
    /// Class of rows of activations.
    columns: usize,
    /// Lanes of a workgroup, of a team.
    lanes: usize,
    team: usize,
    /// Weight rows that a team reads at once, and blocks that a lane does.
    rows: usize,
    unroll: usize,
    /// Weight rows of a workgroup.
    group_rows: usize,
    /// Sums of one value that subgroups leave, at most.
    parts: usize,
}

/// What a dispatch computes, apart from shapes.
#[derive(Copy, Clone, Debug)]
struct Kind {
    formats: [Option<Format>; MOST_PRODUCTS],
    biases: [bool; MOST_PRODUCTS],
    combine: Combine,
    exact: bool,
    /// Columns in whole vectors of 4.
    aligned: bool,
    /// The gated output's int8 form is written as well.
    int8_out: bool,
    subgroups: bool,
}

impl Kind {
    fn products(&self) -> impl Iterator<Item = (usize, Format)> {
        self.formats.into_iter().flatten().enumerate()
    }

    fn gated(&self) -> bool {
        matches!(self.combine, Combine::Gated(_))
    }

    /// Whether some product multiplies the int8 form, and some the rows.
    fn forms(&self) -> (bool, bool) {
        let int8 = |f| !self.exact && !format::is_float(f);
        (self.products().any(|(_, f)| int8(f)), self.products().any(|(_, f)| !int8(f)))
    }

    fn key(&self, cut: &Cut) -> KernelKey {
        let mut formats = 0;
        let mut flags = u32::from(self.exact)
            | u32::from(self.aligned) << 1
            | u32::from(self.int8_out) << 2
            | match self.combine {
                Combine::Store => 0,
                Combine::Add => 1,
                Combine::Gated(Activation::Silu) => 2,
                Combine::Gated(_) => 3,
            } << 4;
        for (p, format) in self.formats.iter().enumerate() {
            formats |= format.map_or(255, Format::ggml_id) << (8 * p);
            flags |= u32::from(self.biases[p]) << (8 + p);
        }
        let Cut { columns, lanes, team, rows, unroll, group_rows, parts } = *cut;
        let cuts = [columns, lanes, team, rows | unroll << 16, group_rows, parts];
        let mut params = [formats, flags, 0, 0, 0, 0, 0, 0];
        params[2..].iter_mut().zip(cuts).for_each(|(p, cut)| *p = cut as u32);
        KernelKey { name: "linear of few rows", params }
    }
}

impl Gpu {
    /// A `linear` of at most 16 rows whose arguments are checked.
    ///
    /// # Errors
    /// A stale handle, no room for a form, or what the device says.
    pub(super) fn run_few(&mut self, args: &Linear) -> Result<()> {
        if let Combine::Gated(_) = args.combine {
            for pair in self.gated_segments(args)? {
                self.few(args, &pair)?;
            }
            return Ok(());
        }
        let mut group: Vec<Segment> = Vec::new();
        for product in 0..args.products.len() {
            for segment in self.segments(args, product)? {
                // No buffer may be bound for writing twice.
                let out = args.products[product].out;
                let again = group.iter().any(|s| args.products[s.product].out == out);
                if again || group.len() == MOST_PRODUCTS {
                    self.few(args, &group)?;
                    group.clear();
                }
                group.push(segment);
            }
        }
        self.few(args, &group)
    }

    /// Segments in one dispatch for every slice of rows.
    fn few(&mut self, args: &Linear, segments: &[Segment]) -> Result<()> {
        let kind = self.kind(args, segments)?;
        let cols = self.shape(VERB, args.x)?.width;
        let mut row = 0;
        while row < args.rows {
            let cut = cut(&kind, segments, cols, args.rows - row, &self.stream.context.facts);
            let columns = cut.columns.min(args.rows - row);
            self.slice(args, segments, (&kind, &cut), row..row + columns)?;
            row += columns;
        }
        if kind.int8_out && !self.stream.rehearsing {
            self.acts.get_mut(VERB, args.products[0].out)?.int8_rows = args.rows;
        }
        Ok(())
    }

    fn kind(&self, args: &Linear, segments: &[Segment]) -> Result<Kind> {
        let (mut formats, mut biases) = ([None; MOST_PRODUCTS], [false; MOST_PRODUCTS]);
        for (i, segment) in segments.iter().enumerate() {
            let product = &args.products[segment.product];
            formats[i] = Some(self.weights.get(VERB, product.weight)?.format);
            biases[i] = product.bias.is_some();
        }
        let out = self.acts.get(VERB, args.products[0].out)?;
        Ok(Kind {
            formats,
            biases,
            combine: args.combine,
            exact: hob_compute::Compute::info(self).exact,
            aligned: self.shape(VERB, args.x)?.width.is_multiple_of(4),
            int8_out: matches!(args.combine, Combine::Gated(_)) && out.int8.is_some(),
            subgroups: self.stream.context.tier().subgroups,
        })
    }

    fn slice(
        &mut self,
        args: &Linear,
        segments: &[Segment],
        (kind, cut): (&Kind, &Cut),
        rows: std::ops::Range<usize>,
    ) -> Result<()> {
        let kernel = self.stream.kernel(kind.key(cut), || source(kind, cut))?;
        let bindings = self.few_bindings(args, segments, kind)?;
        let x = self.acts.get(VERB, args.x)?;
        let out = self.acts.get(VERB, args.products[0].out)?;
        let (cols, blocks) = (x.shape.width, x.groups());
        let first = args.first_row + rows.start;
        let mut words = vec![cols, blocks, first, rows.len(), out.groups(), rows.start];
        let (mut group, mut bytes) = (0, 0);
        for (i, segment) in segments.iter().enumerate() {
            let product = &args.products[segment.product];
            let weight = self.weights.get(VERB, product.weight)?;
            words.extend([segment.rows, segment.at, group, weight.spec.rows, segment.first]);
            if !kind.gated() || i == 0 {
                group += segment.rows.div_ceil(cut.group_rows);
            }
            bytes += segment.rows * (format::row_bytes(weight.format, cols) + 4 * rows.len());
        }
        let words: Vec<u32> = words.into_iter().map(|w| w as u32).collect();
        let groups = group as u32;
        self.stream.dispatch(&Call {
            kernel,
            bindings: &bindings,
            immediates: &words,
            groups: [groups.min(GRID), groups.div_ceil(GRID), 1],
            verb: VERB,
            bytes: (bytes + 4 * cols * rows.len()) as u64,
        })
    }

    /// Buffers in the order of [`bindings`].
    fn few_bindings(&mut self, args: &Linear, segments: &[Segment], kind: &Kind) -> Result<Vec<BufferId>> {
        let (int8, f32) = kind.forms();
        let mut ids = Vec::new();
        if int8 {
            let form = self.quantized(VERB, args.x, args.first_row + args.rows)?;
            ids.extend([form.codes, form.meta]);
        }
        if f32 {
            ids.push(self.acts.get(VERB, args.x)?.rows);
        }
        for (i, segment) in segments.iter().enumerate() {
            let product = &args.products[segment.product];
            ids.push(segment.weights);
            if let Some(bias) = product.bias {
                ids.push(self.weights.get(VERB, bias)?.parts[0].buffer);
            }
            if !kind.gated() || i == 0 {
                ids.push(self.acts.get(VERB, product.out)?.rows);
            }
        }
        if let (true, Some(form)) = (kind.int8_out, self.acts.get(VERB, args.products[0].out)?.int8) {
            ids.extend([form.codes, form.meta]);
        }
        Ok(ids)
    }
}

/// Lanes that keep a large device's memory busy.
const ENOUGH_LANES: usize = 1 << 19;

/// How to cut the products of some segments for the next of `rows` rows.
///
/// Figures behind it are of an H200. One column is best with one weight row and one block a lane at a time, and with as
/// many lanes as fit. More columns read their activations from L1, which several weight rows share.
fn cut(kind: &Kind, segments: &[Segment], cols: usize, rows: usize, facts: &AdapterFacts) -> Cut {
    let most = if kind.exact || !kind.subgroups { 4 } else { 16 };
    let mut columns = rows.min(most).next_power_of_two();
    // A software adapter's compiler takes long over long kernels.
    let bodies = if facts.software || kind.exact { 4 } else { 32 };
    let each = columns.min(4).min((bodies / columns).max(1));
    let unroll = if columns == 2 && bodies >= 8 { 2 } else { 1 };
    let height = segments.iter().map(|s| s.rows).sum::<usize>() / each;
    let (mut team, mut lanes) = if kind.subgroups { (32, 256) } else { (8, 64) };
    while kind.subgroups
        && team < 128
        && height * team < ENOUGH_LANES
        && 4 * team <= cols.div_ceil(32) * unroll
    {
        team *= 2;
    }
    if kind.gated() && kind.subgroups && !facts.software {
        lanes = if facts.group_lanes >= 512 { 512 } else { 256 };
    }
    let parts = if kind.subgroups { team / team.min(facts.least_subgroup) } else { team };
    // A gated workgroup has whole blocks of 32 outputs, so that it can write their int8 form.
    let group_rows = if kind.gated() { (lanes / team * each).max(32) } else { lanes / team * each };
    let sums = if kind.gated() { 2 * group_rows } else { group_rows };
    while columns > 1 && 4 * sums * columns * parts > SUM_BYTES {
        columns /= 2;
    }
    Cut { columns, lanes, team, rows: each, unroll, group_rows, parts }
}

/// Declarations of the buffers, and how they are bound.
fn bindings(kind: &Kind) -> (String, Vec<Access>) {
    let (int8, f32) = kind.forms();
    let (mut text, mut accesses) = (String::new(), Vec::new());
    let mut bind = |name: String, element: &str, access: Access| {
        let mode = if access == Access::Read { "read" } else { "read_write" };
        let at = accesses.len();
        text += &format!("@group(0) @binding({at}) var<storage, {mode}> {name}: array<{element}>;\n");
        accesses.push(access);
    };
    if int8 {
        bind("codes".into(), "vec4<u32>", Access::Read);
        bind("meta_".into(), "vec2<u32>", Access::Read);
    }
    if f32 {
        bind("x".into(), if kind.aligned { "vec4<f32>" } else { "f32" }, Access::Read);
    }
    for (p, _) in kind.products() {
        bind(format!("w_{p}"), "vec4<u32>", Access::Read);
        if kind.biases[p] {
            bind(format!("bias_{p}"), "f32", Access::Read);
        }
        if !kind.gated() || p == 0 {
            bind(format!("out_{p}"), "f32", Access::Write);
        }
    }
    if kind.int8_out {
        bind("out_codes".into(), "u32", Access::Write);
        bind("out_meta".into(), "vec2<u32>", Access::Write);
    }
    (text, accesses)
}

fn source(kind: &Kind, cut: &Cut) -> Source {
    let (declared, bindings) = bindings(kind);
    let names = ["0", "1", "2", "3"];
    let weights: Vec<_> = kind.products().map(|(p, f)| (f, names[p])).collect();
    let slots = cut.group_rows * cut.columns * if kind.gated() { 2 } else { 1 };
    let (int8, f32) = kind.forms();
    let template = Template::new()
        .flag("INT8", int8)
        .flag("F32_FORM", f32)
        .flag("ALIGNED", kind.aligned)
        .flag("SUBGROUPS", kind.subgroups)
        .flag("GATED", kind.gated())
        .flag("SILU", kind.combine == Combine::Gated(Activation::Silu))
        .flag("ADD", kind.combine == Combine::Add)
        .flag("INT8_OUT", kind.int8_out)
        .flag("BIAS_0", kind.biases[0])
        .flag("BIAS_1", kind.biases[1])
        .flag("BIAS_2", kind.biases[2])
        .flag("BIAS_3", kind.biases[3])
        .value("PRODUCTS", weights.len())
        .value("TEAM", cut.team)
        .value("LANES", cut.lanes)
        .value("ROWS", cut.rows)
        .value("COLUMNS", cut.columns)
        .value("GROUP_ROWS", cut.group_rows)
        .value("PARTS", cut.parts)
        .value("SLOTS", slots)
        .value("VALUES", "values")
        .piece("quantize_block", QUANTIZE_BLOCK)
        .piece("bindings", declared)
        .piece("unpack", format::unpack(&weights))
        .piece("products", products(kind, cut));
    Source { wgsl: template.render(FEW), bindings }
}

/// A function for every product.
fn products(kind: &Kind, cut: &Cut) -> String {
    let mut text = String::new();
    for (p, format) in kind.products() {
        let float = format::is_float(format);
        let template = Template::new()
            .flag("FLOATS", float)
            .flag("EXACT", kind.exact)
            .flag("HALVES", format::has_halves(format))
            .flag("MINIMA", format::has_minima(format))
            .flag("UNROLLED", cut.unroll > 1)
            .value("S", p)
            .value("ROWS", cut.rows)
            .value("COLUMNS", cut.columns)
            .value("UNROLL", cut.unroll)
            .value("PIECES", if float { "4u * blocks" } else { "blocks" });
        let steps = |steps: usize| template.clone().value("STEPS", steps).render(STEP);
        let with = template.clone().piece("unrolled", steps(cut.unroll)).piece("single", steps(1));
        text += &with.render(ROWS);
    }
    text
}
