//! What this device reaches, measured by its own kernels: the ceilings that plans and benchmarks are held against.
//!
//! Figures are samples: a GPU's clocks fall within seconds of rest, so everything is warmed first. It must not know what
//! anybody does with the figures.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hob_compute::{
    Buf, ByteSource, Combine, Compute, ComputeError, Linear, Product, Result, Weight, WeightKind, WeightSpec,
};
use hob_quant::Format;

use crate::Gpu;
use crate::stream::{Access, BufferId, Call, KernelKey, Source};
use crate::template::Template;

const VERB: &str = "probe";

/// Rates of a device, of one sample.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct GpuRates {
    /// Reading memory that no cache holds, 1e9 bytes per second.
    pub read_gb_per_s: f64,
    /// `linear` of many rows on a Q4_0 matrix, 1e12 multiplications and additions per second.
    pub tflops: f64,
    /// From a submit to the word that it wrote, on the host.
    pub round_trip_micros: f64,
    /// Each dispatch of a chain of small products in which all depend on the one before, recording included: what a
    /// stage of decode costs beside the bytes it reads.
    pub dispatch_micros: f64,
    /// Between host and device, 1e9 bytes per second.
    pub upload_gb_per_s: f64,
    pub download_gb_per_s: f64,
}

/// How much is measured: a software adapter would take minutes for what a GPU does in a blink.
struct Extent {
    read_bytes: u64,
    transfer_bytes: usize,
    warm: Duration,
    /// Of the matrix, and rows of activations.
    side: usize,
    rows: usize,
    repeats: usize,
}

const DISCRETE: Extent = Extent {
    read_bytes: 512 << 20,
    transfer_bytes: 64 << 20,
    warm: Duration::from_millis(300),
    side: 4096,
    rows: 1024,
    repeats: 16,
};
const INTEGRATED: Extent = Extent {
    read_bytes: 256 << 20,
    transfer_bytes: 16 << 20,
    warm: Duration::from_millis(200),
    side: 2048,
    rows: 256,
    repeats: 4,
};
const SOFTWARE: Extent = Extent {
    read_bytes: 32 << 20,
    transfer_bytes: 4 << 20,
    warm: Duration::from_millis(10),
    side: 256,
    rows: 32,
    repeats: 1,
};
/// Products of a chain, and rows and columns of their matrix.
const CHAIN: usize = 128;
const CHAIN_SIDE: usize = 1024;
/// How long what is bound by latency is warmed.
const SHORT: Duration = Duration::from_millis(5);
/// Workgroups of a read.
const READERS: u32 = 4096;

impl Gpu {
    /// Measures the device; takes under 2 s. What else runs on it at the same time is in the figures.
    ///
    /// # Errors
    /// No room for the working set (8 MiB at least), or what the device says.
    pub fn probe(&mut self) -> Result<GpuRates> {
        let facts = self.facts();
        let extent = match (facts.software, facts.integrated) {
            (true, _) => SOFTWARE,
            (false, true) => INTEGRATED,
            (false, false) => DISCRETE,
        };
        let read_gb_per_s = self.read_rate(&extent)?;
        let (round_trip, dispatch) = (self.round_trip()?, self.dispatch_seconds()?);
        let (upload_gb_per_s, download_gb_per_s) = self.transfer_rates(&extent)?;
        Ok(GpuRates {
            read_gb_per_s,
            tflops: self.matrix_rate(&extent)?,
            round_trip_micros: round_trip * 1e6,
            dispatch_micros: dispatch * 1e6,
            upload_gb_per_s,
            download_gb_per_s,
        })
    }

    /// Waits for everything recorded.
    fn settle(&mut self, any: BufferId) -> Result<()> {
        self.stream.read(any, 0, &mut [0; 4])
    }

    /// The largest buffer up to `bytes` that there is room for.
    fn room(&mut self, bytes: u64) -> Result<(BufferId, u64)> {
        let facts = self.facts();
        let mut bytes = bytes.min(facts.binding_bytes).min(facts.buffer_bytes);
        loop {
            match self.stream.buffer("the probe's working set", bytes) {
                Err(ComputeError::Memory { .. }) if bytes > 8 << 20 => bytes /= 2,
                made => return Ok((made?, bytes)),
            }
        }
    }

    fn read_rate(&mut self, extent: &Extent) -> Result<f64> {
        let (data, bytes) = self.room(extent.read_bytes)?;
        let out = self.stream.buffer("the probe's sum", 256)?;
        let key = KernelKey { name: "probe read", params: [0; 8] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: Template::new().render(include_str!("wgsl/probe_read.wgsl")),
            bindings: vec![Access::Write, Access::Read],
        })?;
        let mut pass = |gpu: &mut Gpu| {
            for _ in 0..extent.repeats {
                gpu.stream.dispatch(&Call {
                    kernel,
                    bindings: &[out, data],
                    immediates: &[(bytes / 16) as u32],
                    groups: [READERS, 1, 1],
                    verb: VERB,
                    bytes,
                })?;
            }
            gpu.settle(out)
        };
        let seconds = self.warm_best(extent.warm, &mut pass)?;
        self.stream.release(data);
        self.stream.release(out);
        Ok(bytes as f64 * extent.repeats as f64 / seconds / 1e9)
    }

    /// The quickest of a few passes, after warming up.
    fn warm_best(&mut self, warm: Duration, pass: &mut dyn FnMut(&mut Gpu) -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        pass(self)?;
        while start.elapsed() < warm {
            pass(self)?;
        }
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            pass(self)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    /// Seconds from a submit to its word on the host.
    fn round_trip(&mut self) -> Result<f64> {
        let ends =
            [self.stream.buffer("the probe's steps", 256)?, self.stream.buffer("the probe's steps", 256)?];
        let key = KernelKey { name: "probe step", params: [0; 8] };
        let kernel = self.stream.kernel(key, || Source {
            wgsl: include_str!("wgsl/probe_step.wgsl").to_string(),
            bindings: vec![Access::Write, Access::Read],
        })?;
        let seconds = self.warm_best(SHORT, &mut |gpu| {
            gpu.stream.dispatch(&Call {
                kernel,
                bindings: &ends,
                immediates: &[],
                groups: [1, 1, 1],
                verb: VERB,
                bytes: 512,
            })?;
            gpu.settle(ends[0])
        })?;
        ends.into_iter().for_each(|id| self.stream.release(id));
        Ok(seconds)
    }

    /// Seconds of a dispatch that depends on another: products of one row with a matrix that stays in the cache, each
    /// behind the quantization of what the one before left.
    fn dispatch_seconds(&mut self) -> Result<f64> {
        let weight = self.noise_matrix(CHAIN_SIDE)?;
        let ends = [self.alloc(1, CHAIN_SIDE)?, self.alloc(1, CHAIN_SIDE)?];
        self.upload(ends[0], 0, &vec![1e-3; CHAIN_SIDE])?;
        let chain = |gpu: &mut Gpu, links: usize| {
            let before = gpu.dispatches();
            for link in 0..links {
                let (x, out) = (ends[link % 2], ends[1 - link % 2]);
                let products = [Product { weight, bias: None, out }];
                gpu.linear(&Linear {
                    x,
                    first_row: 0,
                    rows: 1,
                    products: &products,
                    combine: Combine::Store,
                })?;
            }
            let dispatches = gpu.dispatches() - before;
            gpu.download(ends[0], 0, &mut [0.0])?;
            Ok(dispatches)
        };
        let mut counts = [0; 2];
        let one = self.warm_best(SHORT, &mut |gpu| chain(gpu, 1).map(|n| counts[0] = n))?;
        let all = self.warm_best(SHORT, &mut |gpu| chain(gpu, CHAIN).map(|n| counts[1] = n))?;
        ends.into_iter().try_for_each(|buf| self.free(buf))?;
        self.unload(weight)?;
        Ok(((all - one) / (counts[1] - counts[0]) as f64).max(0.0))
    }

    /// Up and down, in 1e9 bytes per second.
    fn transfer_rates(&mut self, extent: &Extent) -> Result<(f64, f64)> {
        let (buffer, bytes) = self.room(extent.transfer_bytes as u64)?;
        let mut host = noise(bytes as usize);
        let up = self.warm_best(Duration::from_millis(1), &mut |gpu| {
            gpu.stream.write(buffer, 0, &host)?;
            gpu.settle(buffer)
        })?;
        let down =
            self.warm_best(Duration::from_millis(1), &mut |gpu| gpu.stream.read(buffer, 0, &mut host))?;
        self.stream.release(buffer);
        Ok((bytes as f64 / up / 1e9, bytes as f64 / down / 1e9))
    }

    /// A square matrix in Q4_0.
    fn noise_matrix(&mut self, side: usize) -> Result<Weight> {
        let spec = WeightSpec {
            name: "the probe's matrix".into(),
            kind: WeightKind::Matrix,
            format: Format::Q4_0,
            rows: side,
            cols: side,
        };
        self.load(&spec, Arc::new(Noise(spec.file_bytes().unwrap_or(0))))
    }

    fn matrix_rate(&mut self, extent: &Extent) -> Result<f64> {
        let Extent { side, rows, .. } = *extent;
        let weight = self.noise_matrix(side)?;
        let (x, out) = (self.alloc(rows, side)?, self.alloc(rows, side)?);
        let values: Vec<f32> = noise(rows * side).into_iter().map(|b| f32::from(b) / 128.0 - 1.0).collect();
        self.upload(x, 0, &values)?;
        let seconds = self.products(weight, [x, out], extent);
        self.free(x)?;
        self.free(out)?;
        self.unload(weight)?;
        Ok(2.0 * (rows * side * side * extent.repeats) as f64 / seconds? / 1e12)
    }

    fn products(&mut self, weight: Weight, [x, out]: [Buf; 2], extent: &Extent) -> Result<f64> {
        let products = [Product { weight, bias: None, out }];
        self.warm_best(extent.warm, &mut |gpu| {
            for _ in 0..extent.repeats {
                let (rows, combine) = (extent.rows, Combine::Store);
                gpu.linear(&Linear { x, first_row: 0, rows, products: &products, combine })?;
            }
            gpu.download(out, 0, &mut [0.0])
        })
    }
}

/// Bytes in no order: a GPU that multiplies zeros runs at higher clocks than it ever does at work.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// A matrix of noise in Q4_0, whose scales are numbers.
struct Noise(u64);

impl ByteSource for Noise {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let block = Format::Q4_0.block_bytes() as u64;
        buf.copy_from_slice(&noise(buf.len()));
        // The high byte of every scale: about 1e-2.
        for (i, b) in buf.iter_mut().enumerate() {
            if (offset + i as u64) % block == 1 {
                *b = 0x21;
            }
        }
        Ok(())
    }
}
