//! Where tensors come from: a model file, or whatever else can name them and give their bytes.
//!
//! It must not know what a tensor is for.

use std::sync::Arc;

use hob_compute::ByteSource;
use hob_files::{FileKind, ModelFile, TensorInfo};

use crate::Naming;

/// Tensors by name.
pub trait TensorSource {
    fn naming(&self) -> Naming;
    fn tensors(&self) -> &[TensorInfo];
    fn tensor(&self, name: &str) -> Option<&TensorInfo>;
    /// The type of a tensor that is there but cannot be read, for the message.
    fn unreadable(&self, _name: &str) -> Option<&str> {
        None
    }
    /// The bytes of one of [`TensorSource::tensors`].
    fn open(&self, tensor: &TensorInfo) -> Arc<dyn ByteSource>;
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
        self.0.tensor(name)
    }

    fn unreadable(&self, name: &str) -> Option<&str> {
        self.0.opaque_tensors().iter().find(|t| t.name == name).map(|t| t.dtype)
    }

    fn open(&self, tensor: &TensorInfo) -> Arc<dyn ByteSource> {
        Arc::new(FileBytes { file: self.0.clone(), tensor: tensor.clone() })
    }
}

/// How a file spells tensor names.
pub(crate) fn naming(file: &ModelFile) -> Naming {
    match file.kind() {
        FileKind::Gguf => Naming::Gguf,
        FileKind::Safetensors => Naming::HuggingFace,
    }
}

struct FileBytes {
    file: Arc<ModelFile>,
    tensor: TensorInfo,
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
