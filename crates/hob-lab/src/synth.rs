//! Models of any known shape with random weights, straight into memory: no file, no download. Owns the bytes;
//! config, tensor table and sizes are `hob-model`'s. Speed and memory are real, text is not.

mod fill;
mod shapes;

use std::sync::Arc;

use hob_compute::{ByteSource, WeightKind};
use hob_files::TensorInfo;
use hob_model::config::DenseShape;
use hob_model::{Config, Group, ModelInfo, Naming, TensorSource};
use hob_quant::Format;

use fill::Filler;
pub use fill::formats;
pub(crate) use fill::mix;
pub use shapes::{SHAPES, Shape, find};

/// Deviation of a matrix's weights times the square root of its columns: keeps activations near their trained size.
const GAIN: f32 = 0.8;
/// Deviation of bias vectors.
const BIAS_DEVIATION: f32 = 0.1;
/// Seed of all weights: two syntheses of one description are the same model.
const SEED: u64 = 0x0068_6f62;

#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    #[error("'{text}' is not SHAPE:TYPE, such as qwen3-1.7b:q4_0 (or SHAPE:TYPE:HEADTYPE)")]
    Syntax { text: String },
    #[error("no shape is called '{name}'; there are {known}")]
    Shape { name: String, known: String },
    #[error("type '{name}' cannot be synthesized; there are {known}")]
    Format { name: String, known: String },
    #[error(
        "{format} has blocks of {block} weights, but {tensor} has rows of {cols}; choose another type, such as q4_0 or q8_0"
    )]
    Blocks { format: Format, block: usize, tensor: String, cols: usize },
    #[error(transparent)]
    Model(#[from] hob_model::ModelError),
}

/// A model that exists as a description only.
pub struct Synth {
    shape: &'static Shape,
    format: Format,
    head_format: Format,
    config: Config,
    tensors: Vec<TensorInfo>,
}

impl Synth {
    /// Reads `qwen3-1.7b:q4_0`, or `qwen3-1.7b:q4_0:q6_k` for another type of embedding and head.
    ///
    /// # Errors
    /// [`SynthError`], naming what is known.
    pub fn parse(text: &str) -> Result<Self, SynthError> {
        let mut parts = text.split(':').map(str::trim);
        let (Some(name), Some(format), head, None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SynthError::Syntax { text: text.to_string() });
        };
        let format = format_of(format)?;
        let head_format = head.map_or(Ok(format), format_of)?;
        let shape = find(name).ok_or_else(|| SynthError::Shape {
            name: name.to_string(),
            known: SHAPES.iter().map(|s| s.name).collect::<Vec<_>>().join(", "),
        })?;
        Self::new(shape, format, head_format)
    }

    /// # Errors
    /// A format whose blocks do not divide the rows, or that cannot be synthesized.
    pub fn new(shape: &'static Shape, format: Format, head_format: Format) -> Result<Self, SynthError> {
        let mut config = Config::dense(shape.arch, &dense(shape))?;
        config.rms_eps = shape.rms_eps;
        let tensors = table(&config, format, head_format)?;
        Ok(Self { shape, format, head_format, config, tensors })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `qwen3-1.7b:q4_0`, as [`Synth::parse`] reads it.
    pub fn name(&self) -> String {
        let head =
            if self.head_format == self.format { String::new() } else { format!(":{}", self.head_format) };
        format!("{}:{}{head}", self.shape.name, self.format).to_ascii_lowercase()
    }

    /// What the model is, for people who read its figures.
    pub fn description(&self) -> String {
        let note = self.shape.note();
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        format!("{}: random weights of that shape{note}", self.name())
    }
}

fn format_of(name: &str) -> Result<Format, SynthError> {
    Format::from_name(name).filter(|f| formats().any(|known| known == *f)).ok_or_else(|| SynthError::Format {
        name: name.to_string(),
        known: formats().map(|f| f.name().to_ascii_lowercase()).collect::<Vec<_>>().join(", "),
    })
}

fn dense(shape: &Shape) -> DenseShape {
    DenseShape {
        vocab: shape.vocab,
        dim: shape.dim,
        layers: shape.layers,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        ffn: shape.ffn,
        ctx_train: shape.ctx_train,
        rope_base: f64::from(shape.rope_base),
        tied: shape.tied,
    }
}

/// One tensor for each that the architecture reads, by name; offsets run on as in a file.
fn table(config: &Config, format: Format, head_format: Format) -> Result<Vec<TensorInfo>, SynthError> {
    let mut slots = ModelInfo::slots_of(config, Naming::Gguf)?;
    // A tied head names the embedding's tensor a second time.
    slots.sort_by(|a, b| a.name.cmp(&b.name));
    slots.dedup_by(|a, b| a.name == b.name);
    let mut end = 0;
    slots
        .into_iter()
        .map(|slot| {
            let (format, shape) = match slot.kind {
                WeightKind::Vector => (Format::F32, vec![slot.cols]),
                _ if slot.group == Group::Ends => (head_format, vec![slot.rows, slot.cols]),
                _ => (format, vec![slot.rows, slot.cols]),
            };
            let Some(row) = format.row_bytes(slot.cols) else {
                return Err(SynthError::Blocks {
                    format,
                    block: format.block_len(),
                    tensor: slot.name,
                    cols: slot.cols,
                });
            };
            let bytes = (row * slot.rows) as u64;
            let tensor = TensorInfo { name: slot.name, format, shape, shard: 0, offset: end, bytes };
            end += bytes;
            Ok(tensor)
        })
        .collect()
}

impl TensorSource for Synth {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }

    fn open(&self, tensor: &TensorInfo) -> Arc<dyn ByteSource> {
        // Offsets differ between tensors, so they name the streams.
        Arc::new(Bytes {
            len: tensor.bytes,
            content: content(tensor),
            seed: fill::mix(SEED ^ fill::mix(tensor.offset)),
        })
    }
}

fn content(tensor: &TensorInfo) -> Content {
    if tensor.name.ends_with("norm.weight") {
        return Content::Ones;
    }
    let deviation = match tensor.shape[..] {
        [_, cols] => GAIN / (cols as f32).sqrt(),
        _ => BIAS_DEVIATION,
    };
    Filler::new(tensor.format, deviation).map_or(Content::Unknown, Content::Random)
}

enum Content {
    Random(Filler),
    /// f32 ones: the weight of a norm.
    Ones,
    /// A format that [`Synth::new`] never puts into its table.
    Unknown,
}

/// One tensor's bytes.
struct Bytes {
    len: u64,
    content: Content,
    seed: u64,
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
            Content::Random(filler) => filler.fill(self.seed, offset, buf),
            Content::Ones => {
                let one = 1f32.to_le_bytes();
                for (i, byte) in buf.iter_mut().enumerate() {
                    *byte = one[(offset as usize + i) % 4];
                }
            }
            Content::Unknown => return Err(std::io::ErrorKind::Unsupported.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_makes_a_table_its_config_agrees_with() {
        for shape in SHAPES {
            let synth = Synth::new(shape, Format::Q4_0, Format::Q8_0).expect(shape.name);
            let bytes: u64 = synth.tensors().iter().map(|t| t.bytes).sum();
            assert!(bytes > 50_000_000, "{}", shape.name);
            assert_eq!(synth.config().layers.len(), shape.layers);
            for t in synth.tensors() {
                assert_eq!(synth.tensor(&t.name).map(|found| &found.name), Some(&t.name));
                assert_eq!(synth.open(t).len(), t.bytes);
            }
            assert_eq!(synth.tensor("output.weight").is_none(), shape.tied);
            assert_eq!(synth.tensor("blk.0.attn_q.bias").is_some(), shape.arch == "qwen2");
        }
    }

    #[test]
    fn names_round_trip_and_say_what_is_missing() {
        for name in ["qwen3-1.7b:q4_0", "smollm2-135m:q4_1:q8_0", "qwen2.5-7b:q4_k:q6_k"] {
            assert_eq!(Synth::parse(name).expect(name).name(), name);
        }
        let description = Synth::parse("QWEN3-0.6B:Q8_0").expect("any case").description();
        assert!(description.contains("norms of Q and K"), "{description}");
    }

    #[test]
    fn wrong_descriptions_name_what_is_known() {
        for (text, part) in [
            ("qwen3-1.7b", "SHAPE:TYPE"),
            ("a:q4_0:q4_0:q4_0", "SHAPE:TYPE"),
            ("gpt-5:q4_0", "smollm2-135m"),
            ("qwen3-8b:q4_9", "q4_0"),
            ("qwen3-8b:i32", "q4_0"),
            ("smollm2-135m:q4_k", "256"),
        ] {
            let error = Synth::parse(text).err().expect(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn bytes_are_the_tensors_own_and_end_where_it_ends() {
        let synth = Synth::parse("smollm2-135m:q4_0").expect("parses");
        let open = |name: &str| synth.open(synth.tensor(name).expect(name));
        let read = |name: &str, offset, n| {
            let mut buf = vec![0; n];
            open(name).read_at(offset, &mut buf).map(|()| buf)
        };
        assert_ne!(
            read("blk.0.attn_q.weight", 0, 64).expect("q"),
            read("blk.1.attn_q.weight", 0, 64).expect("q")
        );
        assert_eq!(
            read("blk.0.attn_q.weight", 0, 64).expect("q"),
            read("blk.0.attn_q.weight", 0, 64).expect("q")
        );
        assert_eq!(read("output_norm.weight", 4, 4).expect("norm"), 1f32.to_le_bytes());
        assert_eq!(read("output_norm.weight", 5, 3).expect("norm"), 1f32.to_le_bytes()[1..]);
        let len = open("output_norm.weight").len();
        assert!(read("output_norm.weight", len - 3, 4).is_err());
        assert!(read("output_norm.weight", u64::MAX, 4).is_err());
    }
}
