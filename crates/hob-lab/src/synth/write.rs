//! A synthesised model as a GGUF file: header first, then one tensor after the other in pieces, so that size costs disk
//! and no memory. It must not know what the weights are.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hob_files::gguf_write::{Body, Writer};
use hob_files::store::{self, AtomicFile};
use hob_files::{FileError, ModelFile, TensorInfo};
use hob_model::{Config, TensorSource};

use super::{Synth, SynthError, keys, vocab};

/// Bytes made at once; a cancel is noticed between two pieces.
const PIECE_BYTES: usize = 1 << 20;
/// Space left free for the rest of the system.
const MARGIN_BYTES: u64 = 64 << 20;
/// Every tensor starts at a multiple of this, GGUF's default.
const ALIGNMENT: u64 = 32;

impl Synth {
    /// Writes the model to `path`; an earlier file of that name stays until the new one is whole. `progress` gets bytes
    /// written and in total. When `cancel` turns true nothing is left behind.
    ///
    /// Returns the size of the file in bytes.
    ///
    /// # Errors
    /// A vocabulary too small to spell bytes, too little space, what writing says, [`SynthError::Cancelled`].
    pub fn write(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64),
        cancel: &AtomicBool,
    ) -> Result<u64, SynthError> {
        if self.shape.vocab < vocab::LEAST {
            return Err(SynthError::Vocabulary { least: vocab::LEAST, found: self.shape.vocab });
        }
        let mut writer = self.header()?;
        vocab::write_keys(&mut writer, self.shape.vocab, keys::pre_tokenizer(self.arch));
        let total = header_bytes(&writer)?.len() as u64 + self.data_bytes();
        store::ensure_space(path, total + MARGIN_BYTES)?;
        let mut body = writer.begin(AtomicFile::create(path)?).map_err(at(path))?;
        let mut done = total - self.data_bytes();
        progress(done, total);
        for tensor in &self.tensors {
            self.write_tensor(tensor, &mut body, cancel, &mut |bytes| {
                done += bytes;
                progress(done, total);
            })
            .map_err(|e| match e {
                SynthError::File(e) => at(path)(e).into(),
                other => other,
            })?;
        }
        body.finish().map_err(at(path))?.commit()?;
        Ok(total)
    }

    fn write_tensor(
        &self,
        tensor: &TensorInfo,
        body: &mut Body<'_, AtomicFile>,
        cancel: &AtomicBool,
        written: &mut dyn FnMut(u64),
    ) -> Result<(), SynthError> {
        let bytes = self.open(tensor);
        let mut piece = vec![0; tensor.bytes.min(PIECE_BYTES as u64) as usize];
        let mut offset = 0;
        while offset < tensor.bytes {
            if cancel.load(Ordering::Relaxed) {
                return Err(SynthError::Cancelled);
            }
            let piece = &mut piece[..(tensor.bytes - offset).min(PIECE_BYTES as u64) as usize];
            bytes
                .read_at(offset, piece)
                .and_then(|()| body.write_all(piece))
                .map_err(|source| FileError::Io { action: "write tensor data", source })?;
            offset += piece.len() as u64;
            written(piece.len() as u64);
        }
        Ok(body.end_tensor()?)
    }

    /// Keys and tensor table, without a vocabulary.
    fn header(&self) -> Result<Writer, SynthError> {
        let mut writer = Writer::new();
        keys::write(&mut writer, &self.shape, self.arch, &self.name());
        if let Some(file_type) = self.mix.file_type() {
            writer.set("general.file_type", file_type);
        }
        for tensor in &self.tensors {
            writer.tensor(&tensor.name, tensor.format, &tensor.shape)?;
        }
        Ok(writer)
    }

    /// Bytes of all tensors with the padding between them.
    fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes.next_multiple_of(ALIGNMENT)).sum()
    }

    /// The config, read by hob-model from a file whose data is a hole but for single numbers, which a config may depend
    /// on: the way it reads every file's.
    pub(super) fn read_config(&self) -> Result<Config, SynthError> {
        let header = header_bytes(&self.header()?)?;
        let hollow = Hollow::new();
        let fill = || -> std::io::Result<()> {
            let mut file = File::create_new(&hollow.0)?;
            file.write_all(&header)?;
            file.set_len(header.len() as u64 + self.data_bytes())?;
            let mut at = header.len() as u64;
            for tensor in &self.tensors {
                if tensor.shape.iter().product::<usize>() == 1 {
                    let mut bytes = vec![0; tensor.bytes as usize];
                    self.open(tensor).read_at(0, &mut bytes)?;
                    file.seek(SeekFrom::Start(at))?;
                    file.write_all(&bytes)?;
                }
                at += tensor.bytes.next_multiple_of(ALIGNMENT);
            }
            Ok(())
        };
        fill().map_err(|source| at(&hollow.0)(FileError::Io { action: "write it", source }))?;
        Ok(Config::from_file(&ModelFile::open(&hollow.0)?)?)
    }
}

/// Everything before the data.
fn header_bytes(writer: &Writer) -> Result<Vec<u8>, SynthError> {
    let mut bytes = Vec::new();
    writer.begin(&mut bytes)?;
    Ok(bytes)
}

fn at(path: &Path) -> impl Fn(FileError) -> FileError + '_ {
    |error| match error {
        FileError::In { .. } => error,
        other => FileError::In { path: path.to_path_buf(), source: Box::new(other) },
    }
}

/// The path of a short-lived file, which goes with it.
struct Hollow(PathBuf);

impl Hollow {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("hob-synth-{}-{number}.gguf", std::process::id())))
    }
}

impl Drop for Hollow {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
