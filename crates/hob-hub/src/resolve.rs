//! From what somebody typed to a model: a name of the catalogue, of an installed model, of another program's,
//! or a path.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::name::shown;
use crate::{CATALOGUE, Entry, Hub, HubError, Local, ModelName, Origin, find, installed};

/// Outcome of [`Hub::resolve`].
#[derive(Clone, Debug)]
pub enum Resolved {
    /// It lies on this disk.
    Local(Local),
    /// hob knows where to get it: [`Hub::pull`].
    Download(&'static Entry),
    /// A place on the hub that has not been fetched from: [`Hub::pull_from_hub`].
    Hub(crate::HubName),
}

/// Suggestions in an error.
const MAX_SUGGESTIONS: usize = 4;

impl Hub {
    /// What `wanted` means: a path if it looks like one (a separator, a leading dot, or the extension .gguf
    /// or .safetensors), else a name, else a path all the same. Contacts nothing.
    ///
    /// For people only. Where the text comes from a program (an HTTP request, say), use
    /// [`Hub::resolve_name`], which never looks at a path.
    ///
    /// # Errors
    /// [`HubError::Unknown`] with names that come close; [`HubError::NoSuchPath`], [`HubError::NotAModel`];
    /// [`HubError::Ambiguous`] when a short name fits several models of other programs.
    pub fn resolve(&self, wanted: &str) -> Result<Resolved, HubError> {
        let path = Path::new(wanted);
        let is_foreign_name = FOREIGN_PREFIXES.iter().any(|prefix| wanted.starts_with(prefix));
        if looks_like_path(wanted) && !is_foreign_name {
            // `publisher/repository/file.gguf` is also how other programs' models may be shortened.
            return match local_path(path) {
                Err(HubError::NoSuchPath { .. }) if path.is_relative() => self
                    .by_foreign_name(wanted)?
                    .ok_or_else(|| HubError::NoSuchPath { path: path.to_owned() }),
                other => other,
            }
            .map(Resolved::Local);
        }
        match self.resolve_name(wanted) {
            Err(HubError::Unknown { .. } | HubError::BadName { .. }) if path.exists() => {
                local_path(path).map(Resolved::Local)
            }
            other => other,
        }
    }

    /// [`Hub::resolve`] for names alone.
    ///
    /// # Errors
    /// Also [`HubError::BadName`] and [`HubError::BadHubName`], for what could be no model's name at all.
    pub fn resolve_name(&self, wanted: &str) -> Result<Resolved, HubError> {
        if let Some(entry) = find(wanted) {
            let name = ModelName::parse(entry.name)?;
            return Ok(installed::find(&self.home, &name).map_or(Resolved::Download(entry), Resolved::Local));
        }
        let name = ModelName::parse(wanted);
        if let Some(local) = name.as_ref().ok().and_then(|name| installed::find(&self.home, name)) {
            return Ok(Resolved::Local(local));
        }
        if let Some(local) = self.by_foreign_name(wanted)? {
            return Ok(Resolved::Local(local));
        }
        if let Some(place) = crate::HubName::parse(wanted) {
            let place = place?;
            let here = self
                .installed_from_hub(&place)
                .map(|(_, local)| local)
                .or_else(|| self.cached_from_hub(&place));
            return Ok(here.map_or(Resolved::Hub(place), Resolved::Local));
        }
        // Foreign names hold `:` and `/`; with neither, a bad name deserves to be told why it is one.
        if !wanted.contains([':', '/']) || wanted.contains("..") {
            name?;
        }
        Err(HubError::Unknown { name: shown(wanted, 80), close: self.close_to(wanted) })
    }

    /// The one model of another program that is called `wanted`, with or without the program's prefix.
    fn by_foreign_name(&self, wanted: &str) -> Result<Option<Local>, HubError> {
        let bare = |local: &Local| local.name.split_once(':').is_some_and(|(_, rest)| rest == wanted);
        let mut hits: Vec<Local> =
            self.foreign().into_iter().filter(|local| local.name == wanted || bare(local)).collect();
        if hits.len() > 1 {
            let choices = hits.into_iter().map(|local| local.name).collect();
            return Err(HubError::Ambiguous { name: shown(wanted, 80), choices });
        }
        Ok(hits.pop())
    }

    /// Known names that `wanted` may have been meant to be, best first.
    fn close_to(&self, wanted: &str) -> Vec<String> {
        let wanted = shown(wanted, 80).to_ascii_lowercase();
        let catalogue =
            CATALOGUE.iter().flat_map(|e| e.aliases.iter().chain([&e.name])).map(|n| (*n).to_owned());
        let mut scored: Vec<(usize, String)> = catalogue
            .chain(self.list().into_iter().map(|local| local.name))
            .filter_map(|name| Some((closeness(&wanted, &name.to_ascii_lowercase())?, name)))
            .collect();
        scored.sort();
        scored.dedup_by(|a, b| a.1 == b.1);
        scored.into_iter().take(MAX_SUGGESTIONS).map(|(_, name)| name).collect()
    }
}

const FOREIGN_PREFIXES: [&str; 3] = ["hf:", "ollama:", "lmstudio:"];

fn looks_like_path(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    text.contains('/')
        || (cfg!(windows) && text.contains('\\'))
        || text.starts_with('.')
        || lower.ends_with(".gguf")
        || lower.ends_with(".safetensors")
}

/// A path as a model, judged by what lies there.
fn local_path(path: &Path) -> Result<Local, HubError> {
    let local = |path: PathBuf, bytes| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Local { name, origin: Origin::Path, path, bytes }
    };
    let Ok(meta) = fs::metadata(path) else { return Err(HubError::NoSuchPath { path: path.to_owned() }) };
    let not_a_model = |found: String| HubError::NotAModel { path: path.to_owned(), found };
    if meta.is_dir() {
        return folder(path).map(|(path, bytes)| local(path, bytes)).map_err(not_a_model);
    }
    let extension = path.extension().map(|e| e.to_ascii_lowercase());
    if meta.is_file() && (extension.is_some_and(|e| e == "safetensors") || starts_with_magic(path)) {
        return Ok(local(path.to_owned(), meta.len()));
    }
    Err(not_a_model(if meta.len() == 0 {
        "an empty file".to_owned()
    } else {
        "another kind of file".to_owned()
    }))
}

/// A folder of safetensors, or the only GGUF in a folder.
fn folder(path: &Path) -> Result<(PathBuf, u64), String> {
    let entries = fs::read_dir(path).map_err(|e| format!("a folder that cannot be read ({e})"))?;
    let (mut config, mut safetensors, mut gguf) = (false, Vec::new(), Vec::new());
    for entry in entries.filter_map(Result::ok).take(10_000) {
        let Ok(meta) = fs::metadata(entry.path()) else { continue };
        let file = entry.path();
        match file.extension().and_then(|e| e.to_str()) {
            _ if !meta.is_file() => {}
            Some("safetensors") => safetensors.push(meta.len()),
            Some("gguf") => gguf.push((file, meta.len())),
            _ => config |= file.file_name().is_some_and(|n| n == "config.json"),
        }
    }
    gguf.sort();
    match (&gguf[..], safetensors.is_empty()) {
        (_, false) if config => Ok((path.to_owned(), safetensors.iter().sum())),
        (_, false) => Err("a folder with safetensors but without config.json".to_owned()),
        ([one], true) => Ok(one.clone()),
        ([], true) => Err("a folder without model files".to_owned()),
        ([first, ..], true) => {
            // The parts of one split model: the reader finds the others from the first.
            let all: u64 = gguf.iter().map(|(_, bytes)| bytes).sum();
            let name = first.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let count = format!("-00001-of-{:05}.gguf", gguf.len());
            if name.ends_with(&count) {
                return Ok((first.0.clone(), all));
            }
            Err(format!("a folder with {} GGUF files (give the path of one, e.g. {name})", gguf.len()))
        }
    }
}

/// Does the file start as a GGUF does? Ollama's files have no extension.
fn starts_with_magic(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"GGUF"
}

/// Lower is closer; `None` is not close. A name that holds what was typed (or the reverse) beats a typing
/// slip.
fn closeness(wanted: &str, name: &str) -> Option<usize> {
    if wanted.len() >= 3 && (name.contains(wanted) || (name.len() >= 3 && wanted.contains(name))) {
        return Some(0);
    }
    let distance = edit_distance(wanted, name);
    let allowed = 1 + wanted.chars().count() / 4;
    (distance <= allowed).then_some(distance)
}

/// Levenshtein distance in characters. Both texts are at most a few hundred characters long here.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
