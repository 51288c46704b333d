//! How fast a model will run: bytes over measured bandwidth. Owns the efficiency constants and how history replaces
//! them; sizes come from `hob_model::ModelInfo` alone.

use hob_model::Crossing;
use serde::Serialize;

use crate::gpus::GpuRates;
use crate::history::{Entry, LEAST_DECODE_TOKENS, LEAST_PREFILL_TOKENS, Run, Speed};
use crate::machine::Machine;
use crate::plan::Kept;

/// Share of the probed read bandwidth that decode reaches while it streams weights and KV. Used until a run of the same
/// model on the same threads has been measured.
pub const DECODE_SHARE: f64 = 0.85;
/// Seconds a layer costs in decode beside its bytes: barriers, norms, rope.
pub const LAYER_SECONDS: f64 = 15e-6;
/// Half-width of the interval around an estimate, and around a single measured run.
const ESTIMATE_SPREAD: f64 = 0.25;
const ONE_RUN_SPREAD: f64 = 0.10;
/// The same for prefill, which no probe bounds: formats without a fast kernel can be several times slower.
const PREFILL_LOW: f64 = 0.4;
const PREFILL_HIGH: f64 = 1.3;
/// The same shares of a GPU, for weights, and for K and V as they are and packed (an H100 under Vulkan: packed ones are
/// bound by arithmetic); stages of a step beside those of its layers.
pub const GPU_DECODE_SHARE: f64 = 0.88;
const GPU_KV_SHARES: [f64; 2] = [0.6, 0.2];
const STAGES_OF_ENDS: f64 = 6.0;
/// Shares of the probed product that prefill reaches. What is probed is smaller than a model's matrices, which make up for
/// attention: 206 to 231 TFLOP/s on H100s whose prefill of an 8B makes 257 at 4,096 tokens, and of a 70B 223 at 32,768.
const GPU_PREFILL_SHARE: f64 = 1.0;
/// The same of routed experts, whose tiles are not full: 163 of 219 TFLOP/s for all of a Qwen3-30B-A3B, 2,048 tokens at once.
const GPU_EXPERT_SHARE: f64 = 0.55;
/// Share of the read bandwidth that routed experts reach in decode: fitted to one run (12 layers of a Qwen3-30B-A3B on an
/// H100, 919 tokens per second), so it holds whatever else that step spends beyond bytes and stages.
const GPU_EXPERT_DECODE_SHARE: f64 = 0.2;
/// Seconds that every crossing to the CPU costs beside the round trip, fitted to one run: 12 layers of a Qwen3-30B-A3B with
/// their experts in memory, 75.7 tokens per second with 16 threads of a Xeon beside an H100. Most of it is the GPU's own
/// work at a low clock: it waits three quarters of the time, and its clock falls to 650 of 1980 MHz.
const CROSSING_SECONDS: f64 = 6e-4;
/// Prompt length of the first-token figure.
pub const PROMPT_TOKENS: usize = 1024;

/// 10th, 50th and 90th percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    pub p10: f64,
    pub p50: f64,
    pub p90: f64,
}

impl Quantiles {
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b, c) = (f(self.p10), f(self.p50), f(self.p90));
        Self { p10: a.min(c), p50: b, p90: a.max(c) }
    }

    fn around(value: f64, low: f64, high: f64) -> Self {
        Self { p10: value * low, p50: value, p90: value * high }
    }

    /// Percentiles of measured values (nearest rank); one or two values get a spread of their own. `None` for no values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut v = values.to_vec();
        v.sort_by(f64::total_cmp);
        let at =
            |share: f64| v.get(((v.len() as f64 * share) as usize).min(v.len().checked_sub(1)?)).copied();
        let p50 = at(0.5)?;
        if v.len() < 3 {
            return Some(Self::around(p50, 1.0 - ONE_RUN_SPREAD, 1.0 + ONE_RUN_SPREAD));
        }
        Some(Self { p10: at(0.1)?, p50, p90: at(0.9)? })
    }
}

/// Where a figure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Basis {
    /// Bandwidth and constants; no run of this model has been seen here.
    Estimated,
    /// Earlier runs of this very model on as many threads; `ratio` is actual speed over the estimate, in the middle.
    Measured { runs: usize, ratio: f64 },
}

/// Percentiles of what was reached, and where they come from.
fn measured(speeds: &[Speed]) -> Option<(Quantiles, Basis)> {
    let actual = Quantiles::of(&speeds.iter().map(|s| s.actual).collect::<Vec<_>>())?;
    let ratio = Quantiles::of(&speeds.iter().map(Speed::ratio).collect::<Vec<_>>())?.p50;
    Some((actual, Basis::Measured { runs: speeds.len(), ratio }))
}

/// Expected speed of one sequence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Tokens per second at position 0.
    pub decode_empty: Quantiles,
    /// Tokens per second at the last position of the context.
    pub decode_full: Quantiles,
    pub decode_basis: Basis,
    /// Prompt tokens per second over [`PROMPT_TOKENS`].
    pub prefill: Quantiles,
    pub prefill_basis: Basis,
    /// Seconds from a prompt of [`PROMPT_TOKENS`] to the first token, model loaded.
    pub first_token_seconds: Quantiles,
    pub bytes_per_token_empty: u64,
    pub bytes_per_token_full: u64,
    /// Context at which decode is half as fast as at position 0; `None`: not within the planned context.
    pub half_speed_tokens: Option<usize>,
    /// The bandwidth everything rests on.
    pub read_gb_per_s: f64,
    /// Whether others were busy while it was measured, so that it may be too low.
    pub read_while_busy: bool,
}

/// Multiply-adds per second and core of the decode kernels with weights at hand, in 10^9: a floor under the time, which
/// only machines without wide integer instructions touch.
fn decode_gmacs_per_core(isa: &str) -> f64 {
    match isa {
        "avx512" => 100.0,
        "avx2" => 40.0,
        _ => 1.0,
    }
}

/// Multiply-adds per second and core that the prefill kernels of an ISA reach on formats with a fast kernel,
/// in 10^9 (research figures of a 3.66 GHz core; other clocks shift them, which is why history replaces them).
fn prefill_gmacs_per_core(isa: &str) -> f64 {
    match isa {
        "avx512" => 150.0,
        "avx2" => 60.0,
        _ => 1.5,
    }
}

/// Forecast for `threads` threads and a context of `ctx_tokens`.
pub fn forecast(
    machine: &Machine,
    model: Kept<'_>,
    threads: usize,
    ctx_tokens: usize,
    past: Option<&Entry>,
) -> Forecast {
    let read = machine.read_gb_per_s(threads);
    let decode = Decode::new(machine, model, threads, past);
    let last = ctx_tokens.saturating_sub(1);
    let (prefill, prefill_basis) = prefill(machine, model, threads, past);
    let decode_empty = decode.at(model, 0);
    let first = decode_empty.map(|t| 1.0 / t);
    let read_prompt = prefill.map(|t| PROMPT_TOKENS as f64 / t);
    Forecast {
        decode_empty,
        decode_full: decode.at(model, last),
        decode_basis: decode.basis,
        prefill,
        prefill_basis,
        first_token_seconds: Quantiles {
            p10: read_prompt.p10 + first.p10,
            p50: read_prompt.p50 + first.p50,
            p90: read_prompt.p90 + first.p90,
        },
        bytes_per_token_empty: model.bytes_per_token(0),
        bytes_per_token_full: model.bytes_per_token(last),
        half_speed_tokens: half_speed(model, &decode, last),
        read_gb_per_s: read,
        read_while_busy: machine.probe.busy,
    }
}

/// Tokens per second of one decode step at `position`, from bandwidths alone.
pub fn expected_decode(machine: &Machine, model: Kept<'_>, threads: usize, position: usize) -> f64 {
    Decode::estimated(machine, model, threads).at(model, position).p50
}

/// Seconds per token = the longer of bytes / rate and multiply-adds / rate, + overhead.
pub(crate) struct Decode {
    bytes_per_second: Quantiles,
    macs_per_second: f64,
    overhead: f64,
    /// Median of the share that `bytes_per_second` assumes, so that a GPU's wobbles alike.
    middle: f64,
    /// Where a GPU has a part and nothing was measured of it.
    gpu: Option<GpuRates>,
    basis: Basis,
}

impl Decode {
    pub(crate) fn new(machine: &Machine, model: Kept<'_>, threads: usize, past: Option<&Entry>) -> Self {
        // What was reached holds arithmetic and overhead already.
        match past.and_then(|e| measured(&e.decode)) {
            Some((gb, basis)) => {
                let bytes_per_second = gb.map(|g| g * 1e9);
                let (middle, macs_per_second) = (bytes_per_second.p50, f64::INFINITY);
                Self { bytes_per_second, macs_per_second, overhead: 0.0, middle, gpu: None, basis }
            }
            None => Self::estimated(machine, model, threads),
        }
    }

    fn estimated(machine: &Machine, model: Kept<'_>, threads: usize) -> Self {
        let best = machine.read_gb_per_s(threads);
        let wobble = (machine.read_low_gb_per_s(threads) / best.max(f64::MIN_POSITIVE)).clamp(0.2, 1.0);
        let share = Quantiles::around(DECODE_SHARE, (1.0 - ESTIMATE_SPREAD) * wobble, 1.0 / DECODE_SHARE);
        let bytes_per_second = share.map(|s| s * best * 1e9);
        let placed = model.layout.placement.devices() > 1;
        let layers = (0..model.layers()).filter(|&i| model.layout.placement.layer(i) == 0).count();
        Self {
            bytes_per_second,
            middle: bytes_per_second.p50,
            gpu: model.gpu.filter(|_| placed).and_then(|g| g.rates),
            macs_per_second: decode_gmacs_per_core(&machine.cpu.isa)
                * 1e9
                * threads.min(machine.cpu.cores) as f64,
            overhead: layers as f64 * LAYER_SECONDS,
            basis: Basis::Estimated,
        }
    }

    pub(crate) fn at(&self, model: Kept<'_>, position: usize) -> Quantiles {
        let (bytes, macs, beside) = match &self.gpu {
            Some(rates) => (
                model.sizes.device_bytes_per_token(position, model.layout, 0),
                model.sizes.device_macs_per_token(position, &model.layout.placement, 0),
                gpu_seconds(model, rates, position),
            ),
            None => (model.bytes_per_token(position), model.macs_per_token(position), 0.0),
        };
        let arithmetic = macs as f64 / self.macs_per_second;
        self.bytes_per_second.map(|rate| {
            let beside = if beside > 0.0 { beside * self.middle / rate } else { 0.0 };
            let seconds = (bytes as f64 / rate).max(arithmetic) + self.overhead + beside;
            if seconds > 0.0 && seconds.is_finite() { 1.0 / seconds } else { 0.0 }
        })
    }
}

/// Seconds that a step spends on the GPU and on the way to it and back.
fn gpu_seconds(model: Kept<'_>, rates: &GpuRates, position: usize) -> f64 {
    let placement = &model.layout.placement;
    let bytes = model.sizes.device_bytes_per_token(0, model.layout, 1) as f64;
    let kv = model.sizes.device_bytes_per_token(position, model.layout, 1) as f64 - bytes;
    let packed = |i: usize| {
        let pair = model.layout.kv.wished(i);
        pair.k.is_packed() || pair.v.is_packed()
    };
    let experts = model.sizes.device_expert_bytes_per_token(placement, 1) as f64;
    let of_kv = GPU_KV_SHARES[usize::from((0..model.layers()).any(packed))];
    let stages = model.sizes.device_stages(placement, 1) as f64 + STAGES_OF_ENDS;
    let crossings = model.sizes.crossings(placement);
    let moved: f64 = crossings.iter().map(|c| crossing_seconds(c, rates, 1)).sum();
    // Alone on the GPU, the next step is recorded while this one runs; else its result is waited for.
    let waits = if crossings.is_empty() || placement.head == 0 { 0.0 } else { rates.round_trip_micros / 1e6 };
    ((bytes - experts) / GPU_DECODE_SHARE + experts / GPU_EXPERT_DECODE_SHARE + kv / of_kv)
        / (rates.read_gb_per_s * 1e9)
        + stages * rates.dispatch_micros / 1e6
        + moved
        + waits
}

/// Seconds for `rows` rows to change the device: what comes from a GPU is waited for.
fn crossing_seconds(crossing: &Crossing, rates: &GpuRates, rows: usize) -> f64 {
    let bytes = (4 * crossing.floats * rows) as f64 / 1e9;
    match crossing.to {
        0 => {
            CROSSING_SECONDS
                + rates.round_trip_micros / 1e6
                + bytes / rates.download_gb_per_s.max(f64::MIN_POSITIVE)
        }
        _ => bytes / rates.upload_gb_per_s.max(f64::MIN_POSITIVE),
    }
}

/// First position at which the median is half of that at position 0.
pub(crate) fn half_speed(model: Kept<'_>, decode: &Decode, last: usize) -> Option<usize> {
    let half = decode.at(model, 0).p50 / 2.0;
    if decode.at(model, last).p50 > half {
        return None;
    }
    let (mut low, mut high) = (0, last);
    while low < high {
        let middle = low + (high - low) / 2;
        if decode.at(model, middle).p50 <= half {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(low)
}

fn prefill(machine: &Machine, model: Kept<'_>, threads: usize, past: Option<&Entry>) -> (Quantiles, Basis) {
    let macs = mean_macs(model, 0, PROMPT_TOKENS) / 1e9;
    let per_second = |gmacs: f64| if macs > 0.0 { gmacs / macs } else { 0.0 };
    match past.and_then(|e| measured(&e.prefill)) {
        Some((gmacs, basis)) => (gmacs.map(per_second), basis),
        None => {
            let gmacs = placed_gmacs(machine, model, threads);
            let gmacs = Quantiles::around(gmacs, PREFILL_LOW, PREFILL_HIGH);
            (gmacs.map(per_second), Basis::Estimated)
        }
    }
}

/// 10^9 multiply-adds per second that prefill should reach on the devices that have a part.
fn placed_gmacs(machine: &Machine, model: Kept<'_>, threads: usize) -> f64 {
    let own = prefill_gmacs(machine, threads);
    let placement = &model.layout.placement;
    let Some(rates) = model.gpu.filter(|_| placement.devices() > 1).and_then(|g| g.rates) else {
        return own;
    };
    let part = |device| model.sizes.device_macs_per_token(PROMPT_TOKENS / 2, placement, device) as f64 / 1e9;
    let rows = model.layout.chunk_rows.max(1);
    let crossings = model.sizes.crossings(placement);
    let moved: f64 = crossings.iter().map(|c| crossing_seconds(c, &rates, rows)).sum();
    let of_gpu = (rates.tflops * 1e3 / 2.0).max(f64::MIN_POSITIVE);
    let experts = model.sizes.device_expert_macs_per_token(placement, 1) as f64 / 1e9;
    let on_gpu = (part(1) - experts) / (of_gpu * GPU_PREFILL_SHARE) + experts / (of_gpu * GPU_EXPERT_SHARE);
    let seconds = part(0) / own + on_gpu + moved / rows as f64;
    (part(0) + part(1)) / seconds.max(f64::MIN_POSITIVE)
}

/// 10^9 multiply-adds per second that prefill should reach on the CPU.
fn prefill_gmacs(machine: &Machine, threads: usize) -> f64 {
    prefill_gmacs_per_core(&machine.cpu.isa) * threads.min(machine.cpu.cores) as f64
}

/// Mean multiply-adds per token over positions `from..to`; linear in the position, so the middle stands for all.
fn mean_macs(model: Kept<'_>, from: usize, to: usize) -> f64 {
    model.macs_per_token(from + (to - from) / 2) as f64
}

/// What a run showed, as the engine counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    /// Positions before the first token computed (reused prefix).
    pub start: usize,
    /// Prompt tokens computed.
    pub prompt_tokens: usize,
    pub prefill_seconds: f64,
    /// Decode steps after the prefill.
    pub decode_tokens: usize,
    pub decode_seconds: f64,
}

impl Observed {
    /// The run as history keeps it: predicted against actual. Short runs say nothing.
    pub fn run(&self, machine: &Machine, model: Kept<'_>, threads: usize) -> Run {
        let prompt_end = self.start + self.prompt_tokens;
        let decode = (self.decode_tokens >= LEAST_DECODE_TOKENS && self.decode_seconds > 0.0).then(|| {
            let middle = prompt_end + self.decode_tokens / 2;
            let gb = model.bytes_per_token(middle) as f64 / 1e9;
            let predicted = Decode::estimated(machine, model, threads).at(model, middle).p50 * gb;
            Speed { actual: gb * self.decode_tokens as f64 / self.decode_seconds, predicted }
        });
        let prefill = (self.prompt_tokens >= LEAST_PREFILL_TOKENS && self.prefill_seconds > 0.0).then(|| {
            let gmacs = mean_macs(model, self.start, prompt_end) / 1e9 * self.prompt_tokens as f64;
            Speed { actual: gmacs / self.prefill_seconds, predicted: placed_gmacs(machine, model, threads) }
        });
        Run { decode, prefill }
    }
}
