//! The scalar oracle: every verb in plain loops, the specification that all other devices are judged by.
//!
//! It owns the exact order of operations ([`rows`], [`attention`], [`crate::act`], [`crate::math`]) and is allowed to
//! be slow. Buffers are `Vec<f32>`; pages are images of their positions, or f32 if it is exact; weights stay as their
//! file has them and are decoded at every use.

pub mod attention;
pub mod compressed;
pub mod delta;
mod heads;
pub mod hyper;
pub mod kda;
pub mod mixture;
mod pages;
mod parts;
pub mod recurrent;
pub mod rows;
pub mod ssm;

use std::ops::Range;
use std::sync::Arc;

use crate::check::{self, Shape};
use crate::slots::{Slots, next_device};
use crate::tickets::Tickets;
use crate::{
    AppendKv, Attend, AttendEntries, Buf, ByteSource, CatchUp, Combine, Compress, Compute, ComputeError,
    DeltaNet, DeviceInfo, Draw, Embed, Experts, Heads, HeldBytes, HyperExpand, HyperMix, Linear, Map, Norm,
    PAGE_POSITIONS, Page, PageSpec, Pick, Picked, Pool, Result, Rope, Route, Select, ShortConv, SsmScan,
    Ticket, Weight, WeightKind, WeightSpec, act, draw, math,
};
use attention::Query;
use pages::Pages;
pub use parts::QueryGroup;

struct Buffer {
    data: Vec<f32>,
    shape: Shape,
}

impl Buffer {
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.shape.width..][..self.shape.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.shape.width..][..self.shape.width]
    }
}

struct Tensor {
    spec: WeightSpec,
    bytes: Vec<u8>,
    row_bytes: usize,
}

impl Tensor {
    fn shape(&self) -> Shape {
        Shape { rows: self.spec.rows, width: self.spec.cols }
    }

    fn row_bytes(&self, row: usize) -> &[u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }

    fn row(&self, row: usize) -> Result<Vec<f32>> {
        let mut out = vec![0f32; self.spec.cols];
        hob_quant::decode_row(self.spec.format, self.row_bytes(row), &mut out)
            .map_err(|e| ComputeError::Weight { name: self.spec.name.clone(), problem: e.to_string() })?;
        Ok(out)
    }

    /// `x . weight` of every row of `x` and the weight rows `of`, `[rows, of.len()]`: int8 activations where the format has them, unless
    /// `exact`.
    fn products(&self, of: Range<usize>, x: &[&[f32]], exact: bool) -> Result<Vec<Vec<f32>>> {
        let int8 = !exact && act::uses_int8(self.spec.format);
        let blocks: Vec<_> = if int8 { x.iter().map(|x| act::quantize_row(x)).collect() } else { Vec::new() };
        let mut out = vec![Vec::with_capacity(of.len()); x.len()];
        for o in of {
            let row = self.row(o)?;
            for (r, out) in out.iter_mut().enumerate() {
                let y = blocks.get(r).and_then(|b| act::dot_row(self.spec.format, self.row_bytes(o), b));
                out.push(y.unwrap_or_else(|| math::dot16(&row, x[r])));
            }
        }
        Ok(out)
    }
}

/// The oracle device.
pub struct Reference {
    info: DeviceInfo,
    buffers: Slots<Buf, Buffer>,
    weights: Slots<Weight, Tensor>,
    pools: Slots<Pool, Pages>,
    tickets: Tickets,
    /// What the last `pick` chose for every row of it.
    last: Vec<u32>,
}

impl Reference {
    /// `exact` keeps activations in f32 where a format would otherwise use int8.
    pub fn new(exact: bool) -> Self {
        let device = next_device();
        Reference {
            info: DeviceInfo {
                kind: "reference",
                isa: "scalar",
                threads: 1,
                exact,
                adapter: String::new(),
                asynchronous: false,
            },
            buffers: Slots::new(device),
            weights: Slots::new(device),
            pools: Slots::new(device),
            tickets: Tickets::new(),
            last: Vec::new(),
        }
    }

    /// The pool of a page that exists.
    fn pool(&self, verb: &'static str, page: Page) -> Result<&Pages> {
        let pool = self.pools.get(verb, page.pool)?;
        if (page.index as usize) < pool.count {
            return Ok(pool);
        }
        Err(ComputeError::shape(verb, format!("a page below {} of its pool", pool.count), page.index))
    }

    fn page_spec(&self, verb: &'static str, page: Page) -> Result<PageSpec> {
        Ok(self.pool(verb, page)?.spec)
    }

    fn shape(&self, verb: &'static str, buf: Buf) -> Result<Shape> {
        Ok(self.buffers.get(verb, buf)?.shape)
    }

    fn weight(&self, verb: &'static str, weight: Weight, kind: WeightKind) -> Result<&Tensor> {
        let tensor = self.weights.get(verb, weight)?;
        check::kind(verb, kind, &tensor.spec.name, tensor.spec.kind)?;
        Ok(tensor)
    }

    /// `[rows, out_width]` of one product, bias added.
    fn product(&self, args: &Linear, index: usize) -> Result<Vec<Vec<f32>>> {
        let product = &args.products[index];
        let weight = self.weight("linear", product.weight, WeightKind::Matrix)?;
        let bias = product.bias.map(|b| self.weight("linear", b, WeightKind::Vector)).transpose()?;
        let x = self.buffers.get("linear", args.x)?;
        let writes = index == 0 || !matches!(args.combine, Combine::Gated(_));
        let out = if writes { Some(self.shape("linear", product.out)?) } else { None };
        check::product(args, x.shape, weight.shape(), bias.map(|b| b.spec.cols), out)?;
        let bias = bias.map(|b| b.row(0)).transpose()?;
        let x: Vec<&[f32]> = (0..args.rows).map(|r| x.row(args.first_row + r)).collect();
        let mut y = weight.products(0..weight.spec.rows, &x, self.info.exact)?;
        if let Some(bias) = bias {
            y.iter_mut().for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b));
        }
        Ok(y)
    }
}

impl Compute for Reference {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<Buf> {
        let len = check::alloc(rows, width)?;
        Ok(self.buffers.insert(Buffer { data: zeroed(len, 0f32)?, shape: Shape { rows, width } }))
    }

    fn free(&mut self, buf: Buf) -> Result<()> {
        self.buffers.remove("free", buf).map(drop)
    }

    fn upload(&mut self, dst: Buf, row: usize, data: &[f32]) -> Result<()> {
        let buffer = self.buffers.get_mut("upload", dst)?;
        let span = check::span("upload", buffer.shape, row, data.len())?;
        buffer.data[span].copy_from_slice(data);
        Ok(())
    }

    fn download(&mut self, src: Buf, row: usize, out: &mut [f32]) -> Result<()> {
        let buffer = self.buffers.get("download", src)?;
        out.copy_from_slice(&buffer.data[check::span("download", buffer.shape, row, out.len())?]);
        Ok(())
    }

    fn load(&mut self, spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Weight> {
        let row_bytes = check::load(spec, source.len())?;
        let mut bytes = zeroed(row_bytes * spec.rows, 0u8)?;
        source
            .read_at(0, &mut bytes)
            .map_err(|source| ComputeError::Read { name: spec.name.clone(), source })?;
        Ok(self.weights.insert(Tensor { spec: spec.clone(), bytes, row_bytes }))
    }

    fn unload(&mut self, weight: Weight) -> Result<()> {
        self.weights.remove("unload", weight).map(drop)
    }

    fn alloc_pages(&mut self, spec: &PageSpec, count: usize) -> Result<Pool> {
        let pages = Pages::new(spec, count, self.info.exact)?;
        Ok(self.pools.insert(pages))
    }

    fn free_pages(&mut self, pool: Pool) -> Result<()> {
        self.pools.remove("free_pages", pool).map(drop)
    }

    fn copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()> {
        let spec = self.page_spec("copy_page", from)?;
        check::copy_page(positions, spec, self.page_spec("copy_page", to)?)?;
        let mut image = Vec::new();
        self.read_positions(from, 0..positions, &mut image)?;
        self.write_positions(to, 0..positions, &image)
    }

    fn position_bytes(&self, pool: Pool, range: Range<usize>) -> Result<usize> {
        check::positions("position_bytes", &range)?;
        Ok(self.pools.get("position_bytes", pool)?.image_bytes(range))
    }

    fn read_positions(&mut self, page: Page, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        check::positions("read_positions", &range)?;
        self.pool("read_positions", page)?.read(page.index, range, out);
        Ok(())
    }

    fn write_positions(&mut self, page: Page, range: Range<usize>, bytes: &[u8]) -> Result<()> {
        let wanted = self.position_bytes(page.pool, range.clone())?;
        check::image("write_positions", wanted, bytes.len())?;
        let spec = self.page_spec("write_positions", page)?;
        check::scales("write_positions", &spec, range.clone(), bytes, self.info.exact)?;
        self.pools.get_mut("write_positions", page.pool)?.write(page.index, range, bytes);
        Ok(())
    }

    fn embed(&mut self, args: &Embed) -> Result<()> {
        let table = self.weights.get("embed", args.table)?;
        check::kind("embed", WeightKind::Table, &table.spec.name, table.spec.kind)?;
        let out = self.buffers.get_mut("embed", args.out)?;
        check::embed(args, table.shape(), out.shape)?;
        let ids = args.tokens.iter().map(|&t| {
            let id = check::resolve(t, &self.last)?;
            check::token(id, table.shape())
        });
        let ids: Vec<usize> = ids.collect::<Result<_>>()?;
        for (r, id) in ids.into_iter().enumerate() {
            for (o, w) in out.row_mut(r).iter_mut().zip(table.row(id)?) {
                *o = w * args.scale;
            }
        }
        Ok(())
    }

    fn norm(&mut self, args: &Norm) -> Result<()> {
        let weight = self.weight("norm", args.weight, WeightKind::Vector)?;
        let cols = weight.spec.cols;
        check::norm(args, self.shape("norm", args.x)?, cols, self.shape("norm", args.out)?)?;
        let weight = weight.row(0)?;
        for r in 0..args.rows {
            let x = self.buffers.get("norm", args.x)?.row(r).to_vec();
            let out = self.buffers.get_mut("norm", args.out)?.row_mut(r);
            for (x, out) in x.chunks(cols).zip(out.chunks_mut(cols)) {
                rows::norm_group(x, &weight, args.eps, out);
            }
        }
        Ok(())
    }

    fn linear(&mut self, args: &Linear) -> Result<()> {
        check::linear(args, self.shape("linear", args.x)?)?;
        let products: Vec<Vec<Vec<f32>>> =
            (0..args.products.len()).map(|i| self.product(args, i)).collect::<Result<_>>()?;
        if let (Combine::Gated(activation), [gate, up]) = (args.combine, &products[..]) {
            let heights =
                [args.products[0].weight, args.products[1].weight].map(|w| self.weights.get("linear", w));
            let [a, b] = heights;
            check::gated(a?.shape(), b?.shape())?;
            let out = self.buffers.get_mut("linear", args.products[0].out)?;
            for r in 0..args.rows {
                for (o, (&g, &u)) in out.row_mut(r).iter_mut().zip(gate[r].iter().zip(&up[r])) {
                    *o = activation.gated(g, u);
                }
            }
            return Ok(());
        }
        for (product, y) in args.products.iter().zip(&products) {
            let out = self.buffers.get_mut("linear", product.out)?;
            for (r, y) in y.iter().enumerate() {
                for (o, &y) in out.row_mut(r).iter_mut().zip(y) {
                    *o = if args.combine == Combine::Add { *o + y } else { y };
                }
            }
        }
        Ok(())
    }

    fn heads(&mut self, args: &Heads) -> Result<()> {
        self.run_heads(args)
    }

    fn rope(&mut self, args: &Rope) -> Result<()> {
        let freqs = self.buffers.get("rope", args.freqs)?;
        check::rope(args, self.shape("rope", args.x)?, freqs.shape)?;
        let freqs = freqs.row(0).to_vec();
        let x = self.buffers.get_mut("rope", args.x)?;
        for (r, &position) in args.positions.iter().enumerate() {
            let angle = |&f: &f32| rows::rope_angle(position, f, args.magnitude);
            let (cos, mut sin): (Vec<f32>, Vec<f32>) = freqs.iter().map(angle).unzip();
            if args.back {
                sin.iter_mut().for_each(|s| *s = -*s);
            }
            for head in x.row_mut(r).chunks_mut(args.head_dim) {
                rows::rotate_head(&mut head[args.first..], &cos, &sin, args.pairs);
            }
        }
        Ok(())
    }

    fn append_kv(&mut self, args: &AppendKv) -> Result<()> {
        let (k, v) = (self.shape("append_kv", args.k)?, self.shape("append_kv", args.v)?);
        check::append_kv(args, k, v, |page| self.page_spec("append_kv", page))?;
        for seq in args.seqs {
            for i in 0..seq.rows {
                let position = seq.position + i;
                let page = seq.pages[position / PAGE_POSITIONS];
                let k = self.buffers.get("append_kv", args.k)?.row(seq.row + i);
                let v = self.buffers.get("append_kv", args.v)?.row(seq.row + i);
                let pool = self.pools.get_mut("append_kv", page.pool)?;
                pool.append(page.index, position % PAGE_POSITIONS, (k, v));
            }
        }
        Ok(())
    }

    fn attend(&mut self, args: &Attend) -> Result<()> {
        let (q, out) = (self.shape("attend", args.q)?, self.shape("attend", args.out)?);
        let sinks = args.sinks.map(|w| self.weight("attend", w, WeightKind::Vector)?.row(0)).transpose()?;
        let count = sinks.as_ref().map(Vec::len);
        let spec = check::attend(args, q, out, count, |page| self.page_spec("attend", page))?;
        for seq in args.seqs {
            for i in 0..seq.rows {
                let q = self.buffers.get("attend", args.q)?.row(seq.row + i).to_vec();
                let mut row = vec![0f32; args.heads * spec.value_dim()];
                let outs = row.chunks_mut(spec.value_dim());
                for (head, (q, out)) in q.chunks(args.head_dim).zip(outs).enumerate() {
                    let sink = sinks.as_ref().map(|s| s[head]);
                    let query = Query::new(args, spec, head, q, sink);
                    let page = |p: usize| {
                        let page = seq.pages[p];
                        Ok(self.pools.get("attend", page.pool)?.held(page.index))
                    };
                    query.attend(seq.position + i, page, out)?;
                }
                self.buffers.get_mut("attend", args.out)?.row_mut(seq.row + i).copy_from_slice(&row);
            }
        }
        Ok(())
    }

    fn map(&mut self, args: &Map) -> Result<()> {
        match *args {
            Map::Add { a, b, out, rows } => {
                check::map(rows, &[self.shape("map", a)?, self.shape("map", b)?, self.shape("map", out)?])?;
                for r in 0..rows {
                    let (x, y) = (self.buffers.get("map", a)?.row(r), self.buffers.get("map", b)?.row(r));
                    let sum: Vec<f32> = x.iter().zip(y).map(|(x, y)| x + y).collect();
                    self.buffers.get_mut("map", out)?.row_mut(r).copy_from_slice(&sum);
                }
            }
            Map::Scale { a, factor, out, rows } => {
                check::map(rows, &[self.shape("map", a)?, self.shape("map", out)?])?;
                for r in 0..rows {
                    let scaled: Vec<f32> =
                        self.buffers.get("map", a)?.row(r).iter().map(|x| x * factor).collect();
                    self.buffers.get_mut("map", out)?.row_mut(r).copy_from_slice(&scaled);
                }
            }
            Map::Softcap { a, cap, out, rows } => {
                check::softcap(rows, cap, self.shape("map", a)?, self.shape("map", out)?)?;
                for r in 0..rows {
                    let x = self.buffers.get("map", a)?.row(r);
                    let capped: Vec<f32> = x.iter().map(|x| math::tanh(x / cap) * cap).collect();
                    self.buffers.get_mut("map", out)?.row_mut(r).copy_from_slice(&capped);
                }
            }
            Map::SigmoidGate { a, gate, out, add, rows } => {
                let of = |buf| Ok((buf, self.shape("map", buf)?));
                check::sigmoid_gate(rows, [of(a)?, of(gate)?, of(out)?], add)?;
                for r in 0..rows {
                    let (a, gate) =
                        (self.buffers.get("map", a)?.row(r), self.buffers.get("map", gate)?.row(r));
                    let each = a.len() / gate.len();
                    let gates = gate.iter().flat_map(|&g| std::iter::repeat_n(math::sigmoid(g), each));
                    let gated: Vec<f32> = a.iter().zip(gates).map(|(a, g)| a * g).collect();
                    let out = self.buffers.get_mut("map", out)?.row_mut(r);
                    let sum = |(o, g): (&mut f32, f32)| *o = if add { *o + g } else { g };
                    out.iter_mut().zip(gated).for_each(sum);
                }
            }
            Map::Gate { a, b, first, activation, out, rows } => {
                let [x, y, to] = [self.shape("map", a)?, self.shape("map", b)?, self.shape("map", out)?];
                check::gate(rows, [x, y, to], first)?;
                for r in 0..rows {
                    let gates = self.buffers.get("map", a)?.row(r).iter();
                    let ups = &self.buffers.get("map", b)?.row(r)[first..];
                    let gated: Vec<f32> = gates.zip(ups).map(|(&g, &u)| activation.gated(g, u)).collect();
                    self.buffers.get_mut("map", out)?.row_mut(r).copy_from_slice(&gated);
                }
            }
            Map::Activate { a, activation, out, rows } => {
                check::map(rows, &[self.shape("map", a)?, self.shape("map", out)?])?;
                for r in 0..rows {
                    let x = self.buffers.get("map", a)?.row(r);
                    let activated: Vec<f32> = x.iter().map(|&x| activation.alone(x)).collect();
                    self.buffers.get_mut("map", out)?.row_mut(r).copy_from_slice(&activated);
                }
            }
            Map::Join { a, b, groups, out, rows } => self.run_join([a, b, out], groups, rows)?,
            Map::CopyRow { a, from, out, to } => {
                check::copy_row(self.shape("map", a)?, from, self.shape("map", out)?, to)?;
                let row = self.buffers.get("map", a)?.row(from).to_vec();
                self.buffers.get_mut("map", out)?.row_mut(to).copy_from_slice(&row);
            }
        }
        Ok(())
    }

    fn pick(&mut self, args: &Pick) -> Result<()> {
        let logits = self.buffers.get("pick", args.logits)?;
        check::pick(args, logits.shape)?;
        let picked = self.tickets.record(args.k)?;
        self.last.clear();
        for r in 0..args.rows {
            let row = logits.row(r);
            let top = rows::top_k(row, args.k);
            let (logits, tokens): (Vec<f32>, Vec<u32>) = top.into_iter().unzip();
            let draw = args.draws.get(r).unwrap_or(&Draw::GREEDY);
            let chosen = draw::from_top(&tokens, &logits, draw, &mut draw::Scratch::default());
            self.last.push(chosen);
            picked.chosen.push(chosen);
            picked.tokens.extend(tokens);
            picked.logits.extend(logits);
            picked.log_sum_exp.push(rows::log_sum_exp(row));
        }
        Ok(())
    }

    fn route(&mut self, args: &Route) -> Result<()> {
        self.run_route(args)
    }

    fn experts(&mut self, args: &Experts) -> Result<()> {
        self.run_experts(args)
    }

    fn short_conv(&mut self, args: &ShortConv) -> Result<()> {
        self.run_short_conv(args)
    }

    fn delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        self.run_delta_net(args)
    }

    fn catch_up(&mut self, args: &CatchUp) -> Result<()> {
        self.run_catch_up(args)
    }

    fn ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        self.run_ssm_scan(args)
    }

    fn hyper_mix(&mut self, args: &HyperMix) -> Result<()> {
        self.run_hyper_mix(args)
    }

    fn hyper_expand(&mut self, args: &HyperExpand) -> Result<()> {
        self.run_hyper_expand(args)
    }

    fn compress(&mut self, args: &Compress) -> Result<()> {
        self.run_compress(args)
    }

    fn select(&mut self, args: &Select) -> Result<()> {
        self.run_select(args)
    }

    fn attend_entries(&mut self, args: &AttendEntries) -> Result<()> {
        self.run_attend_entries(args)
    }

    fn submit(&mut self) -> Result<Ticket> {
        Ok(self.tickets.submit())
    }

    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        self.tickets.redeem(ticket, out)
    }

    fn held_bytes(&self) -> HeldBytes {
        HeldBytes {
            weights: self.weights.iter().map(|w| w.bytes.len() as u64).sum(),
            buffers: self.buffers.iter().map(|b| b.data.len() as u64 * 4).sum(),
            pages: self.pools.iter().map(Pages::bytes).sum(),
        }
    }
}

/// A vector of `len` zeros, or an error instead of an abort.
fn zeroed<T: Copy>(len: usize, zero: T) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(len).map_err(|_| ComputeError::Memory {
        what: "a buffer of the reference device".into(),
        bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
    })?;
    v.resize(len, zero);
    Ok(v)
}
