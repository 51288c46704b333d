//! Loading: everything a model holds on a device, acquired in one go and released in one go.
//!
//! It must not know the forward pass.

use hob_compute::{Buf, Compute, Weight, WeightKind, WeightSpec};
use hob_quant::Format;

use crate::blocks::RopeTable;
use crate::config::{DIVISORS, LONG, SHORT};
use crate::info::file_bytes;
use crate::source::open_slot;
use crate::state::PagePools;
use crate::{
    Layout, LongFactors, ModelError, ModelInfo, Result, RopeConfig, RopeScaling, TensorSource, rope,
};

/// Handles of a loaded model.
pub(super) struct Held {
    pub weights: Vec<Weight>,
    pub bufs: Vec<Buf>,
    pub ropes: Vec<RopeTable>,
    pub pools: PagePools,
}

impl Held {
    /// # Errors
    /// What the source or the device says; nothing stays behind on the device.
    pub fn load(
        source: &dyn TensorSource,
        info: &ModelInfo,
        dev: &mut dyn Compute,
        layout: &Layout,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let pools = PagePools::new(info, layout, dev)?;
        let mut held = Held { weights: Vec::new(), bufs: Vec::new(), ropes: Vec::new(), pools };
        match held.fill(source, info, dev, layout, progress) {
            Ok(()) => Ok(held),
            Err(e) => {
                held.release(dev)?;
                Err(e)
            }
        }
    }

    fn fill(
        &mut self,
        source: &dyn TensorSource,
        info: &ModelInfo,
        dev: &mut dyn Compute,
        layout: &Layout,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        for [rows, width] in info.buffer_shapes(layout) {
            self.bufs.push(dev.alloc(rows, width)?);
        }
        for rope in &info.config.ropes {
            self.ropes.push(rope_table(rope, layout, source, dev)?);
        }
        let read = |kind| kind != WeightKind::Table;
        let total = info.slots().filter(|(s, _)| read(s.kind)).map(|(s, f)| file_bytes(s, f)).sum();
        let mut done = 0;
        progress(done, total);
        for (slot, format) in info.slots() {
            let read_bytes = file_bytes(slot, format);
            let (format, bytes) = open_slot(slot, format, &info.config.arch, source)?;
            let (name, kind) = (slot.name.clone(), slot.kind);
            let spec = WeightSpec { name, kind, format, rows: slot.rows, cols: slot.cols };
            self.weights.push(dev.load(&spec, bytes)?);
            if read(slot.kind) {
                done += read_bytes;
                progress(done, total);
            }
        }
        Ok(())
    }

    /// # Errors
    /// The first thing the device says; the rest is released all the same.
    pub fn release(self, dev: &mut dyn Compute) -> Result<()> {
        let bufs = self.bufs.into_iter().chain(self.ropes.iter().map(|r| r.freqs));
        let mut results = vec![];
        results.extend(bufs.map(|b| dev.free(b)));
        results.extend(self.weights.into_iter().map(|w| dev.unload(w)));
        let pools = self.pools.release(dev);
        results.into_iter().collect::<std::result::Result<(), _>>()?;
        pools
    }
}

/// Uploads the frequencies of one table.
fn rope_table(
    config: &RopeConfig,
    layout: &Layout,
    source: &dyn TensorSource,
    dev: &mut dyn Compute,
) -> Result<RopeTable> {
    let pairs = config.rotary / 2;
    let divisors = match &config.scaling {
        RopeScaling::Divisors => divisors(DIVISORS, pairs, source)?,
        RopeScaling::Long { factors, original_ctx } => {
            let beyond = layout.ctx_tokens as f64 > *original_ctx;
            match factors {
                LongFactors::Given { short, long } => if beyond { long } else { short }.clone(),
                LongFactors::Tensors => divisors(if beyond { LONG } else { SHORT }, pairs, source)?,
            }
        }
        _ => Vec::new(),
    };
    let table = rope::frequencies(config, &divisors);
    let freqs = dev.alloc(1, table.len())?;
    match dev.upload(freqs, 0, &table) {
        Ok(()) => Ok(RopeTable { freqs, pairs: config.pairs, magnitude: config.magnitude }),
        Err(e) => {
            dev.free(freqs)?;
            Err(e.into())
        }
    }
}

/// Reads a tensor of divisors, `[pairs]` of F32, all positive.
fn divisors(name: &str, pairs: usize, source: &dyn TensorSource) -> Result<Vec<f32>> {
    let found = source.tensor(name);
    let name = name.to_string();
    let Some(tensor) = found else {
        return Err(ModelError::MissingTensor { name, rows: 1, cols: pairs, arch: "rope-scaled".into() });
    };
    if tensor.shape != [pairs] {
        let (expected, found) = (format!("[{pairs}]"), format!("{:?}", tensor.shape));
        return Err(ModelError::TensorShape { name, expected, found });
    }
    if tensor.format != Format::F32 {
        let found = tensor.format.to_string();
        return Err(ModelError::TensorFormat { name, expected: "F32".into(), found });
    }
    let mut bytes = vec![0u8; pairs * 4];
    let read = source.open(tensor).read_at(0, &mut bytes);
    read.map_err(|e| ModelError::Tensor {
        name: name.clone(),
        problem: format!("reading its bytes failed: {e}"),
    })?;
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    match values.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
        Some(bad) => {
            Err(ModelError::Tensor { name, problem: format!("expected positive divisors, found {bad}") })
        }
        None => Ok(values),
    }
}
