//! GGUF's key-value section: values, arrays and typed access. Asking for a key with the wrong type is an error that
//! names the key; a missing key is `None`. It must not know what any key means.

use crate::Result;
use crate::error::{FileError, shown};
use crate::names::NameIndex;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Array(Array),
}

/// A metadata array; all elements have one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Str(StrArray),
    Nested(Vec<Array>),
}

/// Many strings in one buffer: a vocabulary opens with two allocations instead of one per token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StrArray {
    text: Box<str>,
    /// End of each string in `text`, ascending.
    ends: Box<[u32]>,
}

impl StrArray {
    /// Joins `bytes` at `ends`; `Err(i)` is the first string that is not UTF-8.
    pub(crate) fn from_parts(bytes: Vec<u8>, ends: Vec<u32>) -> std::result::Result<StrArray, usize> {
        // One pass over the whole buffer is faster than one per string: the pieces are valid exactly if the whole is
        // and every cut falls on a character boundary.
        let first_bad = |bytes: &[u8]| {
            let mut start = 0;
            ends.iter().position(|&end| {
                let piece = &bytes[start..end as usize];
                start = end as usize;
                std::str::from_utf8(piece).is_err()
            })
        };
        match String::from_utf8(bytes) {
            Ok(text) if ends.iter().all(|&end| text.is_char_boundary(end as usize)) => {
                Ok(StrArray { text: text.into_boxed_str(), ends: ends.into_boxed_slice() })
            }
            Ok(text) => Err(first_bad(text.as_bytes()).unwrap_or(0)),
            Err(bad) => Err(first_bad(bad.as_bytes()).unwrap_or(0)),
        }
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`, or `None` past the end.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.text[start..end])
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let piece = &self.text[start..end as usize];
            start = end as usize;
            piece
        })
    }

    /// Bytes of all strings together.
    pub fn text_bytes(&self) -> usize {
        self.text.len()
    }
}

/// # Panics
/// If the strings together exceed 4 GiB; the reader's limits keep files far below that.
impl<S: AsRef<str>> FromIterator<S> for StrArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut text = String::new();
        let mut ends = Vec::new();
        for s in strings {
            text.push_str(s.as_ref());
            ends.push(u32::try_from(text.len()).expect("string arrays hold less than 4 GiB"));
        }
        StrArray { text: text.into_boxed_str(), ends: ends.into_boxed_slice() }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::F64(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::Str(v) => v.len(),
            Array::Nested(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type's name, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F32(_) => "f32",
            Array::F64(_) => "f64",
            Array::Bool(_) => "bool",
            Array::Str(_) => "string",
            Array::Nested(_) => "array",
        }
    }

    /// Integers widened to `i64`; `None` if the elements are not integers or one does not fit.
    fn to_i64(&self) -> Option<Vec<i64>> {
        Some(match self {
            Array::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I8(v) => v.iter().map(|&x| x.into()).collect(),
            Array::U16(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I16(v) => v.iter().map(|&x| x.into()).collect(),
            Array::U32(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Array::I64(v) => v.clone(),
            Array::U64(v) => v.iter().map(|&x| i64::try_from(x).ok()).collect::<Option<_>>()?,
            _ => return None,
        })
    }
}

impl Value {
    /// The type's name, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F32(_) => "f32",
            Value::F64(_) => "f64",
            Value::Bool(_) => "bool",
            Value::Str(_) => "string",
            Value::Array(_) => "array",
        }
    }

    /// Type and, for short values, the value itself, for messages.
    fn described(&self) -> String {
        match self {
            Value::Str(s) => format!("the string {}", shown(s)),
            Value::Array(a) => format!("an array of {} {}", a.len(), a.type_name()),
            Value::F32(x) => format!("the f32 {x}"),
            Value::F64(x) => format!("the f64 {x}"),
            Value::Bool(x) => format!("the bool {x}"),
            other => match other.to_i128() {
                Some(x) => format!("the {} {x}", other.type_name()),
                None => other.type_name().to_string(),
            },
        }
    }

    fn to_i128(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(x) => x.into(),
            Value::I8(x) => x.into(),
            Value::U16(x) => x.into(),
            Value::I16(x) => x.into(),
            Value::U32(x) => x.into(),
            Value::I32(x) => x.into(),
            Value::U64(x) => x.into(),
            Value::I64(x) => x.into(),
            _ => return None,
        })
    }
}

/// The metadata of a GGUF file in file order; empty for safetensors.
#[derive(Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: NameIndex,
}

impl Metadata {
    /// Indexes entries; a key that appears twice is an error.
    pub(crate) fn new(entries: Vec<(String, Value)>) -> Result<Metadata> {
        let index = NameIndex::build(entries.len(), |i| &entries[i].0)
            .map_err(|i| FileError::DuplicateName { what: "metadata key", name: shown(&entries[i].0) })?;
        Ok(Metadata { entries, index })
    }

    /// The value of `key`, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key, |i| &self.entries[i].0).map(|i| &self.entries[i].1)
    }

    /// All keys and values in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::Str(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// Any integer type whose value is not negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", |value| value.to_i128()?.try_into().ok())
    }

    /// Any integer type.
    pub fn i64(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "an integer of at most 63 bits", |value| value.to_i128()?.try_into().ok())
    }

    /// Any number; integers of more than 53 bits are refused because they would be rounded.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match *value {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            ref other => other.to_i128().filter(|x| x.unsigned_abs() <= 1 << 53).map(|x| x as f64),
        })
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |value| match value {
            Value::Bool(x) => Some(*x),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn str_array(&self, key: &str) -> Result<Option<&StrArray>> {
        self.typed_array(key, "an array of strings", |array| match array {
            Array::Str(v) => Some(v),
            _ => None,
        })
    }

    /// An array of f32, exactly.
    pub fn f32_array(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed_array(key, "an array of f32", |array| match array {
            Array::F32(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of i32, exactly.
    pub fn i32_array(&self, key: &str) -> Result<Option<&[i32]>> {
        self.typed_array(key, "an array of i32", |array| match array {
            Array::I32(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of u32, exactly.
    pub fn u32_array(&self, key: &str) -> Result<Option<&[u32]>> {
        self.typed_array(key, "an array of u32", |array| match array {
            Array::U32(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of bools.
    pub fn bool_array(&self, key: &str) -> Result<Option<&[bool]>> {
        self.typed_array(key, "an array of bools", |array| match array {
            Array::Bool(v) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// An array of any integer type, widened.
    pub fn i64_array(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed_array(key, "an array of integers", Array::to_i64)
    }

    /// An array of any integer type without negative elements, widened.
    pub fn u64_array(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.typed_array(key, "an array of non-negative integers", |array| {
            array.to_i64()?.into_iter().map(|x| x.try_into().ok()).collect()
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        pick: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match pick(value) {
            Some(found) => Ok(Some(found)),
            None => Err(FileError::WrongType { key: shown(key), expected, found: value.described() }),
        }
    }

    fn typed_array<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        pick: impl FnOnce(&'a Array) -> Option<T>,
    ) -> Result<Option<T>> {
        self.typed(key, expected, |value| match value {
            Value::Array(array) => pick(array),
            _ => None,
        })
    }
}

macro_rules! value_from {
    ($($from:ty => $variant:ident),* $(,)?) => {
        $(impl From<$from> for Value { fn from(x: $from) -> Value { Value::$variant(x.into()) } })*
    };
}

macro_rules! array_from {
    ($($element:ty => $variant:ident),* $(,)?) => {
        $(impl From<Vec<$element>> for Value {
            fn from(v: Vec<$element>) -> Value { Value::Array(Array::$variant(v)) }
        })*
    };
}

value_from! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool, String => Str, &str => Str, Array => Array,
}
array_from! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool, Array => Nested,
}

impl From<StrArray> for Value {
    fn from(v: StrArray) -> Value {
        Value::Array(Array::Str(v))
    }
}

impl From<Vec<String>> for Value {
    fn from(v: Vec<String>) -> Value {
        v.iter().collect::<StrArray>().into()
    }
}

impl From<&[&str]> for Value {
    fn from(v: &[&str]) -> Value {
        v.iter().collect::<StrArray>().into()
    }
}
