//! Models in several files: the names of split GGUF and sharded safetensors files, and the shard index of a Hugging
//! Face folder. It must not know tensors beyond their names, and opens nothing but the index.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{FileError, shown};
use crate::json::{census, invalid, read_small};
use crate::names::NameIndex;
use crate::{Limits, Result};

/// The shortest pair of an index: `"":"a.safetensors"`.
const MIN_PAIR_BYTES: usize = 18;

/// A file name of the form `PREFIX-00001-of-00003.EXT`, as `gguf-split` and `save_pretrained` write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShardName<'a> {
    pub prefix: &'a str,
    /// From 1 to `count`.
    pub number: u64,
    pub count: u64,
}

impl<'a> ShardName<'a> {
    /// Parses a file name; `extension` includes the dot.
    pub(crate) fn parse(path: &'a Path, extension: &str) -> Option<Self> {
        const DIGITS: usize = 5;
        let stem = path.file_name()?.to_str()?.strip_suffix(extension)?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits = |s: &str| s.len() == DIGITS && s.bytes().all(|b| b.is_ascii_digit());
        if prefix.is_empty() || !digits(number) || !digits(count) {
            return None;
        }
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        (1 <= number && number <= count).then_some(ShardName { prefix, number, count })
    }

    /// The path of shard `number` (from 1) beside `path`.
    pub(crate) fn sibling(&self, path: &Path, number: u64, extension: &str) -> PathBuf {
        path.with_file_name(format!("{}-{number:05}-of-{:05}{extension}", self.prefix, self.count))
    }
}

/// `model.safetensors.index.json`: which file holds which tensor.
#[derive(Debug)]
pub(crate) struct WeightMap {
    /// Plain file names, sorted, without repetition.
    pub shards: Vec<String>,
    /// Tensor name and position in `shards`.
    pub tensors: Vec<(String, u32)>,
}

impl WeightMap {
    /// Reads and checks an index file.
    pub(crate) fn read(path: &Path, limits: &Limits) -> Result<WeightMap> {
        let field = "safetensors_header_bytes";
        let bytes = read_small(path, limits.safetensors_header_bytes, field)?.ok_or_else(|| {
            FileError::Io { action: "open it", source: std::io::ErrorKind::NotFound.into() }.at(path)
        })?;
        WeightMap::parse(&bytes, limits).map_err(|e| e.at(path))
    }

    fn parse(bytes: &[u8], limits: &Limits) -> Result<WeightMap> {
        const WHAT: &str = "the shard index";
        // Room for every tensor at once, but never more than the text could spell out.
        let most = census(bytes, WHAT, limits)?.pairs.min(bytes.len() / MIN_PAIR_BYTES);
        let mut broken = None;
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let parsed =
            IndexSeed { shards_limit: limits.shards, most, broken: &mut broken }.deserialize(&mut json);
        let parsed = parsed.and_then(|raw| json.end().map(|()| raw));
        let raw = parsed.map_err(|e| broken.take().unwrap_or_else(|| invalid(WHAT, &e)))?;
        let found = raw.tensors.len() as u64;
        if found > limits.tensors {
            let what = "the number of tensors in the index".into();
            return Err(FileError::Limit { what, found, limit: limits.tensors, field: "tensors" });
        }
        if raw.tensors.is_empty() {
            let detail = "weight_map is missing or empty".into();
            return Err(FileError::Json { what: WHAT.into(), detail });
        }
        NameIndex::build(raw.tensors.len(), |i| &raw.tensors[i].0).map_err(|i| FileError::DuplicateName {
            what: "tensor in the index",
            name: shown(&raw.tensors[i].0),
        })?;
        Ok(raw.sorted())
    }
}

/// Refuses everything that is not a file name in the same folder: separators, `..`, drives, NUL, other kinds of file.
fn check_plain(name: &str) -> Result<()> {
    let plain = name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.len() <= 255
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':'));
    if plain { Ok(()) } else { Err(FileError::ShardName { name: shown(name) }) }
}

/// The index as parsed: shards in order of first mention.
struct RawIndex {
    shards: Vec<String>,
    tensors: Vec<(String, u32)>,
}

impl RawIndex {
    fn sorted(self) -> WeightMap {
        let mut order: Vec<usize> = (0..self.shards.len()).collect();
        order.sort_by(|&a, &b| self.shards[a].cmp(&self.shards[b]));
        let mut rank = vec![0; order.len()];
        for (position, &shard) in order.iter().enumerate() {
            rank[shard] = position as u32;
        }
        let shards = order.into_iter().map(|i| self.shards[i].clone()).collect();
        let tensors = self.tensors.into_iter().map(|(name, shard)| (name, rank[shard as usize])).collect();
        WeightMap { shards, tensors }
    }
}

/// The whole document; only `weight_map` is looked at.
struct IndexSeed<'e> {
    shards_limit: u64,
    /// No index that parses has more tensors.
    most: usize,
    /// A broken rule of ours, which a serde error could carry only as text.
    broken: &'e mut Option<FileError>,
}

impl<'de> DeserializeSeed<'de> for IndexSeed<'_> {
    type Value = RawIndex;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<RawIndex, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for IndexSeed<'_> {
    type Value = RawIndex;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object with weight_map")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<RawIndex, M::Error> {
        let mut weights = None;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if weights.is_some() {
                return Err(M::Error::custom("weight_map appears twice"));
            }
            let Self { shards_limit, most, .. } = self;
            weights = Some(map.next_value_seed(WeightsSeed(IndexSeed {
                shards_limit,
                most,
                broken: &mut *self.broken,
            }))?);
        }
        weights.ok_or_else(|| M::Error::missing_field("weight_map"))
    }
}

/// The object under `weight_map`.
struct WeightsSeed<'e>(IndexSeed<'e>);

impl<'de> DeserializeSeed<'de> for WeightsSeed<'_> {
    type Value = RawIndex;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<RawIndex, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightsSeed<'_> {
    type Value = RawIndex;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("weight_map as an object of file names")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<RawIndex, M::Error> {
        let IndexSeed { shards_limit, most, broken } = self.0;
        let mut positions = HashMap::<String, u32>::new();
        let mut index = RawIndex { shards: Vec::new(), tensors: Vec::with_capacity(most) };
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            if let Some(&position) = positions.get(&shard) {
                index.tensors.push((tensor, position));
                continue;
            }
            let found = index.shards.len() as u64 + 1;
            let checked = check_plain(&shard).and_then(|()| match found > shards_limit {
                true => {
                    let what = "the number of shards".into();
                    Err(FileError::Limit { what, found, limit: shards_limit, field: "shards" })
                }
                false => Ok(()),
            });
            if let Err(rule) = checked {
                *broken = Some(rule);
                return Err(M::Error::custom("see the rule"));
            }
            let position = index.shards.len() as u32;
            index.tensors.push((tensor, position));
            index.shards.push(shard.clone());
            positions.insert(shard, position);
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Option<(String, u64, u64)> {
        ShardName::parse(Path::new(name), ".gguf").map(|s| (s.prefix.to_string(), s.number, s.count))
    }

    #[test]
    fn shard_names_follow_gguf_split() {
        assert_eq!(parse("d/m-00002-of-00003.gguf"), Some(("m".into(), 2, 3)));
        assert_eq!(parse("a-of-b-00001-of-00001.gguf"), Some(("a-of-b".into(), 1, 1)));
        let bad = [
            "m.gguf",
            "m-2-of-3.gguf",
            "m-00004-of-00003.gguf",
            "m-00000-of-00003.gguf",
            "-00001-of-00001.gguf",
        ];
        for name in bad {
            assert_eq!(parse(name), None, "{name}");
        }
        let shard = ShardName::parse(Path::new("d/m-00002-of-00003.gguf"), ".gguf").unwrap();
        assert_eq!(
            shard.sibling(Path::new("d/m-00002-of-00003.gguf"), 3, ".gguf"),
            Path::new("d/m-00003-of-00003.gguf")
        );
    }

    #[test]
    fn index_names_must_stay_in_the_folder() {
        for name in ["../a.safetensors", "/a.safetensors", "a/b.safetensors", "..", "", "a\\b.safetensors"] {
            assert!(check_plain(name).is_err(), "{name}");
        }
        for name in ["C:a.safetensors", "a\0.safetensors", ".a.safetensors", "passwd", "model.bin"] {
            assert!(check_plain(name).is_err(), "{name}");
        }
        assert!(check_plain("model-00001-of-00002.safetensors").is_ok());
    }

    #[test]
    fn index_shards_are_sorted_and_tensors_follow_them() {
        let text = br#"{"metadata":{"total_size":1},"weight_map":{"x":"b.safetensors","y":"a.safetensors","z":"b.safetensors"}}"#;
        let map = WeightMap::parse(text, &Limits::default()).unwrap();
        assert_eq!(map.shards, ["a.safetensors", "b.safetensors"]);
        let expected = [("x".to_string(), 1), ("y".to_string(), 0), ("z".to_string(), 1)];
        assert_eq!(map.tensors, expected);
    }
}
