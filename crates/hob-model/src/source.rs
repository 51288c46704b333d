//! Where tensors come from: a model file, or whatever else can name them and give their bytes.
//!
//! It must not know what a tensor is for.

use std::sync::Arc;

use hob_compute::{ByteSource, WeightKind};
use hob_files::{FileKind, ModelFile, OpaqueTensor, TensorInfo};
use hob_quant::Format;

use crate::{ModelError, Naming, Result, Slot, Values, stacked};

/// Tensors by name.
pub trait TensorSource {
    fn naming(&self) -> Naming;
    fn tensors(&self) -> &[TensorInfo];
    fn tensor(&self, name: &str) -> Option<&TensorInfo>;
    /// The type of a tensor that is there but cannot be read, for the message.
    fn unreadable(&self, _name: &str) -> Option<&str> {
        None
    }
    /// A tensor of plain bytes (U8), with the extent that [`TensorSource::open`] reads; none is of any other format.
    fn bytes_of(&self, _name: &str) -> Option<TensorInfo> {
        None
    }
    /// The bytes of one of [`TensorSource::tensors`], or of [`TensorSource::bytes_of`].
    fn open(&self, tensor: &TensorInfo) -> Arc<dyn ByteSource>;
    /// Tells models apart: equal weights have equal ids. By default the tensor table and the first bytes of every tensor.
    fn model_id(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for tensor in self.tensors() {
            hash.update(format!("{} {} {:?};", tensor.name, tensor.format, tensor.shape).as_bytes());
            let mut head = [0u8; 64];
            let head = &mut head[..tensor.bytes.min(64) as usize];
            // Bytes that cannot be read make the load fail, with their name.
            if self.open(tensor).read_at(0, head).is_ok() {
                hash.update(head);
            }
        }
        hash.finalize().to_hex().to_string()
    }
}

/// The tensors of a model file.
pub struct FileTensors(pub Arc<ModelFile>);

impl TensorSource for FileTensors {
    fn naming(&self) -> Naming {
        naming(&self.0)
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.0.tensors()
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        find(&self.0, name)
    }

    fn unreadable(&self, name: &str) -> Option<&str> {
        self.0.opaque_tensors().iter().find(|t| t.name == name).map(|t| t.dtype)
    }

    fn bytes_of(&self, name: &str) -> Option<TensorInfo> {
        let found = self.0.opaque_tensors().iter().find(|t| t.name == name && t.dtype == "U8")?;
        let (name, shape) = (found.name.clone(), found.shape.clone());
        let &OpaqueTensor { shard, offset, bytes, .. } = found;
        Some(TensorInfo { name, format: Format::I8, shape, shard, offset, bytes })
    }

    fn open(&self, tensor: &TensorInfo) -> Arc<dyn ByteSource> {
        Arc::new(FileBytes { file: self.0.clone(), tensor: tensor.clone() })
    }

    fn model_id(&self) -> String {
        self.0.model_id()
    }
}

/// How a file spells tensor names.
pub(crate) fn naming(file: &ModelFile) -> Naming {
    match file.kind() {
        FileKind::Gguf => Naming::Gguf,
        FileKind::Safetensors => Naming::HuggingFace,
    }
}

/// A tensor of the language model: by its name, or by the name that multimodal checkpoints give it
/// (`model.language_model.*` since transformers 5, `language_model.model.*` before), or Mamba's (`backbone.*`).
pub(crate) fn find<'a>(file: &'a ModelFile, name: &str) -> Option<&'a TensorInfo> {
    if let Some(tensor) = file.tensor(name) {
        return Some(tensor);
    }
    if naming(file) == Naming::Gguf {
        return None;
    }
    let nested = name.strip_prefix("model.").map(|rest| format!("model.language_model.{rest}"));
    let nested = nested.and_then(|name| file.tensor(&name));
    let nested = nested.or_else(|| file.tensor(&format!("language_model.{name}")));
    nested.or_else(|| file.tensor(&backbone(name)?))
}

/// A tensor's name in checkpoints of Mamba and its kin.
fn backbone(name: &str) -> Option<String> {
    Some(match name.strip_prefix("model.")? {
        "embed_tokens.weight" => "backbone.embeddings.weight".to_string(),
        "norm.weight" => "backbone.norm_f.weight".to_string(),
        rest => format!("backbone.{rest}"),
    })
}

/// The bytes of a slot, and their format: the tensor's own, a range of its rows, or F32 where its values are chosen or changed.
///
/// # Errors
/// [`ModelError::MissingTensor`]; [`ModelError::Tensor`] when a part of a vector does not begin and end with a block, or the values cannot be read.
pub(crate) fn open_slot(
    slot: &Slot,
    format: Format,
    arch: &str,
    source: &dyn TensorSource,
) -> Result<(Format, Arc<dyn ByteSource>)> {
    if let Some(stacked) = &slot.stacked {
        return Ok((format, stacked::open(slot, stacked, format, source)?));
    }
    if slot.values == Values::Ones {
        return Ok(as_f32(std::iter::repeat_n(1.0, slot.cols)));
    }
    let Some(tensor) = source.tensor(&slot.name) else {
        let (name, arch) = (slot.name.clone(), arch.to_string());
        return Err(ModelError::MissingTensor { name, rows: slot.rows, cols: slot.cols, arch });
    };
    let fail = |problem: String| ModelError::Tensor { name: slot.name.clone(), problem };
    let mut bytes = source.open(tensor);
    if let Values::Ids { below } = slot.values {
        let values = decoded(tensor.format, &*bytes, slot.rows * slot.cols).map_err(fail)?;
        let known = |id: &f32| (0.0..below as f32).contains(id) && id.fract() == 0.0;
        return match values.iter().find(|id| !known(id)) {
            Some(id) => Err(fail(format!("expected whole numbers below {below}, found {id}"))),
            None => Ok(as_f32(values.into_iter())),
        };
    }
    if let Values::Every(step) = slot.values {
        let values = decoded(format, &*bytes, slot.shape.iter().product()).map_err(fail)?;
        return Ok(as_f32(values.into_iter().skip(slot.first).step_by(step)));
    }
    if !slot.is_whole() {
        let before = match slot.kind {
            WeightKind::Vector => format.row_bytes(slot.first),
            WeightKind::Matrix
            | WeightKind::Table
            | WeightKind::Experts { .. }
            | WeightKind::Heads { .. } => format.row_bytes(slot.cols).and_then(|b| b.checked_mul(slot.first)),
        };
        let length = format.row_bytes(slot.cols).and_then(|b| b.checked_mul(slot.rows));
        let (Some(start), Some(len)) = (before, length) else {
            let block = format.block_len();
            return Err(fail(format!("a part of it does not lie in whole blocks of {block} ({format})")));
        };
        bytes = Arc::new(Part { whole: bytes, start: start as u64, len: len as u64 });
    }
    let changed: fn(f32) -> f32 = match slot.values {
        Values::LessOne => |v| 1.0 + v,
        Values::LogOfNegative => |v| -v.exp(),
        Values::Plain | Values::Every(_) | Values::Ones | Values::Ids { .. } => return Ok((format, bytes)),
    };
    let values = decoded(format, &*bytes, slot.cols).map_err(fail)?;
    Ok(as_f32(values.into_iter().map(changed)))
}

/// The values of a vector.
fn decoded(format: Format, bytes: &dyn ByteSource, count: usize) -> std::result::Result<Vec<f32>, String> {
    let mut packed = vec![0u8; bytes.len() as usize];
    bytes.read_at(0, &mut packed).map_err(|e| format!("reading its bytes failed: {e}"))?;
    let mut values = vec![0f32; count];
    hob_quant::decode_row(format, &packed, &mut values).map_err(|e| e.to_string())?;
    Ok(values)
}

fn as_f32(values: impl Iterator<Item = f32>) -> (Format, Arc<dyn ByteSource>) {
    (Format::F32, Arc::new(values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>()))
}

/// Consecutive bytes of a tensor.
struct Part {
    whole: Arc<dyn ByteSource>,
    start: u64,
    len: u64,
}

impl ByteSource for Part {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.whole.read_at(self.start + offset, buf)
    }

    fn mapped(&self) -> Option<&[u8]> {
        let (start, end) = (self.start as usize, (self.start + self.len) as usize);
        self.whole.mapped()?.get(start..end)
    }
}

struct FileBytes {
    file: Arc<ModelFile>,
    tensor: TensorInfo,
}

impl Drop for FileBytes {
    /// Whoever read the tensor has it in memory of its own now.
    fn drop(&mut self) {
        if self.file.crowds_memory() {
            self.file.drop_tensor_cache(&self.tensor);
        }
    }
}

impl ByteSource for FileBytes {
    fn len(&self) -> u64 {
        self.tensor.bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.file.read_at(&self.tensor, offset, buf)
    }

    fn mapped(&self) -> Option<&[u8]> {
        Some(self.file.mapped(&self.tensor))
    }
}
