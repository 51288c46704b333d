//! Time of `linear` on few rows, against what a plain reading kernel would allow; with a sweep over cuts, to find the
//! rule by which the device's kernels are cut.
//!
//! `gemv [NAME=VALUE,..]..`, on adapter `HOB_TEST_ADAPTER` or the first. `formats=`, `columns=` (rows of activations),
//! `shapes=` ROWSxCOLS, with several products as `4096+1024+1024x4096`, with `g` behind it gate and up (which write
//! the int8 form for their reader), with `f` the same without a reader, with `a` added to what is there. A sweep begins with
//! any of `lanes= team= rows= batch=`; `top=` is how many of the best it shows, `millis=` how long one is timed, `warm=` for how
//! many milliseconds the device works before, `compile=1` only compiles, for a driver that keeps what it compiled. Every
//! cut's result is compared with that of the rule. Weights are rotated over `rotated=` MB (300) so that no cache serves
//! them; a time is that of many calls between two waits, pauses between dispatches included.

mod common;

use std::time::Instant;

use hob_compute::{Activation, Buf, Combine, Compute, Linear, Product, Result, Weight, WeightKind};
use hob_gpu::{FewCut, Gpu, GpuConfig};
use hob_quant::Format;

/// Products of one call.
#[derive(Clone)]
struct Shape {
    name: String,
    heights: Vec<usize>,
    cols: usize,
    combine: Combine,
    /// Somebody reads the int8 form of the output.
    read: bool,
}

impl Shape {
    fn parse(name: &str) -> Option<Shape> {
        let gated = Combine::Gated(Activation::Silu);
        let text = name.trim_end_matches(['g', 'f', 'a']);
        let combine = match &name[text.len()..] {
            "" => Combine::Store,
            "a" => Combine::Add,
            _ => gated,
        };
        let (heights, cols) = text.split_once('x')?;
        let mut heights: Vec<usize> = heights.split('+').map(|h| h.parse().ok()).collect::<Option<_>>()?;
        if combine == gated {
            heights.push(heights[0]);
        }
        Some(Shape {
            name: name.into(),
            heights,
            cols: cols.parse().ok()?,
            combine,
            read: name.ends_with('g'),
        })
    }
}

/// A shape on the device: sets of weights to go through, buffers.
struct Loaded {
    shape: Shape,
    sets: Vec<Vec<Weight>>,
    /// Bytes of a set.
    bytes: u64,
    x: Buf,
    outs: Vec<Buf>,
}

impl Loaded {
    fn new(gpu: &mut Gpu, format: Format, shape: &Shape, rotated: u64) -> Result<Loaded> {
        let x = gpu.alloc(16, shape.cols)?;
        let values: Vec<f32> =
            (0..16 * shape.cols).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect();
        gpu.upload(x, 0, &values)?;
        let outs = shape.heights.iter().map(|h| gpu.alloc(16, *h)).collect::<Result<_>>()?;
        let mut loaded = Loaded { shape: shape.clone(), sets: Vec::new(), bytes: 0, x, outs };
        let mut total = 0;
        while total < rotated || loaded.sets.len() < 2 {
            let mut set = Vec::new();
            loaded.bytes = 0;
            for &height in &shape.heights {
                let (weight, bytes) = common::noise(gpu, WeightKind::Matrix, format, height, shape.cols)?;
                set.push(weight);
                loaded.bytes += bytes;
            }
            total += loaded.bytes;
            loaded.sets.push(set);
        }
        if shape.read {
            // A reader of the output, so that it has an int8 form to be written.
            let reader = common::matrix(gpu, Format::Q4_0, 32, shape.heights[0])?;
            let out = gpu.alloc(16, 32)?;
            let products = [Product { weight: reader, bias: None, out }];
            let x = loaded.outs[0];
            gpu.linear(&Linear { x, first_row: 0, rows: 16, products: &products, combine: Combine::Store })?;
            gpu.free(out)?;
            gpu.unload(reader)?;
        }
        Ok(loaded)
    }

    fn call(&self, gpu: &mut Gpu, set: usize, rows: usize) -> Result<()> {
        let gated = matches!(self.shape.combine, Combine::Gated(_));
        let product = |(i, &weight): (usize, &Weight)| Product {
            weight,
            bias: None,
            out: self.outs[if gated { 0 } else { i }],
        };
        let products: Vec<_> = self.sets[set % self.sets.len()].iter().enumerate().map(product).collect();
        let combine = self.shape.combine;
        gpu.linear(&Linear { x: self.x, first_row: 0, rows, products: &products, combine })
    }

    /// Seconds of a call.
    fn time(&self, gpu: &mut Gpu, rows: usize, calls: usize) -> Result<f64> {
        let start = Instant::now();
        for i in 0..calls {
            self.call(gpu, i, rows)?;
        }
        gpu.download(self.outs[0], 0, &mut [0.0])?;
        Ok(start.elapsed().as_secs_f64() / calls as f64)
    }

    /// What a call on fresh buffers gives.
    fn results(&self, gpu: &mut Gpu, rows: usize) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        let written = if let Combine::Gated(_) = self.shape.combine { 1 } else { self.outs.len() };
        for (out, height) in self.outs[..written].iter().zip(&self.shape.heights) {
            gpu.upload(*out, 0, &vec![0.0; rows * height])?;
        }
        self.call(gpu, 0, rows)?;
        for (out, height) in self.outs[..written].iter().zip(&self.shape.heights) {
            let mut values = vec![0.0; rows * height];
            gpu.download(*out, 0, &mut values)?;
            all.extend(values);
        }
        Ok(all)
    }

    fn free(self, gpu: &mut Gpu) -> Result<()> {
        self.sets.into_iter().flatten().try_for_each(|w| gpu.unload(w))?;
        self.outs.into_iter().chain([self.x]).try_for_each(|b| gpu.free(b))
    }
}

/// Largest difference relative to the root mean square.
fn distance(expected: &[f32], found: &[f32]) -> f64 {
    let square: f64 = expected.iter().map(|&x| f64::from(x).powi(2)).sum();
    let scale = (square / expected.len().max(1) as f64).sqrt().max(1e-30);
    let each = expected.iter().zip(found).map(|(&e, &f)| (f64::from(e) - f64::from(f)).abs() / scale);
    each.fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most })
}

/// What the command line says.
struct Args {
    given: Vec<(String, String)>,
}

impl Args {
    fn list<T>(&self, name: &str, default: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let found = self.given.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let text = found.unwrap_or(default);
        text.split(',').map(|t| parse(t).unwrap_or_else(|| panic!("what is {name}={t}?"))).collect()
    }

    fn numbers(&self, name: &str, default: &str) -> Vec<usize> {
        self.list(name, default, |t| t.parse().ok())
    }

    /// The cuts to try; none without a sweep.
    fn cuts(&self) -> Vec<FewCut> {
        let names = ["lanes", "team", "rows", "batch"];
        if !self.given.iter().any(|(n, _)| names.contains(&n.as_str())) {
            return Vec::new();
        }
        let mut cuts = Vec::new();
        for lanes in self.numbers("lanes", "64,128,256,512") {
            for team in self.numbers("team", "8,16,32,64") {
                for rows in self.numbers("rows", "1,2,4") {
                    for batch in self.numbers("batch", "16") {
                        cuts.push(FewCut { lanes, team, rows, batch: batch.min(rows) });
                    }
                }
            }
        }
        cuts
    }
}

/// Cuts that make sense for a shape: no more blocks at once than there are, no more values than registers.
fn sensible(cut: &FewCut, shape: &Shape, columns: usize) -> bool {
    let matrices = if matches!(shape.combine, Combine::Gated(_)) { 2 } else { 1 };
    let class = columns.next_power_of_two();
    cut.team <= cut.lanes
        && cut.team <= shape.cols.div_ceil(32).next_power_of_two()
        && cut.rows * class * matrices <= 128
}

fn name(cut: &FewCut) -> String {
    let FewCut { lanes, team, rows, batch } = cut;
    let by = if batch < rows { format!(" by {batch}") } else { String::new() };
    format!("{lanes}/{team} x{rows}{by}")
}

/// Times every cut in turn, twice, and keeps the best.
fn sweep(gpu: &mut Gpu, loaded: &Loaded, cuts: &[FewCut], columns: usize, args: &Args) -> Result<()> {
    gpu.want_few_cut(None)?;
    let only_compile = args.numbers("compile", "0")[0] == 1;
    gpu.rehearse(only_compile);
    let expected = loaded.results(gpu, columns)?;
    let rule = gpu.last_few_cut().expect("one was made");
    let mut cuts: Vec<_> = cuts.iter().copied().filter(|c| sensible(c, &loaded.shape, columns)).collect();
    cuts.retain(|c| *c != rule);
    cuts.insert(0, rule);
    if only_compile {
        for cut in cuts {
            gpu.want_few_cut(Some(cut))?;
            loaded.call(gpu, 0, columns)?;
        }
        return gpu.want_few_cut(None);
    }
    // All kernels before all times: clocks fall while a compiler works.
    let mut right = Vec::new();
    for cut in &cuts {
        gpu.want_few_cut(Some(*cut))?;
        let d = distance(&expected, &loaded.results(gpu, columns)?);
        right.push(d < 1e-3);
    }
    let warm = Instant::now();
    while warm.elapsed().as_secs_f64() < args.numbers("warm", "400")[0] as f64 / 1e3 {
        gpu.want_few_cut(None)?;
        loaded.time(gpu, columns, 200)?;
    }
    let seconds = args.numbers("millis", "15")[0] as f64 / 1e3;
    let mut times = vec![f64::INFINITY; cuts.len()];
    for round in 0..3 {
        for (cut, time) in cuts.iter().zip(&mut times) {
            gpu.want_few_cut(Some(*cut))?;
            let calls = if time.is_finite() { ((seconds / *time) as usize).clamp(8, 20_000) } else { 64 };
            let found = loaded.time(gpu, columns, calls)?;
            *time = if round < 2 { found } else { time.min(found) };
        }
    }
    gpu.want_few_cut(None)?;
    let mut order: Vec<usize> = (0..cuts.len()).collect();
    order.sort_by(|a, b| times[*a].total_cmp(&times[*b]));
    let shown = |i: usize| {
        format!("{:.1} us {}{}", times[i] * 1e6, name(&cuts[i]), if right[i] { "" } else { " WRONG" })
    };
    let rate = |i: usize| loaded.bytes as f64 / times[i] / 1e9;
    println!("    rule {} {:.0} GB/s; best {:.0}", shown(0), rate(0), rate(order[0]));
    let best: Vec<_> = order.iter().take(args.numbers("top", "6")[0]).map(|i| shown(*i)).collect();
    println!("    {} cuts, best: {}", cuts.len(), best.join(" | "));
    let wrong: Vec<_> = order.iter().filter(|i| !right[**i]).map(|i| shown(*i)).collect();
    if !wrong.is_empty() {
        println!("    {} wrong: {}", wrong.len(), wrong.join(" | "));
    }
    type Part = fn(&FewCut) -> usize;
    let parts: [(&str, Part); 3] = [("lanes", |c| c.lanes), ("team", |c| c.team), ("rows", |c| c.rows)];
    let mut line = String::from("    best with");
    for (what, part) in parts {
        let mut values: Vec<_> = cuts.iter().map(part).collect();
        values.sort_unstable();
        values.dedup();
        if values.len() > 1 {
            line += &format!(" {what}");
            for value in values {
                let best = order.iter().find(|i| part(&cuts[**i]) == value).expect("it occurs");
                line += &format!(" {value}: {:.1}", times[*best] * 1e6);
            }
            line += ";";
        }
    }
    println!("{line}");
    Ok(())
}

fn main() -> Result<()> {
    let given = std::env::args().skip(1).map(|arg| match arg.split_once('=') {
        Some((name, value)) => (name.to_string(), value.to_string()),
        None => panic!("expected NAME=VALUE, found '{arg}'"),
    });
    let args = Args { given: given.collect() };
    let formats = args.list("formats", "Q4_0,Q4_K,Q6_K,Q8_0,F16", Format::from_name);
    let shapes = args.list("shapes", "28672x8192,8192x8192,4096x4096", Shape::parse);
    let (columns, cuts) = (args.numbers("columns", "1,2,4,8,16"), args.cuts());
    let rotated = (args.numbers("rotated", "300")[0] as u64) << 20;
    let adapter = common::adapter();
    let start = Instant::now();
    let mut gpu = Gpu::open(&GpuConfig { adapter, ..GpuConfig::default() })?;
    let compiles = args.numbers("compile", "0")[0] == 1;
    let read = if compiles { 0.0 } else { gpu.probe()?.read_gb_per_s };
    println!("{}; a reading kernel: {read:.0} GB/s; each: rows, time, GB/s, share", gpu.info().adapter);
    for &format in &formats {
        for shape in &shapes {
            let loaded = Loaded::new(&mut gpu, format, shape, rotated)?;
            for &columns in &columns {
                if !cuts.is_empty() {
                    println!("{format} {} {columns}: ({:.1} s)", shape.name, start.elapsed().as_secs_f64());
                    sweep(&mut gpu, &loaded, &cuts, columns, &args)?;
                    continue;
                }
                // Clocks fall while kernels are compiled: the same work first, for long enough to raise them.
                let warm = loaded.time(&mut gpu, columns, 64)?;
                let calls = ((0.25 / warm) as usize).clamp(8, 40_000);
                let warm = loaded.time(&mut gpu, columns, calls)?;
                let calls = ((0.05 / warm) as usize).clamp(8, 40_000);
                let best = loaded.time(&mut gpu, columns, calls)?.min(loaded.time(&mut gpu, columns, calls)?);
                let rate = loaded.bytes as f64 / best / 1e9;
                let (us, share) = (best * 1e6, 100.0 * rate / read);
                let at = start.elapsed().as_secs_f64();
                println!(
                    "{format} {} {columns:2}: {us:.1} us {rate:.0} {share:.0} % ({at:.1} s)",
                    shape.name
                );
            }
            loaded.free(&mut gpu)?;
        }
    }
    Ok(())
}
