//! The text of the kernels for attention of many rows: a variant is everything that changes it. It must not know buffers.

use hob_compute::Attend;

use crate::Tier;
use crate::pages::{Layout, Stored};
use crate::stream::{Access, Bounds, KernelKey, Source};
use crate::template::Template;
use crate::verb::tanh::tanh;

const ROWS: &str = include_str!("../../../wgsl/flash_rows.wgsl");
const STAGE: &str = include_str!("../../../wgsl/flash_stage.wgsl");
const PLAIN: &str = include_str!("../../../wgsl/flash_plain.wgsl");
const COOP: &str = include_str!("../../../wgsl/flash_coop.wgsl");

/// Largest head of the plain form.
pub const MOST_DIM: usize = 512;
/// Largest head whose sums fit into registers beside all else.
const MOST_COOP_DIM: usize = 256;
/// Positions of a block.
const BLOCK: usize = 64;
/// Lanes of the plain form: one per position of a block.
const LANES: usize = 64;
/// Halves between rows of a tile in workgroup memory, beyond the row: rows then start in different banks.
const PAD: usize = 8;

/// How the cooperative form cuts its work.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Subgroups of a workgroup, each with 16 rows.
    pub subgroups: usize,
    /// Positions of a step: 32 or 64.
    pub keys: usize,
    /// Positions of them whose scores are in workgroup memory at once: 16 or 32.
    pub strip: usize,
}

impl Cut {
    /// Fours between rows of scores.
    fn score_stride(&self) -> usize {
        (self.strip + PAD) / 4
    }

    /// Fours of scores of all subgroups.
    fn scores(&self) -> usize {
        16 * self.subgroups * self.score_stride()
    }
}

/// Everything that changes a kernel's text.
#[derive(Copy, Clone, Debug)]
pub struct Variant {
    pub layout: Layout,
    /// Query heads of a KV head.
    pub group: usize,
    pub capped: bool,
    pub sinks: bool,
    /// Writes the f16 form too.
    pub half: bool,
    /// Of the cooperative form.
    pub cut: Option<Cut>,
}

impl Variant {
    /// The form for an adapter with `memory` bytes of workgroup memory; `None` where heads are too large for any.
    pub fn choose(tier: &Tier, memory: usize, args: &Attend, layout: Layout, half: bool) -> Option<Variant> {
        let plain = Variant {
            layout,
            group: args.heads / args.kv_heads,
            capped: args.softcap.is_some(),
            sinks: args.sinks.is_some(),
            half: half && tier.f16,
            cut: None,
        };
        if tier.coop && tier.f16 && tier.subgroups {
            let found = plain.cuts().into_iter().map(|cut| Variant { cut: Some(cut), ..plain });
            if let Some(found) = found.into_iter().find(|v| v.memory() <= memory) {
                return Some(found);
            }
        }
        (layout.head_dim <= MOST_DIM).then_some(plain)
    }

    /// Cuts of the cooperative form, the fastest first.
    pub fn cuts(&self) -> Vec<Cut> {
        let dim = self.layout.head_dim;
        if self.layout.k == Stored::F32 || !dim.is_multiple_of(16) || dim > MOST_COOP_DIM {
            return Vec::new();
        }
        match dim {
            // Registers and room for the sums of fewer rows, and for fewer positions.
            129.. => vec![Cut { subgroups: 4, keys: 32, strip: 32 }],
            _ => [32, 16].map(|strip| Cut { subgroups: 8, keys: 64, strip }).into(),
        }
    }

    /// Rows of a tile.
    pub fn rows(&self) -> usize {
        match (self.cut, self.layout.head_dim) {
            (Some(cut), _) => 16 * cut.subgroups,
            (None, ..=256) => 16,
            (None, _) => 4,
        }
    }

    /// Lanes of a workgroup.
    fn lanes(&self) -> usize {
        self.cut.map_or(LANES, |cut| 32 * cut.subgroups)
    }

    /// Positions of K in workgroup memory at once.
    fn keys(&self) -> usize {
        self.cut.map_or(BLOCK, |cut| cut.keys)
    }

    /// Dimensions of K and positions of V in workgroup memory at once.
    fn parts(&self) -> [usize; 2] {
        let dim = self.layout.head_dim;
        match self.cut {
            Some(cut) => [dim, cut.keys],
            // 32 dimensions of 64 positions, and about as much of V.
            None => [32.min(dim), (2048 / dim).next_power_of_two().clamp(8, 32)],
        }
    }

    /// Pieces of 16 bytes of staged K and of staged V.
    fn pieces(&self) -> [usize; 2] {
        let ([k, v], dim) = (self.parts(), self.layout.head_dim);
        [self.layout.k.pieces(k, self.keys()), self.layout.v.pieces(dim, v)]
    }

    /// Numbers between rows of K and of V there.
    fn strides(&self) -> [usize; 2] {
        let pad = if self.cut.is_some() { PAD } else { 0 };
        [self.keys() + pad, self.layout.head_dim + pad]
    }

    /// Where V is staged: the plain form has one place for both, the other keeps weights in the place of K.
    fn v_at(&self) -> usize {
        let ([k, _], [stride, _]) = (self.parts(), self.strides());
        if self.cut.is_some() { stride * k.max(self.rows()) } else { 0 }
    }

    /// Numbers of staged K and V, and of queries before them.
    fn stage(&self) -> usize {
        let ([k, v], [k_stride, v_stride]) = (self.parts(), self.strides());
        let queries = if self.cut.is_some() { self.rows() * v_stride } else { 0 };
        queries.max(k * k_stride).max(self.v_at() + v * v_stride)
    }

    /// Bytes of workgroup memory of the cooperative form.
    pub fn memory(&self) -> usize {
        self.cut.map_or(0, |cut| 2 * self.stage() + 16 * cut.scores() + 16)
    }

    pub fn key(&self) -> KernelKey {
        let [shape, formats] = self.layout.key();
        let flags = [self.capped, self.sinks, self.half, self.cut.is_some()];
        let flags = flags.iter().fold(0, |bits, &on| 2 * bits + u32::from(on));
        let cut = self.cut.map_or([0; 3], |cut| [cut.subgroups, cut.keys, cut.strip].map(|n| n as u32));
        let [subgroups, keys, strip] = cut;
        KernelKey {
            name: "attention of many rows",
            params: [shape, formats, flags, self.group as u32, subgroups, keys, strip, 0],
        }
    }

    /// Checks would hide from the compiler how workgroup memory is aligned: tiles were loaded number by number.
    pub fn bounds(&self) -> Bounds {
        if self.cut.is_some() { Bounds::Trusted } else { Bounds::Checked }
    }

    pub fn source(&self) -> Source {
        let wgsl = match &self.cut {
            None => self.plain().render(PLAIN),
            Some(cut) => self.coop(cut).render(COOP),
        };
        let mut bindings = vec![Access::Write, Access::Read, Access::Read, Access::Read];
        bindings.extend(self.layout.first.then_some(Access::Read));
        bindings.extend(self.sinks.then_some(Access::Read));
        bindings.extend(self.half.then_some(Access::Write));
        Source { wgsl, bindings }
    }

    /// What both forms have.
    fn template(&self) -> Template {
        let Layout { head_dim: dim, k_rotated, v_rotated, first, .. } = self.layout;
        let after = 4 + usize::from(first);
        let rotated = 1usize << dim.trailing_zeros();
        let template = Template::new()
            .flag("FIRST", first)
            .flag("SINKS", self.sinks)
            .flag("HALF", self.half)
            .flag("CAPPED", self.capped)
            .flag("ROTATES", k_rotated || v_rotated)
            .flag("K_ROTATED", k_rotated)
            .flag("V_ROTATED", v_rotated)
            .flag("HALVES", self.cut.is_some())
            .value("SINKS_AT", after)
            .value("HALF_AT", after + usize::from(self.sinks))
            .value("DIM", dim)
            .value("GROUP", self.group)
            .value("ROWS", self.rows())
            .value("LANES", self.lanes())
            .value("ROTATED", rotated)
            .value("ROTATION", format!("{:?}", rotation(rotated)))
            .value("ROTATION_OF_V", format!("{:?}", if v_rotated { rotation(rotated) } else { 1.0 }))
            .piece("rows", ROWS)
            .piece("tanh", tanh("f32"))
            .piece("stage", STAGE);
        self.pages(template)
    }

    /// How pages are read and staged.
    fn pages(&self, template: Template) -> Template {
        let Layout { head_dim: dim, kv_heads, k, v, .. } = self.layout;
        let pieces = |stored: Stored| stored.part_words(dim) / 4;
        let block = pieces(k) + pieces(v);
        let sink = self.layout.sink();
        let wide = if sink { 2 * pieces(Stored::F16) } else { block };
        let [k_pieces, v_pieces] = self.pieces();
        let ([k_part, v_part], [k_stride, v_stride]) = (self.parts(), self.strides());
        let nibbles = |stored| matches!(stored, Stored::Q4 | Stored::Asym4);
        let floats = |stored| matches!(stored, Stored::F16 | Stored::Bf16);
        template
            .flag("EXACT", k == Stored::F32)
            .flag("K_FLOATS", floats(k))
            .flag("V_FLOATS", floats(v))
            .flag("K_PACKED", k.is_packed())
            .flag("V_PACKED", v.is_packed())
            .flag("K_Q8", k == Stored::Q8)
            .flag("V_Q8", v == Stored::Q8)
            .flag("K_NIBBLES", nibbles(k))
            .flag("V_NIBBLES", nibbles(v))
            .flag("K_MINIMA", k == Stored::Asym4)
            .flag("V_MINIMA", v == Stored::Asym4)
            .value("SINK", sink)
            .value("K_BF16", k == Stored::Bf16)
            .value("V_BF16", v == Stored::Bf16)
            .value("K_CODES", k.scale_words(dim) / 4)
            .value("V_CODES", v.scale_words(dim) / 4)
            .value("BLOCK", block)
            .value("HEAD", 4 * block)
            .value("PAGE", 4 * block * kv_heads)
            .value("WIDE_BLOCK", wide)
            .value("FIRST_HEAD", wide + 3 * block)
            .value("FIRST_PAGE", (wide + 3 * block) * kv_heads)
            .value("K_PIECES", pieces(k))
            .value("WIDE_PIECES", if sink { wide / 2 } else { pieces(k) })
            .value("K_PART", k_part)
            .value("V_PART", v_part)
            .value("K_KEYS", self.keys())
            .value("K_COUNT", k_pieces)
            .value("V_COUNT", v_pieces)
            .value("V_AT", self.v_at() / 4)
            .value("K_STRIDE", k_stride / 4)
            .value("V_STRIDE", v_stride / 4)
    }

    fn plain(&self) -> Template {
        let (dim, quads) = (self.layout.head_dim, self.rows() / 4);
        self.template()
            .value("NUMBER", "f32")
            .value("MOST", "3.4028234e38")
            .value("STAGE", self.stage())
            .value("QUAD", "f32")
            .value("HALF_QUAD", "f16")
            .value("QUADS", quads)
            .value("QUERIES", quads * dim)
            .value("WEIGHTS", quads * BLOCK)
            .value("K_PARTS", dim.div_ceil(self.parts()[0]))
            .value("ACCUMULATORS", quads * dim.div_ceil(LANES))
    }

    fn coop(&self, cut: &Cut) -> Template {
        let [k_pieces, v_pieces] = self.pieces();
        self.template()
            .value("NUMBER", "f16")
            .value("MOST", "65504.0")
            .value("QUAD", "vec4<f32>")
            .value("HALF_QUAD", "vec4<f16>")
            .value("TILES", self.layout.head_dim / 16)
            .value("KEYS", cut.keys)
            .value("STRIPS", cut.keys / cut.strip)
            .value("WIDTH", cut.strip / 16)
            .value("FOURS", cut.strip / 8)
            .value("SCORE_STRIDE", cut.score_stride())
            .value("WEIGHT_STRIDE", (cut.keys + PAD) / 4)
            .value("STAGE", self.stage() / 4)
            .value("SCORES", cut.scores())
            .value("K_UNITS", k_pieces.div_ceil(self.lanes()))
            .value("V_UNITS", v_pieces.div_ceil(self.lanes()))
            .piece("fetch_k", fetches('k', self.layout.first))
            .piece("fetch_v", fetches('v', self.layout.first))
            .piece("turn", self.turn())
    }

    /// The steps of the Hadamard rotation of V that go beyond 16 neighbors: sums and differences of tiles.
    fn turn(&self) -> String {
        let (dim, mut t) = (self.layout.head_dim, String::new());
        let block = if self.layout.v_rotated { (1usize << dim.trailing_zeros()) / 16 } else { 1 };
        for stride in (0..).map(|step| 1 << step).take_while(|&stride| stride < block) {
            for low in (0..dim / 16).filter(|n| n & stride == 0) {
                let [a, b] = [low, low + stride].map(|n| format!("acc_{n}"));
                t += &format!("{{ let a = {a}; let b = {b}; {a} = a + b; {b} = a - b; }}\n");
            }
        }
        t
    }
}

/// The fetches of the next step's K, or of this step's V. The pool is chosen once, so that they all travel together.
fn fetches(side: char, first: bool) -> String {
    let (block, place) = match side {
        'k' => ("next / STEPS", "block_at(t, next / STEPS), next % STEPS"),
        _ => ("block", "v_at, part"),
    };
    let all = |first: bool| {
        let fetch = format!("fetch_{side}({first}, {place}, {side}_place(index + $i$u * LANES))");
        format!("//#for i {}_UNITS\nnext_{side}_$i$ = {fetch};\n//#endfor\n", side.to_ascii_uppercase())
    };
    match first {
        true => format!("if ({block} < 4u) {{\n{}}} else {{\n{}}}\n", all(true), all(false)),
        false => all(false),
    }
}

/// What a rotation over blocks of `block` is divided by.
fn rotation(block: usize) -> f32 {
    (1.0 / (block as f64).sqrt()) as f32
}
