//! A model by its place on the hub: list the repository, choose the files, fetch each one resumably and verified, and
//! land them together in one rename. What is already here is found without asking anybody.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::AUTHORIZATION;
use reqwest::{Client, Url};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::announce::{self, innermost};
use crate::hub_file::{HubFetch, HubFile};
use crate::hub_name::{Choice, choose, pick};
use crate::installed::{self, HubPlace, Manifest, ManifestFile};
use crate::name::{Sha256Hex, shown};
use crate::pull::{Fetch, Job, remove_tree};
use crate::settings::NetSettings;
use crate::{
    Attempt, Cancel, Hub, HubError, HubName, Local, ModelName, Origin, Progress, SourceError, disk, git_blob,
};

/// Longest answer to the listing of a repository; 10,000 files take about 3 MiB.
const MAX_LISTING_BYTES: usize = 16 << 20;
/// Largest file that is fetched in one go and checked by its git id; larger ones are stored with a SHA-256.
const MAX_SMALL_BYTES: u64 = 64 << 20;
/// A cancel is noticed at least this often.
const POLL: Duration = Duration::from_millis(100);

/// What the hub says about a repository at a revision; the fields that matter here.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    #[serde(default, rename = "cardData")]
    card: Option<Card>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

#[derive(Deserialize)]
struct Card {
    license: Option<serde_json::Value>,
}

impl Listing {
    fn license(&self) -> String {
        let license = self.card.as_ref().and_then(|card| card.license.as_ref()?.as_str());
        license.map_or_else(|| "unknown".to_owned(), |license| shown(license, 80))
    }

    fn find(&self, path: &str) -> Option<&Sibling> {
        self.siblings.iter().find(|sibling| sibling.rfilename == path)
    }
}

impl Sibling {
    fn bytes(&self) -> u64 {
        self.lfs.as_ref().map_or(self.size.unwrap_or(0), |lfs| lfs.size)
    }
}

impl Hub {
    /// Brings the model that `wanted` names here, if it is not here already, and returns its path: a GGUF file (the
    /// first one of a split model) or a folder of safetensors. Without a file in the name, Q4_K_M is taken, else the
    /// nearest type there is. Must not be called from inside an async runtime.
    ///
    /// # Errors
    /// As [`Hub::pull`]; [`SourceError::NoChoice`] lists what the repository has.
    pub fn pull_from_hub(
        &self,
        wanted: &HubName,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<PathBuf, HubError> {
        if let Some((_, local)) = self.installed_from_hub(wanted) {
            return Ok(local.path);
        }
        let net = &self.settings.net;
        let failed = |error: SourceError| match error {
            SourceError::Cancelled { kept_bytes } => {
                HubError::Cancelled { name: wanted.to_string(), kept_bytes }
            }
            SourceError::DiskFull { needed_bytes, free_bytes, path, kept_bytes } => {
                HubError::DiskFull { name: wanted.to_string(), needed_bytes, free_bytes, path, kept_bytes }
            }
            error => {
                let source = format!("{} at {}", wanted.repo, net.endpoint_name());
                HubError::Fetch { name: wanted.to_string(), attempts: vec![Attempt { source, error }] }
            }
        };
        progress.phase(&format!("asking {} for {}", net.endpoint_name(), wanted.repo));
        let listing = self.listing(wanted, cancel).map_err(failed)?;
        let paths: Vec<String> = listing.siblings.iter().map(|sibling| sibling.rfilename.clone()).collect();
        let choice = choose(&wanted.repo, &paths, wanted.file.as_deref()).map_err(failed)?;
        let (files, folder) = match choice {
            Choice::Gguf(files) => (files, false),
            Choice::Folder(files) => (files, true),
        };
        let place = HubPlace {
            repo: wanted.repo.clone(),
            revision: wanted.revision().to_owned(),
            commit: listing.sha.clone(),
            path: if folder { String::new() } else { files[0].clone() },
        };
        let name = install_name(&place)?;
        let _lock = self.lock(&name, progress, cancel)?;
        if let Some(local) = installed::find(&self.home, &name) {
            return Ok(local.path);
        }
        let work = self.home.download(&name);
        fs::create_dir_all(&work).map_err(HubError::io("create", &work))?;
        let mut job = Job { folder: &work, disk: &self.disk, progress, cancel };
        let fetched = self.fetch_all(&place, &listing, &files, &mut job).map_err(failed)?;
        self.land_all(&name, place, listing.license(), (fetched, folder))
    }

    /// Asks for the files of a repository at a revision.
    fn listing(&self, wanted: &HubName, cancel: &Cancel) -> Result<Listing, SourceError> {
        let net = &self.settings.net;
        if net.offline {
            return Err(SourceError::Offline);
        }
        let endpoint = net.endpoint.as_deref().unwrap_or("https://huggingface.co");
        let mut url = announce::base_url(endpoint)?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "models"]).extend(wanted.repo.split('/'));
            path.extend(["revision", wanted.revision()]);
        }
        url.set_query(Some("blobs=true"));
        let bytes = get(net, url.clone(), MAX_LISTING_BYTES as u64, cancel)?;
        let listing: Listing = serde_json::from_slice(&bytes).map_err(|error| SourceError::Client {
            why: shown(&format!("{url} answered with something else than a repository: {error}"), 300),
        })?;
        let is_commit = listing.sha.len() == 40 && listing.sha.bytes().all(|b| b.is_ascii_hexdigit());
        match is_commit {
            true => Ok(listing),
            false => Err(SourceError::Client { why: format!("{url} names no commit") }),
        }
    }

    /// Fetches every file into the job's folder; complete ones of an earlier try are checked and kept.
    fn fetch_all(
        &self,
        place: &HubPlace,
        listing: &Listing,
        files: &[String],
        job: &mut Job<'_>,
    ) -> Result<Vec<(PathBuf, ManifestFile)>, SourceError> {
        let stem = |index: usize| format!("file-{index:05}");
        let have =
            |index| fs::metadata(job.folder.join(format!("{}.part", stem(index)))).map_or(0, |m| m.len());
        let siblings: Vec<&Sibling> = files.iter().filter_map(|path| listing.find(path)).collect();
        let missing = siblings.iter().enumerate().map(|(i, file)| file.bytes().saturating_sub(have(i))).sum();
        let kept = (0..siblings.len()).map(have).sum();
        disk::require_space(&**job.disk, job.folder, missing, kept)?;
        let mut fetched = Vec::new();
        for (index, sibling) in siblings.into_iter().enumerate() {
            let file = HubFile {
                repo: place.repo.clone(),
                revision: place.commit.clone(),
                file: sibling.rfilename.clone(),
                sha256: sibling.lfs.as_ref().map(|lfs| lfs.sha256.clone()),
            };
            let done = match &sibling.lfs {
                Some(_) => {
                    let done = HubFetch::new(file, &stem(index), &self.settings.net).fetch(job)?;
                    let entry =
                        ManifestFile { file: done.file, bytes: done.bytes, sha256: done.sha256.to_string() };
                    (done.path, entry)
                }
                None => self.fetch_small(&file, sibling, &stem(index), job)?,
            };
            fetched.push(done);
        }
        Ok(fetched)
    }

    /// A file that the hub keeps in git itself: small, so it is fetched whole and checked by its git id.
    fn fetch_small(
        &self,
        file: &HubFile,
        sibling: &Sibling,
        stem: &str,
        job: &mut Job<'_>,
    ) -> Result<(PathBuf, ManifestFile), SourceError> {
        let net = &self.settings.net;
        let endpoint = net.endpoint.as_deref().unwrap_or("https://huggingface.co");
        let url = announce::file_url(endpoint, file)?;
        let expected = sibling.blob_id.clone().ok_or_else(|| SourceError::NoHash { url: url.to_string() })?;
        let path = job.folder.join(format!("{stem}.part"));
        let name = file.file.rsplit('/').next().unwrap_or_default().to_owned();
        let kept = fs::metadata(&path).is_ok_and(|meta| meta.len() <= MAX_SMALL_BYTES);
        let old =
            kept.then(|| fs::read(&path).ok()).flatten().filter(|bytes| git_blob::id(bytes) == expected);
        let bytes = match old {
            Some(bytes) => bytes,
            None => {
                job.progress.phase(&format!("downloading {}", file.file));
                let bytes = get(net, url, MAX_SMALL_BYTES, job.cancel)?;
                let found = git_blob::id(&bytes);
                if found != expected {
                    let what = format!("{} of {} at {}", file.file, file.repo, net.endpoint_name());
                    return Err(SourceError::WrongBlob { what, expected, found });
                }
                hob_files::store::write_atomic(&path, &bytes).map_err(SourceError::Store)?;
                bytes
            }
        };
        let sha256 = Sha256Hex::from_bytes(&Sha256::digest(&bytes)).to_string();
        Ok((path, ManifestFile { file: name, bytes: bytes.len() as u64, sha256 }))
    }

    /// Moves the files together, opens the model to see that hob reads it, writes the manifest, and lands with one
    /// rename.
    fn land_all(
        &self,
        name: &ModelName,
        place: HubPlace,
        license: String,
        (mut files, folder): (Vec<(PathBuf, ManifestFile)>, bool),
    ) -> Result<PathBuf, HubError> {
        let work = self.home.download(name);
        let ready = work.join("ready");
        remove_tree(&ready)?;
        fs::create_dir_all(&ready).map_err(HubError::io("create", &ready))?;
        for (path, entry) in &files {
            fs::rename(path, ready.join(&entry.file)).map_err(HubError::io("move", path))?;
        }
        let first = files.remove(0).1;
        let main = |base: &Path| if folder { base.to_owned() } else { base.join(&first.file) };
        if let Err(why) = hob_files::ModelFile::open(main(&ready)) {
            remove_tree(&work)?;
            return Err(HubError::Unreadable { name: name.to_string(), why });
        }
        let manifest = Manifest {
            format: Manifest::FORMAT,
            name: name.to_string(),
            file: first.file.clone(),
            bytes: first.bytes,
            sha256: first.sha256.clone(),
            source: format!("{} at {}", place.repo, self.settings.net.endpoint_name()),
            license,
            date: installed::now_utc(),
            hub: Some(place),
            folder,
            more: files.into_iter().map(|(_, entry)| entry).collect(),
        };
        installed::write(&ready, &manifest)?;
        disk::sync_dir(&ready);
        let (models, target) = (self.home.models(), self.home.model(name));
        fs::create_dir_all(&models).map_err(HubError::io("create", &models))?;
        remove_tree(&target)?;
        fs::rename(&ready, &target).map_err(HubError::io("create", &target))?;
        disk::sync_dir(&models);
        let _ = remove_tree(&work);
        Ok(main(&target))
    }

    /// The installed model that `wanted` means: the same repository and revision, and the file if it is named.
    pub(crate) fn installed_from_hub(&self, wanted: &HubName) -> Option<(ModelName, Local)> {
        let here = installed::on_hub(&self.home);
        let same: Vec<_> = here
            .into_iter()
            .filter(|(_, place, _)| {
                place.repo.eq_ignore_ascii_case(&wanted.repo)
                    && (place.revision == wanted.revision() || place.commit == wanted.revision())
            })
            .collect();
        let paths = same.iter().map(|(_, place, _)| place.path.as_str());
        let best = match wanted.file.as_deref() {
            Some(file) if file.ends_with(".safetensors") => "",
            file => pick(paths.clone(), file)
                .or_else(|| if file.is_none() { paths.clone().min() } else { None })?,
        };
        same.iter()
            .find(|(_, place, _)| place.path == best)
            .map(|(name, _, local)| (name.clone(), local.clone()))
    }

    /// The file of the hub's own cache that `wanted` means. The cache does not say which revision was asked for, so
    /// only `main` is looked for there.
    pub(crate) fn cached_from_hub(&self, wanted: &HubName) -> Option<Local> {
        if wanted.revision() != "main" {
            return None;
        }
        let prefix = format!("hf:{}/", wanted.repo);
        let cached: Vec<Local> =
            self.foreign().into_iter().filter(|local| local.origin == Origin::HubCache).collect();
        let paths = cached.iter().filter_map(|local| local.name.strip_prefix(&prefix));
        let name = format!("{prefix}{}", pick(paths, wanted.file.as_deref())?);
        cached.into_iter().find(|local| local.name == name)
    }
}

/// `hf-owner-name-file-1a2b3c4d`: readable, and different for every place.
fn install_name(place: &HubPlace) -> Result<ModelName, HubError> {
    let stem = place.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".gguf");
    let stem = if stem.is_empty() { "safetensors" } else { stem };
    let readable = format!("hf-{}-{stem}", place.repo.replace('/', "-")).replace(['+', '.'], "-");
    let id = format!("{}@{}:{}", place.repo, place.revision, place.path).to_ascii_lowercase();
    let hash = Sha256Hex::from_bytes(&Sha256::digest(id.as_bytes()));
    let readable: String = readable.chars().take(ModelName::MAX_BYTES - 9).collect();
    ModelName::parse(&format!("{readable}-{}", &hash.as_str()[..8]))
}

/// The body of `url`, of at most `limit` bytes. The token goes to the endpoint only: the client drops it when it is
/// sent to another host.
fn get(net: &NetSettings, url: Url, limit: u64, cancel: &Cancel) -> Result<Vec<u8>, SourceError> {
    let client = |why: String| SourceError::Client { why };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| client(format!("the network runtime cannot be started: {e}")))?;
    let builder = Client::builder()
        .user_agent(concat!("hob/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(net.connect_timeout)
        .read_timeout(net.stall_timeout);
    let http = builder
        .build()
        .map_err(|e| client(format!("the HTTP client cannot be set up: {}", innermost(&e))))?;
    runtime.block_on(async {
        let mut work = std::pin::pin!(body(&http, net, url, limit));
        loop {
            match tokio::time::timeout(POLL, work.as_mut()).await {
                Ok(outcome) => return outcome,
                Err(_) if cancel.load(std::sync::atomic::Ordering::Relaxed) => {
                    return Err(SourceError::Cancelled { kept_bytes: 0 });
                }
                Err(_) => {}
            }
        }
    })
}

async fn body(http: &Client, net: &NetSettings, url: Url, limit: u64) -> Result<Vec<u8>, SourceError> {
    let mut request = http.get(url.clone());
    if let Some(token) = &net.token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let mut answer = request.send().await.map_err(|e| announce::no_answer(net.endpoint_name(), &e))?;
    let status = answer.status();
    if !status.is_success() {
        return Err(announce::refused(url.as_str(), status.as_u16(), net.token.is_some()));
    }
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|e| announce::no_answer(net.endpoint_name(), &e))? {
        if bytes.len() as u64 + piece.len() as u64 > limit {
            return Err(SourceError::WrongSize {
                what: format!("the answer of {url}"),
                expected_bytes: limit,
                found_bytes: bytes.len() as u64 + piece.len() as u64,
            });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}
