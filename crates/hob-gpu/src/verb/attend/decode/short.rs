//! The text of the kernel of short contexts, which one dispatch finishes, and how many lanes of it fit into workgroup
//! memory. It must not know sequences.

use super::kernel::{Fused, Subgroups, inputs};
use crate::pages::{Kind, Layout, Stored};
use crate::stream::{Access, KernelKey, Source};
use crate::template::Template;
use crate::verb::kv::encoders_of_one;
use crate::verb::quantize::QUANTIZE_BLOCK;
use crate::verb::rope::ROPE_ANGLE;
use crate::verb::tanh::tanh;

const SHORT: &str = include_str!("../../../wgsl/attend/short.wgsl");
const SCORES: &str = include_str!("../../../wgsl/attend/short_scores.wgsl");
const VALUES: &str = include_str!("../../../wgsl/attend/short_values.wgsl");
const NAMES: &str = include_str!("../../../wgsl/attend/short_names.wgsl");
const K_AHEAD: &str = include_str!("../../../wgsl/attend/short_k_ahead.wgsl");
const K_FETCH: &str = include_str!("../../../wgsl/attend/short_k_fetch.wgsl");
const V_AHEAD: &str = include_str!("../../../wgsl/attend/short_v_ahead.wgsl");
const V_FETCH: &str = include_str!("../../../wgsl/attend/short_v_fetch.wgsl");
const HADAMARD: &str = include_str!("../../../wgsl/attend/short_hadamard.wgsl");
const RUNS: &str = include_str!("../../../wgsl/attend/runs.wgsl");
const SCORE: &str = include_str!("../../../wgsl/attend/score.wgsl");
const FINISH: &str = include_str!("../../../wgsl/attend/finish.wgsl");
/// Positions of a context, at most: those of a page.
const POSITIONS: usize = hob_compute::PAGE_POSITIONS;

/// What the kernel is specialised by.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Short {
    pub layout: Layout,
    /// Lanes of a workgroup.
    pub lanes: usize,
    pub cap: bool,
    pub sinks: bool,
    pub int8: bool,
    pub fused: Option<Fused>,
    pub subgroups: Subgroups,
}

impl Short {
    /// This, with fewer lanes where `memory` bytes of workgroup memory are not enough; `None` if none are few enough.
    pub fn fitting(mut self, memory: usize, most_lanes: usize) -> Option<Short> {
        // A lane has two dimensions of V.
        let least = (self.dim() / 2).next_power_of_two().max(32);
        self.lanes = self.lanes.min(1 << most_lanes.ilog2()).max(least);
        while self.memory() > memory {
            self.lanes /= 2;
            if self.lanes < least {
                return None;
            }
        }
        Some(self)
    }

    fn dim(&self) -> usize {
        self.layout.head_dim
    }

    /// Slots that dimensions are given to: no subgroup has more lanes.
    fn wide(&self) -> usize {
        self.dim().next_power_of_two().max(128)
    }

    fn turns(&self) -> usize {
        self.wide().div_ceil(self.lanes)
    }

    fn hadamard(&self) -> bool {
        self.layout.k_rotated || self.fused.is_some() && self.layout.v_rotated
    }

    /// Slots of rows that other lanes want to know.
    fn stage(&self) -> usize {
        match (self.hadamard() || self.layout.v_rotated, self.fused.is_some_and(|f| f.rotates)) {
            (true, _) => 2 * self.wide(),
            (false, true) => self.wide(),
            (false, false) => 0,
        }
    }

    /// Dimensions of K that a lane takes at a time, and how many of these there are.
    fn k_units(&self, stored: Stored) -> [usize; 2] {
        let unit = match stored {
            stored if stored.is_packed() => 32,
            _ if self.dim().is_multiple_of(16) => 16,
            _ => 8,
        };
        [unit, self.dim() / unit]
    }

    /// Lots of 32 lanes that share a block's K: as many as all kinds of blocks can be divided by.
    fn most_sharers(&self) -> usize {
        let each = |kind| 1 << self.k_units(self.layout.formats(kind)[0])[1].trailing_zeros();
        self.layout.kinds().map(each).min().unwrap_or(1).min(self.lanes / 32)
    }

    fn sets(&self) -> usize {
        self.lanes / (self.dim() / 2)
    }

    fn parts(&self) -> usize {
        (self.most_sharers() * POSITIONS).max(self.sets() * self.dim())
    }

    fn slots(&self) -> usize {
        self.turns() * self.lanes
    }

    fn runs(&self) -> usize {
        2 * self.slots() / self.subgroups.unwrap_or(16)
    }

    /// Runs of lanes that have positions.
    fn peaks(&self) -> usize {
        self.lanes.min(POSITIONS) / self.subgroups.unwrap_or(1)
    }

    /// Whether eight neighboring lanes belong to one subgroup.
    fn neighbors(&self) -> bool {
        self.subgroups.is_some_and(|least| least >= 8)
    }

    /// Whether such lanes make a block of the int8 form.
    fn shared(&self) -> bool {
        self.int8 && self.neighbors()
    }

    /// Bytes of workgroup memory.
    fn memory(&self) -> usize {
        let (dim, packed) = (self.dim(), self.layout.k.is_packed() || self.layout.v.is_packed());
        let floats =
            2 * dim + self.parts() + POSITIONS + 2 * self.peaks() + if self.int8 { dim / 2 } else { 0 };
        let loose = if self.subgroups.is_none() { 2 * self.slots() } else { 0 };
        let fresh = match (self.fused.is_some(), packed) {
            (true, true) => 16 * dim + 32 * self.lanes + dim / 2 + 16,
            (true, false) => 8 * dim,
            (false, _) => 0,
        };
        4 * floats + 16 * (self.stage() + loose + self.runs()) + fresh
    }

    pub fn key(&self) -> KernelKey {
        let [shape, formats] = self.layout.key();
        let fused = self.fused.map_or(0, Fused::bits);
        let flags = [self.cap, self.sinks, self.int8].iter().fold(0, |bits, &on| 2 * bits + u32::from(on));
        let params = [shape, formats, self.lanes as u32, fused << 8 | flags, 0, 0, 0, 0];
        KernelKey { name: "attend short", params }
    }

    /// What is bound, in order.
    fn bindings(&self) -> Vec<(&'static str, Access)> {
        let mut all = vec![("AT_RESULT", Access::Write)];
        all.extend(
            [("AT_CODES", Access::Write), ("AT_META", Access::Write)].into_iter().filter(|_| self.int8),
        );
        all.extend(self.sinks.then_some(("AT_SINKS", Access::Read)));
        all.extend(inputs(&self.layout, self.fused));
        all
    }

    /// A piece for every kind of block.
    fn kinds(&self, text: &str) -> String {
        let one = |kind: Kind| {
            let [k, v] = self.layout.formats(kind);
            let [unit, units] = self.k_units(k);
            let nibbles = matches!(self.layout.v, Stored::Q4 | Stored::Asym4);
            self.layout
                .of_kind(kind)
                .flag("SPREAD", nibbles && !v.is_packed())
                .value("K_UNIT", unit)
                .value("K_UNITS", units)
                .piece("k_fetch", K_FETCH)
                .piece("v_fetch", V_FETCH)
                .render(text)
        };
        self.layout.kinds().map(one).collect()
    }

    fn template(&self) -> Template {
        let layout = &self.layout;
        let fused = self.fused.unwrap_or(Fused { norms: false, rotates: false, interleaved: false });
        let span = 1usize << self.dim().trailing_zeros();
        layout
            .of_kind(Kind::Rest)
            .flag("FIRST", layout.first)
            .flag("SUBGROUPS", self.subgroups.is_some())
            .flag("NEW", self.fused.is_some())
            .flag("SINKS", self.sinks)
            .flag("INT8", self.int8)
            .flag("NORMS", fused.norms)
            .flag("ROTATES", fused.rotates)
            .flag("INTERLEAVED", fused.interleaved)
            .flag("STAGED", self.stage() > 0)
            .flag("PREPARED", fused.norms || fused.rotates)
            .flag("SHARED", self.shared())
            .flag("TURNED", layout.v_rotated || !self.shared())
            .value("OUT", if self.shared() { "vec4<f32>" } else { "f32" })
            .value("VALUES", "parts")
            .value("PEAKS", self.peaks())
            .flag("HADAMARD", self.hadamard())
            .flag("CAP", self.cap)
            .flag("V_ROTATED", layout.v_rotated)
            .value("K_ROTATED", layout.k_rotated)
            .value("V_ROTATED", layout.v_rotated)
            .value("LANES", self.lanes)
            .value("WIDE", self.wide())
            .value("TURNS", self.turns())
            .value("SLOTS", self.slots())
            .value("SETS", self.sets())
            .value("V_LANES", self.dim() / 2)
            .value("PARTS", self.parts())
            .value("STAGE", self.stage())
            .value("RUNS", self.runs())
            .value("MOST_SHARERS", self.most_sharers())
            .value("NEAR", self.subgroups.unwrap_or(1).min(span))
            .value("SPAN", span)
            .value("SPAN_FACTOR", format!("{:?}", (1.0 / (span as f64).sqrt()) as f32))
            .value("ACCESS", if self.fused.is_some() { "read_write" } else { "read" })
    }

    pub fn source(&self) -> Source {
        let bindings = self.bindings();
        let mut template = self.template();
        for (i, (name, _)) in bindings.iter().enumerate() {
            template = template.value(name, i);
        }
        // The result is turned back before it is finished.
        let finish =
            Template::new().flag("INT8", self.int8).flag("V_ROTATED", false).value("WORDS", self.dim() / 4);
        template = template
            .piece("pages", self.layout.piece())
            .piece("runs", RUNS)
            .piece("score", SCORE)
            .piece("tanh", tanh("vec4<f32>"))
            .piece("rope_angle", ROPE_ANGLE)
            .piece("hadamard", HADAMARD)
            .piece("scores", self.kinds(SCORES))
            .piece("values", self.kinds(VALUES))
            .piece("ahead_names", NAMES)
            .piece("k_ahead", self.kinds(K_AHEAD))
            .piece("v_ahead", self.kinds(V_AHEAD))
            .piece("quantize_block", QUANTIZE_BLOCK)
            .piece("finish", finish.render(FINISH));
        if self.fused.is_some() {
            template = template.piece("encode", encoders_of_one(&self.layout, self.lanes, self.neighbors()));
        }
        Source {
            wgsl: template.render(SHORT),
            bindings: bindings.into_iter().map(|(_, access)| access).collect(),
        }
    }
}
