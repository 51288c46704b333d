//! A device in front of another one, with a say in what attention gets. It must not know what for.

use std::ops::Range;
use std::sync::Arc;

use hob_compute::*;

/// What happens instead of some verbs.
pub(super) trait Hook: Send {
    /// A forward pass begins.
    fn embed(&mut self) {}

    fn append_kv(&mut self, dev: &mut dyn Compute, args: &AppendKv) -> Result<()>;

    fn attend(&mut self, dev: &mut dyn Compute, args: &Attend) -> Result<()> {
        dev.attend(args)
    }
}

/// Delegates everything else.
pub(super) struct Hooked<'a, H> {
    pub dev: &'a mut dyn Compute,
    pub hook: H,
}

/// The first `rows` rows of a buffer of rows as wide as `width`.
pub(super) fn rows(dev: &mut dyn Compute, buf: Buf, rows: usize, width: usize) -> Result<Vec<f32>> {
    let mut out = vec![0.0; rows * width];
    dev.download(buf, 0, &mut out)?;
    Ok(out)
}

impl<H: Hook> Compute for Hooked<'_, H> {
    fn info(&self) -> &DeviceInfo {
        self.dev.info()
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<Buf> {
        self.dev.alloc(rows, width)
    }

    fn free(&mut self, buf: Buf) -> Result<()> {
        self.dev.free(buf)
    }

    fn upload(&mut self, dst: Buf, row: usize, data: &[f32]) -> Result<()> {
        self.dev.upload(dst, row, data)
    }

    fn download(&mut self, src: Buf, row: usize, out: &mut [f32]) -> Result<()> {
        self.dev.download(src, row, out)
    }

    fn load(&mut self, spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Weight> {
        self.dev.load(spec, source)
    }

    fn unload(&mut self, weight: Weight) -> Result<()> {
        self.dev.unload(weight)
    }

    fn alloc_pages(&mut self, spec: &PageSpec, count: usize) -> Result<Pool> {
        self.dev.alloc_pages(spec, count)
    }

    fn free_pages(&mut self, pool: Pool) -> Result<()> {
        self.dev.free_pages(pool)
    }

    fn copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()> {
        self.dev.copy_page(from, to, positions)
    }

    fn position_bytes(&self, pool: Pool, range: Range<usize>) -> Result<usize> {
        self.dev.position_bytes(pool, range)
    }

    fn read_positions(&mut self, page: Page, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        self.dev.read_positions(page, range, out)
    }

    fn write_positions(&mut self, page: Page, range: Range<usize>, bytes: &[u8]) -> Result<()> {
        self.dev.write_positions(page, range, bytes)
    }

    fn embed(&mut self, args: &Embed) -> Result<()> {
        self.hook.embed();
        self.dev.embed(args)
    }

    fn norm(&mut self, args: &Norm) -> Result<()> {
        self.dev.norm(args)
    }

    fn linear(&mut self, args: &Linear) -> Result<()> {
        self.dev.linear(args)
    }

    fn rope(&mut self, args: &Rope) -> Result<()> {
        self.dev.rope(args)
    }

    fn append_kv(&mut self, args: &AppendKv) -> Result<()> {
        self.hook.append_kv(self.dev, args)
    }

    fn attend(&mut self, args: &Attend) -> Result<()> {
        self.hook.attend(self.dev, args)
    }

    fn map(&mut self, args: &Map) -> Result<()> {
        self.dev.map(args)
    }

    fn pick(&mut self, args: &Pick) -> Result<()> {
        self.dev.pick(args)
    }

    fn route(&mut self, args: &Route) -> Result<()> {
        self.dev.route(args)
    }

    fn heads(&mut self, args: &Heads) -> Result<()> {
        self.dev.heads(args)
    }

    fn experts(&mut self, args: &Experts) -> Result<()> {
        self.dev.experts(args)
    }

    fn short_conv(&mut self, args: &ShortConv) -> Result<()> {
        self.dev.short_conv(args)
    }

    fn delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        self.dev.delta_net(args)
    }

    fn catch_up(&mut self, args: &CatchUp) -> Result<()> {
        self.dev.catch_up(args)
    }

    fn ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        self.dev.ssm_scan(args)
    }

    fn hyper_mix(&mut self, args: &HyperMix) -> Result<()> {
        self.dev.hyper_mix(args)
    }

    fn hyper_expand(&mut self, args: &HyperExpand) -> Result<()> {
        self.dev.hyper_expand(args)
    }

    fn compress(&mut self, args: &Compress) -> Result<()> {
        self.dev.compress(args)
    }

    fn select(&mut self, args: &Select) -> Result<()> {
        self.dev.select(args)
    }

    fn attend_entries(&mut self, args: &AttendEntries) -> Result<()> {
        self.dev.attend_entries(args)
    }

    fn submit(&mut self) -> Result<Ticket> {
        self.dev.submit()
    }

    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        self.dev.picked(ticket, out)
    }

    fn held_bytes(&self) -> HeldBytes {
        self.dev.held_bytes()
    }
}
