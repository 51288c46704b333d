//! The safetensors reader. Bytes in, a checked tensor table out; it opens no files and must not know folders or
//! shards. The layout is the format's own (github.com/huggingface/safetensors, README "Format"):
//! u64 header length | JSON header | tensor data without gaps, ending with the file.
//!
//! Stricter than JSON: a name or a field that appears twice is an error, and so is anything before the first `{`.

use std::fmt;

use hob_quant::Format;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de::DeserializeSeed};

use crate::error::{FileError, shown, shown_shape};
use crate::json::{census, invalid};
use crate::names::NameIndex;
use crate::tensor::{OpaqueTensor, TensorInfo, check_name, element_count, narrow};
use crate::{Limits, Result};

const LENGTH_BYTES: u64 = 8;
const METADATA: &str = "__metadata__";
/// The shortest entry: `"":{"dtype":"U8","shape":[],"data_offsets":[0,1]}`.
const MIN_ENTRY_BYTES: usize = 49;

/// The header of one safetensors file.
#[derive(Debug)]
pub struct Header {
    /// Tensors with a [`Format`], by ascending offset; `offset` is absolute, `shard` is 0.
    pub tensors: Vec<TensorInfo>,
    /// Tensors that hob has no [`Format`] for, by ascending offset.
    pub opaque: Vec<OpaqueTensor>,
    /// Where the tensor data starts, in bytes from the start of the file.
    pub data_start: u64,
}

/// Parses and checks a whole safetensors file (usually a mapping; only the header is touched).
///
/// # Errors
/// A [`FileError`] variant for each broken rule; the extents must cover the data exactly.
pub fn parse(file: &[u8], limits: &Limits) -> Result<Header> {
    let file_bytes = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(FileError::Truncated {
            what: "the header length".into(),
            needed: LENGTH_BYTES,
            file_bytes,
        });
    };
    let length = u64::from_le_bytes(*length);
    if length > limits.safetensors_header_bytes {
        return Err(FileError::Limit {
            what: "the header length".into(),
            found: length,
            limit: limits.safetensors_header_bytes,
            field: "safetensors_header_bytes",
        });
    }
    let data_start = LENGTH_BYTES + length;
    let Some(text) = usize::try_from(length).ok().and_then(|n| rest.get(..n)) else {
        return Err(FileError::Truncated { what: "the header".into(), needed: data_start, file_bytes });
    };
    if text.first() != Some(&b'{') {
        let detail = "it must start with '{'".into();
        return Err(FileError::Json { what: "the safetensors header".into(), detail });
    }
    let mut entries = read_entries(text, limits)?;
    // Empty extents cannot exist (no zero dimensions), so offsets alone order the tensors.
    entries.sort_by_key(|entry| entry.offsets);
    check_extents(&entries, file_bytes - data_start, data_start)?;
    Ok(split_by_format(entries, data_start))
}

/// Parses the JSON header and checks names.
fn read_entries(text: &[u8], limits: &Limits) -> Result<Vec<Entry>> {
    // Room for every entry at once, but never more than the text could spell out.
    let most =
        census(text, "the safetensors header", limits)?.inner_objects.min(text.len() / MIN_ENTRY_BYTES);
    let mut json = serde_json::Deserializer::from_slice(text);
    let wrong = |e: serde_json::Error| invalid("the safetensors header", &e);
    let entries = TableSeed { limits, most }.deserialize(&mut json).map_err(wrong)?;
    json.end().map_err(wrong)?;
    if entries.len() as u64 > limits.tensors {
        return Err(FileError::Limit {
            what: "the tensor count".into(),
            found: entries.len() as u64,
            limit: limits.tensors,
            field: "tensors",
        });
    }
    for entry in &entries {
        check_name("tensor", &entry.name, limits.name_bytes, "name_bytes")?;
    }
    NameIndex::build(entries.len(), |i| &entries[i].name)
        .map_err(|i| FileError::DuplicateName { what: "tensor", name: shown(&entries[i].name) })?;
    Ok(entries)
}

/// The size equation of every tensor, and that extents, in order, tile the data section exactly.
fn check_extents(entries: &[Entry], data_bytes: u64, data_start: u64) -> Result<()> {
    let mut expected = 0;
    for (i, entry) in entries.iter().enumerate() {
        let name = &entry.name;
        let [start, end] = entry.offsets;
        if end < start {
            return Err(FileError::BackwardOffsets { tensor: shown(name), start, end });
        }
        let size = dtype_size(name, entry.dtype, &entry.shape)?;
        if size != end - start {
            let shape = shown_shape(&entry.shape);
            return Err(FileError::ExtentSize {
                tensor: shown(name),
                shape,
                expected: size,
                found: end - start,
            });
        }
        if start > expected {
            return Err(FileError::Gap { tensor: shown(name), start, expected });
        }
        if start < expected {
            let other = shown(&entries[i - 1].name);
            return Err(FileError::Overlap { tensor: shown(name), other, start, other_end: expected });
        }
        expected = end;
    }
    let Some(found) = data_bytes.checked_sub(expected) else {
        let last = entries.last().map_or(String::new(), |entry| shown(&entry.name));
        return Err(FileError::Truncated {
            what: format!("the data of tensor {last}"),
            needed: data_start.saturating_add(expected),
            file_bytes: data_start + data_bytes,
        });
    };
    if found > 0 {
        return Err(FileError::TrailingBytes { found });
    }
    Ok(())
}

fn split_by_format(entries: Vec<Entry>, data_start: u64) -> Header {
    let readable = entries.iter().filter(|entry| entry.dtype.format.is_some()).count();
    let mut tensors = Vec::with_capacity(readable);
    let mut opaque = Vec::with_capacity(entries.len() - readable);
    for entry in entries {
        let Entry { name, dtype, shape, offsets: [start, end] } = entry;
        let (shape, offset, bytes) = (narrow(shape), data_start + start, end - start);
        match dtype.format {
            Some(format) => tensors.push(TensorInfo { name, format, shape, shard: 0, offset, bytes }),
            None => opaque.push(OpaqueTensor { name, dtype: dtype.name, shape, shard: 0, offset, bytes }),
        }
    }
    Header { tensors, opaque, data_start }
}

/// A dtype of the format: its name, bits per element, and hob's format for it, if any.
#[derive(Debug)]
struct Dtype {
    name: &'static str,
    bits: u64,
    format: Option<Format>,
}

const fn dtype(name: &'static str, bits: u64, format: Option<Format>) -> Dtype {
    Dtype { name, bits, format }
}

/// All dtypes of safetensors 0.8 (`tensor.rs`, enum `Dtype`).
static DTYPES: [Dtype; 22] = [
    dtype("F32", 32, Some(Format::F32)),
    dtype("F16", 16, Some(Format::F16)),
    dtype("BF16", 16, Some(Format::BF16)),
    dtype("F64", 64, Some(Format::F64)),
    dtype("I8", 8, Some(Format::I8)),
    dtype("I16", 16, Some(Format::I16)),
    dtype("I32", 32, Some(Format::I32)),
    dtype("I64", 64, Some(Format::I64)),
    dtype("BOOL", 8, None),
    dtype("U8", 8, None),
    dtype("U16", 16, None),
    dtype("U32", 32, None),
    dtype("U64", 64, None),
    dtype("C64", 64, None),
    dtype("F8_E4M3", 8, None),
    dtype("F8_E5M2", 8, None),
    dtype("F8_E8M0", 8, None),
    dtype("F8_E4M3FNUZ", 8, None),
    dtype("F8_E5M2FNUZ", 8, None),
    dtype("F6_E2M3", 6, None),
    dtype("F6_E3M2", 6, None),
    dtype("F4", 4, None),
];

/// Bytes of a tensor of `dtype`; sub-byte tensors must fill whole bytes.
fn dtype_size(name: &str, dtype: &Dtype, shape: &[u64]) -> Result<u64> {
    let overflow = || FileError::SizeOverflow { tensor: shown(name), shape: shown_shape(shape) };
    let bits = element_count(name, shape)?.checked_mul(dtype.bits).ok_or_else(overflow)?;
    if !bits.is_multiple_of(8) {
        let (expected, found) = (bits.div_ceil(8), bits / 8);
        return Err(FileError::ExtentSize {
            tensor: shown(name),
            shape: shown_shape(shape),
            expected,
            found,
        });
    }
    Ok(bits / 8)
}

/// One tensor as the header declares it; nothing checked but types.
#[derive(Debug)]
struct Entry {
    name: String,
    dtype: &'static Dtype,
    shape: Vec<u64>,
    offsets: [u64; 2],
}

/// The header object: tensor name -> entry, plus `__metadata__`.
struct TableSeed<'l> {
    limits: &'l Limits,
    /// No header that parses has more tensors.
    most: usize,
}

impl<'de> DeserializeSeed<'de> for TableSeed<'_> {
    type Value = Vec<Entry>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<Vec<Entry>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TableSeed<'_> {
    type Value = Vec<Entry>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Vec<Entry>, M::Error> {
        let mut entries = Vec::with_capacity(self.most);
        let mut seen_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                if std::mem::replace(&mut seen_metadata, true) {
                    return Err(M::Error::custom("__metadata__ appears twice"));
                }
                map.next_value::<StringMap>()?;
                continue;
            }
            let seed = EntrySeed { name: &name, dims: self.limits.safetensors_dims };
            let (dtype, shape, offsets) = map.next_value_seed(seed)?;
            entries.push(Entry { name, dtype, shape, offsets });
        }
        Ok(entries)
    }
}

/// `__metadata__`: an object of strings. Checked for type and dropped; hob needs none of it.
struct StringMap;

impl<'de> Deserialize<'de> for StringMap {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = StringMap;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("__metadata__ as an object of strings")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<StringMap, M::Error> {
                while map.next_entry::<String, String>()?.is_some() {}
                Ok(StringMap)
            }
        }
        json.deserialize_map(Strings)
    }
}

type Fields = (&'static Dtype, Vec<u64>, [u64; 2]);

/// One tensor's object; `name` is for messages.
struct EntrySeed<'n> {
    name: &'n str,
    dims: usize,
}

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<Fields, D::Error> {
        let name = self.name;
        json.deserialize_map(self).map_err(|e| D::Error::custom(format!("tensor {}: {e}", shown(name))))
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Fields, M::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let twice = match &*field {
                "dtype" => dtype.replace(map.next_value::<DtypeName>()?.0).is_some(),
                "shape" => shape.replace(map.next_value_seed(ShapeSeed { dims: self.dims })?).is_some(),
                "data_offsets" => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                return Err(M::Error::custom(format!("{field} appears twice")));
            }
        }
        Ok((
            dtype.ok_or_else(|| M::Error::missing_field("dtype"))?,
            shape.ok_or_else(|| M::Error::missing_field("shape"))?,
            offsets.ok_or_else(|| M::Error::missing_field("data_offsets"))?,
        ))
    }
}

/// A dtype, looked up by its name.
struct DtypeName(&'static Dtype);

impl<'de> Deserialize<'de> for DtypeName {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = DtypeName;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a dtype name")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> std::result::Result<DtypeName, E> {
                DTYPES.iter().find(|d| d.name == name).map(DtypeName).ok_or_else(|| {
                    E::custom(format!(
                        "unknown dtype {}; the file is damaged or newer than this program",
                        shown(name)
                    ))
                })
            }
        }
        json.deserialize_str(Name)
    }
}

/// A shape of at most `dims` dimensions; a longer one is refused before it is collected.
struct ShapeSeed {
    dims: usize,
}

impl<'de> DeserializeSeed<'de> for ShapeSeed {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<Vec<u64>, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a shape")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> std::result::Result<Vec<u64>, S::Error> {
        let mut shape = Vec::with_capacity(2);
        while let Some(dim) = seq.next_element()? {
            if shape.len() == self.dims {
                let limit = self.dims;
                return Err(S::Error::custom(format!(
                    "more than {limit} dimensions (Limits::safetensors_dims)"
                )));
            }
            shape.push(dim);
        }
        Ok(shape)
    }
}
