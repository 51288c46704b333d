//! What hob itself has installed: one folder with a manifest per model. A folder without a valid manifest, or
//! whose file has another size than the manifest says, counts as not installed.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::name::{Sha256Hex, is_file_name};
use crate::pull::remove_tree;
use crate::{Hub, HubError, Local, ModelName, Origin, Silent};

/// Content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`Manifest::FORMAT`]; another number is another hob's file and is not touched.
    pub format: u32,
    pub name: String,
    /// File name inside the model's folder.
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
    /// Where it came from, in words.
    pub source: String,
    /// SPDX identifier.
    pub license: String,
    /// When it was installed: `2026-01-31T12:00:00Z`.
    pub date: String,
    /// The place on the hub, for a model that was named by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubPlace>,
    /// The model is the folder: `file` is its config.json.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub folder: bool,
    /// The other files of a model of several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<ManifestFile>,
}

/// Where on the hub a model came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubPlace {
    /// `owner/name`.
    pub repo: String,
    /// As asked for; `main` if nothing was.
    pub revision: String,
    /// The commit that the revision was then.
    pub commit: String,
    /// Path inside the repository; empty for a folder of safetensors.
    pub path: String,
}

/// One of several files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    pub file: String,
    pub bytes: u64,
    pub sha256: String,
}

impl Manifest {
    pub const FORMAT: u32 = 1;
    const FILE: &str = "manifest.json";
    /// A manifest is a few hundred bytes, and a hundred for each part of a split model; more is not one.
    const MAX_BYTES: u64 = 256 << 10;
    /// Folders that are looked at below `models/`.
    const MAX_MODELS: usize = 10_000;
}

/// Writes `folder/manifest.json`.
pub(crate) fn write(folder: &Path, manifest: &Manifest) -> Result<(), HubError> {
    let path = folder.join(Manifest::FILE);
    let text = serde_json::to_vec_pretty(manifest).map_err(|e| HubError::io("write", &path)(e.into()))?;
    hob_files::store::write_atomic(&path, &text).map_err(HubError::Store)
}

/// The manifest in `folder`, if it is one of ours and makes sense.
fn read(folder: &Path) -> Option<Manifest> {
    let path = folder.join(Manifest::FILE);
    if fs::metadata(&path).ok()?.len() > Manifest::MAX_BYTES {
        return None;
    }
    let manifest: Manifest = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    let sane = manifest.format == Manifest::FORMAT
        && is_file_name(&manifest.file)
        && manifest.more.iter().all(|file| is_file_name(&file.file))
        && Sha256Hex::parse(&manifest.sha256).is_some();
    sane.then_some(manifest)
}

/// The installed model `name`, if it is complete.
pub(crate) fn find(home: &Home, name: &ModelName) -> Option<Local> {
    let folder = home.model(name);
    let manifest = read(&folder)?;
    let more = manifest.more.iter().map(|file| (&file.file, file.bytes));
    let mut files = std::iter::once((&manifest.file, manifest.bytes)).chain(more);
    let there = |(file, bytes): (&String, u64)| {
        fs::metadata(folder.join(file)).is_ok_and(|meta| meta.is_file() && meta.len() == bytes)
    };
    let complete = manifest.name == name.as_str() && files.all(there);
    complete.then(|| Local {
        name: manifest.hub.as_ref().map_or_else(|| name.to_string(), HubPlace::name),
        origin: Origin::Hob,
        bytes: manifest.bytes + manifest.more.iter().map(|file| file.bytes).sum::<u64>(),
        path: if manifest.folder { folder } else { folder.join(&manifest.file) },
    })
}

/// Installed models that were named by their place on the hub.
pub(crate) fn on_hub(home: &Home) -> Vec<(ModelName, HubPlace, Local)> {
    let Ok(entries) = fs::read_dir(home.models()) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .take(Manifest::MAX_MODELS)
        .filter_map(|entry| ModelName::parse(entry.ok()?.file_name().to_str()?).ok())
        .filter_map(|name| {
            let local = find(home, &name)?;
            Some((name.clone(), read(&home.model(&name))?.hub?, local))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

impl HubPlace {
    /// What resolves to this model again.
    fn name(&self) -> String {
        let revision = if self.revision == "main" { String::new() } else { format!("@{}", self.revision) };
        let path = if self.path.is_empty() { String::new() } else { format!(":{}", self.path) };
        format!("hf:{}{revision}{path}", self.repo)
    }
}

/// All of them, by name.
pub(crate) fn all(home: &Home) -> Vec<Local> {
    let Ok(entries) = fs::read_dir(home.models()) else { return Vec::new() };
    let mut found: Vec<Local> = entries
        .take(Manifest::MAX_MODELS)
        .filter_map(|entry| ModelName::parse(entry.ok()?.file_name().to_str()?).ok())
        .filter_map(|name| find(home, &name))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

impl Hub {
    /// The manifest of an installed model.
    pub fn manifest(&self, name: &ModelName) -> Option<Manifest> {
        find(&self.home, name)?;
        read(&self.home.model(name))
    }

    /// Deletes the installed model `name` (or alias), together with what an unfinished pull of it has left;
    /// returns the bytes that the model had. Files of other programs are never touched:
    /// [`HubError::Foreign`].
    pub fn remove(&self, name: &str) -> Result<u64, HubError> {
        if let Some(local) = self.foreign().into_iter().find(|local| local.name == name) {
            return Err(HubError::Foreign { name: local.name, owner: local.origin, path: local.path });
        }
        let name = match crate::HubName::parse(name) {
            Some(wanted) => match self.installed_from_hub(&wanted?) {
                Some((name, _)) => name,
                None => return Err(HubError::NotInstalled { name: crate::name::shown(name, 120) }),
            },
            None => ModelName::parse(crate::find(name).map_or(name, |entry| entry.name))?,
        };
        let (folder, download) = (self.home.model(&name), self.home.download(&name));
        if fs::symlink_metadata(&folder).is_err() && fs::symlink_metadata(&download).is_err() {
            return Err(HubError::NotInstalled { name: name.to_string() });
        }
        let _lock = self.lock(&name, &mut Silent, &crate::Cancel::new(false))?;
        let bytes = find(&self.home, &name).map_or(0, |local| local.bytes);
        remove_tree(&download)?;
        if fs::symlink_metadata(&folder).is_ok() {
            // One rename takes the model away; deleting afterwards may take its time or be cut short.
            let trash = self.home.download(&name);
            fs::create_dir_all(self.home.downloads())
                .map_err(HubError::io("create", self.home.downloads()))?;
            fs::rename(&folder, &trash).map_err(HubError::io("remove", &folder))?;
            remove_tree(&trash)?;
        }
        Ok(bytes)
    }
}

/// This moment as `2026-01-31T12:00:00Z`.
pub(crate) fn now_utc() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    utc_text(since.as_secs())
}

/// Seconds since 1970 as a UTC date and time. Days to date: Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`, for days on or after 1970.
pub(crate) fn utc_text(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months counted from March, so that the leap day comes last.
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
