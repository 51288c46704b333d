//! Time of mixtures of experts: a layer's dispatches, and what it costs to take rows to the host and back.
//!
//! `experts [FORMAT,.. [ROWS,.. [COUNTxTOPxDIMxFF]]]`, Qwen3-30B-A3B's layer where nothing is said. Layers take turns so
//! that no cache serves weights. The adapter is `HOB_TEST_ADAPTER` or the first.

use std::sync::Arc;
use std::time::Instant;

use hob_compute::*;
use hob_gpu::{Gpu, GpuConfig};
use hob_quant::Format;

/// Layers that take turns.
const LAYERS: usize = 4;

type Fallible<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Any codes under scales that are numbers; 1 in vectors.
struct Random(u64, bool);

impl ByteSource for Random {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let mut state = (offset + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for bytes in buf.chunks_mut(4) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Bits 14, 13 and 6, 5 clear: an f16 here is below 2^-7, an f32 below 2^-60.
            let word = (state >> 32) as u32 & 0x9F9F_9F9F;
            let word = if self.1 { 1f32.to_bits() } else { word };
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
        Ok(())
    }
}

#[derive(Copy, Clone)]
struct Shape {
    count: usize,
    top_k: usize,
    dim: usize,
    ff: usize,
}

struct Layer {
    norm: Weight,
    router: Weight,
    o: Weight,
    experts: [Weight; 3],
}

struct Bench {
    dev: Gpu,
    shape: Shape,
    rows: usize,
    layers: Vec<Layer>,
    x: Buf,
    normed: Buf,
    logits: Buf,
    routes: Buf,
    hidden: Buf,
    mixed: Buf,
}

fn load(dev: &mut Gpu, kind: WeightKind, format: Format, rows: usize, cols: usize) -> Fallible<Weight> {
    let spec = WeightSpec { name: "w".into(), kind, format, rows, cols };
    let bytes = spec.file_bytes().ok_or("whole blocks")?;
    Ok(dev.load(&spec, Arc::new(Random(bytes, kind == WeightKind::Vector)))?)
}

impl Bench {
    fn new(mut dev: Gpu, shape: Shape, format: Format, most: usize) -> Fallible<Bench> {
        let Shape { count, top_k, dim, ff } = shape;
        let mut layers = Vec::new();
        for _ in 0..LAYERS {
            let mut stack =
                |rows, cols| load(&mut dev, WeightKind::Experts { count }, format, count * rows, cols);
            let experts = [stack(ff, dim)?, stack(ff, dim)?, stack(dim, ff)?];
            let norm = load(&mut dev, WeightKind::Vector, Format::F32, 1, dim)?;
            let router = load(&mut dev, WeightKind::Matrix, Format::F16, count, dim)?;
            let o = load(&mut dev, WeightKind::Matrix, format, dim, dim)?;
            layers.push(Layer { norm, router, o, experts });
        }
        let mut buf = |rows, width| dev.alloc(rows, width);
        let [x, normed, mixed] = [buf(most, dim)?, buf(most, dim)?, buf(most, dim)?];
        let [logits, routes] = [buf(most, count)?, buf(most, 2 * top_k)?];
        let hidden = buf(most * top_k, ff)?;
        Ok(Bench { dev, shape, rows: 1, layers, x, normed, logits, routes, hidden, mixed })
    }

    fn begin(&mut self) -> Fallible<()> {
        let count = self.rows * self.shape.dim;
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..count).map(|_| next()).collect();
        self.dev.upload(self.mixed, 0, &values)?;
        Ok(self.dev.upload(self.x, 0, &values)?)
    }

    /// `x += o mixed`, norm, router, and the experts added to `x`.
    fn layer(&mut self, i: usize) -> Result<()> {
        self.choose(i)?;
        let &mut Bench { rows, x, normed, routes, hidden, shape: Shape { top_k, .. }, .. } = self;
        let [gate, up, down] = self.layers[i].experts;
        let (biases, activation, add) = (None, Activation::Silu, true);
        let out = x;
        self.dev.experts(&Experts {
            x: normed,
            rows,
            routes,
            top_k,
            gate: Some(gate),
            up,
            down,
            biases,
            activation,
            hidden,
            out,
            add,
        })?;
        // What the next layer begins with.
        let norm = self.layers[i].norm;
        self.dev.norm(&Norm { x, rows, groups: 1, weight: norm, eps: 1e-6, out: self.mixed })
    }

    fn choose(&mut self, i: usize) -> Result<()> {
        let &mut Bench { rows, x, normed, logits, routes, mixed, shape: Shape { top_k, .. }, .. } = self;
        let Layer { norm, router, o, .. } = self.layers[i];
        let linear = |x, weight, out, combine, dev: &mut Gpu| {
            let products = &[Product { weight, bias: None, out }];
            dev.linear(&Linear { x, first_row: 0, rows, products, combine })
        };
        linear(mixed, o, x, Combine::Add, &mut self.dev)?;
        self.dev.norm(&Norm { x, rows, groups: 1, weight: norm, eps: 1e-6, out: normed })?;
        linear(normed, router, logits, Combine::Store, &mut self.dev)?;
        let rule = Routing { top_k, gating: Gating::Softmax, normalize: Some(0.0), scale: 1.0, groups: None };
        self.dev.route(&Route { logits, rows, rule, bias: None, scales: None, chosen: None, out: routes })
    }

    fn run(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|i| self.layer(i % LAYERS))
    }

    /// Seconds of `count` layers, from the first call to the last result.
    fn time(&mut self, count: usize) -> Fallible<f64> {
        self.begin()?;
        let start = Instant::now();
        self.run(count)?;
        self.dev.download(self.x, 0, &mut [0.0])?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn report(&mut self, format: Format, rows: usize) -> Fallible<()> {
        self.rows = rows;
        self.begin()?;
        self.dev.rehearse(true);
        (0..2).try_for_each(|_| self.run(LAYERS))?;
        self.dev.rehearse(false);
        // Clocks fall while nothing runs: the same work first, for long enough to raise them.
        let start = Instant::now();
        let mut each = self.time(LAYERS)? / LAYERS as f64;
        while start.elapsed().as_secs_f64() < 0.5 {
            let count = ((0.05 / each) as usize).clamp(LAYERS, 2_000);
            each = self.time(count)? / count as f64;
        }
        let count = ((0.1 / each) as usize).clamp(LAYERS, 5_000);
        let before = self.dev.counters().dispatches;
        let best = self.time(count)?.min(self.time(count)?) / count as f64;
        let dispatches = (self.dev.counters().dispatches - before) as f64 / (2 * count) as f64;
        let Shape { count: all, top_k, dim, ff } = self.shape;
        let used = (all as f64 * (1.0 - (1.0 - top_k as f64 / all as f64).powi(rows as i32))).min(all as f64);
        let one =
            (2 * ff * format.row_bytes(dim).unwrap_or(0) + dim * format.row_bytes(ff).unwrap_or(0)) as f64;
        let macs = (rows * (3 * top_k * dim * ff + dim * dim + dim * all)) as f64;
        println!(
            "{format:?} {rows} rows: {:.1} us per layer, {dispatches:.2} dispatches; experts' bytes {:.1} MB, {:.0} GB/s, {:.1} TFLOP/s",
            best * 1e6,
            used * one / 1e6,
            used * one / best / 1e9,
            2.0 * macs / best / 1e12
        );
        self.spans(count.min(200))
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
        let (each, rest) = (spans.len() / count, spans.len() % count);
        for i in rest..rest + each {
            let mut nanos: Vec<u64> = (i..spans.len()).step_by(each).map(|at| spans[at].nanos).collect();
            nanos.sort_unstable();
            let took = nanos[nanos.len() / 2] as f64 / 1e3;
            println!("  {:10} {:24} {took:7.1} us", spans[i].verb, spans[i].detail);
        }
        Ok(())
    }

    /// A layer whose experts are the host's: rows down, rows up.
    fn cross(&mut self, rows: usize) -> Fallible<()> {
        self.rows = rows;
        self.begin()?;
        let &mut Bench { x, normed, routes, shape: Shape { top_k, dim, .. }, .. } = self;
        let parts = [(normed, 0, rows * dim), (routes, 0, rows * 2 * top_k), (x, 0, rows * dim)];
        let mut staging = vec![0.0; rows * 2 * (dim + top_k)];
        let mut spent = [[0.0; 4]; 2];
        for (round, spent) in spent.iter_mut().enumerate() {
            let count = if round == 0 { 2000 } else { 500 } / rows.div_ceil(64);
            let mut mark = Instant::now();
            let mut lap = |slot: &mut f64| {
                *slot += mark.elapsed().as_secs_f64() * 1e6 / count as f64;
                mark = Instant::now();
            };
            for i in 0..count {
                self.choose(i % LAYERS)?;
                lap(&mut spent[0]);
                self.dev.download_all(&parts, &mut staging)?;
                lap(&mut spent[1]);
                self.dev.upload(x, 0, &staging[..rows * dim])?;
                lap(&mut spent[2]);
            }
            self.dev.download(x, 0, &mut [0.0])?;
            // The device's part.
            self.choose(0)?;
            self.dev.download(x, 0, &mut [0.0])?;
            let start = Instant::now();
            (0..count).try_for_each(|i| self.choose(i % LAYERS))?;
            self.dev.download(x, 0, &mut [0.0])?;
            spent[3] = start.elapsed().as_secs_f64() * 1e6 / count as f64;
        }
        let [record, down, up, alone] = spent[1];
        println!(
            "crossing of {rows} rows: recording {record:.1} us, down {down:.1}, up {up:.1}; without crossing {alone:.1}"
        );
        Ok(())
    }
}

fn main() -> Fallible<()> {
    let args: Vec<String> = std::env::args().collect();
    let list = |i: usize, default: &str| -> Vec<String> {
        args.get(i).map_or(default, |s| s).split(',').map(str::to_string).collect()
    };
    let adapter = std::env::var("HOB_TEST_ADAPTER").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    let rows: Vec<usize> =
        list(2, "1,4,16,512,4096").iter().map(|n| n.parse()).collect::<std::result::Result<_, _>>()?;
    let numbers: Vec<usize> = args
        .get(3)
        .map_or("128x8x2048x768", |s| s)
        .split('x')
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let [count, top_k, dim, ff] = numbers[..] else { return Err("COUNTxTOPxDIMxFF".into()) };
    for name in list(1, "q4_0") {
        let format = Format::ALL.iter().copied().find(|f| f.name().eq_ignore_ascii_case(&name));
        let format = format.ok_or_else(|| format!("'{name}' is no format"))?;
        let dev = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() })?;
        let most = rows.iter().copied().max().unwrap_or(1);
        let mut bench = Bench::new(dev, Shape { count, top_k, dim, ff }, format, most)?;
        for &rows in &rows {
            bench.report(format, rows)?;
        }
        for rows in [1, 512].into_iter().filter(|&n| n <= most) {
            bench.cross(rows)?;
        }
    }
    Ok(())
}
