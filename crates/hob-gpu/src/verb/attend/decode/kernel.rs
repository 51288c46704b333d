//! The text of the kernels of attention of few rows, and which form fits into workgroup memory. It must not know
//! sequences.

use crate::pages::{Kind, Layout, Stored};
use crate::stream::{Access, KernelKey, Source};
use crate::template::Template;
use crate::verb::kv::encoders_of_one;
use crate::verb::rope::ROPE_ANGLE;
use crate::verb::tanh::tanh;

macro_rules! pieces {
    ($($name:ident = $file:literal;)*) => {
        $(const $name: &str = include_str!(concat!("../../../wgsl/attend/", $file, ".wgsl"));)*
    };
}

pieces! {
    DECODE = "decode";
    RUNS = "runs";
    PREPARE = "prepare";
    Q_CODES = "q_codes";
    SCORE = "score";
    SCORES = "scores";
    WEIGH = "weigh";
    VALUES = "values";
    K_NAMES = "k_names";
    K_FETCH = "k_fetch";
    K_LOAD = "k_load";
    V_NAMES = "v_names";
    V_FETCH = "v_fetch";
    V_LOAD = "v_load";
    FINISH = "finish";
    MERGE = "merge";
}

/// What is done to new rows before they are attended to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    pub norms: bool,
    pub rotates: bool,
    pub interleaved: bool,
}

impl Fused {
    /// For a key: 0 is no fusion.
    pub fn bits(self) -> u32 {
        1 + 2 * u32::from(self.norms) + 4 * u32::from(self.rotates) + 8 * u32::from(self.interleaved)
    }
}

/// What both kernels read, in the order of the bindings: arguments, q, pages, and new rows with all that belongs to them.
pub fn inputs(layout: &Layout, fused: Option<Fused>) -> Vec<(&'static str, Access)> {
    let pages = if fused.is_some() { Access::Write } else { Access::Read };
    let mut all = vec![("AT_ARGUMENTS", Access::Read), ("AT_Q", Access::Read), ("AT_PAGES", pages)];
    all.extend(layout.first.then_some(("AT_FIRST", pages)));
    if let Some(fused) = fused {
        all.extend(["AT_K", "AT_V"].map(|name| (name, Access::Read)));
        let norms = ["AT_Q_NORM", "AT_K_NORM"].into_iter().filter(|_| fused.norms);
        all.extend(norms.map(|name| (name, Access::Read)));
        all.extend(fused.rotates.then_some(("AT_FREQS", Access::Read)));
    }
    all
}

/// Subgroups: the fewest lanes of one; `None` where kernels do without.
pub type Subgroups = Option<usize>;

/// What the kernel of a split is specialised by.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    pub layout: Layout,
    /// Query heads of a KV head.
    pub group: usize,
    /// Columns of a tile (query heads of a KV head, times rows) in fours: 1 to 4.
    pub fours: usize,
    /// Lanes of a workgroup.
    pub lanes: usize,
    /// Blocks of a round: at most one for every 32 lanes.
    pub blocks: usize,
    pub cap: bool,
    pub fused: Option<Fused>,
    pub subgroups: Subgroups,
}

impl Variant {
    /// This or the next smaller that fits into `memory` bytes of workgroup memory; `None` if none does.
    pub fn fitting(mut self, memory: usize, most_lanes: usize) -> Option<Variant> {
        // A lane has two dimensions of V.
        let least = (self.layout.head_dim / 2).next_power_of_two().max(32);
        let (most, blocks) = (self.lanes.min(most_lanes).max(least), self.blocks);
        while self.fours > 0 {
            self.lanes = most;
            while self.lanes >= least {
                let mut wanted = blocks.min(self.lanes / 32);
                while wanted > 0 {
                    self.blocks = self.lanes / 32 / self.sharers_of(wanted);
                    if self.memory() <= memory {
                        return Some(self);
                    }
                    wanted /= 2;
                }
                self.lanes /= 2;
            }
            self.fours -= 1;
        }
        None
    }

    fn dim(&self) -> usize {
        self.layout.head_dim
    }

    fn groups(&self) -> usize {
        self.dim() / 32
    }

    /// 32s of lanes that share a block's K: a power of two by which dimensions (or their groups) can be divided.
    fn sharers_of(&self, blocks: usize) -> usize {
        let units = if self.layout.k.is_packed() { self.groups() } else { self.dim() / 8 };
        (self.lanes / 32 / blocks).min(1 << units.trailing_zeros())
    }

    fn sharers(&self) -> usize {
        self.sharers_of(self.blocks)
    }

    /// Lanes that dimensions are given to: no subgroup has more.
    fn wide(&self) -> usize {
        self.dim().next_power_of_two().max(128)
    }

    /// Fours of columns with that of a new row.
    fn fours_and_new(&self) -> usize {
        self.fours + usize::from(self.fused.is_some())
    }

    /// Fours that the lanes have at once, and turns until all are had.
    fn four_turns(&self) -> (usize, usize) {
        let at_once = (self.lanes / self.wide()).max(1);
        (at_once, self.fours_and_new().div_ceil(at_once))
    }

    fn slots(&self) -> usize {
        let (at_once, turns) = self.four_turns();
        self.wide() * at_once * turns
    }

    fn sets(&self) -> usize {
        self.lanes / (self.dim() / 2)
    }

    /// Parts of a block's positions that lanes take of V.
    fn parts(&self) -> usize {
        (self.sets() / self.blocks).next_power_of_two().clamp(1, 4)
    }

    /// Tasks of weighing V: see `weigh.wgsl`.
    fn tasks(&self) -> usize {
        4 * self.blocks * self.groups() * self.fours
    }

    fn hadamard(&self) -> bool {
        self.layout.k_rotated || self.fused.is_some() && self.layout.v_rotated
    }

    /// Vectors of workgroup memory: rows being prepared, then sharers' scores, then sets' results; and weights.
    fn shared(&self) -> [usize; 2] {
        let stage = self.wide() * self.fours_and_new();
        let prepared = stage * if self.hadamard() { 2 } else { usize::from(self.fused.is_some()) };
        let scores = self.sharers() * self.blocks * 64 * self.fours;
        let results = self.sets() * self.dim() * self.fours;
        let loose = if self.subgroups.is_none() { self.slots() } else { 0 };
        [prepared.max(scores).max(results), (64 * self.blocks * self.fours).max(loose)]
    }

    /// Whether eight neighboring lanes belong to one subgroup.
    fn neighbors(&self) -> bool {
        self.subgroups.is_some_and(|least| least >= 8)
    }

    fn runs(&self) -> usize {
        let slots = (64 * self.blocks * self.fours).max(self.slots());
        slots.div_ceil(self.subgroups.unwrap_or(16))
    }

    /// Bytes of workgroup memory.
    fn memory(&self) -> usize {
        let (dim, fours, layout) = (self.dim(), self.fours, &self.layout);
        let [shared, weights] = self.shared();
        let mut vectors = dim * fours + shared + weights + self.runs();
        if layout.k.is_packed() {
            let codes = dim / 4 * fours;
            vectors += 2 * self.groups() * fours + codes * if layout.k == Stored::Q8 { 2 } else { 1 };
        }
        if layout.v.is_packed() {
            // Either two planes of codes, or one and what is added.
            vectors += 4 * self.tasks() + self.tasks();
            vectors += if layout.v == Stored::Q8 { 4 * self.tasks() } else { self.tasks() };
        }
        let fresh = if self.fused.is_some() { 16 * dim + 32 * self.lanes + dim / 2 + 16 } else { 0 };
        16 * vectors + fresh
    }

    pub fn key(&self) -> KernelKey {
        let [shape, formats] = self.layout.key();
        let fused = self.fused.map_or(0, Fused::bits);
        let sizes = (self.fours << 24 | self.blocks << 16 | self.lanes) as u32;
        let rules = fused << 8 | u32::from(self.cap);
        KernelKey { name: "attend few", params: [shape, formats, sizes, rules, self.group as u32, 0, 0, 0] }
    }

    /// Words of K that a lane has of a block, in units (dimensions, or groups of 32), and how many it loads at once.
    fn k_share(&self, stored: Stored) -> (usize, usize) {
        let share = if stored.is_packed() { self.groups() } else { self.dim() } / self.sharers();
        let most = match stored {
            Stored::F32 => 8,
            Stored::F16 | Stored::Bf16 => 32,
            Stored::Q8 => 2,
            Stored::Q4 | Stored::Asym4 => 4,
        };
        (share, (1..=most.min(share)).rev().find(|batch| share.is_multiple_of(*batch)).unwrap_or(1))
    }

    /// The same of V: positions, or words of a dimension.
    fn v_share(&self, stored: Stored) -> (usize, usize) {
        let (words, most) = match stored {
            Stored::F32 => (64, 16),
            Stored::F16 | Stored::Bf16 => (64, 32),
            Stored::Q8 => (32, 32),
            Stored::Q4 | Stored::Asym4 => (8, 8),
        };
        (words / self.parts(), most.min(words / self.parts()))
    }

    /// Flags and values that all pieces share, for blocks of one kind.
    fn template(&self, kind: Kind) -> Template {
        let layout = &self.layout;
        let [k, v] = layout.formats(kind);
        let (k_ahead, v_ahead) = (self.is_ahead(kind, true), self.is_ahead(kind, false));
        let spread = kind == Kind::Sink && matches!(layout.v, Stored::Q4 | Stored::Asym4);
        let ((k_share, k_batch), (v_share, v_batch)) = (self.k_share(k), self.v_share(v));
        let turns = (self.blocks * self.parts()).div_ceil(self.sets());
        let most = |stored: Stored, small: &'static str| if stored == Stored::Q8 { "32512.0" } else { small };
        layout
            .of_kind(kind)
            .flag("FIRST", layout.first)
            .flag("SPREAD", spread)
            .flag("TWO_WORDS", spread || v == Stored::F32)
            .flag("K_AHEAD", k_ahead)
            .flag("V_AHEAD", v_ahead)
            .flag("K_LATER", k_ahead && k_share > k_batch)
            .flag("V_LATER", v_ahead && (turns > 1 || v_share > v_batch))
            .flag("SUBGROUPS", self.subgroups.is_some())
            .value("CV", self.fours)
            .value("K_SHARE", k_share)
            .value("K_BATCH", k_batch)
            .value("V_SHARE", v_share)
            .value("V_BATCH", v_batch)
            .value("V_HALF_BATCH", v_batch / 2)
            .value("V_TURNS", turns)
            .value("LANES", self.lanes)
            .value("Q_MOST", most(layout.k, "127.0"))
            .value("W_MOST", most(layout.v, "255.0"))
            .value("V_LANES", self.dim() / 2)
            .value("V_USED", self.sets() * (self.dim() / 2))
            .value("TASKS", self.tasks())
            .value("ROUNDS", self.tasks().div_ceil(self.lanes))
    }

    /// What is computed with K or V, for every kind of block; what was loaded ahead is the same wherever it lay.
    fn kinds(&self, k: bool, text: &str) -> String {
        let block = if k { "k_block" } else { "v_block" };
        let loads = self.loads(k);
        let one = |kind: Kind| {
            let ahead = self.is_ahead(kind, k);
            let test = match kind {
                Kind::First if ahead => return None,
                Kind::Rest if ahead => format!("{block}.kind < 2u"),
                _ => format!("{block}.kind == {}u", kind as u32),
            };
            Some(self.template(kind).value("IS_KIND", test).piece("loads", loads.clone()).render(text))
        };
        self.layout.kinds().filter_map(one).collect()
    }

    /// Whether K or V of a kind of block is loaded before anything is computed.
    fn is_ahead(&self, kind: Kind, k: bool) -> bool {
        kind != Kind::Sink && self.layout.formats(kind)[usize::from(!k)] != Stored::F32
    }

    /// Loads ahead of every kind of block that has them.
    fn loads(&self, k: bool) -> String {
        let (block, text) = if k { ("k_block", K_LOAD) } else { ("v_block", V_LOAD) };
        let one = |kind: Kind| {
            let load = || self.template(kind).render(text);
            self.is_ahead(kind, k)
                .then(|| format!("if ({block}.kind == {}u) {{\n{}}}\n", kind as u32, load()))
        };
        self.layout.kinds().filter_map(one).collect()
    }

    /// What is bound, in order.
    fn bindings(&self) -> Vec<(&'static str, Access)> {
        let mut all = vec![("AT_RESULT", Access::Write), ("AT_BOUNDS", Access::Write)];
        all.extend(inputs(&self.layout, self.fused));
        all
    }

    /// Flags and values of the kernel as a whole.
    fn whole_template(&self) -> Template {
        let layout = &self.layout;
        let fused = self.fused.unwrap_or(Fused { norms: false, rotates: false, interleaved: false });
        let span = 1usize << self.dim().trailing_zeros();
        let (at_once, turns) = self.four_turns();
        let [shared, weights] = self.shared();
        self.template(Kind::Rest)
            .flag("NEW", self.fused.is_some())
            .flag("NORMS", fused.norms)
            .flag("ROTATES", fused.rotates)
            .flag("INTERLEAVED", fused.interleaved)
            .flag("STAGED", fused.norms || fused.rotates)
            .flag("HADAMARD", self.hadamard())
            .flag("SINK", layout.sink())
            .flag("CAP", self.cap)
            .flag("V_ROTATED", layout.v_rotated)
            .value("K_ROTATED", layout.k_rotated)
            .value("V_ROTATED", layout.v_rotated)
            .value("SPAN", span)
            .value("SPAN_FACTOR", format!("{:?}", (1.0 / (span as f64).sqrt()) as f32))
            .value("GROUP", self.group)
            .value("BLOCKS", self.blocks)
            .value("SHARERS", self.sharers())
            .value("EACH", (64 * self.blocks * self.fours).div_ceil(self.lanes))
            .value("WIDE", self.wide())
            .value("WIDE_TURNS", self.wide().div_ceil(self.lanes))
            .value("FOURS", self.fours_and_new())
            .value("FOURS_AT_ONCE", at_once)
            .value("FOUR_TURNS", turns)
            .value("SLOTS", self.slots())
            .value("STAGE", self.wide() * self.fours_and_new())
            .value("PARTS", self.parts())
            .value("SETS", self.sets())
            .value("RUNS", self.runs())
            .value("QUERIES", self.dim() * self.fours)
            .value("Q_CODES", self.dim() / 4 * self.fours)
            .value("Q_GROUPS", self.groups() * self.fours)
            .value("SHARED", shared)
            .value("WEIGHTS", weights)
            .value("W_CODES", 4 * self.tasks())
            .value("W_TASKS", self.tasks())
    }

    pub fn source(&self) -> Source {
        let bindings = self.bindings();
        let write = self.fused.is_some();
        let mut template = self.whole_template().value("ACCESS", if write { "read_write" } else { "read" });
        for (i, (name, _)) in bindings.iter().enumerate() {
            template = template.value(name, i);
        }
        template = template
            .piece("pages", self.layout.piece())
            .piece("runs", RUNS)
            .piece("prepare", PREPARE)
            .piece("q_codes", Q_CODES)
            .piece("score", SCORE)
            .piece("tanh", tanh("vec4<f32>"))
            .piece("rope_angle", ROPE_ANGLE)
            .piece("k_names", K_NAMES)
            .piece("k_fetch", K_FETCH)
            .piece("k_loads", self.loads(true))
            .piece("scores", self.kinds(true, SCORES))
            .piece("weigh", WEIGH)
            .piece("v_names", V_NAMES)
            .piece("v_fetch", V_FETCH)
            .piece("v_loads", self.loads(false))
            .piece("values", self.kinds(false, VALUES));
        if write {
            template = template.piece("encode", encoders_of_one(&self.layout, self.lanes, self.neighbors()));
        }
        Source {
            wgsl: template.render(DECODE),
            bindings: bindings.into_iter().map(|(_, access)| access).collect(),
        }
    }
}

/// What the merging kernel is specialised by.
#[derive(Copy, Clone, Debug)]
pub struct Merge {
    /// Of V.
    pub head_dim: usize,
    /// Whether V is stored rotated, and in blocks of how many dimensions.
    pub rotated: bool,
    pub span: usize,
    pub sinks: bool,
    pub int8: bool,
    /// Most splits of a row.
    pub splits: usize,
    pub subgroups: Subgroups,
}

impl Merge {
    pub fn key(&self) -> KernelKey {
        let flags = [self.rotated, self.sinks, self.int8].map(u32::from);
        KernelKey {
            name: "merge attention",
            params: [self.head_dim as u32, flags[0], flags[1], flags[2], self.span as u32, 0, 0, 0],
        }
    }

    pub fn source(&self) -> Source {
        let wide = self.head_dim.min(256);
        let span = self.span;
        let next = 4 + usize::from(self.sinks);
        let wgsl = Template::new()
            .flag("SINKS", self.sinks)
            .flag("INT8", self.int8)
            .flag("V_ROTATED", self.rotated)
            .flag("SUBGROUPS", self.subgroups.is_some())
            .value("RUNS", 256 / self.subgroups.unwrap_or(16))
            .value("AT_CODES", next)
            .value("AT_META", next + 1)
            .value("HEAD_DIM", self.head_dim)
            .value("WIDE", wide)
            .value("MOST_SPLITS", self.splits + 8 * (256 / wide))
            .value("RESULT", self.head_dim)
            .value("WORDS", (self.head_dim / 4).max(1))
            .value("SPAN", span)
            .value("SPAN_FACTOR", format!("{:?}", (1.0 / (span as f64).sqrt()) as f32))
            .piece("runs", RUNS)
            .piece("finish", FINISH)
            .render(MERGE);
        let mut bindings = vec![Access::Write, Access::Read, Access::Read, Access::Read];
        bindings.extend(self.sinks.then_some(Access::Read));
        bindings.extend(if self.int8 { vec![Access::Write; 2] } else { Vec::new() });
        Source { wgsl, bindings }
    }
}
