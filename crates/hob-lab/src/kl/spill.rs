//! Rows of logits on disk until they are needed: written once, read once in the same order. It must not know what they
//! are compared with.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use hob_files::store;

use crate::eval::EvalError;

/// Space left free for the rest of the system.
const MARGIN_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// A temporary file that goes with it.
pub(super) struct Spill {
    path: PathBuf,
    out: Option<BufWriter<File>>,
    input: Option<BufReader<File>>,
    /// A row's bytes on their way.
    bytes: Vec<u8>,
}

impl Spill {
    /// # Errors
    /// Too little room for `bytes` in the folder for temporary files (`TMPDIR`).
    pub fn new(bytes: u64) -> Result<Self, EvalError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir();
        store::ensure_space(&dir, bytes.saturating_add(MARGIN_BYTES))?;
        let path = dir.join(format!("hob-kl-{}-{number}.tmp", std::process::id()));
        let mut open = File::options();
        open.read(true).write(true).create_new(true);
        let file = open.open(&path).map_err(EvalError::Spill)?;
        let out = Some(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(Self { path, out, input: None, bytes: Vec::new() })
    }

    pub fn write(&mut self, logits: &[f32]) -> Result<(), EvalError> {
        self.bytes.clear();
        self.bytes.extend(logits.iter().flat_map(|l| l.to_le_bytes()));
        let Some(out) = &mut self.out else { return Err(closed()) };
        out.write_all(&self.bytes).map_err(EvalError::Spill)
    }

    /// Ends writing, begins reading.
    pub fn rewind(&mut self) -> Result<(), EvalError> {
        let Some(out) = self.out.take() else { return Err(closed()) };
        let mut file = out.into_inner().map_err(|e| EvalError::Spill(e.into_error()))?;
        file.rewind().map_err(EvalError::Spill)?;
        self.input = Some(BufReader::with_capacity(BUFFER_BYTES, file));
        Ok(())
    }

    pub fn read(&mut self, logits: &mut [f32]) -> Result<(), EvalError> {
        let Some(input) = &mut self.input else { return Err(closed()) };
        self.bytes.resize(logits.len() * 4, 0);
        input.read_exact(&mut self.bytes).map_err(EvalError::Spill)?;
        for (logit, &bytes) in logits.iter_mut().zip(self.bytes.as_chunks::<4>().0) {
            *logit = f32::from_le_bytes(bytes);
        }
        Ok(())
    }
}

fn closed() -> EvalError {
    EvalError::Spill(std::io::Error::other("the file is not open for this"))
}

impl Drop for Spill {
    fn drop(&mut self) {
        (self.out, self.input) = (None, None);
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_bit_for_bit_and_the_file_goes() {
        let mut spill = Spill::new(1000).expect("room");
        let path = spill.path.clone();
        spill.write(&[1.5, -0.0]).expect("written");
        spill.write(&[f32::NEG_INFINITY]).expect("written");
        assert!(spill.read(&mut [0.0]).is_err());
        spill.rewind().expect("rewinds");
        let mut rows = [0.0; 3];
        spill.read(&mut rows).expect("read");
        assert_eq!(rows.map(f32::to_bits), [1.5f32, -0.0, f32::NEG_INFINITY].map(f32::to_bits));
        assert!(spill.read(&mut rows).is_err());
        drop(spill);
        assert!(!path.exists());
    }

    #[test]
    fn no_room_is_said_with_the_numbers() {
        assert!(Spill::new(u64::MAX - (1 << 40)).is_err());
    }
}
