//! Models of any known shape with random weights: straight into memory for `hob bench --synth`, or as a GGUF file that
//! other programs run too. Speed and memory are real, text is not. Owns the bytes, the tensor table and the types; the
//! config is read by hob-model from the same keys that a file gets.

mod fill;
mod keys;
mod mix;
mod shapes;
mod tensors;
mod vocab;
mod write;

use std::collections::HashMap;
use std::sync::Arc;

use hob_compute::ByteSource;
use hob_files::{FileError, TensorInfo};
use hob_model::{ModelInfo, Naming, TensorSource, known_architectures};
use hob_quant::Format;

use fill::Filler;
pub use fill::formats;
pub(crate) use fill::mix;
pub use mix::{Mix, mixes};
pub(crate) use mix::{fallback, head_type, types as mix_types};
pub use shapes::{Attention, Delta, Experts, Kinds, Latent, SHAPES, Shape, Ssm, find};
pub(crate) use tensors::{Role, Slot};

/// Deviation of a matrix's weights times the square root of its columns: keeps activations near their trained size.
const GAIN: f32 = 0.8;
/// Deviation of bias vectors.
const BIAS_DEVIATION: f32 = 0.1;
/// Columns of a short convolution.
const SHORT_CONV: usize = 3;
/// Seed of all weights where none is given: two syntheses of one description are the same model.
pub const SEED: u64 = 0x0068_6f62;

#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    #[error("'{text}' is not SHAPE:TYPE, such as qwen3-1.7b:q4_0 (or SHAPE:TYPE:HEADTYPE)")]
    Syntax { text: String },
    #[error("no shape is called '{name}'; there are {known}")]
    Shape { name: String, known: String },
    #[error("type '{name}' cannot be synthesized; there are {known}")]
    Format { name: String, known: String },
    #[error(
        "{format} has blocks of {block} weights, but {tensor} has rows of {cols}; choose another type, such as q4_0 or q8_0, or a mix such as q4_k_m"
    )]
    Blocks { format: Format, block: usize, tensor: String, cols: usize },
    #[error("--layers {found}: expected 1 to {most}, the layers of {shape}")]
    Layers { found: usize, most: usize, shape: &'static str },
    #[error("--qk-gain {found}: {}", if *has_norms { "expected a number above 0".to_string() } else {
        format!("{shape} has no norms of Q and K; choose a shape that has them, such as qwen3-1.7b")
    })]
    QkGain { found: f32, shape: &'static str, has_norms: bool },
    #[error("a vocabulary of {found} tokens cannot spell every byte; expected at least {least}")]
    Vocabulary { least: usize, found: usize },
    #[error(
        "{name} is of architecture '{arch}', which hob cannot run yet; it runs {known}. hob lab synth writes it for other programs"
    )]
    Architecture { name: String, arch: &'static str, known: String },
    #[error("stopped; nothing was left behind")]
    Cancelled,
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Model(#[from] hob_model::ModelError),
}

impl SynthError {
    fn format(name: &str) -> Self {
        let types = formats().map(|f| f.name().to_ascii_lowercase());
        let known = types.chain(mixes().map(str::to_string)).collect::<Vec<_>>().join(", ");
        SynthError::Format { name: name.to_string(), known }
    }
}

/// A model that exists as a description only.
pub struct Synth {
    shape: Shape,
    /// The architecture it is made as; see [`Synth::runnable`].
    arch: &'static str,
    mix: Mix,
    head: Option<Format>,
    seed: u64,
    /// Weights of the norms of Q and K.
    qk_gain: f32,
    /// Layers of the shape by its name.
    all_layers: usize,
    tensors: Vec<TensorInfo>,
    roles: Vec<Role>,
    index: HashMap<String, usize>,
}

impl Synth {
    /// Reads `qwen3-1.7b:q4_k_m`, or `qwen3-1.7b:q4_0:q6_k` for another type of embedding and head.
    ///
    /// # Errors
    /// [`SynthError`], naming what is known.
    pub fn parse(text: &str) -> Result<Self, SynthError> {
        let mut parts = text.split(':').map(str::trim);
        let (Some(name), Some(types), head, None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SynthError::Syntax { text: text.to_string() });
        };
        let types = Mix::parse(types)?;
        let head = head.map(mix::format_of).transpose()?;
        let shape = find(name).ok_or_else(|| SynthError::Shape {
            name: name.to_string(),
            known: SHAPES.iter().map(|s| s.name).collect::<Vec<_>>().join(", "),
        })?;
        Self::new(shape.clone(), types, head)
    }

    /// `head` overrides the type of embedding and head.
    ///
    /// # Errors
    /// A type whose blocks do not divide the rows, or that cannot be synthesized.
    pub fn new(shape: Shape, mix: Mix, head: Option<Format>) -> Result<Self, SynthError> {
        let all_layers = shape.layers;
        Self { arch: shape.arch, shape, mix, head, seed: SEED, all_layers, ..Self::empty() }.laid_out()
    }

    fn empty() -> Self {
        let (tensors, roles, index) = Default::default();
        let (shape, mix) = (Shape::DENSE, Mix::Plain(Format::F32));
        Self {
            shape,
            arch: "",
            mix,
            head: None,
            seed: SEED,
            qk_gain: 1.0,
            all_layers: 0,
            tensors,
            roles,
            index,
        }
    }

    /// The same weights, drawn anew.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The norms of Q and K multiply by `gain`, so that logits of attention grow with its square: the fourth root of
    /// head_dim makes what an attention scale of 1 makes.
    ///
    /// # Errors
    /// A shape without such norms, or a gain that is not a positive number.
    pub fn with_qk_gain(self, gain: f32) -> Result<Self, SynthError> {
        let has_norms = self.roles.contains(&Role::QkNorm);
        if !(has_norms && gain.is_finite() && gain > 0.0) {
            return Err(SynthError::QkGain { found: gain, shape: self.shape.name, has_norms });
        }
        Ok(Self { qk_gain: gain, ..self })
    }

    /// Only the first `layers` layers.
    ///
    /// # Errors
    /// None, or more than the shape has.
    pub fn with_layers(self, layers: usize) -> Result<Self, SynthError> {
        if !(1..=self.all_layers).contains(&layers) {
            return Err(SynthError::Layers { found: layers, most: self.all_layers, shape: self.shape.name });
        }
        Self { shape: Shape { layers, ..self.shape }, ..self }.laid_out()
    }

    /// As an architecture that this build runs: qwen3 without its registry entry is run as the llama with the same
    /// matrices, and [`Synth::description`] says so. Every other shape stays what it is.
    ///
    /// # Errors
    /// As [`Synth::new`].
    pub fn runnable(self) -> Result<Self, SynthError> {
        let known = |arch: &str| known_architectures().any(|name| name == arch);
        if self.arch == "qwen3" && !known("qwen3") && known("llama") {
            return Self { arch: "llama", ..self }.laid_out();
        }
        Ok(self)
    }

    /// Makes the tensor table.
    fn laid_out(self) -> Result<Self, SynthError> {
        let slots = tensors::table(&self.shape, self.arch);
        let types = mix::types(&slots, &self.shape, self.mix, self.head);
        let roles = slots.iter().map(|slot| slot.role).collect();
        let mut end = 0;
        let tensors = slots
            .into_iter()
            .zip(types)
            .map(|(slot, format)| info(slot, format, &mut end))
            .collect::<Result<Vec<_>, _>>()?;
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Self { tensors, roles, index, ..self })
    }

    /// Config and checked tensor table, as hob-model reads them from a file of this model.
    ///
    /// # Errors
    /// [`SynthError::Architecture`] for one that hob cannot run yet; what hob-model refuses.
    pub fn info(&self) -> Result<ModelInfo, SynthError> {
        if !known_architectures().any(|known| known == self.arch) {
            let known = known_architectures().collect::<Vec<_>>().join(", ");
            return Err(SynthError::Architecture { name: self.name(), arch: self.arch, known });
        }
        Ok(ModelInfo::new(self.read_config()?, self)?)
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Weights of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|t| t.shape.iter().product::<usize>() as u64).sum()
    }

    /// `qwen3-1.7b:q4_0`, as [`Synth::parse`] reads it; with the number of layers if some were left out.
    pub fn name(&self) -> String {
        let mut name = format!("{}:{}", self.shape.name, self.mix.name());
        if let Some(head) = self.head {
            name += &format!(":{head}").to_ascii_lowercase();
        }
        if self.qk_gain != 1.0 {
            name += &format!(" (norms of Q and K {})", self.qk_gain);
        }
        if self.shape.layers < self.all_layers {
            name += &format!(" ({} of {} layers)", self.shape.layers, self.all_layers);
        }
        name
    }

    /// What the model is, for people who read its figures.
    pub fn description(&self) -> String {
        let note = if self.arch == self.shape.arch {
            ""
        } else {
            " (run as llama with this head_dim: the same matrices, without the per-head norms of Q and K)"
        };
        format!("{}: random weights of that shape{note}", self.name())
    }

    fn content(&self, tensor: &TensorInfo) -> Content {
        let role = self.index.get(&tensor.name).map(|&i| self.roles[i]);
        let deviation = match role {
            Some(Role::Norm) => return Content::Ones,
            Some(Role::QkNorm) => return Content::of(vec![self.qk_gain; tensor.shape[0]]),
            Some(Role::Decay) => return Content::of(decays(tensor.shape[0])),
            Some(Role::Divisors) => return Content::of(divisors(&self.shape)),
            Some(Role::Bias) => BIAS_DEVIATION,
            _ => GAIN / (tensor.shape.last().copied().unwrap_or(1) as f32).sqrt(),
        };
        Filler::new(tensor.format, deviation).map_or(Content::Unknown, Content::Random)
    }
}

/// The table's entry of a slot; `end` is where the one before it ended.
fn info(slot: Slot, format: Format, end: &mut u64) -> Result<TensorInfo, SynthError> {
    let cols = slot.shape.last().copied().unwrap_or(1);
    let rows: usize = slot.shape.iter().rev().skip(1).product();
    let Some(row) = format.row_bytes(cols) else {
        return Err(SynthError::Blocks { format, block: format.block_len(), tensor: slot.name, cols });
    };
    let bytes = (row * rows) as u64;
    let tensor = TensorInfo { name: slot.name, format, shape: slot.shape, shard: 0, offset: *end, bytes };
    *end += bytes;
    Ok(tensor)
}

/// -exp(A_log) of a delta net's heads: from slow to fast, as trained ones are.
fn decays(heads: usize) -> Vec<f32> {
    (0..heads).map(|h| -(0.05 * 80f32.powf(h as f32 / heads as f32))).collect()
}

/// Llama 3.1's stretching by wavelength (low_freq_factor 1, high_freq_factor 4, 8192 positions of old), as the divisors
/// that its GGUF files hold.
fn divisors(shape: &Shape) -> Vec<f32> {
    // Gemma 4 rotates a quarter of the pairs of a head that sees all positions.
    if shape.kinds.is_some() {
        let pairs = shape.head_dim / 2;
        return (0..pairs).map(|i| if i < pairs / 4 { 1.0 } else { 1e30 }).collect();
    }
    const OLD_CTX: f64 = 8192.0;
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    let factor = f64::from(shape.rope_factor);
    let divisor = |i: usize| {
        let turn = f64::from(shape.rope_base).powf(2.0 * i as f64 / shape.head_dim as f64);
        let turns = OLD_CTX / (2.0 * std::f64::consts::PI * turn);
        let smooth = ((turns - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    (0..shape.head_dim / 2).map(|i| divisor(i) as f32).collect()
}

impl TensorSource for Synth {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    fn open(&self, tensor: &TensorInfo) -> Arc<dyn ByteSource> {
        // The name alone tells streams apart, so that a tensor is the same in every file order.
        let name = tensor.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let seed = fill::mix(self.seed ^ fill::mix(name));
        Arc::new(Bytes { len: tensor.bytes, content: self.content(tensor), seed })
    }
}

enum Content {
    Random(Filler),
    /// f32 ones: the weight of a norm.
    Ones,
    /// These very bytes.
    Given(Vec<u8>),
    /// A format that [`Synth::new`] never puts into its table.
    Unknown,
}

impl Content {
    fn of(values: Vec<f32>) -> Self {
        Content::Given(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

/// One tensor's bytes.
struct Bytes {
    len: u64,
    content: Content,
    seed: u64,
}

/// Bytes that are worth a thread.
const PART_BYTES: usize = 1 << 20;

/// Large pieces are made on all cores: a loader that asks for them from one thread would wait for minutes else.
fn fill_together(filler: &Filler, seed: u64, offset: u64, buf: &mut [u8]) {
    let threads = if buf.len() < 2 * PART_BYTES {
        1
    } else {
        std::thread::available_parallelism().map_or(1, |n| n.get()).min(buf.len() / PART_BYTES)
    };
    if threads == 1 {
        return filler.fill(seed, offset, buf);
    }
    let part = buf.len().div_ceil(threads);
    std::thread::scope(|scope| {
        for (i, part) in buf.chunks_mut(part).enumerate().map(|(i, p)| (i * part, p)) {
            scope.spawn(move || filler.fill(seed, offset + i as u64, part));
        }
    });
}

impl ByteSource for Bytes {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match &self.content {
            Content::Random(filler) => fill_together(filler, self.seed, offset, buf),
            Content::Ones => {
                let one = 1f32.to_le_bytes();
                for (i, byte) in buf.iter_mut().enumerate() {
                    *byte = one[(offset as usize + i) % 4];
                }
            }
            Content::Given(bytes) => match bytes.get(offset as usize..offset as usize + buf.len()) {
                Some(part) => buf.copy_from_slice(part),
                None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            },
            Content::Unknown => return Err(std::io::ErrorKind::Unsupported.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
