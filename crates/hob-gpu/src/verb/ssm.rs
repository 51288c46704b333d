//! Selective state spaces: checks, which form runs, and gate and norm behind either. Few rows are bound by reading the
//! state (`recurrent`), many by arithmetic (`chunked`). It must not know how either computes.

mod chunked;
mod recurrent;

use hob_compute::check::recurrent::{self as check, MemoryShape, SsmBufs};
use hob_compute::{Recurrence, Result, SlotRows, SsmScan, SsmShape, WeightKind};

use crate::Gpu;
use crate::act::FEW_ROWS;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::template::Template;
use crate::verb::quantize::QUANTIZE_BLOCK;

const VERB: &str = "ssm_scan";
const GATES: &str = include_str!("../wgsl/delta/gates.wgsl");

/// Buffers of an `ssm_scan`, whose checks are done.
struct Bound {
    out: BufferId,
    state: BufferId,
    records: Option<BufferId>,
    /// Rows that have records.
    held: usize,
    xbc: BufferId,
    z: BufferId,
    dt: BufferId,
    rate: BufferId,
    bias: BufferId,
    skip: BufferId,
    norm: BufferId,
    /// Least and largest step, as kernels get them.
    limit: [u32; 2],
}

impl Gpu {
    pub(crate) fn run_ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        let bound = self.checked_ssm(args)?;
        for buf in args.memory.bufs().chain([args.out]) {
            self.acts.get_mut(VERB, buf)?.written();
        }
        // By itself: workgroups of one head share records, and some may write theirs while others still read.
        if args.seqs.iter().any(|s| s.accepted > 0) {
            self.catch_up_states(&args.shape.products(), (&args.memory, bound.held), args.seqs, |_| true)?;
        }
        // Each sequence goes by its own rows, so that company changes no bit. Both forms are made ready.
        if args.seqs.iter().any(|s| self.takes(s, true)) {
            self.run_chunked_ssm(args, &bound)?;
        }
        if args.seqs.iter().any(|s| self.takes(s, false)) {
            self.run_recurrent_ssm(args, &bound)?;
        }
        self.finish_ssm(args, &bound)
    }

    fn checked_ssm(&self, args: &SsmScan) -> Result<Bound> {
        let weights = [args.rate, args.bias, args.skip, args.norm];
        let mut vectors = [(0, None); 4];
        for (vector, weight) in vectors.iter_mut().zip(weights) {
            let weight = self.weight(VERB, weight, WeightKind::Vector)?;
            *vector = (weight.spec.cols, Some(weight.parts[0].buffer));
        }
        let shapes = SsmBufs {
            xbc: self.shape(VERB, args.xbc)?,
            z: self.shape(VERB, args.z)?,
            dt: self.shape(VERB, args.dt)?,
            memory: MemoryShape::of(&args.memory, |buf| self.shape(VERB, buf))?,
            out: self.shape(VERB, args.out)?,
        };
        check::ssm_scan(args, &shapes, vectors.map(|v| v.0))?;
        let of = |buf| Ok(self.acts.get(VERB, buf)?.rows);
        let out = of(args.out)?;
        let [rate, bias, skip, norm] = vectors.map(|v| v.1.unwrap_or(out));
        Ok(Bound {
            out,
            state: of(args.memory.state)?,
            records: args.memory.records.map(of).transpose()?,
            held: shapes.memory.held(&Recurrence::Ssm(args.shape)),
            xbc: of(args.xbc)?,
            z: of(args.z)?,
            dt: of(args.dt)?,
            rate,
            bias,
            skip,
            norm,
            // Kernels need not know infinity.
            limit: args.limit.map(|l| l.min(f32::MAX).to_bits()),
        })
    }

    /// Gate and norm of all rows, and the int8 form where few rows go on to a product that has asked for it.
    fn finish_ssm(&mut self, args: &SsmScan, bound: &Bound) -> Result<()> {
        let shape = &args.shape;
        let width = shape.width() / shape.groups;
        let mut words = std::mem::take(&mut self.words);
        words.clear();
        let rows = |s: &SlotRows| s.row as u32..(s.row + s.rows) as u32;
        args.seqs.iter().for_each(|s| words.extend(rows(s)));
        let (count, last) = (words.len(), words.last().map_or(0, |&row| row as usize + 1));
        let start = self.stream.arguments(&words);
        self.words = words;
        let start = start?;
        let act = self.acts.get_mut(VERB, args.out)?;
        // Every row up to the last must have the form for it to count.
        let form = act.int8.filter(|_| last <= FEW_ROWS && count == last && width.is_multiple_of(32));
        if form.is_some() && !self.stream.rehearsing {
            act.int8_rows = count;
        }
        let mut bindings = vec![bound.out, bound.z, bound.norm, self.stream.argument_buffer()];
        bindings.extend(form.into_iter().flat_map(|form| [form.codes, form.meta]));
        // A step may have the form and another not: both are made ready.
        for int8 in [false, true] {
            let key = KernelKey { name: "ssm finish", params: [width as u32, int8.into(), 0, 0, 0, 0, 0, 0] };
            let kernel = self.stream.kernel(key, || finish(width, int8))?;
            if int8 == form.is_some() {
                self.stream.dispatch(&Call {
                    kernel,
                    bindings: &bindings,
                    immediates: &[start, args.eps.to_bits()],
                    groups: [shape.groups as u32, count as u32, 1],
                    verb: VERB,
                    bytes: 12 * (count * shape.width()) as u64,
                })?;
            }
        }
        Ok(())
    }
}

/// What kernels are specialised by: the heads.
fn params(shape: &SsmShape) -> [u32; 8] {
    let SsmShape { heads, head_dim, state_dim, groups } = *shape;
    let sizes = [heads, head_dim, state_dim, groups].map(|n| n as u32);
    [sizes[0], sizes[1], sizes[2], sizes[3], 0, 0, 0, 0]
}

fn template(shape: &SsmShape) -> Template {
    Template::new()
        .value("HEADS", shape.heads)
        .value("HEAD_DIM", shape.head_dim)
        .value("STATE_DIM", shape.state_dim)
        .value("GROUPS", shape.groups)
        .value("CHANNELS", shape.channels())
        .piece("gates", GATES)
}

/// `width` is that of a group.
fn finish(width: usize, int8: bool) -> Source {
    let wgsl = Template::new()
        .flag("INT8", int8)
        .value("WIDTH", width)
        .value("VALUES", "values")
        .flag("SHARED", false)
        .piece("quantize_block", QUANTIZE_BLOCK)
        .piece("gates", GATES)
        .render(include_str!("../wgsl/ssm/finish.wgsl"));
    let mut bindings = vec![Access::Write, Access::Read, Access::Read, Access::Read];
    bindings.extend([Access::Write; 2].iter().filter(|_| int8));
    Source { wgsl, bindings }
}
