//! Loading: everything a model holds on a device, acquired in one go and released in one go.
//!
//! It must not know the forward pass.

use hob_compute::{Buf, Compute, Weight, WeightKind, WeightSpec};
use hob_quant::Format;

use crate::blocks::RopeTable;
use crate::config::DIVISORS;
use crate::info::file_bytes;
use crate::state::PagePools;
use crate::{Layout, ModelError, ModelInfo, Result, RopeConfig, RopeScaling, TensorSource, rope};

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
        for [rows, width] in info.scratch_shapes(layout) {
            self.bufs.push(dev.alloc(rows, width)?);
        }
        for rope in &info.config.ropes {
            self.ropes.push(rope_table(rope, source, dev)?);
        }
        let read = |kind| kind != WeightKind::Table;
        let total = info.slots().filter(|(s, _)| read(s.kind)).map(|(s, f)| file_bytes(s, f)).sum();
        let mut done = 0;
        progress(done, total);
        for (slot, format) in info.slots() {
            let Some(tensor) = source.tensor(&slot.name) else {
                let (name, arch) = (slot.name.clone(), info.config.arch.clone());
                return Err(ModelError::MissingTensor { name, rows: slot.rows, cols: slot.cols, arch });
            };
            let (name, kind) = (slot.name.clone(), slot.kind);
            let spec = WeightSpec { name, kind, format, rows: slot.rows, cols: slot.cols };
            self.weights.push(dev.load(&spec, source.open(tensor))?);
            if read(slot.kind) {
                done += file_bytes(slot, format);
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

/// Attention here sees all earlier positions, so a window must not be reached.
///
/// # Errors
/// [`ModelError::Layout`] with the largest context that works.
pub(super) fn check_windows(info: &ModelInfo, layout: &Layout) -> Result<()> {
    let smallest = info.config.layers.iter().filter_map(|l| l.window).min();
    match smallest.filter(|&window| window < layout.ctx_tokens) {
        Some(window) => {
            let expected =
                format!("a context of at most {window} tokens (sliding windows are not computed yet)");
            Err(ModelError::layout(expected, format!("{} tokens", layout.ctx_tokens)))
        }
        None => Ok(()),
    }
}

/// Uploads the frequencies of one table.
fn rope_table(config: &RopeConfig, source: &dyn TensorSource, dev: &mut dyn Compute) -> Result<RopeTable> {
    let divisors = match config.scaling {
        RopeScaling::Divisors => divisors(config.rotary / 2, source)?,
        RopeScaling::None | RopeScaling::Llama3 { .. } => Vec::new(),
    };
    let table = rope::frequencies(config, &divisors);
    let freqs = dev.alloc(1, table.len())?;
    match dev.upload(freqs, 0, &table) {
        Ok(()) => Ok(RopeTable { freqs, pairs: config.pairs, magnitude: 1.0 }),
        Err(e) => {
            dev.free(freqs)?;
            Err(e.into())
        }
    }
}

/// Reads `rope_freqs.weight`, `[pairs]` of F32, all positive.
fn divisors(pairs: usize, source: &dyn TensorSource) -> Result<Vec<f32>> {
    let name = DIVISORS.to_string();
    let Some(tensor) = source.tensor(DIVISORS) else {
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
