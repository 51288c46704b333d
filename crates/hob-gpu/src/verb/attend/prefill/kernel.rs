//! The text of the kernels for attention of many rows: a variant is everything that changes it. It must not know buffers.

use std::fmt::Write as _;

use hob_compute::Attend;

use crate::Tier;
use crate::pages::{Layout, Stored};
use crate::stream::{Access, KernelKey, Source};
use crate::template::Template;

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
/// Floats or halves between rows of scores and weights, as `flash_coop.wgsl` has them.
const STRIDE: usize = BLOCK + PAD;

/// How the cooperative form cuts its work.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Subgroups of a workgroup.
    pub subgroups: usize,
    /// Tiles of 16 rows of a subgroup.
    pub row_tiles: usize,
    /// Dimensions of K, and positions of V, that are in workgroup memory at once.
    pub staged: [usize; 2],
}

/// Everything that changes a kernel's text.
#[derive(Copy, Clone, Debug)]
pub struct Variant {
    pub layout: Layout,
    /// Query heads of a KV head.
    group: usize,
    capped: bool,
    sinks: bool,
    /// Writes the f16 form too.
    pub half: bool,
    /// Of the cooperative form.
    cut: Option<Cut>,
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
    fn cuts(&self) -> Vec<Cut> {
        let dim = self.layout.head_dim;
        if self.layout.k == Stored::F32 || !dim.is_multiple_of(16) || dim > MOST_COOP_DIM {
            return Vec::new();
        }
        let cut = |row_tiles, staged| Cut { subgroups: 4, row_tiles, staged };
        let small = cut(1, [32, 16]);
        // Two row tiles of a large head would not fit into registers.
        if dim > 128 { vec![cut(1, [64, 32]), small] } else { vec![cut(2, [64.min(dim), 32]), small] }
    }

    /// Rows of a tile.
    pub fn rows(&self) -> usize {
        match (self.cut, self.layout.head_dim) {
            (Some(cut), _) => 16 * cut.subgroups * cut.row_tiles,
            (None, ..=256) => 16,
            (None, _) => 4,
        }
    }

    /// Dimensions of K and positions of V in workgroup memory at once.
    fn parts(&self) -> [usize; 2] {
        let dim = self.layout.head_dim;
        match self.cut {
            Some(cut) => cut.staged,
            // 32 dimensions of 64 positions, and about as much of V.
            None => [32.min(dim), (2048 / dim).next_power_of_two().clamp(8, 32)],
        }
    }

    /// Numbers between rows of K and of V there.
    fn strides(&self) -> [usize; 2] {
        let pad = if self.cut.is_some() { PAD } else { 0 };
        [BLOCK + pad, self.layout.head_dim + pad]
    }

    /// Numbers of staged K or V.
    fn stage(&self) -> usize {
        let ([k, v], [k_stride, v_stride]) = (self.parts(), self.strides());
        (k * k_stride).max(v * v_stride)
    }

    /// Bytes of workgroup memory of the cooperative form.
    fn memory(&self) -> usize {
        let Some(cut) = self.cut else { return 0 };
        64 * cut.subgroups * STRIDE + self.rows() * (2 * STRIDE + 4) + 2 * self.stage() + 64
    }

    pub fn key(&self) -> KernelKey {
        let [shape, formats] = self.layout.key();
        let flags = [self.capped, self.sinks, self.half, self.cut.is_some()];
        let flags = flags.iter().fold(0, |bits, &on| 2 * bits + u32::from(on));
        let cut = self.cut.map_or([0; 4], |cut| {
            let [k, v] = cut.staged;
            [cut.subgroups as u32, cut.row_tiles as u32, k as u32, v as u32]
        });
        let [subgroups, row_tiles, k, v] = cut;
        KernelKey {
            name: "attention of many rows",
            params: [shape, formats, flags, self.group as u32, subgroups, row_tiles, k, v],
        }
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
        let Layout { head_dim: dim, kv_heads, k, v, k_rotated, v_rotated, first } = self.layout;
        let pieces = |stored: Stored| stored.part_words(dim) / 4;
        let block = pieces(k) + pieces(v);
        let sink = self.layout.sink();
        let wide = if sink { 2 * pieces(Stored::F16) } else { block };
        let ([k_part, v_part], [k_stride, v_stride]) = (self.parts(), self.strides());
        let nibbles = |stored| matches!(stored, Stored::Q4 | Stored::Asym4);
        let floats = |stored| matches!(stored, Stored::F16 | Stored::Bf16);
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
            .flag("EXACT", k == Stored::F32)
            .flag("K_FLOATS", floats(k))
            .flag("V_FLOATS", floats(v))
            .flag("K_Q8", k == Stored::Q8)
            .flag("V_Q8", v == Stored::Q8)
            .flag("K_NIBBLES", nibbles(k))
            .flag("V_NIBBLES", nibbles(v))
            .flag("K_MINIMA", k == Stored::Asym4)
            .flag("V_MINIMA", v == Stored::Asym4);
        template
            .value("SINK", sink)
            .value("SINKS_AT", after)
            .value("HALF_AT", after + usize::from(self.sinks))
            .value("DIM", dim)
            .value("GROUP", self.group)
            .value("ROWS", self.rows())
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
            .value("K_STRIDE", k_stride / 4)
            .value("V_STRIDE", v_stride / 4)
            .value("ROTATED", rotated)
            .value("ROTATION", format!("{:?}", rotation(rotated)))
            .value("ROTATION_OF_V", format!("{:?}", if v_rotated { rotation(rotated) } else { 1.0 }))
            .piece("rows", ROWS)
            .piece("stage", STAGE)
    }

    fn plain(&self) -> Template {
        let (dim, quads) = (self.layout.head_dim, self.rows() / 4);
        self.template()
            .flag("HALVES", false)
            .value("STAGE", self.stage())
            .value("QUAD", "f32")
            .value("HALF_QUAD", "f16")
            .value("PAGE_WORD", "vec4<u32>")
            .value("LANES", LANES)
            .value("QUADS", quads)
            .value("QUERIES", quads * dim)
            .value("WEIGHTS", quads * BLOCK)
            .value("K_PARTS", dim.div_ceil(self.parts()[0]))
            .value("ACCUMULATORS", quads * dim.div_ceil(LANES))
    }

    fn coop(&self, cut: &Cut) -> Template {
        let unroll =
            Unroll { cut, dim: self.layout.head_dim, parts: self.parts(), v_rotated: self.layout.v_rotated };
        self.template()
            .flag("HALVES", true)
            .value("QUAD", "vec4<f32>")
            .value("HALF_QUAD", "vec4<f16>")
            .value("PAGE_WORD", "vec4<u32>")
            .value("LANES", 32 * cut.subgroups)
            .value("ROW_TILES", cut.row_tiles)
            .value("STRIDE", STRIDE / 4)
            .value("SCORES", 16 * cut.subgroups * STRIDE / 4)
            .value("WEIGHTS", self.rows() * STRIDE / 4)
            .value("STAGE", self.stage() / 4)
            .piece("state", unroll.state())
            .piece("queries", unroll.queries())
            .piece("scores", unroll.scores())
            .piece("weights", unroll.weights())
            .piece("rescale", unroll.rescale())
            .piece("values", unroll.values())
            .piece("finish", unroll.finish())
    }
}

/// What a rotation over blocks of `block` is divided by.
fn rotation(block: usize) -> f32 {
    (1.0 / (block as f64).sqrt()) as f32
}

/// The parts of the cooperative form that name matrices one by one: they live in registers, which have no index.
struct Unroll<'a> {
    cut: &'a Cut,
    dim: usize,
    parts: [usize; 2],
    v_rotated: bool,
}

const A: &str = "coopLoadT<coop_mat16x16<f16, A>>";
const B: &str = "coopLoadT<coop_mat16x16<f16, B>>";
const C: &str = "coopLoadT<coop_mat16x16<f32, C>>";

macro_rules! line {
    ($text:expr, $($arg:tt)*) => {
        writeln!($text, $($arg)*).expect("writing to a string succeeds")
    };
}

impl Unroll<'_> {
    fn tiles(&self) -> usize {
        self.dim / 16
    }

    fn row_tiles(&self) -> std::ops::Range<usize> {
        0..self.cut.row_tiles
    }

    /// Chunks of at most four tiles of 16 dimensions.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> {
        let tiles = self.tiles();
        (0..tiles).step_by(4).map(move |first| (first, 4.min(tiles - first)))
    }

    /// What a lane knows of its rows, and the sums.
    fn state(&self) -> String {
        let mut t = String::new();
        for r in self.row_tiles() {
            line!(t, "var state_{r} = Row(-1.0e30, 0.0);");
            line!(t, "let own_{r} = row + {}u + lane / 2u;", 16 * r);
            line!(t, "let last_{r} = t.position + (t.start + own_{r}) / GROUP;");
            line!(t, "let seen_{r} = vec2<u32>(first_seen(last_{r}), last_{r} + 1u);");
            for n in 0..self.tiles() {
                line!(t, "var sum_{r}_{n} = coop_mat16x16<f32, C>();");
            }
        }
        t
    }

    fn queries(&self) -> String {
        let mut t = String::new();
        for (first, count) in self.chunks() {
            line!(t, "workgroupBarrier();");
            line!(t, "put_queries(t, {first}u, {count}u, index);");
            line!(t, "workgroupBarrier();");
            for r in self.row_tiles() {
                for j in 0..count {
                    let n = first + j;
                    line!(t, "let at_q_{r}_{n} = mine + {}u * STRIDE + {}u;", 16 * r, 4 * j);
                    line!(t, "let q_{r}_{n} = {A}(&weights[at_q_{r}_{n}], STRIDE);");
                }
            }
        }
        t
    }

    fn scores(&self) -> String {
        let mut t = String::new();
        for r in self.row_tiles() {
            (0..4).for_each(|c| line!(t, "var s_{r}_{c} = coop_mat16x16<f32, C>();"));
        }
        for tile in 0..self.tiles() {
            let (k_part, from) = (self.parts[0] / 16, tile % (self.parts[0] / 16));
            if from == 0 {
                line!(t, "workgroupBarrier();");
                line!(t, "stage_k(first, wide, at, {}u, index);", tile / k_part);
                line!(t, "workgroupBarrier();");
            }
            for c in 0..4 {
                line!(t, "{{");
                line!(t, "let k = {B}(&stage[{}u], K_STRIDE);", (16 * from * (BLOCK + PAD) + 16 * c) / 4);
                for r in self.row_tiles() {
                    line!(t, "s_{r}_{c} = coopMultiplyAdd(q_{r}_{tile}, k, s_{r}_{c});");
                }
                line!(t, "}}");
            }
        }
        t
    }

    fn weights(&self) -> String {
        let mut t = String::new();
        for r in self.row_tiles() {
            for c in 0..4 {
                line!(t, "let at_s_{r}_{c} = scratch + {}u;", 4 * c);
                line!(t, "coopStoreT(s_{r}_{c}, &scores[at_s_{r}_{c}], STRIDE);");
            }
            line!(t, "workgroupBarrier();");
            let from = "scratch + lane / 2u * STRIDE";
            line!(t, "state_{r} = weigh(state_{r}, own_{r}, {from}, side, block, seen_{r}, all);");
            if r + 1 < self.cut.row_tiles {
                line!(t, "workgroupBarrier();");
            }
        }
        self.stage_values(0, &mut t);
        line!(t, "workgroupBarrier();");
        t
    }

    fn stage_values(&self, part: usize, t: &mut String) {
        line!(t, "stage_v(first, wide, v_at, {part}u, index);");
        line!(t, "clear_v(block, {part}u, last_position + 1u, index);");
    }

    /// Sums times the rows' factors, through workgroup memory: matrices have no rows.
    fn rescale(&self) -> String {
        let mut t = String::new();
        for r in self.row_tiles() {
            for (first, count) in self.chunks() {
                self.each_of_chunk(&mut t, (first, count), |t, n| {
                    line!(t, "coopStoreT(sum_{r}_{n}, &scores[to], STRIDE);");
                });
                line!(t, "workgroupBarrier();");
                line!(t, "scale_scores(scratch, row + {}u, lane);", 16 * r);
                line!(t, "workgroupBarrier();");
                self.each_of_chunk(&mut t, (first, count), |t, n| {
                    line!(t, "sum_{r}_{n} = {C}(&scores[to], STRIDE);");
                });
                line!(t, "workgroupBarrier();");
            }
        }
        t
    }

    /// `each` with `to`, where a tile of the chunk lies in the subgroup's scratch.
    fn each_of_chunk(
        &self,
        t: &mut String,
        (first, count): (usize, usize),
        each: impl Fn(&mut String, usize),
    ) {
        for n in first..first + count {
            line!(t, "{{");
            line!(t, "let to = scratch + {}u;", 4 * (n - first));
            each(t, n);
            line!(t, "}}");
        }
    }

    fn values(&self) -> String {
        let mut t = String::new();
        for p in 0..BLOCK / 16 {
            let per_part = self.parts[1] / 16;
            let (part, from) = (p / per_part, p % per_part);
            if part > 0 && from == 0 {
                line!(t, "workgroupBarrier();");
                self.stage_values(part, &mut t);
                line!(t, "workgroupBarrier();");
            }
            for r in self.row_tiles() {
                line!(t, "let at_w_{r}_{p} = mine + {}u * STRIDE + {}u;", 16 * r, 4 * p);
                line!(t, "let w_{r}_{p} = {A}(&weights[at_w_{r}_{p}], STRIDE);");
            }
            for n in 0..self.tiles() {
                line!(t, "{{");
                line!(t, "let v = {B}(&stage[{}u], V_STRIDE);", (16 * from * (self.dim + PAD) + 16 * n) / 4);
                for r in self.row_tiles() {
                    line!(t, "sum_{r}_{n} = coopMultiplyAdd(w_{r}_{p}, v, sum_{r}_{n});");
                }
                line!(t, "}}");
            }
        }
        t
    }

    fn finish(&self) -> String {
        let mut t = String::new();
        line!(t, "workgroupBarrier();");
        for r in self.row_tiles() {
            line!(t, "let factor_{r} = last_factor(t, own_{r}, state_{r});");
            line!(t, "if (side == 0u) {{ factors[own_{r}] = factor_{r}; }}");
            if self.v_rotated {
                self.rotate(r, &mut t);
            }
            for (first, count) in self.chunks() {
                line!(t, "workgroupBarrier();");
                self.each_of_chunk(&mut t, (first, count), |t, n| {
                    line!(t, "coopStoreT(sum_{r}_{n}, &scores[to], STRIDE);");
                });
                line!(t, "workgroupBarrier();");
                line!(t, "write_tiles(t, scratch, row + {}u, {first}u, {count}u, lane);", 16 * r);
            }
        }
        t
    }

    /// The steps of the Hadamard rotation that go beyond 16 neighbors: sums and differences of tiles.
    fn rotate(&self, r: usize, t: &mut String) {
        let block = (1usize << self.dim.trailing_zeros()) / 16;
        let mut stride = 1;
        while stride < block {
            for low in (0..self.tiles()).filter(|n| n & stride == 0) {
                let high = low + stride;
                line!(t, "{{");
                line!(t, "let a = sum_{r}_{low};");
                line!(t, "let b = sum_{r}_{high};");
                line!(t, "sum_{r}_{low} = a + b;");
                line!(t, "sum_{r}_{high} = a - b;");
                line!(t, "}}");
            }
            stride *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use hob_compute::PageSpec;
    use hob_quant::KvFormat;
    use wgpu::naga::{back::spv, front::wgsl, valid};

    use super::*;

    /// Every variant of a shape, as a device with everything or with nothing would run it.
    fn variants(head_dim: usize, group: usize, k: KvFormat, v: KvFormat) -> Vec<Variant> {
        let spec = PageSpec { kv_heads: 2, head_dim, k, v, first: false };
        let mut all = Vec::new();
        for exact in [false, true] {
            for (capped, sinks, half) in [(false, false, true), (true, true, false), (true, true, true)] {
                let layout = Layout::new(&spec, exact);
                let plain = Variant { layout, group, capped, sinks, half, cut: None };
                all.push(plain);
                all.extend(plain.cuts().into_iter().map(|cut| Variant { cut: Some(cut), ..plain }));
            }
        }
        all
    }

    #[test]
    fn every_variant_is_valid_wgsl_and_becomes_spirv_and_fits_into_workgroup_memory() {
        let mut count = 0;
        let formats = KvFormat::ALL.into_iter().flat_map(|k| KvFormat::ALL.map(|v| (k, v)));
        let few = [(KvFormat::F16, KvFormat::F16), (KvFormat::Q8, KvFormat::Q4)];
        let shapes = [(64, 1), (96, 3), (256, 16)].into_iter().flat_map(|s| few.map(|f| (s, f)));
        let odd = [((80, 5), few[0]), ((8, 2), few[0]), ((512, 2), few[0])];
        for ((dim, group), (k, v)) in formats.map(|f| ((128, 4), f)).chain(shapes).chain(odd) {
            for variant in variants(dim, group, k, v) {
                let text = variant.source().wgsl;
                let module = wgsl::parse_str(&text)
                    .unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&text)));
                let flags = valid::ValidationFlags::all();
                let info = valid::Validator::new(flags, valid::Capabilities::all())
                    .validate(&module)
                    .unwrap_or_else(|e| panic!("{variant:?}: {}", e.emit_to_string(&text)));
                let options = spv::Options { lang_version: (1, 4), ..Default::default() };
                spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
                let used: u32 = workgroup_bytes(&module);
                let most = if variant.cut.is_some() { 48 << 10 } else { 32 << 10 };
                assert!(used <= most, "{variant:?} uses {used} bytes");
                if variant.cut.is_some() {
                    assert!(used as usize <= variant.memory(), "{variant:?}: {used} of {}", variant.memory());
                }
                count += 1;
            }
        }
        assert!(count > 100, "{count}");
    }

    fn workgroup_bytes(module: &wgpu::naga::Module) -> u32 {
        let globals = module.global_variables.iter().map(|(_, global)| global);
        let ours = globals.filter(|g| g.space == wgpu::naga::AddressSpace::WorkGroup);
        ours.map(|g| module.types[g.ty].inner.size(module.to_ctx()).next_multiple_of(16)).sum()
    }
}
