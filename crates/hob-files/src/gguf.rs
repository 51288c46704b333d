//! The GGUF reader: versions 2 and 3, little-endian. Bytes in, a checked header out; it opens no files and must not
//! know folders or shards. The layout follows ggml's `docs/gguf.md`:
//! magic, version, counts | key-value pairs | tensor table | padding | tensor data.
//!
//! Every count and length is checked against the bytes left *before* memory is reserved for it.

use std::fmt;

use hob_quant::Format;

use crate::error::{FileError, shown};
use crate::metadata::{Array, Metadata, StrArray, Value};
use crate::tensor::{TensorInfo, byte_size, check_name, narrow};
use crate::{Limits, Result};

pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
pub(crate) const DEFAULT_ALIGNMENT: u32 = 32;
const MIN_ALIGNMENT: u32 = 8;

/// Bytes that the smallest element of each kind takes in the file (with an empty name, which is refused later).
const MIN_STRING_BYTES: u64 = 8;
const MIN_ARRAY_BYTES: u64 = 12;
const MIN_ENTRY_BYTES: u64 = 13;
const MIN_TENSOR_BYTES: u64 = 24;

/// The header of one GGUF file.
#[derive(Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    pub metadata: Metadata,
    /// In file order; `offset` is absolute, `shard` is 0.
    pub tensors: Vec<TensorInfo>,
    /// Alignment of the tensor data in bytes.
    pub alignment: u32,
    /// Where the tensor data starts, in bytes from the start of the file.
    pub data_start: u64,
}

/// Parses and checks a whole GGUF file (usually a mapping; only the header is touched).
///
/// # Errors
/// A [`FileError`] variant for each broken rule; the tensor data must lie inside `file`.
pub fn parse(file: &[u8], limits: &Limits) -> Result<Header> {
    let mut cursor = Cursor::new(file, limits);
    let version = check_magic_and_version(&mut cursor)?;
    let tensor_count = cursor.count(At::Header, "the tensor count", limits.tensors, "tensors")?;
    let key_count = cursor.count(At::Header, "the metadata count", limits.metadata_keys, "metadata_keys")?;
    let metadata = read_metadata(&mut cursor, key_count, limits)?;
    let alignment = read_alignment(&metadata, limits)?;
    let mut tensors = read_tensor_table(&mut cursor, tensor_count, alignment, limits)?;
    let data_start = (cursor.position as u64).next_multiple_of(alignment.into());
    place_tensors(&mut tensors, data_start, file.len() as u64)?;
    Ok(Header { version, metadata, tensors, alignment, data_start })
}

fn check_magic_and_version(cursor: &mut Cursor) -> Result<u32> {
    let magic = cursor.take(4, At::Header)?;
    if magic != MAGIC {
        return Err(FileError::NotAModel {
            found: format!("\"{}\"", magic.escape_ascii()),
            advice: "A GGUF file starts with \"GGUF\".",
        });
    }
    let version = cursor.u32(At::Header)?;
    // ggml's own rule: a version whose low half is empty was written on a machine of the other byte order.
    if version != 0 && version & 0xffff == 0 {
        return Err(FileError::BigEndian { version });
    }
    let advice = match version {
        2 | 3 => return Ok(version),
        0 => "the file is damaged",
        1 => "version 1 was replaced in 2023, download a current file of this model",
        _ => "the file is damaged or newer than this program",
    };
    Err(FileError::Version { found: version, advice })
}

fn read_metadata(cursor: &mut Cursor, count: u64, limits: &Limits) -> Result<Metadata> {
    cursor.check_room(At::Header, count, MIN_ENTRY_BYTES)?;
    let mut entries = Vec::with_capacity(count as usize);
    for number in 0..count {
        let at = At::Key(number);
        let key = cursor.string(at, limits.key_bytes, "key_bytes")?;
        check_name("metadata key", key, limits.key_bytes, "key_bytes")?;
        let value = read_value(cursor, key, limits)?;
        entries.push((key.to_owned(), value));
    }
    Metadata::new(entries)
}

fn read_value(cursor: &mut Cursor, key: &str, limits: &Limits) -> Result<Value> {
    let at = At::Value(key);
    Ok(match cursor.u32(at)? {
        0 => Value::U8(cursor.array::<1>(at)?[0]),
        1 => Value::I8(i8::from_le_bytes(cursor.array(at)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.array(at)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array(at)?)),
        4 => Value::U32(u32::from_le_bytes(cursor.array(at)?)),
        5 => Value::I32(i32::from_le_bytes(cursor.array(at)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array(at)?)),
        7 => Value::Bool(to_bool(key, cursor.array::<1>(at)?[0])?),
        8 => Value::Str(cursor.string(at, limits.string_bytes, "string_bytes")?.to_owned()),
        9 => Value::Array(read_array(cursor, key, limits, 1)?),
        10 => Value::U64(u64::from_le_bytes(cursor.array(at)?)),
        11 => Value::I64(i64::from_le_bytes(cursor.array(at)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(at)?)),
        id => return Err(FileError::ValueType { key: shown(key), id }),
    })
}

fn to_bool(key: &str, byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(FileError::BadBool { key: shown(key), found }),
    }
}

/// Reads an array; `depth` is 1 for an array that is a value itself.
fn read_array(cursor: &mut Cursor, key: &str, limits: &Limits, depth: u32) -> Result<Array> {
    let at = At::Value(key);
    if depth > limits.array_depth {
        return Err(FileError::Limit {
            what: format!("the nesting of arrays in metadata key {}", shown(key)),
            found: depth.into(),
            limit: limits.array_depth.into(),
            field: "array_depth",
        });
    }
    let element = cursor.u32(at)?;
    let count = cursor.count(at, "the array length", limits.array_len, "array_len")?;
    Ok(match element {
        0 => Array::U8(cursor.numbers(at, count, |[b]: [u8; 1]| b)?),
        1 => Array::I8(cursor.numbers(at, count, i8::from_le_bytes)?),
        2 => Array::U16(cursor.numbers(at, count, u16::from_le_bytes)?),
        3 => Array::I16(cursor.numbers(at, count, i16::from_le_bytes)?),
        4 => Array::U32(cursor.numbers(at, count, u32::from_le_bytes)?),
        5 => Array::I32(cursor.numbers(at, count, i32::from_le_bytes)?),
        6 => Array::F32(cursor.numbers(at, count, f32::from_le_bytes)?),
        7 => {
            let bytes = cursor.take_elements(at, count, 1)?;
            Array::Bool(bytes.iter().map(|&b| to_bool(key, b)).collect::<Result<_>>()?)
        }
        8 => Array::Str(read_strings(cursor, key, count, limits)?),
        9 => {
            cursor.check_room(at, count, MIN_ARRAY_BYTES)?;
            let mut rows = Vec::with_capacity(count as usize);
            for _ in 0..count {
                rows.push(read_array(cursor, key, limits, depth + 1)?);
            }
            Array::Nested(rows)
        }
        10 => Array::U64(cursor.numbers(at, count, u64::from_le_bytes)?),
        11 => Array::I64(cursor.numbers(at, count, i64::from_le_bytes)?),
        12 => Array::F64(cursor.numbers(at, count, f64::from_le_bytes)?),
        id => return Err(FileError::ValueType { key: shown(key), id }),
    })
}

/// Reads `count` strings into one buffer: a first walk sums the lengths, a second copies.
fn read_strings(cursor: &mut Cursor, key: &str, count: u64, limits: &Limits) -> Result<StrArray> {
    let at = At::Value(key);
    cursor.check_room(at, count, MIN_STRING_BYTES)?;
    let first = cursor.position;
    let mut total = 0;
    for _ in 0..count {
        total += match cursor.next_string(limits.string_bytes) {
            Some(bytes) => bytes.len(),
            // The slow path says what is wrong.
            None => cursor.string_bytes(at, limits.string_bytes, "string_bytes")?.len(),
        };
    }
    if u32::try_from(total).is_err() {
        return Err(FileError::Limit {
            what: format!("the text of metadata key {}", shown(key)),
            found: total as u64,
            limit: u32::MAX.into(),
            field: "gguf_header_bytes",
        });
    }
    cursor.position = first;
    let mut text = Vec::with_capacity(total);
    let mut ends = Vec::with_capacity(count as usize);
    for _ in 0..count {
        // The first walk has been over these very bytes.
        let Some(bytes) = cursor.next_string(u64::MAX) else { break };
        text.extend_from_slice(bytes);
        ends.push(text.len() as u32);
    }
    StrArray::from_parts(text, ends)
        .map_err(|i| FileError::NotUtf8 { what: format!("string {i} of metadata key {}", shown(key)) })
}

fn read_alignment(metadata: &Metadata, limits: &Limits) -> Result<u32> {
    let found = match metadata.get(ALIGNMENT_KEY) {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(found)) => *found,
        Some(other) => {
            return Err(FileError::WrongType {
                key: shown(ALIGNMENT_KEY),
                expected: "a u32",
                found: other.type_name().to_string(),
            });
        }
    };
    if !found.is_power_of_two() || found < MIN_ALIGNMENT || found > limits.alignment_bytes {
        return Err(FileError::Alignment { found, max: limits.alignment_bytes });
    }
    Ok(found)
}

/// Reads the tensor table; `offset` stays relative to the data section until `place_tensors`.
fn read_tensor_table(
    cursor: &mut Cursor,
    count: u64,
    alignment: u32,
    limits: &Limits,
) -> Result<Vec<TensorInfo>> {
    cursor.check_room(At::Header, count, MIN_TENSOR_BYTES)?;
    let mut tensors = Vec::with_capacity(count as usize);
    for number in 0..count {
        tensors.push(read_tensor_entry(cursor, number, alignment, limits)?);
    }
    Ok(tensors)
}

fn read_tensor_entry(
    cursor: &mut Cursor,
    number: u64,
    alignment: u32,
    limits: &Limits,
) -> Result<TensorInfo> {
    let name = cursor.string(At::Entry(number), limits.name_bytes, "name_bytes")?;
    check_name("tensor", name, limits.name_bytes, "name_bytes")?;
    let at = At::Tensor(name);
    let dims = cursor.u32(at)?;
    if dims > limits.gguf_dims {
        return Err(FileError::Limit {
            what: format!("the number of dimensions of tensor {}", shown(name)),
            found: dims.into(),
            limit: limits.gguf_dims.into(),
            field: "gguf_dims",
        });
    }
    let mut shape = cursor.numbers(at, dims.into(), u64::from_le_bytes)?;
    shape.reverse();
    let id = cursor.u32(at)?;
    let format = Format::from_ggml(id).ok_or_else(|| FileError::TensorType { tensor: shown(name), id })?;
    let bytes = byte_size(name, format, &shape)?;
    let offset = u64::from_le_bytes(cursor.array(at)?);
    if !offset.is_multiple_of(alignment.into()) {
        return Err(FileError::Misaligned { tensor: shown(name), offset, alignment });
    }
    Ok(TensorInfo { name: name.to_owned(), format, shape: narrow(shape), shard: 0, offset, bytes })
}

/// Makes offsets absolute; refuses extents that overlap or leave the file.
fn place_tensors(tensors: &mut [TensorInfo], data_start: u64, file_bytes: u64) -> Result<()> {
    for t in tensors.iter_mut() {
        let overflow =
            || FileError::OffsetOverflow { tensor: shown(&t.name), offset: t.offset, bytes: t.bytes };
        let start = t.offset.checked_add(data_start).ok_or_else(overflow)?;
        start.checked_add(t.bytes).filter(|&end| i64::try_from(end).is_ok()).ok_or_else(overflow)?;
        t.offset = start;
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|t| t.offset);
    for pair in by_offset.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        let other_end = before.offset + before.bytes;
        if other_end > after.offset {
            return Err(FileError::Overlap {
                tensor: shown(&after.name),
                other: shown(&before.name),
                start: after.offset,
                other_end,
            });
        }
    }
    match by_offset.last() {
        Some(last) if last.offset + last.bytes > file_bytes => Err(FileError::Truncated {
            what: format!("the data of tensor {}", shown(&last.name)),
            needed: last.offset + last.bytes,
            file_bytes,
        }),
        _ => Ok(()),
    }
}

/// Where the cursor is, for messages; formatted only when something is wrong.
#[derive(Clone, Copy)]
enum At<'a> {
    Header,
    Key(u64),
    Value(&'a str),
    Entry(u64),
    Tensor(&'a str),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Header => write!(f, "the GGUF header"),
            At::Key(number) => write!(f, "metadata key number {number}"),
            At::Value(key) => write!(f, "metadata key {}", shown(key)),
            At::Entry(number) => write!(f, "tensor number {number}"),
            At::Tensor(name) => write!(f, "the table entry of tensor {}", shown(name)),
        }
    }
}

/// A checked reader over the header. Everything it returns borrows the file.
struct Cursor<'a> {
    file: &'a [u8],
    /// Always <= end.
    position: usize,
    /// The header may not go on beyond this: the file's end or the limit.
    end: usize,
}

impl<'a> Cursor<'a> {
    fn new(file: &'a [u8], limits: &Limits) -> Self {
        let end = usize::try_from(limits.gguf_header_bytes).unwrap_or(usize::MAX).min(file.len());
        Cursor { file, position: 0, end }
    }

    fn left(&self) -> u64 {
        (self.end - self.position) as u64
    }

    fn take(&mut self, count: u64, at: At) -> Result<&'a [u8]> {
        if count > self.left() {
            return Err(self.too_short(count, at));
        }
        let start = self.position;
        self.position += count as usize;
        Ok(&self.file[start..self.position])
    }

    /// The file is shorter than `count` more bytes, or the header longer than its limit.
    #[cold]
    fn too_short(&self, count: u64, at: At) -> FileError {
        let needed = (self.position as u64).saturating_add(count);
        if self.end < self.file.len() && needed <= self.file.len() as u64 {
            return FileError::Limit {
                what: format!("the header (at {at})"),
                found: needed,
                limit: self.end as u64,
                field: "gguf_header_bytes",
            };
        }
        FileError::Truncated { what: at.to_string(), needed, file_bytes: self.file.len() as u64 }
    }

    fn array<const N: usize>(&mut self, at: At) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, at)?;
        let mut out = [0; N];
        out.copy_from_slice(bytes);
        Ok(out)
    }

    fn u32(&mut self, at: At) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(at)?))
    }

    /// A u64 count under a limit.
    fn count(&mut self, at: At, what: &str, limit: u64, field: &'static str) -> Result<u64> {
        let found = u64::from_le_bytes(self.array(at)?);
        if found > limit {
            return Err(FileError::Limit { what: format!("{what} ({at})"), found, limit, field });
        }
        Ok(found)
    }

    /// Refuses a count whose smallest possible elements exceed the bytes left, before memory is reserved for it.
    fn check_room(&self, at: At, count: u64, min_bytes: u64) -> Result<()> {
        match count.checked_mul(min_bytes) {
            Some(needed) if needed <= self.left() => Ok(()),
            needed => Err(self.too_short(needed.unwrap_or(u64::MAX), at)),
        }
    }

    fn take_elements(&mut self, at: At, count: u64, size: u64) -> Result<&'a [u8]> {
        self.check_room(at, count, size)?;
        self.take(count * size, at)
    }

    fn numbers<T, const N: usize>(&mut self, at: At, count: u64, decode: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let bytes = self.take_elements(at, count, N as u64)?;
        let (chunks, _) = bytes.as_chunks::<N>();
        Ok(chunks.iter().map(|chunk| decode(*chunk)).collect())
    }

    /// The next string, or `None` (and no move) if it breaks a rule: the inner loop of vocabularies.
    #[inline(always)]
    fn next_string(&mut self, limit: u64) -> Option<&'a [u8]> {
        let (length, rest) = self.file[self.position..self.end].split_first_chunk::<8>()?;
        let length = u64::from_le_bytes(*length);
        if length > limit || length > rest.len() as u64 {
            return None;
        }
        let bytes = &rest[..length as usize];
        self.position += 8 + bytes.len();
        Some(bytes)
    }

    fn string_bytes(&mut self, at: At, limit: u64, field: &'static str) -> Result<&'a [u8]> {
        let found = u64::from_le_bytes(self.array(at)?);
        if found > limit {
            return Err(FileError::Limit { what: format!("the string length ({at})"), found, limit, field });
        }
        self.take(found, at)
    }

    fn string(&mut self, at: At, limit: u64, field: &'static str) -> Result<&'a str> {
        let bytes = self.string_bytes(at, limit, field)?;
        std::str::from_utf8(bytes).map_err(|_| FileError::NotUtf8 { what: format!("a string in {at}") })
    }
}
