//! Model files as *validated views*: GGUF, safetensors and Hugging Face folders become names, formats, shapes and
//! extents that have all been checked before anybody sees them; `store` is the one durable-write helper.
//! This crate is the closed door between untrusted bytes and the rest of hob. It must not know what a model is:
//! no architectures, no tensor roles, no tokenizers.
//!
//! `unsafe` lives in `os.rs` only (mapping a file, asking the kernel about caches and free space).
#![deny(unsafe_code)]

mod error;
mod folder;
pub mod gguf;
pub mod gguf_write;
mod json;
mod limits;
mod metadata;
mod model_file;
mod names;
mod os;
pub mod safetensors;
mod shards;
pub mod store;
mod tensor;

pub use error::FileError;
pub use limits::Limits;
pub use metadata::{Array, Metadata, StrArray, Value};
pub use model_file::{FileKind, ModelFile};
pub use tensor::{OpaqueTensor, TensorInfo};

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, FileError>;
