//! A device that notes what its inner one does when, for devices whose verbs execute at once and that keep no spans
//! themselves. It must not know who looks at them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::*;

/// Makes a device keep spans: its own if it can, else by a clock around every verb.
pub fn profiled(mut device: Box<dyn Compute>) -> Box<dyn Compute> {
    // A clock around verbs that only record would tell nothing.
    if device.profile(true) || device.info().asynchronous {
        return device;
    }
    Box::new(Timed {
        inner: device,
        on: true,
        spans: Vec::new(),
        weights: HashMap::new(),
        widths: HashMap::new(),
    })
}

struct Known {
    /// Without the `.weight` that all have.
    name: String,
    rows: usize,
    cols: usize,
    bytes: u64,
}

/// See [`profiled`].
struct Timed {
    inner: Box<dyn Compute>,
    on: bool,
    spans: Vec<Span>,
    weights: HashMap<Weight, Known>,
    /// Of buffers.
    widths: HashMap<Buf, usize>,
}

impl Timed {
    fn timed(
        &mut self,
        verb: &'static str,
        note: impl FnOnce(&Timed) -> (Cow<'static, str>, u64),
        work: impl FnOnce(&mut dyn Compute) -> Result<()>,
    ) -> Result<()> {
        if !self.on {
            return work(self.inner.as_mut());
        }
        // Before the work, which may take the handles' owners away.
        let (detail, bytes) = note(self);
        let start_nanos = now_nanos();
        let result = work(self.inner.as_mut());
        let nanos = now_nanos() - start_nanos;
        self.spans.push(Span { device: 0, verb, detail, start_nanos, nanos, bytes });
        result
    }

    fn name(&self, weight: Weight) -> Cow<'static, str> {
        self.weights.get(&weight).map_or(Cow::Borrowed(""), |w| Cow::Owned(w.name.clone()))
    }

    fn weight_bytes(&self, weight: Weight) -> u64 {
        self.weights.get(&weight).map_or(0, |w| w.bytes)
    }

    /// Of so many rows of a buffer.
    fn rows(&self, buf: Buf, rows: usize) -> u64 {
        self.widths.get(&buf).map_or(0, |&width| width as u64 * rows as u64 * 4)
    }

    fn linear_note(&self, args: &Linear) -> (Cow<'static, str>, u64) {
        let names: Vec<_> = args.products.iter().map(|p| self.name(p.weight)).collect();
        let written = if args.combine == Combine::Add { 2 } else { 1 };
        let outs = match args.combine {
            Combine::Gated(_) => 1,
            Combine::Store | Combine::Add => args.products.len(),
        };
        let out: u64 = args.products.iter().take(outs).map(|p| self.rows(p.out, args.rows)).sum();
        let weights: u64 = args.products.iter().map(|p| self.weight_bytes(p.weight)).sum();
        (names.join(" + ").into(), weights + self.rows(args.x, args.rows) + out * written)
    }

    /// K and V of positions `range` of a sequence.
    fn kv_bytes(&self, pages: &[Page], range: Range<usize>) -> u64 {
        let parts = range.start / PAGE_POSITIONS..range.end.div_ceil(PAGE_POSITIONS);
        let bytes = parts.filter_map(|page| {
            let start = page * PAGE_POSITIONS;
            let part = range.start.saturating_sub(start)..(range.end - start).min(PAGE_POSITIONS);
            self.inner.position_bytes(pages.get(page)?.pool, part).ok()
        });
        bytes.map(|b| b as u64).sum()
    }

    fn attend_note(&self, args: &Attend) -> (Cow<'static, str>, u64) {
        let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
        let kv = args.seqs.iter().map(|s| {
            let seen = s.first_seen(args.window)..s.position + s.rows;
            self.kv_bytes(s.pages, seen)
        });
        (Cow::Borrowed(""), kv.sum::<u64>() + self.rows(args.q, rows) + self.rows(args.out, rows))
    }

    fn append_note(&self, args: &AppendKv) -> (Cow<'static, str>, u64) {
        let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
        let kv = args.seqs.iter().map(|s| self.kv_bytes(s.pages, s.position..s.position + s.rows));
        (Cow::Borrowed(""), kv.sum::<u64>() + self.rows(args.k, rows) + self.rows(args.v, rows))
    }

    fn map_note(&self, args: &Map) -> (Cow<'static, str>, u64) {
        match *args {
            Map::Add { out, rows, .. } => ("add".into(), 3 * self.rows(out, rows)),
            Map::Scale { out, rows, .. } => ("scale".into(), 2 * self.rows(out, rows)),
            Map::Softcap { out, rows, .. } => ("softcap".into(), 2 * self.rows(out, rows)),
            Map::SigmoidGate { out, add, rows, .. } => {
                ("sigmoid gate".into(), (3 + u64::from(add)) * self.rows(out, rows))
            }
            Map::Gate { out, rows, .. } => ("gate".into(), 3 * self.rows(out, rows)),
            Map::Activate { out, rows, .. } => ("activate".into(), 2 * self.rows(out, rows)),
            Map::Join { out, rows, .. } => ("join".into(), 2 * self.rows(out, rows)),
            Map::CopyRow { out, .. } => ("copy row".into(), 2 * self.rows(out, 1)),
        }
    }

    /// As many experts as the rows can have chosen at most: which they chose is the device's secret.
    fn experts_note(&self, args: &Experts) -> (Cow<'static, str>, u64) {
        let hidden = self.widths.get(&args.hidden).copied().unwrap_or(1).max(1);
        let count = self.weights.get(&args.up).map_or(1, |w| w.rows / hidden).max(1);
        let used = (args.rows * args.top_k).min(count) as u64;
        let weights = args.gate.into_iter().chain([args.up, args.down]);
        let all: u64 = weights.map(|w| self.weight_bytes(w)).sum();
        let rows = self.rows(args.x, args.rows) + self.rows(args.out, args.rows);
        (self.name(args.gate.unwrap_or(args.up)), all / count as u64 * used + rows)
    }
}

impl Compute for Timed {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn alloc(&mut self, rows: usize, width: usize) -> Result<Buf> {
        let buf = self.inner.alloc(rows, width)?;
        self.widths.insert(buf, width);
        Ok(buf)
    }

    fn free(&mut self, buf: Buf) -> Result<()> {
        self.widths.remove(&buf);
        self.inner.free(buf)
    }

    fn upload(&mut self, dst: Buf, row: usize, data: &[f32]) -> Result<()> {
        let bytes = 8 * data.len() as u64;
        self.timed("upload", |_| (Cow::Borrowed(""), bytes), |dev| dev.upload(dst, row, data))
    }

    fn download(&mut self, src: Buf, row: usize, out: &mut [f32]) -> Result<()> {
        let bytes = 8 * out.len() as u64;
        self.timed("download", |_| (Cow::Borrowed(""), bytes), |dev| dev.download(src, row, out))
    }

    fn load(&mut self, spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Weight> {
        let weight = self.inner.load(spec, source)?;
        let name = spec.name.strip_suffix(".weight").unwrap_or(&spec.name).to_owned();
        let bytes = spec.file_bytes().unwrap_or(0);
        self.weights.insert(weight, Known { name, rows: spec.rows, cols: spec.cols, bytes });
        Ok(weight)
    }

    fn unload(&mut self, weight: Weight) -> Result<()> {
        self.weights.remove(&weight);
        self.inner.unload(weight)
    }

    fn alloc_pages(&mut self, spec: &PageSpec, count: usize) -> Result<Pool> {
        self.inner.alloc_pages(spec, count)
    }

    fn free_pages(&mut self, pool: Pool) -> Result<()> {
        self.inner.free_pages(pool)
    }

    fn copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()> {
        let note = |t: &Timed| (Cow::Borrowed(""), 2 * t.kv_bytes(&[from], 0..positions));
        self.timed("copy_page", note, |dev| dev.copy_page(from, to, positions))
    }

    fn position_bytes(&self, pool: Pool, range: Range<usize>) -> Result<usize> {
        self.inner.position_bytes(pool, range)
    }

    fn read_positions(&mut self, page: Page, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let note = |t: &Timed| (Cow::Borrowed(""), 2 * t.kv_bytes(&[page], range.clone()));
        self.timed("read_positions", note, |dev| dev.read_positions(page, range.clone(), out))
    }

    fn write_positions(&mut self, page: Page, range: Range<usize>, bytes: &[u8]) -> Result<()> {
        let moved = 2 * bytes.len() as u64;
        let work = |dev: &mut dyn Compute| dev.write_positions(page, range, bytes);
        self.timed("write_positions", |_| (Cow::Borrowed(""), moved), work)
    }

    fn embed(&mut self, args: &Embed) -> Result<()> {
        let note = |t: &Timed| {
            let row = t.weights.get(&args.table).map_or(0, |w| w.bytes / w.rows.max(1) as u64);
            (t.name(args.table), args.tokens.len() as u64 * row + t.rows(args.out, args.tokens.len()))
        };
        self.timed("embed", note, |dev| dev.embed(args))
    }

    fn norm(&mut self, args: &Norm) -> Result<()> {
        let note = |t: &Timed| {
            let weight = t.weights.get(&args.weight).map_or(0, |w| 4 * w.cols as u64);
            (t.name(args.weight), 2 * t.rows(args.x, args.rows) + weight)
        };
        self.timed("norm", note, |dev| dev.norm(args))
    }

    fn linear(&mut self, args: &Linear) -> Result<()> {
        self.timed("linear", |t| t.linear_note(args), |dev| dev.linear(args))
    }

    fn rope(&mut self, args: &Rope) -> Result<()> {
        let note = |t: &Timed| (Cow::Borrowed(""), 2 * t.rows(args.x, args.positions.len()));
        self.timed("rope", note, |dev| dev.rope(args))
    }

    fn append_kv(&mut self, args: &AppendKv) -> Result<()> {
        self.timed("append_kv", |t| t.append_note(args), |dev| dev.append_kv(args))
    }

    fn attend(&mut self, args: &Attend) -> Result<()> {
        self.timed("attend", |t| t.attend_note(args), |dev| dev.attend(args))
    }

    fn map(&mut self, args: &Map) -> Result<()> {
        self.timed("map", |t| t.map_note(args), |dev| dev.map(args))
    }

    fn pick(&mut self, args: &Pick) -> Result<()> {
        let note = |t: &Timed| (Cow::Borrowed(""), t.rows(args.logits, args.rows));
        self.timed("pick", note, |dev| dev.pick(args))
    }

    fn route(&mut self, args: &Route) -> Result<()> {
        let note =
            |t: &Timed| (Cow::Borrowed(""), t.rows(args.logits, args.rows) + t.rows(args.out, args.rows));
        self.timed("route", note, |dev| dev.route(args))
    }

    fn heads(&mut self, args: &Heads) -> Result<()> {
        let note = |t: &Timed| {
            let rows = t.rows(args.x, args.rows) + t.rows(args.out, args.rows);
            (t.name(args.weight), t.weight_bytes(args.weight) + rows)
        };
        self.timed("heads", note, |dev| dev.heads(args))
    }

    fn experts(&mut self, args: &Experts) -> Result<()> {
        self.timed("experts", |t| t.experts_note(args), |dev| dev.experts(args))
    }

    fn short_conv(&mut self, args: &ShortConv) -> Result<()> {
        let note = |t: &Timed| {
            let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
            let state = 2 * t.rows(args.memory.state, args.seqs.len());
            (t.name(args.taps), t.rows(args.x, rows) + t.rows(args.out, rows) + state)
        };
        self.timed("short_conv", note, |dev| dev.short_conv(args))
    }

    fn delta_net(&mut self, args: &DeltaNet) -> Result<()> {
        let note = |t: &Timed| {
            let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
            let state = 2 * t.rows(args.memory.state, args.seqs.len());
            (
                t.name(args.rate),
                t.rows(args.qkv, rows) + t.rows(args.z, rows) + t.rows(args.out, rows) + state,
            )
        };
        self.timed("delta_net", note, |dev| dev.delta_net(args))
    }

    fn catch_up(&mut self, args: &CatchUp) -> Result<()> {
        let note = |t: &Timed| (Cow::Borrowed(""), 2 * t.rows(args.memory.state, args.seqs.len()));
        self.timed("catch_up", note, |dev| dev.catch_up(args))
    }

    fn ssm_scan(&mut self, args: &SsmScan) -> Result<()> {
        let note = |t: &Timed| {
            let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
            let state = 2 * t.rows(args.memory.state, args.seqs.len());
            (
                t.name(args.rate),
                t.rows(args.xbc, rows) + t.rows(args.z, rows) + t.rows(args.out, rows) + state,
            )
        };
        self.timed("ssm_scan", note, |dev| dev.ssm_scan(args))
    }

    fn hyper_mix(&mut self, args: &HyperMix) -> Result<()> {
        let note = |t: &Timed| (t.name(args.base), t.rows(args.x, args.rows) + t.rows(args.out, args.rows));
        self.timed("hyper_mix", note, |dev| dev.hyper_mix(args))
    }

    fn hyper_expand(&mut self, args: &HyperExpand) -> Result<()> {
        let note = |t: &Timed| (Cow::Borrowed(""), 2 * t.rows(args.x, args.rows) + t.rows(args.y, args.rows));
        self.timed("hyper_expand", note, |dev| dev.hyper_expand(args))
    }

    fn compress(&mut self, args: &Compress) -> Result<()> {
        let note = |t: &Timed| {
            let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
            // Every row is read, kept, and read again with its block.
            (t.name(args.norm), 3 * (t.rows(args.kv, rows) + t.rows(args.gate, rows)))
        };
        self.timed("compress", note, |dev| dev.compress(args))
    }

    fn select(&mut self, args: &Select) -> Result<()> {
        let note = |t: &Timed| {
            let entries = |s: &SlotRows| (s.position + s.rows) / args.ratio.max(1);
            let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
            let keys = args.seqs.iter().map(|s| t.rows(args.entries, entries(s))).sum::<u64>();
            (Cow::Borrowed(""), t.rows(args.q, rows) + keys)
        };
        self.timed("select", note, |dev| dev.select(args))
    }

    fn attend_entries(&mut self, args: &AttendEntries) -> Result<()> {
        let note = |t: &Timed| {
            let rows: usize = args.seqs.iter().map(|s| s.rows).sum();
            let keys = |s: &SlotRows| {
                let end = s.position + s.rows;
                let entries = args.entries.map_or(0, |e| match e.chosen {
                    Some(chosen) => t.widths.get(&chosen).copied().unwrap_or(0).min(end / e.ratio.max(1)),
                    None => end / e.ratio.max(1),
                });
                t.rows(args.kv, end.min(args.window + s.rows) + entries)
            };
            let keys = args.seqs.iter().map(keys).sum::<u64>();
            (t.name(args.sinks), 2 * t.rows(args.q, rows) + keys)
        };
        self.timed("attend_entries", note, |dev| dev.attend_entries(args))
    }

    fn submit(&mut self) -> Result<Ticket> {
        self.inner.submit()
    }

    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        self.inner.picked(ticket, out)
    }

    fn place(&mut self, index: usize) {
        self.inner.place(index);
    }

    fn rehearse(&mut self, on: bool) -> bool {
        self.inner.rehearse(on)
    }

    fn profile(&mut self, on: bool) -> bool {
        self.on = on;
        true
    }

    fn take_spans(&mut self, out: &mut Vec<Span>) {
        out.append(&mut self.spans);
    }

    fn dispatches(&self) -> u64 {
        self.inner.dispatches()
    }

    fn held_bytes(&self) -> HeldBytes {
        self.inner.held_bytes()
    }
}
