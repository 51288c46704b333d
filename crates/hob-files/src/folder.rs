//! What stands beside the weights in a Hugging Face folder: which weight files to use, and the small JSON and text
//! companions. It must not know what the companions say.

use std::path::{Path, PathBuf};

use crate::error::{FileError, io_error, shown};
use crate::json::{read_document, read_text, regular_size};
use crate::{Limits, Result};

const CONFIG: &str = "config.json";
const JSON_NAMES: [&str; 5] = [
    CONFIG,
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.json",
];
const TEXT_NAMES: [&str; 1] = ["chat_template.jinja"];
const SINGLE: &str = "model.safetensors";
const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// Where a folder keeps its weights.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    Single(PathBuf),
    Index(PathBuf),
}

/// The parsed companions of a model.
#[derive(Debug, Default)]
pub(crate) struct Companions {
    json: Vec<(&'static str, serde_json::Value)>,
    text: Vec<(&'static str, String)>,
    tokenizer_json: Option<PathBuf>,
}

impl Companions {
    /// Reads all companions that exist in `folder`; a damaged one is an error.
    pub(crate) fn read(folder: &Path, limits: &Limits) -> Result<Companions> {
        let mut found = Companions::default();
        for name in JSON_NAMES {
            if let Some(value) = read_document(&folder.join(name), limits)? {
                found.json.push((name, value));
            }
        }
        for name in TEXT_NAMES {
            if let Some(text) = read_text(&folder.join(name), limits)? {
                found.text.push((name, text));
            }
        }
        let tokenizer = folder.join("tokenizer.json");
        if regular_size(&tokenizer).map_err(|e| e.at(&tokenizer))?.is_some() {
            found.tokenizer_json = Some(tokenizer);
        }
        Ok(found)
    }

    pub(crate) fn json(&self, name: &str) -> Option<&serde_json::Value> {
        self.json.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.text.iter().find(|(n, _)| *n == name).map(|(_, text)| text.as_str())
    }

    pub(crate) fn tokenizer_json(&self) -> Option<&Path> {
        self.tokenizer_json.as_deref()
    }
}

/// Chooses the weights of a model folder in the order of the `transformers` library: `model.safetensors`, the index,
/// then a lone file of any name.
pub(crate) fn find_weights(folder: &Path) -> Result<Weights> {
    let files = list(folder)?;
    if !files.iter().any(|name| name == CONFIG) {
        let advice = match files.iter().find(|name| name.ends_with(".gguf")) {
            Some(gguf) => format!("it holds {}: give the path of that file", shown(gguf)),
            None => "give a model folder as downloaded from the hub, or the path of a model file".into(),
        };
        return Err(FileError::NoConfig { advice });
    }
    let indexes = || files.iter().filter(|name| name.ends_with(INDEX_SUFFIX));
    let mut singles = files.iter().filter(|name| name.ends_with(".safetensors"));
    if files.iter().any(|name| name == SINGLE) {
        return Ok(Weights::Single(folder.join(SINGLE)));
    }
    if let Some(index) = indexes().find(|name| *name == "model.safetensors.index.json").or(indexes().next()) {
        return Ok(Weights::Index(folder.join(index)));
    }
    match (singles.next(), singles.count()) {
        (Some(name), 0) => Ok(Weights::Single(folder.join(name))),
        (Some(_), more) => {
            Err(FileError::NoWeights { found: format!("{} .safetensors files without an index", more + 1) })
        }
        (None, _) if files.iter().any(|name| name.ends_with(".bin")) => {
            Err(FileError::NoWeights { found: "only .bin files, which can run code when loaded".into() })
        }
        (None, _) => Err(FileError::NoWeights { found: "none of them".into() }),
    }
}

/// The index that lists a shard such as `model-00001-of-00003.safetensors`, if it stands beside it.
pub(crate) fn index_of_shard(path: &Path, prefix: &str) -> Option<PathBuf> {
    let index = path.with_file_name(format!("{prefix}{INDEX_SUFFIX}"));
    index.is_file().then_some(index)
}

pub(crate) fn is_index(path: &Path) -> bool {
    path.to_str().is_some_and(|p| p.ends_with(INDEX_SUFFIX))
}

/// The folder a file stands in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Names of the files in a folder, sorted; names that are not UTF-8 are none of ours.
fn list(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io_error("list it"))? {
        names.extend(entry.map_err(io_error("list it"))?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}
