//! Models that other programs have put on this disk: the Hugging Face hub cache, Ollama, LM Studio. Read
//! only.
//!
//! The walks are bounded in depth and entries, skip what cannot be read, and never follow a linked folder. A
//! name from here is compared with what a walk found, never turned into a path.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::home::user_home;
use crate::name::Sha256Hex;
use crate::settings::hub_home;
use crate::{Hub, Local, Origin};

/// Where other programs keep models. Folders that do not exist are skipped.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub hub_cache: Vec<PathBuf>,
    pub ollama: Vec<PathBuf>,
    pub lm_studio: Vec<PathBuf>,
}

impl Places {
    /// From environment variables, by each program's own rules.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| lookup(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = |folders: &[&str]| {
            user_home(lookup).map(|home| folders.iter().fold(home, |path, folder| path.join(folder)))
        };
        let hub = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(hub_home(lookup)?.join("hub")));
        let mut ollama: Vec<PathBuf> =
            path("OLLAMA_MODELS").or_else(|| home(&[".ollama", "models"])).into_iter().collect();
        if cfg!(target_os = "linux") {
            // Where Ollama's own installer puts the models of its system service.
            ollama.push(PathBuf::from("/usr/share/ollama/.ollama/models"));
        }
        let lm_studio =
            [home(&[".lmstudio", "models"]), home(&[".cache", "lm-studio", "models"])].into_iter().flatten();
        Self { hub_cache: hub.into_iter().collect(), ollama, lm_studio: lm_studio.collect() }
    }
}

impl Hub {
    /// Everything that [`Hub::resolve`] finds by name on this disk: hob's own models first, then those of
    /// other programs, each group by name. Only reads folders and small JSON files.
    pub fn list(&self) -> Vec<Local> {
        let mut found = crate::installed::all(&self.home);
        found.extend(self.foreign());
        found
    }

    /// What other programs have.
    pub(crate) fn foreign(&self) -> Vec<Local> {
        let places = &self.settings.places;
        let mut found = Vec::new();
        for (roots, scan) in [
            (&places.hub_cache, hub_cache as fn(&Path, &mut Budget) -> Vec<Local>),
            (&places.ollama, ollama),
            (&places.lm_studio, lm_studio),
        ] {
            let mut group: Vec<Local> =
                roots.iter().flat_map(|root| scan(root, &mut Budget::default())).collect();
            group.sort_by(|a, b| a.name.cmp(&b.name));
            group.dedup_by(|a, b| a.name == b.name);
            found.extend(group);
        }
        found
    }
}

/// What one walk may cost.
struct Budget {
    /// Directory entries looked at. 50,000 take about a tenth of a second from a warm cache; a large hub
    /// cache holds a few thousand.
    entries: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { entries: 50_000 }
    }
}

/// Folders below a walk's root that are entered: enough for `host/namespace/model/tag` and for
/// `publisher/repository/folder/file`.
const MAX_DEPTH: usize = 6;

/// An Ollama manifest is about 1 KiB.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// Files below `folder` (links to files included), as slash-separated paths from it, with their sizes.
fn files(folder: &Path, budget: &mut Budget) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    walk(folder, "", MAX_DEPTH, budget, &mut found);
    found
}

fn walk(folder: &Path, prefix: &str, depth: usize, budget: &mut Budget, found: &mut Vec<(String, u64)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        if budget.entries == 0 {
            return;
        }
        budget.entries -= 1;
        // A name that is not text could not be typed to get it again.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(kind) = entry.file_type() else { continue };
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if kind.is_dir() {
            if depth > 0 {
                walk(&entry.path(), &path, depth - 1, budget, found);
            }
        } else if let Ok(meta) = fs::metadata(entry.path()) {
            // Through a link: the hub cache links its files. A link to a folder is not followed.
            if meta.is_file() {
                found.push((path, meta.len()));
            }
        }
    }
}

/// By extension; a hidden file that is called `.gguf` is none.
pub(crate) fn is_gguf(path: &str) -> bool {
    let extension = Path::new(path).extension();
    extension.is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// `name-00002-of-00005.gguf` -> (`name`, 2).
pub(crate) fn shard(path: &str) -> Option<(&str, u32)> {
    let stem = path.get(..path.len().checked_sub(5)?)?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (base, index) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(count) && digits(index)).then(|| Some((base, index.parse().ok()?)))?
}

/// The GGUF models among `files`: whole files, and split ones as their first part with the size of all.
fn gguf_models(files: &[(String, u64)]) -> Vec<(String, u64)> {
    let mut split_bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for (path, bytes) in files.iter().filter(|(path, _)| is_gguf(path)) {
        if let Some((base, _)) = shard(path) {
            *split_bytes.entry(base).or_default() += bytes;
        }
    }
    let model = |(path, bytes): &(String, u64)| match shard(path) {
        None => Some((path.clone(), *bytes)),
        Some((base, 1)) => Some((path.clone(), split_bytes[base])),
        Some(_) => None,
    };
    files.iter().filter(|(path, _)| is_gguf(path)).filter_map(model).collect()
}

/// `models--OWNER--NAME/snapshots/COMMIT/...` below the root of the Hugging Face cache. GGUF files are
/// `hf:OWNER/NAME/FILE`, a snapshot with config.json and safetensors is `hf:OWNER/NAME`.
fn hub_cache(root: &Path, budget: &mut Budget) -> Vec<Local> {
    let mut found: Vec<Local> = Vec::new();
    let Ok(repositories) = fs::read_dir(root) else { return found };
    for repository in repositories.filter_map(Result::ok).take(budget.entries) {
        let folder_name = repository.file_name();
        let Some(id) = folder_name.to_str().and_then(|name| name.strip_prefix("models--")) else { continue };
        let id = id.replace("--", "/");
        for snapshot in snapshots(&repository.path()) {
            let files = files(&snapshot, budget);
            for (path, bytes) in gguf_models(&files) {
                let name = format!("hf:{id}/{path}");
                found.push(Local { name, origin: Origin::HubCache, path: snapshot.join(path), bytes });
            }
            if let Some(bytes) = safetensors_folder(&files) {
                found.push(Local {
                    name: format!("hf:{id}"),
                    origin: Origin::HubCache,
                    path: snapshot,
                    bytes,
                });
            }
        }
    }
    // Of several snapshots with the same file the first counts; the sort is stable.
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found.dedup_by(|later, first| later.name == first.name);
    found
}

/// The snapshot that `refs/main` names first, then the others, newest commit unknown, by name.
fn snapshots(repository: &Path) -> Vec<PathBuf> {
    let main = fs::read_to_string(repository.join("refs").join("main")).unwrap_or_default();
    let Ok(entries) = fs::read_dir(repository.join("snapshots")) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .take(1_000)
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort_by_key(|path| (path.file_name().is_none_or(|n| n != main.trim()), path.clone()));
    found
}

/// Size of the safetensors at the top of a folder that also has a config.json.
fn safetensors_folder(files: &[(String, u64)]) -> Option<u64> {
    let top = || files.iter().filter(|(path, _)| !path.contains('/'));
    top().find(|(path, _)| path == "config.json")?;
    let sizes: Vec<u64> = top().filter(|(path, _)| path.ends_with(".safetensors")).map(|(_, n)| *n).collect();
    (!sizes.is_empty()).then(|| sizes.iter().sum())
}

/// The parts of an Ollama manifest that matter here.
#[derive(Deserialize)]
struct OllamaManifest {
    layers: Vec<OllamaLayer>,
}

#[derive(Deserialize)]
struct OllamaLayer {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: String,
}

/// `manifests/HOST/NAMESPACE/MODEL/TAG` names layers by digest; the model layer is a GGUF in `blobs/`. The
/// names are Ollama's own, with `ollama:` in front.
fn ollama(root: &Path, budget: &mut Budget) -> Vec<Local> {
    let manifests = root.join("manifests");
    let model = |(path, bytes): (String, u64)| {
        let name = ollama_name(&path)?;
        if bytes > MAX_MANIFEST_BYTES {
            return None;
        }
        let manifest: OllamaManifest = serde_json::from_slice(&fs::read(manifests.join(&path)).ok()?).ok()?;
        let layer = manifest.layers.iter().find(|l| l.media_type == "application/vnd.ollama.image.model")?;
        let digest = Sha256Hex::parse(layer.digest.strip_prefix("sha256:")?)?;
        let path = root.join("blobs").join(format!("sha256-{digest}"));
        let bytes = fs::metadata(&path).ok().filter(|m| m.is_file())?.len();
        Some(Local { name, origin: Origin::Ollama, path, bytes })
    };
    files(&manifests, budget).into_iter().filter_map(model).collect()
}

/// `registry.ollama.ai/library/llama3.2/1b` -> `ollama:llama3.2:1b`; other namespaces and hosts stay in the
/// name.
fn ollama_name(path: &str) -> Option<String> {
    let (model, tag) = path.rsplit_once('/')?;
    let own = model.strip_prefix("registry.ollama.ai/");
    let short = own.map_or(model, |rest| rest.strip_prefix("library/").unwrap_or(rest));
    (path.matches('/').count() >= 3).then(|| format!("ollama:{short}:{tag}"))
}

/// `PUBLISHER/REPOSITORY/FILE.gguf`; the name is that path with `lmstudio:` in front.
fn lm_studio(root: &Path, budget: &mut Budget) -> Vec<Local> {
    let local = |(path, bytes): (String, u64)| Local {
        name: format!("lmstudio:{path}"),
        origin: Origin::LmStudio,
        path: root.join(path),
        bytes,
    };
    gguf_models(&files(root, budget)).into_iter().map(local).collect()
}
