//! `ModelFile`: one model as it lies on disk, whatever its format and however many files it has. It joins the parsers,
//! the folder rules and the two ways to read (mapped, positioned). It must not know what the tensors are for.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::error::{FileError, io_error, shown};
use crate::folder::{self, Companions, Weights};
use crate::json::regular_size;
use crate::metadata::Metadata;
use crate::names::NameIndex;
use crate::os::{self, Mapping};
use crate::shards::{ShardName, WeightMap};
use crate::tensor::{OpaqueTensor, TensorInfo};
use crate::{Limits, Result, gguf, safetensors};

const GGUF_EXT: &str = ".gguf";
const SAFETENSORS_EXT: &str = ".safetensors";

/// The container format of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Gguf,
    Safetensors,
}

/// A validated model file, split file or folder. Opening reads headers only; every extent has been checked, so that
/// the reading methods cannot leave the files.
#[derive(Debug)]
pub struct ModelFile {
    kind: FileKind,
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: Vec<TensorInfo>,
    index: NameIndex,
    opaque: Vec<OpaqueTensor>,
    metadata: Metadata,
    companions: Companions,
}

/// One open file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    map: Mapping,
    data_start: u64,
}

impl ModelFile {
    /// Opens with the default [`Limits`]. `path` is a GGUF file (any shard of a split one), a .safetensors file or its
    /// index, or a folder with config.json.
    pub fn open(path: impl AsRef<Path>) -> Result<ModelFile> {
        Self::open_with(path, &Limits::default())
    }

    /// Opens with other limits.
    pub fn open_with(path: impl AsRef<Path>, limits: &Limits) -> Result<ModelFile> {
        let path = path.as_ref();
        open_any(path, limits).map_err(|e| e.at(path))
    }

    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files with weights, in the order of [`TensorInfo::shard`].
    pub fn shard_paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// All tensors, shard by shard in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name, |i| &self.tensors[i].name).map(|i| &self.tensors[i])
    }

    /// Safetensors tensors of a dtype that hob cannot read; a loader that misses a tensor may find the reason here.
    pub fn opaque_tensors(&self) -> &[OpaqueTensor] {
        &self.opaque
    }

    /// Bytes of all shards.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.map.bytes().len() as u64).sum()
    }

    /// Fills `buf` with the tensor's bytes from `offset` (counted from its first byte) by positioned reads; safe to
    /// call from many threads. Leaving the tensor is [`io::ErrorKind::InvalidInput`]; a file that has shrunk since it
    /// was opened is [`io::ErrorKind::UnexpectedEof`].
    pub fn read_at(&self, tensor: &TensorInfo, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        let (Some(shard), true) = (self.shards.get(tensor.shard), end.is_some_and(|end| end <= tensor.bytes))
        else {
            let len = buf.len();
            let message = format!(
                "tensor {}: {len} bytes from {offset} leave its {} bytes",
                shown(&tensor.name),
                tensor.bytes
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        os::read_exact_at(&shard.file, buf, tensor.offset + offset)
    }

    /// The tensor's bytes in the mapping: for rows gathered here and there. If another process truncates the file,
    /// touching them kills the process; [`Self::read_at`] reports an error instead. Empty if `tensor` is not of this
    /// model.
    pub fn mapped(&self, tensor: &TensorInfo) -> &[u8] {
        let extent = || {
            let start = usize::try_from(tensor.offset).ok()?;
            let end = start.checked_add(usize::try_from(tensor.bytes).ok()?)?;
            self.shards.get(tensor.shard)?.map.bytes().get(start..end)
        };
        extent().unwrap_or(&[])
    }

    /// GGUF key-value pairs (of the first shard); empty for safetensors.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// A parsed companion of a safetensors model: `config.json`, `tokenizer_config.json`, `generation_config.json`,
    /// `special_tokens_map.json` or `chat_template.json`, if the folder has it.
    pub fn json(&self, name: &str) -> Option<&serde_json::Value> {
        self.companions.json(name)
    }

    /// A text companion: `chat_template.jinja`, if the folder has it.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.companions.text(name)
    }

    /// The path of `tokenizer.json` beside a safetensors model, if there is one.
    pub fn tokenizer_json(&self) -> Option<PathBuf> {
        self.companions.tokenizer_json().map(Path::to_path_buf)
    }

    /// A cheap fingerprint as 32 hex digits: xxh3-128 over, for each shard, its size, everything before the tensor
    /// data, and 32 windows of 4,096 bytes spread evenly over the data; then config.json. Equal files have equal ids;
    /// a change of weights that misses every window goes unnoticed, so it protects against mix-ups, not attackers.
    pub fn model_id(&self) -> String {
        const WINDOWS: usize = 32;
        const WINDOW_BYTES: usize = 4096;
        let mut hash = Xxh3::new();
        for shard in &self.shards {
            let bytes = shard.map.bytes();
            let (header, data) = bytes.split_at(bytes.len().min(shard.data_start as usize));
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(header);
            let last_start = data.len().saturating_sub(WINDOW_BYTES);
            for window in 0..WINDOWS {
                let start = (last_start as u128 * window as u128 / (WINDOWS as u128 - 1)) as usize;
                hash.update(&data[start..data.len().min(start + WINDOW_BYTES)]);
            }
        }
        if let Some(config) = self.json("config.json") {
            hash.update(config.to_string().as_bytes());
        }
        format!("{:032x}", hash.digest128())
    }

    /// Tells the kernel that the files' cached pages are not needed again (they have been copied to where they are
    /// used). A hint.
    pub fn drop_cache(&self) {
        for shard in &self.shards {
            os::drop_cache(&shard.file, 0, 0);
        }
    }

    /// The same for one tensor, so that a loader can drop the cache behind itself.
    pub fn drop_tensor_cache(&self, tensor: &TensorInfo) {
        if let Some(shard) = self.shards.get(tensor.shard) {
            os::drop_cache(&shard.file, tensor.offset, tensor.bytes);
        }
    }

    /// Whether the file's cached pages would crowd out what is made from them: it is larger than a third of the memory.
    /// Smaller files stay cached, so that the next start is quick.
    pub fn crowds_memory(&self) -> bool {
        os::physical_bytes().is_some_and(|memory| self.total_bytes() > memory / 3)
    }

    /// Joins the tables of all shards; names must be unique across them.
    fn join(
        kind: FileKind,
        path: &Path,
        shards: Vec<OpenShard>,
        metadata: Metadata,
        limits: &Limits,
    ) -> Result<ModelFile> {
        let count = shards.iter().map(|s| s.tensors.len()).sum();
        let mut model = ModelFile {
            kind,
            path: path.to_path_buf(),
            shards: Vec::with_capacity(shards.len()),
            tensors: Vec::with_capacity(count),
            index: NameIndex::default(),
            opaque: Vec::new(),
            metadata,
            companions: Companions::default(),
        };
        for (number, open) in shards.into_iter().enumerate() {
            model.tensors.extend(open.tensors.into_iter().map(|t| TensorInfo { shard: number, ..t }));
            model.opaque.extend(open.opaque.into_iter().map(|t| OpaqueTensor { shard: number, ..t }));
            model.shards.push(open.shard);
        }
        let found = (model.tensors.len() + model.opaque.len()) as u64;
        if found > limits.tensors {
            let what = "the number of tensors in all shards".into();
            return Err(FileError::Limit { what, found, limit: limits.tensors, field: "tensors" });
        }
        let twice = |name: &str| FileError::DuplicateName { what: "tensor", name: shown(name) };
        let (tensors, opaque) = (&model.tensors, &model.opaque);
        model.index = NameIndex::build(count, |i| &tensors[i].name).map_err(|i| twice(&tensors[i].name))?;
        NameIndex::build(opaque.len(), |i| &opaque[i].name).map_err(|i| twice(&opaque[i].name))?;
        match model.opaque.iter().find(|t| model.tensor(&t.name).is_some()) {
            Some(t) => Err(twice(&t.name)),
            None => Ok(model),
        }
    }

    /// The shard that holds a tensor of any dtype.
    fn shard_of(&self, name: &str, opaque: &NameIndex) -> Option<usize> {
        let in_opaque = || opaque.get(name, |i| &self.opaque[i].name).map(|i| self.opaque[i].shard);
        self.tensor(name).map(|t| t.shard).or_else(in_opaque)
    }
}

/// A parsed file that is not yet part of a model.
struct OpenShard {
    shard: Shard,
    tensors: Vec<TensorInfo>,
    opaque: Vec<OpaqueTensor>,
}

fn open_any(path: &Path, limits: &Limits) -> Result<ModelFile> {
    let meta = std::fs::metadata(path).map_err(io_error("open it"))?;
    if meta.is_dir() {
        return match folder::find_weights(path)? {
            Weights::Single(file) => open_safetensors(path, &file, limits),
            Weights::Index(index) => open_index(path, &index, limits),
        };
    }
    if folder::is_index(path) {
        return open_index(path, path, limits);
    }
    let (file, map) = open_mapped(path)?;
    match sniff(path, map.bytes())? {
        FileKind::Gguf => open_gguf(path, file, map, limits),
        FileKind::Safetensors => {
            drop((file, map));
            match ShardName::parse(path, SAFETENSORS_EXT).filter(|name| name.count > 1) {
                None => open_safetensors(path, path, limits),
                Some(name) => {
                    let (number, count) = (name.number, name.count);
                    let advice =
                        "the index file that joins the shards is not beside it; download the whole model";
                    let lone = FileError::LoneShard { number, count, advice };
                    let index = folder::index_of_shard(path, name.prefix).ok_or(lone)?;
                    open_index(path, &index, limits)
                }
            }
        }
    }
}

fn open_mapped(path: &Path) -> Result<(File, Mapping)> {
    // Asked for before opening: opening a pipe would block.
    if regular_size(path)?.is_none() {
        return Err(FileError::Io { action: "open it", source: io::ErrorKind::NotFound.into() });
    }
    let file = File::open(path).map_err(io_error("open it"))?;
    let map = Mapping::of(&file).map_err(io_error("map it"))?;
    Ok((file, map))
}

/// Decides by content, and by the name where the content is damaged.
fn sniff(path: &Path, bytes: &[u8]) -> Result<FileKind> {
    if bytes.starts_with(gguf::MAGIC) || !bytes.is_empty() && gguf::MAGIC.starts_with(bytes) {
        return Ok(FileKind::Gguf);
    }
    let named = |ext: &str| path.to_str().is_some_and(|p| p.to_ascii_lowercase().ends_with(ext));
    let page = looks_like_page(bytes);
    let pointer = bytes.starts_with(b"version https://git-lfs");
    if !page && !pointer && (named(SAFETENSORS_EXT) || bytes.get(8) == Some(&b'{')) {
        return Ok(FileKind::Safetensors);
    }
    if bytes.is_empty() {
        let advice = "The download did not start: download the file again.";
        return Err(FileError::NotAModel { found: "nothing (the file is empty)".into(), advice });
    }
    let advice = if pointer {
        "This is a Git LFS pointer, not the file itself: run `git lfs pull` or download the file."
    } else if page {
        "This is a web page, probably an error message saved by a download: download the file again."
    } else if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") {
        "This is a pickled PyTorch file, which can run code when loaded: use the safetensors or GGUF version."
    } else if [b"tjgg", b"lmgg", b"algg"].iter().any(|magic| bytes.starts_with(*magic)) {
        "This is a GGML file from before GGUF: download a current file of this model."
    } else if bytes.starts_with(b"FUGG") {
        "This is GGUF with swapped bytes: download the little-endian file."
    } else {
        "Check the path, or download the file again."
    };
    let start = &bytes[..bytes.len().min(16)];
    Err(FileError::NotAModel { found: format!("\"{}\"", start.escape_ascii()), advice })
}

/// HTML or XML. A safetensors header of 60 bytes starts with '<' too, but goes on with zeros.
fn looks_like_page(bytes: &[u8]) -> bool {
    bytes.starts_with(b"<") && !bytes.iter().take(8).any(|&b| b == 0)
}

fn gguf_shard(path: &Path, file: File, map: Mapping, limits: &Limits) -> Result<(OpenShard, Metadata)> {
    let header = gguf::parse(map.bytes(), limits)?;
    let shard = Shard { path: path.to_path_buf(), file, map, data_start: header.data_start };
    Ok((OpenShard { shard, tensors: header.tensors, opaque: Vec::new() }, header.metadata))
}

/// Opens a GGUF file and, if it is part of a split model, its siblings.
fn open_gguf(path: &Path, file: File, map: Mapping, limits: &Limits) -> Result<ModelFile> {
    let (first, metadata) = gguf_shard(path, file, map, limits)?;
    let count = metadata.u64("split.count")?.unwrap_or(1);
    if count <= 1 {
        return ModelFile::join(FileKind::Gguf, path, vec![first], metadata, limits);
    }
    if count > limits.shards {
        let what = "split.count".into();
        return Err(FileError::Limit { what, found: count, limit: limits.shards, field: "shards" });
    }
    let number = metadata.u64("split.no")?.unwrap_or(0).saturating_add(1);
    let advice =
        "its name does not end in -00001-of-0000N.gguf with that number and count; give it its original name";
    let name = ShardName::parse(path, GGUF_EXT).filter(|name| name.number == number && name.count == count);
    let name = name.ok_or(FileError::LoneShard { number, count, advice })?;
    open_split(path, name, limits)
}

/// Opens all files of a split GGUF model; `split.*` keys must agree between them.
fn open_split(path: &Path, name: ShardName, limits: &Limits) -> Result<ModelFile> {
    let paths: Vec<PathBuf> = (1..=name.count).map(|n| name.sibling(path, n, GGUF_EXT)).collect();
    check_all_there(&paths)?;
    let mut shards = Vec::with_capacity(paths.len());
    let mut first_metadata = None;
    let mut declared = None;
    for (number, shard_path) in paths.iter().enumerate() {
        let mut open = || -> Result<OpenShard> {
            let (file, map) = open_mapped(shard_path)?;
            let (shard, metadata) = gguf_shard(shard_path, file, map, limits)?;
            for (what, expected) in [("split.count", name.count), ("split.no", number as u64)] {
                let found = metadata.u64(what)?.unwrap_or(0);
                if found != expected {
                    return Err(FileError::ShardMismatch { what, expected, found });
                }
            }
            if number == 0 {
                declared = metadata.u64("split.tensors.count")?;
                first_metadata = Some(metadata);
            }
            Ok(shard)
        };
        shards.push(open().map_err(|e| e.at(shard_path))?);
    }
    let found = shards.iter().map(|s| s.tensors.len() as u64).sum();
    if let Some(expected) = declared.filter(|&expected| expected != found) {
        return Err(FileError::ShardMismatch { what: "tensors in all shards", expected, found });
    }
    ModelFile::join(FileKind::Gguf, path, shards, first_metadata.unwrap_or_default(), limits)
}

fn check_all_there(paths: &[PathBuf]) -> Result<()> {
    let mut missing = paths.iter().filter(|p| !p.is_file());
    let Some(first) = missing.next() else { return Ok(()) };
    let name = shown(&first.file_name().unwrap_or_default().to_string_lossy());
    let advice = format!("{} of {} files are missing, finish the download", missing.count() + 1, paths.len());
    Err(FileError::ShardMissing { name, advice })
}

fn safetensors_shard(path: &Path, limits: &Limits) -> Result<OpenShard> {
    let open = || -> Result<OpenShard> {
        let (file, map) = open_mapped(path)?;
        // A pointer file or a web page under the right name deserves its own message.
        sniff(path, map.bytes())?;
        let header = safetensors::parse(map.bytes(), limits)?;
        let shard = Shard { path: path.to_path_buf(), file, map, data_start: header.data_start };
        Ok(OpenShard { shard, tensors: header.tensors, opaque: header.opaque })
    };
    open().map_err(|e| e.at(path))
}

/// Opens one safetensors file; `path` is what the user gave (the file or its folder).
fn open_safetensors(path: &Path, file: &Path, limits: &Limits) -> Result<ModelFile> {
    let shard = safetensors_shard(file, limits)?;
    let mut model = ModelFile::join(FileKind::Safetensors, path, vec![shard], Metadata::default(), limits)?;
    model.companions = Companions::read(folder::parent(file), limits)?;
    Ok(model)
}

/// Opens a sharded safetensors model; every tensor of the index must be in the shard that the index names.
fn open_index(path: &Path, index: &Path, limits: &Limits) -> Result<ModelFile> {
    let map = WeightMap::read(index, limits)?;
    let folder = folder::parent(index);
    let paths: Vec<PathBuf> = map.shards.iter().map(|name| folder.join(name)).collect();
    check_all_there(&paths)?;
    let shards = paths.iter().map(|p| safetensors_shard(p, limits)).collect::<Result<Vec<_>>>()?;
    let mut model = ModelFile::join(FileKind::Safetensors, path, shards, Metadata::default(), limits)?;
    let opaque = &model.opaque;
    let opaque = NameIndex::build(opaque.len(), |i| &opaque[i].name).unwrap_or_default();
    for (tensor, shard) in &map.tensors {
        if model.shard_of(tensor, &opaque) != Some(*shard as usize) {
            let shard = shown(&map.shards[*shard as usize]);
            return Err(FileError::ShardTensor { tensor: shown(tensor), shard });
        }
    }
    model.companions = Companions::read(folder, limits)?;
    Ok(model)
}
