//! One view of both config dialects: GGUF metadata under `<arch>.`, and Hugging Face's config.json.
//!
//! It owns types and messages; what a key means stands with the architecture.

use hob_files::{Array, FileKind, ModelFile, Value};
use serde_json::Value as Json;

use crate::{ModelError, Naming, Result, source};

/// The name of one fact in both dialects; the GGUF name stands under `<arch>.`.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Key {
    pub gguf: &'static str,
    pub hf: &'static str,
}

/// A file's config.
pub(crate) struct Keys<'a> {
    file: &'a ModelFile,
    arch: String,
    json: Option<&'a Json>,
    /// The language model's part of a multimodal config.json: looked at before `json`.
    text: Option<&'a Json>,
    defaults: &'static [(&'static str, f64)],
}

impl<'a> Keys<'a> {
    /// # Errors
    /// [`ModelError::Config`] when the file names no architecture.
    pub fn new(file: &'a ModelFile) -> Result<Self> {
        if file.kind() == FileKind::Gguf {
            let Some(arch) = file.metadata().str("general.architecture")? else {
                return Err(ModelError::config("general.architecture", "an architecture's name", "nothing"));
            };
            return Ok(Keys { file, arch: arch.to_string(), json: None, text: None, defaults: &[] });
        }
        let Some(json) = file.json("config.json") else {
            let advice = "a config.json beside the safetensors; open the model's folder";
            return Err(ModelError::config("config.json", advice, "nothing"));
        };
        let text = json.get("text_config").filter(|t| t.is_object());
        let name = |json: &'a Json| json.get("model_type").and_then(Json::as_str);
        let Some(arch) = text.and_then(name).or_else(|| name(json)) else {
            return Err(ModelError::config("model_type", "an architecture's name", "nothing"));
        };
        Ok(Keys { file, arch: arch.to_string(), json: Some(json), text, defaults: &[] })
    }

    /// Numbers that config.json may leave out, by key: what its architecture's published code assumes then.
    pub fn set_defaults(&mut self, defaults: &'static [(&'static str, f64)]) {
        self.defaults = defaults;
    }

    /// The architecture as the file names it.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    pub fn naming(&self) -> Naming {
        if self.json.is_some() { Naming::HuggingFace } else { Naming::Gguf }
    }

    /// Rows and columns of a 2-D tensor.
    pub fn tensor_shape(&self, name: &str) -> Option<[usize; 2]> {
        match source::find(self.file, name)?.shape[..] {
            [rows, cols] => Some([rows, cols]),
            _ => None,
        }
    }

    pub fn has_tensor(&self, name: &str) -> bool {
        source::find(self.file, name).is_some()
    }

    /// The value of a tensor of one, where there is such a tensor.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] when it has more, or cannot be read.
    pub fn scalar(&self, name: &str) -> Result<Option<f32>> {
        let Some(tensor) = source::find(self.file, name) else { return Ok(None) };
        let fail = |problem: String| ModelError::Tensor { name: tensor.name.clone(), problem };
        if tensor.shape.iter().product::<usize>() != 1 || tensor.format.block_len() != 1 {
            return Err(fail(format!("expected one number, found {:?} of {}", tensor.shape, tensor.format)));
        }
        let (mut bytes, mut value) = (vec![0u8; tensor.bytes as usize], [0f32]);
        self.file.read_at(tensor, 0, &mut bytes).map_err(|e| fail(format!("reading it failed: {e}")))?;
        hob_quant::decode_row(tensor.format, &bytes, &mut value).map_err(|e| fail(e.to_string()))?;
        Ok(Some(value[0]))
    }

    /// The key as the file spells it.
    pub fn spell(&self, key: Key) -> String {
        match self.naming() {
            Naming::Gguf => format!("{}.{}", self.arch, key.gguf),
            Naming::HuggingFace => key.hf.to_string(),
        }
    }

    /// A value of config.json; `null` counts as absent, as in the format. Always absent in a GGUF.
    pub fn json(&self, name: &str) -> Option<&'a Json> {
        let of = |json: &'a Json| json.get(name).filter(|v| !v.is_null());
        self.text.and_then(of).or_else(|| of(self.json?))
    }

    fn default_of(&self, name: &str) -> Option<f64> {
        self.json?;
        self.defaults.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    pub fn usize(&self, key: Key) -> Result<Option<usize>> {
        match self.naming() {
            Naming::Gguf => {
                let name = self.spell(key);
                let found = self.file.metadata().u64(&name)?;
                found.map(|v| usize::try_from(v).map_err(|_| wrong(&name, "a size", v))).transpose()
            }
            Naming::HuggingFace => match self.json(key.hf) {
                Some(v) => json_usize(key.hf, v).map(Some),
                None => Ok(self.default_of(key.hf).map(|v| v as usize)),
            },
        }
    }

    pub fn f64(&self, key: Key) -> Result<Option<f64>> {
        match self.naming() {
            Naming::Gguf => Ok(self.file.metadata().f64(&self.spell(key))?),
            Naming::HuggingFace => match self.json(key.hf) {
                Some(v) => json_f64(key.hf, v).map(Some),
                None => Ok(self.default_of(key.hf)),
            },
        }
    }

    pub fn bool(&self, key: Key) -> Result<Option<bool>> {
        match self.naming() {
            Naming::Gguf => Ok(self.file.metadata().bool(&self.spell(key))?),
            Naming::HuggingFace => {
                let value = self.json(key.hf);
                value.map(|v| v.as_bool().ok_or_else(|| wrong(key.hf, "true or false", v))).transpose()
            }
        }
    }

    pub fn str(&self, key: Key) -> Result<Option<String>> {
        match self.naming() {
            Naming::Gguf => Ok(self.file.metadata().str(&self.spell(key))?.map(str::to_string)),
            Naming::HuggingFace => {
                let value = self.json(key.hf);
                let text =
                    |v: &Json| v.as_str().map(str::to_string).ok_or_else(|| wrong(key.hf, "a string", v));
                value.map(text).transpose()
            }
        }
    }

    /// A key that must be there.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the key.
    pub fn need<T>(&self, key: Key, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| wrong(&self.spell(key), "a value", "nothing"))
    }

    /// A size per layer: one number for all, or an array of `layers`.
    pub fn per_layer(&self, key: Key, layers: usize) -> Result<Option<Vec<usize>>> {
        let name = self.spell(key);
        let list = match self.naming() {
            Naming::Gguf => match self.file.metadata().get(&name) {
                Some(Value::Array(_)) => self.file.metadata().u64_array(&name)?.map(|list| {
                    list.into_iter().map(|v| usize::try_from(v).unwrap_or(usize::MAX)).collect::<Vec<_>>()
                }),
                _ => None,
            },
            Naming::HuggingFace => match self.json(key.hf) {
                Some(Json::Array(list)) => {
                    Some(list.iter().map(|v| json_usize(key.hf, v)).collect::<Result<_>>()?)
                }
                _ => None,
            },
        };
        match list {
            Some(list) if list.len() == layers => Ok(Some(list)),
            Some(list) => Err(wrong(&name, format!("one value per layer, {layers}"), list.len())),
            None => Ok(self.usize(key)?.map(|v| vec![v; layers])),
        }
    }

    /// A number per layer: one for all, or an array of which the first `layers` count.
    pub fn numbers(&self, key: Key, layers: usize) -> Result<Option<Vec<f64>>> {
        let name = self.spell(key);
        let list: Option<Vec<f64>> = match self.naming() {
            Naming::Gguf => match self.file.metadata().get(&name) {
                Some(Value::Array(_)) => {
                    let list = self.file.metadata().f32_array(&name)?;
                    list.map(|list| list.iter().map(|&v| v.into()).collect())
                }
                _ => None,
            },
            Naming::HuggingFace => match self.json(key.hf) {
                Some(Json::Array(list)) => {
                    Some(list.iter().map(|v| json_f64(key.hf, v)).collect::<Result<_>>()?)
                }
                _ => None,
            },
        };
        match list {
            Some(list) if list.len() >= layers => Ok(Some(list[..layers].to_vec())),
            Some(list) => Err(wrong(&name, format!("one value per layer, {layers}"), list.len())),
            None => Ok(self.f64(key)?.map(|v| vec![v; layers])),
        }
    }

    /// A flag per layer: an array of booleans or of numbers that count as true unless 0. `None` where the key is absent
    /// or no array.
    pub fn flags(&self, key: Key, layers: usize) -> Result<Option<Vec<bool>>> {
        let name = self.spell(key);
        let list: Option<Vec<bool>> = match self.naming() {
            Naming::Gguf => match self.file.metadata().get(&name) {
                Some(Value::Array(Array::Bool(list))) => Some(list.clone()),
                Some(Value::Array(_)) => {
                    let list = self.file.metadata().i64_array(&name)?;
                    list.map(|list| list.into_iter().map(|v| v != 0).collect())
                }
                _ => None,
            },
            Naming::HuggingFace => match self.json(key.hf) {
                Some(Json::Array(list)) => {
                    let flag = |v: &Json| v.as_bool().or_else(|| v.as_i64().map(|n| n != 0));
                    let flags = list.iter().map(|v| flag(v).ok_or_else(|| wrong(key.hf, "flags", v)));
                    Some(flags.collect::<Result<_>>()?)
                }
                _ => None,
            },
        };
        match list {
            Some(list) if list.len() != layers => {
                Err(wrong(&name, format!("one value per layer, {layers}"), list.len()))
            }
            list => Ok(list),
        }
    }

    /// Refuses keys that would change the forward pass in a way that is not computed here.
    /// Each comes with the value that changes nothing, if there is one.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming key and value.
    pub fn refuse(&self, keys: impl IntoIterator<Item = (Key, Option<f64>)>) -> Result<()> {
        for (key, neutral) in keys {
            let found = match self.naming() {
                Naming::Gguf => self.file.metadata().get(&self.spell(key)).map(|v| {
                    let number = self.file.metadata().f64(&self.spell(key)).ok().flatten();
                    (number, format!("{v:?}"))
                }),
                Naming::HuggingFace => self.json(key.hf).map(|v| {
                    let number = v.as_f64().or_else(|| v.as_bool().map(|b| f64::from(u8::from(b))));
                    (number, v.to_string())
                }),
            };
            if let Some((number, text)) = found
                && (number.is_none() || number != neutral)
            {
                let expected = neutral.map_or("no such key".to_string(), |n| format!("none, or {n}"));
                return Err(wrong(
                    &self.spell(key),
                    format!("{expected} (hob does not compute it yet)"),
                    text,
                ));
            }
        }
        Ok(())
    }
}

/// A [`ModelError::Config`].
fn wrong(key: &str, expected: impl ToString, found: impl ToString) -> ModelError {
    ModelError::config(key, expected, found)
}

/// # Errors
/// [`ModelError::Config`] when the value is no whole number.
pub(crate) fn json_usize(key: &str, value: &Json) -> Result<usize> {
    value.as_u64().and_then(|v| usize::try_from(v).ok()).ok_or_else(|| wrong(key, "a whole number", value))
}

/// # Errors
/// [`ModelError::Config`] when the value is no number.
pub(crate) fn json_f64(key: &str, value: &Json) -> Result<f64> {
    value.as_f64().ok_or_else(|| wrong(key, "a number", value))
}
