//! The text of a kernel of few rows: its buffers, a function for every product or pair of them, and the key that stands
//! for all of it. It must not know handles, nor how a cut is chosen.

use hob_compute::{Activation, Combine};
use hob_quant::Format;

use super::cut::Cut;
use super::{MOST_PRODUCTS, ahead};
use crate::format;
use crate::stream::{Access, KernelKey, Source};
use crate::template::Template;
use crate::verb::quantize::QUANTIZE_BLOCK;

const FEW: &str = include_str!("../../../wgsl/few.wgsl");
const ROWS: &str = include_str!("../../../wgsl/few_rows.wgsl");
const COLUMN: &str = include_str!("../../../wgsl/few_column.wgsl");
/// Before the barrier that ends the sums.
const PUT_SQUARES: &str = "//#if SCALED\n//#for k SQUARES\n\
put_square(square_at_$k$, square_$k$, subgroup_lane, subgroup_size);\n//#endfor\n//#endif";
/// No subgroup has more lanes.
const MOST_SUBGROUP: usize = 128;
/// Flags of a kernel, one per product.
const IN: [&str; MOST_PRODUCTS] = ["IN_0", "IN_1", "IN_2", "IN_3"];
const CALLED: [&str; MOST_PRODUCTS] = ["CALLED_0", "CALLED_1", "CALLED_2", "CALLED_3"];
const HALVES: [&str; MOST_PRODUCTS] = ["HALVES_0", "HALVES_1", "HALVES_2", "HALVES_3"];
const MINIMA: [&str; MOST_PRODUCTS] = ["MINIMA_0", "MINIMA_1", "MINIMA_2", "MINIMA_3"];

/// What a dispatch computes, apart from shapes.
#[derive(Copy, Clone, Debug)]
pub(super) struct Kind {
    pub formats: [Option<Format>; MOST_PRODUCTS],
    pub biases: [bool; MOST_PRODUCTS],
    pub combine: Combine,
    pub exact: bool,
    /// Width of the input.
    pub cols: usize,
    /// The input's rows lack a factor that their sums of squares tell.
    pub scaled: bool,
    /// A workgroup has whole blocks of outputs, so that it can write their int8 form.
    pub blocks_out: bool,
    /// The gated output's int8 form is written as well.
    pub int8_out: bool,
    /// The output is normed, and what the norm leaves is written as well.
    pub fold: bool,
    /// Buffers that are touched for what comes behind.
    pub ahead: usize,
    pub subgroups: bool,
}

impl Kind {
    fn products(&self) -> impl Iterator<Item = (usize, Format)> {
        self.formats.into_iter().flatten().enumerate()
    }

    /// Blocks of 32 in a row of the input.
    pub fn blocks(&self) -> usize {
        self.cols.div_ceil(32)
    }

    pub fn gated(&self) -> bool {
        matches!(self.combine, Combine::Gated(_))
    }

    /// Whether some product multiplies the int8 form, and some the rows.
    pub fn forms(&self) -> (bool, bool) {
        let int8 = |f| !self.exact && !format::is_float(f);
        (self.products().any(|(_, f)| int8(f)), self.products().any(|(_, f)| !int8(f)))
    }

    /// The key of a kernel of this kind.
    pub fn key(&self, cut: &Cut) -> KernelKey {
        let mut formats = 0;
        let mut flags = u32::from(self.exact)
            | u32::from(self.int8_out) << 2
            | match self.combine {
                Combine::Store => 0,
                Combine::Add => 1,
                Combine::Gated(Activation::Silu) => 2,
                Combine::Gated(_) => 3,
            } << 4
            | u32::from(self.scaled) << 6
            | u32::from(self.fold) << 7
            | (self.ahead as u32) << 12;
        for (p, format) in self.formats.iter().enumerate() {
            formats |= format.map_or(255, Format::ggml_id) << (8 * p);
            flags |= u32::from(self.biases[p]) << (8 + p);
        }
        let Cut { columns, lanes, team, rows, batch, group_rows, parts, .. } = *cut;
        let cuts = [columns, lanes, team, rows, batch, group_rows, parts];
        let cuts = cuts.iter().fold(0, |key, n| key << 4 | n.trailing_zeros());
        KernelKey { name: "linear of few rows", params: [formats, flags, self.cols as u32, cuts, 0, 0, 0, 0] }
    }
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
        bind("x".into(), if kind.cols.is_multiple_of(4) { "vec4<f32>" } else { "f32" }, Access::Read);
    }
    if kind.scaled {
        bind("squares".into(), "f32", Access::Read);
    }
    for (p, _) in kind.products() {
        bind(format!("w_{p}"), "vec4<u32>", Access::Read);
        if kind.biases[p] {
            bind(format!("bias_{p}"), "f32", Access::Read);
        }
        if !kind.gated() || p == 0 {
            bind(format!("out_{p}"), if kind.fold { "vec4<f32>" } else { "f32" }, Access::Write);
        }
    }
    if kind.fold {
        bind("norm_weight".into(), "vec4<f32>", Access::Read);
        bind("normed".into(), "vec4<f32>", Access::Write);
    }
    if kind.int8_out || kind.fold {
        bind("out_codes".into(), "u32", Access::Write);
        bind("out_meta".into(), "vec2<u32>", Access::Write);
    }
    if kind.fold {
        bind("out_squares".into(), "f32", Access::Write);
    }
    if kind.ahead > 0 {
        (0..kind.ahead).for_each(|n| bind(format!("ahead_{n}"), "u32", Access::Read));
        bind("touched".into(), "u32", Access::Write);
    }
    (text, accesses)
}

pub(super) fn source(kind: &Kind, cut: &Cut) -> Source {
    let (declared, bindings) = bindings(kind);
    let names = ["0", "1", "2", "3"];
    let weights: Vec<_> = kind.products().map(|(p, f)| (f, names[p])).collect();
    let slots = cut.group_rows * cut.columns * if kind.gated() { 2 } else { 1 };
    let padded = kind.blocks().next_multiple_of(MOST_SUBGROUP);
    let (int8, f32) = kind.forms();
    let mut template = Template::new()
        .flag("INT8", int8)
        .flag("F32_FORM", f32)
        .flag("ALIGNED", kind.cols.is_multiple_of(4))
        .flag("EVEN", kind.cols.is_multiple_of(32))
        .flag("EIGHTS", eights(cut))
        .flag("SUBGROUPS", kind.subgroups)
        .flag("GATED", kind.gated())
        .flag("SILU", kind.combine == Combine::Gated(Activation::Silu))
        .flag("ADD", kind.combine == Combine::Add)
        .flag("INT8_OUT", kind.int8_out)
        .flag("SCALED", kind.scaled)
        .flag("FOLD", kind.fold)
        .flag("FORM_OUT", kind.int8_out || kind.fold)
        .flag("FORM_SOON", kind.int8_out && shared(cut))
        // Where eight lanes share a block, its form is made by then.
        .flag("FORM_LATE", (kind.int8_out || kind.fold) && !shared(cut))
        .flag("TOUCHES", kind.ahead > 0)
        .value("AHEAD", kind.ahead)
        .value("PAGE_WORDS", ahead::PAGE_BYTES / 4)
        .value("MOST_PAGES", ahead::MOST_PAGES)
        .flag("BIAS_0", kind.biases[0])
        .flag("BIAS_1", kind.biases[1])
        .flag("BIAS_2", kind.biases[2])
        .flag("BIAS_3", kind.biases[3])
        .value("PRODUCTS", weights.len())
        .value("MOST", MOST_PRODUCTS)
        .value("COLS", kind.cols)
        .value("BLOCKS", kind.blocks())
        .value("TEAM", cut.team)
        .value("LANES", cut.lanes)
        .value("ROWS", cut.rows)
        .value("COLUMNS", cut.columns)
        .value("GROUP_ROWS", cut.group_rows)
        .value("PARTS", cut.parts)
        .value("SLOTS", slots)
        .value("EACH", (cut.group_rows / 4 * cut.columns).div_ceil(cut.lanes))
        .value("SPAN", cut.spans)
        .value("PADDED", padded)
        .value("SQUARES", (cut.columns * padded).div_ceil(cut.lanes))
        .value("VALUES", "values")
        .flag("SHARED", shared(cut))
        .piece("quantize_block", QUANTIZE_BLOCK)
        .piece("put_squares", PUT_SQUARES)
        .piece("bindings", declared)
        .piece("unpack", format::unpack(&weights))
        .piece("products", products(kind, cut));
    template = CALLED.into_iter().fold(template, |t, name| t.flag(name, false));
    for bundle in bundles(kind) {
        template = template.flag(CALLED[bundle[0].0], true);
    }
    Source { wgsl: template.render(FEW), bindings }
}

/// Whether a subgroup has the eight lanes that make a block of the int8 form together.
fn shared(cut: &Cut) -> bool {
    cut.spans >= 8
}

/// Whether lanes sum eight values at once, for which a subgroup needs as many lanes.
fn eights(cut: &Cut) -> bool {
    cut.spans >= 8 && cut.team >= 8 && cut.rows * cut.columns >= 8
}

/// Products that one function computes: gate and up if they multiply the same form of the input, else one alone.
fn bundles(kind: &Kind) -> Vec<Vec<(usize, Format)>> {
    let all: Vec<_> = kind.products().collect();
    let same = |a: Format, b: Format| format::is_float(a) == format::is_float(b);
    match all[..] {
        [gate, up] if kind.gated() && same(gate.1, up.1) => vec![all],
        _ => all.into_iter().map(|product| vec![product]).collect(),
    }
}

/// A function for every bundle, with the name of its first product.
fn products(kind: &Kind, cut: &Cut) -> String {
    let mut text = String::new();
    for bundle in bundles(kind) {
        let float = format::is_float(bundle[0].1);
        let count = if float { 4 * kind.blocks() } else { kind.blocks() };
        let mut template = Template::new()
            .flag("FLOATS", float)
            .flag("EXACT", kind.exact)
            .flag("WHOLE_TURNS", count.is_multiple_of(cut.team))
            .value("MOST", MOST_PRODUCTS)
            .value("NAME", bundle[0].0)
            .value("ROWS", cut.rows)
            .value("BATCH", cut.batch)
            .value("BATCHES", cut.rows / cut.batch)
            .value("COLUMNS", cut.columns)
            .value("COUNT", count)
            .value("TURNS", count / cut.team)
            .piece("column", COLUMN);
        for p in 0..MOST_PRODUCTS {
            let format = bundle.iter().find(|(product, _)| *product == p).map(|(_, format)| *format);
            template = template
                .flag(IN[p], format.is_some())
                .flag(HALVES[p], format.is_some_and(format::has_halves))
                .flag(MINIMA[p], format.is_some_and(format::has_minima));
        }
        let puts: String = bundle.iter().map(|(p, _)| puts(*p, kind, cut)).collect();
        text += &template.piece("puts", puts).render(ROWS);
    }
    text
}

/// What a team's lanes do with their sums of a product: gate's have the first slots, up's the second half.
fn puts(product: usize, kind: &Kind, cut: &Cut) -> String {
    let first = if kind.gated() { product * cut.group_rows * cut.columns } else { 0 };
    let name = |i: usize| {
        let (row, column) = (i / cut.columns, i % cut.columns);
        format!("acc_{product}_{}_{}_{column}", row / cut.batch, row % cut.batch)
    };
    let values: Vec<_> = (0..cut.rows * cut.columns).map(name).collect();
    if eights(cut) {
        let eight = |(i, v): (usize, &[String])| {
            let [a, b] = [&v[..4], &v[4..]].map(|v| format!("vec4({})", v.join(", ")));
            format!("put8(slot + {}u, team_lane, {a}, {b});\n", first + 8 * i)
        };
        return values.chunks(8).enumerate().map(eight).collect();
    }
    let one = |(i, v): (usize, &String)| format!("put(slot + {}u, team_lane, {v});\n", first + i);
    values.iter().enumerate().map(one).collect()
}
