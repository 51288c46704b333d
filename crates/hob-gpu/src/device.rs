//! The device: handles and checks, and which file runs which verb. It must not know how kernels compute.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use hob_compute::check::{self, Shape};
use hob_compute::slots::{Slots, next_device};
use hob_compute::*;

use crate::act::{Act, Acts};
use crate::cache::Cache;
use crate::context::Context;
use crate::pages::Pages;
use crate::stream::{BufferId, MOST_BINDINGS, Stream};
use crate::verb::attend::Splits;
use crate::verb::compressed::select::Scores;
use crate::verb::delta::chunked::Tables;
use crate::verb::experts::many::Grouping;
use crate::verb::fold::Held;
use crate::verb::linear::few::{Ahead, Cuts};
use crate::verb::pick::Picks;
use crate::weights::Loaded;

/// Which adapter to open, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuConfig {
    /// Index among [`crate::adapters`].
    pub adapter: usize,
    /// Features to do without: see [`crate::Tier::without`].
    pub off: String,
    /// Keep activations and K and V in f32 (goldens run so; slow).
    pub exact: bool,
    /// A folder where compiled kernels are kept for the next start.
    pub cache: Option<PathBuf>,
}

/// Parts of one read-back in [`Compute::download_all`]: more than any verb asks for.
const TOGETHER: usize = 8;

/// A GPU.
pub struct Gpu {
    pub(crate) info: DeviceInfo,
    pub(crate) stream: Stream,
    pub(crate) acts: Acts,
    pub(crate) weights: Slots<Weight, Loaded>,
    pub(crate) pools: Slots<Pool, Pages>,
    /// A product that waits for its norm. Every verb begins with [`Gpu::enter`], which lets it go.
    pub(crate) held: Option<Held>,
    pub(crate) picks: Picks,
    pub(crate) grouping: Grouping,
    pub(crate) delta: Tables,
    pub(crate) entry_scores: Scores,
    /// Arguments on their way to the stream, reused.
    pub(crate) words: Vec<u32>,
    /// Bound in the place of pools that a call has no pages of.
    pub(crate) stand_ins: Option<[BufferId; 2]>,
    cache: Option<Cache>,
    pub(crate) splits: Splits,
    pub(crate) turned: crate::verb::attend::Turned,
    pub(crate) few_cuts: Cuts,
    /// Whether mixtures of many rows compute cooperative tiles lane by lane.
    #[cfg(test)]
    pub(crate) expert_lanes: bool,
    pub(crate) ahead: Ahead,
}

impl Gpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// See [`Context::open`].
    pub fn open(config: &GpuConfig) -> Result<Gpu> {
        let mut context = Context::open(config.adapter, &config.off)?;
        let cache = config.cache.as_deref().map(|folder| Cache::open(folder, &mut context));
        let facts = &context.facts;
        let adapter = format!("{} / {} / {} / {}", facts.name, facts.backend, facts.driver, facts.tier);
        let info = DeviceInfo {
            kind: "gpu",
            isa: "wgsl",
            threads: 1,
            exact: config.exact,
            adapter,
            asynchronous: true,
        };
        let bindings = context.device.limits().max_storage_buffers_per_shader_stage as usize;
        let looks_ahead = !facts.software && !facts.integrated && bindings >= MOST_BINDINGS;
        let device = next_device();
        Ok(Gpu {
            info,
            stream: Stream::new(context)?,
            acts: Acts::new(device),
            held: None,
            weights: Slots::new(device),
            pools: Slots::new(device),
            picks: Picks::default(),
            grouping: Grouping::default(),
            delta: Tables::default(),
            entry_scores: Scores::default(),
            words: Vec::new(),
            stand_ins: None,
            cache,
            splits: Splits::default(),
            turned: crate::verb::attend::Turned::default(),
            few_cuts: Cuts::default(),
            #[cfg(test)]
            expert_lanes: false,
            ahead: Ahead::new(looks_ahead),
        })
    }

    /// What is known of the adapter.
    pub fn facts(&self) -> &crate::AdapterFacts {
        &self.stream.context.facts
    }

    /// Ends the device's life, as a reset of its driver does: for tests of what comes after.
    pub fn lose(&self) {
        self.stream.context.device.destroy();
    }

    /// Bytes that can still be allocated without driving other programs' memory out, where the system tells.
    pub fn free_bytes(&self) -> Option<u64> {
        self.stream.context.free_bytes()
    }

    /// Kernels, buffers and bind groups made and dispatches and submits done so far.
    pub fn counters(&self) -> crate::Counters {
        self.stream.counters()
    }

    /// Keeps what was compiled for the next start.
    fn store_kernels(&mut self) {
        let Gpu { cache, stream, .. } = self;
        if let Some(cache) = cache {
            cache.store(&stream.context, stream.counters().kernels);
        }
    }

    pub(crate) fn shape(&self, verb: &'static str, buf: Buf) -> Result<Shape> {
        Ok(self.acts.any(verb, buf)?.shape)
    }

    pub(crate) fn weight(&self, verb: &'static str, weight: Weight, kind: WeightKind) -> Result<&Loaded> {
        let loaded = self.weights.get(verb, weight)?;
        check::kind(verb, kind, &loaded.spec.name, loaded.spec.kind)?;
        Ok(loaded)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.store_kernels();
    }
}

impl Compute for Gpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<Buf> {
        check::alloc(rows, width)?;
        let act = Act::new(&mut self.stream, Shape { rows, width })?;
        Ok(self.acts.insert(act))
    }

    fn free(&mut self, buf: Buf) -> Result<()> {
        let done = self.let_go();
        let act = self.acts.remove("free", buf)?;
        act.release(&mut self.stream);
        self.stream.flush().and(done)
    }

    fn upload(&mut self, dst: Buf, row: usize, data: &[f32]) -> Result<()> {
        self.enter("upload", &[], &[dst])?;
        let act = self.acts.get_mut("upload", dst)?;
        let span = check::span("upload", act.shape, row, data.len())?;
        act.written();
        self.stream.write(act.rows, 4 * span.start as u64, bytemuck::cast_slice(data))
    }

    fn download(&mut self, src: Buf, row: usize, out: &mut [f32]) -> Result<()> {
        self.enter("download", &[src], &[])?;
        let act = self.acts.get("download", src)?;
        let span = check::span("download", act.shape, row, out.len())?;
        self.stream.read(act.rows, 4 * span.start as u64, bytemuck::cast_slice_mut(out))
    }

    fn download_all(&mut self, parts: &[(Buf, usize, usize)], out: &mut [f32]) -> Result<()> {
        self.enter("download", &[], &[])?;
        let mut rest = out;
        for parts in parts.chunks(TOGETHER) {
            let mut wanted = [(BufferId::default(), 0, 0); TOGETHER];
            let mut floats = 0;
            for (slot, &(src, row, count)) in wanted.iter_mut().zip(parts) {
                self.enter("download", &[src], &[])?;
                let act = self.acts.get("download", src)?;
                let span = check::span("download", act.shape, row, count)?;
                *slot = (act.rows, 4 * span.start as u64, 4 * count);
                floats += count;
            }
            let found = rest.len();
            let Some((these, behind)) = std::mem::take(&mut rest).split_at_mut_checked(floats) else {
                return Err(ComputeError::shape("download", format!("room for {floats} floats"), found));
            };
            rest = behind;
            if floats > 0 {
                let fetch = self.stream.fetch_all(&wanted[..parts.len()])?;
                self.stream.wait(fetch, bytemuck::cast_slice_mut(these))?;
            }
        }
        Ok(())
    }

    fn load(&mut self, spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Weight> {
        let loaded = Loaded::load(&mut self.stream, spec, source)?;
        self.ahead.weights += loaded.bytes;
        Ok(self.weights.insert(loaded))
    }

    fn unload(&mut self, weight: Weight) -> Result<()> {
        let done = self.let_go();
        let loaded = self.weights.remove("unload", weight)?;
        self.ahead.weights -= loaded.bytes;
        loaded.parts.iter().for_each(|part| self.ahead.forget(part.buffer));
        loaded.release(&mut self.stream);
        self.stream.flush().and(done)
    }

    fn alloc_pages(&mut self, spec: &PageSpec, count: usize) -> Result<Pool> {
        let pages = Pages::new(&mut self.stream, spec, count, self.info.exact)?;
        Ok(self.pools.insert(pages))
    }

    fn free_pages(&mut self, pool: Pool) -> Result<()> {
        let done = self.let_go();
        let pages = self.pools.remove("free_pages", pool)?;
        pages.release(&mut self.stream);
        self.stream.flush().and(done)
    }

    fn copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()> {
        self.enter("copy_page", &[], &[])?;
        self.run_copy_page(from, to, positions)
    }

    fn position_bytes(&self, pool: Pool, range: Range<usize>) -> Result<usize> {
        check::positions("position_bytes", &range)?;
        Ok(self.pools.get("position_bytes", pool)?.image_bytes(range))
    }

    fn read_positions(&mut self, page: Page, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        self.enter("read_positions", &[], &[])?;
        self.run_read_positions(page, range, out)
    }

    fn write_positions(&mut self, page: Page, range: Range<usize>, bytes: &[u8]) -> Result<()> {
        self.enter("write_positions", &[], &[])?;
        self.run_write_positions(page, range, bytes)
    }

    fn embed(&mut self, args: &Embed) -> Result<()> {
        self.enter("embed", &[], &[args.out])?;
        self.run_embed(args)
    }

    fn norm(&mut self, args: &Norm) -> Result<()> {
        if self.fold(args)? {
            return Ok(());
        }
        // Rows that are all written anew need not be finished first.
        let stay = self.acts.lacks(args.out).is_some_and(|lacks| lacks.rows > args.rows);
        self.enter("norm", &[args.x], if stay { std::slice::from_ref(&args.out) } else { &[] })?;
        self.run_norm(args)
    }

    fn linear(&mut self, args: &Linear) -> Result<()> {
        self.enter_linear(args)?;
        self.check_linear(args)?;
        if self.hold(args)? { Ok(()) } else { self.run_linear(args, None) }
    }

    fn heads(&mut self, args: &Heads) -> Result<()> {
        self.enter("heads", &[args.x], &[args.out])?;
        self.run_heads(args)
    }

    fn rope(&mut self, args: &Rope) -> Result<()> {
        self.enter("rope", &[args.x, args.freqs], &[])?;
        self.run_rope(args)
    }

    fn append_kv(&mut self, args: &AppendKv) -> Result<()> {
        self.enter("append_kv", &[args.k, args.v], &[])?;
        self.run_append_kv(args)
    }

    fn attend(&mut self, args: &Attend) -> Result<()> {
        self.enter("attend", &[args.q], &[args.out])?;
        self.run_attend(args)
    }

    fn attend_new(&mut self, args: &AttendNew) -> Result<()> {
        let AttendNew { attend, k, v, rotation, .. } = args;
        let freqs = rotation.map_or(*k, |rotation| rotation.freqs);
        self.enter("attend", &[attend.q, *k, *v, freqs], &[attend.out])?;
        self.run_attend_new(args)
    }

    fn latent_rows(&mut self, args: &LatentRows) -> Result<()> {
        let &LatentRows { wide, rotated, latent, key, q, k, .. } = args;
        let freqs = args.rotation.map_or(key, |rotation| rotation.freqs);
        self.enter("latent_rows", &[wide, rotated, latent, key, freqs], &[q, k])?;
        self.run_latent_rows(args)
    }

    fn map(&mut self, args: &Map) -> Result<()> {
        match *args {
            Map::Add { a, b, out, .. } => self.enter("map", &[a, b], &[out])?,
            Map::Scale { a, out, .. }
            | Map::Softcap { a, out, .. }
            | Map::Activate { a, out, .. }
            | Map::CopyRow { a, out, .. } => {
                self.enter("map", &[a], &[out])?;
            }
            Map::SigmoidGate { a, gate, out, add, .. } => {
                let reads = [a, gate, out];
                self.enter("map", if add { &reads } else { &reads[..2] }, &[out])?;
            }
            Map::Gate { a, b, out, .. } | Map::Join { a, b, out, .. } => {
                self.enter("map", &[a, b], &[out])?
            }
        }
        self.run_map(args)
    }

    fn pick(&mut self, args: &Pick) -> Result<()> {
        self.enter("pick", &[args.logits], &[])?;
        self.run_pick(args)
    }

    fn route(&mut self, args: &Route) -> Result<()> {
        let reads = [args.logits, args.chosen.unwrap_or(args.logits)];
        self.enter("route", &reads, &[args.out])?;
        self.route_or_hold(args)
    }

    fn experts(&mut self, args: &Experts) -> Result<()> {
        let route = self.take_route(args);
        self.enter_experts(args)?;
        self.run_experts(args, route.as_ref())
    }

    fn short_conv(&mut self, args: &ShortConv) -> Result<()> {
        self.enter("short_conv", &[args.x, args.memory.state], &[args.out])?;
        self.run_short_conv(args)
    }

    fn delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        let DeltaNet { qkv, z, beta, decay, memory, out, .. } = *args;
        self.enter("delta_net", &[qkv, z, beta, decay, memory.state], &[out])?;
        self.run_delta_net(args)
    }

    fn catch_up(&mut self, args: &CatchUp) -> Result<()> {
        self.enter("catch_up", &[args.memory.state], &[])?;
        self.run_catch_up(args)
    }

    fn ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        let SsmScan { xbc, z, dt, memory, out, .. } = *args;
        self.enter("ssm_scan", &[xbc, z, dt, memory.state], &[out])?;
        self.run_ssm_scan(args)
    }

    fn hyper_mix(&mut self, args: &HyperMix) -> Result<()> {
        let reads = [args.x, args.logits];
        self.enter("hyper_mix", &reads, &[args.out, args.weights.unwrap_or(args.out)])?;
        self.run_hyper_mix(args)
    }

    fn hyper_expand(&mut self, args: &HyperExpand) -> Result<()> {
        self.enter("hyper_expand", &[args.y, args.x, args.weights.unwrap_or(args.y)], &[])?;
        self.run_hyper_expand(args)
    }

    fn compress(&mut self, args: &Compress) -> Result<()> {
        let Compress { kv, gate, recent, entries, rotation, .. } = *args;
        self.enter("compress", &[kv, gate, recent, entries, rotation.freqs], &[])?;
        self.run_compress(args)
    }

    fn select(&mut self, args: &Select) -> Result<()> {
        self.enter("select", &[args.q, args.weights, args.entries], &[args.out])?;
        self.run_select(args)
    }

    fn attend_entries(&mut self, args: &AttendEntries) -> Result<()> {
        let AttendEntries { q, kv, recent, out, entries, .. } = *args;
        let far = entries.map_or([q; 2], |e| [e.entries, e.chosen.unwrap_or(q)]);
        self.enter("attend_entries", &[q, kv, recent, far[0], far[1]], &[out])?;
        self.run_attend_entries(args)
    }

    fn submit(&mut self) -> Result<Ticket> {
        self.enter("submit", &[], &[])?;
        self.run_submit()
    }

    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        self.run_picked(ticket, out)
    }

    fn rehearse(&mut self, on: bool) -> bool {
        // What goes wrong here goes wrong again, and is told, when the model is used.
        let _ = self.turn_rehearsal(on);
        if !on {
            self.store_kernels();
        }
        true
    }

    fn profile(&mut self, on: bool) -> bool {
        // A lost device says so at the next call that can fail.
        let _ = self.let_go();
        self.stream.profile(on)
    }

    fn take_spans(&mut self, out: &mut Vec<Span>) {
        let _ = self.let_go();
        self.stream.take_spans(out);
    }

    fn dispatches(&self) -> u64 {
        self.stream.counters().dispatches
    }

    fn held_bytes(&self) -> HeldBytes {
        HeldBytes {
            weights: self.weights.iter().map(|w| w.bytes).sum(),
            buffers: self.acts.iter().map(Act::bytes).sum(),
            pages: self.pools.iter().map(Pages::bytes).sum(),
        }
    }
}
