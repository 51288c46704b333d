//! The crate's one error type: a variant per broken rule. A message says what was expected, what was found, where
//! (file, key, tensor) and what to do. It must not know who called.

use std::io;
use std::path::{Path, PathBuf};

use hob_quant::Format;

/// Why a file was refused or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Any other error of this enum, with the file it happened in.
    #[error("{}: {source}", path.display())]
    In { path: PathBuf, source: Box<FileError> },
    /// The operating system refused.
    #[error("cannot {action}: {source}")]
    Io { action: &'static str, source: io::Error },

    // What the thing is.
    #[error(
        "not a model file: it starts with {found}; expected a GGUF file, a .safetensors file or a folder with config.json. {advice}"
    )]
    NotAModel { found: String, advice: &'static str },
    #[error("this is {found}, not a regular file; give the path of a model file or folder")]
    NotAFile { found: &'static str },
    #[error(
        "big-endian GGUF (version field {version:#010x}): expected little-endian; convert it with `gguf_convert_endian.py FILE little` or download the little-endian file"
    )]
    BigEndian { version: u32 },
    #[error("GGUF version {found}: expected 2 or 3; {advice}")]
    Version { found: u32, advice: &'static str },

    // Sizes.
    #[error("the file is cut short: {what} needs bytes up to {needed}, but the file has {file_bytes}: at least {} bytes are missing. The download is incomplete or damaged; download the file again", needed.saturating_sub(*file_bytes))]
    Truncated { what: String, needed: u64, file_bytes: u64 },
    #[error(
        "{what} is {found}, over the limit of {limit} (Limits::{field}); the file is damaged, hostile, or needs a raised limit"
    )]
    Limit { what: String, found: u64, limit: u64, field: &'static str },

    // Names and values.
    #[error("{what} is empty; every key and tensor must have a name")]
    EmptyName { what: String },
    #[error("{what} {name} contains control characters; names must be printable")]
    BadName { what: &'static str, name: String },
    #[error("{what} {name} appears twice; names must be unique")]
    DuplicateName { what: &'static str, name: String },
    #[error("{what} is not valid UTF-8; the file is damaged")]
    NotUtf8 { what: String },
    #[error(
        "metadata key {key}: unknown value type {id} (GGUF knows 0 to 12); the file is damaged or newer than this program"
    )]
    ValueType { key: String, id: u32 },
    #[error("metadata key {key}: a bool must be stored as 0 or 1, found {found}; the file is damaged")]
    BadBool { key: String, found: u8 },
    #[error(
        "metadata key {key}: expected {expected}, found {found}; the file was written by a faulty converter, convert or download it again"
    )]
    WrongType { key: String, expected: &'static str, found: String },
    #[error("general.alignment is {found}: expected a power of two from 8 to {max}")]
    Alignment { found: u32, max: u32 },

    // Tensors.
    #[error("tensor {tensor}: unknown ggml type {id}; the file is damaged, or newer than this program")]
    TensorType { tensor: String, id: u32 },
    #[error("tensor {tensor}: dimension {dim} is zero in shape {shape}; every dimension must be at least 1")]
    ZeroDimension { tensor: String, dim: usize, shape: String },
    #[error(
        "tensor {tensor}: rows of {cols} weights are not a whole number of {format} blocks ({block_len} weights each)"
    )]
    PartialBlock { tensor: String, format: Format, cols: u64, block_len: usize },
    #[error("tensor {tensor}: shape {shape} overflows: its size in elements or bytes does not fit 63 bits")]
    SizeOverflow { tensor: String, shape: String },
    #[error("tensor {tensor}: offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u32 },
    #[error("tensor {tensor}: offset {offset} plus size {bytes} overflows the file's address range")]
    OffsetOverflow { tensor: String, offset: u64, bytes: u64 },
    #[error(
        "tensor {tensor} overlaps tensor {other}: it starts at byte {start}, before byte {other_end} where the other ends"
    )]
    Overlap { tensor: String, other: String, start: u64, other_end: u64 },
    #[error(
        "tensor {tensor} starts at data byte {start}, expected {expected}: safetensors data must have no gaps"
    )]
    Gap { tensor: String, start: u64, expected: u64 },
    #[error("tensor {tensor}: data_offsets [{start}, {end}] run backwards")]
    BackwardOffsets { tensor: String, start: u64, end: u64 },
    #[error("tensor {tensor}: shape {shape} needs {expected} bytes, but its data_offsets span {found}")]
    ExtentSize { tensor: String, shape: String, expected: u64, found: u64 },
    #[error(
        "{found} bytes follow the last tensor; a safetensors file must end with its data. Download the file again"
    )]
    TrailingBytes { found: u64 },

    // JSON, folders, shards.
    #[error("{what} is not valid: {detail}")]
    Json { what: String, detail: String },
    #[error("no config.json in this folder; {advice}")]
    NoConfig { advice: String },
    #[error(
        "no weights in this folder: expected model.safetensors, model.safetensors.index.json or one .safetensors file, found {found}"
    )]
    NoWeights { found: String },
    #[error("shard name {name} is not a plain file name; an index may only name files beside it")]
    ShardName { name: String },
    #[error("shard {name} is missing; {advice}")]
    ShardMissing { name: String, advice: String },
    #[error("the index places tensor {tensor} in {shard}, which does not hold it; download the model again")]
    ShardTensor { tensor: String, shard: String },
    #[error(
        "{what}: expected {expected}, found {found}; the shards belong to different models or are damaged, download the model again"
    )]
    ShardMismatch { what: &'static str, expected: u64, found: u64 },
    #[error("this is shard {number} of {count}, but {advice}")]
    LoneShard { number: u64, count: u64, advice: &'static str },

    // Writing.
    #[error("the disk is full: {written} bytes of {} were written, {free} bytes are free on this file system. Free some space and try again", path.display())]
    DiskFull { path: PathBuf, written: u64, free: u64 },
    #[error("not enough disk space: {needed} bytes are needed, {free} are free on this file system. Free {} bytes and try again", needed.saturating_sub(*free))]
    NoSpace { needed: u64, free: u64 },
    #[error("{what}; the stored file is damaged and must be made again")]
    Checksum { what: String },
    #[error("tensor {tensor}: expected {expected} bytes of data, got {found}")]
    DataLength { tensor: String, expected: u64, found: u64 },
    #[error("expected the data of {expected} tensors, got {found}")]
    DataCount { expected: usize, found: usize },
}

impl FileError {
    /// Adds the file in which the error happened.
    pub(crate) fn at(self, path: &Path) -> FileError {
        match self {
            FileError::In { .. } => self,
            other => FileError::In { path: path.to_path_buf(), source: Box::new(other) },
        }
    }

    /// The rule that was broken, without the file around it.
    pub fn rule(&self) -> &FileError {
        match self {
            FileError::In { source, .. } => source.rule(),
            other => other,
        }
    }
}

/// Quotes untrusted text for a message: escaped, and cut after 80 characters.
pub(crate) fn shown(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let mut out = String::from("\"");
    for (count, c) in text.chars().enumerate() {
        if count == MAX_CHARS {
            out.push_str("...");
            break;
        }
        out.extend(c.escape_debug());
    }
    out.push('"');
    out
}

/// Formats a shape for a message; long ones are cut.
pub(crate) fn shown_shape(shape: &[u64]) -> String {
    const MAX_DIMS: usize = 8;
    let mut text: Vec<String> = shape.iter().take(MAX_DIMS).map(u64::to_string).collect();
    if shape.len() > MAX_DIMS {
        text.push("...".into());
    }
    format!("[{}]", text.join(", "))
}

pub(crate) fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { action, source }
}
