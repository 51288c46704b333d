//! The GGUF writer (version 3): keys and a tensor table first, then the data of each tensor in order, streamed. It is
//! the reader's mirror image and must not know what is quantized or why.
//!
//! ```
//! # use hob_files::{gguf_write::Writer, gguf, Limits};
//! # use hob_quant::Format;
//! let mut writer = Writer::new();
//! writer.set("general.architecture", "llama").tensor("weight", Format::F32, &[2, 3])?;
//! let file = writer.to_bytes(&[&[0; 24]])?;
//! assert_eq!(gguf::parse(&file, &Limits::default())?.tensors[0].shape, [2, 3]);
//! # Ok::<(), hob_files::FileError>(())
//! ```

use std::io::{self, Write};
use std::path::Path;

use hob_quant::Format;

use crate::error::{FileError, io_error, shown};
use crate::gguf::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC};
use crate::metadata::{Array, Metadata, Value};
use crate::names::NameIndex;
use crate::store::AtomicFile;
use crate::tensor::{byte_size, check_name};
use crate::{Limits, Result};

const VERSION: u32 = 3;
const ZEROS: [u8; 64] = [0; 64];

/// A GGUF file to be written: keys and tensor shapes, no data yet.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Planned>,
}

#[derive(Debug, Clone)]
struct Planned {
    name: String,
    format: Format,
    /// Outermost first.
    shape: Vec<u64>,
    bytes: u64,
}

impl Writer {
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds a key, or replaces its value. `general.alignment` (a u32) also sets the alignment.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Writer {
        let value = value.into();
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
        self
    }

    /// Adds a tensor; `shape` is outermost first (`[rows, cols]`). Its data follows later, in the order of these calls.
    pub fn tensor(&mut self, name: &str, format: Format, shape: &[usize]) -> Result<&mut Writer> {
        let limits = Limits::default();
        check_name("tensor", name, limits.name_bytes, "name_bytes")?;
        if shape.len() as u64 > limits.gguf_dims.into() {
            return Err(FileError::Limit {
                what: format!("the number of dimensions of tensor {}", shown(name)),
                found: shape.len() as u64,
                limit: limits.gguf_dims.into(),
                field: "gguf_dims",
            });
        }
        let shape: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
        let bytes = byte_size(name, format, &shape)?;
        self.tensors.push(Planned { name: name.to_owned(), format, shape, bytes });
        Ok(self)
    }

    /// Writes everything before the data and returns the body, which takes the data.
    pub fn begin<W: Write>(&self, mut out: W) -> Result<Body<'_, W>> {
        let header = self.header()?;
        out.write_all(&header).map_err(io_error("write the header"))?;
        Ok(Body { out, tensors: &self.tensors, alignment: self.alignment()?.into(), done: 0, written: 0 })
    }

    /// The whole file in memory; `data` holds one slice per tensor.
    pub fn to_bytes(&self, data: &[&[u8]]) -> Result<Vec<u8>> {
        let mut body = self.begin(Vec::new())?;
        for bytes in data {
            body.tensor(bytes)?;
        }
        body.finish()
    }

    /// Writes the whole file durably (see [`AtomicFile`]); `data` holds one slice per tensor.
    pub fn save(&self, path: &Path, data: &[&[u8]]) -> Result<()> {
        let file = AtomicFile::create(path)?;
        let fill = || -> Result<AtomicFile> {
            let mut body = self.begin(file)?;
            for bytes in data {
                body.tensor(bytes)?;
            }
            body.finish()
        };
        fill().map_err(|e| e.at(path))?.commit()
    }

    fn alignment(&self) -> Result<u32> {
        match self.metadata.iter().find(|(k, _)| k == ALIGNMENT_KEY) {
            None => Ok(DEFAULT_ALIGNMENT),
            Some((_, Value::U32(a))) if a.is_power_of_two() && *a >= 8 => Ok(*a),
            Some((key, other)) => Err(FileError::WrongType {
                key: shown(key),
                expected: "a u32 power of two of at least 8",
                found: format!("{other:?}"),
            }),
        }
    }

    fn header(&self) -> Result<Vec<u8>> {
        let limits = Limits::default();
        for (key, _) in &self.metadata {
            check_name("metadata key", key, limits.key_bytes, "key_bytes")?;
        }
        NameIndex::build(self.tensors.len(), |i| &self.tensors[i].name)
            .map_err(|i| FileError::DuplicateName { what: "tensor", name: shown(&self.tensors[i].name) })?;
        let alignment = u64::from(self.alignment()?);
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_string(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0u64;
        for t in &self.tensors {
            put_string(&mut out, &t.name);
            out.extend_from_slice(&(t.shape.len() as u32).to_le_bytes());
            for dim in t.shape.iter().rev() {
                out.extend_from_slice(&dim.to_le_bytes());
            }
            out.extend_from_slice(&t.format.ggml_id().to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            offset = t
                .bytes
                .checked_next_multiple_of(alignment)
                .and_then(|padded| padded.checked_add(offset))
                .ok_or_else(|| FileError::OffsetOverflow {
                    tensor: shown(&t.name),
                    offset,
                    bytes: t.bytes,
                })?;
        }
        out.resize(out.len().next_multiple_of(alignment as usize), 0);
        Ok(out)
    }
}

/// Takes the data of the tensors of a [`Writer`], in order. It may come in pieces: write them (the body is a
/// [`Write`]) and call [`Body::end_tensor`].
#[derive(Debug)]
pub struct Body<'w, W: Write> {
    out: W,
    tensors: &'w [Planned],
    alignment: u64,
    /// Tensors finished.
    done: usize,
    /// Bytes of the current tensor.
    written: u64,
}

impl<W: Write> Body<'_, W> {
    /// Writes the next tensor whole.
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(io_error("write tensor data"))?;
        self.end_tensor()
    }

    /// Ends the tensor whose bytes have been written; their number must be what its shape needs.
    pub fn end_tensor(&mut self) -> Result<()> {
        let Some(t) = self.tensors.get(self.done) else {
            return Err(FileError::DataCount { expected: self.tensors.len(), found: self.done + 1 });
        };
        if t.bytes != self.written {
            let (expected, found) = (t.bytes, self.written);
            return Err(FileError::DataLength { tensor: shown(&t.name), expected, found });
        }
        let mut padding = (self.written.next_multiple_of(self.alignment) - self.written) as usize;
        while padding > 0 {
            let count = padding.min(ZEROS.len());
            self.out.write_all(&ZEROS[..count]).map_err(io_error("write padding"))?;
            padding -= count;
        }
        self.done += 1;
        self.written = 0;
        Ok(())
    }

    /// Checks that every tensor has its data and gives the output back.
    pub fn finish(mut self) -> Result<W> {
        if self.done != self.tensors.len() {
            return Err(FileError::DataCount { expected: self.tensors.len(), found: self.done });
        }
        self.out.flush().map_err(io_error("write the file"))?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Body<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Metadata {
    /// Copies all keys into a writer, e.g. to keep a model's keys while its weights change.
    pub fn copy_to(&self, writer: &mut Writer) {
        for (key, value) in self.iter() {
            writer.set(key, value.clone());
        }
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(x) => put(out, 0, &x.to_le_bytes()),
        Value::I8(x) => put(out, 1, &x.to_le_bytes()),
        Value::U16(x) => put(out, 2, &x.to_le_bytes()),
        Value::I16(x) => put(out, 3, &x.to_le_bytes()),
        Value::U32(x) => put(out, 4, &x.to_le_bytes()),
        Value::I32(x) => put(out, 5, &x.to_le_bytes()),
        Value::F32(x) => put(out, 6, &x.to_le_bytes()),
        Value::Bool(x) => put(out, 7, &[u8::from(*x)]),
        Value::Str(x) => {
            put(out, 8, &[]);
            put_string(out, x);
        }
        Value::Array(x) => {
            put(out, 9, &[]);
            put_array(out, x);
        }
        Value::U64(x) => put(out, 10, &x.to_le_bytes()),
        Value::I64(x) => put(out, 11, &x.to_le_bytes()),
        Value::F64(x) => put(out, 12, &x.to_le_bytes()),
    }
}

fn put(out: &mut Vec<u8>, type_id: u32, bytes: &[u8]) {
    out.extend_from_slice(&type_id.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let mut head = |type_id: u32| put(out, type_id, &(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => {
            head(0);
            out.extend_from_slice(v);
        }
        Array::I8(v) => {
            head(1);
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Array::U16(v) => {
            head(2);
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Array::I16(v) => {
            head(3);
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Array::U32(v) => {
            head(4);
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Array::I32(v) => {
            head(5);
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Array::F32(v) => {
            head(6);
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Array::Bool(v) => {
            head(7);
            out.extend(v.iter().map(|&x| u8::from(x)));
        }
        Array::Str(v) => {
            head(8);
            v.iter().for_each(|s| put_string(out, s));
        }
        Array::Nested(v) => {
            head(9);
            v.iter().for_each(|inner| put_array(out, inner));
        }
        Array::U64(v) => {
            head(10);
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Array::I64(v) => {
            head(11);
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Array::F64(v) => {
            head(12);
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
    }
}
