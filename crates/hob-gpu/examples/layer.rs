//! Time of whole decode layers, verb by verb as a model records them: what each dispatch takes and what lies between.
//!
//! `layer [SHAPE,.. [FORMAT,.. [ROWS,.. [POSITION,.. [KV,.. [WORD,..]]]]]]`; a shape is `8b`, `70b` or
//! `DIMxFFNxHEADSxKV_HEADS`, the adapter `HOB_TEST_ADAPTER` or the first. Layers take turns over more than 400 MB, so that no
//! cache serves weights. Words: `apart` keeps every norm a dispatch of its own; `steps` measures whole steps instead, with
//! embedding, all layers of the shape, head and pick, recorded ahead as an engine does; `steps:N` those of N layers. `ahead`:
//! products touch what those behind them read, however small the model is; `alone`: never.

mod common;

use std::time::Instant;

use hob_compute::*;
use hob_gpu::{AttentionRule, Gpu, GpuConfig};
use hob_quant::{Format, KvFormat};

/// Bytes over which layers take turns.
const ROTATED: u64 = 400 << 20;
const HEAD_DIM: usize = 128;

type Fallible<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Copy, Clone)]
struct Shape {
    dim: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    /// Whether heads are normed.
    qk_norm: bool,
    layers: usize,
    vocab: usize,
}

impl Shape {
    fn parse(text: &str) -> Option<Shape> {
        let (numbers, qk_norm, layers, vocab) = match text {
            "8b" => (vec![4096, 12288, 32, 8], true, 36, 151_936),
            "70b" => (vec![8192, 28672, 64, 8], false, 80, 128_256),
            _ => (text.split('x').map(|n| n.parse().ok()).collect::<Option<Vec<_>>>()?, false, 8, 32_768),
        };
        let [dim, ffn, heads, kv_heads] = numbers[..] else { return None };
        Some(Shape { dim, ffn, heads, kv_heads, qk_norm, layers, vocab })
    }

    fn bytes(&self, format: Format) -> u64 {
        let &Shape { dim, ffn, heads, kv_heads, .. } = self;
        let (wide, narrow) = (heads * HEAD_DIM, kv_heads * HEAD_DIM);
        let all = [(wide + 2 * narrow, dim), (dim, wide), (2 * ffn, dim), (dim, ffn)];
        all.iter().map(|&(rows, cols)| (rows * format.row_bytes(cols).unwrap_or(0)) as u64).sum()
    }
}

struct Layer {
    norms: [Weight; 2],
    head_norms: [Weight; 2],
    /// q, k, v, o, gate, up, down
    matrices: [Weight; 7],
    pages: Vec<Vec<Page>>,
}

#[derive(Copy, Clone)]
struct Bufs {
    x: Buf,
    normed: Buf,
    q: Buf,
    k: Buf,
    v: Buf,
    mixed: Buf,
    hidden: Buf,
    freqs: Buf,
}

/// What a step has besides layers.
struct Ends {
    table: Weight,
    norm: Weight,
    head: Weight,
    logits: Buf,
}

/// What to measure.
#[derive(Copy, Clone)]
struct Case {
    shape: Shape,
    format: Format,
    rows: usize,
    position: usize,
    kv: KvFormat,
    apart: bool,
    /// Layers of whole steps.
    steps: Option<usize>,
}

struct Bench {
    dev: Gpu,
    shape: Shape,
    rows: usize,
    position: usize,
    layers: Vec<Layer>,
    bufs: Bufs,
    apart: bool,
    ends: Option<Ends>,
}

impl Bench {
    fn new(mut dev: Gpu, case: &Case) -> Fallible<Bench> {
        let &Case { shape, format, rows, position, apart, steps, .. } = case;
        let Shape { dim, ffn, heads, kv_heads, .. } = shape;
        let (wide, narrow) = (heads * HEAD_DIM, kv_heads * HEAD_DIM);
        let count = steps.unwrap_or(ROTATED.div_ceil(shape.bytes(format)).clamp(2, 64) as usize);
        let mut layers = Vec::new();
        for _ in 0..count {
            let pages = pages(&mut dev, case)?;
            let mut vector = |cols| common::vector(&mut dev, 1.0, cols);
            let (norms, head_norms) = ([vector(dim)?, vector(dim)?], [vector(HEAD_DIM)?, vector(HEAD_DIM)?]);
            let mut matrix = |rows, cols| common::matrix(&mut dev, format, rows, cols);
            let matrices = [
                matrix(wide, dim)?,
                matrix(narrow, dim)?,
                matrix(narrow, dim)?,
                matrix(dim, wide)?,
                matrix(ffn, dim)?,
                matrix(ffn, dim)?,
                matrix(dim, ffn)?,
            ];
            layers.push(Layer { norms, head_norms, matrices, pages });
        }
        let mut buf = |width| dev.alloc(rows, width);
        let (x, normed, mixed, hidden) = (buf(dim)?, buf(dim)?, buf(wide)?, buf(ffn)?);
        let (q, k, v, freqs) = (buf(wide)?, buf(narrow)?, buf(narrow)?, dev.alloc(1, HEAD_DIM / 2)?);
        let freq = |i: usize| 10000f32.powf(-(i as f32) / 64.0);
        dev.upload(freqs, 0, &(0..HEAD_DIM / 2).map(freq).collect::<Vec<_>>())?;
        let bufs = Bufs { x, normed, q, k, v, mixed, hidden, freqs };
        let ends = steps.map(|_| Bench::ends(&mut dev, case)).transpose()?;
        let mut bench = Bench { dev, shape, rows, position, layers, bufs, apart, ends };
        bench.begin()?;
        bench.dev.rehearse(true);
        match steps {
            Some(_) => (0..2).try_for_each(|_| bench.step(Token::Host(1)).map(drop))?,
            None => (0..2).try_for_each(|_| bench.run(count))?,
        }
        bench.dev.rehearse(false);
        Ok(bench)
    }

    fn ends(dev: &mut Gpu, case: &Case) -> Fallible<Ends> {
        let &Case { shape: Shape { dim, vocab, .. }, format, rows, .. } = case;
        Ok(Ends {
            table: common::noise(dev, WeightKind::Table, format, vocab, dim)?.0,
            norm: common::vector(dev, 1.0, dim)?,
            head: common::matrix(dev, format, vocab, dim)?,
            logits: dev.alloc(rows, vocab)?,
        })
    }

    /// A residual stream to begin with; repeated layers must not overflow it.
    fn begin(&mut self) -> Fallible<()> {
        let values: Vec<f32> =
            (0..self.rows * self.shape.dim).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
        Ok(self.dev.upload(self.bufs.x, 0, &values)?)
    }

    fn linear(&mut self, x: Buf, products: &[(Weight, Buf)], combine: Combine) -> Result<()> {
        let mut all = [Product { weight: products[0].0, bias: None, out: products[0].1 }; 3];
        all.iter_mut().zip(products).for_each(|(p, &(weight, out))| *p = Product { weight, bias: None, out });
        let products = &all[..products.len()];
        self.dev.linear(&Linear { x, first_row: 0, rows: self.rows, products, combine })
    }

    fn norm(&mut self, weight: Weight) -> Result<()> {
        if self.apart {
            // Whatever else is asked of the device ends a fusion.
            self.dev.download_all(&[], &mut [])?;
        }
        let Bufs { x, normed, .. } = self.bufs;
        self.dev.norm(&Norm { x, rows: self.rows, groups: 1, weight, eps: 1e-6, out: normed })
    }

    /// Records `count` layers.
    fn run(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|i| self.layer(i % self.layers.len()))
    }

    fn layer(&mut self, i: usize) -> Result<()> {
        let Layer { norms, head_norms, matrices: [wq, wk, wv, wo, gate, up, down], .. } = self.layers[i];
        let Bufs { x, normed, q, k, v, mixed, hidden, freqs } = self.bufs;
        self.norm(norms[0])?;
        self.linear(normed, &[(wq, q), (wk, k), (wv, v)], Combine::Store)?;
        let Shape { heads, kv_heads, qk_norm, .. } = self.shape;
        let position = self.position;
        let seq = |(row, pages)| SeqRows { row, rows: 1, position, pages };
        let seqs: Vec<_> = self.layers[i].pages.iter().map(Vec::as_slice).enumerate().map(seq).collect();
        let attend = Attend {
            q,
            out: mixed,
            heads,
            kv_heads,
            head_dim: HEAD_DIM,
            scale: 0.088,
            window: None,
            softcap: None,
            sinks: None,
            seqs: &seqs,
        };
        let norm = |(weight, groups)| HeadNorm { weight, groups, eps: 1e-6 };
        let norms_of_heads = qk_norm.then(|| [(head_norms[0], heads), (head_norms[1], kv_heads)].map(norm));
        let positions = vec![position as u32; self.rows];
        self.dev.attend_new(&AttendNew {
            attend,
            k,
            v,
            norms: norms_of_heads,
            rotation: Some(Rotation { freqs, pairs: RopePairs::Half, magnitude: 1.0 }),
            positions: &positions,
        })?;
        self.linear(mixed, &[(wo, x)], Combine::Add)?;
        self.norm(norms[1])?;
        self.linear(normed, &[(gate, hidden), (up, hidden)], Combine::Gated(Activation::Silu))?;
        self.linear(hidden, &[(down, x)], Combine::Add)
    }

    /// Records a whole step: when it was begun, when all was recorded, and what to wait for.
    fn step(&mut self, token: Token) -> Fallible<(Instant, Instant, Ticket)> {
        let start = Instant::now();
        let Some(Ends { table, norm, head, logits }) = self.ends else { return Err("no ends".into()) };
        let (rows, Bufs { x, normed, .. }) = (self.rows, self.bufs);
        self.dev.embed(&Embed { table, tokens: &vec![token; rows], out: x, scale: 1.0 })?;
        self.run(self.layers.len())?;
        self.norm(norm)?;
        self.linear(normed, &[(head, logits)], Combine::Store)?;
        self.dev.pick(&Pick { logits, rows, k: 1, draws: &[] })?;
        let recorded = Instant::now();
        Ok((start, recorded, self.dev.submit()?))
    }

    /// `count` steps, `ahead` of them recorded before the first is waited for; seconds of all, of recording and of
    /// submitting, without what the stream submitted in between.
    fn steps(&mut self, count: usize, ahead: usize) -> Fallible<[f64; 3]> {
        let (begin, mut picked) = (Instant::now(), Picked::default());
        let (mut times, mut waiting) = ([0.0; 3], std::collections::VecDeque::new());
        for i in 0..count {
            let (start, recorded, ticket) =
                self.step(if i > 0 { Token::Device(0) } else { Token::Host(1) })?;
            times[1] += (recorded - start).as_secs_f64();
            times[2] += recorded.elapsed().as_secs_f64();
            waiting.push_back(ticket);
            if waiting.len() > ahead {
                self.dev.picked(waiting.pop_front().expect("some wait"), &mut picked)?;
            }
        }
        waiting.into_iter().try_for_each(|ticket| self.dev.picked(ticket, &mut picked))?;
        times[0] = begin.elapsed().as_secs_f64();
        Ok(times)
    }

    fn report_steps(&mut self) -> Fallible<()> {
        let warm = Instant::now();
        while warm.elapsed().as_secs_f64() < 0.5 {
            self.steps(8, 1)?;
        }
        println!();
        for ahead in [0, 1, 2, 1] {
            let before = self.dev.counters();
            let count = 32;
            let ms = self.steps(count, ahead)?.map(|seconds| seconds / count as f64 * 1e3);
            let after = self.dev.counters();
            let each = |n: u64| n as f64 / count as f64;
            println!(
                "  {ahead} ahead: {:.3} ms a step ({:.1} tok/s); host: {:.3} recording, {:.3} submitting; {:.0} dispatches, {:.1} submits",
                ms[0],
                1e3 / ms[0],
                ms[1],
                ms[2],
                each(after.dispatches - before.dispatches),
                each(after.submits - before.submits),
            );
        }
        if !self.dev.profile(true) {
            return Ok(());
        }
        let mut spans = Vec::new();
        self.steps(3, 1)?;
        self.dev.take_spans(&mut spans);
        self.dev.profile(false);
        let third = spans.len() / 3;
        let end = |s: &Span| s.start_nanos + s.nanos;
        let before = |at: usize| (spans[at].start_nanos as f64 - end(&spans[at - 1]) as f64) / 1e3;
        println!("  {:.1} and {:.1} us between steps", before(third), before(2 * third));
        // The last step: what stands out, and sums.
        let spans = &spans[spans.len() * 2 / 3..];
        let (mut by, mut gaps) = (std::collections::BTreeMap::<String, (f64, usize)>::new(), Vec::new());
        for (i, span) in spans.iter().enumerate() {
            let entry =
                by.entry(format!("{} {} {} kB", span.verb, span.detail, span.bytes >> 10)).or_default();
            *entry = (entry.0 + span.nanos as f64 / 1e3, entry.1 + 1);
            if i > 0 {
                let gap = span.start_nanos as f64 - (spans[i - 1].start_nanos + spans[i - 1].nanos) as f64;
                gaps.push((gap / 1e3, i));
            }
        }
        by.iter()
            .for_each(|(name, (us, count))| println!("  {name}: {count} x {:.1} us", us / *count as f64));
        gaps.sort_by(|a, b| b.0.total_cmp(&a.0));
        let all: f64 = gaps.iter().map(|gap| gap.0).sum();
        let largest: Vec<_> = gaps.iter().take(8).map(|(us, at)| format!("{us:.1} before {at}")).collect();
        println!("  gaps {all:.0} us in all; {}", largest.join(", "));
        Ok(())
    }

    /// Seconds of `count` layers, from the first call to the last result.
    fn time(&mut self, count: usize) -> Fallible<f64> {
        self.begin()?;
        let start = Instant::now();
        self.run(count)?;
        self.dev.download(self.bufs.x, 0, &mut [0.0])?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn report(&mut self) -> Fallible<()> {
        // Clocks fall while nothing runs: the same work first, for long enough to raise them.
        let warm = self.time(64)? / 64.0;
        let warm_count = ((0.5 / warm) as usize).clamp(8, 20_000);
        let each = self.time(warm_count)? / warm_count as f64;
        let count = ((0.15 / each) as usize).clamp(8, 20_000);
        let before = self.dev.counters().dispatches;
        let best = self.time(count)?.min(self.time(count)?).min(self.time(count)?);
        let dispatches = (self.dev.counters().dispatches - before) as f64 / (3 * count) as f64;
        println!("{:.1} us per layer, {dispatches:.2} dispatches", best / count as f64 * 1e6);
        self.spans(count.min(400))
    }

    /// Where the time of a layer goes, dispatch by dispatch.
    fn spans(&mut self, count: usize) -> Fallible<()> {
        if !self.dev.profile(true) {
            println!("  (this device cannot tell when dispatches ran)");
            return Ok(());
        }
        let mut spans = Vec::new();
        self.time(count)?;
        self.dev.take_spans(&mut spans);
        self.dev.profile(false);
        // The first dispatches may be those of a beginning.
        let (each, rest) = (spans.len() / count, spans.len() % count);
        for i in rest..rest + each {
            let median = |mut nanos: Vec<u64>| {
                nanos.sort_unstable();
                nanos.get(nanos.len() / 2).map_or(0.0, |&n| n as f64 / 1e3)
            };
            let mine = || (i..spans.len()).step_by(each);
            let took = median(mine().map(|at| spans[at].nanos).collect());
            let end = |s: &Span| s.start_nanos + s.nanos;
            let gap = |at: usize| spans[at].start_nanos.saturating_sub(end(&spans[at - 1]));
            let gap = median(mine().filter(|&at| at > 0).map(gap).collect());
            let Span { verb, detail, bytes, .. } = &spans[i];
            let rate = *bytes as f64 / took / 1e3;
            println!("  {verb:10} {detail:24} {took:6.1} us after {gap:4.1} us, {rate:5.0} GB/s");
        }
        Ok(())
    }
}

/// Pages for the sequences of a case.
fn pages(dev: &mut Gpu, case: &Case) -> Fallible<Vec<Vec<Page>>> {
    let &Case { shape: Shape { kv_heads, .. }, rows, position, kv, .. } = case;
    let spec = PageSpec { kv_heads, head_dim: HEAD_DIM, k: kv, v: kv, first: false, latent: None };
    let count = position / PAGE_POSITIONS + 1;
    let pool = dev.alloc_pages(&spec, rows * count)?;
    let first = if spec.has_first() { Some(dev.alloc_pages(&spec.of_page(0), rows)?) } else { None };
    let page = |row: usize, i: usize| match first {
        Some(first) if i == 0 => Page { pool: first, index: row as u32 },
        _ => Page { pool, index: (row * count + i) as u32 },
    };
    Ok((0..rows).map(|row| (0..count).map(|i| page(row, i)).collect()).collect())
}

fn list<T>(arg: Option<String>, default: &str, parse: impl Fn(&str) -> Option<T>) -> Fallible<Vec<T>> {
    let text = arg.unwrap_or(default.into());
    text.split(',').map(|t| parse(t).ok_or_else(|| format!("what is '{t}'?").into())).collect()
}

fn main() -> Fallible<()> {
    let mut args = std::env::args().skip(1);
    let shapes = list(args.next(), "8b,70b", |t| Some((t.to_string(), Shape::parse(t)?)))?;
    let formats = list(args.next(), "Q4_0", Format::from_name)?;
    let rows: Vec<usize> = list(args.next(), "1", |t| t.parse().ok())?;
    let positions: Vec<usize> = list(args.next(), "512", |t| t.parse().ok())?;
    let kvs: Vec<KvFormat> = list(args.next(), "f16", |t| t.parse().ok())?;
    let words = args.next().unwrap_or_default();
    let word = |name: &str| words.split(',').find_map(|w| w.strip_prefix(name));
    let adapter = common::adapter();
    for (name, shape) in &shapes {
        for &format in &formats {
            for &rows in &rows {
                for (&position, &kv) in positions.iter().flat_map(|p| kvs.iter().map(move |kv| (p, kv))) {
                    let dev = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() })?;
                    let megabytes = shape.bytes(format) as f64 / 1e6;
                    print!("{name} {format} ({megabytes:.0} MB), {rows} rows at {position}, K and V {kv}: ");
                    let steps = word("steps").map(|n| n.strip_prefix(':').and_then(|n| n.parse().ok()));
                    let steps = steps.map(|n| n.unwrap_or(shape.layers));
                    let apart = word("apart").is_some();
                    let case = Case { shape: *shape, format, rows, position, kv, apart, steps };
                    let mut dev = dev;
                    if let Some(cut) = word("short:") {
                        dev.tune_attention(AttentionRule { short_lanes: cut.parse()?, ..Default::default() });
                    }
                    for name in ["ahead", "alone"].into_iter().filter(|name| word(name).is_some()) {
                        dev.look_ahead(name == "ahead");
                    }
                    let mut bench = Bench::new(dev, &case)?;
                    if steps.is_some() { bench.report_steps()? } else { bench.report()? }
                }
            }
        }
    }
    Ok(())
}
