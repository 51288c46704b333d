//! One device made of several: device 0 is the CPU, GPUs follow. Weights and pages live on the one they were placed on, and
//! a verb runs there; activations live wherever they are used, and their rows cross only when they are stale there.
//!
//! It owns where things are and which copy of a row is current. It must not know what a verb computes, nor a model.

mod compressed;
mod picks;
mod recurrent;
mod rows;

use std::ops::Range;
use std::sync::Arc;

use crate::slots::{Slots, next_device};
use crate::*;
use picks::Picks;
use rows::Rows;

/// Most devices: one bit each says who holds a row.
pub const MOST_DEVICES: usize = 8;

/// One of the devices.
struct Member {
    dev: Box<dyn Compute>,
    /// Whether it makes ready in rehearsals; one that does not must not run then either.
    rehearses: bool,
    /// Whether something was recorded since the last submit.
    busy: bool,
}

/// A weight, and its copies.
struct Loaded {
    spec: WeightSpec,
    /// Where it was placed.
    home: usize,
    /// By device.
    on: Vec<Option<Weight>>,
    /// Of a vector: where another device gets its copy from.
    source: Option<Arc<dyn ByteSource>>,
}

/// Rows that must cross before a verb can run.
struct Move {
    buf: Buf,
    from: usize,
    rows: Range<usize>,
}

/// Rows that were brought from one device to another.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Crossed {
    /// How often.
    pub times: u64,
    pub bytes: u64,
}

/// See the module.
pub struct Placed {
    info: DeviceInfo,
    members: Vec<Member>,
    /// Device of what is loaded or allocated next.
    at: usize,
    bufs: Slots<Buf, Rows>,
    weights: Slots<Weight, Loaded>,
    /// Whose pools have which `Pool::device`: pages keep the handles that their device gave them.
    pools: Vec<(u16, usize)>,
    /// Where the last verb ran.
    last: usize,
    rehearsing: bool,
    picks: Picks,
    crossed: Crossed,
    // Reused between verbs, so that a step allocates nothing.
    moves: Vec<Move>,
    parts: Vec<(Buf, usize, usize)>,
    staging: Vec<f32>,
    products: Vec<Product>,
    tokens: Vec<Token>,
}

impl Placed {
    /// `devices` by the numbers that [`Compute::place`] takes.
    ///
    /// # Errors
    /// [`ComputeError::Shape`] for none or too many devices, or when some are exact and others not.
    pub fn new(devices: Vec<Box<dyn Compute>>) -> Result<Placed> {
        let count = devices.len();
        if !(1..=MOST_DEVICES).contains(&count) {
            return Err(ComputeError::shape("placed", format!("1 to {MOST_DEVICES} devices"), count));
        }
        let first = devices[0].info().clone();
        if devices.iter().any(|d| d.info().exact != first.exact) {
            return Err(ComputeError::shape("placed", "devices that are all exact, or none", "both"));
        }
        let name = |info: &DeviceInfo| {
            let DeviceInfo { kind, isa, adapter, .. } = info;
            let adapter = if adapter.is_empty() { String::new() } else { format!(" {adapter}") };
            format!("{kind} {isa}{adapter}")
        };
        let adapter = devices.iter().map(|d| name(d.info())).collect::<Vec<_>>().join(" + ");
        let member = |dev| Member { dev, rehearses: false, busy: false };
        let device = next_device();
        Ok(Placed {
            // What the CPU has to do, it does while the caller waits.
            info: DeviceInfo { kind: "placed", adapter, asynchronous: false, ..first },
            members: devices.into_iter().map(member).collect(),
            at: 0,
            bufs: Slots::new(device),
            weights: Slots::new(device),
            pools: Vec::new(),
            last: 0,
            rehearsing: false,
            picks: Picks::default(),
            crossed: Crossed::default(),
            moves: Vec::new(),
            parts: Vec::new(),
            staging: Vec::new(),
            products: Vec::new(),
            tokens: Vec::new(),
        })
    }

    /// What each device holds.
    pub fn held_by_device(&self) -> Vec<HeldBytes> {
        self.members.iter().map(|m| m.dev.held_bytes()).collect()
    }

    /// What has crossed so far.
    pub fn crossed(&self) -> Crossed {
        self.crossed
    }

    /// The devices' own facts.
    pub fn infos(&self) -> impl Iterator<Item = &DeviceInfo> {
        self.members.iter().map(|m| m.dev.info())
    }

    /// Runs a verb on device `at`, unless it is only rehearsed and the device has nothing to make ready.
    fn run(&mut self, at: usize, verb: impl FnOnce(&mut dyn Compute) -> Result<()>) -> Result<()> {
        self.last = at;
        let member = &mut self.members[at];
        if self.rehearsing && !member.rehearses {
            return Ok(());
        }
        member.busy = true;
        verb(member.dev.as_mut())
    }

    /// Where a weight was placed.
    fn home(&self, verb: &'static str, weight: Weight) -> Result<usize> {
        Ok(self.weights.get(verb, weight)?.home)
    }

    /// A weight's handle on device `at`; a vector gets there when it is first needed.
    fn weight_on(&mut self, verb: &'static str, weight: Weight, at: usize) -> Result<Weight> {
        let loaded = self.weights.get_mut(verb, weight)?;
        if let Some(there) = loaded.on[at] {
            return Ok(there);
        }
        let Some(source) = &loaded.source else {
            return Err(ComputeError::shape(
                verb,
                format!("weights that lie on device {at}, where the verb runs"),
                format!("'{}' on device {}", loaded.spec.name, loaded.home),
            ));
        };
        let copy = self.members[at].dev.load(&loaded.spec, Arc::clone(source))?;
        loaded.on[at] = Some(copy);
        Ok(copy)
    }

    fn bias_on(&mut self, verb: &'static str, bias: Option<Weight>, at: usize) -> Result<Option<Weight>> {
        bias.map(|b| self.weight_on(verb, b, at)).transpose()
    }

    /// A buffer's handle on device `at`, allocated there when it is first needed.
    fn buf_on(&mut self, verb: &'static str, buf: Buf, at: usize) -> Result<Buf> {
        let rows = self.bufs.get_mut(verb, buf)?;
        if let Some(there) = rows.on[at] {
            return Ok(there);
        }
        let copy = self.members[at].dev.alloc(rows.shape.rows, rows.shape.width)?;
        rows.on[at] = Some(copy);
        Ok(copy)
    }

    /// Notes which of `rows` of a buffer must cross to device `at`.
    fn want(&mut self, verb: &'static str, buf: Buf, rows: Range<usize>, at: usize) -> Result<()> {
        let moves = &mut self.moves;
        self.bufs.get(verb, buf)?.stale(rows, at, |from, rows| moves.push(Move { buf, from, rows }));
        Ok(())
    }

    /// Brings over what was wanted: one round trip for each device it comes from.
    fn settle(&mut self, verb: &'static str, at: usize) -> Result<()> {
        let mut moves = std::mem::take(&mut self.moves);
        let result = self.bring(verb, at, &moves);
        moves.clear();
        self.moves = moves;
        result
    }

    fn bring(&mut self, verb: &'static str, at: usize, moves: &[Move]) -> Result<()> {
        for from in 0..self.members.len() {
            self.parts.clear();
            let mut floats = 0;
            for Move { buf, rows, .. } in moves.iter().filter(|m| m.from == from) {
                let width = self.bufs.get(verb, *buf)?.shape.width;
                let source = self.buf_on(verb, *buf, from)?;
                self.parts.push((source, rows.start, rows.len() * width));
                floats += rows.len() * width;
            }
            if floats == 0 {
                continue;
            }
            if self.staging.len() < floats {
                self.staging.resize(floats, 0.0);
            }
            self.members[from].dev.download_all(&self.parts, &mut self.staging[..floats])?;
            let mut first = 0;
            for Move { buf, rows, .. } in moves.iter().filter(|m| m.from == from) {
                let target = self.buf_on(verb, *buf, at)?;
                let held = self.bufs.get_mut(verb, *buf)?;
                let len = rows.len() * held.shape.width;
                self.members[at].dev.upload(target, rows.start, &self.staging[first..first + len])?;
                held.copied(rows.clone(), at);
                first += len;
            }
            self.crossed.times += 1;
            self.crossed.bytes += 4 * floats as u64;
        }
        Ok(())
    }

    /// Device `at` alone has the current form of `rows`.
    fn wrote(&mut self, verb: &'static str, buf: Buf, rows: Range<usize>, at: usize) -> Result<()> {
        self.bufs.get_mut(verb, buf)?.written(rows, at);
        Ok(())
    }

    /// Where a small verb runs: where most of what it reads is current, and there where the last verb ran if that is so
    /// in several places.
    fn best(&self, verb: &'static str, reads: &[(Buf, Range<usize>)]) -> Result<usize> {
        let mut best = (0, self.last);
        for at in std::iter::once(self.last).chain(0..self.members.len()) {
            let mut current = 0;
            for (buf, rows) in reads {
                current += usize::from(self.bufs.get(verb, *buf)?.is_current(rows.clone(), at));
            }
            if current > best.0 {
                best = (current, at);
            }
        }
        Ok(best.1)
    }

    /// The device of a pool.
    fn of_pool(&self, verb: &'static str, pool: Pool) -> Result<usize> {
        let found = self.pools.iter().find(|(device, _)| *device == pool.device);
        found.map(|&(_, at)| at).ok_or_else(|| ComputeError::Handle { verb, handle: format!("{pool:?}") })
    }

    /// The device of the pages that rows are written to or read from; where there are none, any.
    fn of_pages(&self, verb: &'static str, seqs: &[SeqRows]) -> Result<usize> {
        let page = |s: &SeqRows| s.pages.get(s.position / PAGE_POSITIONS).copied();
        match seqs.iter().filter(|s| s.rows > 0).find_map(page) {
            Some(page) => self.of_pool(verb, page.pool),
            None => Ok(self.last),
        }
    }

    /// Ids of the last `pick`, read back for a table that lies elsewhere.
    fn resolve(&mut self, tokens: &[Token]) -> Result<()> {
        self.tokens.clear();
        if self.rehearsing {
            self.tokens.extend(tokens.iter().map(|_| Token::Host(0)));
            return Ok(());
        }
        let members = &mut self.members;
        let last = self.picks.last_ids(|at| members[at].dev.as_mut())?;
        for &token in tokens {
            self.tokens.push(Token::Host(check::resolve(token, last)?));
        }
        Ok(())
    }

    fn run_linear(&mut self, args: &Linear, at: usize) -> Result<()> {
        let verb = "linear";
        let mut products = std::mem::take(&mut self.products);
        products.clear();
        let result = (|| {
            for p in args.products {
                let weight = self.weight_on(verb, p.weight, at)?;
                let bias = self.bias_on(verb, p.bias, at)?;
                products.push(Product { weight, bias, out: self.buf_on(verb, p.out, at)? });
            }
            let x = self.buf_on(verb, args.x, at)?;
            self.run(at, |dev| dev.linear(&Linear { x, products: &products, ..*args }))
        })();
        self.products = products;
        result
    }

    /// What `attend` reads and writes, by handles of device `at`.
    fn attend_on<'a>(&mut self, args: &Attend<'a>, at: usize) -> Result<Attend<'a>> {
        let sinks = self.bias_on("attend", args.sinks, at)?;
        let [q, out] = [self.buf_on("attend", args.q, at)?, self.buf_on("attend", args.out, at)?];
        Ok(Attend { q, out, sinks, ..*args })
    }
}

/// Batch rows of every sequence.
fn batch_rows<'a>(seqs: &'a [SeqRows]) -> impl Iterator<Item = Range<usize>> + use<'a> {
    seqs.iter().map(|s| s.row..s.row.saturating_add(s.rows))
}

impl Compute for Placed {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Memory is taken on each device that the buffer is used on, when it is first used there.
    fn alloc(&mut self, rows: usize, width: usize) -> Result<Buf> {
        check::alloc(rows, width)?;
        Ok(self.bufs.insert(Rows::new(check::Shape { rows, width }, self.members.len())))
    }

    fn free(&mut self, buf: Buf) -> Result<()> {
        let rows = self.bufs.remove("free", buf)?;
        let copies = rows.on.into_iter().zip(&mut self.members);
        let results: Vec<_> = copies.filter_map(|(b, m)| b.map(|b| m.dev.free(b))).collect();
        results.into_iter().collect()
    }

    fn upload(&mut self, dst: Buf, row: usize, data: &[f32]) -> Result<()> {
        let held = self.bufs.get("upload", dst)?;
        let (shape, at) = (held.shape, held.holder(row).unwrap_or(self.at));
        check::span("upload", shape, row, data.len())?;
        let rows = row..row + data.len().div_ceil(shape.width);
        // Of a row that is written in part, the rest must be current.
        if !data.len().is_multiple_of(shape.width) {
            self.want("upload", dst, rows.clone(), at)?;
            self.settle("upload", at)?;
        }
        let there = self.buf_on("upload", dst, at)?;
        self.members[at].dev.upload(there, row, data)?;
        self.wrote("upload", dst, rows, at)
    }

    fn download(&mut self, src: Buf, row: usize, out: &mut [f32]) -> Result<()> {
        let held = self.bufs.get("download", src)?;
        let (shape, at) = (held.shape, held.holder(row).unwrap_or(self.at));
        check::span("download", shape, row, out.len())?;
        self.want("download", src, row..row + out.len().div_ceil(shape.width), at)?;
        self.settle("download", at)?;
        let there = self.buf_on("download", src, at)?;
        self.members[at].dev.download(there, row, out)
    }

    fn load(&mut self, spec: &WeightSpec, source: Arc<dyn ByteSource>) -> Result<Weight> {
        let home = self.at;
        let mut on = vec![None; self.members.len()];
        on[home] = Some(self.members[home].dev.load(spec, Arc::clone(&source))?);
        let source = (spec.kind == WeightKind::Vector).then_some(source);
        Ok(self.weights.insert(Loaded { spec: spec.clone(), home, on, source }))
    }

    fn unload(&mut self, weight: Weight) -> Result<()> {
        let loaded = self.weights.remove("unload", weight)?;
        let copies = loaded.on.into_iter().zip(&mut self.members);
        let results: Vec<_> = copies.filter_map(|(w, m)| w.map(|w| m.dev.unload(w))).collect();
        results.into_iter().collect()
    }

    fn alloc_pages(&mut self, spec: &PageSpec, count: usize) -> Result<Pool> {
        let pool = self.members[self.at].dev.alloc_pages(spec, count)?;
        if !self.pools.contains(&(pool.device, self.at)) {
            self.pools.push((pool.device, self.at));
        }
        Ok(pool)
    }

    fn free_pages(&mut self, pool: Pool) -> Result<()> {
        let at = self.of_pool("free_pages", pool)?;
        self.members[at].dev.free_pages(pool)
    }

    fn copy_page(&mut self, from: Page, to: Page, positions: usize) -> Result<()> {
        let at = self.of_pool("copy_page", from.pool)?;
        self.run(at, |dev| dev.copy_page(from, to, positions))
    }

    fn position_bytes(&self, pool: Pool, range: Range<usize>) -> Result<usize> {
        self.members[self.of_pool("position_bytes", pool)?].dev.position_bytes(pool, range)
    }

    fn read_positions(&mut self, page: Page, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let at = self.of_pool("read_positions", page.pool)?;
        self.members[at].dev.read_positions(page, range, out)
    }

    fn write_positions(&mut self, page: Page, range: Range<usize>, bytes: &[u8]) -> Result<()> {
        let at = self.of_pool("write_positions", page.pool)?;
        self.members[at].dev.write_positions(page, range, bytes)
    }

    fn embed(&mut self, args: &Embed) -> Result<()> {
        let at = self.home("embed", args.table)?;
        let table = self.weight_on("embed", args.table, at)?;
        let out = self.buf_on("embed", args.out, at)?;
        // A pick on a device that was skipped in a rehearsal is nobody's.
        let elsewhere = self.picks.device().map_or(self.rehearsing, |picked| picked != at);
        if elsewhere && args.tokens.iter().any(|t| matches!(t, Token::Device(_))) {
            self.resolve(args.tokens)?;
            let tokens = std::mem::take(&mut self.tokens);
            let result = self.run(at, |dev| dev.embed(&Embed { table, tokens: &tokens, out, ..*args }));
            self.tokens = tokens;
            result?;
        } else {
            self.run(at, |dev| dev.embed(&Embed { table, out, ..*args }))?;
        }
        self.wrote("embed", args.out, 0..args.tokens.len(), at)
    }

    fn norm(&mut self, args: &Norm) -> Result<()> {
        let at = self.home("norm", args.weight)?;
        self.want("norm", args.x, 0..args.rows, at)?;
        self.settle("norm", at)?;
        let weight = self.weight_on("norm", args.weight, at)?;
        let [x, out] = [self.buf_on("norm", args.x, at)?, self.buf_on("norm", args.out, at)?];
        self.run(at, |dev| dev.norm(&Norm { x, weight, out, ..*args }))?;
        self.wrote("norm", args.out, 0..args.rows, at)
    }

    fn linear(&mut self, args: &Linear) -> Result<()> {
        let at = match args.products.first() {
            Some(product) => self.home("linear", product.weight)?,
            None => self.last,
        };
        self.want("linear", args.x, args.first_row..args.first_row.saturating_add(args.rows), at)?;
        if args.combine == Combine::Add {
            for product in args.written() {
                self.want("linear", product.out, 0..args.rows, at)?;
            }
        }
        self.settle("linear", at)?;
        self.run_linear(args, at)?;
        args.written().try_for_each(|p| self.wrote("linear", p.out, 0..args.rows, at))
    }

    fn rope(&mut self, args: &Rope) -> Result<()> {
        let rows = 0..args.positions.len();
        let at = self.best("rope", &[(args.x, rows.clone())])?;
        self.want("rope", args.x, rows.clone(), at)?;
        self.want("rope", args.freqs, 0..1, at)?;
        self.settle("rope", at)?;
        let [x, freqs] = [self.buf_on("rope", args.x, at)?, self.buf_on("rope", args.freqs, at)?];
        self.run(at, |dev| dev.rope(&Rope { x, freqs, ..*args }))?;
        self.wrote("rope", args.x, rows, at)
    }

    fn append_kv(&mut self, args: &AppendKv) -> Result<()> {
        let at = self.of_pages("append_kv", args.seqs)?;
        for rows in batch_rows(args.seqs) {
            self.want("append_kv", args.k, rows.clone(), at)?;
            self.want("append_kv", args.v, rows, at)?;
        }
        self.settle("append_kv", at)?;
        let [k, v] = [self.buf_on("append_kv", args.k, at)?, self.buf_on("append_kv", args.v, at)?];
        self.run(at, |dev| dev.append_kv(&AppendKv { k, v, ..*args }))
    }

    fn attend(&mut self, args: &Attend) -> Result<()> {
        let at = self.of_pages("attend", args.seqs)?;
        for rows in batch_rows(args.seqs) {
            self.want("attend", args.q, rows, at)?;
        }
        self.settle("attend", at)?;
        let inner = self.attend_on(args, at)?;
        self.run(at, |dev| dev.attend(&inner))?;
        batch_rows(args.seqs).try_for_each(|rows| self.wrote("attend", args.out, rows, at))
    }

    fn attend_new(&mut self, args: &AttendNew) -> Result<()> {
        let (verb, q, rows) = ("attend", args.attend.q, 0..args.positions.len());
        let at = self.of_pages(verb, args.attend.seqs)?;
        for buf in [q, args.k, args.v] {
            self.want(verb, buf, rows.clone(), at)?;
        }
        if let Some(rotation) = &args.rotation {
            self.want(verb, rotation.freqs, 0..1, at)?;
        }
        self.settle(verb, at)?;
        let attend = self.attend_on(&args.attend, at)?;
        let [k, v] = [self.buf_on(verb, args.k, at)?, self.buf_on(verb, args.v, at)?];
        let norms = match args.norms {
            Some([a, b]) => {
                let weights = [self.weight_on(verb, a.weight, at)?, self.weight_on(verb, b.weight, at)?];
                Some([HeadNorm { weight: weights[0], ..a }, HeadNorm { weight: weights[1], ..b }])
            }
            None => None,
        };
        let rotation = match args.rotation {
            Some(rotation) => Some(Rotation { freqs: self.buf_on(verb, rotation.freqs, at)?, ..rotation }),
            None => None,
        };
        let inner = AttendNew { attend, k, v, norms, rotation, positions: args.positions };
        self.run(at, |dev| dev.attend_new(&inner))?;
        for buf in [q, args.k] {
            self.wrote(verb, buf, rows.clone(), at)?;
        }
        batch_rows(args.attend.seqs).try_for_each(|rows| self.wrote(verb, args.attend.out, rows, at))
    }

    fn latent_rows(&mut self, args: &LatentRows) -> Result<()> {
        let (verb, rows) = ("latent_rows", 0..args.positions.len());
        let at = self.home(verb, args.norm.weight)?;
        for buf in [args.wide, args.rotated, args.latent, args.key] {
            self.want(verb, buf, rows.clone(), at)?;
        }
        if let Some(rotation) = &args.rotation {
            self.want(verb, rotation.freqs, 0..1, at)?;
        }
        self.settle(verb, at)?;
        let weight = self.weight_on(verb, args.norm.weight, at)?;
        let rotation = match args.rotation {
            Some(rotation) => Some(Rotation { freqs: self.buf_on(verb, rotation.freqs, at)?, ..rotation }),
            None => None,
        };
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (wide, rotated, latent, key) =
            (on(args.wide)?, on(args.rotated)?, on(args.latent)?, on(args.key)?);
        let (q, k, norm) = (on(args.q)?, on(args.k)?, HeadNorm { weight, ..args.norm });
        let inner = LatentRows { wide, rotated, latent, key, norm, rotation, q, k, ..*args };
        self.run(at, |dev| dev.latent_rows(&inner))?;
        for buf in [args.rotated, args.latent, args.key, args.q, args.k] {
            self.wrote(verb, buf, rows.clone(), at)?;
        }
        Ok(())
    }

    fn map(&mut self, args: &Map) -> Result<()> {
        let (reads, out, written) = match *args {
            Map::Add { a, b, out, rows }
            | Map::Gate { a, b, out, rows, .. }
            | Map::Join { a, b, out, rows, .. } => {
                ([Some((a, 0..rows)), Some((b, 0..rows)), None], out, 0..rows)
            }
            Map::Scale { a, out, rows, .. }
            | Map::Softcap { a, out, rows, .. }
            | Map::Activate { a, out, rows, .. } => ([Some((a, 0..rows)), None, None], out, 0..rows),
            Map::SigmoidGate { a, gate, out, add, rows } => {
                ([Some((a, 0..rows)), Some((gate, 0..rows)), add.then_some((out, 0..rows))], out, 0..rows)
            }
            Map::CopyRow { a, from, out, to } => {
                ([Some((a, from..from.saturating_add(1))), None, None], out, to..to.saturating_add(1))
            }
        };
        let [first, second, third] = reads;
        let at = match (&first, &second) {
            (Some(a), Some(b)) => self.best("map", &[a.clone(), b.clone()])?,
            (Some(a), _) => self.best("map", std::slice::from_ref(a))?,
            (None, _) => self.last,
        };
        for (buf, rows) in first.into_iter().chain(second).chain(third) {
            self.want("map", buf, rows, at)?;
        }
        self.settle("map", at)?;
        let mut on = |buf| self.buf_on("map", buf, at);
        let inner = match *args {
            Map::Add { a, b, out, rows } => Map::Add { a: on(a)?, b: on(b)?, out: on(out)?, rows },
            Map::Scale { a, factor, out, rows } => Map::Scale { a: on(a)?, factor, out: on(out)?, rows },
            Map::Softcap { a, cap, out, rows } => Map::Softcap { a: on(a)?, cap, out: on(out)?, rows },
            Map::Activate { a, activation, out, rows } => {
                Map::Activate { a: on(a)?, activation, out: on(out)?, rows }
            }
            Map::SigmoidGate { a, gate, out, add, rows } => {
                Map::SigmoidGate { a: on(a)?, gate: on(gate)?, out: on(out)?, add, rows }
            }
            Map::Gate { a, b, first, activation, out, rows } => {
                Map::Gate { a: on(a)?, b: on(b)?, first, activation, out: on(out)?, rows }
            }
            Map::Join { a, b, groups, out, rows } => {
                Map::Join { a: on(a)?, b: on(b)?, groups, out: on(out)?, rows }
            }
            Map::CopyRow { a, from, out, to } => Map::CopyRow { a: on(a)?, from, out: on(out)?, to },
        };
        self.run(at, |dev| dev.map(&inner))?;
        self.wrote("map", out, written, at)
    }

    fn pick(&mut self, args: &Pick) -> Result<()> {
        self.picks.check(args.k)?;
        let rows = 0..args.rows;
        let at = match self.picks.open() {
            // Results of one submit come from one device.
            Some(at) => at,
            None => self.best("pick", &[(args.logits, rows.clone())])?,
        };
        self.want("pick", args.logits, rows, at)?;
        self.settle("pick", at)?;
        let logits = self.buf_on("pick", args.logits, at)?;
        let runs = !self.rehearsing || self.members[at].rehearses;
        self.run(at, |dev| dev.pick(&Pick { logits, ..*args }))?;
        if runs {
            self.picks.recorded(at, args.rows, args.k);
        }
        Ok(())
    }

    fn route(&mut self, args: &Route) -> Result<()> {
        let rows = 0..args.rows;
        let at = self.best("route", &[(args.logits, rows.clone())])?;
        self.want("route", args.logits, rows.clone(), at)?;
        args.chosen.map_or(Ok(()), |chosen| self.want("route", chosen, rows.clone(), at))?;
        self.settle("route", at)?;
        let bias = self.bias_on("route", args.bias, at)?;
        let scales = self.bias_on("route", args.scales, at)?;
        let chosen = args.chosen.map(|c| self.buf_on("route", c, at)).transpose()?;
        let [logits, out] = [self.buf_on("route", args.logits, at)?, self.buf_on("route", args.out, at)?];
        self.run(at, |dev| dev.route(&Route { logits, bias, scales, chosen, out, ..*args }))?;
        self.wrote("route", args.out, rows, at)
    }

    fn heads(&mut self, args: &Heads) -> Result<()> {
        let (verb, rows) = ("heads", 0..args.rows);
        let at = self.home(verb, args.weight)?;
        self.want(verb, args.x, rows.clone(), at)?;
        self.settle(verb, at)?;
        let weight = self.weight_on(verb, args.weight, at)?;
        let [x, out] = [self.buf_on(verb, args.x, at)?, self.buf_on(verb, args.out, at)?];
        self.run(at, |dev| dev.heads(&Heads { x, weight, out, ..*args }))?;
        self.wrote(verb, args.out, rows, at)
    }

    fn experts(&mut self, args: &Experts) -> Result<()> {
        let (verb, rows) = ("experts", 0..args.rows);
        let at = self.home(verb, args.up)?;
        self.want(verb, args.x, rows.clone(), at)?;
        self.want(verb, args.routes, rows.clone(), at)?;
        if args.add {
            self.want(verb, args.out, rows.clone(), at)?;
        }
        self.settle(verb, at)?;
        let mut weight = |w| self.weight_on(verb, w, at);
        let (up, down) = (weight(args.up)?, weight(args.down)?);
        let gate = args.gate.map(&mut weight).transpose()?;
        let biases = match args.biases {
            Some([a, b, c]) => Some([weight(a)?, weight(b)?, weight(c)?]),
            None => None,
        };
        let mut on = |buf| self.buf_on(verb, buf, at);
        let (x, routes, hidden, out) = (on(args.x)?, on(args.routes)?, on(args.hidden)?, on(args.out)?);
        let inner = Experts { x, routes, gate, up, down, biases, hidden, out, ..*args };
        self.run(at, |dev| dev.experts(&inner))?;
        self.wrote(verb, args.out, rows, at)
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
        let picked = self.picks.open();
        let mut ticket = None;
        for (at, member) in self.members.iter_mut().enumerate() {
            if std::mem::take(&mut member.busy) || picked == Some(at) {
                let inner = member.dev.submit()?;
                ticket = if picked == Some(at) { Some(inner) } else { ticket };
            }
        }
        Ok(self.picks.submit(ticket))
    }

    fn picked(&mut self, ticket: Ticket, out: &mut Picked) -> Result<()> {
        let members = &mut self.members;
        self.picks.redeem(ticket, out, |at| members[at].dev.as_mut())
    }

    fn place(&mut self, index: usize) {
        // A number that no device has shows in the device's own words when something is put there.
        self.at = index.min(self.members.len() - 1);
    }

    fn rehearse(&mut self, on: bool) -> bool {
        for member in &mut self.members {
            member.rehearses = member.dev.rehearse(on);
        }
        let any = self.members.iter().any(|m| m.rehearses);
        // Where nobody has anything to make ready, the caller goes on without ending a rehearsal.
        self.rehearsing = on && any;
        any
    }

    fn held_bytes(&self) -> HeldBytes {
        self.held_by_device().into_iter().fold(HeldBytes::default(), |sum, held| HeldBytes {
            weights: sum.weights + held.weights,
            buffers: sum.buffers + held.buffers,
            pages: sum.pages + held.pages,
        })
    }

    fn profile(&mut self, on: bool) -> bool {
        let mut any = false;
        for member in &mut self.members {
            any |= member.dev.profile(on);
        }
        any
    }

    fn take_spans(&mut self, out: &mut Vec<Span>) {
        for (at, member) in self.members.iter_mut().enumerate() {
            let from = out.len();
            member.dev.take_spans(out);
            out[from..].iter_mut().for_each(|span| span.device = at);
        }
    }

    fn dispatches(&self) -> u64 {
        self.members.iter().map(|m| m.dev.dispatches()).sum()
    }
}
