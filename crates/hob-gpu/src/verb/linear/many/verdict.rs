//! Whether cooperative matrices are right and fast on this device: both ways run once on one matrix. It must not know
//! tiles.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hob_compute::{
    Buf, ByteSource, Combine, Compute, Linear, Product, Result, Weight, WeightKind, WeightSpec,
};
use hob_quant::Format;

use super::{Tile, Way};
use crate::Gpu;

/// Rows, inputs and outputs of the matrix that is tried: enough that the device is busy for longer than a round trip.
const ROWS: usize = 512;
const COLS: usize = 2048;
/// Calls that are timed together, and in how many rounds the best is looked for.
const CALLS: usize = 8;
const TRIES: usize = 8;
/// Largest difference of both ways, relative to the root mean square: the plain one has int8 activations.
const TOLERANCE: f32 = 0.1;

/// By adapter and tier, for the life of the process.
static VERDICTS: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());

/// A matrix of Q4_0 with varied codes and one scale.
struct Sample;

impl ByteSource for Sample {
    fn len(&self) -> u64 {
        (COLS * COLS / 32 * 18) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let byte = |i: u64| match i % 18 {
            0 => 0,
            1 => 0x28, // 2^-5
            _ => (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8,
        };
        buf.iter_mut().zip(offset..).for_each(|(b, i)| *b = byte(i));
        Ok(())
    }
}

impl Gpu {
    /// Whether cooperative matrices agree with the plain way and are faster; tried once per adapter, tier and process.
    ///
    /// # Errors
    /// No room for the sample, or what the device says.
    pub(crate) fn coop_pays(&mut self) -> Result<bool> {
        let facts = &self.stream.context.facts;
        let room = self.stream.context.device.limits().max_compute_workgroup_storage_size as usize;
        let roomy = Tile::ALL.iter().all(|tile| tile.bytes() <= room);
        if !(roomy && facts.tier.coop && facts.tier.f16 && facts.tier.subgroups) {
            return Ok(false);
        }
        let key = format!("{} / {} / {}", facts.name, facts.driver, facts.tier);
        let known = |key: &str| VERDICTS.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        if let Some(pays) = known(&key) {
            return Ok(pays);
        }
        let rehearsing = std::mem::replace(&mut self.stream.rehearsing, false);
        let pays = self.try_both();
        self.stream.rehearsing = rehearsing;
        let pays = pays?;
        VERDICTS.lock().unwrap_or_else(PoisonError::into_inner).insert(key, pays);
        Ok(pays)
    }

    fn try_both(&mut self) -> Result<bool> {
        let x = self.alloc(ROWS, COLS)?;
        let out = self.alloc(ROWS, COLS)?;
        let spec = WeightSpec {
            name: "sample of a matrix".into(),
            rows: COLS,
            cols: COLS,
            format: Format::Q4_0,
            kind: WeightKind::Matrix,
        };
        let weight = self.load(&spec, Arc::new(Sample))?;
        let values: Vec<f32> = (0..ROWS * COLS).map(|i| (i * 7919 % 255) as f32 / 127.0 - 1.0).collect();
        let result = self.upload(x, 0, &values).and_then(|()| self.compare(x, weight, out));
        self.unload(weight)?;
        self.free(out)?;
        self.free(x)?;
        result
    }

    fn compare(&mut self, x: Buf, weight: Weight, out: Buf) -> Result<bool> {
        let plain = if self.stream.context.tier().dot { Way::Int8 } else { Way::Float };
        let products = [Product { weight, bias: None, out }];
        let args = Linear { x, first_row: 0, rows: ROWS, products: &products, combine: Combine::Store };
        let expected = self.values(&args, plain)?;
        // A driver that refuses or cannot run them ends their use, not the session.
        let Ok(found) = self.values(&args, Way::Coop) else { return Ok(false) };
        let square: f32 = expected.iter().map(|v| v * v).sum();
        let limit = TOLERANCE * (square / expected.len() as f32).sqrt();
        // What is no number does not agree either.
        if !expected.iter().zip(&found).all(|(e, f)| (e - f).abs() <= limit) {
            return Ok(false);
        }
        // By turns: a device's clocks rise for as long as it is busy.
        let mut best = [Duration::MAX; 2];
        for _ in 0..TRIES {
            for (way, best) in [plain, Way::Coop].into_iter().zip(&mut best) {
                *best = self.timed(&args, way)?.min(*best);
            }
        }
        Ok(best[1] < best[0])
    }

    /// The product one way.
    fn values(&mut self, args: &Linear, way: Way) -> Result<Vec<f32>> {
        let mut values = vec![0.0; ROWS * COLS];
        let job = self.job(args, 0)?;
        self.run_job(args, &job, way)?;
        self.download(args.products[0].out, 0, &mut values)?;
        Ok(values)
    }

    /// The time of a few calls.
    fn timed(&mut self, args: &Linear, way: Way) -> Result<Duration> {
        let job = self.job(args, 0)?;
        let start = Instant::now();
        for _ in 0..CALLS {
            self.run_job(args, &job, way)?;
        }
        self.download(args.products[0].out, ROWS - 1, &mut vec![0.0; COLS])?;
        Ok(start.elapsed())
    }
}
