//! The CPU as a device: handles to memory, checks, and the call of the right verb.
//!
//! It owns buffers, weights and pages. A verb that writes a buffer drops the int8 form derived from it. Arithmetic
//! stands in the verb folders and in [`crate::linear`].

mod compressed;
mod exact;
mod heads;
mod mixture;
mod product;
mod recurrent;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use hob_compute::check::{self, Shape};
use hob_compute::reference::attention::Scoring;
use hob_compute::slots::{Slots, next_device};
use hob_compute::tickets::Tickets;
use hob_compute::{
    AppendKv, Attend, AttendEntries, Buf, ByteSource, CatchUp, Compress, Compute, ComputeError, DeltaNet,
    DeviceInfo, Embed, Experts, Heads, HeldBytes, HyperExpand, HyperMix, Linear, Map, Norm, PAGE_POSITIONS,
    Page, PageSpec, Pick, Picked, Result, Rope, Route, Select, ShortConv, SsmScan, Ticket, Weight,
    WeightKind, WeightSpec,
};

use crate::arena::{Arena, HugeVec};
use crate::isa::Isa;
use crate::linear::{self, ActCache, LoadCtx, Matrix};
use crate::pool::Pool;
use crate::verb::{attend, embed, kv, map, norm, pick, rope, sigmoid};

/// How the CPU computes.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuConfig {
    /// 0: as many as [`crate::available_threads`].
    pub threads: usize,
    /// Activations stay in f32.
    pub exact: bool,
    /// `None`: the best there is, or `HOB_ISA`. A class this CPU lacks is lowered.
    pub isa: Option<Isa>,
    /// Asks the system to keep worker `i` on the i-th CPU.
    pub pin: bool,
}

struct Buffer {
    data: HugeVec<f32>,
    shape: Shape,
    cache: ActCache,
    /// Changes at every write and is unique among all buffers.
    version: u64,
}

impl Buffer {
    fn rows(&self, rows: usize) -> &[f32] {
        &self.data[..rows * self.shape.width]
    }

    fn rows_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.data[..rows * self.shape.width]
    }
}

enum Loaded {
    Matrix(Matrix),
    /// Of experts or heads.
    Experts(Vec<Matrix>),
    /// Rows are read from the source when they are gathered.
    Table {
        source: Arc<dyn ByteSource>,
        row_bytes: usize,
    },
    Vector(HugeVec<f32>),
}

struct Tensor {
    spec: WeightSpec,
    loaded: Loaded,
    /// Taps of a short convolution and their number, one tap of all channels behind the other: made at the first use.
    turned: RefCell<(usize, Vec<f32>)>,
}

impl Tensor {
    fn wrong_kind(&self, verb: &'static str, expected: WeightKind) -> ComputeError {
        let found = format!("'{}', a {:?}", self.spec.name, self.spec.kind);
        ComputeError::shape(verb, format!("a weight loaded as {expected:?}"), found)
    }

    fn vector(&self, verb: &'static str) -> Result<&[f32]> {
        match &self.loaded {
            Loaded::Vector(values) => Ok(values),
            _ => Err(self.wrong_kind(verb, WeightKind::Vector)),
        }
    }

    fn table(&self) -> Result<embed::Table<'_>> {
        let Loaded::Table { source, row_bytes } = &self.loaded else {
            return Err(self.wrong_kind("embed", WeightKind::Table));
        };
        Ok(embed::Table {
            name: &self.spec.name,
            source: source.as_ref(),
            format: self.spec.format,
            cols: self.spec.cols,
            row_bytes: *row_bytes,
        })
    }
}

struct Pages {
    spec: PageSpec,
    /// In the layout of the spec; empty on an exact device.
    bytes: HugeVec<u8>,
    /// f32 in the layout of f16; empty unless the device is exact.
    floats: HugeVec<f32>,
    count: usize,
}

impl Pages {
    fn span(&self, index: u32) -> Range<usize> {
        let len = self.bytes.len().max(self.floats.len()) / self.count;
        index as usize * len..(index as usize + 1) * len
    }
}

type PagePools = Slots<hob_compute::Pool, Pages>;

/// Shape of a page's pool, once pool and page are known to exist.
fn page_spec(pools: &PagePools, verb: &'static str, page: Page) -> Result<PageSpec> {
    let pool = pools.get(verb, page.pool)?;
    if page.index as usize >= pool.count {
        return Err(ComputeError::shape(
            verb,
            format!("a page below {} of its pool", pool.count),
            page.index,
        ));
    }
    Ok(pool.spec)
}

/// The CPU of this machine.
pub struct Cpu {
    info: DeviceInfo,
    isa: Isa,
    pool: Pool,
    arena: Arena,
    buffers: Slots<Buf, Buffer>,
    weights: Slots<Weight, Tensor>,
    pages: PagePools,
    /// Counts writes to buffers.
    writes: u64,
    tickets: Tickets,
    /// What the last `pick` chose for every row of it.
    last: Vec<u32>,
    /// Ids of the rows being gathered.
    ids: Vec<u32>,
    tables: rope::Tables,
    attention: attend::Scratch,
    picking: pick::Scratch,
    mixture: mixture::Scratch,
    /// Scores of [`Compute::select`].
    scores: Vec<f32>,
    heads: linear::heads::Scratch,
    /// See [`product`].
    unwritten: HugeVec<f32>,
}

impl Cpu {
    /// Starts the pool.
    ///
    /// # Errors
    /// No memory.
    pub fn new(config: &CpuConfig) -> Result<Cpu> {
        let threads = if config.threads == 0 { crate::available_threads() } else { config.threads };
        let isa = config.isa.map_or_else(Isa::detect, Isa::lowered);
        let device = next_device();
        Ok(Cpu {
            info: DeviceInfo {
                kind: "cpu",
                isa: isa.name(),
                threads,
                exact: config.exact,
                adapter: String::new(),
                asynchronous: false,
            },
            isa,
            pool: Pool::adaptive(threads, config.pin),
            arena: Arena::new(),
            buffers: Slots::new(device),
            weights: Slots::new(device),
            pages: Slots::new(device),
            writes: 0,
            tickets: Tickets::new(),
            last: Vec::new(),
            ids: Vec::new(),
            tables: rope::Tables::default(),
            attention: attend::Scratch::default(),
            picking: pick::Scratch::default(),
            mixture: mixture::Scratch::default(),
            scores: Vec::new(),
            heads: linear::heads::Scratch::default(),
            unwritten: HugeVec::zeroed(0)?,
        })
    }

    fn shape(&self, verb: &'static str, buf: Buf) -> Result<Shape> {
        Ok(self.buffers.get(verb, buf)?.shape)
    }

    /// Marks a buffer as written: what was derived from it is void.
    fn touch(&mut self, verb: &'static str, buf: Buf) -> Result<()> {
        self.writes += 1;
        let buffer = self.buffers.get_mut(verb, buf)?;
        buffer.version = self.writes;
        buffer.cache.invalidate();
        Ok(())
    }

    fn load_vector(&self, spec: &WeightSpec, source: &dyn ByteSource, row_bytes: usize) -> Result<Loaded> {
        let mut bytes = vec![0u8; row_bytes];
        source
            .read_at(0, &mut bytes)
            .map_err(|source| ComputeError::Read { name: spec.name.clone(), source })?;
        let mut values = HugeVec::zeroed(spec.cols)?;
        hob_quant::decode_row(spec.format, &bytes, &mut values)
            .map_err(|e| ComputeError::Weight { name: spec.name.clone(), problem: e.to_string() })?;
        Ok(Loaded::Vector(values))
    }

    fn map_add(&mut self, a: Buf, b: Buf, out: Buf, rows: usize) -> Result<()> {
        let pool = &self.pool;
        let buffers = &mut self.buffers;
        match (a == out, b == out) {
            (true, true) => map::add(pool, None, None, buffers.get_mut("map", out)?.rows_mut(rows)),
            (false, false) if a != b => {
                let [a, b, out] = buffers.get_disjoint_mut("map", [a, b, out])?;
                map::add(pool, Some(a.rows(rows)), Some(b.rows(rows)), out.rows_mut(rows));
            }
            (own, _) => {
                let [x, out] = buffers.get_disjoint_mut("map", [if own { b } else { a }, out])?;
                let other = if a == b { Some(x.rows(rows)) } else { None };
                map::add(pool, Some(x.rows(rows)), other, out.rows_mut(rows));
            }
        }
        Ok(())
    }

    fn map_sigmoid_gate(&mut self, [a, by, out]: [Buf; 3], add: bool, rows: usize) -> Result<()> {
        let of = |buf| Ok((buf, self.shape("map", buf)?));
        let all = [of(a)?, of(by)?, of(out)?];
        check::sigmoid_gate(rows, all, add)?;
        let (pool, isa, width) = (&self.pool, self.isa, all[2].1.width);
        let values = |by: &Buffer| by.shape.width;
        if a == out {
            let [by, out] = self.buffers.get_disjoint_mut("map", [by, out])?;
            let gates = sigmoid::Gates { values: by.rows(rows), width: values(by) };
            sigmoid::sigmoid_gate(pool, isa, None, gates, (out.rows_mut(rows), width), add);
        } else {
            let [a, by, out] = self.buffers.get_disjoint_mut("map", [a, by, out])?;
            let gates = sigmoid::Gates { values: by.rows(rows), width: values(by) };
            sigmoid::sigmoid_gate(pool, isa, Some(a.rows(rows)), gates, (out.rows_mut(rows), width), add);
        }
        Ok(())
    }
}

impl Compute for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<Buf> {
        let data = HugeVec::zeroed(check::alloc(rows, width)?)?;
        self.writes += 1;
        let shape = Shape { rows, width };
        Ok(self.buffers.insert(Buffer { data, shape, cache: ActCache::default(), version: self.writes }))
    }

    fn free(&mut self, buf: Buf) -> Result<()> {
        self.buffers.remove("free", buf).map(drop)
    }

    fn upload(&mut self, dst: Buf, row: usize, data: &[f32]) -> Result<()> {
        let buffer = self.buffers.get_mut("upload", dst)?;
        let span = check::span("upload", buffer.shape, row, data.len())?;
        buffer.data[span].copy_from_slice(data);
        self.touch("upload", dst)
    }

    fn download(&mut self, src: Buf, row: usize, out: &mut [f32]) -> Result<()> {
        let buffer = self.buffers.get("download", src)?;
        out.copy_from_slice(&buffer.data[check::span("download", buffer.shape, row, out.len())?]);
        Ok(())
    }

    fn load(&mut self, spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Weight> {
        let row_bytes = check::load(spec, source.len())?;
        let ctx = LoadCtx { isa: self.isa, exact: self.info.exact, pool: &self.pool, arena: &self.arena };
        let loaded = match spec.kind {
            WeightKind::Matrix => Loaded::Matrix(Matrix::load(spec, source.as_ref(), &ctx)?),
            WeightKind::Experts { count } | WeightKind::Heads { count } => {
                Loaded::Experts(mixture::load(spec, count, &source, &ctx)?)
            }
            WeightKind::Table => Loaded::Table { source, row_bytes },
            WeightKind::Vector => self.load_vector(spec, source.as_ref(), row_bytes)?,
        };
        Ok(self.weights.insert(Tensor { spec: spec.clone(), loaded, turned: RefCell::default() }))
    }

    fn unload(&mut self, weight: Weight) -> Result<()> {
        self.weights.remove("unload", weight).map(drop)
    }

    fn alloc_pages(&mut self, spec: &PageSpec, count: usize) -> Result<hob_compute::Pool> {
        let values = check::alloc_pages(spec, count)?;
        let (coarse, fine) = if self.info.exact { (0, values) } else { (spec.page_bytes() * count, 0) };
        let (bytes, floats) = (HugeVec::zeroed(coarse)?, HugeVec::zeroed(fine)?);
        Ok(self.pages.insert(Pages { spec: *spec, bytes, floats, count }))
    }

    fn free_pages(&mut self, pool: hob_compute::Pool) -> Result<()> {
        self.pages.remove("free_pages", pool).map(drop)
    }

    fn copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()> {
        let spec = page_spec(&self.pages, "copy_page", from)?;
        check::copy_page(positions, spec, page_spec(&self.pages, "copy_page", to)?)?;
        if from == to {
            return Ok(());
        }
        if self.info.exact {
            return exact::copy_page(&mut self.pages, from, to, positions);
        }
        if from.pool == to.pool {
            let pool = self.pages.get_mut("copy_page", to.pool)?;
            let spans = [pool.span(from.index), pool.span(to.index)];
            let both = pool.bytes.get_disjoint_mut(spans);
            let [source, target] = both.map_err(|e| ComputeError::shape("copy_page", "two pages", e))?;
            kv::copy_page(&spec, source, target, positions);
            return Ok(());
        }
        let [source, target] = self.pages.get_disjoint_mut("copy_page", [from.pool, to.pool])?;
        let (a, b) = (source.span(from.index), target.span(to.index));
        kv::copy_page(&spec, &source.bytes[a], &mut target.bytes[b], positions);
        Ok(())
    }

    fn position_bytes(&self, pool: hob_compute::Pool, range: Range<usize>) -> Result<usize> {
        check::positions("position_bytes", &range)?;
        let spec = self.pages.get("position_bytes", pool)?.spec;
        Ok(if self.info.exact { exact::image_bytes(&spec, range) } else { spec.image_bytes(range) })
    }

    fn read_positions(&mut self, page: Page, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        check::positions("read_positions", &range)?;
        let spec = page_spec(&self.pages, "read_positions", page)?;
        let pool = self.pages.get("read_positions", page.pool)?;
        let span = pool.span(page.index);
        if self.info.exact {
            exact::read(&spec, &pool.floats[span], range, out);
            return Ok(());
        }
        let start = out.len();
        out.resize(start + spec.image_bytes(range.clone()), 0);
        kv::read(&self.pool, self.isa, &spec, range, (&pool.bytes[span], &mut out[start..]));
        Ok(())
    }

    fn write_positions(&mut self, page: Page, range: Range<usize>, bytes: &[u8]) -> Result<()> {
        let wanted = self.position_bytes(page.pool, range.clone())?;
        check::image("write_positions", wanted, bytes.len())?;
        let spec = page_spec(&self.pages, "write_positions", page)?;
        check::scales("write_positions", &spec, range.clone(), bytes, self.info.exact)?;
        let pool = self.pages.get_mut("write_positions", page.pool)?;
        let span = pool.span(page.index);
        if self.info.exact {
            exact::write(&spec, &mut pool.floats[span], range, bytes);
        } else {
            kv::write(&self.pool, self.isa, &spec, range, (&mut pool.bytes[span], bytes));
        }
        Ok(())
    }

    fn embed(&mut self, args: &Embed) -> Result<()> {
        let tensor = self.weights.get("embed", args.table)?;
        let table = tensor.table()?;
        let shape = Shape { rows: tensor.spec.rows, width: tensor.spec.cols };
        check::embed(args, shape, self.shape("embed", args.out)?)?;
        self.ids.clear();
        for &token in args.tokens {
            let id = check::resolve(token, &self.last)?;
            check::token(id, shape)?;
            self.ids.push(id);
        }
        let out = self.buffers.get_mut("embed", args.out)?.rows_mut(self.ids.len());
        embed::embed(&self.pool, table, &self.ids, args.scale, out)?;
        self.touch("embed", args.out)
    }

    fn norm(&mut self, args: &Norm) -> Result<()> {
        let weight = self.weights.get("norm", args.weight)?.vector("norm")?;
        let (x, out) = (self.shape("norm", args.x)?, self.shape("norm", args.out)?);
        check::norm(args, x, weight.len(), out)?;
        let by = norm::Scale { weight, eps: args.eps };
        if args.x == args.out {
            let out = self.buffers.get_mut("norm", args.out)?.rows_mut(args.rows);
            norm::norm(&self.pool, self.isa, None, out, x.width, by);
        } else {
            let [from, to] = self.buffers.get_disjoint_mut("norm", [args.x, args.out])?;
            let (from, to) = (from.rows(args.rows), to.rows_mut(args.rows));
            norm::norm(&self.pool, self.isa, Some(from), to, x.width, by);
        }
        self.touch("norm", args.out)
    }

    fn linear(&mut self, args: &Linear) -> Result<()> {
        product::run(self, args)
    }

    fn heads(&mut self, args: &Heads) -> Result<()> {
        heads::heads(self, args)
    }

    fn rope(&mut self, args: &Rope) -> Result<()> {
        check::rope(args, self.shape("rope", args.x)?, self.shape("rope", args.freqs)?)?;
        let freqs = self.buffers.get("rope", args.freqs)?;
        let key = rope::Freqs {
            values: freqs.rows(1),
            version: freqs.version,
            magnitude: args.magnitude,
            back: args.back,
        };
        let angles = self.tables.get(&self.pool, key, args.positions);
        let x = self.buffers.get_mut("rope", args.x)?.rows_mut(args.positions.len());
        rope::rope(&self.pool, self.isa, x, (args.heads, args.head_dim, args.first), angles, args.pairs);
        self.touch("rope", args.x)
    }

    fn append_kv(&mut self, args: &AppendKv) -> Result<()> {
        let (k, v) = (self.buffers.get("append_kv", args.k)?, self.buffers.get("append_kv", args.v)?);
        check::append_kv(args, k.shape, v.shape, |page| page_spec(&self.pages, "append_kv", page))?;
        if self.info.exact {
            return exact::append_kv(&mut self.pages, args, (&k.data, &v.data));
        }
        for seq in args.seqs {
            let mut done = 0;
            while done < seq.rows {
                let position = seq.position + done;
                let page = seq.pages[position / PAGE_POSITIONS];
                let at = position % PAGE_POSITIONS;
                let rows = (PAGE_POSITIONS - at).min(seq.rows - done);
                let pool = self.pages.get_mut("append_kv", page.pool)?;
                let (spec, span) = (pool.spec, pool.span(page.index));
                let width = k.shape.width;
                let range = (seq.row + done) * width..(seq.row + done + rows) * width;
                let rows_here = kv::Rows { k: &k.data[range.clone()], v: &v.data[range], at };
                kv::append(&self.pool, self.isa, &spec, &mut pool.bytes[span], rows_here);
                done += rows;
            }
        }
        Ok(())
    }

    fn attend(&mut self, args: &Attend) -> Result<()> {
        let (q, out) = (self.shape("attend", args.q)?, self.shape("attend", args.out)?);
        let sinks = args.sinks.map(|w| self.weights.get("attend", w)?.vector("attend")).transpose()?;
        let spec_of = |page| page_spec(&self.pages, "attend", page);
        let spec = check::attend(args, q, out, sinks.map(<[f32]>::len), spec_of)?;
        let [q, out] = self.buffers.get_disjoint_mut("attend", [args.q, args.out])?;
        let pools = &self.pages;
        if self.info.exact {
            exact::attend(&self.pool, pools, (args, spec), sinks, (&q.data, &mut out.data));
            return self.touch("attend", args.out);
        }
        let job = attend::Job {
            q: &q.data,
            out: &mut out.data,
            heads: args.heads,
            spec,
            scoring: Scoring::new(args.scale, args.softcap),
            window: args.window,
            sinks,
            seqs: args.seqs,
            // Every page was found a moment ago; an empty one would fail the kernels' own length checks.
            page: &|page| pools.get("attend", page.pool).map_or(&[], |p| &p.bytes[p.span(page.index)]),
        };
        attend::attend(&self.pool, self.isa, job, &mut self.attention)?;
        self.touch("attend", args.out)
    }

    fn map(&mut self, args: &Map) -> Result<()> {
        match *args {
            Map::Add { a, b, out, rows } => {
                check::map(rows, &[self.shape("map", a)?, self.shape("map", b)?, self.shape("map", out)?])?;
                self.map_add(a, b, out, rows)?;
                self.touch("map", out)
            }
            Map::Scale { a, factor, out, rows } => {
                check::map(rows, &[self.shape("map", a)?, self.shape("map", out)?])?;
                if a == out {
                    map::scale(&self.pool, None, factor, self.buffers.get_mut("map", out)?.rows_mut(rows));
                } else {
                    let [x, to] = self.buffers.get_disjoint_mut("map", [a, out])?;
                    map::scale(&self.pool, Some(x.rows(rows)), factor, to.rows_mut(rows));
                }
                self.touch("map", out)
            }
            Map::Softcap { a, cap, out, rows } => {
                check::softcap(rows, cap, self.shape("map", a)?, self.shape("map", out)?)?;
                if a == out {
                    let out = self.buffers.get_mut("map", out)?.rows_mut(rows);
                    map::softcap(&self.pool, self.isa, None, cap, out);
                } else {
                    let [x, to] = self.buffers.get_disjoint_mut("map", [a, out])?;
                    map::softcap(&self.pool, self.isa, Some(x.rows(rows)), cap, to.rows_mut(rows));
                }
                self.touch("map", out)
            }
            Map::SigmoidGate { a, gate, out, add, rows } => {
                self.map_sigmoid_gate([a, gate, out], add, rows)?;
                self.touch("map", out)
            }
            Map::Gate { a, b, first, activation, out, rows } => {
                let [x, y, to] = [self.shape("map", a)?, self.shape("map", b)?, self.shape("map", out)?];
                check::gate(rows, [x, y, to], first)?;
                let (width, wide) = (x.width, y.width);
                let gates = |a, b| map::Gates { a, b, wide, first, width, activation };
                if a == out {
                    let [b, out] = self.buffers.get_disjoint_mut("map", [b, out])?;
                    map::gate(&self.pool, gates(None, b.rows(rows)), out.rows_mut(rows));
                } else {
                    let [a, b, out] = self.buffers.get_disjoint_mut("map", [a, b, out])?;
                    map::gate(&self.pool, gates(Some(a.rows(rows)), b.rows(rows)), out.rows_mut(rows));
                }
                self.touch("map", out)
            }
            Map::Activate { a, activation, out, rows } => {
                check::map(rows, &[self.shape("map", a)?, self.shape("map", out)?])?;
                if a == out {
                    let out = self.buffers.get_mut("map", out)?.rows_mut(rows);
                    map::activate(&self.pool, None, activation, out);
                } else {
                    let [x, to] = self.buffers.get_disjoint_mut("map", [a, out])?;
                    map::activate(&self.pool, Some(x.rows(rows)), activation, to.rows_mut(rows));
                }
                self.touch("map", out)
            }
            Map::Join { a, b, groups, out, rows } => heads::join(self, [a, b, out], groups, rows),
            Map::CopyRow { a, from, out, to } => {
                let shape = self.shape("map", a)?;
                check::copy_row(shape, from, self.shape("map", out)?, to)?;
                let width = shape.width;
                let (from, to) = (from * width..(from + 1) * width, to * width);
                if a == out {
                    self.buffers.get_mut("map", out)?.data.copy_within(from, to);
                } else {
                    let [x, y] = self.buffers.get_disjoint_mut("map", [a, out])?;
                    y.data[to..to + width].copy_from_slice(&x.data[from]);
                }
                self.touch("map", out)
            }
        }
    }

    fn pick(&mut self, args: &Pick) -> Result<()> {
        let logits = self.buffers.get("pick", args.logits)?;
        check::pick(args, logits.shape)?;
        let picked = self.tickets.record(args.k)?;
        self.last.clear();
        let shape = (logits.shape.width, args.k, args.draws);
        let results = (picked, &mut self.last);
        pick::pick(&self.pool, self.isa, logits.rows(args.rows), shape, &mut self.picking, results);
        Ok(())
    }

    fn route(&mut self, args: &Route) -> Result<()> {
        mixture::route(self, args)
    }

    fn experts(&mut self, args: &Experts) -> Result<()> {
        mixture::experts(self, args)
    }

    fn short_conv(&mut self, args: &ShortConv) -> Result<()> {
        recurrent::short_conv(self, args)
    }

    fn delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        recurrent::delta_net(self, args)
    }

    fn catch_up(&mut self, args: &CatchUp) -> Result<()> {
        recurrent::catch_up(self, args)
    }

    fn ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        recurrent::ssm_scan(self, args)
    }

    fn hyper_mix(&mut self, args: &HyperMix) -> Result<()> {
        compressed::hyper_mix(self, args)
    }

    fn hyper_expand(&mut self, args: &HyperExpand) -> Result<()> {
        compressed::hyper_expand(self, args)
    }

    fn compress(&mut self, args: &Compress) -> Result<()> {
        compressed::compress(self, args)
    }

    fn select(&mut self, args: &Select) -> Result<()> {
        compressed::select(self, args)
    }

    fn attend_entries(&mut self, args: &AttendEntries) -> Result<()> {
        compressed::attend_entries(self, args)
    }

    fn submit(&mut self) -> Result<Ticket> {
        Ok(self.tickets.submit())
    }

    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        self.tickets.redeem(ticket, out)
    }

    /// A table holds no memory: its rows stay in the file.
    fn held_bytes(&self) -> HeldBytes {
        let weight = |t: &Tensor| match &t.loaded {
            Loaded::Matrix(matrix) => matrix.bytes() as u64,
            Loaded::Experts(matrices) => matrices.iter().map(|m| m.bytes() as u64).sum(),
            Loaded::Vector(values) => values.len() as u64 * 4,
            Loaded::Table { .. } => 0,
        };
        HeldBytes {
            weights: self.weights.iter().map(weight).sum(),
            buffers: self.buffers.iter().map(|b| b.data.len() as u64 * 4).sum(),
            pages: self.pages.iter().map(|p| p.bytes.len() as u64 + p.floats.len() as u64 * 4).sum(),
        }
    }
}
