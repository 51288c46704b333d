//! A device that fails on cue and remembers the rows of logits that were read.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use hob_compute::*;

/// A device that panics in the `attend` that brings the counter to zero.
pub struct Faulty {
    pub inner: Box<dyn Compute>,
    pub countdown: Arc<AtomicI64>,
    /// Bits of every row of `width` values that was downloaded.
    pub rows: Arc<Mutex<Vec<Vec<u32>>>>,
    pub width: usize,
}

impl Compute for Faulty {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }
    fn alloc(&mut self, rows: usize, width: usize) -> Result<Buf> {
        self.inner.alloc(rows, width)
    }
    fn free(&mut self, buf: Buf) -> Result<()> {
        self.inner.free(buf)
    }
    fn upload(&mut self, dst: Buf, row: usize, data: &[f32]) -> Result<()> {
        self.inner.upload(dst, row, data)
    }
    fn download(&mut self, src: Buf, row: usize, out: &mut [f32]) -> Result<()> {
        self.inner.download(src, row, out)?;
        if out.len() == self.width {
            self.rows.lock().unwrap().push(out.iter().map(|v| v.to_bits()).collect());
        }
        Ok(())
    }
    fn load(&mut self, spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Weight> {
        self.inner.load(spec, source)
    }
    fn unload(&mut self, weight: Weight) -> Result<()> {
        self.inner.unload(weight)
    }
    fn alloc_pages(&mut self, spec: &PageSpec, count: usize) -> Result<Pool> {
        self.inner.alloc_pages(spec, count)
    }
    fn free_pages(&mut self, pool: Pool) -> Result<()> {
        self.inner.free_pages(pool)
    }
    fn copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()> {
        self.inner.copy_page(from, to, positions)
    }
    fn position_bytes(&self, pool: Pool, range: Range<usize>) -> Result<usize> {
        self.inner.position_bytes(pool, range)
    }
    fn read_positions(&self, page: Page, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        self.inner.read_positions(page, range, out)
    }
    fn write_positions(&mut self, page: Page, range: Range<usize>, bytes: &[u8]) -> Result<()> {
        self.inner.write_positions(page, range, bytes)
    }
    fn embed(&mut self, args: &Embed) -> Result<()> {
        self.inner.embed(args)
    }
    fn norm(&mut self, args: &Norm) -> Result<()> {
        self.inner.norm(args)
    }
    fn linear(&mut self, args: &Linear) -> Result<()> {
        self.inner.linear(args)
    }
    fn rope(&mut self, args: &Rope) -> Result<()> {
        self.inner.rope(args)
    }
    fn append_kv(&mut self, args: &AppendKv) -> Result<()> {
        self.inner.append_kv(args)
    }
    fn attend(&mut self, args: &Attend) -> Result<()> {
        let left = self.countdown.fetch_sub(1, Ordering::Relaxed);
        if left == 1 || left == -99 {
            self.countdown.store(i64::MAX, Ordering::Relaxed);
        }
        match left {
            1 => panic!("the test broke the device"),
            -99 => return Err(ComputeError::Worker("the test refused".to_owned())),
            _ => {}
        }
        self.inner.attend(args)
    }
    fn map(&mut self, args: &Map) -> Result<()> {
        self.inner.map(args)
    }
    fn pick(&mut self, args: &Pick) -> Result<()> {
        self.inner.pick(args)
    }
    fn route(&mut self, args: &Route) -> Result<()> {
        self.inner.route(args)
    }
    fn experts(&mut self, args: &Experts) -> Result<()> {
        self.inner.experts(args)
    }
    fn short_conv(&mut self, args: &ShortConv) -> Result<()> {
        self.inner.short_conv(args)
    }
    fn submit(&mut self) -> Result<Ticket> {
        self.inner.submit()
    }
    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        self.inner.picked(ticket, out)
    }
    fn held_bytes(&self) -> HeldBytes {
        self.inner.held_bytes()
    }
}
