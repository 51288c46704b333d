//! A file, pipe or cursor that fails on cue: at the n-th operation or at the n-th byte, with errors, short transfers or
//! torn writes. It must not know what is read or written.
//!
//! ```
//! use hob_testkit::faulty::{Fault, FaultyFile};
//! use std::io::{Cursor, ErrorKind, Write};
//!
//! // A disk that is full after 10 bytes.
//! let mut file = FaultyFile::new(Cursor::new(vec![])).full_at(10, ErrorKind::StorageFull);
//! assert_eq!(file.write_all(&[1; 20]).unwrap_err().kind(), ErrorKind::StorageFull);
//! assert_eq!(file.into_inner().into_inner().len(), 10);
//! # let _ = Fault::Short(1);
//! ```

use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom, Write};

/// What happens at the chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and moves nothing; later ones work. `ErrorKind::Interrupted` must be retried by the caller.
    Error(ErrorKind),
    /// The operation moves at most this many bytes and succeeds. 0 reads as end of file.
    Short(usize),
    /// A write stores this many bytes (a read delivers nothing), fails, and everything after it fails: the state that a
    /// crash leaves behind.
    Torn(usize),
}

/// Wraps `inner`; counts reads, writes, seeks and flushes as operations 0, 1, 2, ... and the bytes moved.
#[derive(Debug)]
pub struct FaultyFile<T> {
    inner: T,
    faults: Vec<(u64, Fault)>,
    limit: Option<(u64, ErrorKind)>,
    at_most: usize,
    operations: u64,
    bytes: u64,
    dead: bool,
}

/// What the current operation may do.
struct Permit {
    at_most: usize,
    /// Fails after moving `at_most` bytes.
    torn: bool,
}

impl<T> FaultyFile<T> {
    /// A wrapper without faults.
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            faults: Vec::new(),
            limit: None,
            at_most: usize::MAX,
            operations: 0,
            bytes: 0,
            dead: false,
        }
    }

    /// Adds `fault` at operation `n` (from 0).
    pub fn at_operation(mut self, n: u64, fault: Fault) -> Self {
        self.faults.push((n, fault));
        self
    }

    /// Moves `bytes` bytes in all (reads and writes together); from there every read and write fails with `kind`.
    pub fn full_at(mut self, bytes: u64, kind: ErrorKind) -> Self {
        self.limit = Some((bytes, kind));
        self
    }

    /// Moves at most `bytes` bytes per operation, as pipes and sockets may.
    ///
    /// # Panics
    /// If `bytes` is 0, which would be an end of file.
    pub fn always_short(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "use Fault::Short(0) for an end of file");
        self.at_most = bytes;
        self
    }

    /// Operations so far; run once without faults to learn how many there are to break.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Bytes moved so far.
    pub fn moved_bytes(&self) -> u64 {
        self.bytes
    }

    /// What lies behind.
    pub fn into_inner(self) -> T {
        self.inner
    }

    fn permit(&mut self, transfers: bool) -> Result<Permit> {
        let operation = self.operations;
        self.operations += 1;
        if self.dead {
            return Err(dead());
        }
        let mut permit = Permit { at_most: self.at_most, torn: false };
        if let Some(&(_, fault)) = self.faults.iter().find(|(n, _)| *n == operation) {
            match fault {
                Fault::Error(kind) => {
                    return Err(Error::new(kind, format!("fault at operation {operation}")));
                }
                Fault::Short(bytes) => permit.at_most = permit.at_most.min(bytes),
                Fault::Torn(bytes) => permit = Permit { at_most: permit.at_most.min(bytes), torn: true },
            }
        }
        if let (true, Some((limit, kind))) = (transfers, self.limit) {
            let left = limit.saturating_sub(self.bytes);
            if left == 0 {
                return Err(Error::new(kind, format!("fault at byte {limit}")));
            }
            permit.at_most = permit.at_most.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        if permit.torn {
            self.dead = true;
        }
        Ok(permit)
    }
}

fn dead() -> Error {
    Error::new(ErrorKind::BrokenPipe, "the file died at an earlier operation")
}

impl<T: Read> Read for FaultyFile<T> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let permit = self.permit(!buf.is_empty())?;
        if permit.torn {
            return Err(dead());
        }
        let n = {
            let len = permit.at_most.min(buf.len());
            self.inner.read(&mut buf[..len])?
        };
        self.bytes += n as u64;
        Ok(n)
    }
}

impl<T: Write> Write for FaultyFile<T> {
    fn write(&mut self, buf: &[u8]) -> Result<usize> {
        let permit = self.permit(!buf.is_empty())?;
        let part = &buf[..permit.at_most.min(buf.len())];
        if permit.torn {
            self.inner.write_all(part)?;
            self.bytes += part.len() as u64;
            return Err(dead());
        }
        let n = self.inner.write(part)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> Result<()> {
        if self.permit(false)?.torn {
            return Err(dead());
        }
        self.inner.flush()
    }
}

impl<T: Seek> Seek for FaultyFile<T> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        if self.permit(false)?.torn {
            return Err(dead());
        }
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, ErrorKind, Read, Seek, SeekFrom, Write};

    use super::{Fault, FaultyFile};

    fn file(n: u8) -> FaultyFile<Cursor<Vec<u8>>> {
        FaultyFile::new(Cursor::new((0..n).collect()))
    }

    #[test]
    fn without_faults_everything_passes_and_is_counted() {
        let mut f = file(10);
        let mut out = Vec::new();
        f.seek(SeekFrom::Start(4)).expect("seek");
        f.read_to_end(&mut out).expect("read");
        assert_eq!(out, [4, 5, 6, 7, 8, 9]);
        assert_eq!(f.moved_bytes(), 6);
        assert!(f.operations() >= 3, "a seek, a read and a read of the end: {}", f.operations());
    }

    #[test]
    fn an_error_strikes_once_at_its_operation() {
        let mut f = file(10).at_operation(1, Fault::Error(ErrorKind::TimedOut));
        let mut byte = [0];
        assert_eq!(f.read(&mut byte).expect("operation 0"), 1);
        assert_eq!(f.read(&mut byte).expect_err("operation 1").kind(), ErrorKind::TimedOut);
        assert_eq!(f.read(&mut byte).expect("operation 2"), 1);
        assert_eq!(byte, [1], "the failed operation moved nothing");
        let mut f = file(10).at_operation(0, Fault::Error(ErrorKind::PermissionDenied));
        assert_eq!(f.seek(SeekFrom::End(0)).expect_err("seek").kind(), ErrorKind::PermissionDenied);
        let mut f = file(10).at_operation(0, Fault::Error(ErrorKind::Other));
        assert_eq!(f.flush().expect_err("flush").kind(), ErrorKind::Other);
    }

    #[test]
    fn interrupted_reads_are_retried_by_read_exact() {
        let mut f = file(10).at_operation(0, Fault::Error(ErrorKind::Interrupted));
        let mut out = [0; 4];
        f.read_exact(&mut out).expect("read_exact retries");
        assert_eq!(out, [0, 1, 2, 3]);
    }

    #[test]
    fn short_transfers_move_part_and_zero_reads_as_end() {
        let mut f = file(10).at_operation(0, Fault::Short(3)).at_operation(1, Fault::Short(0));
        let mut out = [9; 8];
        assert_eq!(f.read(&mut out).expect("short"), 3);
        assert_eq!(f.read(&mut out).expect("end"), 0);
        assert_eq!(f.read(&mut out).expect("whole"), 7);
        let mut f = file(100).always_short(7);
        let mut out = Vec::new();
        f.read_to_end(&mut out).expect("read");
        assert_eq!(out.len(), 100);
        assert!(f.operations() >= 15, "{}", f.operations());
    }

    #[test]
    fn a_full_medium_takes_its_bytes_and_stays_full() {
        let mut f = FaultyFile::new(Cursor::new(vec![])).full_at(5, ErrorKind::StorageFull);
        assert_eq!(f.write_all(&[7; 8]).expect_err("full").kind(), ErrorKind::StorageFull);
        assert_eq!(f.write(&[7]).expect_err("still full").kind(), ErrorKind::StorageFull);
        f.flush().expect("flushing moves no bytes");
        assert_eq!(f.into_inner().into_inner(), [7; 5]);
    }

    #[test]
    fn a_torn_write_stores_a_prefix_and_everything_after_fails() {
        let mut f = FaultyFile::new(Cursor::new(vec![])).at_operation(1, Fault::Torn(2));
        f.write_all(&[1; 4]).expect("operation 0");
        assert_eq!(f.write_all(&[2; 4]).expect_err("torn").kind(), ErrorKind::BrokenPipe);
        assert!(f.write(&[3]).is_err() && f.flush().is_err() && f.seek(SeekFrom::Start(0)).is_err());
        assert_eq!(f.into_inner().into_inner(), [1, 1, 1, 1, 2, 2]);
    }
}
