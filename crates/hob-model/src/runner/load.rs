//! Loading: everything a model holds on a device, acquired in one go and released in one go.
//!
//! It must not know the forward pass.

use hob_compute::{Buf, Compute, Memory, Weight, WeightKind, WeightSpec};
use hob_quant::Format;

use crate::config::{DIVISORS, LONG, SHORT};
use crate::info::{StateShape, file_bytes};
use crate::needs::Remembered;
use crate::source::open_slot;
use crate::state::{LayerMemory, StateBuf};
use crate::{
    Layout, LongFactors, ModelError, ModelInfo, Placement, Result, RopeConfig, RopeScaling, TensorSource,
    rope,
};
use hob_compute::Rotation;

/// The weights of a loaded model.
pub(super) struct Held {
    pub weights: Vec<Weight>,
    /// Of every rotary table.
    frequencies: Vec<Frequencies>,
}

/// What a rotary table may hold, `[pairs]` radians per position.
struct Frequencies {
    rope: RopeConfig,
    /// Of a context that the model was first trained for; of any, where that makes no difference.
    within: Vec<f32>,
    /// Of a context beyond that many tokens.
    beyond: Option<(f64, Vec<f32>)>,
}

/// What depends on the layout, beside the pages.
pub(super) struct Room {
    pub bufs: Vec<Buf>,
    /// What recurrences remember, a row per sequence.
    pub memories: Vec<LayerMemory>,
    pub ropes: Vec<Rotation>,
    /// What the rotary tables hold.
    pub frequencies: Vec<Vec<f32>>,
}

impl Held {
    /// # Errors
    /// What the source or the device says; nothing stays behind on the device.
    pub fn load(
        source: &dyn TensorSource,
        info: &ModelInfo,
        dev: &mut dyn Compute,
        placement: &Placement,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let frequencies = info.config.ropes.iter().map(|rope| frequencies(rope, source));
        let frequencies = frequencies.collect::<Result<_>>()?;
        let mut held = Held { weights: Vec::new(), frequencies };
        match held.fill(source, info, (dev, placement), progress) {
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
        (dev, placement): (&mut dyn Compute, &Placement),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let read = |kind| kind != WeightKind::Table;
        let total = info.slots().filter(|(s, _)| read(s.kind)).map(|(s, f)| file_bytes(s, f)).sum();
        let mut done = 0;
        progress(done, total);
        for (slot, format) in info.slots() {
            let read_bytes = file_bytes(slot, format);
            let (format, bytes) = open_slot(slot, format, &info.config.arch, source)?;
            let (name, kind) = (slot.name.clone(), slot.kind);
            let spec = WeightSpec { name, kind, format, rows: slot.rows, cols: slot.cols };
            dev.place(info.device_of(slot, placement));
            self.weights.push(dev.load(&spec, bytes)?);
            if read(slot.kind) {
                done += read_bytes;
                progress(done, total);
            }
        }
        Ok(())
    }

    /// Buffers and rotary tables for `layout`.
    ///
    /// # Errors
    /// What the device says; nothing stays behind on it.
    pub fn room(&self, info: &ModelInfo, dev: &mut dyn Compute, layout: &Layout) -> Result<Room> {
        let mut room =
            Room { bufs: Vec::new(), memories: Vec::new(), ropes: Vec::new(), frequencies: Vec::new() };
        match room.fill(&self.frequencies, info, dev, layout) {
            Ok(()) => Ok(room),
            Err(e) => {
                room.release(dev)?;
                Err(e)
            }
        }
    }

    /// # Errors
    /// The first thing the device says; the rest is released all the same.
    pub fn release(self, dev: &mut dyn Compute) -> Result<()> {
        let results: Vec<_> = self.weights.into_iter().map(|w| dev.unload(w)).collect();
        Ok(results.into_iter().collect::<std::result::Result<(), _>>()?)
    }
}

impl Room {
    /// The buffers of recurrent state: those of recurrences, then those that are addressed by position.
    pub fn states(&self, info: &ModelInfo, layout: &Layout) -> Vec<StateBuf> {
        let of = |buf, shape: StateShape| StateBuf { buf, rows: shape.rows(layout.ctx_tokens), shape };
        let fixed = self.memories.iter().map(|LayerMemory { memory, recurrence }| {
            of(memory.state, StateShape { width: recurrence.state(), ratio: None })
        });
        fixed.chain(info.state_buffers().map(|(at, shape)| of(self.bufs[at], shape))).collect()
    }

    fn fill(
        &mut self,
        tables: &[Frequencies],
        info: &ModelInfo,
        dev: &mut dyn Compute,
        layout: &Layout,
    ) -> Result<()> {
        for ([rows, width], layer) in info.buffer_shapes(layout) {
            dev.place(layer.map_or(0, |layer| layout.placement.layer(layer)));
            self.bufs.push(dev.alloc(rows, width)?);
        }
        for &Remembered { recurrence, layer } in &info.remembered {
            dev.place(layout.placement.layer(layer));
            let memory = Memory::plain(dev.alloc(layout.sequences, recurrence.state())?);
            self.memories.push(LayerMemory { memory, recurrence });
            if let (Some(state), 1..) = (self.memories.last_mut(), layout.held_rows) {
                let width = layout.held_rows * recurrence.record();
                state.memory.records = Some(dev.alloc(layout.sequences, width)?);
            }
        }
        dev.place(0);
        for Frequencies { rope, within, beyond } in tables {
            let beyond = beyond.as_ref().filter(|(ctx, _)| layout.ctx_tokens as f64 > *ctx);
            let table = beyond.map_or(within, |(_, table)| table);
            let freqs = dev.alloc(1, table.len())?;
            self.ropes.push(Rotation { freqs, pairs: rope.pairs, magnitude: rope.magnitude });
            dev.upload(freqs, 0, table)?;
            self.frequencies.push(table.clone());
        }
        Ok(())
    }

    /// # Errors
    /// The first thing the device says; the rest is released all the same.
    pub fn release(self, dev: &mut dyn Compute) -> Result<()> {
        let states = self.memories.iter().flat_map(|s| s.memory.bufs());
        let bufs = self.bufs.into_iter().chain(states).chain(self.ropes.iter().map(|r| r.freqs));
        let results: Vec<_> = bufs.map(|b| dev.free(b)).collect();
        Ok(results.into_iter().collect::<std::result::Result<(), _>>()?)
    }
}

/// Both sets of a table that has two, so that another layout needs no file.
fn frequencies(rope: &RopeConfig, source: &dyn TensorSource) -> Result<Frequencies> {
    let pairs = rope.rotary / 2;
    let (within, beyond) = match &rope.scaling {
        RopeScaling::Divisors => (divisors(DIVISORS, pairs, source)?, None),
        RopeScaling::Long { factors, original_ctx } => {
            let (short, long) = match factors {
                LongFactors::Given { short, long } => (short.clone(), long.clone()),
                LongFactors::Tensors => (divisors(SHORT, pairs, source)?, divisors(LONG, pairs, source)?),
            };
            (short, Some((*original_ctx, rope::frequencies(rope, &long))))
        }
        _ => (Vec::new(), None),
    };
    Ok(Frequencies { rope: rope.clone(), within: rope::frequencies(rope, &within), beyond })
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
