//! The text of the kernels of attention of few rows, and which form fits into workgroup memory. It must not know
//! sequences.

use crate::pages::{Kind, Layout, Stored};
use crate::stream::{Access, KernelKey, Source};
use crate::template::Template;
use crate::verb::kv::encoders;
use crate::verb::rope::ROPE_ANGLE;

const DECODE: &str = include_str!("../../../wgsl/attend/decode.wgsl");
const PREPARE: &str = include_str!("../../../wgsl/attend/prepare.wgsl");
const SCORE: &str = include_str!("../../../wgsl/attend/score.wgsl");
const SCORES: &str = include_str!("../../../wgsl/attend/scores.wgsl");
const WEIGH: &str = include_str!("../../../wgsl/attend/weigh.wgsl");
const VALUES: &str = include_str!("../../../wgsl/attend/values.wgsl");
const MERGE: &str = include_str!("../../../wgsl/attend/merge.wgsl");

/// What is done to new rows before they are attended to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    pub norms: bool,
    pub rotates: bool,
    pub interleaved: bool,
}

/// What the kernel of a split is specialised by.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    pub layout: Layout,
    /// Columns of a tile (query heads of a KV head, times rows) in fours: 1 to 4.
    pub fours: usize,
    /// Lanes of a workgroup: 32 for each block of a round.
    pub lanes: usize,
    pub cap: bool,
    pub fused: Option<Fused>,
    pub subgroups: bool,
}

impl Variant {
    /// This or the next smaller that fits into `memory` bytes of workgroup memory; `None` if none does.
    pub fn fitting(mut self, memory: usize) -> Option<Variant> {
        // A lane has two dimensions of V.
        let least = (self.layout.head_dim / 2).next_power_of_two().max(32);
        let most = self.lanes.max(least);
        while self.fours > 0 {
            self.lanes = most;
            while self.lanes >= least {
                if self.memory() <= memory {
                    return Some(self);
                }
                self.lanes /= 2;
            }
            self.fours -= 1;
        }
        None
    }

    fn groups(&self) -> usize {
        self.layout.head_dim / 32
    }

    /// Blocks of a round.
    fn blocks(&self) -> usize {
        self.lanes / 32
    }

    /// Tasks of weighing V: see `weigh.wgsl`.
    fn tasks(&self) -> usize {
        4 * self.blocks() * self.groups() * self.fours
    }

    fn weights(&self) -> usize {
        64 * self.blocks() * self.fours
    }

    /// Bytes of workgroup memory.
    fn memory(&self) -> usize {
        let (dim, fours, layout) = (self.layout.head_dim, self.fours, &self.layout);
        let mut vectors = dim * fours + self.weights();
        if layout.k.is_packed() {
            let codes = dim / 4 * fours;
            vectors += 2 * self.groups() * fours + codes * if layout.k == Stored::Q8 { 2 } else { 1 };
        }
        if layout.v.is_packed() {
            // Either two planes of codes, or one and what is added.
            vectors += 4 * self.tasks() + self.tasks();
            vectors += if layout.v == Stored::Q8 { 4 * self.tasks() } else { self.tasks() };
        }
        let fresh = if self.fused.is_some() { 8 * dim + 32 * self.lanes + dim / 4 + 16 } else { 0 };
        16 * vectors + fresh
    }

    pub fn key(&self) -> KernelKey {
        let [shape, formats] = self.layout.key();
        let fused = self.fused.map_or(0, |f| {
            1 + 2 * u32::from(f.norms) + 4 * u32::from(f.rotates) + 8 * u32::from(f.interleaved)
        });
        let sizes = self.fours as u32 * 65536 + self.lanes as u32;
        KernelKey { name: "attend few", params: [shape, formats, sizes, self.cap.into(), fused, 0, 0, 0] }
    }

    /// Flags and values that all pieces share, for blocks of one kind.
    fn template(&self, kind: Kind) -> Template {
        let layout = &self.layout;
        let spread = kind == Kind::Sink && matches!(layout.v, Stored::Q4 | Stored::Asym4);
        let fused = self.fused.unwrap_or(Fused { norms: false, rotates: false, interleaved: false });
        let half = layout.head_dim / 2;
        let span = 1usize << layout.head_dim.trailing_zeros();
        // Loads that are under way together hide each other's latency; with many columns registers run out first.
        let steps = [32, 16, 8].into_iter().skip(usize::from(self.fours > 2));
        let step = |width: usize| steps.clone().find(|s| width.is_multiple_of(*s)).unwrap_or(8);
        let most = |stored: Stored, small: &'static str| if stored == Stored::Q8 { "32512.0" } else { small };
        layout
            .of_kind(kind)
            .flag("FIRST", layout.first)
            .flag("SPREAD", spread)
            .flag("NEW", self.fused.is_some())
            .flag("NORMS", fused.norms)
            .flag("ROTATES", fused.rotates)
            .flag("INTERLEAVED", fused.interleaved)
            .flag("SUBGROUPS", self.subgroups)
            .flag("CAP", self.cap)
            .flag("K_ROTATED", layout.k_rotated)
            .flag("V_ROTATED", layout.v_rotated)
            .value("CV", self.fours)
            .value("K_STEP", step(layout.head_dim))
            .value("V_STEP", step(64))
            .value("LANES", self.lanes)
            .value("SPAN", span)
            .value("SPAN_FACTOR", format!("{:?}", (1.0 / (span as f64).sqrt()) as f32))
            .value("Q_MOST", most(layout.k, "127.0"))
            .value("W_MOST", most(layout.v, "255.0"))
            .value("V_LANES", half)
            .value("V_SETS", self.lanes / half)
            .value("V_USED", self.lanes / half * half)
            .value("ROUNDS", self.tasks().div_ceil(self.lanes))
    }

    /// A piece for every kind of block.
    fn kinds(&self, text: &str) -> String {
        self.layout.kinds().map(|kind| self.template(kind).render(text)).collect()
    }

    pub fn source(&self) -> Source {
        let (layout, fours) = (&self.layout, self.fours);
        let mut bindings = vec![Access::Write, Access::Write, Access::Read, Access::Read];
        let pages = if self.fused.is_some() { Access::Write } else { Access::Read };
        bindings.extend(vec![pages; if layout.first { 2 } else { 1 }]);
        let next = bindings.len();
        let norms = self.fused.is_some_and(|f| f.norms);
        if let Some(fused) = self.fused {
            let count = 2 + 2 * usize::from(fused.norms) + usize::from(fused.rotates);
            bindings.extend(vec![Access::Read; count]);
        }
        let mut template = self
            .template(Kind::Rest)
            .value("ACCESS", if pages == Access::Write { "read_write" } else { "read" })
            .value("AT_K", next)
            .value("AT_V", next + 1)
            .value("AT_Q_NORM", next + 2)
            .value("AT_K_NORM", next + 3)
            .value("AT_FREQS", if norms { next + 4 } else { next + 2 })
            .value("QUERIES", layout.head_dim * fours)
            .value("Q_CODES", layout.head_dim / 4 * fours)
            .value("Q_GROUPS", self.groups() * fours)
            .value("WEIGHTS", self.weights())
            .value("W_CODES", 4 * self.tasks())
            .value("W_TASKS", self.tasks())
            .piece("pages", layout.piece())
            .piece("prepare", PREPARE)
            .piece("score", SCORE)
            .piece("rope_angle", ROPE_ANGLE)
            .piece("scores", self.kinds(SCORES))
            .piece("weigh", WEIGH)
            .piece("values", self.kinds(VALUES));
        if self.fused.is_some() {
            template = template.piece("encode", encoders(layout, 1, self.lanes));
        }
        Source { wgsl: template.render(DECODE), bindings }
    }
}

/// What the merging kernel is specialised by.
#[derive(Copy, Clone, Debug)]
pub struct Merge {
    pub head_dim: usize,
    /// Whether V is stored rotated.
    pub rotated: bool,
    pub sinks: bool,
    pub int8: bool,
    /// Most splits of a row.
    pub splits: usize,
}

impl Merge {
    pub fn key(&self) -> KernelKey {
        let flags = [self.rotated, self.sinks, self.int8].map(u32::from);
        KernelKey {
            name: "merge attention",
            params: [self.head_dim as u32, flags[0], flags[1], flags[2], 0, 0, 0, 0],
        }
    }

    pub fn source(&self) -> Source {
        let wide = self.head_dim.min(256);
        let span = 1usize << self.head_dim.trailing_zeros();
        let next = 4 + usize::from(self.sinks);
        let wgsl = Template::new()
            .flag("SINKS", self.sinks)
            .flag("INT8", self.int8)
            .flag("V_ROTATED", self.rotated)
            .value("AT_CODES", next)
            .value("AT_META", next + 1)
            .value("HEAD_DIM", self.head_dim)
            .value("WIDE", wide)
            .value("MOST_SPLITS", self.splits + 4 * (256 / wide))
            .value("RESULT", self.head_dim)
            .value("WORDS", (self.head_dim / 4).max(1))
            .value("SPAN", span)
            .value("SPAN_FACTOR", format!("{:?}", (1.0 / (span as f64).sqrt()) as f32))
            .render(MERGE);
        let mut bindings = vec![Access::Write, Access::Read, Access::Read, Access::Read];
        bindings.extend(self.sinks.then_some(Access::Read));
        bindings.extend(if self.int8 { vec![Access::Write; 2] } else { Vec::new() });
        Source { wgsl, bindings }
    }
}
