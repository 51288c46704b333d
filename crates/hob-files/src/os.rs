//! What std does not offer everywhere: mapping a file, dropping its page cache, free disk space, positioned reads and
//! writes, private folders.
//! The only module of the crate with `unsafe`. It must not know formats.
//!
//! **Documented risk.** A mapping shows the file as it is *now*. If another process truncates the file while it is
//! mapped, touching the lost part raises SIGBUS; if it rewrites the file, already checked bytes may change. Parsers
//! therefore copy what they keep out of the mapping, weights go through positioned reads (which fail with an error
//! instead), and hob's own writers never change a file in place (`store` renames or appends).
#![allow(unsafe_code, reason = "mapping and system calls; every other module is denied it")]

#[cfg(unix)]
use std::fs::Permissions;
use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

/// A read-only mapping of a whole file.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// `None` for an empty file, which cannot be mapped.
    map: Option<memmap2::Mmap>,
}

impl Mapping {
    pub(crate) fn of(file: &File) -> io::Result<Mapping> {
        if file.metadata()?.len() == 0 {
            return Ok(Mapping { map: None });
        }
        // SAFETY: the mapping is private to this process and read-only. That nobody else truncates or rewrites the
        // file cannot be guaranteed; the module comment states the risk and what keeps it small.
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Mapping { map: Some(map) })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

/// Fills `buf` from `offset` without moving the file's cursor; a short file is an error.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

/// Fills `buf` from `offset`; a short file is an error.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buf.is_empty() {
        match file.seek_read(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buf = &mut buf[count..];
                offset += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `buf` at `offset` without moving the file's cursor.
#[cfg(unix)]
pub(crate) fn write_all_at(file: &File, buf: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, buf, offset)
}

/// Writes all of `buf` at `offset`.
#[cfg(windows)]
pub(crate) fn write_all_at(file: &File, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buf.is_empty() {
        match file.seek_write(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                buf = &buf[count..];
                offset += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether an open file still has a name.
#[cfg(unix)]
pub(crate) fn is_linked(facts: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(facts) > 0
}

#[cfg(not(unix))]
pub(crate) fn is_linked(_facts: &Metadata) -> bool {
    true
}

/// Takes the rights of others on an open file away.
#[cfg(unix)]
pub(crate) fn tighten(file: &File, facts: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match facts.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => file.set_permissions(Permissions::from_mode(0o600)),
    }
}

/// Takes the rights of others on a folder away, and leaves the owner's.
#[cfg(unix)]
pub(crate) fn tighten_folder(path: &Path, facts: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match facts.permissions().mode() {
        mode if mode & 0o077 == 0 => Ok(()),
        mode => std::fs::set_permissions(path, Permissions::from_mode(mode & 0o700)),
    }
}

/// Makes a folder for its owner only, with its parents.
#[cfg(unix)]
pub(crate) fn make_private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Elsewhere a user's folders are private by inheritance.
#[cfg(not(unix))]
pub(crate) fn tighten(_file: &File, _facts: &Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn tighten_folder(_path: &Path, _facts: &Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn make_private_folder(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

/// Tells the kernel that `len` bytes from `offset` will not be needed again. A hint: failure is not an error.
#[cfg(target_os = "linux")]
pub(crate) fn drop_cache(file: &File, offset: u64, len: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for the duration of the call; the call reads no memory of ours.
    let _ = unsafe {
        libc::posix_fadvise(
            file.as_raw_fd(),
            offset as libc::off_t,
            len as libc::off_t,
            libc::POSIX_FADV_DONTNEED,
        )
    };
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn drop_cache(_file: &File, _offset: u64, _len: u64) {}

/// Bytes of physical memory; `None` where the system does not say.
#[cfg(unix)]
pub(crate) fn physical_bytes() -> Option<u64> {
    // SAFETY: asks for two numbers.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).ok()?.checked_mul(u64::try_from(size).ok()?).filter(|&bytes| bytes > 0)
}

#[cfg(not(unix))]
pub(crate) fn physical_bytes() -> Option<u64> {
    None
}

/// Bytes that an unprivileged process may still write to the file system of `path` (which must exist).
#[cfg(unix)]
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` is NUL-terminated and `stat` is a valid place for the result.
    let rc = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero bytes are a valid statvfs, and the call above has filled it.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "the field types differ between platforms")]
    Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

/// Unknown here: reports "plenty", so that only the write itself can fail.
#[cfg(not(unix))]
pub(crate) fn free_bytes(_path: &Path) -> io::Result<u64> {
    Ok(u64::MAX)
}
