//! A device that fails on cue and remembers the rows of logits that were read.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use hob_compute::*;

/// A device that panics in the `attend` that brings the counter to zero.
pub struct Faulty {
    pub inner: Box<dyn Compute>,
    pub info: DeviceInfo,
    pub countdown: Arc<AtomicI64>,
    /// Calls of `embed` after which the device is lost.
    pub life: Arc<AtomicI64>,
    /// Calls of `picked` after which one fails.
    pub silence: Arc<AtomicI64>,
    /// Bits of every row of `width` values that was downloaded.
    pub rows: Arc<Mutex<Vec<Vec<u32>>>>,
    pub width: usize,
    /// What was asked for, in order; `None` keeps no account.
    pub deeds: Option<Arc<Mutex<Vec<Deed>>>>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A batch begins: rows whose tokens the host knew, and rows whose it did not.
    Embed {
        host: usize,
        device: usize,
    },
    Submit(Ticket),
    Picked(Ticket),
}

impl Faulty {
    fn inner(&mut self) -> Result<&mut dyn Compute> {
        if self.life.load(Ordering::Relaxed) < 0 {
            let (device, reason) = ("the test's device".to_owned(), "the test ended it".to_owned());
            return Err(ComputeError::Lost { device, reason });
        }
        Ok(self.inner.as_mut())
    }

    fn count_attend(&self) -> Result<()> {
        let left = self.countdown.fetch_sub(1, Ordering::Relaxed);
        if left == 1 || left == -99 {
            self.countdown.store(i64::MAX, Ordering::Relaxed);
        }
        match left {
            1 => panic!("the test broke the device"),
            -99 => Err(ComputeError::Worker("the test refused".to_owned())),
            _ => Ok(()),
        }
    }

    fn note(&self, deed: Deed) {
        if let Some(deeds) = &self.deeds {
            deeds.lock().unwrap().push(deed);
        }
    }
}

impl Compute for Faulty {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn alloc(&mut self, rows: usize, width: usize) -> Result<Buf> {
        self.inner()?.alloc(rows, width)
    }
    fn free(&mut self, buf: Buf) -> Result<()> {
        self.inner()?.free(buf)
    }
    fn upload(&mut self, dst: Buf, row: usize, data: &[f32]) -> Result<()> {
        self.inner()?.upload(dst, row, data)
    }
    fn download(&mut self, src: Buf, row: usize, out: &mut [f32]) -> Result<()> {
        self.inner()?.download(src, row, out)?;
        if out.len() == self.width && self.deeds.is_some() {
            self.rows.lock().unwrap().push(out.iter().map(|v| v.to_bits()).collect());
        }
        Ok(())
    }
    fn load(&mut self, spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Weight> {
        self.inner()?.load(spec, source)
    }
    fn unload(&mut self, weight: Weight) -> Result<()> {
        self.inner()?.unload(weight)
    }
    fn alloc_pages(&mut self, spec: &PageSpec, count: usize) -> Result<Pool> {
        self.inner()?.alloc_pages(spec, count)
    }
    fn free_pages(&mut self, pool: Pool) -> Result<()> {
        self.inner()?.free_pages(pool)
    }
    fn copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()> {
        self.inner()?.copy_page(from, to, positions)
    }
    fn position_bytes(&self, pool: Pool, range: Range<usize>) -> Result<usize> {
        self.inner.position_bytes(pool, range)
    }
    fn read_positions(&mut self, page: Page, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        self.inner()?.read_positions(page, range, out)
    }
    fn write_positions(&mut self, page: Page, range: Range<usize>, bytes: &[u8]) -> Result<()> {
        self.inner()?.write_positions(page, range, bytes)
    }
    fn embed(&mut self, args: &Embed) -> Result<()> {
        self.life.fetch_sub(1, Ordering::Relaxed);
        let device = args.tokens.iter().filter(|t| matches!(t, Token::Device(_))).count();
        self.note(Deed::Embed { host: args.tokens.len() - device, device });
        self.inner()?.embed(args)
    }
    fn norm(&mut self, args: &Norm) -> Result<()> {
        self.inner()?.norm(args)
    }
    fn linear(&mut self, args: &Linear) -> Result<()> {
        self.inner()?.linear(args)
    }
    fn rope(&mut self, args: &Rope) -> Result<()> {
        self.inner()?.rope(args)
    }
    fn append_kv(&mut self, args: &AppendKv) -> Result<()> {
        self.inner()?.append_kv(args)
    }
    fn attend(&mut self, args: &Attend) -> Result<()> {
        self.count_attend()?;
        self.inner()?.attend(args)
    }
    fn attend_new(&mut self, args: &AttendNew) -> Result<()> {
        self.count_attend()?;
        self.inner()?.attend_new(args)
    }
    fn rehearse(&mut self, on: bool) -> bool {
        self.inner.rehearse(on)
    }
    fn map(&mut self, args: &Map) -> Result<()> {
        self.inner()?.map(args)
    }
    fn pick(&mut self, args: &Pick) -> Result<()> {
        self.inner()?.pick(args)
    }
    fn route(&mut self, args: &Route) -> Result<()> {
        self.inner()?.route(args)
    }
    fn heads(&mut self, args: &Heads) -> Result<()> {
        self.inner()?.heads(args)
    }
    fn experts(&mut self, args: &Experts) -> Result<()> {
        self.inner()?.experts(args)
    }
    fn short_conv(&mut self, args: &ShortConv) -> Result<()> {
        self.inner()?.short_conv(args)
    }

    fn delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        self.inner()?.delta_net(args)
    }

    fn catch_up(&mut self, args: &CatchUp) -> Result<()> {
        self.inner()?.catch_up(args)
    }

    fn ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        self.inner()?.ssm_scan(args)
    }

    fn hyper_mix(&mut self, args: &HyperMix) -> Result<()> {
        self.inner()?.hyper_mix(args)
    }
    fn hyper_expand(&mut self, args: &HyperExpand) -> Result<()> {
        self.inner()?.hyper_expand(args)
    }
    fn compress(&mut self, args: &Compress) -> Result<()> {
        self.inner()?.compress(args)
    }
    fn select(&mut self, args: &Select) -> Result<()> {
        self.inner()?.select(args)
    }
    fn attend_entries(&mut self, args: &AttendEntries) -> Result<()> {
        self.inner()?.attend_entries(args)
    }
    fn submit(&mut self) -> Result<Ticket> {
        let ticket = self.inner()?.submit()?;
        self.note(Deed::Submit(ticket));
        Ok(ticket)
    }
    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        self.note(Deed::Picked(ticket));
        if self.silence.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(ComputeError::Worker("the test's device went wrong".to_owned()));
        }
        self.inner()?.picked(ticket, out)
    }
    fn held_bytes(&self) -> HeldBytes {
        self.inner.held_bytes()
    }
}
